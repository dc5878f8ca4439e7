"""Ensembles from a recipe to a run that serves, resumes and is shared by processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_runs import BERT4REC, CORRELATION, EMKD, MASKED, history, recipe_of

from mmkd import Run, load_recipe
from mmkd.config.plan import plan
from mmkd.errors import RecipeError
from mmkd.pipeline.evaluate import evaluate
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder

NEXT = ["task.views=2"]
STILL = ["student.embedding.dropout=0", "student.backbone.dropout=0"]


def test_weights_of_zero_and_one_network_are_bert4rec_exactly(
    synthetic: list[str], tmp_path: Path
) -> None:
    nothing = [
        "ensemble={members: 1, modality_tables: own, inference: logits}",
        "objective.contrastive={intra_weight: 0, cross_weight: 0}",
        "objective.attributes={weight: 0}",
    ]
    train(recipe_of(synthetic, *BERT4REC), folder=tmp_path / "plain")
    train(recipe_of(synthetic, *BERT4REC, *nothing), folder=tmp_path / "nothing")
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
    run = Run(full.path)
    found = run.recommend(history, k=5).to_dicts()
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
    assert [row["item_id"] for row in found] == [items.ids[i + 1] for i in best.indices.tolist()]
    assert [row["score"] for row in found] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len(run.similar([items.ids[4]], k=3)) == 3


def test_a_next_item_backbone_takes_augmented_views(synthetic: list[str], tmp_path: Path) -> None:
    options = [*NEXT, *EMKD, "ensemble.modality_tables=own", "ensemble.inference=probabilities"]
    train(recipe_of(synthetic, *options), folder=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    losses = history(run.path)[-1]["losses"]
    assert {"intra", "cross", "mutual", "attributes", "holistic.text"} < set(losses)
    assert len(run.student().modality_tables()["text"]) == 2
    assert evaluate(run.path)["metrics"] == pytest.approx(run.result()["test"]["metrics"])


@pytest.mark.slow
def test_two_processes_equal_one(synthetic: list[str], tmp_path: Path) -> None:
    """The negatives are those of all processes, so the losses are a single one's."""
    changes = [*synthetic, *MASKED, *EMKD, *STILL, "training.batch_size=49"]
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


def test_views_that_no_loss_reads_are_not_made(synthetic: list[str]) -> None:
    recipe = ["task.views=3"]
    for contrast, views in (("{}", 3), ("null", 0), ("{intra_weight: 0, cross_weight: 0}", 0)):
        given = recipe_of(synthetic, *recipe, f"objective.contrastive={contrast}")
        assert plan(given).task.views == views
    masked = plan(recipe_of(synthetic, *MASKED)).task  # these are supervised
    assert masked.views == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["ensemble.members=0"], "ensemble.members: got 0, wanted at least 1"),
        (["ensemble.member=2"], "ensemble.member: unknown; did you mean members?"),
        (["ensemble.inference=sum"], "ensemble.inference: got 'sum', wanted one of logits"),
        (["objective.contrastive={}"], "objective.contrastive: set, but there are no views"),
        (["objective.mutual={}"], "objective.mutual: set, but there is one network"),
        (["objective.mutual={weight: -1}"], "objective.mutual.weight: got -1.0, wanted 0 or"),
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
                "objective.recommendation=gbce",
            ],
            "objective.mutual: got a recommendation loss of gbce, wanted softmax",
        ),
        (
            ["objective.exact_reference=true"],
            "objective.exact_reference: got true, but only the papers' formulas are computed",
        ),
        (
            ["task.window_step=0"],
            "task.window_step: got 0, wanted at least 1",
        ),
    ],
)
def test_mistakes_are_told(synthetic: list[str], changes: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan(load_recipe("quickstart", [*synthetic, *changes]))
    assert any(told in problem for problem in error.value.problems), error.value.problems
