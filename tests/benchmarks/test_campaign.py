"""The campaign: what a trial is, what a row keeps, what runs and what does not run again."""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.campaign import __main__ as campaign
from benchmarks.campaign.plan import read_plan
from benchmarks.campaign.rows import Row, append_row, check, pack, read_rows, unpack
from benchmarks.campaign.table import print_tables, winners
from mmkd.config.plan import plan
from mmkd.config.recipe import read_recipe
from mmkd.evaluation.metrics import per_case
from mmkd.evaluation.ranking import CaseRanks

SETS = ("beauty", "beauty-cold", "scientific", "movietweetings", "ml-1m")


@pytest.mark.parametrize("name", SETS)
def test_every_trial_is_a_recipe_that_can_run(name: str, tmp_path: Path) -> None:
    for variant in read_plan(name).values():
        for number in range(4 if variant.space else 1):
            given = [*variant.overrides, *variant.trial(number), f"data.root={tmp_path}"]
            planned = plan(read_recipe(variant.recipe, given))
            rates = [float(one.partition("=")[2]) for one in given if one.startswith("training.lr")]
            assert rates == [planned.training.lr] * len(rates)
            assert ("text" in planned.cards) == ("encoders=null" not in given)


def test_trials_draw_shared_options_alike_and_start_at_the_recipes_own(tmp_path: Path) -> None:
    variants = [one for one in read_plan("ml-1m").values() if one.space]
    for number in (1, 2, 3):
        assert len({one.trial(number)[:4] for one in variants}) == 1
    assert len({variants[0].trial(number) for number in range(4)}) == 4
    assert "student.embedding.dropout=0.2" in variants[0].trial(0)  # of the set, not of the plan
    root = f"data.root={tmp_path}"
    ours = plan(read_recipe("ml-1m-base", [*variants[0].trial(0), root]))
    assert ours.training == plan(read_recipe("ml-1m-base", [root])).training


def cases(seed: int) -> CaseRanks:
    generator = np.random.default_rng(seed)
    ties = generator.integers(0, 4, 200)
    best = generator.integers(1, 400, 200)
    user = np.sort(np.random.default_rng(0).integers(0, 50, 200))  # the same with every seed
    one = np.arange(200)
    return CaseRanks(one, user, one, best + ties / 2, ties, one[:, None])


def test_packed_ranks_have_the_metrics_of_the_ranks() -> None:
    whole = cases(0)
    back = unpack(pack(whole))
    assert np.array_equal(back.user, whole.user)
    for metric in ("NDCG@10", "HR@20", "MRR@5"):
        found = per_case(back.rank, metric, ties=back.ties)
        np.testing.assert_array_equal(found, per_case(whole.rank, metric, ties=whole.ties))


def row(variant: str, trial: int, seed: int, valid: float) -> Row:
    ranks = cases(trial + 10 * seed)
    mean = float(per_case(ranks.rank, "NDCG@10", ties=ranks.ties).mean())
    test = {"NDCG@10": mean, "HR@10": 0.5, "cold/NDCG@10": 0.1}
    return Row(variant, trial, seed, ("a=1",), valid, test, pack(ranks), 60.0, 3, 1000, "abc")


def test_rows_come_back_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    kept = [row("ids", 0, 0, 0.1), row("fused", 1, 2, 0.2)]
    for one in kept:
        check(one)
        append_row(tmp_path / "rows.jsonl", one)
    assert read_rows(tmp_path / "rows.jsonl") == kept
    assert read_rows(tmp_path / "none.jsonl") == []
    other = pack(cases(99))
    with pytest.raises(ValueError, match="packed ranks"):
        check(Row(**{**vars(kept[0]), "ranks": other}))


def test_the_winner_is_chosen_on_validation_of_the_first_seed() -> None:
    rows = [row("ids", 0, 0, 0.1), row("ids", 1, 0, 0.3), row("ids", 0, 1, 0.9)]
    rows.append(row("ids", 1, 1, 0.2))
    assert [(one.trial, one.seed) for one in winners(rows)["ids"]] == [(1, 0), (1, 1)]


def test_the_table_has_a_line_a_variant_and_paired_tests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row(name, 0, seed, 0.1) for name in ("ids", "fused") for seed in (0, 1)]
    print_tables(read_plan("beauty"), rows)
    said = capsys.readouterr().out
    assert "ids - fused" in said and "fused - ids" not in said  # each pair once
    assert f"{np.mean([one.test['NDCG@10'] for one in rows[:2]]):.4f} [" in said


def test_a_table_of_the_first_trials_leaves_the_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(campaign, "ROWS", tmp_path)
    for one in (row("ids", 0, 0, 0.1), row("ids", 1, 0, 0.3)):
        append_row(tmp_path / "beauty.jsonl", one)
    for more, kept in ([], "0.3000"), (["--trials", "1"], "0.1000"):
        monkeypatch.setattr("sys.argv", ["campaign", "table", "beauty", *more])
        campaign.main()
        line = capsys.readouterr().out.splitlines()[1]
        assert line.split()[:4] == ["ids", "1" if more else "2", "1", kept]


def test_what_has_a_row_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def train(self: object, command: str, what: Path, overrides: object, folder: Path) -> bool:
        ran.append(f"{command} {folder.name}")
        folder.mkdir(parents=True)
        ranks = cases(len(ran))
        mean = float(per_case(ranks.rank, "NDCG@10", ties=ranks.ties).mean())
        valid = {"fused-1-0": 0.9}.get(folder.name, 0.1)
        result = {
            "valid": {"NDCG@10": valid},
            "test": {"metrics": {"NDCG@10": mean}, "coverage@10": 0.5, "slices": {}},
            "seconds": {"train_and_validate": 1.0},
            "epochs": 2,
            "parameters": 7,
        }
        (folder / "result.json").write_text(json.dumps(result))
        columns = {name: value for name, value in vars(ranks).items() if name != "top_items"}
        pl.DataFrame({**columns, "top_items": ranks.top_items}).write_parquet(
            folder / "test_ranks.parquet"
        )
        return True

    monkeypatch.setattr(campaign._Campaign, "_mmkd", train)
    options = argparse.Namespace(
        set="beauty",
        data=tmp_path,
        work=tmp_path,
        variants="fused,soft,soft-tuned",
        tuned=None,
        trials=2,
        seeds=2,
        minutes=9.0,
    )
    campaign._Campaign(options, tmp_path / "rows.jsonl").run()
    first = ["fused-0-0", "soft-0-0", "fused-1-0", "soft-1-0", "fused-1-1", "soft-0-1"]
    assert ran == [f"train {one}" for one in first]
    campaign._Campaign(options, tmp_path / "rows.jsonl").run()
    assert len(ran) == 6
    options.minutes = 0.0
    options.seeds = 3
    with pytest.raises(SystemExit):
        campaign._Campaign(options, tmp_path / "rows.jsonl").run()
    assert len(ran) == 6
    options.minutes, options.variants, options.seeds = 9.0, "compressed", 1
    campaign._Campaign(options, tmp_path / "rows.jsonl").run()  # of best, which has not run
    assert len(ran) == 6
    assert "train best" in capsys.readouterr().out
