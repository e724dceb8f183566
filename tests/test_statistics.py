"""Intervals against known values, against another implementation, and by their coverage."""

from math import comb

import numpy as np
import pytest
from scipy import stats

from llm.statistics import (
    Interval,
    bootstrap_mean,
    mean_of_intervals,
    mean_score,
    paired_difference,
    pass_at_k,
    stratified_difference,
    student_mean,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263), (499, 500)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipys_implementation(successes: int, n: int, level: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    interval = wilson(successes, n, level)
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)
    assert interval.low <= interval.value <= interval.high


def test_wilson_gives_the_textbook_value_of_newcombe_1998() -> None:
    interval = wilson(81, 263)  # Statistics in Medicine 17, table I: 0.2553 to 0.3662
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_wilson_covers_at_its_level_on_average() -> None:
    n = 20
    shares = np.linspace(0.05, 0.95, 19)
    intervals = [wilson(c, n) for c in range(n + 1)]
    cover = [
        sum(stats.binom.pmf(c, n, q) for c, i in enumerate(intervals) if i.low <= q <= i.high) for q in shares
    ]  # exact, no simulation: Agresti and Coull 1998 report a mean near the nominal level and a minimum near .9
    assert np.mean(cover) == pytest.approx(0.95, abs=0.01)
    assert min(cover) > 0.9


@pytest.mark.parametrize(("successes", "n", "level"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses_impossible_counts_and_levels(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError):
        wilson(successes, n, level)


def test_bootstrap_of_a_large_sample_agrees_with_the_normal_interval() -> None:
    x = np.random.default_rng(0).exponential(size=2_000)
    interval = bootstrap_mean(x, np.random.default_rng(1))
    half = 1.96 * x.std() / np.sqrt(len(x))
    # the percentiles of 10,000 resamples have a standard error of about 0.024 sd, hence 0.1 half-widths to be safe
    assert interval.value == x.mean()
    assert interval.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_bootstrap_covers_the_mean_at_about_its_level() -> None:
    rng = np.random.default_rng(2)
    trials = 400
    hits = 0
    for _ in range(trials):
        interval = bootstrap_mean(rng.normal(size=50), rng, resamples=1_000)
        hits += interval.low <= 0.0 <= interval.high
    # nominal .95, about .94 at N = 50; binomial sd over 400 trials .012, so .90 is more than three of them away
    assert 0.90 < hits / trials < 0.98


def test_students_interval_is_scipys_and_covers_the_mean_of_four_values() -> None:
    x = np.random.default_rng(11).normal(size=7)
    expected = stats.ttest_1samp(x, 0.0).confidence_interval(0.9)
    found = student_mean(x, 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), expected.low, expected.high))
    samples = (student_mean(row) for row in np.random.default_rng(12).normal(size=(2_000, 4)))
    # sd .005, so .93 and .97 are four away; the percentile bootstrap has .79 here
    assert 0.93 < np.mean([s.low <= 0.0 <= s.high for s in samples]) < 0.97
    with pytest.raises(ValueError, match="at least two"):
        student_mean([1.0])


def test_bootstrap_does_not_depend_on_its_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).normal(size=30)
    whole = bootstrap_mean(x, np.random.default_rng(4), resamples=500)
    monkeypatch.setattr("llm.statistics._BLOCK", 100)
    assert bootstrap_mean(x, np.random.default_rng(4), resamples=500) == whole


def test_paired_difference_removes_what_both_share() -> None:
    rng = np.random.default_rng(5)
    problem = rng.normal(scale=10.0, size=200)
    a, b = problem + 0.5 + rng.normal(scale=0.1, size=200), problem
    paired = paired_difference(a, b, np.random.default_rng(6))
    assert paired.value == pytest.approx(0.5, abs=0.05)
    assert paired.high - paired.low < 0.1  # unpaired it would be about 4


def test_paired_difference_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([1.0, 2.0], [1.0], np.random.default_rng(0))


