"""Arguments that several commands share; from names to a run's folder and to a recipe's plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmkd.config.plan import Plan

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
    from mmkd.runs.folder import find_run as find

    return find(name, runs).path


def planned(recipe: str, overrides: Sequence[str] | None = None) -> "Plan":
    """Read and plan a recipe; keys in an old spelling are told on standard error."""
    from mmkd.cli.progress import note
    from mmkd.config.plan import plan
    from mmkd.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    for line in loaded.notices:
        note(line)
    return plan(loaded)
