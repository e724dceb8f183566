"""First wrong thoughts of a step's failed responses: what its localiser is measured against (`llm.metrics`).

Where the task knows them, it is asked, about all failures and at no cost. Where it does not (benchmarks, code,
reasoning-gym), Monte Carlo values say it of a few seeds every few steps: `ValueLocalizer`'s cut, after which no
continuation has succeeded. These continuations measure and are not trained on, so no method's account holds them; the
metrics count them apart, as ``oracle_rollouts`` and ``oracle_tokens``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cpi.draws import DrawKey
from cpi.groups import Rollouts, failed
from llm.generate import ThoughtSimulator
from llm.localize import ValueLocalizer, true_first_error
from llm.tasks.base import Task
from llm.thoughts import ThoughtTrace

__all__ = ["FirstErrors", "Measuring"]

_OWN_DRAWS = 1
"""Stream of draws: a localiser by value must not be measured against the very continuations that it cut by."""


@dataclass(frozen=True)
class FirstErrors:
    """The 0-based index of a failed response's first wrong thought, None where nobody knows it; and what that cost.

    by_value: the cuts found by Monte Carlo values, by the key of the episode.
    """

    task: Task
    by_value: Mapping[DrawKey, int] = field(default_factory=dict)
    rollouts: int = 0
    tokens: int = 0

    def __call__(self, episode: ThoughtTrace) -> int | None:
        known = true_first_error(self.task, episode)
        return self.by_value.get(episode.key) if known is None else known


@dataclass(frozen=True)
class Measuring:
    """Every `every` steps (0: never) the first `seeds` seeds, with `continuations` from each of their thoughts.

    seeds are of each process; without localisations (GRPO) they are failures, one a prompt, of which only the coverage
    p is told.
    """

    every: int = 0
    seeds: int = 4
    continuations: int = 4

    def __call__(self, simulator: ThoughtSimulator, rollouts: Rollouts[ThoughtTrace], step: int) -> FirstErrors:
        task = simulator.task
        if task.knows_first_error or not self.every or step % self.every:
            return FirstErrors(task)
        failures = [[t for t in ts if failed(t)] for ts in rollouts.fresh]
        seeds = [loc.seed for loc in rollouts.localisations] or [ts[0] for ts in failures if ts]
        chosen = list({t.key: t for t in seeds if t.num_decisions}.values())[: self.seeds]
        oracle = ValueLocalizer(simulator, self.continuations, stream=_OWN_DRAWS)
        rows = oracle.cut_probs(chosen) if chosen else []
        found = {t.key: int(row_K.argmax()) for t, row_K in zip(chosen, rows, strict=True) if row_K.any()}
        return FirstErrors(task, found, oracle.spent.rollouts, oracle.spent.tokens)
