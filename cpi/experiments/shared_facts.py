"""Chains whose hard steps share facts, trained with Adam: what the curves of `cpi.chain_gradient` leave out.

A question draws its places and, for each hard step, another one of F facts. Fact f is known with probability
sigmoid(z_f); after its first error a response asks for facts at random. Rollouts are collected by `cpi.groups`, as
everywhere; Adam moves every z_f by itself. So the noise of the steps, unequal facts and Adam's true ratios are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from cpi.chain_gradient import BETAS, FACTS, PROMPTS, RATE, UPDATES, Chain, CutLaw, LearningCurve, Scheme
from cpi.draws import DrawKey, uniforms
from cpi.groups import Phase, Plan, Rollouts, collect, group_advantages
from cpi.resets import Cost, ResetSampler

__all__ = ["Checker", "FactEpisode", "FactPrefix", "FactSimulator", "accuracy", "draw_step", "gradient", "train_facts"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
ADAM_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class FactPrefix:
    """The first k thoughts of a response. asked_T: the question's fact at each step, -1 where it is easy.

    fact_K, right_K: the facts that the response has asked for, and whether it had them right.
    """

    asked_T: Int
    fact_K: Int
    right_K: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FactEpisode:
    """A finished response (a `cpi.episodes.Episode`)."""

    asked_T: Int
    fact_T: Int
    right_T: NDArray[np.bool_]
    start: int
    key: DrawKey

    @property
    def num_decisions(self) -> int:
        return self.asked_T.size

    @property
    def outcome(self) -> float:
        return float(self.right_T.all())

    @property
    def generated(self) -> int:
        return self.num_decisions - self.start

    def prefix(self, k: int) -> FactPrefix:
        return FactPrefix(self.asked_T, self.fact_T[:k], self.right_T[:k])


@dataclass(frozen=True, eq=False)
class FactSimulator:
    """Responses of a policy that knows fact f with probability known_F[f]."""

    known_F: Float

    def continue_from(self, prefixes: Sequence[FactPrefix], keys: Sequence[DrawKey]) -> list[FactEpisode]:
        asked_NT = np.array([p.asked_T for p in prefixes])
        N, T = asked_NT.shape
        fact_NT, right_NT = asked_NT.copy(), np.ones((N, T), dtype=np.bool_)
        start_N = np.array([p.fact_K.size for p in prefixes])
        for i, p in enumerate(prefixes):
            fact_NT[i, : start_N[i]], right_NT[i, : start_N[i]] = p.fact_K, p.right_K
        u_N2T = uniforms(keys, 2 * T)
        on_path_N = np.ones(N, dtype=np.bool_)
        for t in range(T):
            own, hard = start_N <= t, asked_NT[:, t] >= 0
            elsewhere = own & hard & ~on_path_N
            fact_NT[elsewhere, t] = (u_N2T[elsewhere, T + t] * self.known_F.size).astype(np.int64)
            drawn = u_N2T[:, t] < self.known_F[fact_NT[:, t]]
            right_NT[:, t] = np.where(own, drawn | ~hard, right_NT[:, t])
            on_path_N &= right_NT[:, t]
        rows = zip(asked_NT, fact_NT, right_NT, start_N, keys, strict=True)
        return [FactEpisode(a, f, r, int(s), k) for a, f, r, s, k in rows]


@dataclass(frozen=True)
class _Answers:
    """A localiser as a reset sampler: one answer a seed, drawn from a `CutLaw`."""

    cuts: CutLaw
    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes: Sequence[FactEpisode]) -> list[Float]:
        u_N = uniforms([e.key.at(phase=Phase.LOCALISE) for e in episodes], 1)[:, 0]
        rows = []
        for e, u in zip(episodes, u_N, strict=True):
            places = np.flatnonzero(e.asked_T >= 0)
            law_MT = self.cuts(places[None, :], e.num_decisions)[0]
            row = law_MT[np.searchsorted(places, int((~e.right_T).argmax()))]
            rows.append(np.eye(row.size)[min(np.searchsorted(np.cumsum(row), u, side="right"), row.size - 1)])
        return rows


@dataclass(frozen=True)
class Checker:
    """A localiser with blind spots, as the embedded language model is taught to be one (`llm.tiny.recipe`).

    It recomputes each thought and names the first that disagrees, or the last if none does. About the `blind` facts it
    is mistaken itself: it passes what is wrong there and objects to what is right. An answer costs as many tokens as
    `thoughts_per_answer` thoughts; here a token is a thought.
    """

    blind: frozenset[int]
    thoughts_per_answer: int = 0
    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes: Sequence[FactEpisode]) -> list[Float]:
        self.spent.localisation_calls += len(episodes)
        self.spent.localisation_tokens += self.thoughts_per_answer * len(episodes)
        rows = []
        for e in episodes:
            objects_T = e.right_T == np.isin(e.fact_T, list(self.blind))
            k = int(objects_T.argmax()) if objects_T.any() else e.num_decisions - 1
            rows.append(np.eye(e.num_decisions)[k])
        return rows


def accuracy(known_F: Float, hard: int) -> float:
    """P(a question is answered right): the mean of products of `hard` different facts."""
    mean = np.zeros(hard + 1)
    mean[0] = 1.0
    for i, p in enumerate(known_F):  # of the first i facts, the mean over their subsets of each size
        size = np.arange(hard + 1)
        mean[1:] = mean[1:] * np.maximum(i + 1 - size[1:], 0) / (i + 1) + p * mean[:-1] * size[1:] / (i + 1)
    return float(mean[hard])


def _questions(chain: Chain, facts: int, prompts: int, seed: int, step: int) -> list[FactPrefix]:
    """The questions of a step: the same for every method."""
    rng = np.random.default_rng([seed, step])
    out = []
    for _ in range(prompts):
        asked = np.full(chain.steps, -1)
        asked[rng.permutation(chain.steps)[: chain.hard]] = rng.permutation(facts)[: chain.hard]
        out.append(FactPrefix(asked, asked[:0], np.ones(0, dtype=np.bool_)))
    return out


def draw_step(
    known_F: Float,
    chain: Chain,
    scheme: Scheme,
    prompts: int,
    seed: int,
    step: int,
    localiser: ResetSampler[FactEpisode] | None = None,
) -> Rollouts[FactEpisode]:
    """The buffer of one step of a policy that knows fact f with probability known_F[f].

    localiser: where to cut instead of by the law of `scheme`.
    """
    keys = [DrawKey(seed=seed, step=step, prompt=i) for i in range(prompts)]
    plan = Plan(scheme.split, localiser or _Answers(scheme.cuts), scheme.seeds)
    return collect(FactSimulator(known_F), _questions(chain, known_F.size, prompts, seed, step), keys, plan)


def gradient(known_F: Float, rollouts: Rollouts[FactEpisode], scheme: Scheme) -> Float:
    """The mean of ghat over the prompts, [F]."""
    advantages = group_advantages(rollouts.groups, scheme.estimator)
    episodes = rollouts.episodes()
    fact_NT = np.array([e.fact_T for e in episodes])
    right_NT = np.array([e.right_T for e in episodes])
    start_N = np.array([e.start for e in episodes])
    T = fact_NT.shape[1]
    length_N = T - start_N if scheme.length == "own" else np.full(len(episodes), T)
    weight_N = np.concatenate(advantages) / length_N / len(episodes)
    own_NT = (np.arange(T) >= start_N[:, None]) & (fact_NT >= 0)
    out = np.zeros(known_F.size)
    score_NT = weight_N[:, None] * (right_NT - known_F[fact_NT])
    np.add.at(out, fact_NT[own_NT], score_NT[own_NT])
    return out


def train_facts(
    chain: Chain,
    scheme: Scheme,
    seed: int,
    rate: float = RATE,
    betas: tuple[float, float] = BETAS,
    prompts: int = PROMPTS,
    facts: int = FACTS,
    pooled: bool = False,
    localiser: ResetSampler[FactEpisode] | None = None,
) -> LearningCurve:
    """One run, over the budget of `cpi.chain_gradient.learning_curve`; all its draws follow from `seed`.

    localiser: where to cut instead of by the law of `scheme`; what its answers cost is on the budget.
    pooled: Adam divides all facts by one second moment, their mean, as the curve does, and not each by its own.
    """
    z_F = np.full(facts, logit(chain.reliability))
    first_F, second_F = np.zeros(facts), np.zeros(facts)
    budget = float(UPDATES * prompts * 8 * chain.steps)
    spent, reached = [0.0], [accuracy(expit(z_F), chain.hard)]
    while spent[-1] < budget:
        step, known_F = len(spent), expit(z_F)
        rollouts = draw_step(known_F, chain, scheme, prompts, seed, step, localiser)
        g_F = gradient(known_F, rollouts, scheme)
        first_F = betas[0] * first_F + (1 - betas[0]) * g_F
        second_F = betas[1] * second_F + (1 - betas[1]) * g_F**2
        m_F, v_F = first_F / (1 - betas[0] ** step), second_F / (1 - betas[1] ** step)
        scale = np.sqrt(v_F.mean() if pooled else v_F) + ADAM_EPS
        z_F = z_F + rate * m_F / scale
        spent.append(spent[-1] + rollouts.account.all_tokens)
        reached.append(accuracy(expit(z_F), chain.hard))
    return LearningCurve(np.array(spent), np.array(reached), budget)
