"""``embed``, ``train``, ``compress`` and what is asked of a run: against the API and each other."""

import copy
import re
import shutil
from pathlib import Path

import pytest
from commands import ID_ONLY, Shop, invoke, printed

from mmkd import load_recipe
from mmkd.cli import results
from mmkd.errors import RunError
from mmkd.runs.folder import RunFolder


def test_the_second_embed_encodes_nothing(shop: Shop, tmp_path: Path) -> None:
    overrides = [*shop.overrides, f"cache.folder={tmp_path / 'cache'}"]
    first, second = (printed("embed", "quickstart", *overrides) for _ in range(2))
    assert [row["modality"] for row in first] == ["text", "image"]
    # one item in twenty lacks its text and one its picture
    assert [(row["items"], row["present"]) for row in first] == [(120, 114)] * 2
    assert [row["encoded_now"] for row in first] == [114, 114]
    assert [row["encoded_now"] for row in second] == [0, 0]
    assert all(sum(row["absent"].values()) == 6 for row in first)
    table = invoke("embed", "quickstart", *overrides).stdout
    assert "hashed-text" in table and "color-image" in table


def test_train_prints_what_it_keeps(shop: Shop) -> None:
    folder = shop.runs / "quickstart"
    assert shop.kdsr == {**RunFolder(folder).result(), "folder": str(folder)}
    again = printed("train", "quickstart", *shop.overrides, "--runs", shop.runs, "--resume")
    assert again == shop.kdsr
    told = invoke("train", "quickstart", *shop.overrides, "--runs", shop.runs, "--resume").stdout
    assert f"{shop.kdsr['test']['metrics']['NDCG@10']:.4f}" in told
    assert "best epoch" in told and "1 process," in told


def test_a_run_ends_in_test_beside_validation_and_what_to_type_next(shop: Shop) -> None:
    test, valid = shop.kdsr["test"], shop.kdsr["valid"]
    again = ("train", "quickstart", *shop.overrides, "--runs", str(shop.runs), "--resume")
    lines = [line.rstrip() for line in invoke(*again).stdout.splitlines()]
    rows = {re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line) for line in lines}
    assert max(map(len, lines[:8])) <= 110
    interval = ["95%", "interval"]
    baselines = ["popularity", "transition", "item-knn"]
    assert lines[0].split() == ["test", *interval, "validation", *interval, *baselines]
    for metric in ("HR@10", "NDCG@10"):
        low, high = test["intervals"][metric]
        figures = (test["metrics"][metric], valid[metric])
        beside = [b["test"]["metrics"][metric] for b in shop.kdsr["baselines"].values()]
        assert rows[metric][1:] == [
            f"{figures[0]:.4f}",
            f"[{low:.4f}, {high:.4f}]",
            f"{figures[1]:.4f}",
            "[{:.4f}, {:.4f}]".format(*shop.kdsr["validation"]["intervals"][metric]),
            *(f"{value:.4f}" for value in beside),
        ]
    for name, part in test["slices"].items():
        shown = f"{part['NDCG@10']:.4f}" if part["n"] else "-"
        assert rows[f"NDCG@10 {name} ({part['n']})"][1].strip() == shown
    assert rows["coverage@10"][1].strip() == f"{test['coverage@10']:.4f}"
    breakdown = shop.kdsr["breakdown"]
    assert breakdown["test"]["cold"]["n"] == 0  # then what is warm is all, and has no row
    assert not any(name.startswith("NDCG@10 warm") for name in rows)
    for column, cases in enumerate(("test", "valid"), start=1):
        for name, value in breakdown[cases]["lists"].items():
            assert rows[name][column].strip() == f"{value:.4f}"
    told = "\n".join(lines)
    assert f"text {valid['retention.text.spearman']:.2f} " in told
    assert f"{shop.kdsr['parameters']:,} parameters" in told
    assert f"{shop.kdsr['seconds']['total']:.1f} s in all" in told and "peak memory" in told
    first, second = RunFolder(shop.runs / "quickstart").items().ids[1:3]
    command = f"mmkd recommend {shop.runs / 'quickstart'} --history {first},{second} -k 5"
    assert command in told
    assert invoke(*command.split()[1:]).exit_code == 0


