"""Accuracy of a model on held-out problems, greedy and sampled, and the quality of its localiser on its failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cpi.draws import DrawKey
from cpi.groups import Phase, failed
from llm.generate import ThoughtSimulator
from llm.localize import SelfLocalizer, true_first_error
from llm.setup import World
from llm.statistics import wilson
from llm.tasks.base import Problem
from llm.thoughts import ThoughtTrace

__all__ = ["measure", "share"]


def share(successes: int, n: int) -> dict[str, Any] | None:
    """A share with its Wilson interval as JSON, None where there is nothing to count."""
    return {"count": successes, **asdict(wilson(successes, n))} if n else None


def _solve(simulator: ThoughtSimulator, problems: Sequence[Problem], seed: int, slot: int) -> list[ThoughtTrace]:
    keys = [DrawKey(seed=seed, prompt=i, phase=Phase.EVALUATE, slot=slot) for i in range(len(problems))]
    return simulator.continue_from([simulator.root(p) for p in problems], keys)


def measure(world: World, problems: Sequence[Problem], seed: int) -> dict[str, Any]:
    """Greedy and sampled accuracy (one rollout a problem each), and the localiser on the sampled failures.

    readable: the share of the sampled responses that hold an answer, right or wrong; tokens: their mean length.
    The localiser is measured where the task knows the true first error: exact (self = true) and clean (self <= true)
    are shares of all localised failures, an unusable answer counts as neither.
    """
    greedy = _solve(world.at_temperature(0.0), problems, seed, slot=0)
    sampled = _solve(world.simulator, problems, seed, slot=1)
    return {
        "problems": len(problems),
        "greedy": share(sum(not failed(t) for t in greedy), len(greedy)),
        "sampled": share(sum(not failed(t) for t in sampled), len(sampled)),
        "readable": share(sum(t.score.status != "unparsable" for t in sampled), len(sampled)),
        "tokens": sum(t.generated for t in sampled) / max(len(sampled), 1),
        "localiser": _localiser(world, [t for t in sampled if failed(t)]),
    }


def _localiser(world: World, failures: Sequence[ThoughtTrace]) -> dict[str, Any]:
    localizer = world.localizers.self_localizer
    assert isinstance(localizer, SelfLocalizer)
    answers = localizer.answers(failures)
    true = [true_first_error(world.task, t) for t in failures]
    known = [(a.k, k) for a, k in zip(answers, true, strict=True) if k is not None]
    return {
        "failures": len(failures),
        "statuses": dict(Counter(a.status for a in answers)),
        "exact": share(sum(a == k for a, k in known), len(known)),
        "clean": share(sum(a is not None and a <= k for a, k in known), len(known)),
    }
