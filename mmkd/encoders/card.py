"""Encoder cards: exactly the identity of an encoder's vectors, one YAML file each.

From: a YAML file, keyword arguments, or an encoder object. To: an `EncoderCard`, which gives the
encoder (`EncoderCard.build`) and the key that the embedding cache files vectors under
(`EncoderCard.fingerprint`). How fast the vectors are made (batch size, device) is no part of it.
"""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from omegaconf import OmegaConf
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from mmkd.encoders.base import Encoder
from mmkd.encoders.loading import PACKAGE_PREFIX, content_identity
from mmkd.encoders.registry import ENCODERS, check_kind, constructor_arguments, encoder_class
from mmkd.errors import EncoderError, did_you_mean, outside
from mmkd.files import read_yaml, write_text, yaml_folders
from mmkd.hub import fetch, is_elsewhere
from mmkd.trust import (
    is_host_trusted,
    is_model_trusted,
    is_trusted,
    model_refusal,
    refusal,
    sending_refusal,
)
from mmkd.trust import trust_code as trust

# Raise when the meaning of the hashed text below changes. Fields at their default are left out of
# it, so a new field whose default is the old behaviour keeps every old fingerprint. Hence: the
# default of a field never changes.
FINGERPRINT_FORMAT = 1
LABELS = ("name", "license", "notes", "dim", "size_mb", "tuned")
CARD_FILE = "card.yaml"  # of a folder that holds a card and its weights
TOWER_CARDS = {tower: f"card.{tower}.yaml" for tower in ("text", "image")}  # of one that holds both
CARD_FILES = (CARD_FILE, *TOWER_CARDS.values())
ENCODER_FILES = {  # what is brought of a repository that holds cards, and the most bytes of each
    **dict.fromkeys(CARD_FILES, 1 << 20),
    "tuning.json": 1 << 24,
    **{f"{part}/*.{end}": 1 << 28 for part in ("model", "adapter") for end in ("json", "txt")},
    "model/*.model": 1 << 28,  # of sentencepiece
    **{f"{part}/*.safetensors": 1 << 36 for part in ("model", "adapter")},
}
LOCAL_FIELDS = ("model", "pretrained")
# what the caller decides at run time, never the card
RUNTIME_ARGUMENTS = ("device", "batch_tokens", "allow_random_weights")


