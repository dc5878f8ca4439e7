"""What sweeps tried, on one page: which options mattered, every trial, the best.

From what a sweep has found (``Sweep``) to one HTML file, as a report of runs is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmkd.errors import RunError
from mmkd.report.page import render, write_page
from mmkd.terminal import printable

if TYPE_CHECKING:
    from mmkd.pipeline.study import Dimension, Sweep, Trial

Record = dict[str, Any]


def write_sweep_report(sweeps: "Sequence[Sweep]", path: Path | str) -> Path:
    """Write a report of one sweep, or of several recipes' beside each other.

    Args:
        sweeps: What they found, of ``read_sweep``; they may be running still.
        path: The file to write.

    Returns:
        The file.

    Raises:
        MmkdError: ``mmkd[report]`` is not installed.
        RunError: There is no sweep, or the file cannot be written.
    """
    if not sweeps:
        raise RunError("there is no sweep to report on; run mmkd sweep")
    return write_page(Path(path), lambda: render("sweep.html", lambda: _content(sweeps)))


def _content(sweeps: "Sequence[Sweep]") -> Mapping[str, object]:
    return {
        "sweeps": [_told(one) for one in sweeps],
        "course": [row for one in sweeps for row in course(one)],
    }


def course(sweep: "Sweep") -> list[Record]:
    """A row a complete trial: name, number (from 1) and the best until then."""
    rows, best = [], None
    for trial in sweep.trials:
        if trial.value is not None:
            best = trial.value if best is None else max(best, trial.value)
            row = {"name": printable(sweep.name), "number": trial.number + 1, "best": best}
            rows.append(row)
    return rows


def points(sweep: "Sweep", dimension: "Dimension") -> list[Record]:
    """A row a trial that was not cut short by a failure: what was chosen, and what came of it."""
    rows = []
    for trial in sweep.trials:
        value = trial.value if trial.value is not None else trial.so_far
        chosen = _chosen(trial).get(dimension.key)
        if value is not None and chosen is not None:
            rows.append(
                {
                    "at": printable(chosen) if dimension.kind == "choice" else float(chosen),
                    "value": value,
                    "state": trial.state,
                    "number": trial.number + 1,
                }
            )
    return rows


def _told(sweep: "Sweep") -> Record:
    best, states = sweep.best, [trial.state for trial in sweep.trials]
    recipe = sweep.folder / "best.yaml"
    return {
        "name": printable(sweep.name),
        "metric": sweep.metric,
        "best": None if best is None else best.value,
        "chosen": "" if best is None else printable(", ".join(best.overrides)),
        "pruned": states.count("pruned"),
        "failed": states.count("failed"),
        "seconds": sum(trial.seconds for trial in sweep.trials),
        "importance": [
            {"name": printable(name), "value": value}
            for name, value in (sweep.importance or {}).items()
        ],
        "options": [
            {
                "key": printable(one.key),
                "kind": one.kind,
                "within": [printable(v) if isinstance(v, str) else v for v in one.values],
                "rows": points(sweep, one),
            }
            for one in sweep.space
        ],
        "rows": [_row(trial, best) for trial in sweep.trials],
        "recipe": printable(recipe.read_text("utf-8"), keep="\n") if recipe.is_file() else None,
    }


def _row(trial: "Trial", best: "Trial | None") -> Record:
    return {
        "number": trial.number + 1,
        "value": trial.value if trial.value is not None else trial.so_far,
        "state": trial.state,
        "error": printable(trial.error),
        "chosen": {printable(k): printable(v) for k, v in _chosen(trial).items()},
        "epochs": trial.epochs,
        "seconds": trial.seconds,
        "best": trial == best,
    }


def _chosen(trial: "Trial") -> dict[str, str]:
    """What a trial chose, by option."""
    parts = (text.partition("=") for text in trial.overrides)
    return {key: value for key, _, value in parts}
