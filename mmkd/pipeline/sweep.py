"""Sweep: a recipe and a space of options to the trial that is best on validation, by Optuna.

Every trial is a run of its own in a process of its own, so that several go side by side and one
that fails costs none of the others; none of them reads the test set. What was tried is kept in
SQLite: a sweep that was stopped goes on where it was, trials that were running from their last
checkpoint. Trial n is drawn with the seed of the search plus n, by what ended before it, so that
stopping changes nothing of a search that runs one trial at a time. A trial whose best validation
falls behind the median of those before it, at the same epoch, is stopped there.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import Recipe, read_recipe
from mmkd.errors import RecipeError, RunError, at_least, outside, refuse
from mmkd.files import read_json
from mmkd.interruption import Interruption
from mmkd.pipeline.study import (
    Dimension,
    Trial,
    begin_study,
    ended_trial,
    parted,
    recorded,
    trial_folder,
)
from mmkd.pipeline.tune import tune_first
from mmkd.runs.folder import RunFolder
from mmkd.threads import thread_count
from mmkd.training.checkpoint import CheckpointFolder
from mmkd.trust import trusted

if TYPE_CHECKING:
    import optuna

_POLL_S = 0.2
_MEASURES = ("seed", "training.select_metric", "evaluation.exclude_seen", "evaluation.cases")
_SEARCHED = "recipe.yaml"
_UNTESTED = "evaluation.test=false"  # of every trial
_FIRST_TRIALS = 5  # that are never stopped: a median of fewer says little
_FIRST_EPOCHS = 1 / 3  # in which none is stopped: rates that start slowly may end best


def sweep(
    recipe: str,
    overrides: Sequence[str],
    *,
    folder: Path,
    trials: int = 30,
    jobs: int = 1,
    seed: int = 0,
    prune: bool = True,
    announce: Callable[[Trial], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Trial]:
    """Search a recipe's options on validation.

    Encoders of the recipe's ``tune`` section are tuned once, before the trials, which all take
    them; what the tuning depends on can't be searched then.

    Args:
        recipe: Path or name of a recipe.
        overrides: As for ``load_recipe``, those of ``Dimension`` among them.
        folder: Gets ``sweep.db``, ``recipe.yaml`` as it is read now, ``trials/NNNN`` with a run
            each, and ``best.yaml``; a sweep that is there already goes on.
        trials: How many in all.
        jobs: How many at once; each gets its share of the cores.
        seed: Of the search.
        prune: Whether trials that fall behind are stopped.
        announce: Told of each trial as it ends.
        note: Told in a line what else there is to know.

    Returns:
        All trials that ended, by number. The test set is read by none of this.

    Raises:
        RecipeError: The recipe or a dimension is wrong, or there is no dimension.
        RunError: The folder holds another sweep, or one that is running; or every trial failed.
        MmkdError: Optuna is not installed.
    """
    refuse(at_least(1, trials=trials, jobs=jobs))
    space, fixed = parted(overrides)
    if not space:
        raise RecipeError(
            ["sweep: got no option to search, wanted one such as 'training.lr=log(1e-4,1e-2)'"]
        )
    refuse(
        [
            f"{one.key}: can't be searched: it changes what a trial is measured by, not the trial"
            for one in space
            if one.key in _MEASURES
        ],
        RecipeError,
    )
    base = read_recipe(recipe, fixed)
    for corner in (0, -1):  # both ends must be possible before anything runs
        ends = [f"{dimension.key}={dimension.values[corner]}" for dimension in space]
        plan(read_recipe(recipe, [*fixed, *ends]))
    _check_tuned(base, space)
    planned = plan(base)
    with _alone(folder):
        metric = planned.training.select_metric
        study = begin_study(folder, base, space, metric=metric)
        study.pruner = _pruner(planned.training.epochs, prune=prune)
        # what trials read: whoever changes the recipe's file meanwhile changes no trial
        searched = folder / _SEARCHED
        read_recipe(recipe, [*fixed, *_tuned(planned, note)]).save(searched)
        search = _Search(study, searched, space, folder, jobs, seed, metric)
        ended = search.run(trials, announce=announce, note=note)
        good = [one for one in ended if one.value is not None]
        if not good:
            raise RunError(f"{folder}: every trial failed; the first said: {ended[0].error}")
        best = max(good, key=lambda one: one.value or 0.0)
        read_recipe(str(searched), [*best.overrides]).save(folder / "best.yaml")
    return ended


@dataclass
class _Search:
    """Trials of a study: drawn, run some at once, watched, told to it."""

    study: "optuna.Study"
    recipe: Path
    space: Sequence[Dimension]
    folder: Path
    jobs: int
    seed: int
    metric: str
    running: "list[_Running]" = field(default_factory=list)

    def run(
        self,
        trials: int,
        *,
        announce: Callable[[Trial], None] | None,
        note: Callable[[str], None] | None,
    ) -> list[Trial]:
        """All trials up to a number; RunError where it is told to stop."""
        study, running = self.study, self.running
        waiting = [one.number for one in study.trials if not one.state.is_finished()]
        ended = [ended_trial(one) for one in study.trials if one.state.is_finished()]
        # the inner one is told of the first signal, the outer one of the second
        with recorded(self.folder), Interruption() as at_once, Interruption() as interruption:
            try:
                left = self._left_running(waiting, note)
                while True:
                    while len(running) + len(left) < self.jobs and (
                        waiting or len(study.trials) < trials
                    ):
                        self._start(waiting.pop(0) if waiting else len(study.trials))
                    if not running and not left:
                        break
                    time.sleep(_POLL_S)
                    if interruption.requested:  # of a trial that was told too there is no end
                        break
                    for number in [n for n in left if not self._of(n).busy]:
                        left.remove(number)
                        waiting.append(number)
                    for one in running:
                        one.watch(self.metric)
                    for one in [one for one in running if one.process.poll() is not None]:
                        running.remove(one)
                        if one.process.returncode and not one.pruned and one.run.busy:
                            left.append(one.trial.number)  # another was begun before, and killed
                            continue
                        ended.append(one.end(study, self.metric))
                        if announce:
                            announce(ended[-1])
                for one in running:
                    one.process.terminate()
                while not at_once.requested and any(one.process.poll() is None for one in running):
                    time.sleep(_POLL_S)  # they write a checkpoint
            finally:
                for one in running:
                    one.kill()
        if interruption.requested:
            raise RunError(
                f"{self.folder}: stopped after {len(ended)} of {trials} trials; the same command "
                "goes on"
            )
        return sorted(ended, key=lambda one: one.number)

    def _of(self, number: int) -> RunFolder:
        return RunFolder(trial_folder(self.folder, number))

    def _left_running(self, waiting: list[int], note: Callable[[str], None] | None) -> list[int]:
        """Trials that train on, though the sweep that began them was killed; to be waited for."""
        left = [number for number in waiting if self._of(number).busy]
        for number in left:
            waiting.remove(number)
            if note:
                note(
                    f"trial {number + 1} is still training since the sweep was killed; waiting "
                    "for it"
                )
        return left

    def _start(self, number: int) -> None:
        trial = _trial(self.study, number, seed=self.seed)
        chosen = [dimension.suggest(trial) for dimension in self.space]
        trial.set_user_attr("overrides", chosen)
        begun = _Running.start(trial, self.recipe, chosen, self.folder, self.jobs)
        begun.told = {*self.study.trials[number].intermediate_values}
        self.running.append(begun)


@dataclass
class _Running:
    trial: "optuna.Trial"
    overrides: list[str]
    process: "subprocess.Popen[bytes]"
    run: RunFolder
    log: Path
    began: float
    told: set[int] = field(default_factory=set)  # epochs that the study knows
    read: Path | None = None  # the checkpoint that was read last
    pruned: bool = False

    @classmethod
    def start(
        cls, trial: "optuna.Trial", recipe: Path, overrides: list[str], folder: Path, jobs: int
    ) -> "_Running":
        run = trial_folder(folder, trial.number)
        run.parent.mkdir(parents=True, exist_ok=True)
        log = run.with_suffix(".log")
        threads = max(1, thread_count(1) // jobs)
        command = [sys.executable, "-m", "mmkd", "train", str(recipe), *overrides, _UNTESTED]
        command += [part for name in trusted() for part in ("--trust-code", name)]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, "--out", str(run), "--resume"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # what the terminal tells the sweep is told by it alone
            )
        return cls(trial, overrides, process, RunFolder(run), log, time.monotonic())

    def watch(self, metric: str) -> None:
        """Tell the study of epochs that are new, and stop the trial where it falls behind."""
        newest = CheckpointFolder(self.run.path / "checkpoints").newest()
        if self.pruned or newest is None or newest == self.read:
            return
        try:
            history = read_json(newest / "progress.json")["report"]["history"]
        except (OSError, KeyError, ValueError):  # another took its place meanwhile
            return
        self.read = newest
        for _ in self._told(history, metric):
            if self.trial.should_prune():
                self.pruned = True
                self.process.terminate()
                return

    def _told(self, history: Sequence[Mapping[str, Any]], metric: str) -> Iterator[int]:
        """Tell the study of validations that are new, one after the other."""
        for record in history:
            if metric in record.get("valid", {}) and record["epoch"] not in self.told:
                self.told.add(record["epoch"])
                self.trial.report(record["valid"][metric], step=record["epoch"])
                yield record["epoch"]

    def kill(self) -> None:
        """End the trial with all that it started, if it runs still."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self, study: "optuna.Study", metric: str) -> Trial:
        from optuna.trial import TrialState

        self.trial.set_user_attr("seconds", round(time.monotonic() - self.began, 1))
        if self.process.returncode == 0 and self.run.finished:
            with suppress(RunError):  # of a stand-in
                [*self._told(self.run.history(), metric)]  # it has come to its end
            study.tell(self.trial, self.run.result()["valid"][metric])
        elif self.pruned:
            shutil.rmtree(self.run.path / "checkpoints", ignore_errors=True)
            study.tell(self.trial, state=TrialState.PRUNED)
        else:
            lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
            self.trial.set_user_attr("error", lines[-1][-500:] if lines else "it said nothing")
            study.tell(self.trial, state=TrialState.FAIL)
        return ended_trial(study.trials[self.trial.number])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of a folder, which is made; a killed process frees it."""
    with outside(RunError, folder, "can't be written", remedy="give another one with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{folder}: another sweep is running here; wait for it, or give another folder "
                "with --out"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _check_tuned(base: Recipe, space: Sequence[Dimension]) -> None:
    """Raise RecipeError where what is searched would have the encoders tuned once a trial."""
    names = ["tune", "data", *(f"encoders.{name}" for name in base.tuned)] if base.tune else []
    refuse(
        [
            f"{one.key}: can't be searched, as encoders are tuned once for all trials (tune); tune "
            "them first (mmkd tune), or leave tune or this option out"
            for one in space
            if any(one.key == name or one.key.startswith(f"{name}.") for name in names)
        ],
        RecipeError,
    )


def _tuned(planned: Plan, note: Callable[[str], None] | None) -> list[str]:
    """Overrides that put tuned encoders in the place of a recipe's ``tune`` section."""
    tuned = planned.recipe.tuned
    if not tuned:
        return []
    cards = tune_first(planned, announce=note).recipe.encoders
    return [*(f"encoders.{name}={cards[name]}" for name in tuned), "tune=null"]


def _pruner(epochs: int, *, prune: bool) -> "optuna.pruners.BasePruner":
    """Stops what is behind the median at its epoch; nothing where it is not wanted."""
    from optuna.pruners import MedianPruner, NopPruner

    if not prune:
        return NopPruner()
    return MedianPruner(_FIRST_TRIALS, n_warmup_steps=int(_FIRST_EPOCHS * epochs))


def _trial(study: "optuna.Study", number: int, *, seed: int) -> "optuna.Trial":
    """The trial of a number, as it was left, or a new one."""
    import optuna

    study.sampler = optuna.samplers.TPESampler(seed=seed + number)
    begun = study.trials
    return optuna.Trial(study, begun[number]._trial_id) if number < len(begun) else study.ask()
