"""Tasks that can write solutions, right ones and wrong ones whose first error is known.

A task writes a solution with a `Pen`: every number that it works out goes through the pen, and all that follows is
carried on from what the pen has written. A pen without a slip writes the right solution; one with a slip writes one
number wrong, so that the thought that holds this number is the first error and everything after it is a consequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from llm.tasks.base import Problem

__all__ = ["Pen", "Teaching", "mistaken", "solution"]

_SLIPS = (1, 2, 3, 10, 20)
"""Sizes of slips: the last digit or the tens; none is a multiple of 11, the modulus of the chain task."""
_HARMLESS_SHARE = 1 / 3


@dataclass
class Pen:
    """Writes the numbers of one solution.

    slip: which number, counted from 0, is written wrong (None: none), and `by` how much. harmless: which of the numbers
    that the answer does not depend on is written wrong besides, by the same amount. thoughts: the thought of each
    number so far; others: how many of the harmless kind there were.
    """

    slip: int | None = None
    by: int = 0
    harmless: int | None = None
    thoughts: list[int] = field(default_factory=list)
    others: int = 0

    def __call__(self, k: int, right: int) -> int:
        """The number as written in thought k; `right` is what the step gives."""
        self.thoughts.append(k)
        return self._slipped(right) if len(self.thoughts) - 1 == self.slip else right

    def other(self, right: int) -> int:
        """A number that the answer does not depend on."""
        self.others += 1
        return self._slipped(right) if self.others - 1 == self.harmless else right

    def _slipped(self, right: int) -> int:
        """Off by `by`, on the side that keeps the sign."""
        wrong = right + self.by
        return wrong if (wrong < 0) == (right < 0) else right - self.by


@runtime_checkable
class Teaching(Protocol):
    """A task that can write a solution of each of its problems."""

    def write(self, problem: Problem, pen: Pen) -> list[str]:
        """A solution as thoughts. No thought starts with a sign: byte pair tokenizers join it to the delimiter."""
        ...


def solution(task: Teaching, problem: Problem) -> list[str]:
    """A right solution, as thoughts."""
    return task.write(problem, Pen())


def mistaken(task: Teaching, problem: Problem, rng: np.random.Generator) -> tuple[list[str], int]:
    """A wrong solution, as thoughts, and the 0-based index of its first error; any number is as likely the wrong one.

    Where the task has numbers that the answer does not depend on, one of them is wrong too in a third of the cases.
    """
    pen = Pen()
    task.write(problem, pen)
    slip = int(rng.integers(len(pen.thoughts)))
    by = int(rng.choice(_SLIPS)) * (1 if rng.random() < 0.5 else -1)
    harmless = int(rng.integers(pen.others)) if pen.others and rng.random() < _HARMLESS_SHARE else None
    return task.write(problem, Pen(slip, by, harmless)), pen.thoughts[slip]
