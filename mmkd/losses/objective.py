"""The whole objective: student outputs, a batch and teacher targets to one loss and its parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmkd.data.tasks import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.compression import CompressionLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.correlation import CorrelationLoss
from mmkd.losses.distributed import global_mean
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.recommendation import NeighbourLoss, RecommendationLoss, SampledLoss, Softmax
from mmkd.student import StudentOutput
from mmkd.student.ensemble import Inference
from mmkd.student.rows import places


@dataclass(frozen=True)
class LossBreakdown:
    """What one step minimises.

    Attributes:
        total: The weighted sum, a scalar with a graph.
        parts: The unweighted terms by name, detached scalars.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class TeacherOutputs:
    """What a trained ensemble makes of a batch.

    Attributes:
        outputs: Of its members, without a graph.
        inference: How they are put together.
        weights: What each counts, [N]; None = all alike.
        known: By member the items [I] that it knows, see ``Ensemble.known``; None = all.
    """

    outputs: Sequence[StudentOutput]
    inference: Inference
    weights: Tensor | None = None
    known: Sequence[Tensor | None] | None = None


class Objective(nn.Module):
    """The terms of KDSR and of EMKD, whichever are given.

    With N networks and V supervised views:

        L_rec + 1/N [mu KD + 1/V (w_a BCE + w_i ICL + w_c CCL)]
              + sum over modalities (w_h holistic + w_d dissected) + compression + e neighbours

    L_rec is the mean over networks and views, the terms in brackets are sums over networks (BCE,
    ICL), over ordered pairs of networks (CCL) and over pairs (KD). This is EMKD's total
    (arXiv:2304.14668, section 4.5) divided by N V, so that its weights mean what they mean there
    while one network and one view give the plain loss. The correlations are KDSR's
    (arXiv:2401.07257, section 3.4), each a mean over networks of that of their tables, so that the
    networks that lack a modality, or whose share is 0, add nothing. Compression is a mean over
    networks.

    >>> from mmkd import NextItem, Objective, SASRec, Softmax
    >>> from mmkd import FusedItemEmbedding, Recommender
    >>> import torch
    >>> embedding = FusedItemEmbedding(item_count=9, width=8)
    >>> student = Recommender(embedding=embedding, backbone=SASRec(width=8, max_length=5))
    >>> batch = NextItem().batch(torch.tensor([[1, 2, 3], [4, 5, 6]]), item_count=9)
    >>> found = Objective(Softmax())([student(batch.items)], batch, {})
    >>> list(found.parts)
    ['recommendation']

    Holds the trainable heads, dropped after training. A term whose weights are all 0 is left out.

    Args:
        recommendation: The loss at supervised positions, such as ``Softmax()`` or one of your own,
            see ``RecommendationLoss``.
        correlation: A ``CorrelationLoss`` by modality, see ``CorrelationLoss.of``; None for no
            distillation.
        attributes: BCE; None for none.
        contrastive: ICL and CCL; None for none.
        mutual: KD; None for none. It makes the cross-entropy of a ``Softmax`` itself.
        compression: Distances to a trained ensemble; None for none.
        neighbours: Of soft targets in closed form; a batch says their share. None for none.
        correlation_shares: By network what the correlations of its tables count, beside their
            weights; of a table that several hold, their mean. None = 1 for all.

    Raises:
        ValueError: ``mutual``, ``compression`` or ``neighbours`` beside another recommendation than
            ``Softmax``.
    """

    def __init__(
        self,
        recommendation: RecommendationLoss,
        *,
        correlation: Mapping[str, CorrelationLoss] | None = None,
        attributes: AttributeLoss | None = None,
        contrastive: ContrastiveLoss | None = None,
        mutual: MutualLoss | None = None,
        compression: CompressionLoss | None = None,
        neighbours: NeighbourLoss | None = None,
        correlation_shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.correlation_shares = correlation_shares
        self.recommendation = recommendation
        self.correlation = nn.ModuleDict(
            {name: loss for name, loss in (correlation or {}).items() if loss.weights}
        )
        self.attributes = attributes if attributes and attributes.weight else None
        self.contrastive = contrastive if contrastive and contrastive.weights else None
        self.mutual = mutual if mutual and mutual.weight else None
        self.compression = compression if compression and compression.weights else None
        self.neighbours = neighbours
        for name in ("mutual", "compression", "neighbours"):
            if getattr(self, name) is not None and not isinstance(recommendation, Softmax):
                raise ValueError(
                    f"{name}: got a recommendation loss of {type(recommendation).__name__}, wanted "
                    "Softmax: whole predictions are compared"
                )

    @property
    def sampled(self) -> SampledLoss | None:
        """The recommendation loss, where it reads the targets and some negatives only."""
        found = self.recommendation
        return found if isinstance(found, SampledLoss) else None

    @property
    def clean(self) -> bool:
        """Whether a term reads the states of the unmasked sequences, see ``BatchStream``."""
        return self.attributes is not None or self.contrastive is not None

    def forward(
        self,
        outputs: Sequence[StudentOutput],
        batch: Batch,
        targets: Mapping[str, CorrelationTargets],
        teacher: TeacherOutputs | None = None,
    ) -> LossBreakdown:
        """Compute the loss.

        Args:
            outputs: One per network; ``hidden`` is [V * B, L, D], V all views of the batch.
            batch: The batch they were computed on; ``clean`` for attributes and contrast.
            targets: Teacher correlations by modality (those of ``self.correlation``).
            teacher: What the ensemble to compress makes of the batch.

        Returns:
            Total and parts.
        """
        asked = batch.targets.flatten()
        at = asked.nonzero().squeeze(1)  # [M] the supervised positions
        states = _states(outputs, at)
        target = asked[at]
        targets_of = [target] * len(outputs)
        if batch.member_targets is not None:
            targets_of = list(batch.member_targets.flatten(1)[:, at])
        total, parts = self._recommendation(states, outputs, targets_of, batch.negatives)
        terms = [
            *self._terms_of_sequences(outputs, batch),
            *self._terms_of_tables(outputs, batch, targets),
            *self._terms_of_teacher(states, outputs, target, at, teacher),
            *self._terms_of_neighbours(states, outputs, target, batch),
        ]
        for name, weight, value in terms:
            total = total + weight * value
            parts[name] = value.detach()
        return LossBreakdown(total=total, parts=parts)

    def _recommendation(
        self,
        states: Sequence[Tensor],
        outputs: Sequence[StudentOutput],
        targets: Sequence[Tensor],
        negatives: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """At supervised positions: the loss itself, and what networks tell each other there."""
        if self.mutual is None:
            losses = [
                global_mean(self._loss(h, out, target, negatives), len(target))
                for h, out, target in zip(states, outputs, targets, strict=True)
            ]
            total = torch.stack(losses).mean()
            return total, {"recommendation": total.detach()}
        found = [self._candidates([out], t) for out, t in zip(outputs, targets, strict=True)]
        matrices = [matrix for (matrix,), _ in found]
        total, cross_entropy, mutual = self.mutual(
            states, matrices, torch.stack([wanted for _, wanted in found])
        )
        return total, {"recommendation": cross_entropy, "mutual": mutual}

    def _loss(
        self, states: Tensor, out: StudentOutput, target: Tensor, negatives: Tensor | None
    ) -> Tensor:
        if negatives is None:
            return self.recommendation(states, out.item_matrix, target)
        assert isinstance(self.recommendation, SampledLoss)
        return self.recommendation(states, out.item_matrix, target, negatives, out.rows)

    def _candidates(
        self, outputs: Sequence[StudentOutput], target: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The candidates' vectors, N times [C, D], and which of them is wanted [M]."""
        assert isinstance(self.recommendation, Softmax)
        found = [self.recommendation.among(out.item_matrix, target) for out in outputs]
        return [matrix for matrix, _ in found], found[0][1]

    # a term is its name, its weight in the total, and its value

    def _terms_of_sequences(
        self, outputs: Sequence[StudentOutput], batch: Batch
    ) -> Iterator[tuple[str, float, Tensor]]:
        share = 1 / (len(outputs) * batch.supervised_views)
        shape = (*batch.views.shape, -1)
        hidden = [out.hidden.view(shape) for out in outputs]  # N x [V, B, L, D]
        if self.attributes is not None:
            value = self.attributes([h[0] for h in hidden], batch.items)
            yield "attributes", share * self.attributes.weight, value
        if self.contrastive is not None:
            for name, value in self.contrastive(hidden, batch.views).items():
                yield name, share * self.contrastive.weights[name], value

    def _terms_of_tables(
        self,
        outputs: Sequence[StudentOutput],
        batch: Batch,
        targets: Mapping[str, CorrelationTargets],
    ) -> Iterator[tuple[str, float, Tensor]]:
        losses: dict[str, CorrelationLoss] = dict(self.correlation.items())  # type: ignore[arg-type]
        items = places(batch.items, outputs[0].rows)
        for modality, loss in losses.items():
            found = [
                (share, loss(table, items, targets[modality]))
                for table, share in self._tables(outputs, modality)
            ]
            for name, weight in loss.weights.items():
                values = [share * each[name] for share, each in found]
                if values:
                    yield f"{name}.{modality}", weight, torch.stack(values).sum()

    def _tables(
        self, outputs: Sequence[StudentOutput], modality: str
    ) -> list[tuple[Tensor, float]]:
        """A modality's different tables, and how much of the networks each stands for."""
        shares = self.correlation_shares or [1.0] * len(outputs)
        tables: dict[int, Tensor] = {}
        counts: dict[int, float] = {}
        for out, share in zip(outputs, shares, strict=True):
            if (table := out.modality.get(modality)) is not None:
                tables[id(table)] = table
                counts[id(table)] = counts.get(id(table), 0.0) + share
        return [(table, counts[key] / len(outputs)) for key, table in tables.items() if counts[key]]

    def _terms_of_teacher(
        self,
        states: Sequence[Tensor],
        outputs: Sequence[StudentOutput],
        target: Tensor,
        at: Tensor,
        teacher: TeacherOutputs | None,
    ) -> Iterator[tuple[str, float, Tensor]]:
        if self.compression is None or teacher is None:
            return
        wanted = _states(teacher.outputs, at)
        wanted_matrices, _ = self._candidates(teacher.outputs, target)
        matrices, _ = self._candidates(outputs, target)
        assert isinstance(self.recommendation, Softmax)
        known = [
            None if mask is None else self.recommendation.among(mask[:, None], target)[0][:, 0]
            for mask in teacher.known or ()
        ]
        found = [
            self.compression(
                h,
                matrix,
                wanted,
                wanted_matrices,
                teacher.inference,
                weights=teacher.weights,
                known=known or None,
            )
            for h, matrix in zip(states, matrices, strict=True)
        ]
        for name, weight in self.compression.weights.items():
            yield name, weight, _mean(each[name] for each in found)

    def _terms_of_neighbours(
        self,
        states: Sequence[Tensor],
        outputs: Sequence[StudentOutput],
        target: Tensor,
        batch: Batch,
    ) -> Iterator[tuple[str, float, Tensor]]:
        if self.neighbours is None or not batch.soft_share:
            return
        shares = batch.member_shares or [1.0] * len(outputs)
        found = (
            share * global_mean(self.neighbours(h, out.item_matrix, target), len(target))
            for h, out, share in zip(states, outputs, shares, strict=True)
        )
        yield "neighbours", batch.soft_share, _mean(found)


def _states(outputs: Sequence[StudentOutput], at: Tensor) -> list[Tensor]:
    """N states [V * B, L, D] at M positions, [M, D] each."""
    return [out.hidden.flatten(0, 1).index_select(0, at) for out in outputs]


def _mean(values: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
