"""Several seeds of one recipe: a run each, and what they come to together.

One training says little of a recipe: another seed gives other figures. ``train_seeds`` trains
several, one after the other, into one folder; their means stand with intervals over users and seeds
(`mmkd.evaluation.crossed_intervals`), so that a difference between recipes is not one of luck.
``SeedRuns`` opens such a folder.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.config.joining import Encoders, data_section
from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import DataSection, Overrides, Recipe, read_recipe
from mmkd.data.dataset import Dataset
from mmkd.encoders import Encoder, EncoderCard
from mmkd.errors import RecipeError, RunError, refuse, within
from mmkd.evaluation import CaseRanks, crossed_intervals, per_case
from mmkd.evaluation.metrics import SLICES, metric_names, slice_of_items
from mmkd.pipeline.embed import EmbedProgress
from mmkd.pipeline.run import Run, comparison, given_plan, runs_folder
from mmkd.pipeline.train import train
from mmkd.pipeline.tune import tune_first
from mmkd.runs.folder import RunFolder, find_run
from mmkd.runs.seeds import SeedFolder, find_seeds
from mmkd.training.trainer import Trainer
from mmkd.trust import trust_code as trust

Seeds = int | str | Sequence[int]
_MOST = 2**32 - 1  # as of a recipe


class SeedRuns:
    """The runs of several seeds of one recipe, opened together.

        >>> import mmkd
        >>> from mmkd.demo import make_synthetic
        >>> _ = make_synthetic("shop", items=60, users=120)
        >>> recipe = mmkd.load_recipe(
        ...     "quickstart", ["data.root=shop", "training.epochs=1", "training.cpu=true"]
        ... )
        >>> made = mmkd.train_seeds(recipe, seeds=2, folder="runs/shop-seeds")
        >>> found = mmkd.SeedRuns("shop-seeds")
        >>> len(found.runs), found.result["seeds"]
        (2, [0, 1])
        >>> low, high = found.result["test"]["intervals"]["NDCG@10"]  # over users and seeds
        >>> low <= found.result["test"]["metrics"]["NDCG@10"] <= high
        True

    Args:
        folder: The folder that `train_seeds` made, or its name below ``runs``.
        runs: As for `load`.
        encoders: As for `load`.

    Attributes:
        folder: The folder.
        runs: A `Run` a seed, in the order of the seeds.

    Raises:
        RunError: The folder holds no seeds' runs, or they are not all finished.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        runs: Path | str | None = None,
        encoders: Mapping[str, EncoderCard | Encoder] | None = None,
    ) -> None:
        found = find_seeds(folder, runs_folder(runs))
        if found is None:
            one = find_run(folder, runs_folder(runs))
            raise RunError(f"{one.path}: holds one run, not several seeds'; open it by mmkd.load")
        self.folder = found
        found.summary()
        self.runs = tuple(Run(run.path, encoders=encoders) for run in found.runs())

    def __repr__(self) -> str:
        return f"SeedRuns({str(self.folder.path)!r})"

    @property
    def recipe(self) -> Recipe:
        """What was run, with the first of the seeds."""
        return self.runs[0].recipe

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of ``summary.json``: as a run's result, each figure the mean over seeds."""
        return self.folder.summary()

    def compare(
        self, *others: "Run | SeedRuns", cases: str = "test", metric: str = "NDCG@10"
    ) -> pl.DataFrame:
        """As `Run.compare`; of several seeds every case is the mean."""
        return comparison(self, others, cases=cases, metric=metric)

    def report(self, path: Path | str, *others: "Run | SeedRuns") -> Path:
        """As `Run.report`; what is of one run, such as its lists, is of the first seed."""
        from mmkd.report import write_report  # what only a report needs is loaded for one

        return write_report([self, *others], path)


