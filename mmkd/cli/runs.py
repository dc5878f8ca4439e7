"""The commands that ask a trained run: evaluate, recommend, neighbours, compress."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmkd.cli.arguments import (
    RUNS,
    AsJson,
    Overrides,
    Overwrite,
    RecipeName,
    Resume,
    RunName,
    Runs,
    find_run,
    planned,
)


def evaluate(
    run: RunName,
    cases: Annotated[str, typer.Option(help="test or valid.")] = "test",
    against: Annotated[
        str | None, typer.Option(help="Another run: paired permutation test of the difference.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Which metric to test.")] = "NDCG@10",
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Evaluate a trained run again, or test it against another run."""
    from mmkd.cli import show
    from mmkd.errors import RunError
    from mmkd.pipeline.evaluate import compare_runs
    from mmkd.pipeline.evaluate import evaluate as run_evaluate

    if cases not in ("test", "valid"):
        raise RunError(f"--cases: got {cases}, wanted test or valid")
    folder = find_run(run, runs)
    if against is not None:
        found = compare_runs(folder, find_run(against, runs), cases=cases, metric=metric)
        show.comparison(found, run, against, as_json=json)
        return
    show.report(run_evaluate(folder, cases=cases), as_json=json)


def recommend(
    run: RunName,
    history: Annotated[str, typer.Option(help="Item ids, oldest first: ID,ID,...")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Also recommend what is in the history.")
    ] = False,
    separator: Annotated[str, typer.Option(help="What parts the ids.")] = ",",
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """What a user with this history takes next."""
    from mmkd.cli import show
    from mmkd.errors import RunError
    from mmkd.runs.folder import RunFolder
    from mmkd.runs.recommend import recommend as run_recommend

    if not separator:
        raise RunError("--separator: got an empty text; give what parts the ids, such as ,")
    ids = [part.strip() for part in history.split(separator) if part.strip()]
    found = run_recommend(RunFolder(find_run(run, runs)), ids, k=k, exclude_seen=not keep_seen)
    show.items(found, title="next items", as_json=json)


def neighbours(
    recipe: RecipeName,
    overrides: Overrides = None,
    item: Annotated[str, typer.Option(help="The item's id.")] = "",
    modality: Annotated[str, typer.Option(help="Which of the recipe's encoders.")] = "text",
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    run: Annotated[str | None, typer.Option(help="The student's run; default runs/NAME.")] = None,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """The nearest items by the encoder and by the trained student, side by side."""
    from mmkd.cli import show
    from mmkd.cli.progress import EmbeddingProgress
    from mmkd.errors import RunError
    from mmkd.pipeline.embed import encoder_neighbours
    from mmkd.runs.folder import RunFolder
    from mmkd.runs.recommend import student_neighbours

    if not item:
        raise RunError("--item: give the id of an item of the catalogue")
    plan = planned(recipe, overrides)
    folder = find_run(run, runs) if run else runs / plan.recipe.name
    with EmbeddingProgress() as progress:
        by_encoder = encoder_neighbours(
            plan, item, modality=modality, k=k, progress=progress.advance
        )
    by_student = (
        student_neighbours(RunFolder(folder), item, modality=modality, k=k)
        if RunFolder(folder).finished
        else None
    )
    show.neighbours(by_encoder, by_student, folder, as_json=json)


def compress(
    run: RunName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/NAME-compressed.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Train one network on what a trained ensemble predicts, so that serving costs one."""
    from mmkd.cli import show
    from mmkd.cli.progress import note
    from mmkd.pipeline.compress import compressing
    from mmkd.pipeline.train import train as run_train
    from mmkd.runs.folder import RunFolder

    recipe = compressing(RunFolder(find_run(run, runs)), overrides or [])
    folder = out or runs / recipe.name
    result = run_train(recipe, folder=folder, resume=resume, overwrite=overwrite, announce=note)
    if int(os.environ.get("RANK", "0")) == 0:
        show.result(result, folder, as_json=json)
