"""The mmkd command: its verbs, and one clear message with exit status 2 for a user's mistake."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmkd import __version__
from mmkd.cli import cache_commands

app = typer.Typer(
    name="mmkd",
    help="Multimodal knowledge distillation for sequential recommendation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cache_commands.app, name="cache")

RecipeName = Annotated[str, typer.Argument(help="A recipe's path or name (mmkd ls recipes).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, such as training.lr=1e-3.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept.", envvar="MMKD_RUNS")]
RUNS = Path("runs")


@app.command()
def validate(recipe: RecipeName, overrides: Overrides = None, json: AsJson = False) -> None:
    """Report every mistake of a recipe at once; loads no data and no model."""
    from mmkd.cli import show
    from mmkd.options import RecipeError
    from mmkd.plan import check

    try:
        loaded = check(recipe, overrides or []).recipe
    except RecipeError as error:
        if not json:
            raise
        show.as_json({"recipe": recipe, "valid": False, "problems": error.problems})
        raise typer.Exit(2) from error
    show.valid(loaded, as_json=json)


@app.command()
def embed(
    recipe: RecipeName,
    overrides: Overrides = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Items a forward pass; as embed.batch_size=.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; as embed.device=.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Encode the catalogue's modalities into the cache; what it holds is not encoded again.

    Started several times, by hand or by a launcher, the processes share the work.
    """
    from mmkd.cli import show
    from mmkd.data.readers import load_items
    from mmkd.embedding_cache import RunReport, share_cores
    from mmkd.inspection import absent_reasons
    from mmkd.pipeline import embed as run_embed
    from mmkd.plan import check

    given = {"batch_size": batch_size, "device": device}
    changes = [f"embed.{key}={value}" for key, value in given.items() if value is not None]
    planned = check(recipe, [*(overrides or []), *changes])
    share_cores()
    items = load_items(root=planned.recipe.data.folder, **planned.items)
    reports: dict[str, RunReport] = {}
    if os.environ.get("RANK", "0") != "0":  # the first process speaks for all
        run_embed(planned, items)
        return
    with show.EmbeddingProgress() as progress:
        tables = run_embed(planned, items, progress=progress.advance, report=reports.__setitem__)
    show.tables(
        tables,
        absent_reasons(planned, tables),
        encoded=progress.encoded,
        reports=reports,
        as_json=json,
    )


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the run anew.")] = False,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Train a recipe: embed, distil, train, select on validation, test once."""
    from mmkd.cli import show
    from mmkd.pipeline import train as run_train
    from mmkd.plan import check

    loaded = check(recipe, overrides or []).recipe
    folder = out or runs / loaded.name
    with show.EmbeddingProgress() as progress:
        result = run_train(
            loaded,
            folder=folder,
            resume=resume,
            overwrite=overwrite,
            progress=progress.advance,
            announce=show.note,
        )
    if int(os.environ.get("RANK", "0")) == 0:
        show.result(result, folder, as_json=json)


