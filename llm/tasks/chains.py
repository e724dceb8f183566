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

`ChainsWords` is the same chain in plain English, with sums for tables, for pre-trained models.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from cpi.draws import DrawKey, uniforms
from llm.rewards.base import Score
from llm.tasks.base import Problem, Split, TaskError
from llm.thoughts import last_boxed, split_text

__all__ = [
    "EASY",
    "EVAL_SHARE",
    "FUNCTIONS",
    "FUNCTIONS_PER_FAMILY",
    "MAX_STEPS",
    "RELIABILITIES",
    "VALUES",
    "Chains",
    "ChainsWords",
    "split_of",
]

VALUES = 11
MAX_STEPS = 12
FUNCTIONS_PER_FAMILY = 3
EASY = "e"
RELIABILITIES: Mapping[float, str] = {0.3: "d", 0.5: "f", 0.7: "g", 0.9: "h"}
"""Hard functions come in families, one for each reliability at warm start; the letter is the family's."""
EVAL_SHARE = 0.2
_TABLE_SEED = 11


def _tables() -> dict[str, tuple[int, ...]]:
    """A random bijection of Z_11 for every function name; a fixed table, the same on every machine."""
    names = [f"{family}{i}" for family in (EASY, *RELIABILITIES.values()) for i in range(FUNCTIONS_PER_FAMILY)]
    order = np.argsort(uniforms([DrawKey(_TABLE_SEED, slot=i) for i in range(len(names))], VALUES), axis=1)
    return {name: tuple(int(y) for y in row) for name, row in zip(names, order, strict=True)}


FUNCTIONS: Mapping[str, tuple[int, ...]] = _tables()
"""``FUNCTIONS[name][x]`` is the value of the function at x."""


def split_of(question: str) -> Split:
    """The split a question belongs to, by its hash: one question, one split, whatever the seed and the dials."""
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < EVAL_SHARE * 2**64 else "train"


