"""What is told of a training run while it runs: on the screen, to trackers, and in its records."""

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)
from torch import Tensor, nn

from mmkd.errors import TrainingError
from mmkd.student.rows import TableShards
from mmkd.terminal import console, printable
from mmkd.training.rows import held


class TrainingProgress:
    """What is said of a training: a bar for a person, a line now and then for a log.

    An epoch ends in one line wherever it goes; off a terminal lines begin with a clock, and a long
    epoch has one every half minute too. A line has at most 120 characters: the parts of
    the loss and all figures are in ``history.json``.

    Args:
        batches: Batches an epoch.
        epochs: Epochs in all.
        metric: What selects the best epoch.
        shown: False on all processes but the main one.
        line_every_s: Least time between two lines within epochs, off a terminal.
    """

    def __init__(
        self,
        batches: int,
        *,
        epochs: int,
        metric: str,
        shown: bool,
        line_every_s: float = 30.0,
    ) -> None:
        self._console = console(stderr=True, soft_wrap=True)
        self._batches = batches
        self._epochs = epochs
        self._metric = metric
        self._shown = shown
        self._line_every_s = line_every_s
        self._best = ""
        self._epoch_s: list[float] = []  # of the whole epochs that this process saw
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._epoch = self._first = 0
        self._began = self._told = time.monotonic()

    def resumed(self, history: Sequence[Mapping[str, Any]], best: int, *, step: int) -> None:
        """A checkpoint was read: so many epochs are recorded, and so many batches of the next done.

        Args:
            history: A record an epoch.
            best: The best one, from 0; -1 where none is.
            step: Batches of the next epoch that are done.
        """
        if best >= 0:
            self._note_best(history[best])
        self._say(f"continuing at epoch {len(history) + 1}, step {step + 1} of {self._batches}")

    @contextmanager
    def epoch(self, epoch: int, *, first: int) -> Iterator[None]:
        """Around the batches of an epoch.

        Args:
            epoch: From 0.
            first: Batches already done, in a resumed epoch.
        """
        self._epoch, self._first = epoch, first
        self._began = self._told = time.monotonic()
        if not (self._shown and self._console.is_terminal):
            yield
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            console=self._console,
            transient=True,
        )
        name = f"epoch {epoch + 1} of {self._epochs}"
        self._task = self._bar.add_task(name, total=self._batches, completed=first, told="")
        with self._bar:
            yield
        self._bar = None

    def advance(self, sums: Mapping[str, Tensor], done: int) -> None:
        """One more batch is done; ``sums`` are the losses summed over the epoch so far."""
        if not self._shown:
            return
        now = time.monotonic()
        # reading a loss waits for the device, so not at every batch
        if now - self._told < (_BAR_EVERY_S if self._bar else self._line_every_s):
            return
        self._told = now
        best = f"{self._metric} {self._best}" if self._best else ""
        parts = [f"loss {float(sums['total']) / max(1, done):.4f}", best]
        parts.append(f"{_duration(self._left_s(done, now))} left")
        told = "  ".join(filter(None, parts))
        if self._bar:
            self._bar.update(self._task, completed=done, told=told)
        else:
            where = f"epoch {self._epoch + 1} of {self._epochs}, batch {done} of {self._batches}"
            self._say(f"{where}  {told}")

    def closed(self, record: Mapping[str, Any], *, best: bool) -> None:
        """An epoch is done: its record, and whether it is the best so far."""
        seconds = record["train_seconds"] + record["valid_seconds"]
        self._epoch_s.append(seconds)
        valid = record.get("valid", {})
        if best and valid:
            self._note_best(record)
        left = (self._epochs - record["epoch"] - 1) * _mean(self._epoch_s)
        loss = f"loss {record['losses']['total']:.4f}"
        metric = f"{self._metric} {valid[self._metric]:.4f}" if self._metric in valid else ""
        so_far = "" if not metric else "(the best)" if best else f"({self._best})"
        time_left = f"{_duration(left)} left" if left else ""
        parts = [
            f"epoch {record['epoch'] + 1} of {self._epochs}",
            loss,
            " ".join(filter(None, (metric, so_far))),
            _kept(valid),
            ", ".join(filter(None, (_duration(seconds), time_left))),
        ]
        line = "  ".join(filter(None, parts))
        if len(line) > _WIDTH - _CLOCK:  # many modalities: history.json has them
            line = "  ".join(filter(None, [*parts[:3], parts[4]]))
        self._told = time.monotonic()
        self._say(line)

    def _note_best(self, record: Mapping[str, Any]) -> None:
        value = record["valid"][self._metric]
        self._best = f"best {value:.4f} in epoch {record['epoch'] + 1}"

    def _left_s(self, done: int, now: float) -> float:
        """Seconds left, by the pace of this epoch and of those before it."""
        pace = (now - self._began) / max(1, done - self._first)
        whole = _mean(self._epoch_s) or pace * self._batches
        return pace * (self._batches - done) + whole * (self._epochs - self._epoch - 1)

    def _say(self, line: str) -> None:
        if self._shown:
            clock = "" if self._console.is_terminal else f"{datetime.now():%H:%M:%S}  "
            self._console.print(printable(f"{clock}{line}"[:_WIDTH]))


