"""``mmkd.train``: from frames and an encoder object to a run that another process reads."""

import doctest
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from synthetic_runs import recipe_of

import mmkd
import mmkd.config.joining
import mmkd.pipeline.run
from mmkd.errors import EncoderError, RecipeError, RunError
from mmkd.pipeline.evaluate import evaluate
from mmkd.pipeline.opening import compressing

WORDS = "red blue tea cup tray rug lamp oak".split()
ITEMS = pl.DataFrame(
    {
        "sku": range(1, 41),
        "name": [f"{WORDS[n % 4]} {WORDS[4 + n % 3]}" for n in range(40)],
        "price": [1.5] * 40,
    }
)
LOG = pl.DataFrame(
    [(f"u{u}", 1 + (u + 3 * n) % 40, f"2024-03-{n + 1:02}") for u in range(30) for n in range(7)],
    schema=["customer_id", "sku", "date"],
    orient="row",
)
SMALL = {
    "training.epochs": 1,
    "training.cpu": True,
    "training.threads": 1,
    "evaluation.resamples": 20,
    "student.embedding.width": 8,
    "distiller.facets": 2,
}
IDS = {key: value for key, value in SMALL.items() if key != "distiller.facets"}


class Words:
    """A text's words, counted."""

    modality, dim = "text", 8

    def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
        return np.array([[text.count(word) for word in WORDS] for text in inputs], np.float32)


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mmkd.Run:
    folder = tmp_path_factory.mktemp("shop")
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    return mmkd.train(
        data,
        "kdsr",
        encoders={"text": Words()},
        folder=folder / "runs" / "shop",
        overrides={**SMALL, "cache.folder": folder / "cache"},
    )


def test_a_run_keeps_the_frames_that_it_was_trained_on(run: mmkd.Run) -> None:
    again = mmkd.load(run.folder.path)
    assert again.recipe.name == "shop"
    assert again.data.log.user_ids == tuple(f"u{n}" for n in range(30))
    kept = pl.read_parquet(run.folder.frame("items"))
    assert kept.columns == ["sku", "name"]  # the price is read by nobody
    lists = again.recommend(users=["u3"], k=3)
    history = again.data.split.sequence(3)
    direct = again.recommend([again.items.ids[row] for row in history], k=3)
    assert lists["item_id"].to_list() == direct["item_id"].to_list()


def test_a_run_with_an_encoder_object_is_evaluated_without_it(run: mmkd.Run) -> None:
    found = evaluate(run.folder.path)["metrics"]
    assert found == pytest.approx(run.result["test"]["metrics"])


def test_an_object_serves_the_run_that_it_trained(run: mmkd.Run, tmp_path: Path) -> None:
    near = run.similar(["1"], k=3, by="text")
    vectors = Words().encode(ITEMS["name"].to_list())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = np.delete(unit @ unit[0], 0)
    assert near["score"].to_list() == pytest.approx(np.sort(cosine)[::-1][:3].tolist(), abs=1e-6)
    new = pl.DataFrame({"sku": [99], "name": ["red rug"], "price": [2.0]})
    tomorrow = run.add_items(new, out=tmp_path / "tomorrow")
    assert tomorrow.items.titles[-1] == "red rug"
    with pytest.raises(RecipeError, match=r"encoders\.text: .*'Words' is unknown"):
        mmkd.load(run.folder.path).similar(["1"], by="text")


def test_an_object_with_an_identity_can_be_given_again(tmp_path: Path) -> None:
    class Known(Words):
        identity = "eight words"

    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    mmkd.train(data, "fused", encoders={"text": Known()}, folder="runs/known", overrides=SMALL)
    again = mmkd.load("known", encoders={"text": Known()})
    again.add_items(pl.DataFrame({"sku": [99], "name": ["red rug"]}), out="runs/more")
    others = mmkd.EncoderCard.of(Words(), name="Known", identity="others")
    other = mmkd.load("known", encoders={"text": others})
    with pytest.raises(RunError, match=r"the card Known of encoders\.text changed"):
        other.add_items(pl.DataFrame({"sku": [98], "name": ["red cup"]}), out="runs/other")