class TunedOn(BaseModel):
    """What an encoder was tuned on: nobody else may be judged by events that it has seen.

    Attributes:
        parent: Name of the card it was tuned from.
        parent_fingerprint: That card's fingerprint.
        events: Digest of the log's events, as ``Dataset.digests`` has it.
        split: Digest of which of them train, likewise.
        seed: Of the tuning.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str
    parent_fingerprint: str
    events: str
    split: str
    seed: int


class EncoderCard(BaseModel):
    """One frozen encoder.

    >>> from mmkd import EncoderCard
    >>> card = EncoderCard(name="looks", modality="image", kind="color_image", image_size=32)
    >>> card.build().dim
    362
    >>> renamed = EncoderCard(name="other", modality="image", kind="color_image", image_size=32)
    >>> renamed.fingerprint() == card.fingerprint()  # the same vectors
    True

    Attributes:
        name: The card's name, for people; the file's name without ``.yaml``.
        modality: What it encodes. A model with two towers has a card per tower.
        kind: A name in `mmkd.encoders.registry.ENCODERS` or ``package.module:Class``.
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
        trust_remote_code: Whether code from the model's repository may run here; of a card's file
            the user must trust the model as well (`mmkd.trust`).
        options: Settings that only this kind has. Those that the kind's class names in
            ``local_options`` may be local paths, and count by the files' contents like ``model``;
            those in its ``transport_options`` only say how a model is reached.
        dim: Width of the vectors, checked when the encoder is built.
        license: Licence of the weights.
        size_mb: Size of the download in megabytes.
        notes: Anything else a reader should know.
        tuned: What it was tuned on, if it was (`mmkd tune`). A recipe with another log or split
            refuses it.

    The last five and ``name`` are labels: they never change the vectors or the fingerprint.

    Raises:
        EncoderError: The fields are not valid, or the kind does not take them; all faults are
            listed. (`model_validate` raises pydantic's own error.)
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
    tuned: TunedOn | None = None
    _encoder: Encoder | None = PrivateAttr(default=None)
    _of_file: bool = PrivateAttr(default=False)

    if not TYPE_CHECKING:  # or a type checker would lose the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise EncoderError("; ".join(map(_fault, error.errors()))) from None

    @classmethod
    def of(cls, encoder: Encoder, *, name: str, identity: str) -> Self:
        """A card for an encoder object of one's own: what it needs to be used with the cache.

        Its `build` gives the object.

        >>> import numpy as np
        >>> from mmkd import EncoderCard
        >>> class Lengths:
        ...     modality, dim, version = "text", 1, 1
        ...     def encode(self, inputs, *, batch_size=64):
        ...         return np.array([[len(text)] for text in inputs], np.float32)
        >>> card = EncoderCard.of(Lengths(), name="lengths", identity="in characters")
        >>> card.build().encode(["a", "abc"]).tolist()
        [[1.0], [3.0]]

        Args:
            encoder: An object with ``modality``, ``dim`` and ``encode`` (see `Encoder`), and, where
                it has them, ``version`` and what a kind's class may have.
            name: The card's name, for people.
            identity: What tells the object's vectors from those of every other object of its class,
                such as ``"weights of 3 May, prompt 2"``. Nothing else does, apart from the class's
                name and ``version``: whoever gives the same identity again promises the same
                vectors, and the cache returns those that it has.

        Raises:
            EncoderError: The object lacks something, or the identity or name is blank.
        """
        if not isinstance(encoder, Encoder) or not isinstance(getattr(encoder, "version", 0), int):
            raise EncoderError(
                f"a {type(encoder).__name__} is no encoder; give an object with modality, dim and "
                "encode, and an integer version if any"
            )
        if not identity.strip():
            raise EncoderError(
                f"card {name}: identity is blank, so other vectors of a {type(encoder).__name__} "
                "would be taken for these; say what tells them apart"
            )
        made: dict[str, Any] = {
            "kind": f"{type(encoder).__module__}:{type(encoder).__name__}",
            "modality": encoder.modality,
            "dim": encoder.dim,
            "options": {"identity": identity},
        }
        card = cls(name=name, **made)
        card._encoder = encoder
        return card

    def build(
        self,
        *,
        device: str = "cpu",
        batch_tokens: int | None = None,
        allow_random_weights: bool = False,
    ) -> Encoder:
        """The encoder that the card describes, its model loaded.

        Args:
            device: Where the model runs, such as ``"cpu"`` or ``"cuda"``; the vectors come back on
                the CPU. ``"auto"`` lays a kind that can be (it ``spreads``) over all GPUs there
                are; another takes the first.
            batch_tokens: Most tokens that a text model takes at once, padding included; `encode`'s
                ``batch_size`` caps the count of texts beside it. None caps only the count.
            allow_random_weights: Whether a card that asks for an untrained model gets one. For
                tests and dry runs only.

        Raises:
            EncoderError: The kind is unknown, the card sets a field that the kind does not use, the
                model cannot be loaded, or its width is not the card's ``dim``.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise EncoderError(
                f"batch_tokens {batch_tokens} is not positive; use 1 or more, or None"
            )
        encoder = self._encoder
        if encoder is None:
            self.check_settings()
            self.check_trust()
            kind = encoder_class(self.kind)
            if device == "auto" and not getattr(kind, "spreads", False):
                import torch

                device = "cuda" if torch.cuda.is_available() else "cpu"
            _check_device(device)
            runtime = {
                "modality": self.modality,
                "device": device,
                "batch_tokens": batch_tokens,
                "allow_random_weights": allow_random_weights,
            }
            takes = constructor_arguments(kind)
            # what the card leaves out keeps the constructor's own default
            arguments = self.changed_settings() | self.options
            arguments |= {name: value for name, value in runtime.items() if name in takes}
            encoder = cast(Encoder, kind(**arguments))
        if encoder.modality != self.modality:
            raise EncoderError(
                f"card {self.name}: modality {self.modality!r}, but kind {self.kind} gives "
                f"{encoder.modality!r}; correct the card"
            )
        if self.dim is not None and encoder.dim != self.dim:
            raise EncoderError(
                f"card {self.name}: dim {self.dim}, but the model gives {encoder.dim}; correct the "
                "card"
            )
        return encoder

    def fingerprint(self) -> str:
        """Identity of the vectors: equal for two cards exactly when their vectors are the same.

        It covers every field but the labels, the version of the kind's code, and the contents of
        local model files (not their path). It is the same in every process and on every machine.

        Returns:
            64 hexadecimal digits.

        Raises:
            EncoderError: The kind's class cannot be imported, or a local file cannot be read.
        """
        identity, options = self.changed_settings(), dict(self.options)
        version = getattr(self._kind, "version", 0)
        if (version_of := getattr(self._kind, "version_of", None)) is not None:
            version = version_of(identity | options)
        for name in getattr(self._kind, "transport_options", ()):
            options.pop(name, None)
        local = getattr(self._kind, "local_options", ())
        for settings, names in ((identity, LOCAL_FIELDS), (options, local)):
            for name in names:
                if isinstance(value := settings.get(name), str):
                    settings[name] = content_identity(value)
        identity |= {"kind": self.kind, "modality": self.modality, "options": options}
        identity["version"] = version
        identity["fingerprint_format"] = FINGERPRINT_FORMAT
        text = json.dumps(identity, sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def holds_object(self) -> bool:
        """Whether it was made of an encoder object, which no file can give again."""
        return self._encoder is not None

    @property
    def fitted(self) -> bool:
        """Whether vectors depend on the whole catalogue (see `FittedEncoder`)."""
        return bool(getattr(self._kind, "fitted", False))

    @property
    def untrained(self) -> bool:
        """Whether the card asks for a model of random weights, as some kinds have for tests."""
        asks = getattr(self._kind, "untrained", None)
        return asks is not None and bool(asks(model=self.model, pretrained=self.pretrained))

    @property
    def reads(self) -> Literal["content", "id", "row"]:
        """What the encoder's ``encode`` is given for an item.

        Its text or picture; or, where the kind's class has ``reads(settings)`` and says so, its id,
        or its row number in the catalogue ("1" to "I").
        """
        asks = getattr(self._kind, "reads", None)
        found = "content" if asks is None else asks(self.changed_settings() | self.options)
        if found not in ("content", "id", "row"):
            raise EncoderError(f"kind {self.kind} reads {found!r}, wanted content, id or row")
        return cast(Literal["content", "id", "row"], found)

    def changed_settings(self) -> dict[str, Any]:
        """Fields that a kind's constructor may take and that differ from their default, by name.

        Without ``modality``, ``kind`` and ``options``.
        """
        left_out = {*LABELS, "kind", "options", "modality"}
        return self.model_dump(exclude=left_out, exclude_defaults=True)

    def check_settings(self) -> None:
        """Raises EncoderError with all that the kind's class has against the card's settings.

        A setting without effect would still change the card's fingerprint: two identities, one
        vector.
        """
        kind = encoder_class(self.kind)
        takes = constructor_arguments(kind)
        given = self.changed_settings()
        faults = []
        if idle := [name for name in given if name not in takes]:
            faults.append(f"kind {self.kind} does not use {', '.join(idle)}; remove it")
        fields = {*type(self).model_fields} - {*LABELS, "kind", "options"}
        own = [name for name in takes if name not in fields.union(RUNTIME_ARGUMENTS)]
        faults += [
            f"options.{name} is unknown to kind {self.kind}{did_you_mean(name, own)}; it takes "
            f"{', '.join(own) or 'no options'}"
            for name in self.options
            if name not in own
        ]
        given |= {**self.options, "modality": self.modality}
        faults += [
            f"kind {self.kind} needs a {name}; name one in the card"
            for name, default in takes.items()
            if default is inspect.Parameter.empty and name not in (*given, *RUNTIME_ARGUMENTS)
        ]
        if (check := getattr(kind, "check", None)) is not None:
            defaults = {n: d for n, d in takes.items() if d is not inspect.Parameter.empty}
            faults += check(**(defaults | given))
        if faults:
            raise EncoderError(f"card {self.name}: {'; '.join(faults)}")

    def check_trust(self) -> None:
        """Raises EncoderError where building runs code that the user does not trust; see `trust`.

        A package that carries the model is imported; and in a file, which somebody else may have
        written, ``trust_remote_code`` is a wish of the file, and so is an address on another
        machine to which the catalogue's texts go.
        """
        model = self.model or ""
        package = model.removeprefix(PACKAGE_PREFIX)
        if model.startswith(PACKAGE_PREFIX) and not is_trusted(package):
            raise EncoderError(f"card {self.name}: model {refusal(model, package)}")
        if self._of_file and self.trust_remote_code and not is_model_trusted(self.model):
            raise EncoderError(f"card {self.name}: {model_refusal(self.model)}")
        sends_to = getattr(self._kind, "sends_to", None)
        host = None if sends_to is None else sends_to(self.options)
        if self._of_file and host and not is_host_trusted(host):
            raise EncoderError(f"card {self.name}: {sending_refusal(host)}")

    @property
    def _kind(self) -> Any:
        """Who says what a kind is like: its class, or the object that the card was made of."""
        return encoder_class(self.kind) if self._encoder is None else self._encoder

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        check_kind(kind)
        return kind

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        # another package's class is imported when it is needed, not when cards are listed
        if self.kind in ENCODERS:
            self.check_settings()
        return self


def load_card(
    name_or_path: str,
    *,
    folder: Path | None = None,
    tower: str | None = None,
    trust_code: str | Iterable[str] | None = None,
) -> EncoderCard:
    """Loads one card.

    >>> from mmkd import load_card
    >>> card = load_card("hashed-text")
    >>> card.modality, card.kind, card.fitted
    ('text', 'hashed_text', True)

    Args:
        name_or_path: A path ending in ``.yaml``, a card's name, or ``org/name``: a repository of
            the hub that ``mmkd push`` put a tuned encoder in.
        folder: Searched first for a name; ``./encoders`` by default.
        tower: ``text`` or ``image``: which card of a repository that holds two towers.
        trust_code: Packages or modules whose kinds it may name; see `mmkd.trust`.

    Returns:
        The card. Paths in it that start with ``./`` or ``../`` are relative to the card's file and
        come back absolute.

    Raises:
        EncoderError: There is no such card, or it is not valid; all its faults are listed.
    """
    trust(trust_code)
    if not name_or_path.endswith((".yaml", ".yml")):
        if not is_elsewhere(name_or_path):
            return _read(card_path(name_or_path, folder=folder))
        what = "an encoder's card"
        place = fetch(name_or_path, ENCODER_FILES, holds=CARD_FILES, what=what, kind=EncoderError)
        return _read(_card_of(place, name_or_path, tower))
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise EncoderError(f"card {name_or_path}: no such file (from {Path.cwd()})")
    return _read(path)


def list_cards(*, folder: Path | None = None) -> list[EncoderCard]:
    """All cards that `load_card` finds by name, by name.

    Args:
        folder: Searched first; ``./encoders`` by default.

    Raises:
        EncoderError: One of them is not valid.
    """
    return [_read(path) for _, path in sorted(card_files(folder).items())]


def save_card(card: EncoderCard, path: Path) -> None:
    """Write a card's file; paths in the card are written as they stand."""
    content = card.model_dump(exclude_defaults=True)
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(content)))


