"""The faults' harness: what it finds is told, and what was tried is not tried again."""

import multiprocessing
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fault_train
from benchmarks.faults import Journal, Row
from mmkd.errors import RunError


def test_an_interrupted_list_of_faults_goes_on_where_it_was(tmp_path: Path) -> None:
    row = Row("flip: x")
    row.note("")
    row.note("nothing was told")
    file = tmp_path / "rows.jsonl"
    assert Journal(file).rows("flips", lambda: [row]) == [row]

    def again() -> list[Row]:
        raise AssertionError("tried again")

    assert Journal(file).rows("flips", again) == [row]
    assert (row.tried, row.survived) == (2, 1)
    with pytest.raises(AssertionError):
        Journal(file).rows("kills", again)


def test_a_flip_changes_one_bit_and_is_put_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(sound := bytes(range(64)))
    back = fault_train.flipped(file, np.random.default_rng(0))
    changed = np.frombuffer(file.read_bytes(), np.uint8) ^ np.frombuffer(sound, np.uint8)
    assert int(np.unpackbits(changed).sum()) == 1
    back()
    assert file.read_bytes() == sound


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process, which has its imports."""
    monkeypatch.setattr(fault_train, "PROCESSES", multiprocessing.get_context("fork"))


def _writes(folder: Path) -> None:
    for name in ("small", "large"):
        (folder / name).touch()
        (folder / name).write_bytes(bytes(64 if name == "small" else 65))


def _does_without(folder: Path) -> None:
    with suppress(OSError):
        _writes(folder)


def _wrong() -> None:
    raise KeyError("a fault of the program")


def _refused() -> None:
    raise RunError("x: is no run")


@pytest.mark.parametrize("file, files", [(0, {"small": 64, "large": 64}), (2, {"large": 65})])
@pytest.mark.usefixtures("forked")
def test_the_disk_is_full_from_a_file_on(tmp_path: Path, file: int, files: dict[str, int]) -> None:
    log = tmp_path / "log"
    status = fault_train.ended(fault_train.start(partial(_writes, tmp_path), log=log, full_at=file))
    assert {name: (tmp_path / name).stat().st_size for name in files} == files
    assert status == (0 if file == 2 else fault_train.TOLD)
    assert (fault_train.FULL in log.read_text("utf-8")) == (file == 0)


@pytest.mark.usefixtures("forked")
def test_who_can_do_without_a_file_is_told_from_who_wrote_none(tmp_path: Path) -> None:
    act, log = partial(_does_without, tmp_path), tmp_path / "log"
    assert fault_train.ended(fault_train.start(act, log=log, full_at=1)) == fault_train.SPARED
    assert fault_train.ended(fault_train.start(act, log=log, full_at=2)) == 0


@pytest.mark.usefixtures("forked")
def test_a_traceback_is_no_message(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert fault_train.ended(fault_train.start(_wrong, log=log)) == fault_train.TRACEBACK
    assert fault_train.ended(fault_train.start(_refused, log=log)) == fault_train.TOLD
    assert "x: is no run" in log.read_text("utf-8")
