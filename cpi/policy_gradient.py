"""Tabular softmax GRPO, RRPO and SRPO: the language model's method where everything is exact.

The policy is pi_h(y|x) = softmax(theta[h, x])_y. A step fills the buffer of Algorithm 2 with `cpi.groups.collect`, the
same code that the language model runs, and ascends

    (1/N) sum_i (1/T_i) sum_k A_i log pi(y_k | x_k),

the sum over the decisions that episode i took itself (its inherited prefix is masked), T_i their number, N the number
of episodes: the per-sequence mean of the paper's loss, averaged over all groups. ``prefix_mask=False`` is the paper's
ablation: the shared prefix is trained on too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from cpi.advantages import AdvantageEstimator, ZScore
from cpi.draws import DrawKey, inverse_cdf, uniforms
from cpi.groups import Account, Group, Phase, Plan, Rollouts, collect, group_advantages
from cpi.mdp import FiniteMDP
from cpi.simulate import TabularEpisode, TabularPrefix, TabularSimulator

__all__ = ["PolicyGradient", "StepResult", "policy_gradient", "step", "train"]


def policy_gradient(
    theta: NDArray[np.float64],
    groups: Sequence[Group[TabularEpisode]],
    advantages: Sequence[NDArray[np.float64]],
    prefix_mask: bool = True,
) -> NDArray[np.float64]:
    """Gradient [H, X, Y] of the objective above with respect to the logits `theta` [H, X, Y]."""
    pi = softmax(theta, axis=-1)
    grad = np.zeros_like(theta)
    episodes = [(e, a) for g, row in zip(groups, advantages, strict=True) for e, a in zip(g.episodes, row, strict=True)]
    for episode, advantage in episodes:
        own = range(episode.start if prefix_mask else 0, episode.num_decisions)
        for h in own:
            x, weight = episode.states[h], advantage / len(own)
            grad[h, x] -= weight * pi[h, x]
            grad[h, x, episode.actions[h]] += weight
    return grad / len(episodes)


@dataclass(frozen=True)
class PolicyGradient:
    """The settings of a run: Algorithm 2's plan, the advantages, and plain gradient ascent.

    make_plan receives the current policy pi [H, X, Y], because an exact oracle depends on it. prompts: start states
    drawn from mu per step.
    """

    make_plan: Callable[[NDArray[np.float64]], Plan]
    estimator: AdvantageEstimator = field(default_factory=lambda: ZScore(ddof=0, eps=0.0))
    learning_rate: float = 1.0
    prompts: int = 32
    prefix_mask: bool = True


@dataclass(frozen=True)
class StepResult:
    """One step: the new logits, the buffer, its advantages and what it cost."""

    theta: NDArray[np.float64]
    rollouts: Rollouts[TabularEpisode]
    advantages: list[NDArray[np.float64]]

    @property
    def account(self) -> Account:
        return self.rollouts.account


def step(mdp: FiniteMDP, theta: NDArray[np.float64], run: PolicyGradient, seed: int, number: int) -> StepResult:
    """One step of the method; all its draws follow from (seed, number)."""
    pi = softmax(theta, axis=-1)
    keys = [DrawKey(seed=seed, step=number, prompt=i) for i in range(run.prompts)]
    u = uniforms([k.at(phase=Phase.START) for k in keys], 1)[:, 0]
    roots = [TabularPrefix.at(int(x)) for x in inverse_cdf(np.broadcast_to(mdp.mu, (len(u), mdp.X)), u)]
    rollouts = collect(TabularSimulator(mdp, pi), roots, keys, run.make_plan(pi))
    advantages = group_advantages(rollouts.groups, run.estimator)
    grad = policy_gradient(theta, rollouts.groups, advantages, run.prefix_mask)
    return StepResult(theta + run.learning_rate * grad, rollouts, advantages)


def train(
    mdp: FiniteMDP, theta: NDArray[np.float64], run: PolicyGradient, steps: int, seed: int
) -> tuple[NDArray[np.float64], list[StepResult]]:
    """`steps` steps from logits `theta`; returns the last logits and every step's result."""
    results = []
    for number in range(steps):
        result = step(mdp, theta, run, seed, number)
        theta = result.theta
        results.append(result)
    return theta, results
