"""Modality retention against scipy and a naive neighbour search."""

import faiss
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from mmkd.errors import EvaluationError
from mmkd.evaluation import RetentionProbe, retention

ITEMS = 120


def _teacher() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(ITEMS + 1, 12, generator=g)
    present = torch.rand(ITEMS + 1, generator=g) < 0.7
    present[0] = True  # padding is no item, whatever it says
    return teacher, present


def _noisy(teacher: Tensor, noise: float) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return teacher + noise * torch.randn(teacher.shape, generator=g)


def _cosines(table: Tensor, rows: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    v = table[rows].double().numpy()
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v @ v.T)


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_measures_match_scipy_and_a_naive_search(noise: float) -> None:
    teacher, present = _teacher()
    student = _noisy(teacher, noise)
    # so many pairs that sampling no longer matters, and every item as a query
    probe = RetentionProbe(
        teacher=teacher, present=present, pairs=300_000, queries=ITEMS, k=5, seed=0
    )
    measured = probe.measure(student)

    rows = [r for r in range(1, ITEMS + 1) if present[r]]
    a, b = _cosines(teacher, rows), _cosines(student, rows)
    upper = np.triu_indices(len(rows), 1)
    expected = scipy.stats.spearmanr(a[upper], b[upper]).statistic
    assert measured["spearman"] == pytest.approx(expected, abs=5e-3)

    hits = 0
    for q in range(len(rows)):
        others = [i for i in range(len(rows)) if i != q]
        near_a = set(sorted(others, key=lambda i: -a[q, i])[:5])
        near_b = set(sorted(others, key=lambda i: -b[q, i])[:5])
        hits += len(near_a & near_b)
    assert measured["recall@5"] == pytest.approx(hits / (5 * len(rows)))


def test_spearman_is_scipys_on_the_sampled_pairs() -> None:
    teacher, present = _teacher()
    student = _noisy(teacher, 0.7)
    probe = RetentionProbe(teacher=teacher, present=present, pairs=50, seed=3)
    rows = [r for r in range(1, ITEMS + 1) if present[r]]
    assert not np.any(probe._first == probe._second)
    a = _cosines(teacher, rows)[probe._first, probe._second]
    b = _cosines(student, rows)[probe._first, probe._second]
    expected = scipy.stats.spearmanr(a, b).statistic
    assert probe.measure(student)["spearman"] == pytest.approx(expected, abs=1e-9)


def test_equal_similarities_share_their_rank_as_in_scipy() -> None:
    teacher, present = _teacher()
    probe = RetentionProbe(teacher=teacher, present=present, pairs=400)
    signs = torch.zeros(ITEMS + 1, 3)  # axes and their opposites: cosines are -1, 0 or 1
    signs[torch.arange(ITEMS + 1), torch.arange(ITEMS + 1) % 3] = 2.0
    signs[::5] *= -1.0
    rows = [r for r in range(1, ITEMS + 1) if present[r]]
    a = _cosines(teacher, rows)[probe._first, probe._second]
    b = _cosines(signs, rows)[probe._first, probe._second]
    expected = scipy.stats.spearmanr(a, b).statistic
    assert probe.measure(signs)["spearman"] == pytest.approx(expected, abs=1e-9)


def test_teacher_itself_is_fully_retained_and_scale_does_not_matter() -> None:
    teacher, present = _teacher()
    probe = RetentionProbe(teacher=teacher, present=present)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)))
    scale = torch.arange(1, ITEMS + 2)[:, None]
    measured = probe.measure((teacher @ rotation) * scale)
    assert measured["spearman"] == pytest.approx(1.0, abs=1e-6)
    assert measured["recall@10"] == pytest.approx(1.0, abs=2e-3)


def test_items_without_the_modality_do_not_count() -> None:
    teacher, present = _teacher()
    student = teacher.clone()
    student[~present] = torch.nan
    student[0] = torch.nan
    measured = RetentionProbe(teacher=teacher, present=present).measure(student)
    assert measured == pytest.approx({"spearman": 1.0, "recall@10": 1.0})


def test_no_item_is_its_own_neighbour_even_among_duplicates() -> None:
    teacher, present = _teacher()
    teacher[2::2] = teacher[1:-1:2]  # every item has a twin
    probe = RetentionProbe(teacher=teacher, present=present, k=3)
    nearest = probe._nearest(probe._unit_rows(teacher))
    assert not np.any(nearest == probe._queries[:, None])
    teacher[:] = teacher[1]  # all alike: more duplicates than the search returns
    probe = RetentionProbe(teacher=teacher, present=present, k=3)
    nearest = probe._nearest(probe._unit_rows(teacher))
    assert not np.any(nearest == probe._queries[:, None])


