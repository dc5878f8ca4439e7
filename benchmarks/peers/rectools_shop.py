"""RecTools from a log to everybody's list in a parquet file: seconds of each phase as a JSON line.

Runs in RecTools' own environment (see `benchmarks/front_door.py`), so it imports nothing of mmkd.
The three functions are what a user writes; their lines are counted.
"""

import argparse
import importlib.metadata
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def read(folder: Path) -> Dataset:
    log = pd.read_csv(folder / "interactions.csv.gz")
    log = log.rename(columns={"timestamp": Columns.Datetime}).assign(weight=1)
    log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s")
    return Dataset.construct(log)


def fit(data: Dataset, *, epochs: int, batch: int, length: int) -> SASRecModel:
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=length,
        dropout_rate=0.4,
        lr=2e-3,
        batch_size=batch,
        epochs=epochs,
    )
    return model.fit(data)


def recommend(model: SASRecModel, data: Dataset, *, k: int, out: Path) -> None:
    users = data.user_id_map.external_ids
    lists = model.recommend(users, data, k=k, filter_viewed=True)
    lists.to_parquet(out)


def main() -> None:
    """Parse the command line, do the job, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of interactions.csv.gz")
    parser.add_argument("out", type=Path, help="folder to write to")
    for name in ("epochs", "batch", "length", "k", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    path, seconds, cpu_seconds = options.out / "lists.parquet", {}, {}

    def clocked(name: str, task: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = task()
        seconds[name], cpu_seconds[name] = time.perf_counter() - wall, time.process_time() - cpu
        return found

    sizes = {name: getattr(options, name) for name in ("epochs", "batch", "length")}
    data = clocked("read", lambda: read(options.data))
    model = clocked("fit", lambda: fit(data, **sizes))
    clocked("recommend", lambda: recommend(model, data, k=options.k, out=path))
    epoch = seconds["fit"] / options.epochs
    reply = {
        "version": importlib.metadata.version("rectools"),
        "seconds": seconds | {"epoch": epoch},
        "cpu_seconds": cpu_seconds,
        "rows": len(pd.read_parquet(path)),
    }
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
