"""Arguments that several commands share; from names to a run's folder and to a recipe's plan."""

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mmkd.errors import RecipeError, RunError, closest

if TYPE_CHECKING:
    from mmkd.config.plan import Plan
    from mmkd.config.recipe import Recipe
    from mmkd.pipeline.run import Run
    from mmkd.pipeline.seeds import SeedRuns
    from mmkd.runs.folder import RunFolder
    from mmkd.runs.seeds import SeedFolder


def _cases(value: str) -> str:
    if value not in ("test", "valid"):
        raise RunError(f"--cases: got {value}, wanted test or valid")
    return value


RecipeName = Annotated[str, typer.Argument(help="A recipe's path or name (mmkd ls recipes).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, such as training.lr=1e-3.")
]
RunName = Annotated[str, typer.Argument(help="A run's folder or name, or org/name on the hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start the run anew.")]
Cases = Annotated[str, typer.Option(help="test or valid.", callback=_cases)]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept.", envvar="MMKD_RUNS")]
RUNS = Path("runs")
_TrustCode = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A package or module outside mmkd that may be imported, or model:NAME; repeatable.",
    ),
]


def trusting(command: Callable[..., None]) -> Callable[..., None]:
    """A command that may meet a class outside mmkd, with the option ``--trust-code``."""

    @wraps(command)
    def trusted(*, trust_code: Sequence[str] | None = None, **arguments: Any) -> None:
        from mmkd.errors import MmkdError
        from mmkd.trust import trust_code as trust

        try:
            trust(trust_code)
        except ValueError as error:
            raise MmkdError(str(error)) from error
        command(**arguments)

    signature = inspect.signature(command)
    option = inspect.Parameter(
        "trust_code", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_TrustCode
    )
    parameters = [*signature.parameters.values(), option]
    trusted.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    trusted.__annotations__ = {**command.__annotations__, "trust_code": _TrustCode}
    return trusted


class RecipeCommand(TyperCommand):
    """A command that takes overrides; what was written as an option is told as one of those."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's.

        Raises:
            RecipeError: An option is none of the command's, but a key of the recipe.
        """
        known = {name for param in self.get_params(ctx) for name in param.opts}
        for place, given in enumerate(args):
            if given == "--":
                break
            name, equals, value = given.partition("=")
            if not name.startswith("--") or name in known:
                continue
            if key := _recipe_key(name[2:], known):
                following = "".join(args[place + 1 : place + 2])
                if not equals:
                    value = "VALUE" if following.startswith("-") or "=" in following else following
                raise RecipeError(f"{self.name} has no option {name}; write {key}={value}")
        return super().parse_args(ctx, args)


def _recipe_key(option: str, known: Collection[str]) -> str | None:
    """The recipe's key that an unknown option spells, such as ``training.batch_size``."""
    from mmkd.config.plan import option_keys

    name, keys = option.replace("-", "_"), option_keys()
    leaves = {key.rpartition(".")[2]: key for key in reversed(keys)}  # the first of a name wins
    if name in keys or name in leaves:
        return name if name in keys else leaves[name]
    if closest(f"--{option}", known):  # typer says which of its own was meant
        return None
    if close := closest(name, keys):
        return close
    close = closest(name, leaves)
    return leaves[close] if close else None


def find_run(name: str, runs: Path) -> Path:
    """A run's folder from its path, its name below ``runs``, or ``org/name`` on the hub."""
    from mmkd.shipping.sharing import found_run

    return found_run(name, runs)


def find_runs(name: str, runs: Path) -> "RunFolder | SeedFolder":
    """A run as `find_run` finds it, or the runs of several seeds, by path or name."""
    from mmkd.runs.folder import RunFolder
    from mmkd.runs.seeds import find_seeds

    return find_seeds(name, runs) or RunFolder(find_run(name, runs))


def open_runs(names: Sequence[str], runs: Path) -> "list[Run | SeedRuns]":
    """Runs, and folders of several seeds' runs, opened."""
    from mmkd.pipeline.run import Run
    from mmkd.pipeline.seeds import SeedRuns
    from mmkd.runs.seeds import SeedFolder

    found = [find_runs(name, runs) for name in names]
    return [SeedRuns(one.path) if isinstance(one, SeedFolder) else Run(one.path) for one in found]


def planned(recipe: str, overrides: Sequence[str] | None = None) -> "Plan":
    """Read and plan a recipe."""
    from mmkd.config.recipe import read_recipe

    loaded = read_recipe(recipe, overrides or [])  # its faults are told before torch is loaded
    told(loaded)

    from mmkd.config.plan import plan

    return plan(loaded)


def told(recipe: "Recipe") -> None:
    """Say on standard error which keys are in an old spelling, and what no encoder leads to."""
    from mmkd.cli.progress import note

    for line in (*recipe.notices, *recipe.notes):
        note(line)