def test_frames_lie_in_the_folder_that_the_recipe_names() -> None:
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    told: list[str] = []
    overrides = [*(f"{k}={str(v).lower()}" for k, v in IDS.items()), "name=ids"]
    run = mmkd.train(data, overrides=overrides, announce=told.append)
    assert run.folder.path == Path("runs/ids") and run.recipe.encoders == {}
    assert run.data.digests() == data.digests()
    assert told[0].startswith("encoders: no encoder is left, so only ids are learned: ")
    again = mmkd.train(data, overrides=overrides, resume=True)
    assert again.result == run.result


def test_a_backbone_class_is_named_by_its_module(tmp_path: Path) -> None:
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    overrides = {**IDS, "student.backbone": {"kind": mmkd.GRU4Rec, "hidden": 8}}
    run = mmkd.train(data, folder="runs/gru", overrides=overrides)
    assert run.recipe.student.backbone.kind == "mmkd.student.backbones.gru4rec:GRU4Rec"


def test_a_recipe_trains_as_before_by_name_path_object_and_plan(synthetic: list[str]) -> None:
    recipe = recipe_of(synthetic, "training.epochs=1", "name=by-object")
    first = mmkd.train(recipe)
    assert first.folder.path == Path("runs/by-object")
    recipe.save(Path("own.yaml"))
    by_path = mmkd.train("own.yaml", folder="runs/path", overrides={"encoders": None})
    assert by_path.recipe.encoders == {} and by_path.recipe.objective.correlation is None
    by_keyword = mmkd.train(recipe=mmkd.plan(recipe).recipe, folder="runs/keyword")
    assert by_keyword.result["test"] == first.result["test"]
    by_plan = mmkd.train(mmkd.plan(recipe), folder="runs/plan")
    assert by_plan.result["test"] == first.result["test"]


def test_an_old_spelling_is_a_warning_in_python(synthetic: list[str]) -> None:
    with pytest.warns(FutureWarning, match="is called task.views now"):
        recipe = recipe_of(synthetic, "objective.recommendation.views=1", "training.epochs=1")
    with pytest.warns(FutureWarning, match="is called task.views now"):
        mmkd.train(recipe, folder="runs/old", overrides=["objective.recommendation={views: 1}"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give a Dataset with a recipe, or a recipe that has data of its own"),
        ({"data": "a.yaml", "recipe": "kdsr"}, "give a Dataset with a recipe"),
        ({"data": "nowhere.yaml"}, "nowhere.yaml: no such recipe file"),
        ({"data": "kdsr"}, "data: required, but not given"),
    ],
)
def test_what_cannot_be_joined_is_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        mmkd.train(**arguments)


def test_a_plan_is_not_changed(synthetic: list[str]) -> None:
    planned = mmkd.plan(recipe_of(synthetic))
    with pytest.raises(RecipeError, match="a plan is made of its recipe already"):
        mmkd.train(planned, overrides=["training.epochs=1"])
    with pytest.raises(EncoderError, match="is no encoder"):
        mmkd.train(planned.recipe, encoders={"text": object()})  # type: ignore[dict-item]


@pytest.mark.parametrize("module", [mmkd.pipeline.run, mmkd.config.joining])
def test_the_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_overwriting_a_run_of_frames_keeps_the_only_copy_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    first = mmkd.train(data, folder="runs/shop", overrides=IDS)
    expected = first.recommend(users=["u3"], k=5)
    recipe = "runs/shop/recipe.yaml"

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mmkd.training.trainer.Trainer.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            mmkd.train(recipe, folder="runs/shop", overwrite=True)
    assert not first.folder.finished
    again = mmkd.train(recipe, folder="runs/shop", overwrite=True)
    assert again.recommend(users=["u3"], k=5).equals(expected)
    # killed between the end of the old run and the first word of the new one
    with monkeypatch.context() as patched:
        patched.setattr("mmkd.pipeline.opening.RunFolder.write", killed)
        with pytest.raises(KeyboardInterrupt):
            mmkd.train(recipe, folder="runs/shop", overwrite=True)
    assert mmkd.train(recipe, folder="runs/shop", overwrite=True).data.digests() == data.digests()


