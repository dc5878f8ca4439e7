"""Kinds of encoder: from a card's ``kind`` to the class; knows no card and no model library.

A kind is a name in `ENCODERS` or ``package.module:Class`` of an installed package that the user
trusts (`mmkd.trust`). The class's
constructor takes keyword-only arguments named like the card's fields; it is given those it names
(and those of `mmkd.encoders.card.RUNTIME_ARGUMENTS` it names), plus the card's ``options``. A
static ``check(**options) -> list[str]`` of it, where there is one, judges their ranges when a card
is read; see `mmkd.errors`.
"""

import importlib
import inspect
from typing import Any

from mmkd.errors import EncoderError, did_you_mean
from mmkd.trust import is_trusted, refusal

ENCODERS: dict[str, str] = {
    "clip": "mmkd.encoders.clip:ClipEncoder",
    "color_image": "mmkd.encoders.color_image:ColorImageEncoder",
    "hashed_text": "mmkd.encoders.hashed_text:HashedTextEncoder",
    "http": "mmkd.encoders.http:HttpEncoder",
    "language_model": "mmkd.encoders.language_model:LanguageModelEncoder",
    "open_clip": "mmkd.encoders.open_clip:OpenClipEncoder",
    "precomputed": "mmkd.encoders.precomputed:PrecomputedEncoder",
    "sentence_transformer": "mmkd.encoders.sentence_transformer:SentenceTransformerEncoder",
    "timm": "mmkd.encoders.timm:TimmEncoder",
    "vision": "mmkd.encoders.vision:VisionEncoder",
}


def encoder_class(kind: str) -> type[Any]:
    """The class behind a kind; imports its module but no model library.

    Args:
        kind: A name in `ENCODERS` or ``package.module:Class``.

    Returns:
        The class, with an integer ``version``.

    Raises:
        EncoderError: The kind is unknown or malformed, its module is not trusted, or its module or
            class does not exist.
    """
    check_kind(kind)
    module_name, _, class_name = ENCODERS.get(kind, kind).partition(":")
    if not is_trusted(module_name):
        raise EncoderError(f"kind {refusal(kind, module_name)}")
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


def constructor_arguments(cls: type[Any]) -> dict[str, Any]:
    """Keyword arguments of a class: name to default (`inspect.Parameter.empty` for none)."""
    parameters = inspect.signature(cls).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in kinds}
