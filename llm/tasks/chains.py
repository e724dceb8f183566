r"""Chained look-ups: a value is pushed through a sequence of named functions, one thought a step.

A chain is a start value in Z_11 and a sequence of `steps` function names. Every function is a bijection of Z_11, so
no value absorbs: an error is never repaired by the steps that follow (only a second error could undo it). The
tables are *not* in the question; the model has to know them. `hard` of the steps use functions that the warm start
knows only with probability `reliability`, the others functions that it knows well. A hard step is a state in which a
better action exists, an easy one is not, so hard / steps is the dial of the coverage p.

    question   Push 7 through 1:f2 2:e0 3:f1
    thoughts   1:f2(7)=4   2:e0(4)=9   3:f1(9)=0 \boxed{0}      (each ended by </thought>)

The first error of a response is the first thought that is not the right continuation of the chain *as asked*: a wrong
value, function, number or form. A thought that applies its step rightly to a value that is already wrong is a
consequence, not the origin. It exists exactly, which is why the task is here: the oracle of the theory is computable.

The same in plain English, for pre-trained models: `llm.tasks.words`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cpi.draws import DrawKey, uniforms
from llm.rewards.base import Score
from llm.tasks.base import Problem, TaskError
from llm.tasks.dials import Dials, combination, integer_score, mixed_radix, spec_of
from llm.tasks.teaching import Pen
from llm.thoughts import split_text

__all__ = ["EASY", "FUNCTIONS", "FUNCTIONS_PER_FAMILY", "RELIABILITIES", "VALUES", "Chains"]

VALUES = 11
FUNCTIONS_PER_FAMILY = 3
EASY = "e"
RELIABILITIES: Mapping[float, str] = {0.3: "d", 0.5: "f", 0.7: "g", 0.9: "h"}
"""Hard functions come in families, one for each reliability at warm start; the letter is the family's."""
_TABLE_SEED = 11


def _tables() -> dict[str, tuple[int, ...]]:
    """A random bijection of Z_11 for every function name; a fixed table, the same on every machine."""
    names = [f"{family}{i}" for family in (EASY, *RELIABILITIES.values()) for i in range(FUNCTIONS_PER_FAMILY)]
    order = np.argsort(uniforms([DrawKey(_TABLE_SEED, slot=i) for i in range(len(names))], VALUES), axis=1)
    return {name: tuple(int(y) for y in row) for name, row in zip(names, order, strict=True)}


FUNCTIONS: Mapping[str, tuple[int, ...]] = _tables()
"""``FUNCTIONS[name][x]`` is the value of the function at x."""


@dataclass(frozen=True)
class Chains(Dials):
    """The generated default task. Dials: steps (H, 1..12), hard (0..steps), reliability (0.3, 0.5, 0.7 or 0.9).

    `reliability` names the family of hard functions: the committed checkpoint, and any that `python -m llm.tiny`
    makes, was warm-started to get each fact of that family right with this probability.

    verifier "chain" (the default) passes a response iff every thought of it is right, so a response fails iff it has a
    first error. "answer" looks at the box only: then about one wrong chain in 11 passes by luck, because later
    errors undo earlier ones.
    """

    steps: int = 8
    hard: int = 6
    reliability: float = 0.5
    verifier: str = "chain"

    def __post_init__(self) -> None:
        self.check_counts(self.steps, self.hard)
        if self.reliability not in RELIABILITIES:
            known = ", ".join(map(str, RELIABILITIES))
            raise TaskError(f"reliability must be one of {known}, got {self.reliability}")
        if self.verifier not in ("chain", "answer"):
            raise TaskError(f"verifier must be chain or answer, got {self.verifier!r}")

    @property
    def name(self) -> str:
        return spec_of("chains", self)

    def _size(self) -> int:
        return VALUES * math.comb(self.steps, self.hard) * FUNCTIONS_PER_FAMILY**self.steps

    def _problem(self, index: int) -> Problem:
        places = math.comb(self.steps, self.hard)
        start, rank, *which = mixed_radix(index, VALUES, places, *[FUNCTIONS_PER_FAMILY] * self.steps)
        family = RELIABILITIES[self.reliability]
        marks = combination(rank, self.steps, self.hard)
        return self.problem(start, [f"{family if m else EASY}{i}" for m, i in zip(marks, which, strict=True)])

    @staticmethod
    def problem(start: int, functions: Sequence[str]) -> Problem:
        """The problem of a chain; meta holds `functions` and `values` (start and the value after each step)."""
        values = [start]
        for name in functions:
            values.append(FUNCTIONS[name][values[-1]])
        question = f"Push {start} through " + " ".join(f"{n}:{name}" for n, name in enumerate(functions, 1))
        return Problem(question, question, str(values[-1]), {"functions": tuple(functions), "values": tuple(values)})

    @staticmethod
    def thoughts(functions: Sequence[str], values: Sequence[int]) -> list[str]:
        """A response, right or not, as thoughts: step k takes values[k] to values[k + 1]."""
        steps = [f"{n}:{name}({values[n - 1]})={values[n]}" for n, name in enumerate(functions, 1)]
        return [*steps[:-1], f"{steps[-1]} \\boxed{{{values[-1]}}}"]

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        """1 for a right response (see `verifier`), else 0; `unparsable` where no integer is boxed."""
        return [self._verify(p, text) for p, text in zip(problems, responses, strict=True)]

    def _verify(self, problem: Problem, response: str) -> Score:
        score = integer_score(problem.answer, response)
        lucky = self.verifier == "chain" and self.first_error(problem, split_text(response)) is not None
        return Score(0.0, "wrong") if score.value and lucky else score

    def solution(self, problem: Problem) -> list[str]:
        """The right response, as thoughts."""
        return self.thoughts(problem.meta["functions"], problem.meta["values"])

    def write(self, problem: Problem, pen: Pen) -> list[str]:
        """A response with the pen's values, each step carried on from the value written before it."""
        functions, values = problem.meta["functions"], [problem.meta["values"][0]]
        for k, name in enumerate(functions):
            values.append(pen(k, FUNCTIONS[name][values[-1]]) % VALUES)
        return self.thoughts(functions, values)

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        """The 0-based index of the first thought that is not the right continuation; None if there is none.

        A response that stops too early with right thoughts only has gone wrong in its last thought (which ended it).
        Example: 7 is pushed through f2 (7 -> 4), e0 (4 -> 9), f1 (9 -> 0). The thoughts ``1:f2(7)=4``, ``2:e0(4)=8``,
        ``3:f1(8)=5 \\boxed{5}`` have their first error at index 1; the third is a consequence.
        """
        right = self.solution(problem)
        for k, thought in enumerate(thoughts):
            if k >= len(right) or thought.strip() != right[k]:
                return k
        return None if len(thoughts) == len(right) else max(len(thoughts) - 1, 0)
