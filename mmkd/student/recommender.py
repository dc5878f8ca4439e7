"""Recommender: item sequences [B, L] to states [B, L, d] and scores over the catalogue.

The student of KDSR (arXiv:2401.07257), section 3: fused item embedding, backbone, dot product.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmkd.errors import DataError, MmkdError, at_least, checked, one_of, refuse
from mmkd.student.backbones import Backbone, build_backbone, reads_items
from mmkd.student.item_embedding import FusedItemEmbedding
from mmkd.student.rows import TableRows, TableShards, places

ScoreWith = Literal["id", "fused"]

# computed again at a time with gradient checkpointing; on a CPU what its caches like (measured)
_CPU_POSITIONS = 2_048
_OTHER_POSITIONS = 65_536


@dataclass(frozen=True)
class StudentOutput:
    """What one student makes of a batch."""

    hidden: Tensor
    """[B, L, d] states; without meaning at padding."""
    modality: dict[str, Tensor]
    """Name to the whole student table S_m [I+2, d] (the parameter, unless an adapter makes it)."""
    item_matrix: Tensor
    """[I, d], row r scores item r + 1."""
    rows: Tensor | None = None
    """[R] int64, ascending: padding, some items, the mask token, where `modality` [R, d] and
    `item_matrix` [R-2, d] are of these rows alone; None = all (see `TableRows`)."""


class Teacher(Protocol):
    """What a student starts from: a fitted distiller's tables [I+1, d_t] and masks [I+1]."""

    @property
    def reduced(self) -> Mapping[str, Tensor]: ...  # noqa: D102

    @property
    def present(self) -> Mapping[str, Tensor]: ...  # noqa: D102


