"""What a task offers: problems, a verifier, and, where the task knows it, the true first wrong thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llm.rewards.base import Score

__all__ = ["Problem", "Split", "Task", "TaskError"]

Split = Literal["train", "eval"]


class TaskError(ValueError):
    """A task cannot be had as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class Problem:
    """One question. `uid` identifies it across splits and runs; `meta` is the task's own (never shown to the model)."""

    uid: str
    question: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A named source of problems with a verifier."""

    @property
    def name(self) -> str: ...

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """`n` problems of a split, a deterministic function of (split, n, seed); no problem is in both splits.

        Raises TaskError where the split holds fewer than `n`.
        """
        ...

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        """The verifier, on a batch: response i (the whole text, thoughts and all) answers problem i."""
        ...

    @property
    def knows_first_error(self) -> bool:
        """Whether `first_error` has something to say."""
        ...

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        """The 0-based index k of the first wrong thought of a failed response, None where the task does not know."""
        ...
