"""Monte Carlo values: the mean outcome of fresh continuations of a prefix, the one unbiased critic that needs no model.

`ValueLocalizer` reads from them where a response was lost, VinePPO and SPO take their differences as advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpi.groups import Phase
from llm.generate import ThoughtSimulator
from llm.thoughts import Prefix, ThoughtTrace

__all__ = ["PrefixValues", "episode_number", "prefix_values"]


def episode_number(episode: ThoughtTrace) -> int:
    """One number for each rollout of a prompt, for the slots of draws about it: phases number their slots alike."""
    return episode.key.slot * len(Phase) + episode.key.phase


@dataclass(frozen=True)
class PrefixValues:
    """Values in the order asked, and the continuations that they cost."""

    values: NDArray[np.float64]
    rollouts: list[ThoughtTrace]

    @property
    def tokens(self) -> int:
        return sum(r.generated for r in self.rollouts)


def prefix_values(
    simulator: ThoughtSimulator,
    states: Sequence[tuple[ThoughtTrace, int]],
    continuations: int,
    cut: Callable[[ThoughtTrace, int], Prefix] = ThoughtTrace.prefix,
    stream: int = 0,
    worth: Callable[[ThoughtTrace], float] = lambda rollout: rollout.outcome,
) -> PrefixValues:
    """V(first k thoughts of episode) for each (episode, k): the mean of `continuations` rollouts, all in one batch.

    worth: what a continuation counts for, its outcome unless said otherwise.

    With ``cut=ThoughtTrace.token_prefix`` k counts tokens. Estimates of different streams (0 or 1) are independent.

    Equal prefixes of one prompt are one state: they share their continuations, and so their value.
    """
    first: dict[tuple[int, tuple[int, ...]], int] = {}
    state_of = []
    prefixes, keys = [], []
    for episode, k in states:
        prefix = cut(episode, k)
        identity = (episode.key.prompt, prefix.thought_ids)
        if identity not in first:
            first[identity] = len(first)
            prefixes += [prefix] * continuations
            first_slot = episode_number(episode) << 32 | stream << 31 | k * continuations
            slots = [first_slot + j for j in range(continuations)]
            keys += [episode.key.at(phase=Phase.VALUE, slot=slot) for slot in slots]
        state_of.append(first[identity])
    rollouts = simulator.continue_from(prefixes, keys)
    means = np.array([worth(r) for r in rollouts]).reshape(-1, continuations).mean(axis=1)
    return PrefixValues(means[state_of], rollouts)