def test_baselines_stand_beside(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    popular = copy.deepcopy(shop.kdsr["test"])
    popular["metrics"]["HR@10"] = 0.12345
    results.result(
        {**shop.kdsr, "baselines": {"popularity": {"test": popular}}},
        shop.runs / "quickstart",
        as_json=False,
    )
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "popularity" and first.split()[-1] in ("0.1234", "0.1235")


def test_new_items_stand_beside_on_validation_and_of_baselines(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    told = copy.deepcopy(shop.kdsr)
    for record in (told, *told["baselines"].values()):
        record["breakdown"]["test"]["cold"] |= {"n": 2, "NDCG@10": 0.0456}
    told["breakdown"]["valid"]["cold"] |= {"n": 3, "NDCG@10": 0.0123}
    told["breakdown"]["valid"]["warm"]["NDCG@10"] = 0.2345
    told["baselines"]["item-knn"]["breakdown"]["test"]["warm"]["NDCG@10"] = 0.3456
    results.result(told, shop.runs / "quickstart", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    warm, cold = (
        next(line.split() for line in lines if line.startswith(f"NDCG@10 {name} "))
        for name in ("warm", "cold")
    )
    assert (warm[4], warm[-1], cold[4]) == ("0.2345", "0.3456", "0.0123")
    assert cold[3] == cold[-1] == "0.0456"


def test_evaluate_shows_warm_and_cold_apart_and_together(shop: Shop) -> None:
    found = printed("evaluate", "quickstart", "--runs", shop.runs)
    lines = invoke("evaluate", "quickstart", "--runs", shop.runs).stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    parts = found["slices"] | {name: found["breakdown"][name] for name in ("all", "warm")}
    for name, part in parts.items():
        figures = [part[metric] for metric in results.METRICS]
        assert rows[name] == [str(part["n"]), *("-" if v is None else f"{v:.4f}" for v in figures)]
    lists = found["breakdown"]["lists"]
    assert all(f"{name} {value:.3f}" in lines[-1] for name, value in lists.items())
    assert max(map(len, lines)) <= 120


def test_training_tells_first_what_it_trains_on(shop: Shop, tmp_path: Path) -> None:
    options = ("training.epochs=1", *ID_ONLY)
    result = invoke("train", "quickstart", *shop.overrides, *options, "--out", tmp_path / "run")
    followed, first = result.stderr.splitlines()[:2]
    assert followed.endswith("so only ids are learned: asynchronous is none")
    assert first.startswith("id-only: 1 process on cpu, 1 thread each; 120 items, 200 users, ")


def test_compress_trains_one_network_from_an_ensemble(shop: Shop, tmp_path: Path) -> None:
    ensemble = ("name=three", "ensemble.members=3", "objective.mutual={weight: 0.1}")
    three = printed(
        "train", "quickstart", *shop.overrides, *ID_ONLY, *ensemble, "--runs", tmp_path / "runs"
    )
    command = ("compress", "three", "training.epochs=1", "--runs", tmp_path / "runs")
    small = printed(*command)
    old = invoke(*command, "objective.recommendation.views=1", "--out", tmp_path / "old").stderr
    assert "override: objective.recommendation.views: is called task.views now" in old
    run = RunFolder(tmp_path / "runs" / "three-compressed")
    assert small == {**run.result(), "folder": str(run.path)}
    assert small["epochs"] == 1 and small["parameters"] * 3 == three["parameters"]
    assert small["test"]["metrics"] != three["test"]["metrics"]
    recipe = load_recipe(str(run.recipe))
    assert recipe.objective.compression is not None
    assert recipe.objective.compression["teacher"] == str(tmp_path / "runs" / "three")
    assert recipe.objective.mutual is None and recipe.ensemble["members"] == 1
    # finished: told again; elsewhere: the same figures; another recipe: refused, nothing lost
    assert printed(*command, "--resume") == small
    other = printed(*command, "--out", tmp_path / "again")
    assert other["test"]["metrics"] == small["test"]["metrics"]
    with pytest.raises(ValueError, match="holds a finished run already; give --overwrite"):
        printed(*command)
    assert run.result()["digest"] == small["digest"]
    report = printed("evaluate", "three-compressed", "--against", "three", *command[-2:])
    assert report["first"] == pytest.approx(small["test"]["metrics"]["NDCG@10"])


def test_evaluate_gives_the_result_again(shop: Shop) -> None:
    report = printed("evaluate", "quickstart", "--runs", shop.runs)
    assert report["metrics"] == pytest.approx(shop.kdsr["test"]["metrics"])
    by_path = printed("evaluate", shop.runs / "quickstart", "--cases", "valid")
    assert by_path["metrics"]["NDCG@10"] == pytest.approx(shop.kdsr["valid"]["NDCG@10"])
    told = invoke("evaluate", "quickstart", "--runs", shop.runs).stdout
    assert f"{report['metrics']['HR@5']:.4f}" in told and "200 cases of 200 users" in told


def test_evaluate_against_another_run(shop: Shop) -> None:
    found = printed(
        "evaluate", "quickstart", "--against", "id-only", "--metric", "MRR@20", "--runs", shop.runs
    )
    first, second = (run["test"]["metrics"]["MRR@20"] for run in (shop.kdsr, shop.id_only))
    assert (found["first"], found["second"]) == pytest.approx((first, second))
    assert found["difference"] == pytest.approx(first - second)
    assert 0 < found["p_value"] <= 1 and found["users"] == 200
    same = printed("evaluate", "quickstart", "--against", "quickstart", "--runs", shop.runs)
    assert same["difference"] == 0.0 and same["p_value"] == 1.0


def test_evaluate_against_another_run_on_validation(shop: Shop) -> None:
    found = printed(
        *("evaluate", "quickstart", "--against", "id-only", "--cases", "valid"),
        *("--runs", shop.runs),
    )
    wanted = [run["valid"]["NDCG@10"] for run in (shop.kdsr, shop.id_only)]
    assert wanted[0] != pytest.approx(shop.kdsr["test"]["metrics"]["NDCG@10"])
    assert [found["first"], found["second"]] == pytest.approx(wanted)
    assert found["difference"] == pytest.approx(wanted[0] - wanted[1]) and found["users"] == 200


def test_runs_are_compared_whatever_their_precision(shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "half"
    shutil.copytree(shop.runs / "id-only", run)
    half = load_recipe(str(run / "recipe.yaml"), ["training.precision=bf16"])
    RunFolder(run).write(recipe=half.to_yaml(), result=RunFolder(run).result())
    found = printed("evaluate", run, "--against", shop.runs / "id-only", "--cases", "valid")
    assert found["first"] == pytest.approx(shop.id_only["valid"]["NDCG@10"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "evaluation.exclude_seen=none",
            r"differ in evaluation\.exclude_seen \(none and history\)",
        ),
        ("data.split={kind: temporal}", r"differ in data \(split\)"),
    ],
)
def test_runs_of_other_data_or_candidates_are_not_compared(
    shop: Shop, change: str, told: str, tmp_path: Path
) -> None:
    options = (*shop.overrides, *ID_ONLY, "training.epochs=1", change)
    printed("train", "quickstart", *options, "--out", tmp_path / "run")
    for cases in ("test", "valid"):
        with pytest.raises(RunError, match=told):
            invoke(
                *("evaluate", tmp_path / "run", "--against", shop.runs / "id-only"),
                *("--cases", cases),
            )


def test_recommend_leaves_out_the_history_unless_told(shop: Shop) -> None:
    ids = RunFolder(shop.runs / "quickstart").items().ids
    history = f"{ids[3]}, {ids[7]}"
    command = ("recommend", "quickstart", "--history", history, "--runs", shop.runs, "-k", "118")
    found = printed(*command)
    assert len(found) == 118
    scores = [item["score"] for item in found]
    assert scores == sorted(scores, reverse=True)
    assert {item["item"] for item in found} == set(ids[1:]) - {ids[3], ids[7]}
    kept = printed(*command[:-1], "120", "--keep-seen")
    assert {item["item"] for item in kept} == set(ids[1:])
    assert found[0]["title"] in invoke(*command[:-1], "3").stdout


def test_neighbours_by_encoder_and_student(shop: Shop) -> None:
    ids = RunFolder(shop.runs / "quickstart").items().ids
    command = ("neighbours", "quickstart", *shop.overrides, "--modality", "image", "-k", "4")
    pictures = RunFolder(shop.runs / "quickstart").items().image_path
    row = next(r for r in range(1, 121) if pictures[r] is not None)
    found = printed(*command, "--item", ids[row], "--runs", shop.runs)
    for side in ("encoder", "student"):
        near = found[side]
        assert len({item["item"] for item in near}) == 4
        assert ids[row] not in {item["item"] for item in near}
        cosines = [item["score"] for item in near]
        assert cosines == sorted(cosines, reverse=True)
        assert all(-1 <= cosine <= 1 + 1e-5 for cosine in cosines)
    untrained = printed(*command, "--item", ids[row], "--runs", shop.folder / "none")
    assert untrained["student"] is None and untrained["encoder"] == found["encoder"]
