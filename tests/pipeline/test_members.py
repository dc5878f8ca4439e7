"""Members that differ, from a recipe to a run that serves, resumes and says what is wrong."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from commands import printed
from synthetic_runs import history, recipe_of

from mmkd import Evaluator, ItemTable, Run
from mmkd.config.plan import plan
from mmkd.errors import RecipeError
from mmkd.evaluation import choose_offset, choose_weights
from mmkd.pipeline.add_items import add_items
from mmkd.pipeline.evaluate import evaluate
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder
from mmkd.training.loop import Loop

train_module = importlib.import_module("mmkd.pipeline.train")

APART = [
    "name=apart",
    "encoders.image=null",
    "ensemble.members=[{modalities: []}, {ids: false, seed: 11}]",
    "ensemble.modality_tables=own",
    "ensemble.inference=standardized",
    "ensemble.weights=validation",
]


@pytest.fixture(scope="module")
def apart(synthetic: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Ids alone and text alone."""
    folder = tmp_path_factory.mktemp("runs") / "apart"
    train(recipe_of(synthetic, *APART), folder=folder)
    return RunFolder(folder)


def test_ids_alone_and_text_alone_are_trained_and_kept(apart: RunFolder) -> None:
    state = apart.student().state_dict()
    assert "members.0.embedding.id_table" in state
    assert "members.1.embedding.tables.text" in state
    assert not [k for k in state if "members.0" in k and "tables" in k]
    assert "members.1.embedding.id_table" not in state
    assert state["weights"].sum() == pytest.approx(1)
    result = apart.result()
    assert result["weights"] == pytest.approx(state["weights"].tolist())
    assert evaluate(apart.path)["metrics"] == pytest.approx(result["test"]["metrics"])
    found = evaluate(apart.path, cases="valid")["metrics"]
    assert {k: result["valid"][k] for k in found} == pytest.approx(found)


def test_what_selects_the_epoch_chooses_shares_and_offset(
    synthetic: list[str], tmp_path: Path
) -> None:
    recipe = recipe_of(
        synthetic,
        *APART,
        "training.epochs=1",
        "training.select_metric=HR@5",
        "ensemble.untrained_offset=validation",
        "data.split={kind: cold_items, share: 0.2}",
    )
    result = train(recipe, folder=tmp_path / "run")
    split = plan(recipe).load_data().split
    student = RunFolder(tmp_path / "run").student()
    by_hand = choose_weights(student, split, split.valid, metric="HR@5")
    assert result["weights"] == pytest.approx(by_hand)
    _, curve = choose_offset(student, split, split.valid, metric="HR@5")
    assert result["untrained_offsets"] == curve
    at = next(p for p in curve if p["offset"] == result["untrained_offset"])
    assert at["all"] == max(p["all"] for p in curve) == pytest.approx(result["valid"]["HR@5"])


def test_a_single_member_counts_alone(synthetic: list[str], tmp_path: Path) -> None:
    changes = ["ensemble={members: 1, weights: validation}", "training.epochs=1"]
    assert train(recipe_of(synthetic, *changes), folder=tmp_path / "run")["weights"] == [1.0]


def test_a_loaded_run_recommends_what_the_members_say(apart: RunFolder) -> None:
    items, student = apart.items(), apart.student()
    rows = torch.tensor([[3, 8]])
    total = torch.zeros(len(items), dtype=torch.float64)
    with torch.no_grad():
        for share, member in zip(student.shares(), student.networks, strict=True):
            z = (member(rows).hidden[0, -1] @ member.item_matrix().mT).double()
            known = member.known()
            unit = (z - z[known].mean()) / z[known].std(correction=0)
            total += 2 * share * torch.where(known, unit, 0.0)
    total[[2, 7]] = -torch.inf
    best = total.topk(5)
    found = Run(apart.path).recommend([items.ids[3], items.ids[8]], k=5).to_dicts()
    assert [row["item_id"] for row in found] == [items.ids[i + 1] for i in best.indices.tolist()]
    assert [row["score"] for row in found] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len(Run(apart.path).similar([items.ids[4]], k=3)) == 3
    ids, vectors = Run(apart.path).item_vectors()
    assert vectors.shape == (len(ids), 2 * 16)


