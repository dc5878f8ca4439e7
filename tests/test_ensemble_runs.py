"""Ensembles from a recipe to a run that serves, resumes, is shared by processes and compressed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_runs import BERT4REC, write_data

from mmkd.compress import compressing
from mmkd.data import DataError
from mmkd.data.synthetic import make_synthetic
from mmkd.inspection import evaluate
from mmkd.pipeline import train
from mmkd.plan import check, plan
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
CORRELATION = {"holistic": 0.4, "dissected": 0.05}  # quickstart's weights
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
        wanted += losses["attributes"] / (members * views)
        wanted += 0.01 * (losses["intra"] + losses["cross"]) / (members * views)
        wanted += sum(
            CORRELATION.get(name.split(".")[0], 0.0) * value for name, value in losses.items()
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
    weights = {"weight": 0.5, "states_weight": 3.0, "temperature": 2.0}
    own = [f"objective.compression.{name}={value}" for name, value in weights.items()]
    recipe = compressing(full, ["training.epochs=4", *own])
    assert recipe.name == "emkd-compressed"
    train(recipe, folder=tmp_path / "small")
    small = RunFolder(tmp_path / "small")
    student = small.student()
    assert len(student.members) == 1
    losses = [record["losses"] for record in history(small.path)]
    assert {"recommendation", "compression", "compression.states"} < set(losses[0])
    assert losses[-1]["compression"] < losses[0]["compression"]
    weighed = {"recommendation": 1.0, "compression": 0.5, "compression.states": 3.0}
    weighed |= {"attributes": 0.5}  # one network, two views
    weighed |= {f"{k}.{m}": w for m in ("text", "image") for k, w in CORRELATION.items()}
    assert set(losses[0]) == {*weighed, "total"}
    total = sum(weight * losses[0][name] for name, weight in weighed.items())
    assert losses[0]["total"] == pytest.approx(total, rel=1e-4)
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
        train(recipe_of(overrides, *longer), folder=tmp_path / "run")
    make_synthetic(tmp_path / "data", items=130, users=200)
    other = [*overrides, f"data.root={tmp_path / 'data'}", *MASKED, teacher]
    with pytest.raises(RunError, match=r"another catalogue, events, so it knows.*train the te"):
        train(recipe_of(other), folder=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").started  # nothing was begun


def test_a_teacher_that_saw_the_test_events_is_refused(
    full: RunFolder, overrides: list[str], tmp_path: Path
) -> None:
    later = compressing(full, ["data.split={kind: temporal}"])
    with pytest.raises(RunError, match=r"another split, so it knows .* events that this run is te"):
        train(later, folder=tmp_path / "run")


def test_what_is_wrong_with_the_new_run_costs_no_old_one(
    full: RunFolder, overrides: list[str], tmp_path: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in full.path.iterdir()}
    with pytest.raises(RunError, match=r"holds the run to compress, which would be lost"):
        train(compressing(full), folder=full.path, overwrite=True)
    causal = recipe_of(overrides, f"objective.compression.teacher={full.path}", "name=emkd")
    old = tmp_path / "old"
    shutil.copytree(full.path, old)
    with pytest.raises(RunError, match=r"bidirectional and the student's are not"):
        train(causal, folder=old, overwrite=True)
    bare = tmp_path / "data"
    shutil.copytree(recipe_of(overrides).data.folder, bare)
    items = pl.read_csv(bare / "items.csv")
    column = recipe_of(overrides).data.items["attributes"]
    items.with_columns(pl.lit("").alias(str(column))).write_csv(bare / "items.csv")
    none = recipe_of(overrides, *MASKED, *EMKD, f"data.root={bare}")
    with pytest.raises(DataError, match="no item of the catalogue has an attribute"):
        train(none, folder=old, overwrite=True)
    assert RunFolder(old).result() == full.result()
    assert files == {path: path.stat().st_mtime_ns for path in full.path.iterdir()}


def test_a_run_goes_on_with_the_teacher_it_was_begun_with_only(
    full: RunFolder, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(full.path, teacher)
    recipe, folder = compressing(RunFolder(teacher)), tmp_path / "run"
    train(recipe, folder=folder)
    (folder / "result.json").unlink()  # as if it had been interrupted
    weights = load_file(teacher / "student.safetensors")
    save_file(
        {name: value + 1e-3 for name, value in weights.items()}, teacher / "student.safetensors"
    )
    with pytest.raises(RunError, match=r"the run to compress changed since this run was begun"):
        train(recipe, folder=folder, resume=True)


@pytest.mark.parametrize("override", ["ensemble.members=2", "objective.compression=null"])
def test_compressing_to_several_networks_or_without_a_teacher_is_refused(
    full: RunFolder, override: str
) -> None:
    with pytest.raises(RunError, match=r"ask for several networks or no compression"):
        compressing(full, [override])


def test_views_that_no_loss_reads_are_not_made(overrides: list[str]) -> None:
    recipe = ["objective.recommendation={kind: next_item, views: 3}"]
    for contrast, views in (("{}", 3), ("null", 0), ("{intra_weight: 0, cross_weight: 0}", 0)):
        given = recipe_of(overrides, *recipe, f"objective.contrastive={contrast}")
        assert plan(given).objective.supervision.views == views
    masked = plan(recipe_of(overrides, *MASKED)).objective.supervision  # these are supervised
    assert masked.views == 2


def test_compression_of_weight_0_needs_no_teacher(overrides: list[str]) -> None:
    nothing = "objective.compression={teacher: nowhere, weight: 0, states_weight: 0}"
    assert plan(recipe_of(overrides, nothing)).objective.compression is None


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
            ["objective.exact_reference=true"],
            "objective.exact_reference: set, but the public code has no next_item",
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
