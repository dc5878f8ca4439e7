"""`Trainer.fit` as a notebook calls it: it builds what a training needs, and leaves no traces."""

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.tiny import LENGTH, tiny_distiller, tiny_split, tiny_step

from mmkd import CorrelationDistiller, MaskedItem, NextItem, Trainer, TrainingArguments
from mmkd.errors import CheckpointError, TrainingError, TrainingInterrupted
from mmkd.evaluation.evaluator import Evaluator
from mmkd.training.loop import TrainReport
from mmkd.training.optimizer import Interval, Ramp
from mmkd.training.step import TrainStep


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "max_length": LENGTH}
    return Trainer(TrainingArguments(**{**defaults, **options}, threads=1, cpu=True))


def fit(step: TrainStep, distiller: CorrelationDistiller | None, **options: Any) -> TrainReport:
    arguments = options.pop("arguments", {})
    given: dict[str, Any] = {"task": NextItem(), "distiller": distiller, **options}
    return trainer(**arguments).fit(step.student, step.objective, tiny_split(), **given)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with temporary files beside it."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


def traces(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_student_learns_and_nothing_is_left_behind(nowhere: Path) -> None:
    distiller = tiny_distiller()
    step = tiny_step(distiller)
    report = fit(step, distiller, arguments={"epochs": 12})
    first, last = report.history[0], report.history[-1]
    assert last["losses"]["recommendation"] < 0.6 * first["losses"]["recommendation"]
    assert last["valid"]["NDCG@10"] == report.best_metric > 0.8
    assert 0.99 < report.retention_at_start["retention.text.spearman"] <= 1.0
    assert last["valid"].keys() >= report.retention_at_start.keys()
    assert not step.student.training and not traces(nowhere)


def test_one_network_need_not_be_an_ensemble(nowhere: Path) -> None:
    distiller = tiny_distiller()
    one, several = tiny_step(distiller), tiny_step(distiller)
    [network] = one.student.networks
    wanted = fit(several, distiller)
    report = trainer().fit(
        network, one.objective, tiny_split(), task=NextItem(), distiller=distiller
    )
    assert [r["losses"] for r in report.history] == [r["losses"] for r in wanted.history]
    for name, value in several.student.networks[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


def test_a_seed_is_a_run(nowhere: Path) -> None:
    def losses(seed: int) -> list[Any]:
        distiller = tiny_distiller()
        report = fit(tiny_step(distiller, dropout=0.3), distiller, seed=seed)
        return [record["losses"] for record in report.history]

    assert losses(1) == losses(1) != losses(2)


def test_a_folder_keeps_what_a_run_resumes_from(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts() -> tuple[TrainStep, CorrelationDistiller, dict[str, Any]]:
        distiller = tiny_distiller()
        options = {"asynchronous": Ramp(milestones=(1, 2)), "evaluator": Evaluator(ks=(10,))}
        return tiny_step(distiller, dropout=0.3), distiller, options

    step, distiller, options = parts()
    wanted = fit(step, distiller, **options)

    stopped, distiller, options = parts()
    original, seen = distiller.targets, [0]

    def interrupting(items: Tensor, **rest: Any) -> Any:
        seen[0] += 1
        if seen[0] == 6:
            signal.raise_signal(signal.SIGINT)
        return original(items, **rest)

    monkeypatch.setattr(distiller, "targets", interrupting)
    with pytest.raises(TrainingInterrupted, match="continue with --resume"):
        fit(stopped, distiller, folder=nowhere / "run", **options)

    resumed, distiller, options = parts()
    report = fit(resumed, distiller, folder=str(nowhere / "run"), resume=True, **options)
    assert [r["valid"] for r in report.history] == [r["valid"] for r in wanted.history]
    assert report.retention_at_start == wanted.retention_at_start
    assert not traces(nowhere / "work") and not traces(nowhere / "temporary")


def test_interrupted_without_a_folder_it_says_what_would_have_kept_it(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller = tiny_distiller()
    original = distiller.targets

    def interrupting(items: Tensor, **rest: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return original(items, **rest)

    monkeypatch.setattr(distiller, "targets", interrupting)
    with pytest.raises(TrainingInterrupted, match="stopped in epoch 1; give a folder to continue"):
        fit(tiny_step(distiller), distiller)
    assert not traces(nowhere)


def test_one_process_trains_in_one_precision_after_the_other(nowhere: Path) -> None:
    for precision in ("no", "bf16", "no"):
        distiller = tiny_distiller()
        options = {"precision": precision, "epochs": 1}
        report = fit(tiny_step(distiller), distiller, arguments=options)
        assert math.isfinite(report.history[0]["losses"]["total"])


def test_without_a_teacher_a_student_just_learns_to_recommend(nowhere: Path) -> None:
    step = tiny_step(tiny_distiller(), distil=False)
    report = fit(step, None, arguments={"epochs": 1})
    assert report.retention_at_start == {} and set(report.history[0]["losses"]) == {
        "total",
        "recommendation",
    }


def test_parts_that_do_not_fit_are_refused(nowhere: Path) -> None:
    distiller = tiny_distiller()
    step = tiny_step(distiller)
    with pytest.raises(TrainingError, match=r"task: got MaskedItem, wanted NextItem: .* causal"):
        fit(step, distiller, task=MaskedItem())
    with pytest.raises(TrainingError, match=r"correlation loss for text, .*give the distiller"):
        fit(step, None)
    with pytest.raises(TrainingError, match="got a teacher, but no compression; give both"):
        fit(step, distiller, teacher=tiny_step(distiller).student)
    with pytest.raises(TrainingError, match="folder: got none, wanted a place for checkpoints"):
        fit(step, distiller, resume=True)
    with pytest.raises(TrainingError, match="folder: got none, wanted a place for the trackers'"):
        fit(step, distiller, arguments={"trackers": ["tensorboard"]})


def test_a_trackers_files_go_into_the_folder(nowhere: Path) -> None:
    distiller = tiny_distiller()
    options = {"trackers": ["tensorboard"], "epochs": 1}
    fit(tiny_step(distiller), distiller, arguments=options, folder=nowhere / "run")
    assert list((nowhere / "run").rglob("events.out.tfevents.*"))
    assert not traces(nowhere / "work")


def test_a_student_of_another_catalogue_is_refused_before_it_trains(nowhere: Path) -> None:
    distiller = tiny_distiller()
    step = tiny_step(distiller)
    other = replace(tiny_split(), item_count=tiny_split().item_count + 1)
    with pytest.raises(TrainingError, match=r"made for \d+ items, but the data has \d+"):
        trainer().fit(step.student, step.objective, other, task=NextItem(), distiller=distiller)


def test_resuming_with_other_arguments_is_refused_and_more_epochs_go_on(tmp_path: Path) -> None:
    distiller = tiny_distiller()

    def again(**arguments: Any) -> TrainReport:
        step = tiny_step(distiller)
        return fit(step, distiller, arguments=arguments, folder=tmp_path, resume=True)

    fit(tiny_step(distiller), distiller, arguments={"epochs": 1}, folder=tmp_path)
    for name, value in {"optimizer": "sgd", "batch_size": 4, "lr": 0.02}.items():
        with pytest.raises(CheckpointError, match=f"written with another {name};"):
            again(**{name: value})
    report = again(epochs=3, patience=7)
    assert [record["epoch"] for record in report.history] == [0, 1, 2]
    fewer = again(epochs=2)
    assert fewer.stopped == "epochs" and len(fewer.history) == 3


def test_resuming_with_another_asynchrony_is_told(tmp_path: Path) -> None:
    distiller = tiny_distiller()
    fit(tiny_step(distiller), distiller, arguments={"epochs": 1}, folder=tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        fit(
            tiny_step(distiller),
            distiller,
            folder=tmp_path,
            resume=True,
            asynchronous=Interval(every=2),
        )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": 2.5}, "epochs: got 2.5, wanted a whole number"),
        ({"epochs": "3"}, "epochs: got '3', wanted at least 1"),
        ({"weight_decay": None}, "weight_decay: got None, wanted 0 or more"),
        ({"betas": (0.9,)}, r"betas: got \(0.9,\), wanted two"),
        ({"trackers": "wanb"}, "trackers: got 'wanb', wanted one of"),
    ],
)
def test_a_wrong_type_in_a_notebook_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainingArguments(**options)
