"""Steps of a few rows: sparse gradients of the item tables to changed rows, and nothing else moved.

With a sampled loss a batch names some thousand items of a million. Their rows alone have a
gradient, are exchanged between processes, and step: a step costs what it touches, however many
items there are.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from mmkd.errors import TrainingError
from mmkd.losses.distributed import gather_rows
from mmkd.student.rows import TableShards


class RowAdam(Optimizer):
    """Adam for rows that are seldom touched: one second moment a row, and a clock a row.

    A row of the gradient is divided by the root mean square of that row's gradients so far, so its
    direction stays; the mean over time is Adam's, corrected for how often this row has stepped, not
    for how often any has: the first step of a row is as long as it would have been at the start.
    There is no first moment, which would be as large as the tables: what a table needs besides
    itself are two numbers a row.

    Decay is decoupled, as AdamW's, and falls on the rows of a step: a row decays as often as it
    is touched.

    >>> import torch
    >>> from mmkd.training.rows import RowAdam
    >>> table = torch.nn.Parameter(torch.zeros(1000, 2))
    >>> optimizer = RowAdam([table], lr=0.1)
    >>> torch.nn.functional.embedding(torch.tensor([7]), table, sparse=True).sum().backward()
    >>> optimizer.step()
    >>> table[7].tolist(), int(table.count_nonzero())
    ([-0.10000000149011612, -0.10000000149011612], 2)

    Args:
        params: Tables, or groups of them; all their gradients are sparse and coalesced.
        lr: Learning rate.
        beta: Of the mean of squares.
        eps: Added to the divisor.
        weight_decay: Of touched rows.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        beta: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step the rows that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step(table, group)

    def _step(self, table: Tensor, group: dict[str, Any]) -> None:
        assert table.grad is not None
        rows, gradient = table.grad.indices()[0], table.grad.values()
        state = self.state[table]
        if not state:
            state["mean_square"] = table.new_zeros(len(table))
            state["steps"] = table.new_zeros(len(table))  # exact as a float up to 2^24
        steps = state["steps"][rows] + 1
        square = state["mean_square"][rows].lerp(gradient.square().mean(1), 1 - group["beta"])
        state["steps"][rows], state["mean_square"][rows] = steps, square
        known = -torch.expm1(steps * math.log(group["beta"]))  # 1 - beta ** steps
        divisor = (square / known).sqrt() + group["eps"]  # [R]
        if group["weight_decay"]:
            table[rows] *= 1 - group["lr"] * group["weight_decay"]
        table.index_add_(0, rows, gradient / divisor[:, None], alpha=-group["lr"])


class SplitOptimizer(Optimizer):
    """Two optimisers of different parameters as one, with one list of groups and one state.

    Args:
        first: Such as AdamW, of whatever has dense gradients.
        second: Such as ``RowAdam``.
    """

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self._parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._link()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step both."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self._link()

    def _link(self) -> None:
        """Let the parts read and write this one's groups and state."""
        at = 0
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups = self.param_groups[at : at + count]
            part.state = self.state
            at += count


def split_groups(
    groups: Iterable[dict[str, Any]], tables: Iterable[nn.Parameter]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of an optimiser to those without and those of the tables; empty ones are left out."""
    apart = set(map(id, tables))
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for wanted, some in zip((False, True), found, strict=True):
            members = [p for p in group["params"] if (id(p) in apart) is wanted]
            if members:
                some.append({**group, "params": members})
    return found


def held(gradient: Tensor) -> Tensor:
    """The numbers of a gradient, to be read or changed in place; of a sparse one its rows."""
    return gradient.values() if gradient.is_sparse else gradient


def sparse_rows(rows: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows [R] and their values [R, d] as a coalesced gradient; those of one row are added."""
    return torch.sparse_coo_tensor(
        rows[None], values, list(shape), check_invariants=False
    ).coalesce()


def clip(
    parameters: Iterable[nn.Parameter], limit: float, *, shards: TableShards | None = None
) -> None:
    """Scale all gradients so that their common norm is at most the limit.

    The norm of a sparse gradient is that of its rows: the others are zero.

    Args:
        parameters: Whose gradients.
        limit: Of the norm.
        shards: Over which the tables lie, whose gradients are the sparse ones; None = here.
    """
    found = [p.grad for p in parameters if p.grad is not None]
    gradients = [held(gradient) for gradient in found]
    norm = nn.utils.get_total_norm(gradients)
    if shards is not None:
        dense, here = (
            nn.utils.get_total_norm([held(g) for g in found if g.is_sparse is sparse]).square()
            for sparse in (False, True)
        )
        # of no gradient at all torch's norm is on the CPU, where a group of GPUs adds up nothing
        norm = (dense.to(norm.device) + shards.total(here.to(norm.device))).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))


def keep_from_ddp(module: nn.Module, tables: Iterable[nn.Parameter], *, alike: bool = True) -> None:
    """Let DDP leave the tables alone, and buffers: it would send them whole, at every step.

    Args:
        module: That DDP is to wrap.
        tables: Of it.
        alike: Whether every process has the same ones, and is to start from the first one's.
    """
    tables = list(tables)
    apart = set(map(id, tables))
    # DDP asks by every name that a table has, where members share it
    every = module.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in every if id(parameter) in apart]
    names += [name for name, _ in module.named_buffers()]
    module._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
    with torch.no_grad():
        for table in tables if alike else ():
            torch.distributed.broadcast(table, 0)


def settle(tables: Iterable[nn.Parameter], *, processes: int = 1) -> None:
    """Each row of the tables' gradients once: the mean over processes, each of which calls this.

    Args:
        tables: With gradients.
        processes: That have the same tables, and each a gradient of its part of the batch.

    Raises:
        TrainingError: A gradient is dense: something read a table past the rows of the batch.
    """
    with torch.no_grad():
        for table in tables:
            if table.grad is None:
                continue
            if not table.grad.is_sparse:
                raise TrainingError(
                    "training.tables: got rows, but a table of all items has a dense gradient; a "
                    "part of the student reads the whole table: set training.tables to dense"
                )
            gradient = table.grad.coalesce()
            if processes > 1:
                rows, _ = gather_rows(gradient.indices(), dim=1)
                values, _ = gather_rows(gradient.values(), dim=0)
                gradient = sparse_rows(rows[0], values / processes, table.shape)
            table.grad = gradient
