"""A student, a teacher and a log small enough to train in a second, for tests of the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd import (
    CorrelationDistiller,
    CorrelationLoss,
    Ensemble,
    FusedItemEmbedding,
    NextItem,
    Objective,
    Recommender,
    SequenceSplit,
    Softmax,
    Trainer,
    TrainingArguments,
)
from mmkd.data.batches import BatchStream
from mmkd.data.splits import Cases
from mmkd.losses.recommendation import RecommendationLoss
from mmkd.student import build_backbone
from mmkd.training.loop import Loop, TrainReport
from mmkd.training.optimizer import AsynchronousUpdate, NoAsynchrony
from mmkd.training.step import TrainStep

ITEMS, WIDTH, LENGTH = 20, 8, 6


@dataclass(frozen=True)
class Teacher:
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]


def tiny_split(users: int = 30, *, equal: bool = False) -> SequenceSplit:
    """Users walk along a circle of items, so that the next one can be learnt."""
    rng = np.random.default_rng(0)
    lengths = np.full(users, 8) if equal else rng.integers(5, 12, users)
    starts = rng.integers(0, ITEMS, users)
    walks = [(start + np.arange(n)) % ITEMS + 1 for start, n in zip(starts, lengths, strict=True)]
    everyone = np.arange(users)
    return SequenceSplit(
        items=np.concatenate(walks),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        train_end=lengths - 2,
        valid=Cases(everyone, lengths - 2),
        test=Cases(everyone, lengths - 1),
        item_count=ITEMS,
    )


def tiny_distiller(*, max_pairs: int | None = None) -> CorrelationDistiller:
    vectors = np.random.default_rng(1).normal(size=(ITEMS + 1, 12)).astype(np.float32)
    present = np.ones(ITEMS + 1, dtype=np.bool_)
    present[[0, 5]] = False
    vectors[~present] = 0
    distiller = CorrelationDistiller(
        dim=WIDTH, facets=2, codes=4, sampled_pairs=200, max_pairs=max_pairs
    )
    return distiller.fit({"text": Teacher(vectors, present)})


def tiny_step(
    distiller: CorrelationDistiller,
    *,
    dropout: float = 0.0,
    distil: bool = True,
    correlation: Sequence[float] = (1.0,),
    recommendation: RecommendationLoss | None = None,
) -> TrainStep:
    """The same weights at every call; the global random state afterwards is the same too.

    There are as many networks as shares of ``correlation``.
    """
    torch.manual_seed(5)
    networks = [_tiny_network(distiller, dropout) for _ in correlation]
    weights: dict[str, Any] = {"holistic_weight": 0.4, "dissected_weight": 0.1}
    losses = CorrelationLoss.of(distiller, width=WIDTH, **weights) if distil else None
    objective = Objective(
        recommendation or Softmax(), correlation=losses, correlation_shares=correlation
    )
    return TrainStep(Ensemble(networks), objective)


def _tiny_network(distiller: CorrelationDistiller, dropout: float) -> Recommender:
    embedding = FusedItemEmbedding(
        item_count=ITEMS,
        width=WIDTH,
        modalities=distiller.reduced,
        present=distiller.present,
        dropout=dropout,
    )
    backbone = build_backbone(
        "sasrec", width=WIDTH, max_length=LENGTH, layers=1, heads=2, dropout=dropout
    )
    return Recommender(embedding=embedding, backbone=backbone)


def tiny_fit(
    folder: Path | None,
    options: Mapping[str, Any],
    loss: RecommendationLoss,
    *,
    asynchronous: AsynchronousUpdate | None = None,
    resume: bool = False,
) -> tuple[TrainReport, TrainStep]:
    """A training of two networks by ``Trainer``, with KDSR's losses of their tables."""
    distiller = tiny_distiller()
    step = tiny_step(distiller, recommendation=loss, correlation=(1.0, 1.0))
    chosen = {"batch_size": 8, "lr": 0.01, "max_length": LENGTH, **options}
    report = Trainer(TrainingArguments(**chosen, threads=1, cpu=True)).fit(
        step.student,
        step.objective,
        tiny_split(),
        task=NextItem(),
        distiller=distiller,
        folder=folder,
        asynchronous=asynchronous,
        resume=resume,
    )
    return report, step


def tiny_stream(split: SequenceSplit, batch_size: int) -> BatchStream:
    return BatchStream(split, NextItem(), max_length=LENGTH, batch_size=batch_size, seed=3)


@dataclass
class TinyRun:
    """One run's parts; `fit` may be called once."""

    folder: Path
    options: Mapping[str, Any]
    asynchronous: AsynchronousUpdate = field(default_factory=NoAsynchrony)
    dropout: float = 0.0
    distil: bool = True
    equal: bool = False
    validate: Callable[[], Mapping[str, float]] | None = None
    before_batch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        self.split = tiny_split(equal=self.equal)
        self.distiller = tiny_distiller(max_pairs=20)
        self.step = tiny_step(self.distiller, dropout=self.dropout, distil=self.distil)
        defaults: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01}
        chosen = {**defaults, **self.options}
        self.trainer = Trainer(TrainingArguments(**chosen, max_length=LENGTH, threads=1, cpu=True))
        self.batches = 0

    def targets(self, items: Tensor, generator: torch.Generator) -> Mapping[str, Any]:
        if self.before_batch is not None:
            self.before_batch(self.batches)
        self.batches += 1
        return self.distiller.targets(items, generator=generator) if self.distil else {}

    def next_item_accuracy(self) -> dict[str, float]:
        """How likely the next item of the circle is, after any single item."""
        student = self.step.student
        items = torch.arange(1, ITEMS + 1)
        scores = student.score([out.hidden[:, -1] for out in student(items[:, None])])
        chance = scores.softmax(-1)[torch.arange(ITEMS), items % ITEMS + 1]
        return {"NDCG@10": float(chance.mean())}

    def fit(self, *, resume: bool = False) -> TrainReport:
        arguments = self.trainer.arguments
        loop = Loop(
            arguments,
            self.step,
            tiny_stream(self.split, arguments.batch_size),
            self.asynchronous,
            self.trainer.accelerator(folder=self.folder),
            self.folder,
        )
        return loop.run(self.targets, self.validate or self.next_item_accuracy, resume=resume)

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.step.state_dict().items()}
