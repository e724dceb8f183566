"""Counterexamples in rational arithmetic: statements that do not hold as worded, found by search, checkable by hand.

Everything here is exact (`fractions.Fraction` in object arrays), so a violation is a fact and not a rounding error. Two
claims are searched, over families of MDPs in order of size (H, X, Y) and, within a size, in order of a fixed grid:

* Lemma 4 as worded: J(pi_alpha) - J(pi) >= alpha H A_pi(pi') - alpha^2 H^2 eps / 2 for any pi', with
  eps = max_{h,x} E_{pi'} A_h(x, .).
* Corollary 5 as worded: for pi' = pi off the improvable set G,
  J(pi_alpha) - J(pi) >= alpha H p A^G(pi') - alpha^2 H^2 p eps.

Both fail for two separate reasons. eps may be negative, and then H = 1 with a single state suffices. And E_{pi'} A may
be negative where pi' strays to, which eps does not see; then H = 2 with two states is the least.

The remaining items of docs/errata.md are finite enumerations: Algorithm 1 handing back a policy for which Lemma 4 as
worded fails, however many samples it draws; the mean of Algorithm 1's estimate, which is not the policy advantage it
stands for; the base group of Algorithm 2 and its budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Algorithm2Law",
    "Counterexample",
    "RationalMDP",
    "algorithm_1_unvisited",
    "corollary_5_degenerate",
    "corollary_5_smallest",
    "corollary_5_violation",
    "enumerate_algorithm_2",
    "estimate_bias",
    "family",
    "fractions",
    "greedy_transfer_attained",
    "lemma_4_degenerate",
    "lemma_4_smallest",
    "lemma_4_violation",
    "search",
]

Exact = NDArray[Any]  # object arrays of Fraction
HALF, EIGHTH = Fraction(1, 2), Fraction(1, 8)


def fractions(values: Any) -> Exact:
    """Nested lists of numbers or strings such as ``"3/8"`` as an object array of Fractions."""
    raw = np.asarray(values, dtype=object)
    return np.frompyfunc(Fraction, 1, 1)(raw)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RationalMDP:
    """A finite-horizon MDP with Fractions: P [H,X,Y,X], r [H,X,Y], mu [X]. Policies are object arrays [H,X,Y]."""

    P: Exact
    r: Exact
    mu: Exact

    @property
    def H(self) -> int:
        return int(self.r.shape[0])

    @property
    def X(self) -> int:
        return int(self.r.shape[1])

    @property
    def Y(self) -> int:
        return int(self.r.shape[2])

    def values(self, pi: Exact) -> tuple[Exact, Exact]:
        """V [H+1,X] and A [H,X,Y] by backward induction."""
        V = fractions(np.zeros((self.H + 1, self.X), dtype=int))
        A = fractions(np.zeros(self.r.shape, dtype=int))
        for h in reversed(range(self.H)):
            Q = self.r[h] + self.P[h] @ V[h + 1]
            V[h] = (pi[h] * Q).sum(axis=1)
            A[h] = Q - V[h][:, None]
        return V, A

    def occupancy(self, pi: Exact) -> Exact:
        """d [H,X]."""
        d = [self.mu]
        for h in range(self.H - 1):
            d.append(np.tensordot(d[h][:, None] * pi[h], self.P[h], axes=2))
        return np.stack(d)

    def expected_return(self, pi: Exact) -> Fraction:
        return Fraction(self.mu @ self.values(pi)[0][0])


@dataclass(frozen=True)
class Counterexample:
    """An instance in which `gain` < `claimed`: the exact left and right side of an inequality as the paper words it."""

    claim: str
    mdp: RationalMDP
    pi: Exact
    pi_new: Exact
    alpha: Fraction
    eps: Fraction
    gain: Fraction
    claimed: Fraction
    tau: Fraction | None = None

    @property
    def violation(self) -> Fraction:
        return self.claimed - self.gain

    @property
    def size(self) -> tuple[int, int, int]:
        return self.mdp.H, self.mdp.X, self.mdp.Y


def _gain(mdp: RationalMDP, pi: Exact, pi_new: Exact, alpha: Fraction) -> Fraction:
    return mdp.expected_return((1 - alpha) * pi + alpha * pi_new) - mdp.expected_return(pi)


def lemma_4_violation(mdp: RationalMDP, pi: Exact, pi_new: Exact, alpha: Fraction) -> Counterexample | None:
    """The instance as a counterexample to Lemma 4 as worded, or None if the inequality holds there."""
    _, A = mdp.values(pi)
    f = (pi_new * A).sum(axis=2)
    eps, linear = f.max(), (mdp.occupancy(pi) * f).sum()  # linear = H A_pi(pi')
    claimed = alpha * linear - alpha**2 * mdp.H**2 * eps / 2
    gain = _gain(mdp, pi, pi_new, alpha)
    return Counterexample("Lemma 4", mdp, pi, pi_new, alpha, eps, gain, claimed) if gain < claimed else None


def corollary_5_violation(
    mdp: RationalMDP, pi: Exact, pi_new: Exact, alpha: Fraction, tau: Fraction
) -> Counterexample | None:
    """The instance as a counterexample to Corollary 5 as worded, or None. pi' is set to pi outside G_tau first."""
    _, A = mdp.values(pi)
    in_G = A.max(axis=2) >= tau
    restricted = np.where(in_G[:, :, None], pi_new, pi)
    f = (restricted * A).sum(axis=2)
    d = mdp.occupancy(pi)
    Hp = (d * in_G.astype(int)).sum()
    eps, linear = f.max(), (d * f).sum()  # linear = H p A^G(pi')
    claimed = alpha * linear - alpha**2 * mdp.H * Hp * eps
    gain = _gain(mdp, pi, restricted, alpha)
    if gain >= claimed:
        return None
    return Counterexample("Corollary 5", mdp, pi, restricted, alpha, eps, gain, claimed, tau)


