"""``mmkd ls`` and ``mmkd cp``: recipes, encoder cards, runs and the cache's contents."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmkd.cli.arguments import RUNS, AsJson, Runs
from mmkd.cli.cache import CACHE, Folder, stores
from mmkd.errors import EncoderError, RecipeError, RunError, outside
from mmkd.files import copy_file

if TYPE_CHECKING:
    from mmkd.runs.folder import RunFolder
    from mmkd.runs.seeds import SeedFolder

KINDS = ("recipes", "presets", "encoders", "runs", "cache")


def list_(
    what: Annotated[
        str, typer.Argument(help="recipes, presets, encoders, runs or cache.")
    ] = "recipes",
    runs: Runs = RUNS,
    cache: Folder = CACHE,
    json: AsJson = False,
) -> None:
    """List recipes, presets, encoder cards, runs, or what the cache holds."""
    from mmkd.cli import show
    from mmkd.config.options import unknown
    from mmkd.config.recipe import preset_names, recipe_names

    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "recipes": lambda: _recipes("recipe", recipe_names()),
        "presets": lambda: _recipes("preset", preset_names()),
        "encoders": _encoders,
        "runs": lambda: _runs(runs),
        "cache": lambda: stores(cache),
    }
    if what not in makers:
        raise RecipeError(f"ls {what}: {unknown(what, KINDS)}")
    show.records(makers[what](), none=f"no {what}", as_json=json)


def copy(
    name: Annotated[str, typer.Argument(help="A recipe's or an encoder card's name.")],
    destination: Annotated[Path, typer.Argument(help="A .yaml file or a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe or an encoder card to edit it; a variant brings the recipe it is based on."""
    from mmkd.config.recipe import base_of, preset_names, recipe_names
    from mmkd.encoders.card import has_weights_beside

    source = _source(name)
    if has_weights_beside(source):
        raise RecipeError(f"{name}: has its weights beside it; copy the folder {source.parent}")
    target = destination
    if destination.is_file() and destination.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{destination}: is a file; give a folder or a name ending in .yaml")
    if destination.suffix not in (".yaml", ".yml"):
        target = destination / source.name
    if target.is_dir():
        raise RecipeError(f"{target}: Is a directory; give the name of a file")
    if target.exists() and not force:
        raise RecipeError(f"{target}: exists; give --force to replace it or another name")
    if target.exists() and target.samefile(source):
        raise RecipeError(f"{target}: is what would be copied; give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(source, target)
    typer.echo(f"{source.name} -> {target}")
    base = base_of(source) if name in (*recipe_names(), *preset_names()) else None
    if base is not None and not (target.parent / base.name).exists():
        _copy(base, target.parent / base.name)
        typer.echo(f"{base.name} -> {target.parent / base.name}")


def _copy(source: Path, target: Path) -> None:
    with outside(RecipeError, target, "cannot be written", remedy="give another name"):
        copy_file(source, target)


def _source(name: str) -> Path:
    from mmkd.config.options import unknown
    from mmkd.config.recipe import find_recipe, preset_names, recipe_names
    from mmkd.encoders import list_cards
    from mmkd.encoders.card import card_path

    recipes = [*recipe_names(), *preset_names()]
    if name in recipes:
        return find_recipe(name)
    try:
        return card_path(name)
    except EncoderError as error:
        known = [*recipes, *(card.name for card in list_cards())]
        raise RecipeError(f"{name}: {unknown(name, known)}") from error


def _recipes(kind: str, names: list[str]) -> list[dict[str, Any]]:
    from mmkd.config.recipe import find_recipe

    records = []
    for name in names:
        try:
            first = find_recipe(name).read_text("utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError):
            first = "not readable as UTF-8"
        records.append({kind: name, "what": first.removeprefix("#").strip()})
    return records


def _encoders() -> list[dict[str, Any]]:
    from mmkd.encoders import list_cards

    return [
        {
            "card": card.name,
            "modality": card.modality,
            "kind": card.kind,
            "dim": card.dim,
            "size_mb": card.size_mb,
            "license": card.license,
            "model": card.model,
        }
        for card in list_cards()
    ]


def _runs(folder: Path) -> list[dict[str, Any]]:
    from mmkd.runs.folder import run_folders
    from mmkd.runs.seeds import seed_folders

    found = [{"run": run.path.name, **_state(run)} for run in run_folders(folder)]
    found += [{"run": seeds.path.name, **_seeds_state(seeds)} for seeds in seed_folders(folder)]
    return sorted(found, key=lambda one: str(one["run"]))


def _seeds_state(seeds: "SeedFolder") -> dict[str, Any]:
    """As ``_state``, of several seeds' runs: the means."""
    state: dict[str, Any] = {"state": "damaged", "epochs": None}
    state |= {"valid NDCG@10": None, "test NDCG@10": None}
    try:
        runs = seeds.runs()
        done = sum(run.finished for run in runs)
        state["state"] = f"{done} of {len(runs)} seeds"
        if seeds.finished:
            summary = seeds.summary()
            state["valid NDCG@10"] = summary["valid"].get("NDCG@10")
            state["test NDCG@10"] = (summary["test"] or {"metrics": {}})["metrics"].get("NDCG@10")
    except (RunError, AttributeError, KeyError, TypeError):
        state["state"] = "damaged"
    return state


def _state(run: "RunFolder") -> dict[str, Any]:
    state: dict[str, Any] = {"state": "unfinished", "epochs": None}
    state |= {"valid NDCG@10": None, "test NDCG@10": None}
    try:
        run.marker()
        if run.finished:
            result = run.result()
            state |= {
                "state": "finished",
                "epochs": result["epochs"],
                "valid NDCG@10": result["valid"].get("NDCG@10"),
                "test NDCG@10": (result["test"] or {"metrics": {}})["metrics"].get("NDCG@10"),
            }
    except (RunError, AttributeError, KeyError, TypeError):
        state["state"] = "damaged"
    return state
