"""What a verifier answers: a score, and how it came about, so that failures of the *verifier* are counted apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Score", "Status", "Verifier"]

Status = Literal["correct", "partial", "wrong", "unparsable", "timeout", "error"]


@dataclass(frozen=True)
class Score:
    """`value` in [0, 1]. `unparsable`: no answer could be read; `timeout`, `error`: the verifier gave up (the value
    is 0, or the share of a program's tests that were passed before)."""

    value: float
    status: Status


class Verifier(Protocol):
    """Scores a batch: response i (whole text) against reference answer i. Bounded time and memory, never raises."""

    def __call__(self, responses: Sequence[str], answers: Sequence[str]) -> list[Score]: ...
