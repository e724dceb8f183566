"""Ahat on Prop. 10's MDP as a function of a few counts, so that a trial costs O(1) whatever n.

There the advantage estimate is the mean of n draws of Y = k (pi+ - pi)(y|x) r(x, y), and Y takes four values only:
-k R/2 (y = y0), k (R/2 + tau) (x1, y1), k (R/2 + eps) (x2, y1) and 0. So the sum of n draws is a weighted sum of
multinomial counts. Random resets land in x1 with probability p, the credit sampler always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from toy_mdps.tightness import Tightness

__all__ = ["Misses", "ProbitFit", "SampleLaw", "power_law", "slope", "smallest_n"]

Float = NDArray[np.float64]
Misses = Callable[[int, int, np.random.Generator], int]  # (n, trials, rng) -> in how many trials Ahat <= 0


@dataclass(frozen=True)
class SampleLaw:
    """The law of one sample Y: `values` [M] with probabilities `probs` [M]."""

    values: Float
    probs: Float

    @classmethod
    def of(cls, toy: Tightness, credit: bool) -> SampleLaw:
        """Y under random resets, or with `credit` under the credit sampler."""
        values, probs = toy.Y_law(0 if credit else None)
        return cls(values[probs > 0], probs[probs > 0])

    @property
    def mean(self) -> float:
        return float(self.probs @ self.values)

    @property
    def variance(self) -> float:
        return float(self.probs @ self.values**2) - self.mean**2

    def normal_threshold(self, level: float) -> float:
        """The n at which P(sum of n draws <= 0) = `level` if the sum were normal: z^2 variance / mean^2."""
        return float(ndtri(level) ** 2 * self.variance / self.mean**2)

    def misses(self, n: int, trials: int, rng: np.random.Generator) -> int:
        """In how many of `trials` the sum of n draws is <= 0 (up to rounding, so that exact ties count)."""
        counts = rng.multinomial(n, self.probs, size=trials)
        rounding = 1e-12 * n * float(np.abs(self.values).max())
        return int((counts @ self.values <= rounding).sum())


@dataclass(frozen=True)
class ProbitFit:
    """P(Ahat <= 0) near its threshold: `hits` [M] of `trials` at sample sizes `n` [M].

    The probit of P is nearly linear in sqrt(n), exactly so for a normal sum. The line smooths the lattice steps of P
    over n and uses all of the trials.
    """

    n: Float
    hits: Float
    trials: int

    def threshold(self, level: float, hits: Float | None = None) -> Float:
        """n with P = `level` on the weighted least-squares line; `hits` [..., M] replaces the measured ones."""
        share = np.clip((self.hits if hits is None else hits) / self.trials, 0.5 / self.trials, 1 - 0.5 / self.trials)
        z, root = ndtri(share), np.sqrt(self.n)
        measured = np.clip(self.hits / self.trials, 0.5 / self.trials, None)
        density = np.exp(-(ndtri(measured) ** 2) / 2)
        w = density**2 / (measured * (1 - measured))  # 1 / variance of the probit, up to a factor
        w = w / w.sum()
        centre = root @ w
        slope = (z * (root - centre)) @ w / ((root - centre) ** 2 @ w)
        return np.asarray((centre + (ndtri(level) - z @ w) / slope) ** 2)

    def resampled(self, level: float, resamples: int, rng: np.random.Generator) -> Float:
        """Thresholds [resamples] under binomial resampling of the hits: the parametric bootstrap."""
        hits = rng.binomial(self.trials, self.hits / self.trials, size=(resamples, self.hits.size))
        return self.threshold(level, hits.astype(np.float64))


def smallest_n(misses: Misses, level: float, trials: int, points: int, rng: np.random.Generator) -> ProbitFit:
    """Bisection over n for P(Ahat <= 0) = `level`, then `points` sample sizes around it with `trials` trials each."""
    coarse = max(trials // 10, 1000)
    high = 1
    while misses(high, coarse, rng) > level * coarse:
        high *= 2
    low = max(high // 2, 1)
    while high > 1.03 * low + 1:
        middle = round((low * high) ** 0.5)
        if misses(middle, coarse, rng) > level * coarse:
            low = middle
        else:
            high = middle
    grid = np.unique(np.round(np.geomspace(0.8, 1.25, points) * (low * high) ** 0.5))
    hits = np.array([misses(int(n), trials, rng) for n in grid], dtype=np.float64)
    return ProbitFit(grid, hits, trials)


def slope(log_p: Float, log_cost: Float) -> Float:
    """Least-squares slope of log_cost [..., M] over log_p [M]."""
    centred = log_p - log_p.mean()
    return np.asarray(log_cost @ centred / (centred @ centred))


def power_law(p: Sequence[float], cost: Float, resampled: Float) -> dict[str, Any]:
    """The exponent of `cost` [M] over `p` [M], its 95% interval from `resampled` costs [B, M], and the points."""
    log_p = np.log(p)
    ci = np.quantile(resampled, [0.025, 0.975], axis=0).T
    return {
        "value": float(slope(log_p, np.log(cost))),
        "ci95": np.quantile(slope(log_p, np.log(resampled)), [0.025, 0.975]).tolist(),
        "points": [{"p": float(x), "value": float(y), "ci95": c.tolist()} for x, y, c in zip(p, cost, ci, strict=True)],
    }
