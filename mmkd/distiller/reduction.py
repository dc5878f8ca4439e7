"""Reduced teachers: the present rows [n, D] of a table [I+1, D] to [n, d], d at most D.

PCA, or the paper's one-layer autoencoder: KDSR (arXiv:2401.07257), section 3. A table may be an
array, or stay on disk and be gone over a chunk at a time. What was fitted stays usable, so that an
item that comes later is reduced as those were that it was fitted on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor, nn

_CHUNK_ROWS = 8192  # bounds the float64 working copy
_SMALLEST_SHARE = 1e-6  # singular values below this share of the largest are rounding noise


class StoredTeacher(Protocol):
    """Vectors that stay on disk, as an embedding cache's table has them."""

    @property
    def shape(self) -> tuple[int, int]:
        """(I+1, D)."""

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Rows [n, D]."""

    def chunks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Every row that holds a vector once, in any order: rows [c] and their vectors [c, D]."""


class PresentRows:
    """The rows of a stored teacher that are present, numbered 0..n-1."""

    def __init__(self, vectors: StoredTeacher, present: NDArray[np.bool_]) -> None:
        self._vectors = vectors
        self._present = present
        self._number = np.cumsum(present) - 1  # [I+1]
        self.shape: tuple[int, int] = (int(present.sum()), vectors.shape[1])

    def chunks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Every row once, in any order: rows [c] and their vectors [c, D], at most `size`."""
        for rows, vectors in self._vectors.chunks(size):
            kept = self._present[rows]
            yield self._number[rows[kept]], vectors[kept]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them in memory."""
        whole = self._vectors[self._present]
        return whole if dtype is None else whole.astype(dtype, copy=False)


def present_rows(
    vectors: NDArray[np.float32] | StoredTeacher, present: NDArray[np.bool_]
) -> NDArray[np.float32] | PresentRows:
    """The rows where `present` [I+1]; of an array an array."""
    if isinstance(vectors, np.ndarray):
        return np.ascontiguousarray(vectors[present], dtype=np.float32)
    return PresentRows(vectors, present)


