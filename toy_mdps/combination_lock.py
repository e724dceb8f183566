"""Combination lock: H steps, one right action each, and a reward of 1 if all are taken.

State 0: all right so far; state 1: lost for good. The reference policy takes the right action with probability c at
each step (c = 1/Y: uniform). Then V_h(0) = c^(H - h), d_h(0) = c^h, J = c^H, and at (h, 0) the right action gains
(1 - c) c^(H - 1 - h): credit is small early, where the policy must improve first, and states that matter late are
hardly ever reached.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP
from toy_mdps._chains import chain_policy, check_chain

__all__ = ["CombinationLock", "combination_lock"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CombinationLock:
    """See the module's docstring. `code` [H] are the right actions."""

    mdp: FiniteMDP
    pi: Float
    code: NDArray[np.int64]
    c: float

    @property
    def J(self) -> float:
        return float(self.c**self.mdp.H)

    @property
    def J_star(self) -> float:
        return 1.0

    @property
    def best_gain_H(self) -> Float:
        """max_y A_h(0, y) [H]."""
        return (1 - self.c) * self.c ** np.arange(self.mdp.H - 1, -1, -1.0)

    @property
    def open_H(self) -> Float:
        """d_h(0) [H]."""
        return self.c ** np.arange(float(self.mdp.H))

    def coverage(self, tau: float) -> float:
        """p_pi at threshold tau > 0."""
        return float((self.open_H * (self.best_gain_H >= tau)).mean())


def combination_lock(H: int, Y: int = 2, c: float | None = None, seed: int = 0) -> CombinationLock:
    """A lock of H steps with Y actions each; the code is drawn from `seed`. c defaults to 1/Y."""
    c = 1 / Y if c is None else c
    code, reliability = check_chain(np.random.default_rng(seed).integers(Y, size=H), np.full(H, c), Y)  # type: ignore[arg-type]
    P = np.zeros((H, 2, Y, 2))
    P[..., 1] = 1.0
    P[np.arange(H), 0, code] = (1.0, 0.0)
    r = np.zeros((H, 2, Y))
    r[-1, 0, code[-1]] = 1.0
    mdp = FiniteMDP(P, r, np.array([1.0, 0.0]))
    return CombinationLock(mdp, chain_policy(code, reliability, 2, Y), code, c)
