"""How parameters step: optimiser, learning rate, and the modality tables' asynchronous updates.

From a training step's parameters to an optimiser whose groups get a rate at every step. KDSR
(arXiv:2401.07257, section 3.4) updates the modality embeddings more slowly than the rest, so that
the recommendation gradient does not wash out what the encoder knew ("modality forgetting").
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmkd.errors import at_least, checked, did_you_mean, one_of
from mmkd.student import Ensemble
from mmkd.training.rows import sparse_rows

MODALITY_GROUP = "modality"
OTHER_GROUP = "other"

Chosen = str | Mapping[str, Any]  # a kind, or ``kind`` with the options of that kind

# LBFGS wants the loss as a function, Muon matrices only, SparseAdam sparse gradients
_UNFIT = ("lbfgs", "muon", "optimizer", "sparseadam")
OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in sorted(vars(torch.optim).items(), key=lambda pair: pair[0].lower())
    if isinstance(kind, type) and issubclass(kind, Optimizer) and name.lower() not in _UNFIT
}
_OWN_KEYS = ("lr", "weight_decay", "betas")  # of every optimiser, beside ``optimizer``

_OWN_SCHEDULES = ("constant", "linear", "cosine")
SCHEDULES = (
    *_OWN_SCHEDULES,
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
)


# ---- the optimiser


def build_optimizer(
    chosen: Chosen,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
) -> Optimizer:
    """One of torch.optim's optimisers.

    Args:
        chosen: Its name in lower case, or a mapping of ``kind`` and its options.
        groups: Of ``parameter_groups``; each has its own weight decay.
        lr: Peak learning rate.
        betas: For those that have them.
    """
    kind, options = _kind(chosen)
    if "betas" in _parameters(OPTIMIZERS[kind]):
        options["betas"] = betas
    return OPTIMIZERS[kind](groups, lr=lr, **options)  # type: ignore[call-arg]


def check_optimizer(chosen: Chosen, **beside: Any) -> list[str]:
    """What is wrong with the choice of an optimiser, a line each.

    Args:
        chosen: As for ``build_optimizer``.
        beside: ``betas`` and ``weight_decay`` where they were changed.
    """
    kind, options = _kind(chosen)
    if kind not in OPTIMIZERS:
        return one_of(OPTIMIZERS, optimizer=kind)
    taken = _parameters(OPTIMIZERS[kind])
    problems = [f"{name}: {kind} has none; leave it out" for name in beside if name not in taken]
    free = [name for name in taken if name not in ("params", *_OWN_KEYS)]
    for name in options:
        if name in _OWN_KEYS:
            problems.append(f"optimizer.{name}: stands beside optimizer; give {name} there")
        elif name not in free:
            hint = did_you_mean(name, free) or f"; known: {', '.join(free)}"
            problems.append(f"optimizer.{name}: {kind} has no such option{hint}")
    if not problems:
        try:  # torch has its ranges in the constructor only
            OPTIMIZERS[kind]([nn.Parameter(torch.zeros(1))], **options)
        except (RuntimeError, TypeError, ValueError) as error:
            problems.append(f"optimizer: {kind}: {error}; correct it")
    return problems


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    modality: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    table_decay: float | None = None,
    updates: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Groups for the optimiser: everything but the modality tables, and the modality tables.

    Args:
        named_parameters: All parameters of the training step.
        modality: The modality tables among them.
        lr: Common learning rate.
        weight_decay: Decay of matrices; biases and norms (1-d) are not decayed.
        table_decay: Decay of the modality tables; None = the same.
        updates: By modality table the number of its asynchronous update, which parts them into
            several groups; None = 0 for all.

    Returns:
        Groups with a ``role`` of ``other`` or ``modality``, the latter with their ``update``; empty
        groups are left out.
    """
    modality = list(modality)
    tables = dict(zip(map(id, modality), updates or [0] * len(modality), strict=True))
    parameters = [p for _, p in named_parameters if p.requires_grad]
    chosen = {
        (OTHER_GROUP, 0.0): [p for p in parameters if id(p) not in tables and p.ndim < 2],
        (OTHER_GROUP, weight_decay): [p for p in parameters if id(p) not in tables and p.ndim > 1],
    }
    if weight_decay == 0.0:
        chosen[(OTHER_GROUP, 0.0)] = [p for p in parameters if id(p) not in tables]
    groups: list[dict[str, Any]] = [
        {"params": members, "role": role, "lr": lr, "weight_decay": decay}
        for (role, decay), members in chosen.items()
    ]
    for update in sorted(set(tables.values())):
        own = [p for p in parameters if tables.get(id(p)) == update]
        common = {"lr": lr, "weight_decay": weight_decay if table_decay is None else table_decay}
        groups.append({"params": own, "role": MODALITY_GROUP, "update": update, **common})
    return [group for group in groups if group["params"]]


