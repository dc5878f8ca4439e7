"""From a trained run and a user's history, or an item, to ranked items with titles and scores."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mmkd.errors import RunError
from mmkd.runs.folder import RunFolder
from mmkd.student.recommender import listed


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
        RunError: The run is not a trained one.
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

    Returns:
        As ``recommend``, the cosines as scores.

    Raises:
        DataError: The id is not in the catalogue.
        RunError: The student has no such modality, or the run is not a trained one.
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
        unit = F.normalize(student.vectors(modality)[:-1], dim=1)  # [I+1, d], less the mask token
        cosine = unit @ unit[row]  # [I+1]
    cosine[(unit == 0).all(1)] = -torch.inf  # without a vector there is no cosine
    cosine[[0, row]] = -torch.inf
    return listed(items, cosine, k)