# The search ---------------------------------------------------------------------------------------------------------


def _rows(Y: int, parts: int) -> list[tuple[Fraction, ...]]:
    """All distributions over Y actions with probabilities in multiples of 1/parts, deterministic ones first."""
    rows = [c for c in product(range(parts + 1), repeat=Y) if sum(c) == parts]
    rows.sort(key=lambda c: (-max(c), c[::-1]))
    return [tuple(Fraction(n, parts) for n in c) for c in rows]


def family(H: int, X: int, Y: int, rewards: Sequence[Fraction]) -> Iterator[RationalMDP]:
    """Deterministic MDPs that start in state 0 and pay only in the last step, rewards in a grid.

    The restriction keeps the grid small, X^(Y (1 + (H-2) X)) kernels times card(rewards)^(X Y), and is wide enough.
    """
    mu = fractions([1] + [0] * (X - 1))
    eye = fractions(np.eye(X, dtype=int).tolist())
    reached = [1 if h == 0 else X for h in range(H - 1)]  # states that can be occupied when a transition is taken
    pays = 1 if H == 1 else X
    for targets in product(range(X), repeat=Y * sum(reached)):
        P = np.broadcast_to(eye[0], (H, X, Y, X)).copy()
        moves = iter(targets)
        for h, states in enumerate(reached):
            for x, y in product(range(states), range(Y)):
                P[h, x, y] = eye[next(moves)]
        for paid in product(rewards, repeat=pays * Y):
            r = fractions(np.zeros((H, X, Y), dtype=int))
            r[H - 1, :pays] = np.array(paid, dtype=object).reshape(pays, Y)
            yield RationalMDP(P, r, mu)


def _policies(mdp: RationalMDP, parts: int) -> Iterator[Exact]:
    rows = _rows(mdp.Y, parts)
    free = 1 + (mdp.H - 1) * mdp.X  # time 1 is only ever spent in state 0
    for choice in product(rows, repeat=free):
        pi = np.broadcast_to(np.array(rows[0], dtype=object), (mdp.H, mdp.X, mdp.Y)).copy()
        pi[0, 0] = choice[0]
        pi[1:] = np.array(choice[1:], dtype=object).reshape(mdp.H - 1, mdp.X, mdp.Y)
        yield pi


def search(
    test: Callable[[RationalMDP, Exact, Exact], Counterexample | None],
    sizes: Iterable[tuple[int, int, int]],
    rewards: Sequence[Fraction] = (Fraction(0), Fraction(1)),
    parts: int = 1,
    parts_new: int | None = None,
) -> Counterexample | None:
    """The first counterexample over `sizes` (in the order given), or None if no instance of the grid violates the
    claim.

    `test(mdp, pi, pi_new)` returns a counterexample or None; pi takes probabilities in multiples of 1/parts, and pi'
    in multiples of 1/parts_new (default: the same).
    """
    for H, X, Y in sizes:
        for mdp in family(H, X, Y, rewards):
            for pi in _policies(mdp, parts):
                for pi_new in _policies(mdp, parts_new or parts):
                    found = test(mdp, pi, pi_new)
                    if found is not None:
                        return found
    return None


