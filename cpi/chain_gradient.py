r"""GRPO, RRPO and SRPO on a memoryless chain, exactly: mean and second moment of a prompt's gradient, signal, cost.

The chain is the tabular twin of `llm.tasks.chains` under its verifier "chain": T = `steps` thoughts, of which m =
`hard` ones, at places drawn uniformly for each question, are each right with probability r = `reliability`, whatever
came before; the others always are. A response succeeds iff all its thoughts are right: q = r^m. A hard step is a
softmax over right and wrong; its parameter is one logit z, r = sigmoid(z), so a decision's score d log pi / dz is
1 - r if it is right and -r if it is wrong, and J = prod_j r_j has dJ/dz_j = q (1 - r) at equal reliabilities. (A
softmax table with one logit an action has twice the squares, and the same ratios.) After its first error a response
decides on hard steps of *other* states: their scores have mean zero whatever the outcome, so they add to the second
moment and to nothing else.

One prompt with N trained rollouts contributes

    ghat = (1/N) sum_i A_i (1/T_i) sum_{t own} score_it,

as `cpi.policy_gradient` computes it: T_i counts the thoughts that rollout i took itself, easy ones included, and an
inherited prefix is masked. Everything here is a finite sum, by these steps (docs/theory.md, section 11):

    1. Given the outcomes of a group, its members are iid: a success has score 1 - r on each of the n hard steps ahead,
       a failure has first error j with probability r^(j-1) (1 - r) / (1 - r^n), score 1 - r before j and -r at j. So
       the group's mean and second moment are functions of its number s of successes; advantages are functions of s.
    2. A reset group is a group with T - c own thoughts and n = the hard places not before the cut c, if no error was
       kept; with an error in its prefix it fails throughout and gives nothing.
    3. Sum over s, the places of the hard steps [P of them], the seed's first error and the localiser's answer. The
       furthest seed is an order statistic of the answers. A seed from an intact base group is one of its members,
       so base and reset gradients are correlated; the mean of the base group given the seed is used for that.

**Figure of merit.** Let u be the mean of ghat over B prompts, g = grad J. In the quadratic model
J(theta + eta u) = J + eta g.u - eta^2 L |u|^2 / 2 the best step size gains (E g.u)^2 / (2 L E|u|^2), which is the share

    efficiency = (E g.u)^2 / (|g|^2 E|u|^2)   in [0, 1]

of what the exact gradient gains; it does not change if all advantages are rescaled. With one prompt and equal
reliabilities it is S^2 / (m E|ghat|^2), S = sum_j E ghat_j. In the language model questions share their facts: let
each ask for m of F facts, uniformly. Then E u is S / F on every fact, parallel to g, and

    efficiency(B) = B e / (1 + (B - 1) e),   e = (m / F) S^2 / (m E|ghat|^2).

While B e is small, B prompts gain B times what one does, so S^2 / (m E|ghat|^2) *per thought generated* ranks the
methods at equal budgets. When B e is large all directions are right and only the number of updates counts.

**Learning curve.** Adam moves a fact's logit by rate * mean(u_f) / sqrt(mean(u_f^2)), the means over its memory. Here
they are replaced by their expectations, with Adam's weights (`BETAS`) and bias corrections, and all facts by one
number r = sigmoid(z): a recursion in z, one step for the price of B prompts. Without memory, betas (0, 0), a step is
dz = rate * sqrt(efficiency(B)). Assumed: the drift stands for the path (no noise in r), facts stay equal, a mean of
ratios is the ratio of means, one optimiser step a batch, no clipping. `cpi.experiments.shared_facts` trains without
the first three assumptions: mean accuracies then differ by up to .06 where one prompt in ten gives a signal, and by up
to .14 where one in thirty does, in favour of methods with resets; docs/theory.md, section 11, says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import expit, logit

from cpi.advantages import AdvantageEstimator, MeanBaseline, ZScore
from cpi.bounds import base_group_law, expected_rollouts
from cpi.groups import FirstFailure, IntactBase, SeedPolicy, Split

__all__ = [
    "BETAS",
    "FACTS",
    "METHODS",
    "PROMPTS",
    "RATE",
    "UPDATES",
    "WARM_START",
    "Chain",
    "CutLaw",
    "LearningCurve",
    "Moments",
    "NearError",
    "ResetGain",
    "Scheme",
    "UniformCut",
    "learning_curve",
    "moments",
    "predict",
    "reset_gain",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

PROMPTS = 16
"""Prompts a step in the comparisons of the language model."""
UPDATES = 24
"""The budget of a predicted curve: the thoughts of so many steps of GRPO."""
FACTS = 33
"""Hard facts of one family in `llm.tasks.chains`: 3 functions of 11 values."""
BETAS = (0.9, 0.999)
"""Adam's, as the language model is trained."""
RATE = 0.2732
"""Logits a step where gradients carry no noise. The one free number of a curve; it puts the area of GRPO on
chains:steps=8,hard=6,reliability=0.5 at 1/2."""


