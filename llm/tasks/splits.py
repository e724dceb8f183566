"""Who may see which question: partitions, deterministic draws, and the refusal of overlaps.

A problem's split depends on its question alone (a hash decides, or the rank of the hash), never on the seed of a run.
The seed only says *which* problems of a split are drawn, and in which order. So a model trained with any seed has seen
no problem of an evaluation with any other.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from llm.tasks.base import Problem, Split, TaskError

__all__ = [
    "FiniteTask",
    "draw",
    "normal_question",
    "partition",
    "question_hash",
    "refuse_overlap",
    "without_duplicates",
]


@runtime_checkable
class FiniteTask(Protocol):
    """A task that holds a fixed number of problems, and says how many."""

    def size(self, split: Split) -> int: ...


def normal_question(question: str) -> str:
    """The question as it is compared: compatibility forms of Unicode and runs of white space made one."""
    return " ".join(unicodedata.normalize("NFKC", question).split())


def question_hash(question: str) -> str:
    """128 bits of BLAKE2b of the normal question, in hexadecimal; the same on every machine."""
    return hashlib.blake2b(normal_question(question).encode(), digest_size=16).hexdigest()


def without_duplicates(problems: Iterable[Problem]) -> list[Problem]:
    """The problems whose question has not come before, in order."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(normal_question(problem.question), problem)
    return list(first.values())


def partition(problems: Iterable[Problem], n_eval: int) -> tuple[list[Problem], list[Problem]]:
    """(train, eval): the `n_eval` problems with the smallest question hashes are for evaluation.

    Duplicates go first. Both lists are ordered by hash, so the order of the rows in a file does not matter.
    """
    ranked = sorted(without_duplicates(problems), key=lambda p: (question_hash(p.question), p.uid))
    return ranked[n_eval:], ranked[:n_eval]


def draw(problems: Sequence[Problem], n: int, seed: int, what: str) -> list[Problem]:
    """`n` of the problems in random order; the first m of them are ``draw(problems, m, seed)``.

    `what` names the split in the TaskError that is raised where there are fewer than `n`.
    """
    if n > len(problems):
        have = f"only {len(problems)} problems" if problems else "no problems"
        raise TaskError(f"{what} has {have}, {n} were asked for: ask for fewer or give more rows")
    order = np.random.default_rng(seed).permutation(len(problems))[: max(n, 0)]
    return [problems[i] for i in order]


def _scored_apart(train: Problem, evaluation: Problem) -> bool:
    """Whether two problems of one question are scored by the two halves of the same split of its tests.

    LiveCodeBench trains and evaluates on the same questions with disjoint tests (see `llm.tasks.livecodebench`). The
    halves of splits by different seeds are not disjoint.
    """
    halves = train.meta.get("tests"), evaluation.meta.get("tests")
    return halves == ("reward", "held-out") and train.meta.get("tests_seed") == evaluation.meta.get("tests_seed")


def refuse_overlap(train: Iterable[Problem], evaluation: Iterable[Problem], what: str = "the tasks") -> None:
    """Raises TaskError if a training question is also an evaluation question, which would make the numbers void.

    For code the question may be the same, and the tests may not.
    """
    seen: dict[str, list[Problem]] = {}
    for p in train:
        seen.setdefault(normal_question(p.question), []).append(p)
    shared = [
        (same[0], p)
        for p in evaluation
        if (same := [t for t in seen.get(normal_question(p.question), []) if not _scored_apart(t, p)])
    ]
    if shared:
        one, other = shared[0]
        by_seed = "tests_seed" in one.meta and "tests_seed" in other.meta
        advice = "use one tests_seed for both" if by_seed else "remove them from the training rows"
        raise TaskError(
            f"{what}: {len(shared)} evaluation question(s) are also training questions (the first: {one.uid} = "
            f"{other.uid}); {advice}"
        )
