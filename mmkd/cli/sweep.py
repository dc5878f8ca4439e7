"""The command that searches a recipe's options on validation: sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmkd.cli.arguments import RUNS, AsJson, Overrides, RecipeName, Runs, planned

if TYPE_CHECKING:
    from mmkd.pipeline.sweep import Trial


def sweep(
    recipe: RecipeName,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="How many in all.")] = 30,
    jobs: Annotated[int, typer.Option(min=1, help="How many at once; each has its cores.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/NAME-sweep.")] = None,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Search options on validation: 'training.lr=log(1e-4,1e-2)' 'training.batch_size=128,256'.

    A range is log(a,b), uniform(a,b) or int(a,b); several values are parted by commas; anything
    else is an override of every trial. The same command goes on with a sweep that was stopped. No
    trial reads the test set.
    """
    from mmkd.cli import show
    from mmkd.cli.progress import note
    from mmkd.pipeline.sweep import parted, trial_folder
    from mmkd.pipeline.sweep import sweep as run_sweep

    _, fixed = parted(overrides or [])
    plan = planned(recipe, fixed)
    folder = out or runs / f"{plan.recipe.name}-sweep"

    def announce(trial: "Trial") -> None:
        found = f"{trial.value:.4f}" if trial.value is not None else f"failed: {trial.error}"
        note(f"trial {trial.number + 1} of {trials}: {found}  {' '.join(trial.overrides)}")

    ended = run_sweep(
        recipe,
        overrides or [],
        folder=folder,
        trials=trials,
        jobs=jobs,
        seed=seed,
        announce=announce,
    )
    if json:
        show.as_json({"folder": str(folder), "trials": [vars(trial) for trial in ended]})
        return
    best = sorted(ended, key=lambda trial: -(trial.value or 0.0))
    keys = [text.partition("=")[0].rpartition(".")[2] for text in best[0].overrides]
    show.rows(
        ("trial", "validation", *keys, "seconds"),
        [
            [
                str(trial.number + 1),
                "failed" if trial.value is None else f"{trial.value:.4f}",
                *(text.partition("=")[2] for text in trial.overrides),
                f"{trial.seconds:.0f}",
            ]
            for trial in best[:10]
        ],
    )
    tested = trial_folder(folder, best[0].number)
    typer.echo(
        f"Next: mmkd evaluate {tested}, the test of the best; or mmkd train {folder / 'best.yaml'}"
    )
