"""Checks: a recipe's sections against the parts that take them; mistakes are collected, not raised.

A section's options are compared with the signature of the constructor that takes them, then with
the part's own ranges (its ``check``). Nothing is built.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mmkd.config.options import check_options, unknown
from mmkd.config.recipe import Recipe, Spec


class Checks:
    """Collects the problems of one recipe.

    Args:
        recipe: The recipe.

    Attributes:
        problems: A line each.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.problems: list[str] = []

    def problem(self, key: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(f"{self.recipe.where(key)}: {message}")

    def options(
        self,
        target: Callable[..., object],
        options: Mapping[str, object],
        key: str,
        *,
        given: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Check one section.

        A mistake in one option hides none in another: what has no problem of its own is judged by
        the part's ranges, with the signature's defaults beside it.

        Args:
            target: What takes the options.
            options: The section.
            key: Its dotted key.
            given: What the program passes itself, and a recipe may not set; None where its value
                is known later.

        Returns:
            The options without a problem of type or name.
        """
        given = given or {}
        where = self.recipe.where(key)
        accepted, problems = check_options(target, options, where=where, given=tuple(given))
        if ranges := ranges_of(target):
            known = {name: value for name, value in given.items() if value is not None}
            hidden = options.keys() - accepted.keys()  # they have a problem of their own
            hidden |= given.keys() - known.keys()
            judged = {k: v for k, v in filled(target, known | accepted).items() if k not in hidden}
            problems += [
                # an option's own line begins with its name
                f"{where}.{line}" if line.partition(":")[0] in options else f"{where}: {line}"
                for line in ranges(**judged)
            ]
        self.problems += problems
        return accepted

    def chosen(
        self,
        spec: Spec,
        registry: Mapping[str, Callable[..., Any]],
        key: str,
        *,
        given: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        """Check the options of the part that a ``kind`` names; as ``options``."""
        if spec.kind not in registry:
            self.problem(f"{key}.kind", unknown(spec.kind, registry))
            return {}
        return self.options(registry[spec.kind], spec.options, key, given=given)


def filled(target: Callable[..., object], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the signature's defaults for those that are absent."""
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(options)


def ranges_of(target: Callable[..., object]) -> Callable[..., list[str]] | None:
    """What judges a part's options: a class's ``check``, or ``check_NAME`` beside a function."""
    if isinstance(target, type):
        return getattr(target, "check", None)
    return getattr(sys.modules[target.__module__], f"check_{target.__name__}", None)
