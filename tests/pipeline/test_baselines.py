"""Baselines beside a training, and by themselves: the figures, and when they are left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from references.ranking import reference_metric, reference_rank
from synthetic_runs import recipe_of

from mmkd import load_recipe
from mmkd.config.plan import plan
from mmkd.errors import RecipeError, RunError
from mmkd.pipeline import baselines as pipeline
from mmkd.pipeline.baselines import baselines, in_passing
from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder

ID_ONLY = (
    *("encoders=null", "distiller=null", "objective.correlation=null", "student.score_with=id"),
    "training.epochs=1",
)


def test_a_run_keeps_its_data_s_baselines(synthetic: list[str], tmp_path: Path) -> None:
    recipe = recipe_of(synthetic, *ID_ONLY, "seed=3")
    result = train(recipe, folder=tmp_path / "run")
    assert RunFolder(tmp_path / "run").result() == json.loads(json.dumps(result))
    kept = result["baselines"]
    assert list(kept) == ["popularity", "transition", "item-knn"]
    assert 0 <= result["seconds"]["baselines"] < 10
    for found in kept.values():
        assert found["test"].keys() == result["test"].keys()
        assert found["test"]["n"] == result["test"]["n"]
        for name in ("users", "slice_edges"):
            assert found["test"][name] == result["test"][name]
        # a validation of a student with encoders has more than the plain metrics
        assert found["valid"].keys() == found["test"]["metrics"].keys()
        assert found["breakdown"]["test"].keys() == result["breakdown"]["test"].keys()
    # what sells best, one case at a time
    split = plan(recipe).load_data().split
    sold = np.zeros(split.item_count + 1)
    for user in range(split.user_count):
        np.add.at(sold, split.sequence(user)[: split.train_end[user]], 1)
    for cases, told in (
        (split.test, kept["popularity"]["test"]["metrics"]),
        (split.valid, kept["popularity"]["valid"]),
    ):
        ranks = []
        for user, position in zip(cases.user, cases.position, strict=True):
            *history, target = split.sequence(user)[: position + 1].tolist()
            ranks.append(reference_rank(sold.tolist(), target, set(history)))
        places, ties = zip(*ranks, strict=True)
        for metric in ("HR@10", "NDCG@20"):
            name, k = metric.split("@")
            assert told[metric] == pytest.approx(reference_metric(name, places, ties, int(k)))


def test_all_baselines_by_themselves_are_those_of_the_run(full: RunFolder) -> None:
    steps: list[tuple[int, int]] = []
    planned = plan(load_recipe(str(full.recipe)))
    found = baselines(planned, progress=lambda done, total: steps.append((done, total)))
    assert list(found) == ["popularity", "transition", "item-knn", "content-text", "content-image"]
    assert steps == [(n, 5) for n in range(6)]
    for name, kept in full.result()["baselines"].items():
        assert {part: found[name][part] for part in ("test", "valid", "breakdown")} == kept


def test_they_can_be_turned_off(synthetic: list[str], tmp_path: Path) -> None:
    off = recipe_of(synthetic, *ID_ONLY, "evaluation.baselines=false")
    result = train(off, folder=tmp_path / "run")
    assert "baselines" not in result and "baselines" not in result["seconds"]
    with pytest.raises(RecipeError, match=r"evaluation\.baselines: got 2, wanted true or false"):
        plan(recipe_of(synthetic, "evaluation.baselines=2"))


def test_what_is_costly_is_left_out_with_a_line(
    synthetic: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = plan(recipe_of(synthetic)).load_data().split
    told: list[str] = []
    assert list(in_passing(split, announce=told.append)) == ["popularity", "transition", "item-knn"]
    assert told == []
    monkeypatch.setattr(pipeline, "MOST_PAIRS", 1000)
    assert list(in_passing(split, announce=told.append)) == ["popularity", "transition"]
    monkeypatch.setattr(pipeline, "MOST_SCORES", 40_000)
    assert not in_passing(split, announce=told.append)
    assert "item-knn left out, " in told[0] and "(in passing at most 1e+03)" in told[0]
    # 200 cases of each kind and 120 items
    assert told[1] == (
        "baselines: left out, 4.8e+04 scores a baseline (in passing at most 4e+04); "
        "mmkd baselines RECIPE takes its time"
    )


def test_a_result_without_baselines_is_read_and_a_damaged_one_told(
    full: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(full.path, tmp_path / "run")
    run, content = RunFolder(tmp_path / "run"), full.result()
    run.write(result=content | {"baselines": []})
    with pytest.raises(RunError, match=r"damaged .baselines is no JSON object"):
        run.result()
    del content["baselines"]
    run.write(result=content)
    assert run.result() == content
