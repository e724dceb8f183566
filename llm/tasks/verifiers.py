"""Verifiers by name, made when first used: a task says in a problem's meta which one compares its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from llm.rewards.base import Score, Verifier
from llm.tasks.base import Problem, TaskError

__all__ = ["VERIFIERS", "can_read", "named_verifier", "score_by_name"]


def _math() -> Verifier:
    from llm.rewards.math import MathVerifier

    return MathVerifier()


def _choice() -> Verifier:
    from llm.rewards.choice import ChoiceVerifier

    return ChoiceVerifier()


def _yes_no() -> Verifier:
    from llm.rewards.choice import YesNoVerifier

    return YesNoVerifier()


def _text() -> Verifier:
    from llm.rewards.choice import TextVerifier

    return TextVerifier()


def _code() -> Verifier:
    from llm.rewards.code import CodeVerifier

    return CodeVerifier()


VERIFIERS: Mapping[str, Callable[[], Verifier]] = {
    "math": _math,
    "choice": _choice,
    "yes_no": _yes_no,
    "text": _text,
    "code": _code,
}


@cache
def named_verifier(name: str) -> Verifier:
    """The verifier of a name, one object per process (some keep a warm worker)."""
    try:
        return VERIFIERS[name]()
    except RuntimeError as error:  # a sandbox that cannot isolate, in one line
        raise TaskError(f"verifier {name}: {error}") from None


def can_read(name: str, answer: str) -> bool:
    """Whether the verifier can compare a response with this reference answer; if not, every response would score 0."""
    if name == "code":
        from llm.rewards.code import readable

        return readable(answer)
    if name in ("choice", "yes_no"):
        from llm.rewards.choice import letter, yes_or_no

        return (letter if name == "choice" else yes_or_no)(answer) is not None
    return True


def score_by_name(problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
    """Each response by the verifier that its problem names in ``meta["verifier"]``, one batch per verifier."""
    scores = [Score(0.0, "error")] * len(problems)
    for name in dict.fromkeys(p.meta["verifier"] for p in problems):
        rows = [i for i, p in enumerate(problems) if p.meta["verifier"] == name]
        verdicts = named_verifier(name)([responses[i] for i in rows], [problems[i].answer for i in rows])
        for i, score in zip(rows, verdicts, strict=True):
            scores[i] = score
    return scores
