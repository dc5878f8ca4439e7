"""RecTools from a log to everybody's list in a parquet file: what a user writes.

Runs in RecTools' own environment (see `benchmarks/front_door.py`), so it imports nothing of mmkd.
"""

from pathlib import Path

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def read(folder: Path) -> Dataset:
    """The log."""
    log = pd.read_csv(folder / "interactions.csv.gz")
    log = log.rename(columns={"timestamp": Columns.Datetime}).assign(weight=1)
    log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s")
    return Dataset.construct(log)


def fit(data: Dataset, out: Path, *, epochs: int, batch: int, length: int) -> SASRecModel:
    """A trained network; nothing is validated or tested."""
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


def recommend(model: SASRecModel, data: Dataset, path: Path, *, k: int) -> None:
    """Everybody's list."""
    users = data.user_id_map.external_ids
    lists = model.recommend(users, data, k=k, filter_viewed=True)
    lists.to_parquet(path)