def card_path(name: str, *, folder: Path | None = None) -> Path:
    """The file of the card with this name; searched as in `load_card`.

    Raises:
        EncoderError: There is no such card.
    """
    found = card_files(folder)
    if name not in found:
        raise EncoderError(
            f"card {name!r} is unknown{did_you_mean(name, found)}; known: "
            f"{', '.join(sorted(found)) or 'none'}; or give a path ending in .yaml"
        )
    return found[name]


def card_files(folder: Path | None) -> dict[str, Path]:
    """Name to file, as `load_card` finds them.

    An earlier folder's card hides a later one's of the same name. A card is a file ``NAME.yaml``,
    or in a folder ``NAME`` with its weights beside it; see `name_of_file`.
    """
    found: dict[str, Path] = {}
    for place in reversed(yaml_folders("encoders", folder)):
        for name in reversed(CARD_FILES):
            found |= {name_of_file(path): path for path in place.glob(f"*/{name}")}
        found |= {path.stem: path for path in place.glob("*.yaml")}
    return found


def name_of_file(path: Path) -> str:
    """The name of the card in a file.

    >>> from pathlib import Path
    >>> from mmkd.encoders.card import name_of_file
    >>> [name_of_file(Path(f"shop/{file}.yaml")) for file in ("minilm", "card", "card.text")]
    ['minilm', 'shop', 'shop-text']
    """
    if not has_weights_beside(path):
        return path.stem
    return path.parent.name + path.stem.removeprefix("card").replace(".", "-")


