"""Opening a run: may this recipe train in this folder, with these trackers, on this data?

From a plan and a folder to a marked run folder, or to a RunError that says what to do.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from accelerate import Accelerator

from mmkd.data import SequenceSplit
from mmkd.plan import Plan
from mmkd.recipe import Recipe, load_recipe
from mmkd.serving.run_folder import RunError, RunFolder
from mmkd.student import Ensemble


def check_open(run: RunFolder, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise RunError unless the folder may be used as asked; changes nothing."""
    run.check_free()
    if not run.started:
        return
    if overwrite:
        run.marker()  # readable, so certainly a run's
    elif resume:
        check_same(run, recipe)
    else:
        state = "a finished run" if run.finished else "an unfinished run"
        remedy = "" if run.finished else "--resume to continue it, "
        raise RunError(
            f"{run.path}: holds {state} already; give {remedy}--overwrite to start anew, or "
            "another folder with --out"
        )


def open_run(run: RunFolder, recipe: Recipe, digests: Mapping[str, str], *, anew: bool) -> None:
    """Mark the folder as this recipe's run on this data, or see that it is one already.

    Args:
        run: Free for it, see ``check_open``.
        recipe: What will train.
        digests: Of ``data_digests``.
        anew: Delete what an earlier run left.

    Raises:
        RunError: The data changed since the run was begun.
    """
    if run.started and not anew:
        run.check_data(digests)
        return
    run.clear()
    run.mark(recipe=recipe.name, data=digests)  # first: what follows is then known to be a run's
    recipe.save(run.recipe)


def check_same(run: RunFolder, recipe: Recipe) -> None:
    """Raise RunError where the folder holds a run of another recipe."""
    if load_recipe(str(run.recipe)) != recipe:
        raise RunError(
            f"{run.path}: holds a run of another recipe than {recipe.name} as given now (compare "
            f"{run.recipe}); resume with the same options, or give another folder with --out"
        )


def check_trackers(planned: Plan) -> None:
    """Raise RunError where a tracker isn't installed; accelerate would just leave it out."""
    modules = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
    for tracker in planned.trainer.trackers:
        if not any(find_spec(module) for module in modules[tracker]):
            raise RunError(
                f"{planned.recipe.name}: training.trackers: {tracker} is not installed; run "
                f"pip install 'mmkd[{tracker}]', or leave it out"
            )


def announcement(recipe: Recipe, split: SequenceSplit, accelerator: Accelerator) -> str:
    """One line: what trains on what, with how many processes and threads."""
    count, threads = accelerator.num_processes, torch.get_num_threads()
    return (
        f"{recipe.name}: {count} process{'es' if count > 1 else ''} on {accelerator.device.type}, "
        f"{threads} thread{'s' if threads > 1 else ''} each; {split.item_count} items, "
        f"{split.user_count} users, {len(split.items)} events of which "
        f"{int(split.is_train().sum())} train; {len(split.valid)} validation and "
        f"{len(split.test)} test cases"
    )


def load_teacher(
    planned: Plan, item_ids: Sequence[str], *, device: torch.device
) -> Ensemble | None:
    """The trained ensemble that the recipe compresses, on the device; None where there is none.

    Args:
        planned: The recipe.
        item_ids: Of the catalogue, in row order.
        device: Where to put it.

    Raises:
        RunError: Its run is of another catalogue, or its networks read other sequences.
    """
    run = planned.objective.teacher
    if run is None:
        return None
    teacher, length = run.student(device=device), run.student_spec()["max_length"]
    if run.items().ids != tuple(item_ids):
        raise RunError(
            f"{run.path}: was trained on another catalogue, so its predictions are about other "
            "items; train the teacher on this data"
        )
    if teacher.causal != planned.objective.supervision.causal:
        raise RunError(
            f"{run.path}: its networks are {'causal' if teacher.causal else 'bidirectional'} and "
            "the student's are not, so they see other sequences; use the teacher's backbone kind"
        )
    if length < planned.trainer.max_length:
        raise RunError(
            f"{run.path}: reads at most {length} items; set training.max_length to {length} or less"
        )
    return teacher.requires_grad_(False)
