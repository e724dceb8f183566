"""The part of the math verifier that runs in a worker process: the only one that imports `math_verify` and SymPy.

Both may evaluate what they read, in time and memory that depend on the text; `llm.rewards.worker` sets the limits.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import Basic, MatrixBase

__all__ = ["compare"]

logging.disable(logging.WARNING)


@lru_cache(maxsize=4096)
def _reference(answer: str) -> tuple[Any, ...]:
    return tuple(_parse(answer))


def _parse(answer: str) -> list[Any]:
    parsed: list[Any] = parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
    return parsed


def compare(request: dict[str, str]) -> str:
    """ "correct", "wrong", or "unparsable" where no mathematical expression could be read from the response."""
    response = _parse(request["response"])
    if not any(isinstance(item, Basic | MatrixBase) for item in response):
        return "unparsable"
    equal = verify(list(_reference(request["reference"])), response, timeout_seconds=None)
    return "correct" if equal else "wrong"
