"""From a trained run and a user's history, or an item, to ranked items with titles and scores."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mmkd.data.items import ItemTable
from mmkd.errors import RunError
from mmkd.evaluation.ranking import top_k
from mmkd.runs.folder import RunFolder


def recommend(
    run: RunFolder, history: Sequence[str], *, k: int = 10, exclude_seen: bool = True
) -> list[dict[str, Any]]:
    """The k items a user is likeliest to take next.

    Args:
        run: A trained run.
        history: The user's item ids, oldest first.
        k: How many.
        exclude_seen: Leave the history's own items out.

    Returns:
        ``{"item", "title", "score"}`` each, best first; scores are logits added up over the
        student's members (the log of added probabilities, where it is asked for those).

    Raises:
        DataError: An id is not in the catalogue, or the history is empty.
    """
    return run.student().recommend(run.items(), history, k=k, exclude_seen=exclude_seen)


def student_neighbours(
    run: RunFolder, item: str, *, modality: str | None = None, k: int = 10
) -> list[dict[str, Any]]:
    """The k nearest items by cosine in a student's own table, the members' mean where each has one.

    Args:
        run: A trained run.
        item: Its id.
        modality: Which of the student's modality tables; None for the fused vectors.
        k: How many.

    Raises:
        DataError: The id is not in the catalogue.
        RunError: The student has no such modality.
    """
    items, student = run.items(), run.student()
    tables = student.modality_tables()
    if modality is not None and modality not in tables:
        raise RunError(
            f"{run.path}: the student has no modality {modality}; it has "
            f"{', '.join(tables) or 'none'}"
        )
    row = items.row(item)
    with torch.no_grad():
        unit = F.normalize(student.vectors(modality)[: len(items) + 1], dim=1)
        cosine = unit @ unit[row]
    lacking = (unit == 0).all(1).nonzero()[:, 0]
    excluded = torch.cat([lacking, torch.tensor([row])])
    best, values = top_k(
        cosine[None], k, exclude_row=torch.zeros_like(excluded), exclude_item=excluded
    )
    return _listed(items, best[0].tolist(), values[0].tolist())


def _listed(items: ItemTable, rows: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"item": items.ids[row], "title": items.titles[row], "score": score}
        for row, score in zip(rows, scores, strict=True)
        if row > 0
    ]
