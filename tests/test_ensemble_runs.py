"""Ensembles from a recipe to a run that serves, resumes, is shared by processes and compressed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_runs import BERT4REC, write_data

from mmkd.compress import compressing
from mmkd.data.synthetic import make_synthetic
from mmkd.inspection import evaluate
from mmkd.pipeline import train
from mmkd.plan import check
from mmkd.recipe import Recipe, RecipeError, load_recipe
from mmkd.serving.recommend import recommend, student_neighbours
from mmkd.serving.run_folder import RunError, RunFolder

MASKED = [
    *BERT4REC,
    "objective.recommendation={kind: masked_item, mask_ratio: 0.3, views: 2, window_step: 3}",
]
EMKD = [
    "name=emkd",
    "ensemble={members: 2}",
    "objective.attributes={weight: 1.0}",
    "objective.contrastive={intra_weight: 0.01, cross_weight: 0.01, temperature: 0.5}",
    "objective.mutual={weight: 0.1, temperature: 0.5}",
]
NEXT = ["objective.recommendation={kind: next_item, views: 2}"]
STILL = ["student.embedding.dropout=0", "student.backbone.dropout=0"]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_data(tmp_path_factory.mktemp("synthetic"))


def recipe_of(overrides: list[str], *more: str) -> Recipe:
    return load_recipe("quickstart", [*overrides, *more])


@pytest.fixture(scope="module")
def full(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """KDSR and EMKD together, on a bidirectional backbone."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    train(recipe_of(overrides, *MASKED, *EMKD), folder=folder)
    return RunFolder(folder)


