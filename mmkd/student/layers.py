"""Dropout whose random numbers cost little on a CPU: [...] to [...]; ranges that parts share.

Srivastava et al., Dropout (JMLR 15, 2014). torch draws one number an entry, on a CPU one at a time,
which took 10-15% of a training step; a byte is enough to decide, and eight come with one draw.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero a share of the entries and scale up the rest, so that the mean stays.

    On a CPU the rate is rounded to a multiple of 1/256 (0.2 to 0.199), and the scale fits the
    rounded rate. Elsewhere this is torch's dropout.

    Args:
        x: Any shape, floating point.
        rate: Share to drop, 0..1.
        training: False returns `x` itself.

    Returns:
        The shape and dtype of `x`.
    """
    dropped = round(rate * 256)
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu" or not 0 < dropped < 256:
        return F.dropout(x, rate, training)
    count = x.numel()
    draws = torch.randint(-(2**63), 2**63 - 1, ((count + 7) // 8,))
    kept = draws.view(torch.uint8)[:count].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


def check_dropout(options: Mapping[str, Any]) -> list[str]:
    """A line unless the option `dropout`, where there is one, drops a share, and not all."""
    rate = options.get("dropout", 0)
    if 0 <= rate < 1:
        return []
    return [f"dropout: got {rate}, wanted 0 up to but not including 1; 0 drops none"]


def check_modality_name(name: str) -> list[str]:
    """A line unless parameters can be stored under a modality's name.

    torch joins such names with dots and keeps them as attributes, so that a name with a dot, or
    that of a method such as `type` or `keys`, would fail late.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return [
            f"modality {name!r}: wanted letters, digits, _ and -, the first a letter or digit; "
            "rename it"
        ]
    if any(hasattr(container, name) for container in (nn.ModuleDict(), nn.ParameterDict())):
        return [f"modality {name!r}: torch keeps this name for itself; rename it"]
    return []