def has_weights_beside(path: Path) -> bool:
    """Whether a card's file is one of a folder with its weights, as ``mmkd tune`` leaves it."""
    return path.name in CARD_FILES


def _card_of(folder: Path, repository: str, tower: str | None) -> Path:
    """The card of what a repository holds: of two towers the one that is asked for."""
    if (folder / CARD_FILE).is_file():
        return folder / CARD_FILE
    there = [name for name, file in TOWER_CARDS.items() if (folder / file).is_file()]
    if tower not in there:
        raise EncoderError(
            f"{repository}: holds a card of each tower ({', '.join(there)}); say which: "
            f"encoders.text={repository}, or load_card({repository!r}, tower='text')"
        )
    return folder / TOWER_CARDS[tower]


def _read(path: Path) -> EncoderCard:
    remedy = "write `field: value` lines"
    with outside(EncoderError, path, "cannot be read as YAML", remedy=remedy, also=(ValueError,)):
        content = read_yaml(path, resolve=True)
    content.setdefault("name", name_of_file(path))
    _make_absolute(content, LOCAL_FIELDS, path.parent)
    if isinstance(options := content.get("options"), dict):
        _make_absolute(options, _local_options(content.get("kind"), options), path.parent)
    try:
        card = EncoderCard(**content)
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}") from error
    card._of_file = True
    return card


def _make_absolute(settings: dict[str, Any], names: Iterable[str], folder: Path) -> None:
    for name in names:
        value = settings.get(name)
        if isinstance(value, str) and value.startswith(("./", "../")):
            settings[name] = str((folder / value).resolve())


def _local_options(kind: Any, options: Mapping[Any, Any]) -> tuple[str, ...]:
    """Options of a kind that may be paths; imports its class only if one could be meant."""
    if not any(str(value).startswith(("./", "../")) for value in options.values()):
        return ()
    try:
        return tuple(getattr(encoder_class(str(kind)), "local_options", ()))
    except EncoderError:
        return ()  # the card's own check says what is wrong with the kind


def _fault(detail: Any) -> str:
    """One fault of a card, from what pydantic says of it."""
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown{did_you_mean(place, EncoderCard.model_fields)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{place}: missing"
    got = "" if detail["type"] == "value_error" else f", got {detail['input']!r}"
    return f"{place}: {message}{got}" if place else message


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
