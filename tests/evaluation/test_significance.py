"""Bootstrap intervals and the paired permutation test against scipy."""

import numpy as np
import pytest
import scipy.stats

from mmkd.errors import EvaluationError
from mmkd.evaluation import (
    bootstrap_intervals,
    crossed_intervals,
    difference_interval,
    paired_permutation_test,
)
from mmkd.evaluation import significance as module


def test_intervals_match_scipy_with_one_case_per_user() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.random(200), rng.exponential(size=200)])
    ends = bootstrap_intervals(values, rng.permutation(200), resamples=20_000, level=0.9)
    for column, (low, high) in zip(values.T, ends, strict=True):
        theirs = scipy.stats.bootstrap(
            (column,),
            np.mean,
            n_resamples=20_000,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert low == pytest.approx(theirs.low, abs=0.03 * width)
        assert high == pytest.approx(theirs.high, abs=0.03 * width)


def test_cases_of_one_user_travel_together() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    values = rng.random(30)[users]  # all cases of a user agree
    ends = bootstrap_intervals(values[:, None], users, resamples=4000)
    means = []
    for _ in range(4000):  # a loop that draws whole users
        drawn = rng.integers(30, size=30)
        means.append(np.concatenate([values[users == u] for u in drawn]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    width = expected[1] - expected[0]
    np.testing.assert_allclose(ends[0], expected, atol=0.06 * width)
    alone = bootstrap_intervals(values[:, None], np.arange(len(values)), resamples=4000)
    assert np.ptp(alone[0]) < 0.7 * width  # as if independent: far too narrow


def test_intervals_are_seeded_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    values, users = rng.random((50, 2)), np.arange(50)
    ends = bootstrap_intervals(values, users, seed=5)
    assert not np.array_equal(ends, bootstrap_intervals(values, users, seed=6))
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 7 * 50)
    np.testing.assert_allclose(bootstrap_intervals(values, users, seed=5), ends, rtol=1e-12)


def test_a_constant_has_an_interval_of_no_width() -> None:
    ends = bootstrap_intervals(np.full((9, 1), 0.25), np.arange(9) // 2)
    np.testing.assert_allclose(ends, [[0.25, 0.25]])


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_p_value_matches_scipy(shift: float) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(shift, 1, 300), rng.normal(0, 1, 300)
    ours = paired_permutation_test(first, second, np.arange(300), permutations=20_000)
    theirs = scipy.stats.permutation_test(
        (first, second),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(4),
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.015)


def test_p_value_matches_every_sign_flip_over_users() -> None:
    users = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 6])
    change = np.array([1.0, 1.0, -0.5, 1.0, 0.0, 0.5, 2.0, 0.0, 0.25, 1.0])
    per_user = np.bincount(users, weights=change)
    exact = scipy.stats.permutation_test(
        (per_user, np.zeros(7)),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    p_value = paired_permutation_test(change, np.zeros(10), users, permutations=40_000)
    assert p_value == pytest.approx(exact, abs=0.01)


def test_p_value_is_one_for_equal_runs_and_never_zero() -> None:
    values, users = np.random.default_rng(5).random(40), np.arange(40)
    assert paired_permutation_test(values, values, users, permutations=99) == 1.0
    better = paired_permutation_test(values + 1, values, users, permutations=99)
    assert better == pytest.approx(1 / 100)
    worse = paired_permutation_test(values, values + 1, users, permutations=99)
    assert worse == better


def test_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(6)
    p = []
    for _ in range(400):
        first, second = rng.random((2, 60))
        p.append(paired_permutation_test(first, second, np.arange(60), permutations=199))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_misfitting_arguments_are_errors() -> None:
    one, two = np.ones(1), np.ones(2)
    users = np.zeros(2, np.int64)
    with pytest.raises(EvaluationError, match="case by case"):
        paired_permutation_test(one, two, users)
    with pytest.raises(EvaluationError, match="permutations is 0"):
        paired_permutation_test(two, two, users, permutations=0)
    with pytest.raises(EvaluationError, match="N at least 1"):
        bootstrap_intervals(np.ones((0, 1)), users[:0])
    with pytest.raises(EvaluationError, match="level 95"):
        bootstrap_intervals(np.ones((2, 1)), users, level=95)


def test_crossed_intervals_are_a_naive_draw_of_seeds_and_users() -> None:
    """Whole users and seeds drawn in a loop; seeds' spread widened by hand."""
    rng = np.random.default_rng(7)
    count, users = 4, np.repeat(np.arange(40), rng.integers(1, 4, 40))
    base = rng.random(40)[users]
    apart = np.array([[-0.15], [-0.05], [0.05], [0.15]])
    values = base + apart + rng.normal(0, 0.02, (count, len(users)))
    ends = crossed_intervals(values[..., None], users, resamples=6000)[0]
    wider = np.sqrt(4 / 3) * scipy.stats.t.ppf(0.975, 3) / scipy.stats.norm.ppf(0.975)
    means = []
    for _ in range(6000):
        cases = np.concatenate([np.flatnonzero(users == u) for u in rng.integers(40, size=40)])
        by_seed = values[:, cases].mean(1)
        drawn = by_seed[rng.integers(count, size=count)]
        means.append(by_seed.mean() + wider * (drawn.mean() - by_seed.mean()))
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(ends, expected, atol=0.05 * np.ptp(expected))
    assert np.ptp(ends) > 1.5 * np.ptp(bootstrap_intervals(values[0][:, None], users)[0])


def test_crossed_intervals_of_one_seed_are_those_over_users() -> None:
    rng = np.random.default_rng(8)
    values, users = rng.random((1, 30, 2)), np.arange(30) // 2
    np.testing.assert_array_equal(
        crossed_intervals(values, users, seed=3), bootstrap_intervals(values[0], users, seed=3)
    )
    same = np.repeat(values, 3, axis=0)  # seeds that agree have no spread
    np.testing.assert_allclose(
        crossed_intervals(same, users, seed=3), bootstrap_intervals(values[0], users, seed=3)
    )


@pytest.mark.parametrize(("between_users", "between_seeds"), [(1.0, 0.03), (0.3, 0.3)])
def test_crossed_intervals_cover_the_truth_as_often_as_they_say(
    between_users: float, between_seeds: float
) -> None:
    rng = np.random.default_rng(9)
    covered, alone, count, users = 0, 0, 3, 150
    for seed in range(200):
        values = rng.normal(0, between_users, users) + rng.normal(0, between_seeds, (count, 1))
        values += rng.normal(0, 0.5, (count, users))
        ends = crossed_intervals(values[..., None], np.arange(users), resamples=300, seed=seed)[0]
        covered += int(ends[0] <= 0 <= ends[1])
        ends = bootstrap_intervals(values[0][:, None], np.arange(users), resamples=300)[0]
        alone += int(ends[0] <= 0 <= ends[1])
    assert covered >= 0.9 * 200  # of 95%: a draw of 200 may miss some
    assert alone < covered  # what one seed says of its users says too little


def test_the_difference_of_seeds_is_seen_from_both_sides() -> None:
    rng = np.random.default_rng(10)
    users = np.arange(60)
    first, second = rng.random((3, 60)) + 0.2, rng.random((2, 60))
    low, high = difference_interval(first, second, users, resamples=4000)
    back = difference_interval(second, first, users, resamples=4000)
    np.testing.assert_allclose(back, [-high, -low], atol=0.05 * (high - low))
    np.testing.assert_array_equal(
        difference_interval(first[:1], second[:1], users),
        bootstrap_intervals((first[0] - second[0])[:, None], users)[0],
    )
    with pytest.raises(EvaluationError, match="S at least 1"):
        crossed_intervals(np.ones((0, 3, 1)), users[:3])