@dataclass(frozen=True)
class Chain:
    """`steps` thoughts, `hard` of them right with probability `reliability` in (0, 1), the others always.

    places: the hard steps, 0-based, if they are fixed; by default all choices are equally likely.
    """

    steps: int
    hard: int
    reliability: float
    places: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.hard <= self.steps:
            raise ValueError(f"hard must lie in 1..steps = 1..{self.steps}, got {self.hard}")
        if not 0 < self.reliability < 1:
            raise ValueError(f"reliability must lie strictly between 0 and 1, got {self.reliability}")
        if self.places is not None and not (
            len(set(self.places)) == self.hard and set(self.places) <= set(range(self.steps))
        ):
            raise ValueError(f"places must be {self.hard} different steps below {self.steps}, got {self.places}")

    @property
    def q(self) -> float:
        """Probability of success."""
        return float(self.reliability**self.hard)

    @property
    def place_PM(self) -> Int:
        """Every equally likely choice of places, each in increasing order."""
        return _places(self.steps, self.hard) if self.places is None else np.array([sorted(self.places)])

    @property
    def first_error_M(self) -> Float:
        """P(the first error is hard step j | the response fails)."""
        r = self.reliability
        return np.asarray(r ** np.arange(self.hard) * (1 - r) / (1 - self.q))


@lru_cache(maxsize=64)
def _places(steps: int, hard: int) -> Int:
    return np.array(list(combinations(range(steps), hard)))


