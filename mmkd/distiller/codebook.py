"""Correlation types: dissected correlations [N, F] to hard codes [N] or soft codes [N, K].

K centroids from FAISS k-means over sampled pairs, started by k-means++.
Source: KDSR (arXiv:2401.07257), section 3.
"""

from typing import Any, Literal, Self, get_args

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.distiller.correlation import unit_rows
from mmkd.distiller.nearest import EXACT_BELOW, nearest, nearest_of_blocks
from mmkd.distiller.reduction import ReducedTeacher
from mmkd.errors import at_least, checked, one_of, positive

Assignment = Literal["soft", "hard"]

_NEIGHBOURS = 32  # nearest neighbours a sampled item contributes
_ROWS_AT_ONCE = 65_536


class CorrelationCodebook:
    """A codebook over facet correlations.

    Args:
        codes: K, the number of centroids.
        assignment: ``hard`` gives the index of the nearest centroid; ``soft`` gives
            ``softmax_k(-||r - c_k||^2 / temperature)``.
        temperature: of the soft codes. None (default) sets it at fitting to ``2 s^2`` with s^2 the
            mean squared distance per coordinate of a pair to its centroid: the soft code is then
            the posterior of an equal-weight Gaussian mixture with the variance the clusters
            really have. It follows the scale of the correlations, where a fixed number would be
            one-hot for one encoder and uniform for another.
        seed: of the k-means.

    Raises:
        ValueError: if an argument is out of range.
    """

    centroids: Tensor  # [K, F]; unused rows (fewer distinct pairs than K) are infinite
    temperature: float | None

    @checked
    def __init__(
        self,
        *,
        codes: int = 50,
        assignment: Assignment = "soft",
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        self.codes = codes
        self.assignment = assignment
        self.temperature = temperature
        self._estimated = temperature is None
        self.seed = seed
        self.centroids = torch.empty(0, 0)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        return [
            *at_least(1, codes=options.get("codes")),
            *one_of(get_args(Assignment), assignment=options.get("assignment")),
            *positive(
                "leave it unset to estimate it from the pairs",
                temperature=options.get("temperature"),
            ),
        ]

    def fit(self, correlations: NDArray[np.float32]) -> Self:
        """Place the centroids.

        Args:
            correlations: [N, F] dissected correlations of the sampled pairs.

        Returns:
            self. With fewer than K distinct rows, each distinct row becomes a centroid and the
            codes left over are never assigned (soft probability 0), so K stays K for the heads.

        Raises:
            ValueError: if there is no pair.
        """
        r = np.ascontiguousarray(correlations, dtype=np.float32)
        if len(r) == 0:
            raise ValueError("no pair of items to fit the codebook on; need two present items")
        centroids = np.full((self.codes, r.shape[1]), np.inf, dtype=np.float32)
        distinct = np.unique(r.round(5), axis=0)
        if len(distinct) <= self.codes:
            centroids[: len(distinct)] = distinct
        else:
            kmeans = faiss.Kmeans(
                r.shape[1],
                self.codes,
                niter=25,
                seed=self.seed,
                min_points_per_centroid=1,
                max_points_per_centroid=len(r),
                # from random rows k-means often leaves two far clusters on one centroid
                init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            )
            kmeans.train(r)
            centroids[:] = kmeans.centroids
        self.centroids = torch.from_numpy(centroids)
        if self._estimated:
            self.temperature = self._estimate_temperature(r)
        return self

    def assign(self, correlations: Tensor) -> Tensor:
        """Codes of pairs.

        Args:
            correlations: [N, F].

        Returns:
            [N] int64 (hard) or [N, K] of the input's dtype, rows summing to 1 (soft).
        """
        # ||r||^2 is the same for every k: neither argmax nor softmax sees it
        c = self.centroids.to(correlations)
        unused = c.isinf().any(dim=1)
        c = c.masked_fill(unused[:, None], 0.0)
        offset = -c.square().sum(dim=1).masked_fill(unused, torch.inf)  # [K]
        if self.assignment == "hard":
            return torch.addmm(offset, correlations, c.mT, alpha=2).argmax(dim=1)
        if self.temperature is None:
            raise ValueError("the codebook is not fitted; call fit first")
        scale = 1 / self.temperature
        return torch.addmm(offset * scale, correlations, c.mT, alpha=2 * scale).softmax(dim=1)

    def to(self, device: torch.device | str) -> Self:
        """Move the centroids to ``device`` and return self."""
        self.centroids = self.centroids.to(device)
        return self

    def _estimate_temperature(self, r: NDArray[np.float32]) -> float:
        used = self.centroids[~self.centroids.isinf().any(dim=1)]
        index = faiss.IndexFlatL2(r.shape[1])
        index.add(used.numpy())
        squared, _ = index.search(r, 1)
        per_coordinate = float(np.mean(squared, dtype=np.float64)) / r.shape[1]
        return float(max(2 * per_coordinate, 1e-4))  # pairs on their centroids: near one-hot


def sample_pairs(
    x: NDArray[np.float32] | ReducedTeacher, count: int, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw item pairs, half uniformly and half among nearest neighbours (cosine, by FAISS).

    Of equally near neighbours, as where many items share a placeholder's picture, each query takes
    random ones, up to 50,000 items.

    Uniform pairs alone hardly contain the close ones, whose types are what the student is to
    learn; neighbours alone would leave the unrelated pairs of a sequence without a type.

    Args:
        x: [n, d] vectors of the present items; of many a block is read at a time.
        count: pairs wanted; small catalogues give all their pairs and their neighbours instead.
        seed: of the draws.

    Returns:
        Two arrays [at most count] of row indices into ``x``; a pair never joins a row to itself.
    """
    rng = np.random.default_rng(seed)
    n, half = len(x), max(count // 2, 1)
    if n * (n - 1) // 2 <= half:
        first, second = np.triu_indices(n, k=1)
    else:
        first = rng.integers(0, n, half)
        second = (first + rng.integers(1, n, half)) % n
    near = min(_NEIGHBOURS, n - 1)
    queries = rng.choice(n, size=min(n, -(-half // near)), replace=False)
    if n < EXACT_BELOW:
        found = nearest(_unit(x[:]), queries, near, rng)  # [q, near + 1]
    else:
        starts = range(0, n, _ROWS_AT_ONCE)
        blocks = (_unit(x[start : start + _ROWS_AT_ONCE]) for start in starts)
        found = nearest_of_blocks(blocks, _unit(x[queries]), near)
    neighbour = found.ravel()
    source = np.repeat(queries, near + 1)
    other = (neighbour != source) & (neighbour >= 0)
    source, neighbour = source[other][:half], neighbour[other][:half]
    return (
        np.concatenate([first, source]).astype(np.int64),
        np.concatenate([second, neighbour]).astype(np.int64),
    )


def _unit(x: NDArray[np.float32] | Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = unit_rows(torch.as_tensor(x)).numpy()
    return unit
