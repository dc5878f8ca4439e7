"""Pairs of a batch: items [B, L] to a list of real pairs, and the targets the list carries.

A list rather than [B, L, L]: padding costs nothing and each unordered pair is computed once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.distiller.codebook import Assignment, CorrelationCodebook, sample_pairs
from mmkd.distiller.correlation import (
    Similarity,
    check_facets,
    check_similarity,
    dissected_correlation,
    dissected_matrix,
    holistic_correlation,
    holistic_matrix,
)
from mmkd.distiller.reduction import (
    StoredTeacher,
    autoencoder,
    pca,
    present_rows,
    spread_over_facets,
)


@dataclass(frozen=True)
class CorrelationTargets:
    """One modality's supervision of one batch: every unordered pair of real, present items once.

    Attributes:
        sequence: [P] int64, the pair's row b of the batch.
        first: [P] int64, column i of ``items[b]``.
        second: [P] int64, column j > i; ``items[b, i] != items[b, j]``.
        holistic: [P] float32.
        dissected: [P, facets] float32.
        assign: [N, facets] to codes, [N] int64 (hard) or [N, K] float32 (soft).
        kept: share of the batch's pairs that ``max_pairs`` left, for losses that sum over pairs.
    """

    sequence: Tensor
    first: Tensor
    second: Tensor
    holistic: Tensor
    dissected: Tensor
    assign: Callable[[Tensor], Tensor]
    kept: float = 1.0

    @property
    def codes(self) -> Tensor:
        """Correlation types of all pairs, [P] or [P, K]; made here, at each reading."""
        return exact_codes(self.dissected, self.assign)


def exact_codes(dissected: Tensor, assign: Callable[[Tensor], Tensor]) -> Tensor:
    """Codes of pairs in full precision, also where the student computes in half.

    They are made where they are read: of 300,000 pairs and 50 codes they take 60 MB a modality,
    eight times what they are made from.

    Args:
        dissected: [N, facets].
        assign: see ``CorrelationTargets``.

    Returns:
        [N] int64 or [N, K] float32.
    """
    with torch.no_grad(), torch.autocast(dissected.device.type, enabled=False):
        return assign(dissected)


def real_pairs(items: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every unordered pair of distinct real items inside one sequence, once.

    Args:
        items: [B, L] int64.
        real: [B, L] bool, the positions that count.

    Returns:
        sequence, first, second: each [P] int64 with ``first < second``.
    """
    length = items.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=items.device).triu_(1)
    pairs = real[:, :, None] & real[:, None, :] & later  # [B, L, L]
    pairs &= items[:, :, None] != items[:, None, :]
    sequence, first, second = pairs.nonzero(as_tuple=True)
    return sequence, first, second


Reduction = Literal["pca", "autoencoder"]
_CHUNK_PAIRS = 4096  # gathered vectors of one chunk stay in the processor's cache
_STATE = ("reduced", "present", "centroids", "temperature")
_DENSE_SHARE = 0.2  # real pairs / B L^2 above which all pairs by matmul beat gathering (measured)


