"""The commands that ask a trained run: evaluate, recommend, similar, compare and the others."""

import os
from pathlib import Path
from typing import Annotated, Any

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
    history: Annotated[str | None, typer.Option(help="Items, oldest first: ID,ID,...")] = None,
    histories: Annotated[
        Path | None, typer.Option(help="A file of events, in the form of the log.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="A file with ids of users of the log: user_id.")
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user of the log.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items a list.")] = 10,
    allow: Annotated[
        Path | None, typer.Option(help="A file with the only ids to recommend: item_id.")
    ] = None,
    deny: Annotated[
        Path | None, typer.Option(help="A file with ids not to recommend: item_id.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the lists go: .parquet, .csv or .jsonl.")
    ] = None,
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Also recommend what is in the history.")
    ] = False,
    separator: Annotated[str, typer.Option(help="What parts the ids.")] = ",",
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """What a user takes next: one list on the screen, or a file with lists for all."""
    from mmkd.cli import show
    from mmkd.cli.lists import write_lists
    from mmkd.data.readers.lists import load_histories, load_ids
    from mmkd.errors import RunError
    from mmkd.pipeline.run import Run

    if not separator:
        raise RunError("--separator: got an empty text; give what parts the ids, such as ,")
    asked = [history is not None, histories is not None, users is not None, all_users]
    if sum(asked) != 1:
        raise RunError("give one of --history, --histories, --users and --all-users")
    if out is None and history is None:
        raise RunError("--out: give the file that the lists go to, such as recommended.parquet")
    opened = Run(find_run(run, runs))
    given: dict[str, Any] = {"k": k, "exclude_seen": not keep_seen}
    for name, path in (("allow", allow), ("deny", deny)):
        if path is not None:
            given[name] = load_ids(path, column="item_id")
    if history is not None:
        names = [part.strip() for part in history.split(separator) if part.strip()]
        given["histories"] = [[opened.items.named(name) for name in names]]
        total = 1
    elif histories is not None:
        columns = ("user", "item", "timestamp")
        data = opened.recipe.data.interactions
        named = {key: data[key] for key in columns if key in data}
        given["histories"] = load_histories(histories, opened.items, **named)
        total = len(given["histories"])
    else:
        given["users"] = "all" if users is None else load_ids(users, column="user_id")
        total = opened.data.split.user_count if users is None else len(given["users"])
    frames = opened.lists(**given)
    if out is not None:
        written = write_lists(out, frames, total=total)
        show.written(written, out, as_json=json)
        return
    found = [
        {"item": one["item_id"], "title": one["title"], "score": one["score"]}
        for frame in frames
        for one in frame.iter_rows(named=True)
    ]
    show.items(found, title="next items", as_json=json)


def similar(
    run: RunName,
    item: Annotated[str, typer.Option(help="The item's id, or title:... ")],
    by: Annotated[
        str | None, typer.Option(help="A modality: by its encoder; else by the student.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """The items nearest to an item, by what a trained student knows of them, or an encoder."""
    from mmkd.cli import show
    from mmkd.pipeline.run import Run

    opened = Run(find_run(run, runs))
    frame = opened.similar([opened.items.named(item)], k=k, by=by)
    found = [
        {"item": one["item_id"], "title": one["title"], "score": one["score"]}
        for one in frame.iter_rows(named=True)
    ]
    show.items(found, title=f"near {item}", as_json=json)


def compare(
    names: Annotated[list[str], typer.Argument(help="Runs; the others against the first.")],
    cases: Annotated[str, typer.Option(help="test or valid.")] = "test",
    metric: Annotated[str, typer.Option(help="Which metric to test.")] = "NDCG@10",
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Is the first run better than the others? Paired tests, corrected for their number."""
    from mmkd.cli import show
    from mmkd.errors import RunError
    from mmkd.pipeline.run import Run

    if cases not in ("test", "valid"):
        raise RunError(f"--cases: got {cases}, wanted test or valid")
    if len(names) < 2:
        raise RunError("give two runs or more, the one in question first")
    opened = [Run(find_run(name, runs)) for name in names]
    found = opened[0].compare(*opened[1:], cases=cases, metric=metric)
    show.compared(found.to_dicts(), names[0], metric, as_json=json)


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
    from mmkd.runs.recommend import similar as nearest
    from mmkd.runs.recommend import student_vectors

    if not item:
        raise RunError("--item: give the id of an item of the catalogue")
    plan = planned(recipe, overrides)
    folder = find_run(run, runs) if run else runs / plan.recipe.name
    with EmbeddingProgress() as progress:
        by_encoder = encoder_neighbours(
            plan, item, modality=modality, k=k, progress=progress.advance
        )
    by_student = None
    if (trained := RunFolder(folder)).finished:
        items = trained.items()
        vectors = student_vectors(trained.student(), modality)
        frame = nearest(vectors, items, items.rows([item]), k=k)
        by_student = [
            {"item": one["item_id"], "title": one["title"], "score": one["score"]}
            for one in frame.iter_rows(named=True)
        ]
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
