"""`EmbeddingCache.table` from beginning to end, in this process or in several, for `embed.py`."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import ROOT, BenchmarkError
from mmkd.data import ItemTable
from mmkd.embeddings import EmbeddingCache
from mmkd.encoders import EncoderCard


class TableRun:
    """`EmbeddingCache.table` into a new folder each time, with a model that is loaded before.

    Args:
        card: The encoder's card.
        items: The catalogue.
        folder: Where the caches go.
        batch_size: Inputs through the model at once.
        shard_size: Inputs between two commits.
    """

    def __init__(
        self, card: EncoderCard, items: ItemTable, folder: Path, batch_size: int, shard_size: int
    ) -> None:
        started = time.perf_counter()
        self._encoder = card.build(allow_random_weights=True)
        self.loading_s = time.perf_counter() - started
        self.in_encoder_s: list[float] = []  # of each run
        self._clock = EncoderClock(self._encoder)
        self._card, self._items, self._folders = card, items, _new_folders(folder)
        self._batch_size, self._shard_size = batch_size, shard_size
        self.vectors: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def run(self) -> None:
        """Embeds the catalogue."""
        before = self._clock.seconds
        cache = EmbeddingCache(next(self._folders), shard_size=self._shard_size)
        table = cache.table(
            self._card,
            self._items,
            encoder_factory=lambda: self._encoder,
            batch_size=self._batch_size,
        )
        _require_all(int(table.present.sum()), len(self._items))
        self.vectors = np.asarray(table.vectors[1:])
        self.in_encoder_s.append(self._clock.seconds - before)


class ProcessesRun:
    """The same in several processes on one store, each with its share of the threads."""

    def __init__(
        self,
        card: EncoderCard,
        items: ItemTable,
        folder: Path,
        batch_size: int,
        shard_size: int,
        *,
        processes: int,
        threads: int,
    ) -> None:
        folder.mkdir()
        items.save(folder / "items.parquet")
        share = max(1, threads // processes)
        dumped = json.dumps(card.model_dump(mode="json", exclude_none=True))
        command = [sys.executable, "-m", "benchmarks.embed_worker", dumped]
        command += [str(folder / "items.parquet"), "--threads", str(share)]
        command += ["--batch-size", str(batch_size), "--shard-size", str(shard_size)]
        environment = os.environ | {"OMP_NUM_THREADS": str(share), "RAYON_NUM_THREADS": str(share)}
        self._workers = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        self._folders, self._items = _new_folders(folder), len(items)
        self._answers()

    def run(self) -> None:
        """Embeds the catalogue."""
        folder = next(self._folders)
        for worker in self._workers:
            assert worker.stdin is not None
            print(folder, file=worker.stdin, flush=True)
        for answer in self._answers():
            _require_all(answer["present"], self._items)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.communicate()

    def _answers(self) -> list[dict[str, Any]]:
        found = []
        for worker in self._workers:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                raise BenchmarkError(f"a process ended with status {worker.wait()}; see above.")
            found.append(json.loads(line))
        return found


class EncoderClock:
    """Seconds that an encoder spends in its own methods, whatever calls them."""

    def __init__(self, encoder: Any, *, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._now = now
        self._inside = False
        for name in ("encode", "encode_prepared"):
            if (method := getattr(encoder, name, None)) is not None:
                setattr(encoder, name, self._timed(method))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self._running():
                return method(*arguments, **keywords)

        return timed

    @contextmanager
    def _running(self) -> Iterator[None]:
        if self._inside:  # one method that calls the other counts once
            yield
            return
        self._inside, started = True, self._now()
        try:
            yield
        finally:
            self._inside = False
            self.seconds += self._now() - started


def _new_folders(parent: Path) -> Iterator[Path]:
    return (parent / str(number) for number in itertools.count())


def _require_all(present: int, wanted: int) -> None:
    if present != wanted:
        raise BenchmarkError(f"table() gave {present} of {wanted} vectors.")