def train_seeds(
    data: Dataset | Plan | Recipe | Path | str | None = None,
    recipe: Recipe | Path | str | None = None,
    *,
    seeds: Seeds = 3,
    encoders: Encoders | None = None,
    folder: Path | str | None = None,
    overrides: Overrides = (),
    trust_code: str | Sequence[str] | None = None,
    **options: Any,
) -> SeedRuns:
    """Train a recipe with several seeds, a run each, in one folder.

        >>> import mmkd
        >>> from mmkd.demo import make_synthetic
        >>> _ = make_synthetic("shop", items=60, users=120)
        >>> recipe = mmkd.load_recipe(
        ...     "quickstart", ["data.root=shop", "training.epochs=1", "training.cpu=true"]
        ... )
        >>> found = mmkd.train_seeds(recipe, seeds=(0, 7), folder="runs/kiosk-seeds")
        >>> [run.folder.path.name for run in found.runs]
        ['seed-0', 'seed-7']

    Args:
        data: As for `train`.
        recipe: As for `train`.
        seeds: How many, from the recipe's own on; or which.
        encoders: As for `train`.
        folder: Of all runs; None is ``runs/NAME-seeds``.
        overrides: As for `train`.
        trust_code: As for `train`.
        **options: ``resume``, ``overwrite``, ``progress``, ``announce`` of `train_all`.

    Returns:
        The trained runs.

    Raises:
        MmkdError: As for `mmkd.pipeline.seeds.train_all`.
    """
    trust(trust_code)
    planned = given_plan(data, recipe, encoders, overrides, folder)
    path = runs_folder(None) / f"{planned.recipe.name}-seeds" if folder is None else Path(folder)
    train_all(planned, seeds, folder=path, **options)
    own = {name: card for name, card in planned.cards.items() if card.holds_object}
    return SeedRuns(path, encoders=own)


def seeds_of(given: Seeds, *, first: int = 0) -> tuple[int, ...]:
    """The seeds that are meant.

    >>> from mmkd.pipeline.seeds import seeds_of
    >>> seeds_of(3, first=5), seeds_of("0,7,11"), seeds_of("2")
    ((5, 6, 7), (0, 7, 11), (0, 1))

    Args:
        given: How many, from ``first`` on; or which, as numbers or parted by commas.
        first: The recipe's own.

    Raises:
        RecipeError: There are fewer than two, one occurs twice, or one is no seed.
    """
    if isinstance(given, str):
        try:
            numbers = [int(part) for part in given.split(",")]
        except ValueError:
            raise RecipeError(
                f"seeds: got {given!r}, wanted how many, such as 3, or which, such as 0,7,11"
            ) from None
        given = numbers if "," in given else numbers[0]
    if isinstance(given, int):
        given = range(first, first + given)
    found = tuple(given)
    if len(found) < 2:
        raise RecipeError(
            f"seeds: got {len(found)}, wanted two or more; leave it out to train the recipe's own"
        )
    if len({*found}) < len(found):
        raise RecipeError(f"seeds: got {list(found)}, wanted each once; leave repeated ones out")
    refuse([line for seed in found for line in within(0, _MOST, seeds=seed)], RecipeError)
    return found


