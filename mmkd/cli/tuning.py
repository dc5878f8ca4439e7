"""The commands about encoders as teachers: what one is worth, and how it learns from the log."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mmkd.cli.arguments import AsJson, Overrides, Overwrite, RecipeName, Resume, planned

_TYPES = 5  # shown from either end


def teacher(
    recipe: RecipeName,
    overrides: Overrides = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="CARD", help="A card to hold beside the recipe's; repeatable."),
    ] = None,
    json: AsJson = False,
) -> None:
    """What each encoder knows of what goes together, before anything trains; test is not read."""
    from mmkd.cli import show
    from mmkd.cli.progress import EmbeddingProgress
    from mmkd.pipeline.teacher import teachers

    plan = planned(recipe, overrides)
    with EmbeddingProgress() as encoding:
        found = teachers(plan, against=against or (), progress=encoding.advance)
    if json:
        show.dump(found)
    else:
        _show_teachers(found)


def tune(
    recipe: RecipeName,
    overrides: Overrides = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Which of the recipe's encoders; default text. Twice: both towers of one model."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the new card; default RECIPE-ENCODER.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where cards are kept.")] = Path("encoders"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Tune an encoder on a recipe's training events: a new card, with weights of its own."""
    from mmkd.cli import show
    from mmkd.cli.progress import EmbeddingProgress, note
    from mmkd.files import read_json
    from mmkd.pipeline.tune import RECORD, tune_together, tuned_folder

    plan, encoders = planned(recipe, overrides), encoder or ["text"]
    with EmbeddingProgress() as encoding:
        cards = tune_together(
            plan,
            encoders=encoders,
            name=name,
            folder=folder,
            resume=resume,
            overwrite=overwrite,
            progress=encoding.advance,
            announce=note,
        )
    if os.environ.get("RANK", "0") != "0":  # the first process speaks for all
        return
    names = {one: card.name for one, card in cards.items()}
    path = tuned_folder(plan, encoders, name=name, folder=folder)
    found = read_json(path / RECORD)
    if json:
        made: dict[str, Any] = {"card": path.name} if len(names) == 1 else {"cards": names}
        show.dump({**made, **found})
        return
    best = found["history"][found["best_epoch"]]["valid"]
    show.rows(
        ("validation pairs", found["parent"], path.name),
        [
            [key, f"{found['before'][key]:.4f}", f"{best[key]:.4f}"]
            for key in best
            if not key.endswith("MRR@10")
        ],
    )
    minutes = found["seconds"] / 60
    against = " ".join(f"--against {card}" for card in names.values())
    use = " ".join(f"encoders.{one}={card}" for one, card in names.items())
    typer.echo(
        f"{found['pairs']:,} pairs in {minutes:.1f} min, best epoch {found['best_epoch'] + 1}.\n"
        f"What it is worth: mmkd teacher {recipe} {against}\n"
        f"Train with it:    mmkd train {recipe} {use}"
    )


def _show_teachers(found: Mapping[str, Mapping[str, Any]]) -> None:
    """A row an encoder, then which correlation types go together most and least."""
    from mmkd.cli import results, show

    names = ("encoder", "AUC", "HR@10", *results.SLICES, "hubs", "orphans", "popularity", "rank")
    show.rows((*names, "seconds"), [_row(name, one) for name, one in found.items()])
    pairs = ", ".join(f"{name} {one['pairs']}" for name, one in found.items())
    typer.echo(
        f"Validation pairs ({pairs}); no event that tests is read. AUC: a pair taken together is "
        "nearer than one as\npopular. HR@10: neighbours of the last item, by how often the target "
        "trains. hubs: share of all neighbours that\nare a few items. orphans: items that are "
        "nobody's neighbour. popularity: Spearman of an item's and its\nneighbours'. rank: "
        "directions that the vectors use."
    )
    for name, one in found.items():
        typer.echo(f"\n{name}: correlation types that go together more, and less, than chance")
        types = one["types"]
        shown = types if len(types) <= 2 * _TYPES else [*types[:_TYPES], *types[-_TYPES:]]
        show.rows(
            ("type", "lift", "of pairs together", "by chance", "correlation"),
            [[str(t["type"]), f"{t['lift']:.2f}", *_type_cells(t)] for t in shown],
        )


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    from mmkd.cli.results import SLICES

    hits = [one["hr@10"][part] for part in ("all", *SLICES)]
    figures = [one["auc"], *hits, one["hubs"], one["orphans"], one["popularity"]]
    return [
        name if name == one["card"] else f"{name} ({one['card']})",
        *("-" if figure is None else f"{figure:.4f}" for figure in figures),
        f"{one['effective_rank']:.0f} of {one['dim']}",
        f"{one['seconds']:.1f}",
    ]


def _type_cells(one: Mapping[str, float]) -> list[str]:
    return [f"{one[key]:.4f}" for key in ("together", "chance", "correlation")]
