"""Encoder cards: exactly the identity of an encoder's vectors, and its fingerprint.

From: a YAML file or keyword arguments. To: an `EncoderCard`; `mmkd.encoders.kinds.build_encoder`
makes the encoder, and the embedding cache keys vectors by `EncoderCard.fingerprint`. How fast the
vectors are made (batch size, device) is no part of a card.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mmkd.encoders.base import EncoderError
from mmkd.encoders.kinds import ENCODERS, check_kind, check_settings, did_you_mean, encoder_class
from mmkd.encoders.model_source import content_identity

# Raise when the meaning of the hashed text below changes. Fields at their default are left out of
# it, so a new field whose default is the old behaviour keeps every old fingerprint. Hence: the
# default of a field never changes.
FINGERPRINT_FORMAT = 1
LABELS = ("name", "license", "notes", "dim", "size_mb")
LOCAL_FIELDS = ("model", "pretrained")


class EncoderCard(BaseModel):
    """One frozen encoder.

    Attributes:
        name: The card's name, for people; the file's name without ``.yaml``.
        modality: What it encodes. A model with two towers has a card per tower.
        kind: A name in `mmkd.encoders.kinds.ENCODERS` or ``package.module:Class``.
        model: A hub id, a local path (starting with ``/``, ``./``, ``../`` or ``~``), or
            ``package:NAME`` for weights inside an installed package.
        revision: Commit, tag or branch of a hub model; version of a ``package:`` model.
        pretrained: For ``open_clip``: the tag or local path of the weights.
        pooling: How token or patch states become one vector; None leaves it to the model.
        prompt: Put before every text.
        max_length_tokens: Texts are cut to this many tokens; None leaves it to the model.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1.
        image_size: Side in pixels that images are brought to.
        image_mean: Mean per RGB channel that is subtracted from pixels in 0..1.
        image_std: Standard deviation per RGB channel that they are divided by.
        image_interpolation: How images are resized.
        image_resize_mode: Which side is brought to ``image_size``, or both.
        trust_remote_code: Whether code from the model's repository may run here.
        options: Settings that only this kind has. Those that the kind's class names in
            ``local_options`` may be local paths, and count by the files' contents like ``model``.
        dim: Width of the vectors, checked when the encoder is built.
        license: Licence of the weights.
        size_mb: Size of the download in megabytes.
        notes: Anything else a reader should know.

    The last four and ``name`` are labels: they never change the vectors or the fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    modality: Literal["text", "image"]
    kind: str
    model: str | None = Field(default=None, min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    pretrained: str | None = Field(default=None, min_length=1)
    pooling: Literal["mean", "weighted_mean", "cls", "max", "last", "eos"] | None = None
    prompt: str | None = Field(default=None, min_length=1)
    max_length_tokens: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    normalize: bool = False
    image_size: int | None = Field(default=None, ge=8)
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    image_interpolation: Literal["bilinear", "bicubic"] | None = None
    image_resize_mode: Literal["shortest", "longest", "squash"] | None = None
    trust_remote_code: bool = False
    options: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    dim: int | None = Field(default=None, ge=1)
    license: str | None = None
    size_mb: float | None = Field(default=None, ge=0)
    notes: str | None = None

    def fingerprint(self) -> str:
        """Identity of the vectors: equal for two cards exactly when their vectors are the same.

        It covers every field but the labels, the version of the kind's code, and the contents of
        local model files (not their path). It is the same in every process and on every machine.

        Returns:
            64 hexadecimal digits.

        Raises:
            EncoderError: The kind's class cannot be imported.
        """
        identity = self.changed_settings()
        for field in LOCAL_FIELDS:
            if field in identity:
                identity[field] = content_identity(identity[field])
        cls = encoder_class(self.kind)
        options = dict(self.options)
        for name in getattr(cls, "local_options", ()):
            if isinstance(value := options.get(name), str):
                options[name] = content_identity(value)
        identity |= {"kind": self.kind, "modality": self.modality, "options": options}
        identity["version"] = cls.version
        identity["fingerprint_format"] = FINGERPRINT_FORMAT
        text = json.dumps(identity, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def fitted(self) -> bool:
        """Whether vectors depend on the whole catalogue (see `FittedEncoder`)."""
        return bool(getattr(encoder_class(self.kind), "fitted", False))

    @property
    def reads(self) -> Literal["content", "id", "row"]:
        """What the encoder's inputs are: an item's text or picture, its id, or its row number.

        Row numbers are strings, from ``"1"`` in the catalogue's order. All kinds but those that
        look vectors up read content.
        """
        asks = getattr(encoder_class(self.kind), "reads", None)
        found: Literal["content", "id", "row"] = "content" if asks is None else asks(self.options)
        return found

    @property
    def untrained(self) -> bool:
        """Whether the card asks for a model of random weights, as some kinds have for tests."""
        asks = getattr(encoder_class(self.kind), "untrained", None)
        return asks is not None and bool(asks(model=self.model, pretrained=self.pretrained))

    def settings(self) -> dict[str, Any]:
        """Every field that a kind's constructor may take, by name."""
        left_out = (*LABELS, "kind", "options")
        return {
            name: getattr(self, name) for name in type(self).model_fields if name not in left_out
        }

    def changed_settings(self) -> dict[str, Any]:
        """`settings` that differ from their default, without ``modality``."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.settings().items()
            if name != "modality" and value != fields[name].default
        }

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        check_kind(kind)
        return kind

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise EncoderError(f"{key}: unknown{did_you_mean(str(key), cls.model_fields)}")
        return data

    @model_validator(mode="after")
    def _settings_are_used(self) -> "EncoderCard":
        # another package's class is imported when it is needed, not when cards are listed
        if self.kind in ENCODERS:
            check_settings(self, encoder_class(self.kind))
        return self
