"""Least squares for Q: from rollouts (h, x, y, Q-hat) to a function Qhat [H, X, Y].

Algorithm 1 fits by empirical risk minimisation over a class F. Two classes are enough for the theory. A *finite* class
is what Lemma 7 speaks of: with F realizable and targets in [0, H R_max], the fit's mean square error is at most
C0 H^2 R_max^2 log(card(F) / delta) / n with probability 1 - delta. The *tabular* class has every function of
(h, x, y); its fit is the cell mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpi.mdp import MDPError

__all__ = ["FiniteClass", "FunctionClass", "Tabular"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


class FunctionClass(Protocol):
    """A class of functions Q [H, X, Y] that can be fitted by least squares."""

    def fit(self, h_N: Int, x_N: Int, y_N: Int, targets_N: Float) -> Float:
        """The member [H, X, Y] with the least sum of squared errors at the data."""
        ...


def _cells(shape: tuple[int, ...], h_N: Int, x_N: Int, y_N: Int, targets_N: Float) -> tuple[Float, Float]:
    """(count, sum of targets) of each cell (h, x, y)."""
    if not np.isfinite(targets_N).all():
        raise MDPError("regression targets hold NaN or infinity")
    cell_N = np.ravel_multi_index((h_N, x_N, y_N), shape)
    size = int(np.prod(shape))
    count = np.bincount(cell_N, minlength=size).reshape(shape).astype(np.float64)
    total = np.bincount(cell_N, weights=targets_N, minlength=size).reshape(shape)
    return count, total.astype(np.float64)


@dataclass(frozen=True)
class FiniteClass:
    """The class of the given functions, F [M, H, X, Y]. Ties go to the first."""

    F: Float

    def __post_init__(self) -> None:
        F = np.asarray(self.F, dtype=np.float64)
        if F.ndim != 4 or F.shape[0] < 1:
            raise MDPError(f"a finite class must have shape [M, H, X, Y] with M >= 1, got {F.shape}")
        if not np.isfinite(F).all():
            raise MDPError("a finite class holds NaN or infinity")
        object.__setattr__(self, "F", F)

    @property
    def size(self) -> int:
        """card(F)."""
        return int(self.F.shape[0])

    def fit(self, h_N: Int, x_N: Int, y_N: Int, targets_N: Float) -> Float:
        count, total = _cells(self.F.shape[1:], h_N, x_N, y_N, targets_N)
        # sum (f - target)^2 = sum_cells count f^2 - 2 f total + const: one pass over the data for all of F.
        losses_M = np.einsum("mhxy,hxy->m", self.F**2, count) - 2.0 * np.einsum("mhxy,hxy->m", self.F, total)
        return np.asarray(self.F[int(losses_M.argmin())])

    @classmethod
    def around(cls, Q: ArrayLike, M: int, spread: float, rng: np.random.Generator) -> FiniteClass:
        """A realizable class for experiments: Q itself at a random place among M - 1 perturbations of it.

        Each cell of a perturbation is moved by a uniform amount in [-spread, spread] and clipped to Q's range.
        """
        Q = np.asarray(Q, dtype=np.float64)
        F = np.clip(Q + rng.uniform(-spread, spread, (M, *Q.shape)), Q.min(), Q.max())
        F[int(rng.integers(M))] = Q
        return cls(F)


@dataclass(frozen=True)
class Tabular:
    """Every function of (h, x, y): the mean of each cell, and `unseen` where there is no data."""

    H: int
    X: int
    Y: int
    unseen: float = 0.0

    def fit(self, h_N: Int, x_N: Int, y_N: Int, targets_N: Float) -> Float:
        count, total = _cells((self.H, self.X, self.Y), h_N, x_N, y_N, targets_N)
        return np.where(count > 0, total / np.maximum(count, 1.0), self.unseen)
