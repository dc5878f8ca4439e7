"""``mmkd init``: a recipe from two files, what it says, and that it trains."""

import doctest
import shlex
from pathlib import Path

import polars as pl
import pytest
from commands import invoke, printed
from PIL import Image

from mmkd import load_recipe
from mmkd.config import start
from mmkd.errors import DataError, RecipeError


def write_shop(folder: Path, *, pictures: bool = True, words: bool = True) -> None:
    folder.mkdir(parents=True)
    ids = [f"P{number}" for number in range(24)]
    columns = {"sku": ids, "picture": [f"{one}.png" for one in ids]}
    if words:
        columns |= {"name": [f"thing {one}" for one in ids]}
    if pictures:
        (folder / "pictures").mkdir()
        for number, one in enumerate(ids):
            Image.new("RGB", (16, 16), (number * 10, 90, 40)).save(folder / f"pictures/{one}.png")
    pl.DataFrame(columns).write_csv(folder / "items.csv")
    events = [
        (f"c{user}", ids[(user * 5 + step * (user % 3 + 1)) % 24], f"2024-03-{step + 1:02}")
        for user in range(30)
        for step in range(6)
    ]
    events.append(("c1", "gone", "2024-03-09"))
    schema = ["customer_id", "sku", "date"]
    pl.DataFrame(events, schema=schema, orient="row").write_csv(folder / "events.csv")


