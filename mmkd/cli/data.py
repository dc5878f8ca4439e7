"""``mmkd data``: published data sets, and a log as a sequence file."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmkd.cli.arguments import AsJson, Overrides, RecipeName, planned

if TYPE_CHECKING:
    from mmkd.published import Published

app = typer.Typer(
    help="Published data sets, ready to train on; logs as sequence files.", no_args_is_help=True
)


@app.command("list")
def list_(json: AsJson = False) -> None:
    """What there is to get, and on what terms."""
    from mmkd.cli import show
    from mmkd.published import find, names

    keys = ("name", "title", "what", "page", "terms", "cite")
    found = [{key: getattr(find(name), key) for key in keys} for name in names()]
    if json:
        show.dump(found)
        return
    show.rows(("name", "what"), [[one["name"], one["what"]] for one in found])
    typer.echo("terms and sizes: mmkd data get NAME says them, and asks, before it downloads")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A data set's name (mmkd data list).")],
    out: Annotated[Path | None, typer.Option(help="Where it goes; default data/NAME.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder with its files; downloads nothing.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept-licence", help="Its terms are read and accepted.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Get pictures, where it has some.")
    ] = True,
    most_pictures: Annotated[
        int | None, typer.Option(min=0, help="No more pictures from the web than these.")
    ] = None,
    core: Annotated[
        int, typer.Option(min=1, help="Of Amazon: fewest events of each user and product.")
    ] = 5,
    preset: Annotated[
        str | None, typer.Option(help="What the recipe starts from (mmkd ls presets).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare it again.")] = False,
    json: AsJson = False,
) -> None:
    """Get a published data set: tables, pictures, and a recipe that trains on them."""
    from mmkd.cli import show
    from mmkd.cli.progress import EmbeddingProgress
    from mmkd.published import get as run_get

    def accepted(chosen: "Published", sizes: Mapping[str, int | None]) -> bool:
        return _accepted(chosen, sizes, given=accept)

    with EmbeddingProgress("get ") as progress:
        data, recipe, notes = run_get(
            name,
            out,
            source=source,
            accept=accepted,
            pictures=pictures,
            most_pictures=most_pictures,
            core=core,
            preset=preset,
            force=force,
            # of some files the end is not known
            progress=lambda name, done, total: progress.advance(name, done, total or done + 1),
        )
    show.gotten(data, recipe, notes, as_json=json)


@app.command()
def sequences(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The file; default beside the log, suffix .sequences.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Write a recipe's log as a sequence file, which is mapped in no time."""
    from mmkd.cli import show

    data = planned(recipe, overrides).load_data()
    log = data.root / data.options["interactions"]["path"]
    path = out or log.with_name(f"{log.name.partition('.')[0]}.sequences")
    data.save_sequences(path)
    found = {"path": str(path), "users": len(data.log.user_ids), "events": len(data.log)}
    if json:
        show.dump(found)
        return
    typer.echo(f"{path}: {found['events']:,} events of {found['users']:,} users")
    given = data.options["interactions"]
    changes = {"path": str(path.absolute())}
    if path.suffix.lower() != ".sequences" or given["format"] != "auto":
        changes["format"] = "sequences"
    changes |= {name: "null" for name in ("separator", "escape") if given[name] is not None}
    told = [f"data.interactions.{name}={value}" for name, value in changes.items()]
    typer.echo(f"use it: {shlex.join(told)}")


def _accepted(chosen: "Published", sizes: Mapping[str, int | None], *, given: bool) -> bool:
    """Tell the terms and what will be downloaded; ask where there is somebody to answer."""
    from mmkd.cli.progress import note

    note(f"{chosen.title}: {chosen.page}")
    note(f"terms: {chosen.terms}")
    note(f"cite: {chosen.cite}")
    for name, size in sizes.items():
        note(f"to download: {name}, {f'{size / 1e6:,.1f} MB' if size else 'size not known'}")
    if given:
        return True
    if not sys.stdin.isatty():
        return False
    return typer.confirm("Are these terms accepted?", err=True)
