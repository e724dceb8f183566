r"""Sums and transfers in plain English, for pre-trained models; the first errors are known exactly.

`ChainsWords`, one number pushed through a row of sums:

    question   Start with the number 42. Step 1: add 17. Step 2: subtract 3. What is the number after step 2?
    thoughts   1: 42+17=59   2: 59-3=56 \boxed{56}

`LedgerWords`, transfers between persons, of which one is asked for:

    question   Ann has 42 coins, Ben has 50, Tom has 61. Ann gives Ben 12. Tom gives Ann 3. Ben gives Tom 20. How many
               coins does Ben have now?
    thoughts   1: Ann 42-12=30, Ben 50+12=62   2: Tom 61-3=58, Ann 30+3=33   3: Ben 62-20=42, Tom 58+20=78 \boxed{42}

A transfer says its amount, so nobody's coins depend on what others hold: a wrong amount of a person who is not asked
for can never make the answer wrong. Such an error is *harmless* and is not the first error of a failed response. The
first error is the origin of the failure, a state in which a better thought was to be had and from which sampling anew
helps; thoughts about others are the trivial steps in between (A = 0), however wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm.rewards.base import Score
from llm.tasks.base import Problem, TaskError
from llm.tasks.dials import Dials, combination, integer_score, mixed_radix, spec_of
from llm.tasks.teaching import Pen, solution
from llm.thoughts import last_boxed

__all__ = ["ChainsWords", "LedgerWords"]

_STEP_NAME = re.compile(r"\b[Ss]tep\s+[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+")
_BOX = re.compile(r"\\boxed\s*\{[^{}]*\}")
_RESULT = re.compile(r"=\s*(-?[0-9]+)")
_EASY_TERMS = (1, 2, 3, 10)
_HARD_TERMS = range(12, 100)
_SPACED = re.compile(r"\s*([-+*/^=])\s*")
_SUM = re.compile(r"(?<![0-9.,)*/^x×+-])(-?[0-9]+(?:[+-][0-9]+)+)=(-?[0-9]+)")
_STARTS = range(10, 100)


@dataclass(frozen=True)
class ChainsWords(Dials):
    """The chain in words, for pre-trained models: easy steps add or take away 1, 2, 3 or 10, hard ones 12..99.

    Each step is a bijection of the integers, and the question says all there is to know. Dials: steps (1..12), hard.
    """

    steps: int = 4
    hard: int = 2

    def __post_init__(self) -> None:
        self.check_counts(self.steps, self.hard)

    @property
    def name(self) -> str:
        return spec_of("chains_words", self)

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        r"""1 where the last ``\boxed{}`` holds the answer; `unparsable` where there is none or it is no integer."""
        return [integer_score(p.answer, text) for p, text in zip(problems, responses, strict=True)]

    def _radices(self) -> tuple[int, int]:
        return 2 * len(_HARD_TERMS), 2 * len(_EASY_TERMS)

    def _size(self) -> int:
        hard, easy = self._radices()
        return len(_STARTS) * math.comb(self.steps, self.hard) * hard**self.hard * easy ** (self.steps - self.hard)

    def _problem(self, index: int) -> Problem:
        hard, easy = self._radices()
        index, rank = divmod(index, math.comb(self.steps, self.hard))
        marks = combination(rank, self.steps, self.hard)
        start, *which = mixed_radix(index, len(_STARTS), *[hard if m else easy for m in marks])
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

    def write(self, problem: Problem, pen: Pen) -> list[str]:
        """A response with the pen's values, each step carried on from the value written before it."""
        value, thoughts = problem.meta["values"][0], []
        for k, term in enumerate(problem.meta["terms"]):
            before, value = value, pen(k, value + term)
            thoughts.append(f"{k + 1}: {before}{term:+}={value}")
        return [*thoughts[:-1], f"{thoughts[-1]} \\boxed{{{value}}}"]

    def solution(self, problem: Problem) -> list[str]:
        """A right response, as thoughts."""
        return solution(self, problem)

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        r"""The index of the first thought that claims a number which the chain does not reach; None if there is none.

        The claims of a thought are the numbers that follow ``=``, or, without one, its last number; ``Step 3`` is a
        name and no number. A sum that is not what it says (``42 + 17 = 58``) is an error. A claim may restate the value
        that the chain has reached, or be a value further on (a thought may do two steps). A thought without numbers
        claims nothing. A ``\boxed{}`` before the end of the chain is an error. If no thought is wrong and yet there is
        no answer, the last one is (it ended the response).
        """
        return _first_wrong(problem.meta["values"], thoughts, _claims)


