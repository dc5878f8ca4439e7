"""What a tracker is given: the run's figures, as in its history, and the whole recipe."""

import json
from pathlib import Path

import pytest
import yaml
from synthetic_runs import write_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmkd import TrainingArguments, load_recipe
from mmkd.errors import TrainingError
from mmkd.pipeline.train import train
from mmkd.training.arguments import TRACKERS
from mmkd.training.progress import check_installed, flat_config


def test_tensorboard_gets_each_epochs_record_and_the_recipe(tmp_path: Path) -> None:
    overrides = [*write_data(tmp_path), "training.trackers=[tensorboard]"]
    train(load_recipe("quickstart", overrides), folder=tmp_path / "run")

    history = json.loads((tmp_path / "run" / "history.json").read_text("utf-8"))
    assert len(history) == 2
    (events,) = (tmp_path / "run" / "quickstart").glob("events.out.tfevents.*")
    seen = EventAccumulator(str(events))
    seen.Reload()
    for tag, section, key in (
        ("losses/total", "losses", "total"),
        ("valid/NDCG@10", "valid", "NDCG@10"),
        ("valid/retention.text.spearman", "valid", "retention.text.spearman"),
    ):
        found = {event.step: event.value for event in seen.Scalars(tag)}
        wanted = {record["epoch"] + 1: record[section][key] for record in history}
        assert found == pytest.approx(wanted, rel=1e-5)

    (written,) = (tmp_path / "run").rglob("hparams.yml")
    config = yaml.safe_load(written.read_text("utf-8"))
    assert config["name"] == "quickstart" and config["training.epochs"] == 2
    assert config["student.backbone.kind"] == "sasrec"


def test_a_configuration_is_flat_and_loses_nothing() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "e": None, "f": True, "g": {}, "h": "text"}
    flat = {"a.b.c": 1, "a.d": '[1, "x"]', "e": "null", "f": True, "g": "{}", "h": "text"}
    assert flat_config(nested) == flat


def test_all_of_accelerates_trackers_may_be_named() -> None:
    assert {"aim", "comet_ml", "mlflow", "tensorboard", "trackio", "wandb"} <= set(TRACKERS)
    assert TrainingArguments(trackers=TRACKERS).trackers == TRACKERS
    with pytest.raises(ValueError, match=r"trackers: got 'mlflo', wanted .*did you mean 'mlflow'"):
        TrainingArguments(trackers=["mlflo"])


def test_one_that_is_not_installed_is_told_with_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmkd.training.progress.get_available_trackers", lambda: ["wandb"])
    check_installed(["wandb"])
    with pytest.raises(TrainingError, match=r"comet_ml is not installed; .*pip install comet-ml,"):
        check_installed(["wandb", "comet_ml"])
