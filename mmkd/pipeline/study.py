"""What a sweep searches and has found: a space of options, its trials, the study that keeps them.

The study is Optuna's, in SQLite. Whoever shows a sweep reads it here; `pipeline/sweep.py` runs it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml

from mmkd.config.recipe import Recipe, read_recipe, recipe_digest
from mmkd.errors import MmkdError, RecipeError, RunError

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "failed"]
_RANGE = re.compile(r"(log|uniform|int)\((.*)\)")
DATABASE = "sweep.db"


@dataclass(frozen=True)
class Dimension:
    """What a sweep may choose for one option.

    >>> from mmkd.pipeline.study import Dimension
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
        value: The selection metric on validation; None where the run did not come to its end.
        seconds: Wall time.
        error: Why it failed.
        state: ``complete``, ``pruned`` (stopped because others were better by then) or ``failed``.
        so_far: Of one that was stopped, its best until then.
        epochs: That it validated.
    """

    number: int
    overrides: tuple[str, ...]
    value: float | None
    seconds: float
    error: str = ""
    state: State = "complete"
    so_far: float | None = None
    epochs: int = 0


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found so far.

    Attributes:
        folder: Its folder.
        name: Of the recipe.
        metric: Of validation, which was searched for.
        space: What was searched.
        trials: Those that ended, by number.
        importance: By option its share of what made trials differ, summing to 1, by fANOVA (Hutter
            et al., ICML 2014); None where too few trials are complete.
    """

    folder: Path
    name: str
    metric: str
    space: tuple[Dimension, ...]
    trials: tuple[Trial, ...]
    importance: dict[str, float] | None

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest value; the first of equal ones."""
        complete = [one for one in self.trials if one.value is not None]
        return max(complete, key=lambda one: one.value or 0.0, default=None)


def parted(overrides: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """The overrides that say what to search, and those that are every trial's.

    Raises:
        RecipeError: As for ``Dimension.parse``.
    """
    found = [(text, Dimension.parse(text)) for text in overrides]
    return [one for _, one in found if one], [text for text, one in found if one is None]


def by_recipe(recipes: Sequence[str], overrides: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """What several recipes are swept with.

    Args:
        recipes: Paths or names.
        overrides: As for ``sweep``, for all of them; ``NAME:key=...`` for the recipe NAME alone.

    Returns:
        Recipe's name to what it was called by, and its own overrides.

    Raises:
        RecipeError: Two recipes have one name, or a prefix is no recipe's.
    """
    mine: dict[str, list[str]] = {}
    shared = []
    for text in overrides:
        name, colon, rest = text.partition(":")
        if colon and "=" not in name:
            mine.setdefault(name, []).append(rest)
        else:
            shared.append(text)
    found: dict[str, tuple[str, list[str]]] = {}
    for recipe in recipes:
        # a name may be an override's; what it searches must not be in the way of reading it
        name = read_recipe(recipe, parted(shared)[1]).name
        if name in found:
            raise RecipeError(
                f"{recipe} and {found[name][0]}: both are named {name}; give each a name of its own"
            )
        found[name] = (recipe, [*shared, *mine.pop(name, [])])
    if mine:
        raise RecipeError(
            f"{next(iter(mine))}: is no recipe of this sweep; they are {', '.join(found)}"
        )
    return found


def read_sweep(folder: Path) -> Sweep:
    """What a sweep has found so far, whether or not it is running.

    Raises:
        RunError: There is no sweep, or its file can't be read.
        MmkdError: Optuna is not installed.
    """
    _optuna()
    if not is_sweep(folder):
        raise RunError(f"{folder}: holds no sweep ({DATABASE} is missing); run mmkd sweep")
    with recorded(folder):
        study = _load(folder)
        about = study.user_attrs.get("about", {})  # sweeps of release 0.1 kept none
        trials = tuple(ended_trial(one) for one in study.trials if one.state.is_finished())
        space = tuple(
            Dimension(one["key"], one["kind"], tuple(one["values"]))
            for one in study.user_attrs.get("space", ())
        )
        name = str(about.get("recipe", folder.name))
        metric = str(about.get("metric", "NDCG@10"))
        return Sweep(folder, name, metric, space, trials, _importance(study))


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun in a folder."""
    return (folder / DATABASE).is_file()


def begin_study(
    folder: Path, base: Recipe, space: Sequence[Dimension], *, metric: str
) -> "optuna.Study":
    """The study of a recipe and a space in a folder, new or as it was left.

    Raises:
        RunError: The folder holds another, or its file can't be used.
        MmkdError: Optuna is not installed.
    """
    _optuna()
    what = {
        "recipe": recipe_digest(base),
        "space": json.loads(json.dumps([vars(d) for d in space])),
    }
    with recorded(folder):
        study = _load(folder)
        before: Mapping[str, Any] = study.user_attrs
        if before and any(before.get(name) != value for name, value in what.items()):
            changed = " and ".join(name for name in what if before.get(name) != what[name])
            raise RunError(f"{folder}: holds a sweep of another {changed}; give another folder")
        for name, value in what.items():
            study.set_user_attr(name, value)
        study.set_user_attr("about", {"recipe": base.name, "metric": metric})
        return study


def _load(folder: Path) -> "optuna.Study":
    """The study of a folder, which is made where there is none."""
    study = _optuna().create_study(
        storage=f"sqlite:///{(folder / DATABASE).resolve()}",
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
    )
    return cast("optuna.Study", study)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MmkdError("optuna is not installed; run: pip install 'mmkd[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def ended_trial(trial: "optuna.trial.FrozenTrial") -> Trial:
    """One that ended, as Optuna keeps it."""
    attributes, told = trial.user_attrs, trial.intermediate_values
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned"}
    state = states.get(trial.state.name, "failed")
    return Trial(
        number=trial.number,
        overrides=tuple(attributes.get("overrides", ())),
        value=trial.value if state == "complete" else None,
        seconds=float(attributes.get("seconds", 0.0)),
        error=str(attributes.get("error", "")),
        state=state,
        so_far=max(told.values()) if state == "pruned" and told else None,
        epochs=len(told),
    )


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial of a sweep has its run."""
    return folder / "trials" / f"{number:04d}"


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
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


def _importance(study: "optuna.Study") -> dict[str, float] | None:
    """What made complete trials differ, the most important first."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    values = {one.value for one in study.get_trials(states=(TrialState.COMPLETE,))}
    if len(values) < 2:
        return None
    try:
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (ValueError, RuntimeError):  # too few trials to tell
        return None


def _choices(value: str) -> tuple[str, ...]:
    """The items of a YAML list without its brackets, each as it is written."""
    try:
        nodes = yaml.compose(f"[{value}]", Loader=yaml.SafeLoader).value
    except yaml.YAMLError:  # a plain override, of which the recipe says what is wrong
        return (value,)
    return tuple(value[n.start_mark.index - 1 : n.end_mark.index - 1].strip() for n in nodes)
