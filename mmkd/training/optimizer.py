"""Optimiser groups, learning-rate schedule and the asynchronous updates of the modality tables.

KDSR (arXiv:2401.07257, section 3.4) updates the modality embeddings more slowly than the rest, so
that the recommendation gradient does not wash out what the encoder knew ("modality forgetting").
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

MODALITY_GROUP = "modality"
OTHER_GROUP = "other"


class AsynchronousUpdate(Protocol):
    """How the modality tables' updates lag behind the other parameters'."""

    def lr_factor(self, epoch: int) -> float:
        """What the modality group's learning rate is multiplied by in ``epoch`` (from 0)."""

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Change the modality tables' gradients just before an optimiser step."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""


class _Stateless:
    def lr_factor(self, epoch: int) -> float:
        return 1.0

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return None


class NoAsynchrony(_Stateless):
    """Synchronous: the modality tables step like everything else (the ablation)."""


class Ramp(_Stateless):
    """The paper's: a small learning rate that grows at each milestone until it is the common one.

    Starts at ``lr / gamma ** len(milestones)`` and is multiplied by ``gamma`` when the epoch
    reaches each milestone.

    Args:
        gamma: Growth at a milestone, > 1.
        milestones: Epochs (from 0).

    Raises:
        ValueError: ``gamma`` is not above 1.
    """

    def __init__(self, *, gamma: float = 2.0, milestones: Sequence[int] = (5, 10)) -> None:
        if gamma <= 1:
            raise ValueError(
                f"gamma: got {gamma}, wanted more than 1; use kind: none for no asynchrony"
            )
        self.gamma = gamma
        self.milestones = tuple(milestones)

    def lr_factor(self, epoch: int) -> float:
        """Share of the common learning rate in ``epoch``."""
        return self.gamma ** -sum(epoch < milestone for milestone in self.milestones)


class Interval(_Stateless):
    """The modality tables step once every ``every`` steps, on the mean gradient since their last.

    Args:
        every: Optimiser steps between two updates, >= 1.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, *, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}, wanted at least 1; 1 is synchronous")
        self.every = every
        self._steps = 0
        self._sums: list[Tensor] = []

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Collect the gradients; hand their mean over at every ``every``-th step, else none."""
        if not self._sums:
            self._sums = [torch.zeros_like(p) for p in parameters]
        self._steps += 1
        for parameter, total in zip(parameters, self._sums, strict=True):
            if parameter.grad is not None:
                # an overflow under fp16 skips its own step; it must not stay in the sum for good
                total += torch.nan_to_num(parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)
            if self._steps % self.every:
                parameter.grad = None  # the optimiser leaves a parameter without gradient alone
            else:
                parameter.grad = total / self.every
                total.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Step count and collected gradients."""
        sums = {f"sum.{i}": total for i, total in enumerate(self._sums)}
        return {"steps": torch.tensor(self._steps), **sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore step count and collected gradients."""
        self._steps = int(state["steps"])
        self._sums = [state[f"sum.{i}"].clone() for i in range(len(state) - 1)]


class Frozen(_Stateless):
    """The modality tables never step."""

    def lr_factor(self, epoch: int) -> float:
        """Always 0."""
        return 0.0

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Drop the gradients: not even weight decay touches a frozen table."""
        for parameter in parameters:
            parameter.grad = None


ASYNCHRONOUS: dict[str, Callable[..., AsynchronousUpdate]] = {
    "ramp": Ramp,
    "interval": Interval,
    "frozen": Frozen,
    "none": NoAsynchrony,
}


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    modality: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
) -> list[dict[str, object]]:
    """Two groups for the optimiser: everything but the modality tables, and the modality tables.

    Args:
        named_parameters: All parameters of the training step.
        modality: The modality tables among them.
        lr: Common learning rate.
        weight_decay: Decoupled decay of matrices; biases and norms (1-d) are not decayed.

    Returns:
        Groups with a ``role`` of ``other`` or ``modality``; empty groups are left out.
    """
    tables = {id(p) for p in modality}
    parameters = [p for _, p in named_parameters if p.requires_grad]
    chosen = {
        (OTHER_GROUP, 0.0): [p for p in parameters if id(p) not in tables and p.ndim < 2],
        (OTHER_GROUP, weight_decay): [p for p in parameters if id(p) not in tables and p.ndim > 1],
        (MODALITY_GROUP, weight_decay): [p for p in parameters if id(p) in tables],
    }
    if weight_decay == 0.0:
        chosen[(OTHER_GROUP, 0.0)] = [p for p in parameters if id(p) not in tables]
    return [
        {"params": members, "role": role, "lr": lr, "weight_decay": decay}
        for (role, decay), members in chosen.items()
        if members
    ]


class LearningRate:
    """The learning rate of each group at each step.

    Args:
        lr: Peak.
        schedule: After the warm-up: ``constant``, or down to 0 at the run's end by ``linear`` or
            ``cosine``.
        warmup_steps: Steps of linear growth from 0.
        total_steps: Optimiser steps of the whole run.
        asynchronous: Its factor multiplies the modality group's rate.
    """

    def __init__(
        self,
        *,
        lr: float,
        schedule: Literal["constant", "linear", "cosine"],
        warmup_steps: int,
        total_steps: int,
        asynchronous: AsynchronousUpdate,
    ) -> None:
        self.lr = lr
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.asynchronous = asynchronous

    def apply(self, optimizer: torch.optim.Optimizer, *, step: int, epoch: int) -> float:
        """Set every group's rate for optimiser step ``step`` (from 0); return the common one."""
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps)) * self._decay(step)
        for group in optimizer.param_groups:
            modality = group["role"] == MODALITY_GROUP
            group["lr"] = rate * (self.asynchronous.lr_factor(epoch) if modality else 1.0)
        return rate

    def _decay(self, step: int) -> float:
        if self.schedule == "constant":
            return 1.0
        left = max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, max(0, step - self.warmup_steps) / left)
        return (
            1 - done
            if self.schedule == "linear"
            else 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
        )
