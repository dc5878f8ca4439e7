"""A layer that leaves no encoder makes an ids-only recipe of what lies below it, and says so."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmkd import Recipe, load_recipe
from mmkd.config.plan import plan
from mmkd.errors import RecipeError

BELOW: dict[str, Any] = {
    "name": "x",
    "data": {"root": "d", "items": {"path": "i.csv"}, "interactions": {"path": "l.csv"}},
    "encoders": {"text": "hashed-text", "image": "color-image"},
    "distiller": {"dim": 8},
    "student": {"backbone": "gru4rec", "score_with": "fused"},
    "task": "next_item",
    "objective": {
        "recommendation": "softmax",
        "correlation": {"temperature": 2.0},
        "neighbours": {},
    },
    "asynchronous": {"kind": "ramp", "gamma": 2.0, "milestones": [1]},
}
FOLLOWED = (
    "no encoder is left, so only ids are learned: distiller is null, objective.correlation is "
    "null, objective.neighbours is null, asynchronous is none, student.score_with is id"
)


@pytest.fixture(autouse=True)
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(yaml.safe_dump(BELOW), "utf-8")


def told(recipe: Recipe) -> tuple[Any, ...]:
    assert recipe.objective.neighbours == recipe.objective.correlation
    parts = (recipe.encoders, recipe.distiller, recipe.objective.correlation)
    return (*parts, recipe.asynchronous.kind, recipe.student.score_with)


IDS_ONLY: tuple[Any, ...] = ({}, None, None, "none", "id")


@pytest.mark.parametrize(
    "overrides",
    [
        ["encoders=null"],
        ["encoders={text: null, image: null}"],
        ["encoders.text=null", "encoders.image=null"],
        {"encoders": None},
    ],
)
def test_overrides_alone_make_the_baseline_of_a_recipe(overrides: Any) -> None:
    recipe = load_recipe("x.yaml", overrides)
    assert told(recipe) == IDS_ONLY
    assert recipe.notes == (f"override: {FOLLOWED}",)
    found = plan(recipe, needs_data=False)
    assert found.distiller is None and found.objective.correlation is None and not found.cards
    assert recipe == load_recipe(
        "x.yaml",
        [
            *("encoders=null", "distiller=null", "objective.correlation=null"),
            "objective.neighbours=null",
            *("asynchronous=none", "student.score_with=id"),
        ],
    )


@pytest.mark.parametrize(
    ("members", "left", "said"),
    [
        ([{}, {"ids": False}], {}, "1"),
        (
            [{"seed": 3}, {"ids": False}, {"modalities": []}],
            [{"seed": 3}, {"modalities": []}],
            None,
        ),
        ([{"ids": False}, {"ids": False, "seed": 2}], {}, "1"),
        ([{}, {"seed": 5}], [{}, {"seed": 5}], ""),
        (2, 2, ""),
    ],
)
def test_members_on_content_alone_go_with_the_encoders(
    members: Any, left: Any, said: str | None
) -> None:
    ensemble = {"members": members, "inference": "standardized", "weights": "validation"}
    Path("x.yaml").write_text(yaml.safe_dump({**BELOW, "ensemble": ensemble}), "utf-8")
    recipe = load_recipe("x.yaml", ["encoders=null"])
    if left == {}:
        assert recipe.ensemble == {}
        assert plan(recipe, needs_data=False).members.count == 1
    else:
        assert recipe.ensemble == {**ensemble, "members": left}
    if said is not None:
        (note,) = recipe.notes
        assert note == f"override: {FOLLOWED}" + (f", ensemble.members is {said}" if said else "")


def test_what_of_several_networks_needs_an_encoder_goes_too() -> None:
    ensemble = {
        "members": [{}, {"ids": False}, {"seed": 3, "modalities": ["text"]}],
        "weights": [0.2, 0.3, 0.5],
        "inference": "standardized",
        "untrained_offset": "validation",
        "untrained_price": 0.03,
    }
    below = {**BELOW, "ensemble": ensemble, "tune": {"text": {"epochs": 1}}}
    Path("x.yaml").write_text(yaml.safe_dump(below), "utf-8")
    recipe = load_recipe("x.yaml", ["encoders=null"])
    left = {
        "members": [{}, {"seed": 3, "modalities": []}],
        "weights": [0.2, 0.5],
        "untrained_offset": None,
    }
    assert recipe.ensemble == ensemble | left and recipe.tune == {}
    (note,) = recipe.notes
    assert note.startswith(f"override: {FOLLOWED}, tune is {{}}, ensemble.members is ")
    assert ", ensemble.weights is [0.2, 0.5]" in note
    assert ", ensemble.untrained_offset is null" in note
    assert plan(recipe, needs_data=False).members.count == 2


def test_one_modality_less_changes_nothing_else() -> None:
    recipe = load_recipe("x.yaml", ["encoders.image=null"])
    assert recipe.notes == () and recipe.distiller == {"dim": 8}
    assert recipe.student.score_with == "fused" and recipe.asynchronous.kind == "ramp"


def test_a_file_does_it_to_its_base_and_overrides_go_on_from_there() -> None:
    Path("y.yaml").write_text("base: x\nname: y\nencoders: null\n", "utf-8")
    recipe = load_recipe("y.yaml")
    assert told(recipe) == IDS_ONLY and recipe.notes == (f"y.yaml: {FOLLOWED}",)
    again = load_recipe("y.yaml", ["encoders.text=hashed-text", "student.score_with=fused"])
    assert again.encoders == {"text": "hashed-text"} and again.distiller is None


def test_what_is_set_beside_it_stays_and_is_judged() -> None:
    recipe = load_recipe("x.yaml", ["encoders=null", "student.score_with=fused"])
    assert recipe.student.score_with == "fused" and "score_with" not in recipe.notes[0]
    recipe = load_recipe("x.yaml", ["encoders=null", "distiller.facets=2"])
    assert recipe.distiller == {"facets": 2}
    with pytest.raises(RecipeError, match=r"distiller: set, but there is no encoder to distil"):
        plan(recipe, needs_data=False)


def test_a_recipe_that_never_had_encoders_has_nothing_to_follow() -> None:
    recipe = load_recipe("beauty-id", ["data.root=x", "encoders=null"])
    assert recipe.notes == () and recipe == load_recipe("beauty-id", ["data.root=x"])
