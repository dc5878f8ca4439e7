"""The whole flow on one page: items -> encoders -> cache -> distiller -> student -> metrics.

Each function takes the checked plan of a recipe and what the function before it returned.
Read this first; every part has a file of its own.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmkd import __version__
from mmkd.data import SPLITS, Cases, InteractionLog, ItemTable, SequenceSplit
from mmkd.data.readers import load_interactions, load_items
from mmkd.distiller import CorrelationDistiller, CorrelationTargets
from mmkd.embedding_cache import EmbeddingCache, EmbeddingTable
from mmkd.encoders import build_encoder
from mmkd.evaluation.case_ranks import CaseRanks
from mmkd.evaluation.retention import RetentionProbe
from mmkd.objectives.correlation import CorrelationLoss
from mmkd.objectives.objective import Objective
from mmkd.plan import Plan, plan
from mmkd.recipe import Recipe, load_recipe, recipe_digest
from mmkd.serving.run_folder import RunError, RunFolder, build_student
from mmkd.serving.scorer import scorer
from mmkd.student import Recommender
from mmkd.training.checkpoint import write_json
from mmkd.training.memory import peak_memory_bytes
from mmkd.training.step import TrainStep

EmbedProgress = Callable[[str, int, int], None]  # (modality name, done, of)


@dataclass(frozen=True)
class Dataset:
    """What ``load_data`` returns."""

    items: ItemTable
    log: InteractionLog
    split: SequenceSplit


def load_data(planned: Plan) -> Dataset:
    """Read the catalogue and the log, and split the sequences."""
    root = planned.recipe.data.folder
    items = load_items(root=root, **planned.items)
    log = load_interactions(items, root=root, **planned.interactions)
    split = SPLITS[planned.recipe.data.split.kind](log, len(items), **planned.split)
    return Dataset(items=items, log=log, split=split)


def embed(
    planned: Plan,
    items: ItemTable,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    progress: EmbedProgress | None = None,
) -> dict[str, EmbeddingTable]:
    """Encode each modality of the catalogue once; what the cache holds is not encoded again."""
    cache = EmbeddingCache(**planned.cache)
    return {
        name: cache.table(
            card,
            items,
            encoder_factory=partial(
                build_encoder,
                card,
                device=device,
                allow_random_weights=planned.allow_random_weights,
            ),
            batch_size=batch_size,
            progress=partial(progress, name) if progress else None,
        )
        for name, card in planned.cards.items()
    }


def distil(planned: Plan, tables: Mapping[str, EmbeddingTable]) -> CorrelationDistiller | None:
    """Reduce the teachers and fit their codebooks; None without encoders.

    Raises:
        RunError: A modality's vectors can't be distilled.
    """
    if planned.distiller is None:
        return None
    try:
        return CorrelationDistiller(**planned.distiller).fit(tables)
    except ValueError as error:  # vectors that can't be distilled, such as all equal ones
        raise RunError(f"{planned.recipe.name}: distiller: {error}") from error


def build_step(
    planned: Plan, split: SequenceSplit, distiller: CorrelationDistiller | None
) -> tuple[TrainStep, dict[str, Any]]:
    """Student and objective, and the spec from which the student can be built again."""
    teachers = distiller.reduced if distiller else {}
    spec = {
        "mmkd": __version__,
        "item_count": split.item_count,
        "max_length": planned.trainer.max_length,
        "embedding": planned.embedding,
        "backbone": planned.backbone,
        "score_with": planned.recipe.student.score_with,
        "modalities": {name: teacher.shape[1] for name, teacher in teachers.items()},
    }
    student = build_student(spec, teachers, distiller.present if distiller else {})
    losses = (
        {name: CorrelationLoss(**planned.correlation) for name in teachers}
        if planned.correlation is not None
        else {}
    )
    counts = torch.from_numpy(split.train_counts())
    objective = Objective(
        planned.supervision.build_loss(counts), correlation=losses, **planned.weights
    )
    return TrainStep(student, objective), spec


def train(
    recipe: Recipe,
    *,
    folder: Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: EmbedProgress | None = None,
) -> dict[str, Any]:
    """The main job: a recipe to a run folder with a trained, tested recommender.

    Args:
        recipe: What to run.
        folder: The run's folder; made.
        resume: Continue an interrupted run of the same recipe; a finished one is just reported.
        overwrite: Start anew where there is a run already.
        progress: Told how far the embedding is.

    Returns:
        The content of ``result.json``.

    Raises:
        RecipeError: The recipe has mistakes.
        RunError: The folder holds a run and neither ``resume`` nor ``overwrite`` is given, or a
            run of another recipe.
        TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
    """
    planned = plan(recipe)
    run = RunFolder(folder)
    if resume and run.finished:
        _check_same(run, recipe)
        return run.result()
    accelerator = planned.trainer.accelerator(run_folder=folder)
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            _open(run, recipe, resume=resume, overwrite=overwrite)
    if planned.trainer.trackers:
        accelerator.init_trackers(recipe.name)
    began = time.monotonic()
    data = load_data(planned)
    if resume and (folder / "items.parquet").is_file():
        check_catalogue(run, data.items, recipe)
    with accelerator.main_process_first():  # the others then find everything in the cache
        tables = embed(planned, data.items, device=str(accelerator.device), progress=progress)
    distiller = distil(planned, tables)
    torch.manual_seed(recipe.seed)
    step, spec = build_step(planned, data.split, distiller)
    if accelerator.is_main_process:
        data.items.save(folder / "items.parquet")
        run.write_student_spec(spec)
    step.to(accelerator.device)
    retention = _retention_of(planned, step.student, distiller)
    retention_at_start = retention()
    rank = partial(rank_cases, planned, data.split, step.student, accelerator)
    prepared_s = time.monotonic() - began
    # every process starts from the same weights and drops out different units
    torch.manual_seed(recipe.seed + accelerator.process_index)
    report = planned.trainer.fit(
        step,
        planned.supervision.stream(
            data.split,
            max_length=planned.trainer.max_length,
            batch_size=planned.trainer.batch_size,
            seed=recipe.seed,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        ),
        targets=_targets_of(planned, distiller, accelerator),
        validate=lambda: planned.evaluator.metrics(rank(data.split.valid)) | retention(),
        asynchronous=planned.asynchronous,
        accelerator=accelerator,
        folder=folder,
        resume=resume,
    )
    ranks = rank(data.split.test)
    result = {
        "recipe": recipe.name,
        "digest": recipe_digest(recipe),
        "seed": recipe.seed,
        "split": recipe.data.split.kind,
        "test": planned.evaluator.report(ranks, data.split, seed=recipe.seed),
        "valid": report.history[report.best_epoch]["valid"],
        "retention_at_start": retention_at_start,
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
        run.write_ranks(ranks)
        write_json(folder / "history.json", report.history)
        run.write_result(result)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def _targets_of(
    planned: Plan, distiller: CorrelationDistiller | None, accelerator: Accelerator
) -> Callable[[Tensor, torch.Generator], Mapping[str, CorrelationTargets]]:
    if distiller is None or planned.correlation is None:
        return lambda items, generator: {}
    distiller.to(accelerator.device)
    return lambda items, generator: distiller.targets(items, generator=generator)


def _retention_of(
    planned: Plan, student: Recommender, distiller: CorrelationDistiller | None
) -> Callable[[], dict[str, float]]:
    """How much of each modality the student's table still holds, by ``retention.NAME.FIGURE``."""
    probes = {}
    if distiller is not None:
        probes = {
            name: RetentionProbe(
                teacher=teacher, present=distiller.present[name], seed=planned.recipe.seed
            )
            for name, teacher in distiller.reduced.items()
        }

    def measure() -> dict[str, float]:
        tables = student.embedding.modality_tables()
        return {
            f"retention.{name}.{figure}": value
            for name, probe in probes.items()
            # the mask token's row has no teacher
            for figure, value in probe.measure(tables[name][:-1]).items()
        }

    return measure


