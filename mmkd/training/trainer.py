"""The loop of one training run: epochs, steps, validation, checkpoints. ``Trainer`` sets it up."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from mmkd.data.batches import BatchStream, seeded_generator
from mmkd.data.tasks import Batch
from mmkd.errors import TrainingError, TrainingInterrupted
from mmkd.interruption import Interruption
from mmkd.losses.objective import LossBreakdown
from mmkd.training.checkpoint import CheckpointFolder, write_tensors
from mmkd.training.optimizer import (
    MODALITY_GROUP,
    AsynchronousUpdate,
    LearningRate,
    parameter_groups,
)
from mmkd.training.progress import EpochProgress, flat, gradient_norms
from mmkd.training.step import TrainStep

TargetsOf = Callable[[Tensor, torch.Generator], Mapping[str, Any]]
Validate = Callable[[], Mapping[str, float]]


@dataclass
class TrainReport:
    """How a run went.

    Attributes:
        best_epoch: Epoch (from 0) of the kept weights; -1 before the first validation.
        best_metric: The selection metric there.
        bad_epochs: Validations since.
        seconds: Wall time spent in training and validation, over all resumed parts.
        history: One record an epoch: losses, validation metrics, learning rate, gradient norms.
        stopped: ``""`` while running, then ``early`` or ``epochs``.
    """

    best_epoch: int = -1
    best_metric: float = float("-inf")
    bad_epochs: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""


@dataclass
class _Position:
    epoch: int = 0
    step: int = 0  # batches of this epoch already done
    optimizer_steps: int = 0
    train_seconds: float = 0.0  # of this epoch, with what came before a checkpoint


class TrainingLoop:
    """One call of ``Trainer.fit``: its state and its steps."""

    def __init__(
        self,
        trainer: "Trainer",
        step: TrainStep,
        stream: BatchStream,
        asynchronous: AsynchronousUpdate,
        accelerator: Accelerator,
        folder: Path,
    ) -> None:
        self.trainer = trainer
        self.step = step
        self.stream = stream
        self.asynchronous = asynchronous
        self.accelerator = accelerator
        self.folder = folder
        self.tables = list(step.student.modality_parameters())
        self.optimizer = torch.optim.AdamW(
            parameter_groups(
                step.named_parameters(),
                self.tables,
                lr=trainer.lr,
                weight_decay=trainer.weight_decay,
            ),
            lr=trainer.lr,
            betas=trainer.betas,
        )
        self.prepared, self.prepared_optimizer = accelerator.prepare(step, self.optimizer)
        self.batches = len(stream)
        self.learning_rate = LearningRate(
            lr=trainer.lr,
            schedule=trainer.schedule,
            warmup_steps=trainer.warmup_steps,
            total_steps=-(-self.batches // trainer.accumulate) * trainer.epochs,
            asynchronous=asynchronous,
        )
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints",
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.report = TrainReport()
        self.at = _Position()
        self.sums: dict[str, Tensor] = {}
        self.gradient_norms: dict[str, float] = {}
        self.clock = self.saved = time.monotonic()

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        newest = self.checkpoints.newest()
        if newest is None:
            return
        progress, state = self.checkpoints.load(newest, module=self.step, optimizer=self.optimizer)
        self.asynchronous.load_state_dict(
            {k: v.to(self.accelerator.device) for k, v in state.items()}
        )
        self.report = TrainReport(**cast(dict[str, Any], progress["report"]))
        self.at = _Position(**cast(dict[str, Any], progress["position"]))
        sums = cast(dict[str, float], progress["sums"])
        self.sums = {
            k: torch.tensor(v, device=self.accelerator.device, dtype=torch.float64)
            for k, v in sums.items()
        }
        self.gradient_norms = cast(dict[str, float], progress["gradient_norms"])
        if self.accelerator.scaler is not None and progress["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(cast(dict[str, Any], progress["scaler"]))

    def train_epoch(self, targets: TargetsOf, interruption: Interruption) -> None:
        """The batches of this epoch that are still to do."""
        self.prepared.train()
        at, every = self.at, self.trainer.accumulate
        first = at.step
        with EpochProgress(
            self.batches,
            epoch=at.epoch,
            of=self.trainer.epochs,
            first=first,
            shown=self.accelerator.is_main_process,
        ) as bar:
            for batch in self.stream.epoch(at.epoch, first_step=first):
                group_start = at.step - at.step % every
                group = min(every, self.batches - group_start)
                ends_group = at.step + 1 == group_start + group
                with nullcontext() if ends_group else self.accelerator.no_sync(self.prepared):
                    self._backward(batch, targets, group)
                if ends_group:
                    self._optimizer_step()
                at.step += 1
                bar.advance(self.sums, at.step)
                # a checkpoint can't hold half an accumulated gradient
                if ends_group and at.step < self.batches:
                    self.pause(interruption)

    def _backward(self, batch: Batch, targets: TargetsOf, group: int) -> None:
        at = self.at
        with torch.no_grad():
            teacher = targets(batch.items, seeded_generator(self.stream.seed, at.epoch, at.step, 1))
        with self.accelerator.autocast():
            loss: LossBreakdown = self.prepared(batch, teacher)
        self.accelerator.backward(loss.total / group)
        for name, value in {"total": loss.total.detach(), **loss.parts}.items():
            value = value.to(torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _optimizer_step(self) -> None:
        at, trainer = self.at, self.trainer
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.prepared_optimizer)
        if at.step + 1 == self.batches:
            self.gradient_norms = gradient_norms(self.step)
        # first, so that a gradient which takes no part in the step takes none in its norm
        self.asynchronous.before_step(self.tables)
        if trainer.gradient_clip is not None:
            # not Accelerate's, which would divide by fp16's loss scale a second time
            nn.utils.clip_grad_norm_(self.step.parameters(), trainer.gradient_clip)
        self.learning_rate.apply(self.optimizer, step=at.optimizer_steps, epoch=at.epoch)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad(set_to_none=True)
        at.optimizer_steps += 1

    def pause(self, interruption: Interruption) -> None:
        """Write a checkpoint when one is due; stop when asked to. All processes agree."""
        due = time.monotonic() - self.saved > self.trainer.checkpoint_every_s
        flags = torch.tensor(
            [float(interruption.requested), float(due and self.accelerator.is_main_process)],
            device=self.accelerator.device,
        )
        if self.accelerator.num_processes > 1:
            flags = cast(Tensor, self.accelerator.reduce(flags, "sum"))
        stop, save = (bool(flag) for flag in flags)
        if (stop or save) and self.at.step:  # at step 0 close_epoch has just saved
            self.save()
        if stop:
            raise TrainingInterrupted(self.at.epoch, self.folder)

    def close_epoch(self, validate: Validate) -> None:
        """Validate, record, decide whether to stop, and write a checkpoint."""
        report, at, trainer = self.report, self.at, self.trainer
        self._share_sums()
        record: dict[str, Any] = {
            "epoch": at.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "lr_modality": next(
                (g["lr"] for g in self.optimizer.param_groups if g["role"] == MODALITY_GROUP), None
            ),
            "losses": {k: float(v) / self.batches for k, v in self.sums.items()},
            "gradient_norms": self.gradient_norms,
        }
        record["train_seconds"] = round(at.train_seconds + self._lap(), 3)
        last = at.epoch + 1 == trainer.epochs
        if (at.epoch + 1) % trainer.validate_every == 0 or last:
            self.step.eval()
            with torch.no_grad():
                record["valid"] = {k: float(v) for k, v in validate().items()}
            self._judge(record["valid"])
        record["valid_seconds"] = round(self._lap(), 3)
        report.history.append(record)
        if trainer.patience is not None and report.bad_epochs >= trainer.patience:
            report.stopped = "early"
        elif last:
            report.stopped = "epochs"
        self.sums = {}
        at.epoch, at.step, at.train_seconds = at.epoch + 1, 0, 0.0
        if self.accelerator.log_with:
            self.accelerator.log(flat(record), step=at.epoch)
        if self.accelerator.is_main_process:
            EpochProgress.line(record, trainer.select_metric, best=report.bad_epochs == 0)
        self.save()

    def _judge(self, metrics: Mapping[str, float]) -> None:
        report, name = self.report, self.trainer.select_metric
        if name not in metrics:
            raise ValueError(
                f"training.select_metric: got {name}, wanted one of {', '.join(metrics)}"
            )
        if metrics[name] > report.best_metric:
            report.best_metric, report.best_epoch = metrics[name], self.at.epoch
            report.bad_epochs = 0
            if self.accelerator.is_main_process:
                write_tensors(self.folder / "student.safetensors", self.step.student.state_dict())
        else:
            report.bad_epochs += 1

    def save(self) -> None:
        """Write a checkpoint; every process lays down its random state."""
        self.at.train_seconds += self._lap()
        self._share_sums()
        accelerator = self.accelerator
        staged = self.checkpoints.stage(self.at.epoch * self.batches + self.at.step)
        accelerator.wait_for_everyone()
        self.checkpoints.write_random_state(staged)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            self.checkpoints.commit(
                staged,
                module=self.step,
                optimizer=self.optimizer,
                asynchronous=self.asynchronous.state_dict(),
                progress={
                    "report": asdict(self.report),
                    "position": asdict(self.at),
                    "sums": {k: float(v) for k, v in self.sums.items()},
                    "gradient_norms": self.gradient_norms,
                    "scaler": None if scaler is None else scaler.state_dict(),
                },
            )
        accelerator.wait_for_everyone()
        self.saved = time.monotonic()

    def load_best(self) -> None:
        """Put the best epoch's weights into the student."""
        self.step.student.load_state_dict(load_file(self.folder / "student.safetensors"))
        self.step.eval()

    def _share_sums(self) -> None:
        """Each process has its share of the global losses: take their mean."""
        if self.accelerator.num_processes > 1 and self.sums:
            mean = self.accelerator.reduce(torch.stack(list(self.sums.values())), "mean")
            self.sums = dict(zip(self.sums, cast(Tensor, mean).unbind(), strict=True))

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        self.report.seconds += seconds
        return seconds


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
