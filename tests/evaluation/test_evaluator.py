"""The evaluator against one case at a time, alone and over several processes."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from references.ranking import reference_rank
from torch import Tensor

from mmkd import Ensemble, Evaluator, FusedItemEmbedding, Recommender, SequenceSplit
from mmkd.data.splits import Cases
from mmkd.errors import EvaluationError
from mmkd.evaluation import CaseRanks, compare, metrics_from_ranks
from mmkd.evaluation.ranking import gather, merge
from mmkd.student import build_backbone

ITEMS = 40


def _split() -> SequenceSplit:
    """30 users with 2 to 25 events and many repeats; several test cases for some."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 26, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, ITEMS + 1, offsets[-1])
    last = Cases(user=np.arange(30), position=lengths - 1)
    more = Cases(
        user=np.repeat(np.arange(30), 2), position=np.stack([lengths - 2, lengths - 1], 1).ravel()
    )
    return SequenceSplit(
        items=items, offsets=offsets, train_end=lengths - 1, valid=last, test=more, item_count=ITEMS
    )


def _score(items: Tensor) -> Tensor:
    """A scorer that depends on every real event and its distance from the end, not on padding."""
    g = torch.Generator().manual_seed(7)
    table = torch.randn(ITEMS + 1, ITEMS + 1, generator=g, dtype=torch.float64)
    table[0] = 0
    weight = 0.9 ** torch.arange(items.shape[1] - 1, -1, -1).double()
    return (table[items] * weight[:, None]).sum(1).round(decimals=1)  # rounded: ties occur


