"""Rows of item tables: from a table [I+2, d], here or cut over processes, to the rows asked for.

A step reads some rows of every table, by one protocol wherever they lie. The cutting and looking up
over processes are torch's (DTensor); what is added is a gradient of those rows alone, where
DTensor's would be one of all.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class TeacherRows(Protocol):
    """What is read of a teacher's table [I+1, d_t]: a tensor, or rows made when asked for."""

    @property
    def shape(self) -> torch.Size:
        """(I+1, d_t)."""

    @property
    def ndim(self) -> int:
        """2."""

    def __len__(self) -> int:
        """I+1."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Rows [n, d_t]."""


class TableRows:
    """Some rows of every item table, for a step that costs what it touches.

    A table's gradient is then sparse: it holds these rows and nothing else. Each table is looked up
    once, so that members which share one share its rows too.

    >>> import torch
    >>> from mmkd.student.rows import TableRows, places
    >>> rows = TableRows(torch.tensor([0, 3, 7, 9]))  # padding, two items, the mask token
    >>> rows.of(torch.arange(10.0)[:, None]).flatten().tolist()
    [0.0, 3.0, 7.0, 9.0]
    >>> places(torch.tensor([[0, 7]]), rows.numbers).tolist()
    [[0, 2]]

    Args:
        numbers: [R] int64, ascending, each once: 0, some items, I+1.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self._found: dict[int, Tensor] = {}

    def of(self, table: Tensor) -> Tensor:
        """[I+2, d] to [R, d]."""
        if id(table) not in self._found:
            sparse = isinstance(table, nn.Parameter) and table.requires_grad
            self._found[id(table)] = F.embedding(self.numbers, table, sparse=sparse)
        return self._found[id(table)]


def places(items: Tensor, rows: Tensor | None) -> Tensor:
    """Where items stand in tables of some rows, see `TableRows`.

    Args:
        items: Any shape, int64, each among the rows.
        rows: [R]; None where the tables have all rows, so that an item stands at its own number.
    """
    return items if rows is None else torch.searchsorted(rows, items.contiguous())


class TableShards:
    """How tables [I+2, ...] are cut over all processes: as even as it goes, in the order of rows.

    Everything but the attributes is called by all processes together.

    Args:
        item_count: I.
        device: Where this process computes.

    Attributes:
        table_rows: I + 2.
        first: This process's first row.
        end: The row after its last.
    """

    def __init__(self, item_count: int, device: torch.device | str = "cpu") -> None:
        from torch.distributed.device_mesh import init_device_mesh  # seconds to import

        self.count, self.rank = dist.get_world_size(), dist.get_rank()
        self.mesh = init_device_mesh(torch.device(device).type, (self.count,))
        self.table_rows = item_count + 2
        self.first, self.end = rows_of(self.rank, self.count, self.table_rows)

    @property
    def items(self) -> range:
        """Those of this process's rows that are items."""
        return range(max(self.first, 1), min(self.end, self.table_rows - 1))

    def cut(self, table: TeacherRows) -> Tensor:
        """This process's rows of a table, without the memory of the others.

        Args:
            table: [I+2, ...]; or [I+1, ...] without the mask token, whose row is then zero.
        """
        own = table[self.first : self.end]
        lacking = self.end - self.first - len(own)
        if lacking:
            return F.pad(own, (0, 0, 0, lacking))
        return own.clone() if isinstance(table, Tensor) else own

    def whole(self, part: Tensor) -> Tensor:
        """All processes' rows as one DTensor, around this process's own."""
        from torch.distributed.tensor import DTensor, Shard

        shape = torch.Size([self.table_rows, *part.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            part.detach(), self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )

    def lookup(self, part: Tensor, numbers: Tensor) -> Tensor:
        """Rows of a table [R, d], without a gradient.

        Args:
            part: This process's rows of it.
            numbers: [R] int64, on every process the same.
        """
        from torch.distributed.tensor import DTensor, Replicate

        asked = DTensor.from_local(numbers, self.mesh, [Replicate()], run_check=False)
        with torch.no_grad():
            found: Tensor = F.embedding(asked, self.whole(part)).full_tensor()  # type: ignore[attr-defined]
        return found

    def rows(self, numbers: Tensor) -> "ShardedRows":
        """The rows that any process asks for, of all tables.

        Args:
            numbers: [R] int64, this process's, at least one.
        """
        sizes = self.gather(torch.tensor([len(numbers)], device=numbers.device))
        padded = numbers[:1].repeat(int(sizes.max()))
        padded[: len(numbers)] = numbers
        return ShardedRows(torch.unique(self.gather(padded)), self)

    def own_rows(self, items: range, device: torch.device) -> "OwnRows":
        """Consecutive ones of this process's items; asks no other process."""
        return OwnRows(items, self, device)

    def total(self, value: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        found = value.clone()
        dist.all_reduce(found)
        return found

    def gather(self, value: Tensor) -> Tensor:
        """All processes' tensors [...], as [P, ...]."""
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    def share_of(self, batch: Tensor) -> Tensor:
        """This process's part of a batch [B, ...] that all have; as many rows on each, at least 1.

        The first rows are repeated where B does not divide.
        """
        each = -(-len(batch) // self.count)
        own = torch.arange(self.rank * each, (self.rank + 1) * each, device=batch.device)
        return batch[own % len(batch)]

    def joined(self, part: Tensor, size: int) -> Tensor:
        """[B, ...] of what each process made of its `share_of`."""
        return self.gather(part).flatten(0, 1)[:size]


class ShardedRows(TableRows):
    """Some rows of item tables that lie on several processes.

    The gradient of this process's rows is the mean over processes of what each has for them, as
    DDP's of other weights is, and sparse.

    Args:
        numbers: [R] int64, ascending, each once; on every process the same.
        shards: Who has them.
    """

    def __init__(self, numbers: Tensor, shards: TableShards) -> None:
        super().__init__(numbers)
        self._shards = shards

    def of(self, table: Tensor) -> Tensor:
        """This process's rows of a table to [R, d]."""
        if id(table) not in self._found:
            found: Tensor = _Lookup.apply(table, self.numbers, self._shards)
            self._found[id(table)] = found
        return self._found[id(table)]


class OwnRows(TableRows):
    """Consecutive items of this process, between padding and mask token, whose rows are zero here.

    For what is asked of every item without a gradient.

    Args:
        items: Some of the shards' own.
        shards: How the tables are cut.
        device: The tables'.
    """

    def __init__(self, items: range, shards: TableShards, device: torch.device) -> None:
        numbers = torch.arange(items.start, items.stop, device=device)
        super().__init__(F.pad(F.pad(numbers, (1, 0)), (0, 1), value=shards.table_rows - 1))
        self._local = slice(items.start - shards.first, items.stop - shards.first)

    def of(self, table: Tensor) -> Tensor:
        """This process's rows of a table to [n + 2, d]."""
        return F.pad(table.detach()[self._local], (0, 0, 1, 1))


def rows_of(rank: int, count: int, rows: int) -> tuple[int, int]:
    """First row of a process and the row after its last, as DTensor's ``Shard(0)`` cuts them."""
    each = -(-rows // count)
    return min(rank * each, rows), min((rank + 1) * each, rows)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, numbers: Tensor, shards: TableShards) -> Tensor:
        ctx.shards, ctx.shape = shards, part.shape
        ctx.save_for_backward(numbers)
        return shards.lookup(part, numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (numbers,) = ctx.saved_tensors
        shards: TableShards = ctx.shards
        mean = shards.total(gradients[0]) / shards.count
        # ascending, so this process's lie together
        ends = torch.searchsorted(numbers, numbers.new_tensor([shards.first, shards.end]))
        here = slice(*ends.tolist())
        rows = numbers[here] - shards.first
        sparse = torch.sparse_coo_tensor(
            rows[None], mean[here], ctx.shape, is_coalesced=True, check_invariants=False
        )
        return sparse, None, None
