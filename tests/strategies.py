"""Hypothesis strategies for finite MDPs, policies and oracles: premises by construction, never by rejection.

Sizes are drawn first and stay small (X <= 5, Y <= 4, H <= 6). Probabilities are small integer weights, normalised, so
that exact zeros are common: deterministic steps, unreachable states, actions never played. Half of the arrays come
element by element (they shrink well), half from a drawn seed (they are dense and far from any corner).
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP, MDPStack

__all__ = [
    "alphas",
    "deterministic_policies",
    "mdps",
    "mdps_with_policies",
    "policies",
    "probability_rows",
    "soft_oracles",
    "stacks",
    "taus",
]

Float = NDArray[np.float64]


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...], highest: int = 4) -> NDArray[np.int64]:
    """Integers 0..highest, [shape]."""
    if draw(st.booleans()):
        return draw(hnp.arrays(np.int64, shape, elements=st.integers(0, highest), fill=st.just(0)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep = rng.random(shape) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    return np.where(keep, rng.integers(1, highest + 1, shape), 0)


@st.composite
def probability_rows(draw: st.DrawFn, shape: tuple[int, ...]) -> Float:
    """Probabilities along the last axis, with exact zeros; a row without weight becomes a point mass."""
    w = draw(weights(shape)).astype(np.float64)
    empty = w.sum(axis=-1) == 0
    w[..., 0] += empty
    return w / w.sum(axis=-1, keepdims=True)


@st.composite
def mdps(draw: st.DrawFn, max_X: int = 5, max_Y: int = 4, max_H: int = 6, min_H: int = 1, min_Y: int = 1) -> FiniteMDP:
    """A FiniteMDP with rewards in [0, R_max]; R_max may exceed the largest reward."""
    X, Y, H = draw(st.integers(1, max_X)), draw(st.integers(min_Y, max_Y)), draw(st.integers(min_H, max_H))
    R_max = draw(st.sampled_from([1.0, 0.5, 3.0]))
    return FiniteMDP(
        P=draw(probability_rows((H, X, Y, X))),
        r=draw(weights((H, X, Y), highest=8)) * (R_max / 8),
        mu=draw(probability_rows((X,))),
        R_max=R_max,
    )


def policies(mdp: FiniteMDP) -> st.SearchStrategy[Float]:
    """Policies [H, X, Y], actions of probability zero included."""
    return probability_rows((mdp.H, mdp.X, mdp.Y))


def deterministic_policies(mdp: FiniteMDP) -> st.SearchStrategy[Float]:
    """Policies [H, X, Y] of zeros and ones."""
    choices = hnp.arrays(np.int64, (mdp.H, mdp.X), elements=st.integers(0, mdp.Y - 1), fill=st.just(0))
    return choices.map(lambda y: np.eye(mdp.Y)[y])


@st.composite
def mdps_with_policies(draw: st.DrawFn, count: int = 1, **sizes: int) -> tuple[FiniteMDP, *tuple[Float, ...]]:
    """(mdp, pi_1, ..., pi_count)."""
    mdp = draw(mdps(**sizes))
    return mdp, *(draw(policies(mdp)) for _ in range(count))


@st.composite
def stacks(draw: st.DrawFn, max_B: int = 4) -> tuple[MDPStack, Float, Float]:
    """(a stack of B MDPs, two policies [B, H, X, Y])."""
    B, X, Y, H = (draw(st.integers(1, high)) for high in (max_B, 4, 3, 4))
    stack = MDPStack(
        P=draw(probability_rows((B, H, X, Y, X))),
        r=draw(weights((B, H, X, Y), highest=8)) / 8,
        mu=draw(probability_rows((B, X))),
        R_max=np.ones(B),
    )
    return stack, draw(probability_rows((B, H, X, Y))), draw(probability_rows((B, H, X, Y)))


def soft_oracles(mdp: FiniteMDP) -> st.SearchStrategy[Float]:
    """Acceptance probabilities g [H, X]: multiples of 1/4, zero and one included; somewhere positive."""

    def positive(g: NDArray[np.int64]) -> Float:
        g = g / 4
        return np.ones(g.shape) if not g.any() else g

    return weights((mdp.H, mdp.X)).map(positive)


def alphas() -> st.SearchStrategy[float]:
    """Mixture weights in [0, 1], both ends included, no subnormals."""
    return st.floats(0.0, 1.0, allow_subnormal=False)


def taus(R_max: float = 1.0) -> st.SearchStrategy[float]:
    """Thresholds tau in [R_max / 100, R_max]."""
    return st.floats(0.01, 1.0).map(lambda share: share * R_max)
