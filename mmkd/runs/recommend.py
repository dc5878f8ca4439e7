"""Lists: histories to the best items of each, and items to their neighbours, as frames.

Histories are scored a batch at a time, those of like length together; what is kept of a batch is
its lists, so that memory does not grow with the number of users.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from mmkd.data.items import ItemTable
from mmkd.distiller import unit_rows
from mmkd.errors import DataError, RunError, at_least, refuse, shown
from mmkd.evaluation.ranking import top_k, top_k_blocks
from mmkd.student import Ensemble
from mmkd.student.recommender import answering, settled
from mmkd.student.scores import ITEM_BLOCK, BlockScores

_CHUNK_BATCHES = 16  # histories are sorted by length among so many batches


def recommend(
    student: Ensemble,
    items: ItemTable,
    queries: Sequence[str | int],
    histories: Sequence[NDArray[np.int64]],
    *,
    k: int = 10,
    allow: NDArray[np.int64] | None = None,
    deny: NDArray[np.int64] | None = None,
    exclude_seen: bool = True,
    batch_size: int = 512,
) -> Iterator[pl.DataFrame]:
    """The k likeliest next items of each history, some histories a frame, in their order.

    Args:
        student: Trained.
        items: The catalogue it was trained on.
        queries: [Q] what to call each history, such as a user's id.
        histories: [Q] rows of the catalogue, [n] int64, oldest first, n at least 1.
        k: Items a list; fewer where fewer are left.
        allow: Rows that may be recommended; None allows all.
        deny: Rows that may not, such as what is sold out.
        exclude_seen: Leave a history's own items out, those too old to be read among them.
        batch_size: Histories scored at once.

    Returns:
        Frames of ``query``, ``rank`` (from 1), ``item_id``, ``title`` and ``score``, best first.

    Raises:
        DataError: A history is empty, or there is none.
        ValueError: ``k`` or ``batch_size`` is below 1.
    """
    refuse(at_least(1, k=k, batch_size=batch_size))
    if not len(histories):
        raise DataError("there is no history to recommend for; give one or more")
    if empty := [str(q) for q, rows in zip(queries, histories, strict=True) if not len(rows)]:
        raise DataError(
            f"the history is empty of {shown(empty)}; give at least one item id each, oldest first"
        )
    kept_out = barred(len(items), allow=allow, deny=deny).to(next(student.parameters()).device)

    def lists() -> Iterator[pl.DataFrame]:
        step = batch_size * _CHUNK_BATCHES
        with settled(student):
            for start in range(0, len(histories), step):
                chunk = histories[start : start + step]
                order = np.argsort([len(_read(student, rows)) for rows in chunk], kind="stable")
                found = np.zeros((len(chunk), k), dtype=np.int64)
                scores = np.full((len(chunk), k), -np.inf, dtype=np.float32)
                for at in range(0, len(chunk), batch_size):
                    batch = order[at : at + batch_size]
                    some = [chunk[i] for i in batch]
                    best, values = _best(student, some, kept_out, k, some if exclude_seen else None)
                    found[batch], scores[batch] = best.cpu().numpy(), values.float().cpu().numpy()
                yield _frame(items, queries[start : start + step], found, scores)

    return lists()


@dataclass(frozen=True)
class Query:
    """What one list is asked for, in rows of the catalogue.

    Attributes:
        history: [n] int64, oldest first, n at least 1.
        k: Items in the list, at least 1.
        barred: [I+1] bool, what may not be recommended, of ``barred``; None bars nothing.
        exclude_seen: Leave the history's own items out.
    """

    history: NDArray[np.int64]
    k: int = 10
    barred: torch.Tensor | None = None
    exclude_seen: bool = True


def answer(
    student: Ensemble, queries: Sequence[Query]
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The lists of several queries, each with conditions of its own, in one pass of the student.

    Args:
        student: Trained.
        queries: At least one; all of them are held at once.

    Returns:
        A query's rows and scores, best first; fewer than k where fewer are left.
    """
    device = next(student.parameters()).device
    none = torch.zeros(student.item_count + 1, dtype=torch.bool)
    masks = torch.stack([none if one.barred is None else one.barred for one in queries])
    nothing = np.empty(0, dtype=np.int64)
    with settled(student):
        found, scores = _best(
            student,
            [one.history for one in queries],
            masks.to(device),
            max(one.k for one in queries),
            [one.history if one.exclude_seen else nothing for one in queries],
        )
    rows, values = found.cpu().numpy(), scores.float().cpu().numpy()
    counts = np.minimum((rows > 0).sum(1), [one.k for one in queries])
    return [(rows[i, :n], values[i, :n]) for i, n in enumerate(counts.tolist())]


