"""Garnets: random MDPs of chosen size and branching, from a seed (Archibald, McKinnon and Thomas 1995).

From each (x, y) there are exactly `branching` possible successors, drawn without replacement, with probabilities cut
out of [0, 1] by uniform points. Rewards are uniform in [0, 1]. The reference policy is uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cpi.mdp import FiniteMDP, MDPError

__all__ = ["Garnet", "garnet"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Garnet:
    """See the module's docstring."""

    mdp: FiniteMDP
    pi: Float
    branching: int
    seed: int


def _successors(rng: np.random.Generator, rows: int, X: int, branching: int) -> NDArray[np.int64]:
    """`branching` distinct states for each row, sorted: [rows, branching]."""
    if branching**2 > X:
        return np.sort(rng.random((rows, X)).argpartition(branching - 1, axis=1)[:, :branching], axis=1)
    drawn = np.sort(rng.integers(X, size=(rows, branching)), axis=1)
    while (again := (np.diff(drawn, axis=1) == 0).any(axis=1)).any():  # at most about half of the rows hold a repeat
        drawn[again] = np.sort(rng.integers(X, size=(int(again.sum()), branching)), axis=1)
    return drawn


def _kernel(rng: np.random.Generator, X: int, Y: int, branching: int) -> csr_array:
    cuts = np.sort(rng.random((X * Y, branching - 1)), axis=1)
    probs = np.diff(cuts, axis=1, prepend=0.0, append=1.0)
    columns = _successors(rng, X * Y, X, branching).ravel()
    return csr_array((probs.ravel(), columns, np.arange(X * Y + 1) * branching), shape=(X * Y, X))


def garnet(
    X: int, Y: int, H: int, branching: int, seed: int = 0, stationary: bool = False, sparse: bool = False
) -> Garnet:
    """A seeded garnet. `sparse` changes how the kernel is stored and nothing else."""
    if not 1 <= branching <= X:
        raise MDPError(f"branching must lie in 1..X = {X}, got {branching}")
    if min(X, Y, H) < 1:
        raise MDPError(f"X, Y and H must be at least 1, got {X}, {Y} and {H}")
    rng = np.random.default_rng(seed)
    kernels = [_kernel(rng, X, Y, branching) for _ in range(1 if stationary else H)]
    r = rng.random((1 if stationary else H, X, Y))
    mu = np.full(X, 1 / X)
    if sparse:
        mdp = FiniteMDP(kernels * H if stationary else kernels, np.broadcast_to(r, (H, X, Y)), mu, 1.0)
    else:
        P = np.stack([kernel.toarray().reshape(X, Y, X) for kernel in kernels])
        mdp = FiniteMDP(np.broadcast_to(P, (H, X, Y, X)), np.broadcast_to(r, (H, X, Y)), mu, 1.0)
    return Garnet(mdp, np.full((H, X, Y), 1 / Y), branching, seed)
