"""ServedRun: an opened run with all in memory that an answer needs, and its two queues.

From a history in the catalogue's rows to a list, and from an item to its neighbours. Everything
that may fail or take long, such as reading the log or an encoder's vectors, is done when it is
opened.
"""

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmkd.data.splits import SequenceSplit
from mmkd.distiller import unit_rows
from mmkd.errors import Interrupted, MmkdError, RunError
from mmkd.pipeline.run import Run
from mmkd.report.cards import Cards
from mmkd.report.figures import name_of
from mmkd.report.lists import source_shares
from mmkd.runs.recommend import Query, answer, barred, nearest, student_vectors
from mmkd.serve.batching import Batcher
from mmkd.serve.pictures import Pictures
from mmkd.serve.search import Search
from mmkd.terminal import printable

STUDENT = "student"  # whose vectors: the student's own; else a modality, its encoder's

Rows = NDArray[np.int64]
Ranked = tuple[Rows, NDArray[np.float32]]  # rows and scores, best first


@dataclass(frozen=True)
class NearQuery:
    """What neighbours are asked for: of a row, by whose vectors, how many."""

    row: int
    by: str
    k: int


class ServedRun:
    """A run that answers.

    Args:
        run: The run.
        name: What it is called; no two that are served together may be called alike.
        executor: Where the student and the encoders' vectors are asked.
        folder: Below ``picture/``, of its pictures' addresses.
        allow: Ids in stock, those that the catalogue lacks among them; None where that is not
            known.
        image_root: Where the pictures' folder is now; None where it is as the recipe says.
        shared: Vectors [I+1, D] of encoders by the key of their table, which runs may share.

    Attributes:
        items: The catalogue.
        pictures: Of its items.
        sources: Source to its weight in each item's vector [I+2]; None where there are none.
        only: The one source of its vectors, where there is one.
        vectors: ``student`` and modalities to unit vectors [I+1, D]; zeros where an item has none.
        unread: Why encoders' vectors are not there; None where they are.
        split: Who took what; None where the data is not there any more.
        in_stock: [I+1] bool, rows that are not; None where that is not known.

    Raises:
        RunError: A file of the run is damaged.
    """

    def __init__(
        self,
        run: Run,
        *,
        name: str,
        executor: Executor,
        folder: str = "0",
        allow: Sequence[str] | None = None,
        image_root: Path | None = None,
        shared: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.name = name
        self.items = run.items
        self._student = run.student
        data = run.recipe.data
        root = data.folder / str(data.items.get("image_root", "."))
        self.pictures = Pictures(self.items, root, moved_to=image_root)
        self.folder = folder
        self.in_stock = None if allow is None else barred(len(self.items), allow=self._known(allow))
        self.sources = source_shares(self._student)
        sources = self._student.source_weights()
        self.only = next(iter(sources)) if sources is not None and len(sources) == 1 else None
        self.split = _split(run)
        self.cards = Cards(
            self.items,
            None if self.split is None else self.split.train_counts(),
            picture=self._address,
        )
        self.find = Search(self.items)
        self.vectors = {STUDENT: unit_rows(student_vectors(self._student).float())}
        self.unread = self._read_encoders(run, {} if shared is None else shared)
        self._lists: Batcher[Query, Ranked] = Batcher(partial(answer, self._student), executor)
        self._near: Batcher[NearQuery, Ranked] = Batcher(self._nearest, executor)

    async def recommend(self, query: Query) -> Ranked:
        """The best items after a history.

        Raises:
            Busy: Too many wait already.
        """
        return await self._lists.ask(query)

    async def similar(self, row: int, *, by: str = STUDENT, k: int = 10) -> Ranked:
        """The items nearest to one; none where it has no such vector.

        Raises:
            Busy: Too many wait already.
        """
        return await self._near.ask(NearQuery(row, by, k))

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self._lists.waiting + self._near.waiting

    def barred(
        self, *, allow: Rows | None = None, deny: Rows | None = None, in_stock: bool = False
    ) -> torch.Tensor | None:
        """[I+1] bool, what may not be recommended; None where all may."""
        own = self.in_stock if in_stock else None
        if allow is None and deny is None:
            return own
        mask = barred(len(self.items), allow=allow, deny=deny)
        return mask if own is None else mask | own

    def shares(self, row: int) -> dict[str, float]:
        """Source to its weight in an item's vector; empty where there are none."""
        return {name: float(weights[row]) for name, weights in (self.sources or {}).items()}

    def popular(self, count: int) -> list[int]:
        """Rows to begin with: those taken most, or the first where that is not known."""
        return [int(row) for row in self._by_count[:count]]

    @cached_property
    def _by_count(self) -> NDArray[np.int64]:
        if self.split is None:
            return np.arange(1, len(self.items) + 1)
        return np.argsort(-self.split.train_counts()[1:], kind="stable") + 1

    def _nearest(self, queries: Sequence[NearQuery]) -> list[Ranked]:
        answers: dict[int, Ranked] = {}
        for by in {query.by for query in queries}:
            places = [place for place, query in enumerate(queries) if query.by == by]
            rows = np.array([queries[place].row for place in places], dtype=np.int64)
            k = max(queries[place].k for place in places)
            found, scores = nearest(self.vectors[by], rows, k=k)
            for place, near, cosines in zip(places, found, scores, strict=True):
                count = min(int((near > 0).sum()), queries[place].k)
                answers[place] = near[:count], cosines[:count]
        return [answers[place] for place in range(len(queries))]

    def _read_encoders(self, run: Run, shared: dict[str, torch.Tensor]) -> str | None:
        try:
            tables = run.tables
        except Interrupted:
            raise
        except MmkdError as error:
            return printable(str(error))
        for name, table in tables.items():
            if table.key not in shared:
                vectors = torch.from_numpy(np.asarray(table.vectors, dtype=np.float32))
                shared[table.key] = unit_rows(vectors)
            self.vectors[printable(name)] = shared[table.key]
        return None

    def _known(self, ids: Sequence[str]) -> Rows:
        rows = self.items.find(ids)
        return rows[rows > 0]

    def _address(self, row: int) -> str | None:
        return f"picture/{self.folder}/{row}.webp" if self.pictures.has(row) else None


def open_runs(
    runs: Sequence[Run],
    *,
    executor: Executor,
    allow: Sequence[str] | None = None,
    image_root: Path | None = None,
) -> list[ServedRun]:
    """Runs to be served side by side.

    Args:
        runs: One or two.
        executor: Where all of them are asked.
        allow: Ids in stock; None where that is not known.
        image_root: As for ServedRun.

    Raises:
        RunError: There are more than two runs, or none.
        DataError: An id in stock is in no run's catalogue.
    """
    if not 1 <= len(runs) <= 2:
        raise RunError(f"got {len(runs)} runs, wanted one or two to stand side by side")
    if allow is not None:
        lacking = np.all([run.items.find(allow) == 0 for run in runs], axis=0)
        runs[0].items.rows([name for name, lacks in zip(allow, lacking, strict=True) if lacks])
    shared: dict[str, torch.Tensor] = {}
    started = secrets.token_hex(4)  # so that no browser shows another server's pictures from memory
    return [
        ServedRun(
            run,
            name=name,
            executor=executor,
            folder=f"{started}-{place}",
            allow=allow,
            image_root=image_root,
            shared=shared,
        )
        for place, (name, run) in enumerate(_named(runs).items())
    ]


def _named(runs: Sequence[Run]) -> Mapping[str, Run]:
    named: dict[str, Run] = {}
    for run in runs:
        name = name_of(run)
        named[name if name not in named else f"{name} (2)"] = run
    return named


def _split(run: Run) -> SequenceSplit | None:
    try:
        return run.data.split
    except Interrupted:
        raise
    except MmkdError:
        return None