class ReducedTeacher:
    """Rows of a reduced teacher [N, d], made of the encoder's vectors whenever they are asked for.

    Of a teacher on the disk it holds no vector, and so a process may have some rows of it.

    Args:
        vectors: [I+1, D] the encoder's.
        numbers: [N] int64, which of these each row is made of; -1 for a row of zeros.
        reduction: Fitted on them.
        dim: d.
        facets: Over which the columns are laid out.
    """

    dtype, device, ndim = torch.float32, torch.device("cpu"), 2

    def __init__(
        self,
        vectors: NDArray[np.float32] | StoredTeacher,
        numbers: NDArray[np.int64],
        reduction: "FittedReduction",
        *,
        dim: int,
        facets: int,
    ) -> None:
        self._vectors = vectors
        self._numbers = numbers
        self._reduction = reduction
        self._facets = facets
        self.shape = torch.Size([len(numbers), dim])

    def __len__(self) -> int:
        """N."""
        return len(self._numbers)

    def __getitem__(self, rows: slice | Tensor | NDArray[np.int64]) -> Tensor:
        """Rows [n, d].

        Raises:
            ValueError: A vector is not finite.
        """
        numbers = self._numbers[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        found = np.zeros((len(numbers), self.shape[1]), np.float32)
        held = np.flatnonzero(numbers >= 0)
        for start in range(0, len(held), _CHUNK_ROWS):
            some = held[start : start + _CHUNK_ROWS]
            vectors = np.asarray(self._vectors[numbers[some]], np.float32)
            found[some] = spread_over_facets(self._reduction(vectors), self.shape[1], self._facets)
        return torch.from_numpy(found)


@dataclass(frozen=True)
class FittedReduction:
    """What a fit has learnt: any vectors [n, D] of the same encoder to [n, r].

    PCA is ``(x - mean) @ weight``; the autoencoder's codes are
    ``sigmoid((x - mean) / scale @ weight + bias) - offset``.

    >>> import numpy as np
    >>> from mmkd.distiller.reduction import FittedReduction, fit_pca
    >>> vectors = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    >>> fitted = fit_pca(vectors, 4)
    >>> fitted(vectors[:2]).shape
    (2, 4)
    >>> again = FittedReduction.from_arrays(fitted.arrays())
    >>> bool((again(vectors) == fitted(vectors)).all())
    True

    Attributes:
        mean: [D], subtracted first; float64 of PCA, float32 of the autoencoder, as the rest.
        weight: [D, r], of the autoencoder [r, D].
        scale: [1], the autoencoder's; None of PCA, as the next two.
        bias: [r].
        offset: [r].
    """

    mean: NDArray[Any]
    weight: NDArray[Any]
    scale: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    offset: NDArray[Any] | None = None

    @property
    def width(self) -> int:
        """D, the width of the encoder's vectors."""
        return len(self.mean)

    def __call__(self, vectors: NDArray[np.float32] | PresentRows) -> NDArray[np.float32]:
        """Reduce vectors, a chunk of them at a time.

        Args:
            vectors: [n, D].

        Returns:
            [n, r].

        Raises:
            ValueError: The vectors are of another width, or one is not finite.
        """
        count, width = vectors.shape
        if width != self.width:
            raise ValueError(
                f"got vectors of width {width}, wanted {self.width}, on which the reduction was "
                "fitted; encode with the same card"
            )
        directions = self.weight.shape[1] if self.bias is None else len(self.bias)
        reduced = np.empty((count, directions), dtype=np.float32)
        broken = 0
        for rows, part in _chunks(vectors):
            broken += int((~np.isfinite(part).all(axis=1)).sum())
            reduced[rows] = self._reduce(part)
        _check_finite(broken, count)
        return reduced

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name to array, of what there is; what a file keeps."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The other way round.

        Raises:
            TypeError: An array is missing or unknown.
        """
        return cls(**arrays)

    def _reduce(self, part: NDArray[np.float32]) -> NDArray[Any]:
        if self.bias is None:
            projected: NDArray[np.float64] = (part.astype(np.float64) - self.mean) @ self.weight
            return projected
        data = torch.from_numpy(part - self.mean)
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        codes = torch.sigmoid(
            nn.functional.linear(data / torch.from_numpy(self.scale), weight, bias)
        )
        return np.asarray(codes.numpy() - self.offset)


def fit_pca(
    vectors: NDArray[np.float32] | PresentRows,
    dim: int,
    *,
    center: bool = True,
    own_scale: bool = True,
) -> FittedReduction:
    """The projection on the leading principal directions.

    Covariance and eigenvectors are computed in float64, in passes that hold a chunk of vectors.
    Each direction's sign is chosen so that its entry of largest magnitude is positive, so the same
    input always gives the same output.

    Args:
        vectors: [n, D], the items that have the modality.
        dim: the number of directions wanted.
        center: subtract the mean first; without it the directions are those of the uncentred
            second moments, which keep the raw inner products best.
        own_scale: keep the vectors' scale; without it a power of two, which rounds nothing, brings
            them near length 1, so that cosines are the same at any scale that float32 holds.

    Returns:
        To r = min(dim, numerical rank) directions. Those of rounding noise are left out, because a
        cosine would weigh them like real ones.

    Raises:
        ValueError: if the vectors are not finite, fewer than two, or all equal.
    """
    _check_shape(vectors.shape, dim)
    count, width = vectors.shape
    total, broken = np.zeros(width), 0
    for _, part in _chunks(vectors):
        broken += int((~np.isfinite(part).all(axis=1)).sum())
        total += part.sum(axis=0, dtype=np.float64)
    _check_finite(broken, count)
    mean = total / count if center else np.zeros(width)
    moments = np.zeros((width, width))
    for _, part in _chunks(vectors):
        chunk = part.astype(np.float64) - mean
        moments += chunk.T @ chunk
    kept = min(dim, width, count)
    values, directions = eigh(moments, subset_by_index=[width - kept, width - 1])
    values, directions = values[::-1], directions[:, ::-1]  # largest first; [D, kept]
    real = values > max(values[0], 0.0) * _SMALLEST_SHARE**2
    if not real.any():
        raise ValueError(f"all {count} vectors are equal; they hold no correlation to distil")
    directions = directions[:, real]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])
    if not own_scale:
        directions = np.ldexp(directions, -_exponent(np.sqrt(values[real].sum() / count)))
    return FittedReduction(mean, directions)


def fit_autoencoder(
    vectors: NDArray[np.float32] | PresentRows,
    dim: int,
    *,
    center: bool = True,
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    max_epochs: int = 300,
    patience: int = 5,
    min_improvement: float = 1e-3,
    seed: int = 0,
) -> FittedReduction:
    """The encoder of a one-layer sigmoid autoencoder that is trained on the vectors themselves.

    The vectors are centred and divided by their overall standard deviation before training (an
    affine map the linear layers could learn anyway), so the learning rate fits every encoder.

    Args:
        vectors: [n, D], the items that have the modality; all are held in memory, since the
            steps draw rows at random.
        dim: the width of the codes.
        center: subtract the mean code; the sigmoid's codes lie around 0.5, so that without it
            every cosine is near 1.
        learning_rate: Adam's.
        batch_size: rows a step.
        max_epochs: upper limit of passes.
        patience: stop after this many epochs without improvement of the reconstruction loss.
        min_improvement: the relative decrease that counts as improvement.
        seed: of the weights and the order of rows.

    Returns:
        To codes of width dim.

    Raises:
        ValueError: if the vectors are not finite, fewer than two, or all equal.
    """
    vectors = np.asarray(vectors)
    _check_shape(vectors.shape, dim)
    _check_finite(int((~np.isfinite(vectors).all(axis=1)).sum()), len(vectors))
    # by a power of two, which rounds nothing: float32 holds the squares of few scales
    exponent = _exponent(np.abs(vectors).max())
    vectors = np.ldexp(vectors, -exponent)
    mean = vectors.mean(axis=0)
    data = torch.from_numpy(vectors - mean)  # [n, D]
    spread = data.std()
    if not spread > 0:
        raise ValueError(f"all {len(data)} vectors are equal; they hold no correlation to distil")
    data /= spread
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = nn.Linear(data.shape[1], dim), nn.Linear(dim, data.shape[1])
    for layer in (encoder, decoder):
        bound = layer.in_features**-0.5  # nn.Linear's own default, drawn from our generator
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    best, waited = float("inf"), 0
    for _ in range(max_epochs):
        total = 0.0
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(data), batch_size):
            batch = data[order[start : start + batch_size]]
            loss = nn.functional.mse_loss(decoder(torch.sigmoid(encoder(batch))), batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item() * len(batch)
        improved = total < best * (1 - min_improvement)
        best, waited = min(best, total), 0 if improved else waited + 1
        if waited >= patience:
            break
    with torch.no_grad():
        codes: Tensor = torch.sigmoid(encoder(data))
        offset = codes.mean(dim=0) if center else torch.zeros(dim)
    learnt = {"weight": encoder.weight, "bias": encoder.bias}
    return FittedReduction(
        mean=np.ldexp(mean, exponent),
        scale=np.ldexp(spread[None].numpy(), exponent),
        offset=offset.numpy(),
        **{name: np.asarray(value.detach().numpy()) for name, value in learnt.items()},
    )


def spread_over_facets(x: NDArray[np.float32], dim: int, facets: int) -> NDArray[np.float32]:
    """Lay out [n, r] columns, r <= dim, in [n, dim] so that every facet gets its share.

    Where a table has fewer independent directions than ``dim`` (a short colour histogram, a tiny
    catalogue), zeros appended at the end would leave whole facets empty. Here consecutive columns
    go to each facet in near-equal numbers and each facet is zero-padded, which changes neither
    cosines nor distances. With r == dim this is the identity. A catalogue of so few items that
    their vectors cannot have a direction a facet leaves facets empty.

    Raises:
        ValueError: if there are fewer columns than facets, though there are items enough.
    """
    count, columns = x.shape
    if columns < facets < count:
        raise ValueError(
            f"the vectors have {columns} independent directions, too few for {facets} facets; "
            f"use facets <= {columns} or an encoder with more"
        )
    laid_out = np.zeros((count, dim), dtype=np.float32)
    for facet, group in enumerate(np.array_split(np.arange(columns), facets)):
        start = facet * (dim // facets)
        laid_out[:, start : start + len(group)] = x[:, group]
    return laid_out


def _chunks(
    vectors: NDArray[np.float32] | PresentRows,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    if isinstance(vectors, PresentRows):
        yield from vectors.chunks(_CHUNK_ROWS)
        return
    for start in range(0, len(vectors), _CHUNK_ROWS):
        part = vectors[start : start + _CHUNK_ROWS]
        yield np.arange(start, start + len(part)), part


def _exponent(scale: np.floating[Any]) -> int:
    """The power of two next above a positive number, 0 of zero."""
    return int(np.frexp(scale)[1])


def _check_shape(shape: tuple[int, ...], dim: int) -> None:
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if len(shape) != 2 or shape[0] < 2:
        raise ValueError(
            f"need at least two vectors as [n, D], got shape {shape}; "
            "is the modality missing for nearly every item?"
        )


def _check_finite(broken: int, count: int) -> None:
    if broken:
        raise ValueError(f"{broken} of {count} vectors hold NaN or infinity; re-encode them")
