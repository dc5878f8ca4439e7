"""What `scale.py` measures: a step, a batch of an evaluation, draws, each of so many items.

A step is what the trainer does in one: cut the batch, draw negatives, forward, backward, step. Its
sequences are all of full length and hold no item twice more often than chance has it, which is the
dearest case: a real batch names fewer items.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.child import Trial
from mmkd.data import Cases, SequenceSplit
from mmkd.data.batches import BatchStream
from mmkd.data.tasks import NextItem
from mmkd.evaluation import Evaluator
from mmkd.losses.negatives import NegativeSampler
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import SampledSoftmax
from mmkd.student import Ensemble, FusedItemEmbedding, Recommender
from mmkd.student.backbones.transformer import SASRec
from mmkd.student.recommender import settled
from mmkd.student.rows import TableShards, TeacherRows
from mmkd.training.arguments import TrainingArguments
from mmkd.training.optimizer import NoAsynchrony
from mmkd.training.step import Stepping, TrainStep


def step(
    *,
    items: int,
    batch: int,
    length: int,
    width: int,
    negatives: int,
    tables: str,
    modalities: tuple[str, ...] = ("text", "image"),
) -> Trial:
    """A training step of a two-layer SASRec on ids, text and image.

    Args:
        items: I.
        batch: Sequences.
        length: Events each.
        width: Of the tables.
        negatives: Of the sampled softmax, by popularity.
        tables: ``rows``, ``sharded`` or ``dense``, as ``training.tables``.
        modalities: Beside the ids.
    """
    accelerator = Accelerator(cpu=True)
    generator = np.random.default_rng(0)
    split = _split(generator, items, users=8 * batch, events=length + 1)
    loss = SampledSoftmax(train_counts=split.train_counts(), negatives=negatives)
    shards = None
    if tables == "sharded" and accelerator.num_processes > 1:
        shards = TableShards(items)
    student = _student(items, width, length, modalities, shards)
    module = TrainStep(student, Objective(loss))
    rows = tables != "dense"
    stream = BatchStream(
        split,
        NextItem(),
        max_length=length,
        batch_size=batch,
        seed=0,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        negatives=loss.draw if rows else None,
    )
    stepping = Stepping(
        TrainingArguments(batch_size=batch, max_length=length),
        module,
        NoAsynchrony(),
        accelerator,
        batches=len(stream),
        rows=rows,
    )
    batches = (one for epoch in range(10**6) for one in stream.epoch(epoch))
    module.train()
    at = 0

    def run() -> float:
        nonlocal at
        losses = stepping.backward(next(batches), {}, group=1, last=True)
        stepping.check_finite(epoch=0, step=at, kept="")
        stepping.apply(step=at, epoch=0)
        at += 1
        return float(losses["total"])

    one = next(stream.epoch(0))
    notes = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "rows_touched": len(one.touched(items)),
        "supervised": int(one.targets.count_nonzero()),
    }
    return _timed(run, notes)


def evaluation(
    *,
    items: int,
    cases: int,
    length: int,
    width: int,
    modalities: tuple[str, ...] = ("text", "image"),
) -> Trial:
    """Ranks and lists of so many cases by the same student, its table fused once before."""
    generator = np.random.default_rng(0)
    split = _split(generator, items, users=cases, events=length + 1)
    student = _student(items, width, length, modalities)
    before = settled(student)
    began = time.perf_counter()
    before.__enter__()  # for as long as the process lives
    fused_s = time.perf_counter() - began
    evaluator = Evaluator()

    def run() -> float:
        return float(evaluator.ranks(student, split, split.valid).rank.mean())

    return _timed(run, {"fused_s": fused_s})


def sampler(*, items: int, draws: int) -> Trial:
    """Draws by popularity with how likely each was; making the sampler is noted."""
    counts = torch.from_numpy(np.random.default_rng(0).integers(0, 1000, items + 1))
    began = time.perf_counter()
    negatives = NegativeSampler(train_counts=counts)
    made_s = time.perf_counter() - began
    generator = torch.Generator().manual_seed(0)

    def run() -> float:
        return float(negatives.log_q(negatives.draw(draws, generator=generator)).mean())

    return _timed(run, {"made_s": made_s})


def _timed(run: Callable[[], float], notes: dict[str, Any]) -> Trial:
    """A trial that notes `cpu_s` too: the processor's seconds of a run, of all threads."""
    spent: list[float] = []

    def timed() -> float:
        began = time.process_time()
        found = run()
        spent.append(time.process_time() - began)
        notes["cpu_s"] = statistics.median(spent)
        return found

    return Trial(timed, notes)


def _student(
    items: int,
    width: int,
    length: int,
    modalities: tuple[str, ...],
    shards: TableShards | None = None,
) -> Ensemble:
    generator = torch.Generator().manual_seed(0)
    teachers: dict[str, TeacherRows] = {
        name: torch.randn(items + 1, width, generator=generator)
        if shards is None
        else _MadeTeacher(items, width)
        for name in modalities
    }
    embedding = FusedItemEmbedding(
        item_count=items, width=width, modalities=teachers, shards=shards
    )
    backbone = SASRec(width=width, max_length=length)
    return Ensemble([Recommender(embedding=embedding, backbone=backbone)])


class _MadeTeacher:
    """Rows of a teacher that are made when they are asked for, as those of one on the disk."""

    ndim = 2

    def __init__(self, items: int, width: int) -> None:
        self.shape = torch.Size([items + 1, width])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        first, end, _ = rows.indices(len(self))
        generator = torch.Generator().manual_seed(first)
        return torch.randn(end - first, self.shape[1], generator=generator)


def _split(generator: np.random.Generator, items: int, *, users: int, events: int) -> SequenceSplit:
    """Users of so many events, the last to validate on; any item as likely as another."""
    everyone = np.arange(users)
    ends = np.full(users, events)
    return SequenceSplit(
        items=generator.integers(1, items + 1, users * events),
        offsets=np.arange(users + 1) * events,
        train_end=ends,
        valid=Cases(everyone, ends - 1),
        test=Cases(everyone[:0], ends[:0]),
        item_count=items,
    )
