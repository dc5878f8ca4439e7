"""The command that serves trained runs: a page, and JSON endpoints."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mmkd.cli.arguments import RUNS, AsJson, Runs, find_run
from mmkd.errors import MmkdError, RunError, refuse


def serve(
    names: Annotated[list[str], typer.Argument(help="One run, or two to stand side by side.")],
    host: Annotated[str, typer.Option(help="Where to listen; the loopback is for you alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="MMKD_TOKEN", help="What requests must carry; wanted beside --host."),
    ] = None,
    allow: Annotated[
        Path | None, typer.Option(help="A file with the ids in stock: item_id.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Where the pictures' folder is now, if it was moved.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """A page that shows what trained runs recommend, and JSON endpoints for a shop."""
    try:
        from mmkd.serve import application
        from mmkd.serve.server import check_address, run
    except ImportError as error:
        raise MmkdError(f"{error.name} is not installed; run: pip install 'mmkd[serve]'") from error
    from mmkd.cli import show
    from mmkd.data.readers.lists import load_ids
    from mmkd.pipeline.run import Run
    from mmkd.serve.guard import is_loopback
    from mmkd.threads import thread_count, use_threads

    refuse(check_address(host, port, token), RunError)
    if image_root is not None and not image_root.is_dir():
        raise RunError(f"--image-root: {image_root} is no folder; give the pictures' folder")
    opened = [Run(find_run(name, runs)) for name in names]
    in_stock = None if allow is None else load_ids(allow, column="item_id")
    use_threads(thread_count())
    app = application(
        opened,
        allow=in_stock,
        image_root=image_root,
        token=token,
        loopback_only=is_loopback(host),
    )

    def ready(address: str) -> None:
        show.serving(address, names, token=token is not None, as_json=json)
        if open_page:
            webbrowser.open(address)

    run(app, host=host, port=port, ready=ready)
