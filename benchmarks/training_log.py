"""The events every side of `benchmarks/sasrec.py` trains on, as one CSV.

Leave-one-out: each user's last two events are held out, the others train, in time order. Users and
items become the numbers 1..U and 1..I; only items that train are counted, as the peers do.
"""

from pathlib import Path

import numpy as np
import polars as pl

from mmkd.data import Cases, SequenceSplit


def write_training_log(folder: Path, path: Path) -> None:
    """Write user_id, item_id, timestamp of the training events.

    Args:
        folder: holds interactions.csv or interactions.csv.gz with those columns.
        path: the CSV to write.

    Raises:
        FileNotFoundError: no such file.
    """
    found = [p for p in (folder / "interactions.csv.gz", folder / "interactions.csv") if p.exists()]
    if not found:
        raise FileNotFoundError(f"{folder}: no interactions.csv(.gz); pass the folder by --data.")
    events = pl.read_csv(found[0]).sort("user_id", "timestamp", maintain_order=True)
    number = pl.int_range(pl.len()).over("user_id")
    events = events.filter(number < pl.len().over("user_id") - 2)
    events.select(
        pl.col("user_id").rank("dense"), pl.col("item_id").rank("dense"), number.alias("timestamp")
    ).write_csv(path)


def read_split(path: Path) -> SequenceSplit:
    """The same log as a split in which everything trains."""
    events = pl.read_csv(path).sort("user_id", "timestamp", maintain_order=True)
    items = events["item_id"].to_numpy().astype(np.int64)
    counts = np.bincount(events["user_id"].to_numpy())[1:]
    none = Cases(np.empty(0, np.int64), np.empty(0, np.int64))
    return SequenceSplit(
        items=items,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        train_end=counts,
        valid=none,
        test=none,
        item_count=int(items.max()),
    )
