"""The commands that make a recipe, or something of one: init, validate, embed, train and others."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    told,
)
from mmkd.errors import RecipeError
from mmkd.files import yaml_names

if TYPE_CHECKING:
    from mmkd.config.plan import Plan
    from mmkd.config.recipe import Recipe


def init(
    items: Annotated[Path, typer.Option(help="The catalogue's file, a row an item.")],
    events: Annotated[Path, typer.Option(help="The log's file, a row an event.")],
    name: Annotated[str | None, typer.Option(help="Of the recipe; default that of --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default NAME.yaml.")] = None,
    id: Annotated[str, typer.Option(help="The catalogue's column of ids.")] = "auto",
    user: Annotated[str, typer.Option(help="The log's column of users.")] = "auto",
    item: Annotated[str, typer.Option(help="The log's column of items.")] = "auto",
    timestamp: Annotated[str, typer.Option(help="The log's column of times.")] = "auto",
    split: Annotated[
        str, typer.Option(help="leave_one_out, cold_items, ratio or temporal.")
    ] = "leave_one_out",
    preset: Annotated[
        str | None,
        typer.Option(help=f"What to start from: {', '.join(yaml_names('recipes', 'presets'))}."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: AsJson = False,
) -> None:
    """Write a recipe for your own two files; says what was guessed of them, and why."""
    from mmkd.cli import show
    from mmkd.config.start import start

    name = name or (out.stem if out else "shop")
    target = out or Path(f"{name}.yaml")
    columns: dict[str, Any] = {"id": id, "user": user, "item": item, "timestamp": timestamp}
    data = start(
        items, events, target, name=name, preset=preset, split=split, force=force, **columns
    )
    show.started(data, target, as_json=json)


def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Annotated[
        bool,
        typer.Option(
            "--data/--no-data", help="Read both tables too, and look for the encoders' weights."
        ),
    ] = True,
    json: AsJson = False,
) -> None:
    """Report every mistake of a recipe and of its data at once, and what would train.

    Loads no model and opens no picture; says too which encoder's weights can't be had here.
    """
    from mmkd.cli import show
    from mmkd.pipeline.embed import inspect

    try:
        plan = planned(recipe, overrides)
        found = inspect(plan) if data else None
    except RecipeError as error:
        if not json:
            raise
        show.dump({"recipe": recipe, "valid": False, "problems": error.problems})
        raise typer.Exit(2) from error
    show.valid(plan.recipe, found, as_json=json)


def embed(
    recipe: RecipeName,
    overrides: Overrides = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Items a forward pass; as embed.batch_size=.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; as embed.device=.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="processes; or ray: actors, here or at RAY_ADDRESS; as embed.engine=."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="How many of Ray's actors; as embed.actors=.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Encode the catalogue's modalities into the cache; what it holds is not encoded again.

    Started several times, by hand or by a launcher, the processes share the work.
    """
    from mmkd.cli import show
    from mmkd.cli.progress import EmbeddingProgress
    from mmkd.data.readers import load_items
    from mmkd.embeddings import RunReport, share_cores
    from mmkd.pipeline.embed import absent_reasons, check_encoders
    from mmkd.pipeline.embed import embed as run_embed

    given = {"batch_size": batch_size, "device": device, "engine": engine, "actors": actors}
    changes = [f"embed.{key}={value}" for key, value in given.items() if value is not None]
    plan = planned(recipe, [*(overrides or []), *changes])
    check_encoders(plan)
    share_cores()
    items = load_items(root=plan.recipe.data.folder, **plan.items)
    reports: dict[str, RunReport] = {}
    if os.environ.get("RANK", "0") != "0":  # the first process speaks for all
        run_embed(plan, items)
        return
    with EmbeddingProgress() as progress:
        tables = run_embed(plan, items, progress=progress.advance, report=reports.__setitem__)
    show.tables(
        tables,
        absent_reasons(plan, tables),
        encoded=progress.encoded,
        reports=reports,
        as_json=json,
    )


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="How many seeds, such as 3, or which, such as 0,7,11; into runs/NAME-seeds."
        ),
    ] = None,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Train a recipe: embed, distil, train, select on validation, test once.

    With --seeds a run each, in one folder, and their means with intervals over users and seeds.
    """
    plan = planned(recipe, overrides)
    if seeds is not None:
        folder = out or runs / f"{plan.recipe.name}-seeds"
        train_seeds(plan, seeds, folder, resume=resume, overwrite=overwrite, json=json)
        return
    folder = out or runs / plan.recipe.name
    _train(plan, folder, resume=resume, overwrite=overwrite, json=json)


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
    from mmkd.pipeline.opening import compressing
    from mmkd.runs.folder import RunFolder

    recipe = compressing(RunFolder(find_run(run, runs)), overrides or [])
    told(recipe)
    folder = out or runs / recipe.name
    _train(recipe, folder, resume=resume, overwrite=overwrite, json=json)


def baselines(recipe: RecipeName, overrides: Overrides = None, json: AsJson = False) -> None:
    """What needs no training, on a recipe's data: popularity, transitions, item and content kNN."""
    from mmkd.cli import results
    from mmkd.cli.progress import Bar, EmbeddingProgress
    from mmkd.pipeline.baselines import baselines as run_baselines

    plan = planned(recipe, overrides)
    with EmbeddingProgress() as encoding, Bar("baselines") as bar:
        found = run_baselines(plan, embed_progress=encoding.advance, progress=bar.advance)
    results.baselines(found, ks=plan.evaluator.ks, as_json=json)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo works.")] = Path("demo"),
    items: Annotated[int, typer.Option(min=50, help="Items of the catalogue.")] = 2000,
    users: Annotated[int, typer.Option(min=100, help="Users of the log.")] = 3000,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most, for each variant; default the recipe's.")
    ] = None,
    json: AsJson = False,
) -> None:
    """The main job on a made-up catalogue, offline: six variants, a table, a report."""
    from mmkd.cli import results
    from mmkd.cli.progress import EmbeddingProgress, note
    from mmkd.demo.run import report_demo, run_demo
    from mmkd.errors import MmkdError

    with EmbeddingProgress() as progress:
        found = run_demo(
            folder,
            items=items,
            users=users,
            epochs=epochs,
            progress=progress.advance,
            announce=note,
        )
    results.demo(found, folder, as_json=json)
    try:
        note(f"report: {report_demo(folder)}; open it in a browser")
    except MmkdError as error:  # the table is there, and the runs are
        note(f"no report: {error}")