def test_random_student_retains_nothing_and_a_collapsed_one_is_zero() -> None:
    teacher, present = _teacher()
    probe = RetentionProbe(teacher=teacher, present=present)
    others = int(present[1:].sum()) - 1
    measured = probe.measure(torch.randn(ITEMS + 1, 30, generator=torch.Generator().manual_seed(9)))
    assert abs(measured["spearman"]) < 0.1
    assert measured["recall@10"] == pytest.approx(10 / others, abs=0.04)
    assert probe.measure(torch.zeros(ITEMS + 1, 4))["spearman"] == 0.0


def test_probe_is_seeded() -> None:
    teacher, present = _teacher()
    student = _noisy(teacher, 0.5)

    def measure(seed: int) -> dict[str, float]:
        probe = RetentionProbe(teacher=teacher, present=present, pairs=100, queries=9, seed=seed)
        return probe.measure(student)

    assert measure(1) == measure(1)
    assert measure(1) != measure(2)


def test_faiss_threads_are_left_as_they_were() -> None:
    teacher, present = _teacher()
    before = faiss.omp_get_max_threads()
    RetentionProbe(teacher=teacher, present=present).measure(teacher)
    assert faiss.omp_get_max_threads() == before


def test_misfitting_tables_are_errors() -> None:
    teacher, present = _teacher()
    few = torch.zeros_like(present)
    few[:2] = True  # one item besides the padding
    with pytest.raises(EvaluationError, match="1 items have this modality"):
        RetentionProbe(teacher=teacher, present=few)
    with pytest.raises(EvaluationError, match="wanted"):
        RetentionProbe(teacher=teacher, present=present.float())
    probe = RetentionProbe(teacher=teacher, present=present)
    with pytest.raises(EvaluationError, match="wanted 121 rows"):
        probe.measure(teacher[1:])
    with pytest.raises(EvaluationError, match="NaN"):
        probe.measure(teacher * torch.nan)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_equally_near_neighbours_count_as_equal(share: float) -> None:
    """Of a placeholder's many equal vectors any ten are the ten nearest."""
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(201, 16, generator=g)
    teacher[1 : 1 + int(200 * share)] = teacher[1]
    present = torch.arange(201) > 0
    probe = RetentionProbe(teacher=teacher, present=present)
    moved = teacher + 1e-6 * torch.randn(teacher.shape, generator=g)
    assert probe.measure(moved)["recall@10"] == pytest.approx(1.0, abs=0.01)
    # against a loop that asks of every neighbour how near the teacher has it
    noisy = teacher + torch.randn(teacher.shape, generator=g)
    rows = list(range(1, 201))
    of_teacher, of_student = _cosines(teacher, rows), _cosines(noisy, rows)
    np.fill_diagonal(of_teacher, -2)
    np.fill_diagonal(of_student, -2)
    hits = []
    for near, mine in zip(of_teacher, of_student, strict=True):
        tenth = np.sort(near)[-10]
        hits += [near[other] >= tenth - 1e-6 for other in np.argsort(-mine)[:10]]
    assert probe.measure(noisy)["recall@10"] == pytest.approx(np.mean(hits), abs=1e-6)


@pytest.mark.parametrize("items", [2, 3, 11])
def test_where_all_others_are_neighbours_all_are_kept(items: int) -> None:
    teacher = torch.randn(items + 1, 4, generator=torch.Generator().manual_seed(0))
    probe = RetentionProbe(teacher=teacher, present=torch.arange(items + 1) > 0)
    assert probe.measure(-teacher)["recall@10"] == 1.0


def test_of_many_items_a_fixed_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_MOST_ITEMS", 12)
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(51, 6, generator=generator) for _ in range(2))
    teacher[0] = 0
    present = torch.arange(51) > 0
    options = {"pairs": 400, "queries": 12, "k": 3, "seed": 2}
    probe = RetentionProbe(teacher=teacher, present=present, **options)
    found = probe.measure(student)
    rows = [
        row for row in range(1, 51) if probe.measure(_moved(student, row)) != found
    ]  # those it reads
    assert len(rows) == 12
    monkeypatch.setattr(retention, "_MOST_ITEMS", 100_000)
    small = RetentionProbe(
        teacher=torch.cat([teacher[:1], teacher[rows]]), present=torch.arange(13) > 0, **options
    )
    assert small.measure(torch.cat([student[:1], student[rows]])) == pytest.approx(found)


def _moved(table: Tensor, row: int) -> Tensor:
    moved = table.clone()
    moved[row] = -10 * moved[row]
    return moved
