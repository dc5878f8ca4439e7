"""What the campaign runs: sets, variants, what is searched, and the overrides of each trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml

from mmkd.pipeline.study import Dimension

optuna.logging.set_verbosity(optuna.logging.WARNING)
PLAN = Path(__file__).with_name("plan.yaml")


@dataclass(frozen=True)
class Variant:
    """One variant of one data set.

    Attributes:
        name: Its name.
        about: What it is, in words.
        recipe: Of the set.
        overrides: Of every trial.
        space: What is searched; options that all variants search come first.
        start: The first trial's values, by key.
        of: The variant whose winner it compresses.
        tuned: Whether its encoder is one that was tuned on the log.
    """

    name: str
    about: str
    recipe: str
    overrides: tuple[str, ...]
    space: tuple[Dimension, ...]
    start: Mapping[str, str]
    of: str | None = None
    tuned: bool = False

    def trial(self, number: int) -> tuple[str, ...]:
        """The searched overrides of a trial; trial n of all variants draws shared options alike."""
        if number == 0:
            return tuple(f"{one.key}={self.start[one.key]}" for one in self.space)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        asked = study.ask()
        return tuple(one.suggest(asked) for one in self.space)


def read_plan(name: str, path: Path = PLAN) -> dict[str, Variant]:
    """The variants of a data set, by name, in the order they run.

    Raises:
        KeyError: There is no such set.
    """
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = plan["sets"][name]
    variants = {
        key: {**plan["variants"].get(own.get("like"), {}), **own}
        for key, own in plan["variants"].items()
    }
    return {key: _variant(key, own, plan, given) for key, own in variants.items()}


def _variant(
    name: str, own: Mapping[str, Any], plan: Mapping[str, Any], given: Mapping[str, Any]
) -> Variant:
    base = [*plan["all"], *given["overrides"]]
    if "of" in own:  # its network and rate are the recipe's
        return Variant(name, own["about"], given["recipe"], tuple(base), (), {}, of=own["of"])
    searched = {**plan["shared"], **own.get("searched", {})}
    space = [Dimension.parse(f"{key}={one['space']}") for key, one in searched.items()]
    start = {key: str(one["start"]) for key, one in searched.items()}
    return Variant(
        name,
        own["about"],
        given["recipe"],
        (*base, *own.get("overrides", ()), *given.get("more", {}).get(name, ())),
        tuple(one for one in space if one),
        {**start, **given.get("start", {})},
        tuned=own.get("tuned", False),
    )
