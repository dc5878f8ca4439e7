"""Compressing a run: from a trained ensemble's folder to the recipe of one network held to it."""

from collections.abc import Sequence

from mmkd.config.recipe import Recipe, load_recipe, quoted
from mmkd.errors import RunError
from mmkd.runs.folder import RunFolder


def compressing(run: RunFolder, overrides: Sequence[str] = ()) -> Recipe:
    """The run's own recipe for one network, with the run as its teacher.

    What the networks tell each other falls away; attributes and correlations stay as they were.

    Args:
        run: A finished run.
        overrides: As for ``load_recipe``; they win.

    Raises:
        RunError: The run isn't finished, or the overrides leave nothing of a compression.
        RecipeError: An override is wrong.
    """
    if not run.finished:
        raise RunError(f"{run.path}: is not finished; train it to its end first (--resume)")
    recipe = load_recipe(
        str(run.recipe),
        [
            f"name={load_recipe(str(run.recipe)).name}-compressed",
            "ensemble.members=1",
            "objective.contrastive=null",
            "objective.mutual=null",
            f"objective.compression.teacher={quoted(run.path)}",
            *overrides,
        ],
    )
    if recipe.ensemble.get("members", 1) != 1 or recipe.objective.compression is None:
        raise RunError(
            f"compressing {run.path}: the overrides ask for several networks or no compression; "
            "leave out ensemble.members and objective.compression=null, or use mmkd train"
        )
    return recipe
