"""Joining: a dataset, a recipe and encoders to one Plan, as ``mmkd.train`` is given them.

The recipe gets the data section that would read the data again, so that a run's recipe is whole
whoever made it. A preset, which has no data section, is fitted to the data first.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from mmkd.config.merging import merge_layers
from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import (
    NAME,
    Overrides,
    Recipe,
    compose,
    display_path,
    find_recipe,
    read_layers,
)
from mmkd.data.dataset import Dataset
from mmkd.encoders import Encoder, EncoderCard
from mmkd.errors import DataError
from mmkd.runs.frames import frame_file

Layer = tuple[str, Mapping[str, object]]
Encoders = Mapping[str, str | Path | EncoderCard | Encoder | None]

_SHARE_WHOLE = 0.95  # of histories that a fitted window holds whole


def joined(
    data: Dataset | None,
    recipe: Recipe | Path | str,
    *,
    encoders: Encoders | None = None,
    overrides: Overrides = (),
    folder: Path | None = None,
) -> Plan:
    """A plan of a recipe, changed by what is given beside it.

        >>> import polars as pl
        >>> import mmkd
        >>> from mmkd.config.joining import joined
        >>> items = pl.DataFrame({"sku": ["A1", "B7", "C3"], "name": ["Teapot", "Cup", "Tray"]})
        >>> log = pl.DataFrame({"user_id": ["ada"] * 3, "sku": ["A1", "C3", "B7"]})
        >>> data = mmkd.Dataset.load(items=items, events=log)
        >>> found = joined(data, "kdsr", encoders={"text": "hashed-text"})
        >>> found.training.max_length, list(found.cards), found.recipe.objective.correlation is None
        (10, ['text'], False)

    Args:
        data: Takes the place of the recipe's own data section; None keeps that.
        recipe: A preset's or another recipe's name, a path, or a recipe.
        encoders: Modality to a card's name or path, a card, or an encoder object; takes the place
            of the recipe's own. None keeps those; of a preset that has none, learns ids only.
        overrides: As for ``load_recipe``; they win.
        folder: The run's folder; it names what a preset makes, and keeps frames.

    Raises:
        RecipeError: The recipe has mistakes.
        DataError: The data was split by a function, which a recipe can't name.
        EncoderError: An object is no encoder.
    """
    layers, source = _layers(recipe)
    preset = merge_layers(layers).content
    cards: dict[str, EncoderCard] = {}
    if data is not None:
        if "data" not in preset:
            if folder is not None:
                layers.append(("folder", {"name": _name(folder) or preset.get("name")}))
            layers.append(("data", fitting(data, preset)))
            if encoders is None and not preset.get("encoders"):
                encoders = {}
        layers.append(("data", {"data": None}))  # nothing of the recipe's own is left
        layers.append(("data", {"data": data_section(data, folder=folder)}))
    if encoders is not None:
        named = {name: _named(name, given, cards) for name, given in encoders.items()}
        # of the recipe's own none is left; beside others that are named nothing else follows
        own = {name: None for name in _mapping(preset.get("encoders")) if name not in named}
        layers.append(("encoders", {"encoders": {**own, **named} or None}))
    return plan(compose(layers, overrides, source=source), cards=cards, data=data)


def data_section(data: Dataset, *, folder: Path | None = None) -> dict[str, object]:
    """What a recipe's ``data`` says of a dataset.

    Args:
        data: The data.
        folder: Where frames will be kept (`RunFolder.write`); None where there is none yet.

    Raises:
        DataError: The data was split by a function.
    """
    if "split" not in data.options:
        raise DataError(
            "split: is a function of your own, by which a run could not read its data again; give "
            "the name of a split (and its options), or train with mmkd.Trainer"
        )
    section: dict[str, object] = {"root": str(data.root), "split": dict(data.options["split"])}
    for name in ("items", "interactions"):
        options = dict(data.options[name])
        if name in data.frames:
            options["path"] = os.path.abspath(frame_file(folder or Path(), name))
        section[name] = options
    return section


def fitting(data: Dataset, preset: Mapping[str, object]) -> dict[str, object]:
    """Changes to a preset that the data asks for; only those that change it.

    A window that holds 95 of 100 histories whole; no more dimensions, facets and codes of the
    distiller than the items fill; no attributes to predict where the catalogue has none.

    Args:
        data: The data.
        preset: What the preset says.
    """
    changes: dict[str, object] = {}
    length = _length(data)
    if length != _mapping(preset.get("training")).get("max_length"):
        changes["training"] = {"max_length": length}
    distiller = _mapping(preset.get("distiller"))
    size = _size(data)
    most = {"dim": size, "facets": min(size, 8), "codes": size}
    small = {k: v for k, v in most.items() if k in distiller and distiller[k] > v}
    if small:
        changes["distiller"] = small
    attributes = _mapping(preset.get("objective")).get("attributes")
    if attributes is not None and data.options["items"].get("attributes") is None:
        changes["objective"] = {"attributes": None}
    return changes


def _layers(recipe: Recipe | Path | str) -> tuple[list[Layer], str]:
    if isinstance(recipe, Recipe):
        return [recipe.layer], recipe.layer[0]
    path = find_recipe(str(recipe))
    return list(read_layers(path)), display_path(path)


def _named(modality: str, given: Any, cards: dict[str, EncoderCard]) -> str | None:
    """What a recipe calls an encoder; the card of an object is added to ``cards``."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Path):
        return str(given)
    cards[modality] = given if isinstance(given, EncoderCard) else card_of(given)
    return cards[modality].name


def card_of(encoder: Encoder) -> EncoderCard:
    """The card of an object that came without one.

    Its ``identity``, where it has that, tells its vectors from others' (`EncoderCard.of`). Without,
    they are taken for nobody else's, so that the cache never serves them again to another object.

    Raises:
        EncoderError: The object is no encoder.
    """
    identity = getattr(encoder, "identity", None) or f"one object, {uuid4().hex}"
    name = type(encoder).__name__.lstrip("_") or "encoder"
    return EncoderCard.of(encoder, name=name, identity=str(identity))


def _name(folder: Path) -> str | None:
    name = folder.absolute().name
    return name if re.match(NAME, name) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _size(data: Dataset) -> int:
    """A power of two, at least 4, that the items with a text or a picture fill twice."""
    frame = data.items.frame[1:]
    held = [len(frame) - frame[name].null_count() for name in ("text", "image_path")]
    least = min((count for count in held if count), default=len(frame))
    return int(2 ** int(math.log2(max(least // 2, 4))))


def _length(data: Dataset) -> int:
    """A window that holds 95 of 100 histories whole, within 10 to 200 items."""
    lengths = np.diff(data.split.offsets)
    whole = float(np.quantile(lengths, _SHARE_WHOLE))
    return int(np.clip(math.ceil(whole / 10) * 10, 10, 200))
