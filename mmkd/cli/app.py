"""The mmkd command: its verbs, and one clear message with exit status 2 for a user's mistake."""

import inspect
import os
import sys
from typing import Annotated

import typer

from mmkd import __version__
from mmkd.cli import cache, encoders, listing, recipes, runs, sweep
from mmkd.cli.arguments import RecipeCommand
from mmkd.errors import MmkdError, remedied

app = typer.Typer(
    name="mmkd",
    help="Multimodal knowledge distillation for sequential recommendation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (
    recipes.init,
    recipes.validate,
    recipes.embed,
    recipes.train,
    recipes.baselines,
    recipes.compress,
    sweep.sweep,
    runs.evaluate,
    runs.recommend,
    runs.similar,
    runs.compare,
    runs.neighbours,
    encoders.encode,
):
    overridden = "overrides" in inspect.signature(command).parameters
    app.command(cls=RecipeCommand if overridden else None)(command)
app.command("add-items")(runs.add_items)
app.command("ls")(listing.list_)
app.command("cp")(listing.copy)
app.command()(recipes.demo)
app.add_typer(cache.app, name="cache")


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