def train_all(
    planned: Plan | Recipe,
    seeds: Seeds,
    *,
    folder: Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: EmbedProgress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a recipe with several seeds, and sum them up.

    Encoders of the recipe's ``tune`` section are tuned once, with its own seed.

    Args:
        planned: What to run.
        seeds: As for ``seeds_of``.
        folder: Gets ``seed-N`` with a run each.
        resume: Skip seeds that are finished and continue one that was interrupted. There may be
            more seeds than before.
        overwrite: Start all of them anew.
        progress: Told how far the embedding is.
        announce: Told which seed is trained, and what ``train`` tells.

    Returns:
        The summary, shaped as a run's result: see ``summarise``.

    Raises:
        RecipeError: The recipe or the seeds have mistakes.
        RunError: The folder holds something else, other seeds, or another recipe's runs.
        MmkdError: As for ``mmkd.pipeline.train.train``.
    """
    planned = planned if isinstance(planned, Plan) else plan(planned)
    numbers, kept = seeds_of(seeds, first=planned.recipe.seed), SeedFolder(folder)
    processes = Trainer(planned.training).processes()
    main = processes.is_main_process
    if main:
        _check_open(kept, planned, numbers, resume=resume, overwrite=overwrite)
    planned = tune_first(planned, progress=progress, announce=announce)
    if main:
        _open(kept, planned.recipe, numbers, overwrite=overwrite)
    processes.wait_for_everyone()
    for place, seed in enumerate(numbers, start=1):
        run = kept.run(seed)
        if main and announce:
            done = ": trained already" if run.finished else ""
            announce(f"seed {seed}, {place} of {len(numbers)}{done}")
        train(
            seeded(planned, seed, run.path),
            folder=run.path,
            resume=resume,
            progress=progress,
            announce=announce,
            last=False,
        )
    if main:
        kept.write(summary=summarise(kept))
    processes.wait_for_everyone()
    processes.destroy_process_group()
    return kept.summary()


def seeded(planned: Plan, seed: int, folder: Path) -> Plan:
    """The same plan with another seed.

    Args:
        planned: The plan.
        seed: The seed.
        folder: Of its run, which keeps the tables that were given as frames.
    """
    changes: dict[str, Any] = {"seed": seed}
    if planned.data is not None and planned.data.frames:
        section = data_section(planned.data, folder=folder)
        changes["data"] = DataSection.model_validate(section)
    recipe = planned.recipe.model_copy(update=changes)
    return plan(recipe, cards=planned.cards, data=planned.data)


def summarise(folder: SeedFolder) -> dict[str, Any]:
    """What the finished runs of several seeds come to.

    Returns:
        ``recipe``, ``split`` and ``seeds``; ``test`` (None without one), ``validation``, ``valid``,
        ``breakdown``, ``seconds`` and ``parameters`` as a run's result has them, each figure the
        mean over seeds; ``test`` with ``intervals`` over users and seeds, also in each slice.
        ``by_seed`` has the values behind the metrics of ``test`` and ``valid``. ``baselines`` are
        those of the first, for they know no seed.

    Raises:
        RunError: A run is not finished, or they were trained on different data.
    """
    runs = folder.runs()
    results = [run.result() for run in runs]
    _check_same_data(runs)
    tests = [result["test"] for result in results]
    summary = {
        key: mean_of([result.get(key) for result in results])
        for key in ("valid", "validation", "breakdown", "seconds", "parameters")
    }
    if summary["validation"]:  # a mean of ends is no interval
        summary["validation"].pop("intervals", None)
    by_seed = {"valid": _by_name([result["valid"] for result in results])}
    tested = all(test is not None for test in tests)
    if tested:
        by_seed["test"] = _by_name([test["metrics"] for test in tests])
    return {
        "recipe": results[0].get("recipe"),
        "split": results[0].get("split"),
        "seeds": [*folder.seeds()],
        "runs": [run.path.name for run in runs],
        "test": _tested(runs, tests) if tested else None,
        **summary,
        "by_seed": by_seed,
        "baselines": results[0].get("baselines"),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
        "processes": results[0]["processes"],
    }


def mean_of(values: Sequence[Any]) -> Any:
    """The mean over like records: of numbers; of the parts of mappings and lists; else the first.

    >>> from mmkd.pipeline.seeds import mean_of
    >>> mean_of([{"n": 4, "HR@10": 0.5, "cold": None}, {"n": 4, "HR@10": 0.25, "cold": None}])
    {'n': 4, 'HR@10': 0.375, 'cold': None}
    """
    first = values[0]
    if isinstance(first, Mapping):
        shared = [key for key in first if all(key in (value or ()) for value in values)]
        return {key: mean_of([value[key] for value in values]) for key in shared}
    if isinstance(first, list):
        return [mean_of([value[place] for value in values]) for place in range(len(first))]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(values) or len({*numbers}) == 1:
        return first
    return float(np.mean(numbers))


def _tested(runs: Sequence[RunFolder], tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of tests, with intervals over users and seeds, of all cases and of each slice."""
    recipe = read_recipe(str(runs[0].recipe))
    planned = plan(recipe, needs_teacher=False, needs_encoders=False)
    data = planned.load_data()
    runs[0].check_data(data.digests())
    names = metric_names(planned.evaluator.ks)
    ranks = [run.ranks() for run in runs]
    values = np.stack([_per_case(one, names) for one in ranks])  # [S, N, M]
    users, slices = ranks[0].user, slice_of_items(data.split.train_counts())[ranks[0].target]
    resamples = planned.evaluator.resamples

    def intervals(here: NDArray[np.bool_]) -> dict[str, list[float]]:
        ends = crossed_intervals(values[:, here], users[here], resamples=resamples)
        # widened seeds may lead out of what a metric can be
        return dict(zip(names, ends.clip(0.0, 1.0).tolist(), strict=True))

    test: dict[str, Any] = mean_of(tests)
    test["intervals"] = intervals(np.ones(len(users), dtype=np.bool_))
    for number, part in enumerate(SLICES):
        if (here := slices == number).any():
            test["slices"][part]["intervals"] = intervals(here)
    return test


def _per_case(ranks: CaseRanks, names: Sequence[str]) -> NDArray[np.float64]:
    return np.column_stack([per_case(ranks.rank, name, ties=ranks.ties) for name in names])


def _by_name(records: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [record[name] for record in records] for name in records[0]}


def _check_open(
    kept: SeedFolder, planned: Plan, seeds: Sequence[int], *, resume: bool, overwrite: bool
) -> None:
    """Raise RunError unless the folder may be used as asked; changes nothing."""
    kept.check_free()
    if not kept.started:
        return
    if overwrite:
        root, read = planned.recipe.data.folder, (planned.items, planned.interactions)
        files = [] if planned.data is not None else [root / str(o["path"]) for o in read]
        if any(file.resolve().is_relative_to(kept.path.resolve()) for file in files):
            raise RunError(
                f"{kept.path}: what is to be trained on lies in this folder, which --overwrite "
                "clears; give another folder with --out"
            )
        return
    if not resume:
        raise RunError(
            f"{kept.path}: holds runs of several seeds already; give --resume to go on with them, "
            "--overwrite to start anew, or another folder with --out"
        )
    if left_out := sorted({*kept.seeds()} - {*seeds}):
        raise RunError(
            f"{kept.path}: holds the seeds {', '.join(map(str, kept.seeds()))}, and "
            f"{', '.join(map(str, left_out))} would be left out; give all of them and more, or "
            "another folder with --out"
        )
    for run in kept.runs():
        if run.started and not run.bare and not _same_but_seed(run, planned.recipe):
            raise RunError(
                f"{run.path}: holds a run of another recipe than {planned.recipe.name} as given "
                "now; resume with the same options, or give another folder with --out"
            )


def _open(kept: SeedFolder, recipe: Recipe, seeds: Sequence[int], *, overwrite: bool) -> None:
    """Mark the folder; the runs of one that is to be overwritten go first."""
    if overwrite and kept.started:
        there = [run for run in kept.runs() if run.started]
        if busy := [str(run.path) for run in there if run.busy]:
            raise RunError(f"{busy[0]}: another process trains here; wait for it, or stop it")
        for run in there:
            run.remove()
    kept.write(recipe=recipe.name, seeds=seeds)


def _same_but_seed(run: RunFolder, recipe: Recipe) -> bool:
    """Whether a run's recipe says the same, beside its seed and where its data is.

    Tuned encoders stand in a run's recipe by their cards' names.
    """
    then = read_recipe(str(run.recipe))
    hidden = {"seed", "data", "tune"} | ({"encoders"} if recipe.tune else set())
    return then.model_dump(exclude=hidden) == recipe.model_dump(exclude=hidden)


def _check_same_data(runs: Sequence[RunFolder]) -> None:
    """Raise RunError unless the runs were begun with the same data."""
    first = runs[0].marker()["data"]
    for run in runs[1:]:
        then = run.marker()["data"]
        if changed := sorted(key for key in {*first, *then} if first.get(key) != then.get(key)):
            raise RunError(
                f"{run.path} and {runs[0].path} were trained on another {', '.join(changed)}: the "
                "data changed between seeds; put it back and train the seed again (--overwrite)"
            )
