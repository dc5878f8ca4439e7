"""The whole flow on one page: items -> encoders -> cache -> distiller -> student -> metrics.

Each function takes the checked plan of a recipe and what the function before it returned.
Read this first; every part has a file of its own.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmkd import __version__
from mmkd.data import SPLITS, Cases, InteractionLog, ItemTable, SequenceSplit
from mmkd.data.attributes import AttributeVocabulary
from mmkd.data.readers import load_interactions, load_items
from mmkd.distiller import CorrelationDistiller, CorrelationTargets
from mmkd.embedding_cache import EmbeddingCache, EmbeddingTable, RunReport
from mmkd.encoders import build_encoder
from mmkd.evaluation.case_ranks import CaseRanks
from mmkd.evaluation.evaluator import LIST_LENGTH
from mmkd.evaluation.retention import RetentionProbe
from mmkd.interruption import Interruption
from mmkd.plan import Plan, plan
from mmkd.recipe import Recipe, recipe_digest
from mmkd.run_opening import (
    announcement,
    check_open,
    check_same,
    check_trackers,
    load_teacher,
    open_run,
)
from mmkd.serving.build_student import build_student
from mmkd.serving.data_digest import data_digests
from mmkd.serving.run_folder import RunError, RunFolder
from mmkd.serving.scorer import scorer
from mmkd.student import Ensemble
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
    device: str | None = None,
    progress: EmbedProgress | None = None,
    report: Callable[[str, RunReport], None] | None = None,
) -> dict[str, EmbeddingTable]:
    """Encode each modality of the catalogue once; what the cache holds is not encoded again.

    Any number of processes may do this at once: they share the work, and none waits for another
    while there is something left to encode.

    Args:
        planned: The recipe.
        items: The catalogue.
        device: Where the encoders run; None leaves it to the recipe.
        progress: Told how far each modality is.
        report: Told what this process did for a modality.

    Raises:
        EmbeddingInterrupted: After SIGINT or SIGTERM, once what is encoded is committed.
    """
    cache = EmbeddingCache(**planned.cache)
    settings = planned.encoding
    tables = {}
    with Interruption() as interruption:
        for name, card in planned.cards.items():
            tables[name] = cache.table(
                card,
                items,
                encoder_factory=partial(
                    build_encoder,
                    card,
                    device=device or settings.resolved_device(),
                    batch_tokens=settings.batch_tokens,
                    allow_random_weights=planned.allow_random_weights,
                ),
                batch_size=settings.batch_size,
                workers=settings.workers,
                progress=partial(progress, name) if progress else None,
                report=partial(report, name) if report else None,
                stop=lambda: interruption.requested,
            )
            if interruption.requested:  # while there was nothing to encode
                raise KeyboardInterrupt
    return tables


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
    planned: Plan, data: Dataset, distiller: CorrelationDistiller | None, accelerator: Accelerator
) -> tuple[TrainStep, dict[str, Any]]:
    """Student and objective, and the spec from which the student can be built again."""
    teachers = distiller.reduced if distiller else {}
    spec = {
        "mmkd": __version__,
        "item_count": data.split.item_count,
        "max_length": planned.trainer.max_length,
        "embedding": planned.embedding,
        "backbone": planned.backbone,
        "score_with": planned.recipe.student.score_with,
        "ensemble": planned.ensemble,
        "modalities": {name: teacher.shape[1] for name, teacher in teachers.items()},
    }
    compressed = load_teacher(planned, data.items.ids, device=accelerator.device)
    present = distiller.present if distiller else {}
    student = build_student(spec, teachers, present, seed=planned.recipe.seed)
    objective = planned.objective.build(
        train_counts=torch.from_numpy(data.split.train_counts()),
        modalities=tuple(teachers),
        members=len(student.members),
        width=planned.width,
        vocabulary=vocabulary_of(planned, data.items),
    )
    return TrainStep(student, objective, compressed), spec


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
            trains there; or a tracker isn't installed.
        TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
    """
    planned = plan(recipe)
    check_trackers(planned)
    run = RunFolder(folder)
    if resume and run.finished:
        check_same(run, recipe)
        return run.result()
    accelerator = planned.trainer.accelerator(run_folder=folder)
    with run.locked() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:  # says so before the data is read
            check_open(run, recipe, resume=resume, overwrite=overwrite)
        began = time.monotonic()
        data = load_data(planned)
        if announce and accelerator.is_main_process:
            announce(announcement(recipe, data.split, accelerator))
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                open_run(run, recipe, digests_of(data), anew=overwrite or not resume)
        if planned.trainer.trackers:
            accelerator.init_trackers(recipe.name)
        return _train(
            planned, run, data, accelerator, resume=resume, progress=progress, began=began
        )


def _train(
    planned: Plan,
    run: RunFolder,
    data: Dataset,
    accelerator: Accelerator,
    *,
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
        run.mark(recipe=recipe.name, data=digests_of(data), tables=keys)
    distiller = distil(planned, tables)
    step, spec = build_step(planned, data, distiller, accelerator)
    if accelerator.is_main_process:
        data.items.save(folder / "items.parquet")
        run.write_users(data.log.user_ids)
        run.write_student_spec(spec)
        if vocabulary := vocabulary_of(planned, data.items):
            run.write_attributes(vocabulary.names)
    step.to(accelerator.device)
    retention = _retention_of(planned, step.student, distiller)
    retention_at_start = retention()
    rank = partial(rank_cases, planned, data.split, step.student, accelerator)
    prepared_s = time.monotonic() - began
    # every process starts from the same weights and drops out different units
    torch.manual_seed(recipe.seed + accelerator.process_index)
    report = planned.trainer.fit(
        step,
        planned.objective.supervision.stream(
            data.split,
            max_length=planned.trainer.max_length,
            batch_size=planned.trainer.batch_size,
            seed=recipe.seed,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulate=planned.trainer.accumulate,
            clean=planned.objective.clean,
        ),
        targets=_targets_of(planned, distiller, accelerator),
        validate=lambda: (
            planned.evaluator.metrics(rank(data.split.valid, list_length=0)) | retention()
        ),
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
    if distiller is None or planned.objective.correlation is None:
        return lambda items, generator: {}
    distiller.to(accelerator.device)
    share = 1 / accelerator.num_processes
    return lambda items, generator: distiller.targets(items, generator=generator, share=share)


def _retention_of(
    planned: Plan, student: Ensemble, distiller: CorrelationDistiller | None
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
        return {
            f"retention.{name}.{figure}": value
            for name, probe in probes.items()
            # the mask token's row has no teacher
            for figure, value in probe.measure(student.vectors(name)[:-1]).items()
        }

    return measure


def rank_cases(
    planned: Plan,
    split: SequenceSplit,
    student: Ensemble,
    accelerator: Accelerator,
    cases: Cases,
    list_length: int = LIST_LENGTH,
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
        list_length=list_length,
    )


def vocabulary_of(planned: Plan, items: ItemTable) -> AttributeVocabulary | None:
    """The attributes to predict, where the recipe has them predicted."""
    return None if planned.objective.attributes is None else AttributeVocabulary.of(items)


def digests_of(data: Dataset) -> dict[str, str]:
    """What identifies the data a run trains on."""
    return data_digests(item_ids=data.items.ids, user_ids=data.log.user_ids, split=data.split)


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
