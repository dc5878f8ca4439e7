"""``mmkd ls`` and ``mmkd cp``: recipes, encoder cards, runs and the cache's contents."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd.cli import show as shown
from mmkd.cli.cache import stores
from mmkd.config.options import unknown
from mmkd.config.recipe import base_of, find_recipe, recipe_names
from mmkd.encoders import list_cards
from mmkd.encoders.card import card_path
from mmkd.errors import EncoderError, RecipeError, RunError
from mmkd.runs.folder import RunFolder, run_folders

KINDS = ("recipes", "encoders", "runs", "cache")


def show(what: str, *, runs: Path, cache: Path, as_json: bool) -> None:
    """List one kind of thing.

    Raises:
        RecipeError: ``what`` is none of ``KINDS``.
    """
    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "recipes": _recipes,
        "encoders": _encoders,
        "runs": lambda: _runs(runs),
        "cache": lambda: stores(cache),
    }
    if what not in makers:
        raise RecipeError([f"ls {what}: {unknown(what, KINDS)}"])
    records = makers[what]()
    shown.records(records, none=f"no {what}", as_json=as_json)


def copy(name: str, destination: Path, *, force: bool) -> str:
    """Copy a recipe or, where no recipe has this name, an encoder card.

    Args:
        name: Its name.
        destination: A ``.yaml`` file, or a folder in which it keeps its name.
        force: Replace what is there.

    Returns:
        What was done, for a person.

    Raises:
        RecipeError: Neither a recipe nor a card has the name, or the file exists.
    """
    source = _source(name)
    target = destination
    if destination.is_file() and destination.suffix not in (".yaml", ".yml"):
        raise RecipeError([f"{destination}: is a file; give a folder or a name ending in .yaml"])
    if destination.suffix not in (".yaml", ".yml"):
        target = destination / source.name
    if target.exists() and not force:
        raise RecipeError([f"{target}: exists; give --force to replace it or another name"])
    if target.exists() and target.samefile(source):
        raise RecipeError([f"{target}: is what would be copied; give another name"])
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    told = f"{source.name} -> {target}"
    base = base_of(source) if name in recipe_names() else None
    if base is not None and not (target.parent / base.name).exists():
        shutil.copyfile(base, target.parent / base.name)  # a variant is read with its base
        told += f"\n{base.name} -> {target.parent / base.name}"
    return told


def _source(name: str) -> Path:
    if name in recipe_names():
        return find_recipe(name)
    try:
        return card_path(name)
    except EncoderError as error:
        known = [*recipe_names(), *(card.name for card in list_cards())]
        raise RecipeError([f"{name}: {unknown(name, known)}"]) from error


def _recipes() -> list[dict[str, Any]]:
    records = []
    for name in recipe_names():
        try:
            first = find_recipe(name).read_text("utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError):
            first = "not readable as UTF-8"
        records.append({"recipe": name, "what": first.removeprefix("#").strip()})
    return records


def _encoders() -> list[dict[str, Any]]:
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
    return [{"run": run.path.name, **_state(run)} for run in run_folders(folder)]


def _state(run: RunFolder) -> dict[str, Any]:
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
                "test NDCG@10": result["test"]["metrics"].get("NDCG@10"),
            }
    except (RunError, AttributeError, KeyError, TypeError):
        state["state"] = "damaged"
    return state