def train_seeds(
    plan: "Plan", seeds: str, folder: Path, *, resume: bool, overwrite: bool, json: bool
) -> None:
    """Train a plan with several seeds, and show what they come to."""
    from mmkd.cli import results
    from mmkd.cli.progress import EmbeddingProgress, note
    from mmkd.errors import TrainingInterrupted
    from mmkd.pipeline.seeds import train_all

    try:
        with EmbeddingProgress() as progress:
            summary = train_all(
                plan,
                seeds,
                folder=folder,
                resume=resume,
                overwrite=overwrite,
                progress=progress.advance,
                announce=note,
            )
    except KeyboardInterrupt as error:
        raise TrainingInterrupted(None, folder) from error
    if int(os.environ.get("RANK", "0")) == 0:
        results.seeds(summary, folder, as_json=json)


def _train(
    recipe: "Plan | Recipe", folder: Path, *, resume: bool, overwrite: bool, json: bool
) -> None:
    from mmkd.cli import results
    from mmkd.cli.progress import EmbeddingProgress, note
    from mmkd.errors import TrainingInterrupted
    from mmkd.pipeline.train import train as run_train
    from mmkd.runs.folder import RunFolder

    try:
        with EmbeddingProgress() as progress:
            result = run_train(
                recipe,
                folder=folder,
                resume=resume,
                overwrite=overwrite,
                progress=progress.advance,
                announce=note,
            )
    except KeyboardInterrupt as error:  # before or after the epochs, which end by themselves
        if not RunFolder(folder).started:
            raise
        raise TrainingInterrupted(None, folder) from error
    if int(os.environ.get("RANK", "0")) == 0:
        results.result(result, folder, as_json=json)
