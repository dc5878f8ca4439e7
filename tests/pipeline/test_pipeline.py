"""The main job from files on disk to a tested recommender, and its refusals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import polars as pl
import pytest
import torch
from commands import invoke, printed
from synthetic_runs import BERT4REC, GRU4REC, RGAT, write_data

from mmkd import Dataset, Evaluator, ItemTable, Recipe, Run, load, load_recipe
from mmkd.config.plan import plan
from mmkd.data import Cases
from mmkd.demo.run import run_demo
from mmkd.errors import CheckpointError, DataError, RunError, TrainingError
from mmkd.pipeline.evaluate import compare_runs, evaluate
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder

SECONDS = ("train_seconds", "valid_seconds")

# drawn anew at every step, so that a draw that is not a function of the step would show
SOFT = "objective.neighbours={share: 0.3, k: 5, types: true, schedule: falling}"


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_data(tmp_path_factory.mktemp("synthetic"))


def recipe_of(overrides: list[str], *more: str) -> Recipe:
    return load_recipe("quickstart", [*overrides, *more])


@pytest.fixture(scope="module")
def recipe(overrides: list[str]) -> Recipe:
    return recipe_of(overrides)


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> Dataset:
    return plan(recipe).load_data()


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished KDSR run."""
    folder = tmp_path_factory.mktemp("runs") / "kdsr"
    train(recipe, folder=folder)
    return RunFolder(folder)


def history(folder: Path) -> list[dict[str, Any]]:
    """The run's records without their seconds."""
    records: list[dict[str, Any]] = json.loads((folder / "history.json").read_text("utf-8"))
    return [{k: v for k, v in record.items() if k not in SECONDS} for record in records]


# a run


def test_the_run_folder_tells_all_and_holds_no_checkpoint(run: RunFolder, recipe: Recipe) -> None:
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == [
        "history.json",
        "items.parquet",
        "recipe.yaml",
        "reduction.safetensors",
        "result.json",
        "run.json",
        "student.json",
        "student.safetensors",
        "test_ranks.parquet",
        "users.parquet",
    ]
    assert load_recipe(str(run.recipe)) == recipe
    result = run.result()
    assert result["epochs"] == len(history(run.path)) == 2
    assert result["stopped"] == "epochs" and result["processes"] == 1
    assert result["valid"] == history(run.path)[result["best_epoch"]]["valid"]
    assert result["parameters"] == sum(p.numel() for p in run.student().parameters())


def test_a_training_may_end_without_the_test_and_be_tested_later(
    run: RunFolder, recipe: Recipe, overrides: list[str], tmp_path: Path, data: Dataset
) -> None:
    folder = tmp_path / "selected"
    ranked: list[Cases] = []

    class Watching(Evaluator):
        def batches(self, split: Any, cases: Cases, *more: Any, **options: Any) -> Any:
            ranked.append(cases)
            return super().batches(split, cases, *more, **options)

    planned = plan(recipe_of(overrides, "evaluation.test=false"))
    options: dict[str, Any] = dict(recipe.evaluation)
    train(replace(planned, evaluator=Watching(**options)), folder=folder)
    valid = data.split.valid
    assert ranked and all(np.array_equal(cases.position, valid.position) for cases in ranked)
    untested = RunFolder(folder)
    result, tested = untested.result(), run.result()
    assert result["test"] is None and "baselines" not in result
    assert not (folder / "test_ranks.parquet").exists()
    assert result["valid"] == tested["valid"] and result["validation"] == tested["validation"]
    assert result["breakdown"] == {"valid": tested["breakdown"]["valid"]}
    report = evaluate(folder)
    assert report.pop("breakdown") == tested["breakdown"]["test"]
    assert report == tested["test"]
    assert compare_runs(folder, run.path)["difference"] == 0
    again = ("train", "quickstart", *overrides, "evaluation.test=false", "--resume")
    shown = invoke(*again, "--out", folder).stdout
    assert "validation" in shown.splitlines()[0] and "test" not in shown.splitlines()[0]
    assert f"{result['validation']['n']:,} validation cases" in shown
    (row,) = printed("ls", "runs", "--runs", tmp_path)
    assert row["state"] == "finished" and row["test NDCG@10"] is None


