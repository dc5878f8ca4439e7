"""One step of training: batches and their teacher targets to changed weights.

``TrainStep`` is the one module Accelerate prepares, so that it sees every trainable parameter;
``Stepping`` takes it from losses to gradients and from gradients to weights.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmkd.data.tasks import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.errors import TrainingError
from mmkd.losses.objective import LossBreakdown, Objective, TeacherOutputs
from mmkd.student import Ensemble
from mmkd.training.arguments import TrainingArguments
from mmkd.training.optimizer import (
    AsynchronousUpdate,
    DecayTowardsStart,
    LearningRate,
    MemberUpdates,
    build_optimizer,
)
from mmkd.training.progress import gradient_norms
from mmkd.training.rows import (
    RowAdam,
    SplitOptimizer,
    clip,
    held,
    keep_from_ddp,
    settle,
    split_groups,
)


class TrainStep(nn.Module):
    """Student and objective as one forward pass.

    Args:
        student: The networks that are kept.
        objective: The loss with its own trainable heads, dropped after training.
        teacher: A trained ensemble that the student is held to, in evaluation mode and on the
            device; no part of the module, so that no checkpoint holds it.
    """

    def __init__(
        self, student: Ensemble, objective: Objective, teacher: Ensemble | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self._teacher = (teacher,)  # in a tuple torch does not see it
        shares = objective.correlation_shares or [1.0] * len(student.members)
        counted = {
            modality
            for share, member in zip(shares, student.networks, strict=True)
            for modality in member.embedding.tables
            if share
        }
        for modality, loss in objective.correlation.items():
            if modality not in counted:  # no gradient ever reaches its heads: DDP would wait for it
                loss.requires_grad_(False)

    def forward(self, batch: Batch, targets: Mapping[str, CorrelationTargets]) -> LossBreakdown:
        """Run all views of the batch through every network as one batch and compute the loss."""
        views, rows = batch.views.flatten(0, 1), None
        if batch.negatives is not None:  # then nothing else of the catalogue is read
            rows = self.student.rows(batch.touched(self.student.item_count))
        outputs = self.student(views, rows)
        (teacher,) = self._teacher
        teacher_outputs = None
        if teacher is not None:
            with torch.no_grad():
                teacher_outputs = TeacherOutputs(
                    teacher(views), teacher.inference, teacher.weights, teacher.known()
                )
        breakdown: LossBreakdown = self.objective(outputs, batch, targets, teacher_outputs)
        return breakdown


class Stepping:
    """A module with what changes its weights.

    Args:
        arguments: Optimiser, rates, clipping.
        module: On the accelerator's device.
        asynchronous: How the modality tables lag behind, of all members or one a member.
        accelerator: Device, precision and processes.
        batches: An epoch's.
        rows: Whether batches have negatives, so that tables have sparse gradients.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        module: TrainStep,
        asynchronous: AsynchronousUpdate | Sequence[AsynchronousUpdate],
        accelerator: Accelerator,
        *,
        batches: int,
        rows: bool = False,
    ) -> None:
        self.arguments = arguments
        self.module = module
        self.accelerator = accelerator
        self.tables = module.student.trained_tables() if rows else []
        self.shards = module.student.shards
        self.asynchronous = MemberUpdates(module.student, asynchronous)
        decay, self.towards = arguments.table_decay, None
        if arguments.decay_towards == "teacher":
            self.towards = DecayTowardsStart(
                module.student.modality_parameters(),
                decay=arguments.weight_decay if decay is None else decay,
            )
            decay = 0.0
        groups = self.asynchronous.groups(
            module.named_parameters(),
            lr=arguments.lr,
            weight_decay=arguments.weight_decay,
            table_decay=decay,
        )
        groups, of_tables = split_groups(groups, self.tables)
        self.optimizer = build_optimizer(
            arguments.optimizer, groups, lr=arguments.lr, betas=arguments.betas
        )
        if of_tables:
            tables = RowAdam(of_tables, lr=arguments.lr, beta=arguments.betas[1])
            self.optimizer = SplitOptimizer(self.optimizer, tables)
            if accelerator.num_processes > 1 and self.shards is None:
                keep_from_ddp(module, self.tables)
        if self.shards is not None:
            keep_from_ddp(module, module.student.item_tables().values(), alike=False)
        self.prepared, self.prepared_optimizer = accelerator.prepare(module, self.optimizer)
        self.learning_rate = LearningRate(
            lr=arguments.lr,
            schedule=arguments.schedule,
            warmup_steps=arguments.warmup_steps,
            total_steps=-(-batches // arguments.accumulate) * arguments.epochs,
            asynchronous=self.asynchronous.updates,
        )
        self._losses: list[dict[str, Tensor]] = []  # of the batches since the last step

    def backward(
        self, batch: Batch, targets: Mapping[str, CorrelationTargets], *, group: int, last: bool
    ) -> dict[str, Tensor]:
        """Add the gradient of one of a group of batches; returns its losses, detached scalars."""
        with nullcontext() if last else self.accelerator.no_sync(self.prepared):
            with self.accelerator.autocast():
                loss: LossBreakdown = self.prepared(batch, targets)
            self.accelerator.backward(loss.total / group)
        if last:
            # rows of shards are exchanged in the backward pass already
            settle(self.tables, processes=1 if self.shards else self.accelerator.num_processes)
        self._losses.append({"total": loss.total.detach(), **loss.parts})
        return self._losses[-1]

    def check_finite(self, *, epoch: int, step: int, kept: str) -> None:
        """Raise TrainingError where a loss or the gradient of the group is no number.

        All its batches, ``step`` the last, are looked at together: the processor waits for the
        device here. ``kept`` says what there is of earlier weights.
        """
        group, self._losses = self._losses, []
        finite = torch.stack([losses["total"] for losses in group]).isfinite().all()
        if self.accelerator.scaler is None:  # fp16's leaves out a step whose gradient overflows
            gradients = [held(p.grad) for p in self.module.parameters() if p.grad is not None]
            finite &= nn.utils.get_total_norm(gradients).isfinite()
        finite = finite.float()
        if self.accelerator.num_processes > 1:  # or one would end and the others wait for it
            finite = cast(Tensor, self.accelerator.reduce(finite, "mean"))
        if bool(finite == 1):
            return
        bad = [n for n, losses in enumerate(group) if not bool(losses["total"].isfinite())]
        losses = {name: float(value) for name, value in group[bad[0] if bad else -1].items()}
        at = step + 1 - (len(group) - 1 - bad[0] if bad else 0)
        parts = ", ".join(f"{k} {value:.4g}" for k, value in losses.items() if k != "total")
        raise TrainingError(
            f"epoch {epoch + 1}, step {at}: the loss is {losses['total']:.4g} ({parts})"
            f"{'' if bad else ' and its gradient no number'}, so the weights were not changed; "
            f"{kept}; lower training.lr or the weight of the part that grew, set "
            "training.gradient_clip to 1, or set training.precision to no"
        )

    def apply(self, *, step: int, epoch: int, measure: bool = False) -> dict[str, float]:
        """Change the weights by the gradients; their norms, where they are to be measured."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.prepared_optimizer)
        norms = gradient_norms(self.module, shards=self.shards) if measure else {}
        # first, so that a gradient which takes no part in the step takes none in its norm
        self.asynchronous.before_step()
        if self.arguments.gradient_clip is not None:
            # not Accelerate's, which would divide by fp16's loss scale a second time
            clip(self.module.parameters(), self.arguments.gradient_clip, shards=self.shards)
        self.learning_rate.apply(self.optimizer, step=step, epoch=epoch)
        if self.towards is not None:
            self.towards.before_step(self.optimizer)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad(set_to_none=True)
        return norms

    def by_row(self) -> tuple[str, ...]:
        """How the names of those of a checkpoint's tensors begin that have a row an item."""
        tables = self.module.student.item_tables()
        stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
        numbers = [n for n, p in enumerate(stepped) if any(p is table for table in self.tables)]
        return (
            *(f"model.student.{name}" for name in tables),
            *(f"optimizer.{number}." for number in numbers),
            "asynchronous.start.",
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside weights and optimiser."""
        towards = {} if self.towards is None else self.towards.state_dict()
        return self.asynchronous.state_dict() | towards

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        starts = {k: v for k, v in state.items() if k.startswith("start.")}
        self.asynchronous.load_state_dict(
            {k: v.to(self.accelerator.device) for k, v in state.items() if k not in starts}
        )
        if self.towards is not None and starts:  # earlier versions kept none
            self.towards.load_state_dict(starts)
