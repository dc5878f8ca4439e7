"""CorrelationDistiller: teacher tables [I+1, D] to the correlations of a batch's pairs.

What the student is to keep of its teachers, KDSR (arXiv:2401.07257), section 3: for every pair of
items in one sequence of ``items`` [B, L], how alike they are (holistic) and in which way (codes).
A list of P pairs rather than [B, L, L]: padding costs nothing and each unordered pair is computed
once. Nothing of shape items x items exists anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.distiller.codebook import Assignment, CorrelationCodebook, sample_pairs
from mmkd.distiller.correlation import (
    SIMILARITIES,
    Similarity,
    check_facets,
    dissected_correlation,
    dissected_matrix,
    holistic_correlation,
    holistic_matrix,
)
from mmkd.distiller.reduction import (
    FittedReduction,
    ReducedTeacher,
    StoredTeacher,
    fit_autoencoder,
    fit_pca,
    present_rows,
    spread_over_facets,
)
from mmkd.errors import at_least, checked, one_of, positive

Reduction = Literal["pca", "autoencoder"]
_CHUNK_PAIRS = 4096  # gathered vectors of one chunk stay in the processor's cache
_DENSE_SHARE = 0.2  # real pairs / B L^2 above which all pairs by matmul beat gathering (measured)


class TeacherTable(Protocol):
    """What the distiller and a scorer by content read of an embedding table."""

    @property
    def vectors(self) -> NDArray[np.float32] | StoredTeacher:
        """[I+1, D], absent rows zero; an array, or read from disk as it is asked for."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """[I+1]; False at row 0 and where the item lacks the modality."""


class SomeRows(Protocol):
    """Some rows of tables that are not here as a whole, such as the student's ``TableRows``."""

    @property
    def numbers(self) -> Tensor:
        """[R] int64, ascending, each once."""

    def of(self, table: Tensor, /) -> Tensor:
        """What is here of a table to [R, d]."""


