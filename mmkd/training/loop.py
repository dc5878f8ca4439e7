"""The loop of one training run: epochs, steps, validation, checkpoints. ``Trainer`` sets it up."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from mmkd.data.batches import Batch, BatchStream, seeded_generator
from mmkd.interruption import Interruption
from mmkd.objectives.objective import LossBreakdown
from mmkd.training.checkpoint import CheckpointFolder, write_tensors
from mmkd.training.interruption import TrainingInterrupted
from mmkd.training.optimizer import (
    MODALITY_GROUP,
    AsynchronousUpdate,
    LearningRate,
    parameter_groups,
)
from mmkd.training.progress import EpochProgress
from mmkd.training.records import flat, gradient_norms
from mmkd.training.step import TrainStep

if TYPE_CHECKING:
    from mmkd.training.trainer import Trainer

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