# ---- the learning rate


class DecayTowardsStart:
    """Modality tables that decay towards where they were when this was made: the teacher.

    What a table learns beside its teacher is then kept small, instead of the table
    (arXiv:2507.19473). Decoupled as in AdamW, at the group's own rate:
    ``S -= lr * decay * (S - S_start)``; a table that does not step does not decay.

    Args:
        tables: Before their first step.
        decay: Share of the change that a rate of 1 would take away.
    """

    def __init__(self, tables: Iterable[nn.Parameter], *, decay: float) -> None:
        self.decay = decay
        self._starts = {id(table): table.detach().clone() for table in tables}

    def before_step(self, optimizer: Optimizer) -> None:
        """Decay; once the rates are set and the gradients are as the step will see them."""
        for group in optimizer.param_groups:
            for table in group["params"]:
                if (start := self._starts.get(id(table))) is None or table.grad is None:
                    continue
                share, own = group["lr"] * self.decay, table.detach()
                if table.grad.is_sparse:  # the rows that step
                    rows = table.grad.indices()[0]
                    own[rows] = own[rows].lerp_(start[rows], share)
                else:
                    own.lerp_(start, share)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the tables were, for a resumed run, whose student may have moved since."""
        return {f"start.{k}": start for k, start in enumerate(self._starts.values())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        for k, start in enumerate(self._starts.values()):
            start.copy_(state[f"start.{k}"])


class LearningRate:
    """The learning rate of each group as a function of step and epoch, so that nothing is resumed.

    Args:
        lr: Peak.
        schedule: After the warm-up: ``constant``, or down to 0 at the run's end by ``linear`` or
            ``cosine``; or another of ``SCHEDULES``, by name or as a mapping of ``kind`` and its
            options, which are those of transformers' ``get_scheduler``.
        warmup_steps: Steps of linear growth; the first has a rate already.
        total_steps: Optimiser steps of the whole run.
        asynchronous: Its factor multiplies the modality group's rate; of several, each that of its
            own group.
    """

    def __init__(
        self,
        *,
        lr: float,
        schedule: Chosen,
        warmup_steps: int,
        total_steps: int,
        asynchronous: "AsynchronousUpdate | Sequence[AsynchronousUpdate]",
    ) -> None:
        self.lr = lr
        self.asynchronous = (
            list(asynchronous) if isinstance(asynchronous, Sequence) else [asynchronous]
        )
        self._factor = _schedule(schedule, lr=lr, warmup=warmup_steps, total=total_steps)

    def apply(self, optimizer: Optimizer, *, step: int, epoch: int) -> float:
        """Set every group's rate for optimiser step ``step`` (from 0); return the common one."""
        rate = self.lr * self._factor(step)
        for group in optimizer.param_groups:
            modality = group["role"] == MODALITY_GROUP
            factor = self.asynchronous[group["update"]].lr_factor(epoch) if modality else 1.0
            group["lr"] = rate * factor
        return rate


