"""Opening a run's folder: may this recipe train here, on this data, or be compressed?

From a plan and a folder to an open run, or to a RunError that says what to do. Nothing of an
earlier run is deleted before the new one's data, attributes and teacher have been read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from accelerate import Accelerator

from mmkd.config.plan import Plan
from mmkd.config.recipe import Recipe, quoted, read_recipe
from mmkd.data.dataset import Dataset
from mmkd.data.items import AttributeVocabulary
from mmkd.data.splits import SequenceSplit
from mmkd.errors import RunError
from mmkd.runs.folder import RunFolder
from mmkd.runs.frames import TABLES, is_of_another
from mmkd.student import Ensemble
from mmkd.training.trainer import Trainer, slow_precision


@dataclass(frozen=True)
class OpenRun:
    """A locked and marked folder, and what trains in it.

    Attributes:
        folder: The run's folder.
        data: Catalogue, log and split.
        accelerator: Device, precision and processes.
        vocabulary: The attributes to predict, where the recipe has them predicted.
        teacher: The trained ensemble to compress, on the CPU, without gradients.
    """

    folder: RunFolder
    data: Dataset
    accelerator: Accelerator
    vocabulary: AttributeVocabulary | None
    teacher: Ensemble | None

    def write(self, **files: Any) -> None:
        """As ``RunFolder.write``, by the main process alone."""
        if self.accelerator.is_main_process:
            self.folder.write(**files)

    def hold_to(self, tables: Mapping[str, str]) -> None:
        """Note the embedding tables, modality to key; a resumed run must have the same."""
        if self.accelerator.is_main_process:
            self.folder.check_tables(tables)
            self.folder.write(tables=tables)


@contextmanager
def opened(
    planned: Plan,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Iterator[OpenRun]:
    """Hold a folder for a training of this plan.

    Args:
        planned: What will train.
        folder: The run's folder; made.
        resume: Continue what is there, if it is a run of the same recipe and data.
        overwrite: Replace what is there; only a run's own files are deleted.
        announce: Told in one line what trains on what.

    Raises:
        RunError: The folder holds a run and neither ``resume`` nor ``overwrite`` is given, a run
            of another recipe or of other data, or something that is no run; or another process
            trains there; or the run to compress does not fit.
        TrainingError: The device can't compute in the wanted precision, or a tracker isn't
            installed.
    """
    run, recipe = RunFolder(folder), planned.recipe
    accelerator = Trainer(planned.training).accelerator(folder=folder)
    main = accelerator.is_main_process
    with run.locked() if main else nullcontext():
        if main:  # says so before the data is read
            _check_open(run, recipe, resume=resume, overwrite=overwrite)
        data = planned.load_data()
        if main and announce:
            for line in (*data.notes, slow_precision(accelerator)):
                if line:
                    announce(line)
            announce(_announcement(planned, data.split, accelerator))
        vocabulary = None
        if planned.objective.attributes is not None:
            vocabulary = AttributeVocabulary.of(data.items)
        digests = data.digests()
        teacher, teacher_digest = _teacher(planned, run, digests)
        with accelerator.main_process_first():
            if main and run.started and not run.bare and resume and not overwrite:
                run.check_data(digests)
                run.check_teacher(teacher_digest)
                run.write(frames=_kept(planned, run, data))  # it may have been killed before
            elif main:
                # what it trains on may lie here and nowhere else
                run.clear(keeping=[run.frame(n) for n in TABLES if _reads(planned, run.frame(n))])
                # first: what follows is then known to be a run's
                run.write(
                    marker={"recipe": recipe.name, "data": digests, "teacher": teacher_digest},
                    recipe=recipe.to_yaml(folder),
                    frames=_kept(planned, run, data),
                )
        yield OpenRun(run, data, accelerator, vocabulary, teacher)


def check_same(run: RunFolder, recipe: Recipe) -> None:
    """Raise RunError where the folder holds a run of another recipe."""
    if read_recipe(str(run.recipe)) != recipe:
        raise RunError(
            f"{run.path}: holds a run of another recipe than {recipe.name} as given now (compare "
            f"{run.recipe}); resume with the same options, or give another folder with --out"
        )


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
    recipe = read_recipe(
        str(run.recipe),
        [
            f"name={run.marker()['recipe']}-compressed",
            "ensemble.members=1",
            "ensemble.inference=logits",
            "ensemble.weights=null",
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


def _check_open(run: RunFolder, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Raise RunError unless the folder may be used as asked; changes nothing."""
    run.check_free()
    if not run.started or run.bare:
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


def _files(planned: Plan) -> dict[str, Path]:
    """The files that a plan's data is read from, by table."""
    root = planned.recipe.data.folder
    options = zip(TABLES, (planned.items, planned.interactions), strict=True)
    return {name: root / given["path"] for name, given in options}


def _reads(planned: Plan, file: Path) -> bool:
    """Whether a plan's data is read from a file."""
    return any(path.resolve() == file.resolve() for path in _files(planned).values())


def _kept(planned: Plan, run: RunFolder, data: Dataset) -> dict[str, pl.DataFrame | Path]:
    """The tables that a run keeps: given as frames, or those that another run keeps."""
    of_others = {
        name: path for name, path in _files(planned).items() if is_of_another(path, name, run.path)
    }
    return {**of_others, **data.frames}


def _announcement(planned: Plan, split: SequenceSplit, accelerator: Accelerator) -> str:
    """One line: what trains on what, with how many processes and threads."""
    count, threads = accelerator.num_processes, torch.get_num_threads()
    name, cases = planned.recipe.name, len(split.valid)
    ranked = len(planned.evaluator.sample(split.valid))
    validate = str(cases) if ranked == cases else f"{ranked} of {cases}"
    return (
        f"{name}: {count} process{'es' if count > 1 else ''} on {accelerator.device.type}, "
        f"{threads} thread{'s' if threads > 1 else ''} each; {split.item_count} items, "
        f"{split.user_count} users, {int(split.is_train().sum())} of {len(split.items)} events "
        f"train, {validate} validate, {len(split.test)} test"
    )


def _teacher(
    planned: Plan, run: RunFolder, digests: Mapping[str, str]
) -> tuple[Ensemble | None, str | None]:
    """The trained ensemble that the recipe compresses and its digest, where there is one.

    Raises:
        RunError: The teacher is the run itself, was trained on other data, or reads other
            sequences.
    """
    given = planned.objective.teacher
    if given is None:
        return None, None
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
    if student.causal != planned.task.causal:
        raise RunError(
            f"{given.path}: its networks are {'causal' if student.causal else 'bidirectional'} and "
            "the student's are not, so they see other sequences; use the teacher's backbone kind"
        )
    if length < planned.training.max_length:
        raise RunError(
            f"{given.path}: reads at most {length} items; set training.max_length to {length} or "
            "less"
        )
    return student.requires_grad_(False), given.weights_digest()