def lemma_4_degenerate() -> Counterexample:
    """H = 1, one state, two actions: pi plays the good one, pi' the bad one. eps < 0 turns the penalty into a bonus.

    r(y0) = 1, r(y1) = 0, A_pi(pi') = eps = -1: gain -alpha, claimed -alpha + alpha^2 / 2.
    """
    found = search(lambda m, pi, new: lemma_4_violation(m, pi, new, Fraction(1)), [(1, 1, 2)])
    return _exists(found)


def lemma_4_smallest() -> Counterexample:
    """H = 2, two states, two actions, eps >= 0. No size before it has one (H = 1 or X = 1: the gain is linear in
    alpha).

    x1 -y0-> s, x1 -y1-> t; s pays 1 for both actions, t pays 1 for y0 and 0 for y1. pi = y0 and pi' = y1 everywhere:
    f_1(x1) = 0, f_2(s) = 0, f_2(t) = -1, so A_pi(pi') = eps = 0. Claimed gain >= 0, true gain -alpha^2.
    """

    def test(mdp: RationalMDP, pi: Exact, pi_new: Exact) -> Counterexample | None:
        found = lemma_4_violation(mdp, pi, pi_new, Fraction(1))
        return found if found is not None and found.eps >= 0 else None

    return _exists(search(test, [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]))


def corollary_5_degenerate() -> Counterexample:
    """H = 1, one state: pi plays both actions alike, pi' the bad one. p = 1, eps = -1/2.

    Gain -alpha/2, claimed -alpha/2 + alpha^2/2.
    """
    found = search(lambda m, pi, new: corollary_5_violation(m, pi, new, Fraction(1), HALF), [(1, 1, 2)], parts=2)
    return _exists(found)


def corollary_5_smallest() -> Counterexample:
    """H = 2, two states, two actions, eps >= 0: pi in halves, pi' deterministic, alpha = 1, any threshold tau.

    x1 -y0-> s, x1 -y1-> t, both alike under pi; s pays 1 under pi, t pays (0, 1) and pi plays both alike; pi' goes to t
    and plays y0 there. V(s) = 1, V(t) = 1/2: f_1(x1) = -1/4, f_2(t) = -1/2, tau = 1/4, p = 3/4, eps = 0 (at s).
    Claimed gain -alpha/2, true gain -alpha/2 - alpha^2/4. `algorithm_1_unvisited` has one with A^G > 0.
    """

    def test(mdp: RationalMDP, pi: Exact, pi_new: Exact) -> Counterexample | None:
        _, A = mdp.values(pi)
        for tau in sorted({a for a in A.max(axis=2).ravel() if a > 0}):
            found = corollary_5_violation(mdp, pi, pi_new, Fraction(1), tau)
            if found is not None and found.eps >= 0:
                return found
        return None

    return _exists(search(test, [(1, 1, 2), (2, 1, 2), (2, 2, 2)], parts=2, parts_new=1))


def _exists(found: Counterexample | None) -> Counterexample:
    if found is None:
        raise LookupError("the grid holds no counterexample; widen the rewards or the policies")
    return found


# Item 3: the empirical greedy policy --------------------------------------------------------------------------------


def algorithm_1_unvisited(alpha: Fraction = Fraction(1)) -> tuple[Counterexample, Counterexample]:
    """Lemma 4 and Corollary 5 as worded fail for a policy that Algorithm 1 itself returns, for every sample size.

    x1 -y0-> s, x1 -y1-> t. s pays 3/8; t pays (1, 0). pi plays y0 at x1, so t is never visited, and both actions alike
    at t. The class is F = {f, Q}, where f differs from Q only at t, with the two actions swapped. Neither sampler ever
    draws t, so f and Q have equal loss for every sample, least squares may return f, and pihat+ plays the bad action at
    t: f_1(x1) = eps = 1/8, f_2(t) = -1/2. Gain alpha/8 - alpha^2/2, claimed by both alpha/8 - alpha^2/4 (tau = 1/8, p =
    1/2).
    """
    P = fractions(np.zeros((2, 2, 2, 2), dtype=int))
    P[0, 0, 0, 0] = P[0, 0, 1, 1] = Fraction(1)
    P[0, 1, :, 1] = P[1, :, :, 0] = Fraction(1)
    r = fractions([[[0, 0], [0, 0]], [["3/8", "3/8"], [1, 0]]])
    mdp = RationalMDP(P, r, fractions([1, 0]))
    pi = fractions([[[1, 0], [1, 0]], [[1, 0], ["1/2", "1/2"]]])
    Q = mdp.r + np.stack([mdp.P[h] @ mdp.values(pi)[0][h + 1] for h in range(2)])
    fitted = Q.copy()
    fitted[1, 1] = Q[1, 1, ::-1]
    pi_hat = fractions(np.eye(2, dtype=int)[np.argmax(fitted, axis=2)].tolist())
    lemma, corollary = lemma_4_violation(mdp, pi, pi_hat, alpha), corollary_5_violation(mdp, pi, pi_hat, alpha, EIGHTH)
    return _exists(lemma), _exists(corollary)


