"""Modality retention: a student's tables to how much of their teachers' similarities they hold.

Two figures per modality, over the items that have it (of many, over a fixed sample of 100,000).
Spearman correlation between the student's and the teacher's cosine similarities of a fixed sample
of pairs, and recall@k of the teacher's k nearest neighbours among the student's, for a fixed sample
of query items (FAISS, inner product of unit vectors); a neighbour of the student's counts where it
is as near to the teacher as the teacher's k-th, so that which of many equally near ones is listed
makes no difference. KDSR (arXiv:2401.07257) names the loss of this structure modality forgetting.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.distiller import CorrelationDistiller, ReducedTeacher, unit_rows
from mmkd.errors import EvaluationError
from mmkd.student import Ensemble, Recommender

_K = 10
_MOST_ITEMS = 100_000  # neighbours are looked for among; an epoch's end would take minutes
_TIE = 1e-6  # cosines of float32 vectors differ by rounding up to here


class Retention:
    """What a student holds of every teacher: ``{"retention.NAME.FIGURE": value}``."""

    def __init__(self, distiller: CorrelationDistiller | None, *, seed: int = 0) -> None:
        """Probe every teacher once.

        Args:
            distiller: Fitted; None where there is no teacher, so that there is no figure either.
            seed: Of the samples.

        Raises:
            EvaluationError: If too few items have a modality.
        """
        self._probes = {}
        if distiller is not None:
            self._probes = {
                name: RetentionProbe(teacher=teacher, present=distiller.present[name], seed=seed)
                for name, teacher in distiller.teachers.items()
            }

    def __call__(self, student: Ensemble | Recommender) -> dict[str, float]:
        """Measure a student's tables.

        Raises:
            EvaluationError: If a table is not finite.
        """
        found: dict[str, float] = {}
        ensemble = Ensemble.of(student)
        device = next(ensemble.parameters()).device
        for name, probe in self._probes.items():
            rows = ensemble.rows(probe.rows.to(device))
            figures = probe.measure_rows(ensemble.vectors(name, rows))
            found |= {f"retention.{name}.{figure}": value for figure, value in figures.items()}
        return found


class RetentionProbe:
    """Compares student tables with one modality's teacher; the teacher's side is computed once."""

    def __init__(
        self,
        *,
        teacher: Tensor | ReducedTeacher,
        present: Tensor,
        pairs: int = 20_000,
        queries: int = 1000,
        k: int = _K,
        seed: int = 0,
    ) -> None:
        """Draw the pairs and queries, and find the teacher's similarities and neighbours.

        Args:
            teacher: [I+1, d_t] teacher vectors, row 0 padding.
            present: [I+1] bool, which items have the modality.
            pairs: Pairs of distinct items to compare, drawn with replacement.
            queries: Items whose neighbours are compared; all of them where there are fewer.
            k: Neighbours per query; where there are no more other items, all are neighbours, and
                recall is 1.
            seed: Of the samples.

        Raises:
            EvaluationError: if shapes do not fit or fewer than two items have the modality.
        """
        if teacher.ndim != 2 or present.shape != teacher.shape[:1] or present.dtype != torch.bool:
            raise EvaluationError(
                f"teacher {tuple(teacher.shape)} and present {tuple(present.shape)} "
                f"{present.dtype}; wanted [I+1, d] and [I+1] bool."
            )
        if min(pairs, queries, k) < 1:
            raise EvaluationError(f"pairs {pairs}, queries {queries}, k {k}: all must be >= 1.")
        rows = present.detach().cpu().numpy().nonzero()[0]
        self._rows: NDArray[np.int64] = rows[rows > 0].astype(np.int64)
        if len(self._rows) > _MOST_ITEMS:  # by another generator: smaller catalogues draw as before
            sample = np.random.default_rng([seed, 1])
            self._rows = np.sort(sample.choice(self._rows, _MOST_ITEMS, replace=False))
        count = len(self._rows)
        if count < 2:
            raise EvaluationError(
                f"{count} items have this modality, but it takes two to compare; leave it out."
            )
        self._table_rows = len(teacher)
        self._k = min(k, count - 1)
        self._recall = f"recall@{k}"
        generator = np.random.default_rng(seed)
        self._first = generator.integers(count, size=pairs)
        self._second = (self._first + generator.integers(1, count, size=pairs)) % count
        self._queries = generator.permutation(count)[:queries]
        self._teacher = teacher[self.rows.to(teacher.device)].detach()
        unit = _unit(self._teacher)
        self._similarity_ranks = _ranks(self._similarities(unit))
        nearest = self._similarity_of_neighbours(self._nearest(unit))  # [Q, k]
        self._reached = nearest.min(axis=1, keepdims=True) - _TIE  # [Q, 1]

    def measure(self, student: Tensor) -> dict[str, float]:
        """Retention of one student table.

        Args:
            student: [I+1, D] student vectors of the same items, any width and device.

        Returns:
            ``{"spearman": -1..1, "recall@k": 0..1}``. Where all student (or teacher) similarities
            are equal their order holds nothing, and spearman is 0.

        Raises:
            EvaluationError: if the table has other rows than the teacher, or is not finite.
        """
        return self._measured(self._unit_rows(student))

    @property
    def rows(self) -> Tensor:
        """[n] int64, ascending: the items that are compared."""
        return torch.from_numpy(self._rows)

    def measure_rows(self, vectors: Tensor) -> dict[str, float]:
        """Retention of a student's vectors of `rows` [n, D]; else as `measure`."""
        return self._measured(_unit(vectors))

    def _measured(self, unit: NDArray[np.float32]) -> dict[str, float]:
        hits = self._similarity_of_neighbours(self._nearest(unit)) >= self._reached  # [Q, k]
        return {
            "spearman": _pearson(self._similarity_ranks, _ranks(self._similarities(unit))),
            self._recall: float(hits.mean()),
        }

    def _unit_rows(self, table: Tensor) -> NDArray[np.float32]:
        """Rows that have the modality, scaled to length 1: [n, D] (a zero row stays zero)."""
        if table.dim() != 2 or len(table) != self._table_rows:
            raise EvaluationError(
                f"table is {tuple(table.shape)}; wanted {self._table_rows} rows, as the teacher."
            )
        return _unit(table[self.rows.to(table.device)])

    def _similarities(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of each sampled pair: [pairs]."""
        cosines: NDArray[np.float32] = np.einsum("pd,pd->p", unit[self._first], unit[self._second])
        return cosines

    def _similarity_of_neighbours(self, found: NDArray[np.int64]) -> NDArray[np.float32]:
        """The teacher's cosines of each query and its neighbours [Q, k]."""
        queries = self._unit_teacher(self._queries)  # [Q, d_t]
        columns = [(queries * self._unit_teacher(column)).sum(1) for column in found.T]
        cosines: NDArray[np.float32] = torch.stack(columns, dim=1).cpu().numpy()
        return cosines

    def _unit_teacher(self, items: NDArray[np.int64]) -> Tensor:
        """Unit vectors of items that are numbered within the present ones."""
        rows = torch.from_numpy(items).to(self._teacher.device)
        return unit_rows(self._teacher[rows].float())

    def _nearest(self, unit: NDArray[np.float32]) -> NDArray[np.int64]:
        """The k nearest other items of each query: [Q, k], numbered within the present items."""
        index = faiss.IndexFlatIP(unit.shape[1])
        with _faiss_threads(torch.get_num_threads()):
            index.add(unit)
            _, found = index.search(unit[self._queries], self._k + 1)  # [Q, k+1]
        # drop the query itself; where a duplicate pushed it out of the list, the last one instead
        itself = found == self._queries[:, None]
        itself[~itself.any(1), -1] = True
        nearest: NDArray[np.int64] = found[~itself].reshape(len(found), self._k)
        return nearest


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    """Scaled to length 1, [n, D]; a zero row stays zero."""
    vectors = vectors.detach().float()
    if not bool(torch.isfinite(vectors).all()):
        raise EvaluationError(
            "the table holds NaN or infinite numbers; training diverged: lower the learning "
            "rate or the weight of the loss that grew."
        )
    unit: NDArray[np.float32] = unit_rows(vectors).cpu().numpy()
    return unit


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share their mean rank."""
    from scipy.stats import rankdata  # slow to import, and a run that is only read needs none

    return np.asarray(rankdata(values))


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # of values that are all alike there is none, which numpy would warn of
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


@contextmanager
def _faiss_threads(count: int) -> Iterator[None]:
    """As many FAISS threads as torch may use, the process's own setting afterwards."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
