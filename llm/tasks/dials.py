"""Generated tasks with dials: specs such as ``chains:steps=8``, questions by number, splits by the question's hash."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from llm.rewards.base import Score
from llm.tasks.base import Problem, Split, TaskError
from llm.thoughts import last_boxed

__all__ = ["EVAL_SHARE", "MAX_STEPS", "Dials", "combination", "integer_score", "mixed_radix", "spec_of", "split_of"]

MAX_STEPS = 12
EVAL_SHARE = 0.2
"""Share of all questions that are never trained on."""


def split_of(question: str) -> Split:
    """The split a question belongs to, by its hash: one question, one split, whatever the seed and the dials."""
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < EVAL_SHARE * 2**64 else "train"


@dataclass(frozen=True)
class Dials:
    """What the generated tasks share: dials from a spec, and splits."""

    @property
    def knows_first_error(self) -> bool:
        return True

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """The task of a spec such as ``chains:steps=8,hard=6``.

        Raises TaskError on an unknown dial, one given twice, a bad value, and anything else before the colon.
        """
        task, _, dials = spec.partition(":")
        if not re.fullmatch(r"\w+", task):
            raise TaskError(f"cannot read {spec!r}: dials are written {re.split('[@,]', task)[0]}:NAME=VALUE,...")
        kinds: dict[str, Any] = {f.name: type(getattr(cls, f.name)) for f in fields(cls)}
        values: dict[str, Any] = {}
        for dial in filter(None, dials.split(",")):
            name, _, value = dial.partition("=")
            if name not in kinds:
                raise TaskError(f"task {task} has no dial {name!r}; its dials are {', '.join(kinds)}")
            if name in values:
                raise TaskError(f"dial {name!r} is given twice in {spec!r}")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise TaskError(f"dial {name} of task {task} needs a number, got {value!r}") from None
        return cls(**values)

    @staticmethod
    def check_counts(steps: int, hard: int) -> None:
        """Raises TaskError unless 1 <= steps <= 12 and 0 <= hard <= steps."""
        if not 1 <= steps <= MAX_STEPS:
            raise TaskError(f"steps must lie in 1..{MAX_STEPS}, got {steps}")
        if not 0 <= hard <= steps:
            raise TaskError(f"hard must lie in 0..steps = 0..{steps}, got {hard}")

    def _size(self) -> int:
        raise NotImplementedError

    def _problem(self, index: int) -> Problem | None:
        """The question of a number in 0.._size()-1; None where the number makes no question."""
        raise NotImplementedError

    def _indices(self, rng: np.random.Generator) -> Iterator[int]:
        """All question numbers in random order, without repetition."""
        size = self._size()
        if size <= 100_000:
            yield from (int(i) for i in rng.permutation(size))
            return
        seen: set[int] = set()
        while len(seen) < size:
            index = int.from_bytes(rng.bytes(24), "big") % size
            if index not in seen:
                seen.add(index)
                yield index

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """`n` different problems of a split; the first m of them are those of ``problems(split, m, seed)``.

        Raises TaskError where the split holds fewer than `n` problems at these dials.
        """
        found: list[Problem] = []
        if n <= 0:
            return found
        for index in self._indices(np.random.default_rng(seed)):
            problem = self._problem(index)
            if problem is not None and split_of(problem.question) == split:
                found.append(problem)
                if len(found) == n:
                    return found
        raise TaskError(f"the {split} split of this task holds {len(found)} problems, {n} were asked; ask for fewer")


def spec_of(task: str, dials: Dials) -> str:
    """The spec that makes this task again."""
    return f"{task}:" + ",".join(f"{f.name}={getattr(dials, f.name)}" for f in fields(dials))


def integer_score(answer: str, response: str) -> Score:
    r"""1 where the last ``\boxed{}`` holds the answer; `unparsable` where there is none or it is no integer."""
    boxed = last_boxed(response)
    if boxed is None or not re.fullmatch(r"\s*-?[0-9]{1,9}\s*", boxed):
        return Score(0.0, "unparsable")
    return Score(1.0, "correct") if int(boxed) == int(answer) else Score(0.0, "wrong")


def mixed_radix(index: int, *radices: int) -> list[int]:
    """Mixed-radix digits of `index`, least significant first."""
    digits = []
    for radix in radices:
        index, digit = divmod(index, radix)
        digits.append(digit)
    return digits


def combination(rank: int, n: int, k: int) -> list[bool]:
    """The `rank`-th way to mark k of n places, 0 <= rank < C(n, k)."""
    marks = []
    for place in range(n):
        with_mark = math.comb(n - place - 1, k - 1) if k else 0
        marks.append(rank < with_mark)
        if marks[-1]:
            k -= 1
        else:
            rank -= with_mark
    return marks
