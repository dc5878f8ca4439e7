"""Start: two tables to a commented recipe that trains.

From a Dataset whose columns were guessed to the text of a recipe. Its encoders need no network and
no weights; comments name better ones.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmkd.config.recipe import NAME, SUFFIXES
from mmkd.data.dataset import Dataset
from mmkd.data.splits import SPLITS
from mmkd.errors import RecipeError, outside
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
        split: A name of ``SPLITS``.
        force: Whether an existing file may be replaced.
        **columns: Those that are known, as for ``Dataset.load``; others are guessed.

    Returns:
        The data; its notes tell what was guessed.

    Raises:
        RecipeError: The file exists, is not named as a recipe, or the name cannot be one.
        DataError: The tables cannot be used, or a column cannot be told.
    """
    if target.exists() and not force:
        raise RecipeError(f"{target}: exists; give --force to replace it, or another --out")
    if target.suffix not in SUFFIXES:
        raise RecipeError(f"{target}: a recipe's name ends in .yaml; give --out {target.stem}.yaml")
    if not re.match(NAME, name):
        raise RecipeError(f"name: got {name!r}, wanted text that matches {NAME}; give --name")
    root, (items_path, events_path) = common_folder(items, events)

    data = Dataset.load(
        root, items=items_path, events=events_path, split=split, unknown_items="drop", **columns
    )
    text = recipe_text(data, name=name, root=str(root), split=split)
    with outside(RecipeError, target, "cannot be written", remedy="give another --out"):
        write_text(target, text)
    return data


def recipe_text(data: Dataset, *, name: str, root: str, split: str = "leave_one_out") -> str:
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
        name: shop # and of its runs
        seed: 0
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
        split: A name of ``SPLITS``.

    Returns:
        YAML, which ``mmkd train`` accepts.
    """
    encoders = _encoders(data)
    lines = [
        "# Written by `mmkd init`, for you to change; `mmkd validate` checks it.",
        f"name: {_yaml(name)} # and of its runs",
        "seed: 0",
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
    lines += [f"  split: {split} # of {', '.join(SPLITS)}", ""]
    lines += _models(encoders, size=_size(data), length=_length(data))
    return "\n".join(lines) + "\n"


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


def _size(data: Dataset) -> int:
    """Dimensions that the catalogue's items can fill: 64, of a small catalogue fewer."""
    frame = data.items.frame[1:]
    held = [len(frame) - frame[name].null_count() for name in ("text", "image_path")]
    least = min((count for count in held if count), default=64)
    return int(np.clip(2 ** int(math.log2(max(least // 2, 4))), 4, 64))


def _length(data: Dataset) -> int:
    """A window that holds 95 of 100 histories whole, within 10 to 200 items."""
    lengths = np.diff(data.split.offsets)
    return int(np.clip(math.ceil(float(np.quantile(lengths, 0.95)) / 10) * 10, 10, 200))


def _models(encoders: Mapping[str, str], *, size: int, length: int) -> list[str]:
    if encoders:
        lines = ["encoders: # all there are: mmkd ls encoders"]
        lines += [f"  {modality}: {card}" for modality, card in encoders.items()]
        lines += [
            "",
            f"distiller: {{dim: {size}, facets: {min(size, 8)}, codes: {min(size, 50)}}}",
            "",
        ]
        more = ", fusion: gate, modality_std: 0.1"
        scores = "fused # items without any event can be recommended too"
        correlation = [
            "  correlation: {holistic_weight: 0.4, dissected_weight: 0.05, temperature: 1.5}"
        ]
        delay = ["asynchronous: {kind: ramp, gamma: 2.0, milestones: [5, 10]}", ""]
    else:
        lines = ["# no text and no pictures were found, so only ids are learned", ""]
        more, scores, correlation, delay = "", "id", [], []
    return [
        *lines,
        "student:",
        f"  embedding: {{width: 64{more}, dropout: 0.2}}",
        "  backbone: {kind: sasrec, layers: 2, heads: 2, dropout: 0.2}",
        f"  score_with: {scores}",
        "",
        "task: next_item",
        "",
        "objective:",
        "  # items that never train are not taught to score low: new ones can be recommended",
        "  recommendation: {kind: softmax, candidates: trained}",
        *correlation,
        "",
        *delay,
        "training:",
        "  epochs: 30 # fewer where validation stops improving (patience)",
        "  batch_size: 128",
        f"  max_length: {length} # items of a history that are read, the newest",
        "  lr: 2e-3",
        "  patience: 5",
        "  select_metric: NDCG@10",
        "",
        "evaluation: {ks: [5, 10, 20]}",
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
