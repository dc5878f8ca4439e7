"""Evaluating trained runs: rank a run's cases again, or compare two runs case by case."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmkd.config.plan import plan
from mmkd.config.recipe import Recipe, read_recipe
from mmkd.data.splits import SequenceSplit
from mmkd.errors import RunError
from mmkd.evaluation import CaseRanks, Evaluator, compare
from mmkd.runs.folder import RunFolder
from mmkd.runs.seeds import members
from mmkd.training.trainer import Trainer


def evaluate(folder: Path, *, cases: str = "test") -> dict[str, Any]:
    """Evaluate a run's student again on its own split.

    Args:
        folder: A trained run.
        cases: ``test`` or ``valid``.

    Returns:
        The report, as ``Evaluator.report`` gives it; without ``breakdown`` where the run's own
        result has none, which is of release 0.1 and stays as it was. Of a run that is not finished
        it has a line, ``unfinished``, that says so.

    Raises:
        RunError: The folder holds no trained run, or the data changed since; or the run is not
            finished, whose test cases are for the weights it ends with.
    """
    run = RunFolder(folder)
    unfinished = _unfinished(run, cases)
    run.check_files()
    recipe = read_recipe(str(run.recipe))
    evaluator, split, ranks = _rank_again(run, recipe, cases)
    report = evaluator.report(ranks, split, seed=recipe.seed)
    if run.finished and "breakdown" not in run.result():
        del report["breakdown"]
    return report | ({"unfinished": unfinished} if unfinished else {})


def compare_runs(
    first: Path, second: Path, *, cases: str = "test", metric: str = "NDCG@10"
) -> dict[str, Any]:
    """Is one run better than another? The ``test`` cases are those the runs keep.

    Args:
        first: A trained run; or a folder with those of several seeds, of which every case is the
            mean.
        second: Another on the same data.
        cases: ``test``, or ``valid`` to choose between settings: both runs rank those again, as a
            run does its test cases that ended without a test.
        metric: Which metric to compare.

    Returns:
        As ``compare`` gives it.

    Raises:
        RunError: A folder holds no trained run, the data changed since, or the runs were trained
            on different data or rank among different candidates.
    """
    sides = [members(first), members(second)]
    runs = [run for side in sides for run in side]
    unfinished = [line for run in runs if (line := _unfinished(run, cases))]
    recipes = [read_recipe(str(run.recipe)) for run in runs]
    for other, recipe in zip(runs[1:], recipes[1:], strict=True):
        _check_comparable((runs[0], other), (recipes[0], recipe))
    ranks = [
        run.ranks()
        if cases == "test" and run.result()["test"]
        else _rank_again(run, recipe, cases)[2]
        for run, recipe in zip(runs, recipes, strict=True)
    ]
    count = len(sides[0])
    found = compare(ranks[:count], ranks[count:], metric=metric)
    return found | ({"unfinished": "; ".join(unfinished)} if unfinished else {})


def _unfinished(run: RunFolder, cases: str) -> str | None:
    """What to tell of a run that is not finished; RunError where its test cases are asked for."""
    if run.finished or not run.started:
        return None
    if cases == "test":
        raise RunError(
            f"{run.path}: training is not finished, and the test cases are for the weights it ends "
            "with; continue it with --resume, or see how far it is with --cases valid"
        )
    return f"{run.path}: training is not finished; these are its best weights so far"


def _check_comparable(runs: Sequence[RunFolder], recipes: Sequence[Recipe]) -> None:
    """Raise RunError unless a difference of two runs' figures is one of the runs."""
    first, second = (run.marker()["data"] for run in runs)
    differ = [f"data ({k})" for k in sorted({*first, *second}) if first.get(k) != second.get(k)]
    usual = Evaluator().exclude_seen
    seen = [recipe.evaluation.get("exclude_seen", usual) for recipe in recipes]
    if seen[0] != seen[1]:
        differ.append(f"evaluation.exclude_seen ({seen[0]} and {seen[1]})")
    if differ:
        raise RunError(
            f"{runs[0].path} and {runs[1].path} differ in {', '.join(differ)}, so their figures "
            "can't be compared; train both on the same data, with the same candidates"
        )


def _rank_again(
    run: RunFolder, recipe: Recipe, cases: str
) -> tuple[Evaluator, SequenceSplit, CaseRanks]:
    planned = plan(recipe, needs_teacher=False, needs_encoders=False)
    student = run.student()
    data = planned.load_data()
    run.check_data(data.digests())
    processes = Trainer(planned.training).processes()
    student.to(processes.device)
    chosen = data.split.test
    if cases == "valid":
        chosen = planned.evaluator.sample(data.split.valid)
    ranks = planned.evaluator.ranks(student, data.split, chosen, processes=processes)
    return planned.evaluator, data.split, ranks
