"""Decision points: H steps of which few matter, so that the coverage p is a dial.

At a decisive step action 1 earns `gain` and the others nothing; at any other step action 1 earns `trifle`, which may be
zero. The state remembers whether the last action was 1, and nothing depends on it. The reference policy plays action 1
with probability c everywhere. So A_h(x, 1) = (1 - c) gain at decisive steps and (1 - c) trifle elsewhere, in either
state, and for trifle (1 - c) < tau <= gain (1 - c) the coverage is p = (number of decisive steps) / H. A rollout from
step h collects what later decisive steps give, which is the noise that an estimate of Q has to bear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP, MDPError
from toy_mdps._chains import chain_policy, check_chain

__all__ = ["DecisionPoints", "decision_points"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DecisionPoints:
    """See the module's docstring. `earns` [H] is what action 1 earns at each step."""

    mdp: FiniteMDP
    pi: Float
    decisive: tuple[int, ...]
    earns: Float
    c: float

    @property
    def J(self) -> float:
        return float(self.c * self.earns.sum())

    @property
    def J_star(self) -> float:
        return float(self.earns.sum())

    @property
    def best_gain_H(self) -> Float:
        """max_y A_h(x, y) [H], the same in both states."""
        return (1 - self.c) * self.earns

    def coverage(self, tau: float) -> float:
        """p_pi at threshold tau > 0."""
        return float((self.best_gain_H >= tau).mean())


def decision_points(
    H: int, decisive: int | Sequence[int], Y: int = 2, c: float = 0.5, gain: float = 1.0, trifle: float = 0.0
) -> DecisionPoints:
    """`decisive` lists the decisive steps (0-based), or says how many there are, spread evenly."""
    if isinstance(decisive, int):
        if not 0 <= decisive <= H:
            raise MDPError(f"the number of decisive steps must lie in 0..H = {H}, got {decisive}")
        decisive = [(2 * i + 1) * H // (2 * decisive) for i in range(decisive)]
    if not set(decisive) <= set(range(H)):
        raise MDPError(f"decisive steps must lie in 0..{H - 1}, got {list(decisive)}")
    if not 0 <= trifle <= gain:
        raise MDPError(f"0 <= trifle <= gain must hold, got {trifle} and {gain}")
    one, reliability = check_chain([1] * H, [c] * H, Y)
    earns = np.full(H, trifle)
    earns[list(decisive)] = gain
    r = np.zeros((H, 2, Y))
    r[:, :, 1] = earns[:, None]
    P = np.zeros((2, Y, 2))
    P[:, :, 0] = 1.0
    P[:, 1] = (0.0, 1.0)
    mdp = FiniteMDP(np.broadcast_to(P, (H, 2, Y, 2)), r, np.array([1.0, 0.0]), gain if gain > 0 else 1.0)
    return DecisionPoints(mdp, chain_policy(one, reliability, 2, Y), tuple(sorted(set(decisive))), earns, c)