_NAMES = ("Ann", "Ben", "Eve", "Max", "Sam", "Tom")
_COINS = range(40, 100)
_EASY_GIFTS = (1, 2, 3, 10)
_HARD_GIFTS = range(12, 40)
_PERSONS = (2, 3)


@dataclass(frozen=True)
class LedgerWords(Dials):
    """Coins pass between persons, and the question asks for one person's.

    Dials: steps (transfers, 1..12), hard (transfers of 12..39 coins, the others are of 1, 2, 3 or 10), persons (2 or
    3), aside (transfers that do not touch the person asked for; 0 with two persons, below steps). Nobody gives more
    than he has.
    """

    steps: int = 4
    hard: int = 2
    persons: int = 3
    aside: int = 1

    def __post_init__(self) -> None:
        self.check_counts(self.steps, self.hard)
        if self.persons not in _PERSONS:
            raise TaskError(f"persons must be 2 or 3, got {self.persons}")
        if not 0 <= self.aside < self.steps:
            raise TaskError(f"aside must lie in 0..steps-1 = 0..{self.steps - 1}, got {self.aside}")
        if self.aside and self.persons == 2:
            raise TaskError("aside must be 0 with two persons: every transfer touches both")

    @property
    def name(self) -> str:
        return spec_of("ledger_words", self)

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        r"""1 where the last ``\boxed{}`` holds the answer; `unparsable` where there is none or it is no integer."""
        return [integer_score(p.answer, text) for p, text in zip(problems, responses, strict=True)]

    def _people(self) -> list[int]:
        """Radices of names (a choice without repetition), coins and the person asked for."""
        names = [len(_NAMES) - i for i in range(self.persons)]
        return [*names, *[len(_COINS)] * self.persons, self.persons]

    def _size(self) -> int:
        marks = math.comb(self.steps, self.hard) * math.comb(self.steps, self.aside)
        gifts = len(_HARD_GIFTS) ** self.hard * len(_EASY_GIFTS) ** (self.steps - self.hard)
        touching = self.steps - self.aside
        return math.prod(self._people()) * marks * gifts * 2**self.steps * (self.persons - 1) ** touching

    def _problem(self, index: int) -> Problem | None:
        index, hard_rank = divmod(index, math.comb(self.steps, self.hard))
        index, aside_rank = divmod(index, math.comb(self.steps, self.aside))
        hard = combination(hard_rank, self.steps, self.hard)
        aside = combination(aside_rank, self.steps, self.aside)
        radices = self._people()
        for is_hard, is_aside in zip(hard, aside, strict=True):
            radices += [len(_HARD_GIFTS if is_hard else _EASY_GIFTS), 2, 1 if is_aside else self.persons - 1]
        digits = mixed_radix(index, *radices)
        names, coins, (asked, *steps) = digits[: self.persons], digits[self.persons :], digits[2 * self.persons :]
        others = [i for i in range(self.persons) if i != asked]
        transfers = []
        for k, (is_hard, is_aside) in enumerate(zip(hard, aside, strict=True)):
            gift, flipped, which = steps[3 * k : 3 * k + 3]
            pair = others if is_aside else [asked, others[which]]
            giver, taker = reversed(pair) if flipped else pair
            transfers.append((giver, taker, (_HARD_GIFTS if is_hard else _EASY_GIFTS)[gift]))
        return self.problem(_choice(names), [_COINS[c] for c in coins[: self.persons]], asked, transfers)

    @staticmethod
    def problem(
        names: Sequence[str], coins: Sequence[int], asked: int, transfers: Sequence[tuple[int, int, int]]
    ) -> Problem | None:
        """The problem of transfers (giver, taker, coins), persons by index; None where somebody gives what he lacks.

        meta holds `names`, `coins`, `asked`, `transfers`, and `values`: what the person asked for has at the start and
        after each transfer that touches him.
        """
        holds, values = list(coins), [coins[asked]]
        for giver, taker, gift in transfers:
            holds[giver] -= gift
            holds[taker] += gift
            if holds[giver] < 0:
                return None
            if asked in (giver, taker):
                values.append(holds[asked])
        start = ", ".join(
            f"{name} has {n}{' coins' if not i else ''}" for i, (name, n) in enumerate(zip(names, coins, strict=True))
        )
        told = " ".join(f"{names[giver]} gives {names[taker]} {gift}." for giver, taker, gift in transfers)
        question = f"{start}. {told} How many coins does {names[asked]} have now?"
        meta = {"names": tuple(names), "coins": tuple(coins), "asked": asked, "transfers": tuple(transfers)}
        return Problem(question, question, str(values[-1]), {**meta, "values": tuple(values)})

    def write(self, problem: Problem, pen: Pen) -> list[str]:
        """Both new amounts of each transfer, carried on from the amounts written before."""
        meta, holds, thoughts = problem.meta, list(problem.meta["coins"]), []
        for k, (giver, taker, gift) in enumerate(meta["transfers"]):
            sums = []
            for person, sign in ((giver, -1), (taker, 1)):
                before, right = holds[person], holds[person] + sign * gift
                holds[person] = pen(k, right) if person == meta["asked"] else pen.other(right)
                sums.append(f"{meta['names'][person]} {before}{'+' if sign > 0 else '-'}{gift}={holds[person]}")
            thoughts.append(f"{k + 1}: {', '.join(sums)}")
        return [*thoughts[:-1], f"{thoughts[-1]} \\boxed{{{holds[meta['asked']]}}}"]

    def solution(self, problem: Problem) -> list[str]:
        """A right response, as thoughts."""
        return solution(self, problem)

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        r"""The index of the first thought that claims an amount which the person asked for does not come to have.

        A claim about a person is what follows his name up to the next name: the numbers after ``=``, or, without one,
        the last number, and a false sum among them is an error. Sentences ``A gives B 12`` restate the question and
        claim nothing, and so do thoughts about others (see the module: their errors are harmless). As in `ChainsWords`,
        a claim may restate the amount reached or be one further on, a ``\boxed{}`` before the last transfer of the
        person asked for is an error, and if no thought is wrong and yet there is no answer, the last one is.
        """
        names: tuple[str, ...] = problem.meta["names"]
        asked = names[problem.meta["asked"]]
        return _first_wrong(problem.meta["values"], thoughts, lambda thought: _claims_about(asked, names, thought))


