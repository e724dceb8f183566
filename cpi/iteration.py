"""Algorithm 1: conservative policy iteration with resets, from rollouts alone.

One step, for a variant with acceptance g_h(x) (random resets: g = 1; exact oracle: g = 1_G; soft oracle: between):

1. draw n pairs (x_i, h_i) from the reset sampler, law proportional to d_h(x) g_h(x) (`cpi.improvable.CreditSampler`);
2. draw y_i uniformly, and Qhat_i from one rollout of pi that begins with y_i in x_i at time h_i;
3. Qhat = least squares over a class F (`cpi.regression`), pihat+ = greedy(Qhat);
4. Ahat = mean of card(Y) (pihat+ - pi)(y_i | x_i) Qhat(x_i, y_i, h_i);
5. play (1 - alpha) pi + alpha pi_g, where pi_g = g pihat+ + (1 - g) pi, with alpha = min{1, Ahat / (c H^2 R_max)},
   c = 1 for random resets and 2 with an oracle. If Ahat <= 0, keep pi.

Deviations from the paper, numbered:

1. Where Qhat ties, pihat+ keeps pi if pi plays one of the best actions, so a tie (a state without data, say) never
   moves the policy. A greedy policy with ties broken so is still greedy.
2. `run` repeats steps; the paper analyses one. The oracle is asked about the *current* policy at each step.
3. `Exact` in place of `Sampled` replaces steps 1 to 4 by their limits as n grows and F contains Q.
4. The soft oracle is ours (`docs/theory.md`, imperfect oracles).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cpi.exact import Evaluation, evaluate, expected_return, greedy, mixture
from cpi.improvable import CreditSampler, NothingAcceptedError, coverage, credit_law, improvable_set, soft_mixture
from cpi.mdp import FiniteMDP, MDPError, check_policy
from cpi.regression import FunctionClass
from cpi.simulate import q_rollouts

__all__ = [
    "Counts",
    "Estimate",
    "Estimator",
    "Exact",
    "ExactOracle",
    "RandomResets",
    "Run",
    "Sampled",
    "SoftOracle",
    "Step",
    "Stopped",
    "StoppingRule",
    "Variant",
    "greedy_near",
    "run",
    "step",
]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """What was spent. A cheap trial is one reset; an oracle query, if asked, goes with it; a Q-rollout runs to H."""

    q_rollouts: int = 0
    cheap_trials: int = 0
    oracle_queries: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.q_rollouts + other.q_rollouts,
            self.cheap_trials + other.cheap_trials,
            self.oracle_queries + other.oracle_queries,
        )


class Variant(Protocol):
    """Where Algorithm 1 resets and updates. `step_scale` is the c of its step size."""

    @property
    def step_scale(self) -> float: ...

    @property
    def asks_oracle(self) -> bool: ...

    def acceptance(self, E: Evaluation) -> Float:
        """g [H, X] in [0, 1], for the policy that `E` evaluates."""
        ...


@dataclass(frozen=True)
class RandomResets:
    """CPI-RR: every state is accepted, and updated."""

    step_scale: float = 1.0
    asks_oracle: bool = False

    def acceptance(self, E: Evaluation) -> Float:
        return np.ones(E.d.shape)


@dataclass(frozen=True)
class ExactOracle:
    """CPI-CARO: states of the improvable set G at threshold tau are accepted, and updated."""

    tau: float
    step_scale: float = 2.0
    asks_oracle: bool = True

    def acceptance(self, E: Evaluation) -> Float:
        return improvable_set(E.A, self.tau).astype(np.float64)


@dataclass(frozen=True)
class SoftOracle:
    """CPI-CARO with an oracle of recall kappa and precision rho, constant on G and off G.

    It accepts with probability kappa on G and kappa p (1 - rho) / (rho (1 - p)) off G, p being the coverage of the
    current policy. A precision so low that this exceeds one is out of reach and is capped at accepting everything
    off G; at rho = 1 and kappa = 1 it is the exact oracle.
    """

    tau: float
    kappa: float
    rho: float
    step_scale: float = 2.0
    asks_oracle: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.kappa <= 1 and 0 < self.rho <= 1):
            raise MDPError(f"kappa and rho must lie in (0, 1], got {self.kappa} and {self.rho}")

    def acceptance(self, E: Evaluation) -> Float:
        G = improvable_set(E.A, self.tau)
        p = float(coverage(E.d, G).p)
        off = 0.0 if p in (0.0, 1.0) else self.kappa * p * (1 - self.rho) / (self.rho * (1 - p))
        return np.where(G, self.kappa, min(off, 1.0))


@dataclass(frozen=True)
class Estimate:
    """pihat+ [H, X, Y], Ahat, the share of resets that the oracle accepted, and the cost."""

    pi_plus: Float
    Ahat: float
    acceptance: float
    counts: Counts


class Estimator(Protocol):
    """Steps 1 to 4."""

    def estimate(
        self, mdp: FiniteMDP, pi: Float, E: Evaluation, g: Float, asks_oracle: bool, rng: np.random.Generator
    ) -> Estimate:
        """Raises NothingAcceptedError if the oracle g [H, X] accepts too little."""
        ...


@dataclass(frozen=True)
class Sampled:
    """n Q-rollouts and least squares over F. Of the exact evaluation `E` it uses the state laws, to sample resets."""

    n: int
    F: FunctionClass
    max_trials: int = 10_000_000

    def __post_init__(self) -> None:
        if self.n < 1:
            raise MDPError(f"n must be at least 1, got {self.n}")

    def estimate(
        self, mdp: FiniteMDP, pi: Float, E: Evaluation, g: Float, asks_oracle: bool, rng: np.random.Generator
    ) -> Estimate:
        draws = CreditSampler(E.d, g, self.max_trials).draw(self.n, rng)
        h_N, x_N, y_N = draws.h_N, draws.x_N, rng.integers(mdp.Y, size=self.n)
        Qhat = self.F.fit(h_N, x_N, y_N, q_rollouts(mdp, pi, h_N, x_N, y_N, rng))
        pi_plus = greedy_near(Qhat, pi)
        Ahat = float(np.mean(mdp.Y * ((pi_plus - pi) * Qhat)[h_N, x_N, y_N]))
        counts = Counts(draws.q_rollouts, draws.cheap_trials, draws.cheap_trials if asks_oracle else 0)
        return Estimate(pi_plus, Ahat, self.n / draws.cheap_trials, counts)


@dataclass(frozen=True)
class Exact:
    """The limit of many samples: pihat+ is greedy in A, Ahat = E[A(x, pi+) | accepted]. Costs nothing, knows all."""

    def estimate(
        self, mdp: FiniteMDP, pi: Float, E: Evaluation, g: Float, asks_oracle: bool, rng: np.random.Generator
    ) -> Estimate:
        pi_plus = greedy_near(E.A, pi)
        Ahat = float((credit_law(E.d, g) * (pi_plus * E.A).sum(axis=-1)).sum())
        return Estimate(pi_plus, Ahat, float(coverage(E.d, g).p), Counts())


def greedy_near(Q: ArrayLike, pi: Float) -> Float:
    """The greedy policy of Q nearest to pi: of the best actions those that pi plays, if any; else the first."""
    Q = np.asarray(Q, dtype=np.float64)
    kept = np.where(Q.max(axis=-1, keepdims=True) == Q, pi, 0.0)
    mass = kept.sum(axis=-1, keepdims=True)
    return np.where(mass > 0, kept / np.where(mass > 0, mass, 1.0), greedy(Q))


@dataclass(frozen=True)
class Step:
    """One step: the new policy, the step size, and what they came from. `before` evaluates the old policy exactly."""

    pi: Float
    alpha: float
    estimate: Estimate
    g: Float
    before: Evaluation


def step(mdp: FiniteMDP, pi: ArrayLike, variant: Variant, estimator: Estimator, rng: np.random.Generator) -> Step:
    """One step of Algorithm 1. Raises NothingAcceptedError if the oracle accepts too little."""
    policy = check_policy(mdp, pi)
    E = evaluate(mdp, policy)
    g = variant.acceptance(E)
    estimate = estimator.estimate(mdp, policy, E, g, variant.asks_oracle, rng)
    alpha = min(1.0, max(0.0, estimate.Ahat) / (variant.step_scale * mdp.H**2 * mdp.R_max))
    new = mixture(policy, soft_mixture(policy, estimate.pi_plus, g), alpha) if alpha > 0 else policy
    return Step(new, alpha, estimate, g, E)


class Stopped(StrEnum):
    """Why a run ended."""

    NO_IMPROVEMENT = "the estimated improvement was at most tol for `patience` steps in a row"
    NOTHING_ACCEPTED = "the oracle accepted (almost) nothing"
    COVERAGE = "the oracle's acceptance rate fell to the goal"
    MAX_STEPS = "max_steps were taken"


@dataclass(frozen=True)
class StoppingRule:
    """When to end. Only `max_steps` ends a run that has not converged.

    tol, patience: end once Ahat <= tol in `patience` steps in a row. A sampled Ahat can be unlucky: raise patience.
    acceptance_goal: end once the measured acceptance rate q (of an exact oracle: the coverage p_pi) is at most this;
    0 leaves that to the oracle that accepts nothing.
    """

    max_steps: int = 1000
    tol: float = 0.0
    patience: int = 1
    acceptance_goal: float = 0.0

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.patience < 1:
            raise MDPError(f"max_steps and patience must be at least 1, got {self.max_steps} and {self.patience}")


@dataclass(frozen=True)
class Run:
    """What a run did. J has one entry more than there were steps: J[t] before step t (exact), J[-1] at the end."""

    pi: Float
    J: Float
    alpha: Float
    Ahat: Float
    acceptance: Float
    counts: Counts
    stopped_because: Stopped

    @property
    def steps(self) -> int:
        return int(self.alpha.size)

    @property
    def converged(self) -> bool:
        """Whether the run ended by itself and not at max_steps."""
        return self.stopped_because is not Stopped.MAX_STEPS


def run(
    mdp: FiniteMDP,
    pi: ArrayLike,
    variant: Variant,
    estimator: Estimator,
    rng: np.random.Generator,
    rule: StoppingRule | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Run:
    """Steps of Algorithm 1 from `pi` until `rule` says so. `on_step` sees each step (a progress bar, say)."""
    rule = rule or StoppingRule()
    policy, counts = check_policy(mdp, pi), Counts()
    J: list[float] = []
    trace: list[tuple[float, float, float]] = []
    unlucky, stopped = 0, Stopped.MAX_STEPS
    while len(trace) < rule.max_steps:
        try:
            now = step(mdp, policy, variant, estimator, rng)
        except NothingAcceptedError as error:
            counts += Counts(cheap_trials=error.trials, oracle_queries=error.trials if variant.asks_oracle else 0)
            stopped = Stopped.NOTHING_ACCEPTED
            break
        counts += now.estimate.counts
        J.append(float(now.before.J))
        trace.append((now.alpha, now.estimate.Ahat, now.estimate.acceptance))
        policy = now.pi
        if on_step is not None:
            on_step(now)
        unlucky = unlucky + 1 if now.estimate.Ahat <= rule.tol else 0
        if variant.asks_oracle and now.estimate.acceptance <= rule.acceptance_goal:
            stopped = Stopped.COVERAGE
            break
        if unlucky >= rule.patience:
            stopped = Stopped.NO_IMPROVEMENT
            break
    J.append(float(expected_return(mdp, policy)))
    alpha, Ahat, acceptance = np.array(trace, dtype=np.float64).reshape(-1, 3).T
    return Run(policy, np.array(J), alpha, Ahat, acceptance, counts, stopped)
