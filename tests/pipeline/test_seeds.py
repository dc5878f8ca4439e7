"""Several seeds of one recipe: single trainings, their means, what goes on and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from commands import ID_ONLY
from synthetic_runs import recipe_of

import mmkd
from mmkd import SeedRuns
from mmkd.errors import RecipeError, RunError
from mmkd.evaluation.metrics import slice_of_items
from mmkd.evaluation.significance import holm, paired_permutation_test
from mmkd.pipeline.seeds import mean_of, seeds_of, train_all
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder
from mmkd.runs.seeds import SeedFolder

SHORT = ["training.epochs=1", "evaluation.baselines=false"]
IDS = [*ID_ONLY, "name=ids"]


@pytest.fixture(scope="module")
def folder(synthetic: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "shop-seeds"
    train_all(recipe_of(synthetic, *SHORT), "3,0,5", folder=path)
    return path


def test_each_is_the_run_of_its_seed_alone(
    folder: Path, synthetic: list[str], tmp_path: Path
) -> None:
    alone = train(recipe_of(synthetic, *SHORT, "seed=5"), folder=tmp_path / "alone")
    mine = RunFolder(folder / "seed-5").result()
    assert mine["test"] == alone["test"] and mine["seed"] == 5
    assert RunFolder(folder / "seed-3").result()["test"] != alone["test"]
    assert SeedFolder(folder).seeds() == (3, 0, 5)


def naive(ranks: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """NDCG@10 of every case, the mean over the places a tied target may get."""
    gains = []
    for rank, tied in zip(ranks, ties, strict=True):
        places = [rank - tied / 2 + step for step in range(int(tied) + 1)]
        worth = [1 / np.log2(1 + place) if place <= 10 else 0.0 for place in places]
        gains.append(sum(worth) / len(worth))
    return np.array(gains)


def test_the_summary_is_the_mean_over_seeds_of_all_cases_and_of_slices(folder: Path) -> None:
    found = SeedRuns(folder)
    ranks = [run.folder.ranks() for run in found.runs]
    gains = np.stack([naive(one.rank, one.ties) for one in ranks])
    test = found.result["test"]
    assert test["metrics"]["NDCG@10"] == pytest.approx(gains.mean(), abs=1e-12)
    assert found.result["by_seed"]["test"]["NDCG@10"] == pytest.approx(gains.mean(1), abs=1e-12)
    low, high = test["intervals"]["NDCG@10"]
    assert low < gains.mean() < high
    split = found.runs[0].data.split
    mid = slice_of_items(split.train_counts())[ranks[0].target] == 2
    assert test["slices"]["mid"]["n"] == mid.sum()
    assert test["slices"]["mid"]["NDCG@10"] == pytest.approx(gains[:, mid].mean(), abs=1e-12)
    low, high = test["slices"]["mid"]["intervals"]["NDCG@10"]
    assert low <= gains[:, mid].mean() <= high
    validations = [run.result["valid"]["NDCG@10"] for run in found.runs]
    assert found.result["valid"]["NDCG@10"] == pytest.approx(np.mean(validations))


def test_compared_with_a_run_every_case_is_the_mean_of_the_seeds(
    folder: Path, synthetic: list[str], tmp_path: Path
) -> None:
    train(recipe_of(synthetic, *SHORT, *IDS), folder=tmp_path / "ids")
    train(recipe_of(synthetic, *SHORT, *IDS, "seed=1"), folder=tmp_path / "other")
    seeds, ids = SeedRuns(folder), mmkd.load(tmp_path / "ids")
    found = seeds.compare(ids, mmkd.load(tmp_path / "other"))
    mine = np.mean([naive(r.rank, r.ties) for r in (x.folder.ranks() for x in seeds.runs)], axis=0)
    ranks = ids.folder.ranks()
    other = naive(ranks.rank, ranks.ties)
    assert found["run"].to_list() == ["ids", "other"]
    assert found["difference"][0] == pytest.approx((mine - other).mean(), abs=1e-12)
    assert found["p_value"][0] == paired_permutation_test(mine, other, ranks.user)
    assert found["p_holm"].to_list() == holm(found["p_value"].to_list())
    assert found["low"][0] < found["difference"][0] < found["high"][0]
    turned = ids.compare(seeds)
    assert turned["difference"][0] == pytest.approx(-found["difference"][0], abs=1e-12)
    report = ids.compare(mmkd.load(tmp_path / "other"))  # between runs nothing is changed
    assert report["high"][0] - report["low"][0] < found["high"][0] - found["low"][0]


def test_an_interrupted_one_goes_on_and_finished_ones_are_left_alone(
    folder: Path, synthetic: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "seeds"
    shutil.copytree(folder, copy)
    (copy / "summary.json").unlink()
    (copy / "seed-5" / "result.json").unlink()
    before = (copy / "seed-0" / "result.json").stat().st_mtime_ns
    recipe, told = recipe_of(synthetic, *SHORT), list[str]()
    with pytest.raises(RunError, match="2 of 3 seeds are trained; go on with the same command"):
        SeedRuns(copy)
    with pytest.raises(RunError, match="holds runs of several seeds already; give --resume"):
        train_all(recipe, "3,0,5", folder=copy)
    with pytest.raises(RunError, match="and 3 would be left out; give all of them"):
        train_all(recipe, "0,5", folder=copy, resume=True)
    with pytest.raises(RunError, match="holds a run of another recipe"):
        train_all(recipe_of(synthetic, *SHORT, *IDS), "3,0,5", folder=copy, resume=True)
    train_all(recipe, "3,0,5,6", folder=copy, resume=True, announce=told.append)
    assert (copy / "seed-0" / "result.json").stat().st_mtime_ns == before
    assert [line for line in told if line.startswith("seed ")] == [
        "seed 3, 1 of 4: trained already",
        "seed 0, 2 of 4: trained already",
        "seed 5, 3 of 4",
        "seed 6, 4 of 4",
    ]
    again = SeedRuns(copy)
    assert again.runs[2].result["test"] == SeedRuns(folder).runs[2].result["test"]
    assert again.result["seeds"] == [3, 0, 5, 6]


def test_overwriting_starts_all_anew_and_keeps_what_is_somebody_elses(
    folder: Path, synthetic: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "seeds"
    shutil.copytree(folder, copy)
    (copy / "notes.txt").write_text("mine")
    recipe = recipe_of(synthetic, *SHORT, *IDS)
    train_all(recipe, 2, folder=copy, overwrite=True)
    assert SeedFolder(copy).seeds() == (0, 1) and (copy / "notes.txt").read_text() == "mine"
    assert SeedRuns(copy).runs[0].recipe.name == "ids"
    assert not RunFolder(copy / "seed-3").started


def test_a_stopped_one_is_overwritten_and_one_that_trains_is_not(
    folder: Path, synthetic: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "seeds"
    shutil.copytree(folder, copy)
    shutil.rmtree(SeedFolder(copy).runs()[-1].path)  # it was never begun
    recipe = recipe_of(synthetic, *SHORT, *IDS)
    first = SeedFolder(copy).runs()[0]
    kept = first.result()
    told = f"{first.path.name}: another process trains here"
    with first.locked(), pytest.raises(RunError, match=told):
        train_all(recipe, 2, folder=copy, overwrite=True)
    assert first.result() == kept
    train_all(recipe, 2, folder=copy, overwrite=True)
    assert SeedFolder(copy).seeds() == (0, 1)


def test_frames_are_kept_by_every_run_and_never_lost(synthetic: list[str], tmp_path: Path) -> None:
    items = pl.DataFrame({"sku": range(20), "name": [f"pot {n}" for n in range(20)]})
    log = pl.DataFrame(
        [(u, (u + n) % 20) for u in range(40) for n in range(5)],
        schema=["user_id", "sku"],
        orient="row",
    )
    data = mmkd.Dataset.load(items=items, events=log)
    changes = {"training.epochs": 1, "training.cpu": True, "evaluation.resamples": 20}
    folder = tmp_path / "kitchen"
    found = mmkd.train_seeds(data, "id", seeds=2, folder=folder, overrides=changes)
    assert found.recipe.name == "kitchen"
    assert [len(run.data.items) for run in found.runs] == [20, 20]
    shutil.move(folder, tmp_path / "moved")
    assert len(SeedRuns(tmp_path / "moved").runs[1].recommend(users="all", k=2)) == 80
    own = mmkd.load_recipe(str(tmp_path / "moved" / "seed-0" / "recipe.yaml"))
    with pytest.raises(RunError, match="what is to be trained on lies in this folder"):
        train_all(own, 2, folder=tmp_path / "moved", overwrite=True)


def test_a_folder_of_seeds_is_no_run_and_names_those_in_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"several seeds \(seed-0, seed-3, seed-5\); name one"):
        mmkd.load(folder)
    with pytest.raises(RunError, match=r"holds one run, not several seeds'"):
        SeedRuns(folder / "seed-0")
    with pytest.raises(RunError, match="is not empty and holds no seeds' runs"):
        train_all(SeedRuns(folder).recipe, 2, folder=folder / "seed-0")


@pytest.mark.slow
def test_several_processes_train_all_seeds_together(synthetic: list[str], tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "mmkd", "train", "quickstart", *synthetic, *SHORT, *IDS, "--seeds", "2"]
    told = subprocess.run(
        [sys.executable, *launch, *command, "--out", str(tmp_path / "seeds"), "--json"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = SeedRuns(tmp_path / "seeds")
    assert [run.result["processes"] for run in found.runs] == [2, 2]
    assert json.loads(told.stdout) == {**found.result, "folder": str(tmp_path / "seeds")}
    assert told.stderr.count("seed 1, 2 of 2") == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("x", "wanted how many, such as 3, or which, such as 0,7,11"),
        (1, "got 1, wanted two or more"),
        ("0", "got 0, wanted two or more"),
        ((4, 4), "wanted each once"),
        ("-1,2", "seeds: got -1, wanted 0 to 4294967295"),
    ],
)
def test_what_is_no_seeds_is_refused(given: str | int, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        seeds_of(given)


def test_means_of_records() -> None:
    records = [{"a": [1, 2.0], "b": {"c": None, "n": 3}}, {"a": [2, 4.0], "b": {"c": None, "n": 3}}]
    assert mean_of(records) == {"a": [1.5, 3.0], "b": {"c": None, "n": 3}}
    assert mean_of([True, False]) is True and mean_of(["x", "y"]) == "x"
