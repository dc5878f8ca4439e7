"""A sweep: its grammar, its trials against runs by hand, stopping and going on, failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_runs import recipe_of

from mmkd import load_recipe
from mmkd.errors import RecipeError, RunError
from mmkd.pipeline.sweep import Dimension, sweep
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("a.b=log(1e-4,1e-2)", "log", (1e-4, 1e-2)),
        ("a.b=uniform(0, 0.5)", "uniform", (0.0, 0.5)),
        ("a.b=int(1,4)", "int", (1, 4)),
        ("a.b=gate,sum", "choice", ("gate", "sum")),
        ("a.b=1,2.5,null", "choice", ("1", "2.5", "null")),
        ("a.b={kind: x, y: [1, 2]},z", "choice", ("{kind: x, y: [1, 2]}", "z")),
        ("a.b={kind: x, y: 1}", None, ()),
        ("a.b=[1, 2]", None, ()),
        ("a.b=3", None, ()),
    ],
)
def test_grammar(text: str, kind: str | None, values: tuple[object, ...]) -> None:
    found = Dimension.parse(text)
    assert (found and (found.kind, found.values)) == (kind and (kind, values))


@pytest.mark.parametrize("text", ["a=log(0,1)", "a=uniform(2,1)", "a=int(1.5,3)", "a=log(x,1)"])
def test_ends_that_make_no_range_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="wanted"):
        Dimension.parse(text)


def test_both_ends_must_be_possible(synthetic: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"student\.embedding\.dropout"):
        sweep("quickstart", [*synthetic, "student.embedding.dropout=uniform(0,2)"], folder=tmp_path)
    with pytest.raises(RecipeError, match="no option to search"):
        sweep("quickstart", synthetic, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_best_on_validation_is_written_and_trains_to_the_same(
    synthetic: list[str], tmp_path: Path
) -> None:
    short = [*synthetic, "training.epochs=1", "training.threads=1"]
    found = sweep(
        "quickstart",
        [*short, "training.lr=1e-5,1e-2"],
        folder=tmp_path / "sweep",
        trials=3,
        jobs=2,
    )
    assert [trial.number for trial in found] == [0, 1, 2]
    values = {}
    for trial in found:
        result = RunFolder(tmp_path / "sweep" / "trials" / f"{trial.number:04d}").result()
        assert trial.value == result["valid"]["NDCG@10"]
        values[trial.overrides] = trial.value
    best = load_recipe(str(tmp_path / "sweep" / "best.yaml"))
    chosen = max(values, key=lambda key: values[key] or 0.0)
    assert best == recipe_of(short, *chosen)
    assert train(best, folder=tmp_path / "again")["valid"]["NDCG@10"] == max(
        value for value in values.values() if value is not None
    )
    # all are there already: nothing runs again, one more does, another space is refused
    again = sweep(
        "quickstart", [*short, "training.lr=1e-5,1e-2"], folder=tmp_path / "sweep", trials=3
    )
    assert again == found
    with pytest.raises(RunError, match="another space"):
        sweep("quickstart", [*short, "training.lr=1e-5,1e-3"], folder=tmp_path / "sweep")


def test_one_that_fails_costs_no_other_and_all_that_fail_are_told(
    synthetic: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "interactions.csv"
    broken.write_text("user_id,item_id,timestamp\n")
    options = [*synthetic, f"data.interactions.path={broken}", "training.lr=log(1e-4,1e-2)"]
    with pytest.raises(RunError, match="every trial failed; the first said: "):
        sweep("quickstart", options, folder=tmp_path / "sweep", trials=1)


def test_a_stopped_sweep_goes_on_with_its_trial(synthetic: list[str], tmp_path: Path) -> None:
    options = [*synthetic, "training.epochs=3", "training.threads=1", "training.lr=1e-3,1e-2"]
    command = [sys.executable, "-m", "mmkd", "sweep", "quickstart", *options]
    command += ["--trials", "1", "--out", str(tmp_path / "sweep"), "--json"]
    process = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True)
    run = tmp_path / "sweep" / "trials" / "0000"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 2
    assert not RunFolder(run).finished
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    [trial] = json.loads(done.stdout)["trials"]
    assert trial["value"] == RunFolder(run).result()["valid"]["NDCG@10"]
    assert "continuing" in run.with_suffix(".log").read_text()
