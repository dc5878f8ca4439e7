"""Item vectors: id and modality tables to one fused vector an item.

From the reduced teachers [I+1, d_t] to trainable tables [I+2, d] (row 0 padding, row I+1 mask
token) and their fusion. KDSR (arXiv:2401.07257), section 3.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import at_least, checked, one_of, positive, within
from mmkd.student.fusion import FUSIONS, ConcatFusion, Fusion
from mmkd.student.layers import check_dropout, check_modality_name, dropout
from mmkd.student.rows import TableRows, TableShards, TeacherRows

AdapterKind = Literal["linear", "mlp"]

# rows, where nothing is kept for gradients: what is made on the way is several times as large
_ROWS_AT_ONCE = 65_536


class FusedItemEmbedding(nn.Module):
    """One `id` table plus one table a modality, fused to one vector an item.

    Scale. Every table starts with the same mean row norm, `id_std * sqrt(width)` for the id table
    and `modality_std * sqrt(width)` for the others: a teacher's own scale would either drown the
    ids or vanish beside them. One factor a table, so that cosine similarities inside it (and the
    ratios of its norms) are the teacher's.

    Width. Where `width` equals the teacher's, S_m starts as the teacher itself; a narrower one is
    the orthogonal projection that keeps inner products best (on a PCA teacher: its leading
    columns); a wider one is padded with zero columns.

    `starts` says by modality how its table was made of the teacher.

    Frozen. With an `adapter` the table of a modality is the teacher itself, at its own width, and
    never trains; what is fused is what a trained layer makes of it (UniSRec, arXiv:2206.05941). The
    layer starts as the map that the table would have started with, so that both begin alike.

    Missing. An item without a modality has a zero row there, which takes no part in the fusion and
    gets no gradient from it. The mask token has an id row only. The padding row is never read, so
    its zeros stay zeros; its fused vector is zero. `has` [I+2, S] says which sources a row has, the
    ids first: those of an item that was added after training are not read either.

    Without ids. With `ids=False` an item is what its modalities say, and there is no id table.
    Items without any modality share one learnt vector, `stand_in[0]`, so that they can stand in a
    history and all get one score; the mask token has `stand_in[1]`. The first column of `has` then
    marks the rows that read it.

    Dropout falls on the vectors that `lookup` and `forward` return, that is on a sequence's inputs,
    and not on `table`: the fused table is also the matrix to score with, where noise would hit
    every candidate of every position in the same way and blur the targets rather than regularise.

    >>> import torch
    >>> from mmkd import FusedItemEmbedding
    >>> embedding = FusedItemEmbedding(
    ...     item_count=3, width=4, modalities={"text": torch.randn(4, 6)}, dropout=0.0
    ... )
    >>> embedding.table().shape  # padding, three items, mask token
    torch.Size([5, 4])
    >>> embedding(torch.tensor([[0, 2, 1]])).shape
    torch.Size([1, 3, 4])
    """

    @checked
    def __init__(
        self,
        *,
        item_count: int,
        width: int,
        modalities: Mapping[str, TeacherRows] | None = None,
        present: Mapping[str, Tensor] | None = None,
        ids: bool = True,
        adapter: AdapterKind | None = None,
        fusion: Fusion = "gate",
        trained: Tensor | None = None,
        dropout: float = 0.1,
        id_dropout: float = 0.0,
        id_std: float = 0.02,
        modality_std: float | None = None,
        gate_width: int | None = None,
        shards: TableShards | None = None,
    ) -> None:
        """Build the tables.

        Args:
            item_count: I, the number of items.
            width: d, the width of every table and of the fused vector.
            modalities: Name to reduced teacher [I+1, d_t], float; the order is the sources' order.
                To load trained weights afterwards, zeros of that shape will do.
            present: Name to [I+1] bool, False where an item lacks the modality; a name left out
                means that every item has it.
            ids: Whether ids are among the sources; without them there must be a modality.
            adapter: `linear` or `mlp` on a frozen teacher, instead of a table that trains.
            fusion: `gate`, `concat` or `sum`, see `mmkd.student.fusion`.
            trained: [I+1] bool, False where no event of the item trains: its ids, which stay
                noise, are then read nowhere if it has a modality. None means that all are trained.
            dropout: Share of the input vectors' entries that is dropped in training.
            id_dropout: Share of the items with a modality whose ids are left out of a training
                step, so that the content learns to carry (DropoutNet, NeurIPS 2017).
            id_std: Standard deviation of the id table at the start.
            modality_std: The same for the modality tables; None means `id_std`.
            gate_width: Hidden width of the gate's network; None means a quarter of `width`.
            shards: Makes this process's rows of the tables alone, with the numbers that whole ones
                would have there.

        Raises:
            ValueError: A table's or mask's shape does not fit `item_count`, an unknown fusion, a
                modality's name that torch cannot store, or a number out of range.
        """
        super().__init__()
        self.item_count = item_count
        self.width = width
        self.ids = ids
        self.dropout = dropout
        self.id_dropout = id_dropout

        self.shards = shards  # of tables that lie on several processes
        self._kept: tuple[Tensor, dict[str, Tensor]] | None = None
        self._own: Tensor | None = None
        # the CPU as a rule; no place at all where shapes alone are asked
        rows, here = item_count + 2, torch.get_default_device()
        own = slice(0, rows) if shards is None else slice(shards.first, shards.end)
        if ids:
            self.id_table = nn.Parameter(_noise(rows, width, own).mul_(id_std))
            with torch.no_grad():
                self.id_table[: 1 - min(own.start, 1)] = 0.0
        else:
            self.stand_in = nn.Parameter(torch.randn(2, width) * id_std)
        self.tables = nn.ParameterDict()
        self.adapters = nn.ModuleDict()
        self.starts: dict[str, TeacherStart] = {}
        has = [torch.ones(rows, dtype=torch.bool)]
        std = id_std if modality_std is None else modality_std
        everywhere = torch.ones(item_count + 1, dtype=torch.bool)
        for name, teacher in (modalities or {}).items():
            mask = (present or {}).get(name, everywhere).to(here, torch.bool).clone()
            mask[0] = False
            start = TeacherStart.fit(teacher, mask, width=width, norm=std * width**0.5)
            if adapter is not None:
                self.adapters[name] = Adapter(start, dim=teacher.shape[1], kind=adapter)
                start = TeacherStart(teacher.shape[1], 1.0, None)
            table = torch.zeros(own.stop - own.start, start.width)
            for some in _slices(min(own.stop, len(teacher)), start=own.start):
                placed = torch.where(mask[some, None], start(teacher[some]), 0.0)
                table[some.start - own.start : some.stop - own.start] = placed
            self.tables[name] = nn.Parameter(table, requires_grad=adapter is None)
            self.starts[name] = start
            has.append(F.pad(mask, (0, 1)))  # [I+2], the mask token has none
        content = torch.stack(has[1:]).any(0) if self.tables else ~has[0]  # [I+2]
        if not ids:
            has[0] = ~content
            has[0][0] = False
        elif trained is not None:
            known = F.pad(trained.to(here, torch.bool), (0, 1), value=True)
            # of ids alone nothing else can be read, and they say that they mean nothing
            has[0] &= known if not self.tables else ~content | known
        self.has: Tensor
        self.register_buffer("has", torch.stack(has, dim=1))  # [I+2, S] S sources, id first
        sources = len(self.tables) + ids
        self.fuse = (
            FUSIONS[fusion](width=width, sources=sources, hidden=gate_width)
            if sources > 1
            else None
        )

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        get = options.get
        teachers: Mapping[str, TeacherRows] = get("modalities") or {}
        masks: Mapping[str, Tensor] = get("present") or {}
        rows = get("item_count")
        problems = [
            *at_least(1, item_count=rows, width=get("width"), gate_width=get("gate_width")),
            *one_of(FUSIONS, fusion=get("fusion")),
            *one_of(get_args(AdapterKind), adapter=get("adapter")),
            *check_dropout(options),
            *within(0, 1, "it is a share", id_dropout=get("id_dropout")),
            *positive("such as 0.02", id_std=get("id_std"), modality_std=get("modality_std")),
            *(line for name in teachers for line in check_modality_name(name)),
        ]
        if get("ids") is False and get("id_dropout"):
            problems.append(
                f"id_dropout: got {get('id_dropout')}, but there are no ids (ids: false) to leave "
                "out; remove it"
            )
        if get("ids") is False and "modalities" in options and not teachers:
            problems.append("ids: got false, but there is no modality either; give one, or the ids")
        if "modalities" in options:
            problems += [
                f"present: has {name!r} but modalities has not; pass both or neither"
                for name in sorted(masks.keys() - teachers.keys())
            ]
        if rows is not None:
            problems += [
                f"modality {name!r}: got a table of shape {tuple(teacher.shape)}, wanted "
                f"[{rows + 1}, d_t] (row 0 padding); pass the distiller's reduced table"
                for name, teacher in teachers.items()
                if teacher.ndim != 2 or len(teacher) != rows + 1
            ]
            problems += [
                f"modality {name!r}: got a present mask of shape {tuple(mask.shape)}, wanted "
                f"[{rows + 1}]; pass the distiller's mask of the same modality"
                for name, mask in masks.items()
                if tuple(mask.shape) != (rows + 1,)
            ]
        return problems

    @contextmanager
    def table_kept(self) -> Iterator[None]:
        """Fuse the table once for all that is asked inside, where no weight may change.

        Of tables over processes, this process's items.
        """
        before = self._kept, self._own
        try:
            if self.shards is not None:
                self._own = self.own_items() if self._own is None else self._own
            elif self._kept is None:
                tables = self.modality_tables()
                self._kept = self.table(tables), tables
            yield
        finally:
            self._kept, self._own = before

    def table(
        self, tables: Mapping[str, Tensor] | None = None, rows: TableRows | None = None
    ) -> Tensor:
        """Fuse every row, or some, without dropout.

        Args:
            tables: What `modality_tables` returned, where it was asked; None makes it.
            rows: Which; None fuses all.

        Returns:
            [I+2, d] the fused table, or [R, d] of the rows; row 0 zero.
        """
        if self._kept is not None and rows is None:
            return self._kept[0]
        sources = self._sources(self.modality_tables(rows) if tables is None else tables, rows)
        has = self.has if rows is None else self.has[rows.numbers]
        if self.fuse is None:
            table = sources[0]
        elif not torch.is_grad_enabled() and len(has) > _ROWS_AT_ONCE:
            table = sources[0].new_zeros(len(has), self.width)
            for some in _slices(len(has), start=1):
                table[some] = self.fuse([s[some] for s in sources], self._read(has[some]))
        else:
            fused: Tensor = self.fuse([s[1:] for s in sources], self._read(has[1:]))
            table = F.pad(fused, (0, 0, 1, 0))  # [I+2, d]; the padding row is written, never learnt
        if self.ids:
            return table
        stand_ins = [self.stand_in[:1].expand(len(has) - 1, -1), self.stand_in[1:]]
        return torch.where(has[:, :1], torch.cat(stand_ins), table)

    @torch.no_grad()
    def own_items(self, *, ids: bool = False) -> Tensor:
        """Vectors [n, d] of the items whose rows this process holds, of tables over processes.

        Args:
            ids: Those of the id table alone, instead of the fused ones.
        """
        assert self.shards is not None
        items, first = self.shards.items, self.shards.first
        if ids:
            return self.id_table[items.start - first : items.stop - first]
        if self._own is not None:
            return self._own
        found = torch.empty(len(items), self.width, device=self.has.device)
        for some in _slices(len(items)):
            rows = self.shards.own_rows(items[some], self.has.device)
            found[some] = self.table(rows=rows)[1:-1]
        return found

    def lookup(self, items: Tensor, table: Tensor) -> Tensor:
        """Read a sequence's input vectors from a table that `table` returned, with dropout.

        Args:
            items: [B, L] int64; their `places`, where the table is of some rows.
            table: [I+2, d], or of some rows.

        Returns:
            [B, L, d], zero where `items` is padding.
        """
        x = F.embedding(items, table, padding_idx=0)  # [B, L, d], no gradient to row 0
        return dropout(x, self.dropout, self.training)

    def forward(self, items: Tensor) -> Tensor:
        """Input vectors of a batch, fusing no more rows than needed.

        Args:
            items: [B, L] int64 in 0..I+1.

        Returns:
            [B, L, d], zero where `items` is padding.
        """
        # more positions than items: each item once is the cheaper side, and needs no sort for it
        whole = self.fuse is None or not self.ids or len(self.adapters) > 0
        if self.fuse is None or whole or items.numel() >= self.item_count:
            return self.lookup(items, self.table())
        flat = items.reshape(-1)
        tables = self._sources(self.modality_tables())
        sources = [F.embedding(flat, source, padding_idx=0) for source in tables]
        fused: Tensor = self.fuse(
            sources, self._read(self.has[flat])
        )  # [B*L, d]; sources of zeros give zero
        x = fused.view(*items.shape, self.width)  # [B, L, d]
        return dropout(x, self.dropout, self.training)

    def _read(self, has: Tensor) -> Tensor:
        """The sources [N, S] that are read this time: ids drop out where there is content."""
        if self.training and self.id_dropout:
            drop = torch.rand(len(has), device=has.device) < self.id_dropout
            ids = has[:, 0] & ~(drop & has[:, 1:].any(1))
            has = torch.cat([ids[:, None], has[:, 1:]], dim=1)
        read = has if self.ids else has[:, 1:]
        # a row that has nothing to read reads its zeros
        return read | ~read.any(1, keepdim=True)

    @property
    def known(self) -> Tensor:
        """[I] bool: the items of which a source of their own says something."""
        has = self.has[1:-1]
        return has.any(1) if self.ids else ~has[:, 0]

    @torch.no_grad()
    def source_weights(self) -> dict[str, Tensor] | None:
        """What each source counts in an item's fused vector.

        Returns:
            ``ids``, where they are a source, and each modality to [I+2]; all are zero in the
            padding's row and add up to 1 in the others. None where the fusion has no such weights,
            as `concat` has not.
        """
        names = [*(["ids"] if self.ids else []), *self.tables]
        if self.fuse is None:
            found = torch.ones(self.item_count + 1, 1, device=self.has.device)
        elif isinstance(self.fuse, ConcatFusion):
            return None
        else:
            sources = self._sources(self.modality_tables())
            found = self.fuse.weights([s[1:] for s in sources], self._read(self.has[1:]))
        return dict(zip(names, F.pad(found, (0, 0, 1, 0)).unbind(1), strict=True))

    def modality_tables(self, rows: TableRows | None = None) -> dict[str, Tensor]:
        """Name to student table S_m [I+2, d]: the parameter itself, or what an adapter makes.

        Args:
            rows: Of which [R, d] are wanted; None = all.
        """
        if self._kept is not None and rows is None:
            return self._kept[1]
        held = {name: self._rows_of(table, rows) for name, table in self.tables.items()}
        return {
            name: self.adapters[name](table) if name in self.adapters else table
            for name, table in held.items()
        }

    def modality_parameters(self) -> list[nn.Parameter]:
        """The modality tables, for a parameter group with a schedule of its own."""
        return [table for name, table in self.tables.items() if name not in self.adapters]

    def trained_tables(self) -> list[nn.Parameter]:
        """Every table [I+2, d] that trains: ids, then modalities."""
        return [*([self.id_table] if self.ids else []), *self.modality_parameters()]

    def ids_of(self, rows: TableRows | None = None) -> Tensor:
        """The id table [I+2, d], or some rows of it [R, d]."""
        return self._rows_of(self.id_table, rows)

    def _rows_of(self, table: Tensor, rows: TableRows | None) -> Tensor:
        if rows is not None:
            return rows.of(table)
        if self.shards is not None:
            raise ValueError(
                "the item tables are over processes (training.tables: sharded), of which each has "
                "some rows; open the run for whole ones"
            )
        return table

    def _sources(self, tables: Mapping[str, Tensor], rows: TableRows | None = None) -> list[Tensor]:
        return [self.ids_of(rows), *tables.values()] if self.ids else list(tables.values())


class Adapter(nn.Module):
    """Frozen teacher vectors [..., d_t] to [..., d]; zeros, which are no content, stay zeros.

    Args:
        start: What it computes before training.
        dim: d_t.
        kind: `linear`; or `mlp`, which adds what two layers make of the vectors' directions.
    """

    def __init__(self, start: "TeacherStart", *, dim: int, kind: AdapterKind) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, start.width, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(start(torch.eye(dim)).mT)
        self.hidden = nn.Linear(dim, start.width, bias=False) if kind == "mlp" else None
        self.out = nn.Linear(start.width, start.width, bias=False) if kind == "mlp" else None
        if self.out is not None:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_t] to [..., d]."""
        adapted: Tensor = self.linear(x)
        if self.hidden is None or self.out is None:
            return adapted
        curved: Tensor = self.out(F.gelu(self.hidden(F.layer_norm(x, x.shape[-1:]))))
        return adapted + curved


