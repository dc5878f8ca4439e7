"""Trainings that two processes share, over gloo: they go on, agree and wait for nothing."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.tiny import ITEMS, LENGTH, tiny_distiller, tiny_split, tiny_step

from mmkd import GBCE, NextItem, SampledSoftmax, Trainer, TrainingArguments
from mmkd.losses.recommendation import RecommendationLoss
from mmkd.training.loop import TrainReport


def on_two(worker: Callable[[Path], None], folder: Path) -> None:
    """Call a worker in two processes that know of each other; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmkd.training.trainer"])  # imported once for all tests
    processes = [context.Process(target=_in_group, args=(worker, r, port, folder)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()  # one that waits for the other would wait forever
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def _in_group(worker: Callable[[Path], None], rank: int, port: int, folder: Path) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    worker(folder)
    torch.distributed.destroy_process_group()


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


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


def test_a_resumed_training_knows_its_best_weights_in_every_process(tmp_path: Path) -> None:
    on_two(_resumed, tmp_path)
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
    on_two(_without_correlations, tmp_path)
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
    on_two(_by_rows, tmp_path / "two")
    _by_rows(tmp_path / "one")
    for kind in ("softmax", "gbce"):
        one, other = (load_file(tmp_path / "two" / kind / f"kept-{n}.safetensors") for n in (0, 1))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
        assert json.loads((tmp_path / "two" / kind / "losses-0.json").read_text()) == pytest.approx(
            json.loads((tmp_path / "one" / kind / "losses-0.json").read_text()), abs=1e-4
        )