def test_a_resumed_run_equals_an_uninterrupted_one(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after an epoch, while the weights are chosen, and between that and the end."""
    members = json.dumps(
        [
            {"asynchronous": {"kind": "interval", "every": 3}, "neighbours": 0.5},
            {"ids": False, "correlation": 0.5, "backbone": "gru4rec"},
            {"modalities": [], "neighbours": 0.0},
        ]
    )
    recipe = recipe_of(
        synthetic,
        *APART,
        "encoders.image=color-image",
        f"ensemble.members={members}",
        "asynchronous={kind: ramp, milestones: [1]}",
        "objective.neighbours={share: 0.3, k: 5}",
        "ensemble.untrained_offset=validation",
        "data.split={kind: cold_items, share: 0.2}",
    )
    train(recipe, folder=tmp_path / "whole")

    def stopping(owner: Any, name: str, *, before: bool = False) -> None:
        whole = getattr(owner, name)

        def stop(*arguments: Any, **options: Any) -> Any:
            if not before:
                whole(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folder=tmp_path / "parts", resume=(tmp_path / "parts").exists())
        monkeypatch.setattr(owner, name, whole)

    stopping(Loop, "close_epoch")
    stopping(train_module, "choose_weights")
    stopping(Evaluator, "report")
    for _ in range(2):
        stopping(RunFolder, "_finish", before=True)  # all but the result is written
    train(recipe, folder=tmp_path / "parts", resume=True)
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert history(whole.path) == history(parts.path)
    for name, value in whole.student().state_dict().items():
        assert torch.equal(value, parts.student().state_dict()[name]), name
    assert np.array_equal(whole.ranks().rank, parts.ranks().rank)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["ensemble.weights=validation", "training.select_metric=retention.text.spearman"],
            "ensemble.weights: got validation, but training.select_metric is retention.text.sp",
        ),
        (["ensemble.members=[]"], "ensemble.members: got 0, wanted at least 1"),
        (
            ["ensemble.members=[{}, {idz: false}]"],
            "ensemble.members[1].idz: unknown; did you mean ids?",
        ),
        (
            ["ensemble.members=[{modalities: [sound]}, {}]"],
            "ensemble.members[0].modalities: got sound, wanted some of the encoders: text, image",
        ),
        (
            ["ensemble.members=[{modalities: [text]}]"],
            "ensemble.members: no member reads image; name it in one, or drop it",
        ),
        (
            ["ensemble.members=[{}, {ids: false, modalities: []}]"],
            "ensemble.members[1]: has neither ids nor a modality",
        ),
        (
            ["ensemble.members=[{}, {ids: false}]", "student.score_with=id"],
            "ensemble.members[1]: has no ids, but student.score_with is id, wanted fused",
        ),
        (
            ["student.embedding.ids=false", "student.score_with=id"],
            "student: has no ids, but student.score_with is id, wanted fused",
        ),
        (
            ["ensemble.members=[{}, {backbone: bert4rec}]"],
            "ensemble.members[1].backbone.kind: got bert4rec beside the student's sasrec, wanted",
        ),
        (
            ["ensemble.members=[{}, {backbone: {head: 2}}]"],
            "ensemble.members[1].backbone.head: unknown; did you mean heads?",
        ),
        (
            ["ensemble.members=[{}, {embedding: {width: 32}}]"],
            "ensemble.members[1].embedding.width: all members have the student's, for their states",
        ),
        (
            ["ensemble.members=[{}, {embedding: {dropout: 2}}]"],
            "ensemble.members[1].embedding.dropout: got 2",
        ),
        (
            ["ensemble.members=[{}, {asynchronous: frozen}]"],
            "ensemble.modality_tables: got shared, wanted own: members that share the table of "
            "text differ in asynchronous",
        ),
        (
            ["ensemble.members=[{}, {asynchronous: {kind: ramp, gamma: 0}}]"],
            "ensemble.members[1].asynchronous.gamma: got 0.0, wanted more than 1",
        ),
        (
            ["ensemble.members=2", "ensemble.weights=[1, 2, 3]"],
            "ensemble.weights: got 3, wanted 2, one a member",
        ),
        (["ensemble.weights=test"], "ensemble.weights: got 'test', wanted one of validation"),
        (
            ["student.embedding.adapter=mlp", "asynchronous=ramp"],
            "asynchronous: got ramp, but student.embedding.adapter freezes the tables",
        ),
        (
            ["ensemble.members=[{neighbours: 2}]"],
            "ensemble.members[0].neighbours: got 2.0, wanted",
        ),
    ],
)
def test_mistakes_are_told(synthetic: list[str], changes: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan(recipe_of(synthetic, *changes))
    assert any(told in problem for problem in error.value.problems), error.value.problems


UNLIKE = [
    "name=unlike",
    "encoders.image=null",
    "ensemble.members=[{}, {ids: false, backbone: gru4rec, embedding: {adapter: linear}}]",
    "ensemble.inference=standardized",
    "training.epochs=1",
    "task.views=2",
    "objective.attributes={}",
    "objective.contrastive={}",
    "objective.mutual={weight: 0.1}",
]


def test_unlike_networks_teach_each_other_and_place_new_items(
    synthetic: list[str], tmp_path: Path
) -> None:
    """One trains its table, the other has the teacher frozen, and both take every term."""
    train(recipe_of(synthetic, *UNLIKE), folder=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    losses = history(run.path)[-1]["losses"]
    emkd = {"recommendation", "attributes", "intra", "cross", "mutual"}
    assert losses.keys() == {*emkd, "holistic.text", "dissected.text", "total"}
    assert all(value == value for value in losses.values())
    student, items = run.student(), run.items()
    trained, frozen = student.stored_tables()["text"]
    assert trained.requires_grad and not frozen.requires_grad and len(frozen) == len(trained)
    original = int(student.networks[0].embedding.has[1:-1, 1].nonzero()[0, 0]) + 1
    rows = items.frame[[0, original]]
    new = ItemTable.of(rows.with_columns(id=pl.Series(["", "new"])))
    add_items(run.path, new, out=tmp_path / "more")
    more = RunFolder(tmp_path / "more").student()
    own = more.networks[1].embedding  # it reads titles alone, and the copy has the same
    torch.testing.assert_close(own.table()[-2], own.table()[original], rtol=1e-4, atol=1e-5)
    before, after = (one.networks[1].embedding.table() for one in (student, more))
    assert torch.equal(after[: len(items) + 1], before[:-1]) and torch.equal(after[-1], before[-1])
    assert len(Run(tmp_path / "more").recommend([items.ids[1]], k=3)) == 3


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("objective.contrastive.cross_weight=0", {"cross"}),
        ("objective.contrastive=null", {"cross", "intra"}),
        ("objective.attributes=null", {"attributes"}),
        ("objective.mutual=null", {"mutual"}),
        ("objective.correlation=null", {"holistic.text", "dissected.text"}),
    ],
)
def test_each_term_between_unlike_networks_can_be_switched_off(
    synthetic: list[str], change: str, gone: set[str]
) -> None:
    found = plan(recipe_of(synthetic, *UNLIKE, change)).objective
    left = {
        "cross": found.contrastive is not None and found.contrastive.get("cross_weight", 1) > 0,
        "intra": found.contrastive is not None,
        "attributes": found.attributes is not None,
        "mutual": found.mutual is not None,
        "holistic.text": found.correlation is not None,
        "dissected.text": found.correlation is not None,
    }
    assert {name for name, is_left in left.items() if not is_left} == gone


def test_the_command_compresses_unlike_networks_into_one(apart: RunFolder, tmp_path: Path) -> None:
    options = ["training.epochs=2", "--out", str(tmp_path / "one"), "--runs", str(tmp_path)]
    printed("compress", str(apart.path), *options)
    one = RunFolder(tmp_path / "one")
    student = one.student()
    assert len(student.members) == 1 and student.inference == "logits" and student.weights is None
    assert student.networks[0].embedding.ids and "text" in student.modality_tables()
    losses = [record["losses"] for record in history(one.path)]
    assert 0 < losses[-1]["compression"] < losses[0]["compression"]
    assert one.marker()["teacher"] == apart.weights_digest()


def test_tables_that_decay_towards_their_teacher_keep_more_of_it(
    synthetic: list[str], tmp_path: Path
) -> None:
    kept = []
    for decay in (0.0, 300.0):
        options = ["encoders.image=null", "objective.correlation=null", "training.lr=1e-2"]
        if decay:
            options += [f"training.table_decay={decay}", "training.decay_towards=teacher"]
        train(recipe_of(synthetic, *options), folder=tmp_path / str(decay))
        kept.append(history(tmp_path / str(decay))[-1]["valid"]["retention.text.spearman"])
    assert kept[0] < kept[1] and kept[1] > 0.99


def test_the_place_of_untrained_items_is_chosen_kept_and_given_to_new_ones(
    synthetic: list[str], tmp_path: Path
) -> None:
    recipe = recipe_of(
        synthetic,
        "data.split={kind: cold_items, share: 0.2}",
        "encoders.image=null",
        "ensemble.untrained_offset=validation",
        "training.epochs=1",
    )
    train(recipe, folder=tmp_path / "run")
    run = Run(tmp_path / "run")
    result, student = run.result, run.student
    counts = run.data.split.train_counts()
    assert student.untrained is not None and student.untrained_offset is not None
    assert student.untrained.tolist() == (counts[1:] == 0).tolist()
    chosen = result["untrained_offset"]
    assert float(student.untrained_offset) == chosen
    curve = {point["offset"]: point for point in result["untrained_offsets"]}
    assert curve[chosen]["all"] == max(point["all"] for point in curve.values())
    # epochs are compared with untrained items last
    (epoch,) = run.history["valid.NDCG@10"]
    assert epoch == pytest.approx(curve[-4.0]["all"]) and curve[-4.0]["cold"] == 0
    # the curve's figure is what validation then gives, and what the run gives when it is read again
    assert result["validation"]["metrics"]["NDCG@10"] == pytest.approx(curve[chosen]["all"])
    assert result["valid"]["NDCG@10"] == pytest.approx(curve[chosen]["all"])
    assert evaluate(run.folder.path)["metrics"] == pytest.approx(result["test"]["metrics"])

    with_text = int(student.networks[0].embedding.has[1:-1, 1].nonzero()[0]) + 1
    rows = run.items.frame[[0, with_text]]
    new = ItemTable.of(rows.with_columns(id=pl.Series(["", "new"]), title=pl.Series(["", "new"])))
    add_items(tmp_path / "run", new, out=tmp_path / "more")
    grown = RunFolder(tmp_path / "more").student()
    assert grown.untrained is not None
    assert grown.untrained.tolist() == [*student.untrained.tolist(), True]
    assert float(grown.untrained_offset) == chosen  # type: ignore[arg-type]


def test_an_offset_needs_content_to_go_by(synthetic: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"untrained_offset: set, but items are scored by their"):
        plan(recipe_of(synthetic, "student.score_with=id", "ensemble.untrained_offset=0.5"))
