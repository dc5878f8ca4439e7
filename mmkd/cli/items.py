"""The command that gives a trained run more items: add-items."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmkd.cli.arguments import RUNS, AsJson, RunName, Runs, find_run


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
    from mmkd.errors import shown
    from mmkd.pipeline.add_items import add_items as run_add_items

    folder = find_run(run, runs)
    with EmbeddingProgress() as progress:
        done = run_add_items(folder, file, out=out, progress=progress.advance)
    if json:
        show.as_json({**asdict(done), "folder": str(out)})
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