@dataclass(frozen=True)
class TeacherStart:
    """How reduced teacher vectors become a modality table's rows at the start of training.

    >>> import torch
    >>> from mmkd.student import TeacherStart
    >>> teacher = torch.randn(5, 6)
    >>> teacher[0] = 0  # padding
    >>> start = TeacherStart.fit(teacher, torch.arange(5) > 0, width=4, norm=0.2)
    >>> rows = start(teacher)
    >>> rows.shape, round(rows[1:].norm(dim=1).mean().item(), 4)
    (torch.Size([5, 4]), 0.2)

    Attributes:
        width: d.
        factor: One for all rows.
        basis: [d_t, d] float64, where d is below d_t; None where zero columns fill up to d.
    """

    width: int
    factor: float
    basis: Tensor | None

    @classmethod
    def fit(cls, teacher: TeacherRows, mask: Tensor, *, width: int, norm: float) -> Self:
        """What the rows that hold something ask for.

        A narrower table takes the leading eigenvectors of the second moment `X^T X`: of all
        orthogonal projections that one keeps the Gram matrix best (Eckart and Young). On columns
        that come from PCA it picks the leading ones. Each eigenvector's largest entry is made
        positive, so the result is the same on every run.

        Args:
            teacher: [N, d_t].
            mask: [N] bool, the rows that hold something.
            width: d.
            norm: Mean Euclidean norm to give these rows, by one factor for all; where they hold
                nothing but zeros it is 1.
        """
        basis = None
        dim, parts = teacher.shape[1], _slices(len(teacher))
        meta = isinstance(teacher, Tensor) and teacher.is_meta
        if meta or mask.is_meta:  # of which shapes alone are asked
            basis = mask.new_empty(dim, width).double() if width < dim else None
            return cls(width, 1.0, basis)
        if width < dim:
            moment = torch.zeros(dim, dim, dtype=torch.float64)
            for some in parts:
                exact = torch.where(mask[some, None], _plain(teacher[some]), 0.0).double()
                moment = moment + exact.mT @ exact
            _, vectors = torch.linalg.eigh(moment)  # ascending eigenvalues
            basis = vectors.flip(1)[:, :width]  # [d_t, d]
            largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))  # [1, d]
            basis = basis * largest.sign()
        plain = cls(width, 1.0, basis)
        norms = torch.cat([plain(teacher[some][mask[some]]).norm(dim=1) for some in parts])
        mean = norms.mean().item() if len(norms) else 0.0
        return cls(width, norm / mean if mean > 0 else 1.0, basis)

    def __call__(self, teacher: Tensor) -> Tensor:
        """[n, d_t] to [n, d]."""
        table = _plain(teacher)
        if self.basis is None:
            fitted = F.pad(table, (0, self.width - table.shape[1]))
        else:
            fitted = (table.double() @ self.basis).to(table.dtype)
        return fitted * self.factor


def _noise(rows: int, width: int, own: slice) -> Tensor:
    """Some rows of what `torch.randn` draws for all [rows, width], which are never held at once."""
    if own == slice(0, rows):
        return torch.randn(rows, width)
    found = torch.empty(own.stop - own.start, width)
    # torch draws sixteen numbers at a time, and of a remainder the last sixteen anew: all blocks
    # are of whole sixteens but the last, which is no shorter than that
    ends = [*range(_ROWS_AT_ONCE, rows - 15, _ROWS_AT_ONCE), rows]
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        block = torch.randn(end - first, width)
        start, stop = max(first, own.start), min(end, own.stop)
        if start < stop:
            found[start - own.start : stop - own.start] = block[start - first : stop - first]
    return found


def _plain(teacher: Tensor) -> Tensor:
    """A teacher's numbers where they are worked with."""
    return teacher.detach().to(torch.get_default_device(), torch.float32)


def _slices(count: int, *, start: int = 0) -> list[slice]:
    """Rows from ``start`` on, so many at a time that what is made of them stays small."""
    starts = range(start, count, _ROWS_AT_ONCE)
    return [slice(first, min(first + _ROWS_AT_ONCE, count)) for first in starts]