def check_schedule(chosen: Chosen) -> list[str]:
    """What is wrong with the choice of a schedule, a line each; arguments as ``LearningRate``'s."""
    kind, options = _kind(chosen)
    if kind not in SCHEDULES:
        return one_of(SCHEDULES, schedule=kind)
    if kind in _OWN_SCHEDULES:
        return [f"schedule.{name}: {kind} has no options; remove it" for name in options]
    given = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    free = [name for name in _parameters(_library_schedules()[kind]) if name not in given]
    problems = [
        f"schedule.{name}: {kind} has no such option"
        + (did_you_mean(name, free) or f"; known: {', '.join(free) or 'none'}")
        for name in options
        if name not in free
    ]
    if not problems:
        try:  # the library has its ranges where it computes
            _schedule(chosen, lr=1.0, warmup=0, total=2)(1)
        except (ArithmeticError, TypeError, ValueError) as error:
            problems.append(f"schedule: {kind}: {error}; correct it")
    return problems


def _schedule(chosen: Chosen, *, lr: float, warmup: int, total: int) -> Callable[[int], float]:
    """The share of the peak rate at each step (from 0)."""
    kind, options = _kind(chosen)
    if kind not in _OWN_SCHEDULES:
        from transformers.optimization import get_scheduler

        # it reads the peak, and gives a LambdaLR whose function of the step is all that is needed
        idle = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
        with warnings.catch_warnings(action="ignore"):
            scheduler: Any = get_scheduler(
                kind, idle, warmup, total, scheduler_specific_kwargs=options
            )
        share = scheduler.lr_lambdas[0]
        # its warm-up begins with a rate of 0, a step for nothing
        return lambda step: float(share(step + 1 if step < warmup else step))

    def factor(step: int) -> float:
        growth = min(1.0, (step + 1) / max(1, warmup))
        done = min(1.0, max(0, step - warmup) / max(1, total - warmup))
        if kind == "linear":
            return growth * (1 - done)
        if kind == "cosine":
            return growth * (0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done)))))
        return growth

    return factor


def _library_schedules() -> dict[str, Callable[..., Any]]:
    # seconds to import, so only for those who want one of its schedules
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    found: dict[Any, Any] = TYPE_TO_SCHEDULER_FUNCTION
    return {str(kind.value): make for kind, make in found.items()}


def _kind(chosen: Chosen) -> tuple[str, dict[str, Any]]:
    if isinstance(chosen, str):
        return chosen, {}
    return str(chosen.get("kind")), {k: v for k, v in chosen.items() if k != "kind"}


def _parameters(target: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(target).parameters)


# ---- asynchronous updates


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