def _run(
    cases: Cases | None = None,
    *,
    max_length: int | None = 8,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> CaseRanks:
    split = _split()
    evaluator = Evaluator(**{"batch_size": 7, **options})
    processes = SimpleNamespace(
        device=torch.device("cpu"), process_index=rank, num_processes=world_size
    )
    chosen = split.test if cases is None else cases
    return evaluator.ranks(_score, split, chosen, processes=processes, max_length=max_length)


@pytest.mark.parametrize("exclude_seen", ["history", "none"])
@pytest.mark.parametrize(("max_length", "batch_size"), [(8, 7), (1, 1), (50, 1000), (None, 60)])
def test_matches_one_case_at_a_time(
    exclude_seen: Literal["history", "none"], max_length: int | None, batch_size: int
) -> None:
    split = _split()
    found = _run(exclude_seen=exclude_seen, max_length=max_length, batch_size=batch_size)
    assert found.case.tolist() == list(range(60))
    for n, (user, position) in enumerate(zip(split.test.user, split.test.position, strict=True)):
        events = split.items[split.offsets[user] : split.offsets[user + 1]].tolist()
        history, target = events[:position], events[position]
        scores = _score(torch.tensor([history[-(max_length or 99) :] or [0]]))[0].tolist()
        seen = set(history) - {target} if exclude_seen == "history" else set()
        assert (found.user[n], found.target[n]) == (user, target)
        assert (found.rank[n], found.ties[n]) == reference_rank(scores, target, seen)
        allowed = [scores[i] for i in range(1, ITEMS + 1) if i not in seen]
        listed = [scores[i] for i in found.top_items[n] if i > 0]
        assert listed == sorted(allowed, reverse=True)[:10]
        assert not seen & set(found.top_items[n].tolist())


def test_batches_are_left_padded_and_trimmed() -> None:
    shapes: list[tuple[int, int]] = []

    def score(items: Tensor) -> Tensor:
        real = items > 0
        assert bool((real[:, 1:] >= real[:, :-1]).all())  # padding only on the left
        assert bool(real.any(0)[0]), "the first column holds nothing but padding"
        shapes.append((items.shape[0], items.shape[1]))
        return torch.zeros(len(items), ITEMS + 1)

    split = _split()
    Evaluator(batch_size=10).ranks(score, split, split.valid, max_length=20)
    longest = np.sort(np.minimum(split.valid.position, 20))[9::10]
    assert shapes == [(10, int(length)) for length in longest]


def test_a_case_without_history_is_a_row_of_padding() -> None:
    cases = Cases(user=np.array([3]), position=np.array([0]))
    found = _run(cases)
    scores = _score(torch.tensor([[0]]))[0].tolist()
    assert (found.rank[0], found.ties[0]) == reference_rank(scores, int(found.target[0]))


def test_no_cases_give_no_ranks() -> None:
    found = _run(Cases(user=np.zeros(0, np.int64), position=np.zeros(0, np.int64)))
    assert len(found) == 0
    with pytest.raises(EvaluationError, match="no case"):
        Evaluator().report(found, _split())


def _assert_same(a: CaseRanks, b: CaseRanks) -> None:
    for name in ("case", "user", "target", "rank", "ties", "top_items"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("world_size", [2, 3, 61])
def test_slices_of_processes_merge_to_the_whole(world_size: int) -> None:
    parts = [_run(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum(len(part) for part in parts) == 60
    whole = _run()
    _assert_same(merge(parts[::-1]), whole)
    _assert_same(merge([*parts, whole, parts[0]]), whole)  # repeats count once


def _gather_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    # an odd number of cases: the parts differ in length
    odd = Cases(user=_split().test.user[:59], position=_split().test.position[:59])
    _assert_same(gather(_run(odd, rank=rank, world_size=2)), _run(odd))
    dist.destroy_process_group()


def test_gather_gives_every_process_the_whole(tmp_path: Path) -> None:
    _assert_same(gather(_run()), _run())  # without a process group
    fork = multiprocessing.get_context("fork")  # a spawned process would import torch again
    processes = [fork.Process(target=_gather_in_process, args=(r, str(tmp_path))) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_summary_holds_the_metrics_of_all_cases() -> None:
    split, found = _split(), _run()
    evaluator = Evaluator(ks=(5, 10))
    report = evaluator.report(found, split)
    assert report["metrics"] == pytest.approx(evaluator.metrics(found))
    assert evaluator.metrics(found) == metrics_from_ranks(found.rank, (5, 10), ties=found.ties)
    for name, (low, high) in report["intervals"].items():
        assert 0 <= low < report["metrics"][name] < high <= 1
    assert (report["n"], report["users"]) == (60, 30)
    assert report["coverage@10"] == len(set(found.top_items.ravel().tolist()) - {0}) / ITEMS
    assert sum(part["n"] for part in report["slices"].values()) == 60
    breakdown = report["breakdown"]
    assert report == evaluator.report(found, SimpleNamespace(split=split))
    cold = split.is_cold(split.test)
    assert [breakdown[name]["n"] for name in ("all", "warm", "cold")] == [60, sum(~cold), sum(cold)]
    assert breakdown["all"]["NDCG@10"] == pytest.approx(report["metrics"]["NDCG@10"])
    assert breakdown["cold"] == report["slices"]["cold"]
    assert list(breakdown["lists"]) == [
        *("coverage@10", "gini@10", "popularity@10", "head@10", "cold@10")
    ]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert evaluator.report(found, split, seed=0) == report


def test_compare_sees_a_better_run_and_refuses_other_cases() -> None:
    found = _run()
    ahead = CaseRanks(
        case=found.case,
        user=found.user,
        target=found.target,
        rank=np.ones(60),
        ties=np.zeros(60, np.int64),
        top_items=found.top_items,
    )
    result = compare(ahead, found, metric="HR@5", permutations=999)
    assert result["first"] == 1.0
    assert result["difference"] == pytest.approx(1.0 - result["second"])
    assert (result["p_value"], result["users"]) == (pytest.approx(1 / 1000), 30)
    assert 0 < result["interval"][0] < result["difference"] < result["interval"][1]
    assert compare(found, found, permutations=99)["p_value"] == 1.0
    with pytest.raises(EvaluationError, match="different cases"):
        compare(found, found.take(np.arange(59)))


def _student(*, causal: bool = True) -> Recommender:
    kind = "sasrec" if causal else "bert4rec"
    return Recommender(
        embedding=FusedItemEmbedding(item_count=ITEMS, width=8, dropout=0.5),
        backbone=build_backbone(kind, width=8, max_length=6, layers=1, heads=2, dropout=0.5),
    )


@pytest.mark.parametrize("causal", [True, False])
def test_a_student_is_ranked_as_a_function_that_scores_with_it(causal: bool) -> None:
    """Alone or in an ensemble, without dropout, and left as it was."""
    split, student = _split(), _student(causal=causal)
    student.backbone.eval()

    def score(histories: Tensor) -> Tensor:
        assert not any(module.training for module in student.modules())
        if not causal:
            mask = torch.full((len(histories), 1), ITEMS + 1)
            histories = torch.cat([histories, mask], dim=1)
        return student.score(student(histories[:, -6:]).hidden[:, -1])

    student.eval()
    expected = Evaluator().ranks(score, split, split.test)
    student.train()
    student.backbone.eval()
    for one in (student, Ensemble([student])):
        _assert_same(Evaluator().ranks(one, split, split.test), expected)
    assert student.training and student.embedding.training and not student.backbone.training


def test_a_notebook_reports_on_a_student_and_its_data() -> None:
    split, student = _split(), _student()
    evaluator = Evaluator(ks=(10,), resamples=20)
    report = evaluator.report(student, SimpleNamespace(split=split))
    assert report == evaluator.report(evaluator.ranks(student, split, split.test), split)
    assert 0 < report["metrics"]["NDCG@10"] < 1


def test_a_wrong_option_is_told_without_anything_being_built() -> None:
    assert Evaluator.check() == Evaluator.check(ks=(1,), exclude_seen="none", resamples=1) == []
    problems = Evaluator.check(ks=[10, 0], exclude_seen="all", batch_size=0)
    assert [line.partition(",")[0] for line in problems] == [
        "exclude_seen: got 'all'",
        "ks: got 0",
        "batch_size: got 0",
    ]
    assert Evaluator.check(ks=[])[0].startswith("ks: got none, wanted at least one cut-off")
    with pytest.raises(ValueError, match="resamples: got 0, wanted at least 1"):
        Evaluator(resamples=0)
    with pytest.raises(ValueError, match="max_length: got 0, wanted at least 1"):
        _run(max_length=0)


def test_misfitting_cases_and_scores_are_errors() -> None:
    with pytest.raises(EvaluationError, match="do not belong together"):
        _run(Cases(user=np.array([0]), position=np.array([99])))
    split = _split()
    with pytest.raises(EvaluationError, match=r"wanted \(7, 41\)"):
        Evaluator(batch_size=7).ranks(
            lambda items: torch.zeros(len(items), ITEMS + 2), split, split.test
        )
