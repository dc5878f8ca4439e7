"""Presets, and a dataset, a recipe and encoders joined to one plan."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mmkd
from mmkd import EncoderCard, load_recipe
from mmkd.config.joining import data_section, fitting, joined
from mmkd.config.merging import merge_layers
from mmkd.config.plan import plan
from mmkd.config.recipe import find_recipe, preset_names, read_layers, recipe_names
from mmkd.errors import DataError, EncoderError, RecipeError

ITEMS = pl.DataFrame(
    {
        "sku": [f"A{n}" for n in range(40)],
        "name": [f"thing {n}" for n in range(40)],
        "genres": ["a|b" if n % 2 else "c" for n in range(40)],
        "price": range(40),
    }
)
LOG = pl.DataFrame(
    [(f"u{u}", f"A{(u + 3 * n) % 40}", n) for u in range(12) for n in range(4 + 2 * u)],
    schema=["user_id", "sku", "timestamp"],
    orient="row",
)


class Lengths:
    modality, dim, version = "text", 2, 1

    def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
        return np.array([[len(text), text.count("1")] for text in inputs], np.float32)


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data() -> mmkd.Dataset:
    return mmkd.Dataset.load(items=ITEMS, events=LOG, attributes="genres")


@pytest.fixture
def shop(data: mmkd.Dataset) -> mmkd.Dataset:
    ITEMS.write_csv("items.csv")
    LOG.write_csv("log.csv")
    return mmkd.Dataset.load(items="items.csv", events="log.csv", attributes="genres")


# presets


def test_presets_are_no_recipes_but_are_found_by_name() -> None:
    assert preset_names() == ["best", "emkd", "fused", "id", "kdsr", "soft"]
    assert not {*preset_names()} & {*recipe_names()}
    with pytest.raises(RecipeError, match="data: required"):
        load_recipe("kdsr")


@pytest.mark.parametrize("name", ["best", "emkd", "fused", "id", "kdsr", "soft"])
def test_a_preset_is_a_base_of_a_recipe_and_carries_its_files_name(name: str) -> None:
    preset = merge_layers(read_layers(find_recipe(name))).content
    assert preset["name"] == name and "data" not in preset
    encoders = "" if "encoders" in preset else "encoders: {text: hashed-text}\n"
    Path("own.yaml").write_text(
        f"base: {name}\nname: own\n{encoders}"
        "data: {root: ., items: {path: i.csv, text: '{name}', attributes: g}, "
        "interactions: {path: l.csv}}\n"
    )
    found = plan(load_recipe("own.yaml"))
    assert found.recipe.name == "own"
    assert (found.objective.correlation is not None) == (name == "kdsr")
    assert (found.objective.mutual is not None) == (name == "emkd")
    assert (found.recipe.student.score_with == "fused") == (name not in ("id", "emkd"))
    assert (found.objective.neighbours is not None) == (name == "soft")
    assert found.members.weights_chosen == found.members.offset_chosen == (name == "best")


def test_a_preset_of_ones_own_is_one_file() -> None:
    Path("recipes/presets").mkdir(parents=True)
    text = find_recipe("id").read_text("utf-8").replace("name: id", "name: mine")
    Path("recipes/presets/mine.yaml").write_text(text)
    assert "mine" in preset_names() and load_recipe("mine", DATA).student.score_with == "id"


DATA = ["data.root=.", "data.items.path=i.csv", "data.interactions.path=l.csv"]


def test_a_file_beside_the_recipe_hides_a_preset_of_its_name() -> None:
    text = find_recipe("kdsr").read_text("utf-8").replace("epochs: 20", "epochs: 3")
    Path("kdsr.yaml").write_text(text)
    Path("own.yaml").write_text("base: kdsr\nname: own\n")
    assert load_recipe("own.yaml", DATA).training["epochs"] == 3
    Path("id.yaml").write_text("base: id\nname: changed\n")  # not of itself
    assert load_recipe("id.yaml", DATA).name == "changed"


# joining


def test_files_make_the_recipe_that_reads_them(shop: mmkd.Dataset) -> None:
    found = joined(shop, "kdsr", encoders={"text": "hashed-text"}, folder=Path("runs/shop"))
    assert found.load_data() is shop and found.recipe.name == "shop"
    again = plan(found.recipe).load_data()
    assert again.digests() == shop.digests() and again.items == shop.items
    assert found.recipe.data.items["path"] == "items.csv"


def test_a_preset_is_fitted_and_overrides_win(data: mmkd.Dataset) -> None:
    # histories of 4 to 26 events: the 95th percentile is 24.9
    preset = merge_layers(read_layers(find_recipe("kdsr"))).content
    assert fitting(data, preset) == {
        "training": {"max_length": 30},
        "distiller": {"dim": 16, "codes": 16},  # 40 items fill 16 dimensions twice
    }
    bare = mmkd.Dataset.load(items=ITEMS, events=LOG, attributes=None)
    emkd = merge_layers(read_layers(find_recipe("emkd"))).content
    assert fitting(bare, emkd)["objective"] == {"attributes": None}
    assert "objective" not in fitting(data, emkd)
    given = {"training.max_length": 7, "training.betas": (0.8, 0.9), "seed": 5}
    found = joined(data, "kdsr", encoders={"text": "hashed-text"}, overrides=given)
    assert found.training.max_length == 7 and found.training.betas == (0.8, 0.9)
    assert found.recipe.seed == 5 and found.distiller is not None
    assert found.distiller["dim"] == 16
    written = ["training.max_length=7", "training.betas=[0.8, 0.9]", "seed=5"]
    encoders = {"text": Path("hashed-text")}
    assert joined(data, "kdsr", encoders=encoders, overrides=written).recipe == found.recipe


def test_without_encoders_a_preset_learns_ids(data: mmkd.Dataset) -> None:
    for found in (joined(data, "kdsr"), joined(data, "kdsr", encoders={})):
        assert not found.cards and found.objective.correlation is None
        assert found.recipe.student.score_with == "id" and len(found.recipe.notes) == 1


def test_a_recipe_keeps_its_encoders_and_loses_its_data(data: mmkd.Dataset) -> None:
    recipe = load_recipe("quickstart")
    found = joined(data, recipe)
    assert found.recipe.encoders == recipe.encoders and found.recipe.name == "quickstart"
    assert found.recipe.training == recipe.training  # a recipe is not fitted
    assert found.recipe.data.items["id"] == "sku"
    assert joined(data, "quickstart").recipe == found.recipe
    only = joined(data, recipe, encoders={"words": "hashed-text"})
    assert only.recipe.encoders == {"words": "hashed-text"} and not only.recipe.notes
    assert not joined(data, recipe, encoders={}).recipe.encoders


def test_an_object_is_a_card_that_only_its_identity_makes_anothers(data: mmkd.Dataset) -> None:
    first, second = (joined(data, "fused", encoders={"text": Lengths()}) for _ in range(2))
    assert first.cards["text"].fingerprint() != second.cards["text"].fingerprint()
    assert first.recipe.encoders == {"text": "Lengths"}

    class Known(Lengths):
        identity = "in characters"

    one, two = (joined(data, "fused", encoders={"text": Known()}).cards["text"] for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    card = EncoderCard.of(Lengths(), name="mine", identity="x")
    assert joined(data, "fused", encoders={"text": card}).cards == {"text": card}
    # an override names another card
    other = joined(data, "fused", encoders={"text": card}, overrides=["encoders.text=hashed-text"])
    assert other.cards["text"].kind == "hashed_text"
    with pytest.raises(EncoderError, match="is no encoder"):
        joined(data, "fused", encoders={"text": 3})  # type: ignore[dict-item]


def test_a_split_that_is_a_function_has_no_name() -> None:
    from mmkd.data.splits import leave_one_out

    data = mmkd.Dataset.load(items=ITEMS, events=LOG, split=leave_one_out)
    with pytest.raises(DataError, match="split: is a function of your own"):
        data_section(data)