class MemberUpdates:
    """An ensemble's tables with the updates that step them, each table once.

    Args:
        student: The networks.
        asynchronous: One for all, or one a member; the same object for several is theirs together.

    Attributes:
        updates: The different ones.
        tables: The parameters of each; one that members share is the first's.

    Raises:
        ValueError: There are not as many as members.
    """

    def __init__(
        self, student: Ensemble, asynchronous: "AsynchronousUpdate | Sequence[AsynchronousUpdate]"
    ) -> None:
        count = len(student.members)
        given = [asynchronous] * count if not isinstance(asynchronous, Sequence) else asynchronous
        if len(given) != count:
            raise ValueError(
                f"asynchronous: got {len(given)}, wanted one for all or {count}, one a member"
            )
        self.updates = list({id(update): update for update in given}.values())
        self.tables: list[list[nn.Parameter]] = [[] for _ in self.updates]
        taken: set[int] = set()
        for update, member in zip(given, student.networks, strict=True):
            own = [p for p in member.modality_parameters() if id(p) not in taken]
            taken |= set(map(id, own))
            number = next(k for k, one in enumerate(self.updates) if one is update)
            self.tables[number] += own

    def groups(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], **options: Any
    ) -> list[dict[str, Any]]:
        """As ``parameter_groups``."""
        numbers = [k for k, tables in enumerate(self.tables) for _ in tables]
        every = [table for tables in self.tables for table in tables]
        return parameter_groups(named_parameters, every, updates=numbers, **options)

    def before_step(self) -> None:
        """Change the tables' gradients, each as its update does."""
        for update, tables in zip(self.updates, self.tables, strict=True):
            update.before_step(tables)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""
        if len(self.updates) == 1:
            return self.updates[0].state_dict()
        states = [update.state_dict() for update in self.updates]
        return {f"{k}.{name}": v for k, state in enumerate(states) for name, v in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        if len(self.updates) == 1:
            self.updates[0].load_state_dict(state)
            return
        for k, update in enumerate(self.updates):
            own = {n: v for n, v in state.items() if n.startswith(f"{k}.")}
            update.load_state_dict({n.removeprefix(f"{k}."): v for n, v in own.items()})


class NoAsynchrony:
    """Synchronous: the modality tables step like everything else (the ablation)."""

    @staticmethod
    def check(**options: Any) -> list[str]:
        """Problems of the options, a line each."""
        return []

    def lr_factor(self, epoch: int) -> float:
        """The common learning rate."""
        return 1.0

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Leave the gradients alone."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


class Ramp(NoAsynchrony):
    """The paper's: a small learning rate that grows at each milestone until it is the common one.

    Starts at ``lr / gamma ** len(milestones)`` and is multiplied by ``gamma`` when the epoch
    reaches each milestone.

    Args:
        gamma: Growth at a milestone, > 1.
        milestones: Epochs (from 0).

    Raises:
        ValueError: ``gamma`` is not above 1.
    """

    @checked
    def __init__(self, *, gamma: float = 2.0, milestones: Sequence[int] = (5, 10)) -> None:
        self.gamma = gamma
        self.milestones = tuple(milestones)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """Problems of the options, a line each."""
        gamma = options.get("gamma", 2.0)
        hint = "use kind: none for no asynchrony"
        return [] if gamma > 1 else [f"gamma: got {gamma}, wanted more than 1; {hint}"]

    def lr_factor(self, epoch: int) -> float:
        """Share of the common learning rate in ``epoch``."""
        return self.gamma ** -sum(epoch < milestone for milestone in self.milestones)


class Interval(NoAsynchrony):
    """The modality tables step once every ``every`` steps, on the mean gradient since their last.

    Args:
        every: Optimiser steps between two updates, >= 1.

    Raises:
        ValueError: ``every`` is below 1.
    """

    @checked
    def __init__(self, *, every: int = 10) -> None:
        self.every = every
        self._steps = 0
        self._sums: dict[int, Tensor] = {}  # by parameter, where something was collected

    @staticmethod
    def check(**options: Any) -> list[str]:
        """Problems of the options, a line each."""
        return at_least(1, "1 is synchronous", every=options.get("every"))

    def before_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Collect the gradients; hand their mean over at every ``every``-th step, else none."""
        self._steps += 1
        for k, parameter in enumerate(parameters):
            if parameter.grad is not None:
                self._sums[k] = _collected(self._sums.get(k), parameter.grad)
            parameter.grad = None  # the optimiser leaves a parameter without gradient alone
            if self._steps % self.every == 0 and k in self._sums:
                parameter.grad = self._sums.pop(k) / self.every

    def state_dict(self) -> dict[str, Tensor]:
        """Step count and collected gradients."""
        state = {"steps": torch.tensor(self._steps)}
        for k, total in self._sums.items():
            if total.is_sparse:
                state |= {f"rows.{k}": total.indices()[0], f"values.{k}": total.values()}
                state[f"size.{k}"] = torch.tensor(total.shape)
            else:
                state[f"sum.{k}"] = total
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore step count and collected gradients."""
        self._steps = int(state["steps"])
        self._sums = {}
        for name, value in state.items():
            part, _, k = name.partition(".")
            if part == "sum":
                self._sums[int(k)] = value.clone()
            elif part == "rows":
                values, size = state[f"values.{k}"], state[f"size.{k}"].tolist()
                self._sums[int(k)] = sparse_rows(value, values, size)


def _collected(total: Tensor | None, gradient: Tensor) -> Tensor:
    """A sum of gradients, dense or sparse, with one more.

    An overflow under fp16 skips its own step; it must not stay in the sum for good.
    """
    if gradient.is_sparse:
        finite = torch.nan_to_num(gradient.values(), nan=0.0, posinf=0.0, neginf=0.0)
        more = sparse_rows(gradient.indices()[0], finite, gradient.shape)
        return more if total is None else (total + more).coalesce()
    finite = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    return finite if total is None else total.add_(finite)


class Frozen(NoAsynchrony):
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
