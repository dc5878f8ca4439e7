"""The commands that send a trained run out: to a folder for a service, or to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from mmkd.cli.arguments import RUNS, AsJson, RunName, Runs, find_run


def export(
    run: RunName,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="encoder.onnx and topk.onnx, checked against the run.")
    ] = False,
    index: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="index.faiss: faiss, or a factory string as HNSW32."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Write a folder that a service loads without mmkd: items, vectors, ONNX, a FAISS index."""
    from mmkd.cli import show
    from mmkd.pipeline.run import Run

    opened = Run(find_run(run, runs))
    show.exported(opened.export(out, onnx=onnx, index=index, force=force), as_json=json)


def push(
    name: Annotated[str, typer.Argument(help="A run, or a tuned encoder; its folder or name.")],
    repository: Annotated[str, typer.Argument(help="Where to: org/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is for its owner alone.")
    ] = False,
    runs: Runs = RUNS,
    json: AsJson = False,
) -> None:
    """Put a run, or a tuned encoder, into a repository of the Hugging Face hub."""
    from mmkd.cli import show
    from mmkd.pipeline.run import Run
    from mmkd.shipping.model_card import used_as
    from mmkd.shipping.sharing import encoder_cards, encoder_folder, push_encoder, push_run

    alone = True if private else None
    encoder = encoder_folder(name)
    if encoder is not None and not any(
        (path / "run.json").is_file() for path in (Path(name), runs / name)
    ):
        page = push_encoder(encoder, repository, private=alone)
        use = f"mmkd train RECIPE {used_as(encoder_cards(encoder), repository)}"
    else:
        page = push_run(Run(find_run(name, runs)), repository, private=alone)
        use = f"mmkd recommend {repository} --history ID,ID"
    if json:
        show.dump({"repository": repository, "page": page})
        return
    typer.echo(f"{page}: sent, with a model card to look over\nnext: {use}")
