"""The whole flow on one page: items -> encoders -> cache -> distiller -> student -> metrics.

From a recipe to a run folder. Read this first; every part has a file of its own, and ``stages``
says how a plan calls it.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import Recipe, recipe_digest
from mmkd.data.dataset import Dataset
from mmkd.data.items import AttributeVocabulary
from mmkd.pipeline.embed import EmbedProgress, embed
from mmkd.pipeline.opening import (
    Teacher,
    announcement,
    check_open,
    check_same,
    load_teacher,
    open_run,
)
from mmkd.pipeline.stages import (
    build_step,
    digests_of,
    distil,
    load_data,
    vocabulary_of,
)
from mmkd.runs.folder import RunFolder
from mmkd.training.progress import peak_memory_bytes, start_trackers


def train(
    recipe: Recipe,
    *,
    folder: Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: EmbedProgress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The main job: a recipe to a run folder with a trained, tested recommender.

    Args:
        recipe: What to run.
        folder: The run's folder; made.
        resume: Continue an interrupted run of the same recipe; a finished one is just reported.
        overwrite: Start anew where there is a run already; only a run's own files are deleted,
            once the new run's data has been read.
        progress: Told how far the embedding is.
        announce: Told in one line what trains on what, before anything long.

    Returns:
        The content of ``result.json``.

    Raises:
        RecipeError: The recipe has mistakes.
        RunError: The folder holds a run and neither ``resume`` nor ``overwrite`` is given, a run
            of another recipe or of other data, or something that is no run; or another process
            trains there.
        TrainingError: A tracker isn't installed, or the device can't compute in this precision.
        TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
    """
    planned = plan(recipe)
    run = RunFolder(folder)
    if resume and run.finished:
        check_same(run, recipe)
        return run.result()
    accelerator = planned.trainer.accelerator(folder=folder)
    with run.locked() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:  # says so before the data is read
            check_open(run, recipe, resume=resume, overwrite=overwrite)
        began = time.monotonic()
        data = load_data(planned)
        if announce and accelerator.is_main_process:
            announce(announcement(recipe, data.split, accelerator))
        # what may be wrong with them is told before an earlier run is deleted
        vocabulary = vocabulary_of(planned, data.items)
        digests = digests_of(data)
        teacher = load_teacher(planned, run, digests)
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                open_run(
                    run,
                    recipe,
                    digests,
                    anew=overwrite or not resume,
                    teacher=teacher.digest if teacher else None,
                )
        if planned.training.trackers:
            config = recipe.model_dump(mode="json")
            start_trackers(accelerator, name=recipe.name, config=config, folder=folder)
        return _train(
            planned,
            run,
            data,
            accelerator,
            vocabulary=vocabulary,
            teacher=teacher,
            resume=resume,
            progress=progress,
            began=began,
        )


def _train(
    planned: Plan,
    run: RunFolder,
    data: Dataset,
    accelerator: Accelerator,
    *,
    vocabulary: AttributeVocabulary | None,
    teacher: Teacher | None,
    resume: bool,
    progress: EmbedProgress | None,
    began: float,
) -> dict[str, Any]:
    """The rest of ``train``, in an open run folder."""
    recipe, folder = planned.recipe, run.path
    # all processes encode together, and none stands in a collective that could time out
    tables = embed(
        planned,
        data.items,
        device=str(accelerator.device) if planned.encoding.device == "auto" else None,
        progress=progress if accelerator.is_main_process else None,
    )
    if accelerator.is_main_process:
        keys = {name: table.key for name, table in tables.items()}
        run.check_tables(keys)
        run.write(tables=keys)
    distiller = distil(planned, tables)
    step, spec = build_step(
        planned,
        data,
        distiller,
        vocabulary=vocabulary,
        compressed=teacher.student.to(accelerator.device) if teacher else None,
    )
    if accelerator.is_main_process:
        run.write(
            items=data.items,
            users=data.log.user_ids,
            spec=spec,
            attributes=vocabulary.names if vocabulary else None,
        )
    prepared_s = time.monotonic() - began
    report = planned.trainer.fit(
        step.student,
        step.objective,
        data,
        task=planned.objective.task,
        distiller=distiller,
        folder=folder,
        asynchronous=planned.asynchronous,
        evaluator=planned.evaluator,
        teacher=teacher.student if teacher else None,
        accelerator=accelerator,
        resume=resume,
        seed=recipe.seed,
    )
    ranks = planned.evaluator.ranks(
        step.student, data.split, data.split.test, processes=accelerator
    )
    result = {
        "recipe": recipe.name,
        "digest": recipe_digest(recipe),
        "seed": recipe.seed,
        "split": recipe.data.split.kind,
        "test": planned.evaluator.report(ranks, data.split, seed=recipe.seed),
        "valid": report.history[report.best_epoch]["valid"],
        "retention_at_start": report.retention_at_start,
        "best_epoch": report.best_epoch,
        "epochs": len(report.history),
        "stopped": report.stopped,
        "seconds": {
            "prepare": round(prepared_s, 1),
            "train_and_validate": round(report.seconds, 1),
            "epoch": _mean([record["train_seconds"] for record in report.history]),
            "validation": _mean([record["valid_seconds"] for record in report.history]),
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "processes": accelerator.num_processes,
        "parameters": sum(p.numel() for p in step.student.parameters()),
    }
    if accelerator.is_main_process:
        run.write(ranks=ranks, history=report.history, result=result)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