class TeacherTable(Protocol):
    """What the distiller reads of an embedding table."""

    @property
    def vectors(self) -> NDArray[np.float32] | StoredTeacher:
        """[I+1, D], an array or read from disk a chunk at a time."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """[I+1]; False at row 0 and where the item lacks the modality."""


class CorrelationDistiller:
    """Teacher of pair correlations.

    Args:
        dim: d, the width of the reduced teacher; a multiple of ``facets``.
        reduction: ``pca`` or ``autoencoder``.
        center: subtract the catalogue's mean before comparing (see ``mmkd.distiller.reduction``).
        similarity: between (sub-)vectors.
        facets: P sub-vectors of the dissected correlation.
        codes: K correlation types.
        assignment: of a pair to types, ``soft`` or ``hard``.
        code_temperature: of soft codes; None estimates it per modality.
        sampled_pairs: pairs the codebook is fitted on.
        max_pairs: keep at most this many random pairs per batch and modality; None keeps all.
        seed: of pair sampling, k-means and the autoencoder.

    Raises:
        ValueError: if an argument is out of range.
    """

    reduced: dict[str, Tensor]  # name -> [I+1, dim] float32, row 0 and missing rows zero
    present: dict[str, Tensor]  # name -> [I+1] bool
    codebooks: dict[str, CorrelationCodebook]

    def __init__(
        self,
        *,
        dim: int = 128,
        reduction: Reduction = "pca",
        center: bool = True,
        similarity: Similarity = "cosine",
        facets: int = 8,
        codes: int = 50,
        assignment: Assignment = "soft",
        code_temperature: float | None = None,
        sampled_pairs: int = 200_000,
        max_pairs: int | None = None,
        seed: int = 0,
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}; raise it")
        check_facets(dim, facets)
        check_similarity(similarity)
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction {reduction!r} is unknown; use pca or autoencoder")
        if codes < 2:
            raise ValueError(f"codes must be at least 2 to tell pairs apart, got {codes}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if sampled_pairs < codes:
            raise ValueError(f"{sampled_pairs} sampled pairs cannot place {codes} codes; use more")
        if max_pairs is not None and max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, got {max_pairs}; None keeps all pairs")
        self.dim = dim
        self.reduction = reduction
        self.center = center
        self.similarity: Similarity = similarity
        self.facets = facets
        self.codes = codes
        self.assignment: Assignment = assignment
        self.code_temperature = code_temperature
        self.sampled_pairs = sampled_pairs
        self.max_pairs = max_pairs
        self.seed = seed
        self.reduced = {}
        self.present = {}
        self.codebooks = {}
        self._codebook()  # its arguments are checked here, not after the reduction has run

    def fit(self, tables: Mapping[str, TeacherTable]) -> Self:
        """Reduce every table and fit its codebook, on the items that have the modality.

        Args:
            tables: modality name to table; all with the same number of rows.

        Returns:
            self, on the CPU.

        Raises:
            ValueError: if the tables disagree in length, or one cannot be distilled.
        """
        lengths = {name: len(table.vectors) for name, table in tables.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"tables must cover the same items, got rows {lengths}")
        self.reduced, self.present, self.codebooks = {}, {}, {}
        for name, table in tables.items():
            try:
                self._fit_one(name, table)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self

    @torch.no_grad()
    def targets(
        self, items: Tensor, *, generator: torch.Generator | None = None, share: float = 1.0
    ) -> dict[str, CorrelationTargets]:
        """Targets of a batch, on its device.

        Args:
            items: [B, L] int64 rows; 0 and rows beyond the tables (the mask token) give no pair.
            generator: of the CPU; draws the pairs that ``max_pairs`` keeps.
            share: Of the global batch that ``items`` is, where processes share it; of ``max_pairs``
                that much is kept.

        Returns:
            Modality name to targets; possibly with no pair.

        Raises:
            ValueError: if the distiller has not been fitted.
        """
        if not self.reduced:
            raise ValueError("the distiller has no teacher; call fit or load_state_dict first")
        with torch.autocast(items.device.type, enabled=False):  # targets are exact in any run
            return {name: self._targets(name, items, generator, share) for name in self.reduced}

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to ``device`` and return self."""
        self.reduced = {name: tensor.to(device) for name, tensor in self.reduced.items()}
        self.present = {name: tensor.to(device) for name, tensor in self.present.items()}
        for codebook in self.codebooks.values():
            codebook.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """All fitted tensors, keyed ``<modality>.<tensor>``."""
        state: dict[str, Tensor] = {}
        for name, codebook in self.codebooks.items():
            state[f"{name}.reduced"] = self.reduced[name]
            state[f"{name}.present"] = self.present[name]
            state[f"{name}.centroids"] = codebook.centroids
            state[f"{name}.temperature"] = torch.tensor(codebook.temperature, dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of :meth:`state_dict` in place of fitting.

        Raises:
            ValueError: if a tensor is absent or its shape disagrees with the constructor.
        """
        names = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
        wanted = {
            f"{n}.{t}" for n in names for t in ("reduced", "present", "centroids", "temperature")
        }
        if set(state) != wanted:
            raise ValueError(f"distiller state: absent or unknown {sorted(wanted ^ set(state))}")
        for name in names:
            shapes = (state[f"{name}.reduced"].shape[1:], state[f"{name}.centroids"].shape)
            if shapes != ((self.dim,), (self.codes, self.facets)):
                raise ValueError(
                    f"{name}: state has dim {shapes[0][0]} and codebook {tuple(shapes[1])}, wanted "
                    f"{self.dim} and {(self.codes, self.facets)}; build it as it was fitted"
                )
        self.reduced = {name: state[f"{name}.reduced"] for name in names}
        self.present = {name: state[f"{name}.present"] for name in names}
        self.codebooks = {name: self._codebook() for name in names}
        for name, codebook in self.codebooks.items():
            codebook.centroids = state[f"{name}.centroids"]
            codebook.temperature = float(state[f"{name}.temperature"])

    def _codebook(self) -> CorrelationCodebook:
        return CorrelationCodebook(
            codes=self.codes,
            assignment=self.assignment,
            temperature=self.code_temperature,
            seed=self.seed,
        )

    def _fit_one(self, name: str, table: TeacherTable) -> None:
        present = np.array(table.present, dtype=np.bool_)
        present[0] = False
        vectors = present_rows(table.vectors, present)
        if self.reduction == "pca":
            x = pca(vectors, self.dim, center=self.center)
        else:  # its steps draw rows at random, so it holds them all
            vectors = np.asarray(vectors)
            x = autoencoder(vectors, self.dim, center=self.center, seed=self.seed)
        x = spread_over_facets(x, self.dim, self.facets)  # [n, dim]
        first, second = sample_pairs(x, self.sampled_pairs, seed=self.seed)
        rows = torch.from_numpy(x)
        _, r = self._correlate(rows, torch.from_numpy(first), torch.from_numpy(second))
        self.codebooks[name] = self._codebook().fit(r.numpy())
        reduced = torch.zeros(len(present), self.dim)
        reduced[torch.from_numpy(present)] = rows
        self.reduced[name] = reduced
        self.present[name] = torch.from_numpy(present)

    def _targets(
        self, name: str, items: Tensor, generator: torch.Generator | None, share: float
    ) -> CorrelationTargets:
        x = self.reduced[name]
        rows = items.masked_fill(items >= len(x), 0)  # the mask token has no teacher
        sequence, first, second = real_pairs(rows, self.present[name][rows])
        kept = 1.0
        most = len(first) if self.max_pairs is None else max(1, round(self.max_pairs * share))
        if len(first) > most:
            kept = most / len(first)
            order = torch.randperm(len(first), generator=generator).to(items.device)
            chosen = order[:most].sort().values
            sequence, first, second = sequence[chosen], first[chosen], second[chosen]
        if len(first) > _DENSE_SHARE * rows.numel() * rows.shape[1]:
            vectors = x[rows]  # [B, L, d]
            holistic = holistic_matrix(vectors, self.similarity)[sequence, first, second]
            r = dissected_matrix(vectors, self.facets, self.similarity)[sequence, first, second]
        else:
            holistic, r = self._correlate(x, rows[sequence, first], rows[sequence, second])
        assign = self.codebooks[name].assign
        return CorrelationTargets(sequence, first, second, holistic, r, assign, kept)

    def _correlate(self, x: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Holistic [P] and dissected [P, facets] correlations of rows i [P] and j [P]."""
        holistic = x.new_empty(len(i))
        dissected = x.new_empty(len(i), self.facets)
        for start in range(0, len(i), _CHUNK_PAIRS):
            cut = slice(start, start + _CHUNK_PAIRS)
            x_i, x_j = x.index_select(0, i[cut]), x.index_select(0, j[cut])  # [chunk, d]
            holistic[cut] = holistic_correlation(x_i, x_j, self.similarity)
            dissected[cut] = dissected_correlation(x_i, x_j, self.facets, self.similarity)
        return holistic, dissected
