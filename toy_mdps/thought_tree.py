"""Thought tree: the tabular twin of a chained look-up, with the true first error of every chain.

A question needs H look-ups, each from the value before it. Each look-up is a bijection, so from a wrong value no right
one follows: the chain is right at the end exactly if every thought was. A thought is one of Y values. Hard steps are
right with the probability of a dial, easy ones almost surely. The verifier gives 1 for a right final answer, else 0.

State 0 is a chain that is right so far; state e = 1 .. H - 1 is one whose first wrong thought was the e-th (decision
e - 1), so a state tells when and whether the chain went wrong, and the step h tells how far it is. In state 0,
V_h = c_h ... c_{H-1}, and the right value gains (1 - c_h) c_{h+1} ... c_{H-1}; elsewhere nothing matters any more.

Example: H = 3, right values (2, 0, 1). A chain 2, 1, 1 visits states 0, 0, 2: its first error is thought 2, decision
k = 1, and the reset that repairs it keeps one thought (``prefix(1)``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpi.mdp import FiniteMDP, MDPError
from cpi.resets import Oracle
from cpi.simulate import TabularEpisode
from toy_mdps._chains import all_right_from, chain_policy, check_chain, first_wrong, right_so_far

__all__ = ["ThoughtTree", "thought_tree"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ThoughtTree:
    """See the module's docstring. c_H [H]: reliabilities; right_H [H]: right values; hard: the hard steps, 0-based."""

    mdp: FiniteMDP
    pi: Float
    right_H: Int
    c_H: Float
    hard: tuple[int, ...]

    @property
    def J(self) -> float:
        """Accuracy: the probability that all thoughts are right."""
        return float(self.c_H.prod())

    @property
    def J_star(self) -> float:
        return 1.0

    @property
    def best_gain_H(self) -> Float:
        """max_y A_h(0, y) [H]."""
        return (1 - self.c_H) * all_right_from(self.c_H)[1:]

    @property
    def right_so_far_H(self) -> Float:
        """d_h(0) [H]."""
        return right_so_far(self.c_H)[:-1]

    @property
    def first_error_law(self) -> Float:
        """[H + 1]: P(the first error is decision k), and last the probability that there is none."""
        return np.append(self.right_so_far_H * (1 - self.c_H), self.J)

    def coverage(self, tau: float) -> float:
        """p_pi at threshold tau > 0."""
        return float((self.right_so_far_H * (self.best_gain_H >= tau)).mean())

    def first_error(self, y_NH: Int) -> Int:
        """0-based decision at which each chain of values [N, H] first went wrong; -1 for a right chain."""
        return first_wrong(y_NH, self.right_H)

    def accept(self, episode: TabularEpisode) -> Float:
        """1 at the episode's first error, 0 elsewhere: [H]."""
        k = int(self.first_error(np.array(episode.actions))[0])
        return np.zeros(self.mdp.H) if k < 0 else np.eye(self.mdp.H)[k]

    def localiser(self) -> Oracle:
        """The exact localiser as a reset sampler: a point mass on the first error, nothing for a right chain."""
        return Oracle(self.accept)


def thought_tree(
    H: int = 6,
    Y: int = 4,
    hard: int | Sequence[int] = 2,
    reliability: float = 0.5,
    easy_reliability: float = 0.98,
    seed: int = 0,
) -> ThoughtTree:
    """A chain of H thoughts with Y values each. `hard`: the hard steps (0-based), or their number, spread evenly."""
    if isinstance(hard, int):
        if not 0 <= hard <= H:
            raise MDPError(f"the number of hard steps must lie in 0..H = {H}, got {hard}")
        hard = [(2 * i + 1) * H // (2 * hard) for i in range(hard)]
    if not set(hard) <= set(range(H)):
        raise MDPError(f"hard steps must lie in 0..{H - 1}, got {list(hard)}")
    c = np.full(H, easy_reliability)
    c[list(hard)] = reliability
    right, c_H = check_chain(np.random.default_rng(seed).integers(max(Y, 1), size=H), c, Y)  # type: ignore[arg-type]
    P = np.zeros((H, H, Y, H))
    P[:, np.arange(H), :, np.arange(H)] = 1.0  # a wrong chain stays as wrong as it is
    P[:, 0] = 0.0
    for h in range(H):
        P[h, 0, :, min(h + 1, H - 1)] = 1.0
        P[h, 0, right[h]] = np.eye(H)[0]
    r = np.zeros((H, H, Y))
    r[-1, 0, right[-1]] = 1.0
    mdp = FiniteMDP(P, r, np.eye(H)[0])
    return ThoughtTree(mdp, chain_policy(right, c_H, H, Y), right, c_H, tuple(sorted(set(hard))))
