"""Recipes and lists as a person or a program asks for them."""

import shutil
from pathlib import Path

import pytest
import yaml
from commands import Shop, invoke, printed

import mmkd
from mmkd.runs.folder import RunFolder

# recipes


def test_version_and_help() -> None:
    assert invoke("--version").stdout == f"mmkd {mmkd.__version__}\n"
    told = invoke("--help").stdout
    for verb in ("validate", "embed", "train", "evaluate", "recommend", "neighbours", "ls", "cp"):
        assert verb in told


def test_validate(shop: Shop) -> None:
    told = invoke("validate", "quickstart", *shop.overrides, "--no-data").stdout
    assert told == "quickstart: valid\n"
    assert printed("validate", "quickstart", *shop.overrides, "--no-data") == {
        "recipe": "quickstart",
        "valid": True,
    }


def test_cp_then_edit_then_validate(shop: Shop, tmp_path: Path) -> None:
    told = invoke("cp", "quickstart", "recipes/mine.yaml").stdout
    assert told.strip() == "quickstart.yaml -> recipes/mine.yaml"
    path = tmp_path / "recipes" / "mine.yaml"
    path.write_text(path.read_text("utf-8").replace("name: quickstart", "name: mine"), "utf-8")
    assert invoke("validate", "mine", *shop.overrides).stdout.startswith("mine: valid\n200 users")


def test_cp_copies_a_card_into_a_folder(tmp_path: Path) -> None:
    invoke("cp", "hashed-text", "encoders")
    card = yaml.safe_load((tmp_path / "encoders" / "hashed-text.yaml").read_text("utf-8"))
    assert card["kind"] == "hashed_text"


def test_cp_replaces_only_with_force(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("precious", "utf-8")
    with pytest.raises(ValueError, match=r"mine\.yaml: exists; give --force"):
        invoke("cp", "quickstart", target)
    assert target.read_text("utf-8") == "precious"
    invoke("cp", "quickstart", target, "--force")
    assert yaml.safe_load(target.read_text("utf-8"))["name"] == "quickstart"


# lists


def test_ls_recipes_and_encoders() -> None:
    recipes = {row["recipe"]: row["what"] for row in printed("ls")}
    assert "made-up catalogue" in recipes["quickstart"]
    cards = {row["card"]: row for row in printed("ls", "encoders")}
    assert cards["hashed-text"]["modality"] == "text"
    assert cards["color-image"]["modality"] == "image"
    for what in ("recipes", "encoders"):
        assert len(invoke("ls", what).stdout.splitlines()) > 2


def test_presets_are_listed_and_copied(tmp_path: Path) -> None:
    presets = {row["preset"]: row["what"] for row in printed("ls", "presets")}
    assert (
        presets.keys() == {"best", "emkd", "fused", "id", "kdsr", "soft"}
        and "2401.07257" in presets["kdsr"]
    )
    told = invoke("cp", "kdsr", ".").stdout
    assert told.strip() == "kdsr.yaml -> kdsr.yaml" and Path("kdsr.yaml").is_file()


def test_encoders_null_is_told_once_on_standard_error(shop: Shop) -> None:
    given = [one for one in shop.overrides if not one.startswith("distiller.")]
    result = invoke("validate", "quickstart", *given, "encoders=null", "--no-data")
    assert result.stdout == "quickstart: valid\n"
    assert result.stderr.count("no encoder is left, so only ids are learned: distiller") == 1


def test_ls_runs_tells_finished_from_unfinished(shop: Shop, tmp_path: Path) -> None:
    rows = {row["run"]: row for row in printed("ls", "runs", "--runs", shop.runs)}
    assert set(rows) == {"quickstart", "id-only"}
    assert rows["quickstart"] == {
        "run": "quickstart",
        "state": "finished",
        "epochs": 2,
        "valid NDCG@10": shop.kdsr["valid"]["NDCG@10"],
        "test NDCG@10": shop.kdsr["test"]["metrics"]["NDCG@10"],
    }
    (tmp_path / "runs" / "notes").mkdir(parents=True)  # a recipe alone makes no run
    (tmp_path / "runs" / "notes" / "recipe.yaml").write_text("name: notes", "utf-8")
    RunFolder(tmp_path / "runs" / "begun").write(marker={"recipe": "begun", "data": {}})
    [row] = printed("ls", "runs")
    assert row["state"] == "unfinished" and row["test NDCG@10"] is None
    assert "unfinished" in invoke("ls", "runs").stdout


def test_ls_cache(shop: Shop) -> None:
    rows = {row["card"]: row for row in printed("ls", "cache", "--cache", shop.folder / "cache")}
    assert set(rows) == {"hashed-text", "color-image"}
    assert rows["hashed-text"]["items"] == 120 and rows["hashed-text"]["present"] == 114
    assert printed("ls", "cache") == []
    assert invoke("ls", "cache").stdout == "no cache\n"


def test_ls_runs_goes_on_past_a_damaged_run(shop: Shop, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(shop.runs / "id-only", runs / "whole")
    for name, file in (("no-result", "result.json"), ("no-mark", "run.json")):
        shutil.copytree(shop.runs / "id-only", runs / name)
        (runs / name / file).write_text('{"epochs"', "utf-8")
    states = {row["run"]: row["state"] for row in printed("ls", "runs")}
    assert states == {"no-mark": "damaged", "no-result": "damaged", "whole": "finished"}


def test_ls_recipes_goes_on_past_an_unreadable_one(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "empty.yaml").write_text("", "utf-8")
    (tmp_path / "recipes" / "latin.yaml").write_bytes("# caf\u00e9\n".encode("latin-1"))
    told = {row["recipe"]: row["what"] for row in printed("ls")}
    assert told["empty"] == "" and told["latin"] == "not readable as UTF-8"
    assert "quickstart" in told
