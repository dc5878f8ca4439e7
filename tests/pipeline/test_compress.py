"""Compressing an ensemble: what is trained, from whom, and what is refused before a loss."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file
from synthetic_runs import CORRELATION, EMKD, MASKED, history, recipe_of

from mmkd import load_recipe
from mmkd.config.plan import plan
from mmkd.demo import make_synthetic
from mmkd.errors import DataError, RunError
from mmkd.pipeline.evaluate import evaluate
from mmkd.pipeline.opening import compressing
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder


def test_compression_trains_one_network_towards_the_ensemble(
    full: RunFolder, tmp_path: Path
) -> None:
    weights = {"weight": 0.5, "states_weight": 3.0, "temperature": 2.0}
    own = [f"objective.compression.{name}={value}" for name, value in weights.items()]
    recipe = compressing(full, ["training.epochs=4", *own])
    assert recipe.name == "emkd-compressed"
    train(recipe, folder=tmp_path / "small")
    small = RunFolder(tmp_path / "small")
    student = small.student()
    assert len(student.members) == 1
    losses = [record["losses"] for record in history(small.path)]
    assert {"recommendation", "compression", "compression.states"} < set(losses[0])
    assert losses[-1]["compression"] < losses[0]["compression"]
    weighed = {"recommendation": 1.0, "compression": 0.5, "compression.states": 3.0}
    weighed |= {"attributes": 0.5}  # one network, two views
    weighed |= {f"{k}.{m}": w for m in ("text", "image") for k, w in CORRELATION.items()}
    assert set(losses[0]) == {*weighed, "total"}
    total = sum(weight * losses[0][name] for name, weight in weighed.items())
    assert losses[0]["total"] == pytest.approx(total, rel=1e-4)
    assert "intra" not in losses[0] and "mutual" not in losses[0]
    # the teacher is no part of what is kept, and not needed any more
    moved = tmp_path / "recipe.yaml"
    gone = {"teacher": "gone"}
    moved.write_text(small.recipe.read_text("utf-8"), "utf-8")
    recipe = load_recipe(str(moved), [f"objective.compression={json.dumps(gone)}"])
    small.write(recipe=recipe.to_yaml(), result=small.result())
    assert evaluate(small.path)["metrics"] == pytest.approx(small.result()["test"]["metrics"])
    assert small.result()["parameters"] < full.result()["parameters"]


def test_an_unfinished_run_is_not_compressed(full: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", "utf-8")
    with pytest.raises(RunError, match=r"is not finished; train it to its end first"):
        compressing(RunFolder(tmp_path))


def test_a_teacher_of_other_items_or_another_kind_is_refused(
    full: RunFolder, synthetic: list[str], tmp_path: Path
) -> None:
    teacher = f"objective.compression.teacher={full.path}"
    with pytest.raises(RunError, match=r"bidirectional and the student's are not"):
        train(recipe_of(synthetic, teacher), folder=tmp_path / "run")
    with pytest.raises(RunError, match=r"reads at most 12 items; set training\.max_length to 12"):
        longer = [*MASKED, teacher, "training.max_length=20"]
        train(recipe_of(synthetic, *longer), folder=tmp_path / "run")
    make_synthetic(tmp_path / "data", items=130, users=200)
    other = [*synthetic, f"data.root={tmp_path / 'data'}", *MASKED, teacher]
    with pytest.raises(RunError, match=r"another catalogue, events, so it knows.*train the te"):
        train(recipe_of(other), folder=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").started  # nothing was begun


def test_a_teacher_that_saw_the_test_events_is_refused(
    full: RunFolder, synthetic: list[str], tmp_path: Path
) -> None:
    later = compressing(full, ["data.split={kind: temporal}"])
    with pytest.raises(RunError, match=r"another split, so it knows .* events that this run is te"):
        train(later, folder=tmp_path / "run")


def test_what_is_wrong_with_the_new_run_costs_no_old_one(
    full: RunFolder, synthetic: list[str], tmp_path: Path
) -> None:
    files = {path: path.stat().st_mtime_ns for path in full.path.iterdir()}
    with pytest.raises(RunError, match=r"holds the run to compress, which would be lost"):
        train(compressing(full), folder=full.path, overwrite=True)
    causal = recipe_of(synthetic, f"objective.compression.teacher={full.path}", "name=emkd")
    old = tmp_path / "old"
    shutil.copytree(full.path, old)
    with pytest.raises(RunError, match=r"bidirectional and the student's are not"):
        train(causal, folder=old, overwrite=True)
    bare = tmp_path / "data"
    shutil.copytree(recipe_of(synthetic).data.folder, bare)
    items = pl.read_csv(bare / "items.csv")
    column = recipe_of(synthetic).data.items["attributes"]
    items.with_columns(pl.lit("").alias(str(column))).write_csv(bare / "items.csv")
    none = recipe_of(synthetic, *MASKED, *EMKD, f"data.root={bare}")
    with pytest.raises(DataError, match="no item of the catalogue has an attribute"):
        train(none, folder=old, overwrite=True)
    assert RunFolder(old).result() == full.result()
    assert files == {path: path.stat().st_mtime_ns for path in full.path.iterdir()}


def test_a_run_goes_on_with_the_teacher_it_was_begun_with_only(
    full: RunFolder, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(full.path, teacher)
    recipe, folder = compressing(RunFolder(teacher)), tmp_path / "run"
    train(recipe, folder=folder)
    (folder / "result.json").unlink()  # as if it had been interrupted
    weights, result = load_file(teacher / "student.safetensors"), RunFolder(teacher).result()
    save_file(
        {name: value + 1e-3 for name, value in weights.items()}, teacher / "student.safetensors"
    )
    RunFolder(teacher).write(result=result)
    with pytest.raises(RunError, match=r"the run to compress changed since this run was begun"):
        train(recipe, folder=folder, resume=True)


@pytest.mark.parametrize("override", ["ensemble.members=2", "objective.compression=null"])
def test_compressing_to_several_networks_or_without_a_teacher_is_refused(
    full: RunFolder, override: str
) -> None:
    with pytest.raises(RunError, match=r"ask for several networks or no compression"):
        compressing(full, [override])


def test_compression_of_weight_0_needs_no_teacher(synthetic: list[str]) -> None:
    nothing = "objective.compression={teacher: nowhere, weight: 0, states_weight: 0}"
    assert plan(recipe_of(synthetic, nothing)).objective.compression is None
