"""Backbones: sequence networks from inputs [B, L, d] and a padding mask to states [B, L, d]."""

import importlib
import inspect
from typing import Any, Protocol, cast

from torch import Tensor, nn

from mmkd.errors import closest
from mmkd.trust import is_trusted, refusal

BACKBONES: dict[str, str] = {
    "sasrec": "mmkd.student.backbones.transformer:SASRec",
    "bert4rec": "mmkd.student.backbones.transformer:BERT4Rec",
    "gru4rec": "mmkd.student.backbones.gru4rec:GRU4Rec",
    "rgat": "mmkd.student.backbones.rgat:RGAT",
}
"""Kind to `module:Class`; imported only when asked for."""


class Backbone(Protocol):
    """An nn.Module that turns input vectors into states.

    What a recipe names is a class whose constructor takes `width` by keyword, and `max_length` too
    if the network is built for a fixed number of positions. A network that keeps either as an
    attribute of that name need not be told it a second time.

    One whose `forward` has a third parameter `items` is given the item ids [B, L] too, to know
    which positions hold the same item.
    """

    causal: bool
    """True when a state depends on no later position."""

    def __call__(self, x: Tensor, padding: Tensor, /) -> Tensor:
        """[B, L, d] and [B, L] bool (True at padding, on the left) to [B, L, d]."""
        ...


def reads_items(backbone: Backbone) -> bool:
    """Whether a network asks for the item ids beside their vectors."""
    forward = getattr(backbone, "forward", backbone)
    return "items" in inspect.signature(forward).parameters


def backbone_class(kind: str | type[nn.Module]) -> type[nn.Module]:
    """The class behind a kind.

    Args:
        kind: A name in `BACKBONES`, `package.module:Class` of an installed package, or a class.

    Raises:
        ValueError: Unknown name, a module that the user does not trust (`mmkd.trust`), or a class
            that cannot be imported or is no backbone.
    """
    found = _imported(kind) if isinstance(kind, str) else kind
    if not (isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "causal")):
        raise ValueError(
            f"backbone {kind!r}: got {found!r}, wanted an nn.Module class with a `causal` "
            "attribute; derive it from torch.nn.Module and set `causal: bool`."
        )
    return found


def build_backbone(
    kind: str | type[nn.Module], *, width: int, max_length: int | None = None, **options: Any
) -> Backbone:
    """Build a backbone by its kind.

    Args:
        kind: As in `backbone_class`.
        width: d.
        max_length: Longest sequence, in positions; passed on only to a class that asks for it.
        **options: The class's own keyword arguments.

    Raises:
        ValueError: As in `backbone_class`, or from the class itself.
    """
    found = backbone_class(kind)
    if max_length is not None and "max_length" in inspect.signature(found).parameters:
        options["max_length"] = max_length
    return cast(Backbone, found(width=width, **options))


def _imported(kind: str) -> Any:
    module_name, colon, class_name = BACKBONES.get(kind, kind).partition(":")
    if not colon or "/" in module_name or not class_name:
        close = closest(kind, BACKBONES)
        hint = f"did you mean {close}?" if close else f"use one of {', '.join(BACKBONES)}"
        raise ValueError(f"backbone {kind!r}: unknown; {hint} (or package.module:Class).")
    if not is_trusted(module_name):
        raise ValueError(f"backbone {refusal(kind, module_name)}")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        remedy = "install the package that holds it, or correct the module:Class path"
        if module_name == "__main__":
            remedy = "define it here as it was where it was trained, or keep it in a module"
        raise ValueError(f"backbone {kind!r}: cannot be imported ({error}); {remedy}.") from error


__all__ = ["BACKBONES", "Backbone", "backbone_class", "build_backbone", "reads_items"]
