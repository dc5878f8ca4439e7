"""Card files: from a name or path to an `EncoderCard`, and the list of all known cards.

From: ``NAME.yaml`` files. To: cards. A name is looked up in ``./encoders``, then among the cards
that come with the package, then in the checkout's ``encoders`` folder.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from mmkd.encoders.base import EncoderError
from mmkd.encoders.card import LOCAL_FIELDS, EncoderCard
from mmkd.encoders.kinds import did_you_mean


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
    for field in LOCAL_FIELDS:
        if field in content:
            content[field] = _from_card(content[field], path)
    if isinstance(options := content.get("options"), dict):
        content["options"] = {name: _from_card(value, path) for name, value in options.items()}
    try:
        return EncoderCard(**content)
    except ValidationError as error:
        faults = "; ".join(_fault(detail) for detail in error.errors())
        raise EncoderError(f"{path}: {faults}") from error


def _from_card(value: Any, card: Path) -> Any:
    """A path that starts with a dot, taken from the card's folder; anything else as it is."""
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((card.parent / value).resolve())
    return value


def _fault(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{place}: missing"
    got = "" if detail["type"] == "value_error" else f", got {detail['input']!r}"
    return f"{place}: {message}{got}" if place else message