def test_strata_count_alike_and_their_units_are_resampled_within_them() -> None:
    rng = np.random.default_rng(7)
    many, few = rng.normal(0.0, 1.0, size=1_000), rng.normal(8.0, 3.0, size=100)
    found = stratified_difference([(many, np.zeros(1_000)), (few + 1.0, np.ones(100))], np.random.default_rng(8))
    assert found.value == pytest.approx((many.mean() + few.mean()) / 2)  # pooled it would be about .7
    assert found.n == 1_100
    # var = (1 / 1000 + 9 / 100) / 4, a half-width of about .3; were units to change strata it would be about twice that
    half = 1.96 * np.sqrt(many.var() / 1_000 + few.var() / 100) / 2
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_one_stratum_is_a_paired_difference_and_none_is_refused() -> None:
    a, b = np.random.default_rng(9).normal(size=(2, 30))
    one = stratified_difference([(a, b)], np.random.default_rng(10))
    assert one == paired_difference(a, b, np.random.default_rng(10)) == bootstrap_mean(a - b, np.random.default_rng(10))
    with pytest.raises(ValueError, match="at least one stratum"):
        stratified_difference([], np.random.default_rng(0))
    with pytest.raises(ValueError, match="equally many"):
        stratified_difference([(a, b), (a, b[1:])], np.random.default_rng(0))


def test_the_mean_of_intervals_adds_distances_to_bounds_as_standard_errors() -> None:
    mean = mean_of_intervals([Interval(0.5, 0.2, 0.9, 10), Interval(1.0, 0.6, 1.0, 30)])
    expected = (0.75, 0.75 - 0.5 / 2, 0.75 + 0.4 / 2, 40)  # .3 and .4 below make .5; .4 and 0 above make .4
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx(expected)
    alone = mean_of_intervals([wilson(3, 10)])
    assert (alone.low, alone.high) == pytest.approx((wilson(3, 10).low, wilson(3, 10).high))
    for bad in ([], [wilson(1, 2), wilson(1, 2, 0.9)]):
        with pytest.raises(ValueError, match="same level"):
            mean_of_intervals(bad)


def test_scores_that_are_all_equal_to_0_or_1_keep_wilsons_interval() -> None:
    rng = np.random.default_rng(0)
    assert mean_score(np.zeros(20), rng) == wilson(0, 20)
    assert mean_score(np.ones(20), rng) == wilson(20, 20)
    mixed = [0.0, 0.5, 1.0, 1.0]
    assert mean_score(mixed, np.random.default_rng(1)) == bootstrap_mean(mixed, np.random.default_rng(1))
    with pytest.raises(ValueError, match="lie in"):
        mean_score([1.1], rng)


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, float("nan")]])
def test_bootstrap_refuses_what_is_no_finite_vector(bad: list) -> None:
    with pytest.raises(ValueError):
        bootstrap_mean(bad, np.random.default_rng(0))


@pytest.mark.parametrize("n", [1, 4, 8, 33])
def test_pass_at_k_equals_the_binomial_formula(n: int) -> None:
    for k in range(1, n + 1):
        expected = [1 - comb(n - c, k) / comb(n, k) for c in range(n + 1)]
        assert pass_at_k(np.arange(n + 1), n, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    n, k, q = 6, 4, 0.3
    c = np.arange(n + 1)
    mean = np.sum(stats.binom.pmf(c, n, q) * pass_at_k(c, n, k))
    assert mean == pytest.approx(1 - (1 - q) ** k, abs=1e-12)


def test_pass_at_1_is_the_mean_and_large_samples_do_not_overflow() -> None:
    assert pass_at_k([3, 0], [10, 7], 1) == pytest.approx([0.3, 0.0])
    # most of 100,000 samples fail: the chance is 1 - (1 - 1e-4)^1000 to second order
    assert pass_at_k([10], [100_000], 1_000)[0] == pytest.approx(1 - (1 - 1e-4) ** 1000, rel=1e-2)


@pytest.mark.parametrize(("c", "n", "k"), [(1, 4, 5), (1, 4, 0), (5, 4, 2), (-1, 4, 2)])
def test_pass_at_k_refuses_impossible_counts(c: int, n: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k([c], [n], k)
