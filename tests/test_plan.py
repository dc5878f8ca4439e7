"""Planning a recipe: every shipped one fits, and every mistake of a wrong one is told at once."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mmkd.options import RecipeError
from mmkd.plan import DEFAULT_WIDTH, Plan, plan
from mmkd.recipe import load_recipe, recipe_names


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*overrides: str, name: str = "quickstart") -> Plan:
    return plan(load_recipe(name, ["data.root=x", *overrides]), needs_data=False)


def problems(overrides: Sequence[str], *, name: str = "quickstart") -> list[str]:
    with pytest.raises(RecipeError) as error:
        planned(*overrides, name=name)
    return [problem.split(": ", 1)[1] for problem in error.value.problems]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_can_be_planned(name: str) -> None:
    found = planned(name=name)
    assert set(found.cards) == set(found.recipe.encoders)
    assert (found.distiller is None) == (not found.cards)
    assert (found.correlation is None) == (found.recipe.objective.correlation is None)
    assert found.width % int(found.backbone.get("heads", 1)) == 0


def test_values_of_the_recipe_reach_the_parts() -> None:
    found = planned(
        "seed=9", "training.epochs=3", "student.embedding.width=48", "distiller.codes=7"
    )
    assert found.trainer.epochs == 3 and found.trainer.lr == 2e-3
    assert found.width == 48
    assert found.distiller is not None
    assert found.distiller["seed"] == 9 and found.distiller["codes"] == 7
    assert found.correlation is not None
    assert found.correlation["codes"] == 7 and found.correlation["width"] == 48
    assert found.weights == {"holistic_weight": 0.4, "dissected_weight": 0.05}
    assert found.evaluator.batch_size == 512
    assert found.allow_random_weights is False


def test_the_width_has_a_default() -> None:
    assert planned("student.embedding={fusion: sum}", "student.embedding.width=64").width == 64
    assert DEFAULT_WIDTH == 64


def test_all_mistakes_are_told_together_with_what_was_meant() -> None:
    found = problems(
        [
            "training.epoch=3",
            "training.lr=fast",
            "distiller.code=5",
            "student.backbone.layer=2",
            "evaluation.exclude_seen=histery",
            "data.items.titel=title",
            "objective.correlation.holistic_wieght=1",
            "asynchronous.gama=2",
            "encoders.text=hashed-txt",
            "data.split=leave_on_out",
        ]
    )
    told = dict(problem.split(": ", 1) for problem in found)
    assert len(told) == len(found) == 10
    assert told["training.epoch"] == "unknown; did you mean epochs?"
    assert "wanted a number" in told["training.lr"]
    assert told["distiller.code"] == "unknown; did you mean codes?"
    assert told["student.backbone.layer"] == "unknown; did you mean layers?"
    assert "one of history, none" in told["evaluation.exclude_seen"]
    assert told["data.items.titel"] == "unknown; did you mean title?"
    assert told["asynchronous.gama"] == "unknown; did you mean gamma?"
    assert "hashed-text" in told["encoders.text"]
    assert told["data.split.kind"] == "unknown; did you mean leave_one_out?"
    assert "unknown" in told["objective.correlation.holistic_wieght"]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            ["student.backbone={kind: bert4rec, layers: 1, heads: 2}"],
            "got next_item, wanted masked_item: backbone bert4rec is bidirectional",
        ),
        (
            ["objective.recommendation=masked_item"],
            "got masked_item, wanted next_item: backbone sasrec is causal",
        ),
    ],
)
def test_an_objective_of_the_other_direction_is_refused(overrides: list[str], wanted: str) -> None:
    assert problems(overrides) == [f"objective.recommendation.kind: {wanted}"]


def test_a_bidirectional_backbone_with_masked_items_is_planned() -> None:
    found = planned(
        "student.backbone={kind: bert4rec, layers: 1, heads: 2}",
        "objective.recommendation={kind: masked_item, mask_ratio: 0.3}",
    )
    assert not found.supervision.causal


def test_correlation_without_encoders_is_refused() -> None:
    assert problems(["encoders=null"]) == [
        f"{key}: set, but there is no encoder to distil; add one to encoders"
        for key in ("distiller", "objective.correlation")
    ]
    found = planned("encoders=null", "distiller=null", "objective.correlation=null")
    assert found.distiller is None and found.cards == {}


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    [problem] = problems(["student.backbone.heads=3"])
    assert problem.startswith("student.backbone: ")
    assert "32" in problem and "3" in problem


def test_facets_that_do_not_divide_the_teacher_are_refused() -> None:
    [problem] = problems(["distiller.facets=5"])
    assert problem.startswith("distiller: ") and "5 facets" in problem


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("training.epochs=0", "training: epochs: got 0, wanted at least 1"),
        ("asynchronous.gamma=1", "asynchronous: gamma: got 1.0, wanted more than 1"),
        ("objective.recommendation.negatives=5", "objective.recommendation: loss softmax has no"),
        ("cache.allow_random_weights=1", "cache.allow_random_weights: wanted true or false"),
        ("student.backbone=sasrek", "student.backbone.kind: backbone 'sasrek': unknown; did you"),
        ("asynchronous=rampp", "asynchronous.kind: unknown; did you mean ramp?"),
        ("distiller.seed=3", "distiller.seed: set by the program itself; remove it"),
        ("training.select_metric=NDCG@7", "training.select_metric: got NDCG@7, wanted one of HR@5"),
        ("objective.correlation.temperature=0", "objective.correlation: temperature must be"),
        ("student.embedding.fusion=gates", "student.embedding.fusion: got 'gates', wanted one of"),
        ("evaluation.ks=[0]", "evaluation.ks: "),
    ],
)
def test_a_value_that_a_part_refuses_is_a_mistake_of_the_recipe(override: str, wanted: str) -> None:
    [problem] = problems([override])
    assert problem.startswith(wanted)


def test_a_retention_metric_may_select() -> None:
    found = planned("training.select_metric=retention.text.spearman")
    assert found.trainer.select_metric == "retention.text.spearman"


def test_missing_data_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["data.root=nowhere"])
    with pytest.raises(RecipeError, match=r"data\.root: no such folder: nowhere"):
        plan(recipe)
    (tmp_path / "nowhere").mkdir()
    assert plan(recipe).recipe is recipe
