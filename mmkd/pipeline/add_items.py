"""Adding items to a trained run without training: new rows -> encoders -> placed -> a new run.

The cards' own encoders run on the new items, and the kept reduction puts their vectors where the
catalogue's were at the start of training (`mmkd.runs.placement`). An item id that was never trained
says nothing, so it is masked.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.config.checks import filled
from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import read_recipe
from mmkd.data import ItemTable
from mmkd.data.readers import load_items, table_of
from mmkd.data.readers.load import items_of
from mmkd.embeddings import EmbeddingCache, EmbeddingTable
from mmkd.encoders import EncoderCard
from mmkd.errors import DataError, RunError, shown
from mmkd.pipeline.embed import EmbedProgress, embed
from mmkd.runs.folder import RunFolder
from mmkd.runs.placement import Placement
from mmkd.student import with_new_items

_OF_FILES = frozenset(("path", "format", "separator", "escape"))


@dataclass(frozen=True)
class AddedItems:
    """What became of the new items.

    Attributes:
        added: How many are in the new run.
        catalogue: How many items it has in all.
        left_out: Ids of those that no encoder has a vector of: nothing would place them.
        present: Modality to how many of those added have it.
    """

    added: int
    catalogue: int
    left_out: tuple[str, ...]
    present: Mapping[str, int]


def add_items(
    folder: Path | str,
    new_items: ItemTable | Path | str | Any,
    *,
    out: Path | str,
    device: str | None = None,
    progress: EmbedProgress | None = None,
    cards: Mapping[str, EncoderCard] | None = None,
) -> AddedItems:
    """Make a run that recommends new items too; the run that is given stays as it is.

    >>> import mmkd
    >>> from mmkd.demo import make_synthetic
    >>> from mmkd.pipeline.add_items import add_items
    >>> _ = make_synthetic("catalogue", items=60, users=120)
    >>> recipe = mmkd.load_recipe(
    ...     "quickstart", ["data.root=catalogue", "training.epochs=1", "training.cpu=true"]
    ... )
    >>> run = mmkd.train(recipe, folder="runs/today")
    >>> new = mmkd.ItemTable(
    ...     ids=["", "N1"], titles=["", "Red teapot"], text=[None, "A red teapot of clay"],
    ...     image_path=[None, None], attributes=[[], []])
    >>> done = add_items("runs/today", new, out="runs/tomorrow")
    >>> done.added, done.catalogue, mmkd.load("runs/tomorrow").items.titles[-1]
    (1, 61, 'Red teapot')

    Args:
        folder: A trained run whose fused vectors score.
        new_items: The items; or a file or a frame of them, whose columns are those of the recipe's
            ``data.items``.
        out: The new run's folder; made.
        device: Where the encoders run; None leaves it to the recipe.
        progress: Told how far the embedding is.
        cards: By modality those that are no files.

    Returns:
        What became of them.

    Raises:
        RunError: The run is not finished, scores with ids, or was trained by a version that did
            not keep what places an item; a card gives other vectors than those trained on, or
            vectors that belong to rows; or ``out`` holds something already.
        DataError: An id is in the catalogue already, or no item has anything that an encoder reads.
    """
    run, target = RunFolder(Path(folder)), RunFolder(Path(out))
    if not run.finished:
        raise RunError(
            f"{run.path}: holds no finished run; train one (mmkd train), or continue it (--resume)"
        )
    run.check_files()
    _check_free(run, target)
    planned = plan(read_recipe(str(run.recipe)), needs_data=False, needs_teacher=False, cards=cards)
    spec = run.student_spec()
    if spec.score_with != "fused" or not spec.modalities:
        raise RunError(
            f"{run.path}: its student scores with ids, which new items have none of; train with "
            "encoders and student.score_with: fused"
        )
    placements = run.placements()
    _check_cards(run, planned, placements)
    catalogue = run.items()
    new = _read(planned, new_items)
    if known := [new.ids[int(k) + 1] for k in np.flatnonzero(catalogue.find(new.ids[1:]))]:
        raise DataError(
            f"{len(known)} of the {len(new)} new items {'is' if len(known) == 1 else 'are'} in the "
            f"catalogue already: {shown(known)}; give only new ones, or train again where a text "
            "or a picture changed"
        )

    marker = run.marker()
    added_before = int((marker.get("added") or {}).get("items", 0))
    trained = ItemTable.of(catalogue.frame[: len(catalogue) + 1 - added_before])
    tables = _embed(planned, new, trained, device=device, progress=progress)
    kept = np.logical_or.reduce([table.present for table in tables.values()])  # [n+1]
    if not kept.any():
        raise DataError(
            f"none of the {len(new)} new items has anything that an encoder of {run.path} "
            f"({', '.join(tables)}) reads; fill those columns"
        )
    student = run.student()
    rows, present = {}, {}
    for name, trained_tables in student.stored_tables().items():
        rows[name], present[name] = _placed(placements[name], tables[name], kept, trained_tables)
    larger, grown = with_new_items(spec, student, rows, present)

    kept[0] = True  # padding
    left_out = tuple(new.ids[int(row)] for row in np.flatnonzero(~kept))
    items = _joined(catalogue, new, kept)
    added = {"items": len(items) - len(trained), "run": _origin(run, marker, target)}
    with target.locked():
        _check_free(run, target)
        target.clear()
        target.write(
            marker={
                "recipe": marker["recipe"],
                "data": marker["data"] | {"catalogue": _digest(marker["data"], items, trained)},
                "teacher": marker.get("teacher"),
                "added": added,
                "shared": run.shared,
            },
            kept_of=run,
            items=items,
            spec=larger,
            student=grown,
            result=run.result(),
        )
    return AddedItems(
        added=int(kept.sum()) - 1,
        catalogue=len(items),
        left_out=left_out,
        present={name: int(mask.sum()) for name, mask in present.items()},
    )


def _check_free(run: RunFolder, target: RunFolder) -> None:
    if target.path.exists() and not target.path.is_dir():
        raise RunError(f"{target.path}: is a file; give another folder with --out")
    if target.path.is_dir():
        if target.path.resolve() == run.path.resolve():
            raise RunError(f"{run.path}: is the run itself; give another folder with --out")
        target.check_free()
    # what a killed addition left begins anew
    if target.started and (target.finished or not target.marker().get("added")):
        raise RunError(f"{target.path}: holds a run already; give another folder with --out")


def _check_cards(run: RunFolder, planned: Plan, placements: Mapping[str, Placement]) -> None:
    """Raise RunError where a new vector would be of another kind than those trained on."""
    for name, card in planned.cards.items():
        if name not in placements or placements[name].fingerprint != card.fingerprint():
            raise RunError(
                f"{run.path}: the card {card.name} of encoders.{name} changed since the run was "
                "trained, so its vectors would land anywhere; put the old card back, or train again"
            )
        if card.fitted and run.shared:
            raise RunError(
                f"{run.path}: came from the hub without the catalogue's {card.modality}s, and the "
                f"card {card.name} of encoders.{name} is fitted on all of them; add items where "
                "the run was trained"
            )
        if card.reads == "row":
            raise RunError(
                f"{run.path}: encoders.{name} reads vectors by the catalogue's row numbers "
                f"(card {card.name}), of which a new item has none; give the vectors by item id"
            )


def _read(planned: Plan, given: Any) -> ItemTable:
    """The new items, by the reader options of the recipe's catalogue."""
    if isinstance(given, ItemTable):
        new = given
    else:
        options = dict(planned.items)
        if isinstance(given, str | Path):
            # a separator or format that was given for another sort of file says nothing of this one
            if Path(given).suffix != Path(options["path"]).suffix:
                options = {k: v for k, v in options.items() if k not in _OF_FILES - {"path"}}
            options["path"] = str(Path(given).absolute())
            new = load_items(root=planned.recipe.data.folder, **options)
        else:
            root = planned.recipe.data.folder
            of_items = {k: v for k, v in filled(load_items, options).items() if k not in _OF_FILES}
            new = items_of(table_of(given, root=root, name="new items"), root=root, **of_items)
    if not len(new):
        raise DataError("got no new items; give at least one")
    if pl.Binary in new.frame.dtypes:
        raise DataError("a new item's text or path is no UTF-8 text; give it without surrogates")
    return new


