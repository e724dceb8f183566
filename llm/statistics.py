"""Intervals and estimators for 0/1 and graded outcomes.

Three questions come up in every table of this package, and each has one answer here:

- a share of independent trials: Wilson's score interval, which keeps its coverage for small n and at 0 and 1;
- a mean of anything else (graded scores, areas under curves, pass@k over problems) and of paired differences: the
  percentile bootstrap over the independent units, which are problems within a run and seeds between runs; over several
  tasks, which count alike, units are resampled within their task; where units come in clusters (the seeds of one warm
  start), Student's interval over the means of the clusters, which are what is independent;
- pass@k from n >= k samples: the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), 1 - C(n-c, k) / C(n, k).

The bootstrap's generator is an argument, so a reported interval can be reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

__all__ = [
    "Interval",
    "bootstrap_mean",
    "mean_of_intervals",
    "mean_score",
    "paired_difference",
    "pass_at_k",
    "stratified_difference",
    "student_mean",
    "wilson",
]

_BLOCK = 2**22  # resampled values held in memory at once


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval at the stated level. `low <= value <= high` up to rounding; `n` units."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a binomial share (Wilson 1927), without continuity correction.

    Example: 0 of 10 gives [0, 0.278], where the normal approximation would give [0, 0].
    Raises ValueError for n < 1, successes outside 0..n or a level outside (0, 1).
    """
    _check_level(level)
    if n < 1:
        raise ValueError("a share needs at least one trial")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: give a number in 0..{n}")
    z2 = float(ndtri(0.5 + level / 2)) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # at 0 and n the bound is exactly 0 or 1; rounding must not push it past the share
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(share, low, high, n, level)


def bootstrap_mean(
    values_N: ArrayLike, rng: np.random.Generator, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Percentile bootstrap interval of the mean of `values_N` [N], resampling its entries (the independent units).

    With few units the interval is too short, because the resampled variance lacks the factor N / (N - 1) and the normal
    quantile stands for Student's. At level .95 it holds the mean of normal values in .75 of samples for N = 3 (where it
    is their range), in simulations in .80 for N = 4, .88 for 8, .91 for 12: say N beside it, always.
    Raises ValueError for an empty array, NaN, or a level outside (0, 1).
    """
    return _stratified_mean([_vector(values_N)], rng, level, resamples)


def student_mean(values_N: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of the mean of `values_N` [N]: exact for normal values, also of few units.

    For means of clusters, since a mean over several runs is nearly normal where a single run is not.
    Raises ValueError for fewer than two values, NaN, or a level outside (0, 1).
    """
    _check_level(level)
    values_N = _vector(values_N)
    if len(values_N) < 2:
        raise ValueError("Student's interval needs at least two values")
    value = float(values_N.mean())
    quantile = float(stdtrit(len(values_N) - 1, 0.5 + level / 2))
    half = quantile * float(values_N.std(ddof=1)) / np.sqrt(len(values_N))
    return Interval(value, float(value - half), float(value + half), len(values_N), level)


def _stratified_mean(
    strata: Sequence[NDArray[np.float64]], rng: np.random.Generator, level: float, resamples: int
) -> Interval:
    """The mean over strata of their means; each resample draws every stratum anew from its own entries."""
    _check_level(level)
    means_SR = np.stack([_resampled_means(values_N, rng, resamples) for values_N in strata])
    low, high = np.quantile(means_SR.mean(axis=0), [(1 - level) / 2, (1 + level) / 2])
    value = np.mean([values_N.mean() for values_N in strata])
    return Interval(float(value), float(low), float(high), sum(map(len, strata)), level)


