"""Solutions as thoughts for tasks of reasoning-gym, written from the library's own entry (its metadata).

A teacher writes every number that it works out with the pen (see `llm.tasks.teaching`). Only the final answer is
checked against the library: its scorer gives it the full score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llm.tasks.teaching import Pen

__all__ = ["TEACHERS"]


def _boxed(thoughts: list[str], answer: int) -> list[str]:
    return [*thoughts[:-1], f"{thoughts[-1]} \\boxed{{{answer}}}"]


def chain_sum(metadata: Mapping[str, Any], pen: Pen) -> list[str]:
    r"""Running totals: ``15 - 43 - 75`` is solved by ``1: 15-43=-28`` and ``2: -28-75=-103 \boxed{-103}``."""
    first, *rest = metadata["expression"].split()
    if not rest:
        total = pen(0, int(first))
        return _boxed([f"1: {total}"], total)
    total, thoughts = int(first), []
    for k, (sign, term) in enumerate(zip(rest[::2], rest[1::2], strict=True)):
        before, total = total, pen(k, total + int(term) if sign == "+" else total - int(term))
        thoughts.append(f"{k + 1}: {before}{sign}{term}={total}")
    return _boxed(thoughts, total)


def leg_counting(metadata: Mapping[str, Any], pen: Pen) -> list[str]:
    r"""One kind of animal a thought: its legs, which one has to know, and the running total.

    ``1: 9 ant 9*6=54``   ``2: 3 duck 3*2=6, 54+6=60 \boxed{60}``
    """
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, thoughts = 0, []
    for k, (animal, count) in enumerate(metadata["animals"].items()):
        each = pen(k, ANIMALS[animal])
        legs = pen(k, count * each)
        before, total = total, pen(k, total + legs) if k else legs
        thoughts.append(f"{k + 1}: {count} {animal} {count}*{each}={legs}{f', {before}+{legs}={total}' if k else ''}")
    return _boxed(thoughts, total)


TEACHERS: Mapping[str, Callable[[Mapping[str, Any], Pen], list[str]]] = {
    "chain_sum": chain_sum,
    "leg_counting": leg_counting,
}
"""Teachers by the library's name of the task."""
