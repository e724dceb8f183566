"""Advantages: comparisons of continuations from one prefix.

An estimator turns the rewards of groups of continuations, ``rewards_PG`` (one row per group), into advantages of the
same shape. Advantages carry no gradient, so one float64 implementation serves the table and the language model.

`expected_scale(G)` declares what an estimator estimates. If the G continuations of state x are iid and continuation
i begins with action y, then E[A_hat_i | y] = scale * A^pi(x, y) for the linear estimators; estimators that divide by a
standard deviation estimate no multiple of A^pi and declare None. A test holds every estimator to its declaration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["AdvantageEstimator", "LeaveOneOut", "MeanBaseline", "ZScore"]

_ROUNDING = 1e-9
"""Rewards of a group that differ by no more, on the scale of the largest (at least 1), are equal."""


class AdvantageEstimator(Protocol):
    """Rewards of groups -> advantages."""

    def __call__(self, rewards_PG: ArrayLike) -> NDArray[np.float64]:
        """Advantages [P, G] of rewards [P, G]; one row is one group of continuations of one prefix."""
        ...

    def expected_scale(self, G: int) -> float | None:
        """`scale` with E[A_hat | y] = scale * A^pi(x, y) for groups of size G, or None if there is no such number."""
        ...


def _groups(rewards_PG: ArrayLike) -> NDArray[np.float64]:
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have shape [groups, group size], got shape {rewards.shape}")
    if rewards.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 continuations to compare, got {rewards.shape[1]}")
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite; a verifier returned NaN or infinity")
    return rewards


@dataclass(frozen=True)
class MeanBaseline:
    """r - mean of the group. The own reward is part of the mean, which shrinks the estimate by (G - 1) / G."""

    def __call__(self, rewards_PG: ArrayLike) -> NDArray[np.float64]:
        rewards = _groups(rewards_PG)
        return rewards - rewards.mean(axis=1, keepdims=True)

    def expected_scale(self, G: int) -> float | None:
        return (G - 1) / G


@dataclass(frozen=True)
class LeaveOneOut:
    """r - mean of the *other* continuations (RLOO, Kool et al. 2019; Ahmadian et al. 2024): unbiased for A^pi."""

    def __call__(self, rewards_PG: ArrayLike) -> NDArray[np.float64]:
        rewards = _groups(rewards_PG)
        G = rewards.shape[1]
        return (rewards - rewards.mean(axis=1, keepdims=True)) * (G / (G - 1))

    def expected_scale(self, G: int) -> float | None:
        return 1.0


@dataclass(frozen=True)
class ZScore:
    """(r - mean) / (std + eps), and 0 where all rewards of the group are equal, up to rounding (1e-9).

    The paper: ``ZScore(ddof=0, eps=0.0)``, the population std. TRL 1.16: ``ZScore(ddof=1, eps=1e-4)``, Bessel's.
    """

    ddof: int
    eps: float

    def __call__(self, rewards_PG: ArrayLike) -> NDArray[np.float64]:
        rewards = _groups(rewards_PG)
        centred = rewards - rewards.mean(axis=1, keepdims=True)
        spread, size = np.ptp(rewards, axis=1, keepdims=True), np.abs(rewards).max(axis=1, keepdims=True)
        constant = spread <= _ROUNDING * np.maximum(size, 1.0)  # means of equal scores may differ in their last digit
        std = rewards.std(axis=1, ddof=self.ddof, keepdims=True) + self.eps
        return np.where(constant, 0.0, centred / np.where(constant, 1.0, std))

    def expected_scale(self, G: int) -> float | None:
        return None