@dataclass(frozen=True)
class CorrelationTargets:
    """One modality's supervision of one batch: every unordered pair of real, present items once.

    Attributes:
        sequence: [P] int64, the pair's row b of the batch; ascending.
        first: [P] int64, column i of ``items[b]``.
        second: [P] int64, column j > i; ``items[b, i] != items[b, j]``.
        holistic: [P] float32.
        dissected: [P, F] float32.
        assign: [N, F] to codes, [N] int64 (hard) or [N, K] float32 (soft).
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
        """Correlation types, [P] int64 or [P, K] float32, also where the student computes in half.

        Made at each reading: of 300,000 pairs and 50 codes they take 60 MB a modality, eight times
        what they are made from, so a loss reads those of a chunk of pairs at a time.
        """
        with torch.no_grad(), torch.autocast(self.dissected.device.type, enabled=False):
            return self.assign(self.dissected)


class CorrelationDistiller:
    """Teacher of pair correlations.

    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> import torch
    >>> from mmkd import CorrelationDistiller
    >>> vectors = np.random.default_rng(0).normal(size=(21, 12)).astype("float32")
    >>> table = SimpleNamespace(vectors=vectors, present=np.arange(21) > 0)  # of EmbeddingCache
    >>> distiller = CorrelationDistiller(dim=8, facets=4, codes=5).fit({"text": table})
    >>> targets = distiller.targets(torch.tensor([[0, 3, 7, 2]]))["text"]  # three pairs
    >>> targets.holistic.shape, targets.codes.shape
    (torch.Size([3]), torch.Size([3, 5]))

    Args:
        dim: d, the width of the reduced teacher; a multiple of ``facets``.
        reduction: ``pca`` or ``autoencoder``.
        center: subtract the catalogue's mean before comparing (see ``mmkd.distiller.reduction``).
        similarity: between (sub-)vectors.
        facets: F sub-vectors of the dissected correlation.
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
    stored: dict[str, ReducedTeacher]  # the same, where a fit left it to be made row by row
    present: dict[str, Tensor]  # name -> [I+1] bool
    reductions: dict[str, FittedReduction]
    codebooks: dict[str, CorrelationCodebook]

    @checked
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
        self.stored = {}
        self.present = {}
        self.reductions = {}
        self.codebooks = {}

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        get = options.get
        dim, facets, codes, sampled = (
            get(name) for name in ("dim", "facets", "codes", "sampled_pairs")
        )
        unset = "leave it unset to estimate it from the pairs"
        problems = [
            *at_least(1, dim=dim, facets=facets),
            *at_least(2, "one type tells no pairs apart", codes=codes),
            *at_least(1, "null keeps all pairs", max_pairs=get("max_pairs")),
            *at_least(0, seed=get("seed")),
            *one_of(get_args(Reduction), reduction=get("reduction")),
            *one_of(SIMILARITIES, similarity=get("similarity")),
            *one_of(get_args(Assignment), assignment=get("assignment")),
            *positive(unset, code_temperature=get("code_temperature")),
        ]
        if dim is not None and facets is not None and dim >= 1 and facets >= 1:
            problems += check_facets(dim, facets)
        if codes is not None and sampled is not None and sampled < codes:
            problems.append(
                f"sampled_pairs: got {sampled}, which cannot place {codes} codes; use more"
            )
        return problems

    def fit(self, tables: Mapping[str, TeacherTable], *, in_memory: bool = True) -> Self:
        """Reduce every table and fit its codebook, on the items that have the modality.

        Args:
            tables: modality name to table; all with the same number of rows.
            in_memory: False leaves the reduced teachers to be made of the tables when rows are
                asked for (``stored``), so that ``cut`` can keep a part that never was a whole;
                nothing else that reads them whole works then.

        Returns:
            self, on the CPU.

        Raises:
            ValueError: if the tables disagree in length, or one cannot be distilled.
        """
        lengths = {name: len(table.present) for name, table in tables.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"tables must cover the same items, got rows {lengths}")
        self.reduced, self.present, self.reductions, self.codebooks = {}, {}, {}, {}
        self.stored = {}
        for name, table in tables.items():
            try:
                self._fit_one(name, table, in_memory=in_memory)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self

    @property
    def teachers(self) -> Mapping[str, Tensor | ReducedTeacher]:
        """Name to reduced teacher [I+1, dim], here or made row by row."""
        return {**self.stored, **self.reduced}

    @torch.no_grad()
    def targets(
        self,
        items: Tensor,
        *,
        generator: torch.Generator | None = None,
        share: float = 1.0,
        rows: SomeRows | None = None,
    ) -> dict[str, CorrelationTargets]:
        """Targets of a batch, on its device.

        Args:
            items: [B, L] int64 rows; 0 and rows beyond the tables (the mask token) give no pair.
            generator: of the CPU; draws the pairs that ``max_pairs`` keeps.
            share: Of the global batch that ``items`` is, where processes share it; of ``max_pairs``
                that much is kept.
            rows: Reads the reduced teachers, where they lie on several processes; among them the
                padding's and those of ``items``.

        Returns:
            Modality name to targets; possibly with no pair.

        Raises:
            ValueError: if the distiller has not been fitted.
        """
        if not self.reduced:
            raise ValueError("the distiller has no teacher; call fit first")
        with torch.autocast(items.device.type, enabled=False):  # targets are exact in any run
            return {
                name: self._targets(name, items, generator, share, rows) for name in self.reduced
            }

    @torch.no_grad()
    def correlations(self, name: str, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Holistic [P] and dissected [P, F] correlations of pairs of rows [P] in a modality.

        On the distiller's device, wherever the rows are.
        """
        x = self.reduced[name]
        return self._correlate(x, first.to(x.device), second.to(x.device))

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to ``device`` and return self."""
        self.reduced = {name: tensor.to(device) for name, tensor in self.reduced.items()}
        self.present = {name: tensor.to(device) for name, tensor in self.present.items()}
        for codebook in self.codebooks.values():
            codebook.to(device)
        return self

    def cut(self, part: Callable[[Tensor | ReducedTeacher], Tensor]) -> None:
        """Keep a part of each reduced teacher; ``targets`` then wants ``rows``."""
        for name, teacher in self.teachers.items():
            self.reduced[name] = part(teacher)  # in place: whoever has the mapping lets go too
        self.stored = {}

    def _fit_one(self, name: str, table: TeacherTable, *, in_memory: bool) -> None:
        present = np.array(table.present, dtype=np.bool_)
        present[0] = False
        vectors = present_rows(table.vectors, present)
        if self.reduction == "pca":
            scaled = self.similarity != "cosine"
            reduction = fit_pca(vectors, self.dim, center=self.center, own_scale=scaled)
        else:
            reduction = fit_autoencoder(vectors, self.dim, center=self.center, seed=self.seed)
        stored = partial(
            ReducedTeacher, table.vectors, reduction=reduction, dim=self.dim, facets=self.facets
        )
        x: NDArray[np.float32] | ReducedTeacher
        if in_memory:
            x = spread_over_facets(reduction(vectors), self.dim, self.facets)  # [n, dim]
        else:
            x = stored(numbers=np.flatnonzero(present))
        first, second = sample_pairs(x, self.sampled_pairs, seed=self.seed)
        rows = x if isinstance(x, ReducedTeacher) else torch.from_numpy(x)
        holistic, r = self._correlate(rows, torch.from_numpy(first), torch.from_numpy(second))
        if not (torch.isfinite(holistic).all() and torch.isfinite(r).all()):
            raise ValueError(
                f"similarity {self.similarity} of its vectors is beyond what float32 holds; set "
                "normalize: true in the encoder's card, or use similarity: cosine"
            )
        codebook = CorrelationCodebook(
            codes=self.codes,
            assignment=self.assignment,
            temperature=self.code_temperature,
            seed=self.seed,
        )
        self.codebooks[name] = codebook.fit(r.numpy())
        if isinstance(rows, Tensor):
            reduced = torch.zeros(len(present), self.dim)
            reduced[torch.from_numpy(present)] = rows
            self.reduced[name] = reduced
        else:
            numbers = np.where(present, np.arange(len(present)), -1)
            self.stored[name] = stored(numbers=numbers)
        self.reductions[name] = reduction
        self.present[name] = torch.from_numpy(present)

    def _targets(
        self,
        name: str,
        items: Tensor,
        generator: torch.Generator | None,
        share: float,
        some: SomeRows | None,
    ) -> CorrelationTargets:
        x, present = self.reduced[name], self.present[name]
        rows = items.masked_fill(items >= len(present), 0)  # the mask token has no teacher
        sequence, first, second = _real_pairs(rows, present[rows])
        if some is not None:
            x, rows = some.of(x), torch.searchsorted(some.numbers, rows)
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

    def _correlate(self, x: Tensor | ReducedTeacher, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Holistic [P] and dissected [P, F] correlations of rows i [P] and j [P]."""
        holistic = torch.empty(len(i), dtype=x.dtype, device=x.device)
        dissected = torch.empty(len(i), self.facets, dtype=x.dtype, device=x.device)
        for start in range(0, len(i), _CHUNK_PAIRS):
            cut = slice(start, start + _CHUNK_PAIRS)
            x_i, x_j = _rows(x, i[cut]), _rows(x, j[cut])  # [chunk, d]
            holistic[cut] = holistic_correlation(x_i, x_j, self.similarity)
            dissected[cut] = dissected_correlation(x_i, x_j, self.facets, self.similarity)
        return holistic, dissected


def _rows(x: Tensor | ReducedTeacher, numbers: Tensor) -> Tensor:
    return x.index_select(0, numbers) if isinstance(x, Tensor) else x[numbers]


def _real_pairs(items: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
