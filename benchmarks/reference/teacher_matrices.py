"""Teacher correlations as whole matrices: [V+1, d] vectors to rho and codes, both [V+1, V+1].

KDSR (arXiv:2401.07257), section 3, laid out as the public code lays it out: everything is held in
memory and a batch looks its pairs up. Only the k-means is lighter: it is fitted on sampled pairs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def holistic_matrix(vectors: NDArray[np.float32], *, dtype: torch.dtype) -> Tensor:
    """Cosine of every pair of items.

    Returns:
        [V+1, V+1], the padding row zero.
    """
    unit = _unit(torch.from_numpy(vectors))
    return (unit @ unit.mT).to(dtype)  # [V+1, V+1]


def code_matrix(
    vectors: NDArray[np.float32],
    *,
    facets: int = 8,
    codes: int = 50,
    sampled_pairs: int = 100_000,
    seed: int = 0,
) -> Tensor:
    """The nearest centroid of every pair's per-facet cosines.

    Returns:
        [V+1, V+1] int64.
    """
    from sklearn.cluster import MiniBatchKMeans  # here: 130 MB that the step does not need

    rows = len(vectors)
    parts = _unit(torch.from_numpy(vectors).reshape(rows, facets, -1))  # [V+1, P, d/P]
    generator = np.random.default_rng(seed)
    first, second = generator.integers(rows, size=(2, sampled_pairs))
    sample = (parts[first] * parts[second]).sum(-1)  # [S, P]
    kmeans = MiniBatchKMeans(n_clusters=codes, batch_size=10_000, n_init=1, random_state=seed)
    kmeans.fit(sample.numpy())
    centroids = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))  # [K, P]

    # |r - c|^2 without |r|^2, which is the same for every centroid
    scale, shift = -2 * centroids.mT, centroids.square().sum(1)
    matrix = torch.empty(rows, rows, dtype=torch.int64)
    by_facet = parts.transpose(0, 1).contiguous()  # [P, V+1, d/P]
    for row in range(rows):  # a row at a time: what V^2 pairs need besides is the cache's size
        pairs = torch.bmm(by_facet, by_facet[:, row].unsqueeze(-1)).squeeze(-1)  # [P, V+1]
        torch.argmin(torch.addmm(shift, pairs.mT, scale), dim=1, out=matrix[row])
    return matrix


def random_code_matrix(*, rows: int, codes: int = 50, seed: int = 0) -> Tensor:
    """Codes drawn at random, [rows, rows] int64: the same step, without the minutes of set-up."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codes, (rows, rows), generator=generator)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