# Item 4: the estimate of Algorithm 1 --------------------------------------------------------------------------------


def estimate_bias(n: int) -> Fraction:
    """E[Ahat] of Algorithm 1 on one state with H = 1 and n draws, by enumeration, where A(pihat+) = 0 for certain.

    Two actions, rewards 0/1 with mean 1/2 for both, pi plays y0, F = {(1/2, 1/2), (1/2, 1)}. The true policy advantage
    of every policy is 0, yet the fit that wins when only successes of y1 were drawn is used twice, to choose pihat+ and
    to value it: E[Ahat] = 1/2 for n = 1.
    """
    classes = [(HALF, HALF), (HALF, Fraction(1))]
    estimate = Fraction(0)
    for draws in product(product(range(2), range(2)), repeat=n):  # (action, reward), each with probability 1/4
        losses = [sum(((f[y] - reward) ** 2 for y, reward in draws), Fraction(0)) for f in classes]
        f = classes[losses.index(min(losses))]
        best = 1 if f[1] > f[0] else 0
        weight = [(best == y) - (y == 0) for y in range(2)]
        estimate += sum((2 * weight[y] * f[y] for y, _ in draws), Fraction(0)) / n / 4**n
    return estimate


def greedy_transfer_attained(tau: Fraction = Fraction(1)) -> tuple[Fraction, Fraction]:
    """(A(pihat+), sup |Qhat - Q|) with A(pi+) = tau, where Lemma 6 is an equality: A(pihat+) = tau - 2 sup = 2 tau / 3.

    One state, Q = (0, tau, 2 tau / 3), Qhat = (0, 5 tau / 6, 5 tau / 6) with the tie broken towards the third action.
    An error of tau / 6 is what Theorem 1's proof allows, so "A(pihat+) >= tau p" does not follow; 2/3 of it does.
    """
    Q = [Fraction(0), tau, 2 * tau / 3]
    fitted = [Fraction(0), 5 * tau / 6, 5 * tau / 6]
    chosen = max(range(3), key=lambda y: (fitted[y], y))
    return Q[chosen] - Q[0], max(abs(a - b) for a, b in zip(Q, fitted, strict=True))


# Items 5 and 6: Algorithm 2 by enumeration --------------------------------------------------------------------------


@dataclass(frozen=True)
class Algorithm2Law:
    """Exact expectations of Algorithm 2's buffer: base-group mean, the same given a seed, rollouts, P(seed)."""

    base_mean: Fraction
    base_mean_given_seed: Fraction
    rollouts: Fraction
    seed_probability: Fraction


def enumerate_algorithm_2(q: Fraction, G: int, attempts: int) -> Algorithm2Law:
    """Expectations over all outcomes of `attempts` + G rollouts that succeed with probability q in (0, 1).

    One base and one reset group of size G. Rollouts 1, 2, ... are drawn until the first failure, at most `attempts` of
    them; the failure is the seed and is dropped; the base group is the first G of the others (more are drawn if they
    are fewer), and G suffixes follow. Without a failure all rollouts, topped up to 2G, are the base group.
    """
    mean = given_seed = rollouts = seed = Fraction(0)
    for outcome in product((1, 0), repeat=attempts + G):
        weight = q ** sum(outcome) * (1 - q) ** (len(outcome) - sum(outcome))
        if 0 in outcome[:attempts]:
            first = outcome.index(0)
            base: tuple[int, ...] = (outcome[:first] + outcome[first + 1 :])[:G]
            rollouts += weight * (max(first + 1, G + 1) + G)
            seed += weight
            given_seed += weight * Fraction(sum(base), G)
        else:
            base = outcome[: max(attempts, 2 * G)]
            rollouts += weight * len(base)
        mean += weight * Fraction(sum(base), len(base))
    return Algorithm2Law(mean, given_seed / seed, rollouts, seed)
