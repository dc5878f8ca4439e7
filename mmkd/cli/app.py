"""The mmkd command: its verbs, and one clear message with exit status 2 for a user's mistake."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmkd import __version__
from mmkd.cli import cache as cache_commands
from mmkd.cli import recipes as making
from mmkd.cli import runs as asking
from mmkd.cli.arguments import RUNS, AsJson, Runs
from mmkd.errors import MmkdError, remedied

app = typer.Typer(
    name="mmkd",
    help="Multimodal knowledge distillation for sequential recommendation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (
    making.validate,
    making.embed,
    making.train,
    asking.compress,
    asking.evaluate,
    asking.recommend,
    asking.neighbours,
    asking.encode,
):
    app.command()(command)


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


app.command()(making.demo)
app.add_typer(cache_commands.app, name="cache")


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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except MmkdError as error:
        typer.echo(f"mmkd: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # of a place that no reader or writer knows by name
        if (told := remedied(error)) is None:
            raise
        typer.echo(f"mmkd: {told}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("mmkd: interrupted", err=True)
        sys.exit(130)