_WIDTH = 120  # of a line, its clock included
_CLOCK = len("00:00:00  ")
_BAR_EVERY_S = 0.2


def _kept(valid: Mapping[str, float]) -> str:
    """Retention in short, such as ``kept text 0.98 image 0.97``: the Spearman correlations."""
    figures = {
        name.removeprefix("retention.").removesuffix(".spearman"): value
        for name, value in valid.items()
        if name.startswith("retention.") and name.endswith(".spearman")
    }
    return " ".join(["kept", *(f"{k} {v:.2f}" for k, v in figures.items())]) if figures else ""


def _duration(seconds: float) -> str:
    """A duration for a person: ``0.3 s``, ``42 s``, ``4 min``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# ---- trackers


def check_installed(trackers: Sequence[str]) -> None:
    """Raise TrainingError where a tracker isn't installed; Accelerate would just leave it out."""
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [tracker for tracker in trackers if tracker not in available]:
        packages = " ".join(name.replace("_", "-") for name in missing)
        raise TrainingError(
            f"trackers: {', '.join(missing)} is not installed; run pip install "
            f"{packages}, or leave it out"
        )


def start_trackers(
    accelerator: Accelerator, *, name: str, config: Mapping[str, Any], folder: Path
) -> None:
    """Start the accelerator's trackers.

    Args:
        accelerator: Of ``Trainer.accelerator``.
        name: Of the run.
        config: What is run, such as a whole recipe, nested as it may be.
        folder: Gets the files of those that would write theirs into the working folder.
    """
    accelerator.init_trackers(
        name,
        config=flat_config(config),
        init_kwargs={
            "dvclive": {"dir": str(folder / "dvclive")},
            "swanlab": {"logdir": str(folder / "swanlog")},
            "wandb": {"dir": str(folder)},
        },
    )


def flat_config(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """A nested configuration by dotted key; TensorBoard takes numbers and texts only."""
    return {
        key: value if isinstance(value, int | float | str) else json.dumps(value, default=str)
        for key, value in leaves(config, ".")
    }


def flat_record(record: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a nested record, keyed by path such as ``losses/total``."""
    return {k: float(v) for k, v in leaves(record, "/") if isinstance(v, int | float)}


def leaves(record: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    """What lies innermost in a nested record, an empty mapping too, each with the path to it."""
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            for path, leaf in leaves(value, separator):
                yield f"{key}{separator}{path}", leaf
        else:
            yield str(key), value


# ---- figures


def gradient_norms(module: nn.Module, *, shards: TableShards | None = None) -> dict[str, float]:
    """Gradient norm of each table and of each other top-level part, to see who pulls where.

    Args:
        module: With gradients.
        shards: Over which the tables lie, whose gradients are the sparse ones; None = here.
    """
    squares: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            depth = 4 if ".members." in name else 2  # a part of each member, or of the objective
            key = name if "table" in name else ".".join(name.split(".")[:depth])
            square = held(parameter.grad.detach()).float().square().sum()
            if shards is not None and parameter.grad.is_sparse:
                square = shards.total(square)
            squares[key] = squares[key] + square if key in squares else square
    return {key: float(square.sqrt()) for key, square in squares.items()}


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far (Linux and macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
