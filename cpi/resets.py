"""Reset samplers: where to re-enter a finished trajectory.

A sampler answers with a *distribution* over cuts and not with a draw: tabular code pushes it forward exactly, language
model code samples from it. The rows may be sub-stochastic; the missing mass is the probability of *not* resetting this
episode. So rejection sampling is part of the interface: Algorithm 3's credit sampler is a row with weight
O(x_k, k) / H at each k, and drawing from it until something is drawn is the conditioned law.

Start mass at k = 0 is GRPO, a uniform row is random reset (RRPO, CPI-RR), uniform times the oracle's test is
CPI-CARO, a point mass from the model's own answer is SRPO (`llm.localize`).

Two uniform samplers differ when episodes differ in length. `UniformWithinEpisode` picks a decision uniformly in each
episode; that is what RRPO does with a failed seed. `Visitation` weighs every *decision of the batch* alike, which is
the on-policy visitation d_pi that CPI-RR needs. With one episode of one decision and one of two, the decision of the
short one has weight 1/2 under the former and 1/3 under the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cpi.draws import inverse_cdf
from cpi.episodes import Episode

__all__ = [
    "Cost",
    "Noisy",
    "Oracle",
    "ResetSampler",
    "Start",
    "UniformWithinEpisode",
    "Visitation",
    "draw_cuts",
]


EpisodeT_contra = TypeVar("EpisodeT_contra", bound=Episode[Any], contravariant=True)


@dataclass
class Cost:
    """A running account of what answers have cost.

    oracle_queries: tests of one prefix by an oracle; localisation_calls: answers of a localiser; localisation_tokens:
    tokens generated for these answers; rollouts and tokens: continuations sampled in order to localise.
    """

    oracle_queries: int = 0
    localisation_calls: int = 0
    localisation_tokens: int = 0
    rollouts: int = 0
    tokens: int = 0

    def minus(self, earlier: Cost) -> Cost:
        return Cost(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))

    def copy(self) -> Cost:
        return Cost(**vars(self))


class ResetSampler(Protocol[EpisodeT_contra]):
    """Where to re-enter. `spent` is the running cost of all answers given so far."""

    @property
    def spent(self) -> Cost: ...

    def cut_probs(self, episodes: Sequence[EpisodeT_contra]) -> list[NDArray[np.float64]]:
        """For each episode a row over k = 0 .. num_decisions - 1 that sums to at most 1.

        Entry k is the probability of keeping the first k decisions and resampling from there; what is missing from 1
        is the probability of no reset, so a row of zeros says "do not reset here".
        """
        ...


@dataclass(frozen=True)
class Start:
    """Re-enter at the start: G fresh rollouts of the prompt (GRPO)."""

    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes: Sequence[Episode[Any]]) -> list[NDArray[np.float64]]:
        return [np.eye(1, e.num_decisions)[0] for e in episodes]


@dataclass(frozen=True)
class UniformWithinEpisode:
    """Each decision of the episode alike: RRPO's reset of a failed seed. Not d_pi when lengths differ."""

    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes: Sequence[Episode[Any]]) -> list[NDArray[np.float64]]:
        return [np.full(e.num_decisions, 1.0 / max(e.num_decisions, 1)) for e in episodes]


@dataclass(frozen=True)
class Visitation:
    """Each decision of all episodes alike: with `H` the longest possible episode, every k has weight 1/H.

    An episode of n < H decisions is left alone with probability 1 - n/H; conditioned on a reset, (episode, k) follows
    the on-policy visitation. Raises ValueError for an episode longer than H.
    """

    H: int
    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes: Sequence[Episode[Any]]) -> list[NDArray[np.float64]]:
        for e in episodes:
            if e.num_decisions > self.H:
                raise ValueError(f"an episode has {e.num_decisions} decisions, more than H = {self.H}")
        return [np.full(e.num_decisions, 1.0 / self.H) for e in episodes]


@dataclass(frozen=True)
class Oracle:
    """The credit sampler: an underlying sampler's row times the acceptance g in [0, 1] of an oracle's test.

    `accept(episode)` returns g over k = 0 .. num_decisions - 1: 0/1 for the exact credit-assignment oracle, anything
    between for a soft one. With ``renormalise`` the row is conditioned on acceptance (there is always a reset if any
    decision is acceptable); without it a rejected draw stays rejected, which is Algorithm 3 and, over
    `Visitation`, gives the joint condition (h, x) | O = 1 of CPI-CARO.
    """

    accept: Callable[[Any], NDArray[np.float64]]
    base: ResetSampler[Any] = field(default_factory=UniformWithinEpisode)
    renormalise: bool = True
    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes: Sequence[Episode[Any]]) -> list[NDArray[np.float64]]:
        rows = []
        for episode, base_row in zip(episodes, self.base.cut_probs(episodes), strict=True):
            accept = np.asarray(self.accept(episode), dtype=np.float64)
            if accept.shape != base_row.shape or not ((accept >= 0) & (accept <= 1)).all():
                raise ValueError(f"an oracle must give {base_row.size} acceptances in [0, 1], got {accept}")
            row = base_row * accept
            self.spent.oracle_queries += int(np.count_nonzero(base_row))
            mass = row.sum()
            rows.append(row / mass if self.renormalise and mass > 0 else row)
        return rows


@dataclass(frozen=True)
class Noisy:
    """A localiser of chosen quality: right with probability `exact`, else off by a shift drawn from `shift_probs`.

    It moves the mass that `inner` (an exact localiser) puts on k to k + s with probability
    (1 - exact) * shift_probs[s], clipped to the episode. Negative shifts are clean (too early: good prefix is thrown
    away), positive ones keep an error in the prefix. Because of the clipping it is right more often than `exact` where
    a shift leaves the episode: a cut at k = 0 cannot be too early. Its answers cost what `inner` spends on them.
    """

    inner: ResetSampler[Any]
    exact: float
    shift_probs: dict[int, float]

    def __post_init__(self) -> None:
        if not 0.0 <= self.exact <= 1.0:
            raise ValueError(f"exact must be a probability, got {self.exact}")
        if self.exact < 1 and not np.isclose(sum(self.shift_probs.values()), 1.0):
            raise ValueError("shift_probs must sum to 1")

    @property
    def spent(self) -> Cost:
        return self.inner.spent

    def cut_probs(self, episodes: Sequence[Episode[Any]]) -> list[NDArray[np.float64]]:
        rows = []
        for row in self.inner.cut_probs(episodes):
            noisy = self.exact * row
            for shift, weight in self.shift_probs.items():
                target = np.clip(np.arange(row.size) + shift, 0, row.size - 1)
                np.add.at(noisy, target, (1.0 - self.exact) * weight * row)
            rows.append(noisy)
        return rows


def draw_cuts(rows: Sequence[NDArray[np.float64]], u: NDArray[np.float64]) -> list[int]:
    """One cut k per row from uniforms `u` [len(rows)]; -1 where the draw says "no reset"."""
    return [
        int(inverse_cdf(row[None, :], np.asarray([v]))[0]) if row.size else -1 for row, v in zip(rows, u, strict=True)
    ]