def test_the_history_has_every_term_of_the_loss_and_the_retention(run: RunFolder) -> None:
    for record in history(run.path):
        losses = record["losses"]
        terms = {
            f"{part}.{name}" for part in ("holistic", "dissected") for name in ("text", "image")
        }
        assert set(losses) == {"total", "recommendation", *terms}
        weighted = losses["recommendation"] + sum(
            (0.4 if term.startswith("holistic") else 0.05) * losses[term] for term in terms
        )
        assert losses["total"] == pytest.approx(weighted, rel=1e-5)
        assert 0 < losses["recommendation"] < 1.1 * math.log(120)
        assert 0 < record["valid"]["retention.text.spearman"] <= 1
    # the ramp: a quarter of the rate before the first of its two milestones
    assert [record["lr_modality"] / record["lr"] for record in history(run.path)] == [0.25, 0.25]


def test_the_metrics_are_those_of_the_kept_ranks(run: RunFolder, data: Dataset) -> None:
    ranks, report = run.ranks(), run.result()["test"]
    assert report["n"] == len(ranks) == len(data.split.test) == 200
    assert np.array_equal(ranks.target, data.split.target_items(data.split.test))
    assert ((ranks.rank >= 1) & (ranks.rank <= 120)).all()
    assert not ranks.ties.any()
    gains = np.where(ranks.rank <= 10, 1 / np.log2(ranks.rank + 1), 0.0)
    assert report["metrics"]["NDCG@10"] == pytest.approx(float(gains.mean()))
    assert report["metrics"]["HR@10"] == pytest.approx(float((ranks.rank <= 10).mean()))


def test_evaluate_reproduces_the_test_and_the_validation(run: RunFolder) -> None:
    result = run.result()
    again = evaluate(run.path)
    assert again["metrics"] == pytest.approx(result["test"]["metrics"])
    assert again["slices"].keys() == result["test"]["slices"].keys()
    apart = ("metrics", "intervals", "slices", "breakdown")
    assert {k: v for k, v in again.items() if k not in apart} == {
        k: v for k, v in result["test"].items() if k not in apart
    }
    validated = evaluate(run.path, cases="valid")
    valid, kept = validated["metrics"], result["validation"]
    assert valid == pytest.approx({name: result["valid"][name] for name in valid})
    assert validated["n"] == kept["n"] == 200 and kept["metrics"] == pytest.approx(valid)
    for name, (low, high) in kept["intervals"].items():
        assert validated["intervals"][name] == pytest.approx([low, high])
        assert low <= valid[name] <= high
    for found, key in ((again, "test"), (validated, "valid")):
        breakdown = result["breakdown"][key]
        assert found["breakdown"].keys() == breakdown.keys()
        for name, part in breakdown.items():
            assert found["breakdown"][name] == pytest.approx(part)