@dataclass(frozen=True)
class _Dials:
    """What both chain tasks share: dials from a spec, and splits."""

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """The task of a spec such as ``chains:steps=8,hard=6``. Raises TaskError on an unknown dial or a bad value."""
        task, _, dials = spec.partition(":")
        kinds: dict[str, Any] = {f.name: type(getattr(cls, f.name)) for f in fields(cls)}
        values: dict[str, Any] = {}
        for dial in filter(None, dials.split(",")):
            name, _, value = dial.partition("=")
            if name not in kinds:
                raise TaskError(f"task {task} has no dial {name!r}; its dials are {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise TaskError(f"dial {name} of task {task} needs a number, got {value!r}") from None
        return cls(**values)

    def _check_counts(self, steps: int, hard: int) -> None:
        if not 1 <= steps <= MAX_STEPS:
            raise TaskError(f"steps must lie in 1..{MAX_STEPS}, got {steps}")
        if not 0 <= hard <= steps:
            raise TaskError(f"hard must lie in 0..steps = 0..{steps}, got {hard}")

    def _size(self) -> int:
        raise NotImplementedError

    def _problem(self, index: int) -> Problem:
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
            if split_of(problem.question) == split:
                found.append(problem)
                if len(found) == n:
                    return found
        raise TaskError(f"the {split} split of this task holds {len(found)} problems, {n} were asked; ask for fewer")


def _spec(task: str, dials: _Dials) -> str:
    return f"{task}:" + ",".join(f"{f.name}={getattr(dials, f.name)}" for f in fields(dials))


def _score(answer: str, response: str) -> Score:
    boxed = last_boxed(response)
    if boxed is None or not re.fullmatch(r"\s*-?[0-9]{1,9}\s*", boxed):
        return Score(0.0, "unparsable")
    return Score(1.0, "correct") if int(boxed) == int(answer) else Score(0.0, "wrong")


def _digits(index: int, *radices: int) -> list[int]:
    """Mixed-radix digits of `index`, least significant first."""
    digits = []
    for radix in radices:
        index, digit = divmod(index, radix)
        digits.append(digit)
    return digits


def _combination(rank: int, n: int, k: int) -> list[bool]:
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


@dataclass(frozen=True)
class Chains(_Dials):
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
        self._check_counts(self.steps, self.hard)
        if self.reliability not in RELIABILITIES:
            known = ", ".join(map(str, RELIABILITIES))
            raise TaskError(f"reliability must be one of {known}, got {self.reliability}")
        if self.verifier not in ("chain", "answer"):
            raise TaskError(f"verifier must be chain or answer, got {self.verifier!r}")

    @property
    def name(self) -> str:
        return _spec("chains", self)

    def _size(self) -> int:
        return VALUES * math.comb(self.steps, self.hard) * FUNCTIONS_PER_FAMILY**self.steps

    def _problem(self, index: int) -> Problem:
        places = math.comb(self.steps, self.hard)
        start, rank, *which = _digits(index, VALUES, places, *[FUNCTIONS_PER_FAMILY] * self.steps)
        family = RELIABILITIES[self.reliability]
        marks = _combination(rank, self.steps, self.hard)
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
        score = _score(problem.answer, response)
        lucky = self.verifier == "chain" and self.first_error(problem, split_text(response)) is not None
        return Score(0.0, "wrong") if score.value and lucky else score

    def solution(self, problem: Problem) -> list[str]:
        """The right response, as thoughts."""
        return self.thoughts(problem.meta["functions"], problem.meta["values"])

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


_STEP_NAME = re.compile(r"\b[Ss]tep\s+[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+")
_RESULT = re.compile(r"=\s*(-?[0-9]+)")
_EASY_TERMS = (1, 2, 3, 10)
_HARD_TERMS = range(12, 100)
_STARTS = range(10, 100)


@dataclass(frozen=True)
class ChainsWords(_Dials):
    """The chain in words, for pre-trained models: easy steps add or take away 1, 2, 3 or 10, hard ones 12..99.

    Each step is a bijection of the integers, and the question says all there is to know. Dials: steps (1..12), hard.
    """

    steps: int = 4
    hard: int = 2

    def __post_init__(self) -> None:
        self._check_counts(self.steps, self.hard)

    @property
    def name(self) -> str:
        return _spec("chains_words", self)

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        r"""1 where the last ``\boxed{}`` holds the answer; `unparsable` where there is none or it is no integer."""
        return [_score(p.answer, text) for p, text in zip(problems, responses, strict=True)]

    def _radices(self) -> tuple[int, int]:
        return 2 * len(_HARD_TERMS), 2 * len(_EASY_TERMS)

    def _size(self) -> int:
        hard, easy = self._radices()
        return len(_STARTS) * math.comb(self.steps, self.hard) * hard**self.hard * easy ** (self.steps - self.hard)

    def _problem(self, index: int) -> Problem:
        hard, easy = self._radices()
        index, rank = divmod(index, math.comb(self.steps, self.hard))
        marks = _combination(rank, self.steps, self.hard)
        start, *which = _digits(index, len(_STARTS), *[hard if m else easy for m in marks])
        sizes = [(_HARD_TERMS if m else _EASY_TERMS)[i // 2] for m, i in zip(marks, which, strict=True)]
        return self.problem(_STARTS[start], [-x if i % 2 else x for x, i in zip(sizes, which, strict=True)])

    @staticmethod
    def problem(start: int, terms: Sequence[int]) -> Problem:
        """The problem of a chain of sums; meta holds `terms` and `values` (start and the value after each step)."""
        values = [start]
        for term in terms:
            values.append(values[-1] + term)
        steps = " ".join(
            f"Step {n}: {'add' if term > 0 else 'subtract'} {abs(term)}." for n, term in enumerate(terms, 1)
        )
        question = f"Start with the number {start}. {steps} What is the number after step {len(terms)}?"
        return Problem(question, question, str(values[-1]), {"terms": tuple(terms), "values": tuple(values)})

    def solution(self, problem: Problem) -> list[str]:
        """A right response, as thoughts."""
        terms, values = problem.meta["terms"], problem.meta["values"]
        steps = [
            f"Step {n}: {values[n - 1]} {'+' if term > 0 else '-'} {abs(term)} = {values[n]}."
            for n, term in enumerate(terms, 1)
        ]
        return [*steps[:-1], f"{steps[-1]} The answer is \\boxed{{{values[-1]}}}"]

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        r"""The index of the first thought that claims a number which the chain does not reach; None if there is none.

        The claims of a thought are the numbers that follow ``=``, or, without one, its last number; ``Step 3`` is a
        name and no number. A claim may restate the value that the chain has reached, or be a value further on (a
        thought may do two steps). A thought without numbers claims nothing. A ``\boxed{}`` before the end of the
        chain is an error. If no thought is wrong and yet there is no answer, the last one is (it ended the response).
        """
        values: tuple[int, ...] = problem.meta["values"]
        reached, boxed = 0, None
        for k, thought in enumerate(thoughts):
            boxed = last_boxed(thought)
            claims = _claims(thought) + ([] if boxed is None else _numbers(boxed) or [None])
            for claim in claims:
                if claim not in values[reached:]:
                    return k
                reached = values.index(claim, reached)
            if boxed is not None and reached < len(values) - 1:
                return k
        return None if boxed is not None else max(len(thoughts) - 1, 0)


def _numbers(text: str) -> list[int | None]:
    return [int(n) for n in _NUMBER.findall(re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", text))]


def _claims(thought: str) -> list[int | None]:
    text = _STEP_NAME.sub("", re.sub(r"\\boxed\s*\{[^{}]*\}", "", thought))
    return [int(n) for n in _RESULT.findall(text)] or _numbers(text)[-1:]
