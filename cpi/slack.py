"""How tight is each statement? A hunt over random and constructed instances: `python -m cpi.slack`.

For every exact statement of `cpi.bounds` the hunt reports, over seeded random MDPs of several sizes and over four
families that are tight by construction, the smallest slack in units of H R_max, the largest tightness (1: the statement
is an equality there), and the number of instances that violate it. Only the statements marked "as worded" may have any.

Random instances are drawn like the paper's own conditions allow: sparse or dense kernels, pi with zeros, a pi' that is
greedy, deterministic at random, or stochastic at random, and a gate that is the improvable set of pi or random.
Corollary 5 as worded speaks of the improvable set only, and is tried on nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cpi import bounds
from cpi.bounds import Bound
from cpi.exact import evaluate, greedy
from cpi.improvable import credit_law, improvable_set
from cpi.mdp import FiniteMDP, MDPStack

__all__ = [
    "STATEMENTS",
    "Instance",
    "Slack",
    "constructed_instances",
    "dead_end",
    "edge_of_event",
    "hunt",
    "hunt_statistics",
    "main",
    "random_instances",
    "seesaw",
    "strayed_chain",
    "tight_chain",
    "with_spare_action",
]

Array = NDArray[np.float64]
TAU = 0.1  # the threshold of the constructed instances


@dataclass(frozen=True)
class Instance:
    """A stack of MDPs with two policies, a 0/1 gate G (the improvable set at `tau`), a soft gate g, and a step."""

    stack: MDPStack
    pi: Array
    pi_new: Array
    G: Array
    g: Array
    alpha: float
    tau: float


def _greedy(instance: Instance) -> Array:
    return greedy(evaluate(instance.stack, instance.pi).Q)


STATEMENTS: dict[str, Callable[[Instance], Bound]] = {
    "performance difference": lambda i: bounds.performance_difference(i.stack, i.pi, i.pi_new),
    "Lemma 2": lambda i: bounds.lemma_2(i.stack, i.pi, i.pi_new, i.G),
    "Lemma 2, greedy": lambda i: bounds.lemma_2_greedy(i.stack, i.pi, i.tau),
    "Lemma 3": lambda i: bounds.lemma_3(i.stack, i.pi, i.pi_new, i.G, i.alpha),
    "Lemma 3, per step": lambda i: bounds.lemma_3_per_step(i.stack, i.pi, i.pi_new, i.G, i.alpha),
    "Lemma 3, coupling": lambda i: bounds.lemma_3_coupling(i.stack, i.pi, i.pi_new, i.g, i.alpha),
    "Lemma 4 (as worded)": lambda i: bounds.lemma_4(i.stack, i.pi, i.pi_new, i.alpha),
    "Lemma 4 (as worded, greedy pi')": lambda i: bounds.lemma_4(i.stack, i.pi, _greedy(i), i.alpha),
    "Lemma 4 (repaired)": lambda i: bounds.lemma_4_repaired(i.stack, i.pi, i.pi_new, i.alpha),
    "Lemma 4 (per step)": lambda i: bounds.lemma_4_sharp(i.stack, i.pi, i.pi_new, i.alpha),
    "Lemma 4 (reward range)": lambda i: bounds.lemma_4_reward_range(i.stack, i.pi, i.pi_new, i.alpha),
    "Corollary 5 (as worded)": lambda i: bounds.corollary_5(i.stack, i.pi, i.pi_new, i.G, i.alpha),
    "Corollary 5 (as worded, greedy pi')": lambda i: bounds.corollary_5(i.stack, i.pi, _greedy(i), i.G, i.alpha),
    "Corollary 5 (repaired)": lambda i: bounds.corollary_5_repaired(i.stack, i.pi, i.pi_new, i.g, i.alpha),
    "Corollary 5 (pairs)": lambda i: bounds.corollary_5_pairs(i.stack, i.pi, i.pi_new, i.g, i.alpha),
    "Corollary 5 (coupling)": lambda i: bounds.corollary_5_sharp(i.stack, i.pi, i.pi_new, i.g, i.alpha),
    "Corollary 5 (reward range)": lambda i: bounds.corollary_5_reward_range(i.stack, i.pi, i.pi_new, i.g, i.alpha),
    "Lemma 6": lambda i: bounds.lemma_6(i.stack, i.pi, evaluate(i.stack, i.pi_new).Q),
    "imperfect oracle, inequality": lambda i: bounds.imperfect_oracle_inequality(i.stack, i.pi, i.g, i.alpha),
    "convergence, gap": lambda i: bounds.convergence_gap(i.stack, i.pi, i.tau),
    "convergence, sharp gap": lambda i: bounds.convergence_gap_sharp(i.stack, i.pi, i.tau),
    "convergence, random resets": lambda i: bounds.kakade_langford_gap(i.stack, i.pi),
}


def tight_chain(H: int, up: float, down: float) -> tuple[FiniteMDP, Array, Array]:
    """(mdp, pi, pi') on which the per-step form of Lemma 4 is an equality for every alpha.

    State 0 is left for the absorbing state 1 by action 1; action 0 pays `down` in both, action 1 pays down + up in
    state 0 and nothing in state 1. pi plays action 0, pi' action 1, so f = up in state 0 and f = -down in state 1, at
    all times.
    """
    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, :, 1] = 1.0
    mdp = FiniteMDP.stationary(P, np.array([[down, down + up], [down, 0.0]]), np.array([1.0, 0.0]), H)
    first, second = np.tile([1.0, 0.0], (H, 2, 1)), np.tile([0.0, 1.0], (H, 2, 1))
    return mdp, first, second


def strayed_chain(H: int, up: float, down: float) -> tuple[FiniteMDP, Array, Array, Array]:
    """(mdp, pi, pi', G) on which the penalty of Corollary 5 (repaired) is attained as alpha -> 0 where up <= down.

    As `tight_chain`, but only the first step gains `up`, and the gate is open there and in state 1, where pi never
    goes: p = 1/H, and all of the H - 1 later steps pay for one stray. G is the improvable set (`with_spare_action`).
    With up = 0 Corollary 5 as worded claims not to lose anything.
    """
    mdp, pi, pi_new = tight_chain(H, 0.0, down)
    r = np.array(mdp.r)
    r[0, 0, 1] += up
    G = np.zeros((H, 2))
    G[0, 0] = 1.0
    G[:, 1] = 1.0
    return with_spare_action(FiniteMDP(mdp.P, r, mdp.mu), pi, pi_new, G)


def with_spare_action(mdp: FiniteMDP, pi: Array, pi_new: Array, gate: Array) -> tuple[FiniteMDP, Array, Array, Array]:
    """The same with one more action, which neither policy plays: it does what action 0 does, pi's, and pays TAU * gate
    more.

    So a 0/1 gate is the improvable set at every threshold up to TAU, if no other advantage off the gate is as large;
    gains, f and what pi sees stay as they are.
    """
    P = np.concatenate([mdp.P, mdp.P[:, :, :1]], axis=2)
    r = np.concatenate([mdp.r, mdp.r[:, :, :1] + TAU * gate[:, :, None]], axis=2)
    first, second = (np.concatenate([p, np.zeros((*p.shape[:-1], 1))], axis=2) for p in (pi, pi_new))
    return FiniteMDP(P, r, mdp.mu), first, second, gate


def seesaw(H: int) -> tuple[FiniteMDP, Array, Array]:
    """(mdp, pi, pi') on which the constant H(H^2-1)/3 of Lemma 4 (reward range) is attained as alpha -> 0.

    Action 0 stays and pays 0 in state 0, 1 in state 1. Action 1 changes sides and pays 1 in state 0, 0 in state 1. pi
    stays, pi' changes: f_h is H-h+1 in state 0 and -(H-h+1) in state 1, the extremes for rewards in [0, 1].
    """
    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 0] = 1.0
    mdp = FiniteMDP.stationary(P, np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0]), H)
    return mdp, np.tile([1.0, 0.0], (H, 2, 1)), np.tile([0.0, 1.0], (H, 2, 1))


def dead_end(H: int) -> tuple[FiniteMDP, Array, Array, Array]:
    """(mdp, pi, pi', g) on which the constant H^2(H-1)/2 of Theorem B is attained as alpha -> 0.

    pi stays in state 0 and is paid 1 a step. pi' moves on, at no price, from state 0 to state 1, where pi would stay
    and be paid 1 a step as well, and from there, unpaid, to state 2, where nothing is paid any more. The gate is open
    in state 0 at the first step and in state 1: after one stray the next loses all that can still be won.
    """
    P = np.zeros((3, 2, 3))
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 2] = P[2, :, 2] = 1.0
    mdp = FiniteMDP.stationary(P, np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), np.array([1.0, 0.0, 0.0]), H)
    g = np.zeros((H, 3))
    g[0, 0] = 1.0
    g[:, 1] = 1.0
    return mdp, np.tile([1.0, 0.0], (H, 3, 1)), np.tile([0.0, 1.0], (H, 3, 1)), g


def _rows(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random distributions along the last axis: dense, sparse or deterministic."""
    weights = rng.random(shape) ** rng.choice([1.0, 4.0])
    weights *= rng.random(shape) < rng.choice([1.0, 0.5])
    if rng.random() < 0.3:
        weights = (weights == weights.max(axis=-1, keepdims=True)).astype(np.float64)
    weights[..., 0] += weights.sum(axis=-1) == 0
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def random_instances(rng: np.random.Generator, count: int, batch: int = 200) -> Iterator[Instance]:
    """At least `count` random MDPs, in stacks of `batch` of one size."""
    for _ in range(0, count, batch):
        H, X, Y = (int(v) for v in rng.integers([1, 1, 2], [7, 6, 5]))
        r = rng.random((batch, H, X, Y)) * (rng.random((batch, H, X, Y)) < rng.choice([1.0, 0.3]))
        stack = MDPStack(_rows(rng, (batch, H, X, Y, X)), r, _rows(rng, (batch, X)), np.ones(batch))
        pi = _rows(rng, (batch, H, X, Y))
        A = evaluate(stack, pi).A
        pi_new = greedy(A) if rng.random() < 0.3 else _rows(rng, pi.shape)
        tau = float(rng.uniform(0.01, 0.5))
        G = improvable_set(A, tau).astype(np.float64)
        g = G if rng.random() < 0.3 else rng.random(G.shape) * (rng.random(G.shape) < rng.choice([1.0, 0.5]))
        yield Instance(stack, pi, pi_new, G, g, float(rng.choice([1.0, 0.5, 0.1, rng.random()])), tau)


def constructed_instances() -> Iterator[Instance]:
    """The tight families, at steps from 1 down to 10^-3."""
    for H in (2, 4, 8):
        for alpha in (1.0, 0.1, 0.001):
            for up, down in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
                yield _single(*tight_chain(H, up, down), np.ones((H, 2)), alpha)
                yield _single(*with_spare_action(*tight_chain(H, up, down), np.ones((H, 2))), alpha)
            for up, down in ((0.0, 0.5), (0.0, 1.0), (0.05, 0.5)):
                yield _single(*strayed_chain(H, up, down), alpha)
            yield _single(*seesaw(H), np.ones((H, 2)), alpha)
            yield _single(*dead_end(H), alpha)


def _single(mdp: FiniteMDP, pi: Array, pi_new: Array, gate: Array, alpha: float) -> Instance:
    """G is the improvable set whatever the gate: what is said of G must not be tried on another set."""
    tau = TAU * (1 - 1e-9)  # advantages of exactly TAU carry rounding errors
    G = improvable_set(evaluate(mdp, pi).A, tau).astype(np.float64)
    return Instance(MDPStack.of([mdp]), pi[None], pi_new[None], G[None], gate[None], alpha, tau)


@dataclass
class Slack:
    """What a hunt has found for one statement; slack in units of H R_max (of 1 for probabilities)."""

    instances: int = 0
    violations: int = 0
    smallest_slack: float = np.inf
    largest_tightness: float = 0.0

    def add(self, bound: Bound, scale: float) -> None:
        finite = np.isfinite(bound.slack)
        self.instances += 1 if bound.lhs.ndim == 0 else len(bound.lhs)
        self.violations += int((bound.slack < -bound.tol).sum())
        self.smallest_slack = min(self.smallest_slack, float(bound.slack[finite].min(initial=np.inf)) / scale)
        self.largest_tightness = max(self.largest_tightness, float(bound.tightness[finite].max(initial=0.0)))


def hunt(seed: int, count: int) -> dict[str, Slack]:
    """Every exact statement on `count` random MDPs and on the constructed families."""
    found = {name: Slack() for name in STATEMENTS}
    rng = np.random.default_rng(seed)
    for source in (random_instances(rng, count), constructed_instances()):
        for instance in source:
            for name, statement in STATEMENTS.items():
                found[name].add(statement(instance), instance.stack.H * float(instance.stack.R_max.max()))
    return found


def edge_of_event(mdp: FiniteMDP, pi: Array, g: Array, t: float, rng: np.random.Generator) -> tuple[Array, float]:
    """(Qhat, zeta) on the edge of Theorem 1's event, 3 eta + |zeta| = t / 2: the worst fit and estimate that it allows.

    The direction of the error is random. Where the sampler never goes the event allows any error, and there it is
    large.
    """
    ev = evaluate(mdp, pi)
    share = rng.choice([0.0, 0.5, 1.0])
    noise = rng.normal(size=ev.Q.shape)
    eta = float(np.sqrt(2 * (credit_law(ev.d, g)[..., None] * noise**2).sum()))
    visited = (ev.d * g > 0)[..., None]
    error = np.where(visited, share * t / 6 / eta * noise, 10 * mdp.R_max * noise)
    return ev.Q + error, float(rng.choice([-1.0, 1.0])) * (1 - share) * t / 2 * (1 - 1e-9)


def _sampled(instance: Instance, b: int, rng: np.random.Generator) -> Iterator[Bound]:
    """The statements about samples on the b-th MDP of an instance, where pi visits its improvable set and its gate."""
    mdp, pi, g, tau = instance.stack[b], instance.pi[b], instance.g[b], instance.tau
    d, G = evaluate(mdp, pi).d, instance.G[b]
    p, both = float((d * G).sum()) / mdp.H, float((d * G * g).sum())
    if min(p, both) < 1e-3:
        return
    Qhat, t = evaluate(mdp, instance.pi_new[b]).Q, tau * (1 - 1e-9)
    yield bounds.lemma_8(mdp, pi, Qhat, g)
    yield bounds.greedy_transfer(mdp, pi, Qhat, g)
    yield bounds.estimate_is_useful(bounds.fit(mdp, pi, Qhat, g), float(rng.normal()) * tau)
    yield bounds.theorem_1a(mdp, pi, tau, *edge_of_event(mdp, pi, np.ones(d.shape), p * t, rng))
    yield bounds.theorem_1b(mdp, pi, tau, *edge_of_event(mdp, pi, G, t, rng))
    yield bounds.imperfect_oracle_advantage(mdp, pi, tau, g)
    rho = both / float((d * g).sum())
    yield bounds.imperfect_oracle(mdp, pi, tau, g, *edge_of_event(mdp, pi, g, rho * t, rng))
    yield bounds.exact_step(mdp, pi, g)


def _laws() -> Iterator[Bound]:
    """The statements about probabilities, each side computed exactly, on grids."""
    for n, delta, Q in product((30, 100, 1000), (0.5, 0.05, 1e-3, 1e-6), (0.3, 0.5)):
        just_wrong = 1.0001 * float(np.sqrt(bounds.FIT_CONSTANT * np.log(2 / delta) / n))
        yield bounds.lemma_7([1.0], [Q], [[Q], [min(1.0, Q + just_wrong)]], n, delta)
    for n, w in product((1, 2, 5, 20, 100), (0.05, 0.2, 0.4, 0.5, 0.59)):
        yield bounds.lemma_9([0, 1], [1 - w, w], n)
        yield bounds.lemma_9([-2, 0, 3], [w / 2, 1 - w, w / 2], n)
    for k, share, p in product((2, 4), (0.0, 0.5), (1.0, 0.1)):
        law = bounds.TightnessLaw(p, k, 0.03 / p, share * 0.03)
        for place in (0.0, 1.0):
            low, high = law.n_range
            n = int(np.ceil(low + place * (high - low - 1)))
            yield bounds.proposition_10(law, n)
            yield bounds.proposition_10_berry_esseen(law, n)
    for q, n in product((1.0, 0.5, 0.1), (1, 10)):
        yield bounds.algorithm_3_cost(q, n, horizon=n + int(60 * n / q))


def hunt_statistics(seed: int, count: int) -> dict[str, Slack]:
    """The statements about samples and probabilities, on about `count` random MDPs and on grids of laws."""
    found: dict[str, Slack] = {}
    rng = np.random.default_rng(seed)
    for instance in random_instances(rng, 10 * count):
        for b in range(20):
            for bound in _sampled(instance, b, rng):
                found.setdefault(bound.name, Slack()).add(bound, instance.stack.H)
    for bound in _laws():
        found.setdefault(bound.name, Slack()).add(bound, 1.0)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cpi.slack", description="Hunt for the tightest instances.")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random instances (default: 0)")
    parser.add_argument("--count", type=int, default=20_000, help="random MDPs (default: 20000)")
    arguments = parser.parse_args(argv)
    print(f"{'statement':36} {'instances':>9} {'violations':>10} {'least slack':>12} {'tightness':>9}")
    found = hunt(arguments.seed, arguments.count) | hunt_statistics(arguments.seed, arguments.count // 10)
    for name, slack in found.items():
        tightness = f"{slack.largest_tightness:9.4f}" if slack.violations == 0 else "    false"
        print(f"{name:36} {slack.instances:9d} {slack.violations:10d} {slack.smallest_slack:12.2e} {tightness}")


if __name__ == "__main__":
    main()
