"""mmkd from a log to everybody's list in a parquet file: what a user writes (`front_door.py`)."""

from pathlib import Path

import mmkd


def read(folder: Path) -> mmkd.Dataset:
    """Catalogue and log."""
    return mmkd.Dataset.load(folder, items="items.csv", events="interactions.csv.gz")


def fit(data: mmkd.Dataset, out: Path, *, epochs: int, batch: int, length: int) -> mmkd.Run:
    """A trained network, validated after each epoch and tested beside the baselines."""
    return mmkd.train(
        data,
        recipe="id",
        folder=out / "run",
        overrides={
            "training.epochs": epochs,
            "training.batch_size": batch,
            "training.max_length": length,
        },
    )


def recommend(run: mmkd.Run, data: mmkd.Dataset, path: Path, *, k: int) -> None:
    """Everybody's list, with titles."""
    run.recommend(users="all", k=k).write_parquet(path)
