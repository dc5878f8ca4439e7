"""Processes that encode for one store together, with an encoder that shows what it was given."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from embeddings.fakes import TEXTS, BatchBoundText, FakeText, card, catalogue, never

from mmkd import EmbeddingCache, EmbeddingTable
from mmkd.data.items import Column
from mmkd.embeddings.chunks import cut
from mmkd.embeddings.inputs import Work, WorkList

ROOT = Path(__file__).parents[2]
TEXTS_60: list[str | None] = [f"text number {n}" for n in range(60)]


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = {**os.environ, "FAKE_LOG": str(log), "PYTHONPATH": paths}
    program = Path(__file__).with_name("joint_run.py")
    return subprocess.Popen([sys.executable, str(program), str(folder)], env=environment)


def opened(folder: Path) -> EmbeddingTable:
    cache = EmbeddingCache(folder, shard_size=8)
    return cache.table(card(), catalogue(TEXTS_60), encoder_factory=never)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingTable:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "alone.txt"))
    cache = EmbeddingCache(tmp_path / "alone", shard_size=8)
    return cache.table(card(), catalogue(TEXTS_60), encoder_factory=BatchBoundText)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(
    tmp_path: Path, alone: EmbeddingTable, processes: int
) -> None:
    log = tmp_path / "log.txt"
    running = [start(tmp_path / "joint", log) for _ in range(processes)]
    assert [process.wait(60) for process in running] == [0] * processes
    encoded = log.read_text().splitlines()
    assert len(encoded) == len(set(encoded)) == 60
    assert opened(tmp_path / "joint").vectors[:].tobytes() == alone.vectors[:].tobytes()


def test_what_a_killed_process_claimed_is_taken_over(tmp_path: Path, alone: EmbeddingTable) -> None:
    log = tmp_path / "log.txt"
    log.touch()
    running = [start(tmp_path / "joint", log) for _ in range(2)]
    while len(log.read_text().splitlines()) < 16:
        time.sleep(0.005)
    running[0].kill()
    assert running[0].wait(10) == -9
    assert running[1].wait(60) == 0
    assert len(log.read_text().splitlines()) <= 60 + 8
    assert opened(tmp_path / "joint").vectors[:].tobytes() == alone.vectors[:].tobytes()


def chunks(work: list[Work]) -> list[tuple[str, list[Work]]]:
    columns = (
        [one.key for one in work],
        [one.item_id for one in work],
        [one.source for one in work],
    )
    found = cut(WorkList(*(Column(pl.Series(values), str) for values in columns)), size=8)
    return [(chunk.name, list(chunk.work)) for chunk in found]


def test_chunks_do_not_depend_on_order_or_on_chunks_that_are_done() -> None:
    work = [Work(f"{n:032x}", f"i{n}", "☃" * (n % 7)) for n in range(50)]
    found = chunks(work)
    ordered = sorted(work, key=lambda item: (-len(str(item.source)), item.key))
    assert [item for _, part in found for item in part] == ordered
    assert [len(part) for _, part in found] == [8] * 6 + [2]
    random.Random(0).shuffle(work)
    assert chunks(work) == found
    done = [*found[0][1], *found[3][1]]
    left = [item for item in work if item not in done]
    assert chunks(left) == [found[1], found[2], *found[4:]]


def test_after_a_change_of_ten_items_ten_are_encoded(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    changed = [f"changed {n}" for n in range(10)]
    encoder = FakeText()
    table = cache.table(card(), catalogue([*changed, *TEXTS[10:]]), encoder_factory=lambda: encoder)
    assert sorted(encoder.seen) == changed
    assert np.flatnonzero(~table.present).tolist() == [0]