def history(folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((folder / "history.json").read_text("utf-8"))
    seconds = ("train_seconds", "valid_seconds")
    return [{k: v for k, v in record.items() if k not in seconds} for record in records]


def test_weights_of_zero_and_one_network_are_bert4rec_exactly(
    overrides: list[str], tmp_path: Path
) -> None:
    nothing = [
        "ensemble={members: 1, modality_tables: own, inference: logits}",
        "objective.contrastive={intra_weight: 0, cross_weight: 0}",
        "objective.attributes={weight: 0}",
    ]
    train(recipe_of(overrides, *BERT4REC), folder=tmp_path / "plain")
    train(recipe_of(overrides, *BERT4REC, *nothing), folder=tmp_path / "nothing")
    assert history(tmp_path / "plain") == history(tmp_path / "nothing")
    first, second = (RunFolder(tmp_path / name) for name in ("plain", "nothing"))
    assert np.array_equal(first.ranks().rank, second.ranks().rank)
    for name, value in first.student().state_dict().items():
        assert torch.equal(value, second.student().state_dict()[name])


def test_a_run_has_every_term_and_its_weighted_sum(full: RunFolder) -> None:
    for record in history(full.path):
        losses = record["losses"]
        emkd = {"recommendation", "mutual", "attributes", "intra", "cross"}
        assert emkd < set(losses) and "holistic.text" in losses
        members, views = 2, 2
        wanted = losses["recommendation"] + 0.1 * losses["mutual"] / members
        wanted += losses["attributes"] / views
        wanted += 0.01 * (losses["intra"] + losses["cross"]) / (members * views)
        wanted += sum(
            {"holistic": 0.4, "dissected": 0.05}.get(name.split(".")[0], 0.0) * value
            for name, value in losses.items()
        )
        assert losses["total"] == pytest.approx(wanted, rel=1e-4)
        assert losses["mutual"] > 0


def test_a_run_keeps_all_members_their_shared_tables_once_and_the_vocabulary(
    full: RunFolder,
) -> None:
    student = full.student()
    assert len(student.members) == 2
    assert len(student.modality_tables()["text"]) == 1
    one, other = (member.backbone.state_dict() for member in student.networks)
    assert not any(torch.equal(one[name], other[name]) for name in one if "qkv.weight" in name)
    names = json.loads((full.path / "attributes.json").read_text("utf-8"))["names"]
    items = full.items()
    assert names == sorted({label for labels in items.attributes for label in labels})
    assert full.result()["parameters"] == sum(p.numel() for p in student.parameters())


def test_a_run_serves_as_it_was_tested(full: RunFolder) -> None:
    assert evaluate(full.path)["metrics"] == pytest.approx(full.result()["test"]["metrics"])
    items, student = full.items(), full.student()
    history = [items.ids[3], items.ids[8]]
    found = recommend(full, history, k=5)
    with torch.no_grad():
        mask = len(items) + 1
        outputs = student(torch.tensor([[3, 8, mask]]))
        scores = sum(
            out.hidden[0, -1] @ member.item_matrix().mT
            for out, member in zip(outputs, student.networks, strict=True)
        )
    assert isinstance(scores, torch.Tensor)
    scores[[2, 7]] = -torch.inf
    best = scores.topk(5)
    assert [row["item"] for row in found] == [items.ids[i + 1] for i in best.indices.tolist()]
    assert [row["score"] for row in found] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len(student_neighbours(full, items.ids[4], modality="text", k=3)) == 3


def test_a_next_item_backbone_takes_augmented_views(overrides: list[str], tmp_path: Path) -> None:
    options = [*NEXT, *EMKD, "ensemble.modality_tables=own", "ensemble.inference=probabilities"]
    train(recipe_of(overrides, *options), folder=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    losses = history(run.path)[-1]["losses"]
    assert {"intra", "cross", "mutual", "attributes", "holistic.text"} < set(losses)
    assert len(run.student().modality_tables()["text"]) == 2
    assert evaluate(run.path)["metrics"] == pytest.approx(run.result()["test"]["metrics"])


def test_two_processes_equal_one(overrides: list[str], tmp_path: Path) -> None:
    """The negatives are those of all processes, so the losses are a single one's."""
    changes = [*overrides, *MASKED, *EMKD, *STILL, "training.batch_size=49"]
    train(load_recipe("quickstart", changes), folder=tmp_path / "one")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["mmkd", "train", "quickstart", *changes, "--out", str(tmp_path / "two")]
    subprocess.run(
        [sys.executable, *launch, "-m", *command],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        timeout=300,
    )
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
        assert two["gradient_norms"] == pytest.approx(one["gradient_norms"], rel=0.02, abs=1e-4)


def test_compression_trains_one_network_towards_the_ensemble(
    full: RunFolder, tmp_path: Path
) -> None:
    recipe = compressing(full, ["training.epochs=4"])
    assert recipe.name == "emkd-compressed"
    train(recipe, folder=tmp_path / "small")
    small = RunFolder(tmp_path / "small")
    student = small.student()
    assert len(student.members) == 1
    losses = [record["losses"] for record in history(small.path)]
    assert {"recommendation", "compression", "compression.states"} < set(losses[0])
    assert losses[-1]["compression"] < losses[0]["compression"]
    assert "intra" not in losses[0] and "mutual" not in losses[0]
    # the teacher is no part of what is kept, and not needed any more
    moved = tmp_path / "recipe.yaml"
    gone = {"teacher": "gone"}
    small.recipe.rename(moved)
    load_recipe(str(moved), [f"objective.compression={json.dumps(gone)}"]).save(small.recipe)
    assert evaluate(small.path)["metrics"] == pytest.approx(small.result()["test"]["metrics"])
    assert small.result()["parameters"] < full.result()["parameters"]


def test_an_unfinished_run_is_not_compressed(full: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", "utf-8")
    with pytest.raises(RunError, match=r"is not finished; train it to its end first"):
        compressing(RunFolder(tmp_path))


def test_a_teacher_of_other_items_or_another_kind_is_refused(
    full: RunFolder, overrides: list[str], tmp_path: Path
) -> None:
    teacher = f"objective.compression.teacher={full.path}"
    with pytest.raises(RunError, match=r"bidirectional and the student's are not"):
        train(recipe_of(overrides, teacher), folder=tmp_path / "run")
    with pytest.raises(RunError, match=r"reads at most 12 items; set training\.max_length to 12"):
        longer = [*MASKED, teacher, "training.max_length=20"]
        train(recipe_of(overrides, *longer), folder=tmp_path / "run", overwrite=True)
    make_synthetic(tmp_path / "data", items=130, users=200)
    other = [*overrides, f"data.root={tmp_path / 'data'}", *MASKED, teacher]
    with pytest.raises(RunError, match=r"another catalogue.*train the teacher on this data"):
        train(recipe_of(other), folder=tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["ensemble.members=0"], "ensemble: members: got 0, wanted at least 1"),
        (["ensemble.member=2"], "ensemble.member: unknown; did you mean members?"),
        (["ensemble.inference=sum"], "ensemble.inference: got 'sum', wanted one of logits"),
        (["objective.contrastive={}"], "objective.contrastive: set, but there are no views"),
        (["objective.mutual={}"], "objective.mutual: set, but there is one network"),
        (["objective.mutual={weight: -1}"], "objective.mutual: weight: got -1.0, wanted 0 or"),
        (["objective.contrastive={tau: 1}"], "objective.contrastive.tau: unknown; known:"),
        (
            ["objective.attributes={}", "data.items.attributes=null"],
            "objective.attributes: set, but data.items.attributes names no column",
        ),
        (["objective.compression={}"], "objective.compression.teacher: got null, wanted"),
        (["objective.compression={teacher: no}"], "objective.compression.teacher: got false"),
        (
            ["objective.compression={teacher: nowhere}"],
            "objective.compression.teacher: nowhere holds no finished run",
        ),
        (
            [
                "ensemble.members=2",
                "objective.mutual={}",
                "objective.recommendation={kind: next_item, loss: gbce}",
            ],
            "objective.mutual: got a recommendation loss of gbce, wanted softmax",
        ),
        (
            ["objective.recommendation={kind: next_item, window_step: 0}"],
            "objective.recommendation: window_step: got 0, wanted at least 1",
        ),
    ],
)
def test_mistakes_are_told(overrides: list[str], changes: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        check("quickstart", [*overrides, *changes])
    assert any(told in problem for problem in error.value.problems), error.value.problems
