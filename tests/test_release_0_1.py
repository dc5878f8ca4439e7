"""What release 0.1 left behind loads, resumes, evaluates and recommends as it did then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, printed

from mmkd import load_card

FIXTURE = Path(__file__).parent / "fixtures" / "release_0_1"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text("utf-8"))
HISTORY = "P01,P05,P09"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what it left, as the working folder."""
    folder = tmp_path / "shop"
    shutil.copytree(FIXTURE, folder)
    monkeypatch.chdir(folder)
    return folder


def like(expected: Any) -> Any:
    """Equal up to what another processor's rounding may change."""
    if isinstance(expected, dict):
        return {key: like(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [like(value) for value in expected]
    return pytest.approx(expected, abs=2e-4) if isinstance(expected, float) else expected


@pytest.mark.parametrize("run", ["single", "ensemble"])
def test_a_finished_run_evaluates_as_it_did(shop: Path, run: str) -> None:
    assert printed("evaluate", run) == like(EXPECTED[run]["evaluate"])
    assert printed("evaluate", run, "--cases", "valid") == like(EXPECTED[run]["evaluate_valid"])


@pytest.mark.parametrize("run", ["single", "ensemble"])
def test_a_finished_run_recommends_as_it_did(shop: Path, run: str) -> None:
    found = printed("recommend", run, "--history", HISTORY, "-k", "5")
    assert found == like(EXPECTED[run]["recommend"])


def test_neighbours_are_what_they_were_and_nothing_is_encoded_again(shop: Path) -> None:
    before = shards(shop)
    found = printed("neighbours", "recipes/single.yaml", "--item", "P02", "-k", "4")
    assert found["encoder"] == like(EXPECTED["encoder_neighbours"])
    assert shards(shop) == before


def test_two_old_runs_compare(shop: Path) -> None:
    found = printed("evaluate", "single", "--against", "ensemble")
    first, second = (EXPECTED[n]["evaluate"]["metrics"]["NDCG@10"] for n in ("single", "ensemble"))
    assert found["difference"] == pytest.approx(first - second, abs=2e-4)


def test_an_interrupted_run_is_resumed_to_the_same_end(shop: Path) -> None:
    before = shards(shop)
    found = printed("train", "recipes/interrupted.yaml", "--resume")
    assert found["test"] == like(EXPECTED["resumed"]["test"])
    assert found["valid"] == like(EXPECTED["resumed"]["valid"])
    records = json.loads((shop / "runs/interrupted/history.json").read_text("utf-8"))
    assert [r["losses"] for r in records] == like(EXPECTED["resumed"]["losses"])
    assert shards(shop) == before


def test_a_finished_run_resumed_is_just_reported(shop: Path) -> None:
    found = printed("train", "recipes/ensemble.yaml", "--resume")
    assert found["test"]["metrics"] == like(EXPECTED["ensemble"]["evaluate"]["metrics"])


def test_an_old_ensemble_is_compressed(shop: Path) -> None:
    found = printed("compress", "ensemble", "training.epochs=1")
    assert found["epochs"] == 1
    assert found["test"]["metrics"].keys() == EXPECTED["ensemble"]["evaluate"]["metrics"].keys()


@pytest.mark.parametrize("path", sorted((FIXTURE / "shipped").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_as_it_was_shipped_is_valid(shop: Path, path: Path) -> None:
    if not path.stem.endswith("-base"):
        found = invoke(
            "validate",
            f"shipped/{path.name}",
            "data.root=data",
            "encoders.text=minilm",
            "--no-data",
        )
        assert found.exit_code == 0, found.output


def test_fingerprints_of_all_cards_are_what_they_were() -> None:
    # the packaged model's fingerprint covers the files of whichever version is installed
    expected = {k: v for k, v in EXPECTED["fingerprints"].items() if k != "minilm-packaged"}
    assert {name: load_card(name).fingerprint() for name in expected} == expected


def shards(shop: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(shop)): path.read_bytes()
        for path in sorted((shop / "cache").rglob("shards/*"))
    }
