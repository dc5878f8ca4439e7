"""Opening a run: may this recipe train in this folder, with these trackers, on this data?

From a plan and a folder to a marked run folder, or to a RunError that says what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from mmkd.config.plan import Plan
from mmkd.config.recipe import Recipe, load_recipe
from mmkd.data import SequenceSplit
from mmkd.errors import RunError
from mmkd.runs.folder import RunFolder
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


def open_run(
    run: RunFolder,
    recipe: Recipe,
    digests: Mapping[str, str],
    *,
    anew: bool,
    teacher: str | None = None,
) -> None:
    """Mark the folder as this recipe's run on this data, or see that it is one already.

    Args:
        run: Free for it, see ``check_open``.
        recipe: What will train.
        digests: Of ``data_digests``.
        anew: Delete what an earlier run left.
        teacher: The digest of the run to compress.

    Raises:
        RunError: The data or the teacher changed since the run was begun.
    """
    if run.started and not anew:
        run.check_data(digests)
        run.check_teacher(teacher)
        return
    run.clear()
    # first: what follows is then known to be a run's
    run.write(marker={"recipe": recipe.name, "data": digests, "teacher": teacher})
    recipe.save(run.recipe)


def check_same(run: RunFolder, recipe: Recipe) -> None:
    """Raise RunError where the folder holds a run of another recipe."""
    if load_recipe(str(run.recipe)) != recipe:
        raise RunError(
            f"{run.path}: holds a run of another recipe than {recipe.name} as given now (compare "
            f"{run.recipe}); resume with the same options, or give another folder with --out"
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


@dataclass(frozen=True)
class Teacher:
    """A trained ensemble to compress.

    Attributes:
        student: Its networks, on the CPU, without gradients.
        digest: Of its weights.
    """

    student: Ensemble
    digest: str


def load_teacher(planned: Plan, run: RunFolder, digests: Mapping[str, str]) -> Teacher | None:
    """The trained ensemble that the recipe compresses; None where there is none.

    Args:
        planned: The recipe.
        run: Where the recipe will train.
        digests: Of ``data_digests``, of what it will train on.

    Raises:
        RunError: The teacher is the run itself, was trained on other data, or reads other
            sequences.
    """
    given = planned.objective.teacher
    if given is None:
        return None
    if given.path.resolve() == run.path.resolve():
        raise RunError(
            f"{run.path}: holds the run to compress, which would be lost; give another name, or "
            "another folder with --out"
        )
    student, length = given.student(), given.student_spec().max_length
    trained_on = given.marker()["data"]
    changed = sorted(name for name in digests if trained_on.get(name) != digests[name])
    if changed:
        raise RunError(
            f"{given.path}: was trained on another {', '.join(changed)}, so it knows other items, "
            "or events that this run is tested on; use the teacher's data and split, or train the "
            "teacher on these"
        )
    if student.causal != planned.objective.task.causal:
        raise RunError(
            f"{given.path}: its networks are {'causal' if student.causal else 'bidirectional'} and "
            "the student's are not, so they see other sequences; use the teacher's backbone kind"
        )
    if length < planned.training.max_length:
        raise RunError(
            f"{given.path}: reads at most {length} items; set training.max_length to {length} or "
            "less"
        )
    return Teacher(student.requires_grad_(False), given.weights_digest())
