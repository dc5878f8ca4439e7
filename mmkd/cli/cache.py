"""``mmkd cache``: what the embedding cache holds, whether it is sound, and what may go."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmkd.cli.arguments import AsJson, trusting

app = typer.Typer(
    help="The embedding cache: list it, verify it, free what no recipe uses.",
    no_args_is_help=True,
)


def _folder(name: str) -> Path:
    """A folder; of an object store these commands know nothing."""
    from mmkd.embeddings.remote import default_mirror, is_url, url_problems

    if not is_url(name):
        return Path(name)
    told = "; ".join(url_problems(name)) or (
        f"{name} is an object store; name its mirror, by default {default_mirror(name)}, to list, "
        "verify or free what is here: what is missing there is fetched again. Objects are removed "
        "by the store's own tools; a folder in it is an encoder"
    )
    raise typer.BadParameter(told)


Folder = Annotated[
    Path,
    typer.Option("--cache", help="The cache's folder.", envvar="MMKD_CACHE", parser=_folder),
]
CACHE = Path("cache")


@app.command("ls")
def list_(cache: Folder = CACHE, json: AsJson = False) -> None:
    """The encoders' stores: vectors, precision, tables, size, last use."""
    from mmkd.cli import show

    show.records(stores(cache), none="no cache", as_json=json)


@app.command()
def verify(
    cache: Folder = CACHE,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged; mmkd embed makes it again.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Read every byte and compare checksums; exit status 1 if something is damaged."""
    from mmkd.cli import show
    from mmkd.cli.progress import Bar
    from mmkd.embeddings.upkeep import verify_cache

    with Bar("verify shards") as bar:
        shards, damage = verify_cache(cache, repair=repair, progress=bar.advance)
    rows = [{"file": str(one.path), "fault": one.fault} for one in damage]
    if json:
        show.dump({"shards": shards, "damaged": rows, "repaired": repair and bool(rows)})
    else:
        show.records(rows, none=f"{shards} shards are sound", as_json=False)
        if rows:
            remedy = "removed" if repair else "--repair removes them"
            typer.echo(
                f"{len(rows)} damaged, {shards} shards read; {remedy}; mmkd embed then mends"
            )
    if rows:
        raise typer.Exit(1)


@app.command()
@trusting
def gc(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes whose encoders stay; default all of mmkd ls recipes."),
    ] = None,
    cache: Folder = CACHE,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, help="Only what was last used this many days ago; old tables too."),
    ] = None,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="Also shards that no kept table has vectors of.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete/--dry-run", help="Remove it, or just say what would go.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Free what no recipe uses; only says what would go unless --delete is given."""
    from mmkd.cli import show
    from mmkd.embeddings.upkeep import find_waste, free

    waste = find_waste(
        cache, _fingerprints(recipes), older_than_days=older_than, unreferenced=unreferenced
    )
    removed = free(waste) if delete else []
    rows: list[dict[str, Any]] = [
        {
            "path": str(one.path),
            "why": one.why,
            "size_mb": round(one.size_bytes / 1e6, 1),
            "state": _state(one in removed, delete, one.in_use),
        }
        for one in waste
    ]
    show.records(rows, none="nothing to free", as_json=json)
    if rows and not json:
        size_mb = sum(one.size_bytes for one in (removed if delete else waste)) / 1e6
        told = "freed" if delete else "would be freed with --delete"
        typer.echo(f"{size_mb:.1f} MB {told}")


def stores(cache: Path) -> list[dict[str, Any]]:
    """A record for each store, the last used first."""
    from mmkd.embeddings import EmbeddingCache

    return [
        {
            "card": entry.card_name,
            "modality": entry.modality,
            "dtype": entry.dtype,
            "items": entry.items,
            "present": entry.present,
            "vectors": entry.vectors,
            "tables": entry.tables,
            "size_mb": round(entry.size_bytes / 1e6, 1),
            "last_used": entry.last_used.isoformat(timespec="minutes"),
            "store": entry.folder.name,
        }
        for entry in EmbeddingCache(cache).entries()
    ]


def _fingerprints(recipes: list[str] | None) -> set[str]:
    """Fingerprints of all cards that the recipes name; a recipe that cannot be read is an error."""
    from mmkd.config.recipe import read_recipe, recipe_names
    from mmkd.encoders import load_card

    # where the data lies changes no encoder, and shipped recipes leave it open
    found = [read_recipe(name, ["data.root=."]) for name in recipes or recipe_names()]
    cards = {(card, tower) for recipe in found for tower, card in recipe.encoders.items()}
    return {load_card(card, tower=tower).fingerprint() for card, tower in cards}


def _state(removed: bool, delete: bool, in_use: bool) -> str:
    if removed:
        return "freed"
    return "in use: left" if in_use or delete else "would go"
