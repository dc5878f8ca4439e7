"""The whole flow on one page: items -> encoders -> cache -> distiller -> student -> metrics.

From a plan to a run folder. Read this first; every part has a file of its own.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmkd import __version__
from mmkd.config.plan import Plan, plan
from mmkd.config.recipe import Recipe, recipe_digest
from mmkd.distiller import CorrelationDistiller
from mmkd.errors import RunError, refuse
from mmkd.evaluation import choose_offset, choose_weights
from mmkd.pipeline.baselines import evaluate_baselines, in_passing
from mmkd.pipeline.embed import EmbedProgress, check_encoders, embed
from mmkd.pipeline.opening import OpenRun, check_same, opened
from mmkd.pipeline.tune import tune_first
from mmkd.runs.folder import RunFolder
from mmkd.runs.placement import Placement
from mmkd.student import Ensemble
from mmkd.student.build import StudentSpec
from mmkd.training.checkpoint import BestWeights, keep_best
from mmkd.training.progress import peak_memory_bytes, start_trackers
from mmkd.training.trainer import Trainer, table_shards


def train(
    planned: Plan | Recipe,
    *,
    folder: Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: EmbedProgress | None = None,
    announce: Callable[[str], None] | None = None,
    last: bool = True,
) -> dict[str, Any]:
    """The main job: to a run folder with a trained recommender, tested unless the recipe says no.

    The encoders of the recipe's ``tune`` section are tuned first, into ``encoders/``.

    Args:
        planned: What to run; a recipe is planned first.
        folder: The run's folder; made.
        resume: Continue an interrupted run of the same recipe; a finished one is just reported.
        overwrite: Start anew where there is a run already; only a run's own files are deleted,
            once the new run's data has been read.
        progress: Told how far the embedding is.
        announce: Told in one line what trains on what, before anything long.
        last: Whether several processes part after it; not where another training follows.

    Returns:
        The content of ``result.json``; its ``test`` is None after ``evaluation.test: false``.

    Raises:
        RecipeError: The recipe has mistakes.
        EncoderError: An encoder's weights are neither here nor to be had.
        RunError: As for ``opened``; or the encoders' vectors can't be distilled.
        TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
    """
    planned = planned if isinstance(planned, Plan) else plan(planned)
    planned = tune_first(planned, progress=progress, announce=announce)
    recipe, began = planned.recipe, time.monotonic()
    if resume and not overwrite and (done := RunFolder(folder)).finished:
        check_same(done, recipe)
        done.tidy()
        return done.result()
    check_encoders(planned)
    with opened(planned, folder, resume=resume, overwrite=overwrite, announce=announce) as run:
        data, accelerator = run.data, run.accelerator
        if planned.training.trackers:
            config = recipe.model_dump(mode="json")
            start_trackers(accelerator, name=recipe.name, config=config, folder=folder)

        # all processes encode together, and none stands in a collective that could time out
        tables = embed(
            planned,
            data.items,
            device=str(accelerator.device) if planned.encoding.device == "auto" else None,
            progress=progress if accelerator.is_main_process else None,
        )
        run.hold_to({name: table.key for name, table in tables.items()})

        shards = None
        if planned.training.tables == "sharded":
            shards = table_shards(len(data.items), accelerator.device)
        distiller = None
        if planned.distiller is not None:
            try:
                # neighbours for soft targets are searched among whole teachers
                whole = shards is None or planned.objective.neighbours is not None
                distiller = CorrelationDistiller(**planned.distiller).fit(tables, in_memory=whole)
            except ValueError as error:  # vectors that can't be distilled, such as all equal ones
                raise RunError(f"{recipe.name}: distiller: {error}") from error

        teachers = distiller.teachers if distiller else {}
        spec = StudentSpec(
            mmkd=__version__,
            item_count=len(data.items),
            max_length=planned.training.max_length,
            embedding=planned.embedding,
            backbone=planned.backbone,
            score_with=recipe.student.score_with,
            ensemble=planned.members.ensemble,
            modalities={name: teacher.shape[1] for name, teacher in teachers.items()},
        )
        held = spec if shards is None else replace(spec, item_count=shards.end - shards.first)
        refuse(held.check_fits(), RunError)
        counts = torch.from_numpy(data.split.train_counts())
        student = spec.build(
            teachers,
            distiller.present if distiller else {},
            counts > 0,
            seed=recipe.seed,
            shards=shards,
        )
        soften = planned.objective.soften(
            distiller,
            data.split,
            epochs=planned.training.epochs,
            seed=recipe.seed,
            members=planned.members.neighbours,
        )
        objective = planned.objective.build(
            train_counts=counts,
            soften=soften,
            distiller=distiller,
            members=len(student.members),
            width=planned.width,
            vocabulary=run.vocabulary,
            correlation_shares=planned.members.correlation,
        )
        placements = None
        if distiller is not None:
            fingerprints = {name: card.fingerprint() for name, card in planned.cards.items()}
            placements = Placement.all_of(distiller, student, fingerprints)
        run.write(
            items=data.items,
            users=data.log.user_ids,
            spec=spec,
            placements=placements,
            attributes=run.vocabulary.names if run.vocabulary else None,
        )
        prepared_s = time.monotonic() - began

        report = Trainer(planned.training).fit(
            student,
            objective,
            data,
            task=planned.task,
            distiller=distiller,
            folder=folder,
            asynchronous=planned.asynchronous,
            evaluator=planned.evaluator,
            teacher=run.teacher,
            soften=soften,
            accelerator=accelerator,
            resume=resume,
            seed=recipe.seed,
        )

        weighing = time.monotonic()
        if planned.members.weights_chosen:
            _weigh(student, planned, run)
        curve = _place_untrained(student, planned, run) if planned.members.offset_chosen else None
        changed = planned.members.weights_chosen or planned.members.offset_chosen
        tested = time.monotonic()
        cases = {"test": data.split.test} if planned.tests else {}
        valid_cases = planned.evaluator.sample(data.split.valid)
        ranks = {
            name: planned.evaluator.ranks(student, data.split, chosen, processes=accelerator)
            for name, chosen in (cases | {"valid": valid_cases}).items()
        }
        reports = {
            name: planned.evaluator.report(found, data.split, seed=recipe.seed)
            for name, found in ranks.items()
        }
        breakdown = {name: report.pop("breakdown") for name, report in reports.items()}
        tested_s = time.monotonic() - tested
        valid = report.history[report.best_epoch]["valid"]
        if planned.members.weights_chosen or curve:  # the epochs know of neither
            valid = valid | reports["valid"]["metrics"]
        result: dict[str, Any] = {
            "recipe": recipe.name,
            "digest": recipe_digest(recipe),
            "seed": recipe.seed,
            "split": recipe.data.split.kind,
            "test": reports.get("test"),
            "valid": valid,
            "validation": reports["valid"],
            "breakdown": breakdown,  # beside both: what release 0.1 wrote stays as it was
            "retention_at_start": report.retention_at_start,
            "best_epoch": report.best_epoch,
            "epochs": len(report.history),
            "stopped": report.stopped,
            "seconds": {
                "prepare": round(prepared_s, 1),
                "train_and_validate": round(report.seconds, 1),
                "epoch": _mean([record["train_seconds"] for record in report.history]),
                "validation": _mean([record["valid_seconds"] for record in report.history]),
                "weights": round(tested - weighing, 1),
                "test": round(tested_s, 1),
                "total": round(prepared_s + report.seconds + time.monotonic() - weighing, 1),
            },
            "peak_memory_bytes": peak_memory_bytes(),
            "processes": accelerator.num_processes,
            "parameters": student.size(),
        }
        if len(valid_cases) < len(data.split.valid):
            result["validation_cases"] = {"ranked": len(valid_cases), "of": len(data.split.valid)}
        if student.weights is not None:
            result["weights"] = student.shares()
        if student.untrained_offset is not None:
            result["untrained_offset"] = float(student.untrained_offset)
        if curve:
            result["untrained_offsets"] = curve
        if planned.baselines:
            began = time.monotonic()
            beside = evaluate_baselines(
                in_passing(data.split, announce=announce if accelerator.is_main_process else None),
                planned.evaluator,
                data.split,
                seed=recipe.seed,
                processes=accelerator,
            )
            result["baselines"] = {
                name: {part: found[part] for part in ("test", "valid", "breakdown")}
                for name, found in beside.items()
            }
            result["seconds"]["baselines"] = round(time.monotonic() - began, 1)
        if changed:
            if accelerator.is_main_process:
                keep_best(folder)
            BestWeights(folder, accelerator).write(student)
        run.write(
            ranks=ranks.get("test"),
            history=report.history,
            result=result,
        )
        accelerator.wait_for_everyone()
        if last:
            accelerator.end_training()
        for tracker in () if last else accelerator.trackers:
            tracker.finish()
    return result


def _weigh(student: Ensemble, planned: Plan, run: OpenRun) -> None:
    """Choose the members' weights on validation."""
    split = run.data.split
    student.set_weights(
        choose_weights(
            student,
            split,
            planned.evaluator.sample(split.valid),
            evaluator=planned.evaluator,
            metric=planned.training.select_metric,
            processes=run.accelerator,
        )
    )


def _place_untrained(student: Ensemble, planned: Plan, run: OpenRun) -> list[dict[str, float]]:
    """Choose the untrained items' offset on validation; returns what each one costs."""
    split = run.data.split
    offset, curve = choose_offset(
        student,
        split,
        planned.evaluator.sample(split.valid),
        evaluator=planned.evaluator,
        metric=planned.training.select_metric,
        price=planned.members.ensemble.get("untrained_price", 0.0),
        processes=run.accelerator,
    )
    student.set_untrained_offset(offset)
    return curve


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
