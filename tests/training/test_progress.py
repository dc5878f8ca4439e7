"""What is said of a training while it runs."""

import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training.tiny import TinyRun

from mmkd.errors import TrainingInterrupted
from mmkd.training.progress import TrainingProgress

CLOCK = re.compile(r"\d\d:\d\d:\d\d  ")


class Time:
    """A clock that a test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("mmkd.training.progress.time", clock)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Of a log, each without the clock that it must begin with."""
    found = capsys.readouterr().err.splitlines()
    assert all(CLOCK.match(line) and len(line) <= 120 for line in found), found
    return [CLOCK.sub("", line, count=1) for line in found]


def record(epoch: int, value: float | None, *, seconds: float = 10.0, **more: float) -> Any:
    valid = {} if value is None else {"valid": {"NDCG@10": value, "HR@10": 0.5, **more}}
    losses = {"total": 4.25, "recommendation": 4.0, "holistic.text": 0.25}
    return {
        "epoch": epoch,
        "losses": losses,
        "train_seconds": seconds - 1,
        "valid_seconds": 1.0,
        **valid,
    }


def test_an_epoch_ends_in_a_line_with_the_best_so_far_and_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = TrainingProgress(40, epochs=20, metric="NDCG@10", shown=True)
    kept = {"retention.text.spearman": 0.981, "retention.text.recall@10": 0.5}
    progress.closed(record(0, 0.25, **kept), best=True)
    progress.closed(record(1, 0.125, seconds=20, **kept), best=False)
    progress.closed(record(2, None, seconds=30), best=False)
    progress.closed(record(19, 0.5, seconds=20), best=True)
    assert lines(capsys) == [
        "epoch 1 of 20  loss 4.2500  NDCG@10 0.2500 (the best)  kept text 0.98  10 s, 3 min left",
        "epoch 2 of 20  loss 4.2500  NDCG@10 0.1250 (best 0.2500 in epoch 1)  kept text 0.98  "
        "20 s, 4 min left",  # 18 epochs at 15 s
        "epoch 3 of 20  loss 4.2500  30 s, 6 min left",
        "epoch 20 of 20  loss 4.2500  NDCG@10 0.5000 (the best)  20 s",
    ]


def test_a_long_epoch_tells_every_half_minute_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Time(monkeypatch)
    progress = TrainingProgress(100, epochs=3, metric="NDCG@10", shown=True)
    with progress.epoch(0, first=0):
        for done in range(1, 101):
            clock.now += 1.0
            progress.advance({"total": torch.tensor(2.0 * done)}, done)
    progress.closed(record(0, 0.25, seconds=110), best=True)
    with progress.epoch(1, first=60):
        for done in range(61, 101):
            clock.now += 2.0
            progress.advance({"total": torch.tensor(3.0 * done)}, done)
    assert lines(capsys) == [
        "epoch 1 of 3, batch 30 of 100  loss 2.0000  4 min left",  # 70 s and two epochs of 100 s
        "epoch 1 of 3, batch 60 of 100  loss 2.0000  4 min left",
        "epoch 1 of 3, batch 90 of 100  loss 2.0000  4 min left",
        "epoch 1 of 3  loss 4.2500  NDCG@10 0.2500 (the best)  2 min, 4 min left",
        "epoch 2 of 3, batch 75 of 100  loss 3.0000  NDCG@10 best 0.2500 in epoch 1  3 min left",
        "epoch 2 of 3, batch 90 of 100  loss 3.0000  NDCG@10 best 0.2500 in epoch 1  2 min left",
    ]


def test_a_line_stays_short_however_many_teachers_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metric = "retention.a-modality-with-a-long-name.recall@10"
    kept = {f"retention.modality-{n}.spearman": 0.5 for n in range(20)} | {metric: 0.25}
    progress = TrainingProgress(40, epochs=20, metric=metric, shown=True)
    progress.closed(record(0, 0.25, **kept), best=True)
    progress.closed(record(1, 0.25, **kept), best=False)
    for line in lines(capsys):  # which measures them
        assert metric in line and "modality-7" not in line


def test_processes_beside_the_first_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(4, epochs=2, metric="NDCG@10", shown=False, line_every_s=0.0)
    progress.resumed([record(0, 0.5)], 0, step=3)
    with progress.epoch(0, first=0):
        progress.advance({"total": torch.tensor(1.0)}, 1)
    progress.closed(record(0, 0.5), best=True)
    assert capsys.readouterr().err == ""


def test_a_resumed_training_says_where_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(batch: int) -> None:
        if batch == 6:  # in the second epoch
            signal.raise_signal(signal.SIGINT)

    stopped = TinyRun(tmp_path, {}, before_batch=interrupt)
    with pytest.raises(TrainingInterrupted):
        stopped.fit()
    [first] = lines(capsys)
    assert first.startswith("epoch 1 of 3  loss ") and "(the best)" in first
    resumed = TinyRun(tmp_path, {})
    report = resumed.fit(resume=True)
    said = lines(capsys)
    per_epoch = (stopped.batches + resumed.batches) // 3
    assert stopped.batches == 7 and said[0] == (
        f"continuing at epoch 2, step {7 - per_epoch + 1} of {per_epoch}"
    )
    assert [line.split("  ")[0] for line in said[1:]] == ["epoch 2 of 3", "epoch 3 of 3"]
    assert TinyRun(tmp_path, {}).fit(resume=True).history == report.history
    assert lines(capsys) == []  # nothing was left to do
