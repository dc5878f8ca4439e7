"""Correlations of item pairs: vectors [.., d] to holistic [..] and dissected [.., F] values.

Source: KDSR (arXiv:2401.07257), section 3. Pure functions, differentiable: the distiller calls
them on the teacher's vectors and the holistic head on the student's.

Each exists in two layouts with equal values: for given pairs, and for all pairs inside every
sequence as one batched matmul. The second costs less once a good part of the positions is real.

The distances are turned into similarities by ``1 / (1 + distance)``: in (0, 1], larger is more
alike, as for the cosine, so one loss weight serves every choice. ``dot`` keeps the scale of the
vectors. The cosine with a zero vector is 0: no direction, hence no evidence either way.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.errors import one_of, refuse

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)

_SMALLEST_NORM = 1e-6  # below it a vector counts as zero; also bounds the gradient by its inverse


def holistic_correlation(x_i: Tensor, x_j: Tensor, similarity: Similarity = "cosine") -> Tensor:
    """How alike two items are as a whole.

    Args:
        x_i: [..., d] vectors.
        x_j: [..., d] vectors, the partners of ``x_i``.
        similarity: ``cosine``, ``dot``, or ``1 / (1 + distance)`` for the two distances.

    Returns:
        [...] similarities.

    Raises:
        ValueError: if the similarity is unknown.
    """
    refuse(one_of(SIMILARITIES, similarity=similarity))
    if similarity == "cosine":
        x_i, x_j = _unit(x_i), _unit(x_j)
    if similarity in ("cosine", "dot"):
        return (x_i * x_j).sum(-1)
    order = 2 if similarity == "euclidean" else 1
    return torch.reciprocal(1 + torch.linalg.vector_norm(x_i - x_j, ord=order, dim=-1))


def dissected_correlation(
    x_i: Tensor, x_j: Tensor, facets: int, similarity: Similarity = "cosine"
) -> Tensor:
    """How alike two items are in each of ``facets`` equal sub-vectors.

    Args:
        x_i: [..., d] vectors.
        x_j: [..., d] vectors, the partners of ``x_i``.
        facets: F; must divide d.
        similarity: as in :func:`holistic_correlation`, applied to each sub-vector.

    Returns:
        [..., F] similarities.

    Raises:
        ValueError: if d does not split into ``facets`` or the similarity is unknown.
    """
    refuse(check_facets(x_i.shape[-1], facets))
    split = (*x_i.shape[:-1], facets, x_i.shape[-1] // facets)  # [..., F, d/F]
    return holistic_correlation(x_i.reshape(split), x_j.reshape(split), similarity)


def holistic_matrix(x: Tensor, similarity: Similarity = "cosine") -> Tensor:
    """All pairs inside each sequence: [B, L, d] to [B, L, L].

    Raises:
        ValueError: if the similarity is unknown.
    """
    refuse(one_of(SIMILARITIES, similarity=similarity))
    if similarity == "cosine":
        x = _unit(x)
    if similarity in ("cosine", "dot"):
        return x @ x.mT
    # the expansion by matmul loses half the digits of small distances, the ones that matter
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(x, x, p=2.0 if similarity == "euclidean" else 1.0, compute_mode=exact)
    return torch.reciprocal(1 + distance)


def dissected_matrix(x: Tensor, facets: int, similarity: Similarity = "cosine") -> Tensor:
    """All pairs inside each sequence, per facet: [B, L, d] to [B, L, L, F] (a strided view).

    Raises:
        ValueError: if d does not split into ``facets`` or the similarity is unknown.
    """
    refuse(check_facets(x.shape[-1], facets))
    batch, length, dim = x.shape
    size = dim // facets
    parts = x.reshape(batch, length, facets, size).transpose(1, 2)  # [B, F, L, d/F]
    r = holistic_matrix(parts.reshape(batch * facets, length, size), similarity)  # [B*F, L, L]
    return r.view(batch, facets, length, length).permute(0, 2, 3, 1)


def check_facets(dim: int, facets: int) -> list[str]:
    """A line that names the nearest remedy unless ``facets`` divides ``dim``."""
    if facets >= 1 and dim % facets == 0:
        return []
    divisors = [n for n in range(1, dim + 1) if dim % n == 0]
    nearest = min(divisors, key=lambda n: (abs(n - facets), -n), default=1)
    return [
        f"facets: dim {dim} does not split into {facets} facets; use a divisor such as {nearest}"
    ]


def unit_rows(x: Tensor) -> Tensor:
    """Rows [n, d] scaled to length 1 whatever their scale; a zero row stays zero."""
    # by a power of two, which rounds nothing, that float32 holds itself
    exponent = torch.frexp(x.abs().amax(dim=1, keepdim=True)).exponent.clamp(-120, 120)
    return F.normalize(torch.ldexp(x, -exponent), dim=1)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=_SMALLEST_NORM)