def barred(
    item_count: int,
    *,
    allow: NDArray[np.int64] | None = None,
    deny: NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """[I+1] bool, the rows that may not be recommended: those not allowed, and those denied."""
    mask = torch.full((item_count + 1,), allow is not None)
    if allow is not None:
        mask[torch.from_numpy(allow)] = False
    if deny is not None:
        mask[torch.from_numpy(deny)] = True
    return mask


def similar(
    vectors: torch.Tensor, items: ItemTable, rows: NDArray[np.int64], *, k: int = 10
) -> pl.DataFrame:
    """The k nearest items by cosine, the item itself left out.

    Args:
        vectors: [I+1, d], row r for item r; a row of zeros is an item without a vector.
        items: The catalogue.
        rows: [Q] rows of the items asked about.
        k: How many.

    Returns:
        As ``recommend``, the item's id as ``query`` and the cosine as ``score``.

    Raises:
        DataError: An item has no vector.
        ValueError: ``k`` is below 1.
    """
    refuse(at_least(1, k=k))
    with torch.no_grad():
        unit = unit_rows(vectors.float())
        lacking = (unit == 0).all(1)
        asked = torch.from_numpy(rows).to(unit.device)
        if bool(lacking[asked].any()):
            names = [items.ids[int(row)] for row in asked[lacking[asked]]]
            raise DataError(f"{shown(names)}: no vector, so nothing is near; name another item")
    found, values = nearest(unit, rows, k=k)
    return _frame(items, [items.ids[int(row)] for row in rows], found, values)


def nearest(
    unit: torch.Tensor, rows: NDArray[np.int64], *, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows [Q, k] nearest to each by cosine, and the cosines; 0 and -inf where fewer are.

    Args:
        unit: [I+1, d] of ``unit_rows``; a row of zeros is an item without a vector.
        rows: [Q] rows of the items asked about; of one without a vector nothing is near.
        k: How many.
    """
    with torch.no_grad():
        asked = torch.from_numpy(rows).to(unit.device)
        lacking = (unit == 0).all(1)
        cosine = unit[asked] @ unit.mT  # [Q, I+1]
        cosine.masked_fill_(lacking | lacking[asked, None], -torch.inf)
        every = torch.arange(len(asked), device=unit.device)
        found, values = top_k(cosine, k, exclude_row=every, exclude_item=asked)
    return found.cpu().numpy(), values.cpu().numpy()


def student_vectors(student: Ensemble, modality: str | None = None) -> torch.Tensor:
    """[I+1, d] a student's own item vectors: fused, or those of one modality.

    Raises:
        RunError: The student has no such modality.
    """
    tables = student.modality_tables()
    if modality is not None and modality not in tables:
        raise RunError(
            f"the student has no modality {modality}; it has {', '.join(tables) or 'none'}"
        )
    with torch.no_grad():
        return student.vectors(modality)[:-1]  # less the mask token


def _best(
    student: Ensemble,
    histories: Sequence[NDArray[np.int64]],
    kept_out: torch.Tensor,
    k: int,
    seen: Sequence[NDArray[np.int64]] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [B, k] and scores; ``kept_out`` bars rows of all [I+1] or of each [B, I+1]."""
    device = kept_out.device
    read = [_read(student, rows) for rows in histories]
    length = max(map(len, read))
    padded = np.zeros((len(read), length), dtype=np.int64)  # [B, L]
    for row, events in enumerate(read):
        padded[row, length - len(events) :] = events
    asked = torch.from_numpy(padded).to(device)
    excluded: dict[str, torch.Tensor] = {}
    if seen is not None:
        who = torch.from_numpy(np.repeat(np.arange(len(seen)), [len(rows) for rows in seen]))
        what = torch.from_numpy(np.concatenate(seen))
        excluded = {"exclude_row": who.to(device), "exclude_item": what.to(device)}
    if student.item_count > ITEM_BLOCK:
        with answering(student):
            scores = BlockScores.after(student, asked)
            return top_k_blocks(scores, k, cases=len(asked), kept_out=kept_out, **excluded)
    whole = student.next_scores(asked)  # [B, I+1]
    return top_k(whole.masked_fill(kept_out, -torch.inf), k, **excluded)


def _read(student: Ensemble, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What a student reads of a history: its latest items."""
    return rows if student.max_length is None else rows[-student.max_length :]


def _frame(
    items: ItemTable,
    queries: Sequence[str | int],
    found: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> pl.DataFrame:
    """Lists [Q, k], 0 where a list is short, as rows of a frame."""
    query, place = np.nonzero(found)
    rows = found[query, place]
    catalogue = items.frame[rows]
    return pl.DataFrame(
        {
            "query": pl.Series(list(queries))[query],
            "rank": place + 1,
            "item_id": catalogue["id"],
            "title": catalogue["title"],
            "score": scores[query, place],
        }
    )
