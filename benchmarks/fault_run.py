"""One store that is killed, damaged and doubled by `embed_faults.py`, and what each came to."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.embed_run import BATCH, embed
from benchmarks.store_damage import leave_temporary
from mmkd.embeddings import EmbeddingTable

_POLL_S = 0.003
_LIMIT_S = 300.0
# a new process is forked from one that has imported everything: kills then meet the run itself
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks.embed_run"])
_AT_START = 5  # one kill in so many comes before the encoder has begun


@dataclass(frozen=True)
class Event:
    """One run and what came of it.

    Attributes:
        moment: When it was killed, or what had been done to the store before it.
        encoded: Items it encoded.
        again: Those among them that an earlier run had encoded.
        allowed: How many that may be.
        committed: Items in sound shards after it.
        outcome: How it ended, and how the store was left.
        fault: What is wrong; empty if nothing is.
    """

    moment: str
    encoded: int
    again: int
    allowed: int
    committed: int
    outcome: str
    fault: str = ""


class FaultRun:
    """One store and all that happens to it.

    Args:
        folder: Where the stores and the log go.
        items: Size of the catalogue.
        shard_size: Items between two commits.
        pause_s: Seconds that the encoder spends on an item.
        seed: Of the moments and the damage.
        padding: See `benchmarks.embed_run.LoggedText`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        items: int,
        shard_size: int,
        pause_s: float,
        seed: int,
        padding: bool = False,
    ) -> None:
        self._items, self._shard_size, self._pause_s = items, shard_size, pause_s
        self._run: dict[str, Any] = {"items": items, "shard_size": shard_size, "padding": padding}
        self._cache, self._log = folder / "cache", folder / "log.txt"
        self._log.touch()
        self._read_to = 0
        self._ever: set[str] = set()
        self._known: set[Path] = set()  # what earlier kills left behind
        self._startup_s: list[float] = []
        self._draw = np.random.default_rng(seed)
        clean = embed(folder / "clean", None, **self._run)
        self.wanted = np.asarray(clean.vectors[:]), clean.present
        self.events: list[Event] = []

    def kill(self, kills: int) -> None:
        """Starts the run and kills it, ``kills`` times."""
        for kill in range(kills):
            before = self._committed()
            process, started = self._start(), time.monotonic()
            if kill % _AT_START == _AT_START - 1:
                wait_s = float(self._draw.uniform(0, min(self._startup_s, default=1.0)))
                moment = f"{wait_s:.2f} s after its start"
                time.sleep(wait_s)
            else:
                left = self._items - len(before)
                most = min(1.8 * self._items / kills, 0.8 * left)  # so that no run gets to its end
                count = 1 + int(self._draw.uniform(0, most))
                # past the batch, so that some kills meet a commit
                delay_s = float(self._draw.uniform(0, 2 * BATCH * self._pause_s + 0.01))
                moment = f"{count} items and {1e3 * delay_s:.0f} ms"
                self._startup_s.append(self._wait(process, count, started))
                time.sleep(delay_s)
            process.kill()
            process.join()
            died = process.exitcode == -9
            self._record(f"kill {kill + 1}: {moment}", before, died=died)

    def finish(self) -> None:
        """Lets a run come to its end, and compares."""
        before = self._committed()
        self._embed()
        self._record("none", before, compare=True)

    def damage(self, name: str, spoil: Callable[[Path, np.random.Generator], None]) -> None:
        """Damages a shard (given its vector file), runs to the end, and compares."""
        before = self._committed()
        shards = self._shards()
        vectors = shards[int(self._draw.integers(len(shards)))]
        held = _item_ids(vectors.with_suffix(".parquet"))
        spoil(vectors, self._draw)
        self._embed()
        lost = set() if spoil is leave_temporary else held
        self._record(name, before - lost, exactly=lost, compare=True)

    def two_writers(self, *, kill_one: bool) -> None:
        """Removes half the shards and lets two processes encode them at once."""
        before = self._committed()
        for vectors in self._shards()[::2]:
            vectors.with_suffix(".parquet").unlink()
            vectors.unlink()
        kept = self._committed()
        first, second = self._start(), self._start()
        if kill_one:
            self._wait(first, max(1, len(before - kept) // 3), time.monotonic())
            first.kill()
        for process in (first, second):
            process.join(_LIMIT_S)
        died = kill_one and first.exitcode == -9
        failed = second.exitcode or (first.exitcode and not died)
        name = "two writers at once" + (", the first killed" if kill_one else "")
        removed = before - kept
        self._record(
            name,
            kept,
            exactly=None if kill_one else removed,
            extra=len(removed),
            compare=True,
            died=died,
            fault=f"exit status {first.exitcode}, {second.exitcode}" if failed else "",
        )

    def _record(
        self,
        moment: str,
        sound: set[str],
        *,
        exactly: set[str] | None = None,
        extra: int = 0,
        compare: bool = False,
        died: bool = False,
        fault: str = "",
    ) -> None:
        encoded = self._new_lines()
        again = len(encoded) - len(set(encoded) - self._ever)
        self._ever |= set(encoded)
        faults = [fault] if fault else []
        allowed = len(exactly) if exactly is not None else self._shard_size + extra
        if again > allowed:
            faults.append(f"{again} items encoded again")
        if exactly is not None and Counter(encoded) != Counter(exactly):
            faults.append("encoded other items than the damaged")
        if spared := set(encoded) & sound:
            faults.append(f"{len(spared)} items encoded that were committed and sound")
        after = self._committed()
        if lost := sound - after:
            faults.append(f"{len(lost)} committed items lost")
        outcome = self._left_behind() if died else "ran to its end"
        if died:
            faults += self._altered()
        if compare:
            faults += self._differences()
            outcome += ", every vector equal" if not faults else ""
        event = Event(moment, len(encoded), again, allowed, len(after), outcome, "; ".join(faults))
        self.events.append(event)

    def _differences(self) -> list[str]:
        """How the store's table differs from the clean run's, bit for bit; encodes nothing."""
        size = self._log.stat().st_size
        table = self._embed()
        vectors, present = self.wanted
        found = np.asarray(table.vectors[:])
        faults = []
        if found.shape != vectors.shape or not np.array_equal(table.present, present):
            return [f"shape {found.shape}, {int(table.present.sum())} present"]
        different = (found.view(np.uint32) != vectors.view(np.uint32)).any(axis=1)
        if different.any():
            faults.append(f"{int(different.sum())} vectors differ")
        if self._log.stat().st_size != size:
            faults.append("a complete table was encoded again")
        return faults

    def _altered(self) -> list[str]:
        """How many committed vectors are not those of the clean run, bit for bit."""
        different = 0
        for path in self._shards():
            if not (records := path.with_suffix(".parquet")).exists():
                continue
            items = pl.read_parquet(records.read_bytes()).sort("row")["item_id"]
            wanted = self.wanted[0][[int(item) + 1 for item in items]].view(np.uint32)
            different += int((np.load(path).view(np.uint32) != wanted).any(axis=1).sum())
        return [f"{different} committed vectors differ"] if different else []

    def _embed(self) -> EmbeddingTable:
        return embed(self._cache, self._log, **self._run)

    def _start(self) -> BaseProcess:
        process = _PROCESSES.Process(
            target=embed,
            args=(self._cache, self._log),
            kwargs={**self._run, "pause_s": self._pause_s},
        )
        process.start()
        return process

    def _wait(self, process: BaseProcess, count: int, started: float) -> float:
        """Waits until the log has grown by ``count`` items; seconds to the first of them."""
        first_s = 0.0
        while process.is_alive() and time.monotonic() - started < _LIMIT_S:
            with self._log.open("rb") as log:
                log.seek(self._read_to)
                grown = log.read().count(b"\n")
            if grown and not first_s:
                first_s = time.monotonic() - started
            if grown >= count:
                break
            time.sleep(_POLL_S)
        return first_s or time.monotonic() - started

    def _new_lines(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            lines = log.read().decode().splitlines()
            self._read_to = log.tell()
        return lines

    def _shards(self) -> list[Path]:
        return sorted(self._cache.glob("*/shards/[0-9]*.npy"))

    def _committed(self) -> set[str]:
        """Items in shards with records and vectors, read without the cache's code."""
        paths = self._cache.glob("*/shards/[0-9]*.parquet")
        found: set[str] = set()
        return found.union(*(_item_ids(p) for p in paths if p.with_suffix(".npy").exists()))

    def _left_behind(self) -> str:
        files = set(self._cache.glob("*/shards/*")) | set(self._cache.glob("*/shards/.*.tmp"))
        new, self._known = files - self._known, files
        if any(path.suffix == ".tmp" for path in new):
            return "killed while it wrote a file"
        lone = [p for p in new if p.suffix == ".npy" and not p.with_suffix(".parquet").exists()]
        return "killed between vectors and records" if lone else "killed"


def _item_ids(records: Path) -> set[str]:
    try:
        return set(pl.read_parquet(records.read_bytes(), columns=["item_id"])["item_id"])
    except (OSError, pl.exceptions.PolarsError):
        return set()
