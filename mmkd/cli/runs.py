"""The commands that ask a trained run, evaluate to neighbours, or give it more: add-items."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmkd.cli.arguments import (
    RUNS,
    AsJson,
    Cases,
    Overrides,
    RecipeName,
    RunName,
    Runs,
    find_run,
    find_runs,
    open_runs,
    planned,
)
from mmkd.errors import RunError, shown

if TYPE_CHECKING:
    import polars as pl

    from mmkd.pipeline.study import Sweep


def evaluate(
    run: RunName,
    cases: Cases = "test",
    against: Annotated[
        str | None, typer.Option(help="Another run: paired permutation test of the difference.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Which metric to test.")] = "NDCG@10",
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Evaluate a trained run again, or test it against another run."""
    from mmkd.cli import results
    from mmkd.pipeline.evaluate import compare_runs
    from mmkd.pipeline.evaluate import evaluate as run_evaluate

    folder = find_run(run, runs)
    if against is not None:
        found = compare_runs(folder, find_run(against, runs), cases=cases, metric=metric)
        results.comparison(found, run, against, as_json=json)
        return
    results.report(run_evaluate(folder, cases=cases), as_json=json)


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
    show.items(_ranked(*frames), title="next items", as_json=json)


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
    show.items(_ranked(frame), title=f"near {item}", as_json=json)


def show_(
    run: RunName,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """What a run ended with; of several seeds' runs the means, intervals over the seeds too."""
    from mmkd.cli import results
    from mmkd.pipeline.sweeps import find_sweeps
    from mmkd.runs.folder import RunFolder

    if sweeps := find_sweeps(run, runs):
        results.sweeps(_sweeps(sweeps), as_json=json)
        return
    found = find_runs(run, runs)
    if not isinstance(found, RunFolder):
        results.seeds(found.summary(), found.path, as_json=json)
        return
    if not found.finished:
        raise RunError(f"{found.path}: training is not finished; continue it with --resume")
    results.result(found.result(), found.path, as_json=json)


def compare(
    names: Annotated[list[str], typer.Argument(help="Runs; the others against the first.")],
    cases: Cases = "test",
    metric: Annotated[str, typer.Option(help="Which metric to test.")] = "NDCG@10",
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Is the first run better than the others? Paired tests, corrected for their number.

    A folder of several seeds' runs is one of them: every case is the mean of its seeds.
    """
    from mmkd.cli import results

    if len(names) < 2:
        raise RunError("give two runs or more, the one in question first")
    opened = open_runs(names, runs)
    found = opened[0].compare(*opened[1:], cases=cases, metric=metric)
    results.compared(found.to_dicts(), names[0], metric, as_json=json)


def report(
    names: Annotated[list[str], typer.Argument(help="Runs; the others beside the first.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Write one HTML file about a run, or about several beside each other; it works offline.

    Of a sweep it tells what was tried and which options mattered.
    """
    from mmkd.cli import show
    from mmkd.pipeline.sweeps import find_sweeps
    from mmkd.report import write_report, write_sweep_report

    swept = [find_sweeps(name, runs) for name in names]
    if any(swept):
        if not all(swept):
            raise RunError("give either runs or sweeps; a report is about one or the other")
        written = write_sweep_report(_sweeps([path for some in swept for path in some]), out)
    else:
        written = write_report(open_runs(names, runs), out)
    show.reported(written, names, as_json=json)


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
        by_student = _ranked(nearest(vectors, items, items.rows([item]), k=k))
    show.neighbours(by_encoder, by_student, folder, as_json=json)


def add_items(
    run: RunName,
    file: Annotated[
        Path, typer.Argument(help="The new items: a file with the catalogue's columns.")
    ],
    out: Annotated[Path, typer.Option(help="The new run's folder.")],
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Make a run that recommends new items too, without training."""
    from mmkd.cli import show
    from mmkd.cli.progress import EmbeddingProgress
    from mmkd.pipeline.add_items import add_items as run_add_items

    folder = find_run(run, runs)
    with EmbeddingProgress() as progress:
        done = run_add_items(folder, file, out=out, progress=progress.advance)
    if json:
        show.dump({**asdict(done), "folder": str(out)})
        return
    items = "item" if done.added == 1 else "items"
    having = ", ".join(f"{count} with {name}" for name, count in done.present.items())
    typer.echo(f"{out}: {done.added} new {items} ({having}), {done.catalogue} in all")
    if done.left_out:
        typer.echo(
            f"left out, as no encoder has anything to read of them: {len(done.left_out)} "
            f"({shown(done.left_out)})"
        )
    typer.echo(f"next: mmkd recommend {out} --history ID,ID")


def _sweeps(folders: list[Path]) -> "list[Sweep]":
    from mmkd.pipeline.study import read_sweep

    return [read_sweep(folder) for folder in folders]


def _ranked(*frames: "pl.DataFrame") -> list[dict[str, Any]]:
    """The rows of lists, as they are shown."""
    return [
        {"item": one["item_id"], "title": one["title"], "score": one["score"]}
        for frame in frames
        for one in frame.iter_rows(named=True)
    ]
