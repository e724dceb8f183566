"""Where a policy can be improved, and oracles that know it.

The improvable set at threshold tau is G_h = {x : max_y A_h(x, y) >= tau}; its coverage p_h = P_{d_h}[x in G_h],
p = mean_h p_h. A credit-assignment oracle answers 1{x in G_h}. A *soft* oracle accepts with probability g_h(x) in
[0, 1]; the exact one is g = 1_G, random resets are g = 1. The credit sampler draws (h, x) with h uniform and x ~ d_h,
conditioned on acceptance, which has the law proportional to d_h(x) g_h(x). Of a soft oracle three numbers matter:

    q = P(accept),   precision rho = P(x in G | accept),   recall kappa = P(accept | x in G),   so q = kappa p / rho.

Arrays are [..., H, X] (states) and [..., H, X, Y] (policies); leading axes are those of a stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpi.mdp import MDPError

__all__ = [
    "Coverage",
    "CreditDraws",
    "CreditSampler",
    "NothingAcceptedError",
    "OracleStatistics",
    "coverage",
    "credit_law",
    "improvable_set",
    "oracle_statistics",
    "restrict",
    "soft_mixture",
]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


class NothingAcceptedError(MDPError):
    """An oracle that accepts nothing, or too little within the allowed trials; `trials` says how many were spent."""

    def __init__(self, message: str, trials: int = 0) -> None:
        super().__init__(message)
        self.trials = trials


class Coverage(NamedTuple):
    """p_H [..., H] per step and their mean p [...]."""

    p_H: Float
    p: Float


def improvable_set(A: ArrayLike, tau: float) -> Bool:
    """G [..., H, X] of advantages A [..., H, X, Y]: where some action gains at least tau > 0."""
    if not tau > 0:
        raise MDPError(f"tau must be positive, got {tau}")
    return np.asarray(np.asarray(A).max(axis=-1) >= tau)


def coverage(d: Float, G: ArrayLike) -> Coverage:
    """Probability, under the state laws d [..., H, X], of G [..., H, X]. A soft G (values in [0, 1]) gives q_H, q."""
    p_H = (d * np.asarray(G, dtype=np.float64)).sum(axis=-1)
    return Coverage(p_H, np.asarray(p_H.mean(axis=-1)))


def restrict(pi: ArrayLike, pi_plus: ArrayLike, G: ArrayLike) -> Float:
    """pi_G: pi_plus on G, pi elsewhere."""
    return np.where(np.asarray(G, dtype=bool)[..., None], np.asarray(pi_plus), np.asarray(pi)).astype(np.float64)


def soft_mixture(pi: ArrayLike, pi_plus: ArrayLike, g: ArrayLike) -> Float:
    """pi_g = g pi_plus + (1 - g) pi, state by state; g [..., H, X] in [0, 1]."""
    g_Y = _acceptance(g)[..., None]
    return g_Y * np.asarray(pi_plus, dtype=np.float64) + (1.0 - g_Y) * np.asarray(pi, dtype=np.float64)


def _acceptance(g: ArrayLike) -> Float:
    g = np.asarray(g, dtype=np.float64)
    if not ((g >= 0) & (g <= 1)).all():
        raise MDPError("acceptance probabilities g must lie in [0, 1]")
    return g


@dataclass(frozen=True)
class OracleStatistics:
    """Coverage p, acceptance q, precision rho and recall kappa of an oracle; q * rho = kappa * p."""

    p: float
    q: float
    rho: float
    kappa: float


def oracle_statistics(d: Float, G: ArrayLike, g: ArrayLike) -> OracleStatistics:
    """p, q, rho, kappa of the soft oracle g [H, X] for the improvable set G [H, X] under the state laws d [H, X].

    Raises MDPError if G has no mass (recall is undefined), NothingAcceptedError if g has none (precision is).
    """
    accept = _acceptance(g)
    inside = np.asarray(G, dtype=np.float64)
    p, q, both = (float(coverage(d, weight).p) for weight in (inside, accept, inside * accept))
    if p == 0:
        raise MDPError("the improvable set has no mass under d, so recall is undefined: lower tau, or stop improving")
    if q == 0:
        raise NothingAcceptedError("the oracle accepts nothing that pi visits, so its precision is undefined")
    return OracleStatistics(p=p, q=q, rho=both / q, kappa=both / p)


def credit_law(d: Float, g: ArrayLike) -> Float:
    """The credit sampler's exact law over (h, x), [..., H, X]: d_h(x) g_h(x), normalised jointly."""
    weight = d * _acceptance(g)
    total = weight.sum(axis=(-2, -1), keepdims=True)
    if (total == 0).any():
        raise NothingAcceptedError("the oracle accepts nothing that pi visits: there is no credit law")
    return np.asarray(weight / total)


@dataclass(frozen=True)
class CreditDraws:
    """`n` accepted draws (h_N, x_N) and what they cost: each cheap trial is one reset and one oracle query."""

    h_N: NDArray[np.int64]
    x_N: NDArray[np.int64]
    cheap_trials: int

    @property
    def q_rollouts(self) -> int:
        """Rollouts needed to estimate Q at the draws: one each."""
        return int(self.h_N.size)


@dataclass(frozen=True)
class CreditSampler:
    """Algorithm 3: draw h uniformly and x ~ d_h, ask the oracle, repeat until it accepts.

    d: state laws [H, X]; g: acceptance [H, X] (0/1 for the exact oracle, all ones for random resets). The sampler uses
    g only through its answers. n accepted draws take n / q trials on average, and exactly as many as are counted.
    """

    d: Float
    g: Float
    max_trials: int = 10_000_000

    def __post_init__(self) -> None:
        g = _acceptance(self.g)
        if self.d.ndim != 2 or g.shape != self.d.shape:
            raise MDPError(f"d and g must have one shape [H, X], got {self.d.shape} and {g.shape}")
        if self.max_trials < 1:
            raise MDPError(f"max_trials must be at least 1, got {self.max_trials}")
        object.__setattr__(self, "g", g)

    def draw(self, n: int, rng: np.random.Generator) -> CreditDraws:
        """`n` accepted (h, x). Raises NothingAcceptedError when `max_trials` trials did not give n of them."""
        cdf = np.cumsum(self.d.ravel())
        support = np.flatnonzero(self.d.ravel())
        accepted: list[NDArray[np.int64]] = []
        trials, missing, batch = 0, n, n
        while missing > 0:
            size = min(batch, self.max_trials - trials)
            if size == 0:
                raise NothingAcceptedError(
                    f"the oracle accepted {n - missing} of {trials} trials, {n} draws were asked for: "
                    "it accepts (almost) nothing that pi visits; lower tau, or raise max_trials",
                    trials=trials,
                )
            # Inverse CDF over the support only, so that rounding at the end never yields an unvisited state.
            place = np.searchsorted(cdf[support], rng.random(size) * cdf[-1], side="right")
            index = support[np.minimum(place, support.size - 1)]
            hits = np.flatnonzero(rng.random(size) < self.g.ravel()[index])[:missing]
            accepted.append(index[hits])
            missing -= hits.size
            trials += size if missing else int(hits[-1]) + 1
            batch = min(max(2 * batch, 1024), 1 << 20)
        h_N, x_N = np.unravel_index(np.concatenate(accepted) if accepted else np.empty(0, np.int64), self.d.shape)
        return CreditDraws(h_N.astype(np.int64), x_N.astype(np.int64), trials)
