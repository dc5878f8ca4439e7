"""CaseRanks: what evaluation found for each case, and how the parts of several processes join.

Every metric is computed once, from all cases, never as a mean of the processes' means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mmkd.evaluation.errors import EvaluationError


@dataclass(frozen=True)
class CaseRanks:
    """Ranks and recommended lists, one row per evaluated case, ordered by case index.

    Attributes:
        case: [N] int64, index into the split's cases.
        user: [N] int64.
        target: [N] int64, the item the case is about.
        rank: [N] float64, 1 for the best, halves where items tie.
        ties: [N] int64, other items at the target's score.
        top_items: [N, k] int64, best first; 0 where fewer than k items could be recommended.
    """

    case: NDArray[np.int64]
    user: NDArray[np.int64]
    target: NDArray[np.int64]
    rank: NDArray[np.float64]
    ties: NDArray[np.int64]
    top_items: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that the arrays belong together.

        Raises:
            EvaluationError: if their lengths differ.
        """
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1 or self.top_items.ndim != 2:
            raise EvaluationError(f"the arrays of CaseRanks differ in length: {lengths}.")

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case)

    def take(self, rows: NDArray[np.int64]) -> "CaseRanks":
        """The given rows, in the given order."""
        return CaseRanks(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def merge(parts: Sequence[CaseRanks], *, case_count: int | None = None) -> CaseRanks:
    """Join the processes' parts by case index; a case evaluated twice counts once.

    Args:
        parts: One CaseRanks per process, in any order.
        case_count: How many cases the split has; None skips the check for missing ones.

    Returns:
        All cases, ordered by case index.

    Raises:
        EvaluationError: if there is no part, or a case is missing.
    """
    if not parts:
        raise EvaluationError("merge got no parts; pass every process's CaseRanks.")
    joined = CaseRanks(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(CaseRanks)}
    )
    _, first = np.unique(joined.case, return_index=True)
    merged = joined.take(first.astype(np.int64))
    if case_count is not None and not np.array_equal(merged.case, np.arange(case_count)):
        raise EvaluationError(
            f"merged {len(merged)} distinct cases of {case_count}; a process's part is missing: "
            "give rank 0..world_size-1 one part each."
        )
    return merged


def gather(part: CaseRanks, *, device: torch.device | str = "cpu") -> CaseRanks:
    """Collect every process's part, on every process; without torch.distributed, the part itself.

    Only plain tensors are exchanged.

    Args:
        part: This process's cases.
        device: Where the process group communicates: "cpu" for gloo, this process's GPU for NCCL.

    Returns:
        The merged cases of all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return merge([part])
    whole = torch.from_numpy(
        np.column_stack([part.case, part.user, part.target, part.ties, part.top_items])
    ).to(device)  # [n, 4 + k] int64
    rank = torch.from_numpy(part.rank).to(device)
    world_size = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(counts, torch.tensor([len(part)], device=device))
    longest = max(int(count) for count in counts)
    # all_gather wants equal shapes: pad to the longest part, cut each back to its own length
    padding = longest - len(part)
    wholes = [whole.new_empty(longest, whole.shape[1]) for _ in range(world_size)]
    ranks = [rank.new_empty(longest) for _ in range(world_size)]
    dist.all_gather(wholes, torch.nn.functional.pad(whole, (0, 0, 0, padding)))
    dist.all_gather(ranks, torch.nn.functional.pad(rank, (0, padding)))
    parts = []
    for count, numbers, values in zip(counts, wholes, ranks, strict=True):
        table = numbers[: int(count)].cpu().numpy()
        parts.append(
            CaseRanks(
                case=table[:, 0],
                user=table[:, 1],
                target=table[:, 2],
                rank=values[: int(count)].cpu().numpy(),
                ties=table[:, 3],
                top_items=table[:, 4:],
            )
        )
    return merge(parts)
