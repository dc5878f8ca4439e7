"""The mmkd command: its verbs, and one clear message with exit status 2 for a user's mistake."""

import inspect
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mmkd import __version__
from mmkd.cli import (
    STOPPED,
    cache,
    data,
    encoders,
    listing,
    recipes,
    runs,
    serve,
    shipping,
    sweep,
    tuning,
)
from mmkd.cli.arguments import RecipeCommand, trusting
from mmkd.errors import Interrupted, MmkdError, world_told
from mmkd.terminal import printable

LINE_BREAK = "\n"


class _Verbs(TyperGroup):
    """The verbs; one that is stopped says so, whenever it is."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(STOPPED) from error


app = typer.Typer(
    name="mmkd",
    cls=_Verbs,
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
    tuning.teacher,
    tuning.tune,
    recipes.compress,
    sweep.sweep,
    runs.evaluate,
    runs.recommend,
    runs.similar,
    runs.compare,
    runs.report,
    serve.serve,
    shipping.export,
    shipping.push,
    runs.neighbours,
    encoders.encode,
):
    overridden = "overrides" in inspect.signature(command).parameters
    app.command(cls=RecipeCommand if overridden else None)(trusting(command))
app.command("add-items")(trusting(runs.add_items))
app.command("show")(runs.show_)
app.command("ls")(listing.list_)
app.command("cp")(listing.copy)
app.command()(recipes.demo)
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")


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
    """Run the command line; a user's or the world's mistake is one message and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except BaseException as error:  # a damaged Parquet file makes polars panic, past Exception
        told = str(error) if isinstance(error, MmkdError) else world_told(error)
        if told is None:
            raise
        typer.echo(f"mmkd: {printable(told, keep=LINE_BREAK)}", err=True)
        sys.exit(2)
