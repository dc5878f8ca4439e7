"""Trainer: a recipe's training section; a TrainStep and batches to the best weights and a report.

Accelerate places the model, casts, and averages gradients over processes; ``TrainingLoop`` owns
epochs, schedules, early stopping and checkpoints. Neither knows a loss by name.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState

from mmkd.data.batches import BatchStream
from mmkd.interruption import Interruption
from mmkd.training.loop import TargetsOf, TrainingLoop, TrainReport, Validate
from mmkd.training.optimizer import AsynchronousUpdate
from mmkd.training.step import TrainStep


class TrainingError(ValueError):
    """A run can't train as it was asked to."""


class Trainer:
    """Fits a TrainStep.

    Args:
        epochs: At most this many passes.
        batch_size: Sequences a batch, over all processes.
        max_length: Longest sequence the student reads, L, in items.
        lr: Peak learning rate of AdamW.
        schedule: ``constant``, ``linear`` or ``cosine`` decay after the warm-up.
        warmup_steps: Optimiser steps of linear growth.
        weight_decay: Decoupled decay.
        betas: Of AdamW.
        gradient_clip: Largest global gradient norm; None = no clipping.
        accumulate: Batches an optimiser step.
        gradient_checkpointing: Keep a backbone's inputs and states only and compute the rest again
            for the gradients, a few sequences at a time: less memory, about a third more time. The
            same mathematics, though dropout draws in another order.
        patience: Validations without a better metric before stopping; None = never.
        validate_every: Epochs between validations.
        select_metric: Which validation metric chooses the kept weights (higher is better).
        checkpoint_every_s: Seconds between checkpoints inside an epoch (each epoch's end has one).
        precision: ``bf16`` and ``fp16`` compute in half precision where that is safe.
        threads: Of each process; None shares the cores evenly among the processes.
        cpu: Stay on the CPU where there is a GPU.
        trackers: Where each epoch's record goes besides the run folder.

    Raises:
        ValueError: An option is out of range; a line for each.
    """

    def __init__(
        self,
        *,
        epochs: int = 100,
        batch_size: int = 256,
        max_length: int = 50,
        lr: float = 1e-3,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        gradient_clip: float | None = None,
        accumulate: int = 1,
        gradient_checkpointing: bool = False,
        patience: int | None = 10,
        validate_every: int = 1,
        select_metric: str = "NDCG@10",
        checkpoint_every_s: float = 300.0,
        precision: Literal["no", "bf16", "fp16"] = "no",
        threads: int | None = None,
        cpu: bool = False,
        trackers: Sequence[Literal["tensorboard", "wandb"]] = (),
    ) -> None:
        wrong = []
        for name, count in (
            ("epochs", epochs),
            ("batch_size", batch_size),
            ("max_length", max_length),
            ("accumulate", accumulate),
            ("patience", patience),
            ("validate_every", validate_every),
            ("threads", threads),
        ):
            if count is not None and count < 1:
                wrong.append(f"{name}: got {count}, wanted at least 1; raise it")
        for name, positive in (("lr", lr), ("gradient_clip", gradient_clip)):
            if positive is not None and not 0 < positive < math.inf:
                hint = "null does not clip" if name == "gradient_clip" else "such as 1e-3"
                wrong.append(f"{name}: got {positive}, wanted a number above 0; {hint}")
        for name, amount in (
            ("warmup_steps", warmup_steps),
            ("weight_decay", weight_decay),
            ("checkpoint_every_s", checkpoint_every_s),
        ):
            if not amount >= 0:
                wrong.append(f"{name}: got {amount}, wanted 0 or more; raise it")
        if not all(0 <= beta < 1 for beta in betas):
            wrong.append(f"betas: got {betas}, wanted two from 0 to below 1; such as [0.9, 0.999]")
        if wrong:
            raise ValueError("\n".join(wrong))
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_length = max_length
        self.lr = lr
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = betas
        self.gradient_clip = gradient_clip
        self.accumulate = accumulate
        self.gradient_checkpointing = gradient_checkpointing
        self.patience = patience
        self.validate_every = validate_every
        self.select_metric = select_metric
        self.checkpoint_every_s = checkpoint_every_s
        self.precision = precision
        self.threads = threads
        self.cpu = cpu
        self.trackers = list(trackers)

    def accelerator(self, *, run_folder: Path) -> Accelerator:
        """Set this process's threads and build the accelerator.

        Args:
            run_folder: TensorBoard's files go below it.

        Raises:
            TrainingError: The device can't compute in the wanted precision.
        """
        if self.precision == "fp16" and not _has_accelerator():
            raise TrainingError(
                "training.precision: got fp16, which needs a GPU; use bf16 or no on a CPU"
            )
        accelerator = Accelerator(
            # asked for by name, or several processes without a GPU would not find each other
            cpu=self.cpu or not _has_accelerator(),
            mixed_precision=self.precision,
            log_with=self.trackers or None,
            project_dir=run_folder,
            step_scheduler_with_optimizer=False,
        )
        self._set_threads(accelerator.num_processes)
        return accelerator

    def processes(self) -> PartialState:
        """Set this process's threads; its device and its place among all, without a precision."""
        state = PartialState(cpu=self.cpu or not _has_accelerator())
        self._set_threads(state.num_processes)
        return state

    def _set_threads(self, processes: int) -> None:
        # processes that each take every core run many times slower than one after the other
        share = max(1, (os.cpu_count() or 1) // processes)
        torch.set_num_threads(self.threads or share)

    def fit(
        self,
        step: TrainStep,
        stream: BatchStream,
        *,
        targets: TargetsOf,
        validate: Validate,
        asynchronous: AsynchronousUpdate,
        accelerator: Accelerator,
        folder: Path,
        resume: bool = False,
    ) -> TrainReport:
        """Train until the epochs or the patience run out; load and save the best weights.

        Args:
            step: Already on the accelerator's device.
            stream: This process's rows of every batch.
            targets: Teacher targets of a batch's items; called without gradients.
            validate: Validation metrics of ``step.student`` as it is; called on every process.
            asynchronous: How the modality tables lag behind.
            accelerator: Device, precision and processes.
            folder: Gets ``student.safetensors`` (the best) and ``checkpoints/``.
            resume: Continue from the newest checkpoint, if there is one.

        Returns:
            The report; ``step`` holds the best weights.

        Raises:
            TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
            CheckpointError: The checkpoint doesn't fit.
        """
        if self.gradient_checkpointing:
            step.student.enable_gradient_checkpointing()
        run = TrainingLoop(self, step, stream, asynchronous, accelerator, folder)
        if resume:
            run.restore()
        with Interruption() as interruption:
            while not run.report.stopped:
                run.train_epoch(targets, interruption)
                run.close_epoch(validate)
                if not run.report.stopped:
                    run.pause(interruption)
        run.load_best()
        return run.report


def _has_accelerator() -> bool:
    """Whether there is one that can compute everything; Apple's has no float64 for the ranks."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type != "mps"


__all__ = ["TrainReport", "Trainer", "TrainingError"]