@app.command()
def compress(
    run: Annotated[str, typer.Argument(help="The ensemble's run, a folder or a name.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/NAME-compressed.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the run anew.")] = False,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Train one network on what a trained ensemble predicts, so that serving costs one."""
    from mmkd.cli import show
    from mmkd.compress import compressing
    from mmkd.pipeline import train as run_train
    from mmkd.serving.run_folder import RunFolder

    recipe = compressing(RunFolder(find_run(run, runs)), overrides or [])
    folder = out or runs / recipe.name
    result = run_train(
        recipe, folder=folder, resume=resume, overwrite=overwrite, announce=show.note
    )
    if int(os.environ.get("RANK", "0")) == 0:
        show.result(result, folder, as_json=json)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder or name.")],
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
    from mmkd.inspection import compare_runs
    from mmkd.inspection import evaluate as run_evaluate
    from mmkd.serving.run_folder import RunError

    if cases not in ("test", "valid"):
        raise RunError(f"--cases: got {cases}, wanted test or valid")
    folder = find_run(run, runs)
    if against is not None:
        found = compare_runs(folder, find_run(against, runs), cases=cases, metric=metric)
        show.comparison(found, run, against, as_json=json)
        return
    show.report(run_evaluate(folder, cases=cases), as_json=json)


@app.command()
def recommend(
    run: Annotated[str, typer.Argument(help="A run's folder or name.")],
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
    from mmkd.serving.recommend import recommend as run_recommend
    from mmkd.serving.run_folder import RunError, RunFolder

    if not separator:
        raise RunError("--separator: got an empty text; give what parts the ids, such as ,")
    ids = [part.strip() for part in history.split(separator) if part.strip()]
    found = run_recommend(RunFolder(find_run(run, runs)), ids, k=k, exclude_seen=not keep_seen)
    show.items(found, title="next items", as_json=json)


@app.command()
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
    from mmkd.inspection import encoder_neighbours
    from mmkd.plan import check
    from mmkd.serving.recommend import student_neighbours
    from mmkd.serving.run_folder import RunError, RunFolder

    if not item:
        raise RunError("--item: give the id of an item of the catalogue")
    planned = check(recipe, overrides or [])
    folder = find_run(run, runs) if run else runs / planned.recipe.name
    with show.EmbeddingProgress() as progress:
        by_encoder = encoder_neighbours(
            planned, item, modality=modality, k=k, progress=progress.advance
        )
    by_student = (
        student_neighbours(RunFolder(folder), item, modality=modality, k=k)
        if RunFolder(folder).finished
        else None
    )
    show.neighbours(by_encoder, by_student, folder, as_json=json)


@app.command()
def encode(
    card: Annotated[str, typer.Argument(help="A card's name or path (mmkd ls encoders).")],
    inputs: Annotated[list[str], typer.Argument(help="Texts, or paths of pictures.")],
    device: Annotated[str, typer.Option(help="Such as cpu or cuda.")] = "cpu",
    json: AsJson = False,
) -> None:
    """Try an encoder on texts or pictures: width, norm, first values, cosines."""
    from mmkd.cli import encode_command, show

    found = encode_command.encode(card, inputs, device=device)
    if json:
        show.as_json(found)
    else:
        encode_command.show(found)


@app.command("ls")
def list_(
    what: Annotated[str, typer.Argument(help="recipes, encoders, runs or cache.")] = "recipes",
    runs: Runs = RUNS,
    cache: Annotated[Path, typer.Option(help="The cache's folder.", envvar="MMKD_CACHE")] = Path(
        "cache"
    ),
    json: AsJson = False,
) -> None:
    """List recipes, encoder cards, runs, or what the cache holds."""
    from mmkd.cli import listing

    listing.show(what, runs=runs, cache=cache, as_json=json)


@app.command("cp")
def copy(
    name: Annotated[str, typer.Argument(help="A recipe's or an encoder card's name.")],
    destination: Annotated[Path, typer.Argument(help="A .yaml file or a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe or an encoder card to edit it."""
    from mmkd.cli import listing

    typer.echo(listing.copy(name, destination, force=force))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo works.")] = Path("demo"),
    items: Annotated[int, typer.Option(min=50, help="Items of the catalogue.")] = 1000,
    users: Annotated[int, typer.Option(min=100, help="Users of the log.")] = 4000,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most, for each variant; default the recipe's.")
    ] = None,
    json: AsJson = False,
) -> None:
    """The main job on a made-up catalogue, offline: six variants and a table, in minutes."""
    from mmkd.cli import show
    from mmkd.demo import run_demo

    with show.EmbeddingProgress() as progress:
        results = run_demo(
            folder, items=items, users=users, epochs=epochs, progress=progress.advance
        )
    show.demo(results, folder, as_json=json)


def find_run(name: str, runs: Path) -> Path:
    """A run's folder from its path or its name below ``runs``."""
    from mmkd.serving.run_folder import RunError, RunFolder, run_folders

    for path in (Path(name), runs / name):
        if RunFolder(path).started:
            return path
    known = [run.path.name for run in run_folders(runs)]
    raise RunError(
        f"no run {name} (looked at {name} and {runs / name}); "
        f"runs there are: {', '.join(known) or 'none'}"
    )


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mmkd {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Multimodal knowledge distillation for sequential recommendation."""


def main() -> None:
    """Run the command line; a user's mistake is one message and exit status 2."""
    from mmkd.cli.errors import file_error, user_errors

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except user_errors() as error:
        typer.echo(f"mmkd: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if (told := file_error(error)) is None:
            raise
        typer.echo(f"mmkd: {told}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("mmkd: interrupted", err=True)
        sys.exit(130)
