"""Start: two tables to a commented recipe that trains.

From a Dataset whose columns were guessed to the text of a recipe on top of a preset. Its encoders
need no network and no weights; comments name better ones.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmkd.config.joining import fitting
from mmkd.config.merging import merge_layers
from mmkd.config.recipe import NAME, SUFFIXES, find_recipe, preset_names, read_layers
from mmkd.data.dataset import Dataset
from mmkd.data.splits import SPLITS
from mmkd.errors import RecipeError, did_you_mean, outside
from mmkd.files import write_text

_ORDER = {
    "items": (
        *("path", "id", "title", "text", "image", "image_root", "attributes"),
        "attribute_separator",
    ),
    "interactions": ("path", "user", "item", "timestamp", "unknown_items"),
}
_WHAT = {
    "id": "the items' ids",
    "title": "shown in lists",
    "text": "what the text encoder reads",
    "image": "what the image encoder reads",
    "image_root": "folder of the pictures",
    "attributes": "labels; no encoder reads them",
    "timestamp": "null: the order of the file",
    "unknown_items": "the log has some that the catalogue lacks",
}
# an option is written where it says something
_SILENT: Mapping[str, Any] = {
    "title": None,
    "text": None,
    "image": None,
    "image_root": ".",
    "attributes": None,
    "attribute_separator": "|",
}


def start(
    items: Path,
    events: Path,
    target: Path,
    *,
    name: str,
    preset: str | None = None,
    split: str = "leave_one_out",
    force: bool = False,
    **columns: Any,
) -> Dataset:
    """Write a recipe for a catalogue and a log.

    Args:
        items: The catalogue's file.
        events: The log's file.
        target: The file to write.
        name: The recipe's name.
        preset: What it is based on; None is ``best``, or ``id`` where there is nothing to encode.
        split: A name of ``SPLITS``.
        force: Whether an existing file may be replaced.
        **columns: Those that are known, as for ``Dataset.load``; others are guessed.

    Returns:
        The data; its notes tell what was guessed.

    Raises:
        RecipeError: The file exists, is not named as a recipe, or the name cannot be one; or there
            is no such preset.
        DataError: The tables cannot be used, or a column cannot be told.
    """
    if target.exists() and not force:
        raise RecipeError(f"{target}: exists; give --force to replace it, or another --out")
    if target.suffix not in SUFFIXES:
        raise RecipeError(f"{target}: a recipe's name ends in .yaml; give --out {target.stem}.yaml")
    if not re.match(NAME, name):
        raise RecipeError(f"name: got {name!r}, wanted text that matches {NAME}; give --name")
    if preset is not None and preset not in preset_names():
        raise RecipeError(
            f"preset: got {preset!r}, wanted one of {', '.join(preset_names())}"
            f"{did_you_mean(preset, preset_names())}"
        )
    root, (items_path, events_path) = common_folder(items, events)

    data = Dataset.load(
        root, items=items_path, events=events_path, split=split, unknown_items="drop", **columns
    )
    text = recipe_text(data, name=name, root=str(root), preset=preset)
    with outside(RecipeError, target, "cannot be written", remedy="give another --out"):
        write_text(target, text)
    return data


def recipe_text(data: Dataset, *, name: str, root: str, preset: str | None = None) -> str:
    r"""A recipe for two files.

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from mmkd import Dataset
        >>> from mmkd.config.start import recipe_text
        >>> root = Path(mkdtemp())
        >>> _ = (root / "items.csv").write_text("sku,name\nA1,Teapot\nB7,Cup\nC3,Tray\n")
        >>> _ = (root / "log.csv").write_text("user_id,sku\nada,A1\nada,C3\nada,B7\n")
        >>> data = Dataset.load(root, items="items.csv", events="log.csv")
        >>> print(*recipe_text(data, name="shop", root="shop").splitlines()[1:9], sep="\n")
        base: best # all that isn't said here; to see and change it: mmkd cp best .
        name: shop # and of its runs
        <BLANKLINE>
        data:
          root: shop # relative to the folder you run in
          items:
            path: items.csv
            id: sku # the items' ids

    Args:
        data: The data, read from files.
        name: The recipe's name, and that of its runs.
        root: What ``data.root`` is to be.
        preset: As for ``start``.

    Returns:
        YAML, which ``mmkd train`` accepts.
    """
    encoders = _encoders(data)
    base = preset or ("best" if encoders else "id")
    lines = [
        "# Written by `mmkd init`, for you to change; `mmkd validate` checks it.",
        f"base: {base} # all that isn't said here; to see and change it: mmkd cp {base} .",
        f"name: {_yaml(name)} # and of its runs",
        "",
        "data:",
        f"  root: {_yaml(root)} # relative to the folder you run in",
    ]
    for section, order in _ORDER.items():
        lines.append(f"  {section}:")
        options = data.options[section]
        for option in order:
            if option in _SILENT and options[option] == _SILENT[option]:
                continue
            if option == "unknown_items" and not data.left_out.unknown:
                continue  # one that comes later is to be told
            comment = f" # {_WHAT[option]}" if option in _WHAT else ""
            lines.append(f"    {option}: {_yaml(options[option])}{comment}")
    split = data.options["split"]["kind"]
    lines += [f"  split: {split} # of {', '.join(SPLITS)}", ""]
    return "\n".join([*lines, *_models(data, base, encoders)]) + "\n"


def common_folder(*files: Path) -> tuple[Path, list[str]]:
    """The folder that files share, and their paths below it."""
    folder = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
    if not any(file.is_absolute() for file in files):
        folder = Path(os.path.relpath(folder))
    return folder, [os.path.relpath(file, folder) for file in files]


def _encoders(data: Dataset) -> dict[str, str]:
    frame = data.items.frame[1:]
    cards = {}
    if frame["text"].null_count() < len(frame):
        cards["text"] = "hashed-text # offline: words, not meaning; better: minilm (91 MB)"
    if frame["image_path"].null_count() < len(frame):
        cards["image"] = "color-image # offline: colours, shapes; better: clip-vit-b32 (605 MB)"
    return cards


def _models(data: Dataset, base: str, encoders: Mapping[str, str]) -> list[str]:
    """What the recipe says beside its base: encoders, and what the data asks for."""
    preset = merge_layers(read_layers(find_recipe(base))).content
    changes: dict[str, Any] = fitting(data, preset)
    reads = "encoders" not in preset  # else the preset is one of ids
    lines = []
    if reads and encoders:
        lines += ["encoders: # all there are: mmkd ls encoders"]
        lines += [f"  {modality}: {card}" for modality, card in encoders.items()]
        lines += [""]
    elif reads:
        lines += ["encoders: null # no text and no pictures were found: ids only", ""]
    if reads and encoders and (distiller := changes.get("distiller")):
        values = ", ".join(f"{key}: {value}" for key, value in distiller.items())
        lines += [f"distiller: {{{values}}} # the catalogue is small", ""]
    if "objective" in changes:
        lines += ["objective: {attributes: null} # no labels were found", ""]
    training = preset.get("training")
    known = dict(training) if isinstance(training, Mapping) else {}
    known |= changes.get("training", {})
    return [
        *lines,
        "training:",
        f"  epochs: {known.get('epochs', 20)} # fewer where validation stops improving",
        f"  max_length: {known.get('max_length', 50)} # of a history's items, the newest; "
        "95 of 100 are read whole",
    ]


def _yaml(value: Any) -> str:
    """A value in YAML; text is quoted where it would be read as something else."""
    if isinstance(value, str):
        plain = value.replace("/", "").replace("_", "").replace("-", "").replace(".", "")
        words = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
        if plain.isalnum() and plain.isascii() and not plain[0].isdigit():
            if value[0].isalnum() and value.lower() not in words:
                return value
        return json.dumps(value.replace("${", "\\${"), ensure_ascii=False)
    return json.dumps(value)
