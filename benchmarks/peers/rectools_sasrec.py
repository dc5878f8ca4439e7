"""RecTools' SASRec, timed an epoch at a time: a training log to one JSON line.

Runs in RecTools' own environment (see `benchmarks/sasrec.py`), so it imports nothing of mmkd.
A sequence is a user's last L + 1 events, always padded to L; every position is a target.
"""

import argparse
import importlib.metadata
import json
import resource
import time
import warnings
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet


class EpochClock(Callback):  # type: ignore[misc]
    """Seconds, steps and targets of each epoch, from its first batch to its last step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.steps = self.whole = 0
        self.targets = 0
        self.sequences = 0
        self.parameters = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self.steps = self.targets = self.sequences = 0
        self.parameters = sum(p.numel() for p in pl_module.torch_model.parameters())
        loader = trainer.train_dataloader
        self.whole = -(-len(loader.dataset) // loader.batch_size)
        self.started = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """Count what the batch trains on."""
        self.steps += 1
        self.sequences += len(batch["y"])
        self.targets += int((batch["y"] != 0).sum())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        seconds = time.perf_counter() - self.started
        self.seconds.append(seconds * self.whole / self.steps)


def main() -> None:
    """Parse the command line, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", help="CSV of training events: user_id, item_id, timestamp")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="sequences a batch")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many steps")
    parser.add_argument("--negatives", type=int, help="of a sampled softmax; else the full one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)

    frame = pd.read_csv(options.log)
    interactions = pd.DataFrame(
        {
            Columns.User: frame["user_id"],
            Columns.Item: frame["item_id"],
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(frame["timestamp"], unit="s"),
        }
    )

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=options.epochs,
            limit_train_batches=options.steps,
            min_epochs=options.epochs,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[EpochClock()],
        )

    model = SASRecModel(
        n_blocks=options.layers,
        n_heads=options.heads,
        n_factors=options.width,
        session_max_len=options.length,
        batch_size=options.batch,
        loss="sampled_softmax" if options.negatives else "softmax",
        n_negatives=options.negatives or 1,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(interactions))
    # the model trained with a copy of the trainer, callbacks included
    clock = next(c for c in model.fit_trainer.callbacks if isinstance(c, EpochClock))
    reply = {
        "seconds": clock.seconds,
        "version": importlib.metadata.version("rectools"),
        "sequences": clock.sequences,
        "targets": clock.targets,
        "steps": clock.whole,
        "timed_steps": clock.steps,
        "parameters": clock.parameters,
        "feedforward": options.width,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
    }
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