def test_the_same_recipe_gives_the_same_result(
    run: RunFolder, recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(77)
    train(recipe, folder=tmp_path / "again")
    assert history(tmp_path / "again") == history(run.path)
    assert np.array_equal(RunFolder(tmp_path / "again").ranks().rank, run.ranks().rank)


# refusals


def test_a_finished_run_is_not_overwritten_unasked(run: RunFolder, recipe: Recipe) -> None:
    with pytest.raises(RunError, match=r"holds a finished run already; give --overwrite"):
        train(recipe, folder=run.path)
    assert run.finished


def test_resuming_a_finished_run_just_reports(run: RunFolder, recipe: Recipe) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    assert train(recipe, folder=run.path, resume=True) == run.result()
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_a_run_of_another_recipe_is_not_resumed(run: RunFolder, overrides: list[str]) -> None:
    with pytest.raises(RunError, match=r"another recipe than quickstart as given now"):
        train(recipe_of(overrides, "training.lr=0.5"), folder=run.path, resume=True)


def begun(recipe: Recipe, folder: Path) -> RunFolder:
    """A run that was interrupted before its first checkpoint."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    data = plan(recipe).load_data().digests()
    run.write(marker={"recipe": recipe.name, "data": data})
    recipe.save(run.recipe)
    return run


def test_overwrite_deletes_the_runs_own_files_only(recipe: Recipe, tmp_path: Path) -> None:
    run = begun(recipe, tmp_path / "run")
    (run.path / "notes.txt").write_text("mine", "utf-8")
    (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(RunError, match=r"an unfinished run already; give --resume .*--overwrite"):
        train(recipe, folder=run.path)
    assert (run.path / "checkpoints").is_dir()
    train(recipe, folder=run.path, overwrite=True)
    assert run.finished and not (run.path / "checkpoints").exists()
    assert (run.path / "notes.txt").read_text("utf-8") == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_refused_and_left_alone(
    recipe: Recipe, tmp_path: Path, overwrite: bool
) -> None:
    recipe.save(tmp_path / "recipe.yaml")  # a recipe alone makes no run
    (tmp_path / "thesis.txt").write_text("precious", "utf-8")
    with pytest.raises(RunError, match=r"holds no run .*recipe\.yaml, thesis\.txt.*--out"):
        train(recipe, folder=tmp_path, overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == [
        "recipe.yaml",
        "thesis.txt",
    ]


def test_another_programs_run_json_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("run.json", "result.json"):
        (tmp_path / name).write_text("{}", "utf-8")
    with pytest.raises(RunError, match=r"run\.json: damaged \(lacks data, mmkd"):
        train(recipe, folder=tmp_path, overwrite=True)
    assert (tmp_path / "result.json").read_text("utf-8") == "{}"


def test_a_file_is_no_run_folder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious", "utf-8")
    with pytest.raises(RunError, match=r"file: can't be a run's folder.*--out"):
        train(recipe, folder=tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text("utf-8") == "precious"


def test_data_that_cannot_be_read_costs_no_run_and_blocks_none(
    run: RunFolder, overrides: list[str], tmp_path: Path
) -> None:
    typo = recipe_of(overrides, "data.items.path=itmes.csv")
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    with pytest.raises(DataError, match=r"itmes\.csv"):
        train(typo, folder=run.path, overwrite=True)
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before
    with pytest.raises(DataError, match=r"itmes\.csv"):
        train(typo, folder=tmp_path / "first")
    assert not (tmp_path / "first").exists()


def changed(data: Dataset, what: str) -> Dataset:
    """The data with one thing changed."""
    items, log, split = data.items, data.log, data.split
    if what == "catalogue":
        ids = (*items.ids[:-2], items.ids[-1], items.ids[-2])
        items = ItemTable(ids, items.titles, items.text, items.image_path, items.attributes)
    elif what == "users":
        log = replace(log, user_ids=(*log.user_ids[:-1], "somebody"))
    elif what == "events":
        events = split.items.copy()
        events[0] = events[0] % len(items) + 1
        split = replace(split, items=events)
    else:
        split = replace(split, test=Cases(split.test.user[1:], split.test.position[1:]))
    return Dataset(items=items, log=log, split=split)


@pytest.mark.parametrize("what", ["catalogue", "users", "events", "split"])
def test_other_data_is_noticed(
    run: RunFolder,
    recipe: Recipe,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    unfinished = begun(recipe, tmp_path / "run")
    other = changed(data, what)
    monkeypatch.setattr("mmkd.config.plan.Plan.load_data", lambda planned: other)
    wanted = rf"the data changed since this run was begun: {what}; put the old data back"
    with pytest.raises(RunError, match=wanted):
        train(recipe, folder=unfinished.path, resume=True)
    with pytest.raises(RunError, match=wanted):
        evaluate(run.path)


def test_other_vectors_are_noticed_on_resume(recipe: Recipe, tmp_path: Path) -> None:
    unfinished = begun(recipe, tmp_path / "run")
    keys = {"text": "another", "image": "another"}
    unfinished.write(tables=keys)
    with pytest.raises(RunError, match=r"what the encoders read changed .*: image, text;"):
        train(recipe, folder=unfinished.path, resume=True)


def test_the_run_keeps_the_users_ids(run: RunFolder, data: Dataset) -> None:
    assert run.users() == data.log.user_ids
    table = pl.read_parquet(run.path / "users.parquet")
    assert table["row"].to_list() == list(range(200))
    assert table["user"].to_list() == list(data.log.user_ids)
    assert run.ranks().user.max() < len(run.users())


def test_two_trainings_of_one_folder_refuse_each_other(recipe: Recipe, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run").locked(),
        pytest.raises(RunError, match=r"another process is training here.*--out"),
    ):
        train(recipe, folder=tmp_path / "run")


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr("mmkd.training.progress.get_available_trackers", lambda: [])
    with pytest.raises(TrainingError, match=f"{tracker} is not installed; .*install {tracker},"):
        train(recipe_of(overrides, f"training.trackers=[{tracker}]"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_told(recipe: Recipe, tmp_path: Path) -> None:
    unfinished = begun(recipe, tmp_path / "run")
    step = unfinished.path / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    for name in ("progress.json", "model.safetensors", "random-0.safetensors"):
        (step / name).write_text("{}" if name == "progress.json" else "{", "utf-8")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged .*--overwrite"):
        train(recipe, folder=unfinished.path, resume=True)


def test_what_trains_on_what_is_told_first(recipe: Recipe, tmp_path: Path, data: Dataset) -> None:
    told: list[str] = []
    train(recipe, folder=tmp_path / "run", announce=told.append)
    trained = int(data.split.train_counts().sum())
    assert told == [
        "quickstart: 1 process on cpu, 1 thread each; 120 items, 200 users, "
        f"{trained} of {len(data.split.items)} events train, 200 validate, 200 test"
    ]


@pytest.mark.parametrize("instruction", ["avx512_bf16", "bf16", None])
def test_bf16_that_the_cpu_only_emulates_is_told(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    instruction: str | None,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {instruction: True, "avx2": True})
    told: list[str] = []
    given = recipe_of(overrides, "training.precision=bf16")
    train(given, folder=tmp_path / "run", announce=told.append)
    slow = [line for line in told if line.startswith("precision: got bf16, for which this CPU has")]
    assert len(slow) == (instruction is None)
    train(recipe_of(overrides), folder=tmp_path / "float32", announce=told.append)
    assert told[-1].startswith("quickstart: ") and len(told) == len(slow) + 2


# other shapes


@pytest.mark.parametrize("changes", [BERT4REC, GRU4REC, RGAT], ids=["bert4rec", "gru4rec", "rgat"])
def test_other_backbones_run_and_evaluate_to_the_same(
    changes: list[str], overrides: list[str], tmp_path: Path
) -> None:
    result = train(recipe_of(overrides, *changes), folder=tmp_path)
    assert result["test"]["n"] == 200
    assert evaluate(tmp_path)["metrics"] == pytest.approx(result["test"]["metrics"])
    losses = [record["losses"]["recommendation"] for record in history(tmp_path)]
    assert losses[1] < losses[0]


def test_without_encoders_nothing_is_embedded(overrides: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    changes = ["encoders=null", "distiller=null", "objective.correlation=null"]
    recipe = recipe_of(overrides, *changes, "student.score_with=id", f"cache.folder={cache}")
    train(recipe, folder=tmp_path / "run")
    assert not list(cache.rglob("*.safetensors")) and not list(cache.rglob("*.npy"))
    assert set(history(tmp_path / "run")[0]["losses"]) == {"total", "recommendation"}


def test_the_demo_works_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Recipe] = []

    def remember(recipe: Recipe, **options: object) -> dict[str, Any]:
        seen.append(recipe)
        return {}

    monkeypatch.setattr("mmkd.demo.run.train", remember)
    monkeypatch.setattr("mmkd.demo.run.make_synthetic", lambda *places, **options: None)
    monkeypatch.setattr("mmkd.demo.run.load", MagicMock())
    monkeypatch.setattr("mmkd.demo.run.alike", lambda shop, lists: 0.0)
    folder = tmp_path / "my #1 {demo}: ${x} \U0001f642"
    run_demo(folder)
    names = ("id", "fused", "kdsr", "content", "unlike", "compressed")
    assert [recipe.name for recipe in seen] == [f"demo-{name}" for name in names]
    compression = seen[-1].objective.compression
    assert compression == {"teacher": str(folder / "runs" / "demo-unlike")}
    for recipe in seen:
        assert recipe.data.folder == folder / "data"
        assert recipe.cache["folder"] == str(folder / "cache")


# other processes


def mmkd(*arguments: str | Path, launch: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-m", *launch, "mmkd", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}


def test_two_processes_on_a_sequence_file_equal_one_on_its_log(
    overrides: list[str], tmp_path: Path
) -> None:
    still = [*overrides, "student.embedding.dropout=0", "student.backbone.dropout=0", SOFT]
    train(recipe_of(still), folder=tmp_path / "one")
    written = tmp_path / "log.sequences"
    subprocess.run(
        mmkd("data", "sequences", "quickstart", *still, "--out", written),
        check=True,
        env=environment(),
        timeout=300,
    )
    still += [f"data.interactions.path={written}"]
    # not `accelerate launch --cpu`, which starts several processes by MPI only
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    subprocess.run(
        mmkd("train", "quickstart", *still, "--out", tmp_path / "two", launch=launch),
        check=True,
        env=environment(),
        timeout=300,
    )
    assert RunFolder(tmp_path / "two").result()["processes"] == 2
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
        assert two["gradient_norms"] == pytest.approx(one["gradient_norms"], rel=0.02, abs=1e-4)
    one_ranks, two_ranks = (RunFolder(tmp_path / n).ranks() for n in ("one", "two"))
    assert np.array_equal(one_ranks.case, two_ranks.case)
    assert float((one_ranks.rank == two_ranks.rank).mean()) > 0.9


@pytest.mark.slow
def test_tables_over_two_processes_make_an_ordinary_run(
    overrides: list[str], tmp_path: Path
) -> None:
    still = [
        *overrides,
        "student.embedding.dropout=0",
        "student.backbone.dropout=0",
        "objective.recommendation=sampled_softmax",
        "training.tables=sharded",
        "ensemble={members: 2, inference: standardized, weights: validation, "
        "untrained_offset: validation}",
    ]
    train(recipe_of(still), folder=tmp_path / "one")
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    subprocess.run(
        mmkd("train", "quickstart", *still, "--out", tmp_path / "two", launch=launch),
        check=True,
        env=environment(),
        timeout=600,
    )
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    results = [RunFolder(tmp_path / name).result() for name in ("one", "two")]
    assert results[0]["parameters"] == results[1]["parameters"]
    assert results[0]["weights"] == results[1]["weights"]
    assert results[0]["untrained_offset"] == results[1]["untrained_offset"]
    alone, both = (load(tmp_path / name) for name in ("one", "two"))
    for name, value in alone.student.state_dict().items():
        torch.testing.assert_close(both.student.state_dict()[name], value, rtol=0.01, atol=1e-3)


def test_a_killed_run_resumes_to_the_uninterrupted_result(
    overrides: list[str], tmp_path: Path
) -> None:
    options = [*overrides, "training.epochs=8", "training.checkpoint_every_s=0", SOFT]
    train(recipe_of(options), folder=tmp_path / "whole")
    killed = tmp_path / "killed"
    command = mmkd("train", "quickstart", *options, "--out", killed)
    process = subprocess.Popen(command, env=environment())
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/step-0000001*")):  # somewhere inside the run
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not RunFolder(killed).finished
    subprocess.run([*command, "--resume"], check=True, env=environment(), timeout=300)
    assert history(killed) == history(tmp_path / "whole")
    assert np.array_equal(
        RunFolder(killed).ranks().rank, RunFolder(tmp_path / "whole").ranks().rank
    )


def test_an_unfinished_run_says_so_and_has_no_test_metrics(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    shutil.copytree(run.path, folder)
    (folder / "result.json").unlink()
    with pytest.raises(RunError, match=r"not finished.*--resume.*--cases valid"):
        evaluate(folder)
    with pytest.raises(RunError, match="not finished"):
        compare_runs(folder, run.path)
    report = evaluate(folder, cases="valid")
    assert "training is not finished" in report["unfinished"]
    assert report["metrics"] == evaluate(run.path, cases="valid")["metrics"]
    assert "unfinished" not in evaluate(run.path, cases="valid")
    with pytest.raises(RunError, match="holds no finished run"):
        Run(folder)
