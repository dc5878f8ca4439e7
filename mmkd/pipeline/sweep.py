"""Sweep: a recipe and a space of options to the trial that is best on validation, by Optuna.

Every trial is a run of its own in a process of its own, so that several go side by side and one
that fails costs none of the others; none of them reads the test set. What was tried is kept in
SQLite: a sweep that was stopped goes on where it was, trials that were running from their last
checkpoint. Trial n is drawn with the seed of the search plus n, by what ended before it, so that
stopping changes nothing of a search that runs one trial at a time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmkd.config.plan import plan
from mmkd.config.recipe import Recipe, read_recipe, recipe_digest
from mmkd.errors import MmkdError, RecipeError, RunError, at_least, refuse
from mmkd.interruption import Interruption
from mmkd.runs.folder import RunFolder
from mmkd.threads import thread_count
from mmkd.trust import trusted

if TYPE_CHECKING:
    import optuna

_RANGE = re.compile(r"(log|uniform|int)\((.*)\)")
_POLL_S = 0.2
_UNTESTED = "evaluation.test=false"  # of every trial


@dataclass(frozen=True)
class Dimension:
    """What a sweep may choose for one option.

    >>> from mmkd.pipeline.sweep import Dimension
    >>> Dimension.parse("training.lr=log(1e-4, 1e-2)")
    Dimension(key='training.lr', kind='log', values=(0.0001, 0.01))
    >>> Dimension.parse("student.embedding.dropout=0.1,0.3").values
    ('0.1', '0.3')
    >>> Dimension.parse("training.epochs=5") is None  # one value is a plain override
    True

    Attributes:
        key: The option's dotted key.
        kind: ``log`` or ``uniform`` between two numbers, ``int`` likewise, or ``choice``.
        values: The two ends, or the choices as they are written in an override.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Dimension | None":
        """Read ``KEY=log(a,b)``, ``uniform(a,b)``, ``int(a,b)`` or ``KEY=a,b,c``.

        Raises:
            RecipeError: The ends are no numbers, or the wrong way round.
        """
        key, _, value = text.partition("=")
        value = value.strip()
        if found := _RANGE.fullmatch(value):
            kind, number = found[1], int if found[1] == "int" else float
            try:
                low, high = map(number, found[2].split(","))
            except ValueError:
                raise RecipeError(
                    [f"{key}: got {value}, wanted two {number.__name__}s in brackets"]
                ) from None
            if not low < high or (kind == "log" and low <= 0):
                above = " above 0" if kind == "log" else ""
                raise RecipeError([f"{key}: got {value}, wanted a lower and a higher end{above}"])
            return cls(key, kind, (low, high))
        choices = _choices(value)
        return cls(key, "choice", choices) if len(choices) > 1 else None

    def suggest(self, trial: "optuna.Trial") -> str:
        """An override for a trial."""
        if self.kind == "choice":  # by place: Optuna keeps only plain values
            place = trial.suggest_categorical(self.key, list(range(len(self.values))))
            return f"{self.key}={self.values[place]}"
        if self.kind == "int":
            return f"{self.key}={trial.suggest_int(self.key, *self.values)}"
        value = trial.suggest_float(self.key, *self.values, log=self.kind == "log")
        return f"{self.key}={value:.6g}"


@dataclass(frozen=True)
class Trial:
    """One trial that ended.

    Attributes:
        number: From 0.
        overrides: What was chosen.
        value: The selection metric on validation; None where the run failed.
        seconds: Wall time.
        error: Why it failed.
    """

    number: int
    overrides: tuple[str, ...]
    value: float | None
    seconds: float
    error: str = ""