def _embed(
    planned: Plan,
    new: ItemTable,
    trained: ItemTable,
    *,
    device: str | None,
    progress: EmbedProgress | None,
) -> dict[str, EmbeddingTable]:
    """The new items' vectors; of encoders fitted on the catalogue, as that fit gives them."""
    tables, settings = {}, planned.encoding
    for name, card in planned.cards.items():
        column = new.text if card.modality == "text" else new.image_path
        if card.reads == "content" and all(source is None for source in column):
            nothing = np.zeros((len(new) + 1, 0), np.float32)
            absent = np.zeros(len(new) + 1, np.bool_)
            tables[name] = EmbeddingTable(nothing, absent, card.name, card.modality, "")
        elif card.fitted:
            tables[name] = EmbeddingCache(**planned.cache).beside(
                card,
                new,
                catalogue=trained,
                encoder_factory=partial(
                    card.build,
                    device=device or settings.resolved_device(),
                    allow_random_weights=planned.allow_random_weights,
                ),
                batch_size=settings.batch_size,
            )
        else:
            only = replace(planned, cards={name: card})
            tables |= embed(only, new, device=device, progress=progress)
    return tables


def _placed(
    placement: Placement,
    table: EmbeddingTable,
    kept: NDArray[np.bool_],
    trained_tables: Sequence[Tensor],
) -> tuple[list[Tensor], Tensor]:
    """Rows [n, d] for each of the student's tables, and which of the n hold something."""
    present = table.present[kept]
    rows = []
    for trained in trained_tables:
        own = torch.zeros(len(present), trained.shape[1])
        if present.any():
            vectors = np.asarray(table.vectors[table.present])
            frozen = not trained.requires_grad  # only what is behind an adapter
            own[torch.from_numpy(present)] = placement.rows(vectors, frozen=frozen)
        rows.append(own)
    return rows, torch.from_numpy(present)


def _joined(catalogue: ItemTable, new: ItemTable, kept: NDArray[np.bool_]) -> ItemTable:
    parts = [catalogue.frame, new.frame.filter(pl.Series(kept))[1:]]
    return ItemTable.of(
        pl.concat([part.cast({"attributes": pl.List(pl.String)}) for part in parts])
    )


def _origin(run: RunFolder, marker: Mapping[str, Any], target: RunFolder) -> str:
    """The run that was trained, as a path from the new one."""
    added = marker.get("added")
    path = run.path / added["run"] if added else run.path
    return Path(os.path.relpath(path, target.path)).as_posix()


def _digest(data: Mapping[str, str], items: ItemTable, trained: ItemTable) -> str:
    """Of the trained catalogue and the ids that were added to it."""
    ids = "\0".join([data["catalogue"], *items.ids[len(trained) + 1 :]])
    return hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()
