"""Recipes as release 0.1 spelled them mean what they meant, and say how they are written now."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkd import Recipe, load_recipe
from mmkd.config import merging as module
from mmkd.data.tasks import TASKS
from mmkd.errors import RecipeError
from mmkd.losses.recommendation import LOSSES

SHIPPED = Path(__file__).parents[1] / "fixtures" / "release_0_1" / "shipped"
REST: dict[str, Any] = {
    "name": "x",
    "data": {"root": "d", "items": {}, "interactions": {}, "split": "leave_one_out"},
    "student": {"backbone": "sasrec", "score_with": "id"},
}
OLD = REST | {"objective": {"recommendation": {"kind": "next_item", "loss": "softmax"}}}
NEW = REST | {"task": "next_item", "objective": {"recommendation": "softmax"}}


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: dict[str, Any], *overrides: str, **more: dict[str, Any]) -> Recipe:
    for name, layer in {"x": content, **more}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(layer), encoding="utf-8")
    return load_recipe(f"{[*more, 'x'][0] if more else 'x'}.yaml", overrides)


def said(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    return recipe.task.model_dump(), recipe.objective.recommendation.model_dump()


def test_both_spellings_are_one_recipe_and_only_the_old_one_is_noticed() -> None:
    old, new = read(OLD), read(NEW)
    assert old == new and hash(old) == hash(new) and old.to_yaml() == new.to_yaml()
    assert new.notices == ()
    assert [notice.split("; ")[0] for notice in old.notices] == [
        "x.yaml: objective.recommendation.kind: is called task.kind now",
        "x.yaml: objective.recommendation.loss: is called objective.recommendation.kind now",
    ]
    bare = read(REST | {"objective": {"recommendation": "next_item"}})
    assert bare == new and len(bare.notices) == 1
    assert "notices" not in old.model_dump()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_that_was_shipped_is_the_one_that_is_shipped(path: Path) -> None:
    here = Path(__file__).parents[2] / "recipes" / path.name
    assert load_recipe(str(path), ["data.root=x"]) == load_recipe(str(here), ["data.root=x"])


def test_the_names_are_those_of_the_parts() -> None:
    options = {name for task in TASKS.values() for name in inspect.signature(task).parameters}
    assert module._TASKS == tuple(TASKS) and set(module._TASK_OPTIONS) == options
    of_losses = {name for loss in LOSSES.values() for name in inspect.signature(loss).parameters}
    assert set(module._NULL_WAS_DEFAULT) == of_losses - {"candidates", "train_counts"}


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize(
    ("overrides", "task", "loss"),
    [
        (["objective.recommendation.views=1"], {"kind": "next_item", "views": 1}, {}),
        (["task.views=1"], {"kind": "next_item", "views": 1}, {}),
        (
            ["objective.recommendation={kind: masked_item, mask_ratio: 0.3}"],
            {"kind": "masked_item", "mask_ratio": 0.3},
            {},
        ),
        (["objective.recommendation=masked_item"], {"kind": "masked_item"}, {}),
        (["task=masked_item"], {"kind": "masked_item"}, {}),
        (
            ["objective.recommendation={kind: next_item, loss: gbce, negatives: 8}"],
            {"kind": "next_item"},
            {"kind": "gbce", "negatives": 8},
        ),
        (["objective.recommendation.loss=gbce"], {"kind": "next_item"}, {"kind": "gbce"}),
        (["objective.recommendation=gbce"], {"kind": "next_item"}, {"kind": "gbce"}),
        (
            ["objective.recommendation.candidates=trained", "task.views=2"],
            {"kind": "next_item", "views": 2},
            {"kind": "softmax", "candidates": "trained"},
        ),
        (
            ["objective.recommendation.loss=gbce", "objective.recommendation.negatives=null"],
            {"kind": "next_item"},
            {"kind": "gbce"},
        ),
    ],
)
def test_old_and_new_overrides_over_either_spelling(
    spelling: dict[str, Any], overrides: list[str], task: dict[str, Any], loss: dict[str, Any]
) -> None:
    assert said(read(spelling, *overrides)) == (task, loss or {"kind": "softmax"})


@pytest.mark.parametrize("upper_old", [True, False])
@pytest.mark.parametrize("lower_old", [True, False])
def test_a_variant_and_its_base_may_be_spelled_differently(
    upper_old: bool, lower_old: bool
) -> None:
    old_lower = {"kind": "next_item", "loss": "softmax", "candidates": "trained"}
    new_lower = {"kind": "softmax", "candidates": "trained"}
    base = REST | (
        {"objective": {"recommendation": old_lower}}
        if lower_old
        else {"task": "next_item", "objective": {"recommendation": new_lower}}
    )
    variant: dict[str, Any] = {"base": "x", "name": "y"} | (
        {"objective": {"recommendation": {"kind": "next_item", "views": 2}}}
        if upper_old
        else {"task": {"views": 2}}
    )
    recipe = read(base, y=variant)
    assert said(recipe) == ({"kind": "next_item", "views": 2}, new_lower)
    assert {notice.split(":")[0] for notice in recipe.notices} == (
        ({"x.yaml"} if lower_old else set()) | ({"y.yaml"} if upper_old else set())
    )


def test_another_kind_in_the_old_spelling_starts_from_its_defaults_as_it_did() -> None:
    base = REST | {"task": "next_item"}
    base |= {"objective": {"recommendation": {"kind": "softmax", "candidates": "trained"}}}
    same = read(base, "objective.recommendation={kind: next_item, loss: gbce}")
    assert said(same)[1] == {"kind": "gbce", "candidates": "trained"}
    other = read(base, "objective.recommendation={kind: masked_item}")
    assert said(other)[1] == {"kind": "softmax"}


def test_normalise_is_normalize() -> None:
    old = read(NEW, "objective.correlation={normalise: true, temperature: 1}")
    assert old == read(NEW, "objective.correlation={normalize: true, temperature: 1}")
    [notice] = old.notices
    assert notice.startswith("override: objective.correlation.normalise: is called objective.corr")
    assert read(
        NEW | {"objective": {"recommendation": "softmax", "correlation": {"normalise": True}}},
        "objective.correlation.normalize=false",
    ).objective.correlation == {"normalize": False}


def test_exact_reference_is_dropped_where_it_was_off_and_refused_where_it_was_on() -> None:
    off = read(NEW, "objective.exact_reference=false")
    assert off == read(NEW) and off.notices == ()
    with pytest.raises(RecipeError, match=r"^x.yaml: objective\.exact_reference: got true, but on"):
        read(NEW, "objective.exact_reference=true")


def test_mistakes_in_the_old_spelling_are_told_by_the_new_keys() -> None:
    with pytest.raises(RecipeError) as error:
        read(NEW, "objective.recommendation={loss: [1], views: 2}")
    assert error.value.problems == ["override: objective.recommendation.kind: got [1], wanted text"]
