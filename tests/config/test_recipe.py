"""Recipes: reading, inheriting, overriding, refusing, and writing back."""

from pathlib import Path

import pytest
import yaml

from mmkd import Recipe, load_recipe
from mmkd.config.recipe import Spec, recipe_digest, recipe_names

MINIMAL = """
name: x
data:
  root: data
  items: {path: items.csv, text: "{title}. {plot}"}
  interactions: {path: log.csv}
  split: leave_one_out
encoders: {text: minilm, image: clip}
student:
  embedding: {width: 64}
  backbone: {kind: sasrec, layers: 2, heads: 4}
  score_with: fused
task: next_item
objective:
  recommendation: softmax
training: {lr: 1e-3, epochs: 10}
evaluation: {ks: [5, 10]}
"""

SHIPPED = [path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    write("x", MINIMAL)
    return tmp_path


def write(name: str, text: str) -> str:
    path = Path("recipes", f"{name}.yaml")
    path.write_text(text, encoding="utf-8")
    return str(path)


# reading


def test_a_recipe_is_read_with_yaml_types() -> None:
    recipe = load_recipe("x")
    assert recipe == load_recipe("recipes/x.yaml")
    assert type(recipe.training["lr"]) is float and recipe.training["lr"] == 0.001
    assert type(recipe.training["epochs"]) is int
    assert recipe.seed == 0
    assert recipe.student.backbone.kind == "sasrec"
    assert recipe.student.backbone.options == {"layers": 2, "heads": 4}
    assert recipe.data.split == Spec(kind="leave_one_out")
    assert recipe.asynchronous.kind == "none"
    assert recipe.distiller is None and recipe.objective.correlation is None


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("x").seed = 3  # type: ignore[misc]


def test_a_relative_root_counts_from_the_working_folder(tmp_path: Path) -> None:
    assert load_recipe("x").data.folder == tmp_path / "data"
    assert load_recipe("x", ["data.root=/abs"]).data.folder == Path("/abs")
    assert load_recipe("x").data.root == "data"


def test_messages_about_a_section_start_with_file_and_section() -> None:
    recipe = load_recipe("x")
    assert recipe.where("distiller") == "recipes/x.yaml: distiller"
    assert Recipe.model_validate(recipe.model_dump()).where("data") == "x: data"


def test_the_working_folder_wins_over_the_checkout() -> None:
    assert {"x", "ml-1m-kdsr"} <= set(recipe_names())
    write("quickstart", MINIMAL)
    assert load_recipe("quickstart").name == "x"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_reads_and_carries_its_file_s_name(name: str) -> None:
    recipe = load_recipe(name, ["data.root=somewhere"])
    assert recipe.name == name
    kind = name.removesuffix("-small")
    assert bool(recipe.encoders) == (not kind.endswith(("-id", "-emkd")))
    distils = kind.endswith(("-kdsr", "-full", "quickstart"))
    assert (recipe.objective.correlation is not None) == distils
    several = kind.endswith(("-emkd", "-full"))
    assert (recipe.ensemble.get("members", 1) == 3) == several
    assert (recipe.objective.mutual is not None) == several


# overrides and inheritance


def test_overrides_are_yaml_and_merge() -> None:
    recipe = load_recipe(
        "x",
        [
            "training.lr=5e-4",
            "evaluation.ks=[1]",
            "encoders.image=null",
            "distiller={codes: 8}",
            "distiller.dim=16",
            "data.split.min_train_events=2",
            'data.items.text="{title}"',
        ],
    )
    assert recipe.training == {"lr": 0.0005, "epochs": 10}
    assert recipe.evaluation == {"ks": [1]}
    assert recipe.encoders == {"text": "minilm"}
    assert recipe.distiller == {"codes": 8, "dim": 16}
    assert recipe.data.split == Spec.model_validate(
        {"kind": "leave_one_out", "min_train_events": 2}
    )
    assert recipe.data.items == {"path": "items.csv", "text": "{title}"}


def test_another_kind_starts_from_its_own_defaults() -> None:
    same = load_recipe("x", ["student.backbone.kind=sasrec", "student.backbone.layers=1"])
    assert same.student.backbone.options == {"layers": 1, "heads": 4}
    other = load_recipe("x", ["student.backbone.layers=3", "student.backbone.kind=gru4rec"])
    assert other.student.backbone.options == {"layers": 3}
    assert load_recipe("x", ["student.backbone=gru4rec"]).student.backbone.options == {}


def test_a_variant_holds_only_what_differs_from_its_base() -> None:
    write(
        "y",
        "base: x\nname: y\nencoders: null\ntraining: {lr: 2e-3}\nevaluation: {ks: [1]}\n"
        "student: {backbone: {kind: gru4rec, hidden: 8}, score_with: id}\n",
    )
    base, variant = load_recipe("x"), load_recipe("y", ["training.epochs=3"])
    assert variant.name == "y" and variant.encoders == {}
    assert variant.training == {"lr": 0.002, "epochs": 3}
    assert variant.evaluation == {"ks": [1]}
    assert variant.student.embedding == base.student.embedding
    assert variant.student.backbone.options == {"hidden": 8}
    assert variant.data == base.data
    assert "base" not in yaml.safe_load(variant.to_yaml())


def test_a_base_lies_beside_its_variant(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "x.yaml").write_text(MINIMAL.replace("epochs: 10", "epochs: 99"))
    (other / "y.yaml").write_text("base: x\nname: y\n")
    assert load_recipe(str(other / "y.yaml")).training["epochs"] == 99


def test_interpolation_refers_to_another_key() -> None:
    write("z", MINIMAL + 'cache: {folder: "${data.root}/cache"}\n')
    assert load_recipe("z", ["data.root=there"]).cache == {"folder": "there/cache"}


# writing back


@pytest.mark.parametrize("name", [*SHIPPED, "x"])
def test_a_saved_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["data.root=there"])
    path = tmp_path / "run" / "recipe.yaml"
    recipe.save(path)
    again = load_recipe(str(path))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)
    assert [file.name for file in path.parent.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "value",
    ["1e-3", "no", "null", "${a}", "???x", "", " padded ", "ä\n: #", "{title}", "2020-01-01"],
)
def test_awkward_texts_survive_the_round_trip(value: str, tmp_path: Path) -> None:
    content = load_recipe("x").model_dump()
    content["cache"] = {"folder": value, "list": [value, {"deep": value}], "numbers": [1e-9, 10]}
    recipe = Recipe.model_validate(content)
    recipe.save(tmp_path / "r.yaml")
    assert load_recipe(str(tmp_path / "r.yaml")) == recipe


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, path = load_recipe("x"), tmp_path / "run" / "recipe.yaml"
    recipe.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        load_recipe("x", ["seed=5"]).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["recipe.yaml"]


def test_the_digest_tells_recipes_apart_but_not_their_place() -> None:
    write("copy", MINIMAL)
    recipe = load_recipe("x")
    assert recipe_digest(load_recipe("copy")) == recipe_digest(recipe)
    assert hash(load_recipe("copy")) == hash(recipe)
    assert load_recipe("x", ["seed=1"]) != recipe
    assert recipe_digest(load_recipe("x", ["seed=1"])) != recipe_digest(recipe)
