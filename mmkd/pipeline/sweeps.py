"""Sweeps of several recipes: as many trials for each, which is how a comparison is fair.

A folder holds a sweep a recipe, each in a folder of its recipe's name, and ``sweeps.json``, which
says what they have in common. All are searched on the same validation cases by the same metric; the
best of each may then be trained with several seeds, and only those are tested.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmkd import __version__
from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import read_recipe
from mmkd.errors import RecipeError, RunError, outside
from mmkd.files import read_json, write_sealed_json
from mmkd.pipeline.embed import EmbedProgress
from mmkd.pipeline.seeds import SeedRuns, Seeds, train_all
from mmkd.pipeline.study import Sweep, Trial, is_sweep, parted, read_sweep
from mmkd.pipeline.sweep import sweep

MARKER = "sweeps.json"


def sweep_all(
    given: Mapping[str, tuple[str, Sequence[str]]],
    *,
    folder: Path,
    trials: int = 30,
    jobs: int = 1,
    seed: int = 0,
    prune: bool = True,
    announce: Callable[[str, Trial], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Sweep]:
    """Sweep several recipes, one after the other, with the same number of trials.

    Args:
        given: Recipe's name to its path or name, and its overrides, of ``study.by_recipe``.
        folder: Gets a folder a recipe, by its name; what is there already goes on.
        trials: How many for each.
        jobs: As for ``sweep``.
        seed: As for ``sweep``.
        prune: As for ``sweep``.
        announce: Told of each trial as it ends, with its recipe's name.
        note: As for ``sweep``.

    Returns:
        What each sweep found, in the order given.

    Raises:
        RecipeError: As for ``sweep``; or two recipes differ in data, candidates or metric.
        RunError: As for ``sweep``; or the folder holds other sweeps.
    """
    plans = {name: _planned(recipe, own) for name, (recipe, own) in given.items()}
    _check_comparable(plans)
    _open(folder, list(given))
    for name, (recipe, own) in given.items():
        if note:
            note(f"{name}: {trials} trials")
        sweep(
            recipe,
            own,
            folder=folder / name,
            trials=trials,
            jobs=jobs,
            seed=seed,
            prune=prune,
            announce=None if announce is None else partial(announce, name),
            note=note,
        )
    return [read_sweep(folder / name) for name in given]


def train_best(
    sweeps: Sequence[Sweep],
    seeds: Seeds,
    *,
    progress: EmbedProgress | None = None,
    note: Callable[[str], None] | None = None,
) -> list[SeedRuns]:
    """Train and test the best recipe of each sweep with several seeds; what is there goes on.

    Args:
        sweeps: They came to their end.
        seeds: As for ``train_seeds``; the runs lie in ``NAME-seeds`` below the sweep's folder.
        progress: Told how far an embedding is.
        note: Told which recipe is trained, and with which seed.

    Raises:
        MmkdError: As for ``train_all``.
    """
    found = []
    for one in sweeps:
        if note:
            note(f"{one.name}: the best, trained and tested")
        recipe = read_recipe(str(one.folder / "best.yaml"))
        path = one.folder / f"{recipe.name}-seeds"
        train_all(recipe, seeds, folder=path, resume=True, progress=progress, announce=note)
        found.append(SeedRuns(path))
    return found


def find_sweeps(name: str | Path, runs: Path) -> list[Path]:
    """The sweeps in a folder, by its path or its name below ``runs``; none where it holds none.

    Raises:
        RunError: The folder's record is damaged.
    """
    for path in (Path(name), runs / name):
        if is_sweep(path):
            return [path]
        if (path / MARKER).is_file():
            return [path / one for one in _marker(path) if is_sweep(path / one)]
    return []


def _planned(recipe: str, overrides: Sequence[str]) -> Plan:
    return plan(read_recipe(recipe, parted(overrides)[1]))


def _check_comparable(plans: Mapping[str, Plan]) -> None:
    """Raise RecipeError unless the best of each can be told by one figure of the same cases."""
    (first, base), *others = plans.items()
    digests = None
    for name, other in others:
        differ = []
        if other.training.select_metric != base.training.select_metric:
            differ.append("training.select_metric")
        if other.evaluator.exclude_seen != base.evaluator.exclude_seen:
            differ.append("evaluation.exclude_seen")
        if other.recipe.data != base.recipe.data:  # the same data may be written in two ways
            digests = digests or base.load_data().digests()
            now = other.load_data().digests()
            differ += [f"data ({key})" for key in digests if now[key] != digests[key]]
        if differ:
            raise RecipeError(
                f"{name} and {first} differ in {', '.join(differ)}, so their validation figures "
                "can't be compared; give them the same, or sweep each by itself"
            )


def _open(folder: Path, names: Sequence[str]) -> None:
    """Mark a folder; RunError where it holds other sweeps."""
    if (folder / MARKER).is_file() and (known := _marker(folder)) != list(names):
        raise RunError(
            f"{folder}: holds sweeps of {', '.join(known)}; give the same recipes in this order, "
            "or another folder with --out"
        )
    with outside(RunError, folder, "can't be written", remedy="give another one with --out"):
        content: dict[str, Any] = {"mmkd": __version__, "recipes": list(names)}
        write_sealed_json(folder / MARKER, content)


def _marker(folder: Path) -> list[str]:
    """The names of the recipes whose sweeps are in a folder."""
    path, remedy = folder / MARKER, "give the same command again, which writes it anew"
    with outside(RunError, path, "damaged", remedy=remedy, also=(TypeError, ValueError)):
        names = read_json(path, "recipes")["recipes"]
        if not isinstance(names, list) or any(Path(str(n)).name != n for n in names):
            raise TypeError("its recipes are no names")
    return [str(name) for name in names]
