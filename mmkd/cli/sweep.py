"""The command that searches recipes' options on validation: sweep."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmkd.cli.arguments import RUNS, AsJson, Runs, planned
from mmkd.errors import RunError

if TYPE_CHECKING:
    from mmkd.pipeline.study import Sweep, Trial

Given = Mapping[str, tuple[str, list[str]]]


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe's path or name (mmkd ls recipes).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="More recipes; ranges to search; changes to the recipes."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many in all, for each recipe.")] = 30,
    jobs: Annotated[int, typer.Option(min=1, help="How many at once; each has its cores.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Stop trials that fall behind.")
    ] = True,
    seeds: Annotated[
        str | None,
        typer.Option(help="Train and test the best with so many seeds, or with these: 0,7,11."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default runs/NAME-sweep, or NAME-NAME-sweep.")
    ] = None,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Search options on validation: 'training.lr=log(1e-4,1e-2)' 'training.batch_size=128,256'.

    A range is log(a,b), uniform(a,b) or int(a,b); several values are parted by commas; anything
    else is an override of every trial. Several recipes get the same number of trials each;
    NAME:key=... is for one of them. The same command goes on with a sweep that was stopped. No
    trial reads the test set.
    """
    from mmkd.pipeline.study import by_recipe, parted

    texts = overrides or []
    given = by_recipe(
        [recipe, *(text for text in texts if "=" not in text)],
        [text for text in texts if "=" in text],
    )
    for called, own in given.values():
        planned(called, parted(own)[1])  # faults are told before torch is loaded
    from mmkd.cli import results, show
    from mmkd.pipeline.seeds import seeds_of

    if seeds is not None:
        seeds_of(seeds)  # before anything is searched
    folder = out or runs / f"{'-'.join(given)}-sweep"
    found = _search(given, folder, trials=trials, jobs=jobs, seed=seed, prune=prune)
    told: dict[str, Any] = {"folder": str(folder), **results.swept(found)}
    if not json:
        results.sweeps(found, as_json=False)
    if seeds is not None:
        told |= _test(found, seeds, quiet=json)
    elif not json:
        typer.echo(_next(found, folder))
    if json:
        show.dump(told)


def _search(given: Given, folder: Path, *, trials: int, **options: Any) -> "list[Sweep]":
    from mmkd.cli.progress import note
    from mmkd.pipeline.study import read_sweep
    from mmkd.pipeline.sweep import sweep as sweep_one
    from mmkd.pipeline.sweeps import sweep_all

    def announce(name: str, trial: "Trial") -> None:
        of = f"{name}: " if len(given) > 1 else ""
        note(f"{of}trial {trial.number + 1} of {trials}: {_ended(trial)}")

    if len(given) > 1:
        return sweep_all(
            given, folder=folder, trials=trials, announce=announce, note=note, **options
        )
    [(name, (recipe, own))] = given.items()
    sweep_one(
        recipe,
        own,
        folder=folder,
        trials=trials,
        announce=lambda trial: announce(name, trial),
        note=note,
        **options,
    )
    return [read_sweep(folder)]


def _test(found: "list[Sweep]", seeds: str, *, quiet: bool) -> dict[str, Any]:
    """Train and test the best of each with several seeds; the first is compared with the others."""
    from mmkd.cli import results
    from mmkd.cli.progress import EmbeddingProgress, note
    from mmkd.pipeline.run import comparison
    from mmkd.pipeline.sweeps import train_best

    with EmbeddingProgress() as progress:
        tested = train_best(found, seeds, progress=progress.advance, note=note)
    metric = found[0].metric if "@" in found[0].metric else "NDCG@10"
    compared = comparison(tested[0], tested[1:], cases="test", metric=metric).to_dicts()
    others = [row | {"run": one.name} for row, one in zip(compared, found[1:], strict=True)]
    if not quiet:
        for one in tested:
            results.seeds(one.result, one.folder.path, as_json=False)
        if others:
            results.compared(others, found[0].name, metric, as_json=False)
    figures = {one.name: runs.result for one, runs in zip(found, tested, strict=True)}
    return {"tested": figures, "compared": others}


def _ended(trial: "Trial") -> str:
    chosen = " ".join(trial.overrides)
    if trial.state == "pruned":
        return f"stopped after {trial.epochs} epochs, {trial.so_far or 0.0:.4f} by then  {chosen}"
    if trial.value is None:
        return f"failed: {trial.error}  {chosen}"
    return f"{trial.value:.4f}  {chosen}"


def _next(found: "list[Sweep]", folder: Path) -> str:
    """What to type now."""
    from mmkd.pipeline.study import trial_folder

    best = [shlex.quote(str(one.folder / "best.yaml")) for one in found]
    report = f"mmkd report {shlex.quote(str(folder))}, what mattered"
    if len(found) > 1:
        trained = "; ".join(f"mmkd train {one} --seeds 3" for one in best)
        return (
            f"Next: {trained}; then mmkd compare. The same command with --seeds 3 does all of it. "
            f"Or {report}"
        )
    [one] = found
    if one.best is None:
        raise RunError(f"{folder}: no trial came to its end; look at {folder / 'trials'}")
    tested = trial_folder(folder, one.best.number)
    train = f"mmkd train {best[0]}"
    return f"Next: mmkd evaluate {tested}, the test of the best; or {train}; or {report}"
