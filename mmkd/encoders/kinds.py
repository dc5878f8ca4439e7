"""Kinds of encoder: from a card's ``kind`` to the class, and from a card to a ready encoder.

A kind is a name in `ENCODERS` or ``package.module:Class`` of an installed package. The class's
constructor takes keyword-only arguments named like the card's fields; it is given those it names
(and those of `RUNTIME_ARGUMENTS` it names), plus the card's ``options``.
"""

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from mmkd.encoders.base import Encoder, EncoderError

if TYPE_CHECKING:
    from mmkd.encoders.card import EncoderCard

ENCODERS: dict[str, str] = {
    "clip": "mmkd.encoders.clip:ClipEncoder",
    "color_image": "mmkd.encoders.color_image:ColorImageEncoder",
    "hashed_text": "mmkd.encoders.hashed_text:HashedTextEncoder",
    "language_model": "mmkd.encoders.language_model:LanguageModelEncoder",
    "open_clip": "mmkd.encoders.open_clip:OpenClipEncoder",
    "precomputed": "mmkd.encoders.precomputed:PrecomputedEncoder",
    "sentence_transformer": "mmkd.encoders.sentence_transformer:SentenceTransformerEncoder",
    "timm": "mmkd.encoders.timm:TimmEncoder",
    "vision": "mmkd.encoders.vision:VisionEncoder",
}

# what the caller decides at run time, never the card
RUNTIME_ARGUMENTS = ("device", "batch_tokens", "allow_random_weights")


def build_encoder(
    card: "EncoderCard",
    *,
    device: str = "cpu",
    batch_tokens: int | None = None,
    allow_random_weights: bool = False,
) -> Encoder:
    """Builds the encoder that a card describes.

    Args:
        card: The card.
        device: Where the model runs, such as ``"cpu"`` or ``"cuda"``; the vectors come back on
            the CPU. ``"auto"`` lays a kind that can be (it ``spreads``) over all GPUs there are;
            another takes the first.
        batch_tokens: Most tokens that a text model takes at once, padding included; `encode`'s
            ``batch_size`` caps the count of texts beside it. None caps only the count.
        allow_random_weights: Whether a card that asks for an untrained model gets one. For tests
            and dry runs only.

    Returns:
        The encoder, its model loaded.

    Raises:
        EncoderError: The kind is unknown, the card sets a field that the kind does not use, the
            model cannot be loaded, or its width is not the card's ``dim``.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise EncoderError(f"batch_tokens {batch_tokens} is not positive; use 1 or more, or None")
    cls = encoder_class(card.kind)
    check_settings(card, cls)
    accepted = constructor_arguments(cls)
    # what the card leaves out keeps the constructor's own default
    arguments: dict[str, Any] = card.changed_settings() | card.options
    if device == "auto" and not getattr(cls, "spreads", False):
        device = _first_device()
    _check_device(device)
    runtime = {
        "modality": card.modality,
        "device": device,
        "batch_tokens": batch_tokens,
        "allow_random_weights": allow_random_weights,
    }
    arguments |= {name: value for name, value in runtime.items() if name in accepted}
    encoder: Encoder = cls(**arguments)
    if encoder.modality != card.modality:
        raise EncoderError(
            f"card {card.name}: modality {card.modality!r}, but kind {card.kind} gives "
            f"{encoder.modality!r}; correct the card"
        )
    if card.dim is not None and encoder.dim != card.dim:
        raise EncoderError(
            f"card {card.name}: dim {card.dim}, but the model gives {encoder.dim}; correct the card"
        )
    return encoder


def _check_device(device: str) -> None:
    """Raises EncoderError unless torch has the device."""
    if device in ("cpu", "auto"):
        return
    import torch

    try:
        # allocating is the one test that knows all kinds of device
        torch.empty(1, device=device)
    # an unknown name, a build without CUDA and a number too high each raise their own kind
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        count = torch.cuda.device_count()
        raise EncoderError(
            f"device {device!r} is not to be had here: {reason} Use cpu"
            + (f", or cuda:0 to cuda:{count - 1}" if count else "")
        ) from error


def _first_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def encoder_class(kind: str) -> type[Any]:
    """The class behind a kind; imports its module but no model library.

    Args:
        kind: A name in `ENCODERS` or ``package.module:Class``.

    Returns:
        The class, with an integer ``version``.

    Raises:
        EncoderError: The kind is unknown or malformed, or its module or class does not exist.
    """
    check_kind(kind)
    target = ENCODERS.get(kind, kind)
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise EncoderError(
            f"kind {kind!r} cannot be imported ({error}); install the package that has it, or "
            "correct the name"
        ) from error
    if not isinstance(cls, type) or not isinstance(getattr(cls, "version", None), int):
        raise EncoderError(
            f"kind {kind!r} is not a class with an integer `version`; add `version: "
            "ClassVar[int] = 1` and raise it whenever the vectors change"
        )
    return cls


def check_kind(kind: str) -> None:
    """Raises EncoderError unless ``kind`` is built in or reads ``package.module:Class``."""
    if kind in ENCODERS:
        return
    if kind.split(":")[0].endswith(".py") or "/" in kind or "\\" in kind:
        raise EncoderError(
            f"kind {kind!r} is a path to a file; a card never runs a file: put the class in an "
            "installed package and write package.module:Class"
        )
    module_name, separator, class_name = kind.partition(":")
    parts = [*module_name.split("."), class_name]
    if separator and all(part.isidentifier() for part in parts):
        return
    raise EncoderError(
        f"kind {kind!r} is unknown{did_you_mean(kind, ENCODERS)}; built in: "
        f"{', '.join(ENCODERS)}; or write package.module:Class"
    )


def check_settings(card: "EncoderCard", cls: type[Any]) -> None:
    """Raises EncoderError if the card sets what the class's constructor does not take.

    A setting without effect would still change the card's fingerprint: two identities, one vector.
    """
    accepted = constructor_arguments(cls)
    idle = [name for name in card.changed_settings() if name not in accepted]
    if idle:
        raise EncoderError(
            f"card {card.name}: kind {card.kind} does not use {', '.join(idle)}; remove it"
        )
    for name in card.options:
        own = [a for a in accepted if a not in card.settings() and a not in RUNTIME_ARGUMENTS]
        if name not in own:
            raise EncoderError(
                f"card {card.name}: options.{name} is unknown to kind {card.kind}"
                f"{did_you_mean(name, own)}; it takes {', '.join(own) or 'no options'}"
            )


def constructor_arguments(cls: type[Any]) -> list[str]:
    """Names of the keyword arguments that the class's constructor takes."""
    parameters = inspect.signature(cls).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in kinds]


def did_you_mean(name: str, known: Any) -> str:
    """``"; did you mean x?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
