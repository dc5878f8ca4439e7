"""RecBole's SASRec, timed an epoch at a time: a training log to one JSON line.

Runs in RecBole's own environment (see `benchmarks/sasrec.py`), so it imports nothing of mmkd.
A sample is a prefix padded to L with one target, its next item; the batch counts prefixes.
"""

import argparse
import importlib.metadata
import itertools
import json
import tempfile
import time
from logging import WARNING, getLogger
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def main() -> None:
    """Parse the command line, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", help="CSV of training events: user_id, item_id, timestamp")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="prefixes a batch")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many steps")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        _write_atomic(Path(options.log), Path(folder) / "log" / "log.inter")
        config = Config(
            model="SASRec",
            dataset="log",
            config_dict={
                "data_path": folder,
                "checkpoint_dir": folder,
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "MAX_ITEM_LIST_LENGTH": options.length,
                "train_batch_size": options.batch,
                "train_neg_sample_args": None,
                "loss_type": "CE",
                "hidden_size": options.width,
                "inner_size": 4 * options.width,
                "n_layers": options.layers,
                "n_heads": options.heads,
                # the whole log trains: no event is held out here a second time
                "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user"},
                "use_gpu": False,
                "show_progress": False,
                "state": "ERROR",
            },
        )
        torch.set_num_threads(options.threads)
        init_seed(0, True)
        getLogger().setLevel(WARNING)
        train = create_dataset(config).build()[0]
        loader = TrainDataLoader(config, train, None, shuffle=True)
        model = SASRec(config, train)
        trainer = Trainer(config, model)
        seconds = []
        for epoch in range(options.epochs):
            started = time.perf_counter()
            trainer._train_epoch(itertools.islice(loader, options.steps), epoch)
            seconds.append(time.perf_counter() - started)

    whole = len(loader)
    run = min(options.steps or whole, whole)
    reply = {
        "seconds": [value * whole / run for value in seconds],
        "version": importlib.metadata.version("recbole"),
        "sequences": len(train),
        "targets": len(train),
        "steps": whole,
        "timed_steps": run,
        "parameters": sum(p.numel() for p in model.parameters()),
        "feedforward": 4 * options.width,
    }
    print(json.dumps(reply))


def _write_atomic(log: Path, path: Path) -> None:
    """RecBole's own format: tab-separated, each column's type in the header."""
    path.parent.mkdir()
    lines = log.read_text().splitlines()
    body = "\n".join(line.replace(",", "\t") for line in lines[1:])
    path.write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{body}\n")


if __name__ == "__main__":
    main()