class CutLaw(Protocol):
    """A localiser that gives one answer a seed."""

    def __call__(self, place_PM: Int, steps: int) -> Float:
        """P(the answer is to keep c thoughts | places, first error at hard step j): [P, M, T]."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class NearError:
    """The first error with probability `exact`, else it plus a shift drawn from `shifts`, clipped to the response.

    shifts: pairs (shift, probability). Negative shifts cut too early, positive ones keep the error.
    """

    exact: float = 1.0
    shifts: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        total = sum(weight for _, weight in self.shifts)
        if not 0 <= self.exact <= 1 or (self.exact < 1 and not math.isclose(total, 1)):
            raise ValueError(f"exact must be a probability and shifts must sum to 1, got {self.exact}, {self.shifts}")

    def __call__(self, place_PM: Int, steps: int) -> Float:
        out = self.exact * np.eye(steps)[place_PM]
        for shift, weight in self.shifts:
            out += (1 - self.exact) * weight * np.eye(steps)[np.clip(place_PM + shift, 0, steps - 1)]
        return np.asarray(out)


@dataclass(frozen=True)
class UniformCut:
    """Each thought alike, whatever the error: RRPO."""

    def __call__(self, place_PM: Int, steps: int) -> Float:
        return np.full((*place_PM.shape, steps), 1.0 / steps)


WARM_START = NearError(0.83, ((-1, 0.56), (1, 0.44)))
"""About the self-localiser of the embedded model at its warm start: exact .83, clean .925."""


@dataclass(frozen=True)
class Scheme:
    """Algorithm 2 with its choices, as `cpi.groups.Plan` has them, and an estimator of advantages.

    length: a rollout's scores are divided by T_i, the number of its own thoughts (the paper), or by T, that of the
    whole response, as `llm.objective.length_factor` has it.

    There are exact moments for splits without reset groups; `FirstFailure` with at most one base group and one or two
    reset groups (two: without a base group, not with `UniformCut`, whose two cuts of one seed would have to differ);
    `IntactBase` without scouts, with one base and one reset group.
    """

    split: Split
    cuts: CutLaw = field(default_factory=NearError)
    seeds: SeedPolicy = field(default_factory=FirstFailure)
    estimator: AdvantageEstimator = field(default_factory=lambda: ZScore(ddof=0, eps=0.0))
    length: Literal["own", "whole"] = "own"

    def check_exact(self) -> None:
        """Raises ValueError where there are no exact moments."""
        shape = (len(self.split.base), len(self.split.reset))
        two = isinstance(self.cuts, NearError) and self.seeds == FirstFailure() and shape == (0, 2)
        first = self.seeds == FirstFailure() and shape in ((0, 1), (1, 1))
        intact = isinstance(self.seeds, IntactBase) and self.seeds.scouts == 0 and shape == (1, 1)
        if shape[1] and not (two or first or intact):
            raise ValueError(f"no exact moments for {self.split} with {self.seeds} and {self.cuts}")


@dataclass(frozen=True)
class Moments:
    """One prompt's gradient estimate and what it costs, in expectation.

    mean_M: E ghat on the logit of each hard step, in order of place. square: E|ghat|^2. signal: P(some group of the
    prompt has rewards that differ), which is P(ghat != 0). thoughts, rollouts: all that is sampled, discarded seeds
    included.
    """

    mean_M: Float
    square: float
    signal: float
    thoughts: float
    rollouts: float

    @property
    def total(self) -> float:
        """S, the sum of E ghat over the hard steps."""
        return float(self.mean_M.sum())

    @property
    def variance(self) -> float:
        """E|ghat - E ghat|^2."""
        return float(self.square - self.mean_M @ self.mean_M)

    @property
    def efficiency(self) -> float:
        """The figure of merit of one prompt, S^2 / (m E|ghat|^2) in [0, 1]; 0 if there is never a signal."""
        return self.total**2 / (self.mean_M.size * self.square) if self.square > 0 else 0.0

    def batch_efficiency(self, prompts: int, facts: int) -> float:
        """The same for the mean over `prompts` questions that each ask for hard facts out of `facts`."""
        if facts < self.mean_M.size:
            raise ValueError(f"facts must be at least hard = {self.mean_M.size}, got {facts}")
        e = self.mean_M.size / facts * self.efficiency
        return prompts * e / (1 + (prompts - 1) * e)


# One group ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """Groups of G rollouts with n = 0..m hard steps ahead and s = 0..G successes, before division by T_i.

    law_NS: P(s | n). gain_NS: E sum_i A_i score_ij, the same for each hard step j ahead. square_NS: E|sum_i A_i
    score_i|^2. alpha_S, beta_S: the advantage of a success, and minus that of a failure.
    """

    law_NS: Float
    gain_NS: Float
    square_NS: Float
    alpha_S: Float
    beta_S: Float
    varied_S: Float


def _weights(G: int, estimator: AdvantageEstimator) -> tuple[Float, Float]:
    """(alpha_S, beta_S) of `_Groups`, by asking the estimator."""
    rewards_SG = (np.arange(G) < np.arange(G + 1)[:, None]).astype(np.float64)
    A_SG = estimator(rewards_SG)
    s = np.arange(G + 1)
    return np.where(s > 0, A_SG[:, 0], 0.0), np.where(s < G, -A_SG[:, -1], 0.0)


def _binomial(G: int, q_N: Float) -> Float:
    """P(s of G succeed): [..., G + 1] for q [...]."""
    s = np.arange(G + 1)
    ways = np.array([math.comb(G, int(k)) for k in s], dtype=np.float64)
    return np.asarray(ways * q_N[..., None] ** s * (1 - q_N[..., None]) ** (G - s))


def _groups(chain: Chain, G: int, estimator: AdvantageEstimator) -> _Groups:
    r, n_N = chain.reliability, np.arange(chain.hard + 1, dtype=np.float64)[:, None]
    q_N = r**n_N
    fails_N = np.where(n_N > 0, 1 - q_N, 1.0)  # without a hard step ahead nothing fails, and no failure is weighed
    s, f = np.arange(G + 1), G - np.arange(G + 1)
    alpha, beta = _weights(G, estimator)
    right = 1 - r  # a success's score on each hard step
    wrong_N = -q_N * right / fails_N  # a failure's mean score on each: the mean over all rollouts is 0
    spread_N = n_N * right * (r - q_N * right) / fails_N  # E|score|^2 of a failure: n r (1 - r) over all rollouts
    gain = s * alpha * right - f * beta * wrong_N
    square = n_N * ((s * alpha * right) ** 2 - 2 * s * alpha * right * f * beta * wrong_N)
    square = square + beta**2 * (f * spread_N + f * (f - 1) * n_N * wrong_N**2)
    law = _binomial(G, q_N[:, 0])
    live = n_N > 0
    varied = ((s > 0) & (f > 0)).astype(np.float64)
    return _Groups(law, np.where(live, gain, 0.0), np.where(live, square, 0.0), alpha, beta, varied)


# Resets -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Resets:
    """One reset group after each clean cut c, for each choice of places.

    ahead_PMT: hard step j is at or after the cut; for the seed's first error j it says that the cut is clean. mean_PT:
    E[D_r] on each hard step ahead, D_r = sum_i A_i score_i / T_i. square_PT: E|D_r|^2. varied_PT: P(rewards differ).
    """

    answers_PMT: Float
    ahead_PMT: Float
    mean_PT: Float
    square_PT: Float
    varied_PT: Float
    own_T: Float

    def given(self, law_PMT: Float) -> tuple[Float, Float, Float, Float]:
        """(mean_PM, square_P, varied_P, own thoughts of a rollout_P), for the law of (first error, cut) of the seed."""
        clean_PT = (law_PMT * self.ahead_PMT).sum(axis=1)
        mean_PM = (self.ahead_PMT * (clean_PT * self.mean_PT)[:, None, :]).sum(axis=-1)
        own_P = (law_PMT.sum(axis=1) * self.own_T).sum(axis=-1)
        return mean_PM, (clean_PT * self.square_PT).sum(-1), (clean_PT * self.varied_PT).sum(-1), own_P


@lru_cache(maxsize=64)
def _answers(chain_shape: tuple[int, int, tuple[int, ...] | None], cuts: CutLaw) -> tuple[Float, Float]:
    """(answers_PMT, ahead_PMT): they do not depend on the reliability."""
    steps, hard, places = chain_shape
    place_PM = Chain(steps, hard, 0.5, places).place_PM
    return cuts(place_PM, steps), (np.arange(steps) <= place_PM[:, :, None]).astype(np.float64)


def _resets(chain: Chain, G: int, scheme: Scheme) -> _Resets:
    answers, ahead = _answers((chain.steps, chain.hard, chain.places), scheme.cuts)
    table = _groups(chain, G, scheme.estimator)
    n_PT = ahead.sum(axis=1).astype(np.int64)
    own = chain.steps - np.arange(chain.steps, dtype=np.float64)

    def expected(value_NS: Float) -> Float:
        return np.asarray((table.law_NS * value_NS).sum(axis=-1)[n_PT])

    varied = expected(np.broadcast_to(table.varied_S, table.law_NS.shape))
    length = own if scheme.length == "own" else float(chain.steps)
    mean, square = expected(table.gain_NS) / length, expected(table.square_NS) / length**2
    return _Resets(answers, ahead, mean, square, varied, own)


def _score_MM(chain: Chain) -> Float:
    """Score on hard step i of a failure with first error j, other states left out: [j, i]."""
    right = np.tri(chain.hard, k=-1) * (1 - chain.reliability)
    return np.asarray(right - chain.reliability * np.eye(chain.hard))


def _uniform_seed(chain: Chain, resets: _Resets, f: int) -> tuple[Float, Float]:
    """(law_PMT of the seed, others_PTM: the expected sum of the other failures' scores), f failures."""
    law = chain.first_error_M[:, None] * resets.answers_PMT
    other = -chain.q * (1 - chain.reliability) / (1 - chain.q)
    P, M, T = law.shape
    return law, np.full((P, T, M), (f - 1) * other)


def _furthest_seed(chain: Chain, resets: _Resets, f: int) -> tuple[Float, Float]:
    """The same for the failure with the latest answer, ties broken at random.

    Given that the latest of f answers is c, the number K of failures that gave it has mean f w_c F_c^(f-1) / (F_c^f -
    F_{c-1}^f), with w the law and F the distribution function of one answer; those K, the seed among them, are iid
    given the answer c, the other f - K given an earlier one.
    """
    one_PMT = chain.first_error_M[:, None] * resets.answers_PMT
    w_PT = one_PMT.sum(axis=1)
    F_PT = np.cumsum(w_PT, axis=1)
    before_PT = np.concatenate([np.zeros((len(F_PT), 1)), F_PT[:, :-1]], axis=1)
    latest_PT = F_PT**f - before_PT**f
    scores_PTM = one_PMT.transpose(0, 2, 1) @ _score_MM(chain)  # of a failure, times the law of its answer
    earlier_PTM = np.cumsum(scores_PTM, axis=1) - scores_PTM
    tied_PTM = _ratio(scores_PTM, w_PT[..., None])
    earlier_PTM = _ratio(earlier_PTM, before_PT[..., None])
    K_PT = _ratio(f * w_PT * F_PT ** (f - 1), latest_PT)
    others = (K_PT - 1)[..., None] * tied_PTM + (f - K_PT)[..., None] * earlier_PTM
    return one_PMT * _ratio(latest_PT, w_PT)[:, None, :], others


def _ratio(a: Float, b: Float) -> Float:
    """a / b, 0 where b is 0: the conditional mean of an event that does not happen."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 1e-300)


# Prompts ------------------------------------------------------------------------------------------------------------


def moments(chain: Chain, scheme: Scheme) -> Moments:
    """Exact moments of one prompt's gradient estimate under `scheme`, and its cost.

    Raises ValueError where `Scheme` names none.
    """
    scheme.check_exact()
    if not scheme.split.reset:
        return _plain(chain, scheme)
    if isinstance(scheme.seeds, IntactBase):
        return _intact(chain, scheme, furthest=scheme.seeds.pick == "furthest")
    return _first_failure(chain, scheme) if len(scheme.split.reset) == 1 else _two_resets(chain, scheme)


def _plain(chain: Chain, scheme: Scheme) -> Moments:
    N, T, m = scheme.split.total, chain.steps, chain.hard
    tables = [_groups(chain, G, scheme.estimator) for G in scheme.split.base]
    gains = np.array([t.law_NS[m] @ t.gain_NS[m] for t in tables])
    own = sum(float(t.law_NS[m] @ t.square_NS[m]) for t in tables)
    between = m * (gains.sum() ** 2 - (gains**2).sum())  # different groups are independent
    silent = math.prod(1 - float(t.law_NS[m] @ t.varied_S) for t in tables)
    mean = np.full(m, gains.sum() / (N * T))
    return Moments(mean, float(own + between) / (N * T) ** 2, 1 - silent, float(N * T), float(N))


def _first_failure(chain: Chain, scheme: Scheme) -> Moments:
    """Base group and seed are independent given that there is a seed; without one all rollouts are right."""
    N, T, m, q = scheme.split.total, chain.steps, chain.hard, chain.q
    (G,) = scheme.split.reset
    b = scheme.split.num_base
    seed = 1 - q**N
    resets = _resets(chain, G, scheme)
    mean_PM, square_P, varied_P, own_P = resets.given(chain.first_error_M[:, None] * resets.answers_PMT)
    mean_r, square_r, varied_r = mean_PM.mean(axis=0), float(square_P.mean()), float(varied_P.mean())
    gain_b, square_b, varied_b = 0.0, 0.0, 0.0
    if b:
        law, table = base_group_law(q, b), _groups(chain, b, scheme.estimator)
        gain_b, square_b = float(law @ table.gain_NS[m]) / T, float(law @ table.square_NS[m]) / T**2
        varied_b = float(law @ table.varied_S)
    # a base group with a failure in it has a seed beside it, so its moments need no condition
    square = square_b + seed * square_r + 2 * gain_b * float(mean_r.sum())
    rollouts = expected_rollouts(q, b, G)
    thoughts = T * (rollouts - seed * G) + seed * G * float(own_P.mean())
    signal = varied_b + (seed - varied_b) * varied_r
    return Moments((gain_b + seed * mean_r) / N, square / N**2, signal, thoughts, rollouts)


def _two_resets(chain: Chain, scheme: Scheme) -> Moments:
    """The first two failures are the seeds; if the attempts hold only one, both groups re-enter it at one cut."""
    N, T, q = scheme.split.total, chain.steps, chain.q
    G, other = scheme.split.reset
    if other != G:
        raise ValueError(f"two reset groups must be of one size, got {scheme.split.reset}")
    none, one = q**N, N * q ** (N - 1) * (1 - q)
    two = 1 - none - one
    resets = _resets(chain, G, scheme)
    law = chain.first_error_M[:, None] * resets.answers_PMT
    mean_PM, square_P, varied_P, own_P = resets.given(law)
    apart = 2 * float((mean_PM**2).sum(axis=1).mean())
    clean_PT = (law * resets.ahead_PMT).sum(axis=1)
    same = 2 * float((clean_PT * resets.mean_PT**2 * resets.ahead_PMT.sum(axis=1)).sum(axis=1).mean())
    square = (two + one) * 2 * float(square_P.mean()) + two * apart + one * same
    both_P = (clean_PT * (1 - (1 - resets.varied_PT) ** 2)).sum(axis=1)
    signal = two * float((1 - (1 - varied_P) ** 2).mean()) + one * float(both_P.mean())
    attempts = sum(q**t + (t * q ** (t - 1) * (1 - q) if t else 0.0) for t in range(N))
    rollouts = attempts + (two + one) * N
    thoughts = T * attempts + (two + one) * N * float(own_P.mean())
    return Moments((two + one) * 2 * mean_PM.mean(axis=0) / N, square / N**2, signal, thoughts, rollouts)


def _intact(chain: Chain, scheme: Scheme, furthest: bool) -> Moments:
    """The base group is iid; its failures are the candidates. Without any, all N rollouts form one group."""
    N, T, m = scheme.split.total, chain.steps, chain.hard
    (b,), (G,) = scheme.split.base, scheme.split.reset
    base, resets, score_MM = _groups(chain, b, scheme.estimator), _resets(chain, G, scheme), _score_MM(chain)
    mean, square, signal, thoughts = _all_right(chain, scheme)
    for s in range(b):
        weight, f = float(base.law_NS[m, s]), b - s
        law_PMT, others_PTM = (_furthest_seed if furthest else _uniform_seed)(chain, resets, f)
        mean_PM, square_P, varied_P, own_P = resets.given(law_PMT)
        # the sum of the base group's scores, given the seed, on the hard steps that the reset group moves
        clean_PMT = law_PMT * resets.ahead_PMT
        failures_PTM = clean_PMT.transpose(0, 2, 1) @ score_MM + clean_PMT.sum(axis=1)[..., None] * others_PTM
        right = s * base.alpha_S[s] * (1 - chain.reliability)
        base_PTM = right * clean_PMT.sum(axis=1)[..., None] - base.beta_S[s] * failures_PTM
        cross_P = (base_PTM * resets.ahead_PMT.transpose(0, 2, 1) * resets.mean_PT[..., None]).sum(axis=(1, 2)) / T
        mean = mean + weight * (base.gain_NS[m, s] / T + mean_PM.mean(axis=0))
        square += weight * float((base.square_NS[m, s] / T**2 + square_P + 2 * cross_P).mean())
        signal += weight * float((1 - (1 - base.varied_S[s]) * (1 - varied_P)).mean())
        thoughts += weight * (b * T + G * float(own_P.mean()))
    return Moments(mean / N, square / N**2, signal, thoughts, float(N))


def _all_right(chain: Chain, scheme: Scheme) -> tuple[Float, float, float, float]:
    """The part of `_intact` whose base rollouts are all right: (mean, square, signal, thoughts), times its chance."""
    N, T, m, q = scheme.split.total, chain.steps, chain.hard, chain.q
    b = scheme.split.num_base
    table = _groups(chain, N, scheme.estimator)
    law_S = np.concatenate([np.zeros(b), _binomial(N - b, np.array(q))]) * q**b
    mean = np.full(m, float(law_S @ table.gain_NS[m]) / T)
    return mean, float(law_S @ table.square_NS[m]) / T**2, float(law_S @ table.varied_S), q**b * N * T


# What a reset group gains --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResetGain:
    """A reset group alone over a base group of its size alone, in efficiency a thought: four factors.

    success: suffixes succeed more often, or less if the cut keeps the error; with every hard step credited. decisions:
    only the hard steps ahead are credited. length: rollouts of different length weigh by 1/T_i. thoughts:
    the group generates less.
    """

    success: float
    decisions: float
    length: float
    thoughts: float

    @property
    def product(self) -> float:
        return self.success * self.decisions * self.length * self.thoughts


def reset_gain(chain: Chain, scheme: Scheme) -> ResetGain:
    """The factors of one reset group of `scheme`, given that there is a seed.

    The seed is the first or a uniform failure, or the furthest of an intact base group.
    """
    scheme.check_exact()
    m, T = chain.hard, chain.steps
    G = scheme.split.reset[0]
    resets, table = _resets(chain, G, scheme), _groups(chain, G, scheme.estimator)
    law = _uniform_seed(chain, resets, 1)[0]
    if isinstance(scheme.seeds, IntactBase) and scheme.seeds.pick == "furthest":
        b = scheme.split.num_base
        weights = _binomial(b, np.array(chain.q))[:b] / (1 - chain.q**b)
        law = sum((w * _furthest_seed(chain, resets, b - s)[0] for s, w in enumerate(weights)), np.zeros_like(law))
    n_PT = resets.ahead_PMT.sum(axis=1)
    clean_PT = (law * resets.ahead_PMT).sum(axis=1) / len(law)
    length = resets.own_T if scheme.length == "own" else np.full(T, float(T))
    gain, square = resets.mean_PT * length, resets.square_PT * length**2  # of one hard step, before 1/T_i

    def efficiency(steps_PT: Float, square_PT: Float, weight: Float | float) -> float:
        total = float((clean_PT * gain * steps_PT * weight).sum())
        return total**2 / (m * float((clean_PT * square_PT * weight**2).sum()))

    base_gain, base_square = float(table.law_NS[m] @ table.gain_NS[m]), float(table.law_NS[m] @ table.square_NS[m])
    base = m * base_gain**2 / base_square
    all_credited = efficiency(np.full_like(n_PT, m), _ratio(square * m, n_PT), 1.0)
    credited = efficiency(n_PT, square, 1.0)
    weighed = efficiency(n_PT, square, 1.0 / length)
    own = float((law.sum(axis=1) * resets.own_T).sum()) / len(law)
    return ResetGain(all_credited / base, credited / all_credited, weighed / credited, T / own)


# Methods and predictions --------------------------------------------------------------------------------------------

_ONE_BY_FOUR = Split((4,), (4,))
_EXACT = NearError()

METHODS: Mapping[str, Callable[[CutLaw], Scheme]] = {
    "grpo": lambda own: Scheme(Split((8,), ())),
    "grpo-4+4": lambda own: Scheme(Split((4, 4), ())),
    "grpo-mean": lambda own: Scheme(Split((8,), ()), estimator=MeanBaseline()),
    "rrpo": lambda own: Scheme(_ONE_BY_FOUR, UniformCut()),
    "srpo": lambda own: Scheme(_ONE_BY_FOUR, own),
    "oracle": lambda own: Scheme(_ONE_BY_FOUR, _EXACT),
    "srpo-intact": lambda own: Scheme(_ONE_BY_FOUR, own, IntactBase()),
    "oracle-intact": lambda own: Scheme(_ONE_BY_FOUR, _EXACT, IntactBase()),
    "srpo-furthest": lambda own: Scheme(_ONE_BY_FOUR, own, IntactBase("furthest")),
    "oracle-furthest": lambda own: Scheme(_ONE_BY_FOUR, _EXACT, IntactBase("furthest")),
    "srpo-furthest-mean": lambda own: Scheme(_ONE_BY_FOUR, own, IntactBase("furthest"), MeanBaseline()),
    "oracle-furthest-mean": lambda own: Scheme(_ONE_BY_FOUR, _EXACT, IntactBase("furthest"), MeanBaseline()),
    "srpo-whole": lambda own: Scheme(_ONE_BY_FOUR, own, length="whole"),
    "oracle-whole": lambda own: Scheme(_ONE_BY_FOUR, _EXACT, length="whole"),
    "srpo-furthest-whole": lambda own: Scheme(_ONE_BY_FOUR, own, IntactBase("furthest"), length="whole"),
    "oracle-furthest-whole": lambda own: Scheme(_ONE_BY_FOUR, _EXACT, IntactBase("furthest"), length="whole"),
    "oracle-2x4": lambda own: Scheme(Split((), (4, 4)), _EXACT),
    "oracle-1x8": lambda own: Scheme(Split((), (8,)), _EXACT),
}
"""Methods by their names in configs/compare-*.yaml, where they are there, given the model's own localiser (SRPO)."""

_GRID_Z = np.linspace(-4.0, 8.0, 61)  # logits at which the moments are tabled: reliabilities .018 to .9997


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy r^m along the thoughts generated: points (spent_S, accuracy_S), and its mean up to `budget`."""

    spent_S: Float
    accuracy_S: Float
    budget: float

    @property
    def area(self) -> float:
        """Mean accuracy over the budget, as the language model's comparison measures it."""
        inside = self.spent_S < self.budget
        spent = np.append(self.spent_S[inside], self.budget)
        accuracy = np.append(self.accuracy_S[inside], self.at(self.budget))
        return float(np.trapezoid(accuracy, spent) / self.budget)

    def at(self, spent: float) -> float:
        return float(np.interp(spent, self.spent_S, self.accuracy_S))


@lru_cache(maxsize=1024)
def _table(steps: int, hard: int, scheme: Scheme) -> PchipInterpolator:
    """logs of (S, E|ghat|^2, thoughts a prompt) as functions of the logit."""
    rows = [moments(Chain(steps, hard, float(expit(z))), scheme) for z in _GRID_Z]
    return PchipInterpolator(_GRID_Z, np.log([(row.total, row.square, row.thoughts) for row in rows]))


def learning_curve(
    chain: Chain,
    scheme: Scheme,
    rate: float = RATE,
    betas: tuple[float, float] = BETAS,
    prompts: int = PROMPTS,
    facts: int = FACTS,
) -> LearningCurve:
    """The curve of the module's docstring from the chain's reliability on, up to `UPDATES` steps' thoughts of GRPO.

    Places are taken as random.
    """
    z, table = float(logit(chain.reliability)), _table(chain.steps, chain.hard, scheme)
    if not _GRID_Z[0] <= z < _GRID_Z[-1]:
        raise ValueError(f"a curve starts at a reliability in .02 to .999, got {chain.reliability}")
    budget = float(UPDATES * prompts * 8 * chain.steps)
    spent, accuracy = [0.0], [chain.q]
    memory, weight = np.zeros(2), np.zeros(2)
    while spent[-1] < budget:
        total, square, thoughts = np.exp(table(z))
        first = total / facts  # of one fact, in the mean over the batch
        second = (square / prompts + (1 - 1 / prompts) * total**2 / facts) / facts
        memory = np.array(betas) * memory + (1 - np.array(betas)) * (first, second)
        weight = np.array(betas) * weight + (1 - np.array(betas))
        mean, mean_square = memory / weight
        z = min(z + rate * mean / math.sqrt(mean_square), float(_GRID_Z[-1]))
        spent.append(spent[-1] + prompts * thoughts)
        accuracy.append(float(expit(z)) ** chain.hard)
    return LearningCurve(np.array(spent), np.array(accuracy), budget)


def predict(
    steps: int,
    hard: int,
    reliability: float,
    method: str,
    localiser: CutLaw = WARM_START,
    rate: float = RATE,
    betas: tuple[float, float] = BETAS,
) -> dict[str, float]:
    """What the theory says of `method` (a key of `METHODS`) on the chain; `localiser` serves the srpo methods.

    signal: P(a prompt gives any gradient) at the start. efficiency: of one prompt at the start, in [0, 1];
    efficiency_per_rollout and efficiency_per_thought: divided by what the prompt costs; gain_per_thought: the last
    over that of "grpo", so above 1 a first step is worth more than GRPO's at equal budgets. rollouts, thoughts: cost of
    a prompt at the start, without what a localiser writes. area: mean accuracy over the budget, last: accuracy at its
    end, area_minus_grpo: area less that of "grpo" at the same rate. Raises ValueError for an unknown method or dial.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; choose one of {', '.join(METHODS)}")
    chain, scheme, grpo = Chain(steps, hard, reliability), METHODS[method](localiser), METHODS["grpo"](localiser)
    found, plain = moments(chain, scheme), moments(chain, grpo)
    curve = learning_curve(chain, scheme, rate, betas)
    per_thought = found.efficiency / found.thoughts
    return {
        "signal": found.signal,
        "efficiency": found.efficiency,
        "efficiency_per_rollout": found.efficiency / found.rollouts,
        "efficiency_per_thought": per_thought,
        "gain_per_thought": per_thought / (plain.efficiency / plain.thoughts),
        "rollouts": found.rollouts,
        "thoughts": found.thoughts,
        "area": curve.area,
        "last": curve.at(curve.budget),
        "area_minus_grpo": curve.area - learning_curve(chain, grpo, rate, betas).area,
    }