def rank_cases(
    planned: Plan,
    split: SequenceSplit,
    student: Recommender,
    accelerator: Accelerator,
    cases: Cases,
) -> CaseRanks:
    """Rank every case's target among the whole catalogue; the processes share the work."""
    return planned.evaluator.ranks(
        scorer(student, item_count=split.item_count, max_length=planned.trainer.max_length),
        split,
        cases,
        max_length=planned.trainer.max_length,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def _open(run: RunFolder, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    if run.started and overwrite:
        shutil.rmtree(run.path)
    elif run.started and not resume:
        state = "a finished run" if run.finished else "an unfinished run"
        remedy = "" if run.finished else "--resume to continue it, "
        raise RunError(
            f"{run.path}: holds {state} already; give {remedy}--overwrite to start anew, or "
            "another folder with --out"
        )
    elif run.started:
        _check_same(run, recipe)
    recipe.save(run.recipe)


def _check_same(run: RunFolder, recipe: Recipe) -> None:
    if load_recipe(str(run.recipe)) != recipe:
        raise RunError(
            f"{run.path}: holds a run of another recipe than {recipe.name} as given now (compare "
            f"{run.recipe}); resume with the same options, or give another folder with --out"
        )


def check_catalogue(run: RunFolder, items: ItemTable, recipe: Recipe) -> None:
    """Raise RunError unless the items are those of the run, in the same rows."""
    if items.ids != run.items().ids:
        raise RunError(
            f"{run.path}: the catalogue in {recipe.data.root} is not the one this run was trained "
            "on; put the old one back or train again"
        )


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