def _choice(digits: Sequence[int]) -> list[str]:
    """Names without repetition: each digit counts among the names that are left."""
    left = list(_NAMES)
    return [left.pop(digit) for digit in digits]


def _first_wrong(
    values: Sequence[int], thoughts: Sequence[str], claims_of: Callable[[str], list[int | None]]
) -> int | None:
    """The first thought with a claim, or a box, that is not among the values still to be reached."""
    reached, boxed = 0, None
    for k, thought in enumerate(thoughts):
        boxed = last_boxed(thought)
        for claim in claims_of(_BOX.sub("", thought)) + ([] if boxed is None else _numbers(boxed) or [None]):
            if claim not in values[reached:]:
                return k
            reached = values.index(claim, reached)
        if boxed is not None and reached < len(values) - 1:
            return k
    return None if boxed is not None else max(len(thoughts) - 1, 0)


def _numbers(text: str) -> list[int | None]:
    return [int(n) for n in _NUMBER.findall(re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", text))]


def _claims(text: str) -> list[int | None]:
    """The numbers after ``=``, or only None if one of them is not what its sum gives; without ``=`` the last number."""
    text = _STEP_NAME.sub("", text)
    if any(_sum(terms) != int(claim) for terms, claim in _SUM.findall(_SPACED.sub(r"\1", text))):
        return [None]
    return [int(n) for n in _RESULT.findall(text)] or _numbers(text)[-1:]


def _sum(terms: str) -> int:
    return sum(int(term) for term in re.findall(r"[+-]?[0-9]+", terms))


def _claims_about(asked: str, names: Sequence[str], thought: str) -> list[int | None]:
    name = rf"\b({'|'.join(names)})\b"
    pieces = re.split(name, re.sub(rf"{name}\s+gives\s+{name}\s+[0-9]+", "", thought))
    return [claim for who, text in pairwise(pieces) if who == asked for claim in _claims(text)]
