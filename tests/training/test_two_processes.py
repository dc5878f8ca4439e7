"""Trainings that two processes share, over gloo: they go on, agree and wait for nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.processes import rank, together
from training.tiny import ITEMS, LENGTH, tiny_distiller, tiny_split, tiny_step

from mmkd import GBCE, NextItem, SampledSoftmax, Trainer, TrainingArguments
from mmkd.losses.recommendation import RecommendationLoss
from mmkd.training.loop import TrainReport


def fit(
    folder: Path,
    *,
    epochs: int,
    resume: bool = False,
    correlation: Sequence[float] = (1.0,),
    recommendation: RecommendationLoss | None = None,
) -> TrainReport:
    """A tiny training, whose weights this process then lays down beside it.

    Args:
        folder: Of the training.
        epochs: How many.
        resume: From its checkpoint.
        correlation: By network what the correlations of its tables count.
        recommendation: The loss; a sampled one steps rows, and nothing is distilled. None takes the
            softmax.
    """
    distiller = tiny_distiller()
    rows = recommendation is not None
    step = tiny_step(
        distiller, correlation=correlation, recommendation=recommendation, distil=not rows
    )
    arguments = TrainingArguments(
        epochs=epochs,
        batch_size=8,
        lr=0.01,
        max_length=LENGTH,
        gradient_clip=1.0 if rows else None,
        tables="rows" if rows else "auto",
        threads=1,
        cpu=True,
    )
    report = Trainer(arguments).fit(
        step.student,
        step.objective,
        tiny_split(),
        task=NextItem(),
        distiller=distiller,
        folder=folder,
        resume=resume,
    )
    save_file(
        {name: value.clone() for name, value in step.student.state_dict().items()},
        folder / f"kept-{rank()}.safetensors",
    )
    return report


def _resumed(folder: Path) -> None:
    first = fit(folder, epochs=1)
    report = fit(folder, epochs=4, resume=True)
    assert report.best_epoch > first.best_epoch == 0  # the best weights are others than at first


@pytest.mark.slow
def test_a_resumed_training_knows_its_best_weights_in_every_process(tmp_path: Path) -> None:
    together(_resumed, tmp_path)
    kept, one, other = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("student", "kept-0", "kept-1")
    )
    for name, value in kept.items():
        assert torch.equal(one[name], value) and torch.equal(other[name], value), name


def _without_correlations(folder: Path) -> None:
    for name, shares in (("all", [0.0, 0.0]), ("one", [0.0, 1.0])):
        (folder / name).mkdir(exist_ok=True)
        report = fit(folder / name, epochs=2, correlation=shares)
        assert ("holistic.text" in report.history[-1]["losses"]) == (name == "one")


@pytest.mark.slow
def test_networks_whose_correlations_count_nothing_wait_for_no_head(tmp_path: Path) -> None:
    together(_without_correlations, tmp_path)
    for name in ("all", "one"):
        one, other = (load_file(tmp_path / name / f"kept-{n}.safetensors") for n in (0, 1))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def _by_rows(folder: Path) -> None:
    counts = torch.arange(ITEMS + 1)
    for kind, loss in (
        ("softmax", SampledSoftmax(train_counts=counts, negatives=6)),
        ("gbce", GBCE(train_counts=counts, negatives=3)),
    ):
        place = folder / kind
        place.mkdir(exist_ok=True, parents=True)
        report = fit(place, epochs=3, correlation=[1.0, 0.0], recommendation=loss)
        losses = [record["losses"]["total"] for record in report.history]
        (place / f"losses-{rank()}.json").write_text(json.dumps(losses))


def test_rows_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    together(_by_rows, tmp_path / "two")
    _by_rows(tmp_path / "one")
    for kind in ("softmax", "gbce"):
        one, other = (load_file(tmp_path / "two" / kind / f"kept-{n}.safetensors") for n in (0, 1))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
        assert json.loads((tmp_path / "two" / kind / "losses-0.json").read_text()) == pytest.approx(
            json.loads((tmp_path / "one" / kind / "losses-0.json").read_text()), abs=1e-4
        )
