"""Card files: from a name or path to an `EncoderCard`, and the list of all known cards.

From: ``NAME.yaml`` files. To: cards. A name is looked up in ``./encoders``, then among the cards
that come with the package, then in the checkout's ``encoders`` folder.
"""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from mmkd.encoders.base import EncoderError
from mmkd.encoders.card import LOCAL_FIELDS, EncoderCard
from mmkd.encoders.kinds import did_you_mean, encoder_class


def load_card(name_or_path: str, *, folder: Path | None = None) -> EncoderCard:
    """Loads one card.

    Args:
        name_or_path: A path ending in ``.yaml``, or a card's name.
        folder: Searched first for a name; ``./encoders`` by default.

    Returns:
        The card. Paths in it that start with ``./`` or ``../`` are relative to the card's file and
        come back absolute.

    Raises:
        EncoderError: There is no such card, or it is not valid; all its faults are listed.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise EncoderError(f"card {name_or_path}: no such file (from {Path.cwd()})")
        return _read(path)
    return _read(card_path(name_or_path, folder=folder))


def card_path(name: str, *, folder: Path | None = None) -> Path:
    """The file of the card with this name; searched as in `load_card`.

    Raises:
        EncoderError: There is no such card.
    """
    found = _card_paths(folder)
    if name not in found:
        raise EncoderError(
            f"card {name!r} is unknown{did_you_mean(name, found)}; known: "
            f"{', '.join(sorted(found)) or 'none'}; or give a path ending in .yaml"
        )
    return found[name]


def list_cards(*, folder: Path | None = None) -> list[EncoderCard]:
    """All cards that `load_card` finds by name, by name.

    Args:
        folder: Searched first; ``./encoders`` by default.

    Raises:
        EncoderError: One of them is not valid.
    """
    return [_read(path) for _, path in sorted(_card_paths(folder).items())]


def _card_paths(folder: Path | None) -> dict[str, Path]:
    """Name to file; an earlier folder's card hides a later one's of the same name."""
    found: dict[str, Path] = {}
    for place in _card_folders(folder):
        if place.is_dir():
            for path in sorted(place.glob("*.yaml")):
                found.setdefault(path.stem, path)
    return found


def _card_folders(folder: Path | None) -> list[Path]:
    package = resources.files("mmkd")
    # a wheel is installed as plain files, so these are real folders
    root = Path(str(package))
    own = Path("encoders") if folder is None else folder
    return [own, root / "_bundled" / "encoders", root.parent / "encoders"]


def _read(path: Path) -> EncoderCard:
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
        raise EncoderError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path}: holds a {type(content).__name__}, wanted `field: value` lines")
    content.setdefault("name", path.stem)
    _make_absolute(content, LOCAL_FIELDS, path.parent)
    if isinstance(content.get("options"), dict):
        options = content["options"]
        _make_absolute(options, _local_options(content.get("kind"), options), path.parent)
    try:
        return EncoderCard(**content)
    except ValidationError as error:
        faults = "; ".join(_fault(detail) for detail in error.errors())
        raise EncoderError(f"{path}: {faults}") from error


def _make_absolute(settings: dict[str, Any], names: Iterable[str], folder: Path) -> None:
    for name in names:
        value = settings.get(name)
        if isinstance(value, str) and value.startswith(("./", "../")):
            settings[name] = str((folder / value).resolve())


def _local_options(kind: Any, options: dict[str, Any]) -> tuple[str, ...]:
    """Options of a kind that may be paths; imports its class only if one could be meant."""
    if not any(str(value).startswith(("./", "../")) for value in options.values()):
        return ()
    try:
        return tuple(getattr(encoder_class(str(kind)), "local_options", ()))
    except EncoderError:
        return ()  # the card's own check says what is wrong with the kind


def _fault(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{place}: missing"
    got = "" if detail["type"] == "value_error" else f", got {detail['input']!r}"
    return f"{place}: {message}{got}" if place else message
