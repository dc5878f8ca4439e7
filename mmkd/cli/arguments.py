"""Arguments that several commands share, and a run's name to its folder."""

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="A recipe's path or name (mmkd ls recipes).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, such as training.lr=1e-3.")
]
RunName = Annotated[str, typer.Argument(help="A run's folder or name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start the run anew.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept.", envvar="MMKD_RUNS")]
RUNS = Path("runs")


def find_run(name: str, runs: Path) -> Path:
    """A run's folder from its path or its name below ``runs``."""
    from mmkd.errors import RunError
    from mmkd.runs.folder import RunFolder, run_folders

    for path in (Path(name), runs / name):
        if RunFolder(path).started:
            return path
    known = [run.path.name for run in run_folders(runs)]
    raise RunError(
        f"no run {name} (looked at {name} and {runs / name}); "
        f"runs there are: {', '.join(known) or 'none'}"
    )
