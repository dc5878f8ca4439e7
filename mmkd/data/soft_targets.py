"""Soft targets: a batch's targets to such that share them with the teachers' neighbours.

Correlations in the ranking loss: instead of the item that was taken, the distribution
``q = (1 - e) onehot(y) + e softmax_k(rho(y, .) / t)`` is to be predicted. ``drawn`` replaces
targets by draws from it, which costs nothing; ``expected`` leaves them and is added to the loss in
closed form (`Objective`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.data.splits import SequenceSplit
from mmkd.data.tasks import Batch
from mmkd.distiller import CorrelationDistiller, TeacherNeighbours
from mmkd.errors import at_least, one_of, refuse, within

Form = Literal["drawn", "expected"]
Schedule = Literal["constant", "rising", "falling"]


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """How much of every target its neighbours get.

    >>> import torch
    >>> from mmkd import NextItem, SoftTargets, TeacherNeighbours
    >>> rows = torch.tensor([[0], [2], [1], [0]])  # 1 and 2 are alike, 3 has no neighbour
    >>> near = TeacherNeighbours(rows, (rows > 0).float(), {})
    >>> batch = NextItem().batch(torch.tensor([[3, 1, 2]]), item_count=3)
    >>> soft = SoftTargets(neighbours=near, share=1.0)
    >>> soft(batch, epoch=0, generator=torch.Generator()).targets.tolist()  # 1 and 2 change places
    [[[2, 1]]]

    Attributes:
        neighbours: Who shares.
        share: e, in [0, 1].
        input_share: Share of a sequence's own items that are replaced likewise where the network
            reads them, in [0, 1].
        form: ``drawn`` or ``expected``.
        schedule: ``constant``; ``rising`` from 0 or ``falling`` to 0, evenly over the epochs.
        epochs: How many there are, for a schedule.
        members: By network of an ensemble what ``share`` is multiplied by, in [0, 1]; all see the
            same draw, and one of a smaller share keeps more of its targets. None = 1 for all.

    Raises:
        ValueError: An option is out of range.
    """

    neighbours: TeacherNeighbours
    share: float = 0.2
    input_share: float = 0.0
    form: Form = "drawn"
    schedule: Schedule = "constant"
    epochs: int = 1
    members: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        refuse(self.check(**vars(self)))

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        shares = {name: options.get(name) for name in ("share", "input_share")}
        choices: dict[str, Sequence[str]] = {"form": get_args(Form), "schedule": get_args(Schedule)}
        return [
            *within(0, 1, "it is a share", **shares),
            *(
                line
                for share in options.get("members") or ()
                for line in within(0, 1, "it is a share", members=share)
            ),
            *at_least(1, epochs=options.get("epochs")),
            *(
                line
                for name, known in choices.items()
                if name in options
                for line in one_of(known, **{name: options[name]})
            ),
        ]

    def share_at(self, epoch: int) -> float:
        """E in an epoch, from 0."""
        if self.schedule == "constant":
            return self.share
        way = epoch / max(self.epochs - 1, 1)
        return self.share * min(way if self.schedule == "rising" else 1 - way, 1.0)

    def to(self, device: torch.device | str) -> "SoftTargets":
        """The same on a device."""
        return replace(self, neighbours=self.neighbours.to(device))

    def counts(self, train_counts: Tensor) -> Tensor:
        """[I+1] how often each item is expected as a target, of how often it trains [I+1].

        The mean over epochs and networks, which share differently. An item that trains counts at
        least once, though all of its share may go to others: it must stay a candidate, for
        ``expected`` leaves the targets as they are.
        """
        hard = torch.as_tensor(train_counts).to(torch.float32)
        share = fmean(map(self.share_at, range(self.epochs))) * fmean(self.members or [1.0])
        expected = (1 - share) * hard + share * self.neighbours.spread(hard)
        return expected.maximum(hard.clamp(max=1))

    def __call__(self, batch: Batch, *, epoch: int, generator: torch.Generator) -> Batch:
        """The batch with its targets shared.

        Args:
            batch: Of a task.
            epoch: From 0.
            generator: A CPU generator.
        """
        share = self.share_at(epoch)
        if self.form == "expected":
            batch = replace(batch, soft_share=share, member_shares=self.members)
        elif self.members is None:
            (targets,) = self._drawn(batch.targets, [share], generator)
            batch = replace(batch, targets=targets)
        else:
            own = self._drawn(batch.targets, [share * m for m in self.members], generator)
            batch = replace(batch, member_targets=torch.stack(own))
        if self.input_share:
            read = batch.views < len(self.neighbours.rows)  # not the mask token
            items = batch.views.masked_fill(~read, 0)
            (drawn,) = self._drawn(items, [self.input_share], generator)
            batch = replace(batch, views=torch.where(read, drawn, batch.views), clean=False)
        return batch

    def _drawn(
        self, items: Tensor, shares: Sequence[float], generator: torch.Generator
    ) -> list[Tensor]:
        """Items of which a share is replaced, for each of some shares by the same draws."""
        which = torch.rand(items.shape, generator=generator).to(items.device)
        draws = torch.rand(items.shape, generator=generator).to(items.device)
        drawn = self.neighbours.draw(items, draws)
        return [torch.where(which < share, drawn, items) for share in shares]


def soft_targets(
    distiller: CorrelationDistiller,
    split: SequenceSplit,
    *,
    share: float = 0.2,
    k: int = 20,
    temperature: float = 0.05,
    modalities: Sequence[str] | None = None,
    types: bool = False,
    untrained: bool = True,
    input_share: float = 0.0,
    form: Form = "drawn",
    schedule: Schedule = "constant",
    epochs: int = 1,
    seed: int = 0,
) -> SoftTargets:
    """Soft targets of a fitted distiller.

    Args:
        distiller: The teachers.
        split: Its training events say, for ``types``, what is taken together.
        share: See ``SoftTargets``.
        k: See ``TeacherNeighbours.fit``.
        temperature: See ``TeacherNeighbours.fit``.
        modalities: See ``TeacherNeighbours.fit``.
        types: Weigh neighbours by how often pairs of their correlation types follow each other in
            the training events, against chance.
        untrained: Whether items that never train share in targets too. They then compete with all
            others, which is how they learn their place; without, content alone places them.
        input_share: See ``SoftTargets``.
        form: See ``SoftTargets``.
        schedule: See ``SoftTargets``.
        epochs: See ``SoftTargets``.
        seed: See ``TeacherNeighbours.fit``.

    Raises:
        ValueError: An option is out of range or doesn't fit the teachers.
    """
    neighbours = TeacherNeighbours.fit(
        distiller,
        k=k,
        temperature=temperature,
        modalities=modalities,
        taken_together=_followers(split) if types else None,
        among=None if untrained else np.asarray(split.train_counts()) > 0,
        seed=seed,
    )
    return SoftTargets(
        neighbours=neighbours,
        share=share,
        input_share=input_share,
        form=form,
        schedule=schedule,
        epochs=epochs,
    )


def check_soft_targets(**options: Any) -> list[str]:
    """A line for each of these options of ``soft_targets`` that is out of range."""
    return [*SoftTargets.check(**options), *TeacherNeighbours.check(**options)]


def _followers(split: SequenceSplit) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows [P] of items, and of those that the same user took next, both in training."""
    user = np.repeat(np.arange(split.user_count), np.diff(split.offsets))
    trains = split.is_train()
    pair = trains[:-1] & trains[1:] & (user[:-1] == user[1:])
    first, second = split.items[:-1][pair], split.items[1:][pair]
    return first.astype(np.int64), second.astype(np.int64)
