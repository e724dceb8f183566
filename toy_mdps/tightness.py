"""Proposition 10's MDP: where the estimate without a baseline is too noisy to see a rare improvement.

H = 1. State 0 (probability p) and state 1 (probability 1 - p); actions 0 .. k - 1, of which pi plays 0. All rewards are
R/2, except R/2 + tau for action 1 in state 0 and R/2 + eps for action 1 in state 1. So A(0, 1) = tau, A(1, 1) = eps,
and pi+ plays 1. The per-sample estimate Y = k (pi+ - pi)(y|x) r(x, y), y uniform, is -k R/2 on action 0,
k (R/2 + A(x, 1)) on action 1 and 0 elsewhere: its mean is p tau + (1 - p) eps, its variance of order k R^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP, MDPError

__all__ = ["Tightness", "tightness"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tightness:
    """See the module's docstring."""

    mdp: FiniteMDP
    pi: Float
    p: float
    tau: float
    eps: float
    k: int
    R: float

    @property
    def pi_plus(self) -> Float:
        """The greedy policy: action 1 (in state 1 too, also when eps = 0)."""
        return np.repeat(np.eye(self.k)[[1]], 2, axis=0)[None]

    @property
    def J(self) -> float:
        return self.R / 2

    @property
    def J_star(self) -> float:
        return self.R / 2 + self.A_bar

    @property
    def coverage(self) -> float:
        """p_pi at threshold tau."""
        return self.p

    @property
    def A_bar(self) -> float:
        """E[Y] = the policy advantage of pi+ = p tau + (1 - p) eps."""
        return self.p * self.tau + (1 - self.p) * self.eps

    def Y_law(self, x: int | None = None) -> tuple[Float, Float]:
        """(values, probabilities) of the per-sample estimate Y, over both states or given state x."""
        weights = (self.p, 1 - self.p) if x is None else np.eye(2)[x]
        values, probs = [], []
        for weight, gain in zip(weights, (self.tau, self.eps), strict=True):
            values += [-self.k * self.R / 2, self.k * (self.R / 2 + gain), 0.0]
            probs += [weight / self.k, weight / self.k, weight * (1 - 2 / self.k)]
        return np.array(values), np.array(probs)

    @property
    def second_moment_Y(self) -> float:
        """E[Y^2] = k (p [(R/2)^2 + (R/2 + tau)^2] + (1 - p) [(R/2)^2 + (R/2 + eps)^2])."""
        half = self.R / 2
        at = [half**2 + (half + gain) ** 2 for gain in (self.tau, self.eps)]
        return self.k * (self.p * at[0] + (1 - self.p) * at[1])

    @property
    def var_Y(self) -> float:
        return self.second_moment_Y - self.A_bar**2

    @property
    def n_undecided(self) -> float:
        """Up to this many samples, sigma^2 / (4 A_bar^2), Proposition 10 keeps P(Ahat <= 0) away from zero."""
        return self.var_Y / (4 * self.A_bar**2)


def tightness(p: float, tau: float = 0.3, eps: float = 0.0, k: int = 4, R: float = 1.0) -> Tightness:
    """Proposition 10's MDP. Raises MDPError unless 0 < p <= 1, 0 <= eps < tau <= R/2 and k >= 2."""
    if not 0 < p <= 1:
        raise MDPError(f"p must lie in (0, 1], got {p}")
    if not 0 <= eps < tau <= R / 2:
        raise MDPError(f"0 <= eps < tau <= R/2 must hold, got eps = {eps}, tau = {tau}, R = {R}")
    if k < 2:
        raise MDPError(f"k must be at least 2, got {k}")
    r = np.full((1, 2, k), R / 2)
    r[0, :, 1] += (tau, eps)
    P = np.zeros((1, 2, k, 2))
    P[..., 0] = 1.0  # never used: H = 1
    pi = np.zeros((1, 2, k))
    pi[..., 0] = 1.0
    return Tightness(FiniteMDP(P, r, np.array([p, 1 - p]), R), pi, p, tau, eps, k, R)
