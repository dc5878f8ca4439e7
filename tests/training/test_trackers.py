"""What a tracker is given: the same figures as the run folder's history."""

import json
from pathlib import Path

import pytest
from synthetic_runs import write_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmkd.config.recipe import load_recipe
from mmkd.pipeline.train import train


def test_tensorboard_gets_each_epochs_record(tmp_path: Path) -> None:
    overrides = [*write_data(tmp_path), "training.trackers=[tensorboard]"]
    train(load_recipe("quickstart", overrides), folder=tmp_path / "run")

    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    seen = EventAccumulator(str(events))
    seen.Reload()
    history = json.loads((tmp_path / "run" / "history.json").read_text("utf-8"))
    assert len(history) == 2
    for tag, section, key in (
        ("losses/total", "losses", "total"),
        ("valid/NDCG@10", "valid", "NDCG@10"),
        ("valid/retention.text.spearman", "valid", "retention.text.spearman"),
    ):
        told = {event.step: event.value for event in seen.Scalars(tag)}
        wanted = {record["epoch"] + 1: record[section][key] for record in history}
        assert told == pytest.approx(wanted, rel=1e-5)
