"""Constructor arguments of the student's parts: their ranges, and the names of modalities."""

import re

from torch import nn

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = (nn.ModuleDict(), nn.ParameterDict())


def check_counts(**counts: int | None) -> None:
    """Raise a ValueError unless every count is at least 1; None, a default, passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}: got {count}, wanted at least 1; raise it")


def check_dropout(rate: float) -> None:
    """Raise a ValueError unless a share of 0..1, and not all, is dropped."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: got {rate}, wanted 0 up to but not including 1; 0 drops none")


def check_modality_name(name: str) -> None:
    """Raise a ValueError unless parameters can be stored under a modality's name.

    torch joins such names with dots and keeps them as attributes, so that a name with a dot, or
    that of a method such as ``type`` or ``keys``, would fail late.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"modality {name!r}: wanted letters, digits, _ and -, the first a letter or digit; "
            "rename it"
        )
    if any(hasattr(container, name) for container in _RESERVED):
        raise ValueError(f"modality {name!r}: torch keeps this name for itself; rename it")