def sweep(
    recipe: str,
    overrides: Sequence[str],
    *,
    folder: Path,
    trials: int = 30,
    jobs: int = 1,
    seed: int = 0,
    announce: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Search a recipe's options on validation.

    Args:
        recipe: Path or name of a recipe.
        overrides: As for ``load_recipe``, those of ``Dimension`` among them.
        folder: Gets ``sweep.db``, ``trials/NNNN`` with a run each, and ``best.yaml``; a sweep
            that is there already goes on.
        trials: How many in all.
        jobs: How many at once; each gets its share of the cores.
        seed: Of the search.
        announce: Told of each trial as it ends.

    Returns:
        All trials that ended, by number. The test set is read by none of this.

    Raises:
        RecipeError: The recipe or a dimension is wrong, or there is no dimension.
        RunError: The folder holds another sweep, or every trial failed.
        MmkdError: Optuna is not installed.
    """
    refuse(at_least(1, trials=trials, jobs=jobs))
    space, fixed = parted(overrides)
    if not space:
        raise RecipeError(
            ["sweep: got no option to search, wanted one such as 'training.lr=log(1e-4,1e-2)'"]
        )
    base = read_recipe(recipe, fixed)
    for corner in (0, -1):  # both ends must be possible before anything runs
        ends = [f"{dimension.key}={dimension.values[corner]}" for dimension in space]
        plan(read_recipe(recipe, [*fixed, *ends]))
    study = _study(folder, base, space)
    metric = plan(base).training.select_metric
    waiting = [one.number for one in study.trials if not one.state.is_finished()]
    running: list[_Running] = []
    ended = [_ended(one) for one in study.trials if one.state.is_finished()]
    # the inner one is told of the first signal, the outer one of the second
    with _recorded(folder), Interruption() as at_once, Interruption() as interruption:
        try:
            while True:
                while len(running) < jobs and (waiting or len(study.trials) < trials):
                    number = waiting.pop(0) if waiting else len(study.trials)
                    trial = _trial(study, number, seed=seed)
                    chosen = [dimension.suggest(trial) for dimension in space]
                    trial.set_user_attr("overrides", chosen)
                    running.append(_Running.start(trial, recipe, [*fixed, *chosen], folder, jobs))
                if not running:
                    break
                time.sleep(_POLL_S)
                if interruption.requested:  # of a trial that was told too there is no end to tell
                    break
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    ended.append(one.end(study, metric))
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
            f"{folder}: stopped after {len(ended)} of {trials} trials; the same command goes on"
        )
    ended.sort(key=lambda one: one.number)
    good = [one for one in ended if one.value is not None]
    if not good:
        raise RunError(f"{folder}: every trial failed; the first said: {ended[0].error}")
    best = max(good, key=lambda one: one.value or 0.0)
    read_recipe(recipe, [*fixed, *best.overrides]).save(folder / "best.yaml")
    return ended


def parted(overrides: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """The overrides that say what to search, and those that are every trial's.

    Raises:
        RecipeError: As for ``Dimension.parse``.
    """
    found = [(text, Dimension.parse(text)) for text in overrides]
    return [one for _, one in found if one], [text for text, one in found if one is None]


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial of a sweep has its run."""
    return folder / "trials" / f"{number:04d}"


def _choices(value: str) -> tuple[str, ...]:
    """The items of a YAML list without its brackets, each as it is written."""
    try:
        nodes = yaml.compose(f"[{value}]", Loader=yaml.SafeLoader).value
    except yaml.YAMLError:  # a plain override, of which the recipe says what is wrong
        return (value,)
    return tuple(value[n.start_mark.index - 1 : n.end_mark.index - 1].strip() for n in nodes)


@dataclass
class _Running:
    trial: "optuna.Trial"
    overrides: list[str]
    process: "subprocess.Popen[bytes]"
    run: RunFolder
    log: Path
    began: float

    @classmethod
    def start(
        cls, trial: "optuna.Trial", recipe: str, overrides: list[str], folder: Path, jobs: int
    ) -> "_Running":
        run = trial_folder(folder, trial.number)
        run.parent.mkdir(parents=True, exist_ok=True)
        log = run.with_suffix(".log")
        threads = max(1, thread_count(1) // jobs)
        command = [sys.executable, "-m", "mmkd", "train", recipe, *overrides, _UNTESTED]
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
            study.tell(self.trial, self.run.result()["valid"][metric])
        else:
            lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
            self.trial.set_user_attr("error", lines[-1][-500:] if lines else "it said nothing")
            study.tell(self.trial, state=TrialState.FAIL)
        return _ended(study.trials[self.trial.number])


@contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """RunError where the study's file can't be written or read, in its library's words."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OptunaError, SQLAlchemyError) as error:
        told = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"{folder / 'sweep.db'}: can't be used ({told}); free some space, put the file back, "
            "or give another folder with --out"
        ) from error


def _study(folder: Path, base: Recipe, space: Sequence[Dimension]) -> "optuna.Study":
    try:
        import optuna
    except ImportError:
        raise MmkdError("optuna is not installed; run: pip install 'mmkd[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    what = {
        "recipe": recipe_digest(base),
        "space": json.loads(json.dumps([vars(d) for d in space])),
    }
    with _recorded(folder):
        study = optuna.create_study(
            storage=f"sqlite:///{(folder / 'sweep.db').resolve()}",
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
        )
        before: Mapping[str, Any] = study.user_attrs
        if before and dict(before) != what:
            changed = " and ".join(name for name in what if before.get(name) != what[name])
            raise RunError(f"{folder}: holds a sweep of another {changed}; give another folder")
        for name, value in what.items():
            study.set_user_attr(name, value)
        return study


def _trial(study: "optuna.Study", number: int, *, seed: int) -> "optuna.Trial":
    """The trial of a number, as it was left, or a new one."""
    import optuna

    study.sampler = optuna.samplers.TPESampler(seed=seed + number)
    begun = study.trials
    return optuna.Trial(study, begun[number]._trial_id) if number < len(begun) else study.ask()


def _ended(trial: "optuna.trial.FrozenTrial") -> Trial:
    attributes = trial.user_attrs
    return Trial(
        number=trial.number,
        overrides=tuple(attributes.get("overrides", ())),
        value=trial.value if trial.state.name == "COMPLETE" else None,
        seconds=float(attributes.get("seconds", 0.0)),
        error=str(attributes.get("error", "")),
    )
