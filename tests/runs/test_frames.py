"""How a run's recipe names the tables that the run keeps itself."""

from pathlib import Path

import pytest

from mmkd.config.recipe import read_recipe
from mmkd.runs.frames import frame_file, from_folder, to_absolute


def content(items: Path | str, interactions: Path | str = "log.csv") -> dict[str, object]:
    return {
        "name": "x",
        "data": {
            "root": "shop",
            "items": {"path": str(items), "id": "sku"},
            "interactions": {"path": str(interactions)},
        },
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a", "b", "dollar ${x}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
        (tmp_path / name / "data_items.parquet").touch()
    return tmp_path


def test_only_what_a_run_keeps_is_named_from_the_run(runs: Path) -> None:
    own = frame_file(runs / "a", "items")
    there = from_folder(content(own), runs / "a")
    assert there == content("run:data_items.parquet")
    assert to_absolute(there, runs / "a") == content(own)
    others = from_folder(content(own), runs / "b")
    assert others == content("run:../a/data_items.parquet")
    assert to_absolute(others, runs / "b") == content(own)
    frame_file(runs / "a", "items").unlink()
    assert to_absolute(others, runs / "b") == content(frame_file(runs / "b", "items"))  # its copy
    for path in (runs / "data_items.parquet", runs / "a" / "items.csv", "data_items.parquet"):
        assert from_folder(content(path), runs / "a") == content(path)
        assert to_absolute(content("items.csv"), runs / "a") == content("items.csv")


def test_an_old_run_that_was_moved_reads_its_own_table(runs: Path) -> None:
    old = content("/where/it/was/data_items.parquet", "/where/it/was/data_interactions.parquet")
    found = to_absolute(old, runs / "a")
    # it keeps no log: that one was a file elsewhere, of whatever name
    assert found == content(runs / "a" / "data_items.parquet", old["data"]["interactions"]["path"])  # type: ignore[index]


def test_a_folder_may_be_called_like_an_interpolation(runs: Path) -> None:
    folder = runs / "dollar ${x}"
    (folder / "recipe.yaml").write_text(
        "name: x\ndata:\n root: .\n items: {path: 'run:data_items.parquet', id: a}\n"
        " interactions: {path: log.csv}\n"
        "student: {backbone: sasrec, score_with: id}\ntask: next_item\n"
        "objective: {recommendation: softmax}\n"
    )
    recipe = read_recipe(str(folder / "recipe.yaml"))
    assert recipe.data.items["path"] == str(folder / "data_items.parquet")
    (folder / "recipe.yaml").write_text(recipe.to_yaml(folder))
    assert read_recipe(str(folder / "recipe.yaml")) == recipe
