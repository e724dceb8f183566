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

__all__ = ["counts", "measure", "measured", "share"]


def share(successes: int, n: int) -> dict[str, Any] | None:
    """A share with its Wilson interval as JSON, None where there is nothing to count."""
    return {"count": successes, **asdict(wilson(successes, n))} if n else None


def _solve(
    simulator: ThoughtSimulator, problems: Sequence[Problem], numbers: Sequence[int], seed: int, slot: int
) -> list[ThoughtTrace]:
    keys = [DrawKey(seed=seed, prompt=i, phase=Phase.EVALUATE, slot=slot) for i in numbers]
    return simulator.continue_from([simulator.root(problems[i]) for i in numbers], keys)


def measure(world: World, problems: Sequence[Problem], seed: int) -> dict[str, Any]:
    """Greedy and sampled accuracy (one rollout a problem each), and the localiser on the sampled failures.

    readable: the share of the sampled responses that hold an answer, right or wrong; tokens: their mean length.
    The localiser is measured where the task knows the true first error: exact (self = true) and clean (self <= true)
    are shares of all localised failures, an unusable answer counts as neither.
    """
    return measured(counts(world, problems, range(len(problems)), seed))


def counts(world: World, problems: Sequence[Problem], numbers: Sequence[int], seed: int) -> Counter[str]:
    """What `measured` reads, of the problems `numbers` alone; the parts of several processes add up to the whole."""
    greedy = _solve(world.at_temperature(0.0), problems, numbers, seed, slot=0)
    sampled = _solve(world.simulator, problems, numbers, seed, slot=1)
    found: Counter[str] = Counter()
    found["problems"] = len(numbers)
    found["greedy"] = sum(not failed(t) for t in greedy)
    found["sampled"] = sum(not failed(t) for t in sampled)
    found["readable"] = sum(t.score.status != "unparsable" for t in sampled)
    found["tokens"] = sum(t.generated for t in sampled)
    return found + _localiser(world, [t for t in sampled if failed(t)])


def _localiser(world: World, failures: Sequence[ThoughtTrace]) -> Counter[str]:
    localizer = world.localizers.self_localizer
    assert isinstance(localizer, SelfLocalizer)
    answers = localizer.answers(failures)
    true = [true_first_error(world.task, t) for t in failures]
    known = [(a.k, k) for a, k in zip(answers, true, strict=True) if k is not None]
    found = Counter(f"status/{a.status}" for a in answers)
    found["failures"] = len(failures)
    found["known"] = len(known)
    found["exact"] = sum(a == k for a, k in known)
    found["clean"] = sum(a is not None and a <= k for a, k in known)
    return found


def measured(found: Counter[str]) -> dict[str, Any]:
    """Shares with intervals from the `counts` of all problems."""
    n = found["problems"]
    return {
        "problems": n,
        **{name: share(found[name], n) for name in ("greedy", "sampled", "readable")},
        "tokens": found["tokens"] / max(n, 1),
        "localiser": {
            "failures": found["failures"],
            "statuses": {name.removeprefix("status/"): c for name, c in found.items() if name.startswith("status/")},
            **{name: share(found[name], found["known"]) for name in ("exact", "clean")},
        },
    }