def test_a_run_overwritten_by_one_of_other_data_keeps_no_frames_of_the_old(
    synthetic: list[str],
) -> None:
    run = mmkd.train(mmkd.Dataset.load(items=ITEMS, events=LOG), folder="runs/x", overrides=IDS)
    assert run.folder.frame("items").is_file()
    other = recipe_of(synthetic, "training.epochs=1")
    mmkd.train(other, folder="runs/x", overwrite=True)
    assert not run.folder.frame("items").exists()
    assert not run.folder.frame("interactions").exists()


def test_a_run_of_frames_may_be_moved(tmp_path: Path) -> None:
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    overrides = {**SMALL, "cache.folder": tmp_path / "cache"}
    texts = {"text": "hashed-text"}
    run = mmkd.train(data, "fused", encoders=texts, folder="runs/shop", overrides=overrides)
    expected = run.recommend(users=["u3"], k=5)
    shutil.move("runs", "elsewhere")
    moved = mmkd.load("elsewhere/shop")
    assert str(tmp_path) not in (moved.folder.path / "recipe.yaml").read_text().replace(
        str(tmp_path / "cache"), ""
    )
    assert moved.recommend(users=["u3"], k=5).equals(expected)
    assert evaluate(moved.folder.path)["metrics"] == pytest.approx(moved.result["test"]["metrics"])
    again = mmkd.train(
        data,
        "fused",
        encoders=texts,
        folder="elsewhere/shop",
        overrides={**overrides, "name": "shop"},
        resume=True,
    )
    assert again.result == moved.result
    added = moved.add_items(pl.DataFrame({"sku": [99], "name": ["red rug"]}), out="elsewhere/more")
    assert added.items.titles[-1] == "red rug"
    shutil.move("elsewhere/more", "more")
    with pytest.raises(RunError, match="holds 1 items that were added without training"):
        mmkd.load("more").data  # noqa: B018


def test_a_run_on_the_frames_of_another_may_be_moved_alone() -> None:
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    large = mmkd.train(data, folder="runs/large", overrides=IDS)
    recipe = compressing(large.folder)
    small = mmkd.train(recipe, folder="runs/small")
    expected = small.recommend(users=["u3"], k=5)
    assert mmkd.train(recipe, folder="runs/small", resume=True).result == small.result
    shutil.move("runs/small", "small")
    shutil.rmtree("runs")
    moved = mmkd.load("small")
    assert moved.data.digests() == data.digests()
    assert moved.recommend(users=["u3"], k=5).equals(expected)
    assert evaluate(Path("small"))["metrics"] == pytest.approx(small.result["test"]["metrics"])
    assert moved.recipe.data.items["path"] == str(Path("small/data_items.parquet").absolute())


def test_an_unfinished_run_of_frames_resumes_where_it_was_moved_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = mmkd.Dataset.load(items=ITEMS, events=LOG)
    whole = mmkd.train(data, folder="runs/whole", overrides={**IDS, "name": "shop"})

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mmkd.training.trainer.Trainer.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            mmkd.train(data, folder="runs/shop", overrides=IDS)
    shutil.move("runs/shop", "shop")
    (Path("shop") / "data_items.parquet").unlink()  # killed before that was written
    resumed = mmkd.train(data, folder="shop", overrides=IDS, resume=True)
    assert resumed.data.digests() == data.digests()
    assert resumed.recommend(users=["u3"], k=5).equals(whole.recommend(users=["u3"], k=5))