def init(*more: str, folder: str = "shop") -> str:
    files = ("--items", f"{folder}/items.csv", "--events", f"{folder}/events.csv")
    result = invoke("init", *files, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_recipe_says_what_was_guessed_and_trains(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop")
    told = init()
    for line in (
        "shop/items.csv: id = 'sku' (a usual name of the items' ids)",
        "shop/items.csv: image_root = 'pictures'",
        "shop/events.csv: user = 'customer_id'",
        "1 of 181 events dropped: they are of 1 item that the catalogue lacks ('gone')",
        "30 users, 24 items, 180 events",
        "wrote shop.yaml",
        "next: mmkd validate shop.yaml, then mmkd train shop.yaml",
    ):
        assert line in told
    recipe = load_recipe("shop.yaml")
    assert recipe.data.root == "shop"
    assert recipe.data.items == {
        "path": "items.csv",
        "id": "sku",
        "title": "name",
        "text": "{name}",
        "image": "picture",
        "image_root": "pictures",
    }
    assert recipe.data.interactions == {
        "path": "events.csv",
        "user": "customer_id",
        "item": "sku",
        "timestamp": "date",
        "unknown_items": "drop",
    }
    assert recipe.encoders == {"text": "hashed-text", "image": "color-image"}
    found = printed("validate", "shop.yaml")
    assert found["data"]["users"] == 30 and found["data"]["dropped"]["unknown_items"] == 1
    small = ("training.epochs=1", "training.cpu=true", "evaluation.resamples=20")
    result = printed("train", "shop.yaml", *small)
    assert result["recipe"] == "shop" and result["test"]["n"] == 30
    assert Path("runs/shop/result.json").exists()


@pytest.mark.parametrize(
    ("parts", "encoders"),
    [
        ({"pictures": False}, {"text": "hashed-text"}),
        ({"words": False}, {"image": "color-image"}),
        ({"words": False, "pictures": False}, {}),
    ],
)
def test_encoders_follow_what_is_there(
    tmp_path: Path, parts: dict[str, bool], encoders: dict[str, str]
) -> None:
    write_shop(tmp_path / "a b" / "no", **parts)
    init("--name", "mine", folder="a b/no")
    recipe = load_recipe("mine.yaml")
    assert recipe.encoders == encoders and recipe.data.root == "a b/no"
    assert (recipe.student.score_with == "id") == (not encoders)
    assert printed("validate", "mine.yaml")["valid"] is True


def test_a_preset_is_the_base_and_only_what_the_data_changes_is_written(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop")
    init()
    assert "base: best " in Path("shop.yaml").read_text()
    recipe, preset = load_recipe("shop.yaml"), load_recipe("best", PLACES)
    assert recipe.objective == preset.objective and recipe.student == preset.student
    assert recipe.training == {**preset.training, "max_length": 10}  # six events a user
    assert recipe.ensemble == preset.ensemble
    for name in ("id", "fused", "kdsr", "emkd"):
        init("--preset", name, "--name", name)
        recipe = load_recipe(f"{name}.yaml")
        assert bool(recipe.encoders) == (name in ("fused", "kdsr"))
        if name == "kdsr":  # eight items fill no more
            distiller = recipe.distiller or {}
            assert distiller["dim"] == distiller["codes"] == 8
        assert (recipe.ensemble.get("members") == 3) == (name == "emkd")
        assert recipe.objective.attributes is None  # the shop has no labels
        assert printed("validate", f"{name}.yaml", "--no-data")["valid"] is True
    with pytest.raises(RecipeError, match=r"preset: got 'kdrs', wanted one of best, .*mean 'kdsr'"):
        init("--preset", "kdrs", "--name", "other")
    assert not Path("other.yaml").exists()


PLACES = ["data.root=.", "data.items.path=i.csv", "data.interactions.path=l.csv"]


def test_files_in_two_folders_have_the_folder_above_as_root(tmp_path: Path) -> None:
    write_shop(tmp_path / "in" / "catalogue")
    (tmp_path / "in" / "log").mkdir()
    (tmp_path / "in" / "catalogue" / "events.csv").rename(tmp_path / "in" / "log" / "events.csv")
    invoke("init", "--items", "in/catalogue/items.csv", "--events", "in/log/events.csv")
    recipe = load_recipe("shop.yaml")
    assert recipe.data.root == "in" and recipe.data.items["path"] == "catalogue/items.csv"
    assert recipe.data.items["image_root"] == "catalogue/pictures"
    assert printed("validate", "shop.yaml")["data"]["pictures_missing"] == 0


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop")
    Path("own.yaml").write_text("precious")
    with pytest.raises(RecipeError, match=r"own\.yaml: exists; give --force"):
        init("--out", "own.yaml")
    assert Path("own.yaml").read_text() == "precious"
    init("--out", "own.yaml", "--force")
    assert load_recipe("own.yaml").name == "own"


def test_mistakes_write_nothing(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop")
    with pytest.raises(RecipeError, match="a recipe's name ends in"):
        init("--out", "own.txt")
    with pytest.raises(RecipeError, match=r"name: got 'a/b', wanted text that matches"):
        init("--name", "a/b", "--out", "x.yaml")
    with pytest.raises(DataError, match=r"no column 'who' \(user\)"):
        init("--user", "who")
    log = pl.read_csv("shop/events.csv")
    log.with_columns(visitor_id="customer_id").write_csv("shop/events.csv")
    with pytest.raises(DataError, match=r"'customer_id', 'visitor_id' may all be users' ids"):
        init()
    assert not list(tmp_path.glob("*.yaml"))
    init("--user", "visitor_id")
    assert load_recipe("shop.yaml").data.interactions["user"] == "visitor_id"


def test_the_example_runs() -> None:
    assert doctest.testmod(start).failed == 0


def test_a_recipe_can_read_its_log_from_a_sequence_file(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop")
    init()
    whole = printed("validate", "shop.yaml")
    written = printed("data", "sequences", "shop.yaml")
    assert written == {"path": f"{tmp_path}/shop/events.sequences", "users": 30, "events": 180}
    again = printed("validate", "shop.yaml", "data.interactions.path=events.sequences")
    for name in ("users", "events", "valid_cases", "test_cases", "dropped", "tied_events"):
        assert again["data"][name] == whole["data"][name]
    result = invoke("data", "sequences", "shop.yaml", "--out", "x.sequences")
    assert "180 events of 30 users" in result.output and Path("x.sequences").is_file()
    content = Path("shop/events.csv").read_bytes()
    for taken in ("shop/events.csv", "shop/items.csv"):
        with pytest.raises(DataError, match="the data is read from this file"):
            invoke("data", "sequences", "shop.yaml", "--out", taken)
    assert Path("shop/events.csv").read_bytes() == content
    csv = ("data.interactions.format=csv", 'data.interactions.separator=","')
    result = invoke("data", "sequences", "shop.yaml", *csv, "--out", "my log.bin")
    use = shlex.split(result.output.partition("use it: ")[2])
    assert printed("validate", "shop.yaml", *csv, *use)["data"]["events"] == 180
    small = ("training.epochs=1", "training.cpu=true", "evaluation.resamples=20", "encoders=null")
    first = printed("train", "shop.yaml", "name=a", *small)
    second = printed(
        "train", "shop.yaml", "name=b", "data.interactions.path=events.sequences", *small
    )
    assert first["test"]["metrics"] == second["test"]["metrics"]
