"""mmkd's side of the benchmarks: what `mmkd.pipeline.train` puts together, without its files.

A step is what the trainer does in one: cut the batch, teacher targets on the fly, forward,
backward, AdamW.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.child import Trial
from benchmarks.training_log import read_split
from benchmarks.workload import ITEM_COUNT, MAX_LENGTH, USER_COUNT, sequences, teacher
from mmkd import __version__
from mmkd.data import Cases, SequenceSplit
from mmkd.data.batches import BatchStream
from mmkd.data.tasks import Batch, NextItem
from mmkd.distiller import CorrelationDistiller
from mmkd.losses.correlation import CorrelationLoss
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import Softmax
from mmkd.student import Ensemble, FusedItemEmbedding, Recommender
from mmkd.student.backbones.transformer import SASRec
from mmkd.training.step import TrainStep


@dataclass(frozen=True)
class Teacher:
    """Vectors of one modality, the part of an embedding table that the distiller reads."""

    vectors: NDArray[np.float32]  # [V+1, d]
    present: NDArray[np.bool_]  # [V+1]


def kdsr(
    *, width: int, batch_size: int, modalities: int, batches: int, bucketed: bool, bf16: bool
) -> Trial:
    """KDSR on a two-layer SASRec with the default losses of mmkd.

    Args:
        width: of the student and of the reduced teacher.
        batch_size: sequences a batch.
        modalities: how many teachers.
        batches: prepared batches, used in turn.
        bucketed: batches as training cuts them, of similar lengths; else mixed lengths, padded to
            the longest, which are the reference's very batches.
        bf16: autocast to bfloat16.
    """
    tables = {}
    for m in range(modalities):
        vectors = teacher(width=width, seed=m)
        tables[f"modality_{m}"] = Teacher(vectors, np.arange(len(vectors)) > 0)
    distiller = CorrelationDistiller(dim=width).fit(tables)
    embedding = FusedItemEmbedding(
        item_count=ITEM_COUNT, width=width, modalities=distiller.reduced, present=distiller.present
    )
    student = Recommender(
        embedding=embedding, backbone=SASRec(width=width, max_length=MAX_LENGTH), score_with="fused"
    )
    step = TrainStep(
        Ensemble([student]),
        Objective(Softmax(), correlation=CorrelationLoss.of(distiller, width=width)),
    )
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3, weight_decay=0.0)
    prepared = _cycle(
        [sequences(count=batch_size, seed=n) for n in range(batches)], batch_size, bucketed=bucketed
    )

    def run() -> float:
        batch = next(prepared)
        with torch.no_grad():
            targets = distiller.targets(batch.items)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss: torch.Tensor = step(batch, targets).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Trial(
        run,
        {
            "parameters": sum(p.numel() for p in step.parameters()),
            "targets_per_step": sum(len(s) - 1 for s in sequences(count=batch_size)),
            "steps_per_epoch": -(-USER_COUNT // batch_size),
        },
    )


def main() -> None:
    """One SASRec run for `benchmarks/sasrec.py`: time epochs, print one JSON line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("log", help="CSV of training events: user_id, item_id, timestamp")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="sequences a batch")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many steps")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    split = read_split(Path(options.log))
    embedding = FusedItemEmbedding(item_count=split.item_count, width=options.width, dropout=0.2)
    backbone = SASRec(
        width=options.width, max_length=options.length, layers=options.layers, heads=options.heads
    )
    student = Recommender(embedding=embedding, backbone=backbone, score_with="id")
    step = TrainStep(Ensemble([student]), Objective(Softmax()))
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3, weight_decay=0.0)
    stream = BatchStream(
        split, NextItem(), max_length=options.length, batch_size=options.batch, seed=0
    )
    whole = len(stream)
    run = min(options.steps or whole, whole)

    step.train()
    seconds = []
    targets = 0
    for epoch in range(options.epochs):
        targets = 0
        started = time.perf_counter()
        for batch in itertools.islice(stream.epoch(epoch), run):
            targets += int(batch.targets.count_nonzero())
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                loss = step(batch, {}).total
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append((time.perf_counter() - started) * whole / run)
    reply = {
        "seconds": seconds,
        "version": __version__,
        "sequences": len(stream.windows),
        "targets": targets,
        "steps": whole,
        "timed_steps": run,
        "parameters": sum(p.numel() for p in step.parameters()),
        "feedforward": 4 * options.width,
    }
    print(json.dumps(reply))


def _cycle(chosen: list[list[list[int]]], batch_size: int, *, bucketed: bool) -> Iterator[Batch]:
    """The given batches over and over; bucketed: their sequences batched anew each epoch."""
    if bucketed:
        stream = _stream([s for batch in chosen for s in batch], batch_size)
        for epoch in itertools.count():
            yield from stream.epoch(epoch)
    streams = [_stream(batch, batch_size) for batch in chosen]
    for epoch in itertools.count():
        for stream in streams:
            yield from stream.epoch(epoch)


def _stream(chosen: list[list[int]], batch_size: int) -> BatchStream:
    lengths = np.array([len(sequence) for sequence in chosen])
    none = Cases(np.empty(0, np.int64), np.empty(0, np.int64))
    split = SequenceSplit(
        items=np.concatenate(chosen).astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        train_end=lengths,
        valid=none,
        test=none,
        item_count=ITEM_COUNT,
    )
    return BatchStream(split, NextItem(), max_length=MAX_LENGTH, batch_size=batch_size, seed=0)


if __name__ == "__main__":
    main()
