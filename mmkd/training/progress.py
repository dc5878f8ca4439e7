"""What is told of a training run while it runs: on the screen, to trackers, and in its records."""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from mmkd.errors import TrainingError

_console = Console(stderr=True, soft_wrap=True)


class EpochProgress:
    """A progress bar over one epoch's batches; silent where stderr is no terminal.

    Args:
        batches: Batches an epoch.
        epoch: From 0.
        of: Epochs in all.
        first: Batches already done, in a resumed epoch.
        shown: False on all processes but the main one.
    """

    def __init__(self, batches: int, *, epoch: int, of: int, first: int, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
            disable=not (shown and _console.is_terminal),
        )
        self._task = self._progress.add_task(
            f"epoch {epoch + 1}/{of}", total=batches, completed=first, loss="-"
        )

    def __enter__(self) -> "EpochProgress":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, sums: Mapping[str, Tensor], done: int) -> None:
        """One more batch is done; ``sums`` are the losses summed over the epoch so far."""
        if self._progress.disable:
            return  # reading a loss would wait for the device
        loss = f"{float(sums['total']) / max(1, done):.4f}"
        self._progress.update(self._task, completed=done, loss=loss)


def print_record(record: Mapping[str, Any], metric: str, *, best: bool) -> None:
    """Print one epoch's record as a line."""
    losses = "  ".join(f"{k} {v:.4f}" for k, v in record["losses"].items())
    valid = record.get("valid", {})
    shown = {k: v for k, v in valid.items() if k == metric or k.startswith("retention")}
    metrics = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
    mark = " *" if best and valid else ""
    seconds = record["train_seconds"] + record["valid_seconds"]
    _console.print(
        f"epoch {record['epoch'] + 1:>3}  {seconds:6.1f} s  {losses}  |  {metrics}{mark}",
        highlight=False,
    )


# ---- trackers


def check_installed(trackers: Sequence[str]) -> None:
    """Raise TrainingError where a tracker isn't installed; Accelerate would just leave it out."""
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [tracker for tracker in trackers if tracker not in available]:
        packages = " ".join(name.replace("_", "-") for name in missing)
        raise TrainingError(
            f"training.trackers: {', '.join(missing)} is not installed; run pip install "
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


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """A nested configuration by dotted key; TensorBoard takes numbers and texts only."""
    found: dict[str, int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat_config(value, f"{prefix}{key}.")
        elif isinstance(value, int | float | str):
            found[f"{prefix}{key}"] = value
        else:
            found[f"{prefix}{key}"] = json.dumps(value, default=str)
    return found


def flat_record(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested record, keyed by path such as ``losses/total``."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat_record(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers


# ---- figures


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Gradient norm of each table and of each other top-level part, to see who pulls where."""
    squares: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            depth = 4 if ".members." in name else 2  # a part of each member, or of the objective
            key = name if "table" in name else ".".join(name.split(".")[:depth])
            square = parameter.grad.detach().float().square().sum()
            squares[key] = squares[key] + square if key in squares else square
    return {key: float(square.sqrt()) for key, square in squares.items()}


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far (Linux and macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
