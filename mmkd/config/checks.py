"""Checks: a recipe's sections against the parts that take them; mistakes are collected, not raised.

From options and a constructor to checked arguments or a built part, None where there is a mistake.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from mmkd.config.options import check_options, unknown
from mmkd.config.recipe import Recipe, Spec

T = TypeVar("T")


class Checks:
    """Collects the problems of one recipe.

    Args:
        recipe: The recipe.
        broken: Dotted keys that are known to be wrong, about which nothing more is said.

    Attributes:
        problems: A line each.
    """

    def __init__(self, recipe: Recipe, broken: Collection[str] = ()) -> None:
        self.recipe = recipe
        self.broken = broken
        self.problems: list[str] = []

    def problem(self, key: str, message: str, *, depends: Sequence[str] = ()) -> None:
        """Note a problem, unless a part that it ``depends`` on is broken itself."""
        pairs = ((f"{broken}.", f"{part}.") for broken in self.broken for part in depends)
        if not any(a.startswith(b) or b.startswith(a) for a, b in pairs):
            self.problems.append(f"{self.recipe.where(key)}: {message}")

    def tried(self, key: str, build: Callable[[], T]) -> T | None:
        """Build a part that costs nothing; its own refusals are problems of the recipe."""
        try:
            return build()
        except ValueError as error:
            for line in str(error).splitlines():
                self.problem(key, line)
            return None

    def options(
        self,
        target: Callable[..., object],
        options: Mapping[str, object],
        key: str,
        given: tuple[str, ...] = (),
        check: Callable[..., list[str]] | None = None,
    ) -> dict[str, Any]:
        """The valid ones of a section's options; ``given`` are the program's own.

        Ranges are what ``check``, or the target's own, says of these options and of the defaults
        of those that are not set.
        """
        checked, problems = check_options(
            target, options, where=self.recipe.where(key), given=given
        )
        self.problems += problems
        check = check or getattr(target, "check", None)
        if check is not None:
            defaults = {
                name: parameter.default
                for name, parameter in inspect.signature(target).parameters.items()
                if parameter.default is not inspect.Parameter.empty
                and name not in options
                and name not in given
            }
            for line in check(**defaults, **checked):
                self.problem(key, line)
        return checked

    def build(self, target: Callable[..., T], options: Mapping[str, object], key: str) -> T | None:
        """Check a section's options and build what takes them."""
        before = len(self.problems)
        checked = self.options(target, options, key)
        if len(self.problems) > before:
            return None
        return self.tried(key, lambda: target(**checked))

    def chosen(self, spec: Spec, registry: Mapping[str, Callable[..., T]], key: str) -> T | None:
        """Build the part that a ``kind`` names."""
        if spec.kind not in registry:
            self.problem(f"{key}.kind", unknown(spec.kind, registry))
            return None
        return self.build(registry[spec.kind], spec.options, key)

    def audible(self) -> list[str]:
        """The problems, without those of keys that are known to be broken."""
        silent = tuple(self.recipe.where(key) + end for key in self.broken for end in ".:")
        return [line for line in self.problems if not line.startswith(silent)]