class Catalogue(Protocol):
    """What a list is made of: an item table's ids and titles [I+1], and the row of an id."""

    @property
    def ids(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def titles(self) -> Sequence[str]: ...  # noqa: D102

    def row(self, item_id: str, /) -> int: ...  # noqa: D102


class Recommender(nn.Module):
    """An item embedding, a backbone, and a dot product with every item.

    With `score_with="fused"` an item is scored by its fused vector, so that one without training
    events is ranked by what its modalities say. The table is fused once a forward, for the inputs
    and for the scores alike. With `"id"` only the batch's own items are fused.

    With `gradient_checkpointing` set, training keeps the backbone's inputs and outputs only and
    computes the rest again for the gradients (arXiv:1604.06174).

    `causal`, `item_count` and `max_length` say what it reads: whether a state depends on no later
    position, I, and the longest sequence, mask token included (None where there is no limit).

    >>> import torch
    >>> from mmkd import FusedItemEmbedding, Recommender, SASRec
    >>> embedding = FusedItemEmbedding(item_count=3, width=8)
    >>> student = Recommender(embedding=embedding, backbone=SASRec(width=8, max_length=5))
    >>> states = student(torch.tensor([[0, 2, 1], [1, 3, 2]])).hidden
    >>> student.score(states[:, -1]).shape  # of padding and three items, after each sequence
    torch.Size([2, 4])
    """

    @checked
    def __init__(
        self,
        *,
        embedding: FusedItemEmbedding,
        backbone: Backbone | type[nn.Module],
        score_with: ScoreWith = "fused",
        max_length: int | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            embedding: The item tables.
            backbone: An nn.Module of the same width, or a class to build it of.
            score_with: `fused` or `id`.
            max_length: The longest sequence to read; None means the backbone's own limit.

        Raises:
            ValueError: `backbone` is none or of another width, `id` is to score without ids, or an
                argument is out of range.
        """
        super().__init__()
        if isinstance(backbone, type):
            backbone = build_backbone(backbone, width=embedding.width, max_length=max_length)
        if not (isinstance(backbone, nn.Module) and hasattr(backbone, "causal")):
            raise ValueError(
                f"backbone: got {type(backbone).__name__}, wanted a torch.nn.Module with a "
                "`causal` attribute; derive it from one, or its weights would not train"
            )
        if getattr(backbone, "width", embedding.width) != embedding.width:
            raise ValueError(
                f"backbone: got one of width {backbone.width}, wanted the embedding's "
                f"{embedding.width}; build both with one width"
            )
        if score_with == "id" and not embedding.ids:
            raise ValueError("score_with: got id, but the embedding has no ids; use fused")
        self.embedding = embedding
        self.backbone = backbone
        self.score_with = score_with
        self.causal = bool(backbone.causal)
        self.item_count = embedding.item_count
        limits = (max_length, getattr(backbone, "max_length", None))
        self.max_length = min((n for n in limits if n is not None), default=None)
        self.gradient_checkpointing = False
        self._reads_items = reads_items(backbone)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with any of the constructor's options, a line each."""
        return [
            *one_of(get_args(ScoreWith), score_with=options.get("score_with")),
            *at_least(1, max_length=options.get("max_length")),
        ]

    @classmethod
    def from_teacher(
        cls,
        distiller: Teacher,
        *,
        backbone: Backbone | type[nn.Module],
        score_with: ScoreWith = "fused",
        max_length: int | None = None,
        **embedding: Any,
    ) -> Self:
        """A student whose modality tables start as a distiller's reduced teachers.

        Args:
            distiller: A fitted one.
            backbone: As for the constructor, also for what follows.
            score_with: Which table scores.
            max_length: The longest sequence to read.
            **embedding: Further options of `FusedItemEmbedding`; `width` is the backbone's
                attribute of that name, the teachers' where it has none.

        Raises:
            ValueError: The distiller is not fitted, or a part refuses its options.
        """
        if not distiller.reduced:
            raise ValueError("the distiller has no teacher; call its fit first")
        rows, dim = next(iter(distiller.reduced.values())).shape
        options = {"width": getattr(backbone, "width", dim), **embedding}
        tables = FusedItemEmbedding(
            item_count=rows - 1,
            modalities=distiller.reduced,
            present=distiller.present,
            **options,
        )
        return cls(
            embedding=tables, backbone=backbone, score_with=score_with, max_length=max_length
        )

    def forward(self, items: Tensor, rows: TableRows | None = None) -> StudentOutput:
        """States of every position.

        Args:
            items: [B, L] int64: 0 padding (on the left), 1..I items, I+1 mask token, which the
                caller sets where a bidirectional backbone is to predict.
            rows: The rows of the item tables to read, those of `items` among them, where not all
                are asked of.

        Returns:
            The states, the modality tables, and the matrix to score with.

        Raises:
            ValueError: `items` is not [B, L].
        """
        if items.ndim != 2:
            raise ValueError(
                f"items: got shape {tuple(items.shape)}, wanted [B, L]; "
                "add a batch dimension with items[None]."
            )
        numbers = None if rows is None else rows.numbers
        modality = self.embedding.modality_tables(rows)
        if self.score_with == "fused" or rows is not None:
            table = self.embedding.table(modality, rows)  # [I+2, d]
            x = self.embedding.lookup(places(items, numbers), table)
            matrix = table if self.score_with == "fused" else self.embedding.ids_of(rows)
            matrix = matrix[1:-1]
        else:
            x = self.embedding(items)
            matrix = self.item_matrix()
        hidden = self._states(x, items)  # [B, L, d]
        return StudentOutput(hidden=hidden, modality=modality, item_matrix=matrix, rows=numbers)

    def item_matrix(self) -> Tensor:
        """[I, d] the rows to score with, row r for item r + 1."""
        table = self.embedding.table() if self.score_with == "fused" else self.embedding.ids_of()
        return table[1:-1]

    @property
    def shards(self) -> TableShards | None:
        """How the item tables lie on several processes; None where each has them whole."""
        return self.embedding.shards

    def own_matrix(self) -> Tensor:
        """[n, d] the rows to score this process's items with, of tables over processes."""
        return self.embedding.own_items(ids=self.score_with == "id")

    def known(self) -> Tensor:
        """[I] bool: the items that are scored by something of their own.

        Others are noise to this network: ids that were never trained, or one vector for all items
        without a modality.
        """
        embedding = self.embedding
        return embedding.has[1:-1, 0] if self.score_with == "id" else embedding.known

    def score(self, hidden: Tensor, item_matrix: Tensor | None = None) -> Tensor:
        """Scores over the catalogue.

        Args:
            hidden: [..., d].
            item_matrix: [I, d]; pass it when scoring many batches, or it is made anew each time.

        Returns:
            [..., I+1], column r for item r, column 0 (padding) -inf.
        """
        matrix = self.item_matrix() if item_matrix is None else item_matrix
        return F.pad(hidden @ matrix.mT, (1, 0), value=-float("inf"))

    def modality_parameters(self) -> list[nn.Parameter]:
        """The modality tables, for a parameter group with a schedule of its own."""
        return self.embedding.modality_parameters()

    def recommend(
        self, items: Catalogue, history: Sequence[str], *, k: int = 10, exclude_seen: bool = True
    ) -> list[dict[str, Any]]:
        """The k items that a user is likeliest to take next.

        Args:
            items: The catalogue that the student was trained on.
            history: The user's item ids, oldest first.
            k: How many.
            exclude_seen: Leave the history's own items out.

        Returns:
            `item`, `title` and `score` each, best first.

        Raises:
            ValueError: An id is not in the catalogue, the history is empty, or `k` is below 1.
        """
        return best_items(self, self.next_scores, items, history, k, exclude_seen=exclude_seen)

    def next_scores(self, histories: Tensor) -> Tensor:
        """Scores [B, I+1] of what comes after each of the histories [B, L], left-padded."""
        with answering(self):
            out = self(prompt(self, histories))
            return self.score(out.hidden[:, -1], out.item_matrix)

    def _states(self, x: Tensor, items: Tensor) -> Tensor:
        inputs = (x, items == 0, items) if self._reads_items else (x, items == 0)
        backbone = cast(Callable[..., Tensor], self.backbone)
        if not (self.gradient_checkpointing and self.training):
            return backbone(*inputs)
        # sequences do not see each other, so what is computed again is a few of them at a time
        positions = _CPU_POSITIONS if x.device.type == "cpu" else _OTHER_POSITIONS
        count = math.ceil(x.shape[0] * x.shape[1] / positions)
        rows = max(1, math.ceil(x.shape[0] / max(1, count)))  # alike: kernels are kept by shape
        chunks = zip(*(torch.split(each, rows) for each in inputs), strict=True)
        return torch.cat([checkpoint(backbone, *chunk, use_reentrant=False) for chunk in chunks])


class Student(Protocol):
    """What a network and an ensemble say about themselves."""

    causal: bool
    item_count: int
    max_length: int | None


def prompt(student: Student, histories: Tensor) -> Tensor:
    """Histories [B, L] to what a student reads to answer "what next?" with its last states.

    A bidirectional one reads the mask token after the history; all read the latest items only.
    """
    if not student.causal:
        mask = histories.new_full((len(histories), 1), student.item_count + 1)
        histories = torch.cat([histories, mask], dim=1)
    return histories if student.max_length is None else histories[:, -student.max_length :]


@contextmanager
def settled(student: nn.Module) -> Iterator[None]:
    """In evaluation mode, item tables fused once; then in the mode it was in.

    May be held open across calls: it does not touch the caller's gradient mode, which is the whole
    thread's.
    """
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        with ExitStack() as stack:
            with torch.no_grad():
                for module in student.modules():
                    if isinstance(module, FusedItemEmbedding):
                        stack.enter_context(module.table_kept())
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def answering(student: nn.Module) -> Iterator[None]:
    """`settled`, and without gradients: for one answer, never across a `yield` of one's own."""
    with settled(student), torch.no_grad():
        yield


def best_items(
    student: nn.Module,
    next_scores: Callable[[Tensor], Tensor],
    items: Catalogue,
    history: Sequence[str],
    k: int,
    *,
    exclude_seen: bool,
) -> list[dict[str, Any]]:
    """A student's `recommend`, from its `next_scores`; the other arguments are those."""
    refuse(at_least(1, k=k))
    if not history:
        raise DataError("the history is empty; give at least one item id, oldest first")
    rows = [items.row(item) for item in history]
    scores = next_scores(torch.tensor([rows], device=next(student.parameters()).device))[0]  # [I+1]
    if len(scores) != len(items.ids):
        raise DataError(
            f"got a catalogue of {len(items.ids) - 1} items, wanted the {len(scores) - 1} that the "
            "student was trained on; pass the table it was trained with"
        )
    if scores.isnan().any():
        raise MmkdError("a score is NaN: the student diverged; lower its learning rate")
    if exclude_seen:
        scores[rows] = -torch.inf
    return listed(items, scores, k)


def listed(items: Catalogue, scores: Tensor, k: int) -> list[dict[str, Any]]:
    """The k best of [I+1] scores, those of -inf left out: `item`, `title` and `score` each."""
    best, found = scores.topk(min(k, len(scores)))
    return [
        {"item": items.ids[row], "title": items.titles[row], "score": value}
        for row, value in zip(found.tolist(), best.tolist(), strict=True)
        if value > -torch.inf
    ]
