"""The evaluator against one case at a time, alone and over several processes."""

import functools
import json
import multiprocessing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from references.ranking import reference_rank
from torch import Tensor

from mmkd.data.splits import Cases, SequenceSplit
from mmkd.errors import EvaluationError
from mmkd.evaluation import (
    CaseRanks,
    compare,
    evaluate_cases,
    gather,
    merge,
    metrics_from_ranks,
    summarise,
)

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


def _run(cases: Cases | None = None, **options: Any) -> CaseRanks:
    split = _split()
    chosen = split.test if cases is None else cases
    defaults = {"split": split, "cases": chosen, "max_length": 8, "batch_size": 7}
    return evaluate_cases(_score, **{**defaults, **options})


@pytest.mark.parametrize("exclude_seen", ["history", "none"])
@pytest.mark.parametrize(("max_length", "batch_size"), [(8, 7), (1, 1), (50, 1000)])
def test_matches_one_case_at_a_time(
    exclude_seen: Literal["history", "none"], max_length: int, batch_size: int
) -> None:
    split = _split()
    found = _run(exclude_seen=exclude_seen, max_length=max_length, batch_size=batch_size)
    assert found.case.tolist() == list(range(60))
    for n, (user, position) in enumerate(zip(split.test.user, split.test.position, strict=True)):
        events = split.items[split.offsets[user] : split.offsets[user + 1]].tolist()
        history, target = events[:position], events[position]
        scores = _score(torch.tensor([history[-max_length:] or [0]]))[0].tolist()
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
    done: list[tuple[int, int]] = []
    evaluate_cases(
        score,
        split=split,
        cases=split.valid,
        max_length=20,
        batch_size=10,
        progress=lambda i, n: done.append((i, n)),
    )
    longest = np.sort(np.minimum(split.valid.position, 20))[9::10]
    assert shapes == [(10, int(length)) for length in longest]
    assert done == [(10, 30), (20, 30), (30, 30)]


def test_a_case_without_history_is_a_row_of_padding() -> None:
    cases = Cases(user=np.array([3]), position=np.array([0]))
    found = _run(cases)
    scores = _score(torch.tensor([[0]]))[0].tolist()
    assert (found.rank[0], found.ties[0]) == reference_rank(scores, int(found.target[0]))


def test_no_cases_give_no_ranks() -> None:
    found = _run(Cases(user=np.zeros(0, np.int64), position=np.zeros(0, np.int64)))
    assert len(found) == 0
    with pytest.raises(EvaluationError, match="no case"):
        summarise(found, _split())


def _assert_same(a: CaseRanks, b: CaseRanks) -> None:
    for name in ("case", "user", "target", "rank", "ties", "top_items"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("world_size", [2, 3, 61])
def test_slices_of_processes_merge_to_the_whole(world_size: int) -> None:
    parts = [_run(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum(len(part) for part in parts) == 60
    whole = _run()
    _assert_same(merge(parts[::-1], case_count=60), whole)
    _assert_same(merge([*parts, whole, parts[0]], case_count=60), whole)  # repeats count once
    with pytest.raises(EvaluationError, match="part is missing"):
        merge(parts[1:], case_count=60)


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
    report = summarise(found, split, (5, 10), seed=0)
    assert report["metrics"] == pytest.approx(
        metrics_from_ranks(found.rank, (5, 10), ties=found.ties)
    )
    for name, (low, high) in report["intervals"].items():
        assert 0 <= low < report["metrics"][name] < high <= 1
    assert (report["n"], report["users"]) == (60, 30)
    assert report["coverage@10"] == len(set(found.top_items.ravel().tolist()) - {0}) / ITEMS
    assert sum(part["n"] for part in report["slices"].values()) == 60
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert summarise(found, split, (5, 10), seed=0) == report


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
    assert result["p_value"] == pytest.approx(1 / 1000)
    assert 0 < result["interval"][0] < result["difference"] < result["interval"][1]
    assert compare(found, found, permutations=99)["p_value"] == 1.0
    with pytest.raises(EvaluationError, match="different cases"):
        compare(found, found.take(np.arange(59)))


def test_misfitting_arguments_are_errors() -> None:
    with pytest.raises(EvaluationError, match="max_length 0"):
        _run(max_length=0)
    with pytest.raises(EvaluationError, match="exclude_seen is 'all'"):
        _run(exclude_seen="all")
    with pytest.raises(EvaluationError, match="rank 2 of 2"):
        _run(rank=2, world_size=2)
    with pytest.raises(EvaluationError, match="do not belong together"):
        _run(Cases(user=np.array([0]), position=np.array([99])))
    split = _split()
    wide = functools.partial(torch.zeros, dtype=torch.float64)
    with pytest.raises(EvaluationError, match=r"wanted \(7, 41\)"):
        evaluate_cases(
            lambda items: wide(len(items), ITEMS + 2),
            split=split,
            cases=split.test,
            max_length=5,
            batch_size=7,
        )
