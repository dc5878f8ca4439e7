"""Sharing: a run, or a tuned encoder, to a repository of the hub, and from one.

What goes is what recommending takes: networks, ids and titles, how new items are placed, metrics,
the recipe without the paths of a machine. What stays at home is who took what (the log, users, the
rank of every test case) and what the encoders read (texts, pictures). What comes is a folder that
is opened, and checked, as any other.
"""

import re
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from mmkd.config.recipe import Recipe
from mmkd.data.items import ItemTable
from mmkd.encoders import EncoderCard, load_card
from mmkd.encoders.card import CARD_FILES, ENCODER_FILES, name_of_file
from mmkd.encoders.loading import local_path
from mmkd.errors import EncoderError, RunError, outside
from mmkd.files import copy_file
from mmkd.hub import fetch, is_elsewhere, is_repository, send
from mmkd.runs.folder import RunFolder, find_run
from mmkd.shipping.model_card import encoder_card, run_card

if TYPE_CHECKING:
    from mmkd.pipeline.run import Run

_WORDS_BYTES = 64 << 20  # of JSON and YAML
_ITEMS_BYTES = 4 << 30
_WEIGHTS_BYTES = 64 << 30
RUN_FILES = {
    "run.json": _WORDS_BYTES,
    "recipe.yaml": _WORDS_BYTES,
    "result.json": _WORDS_BYTES,
    "history.json": _WORDS_BYTES,
    "attributes.json": _WORDS_BYTES,
    "student.json": _WORDS_BYTES,
    "items.parquet": _ITEMS_BYTES,
    "student.safetensors": _WEIGHTS_BYTES,
    "reduction.safetensors": _WEIGHTS_BYTES,
}
_README = "README.md"
_AS_THEY_ARE = ("attributes.json", "history.json", "reduction.safetensors", "student.safetensors")
# how a path begins that means something on one machine only, and what is text though it may look so
_OUTSIDE = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\|\.\.[\\/]")
_TEXTS = frozenset(("text", "title", "separator", "attribute_separator", "escape"))


def push_run(run: "Run", repository: str, *, private: bool | None = None) -> str:
    """Send a run; `mmkd.Run.push_to_hub` in full.

    Args:
        run: A finished run.
        repository: ``org/name``; made where there is none. Another run's is replaced, by one
            commit.
        private: Whether a new repository is for its owner alone; None leaves it to the hub.

    Returns:
        Where it is to be looked at.

    Raises:
        RunError: The name is no repository's, there is no token or it may not write, the repository
            holds something else, or the hub can't be reached.
    """
    _check_name(repository, RunError)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / repository.rpartition("/")[2]
        share(run, folder)
        card = run_card(run, portable(run.recipe), repository)
        (folder / _README).write_text(card, encoding="utf-8")
        return send(
            repository,
            {file.name: file for file in sorted(folder.iterdir())},
            replaces=RUN_FILES,
            holds=["run.json"],
            message=f"mmkd run {run.folder.marker()['recipe']}",
            kind=RunError,
            private=private,
        )


def share(run: "Run", folder: Path) -> None:
    """Write what of a run is for others into a new folder, which is a run again."""
    source, target = run.folder, RunFolder(folder)
    with outside(RunError, folder, "can't be written", remedy="make room for it"):
        folder.mkdir(parents=True)
        marker = source.marker() | {"shared": True}
        marker.pop("files", None)
        if added := marker.get("added"):
            marker["added"] = {**added, "run": Path(added["run"]).name}
        items = run.items.frame
        named = items.select(
            "id",
            "title",
            pl.lit(None, pl.String).alias("text"),
            pl.lit(None, pl.String).alias("image_path"),
            pl.lit([], pl.List(pl.String)).alias("attributes"),
        )
        target.write(
            marker=marker,
            recipe=portable(run.recipe).to_yaml(),
            items=ItemTable.of(named),
            spec=source.student_spec(),
        )
        for name in _AS_THEY_ARE:
            if (source.path / name).is_file():
                copy_file(source.path / name, folder / name)
        target.write(result=source.result())  # last: it lists what is there