def _resampled_means(values_N: NDArray[np.float64], rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    n = len(values_N)
    means = np.empty(resamples)
    rows = max(1, _BLOCK // n)
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        block[:] = values_N[rng.integers(n, size=(len(block), n))].mean(axis=1)
    return means


def mean_score(scores_N: ArrayLike, rng: np.random.Generator, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """`bootstrap_mean` of scores in [0, 1], except where all are 0 or all are 1: there it is Wilson's interval.

    Resampling equal values gives an interval of length 0, as if it were certain that the next score is the same. Scores
    in [0, 1] vary at most as much as coin flips of the same mean, so Wilson's interval is on the safe side.
    Raises ValueError for a score outside [0, 1].
    """
    scores_N = _vector(scores_N)
    if scores_N.min() < 0 or scores_N.max() > 1:
        raise ValueError("scores lie in [0, 1]")
    if scores_N.min() == scores_N.max() and scores_N[0] in (0.0, 1.0):
        return wilson(int(scores_N.sum()), len(scores_N), level)
    return bootstrap_mean(scores_N, rng, level, resamples)


def paired_difference(
    a_N: ArrayLike, b_N: ArrayLike, rng: np.random.Generator, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Interval of the mean of a - b, where unit i of both is the same problem or the same seed."""
    return stratified_difference([(a_N, b_N)], rng, level, resamples)


def stratified_difference(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], rng: np.random.Generator, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Interval of the mean over strata of the mean of a - b, for a pair (a, b) of paired vectors of each stratum.

    Units are resampled within their stratum, so its share of the whole stays 1 / S, however many units it has: the
    interval is for these strata (tasks), not for others like them. `n` counts the units of all strata.
    """
    if not pairs:
        raise ValueError("a mean over strata needs at least one stratum")
    return _stratified_mean([_difference(a_N, b_N) for a_N, b_N in pairs], rng, level, resamples)


def _difference(a_N: ArrayLike, b_N: ArrayLike) -> NDArray[np.float64]:
    a_N, b_N = _vector(a_N), _vector(b_N)
    if len(a_N) != len(b_N):
        raise ValueError(f"paired values must be equally many, got {len(a_N)} and {len(b_N)}")
    return a_N - b_N


def mean_of_intervals(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent estimates, with an interval made from theirs (MOVER: Zou and Donner 2008).

    The distances to the lower bounds, and those to the upper ones, add up as standard errors do: the root of the sum of
    squares, divided by their number. So what Wilson's interval says of a task at 0 or 1 is kept, where a bootstrap of
    equal values has length 0. `n` counts the units of all. Raises ValueError for no interval or unequal levels.
    """
    if len({i.level for i in intervals}) != 1:
        raise ValueError("the mean of intervals needs at least one, and all at the same level")
    value, count = float(np.mean([i.value for i in intervals])), len(intervals)
    below = float(np.linalg.norm([i.value - i.low for i in intervals])) / count
    above = float(np.linalg.norm([i.high - i.value for i in intervals])) / count
    return Interval(value, value - below, value + above, sum(i.n for i in intervals), intervals[0].level)


def pass_at_k(correct_P: ArrayLike, samples_P: ArrayLike, k: int) -> NDArray[np.float64]:
    """The chance that at least one of k samples is right, per problem, [P]: 1 - C(n-c, k) / C(n, k).

    Unbiased for c successes in n >= k independent samples of a problem. Computed as a product, so that large n does
    not overflow. Raises ValueError for k < 1, n < k, or c outside 0..n.
    """
    correct_P = np.atleast_1d(np.asarray(correct_P, dtype=np.int64))
    samples_P = np.broadcast_to(np.asarray(samples_P, dtype=np.int64), correct_P.shape)
    if k < 1:
        raise ValueError(f"pass@k needs k >= 1, got {k}")
    if np.any(samples_P < k):
        raise ValueError(f"pass@{k} needs at least {k} samples of every problem, got {int(samples_P.min())}")
    if np.any((correct_P < 0) | (correct_P > samples_P)):
        raise ValueError("the number of correct samples must lie in 0..n")
    # C(n-c, k) / C(n, k) = prod_{i<k} (n-c-i) / (n-i); a factor reaches 0 exactly when fewer than k samples failed
    i = np.arange(k)
    factors = (samples_P[:, None] - correct_P[:, None] - i) / (samples_P[:, None] - i)
    return np.asarray(1.0 - np.prod(np.maximum(factors, 0.0), axis=1))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a level lies strictly between 0 and 1, got {level}")


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"expected a non-empty one-dimensional array, got shape {vector.shape}")
    if not np.all(np.isfinite(vector)):
        raise ValueError("values must be finite")
    return vector
