"""Tuning beside sentence-transformers' own trainer, on the same pairs of a recorded log.

    pip install datasets                           # its trainer needs it
    python -m benchmarks.tune beauty-fused data.root=path/to/beauty encoders.text=minilm-packaged

Each takes its turn in a process of its own: the same weights, pairs, batches, learning rate and
loss, in-batch negatives in both directions, all of a batch at once and with cached gradients.
Seconds are those of the steps alone. On a machine that others use, seconds of the CPU are the
steadier measure.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import peak_bytes
from benchmarks.measure import environment, last_json_line, print_table, write_results
from mmkd.config.plan import plan
from mmkd.config.recipe import load_recipe
from mmkd.tuning import Tower, TrainingPairs, Tuner, TuningArguments
from mmkd.tuning.contents import Contents, Features

_MICRO = 64  # items, in both, where gradients are cached


def main() -> None:
    """Measure both, and both with cached gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pairs", type=int, default=960)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=sorted(_WAYS), help="in this process")
    options = parser.parse_args()
    if options.only:
        found = _measured(options)
        print(json.dumps(found))
        return
    rows = []
    for way in _WAYS:
        command = [sys.executable, "-m", "benchmarks.tune", *sys.argv[1:], "--only", way]
        rows.append(
            last_json_line(
                command,
                environment=environment(threads=options.threads, allocator="system"),
                timeout_s=7200,
                label=way,
            )
        )
    print_table(
        ("way", "pairs/s", "pairs/CPU s", "loss", "peak MB"),
        [
            [
                row["way"],
                f"{row['pairs'] / row['seconds']:.1f}",
                f"{row['pairs'] / row['cpu_seconds']:.1f}",
                f"{row['loss']:.3f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
            ]
            for row in rows
        ],
    )
    print(f"Wrote {write_results('tune', vars(options), rows)}.")


class _Clock:
    """Wall and CPU seconds between two moments."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)

    def begin(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.ended = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> tuple[float, float]:
        return self.ended[0] - self.began[0], self.ended[1] - self.began[1]


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    planned = plan(load_recipe(options.recipe, [*options.overrides, "training.threads=1"]))
    data, card = planned.load_data(), planned.cards["text"]
    texts: list[str] = ["" if text is None else str(text) for text in data.items.text]
    present = np.array([bool(text.strip()) for text in texts])
    pairs = TrainingPairs.of(data.split, present)
    rows = pairs.epoch(0, count=options.pairs, seed=0)
    encoder: Any = card.build()
    way, micro = _WAYS[options.only]
    clock = _Clock()
    loss = way(encoder, texts, rows, options, clock, micro)
    seconds, cpu = clock.seconds
    return {
        "way": options.only,
        "pairs": len(rows) // options.batch_size * options.batch_size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "loss": loss,
        "peak_bytes": peak_bytes(),
    }


def _ours(
    encoder: Any,
    texts: Sequence[str],
    rows: NDArray[np.int64],
    options: argparse.Namespace,
    clock: _Clock,
    micro: int | None,
) -> float:
    class Timed(Contents):
        def batches(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Features]:
            clock.begin()
            yield from super().batches(batches)

    def validate(vectors_of: object) -> dict[str, float]:
        clock.end()
        return {"NDCG@10": 1.0}

    arguments = TuningArguments(
        epochs=1,
        pairs=None,
        batch_size=options.batch_size,
        micro_batch=micro,
        threads=options.threads,
        cpu=True,
    )
    pairs = TrainingPairs(rows, np.full(len(rows), 1 / len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        tower = Tower(Timed(encoder, texts), validate)
        report = Tuner(arguments).fit({"text": tower}, pairs, folder=Path(folder))
    return float(report.history[0]["losses"]["total"])


def _theirs(
    encoder: Any,
    texts: Sequence[str],
    rows: NDArray[np.int64],
    options: argparse.Namespace,
    clock: _Clock,
    micro: int | None,
) -> float:
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    torch.set_num_threads(options.threads)
    model = encoder.model
    dataset = Dataset.from_dict(
        {"anchor": [texts[a] for a, _ in rows], "positive": [texts[b] for _, b in rows]}
    )
    both: dict[str, Any] = {
        "scale": 20.0,
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    if micro is None:
        loss: Any = losses.MultipleNegativesRankingLoss(model, **both)
    else:
        # it counts sentences of one side, ours items of both
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=micro, **both)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch_size,
            learning_rate=5e-5,
            weight_decay=0.01,
            dataloader_drop_last=True,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Timed()]
        )
        return float(trainer.train().training_loss)


_Way = Callable[
    [Any, Sequence[str], NDArray[np.int64], argparse.Namespace, _Clock, int | None], float
]
_WAYS: dict[str, tuple[_Way, int | None]] = {
    "mmkd": (_ours, None),
    "sentence-transformers": (_theirs, None),
    "mmkd, cached": (_ours, _MICRO),
    "sentence-transformers, cached": (_theirs, _MICRO),
}

if __name__ == "__main__":
    main()
