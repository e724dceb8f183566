"""Delayed symptom: an early error that shows only later.

A chain in which step h is right with probability c_h. State 0: no error. An error at step h leads through `delay`
silent states, 1 .. delay, in which the chain looks as before, to state delay + 1, where it is visibly broken and stays.
The reward is 1 at the end if no step was wrong. Nothing repairs an error once made: all advantages are zero outside
state 0, so the credit lies where the error was made and never where it shows. A reset to the symptom is a wasted reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP, MDPError
from toy_mdps._chains import all_right_from, chain_policy, check_chain, first_wrong, right_so_far

__all__ = ["DelayedSymptom", "delayed_symptom"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DelayedSymptom:
    """See the module's docstring. c_H [H] are the reliabilities; the right action is 0 at every step."""

    mdp: FiniteMDP
    pi: Float
    c_H: Float
    delay: int

    @property
    def J(self) -> float:
        return float(self.c_H.prod())

    @property
    def J_star(self) -> float:
        return 1.0

    @property
    def best_gain_H(self) -> Float:
        """max_y A_h(0, y) = (1 - c_h) c_{h+1} ... c_{H-1}, [H]; elsewhere it is zero."""
        return (1 - self.c_H) * all_right_from(self.c_H)[1:]

    @property
    def clean_H(self) -> Float:
        """d_h(0) [H]."""
        return right_so_far(self.c_H)[:-1]

    def coverage(self, tau: float) -> float:
        """p_pi at threshold tau > 0."""
        return float((self.clean_H * (self.best_gain_H >= tau)).mean())

    def first_error(self, y_NH: Int) -> Int:
        """0-based step at which each path [N, H] went wrong; -1 if it did not."""
        return first_wrong(y_NH, np.zeros(self.mdp.H, np.int64))

    def symptom(self, y_NH: Int) -> Int:
        """The first step at whose start the path is visibly broken; -1 if that does not happen before the end."""
        shows = self.first_error(y_NH) + self.delay + 1
        return np.where((self.first_error(y_NH) >= 0) & (shows < self.mdp.H), shows, -1)


def delayed_symptom(H: int, delay: int, c: float | Sequence[float] = 0.8, Y: int = 2) -> DelayedSymptom:
    """H steps; an error shows `delay` + 1 steps after it was made. `c`: one reliability, or one a step."""
    if delay < 0:
        raise MDPError(f"delay must not be negative, got {delay}")
    right, c_H = check_chain([0] * H, [c] * H if isinstance(c, float | int) else c, Y)
    X = delay + 2
    P = np.zeros((X, Y, X))
    P[np.arange(X), :, np.minimum(np.arange(X) + 1, X - 1)] = 1.0
    P[0, 0] = np.eye(X)[0]
    r = np.zeros((H, X, Y))
    r[-1, 0, 0] = 1.0
    mdp = FiniteMDP(np.broadcast_to(P, (H, X, Y, X)), r, np.eye(X)[0])
    return DelayedSymptom(mdp, chain_policy(right, c_H, X, Y), c_H, delay)