def portable(recipe: Recipe) -> Recipe:
    """A recipe without the paths of the machine it was run on: of each its last part is left.

    >>> from mmkd import load_recipe
    >>> from mmkd.shipping.sharing import portable
    >>> portable(load_recipe("quickstart", ["data.root=/home/ann/shop"])).data.root
    'shop'
    """
    content = _without_paths(recipe.model_dump())
    for place in ("folder", "mirror"):
        content["cache"].pop(place, None)
    content["encoders"] = {name: _card_name(card) for name, card in recipe.encoders.items()}
    return Recipe.model_validate(content)


def found_run(name: Path | str, runs: Path, *, revision: str | None = None) -> Path:
    """A run's folder: by its path, by its name below ``runs``, or ``org/name`` from the hub.

    What is here wins over the hub.

    Raises:
        RunError: There is none.
    """
    here = any(path.exists() for path in (Path(name), runs / name))
    if here or not is_elsewhere(name):
        if revision is not None:
            raise RunError(
                f"{name}: is meant to be here, and a revision is of a repository of the hub; leave "
                "it out"
            )
        return find_run(name, runs).path
    return fetch(
        str(name),
        RUN_FILES,
        holds=["run.json"],
        what="a run of mmkd",
        kind=RunError,
        revision=revision,
    )


def push_encoder(folder: Path, repository: str, *, private: bool | None = None) -> str:
    """Send a tuned encoder, or both towers of a model: cards and weights.

    Args:
        folder: Of the cards, as ``mmkd tune`` leaves it.
        repository: As for `push_run`; an encoder's is replaced.
        private: As for `push_run`.

    Raises:
        EncoderError: As RunError of `push_run`; or the card needs files of this machine, or a file
            beside it is not one that is sent.
    """
    _check_name(repository, EncoderError)
    cards = encoder_cards(folder)
    for card in cards:
        _check_complete(card, folder)
    own = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files: dict[str, Path | bytes] = {
        name: path for path in own if _sent(name := path.relative_to(folder).as_posix())
    }
    files[_README] = encoder_card(cards, folder, repository).encode()
    return send(
        repository,
        files,
        replaces=ENCODER_FILES,
        holds=CARD_FILES,
        message=f"mmkd encoder {' and '.join(card.name for card in cards)}",
        kind=EncoderError,
        private=private,
    )


def encoder_folder(name: str) -> Path | None:
    """A tuned encoder's folder, by its path or its name in ``encoders``; None if it is none."""
    for folder in (Path(name), Path("encoders") / name):
        if any((folder / card).is_file() for card in CARD_FILES):
            return folder
    return None


def encoder_cards(folder: Path) -> list[EncoderCard]:
    """The cards in a tuned encoder's folder: one, or one a tower."""
    found = [folder / name for name in CARD_FILES if (folder / name).is_file()]
    return [load_card(str(file)) for file in found]


def _check_name(repository: str, kind: type[RunError] | type[EncoderError]) -> None:
    if not is_repository(repository):
        raise kind(f"{repository}: is no name of a repository of the hub; write org/name")


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            k: v if k in _TEXTS and isinstance(v, str) else _without_paths(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and _OUTSIDE.match(value):
        return Path(value.replace("\\", "/")).name or value
    return value


def _card_name(card: str) -> str:
    """Of a card's file the name that it has among cards."""
    path = Path(card)
    if path.suffix not in (".yaml", ".yml"):
        return card
    return name_of_file(path)


def _sent(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in ENCODER_FILES)


def _check_complete(card: EncoderCard, folder: Path) -> None:
    """Raise EncoderError unless the card and what lies beside it are all that it takes."""
    inside = folder.resolve()
    for source in (card.model, card.pretrained, card.options.get("adapter")):
        path = local_path(source) if isinstance(source, str) else None
        if path is not None and not path.is_relative_to(inside):
            raise EncoderError(
                f"{folder}: names {path}, which is on this machine alone; tune from a model of the "
                "hub, or without lora_rank, so that all weights lie in the folder"
            )
    for part in ("model", "adapter"):
        for file in sorted((folder / part).rglob("*")):
            name = file.relative_to(folder).as_posix()
            hidden = "/." in f"/{name}" or name.endswith(".md")
            if file.is_file() and not hidden and not _sent(name):
                raise EncoderError(
                    f"{folder}: holds {name}, which is not sent: only safetensors, JSON and "
                    "vocabularies are; move it away"
                )
