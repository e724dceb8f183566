r"""Answers that are chosen or named: the letter of an option, yes or no, a short text or number.

All read the last ``\boxed{}``. What is in it must be the answer and nothing else (``B``, ``(b)``, ``B. an option``),
because a verifier that searches for a letter in prose rewards prose. A box that holds no answer of the kind is
`unparsable`, another answer is `wrong`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm.rewards.base import Score
from llm.thoughts import last_boxed

__all__ = ["ChoiceVerifier", "TextVerifier", "YesNoVerifier", "letter", "same_text", "yes_or_no"]

MAX_LENGTH = 500
"""Most characters of an answer that is read."""
REL_TOL = 1e-6
"""Two numbers this close relatively are the same number: as close as six digits can say."""

_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\*\*|\$|(?<=\d)\\[,!](?=\d)|\\(?:left|right)(?![A-Za-z])")
_SPACING = re.compile(r"~|\\[,;:! ]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Z0-9])(?:[.:)](?!\d).*|)", re.DOTALL)
_NUMBER = re.compile(
    r"([-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+))"
    r"(?:(?:e|(?:\\times|\\cdot|[x×*])10\^)\{?([-+]?\d{1,3})\}?)?"
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


def _bare(answer: str) -> str:
    """Without text commands, markup and outer blanks and braces; "" if too long."""
    if len(answer) > MAX_LENGTH:
        return ""
    while (inner := _WRAPPER.sub(r"\1", answer)) != answer:  # one in another: \text{\textbf{B}}
        answer = inner
    bare = _SPACING.sub(" ", _MARKUP.sub("", answer)).strip()
    braces = _BRACES.fullmatch(bare)
    return braces[1].strip() if braces else bare


def letter(answer: str) -> str | None:
    """The label of an option, in upper case: ``b``, ``(B)``, ``B.``, ``B) text`` and ``B: text`` are B."""
    match = _LETTER.fullmatch(_bare(answer).upper())
    return match[1] if match else None


def yes_or_no(answer: str) -> str | None:
    """ "yes" (or true), "no" (or false), or None; case and a full stop do not matter."""
    return _YES_NO.get(_bare(answer).lower().rstrip(".!"))


def _text(answer: str) -> str | None:
    text = _SUPERSCRIPT.sub(r"^\g<0>", _bare(answer))  # or compatibility forms would make 10³ a 103
    text = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    return " ".join(text.split()).strip("\"' ").rstrip(".;,! ") or None


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(re.sub(r"(?<!\d) +| +(?!\d)", "", text))  # "3 4" is not 34
    return float(f"{re.sub('[, ]', '', match[1])}e{match[2] or 0}") if match else None


def same_text(left: str, right: str) -> bool:
    """Equal up to case, Unicode form, blanks and outer punctuation, or equal as numbers up to a factor 1 +- 1e-6."""
    if left == right:
        return True
    a, b = _number(left), _number(right)
    return a is not None and b is not None and math.isfinite(a) and math.isclose(a, b, rel_tol=REL_TOL)


def _score(
    responses: Sequence[str],
    answers: Sequence[str],
    read: Callable[[str], str | None],
    same: Callable[[str, str], bool] = str.__eq__,
) -> list[Score]:
    return [_one(response, read(answer), read, same) for response, answer in zip(responses, answers, strict=True)]


def _one(
    response: str, answer: str | None, read: Callable[[str], str | None], same: Callable[[str, str], bool]
) -> Score:
    if answer is None:
        return Score(0.0, "error")
    boxed = last_boxed(response)
    given = None if boxed is None else read(boxed)
    if given is None:
        return Score(0.0, "unparsable")
    return Score(1.0, "correct") if same(given, answer) else Score(0.0, "wrong")


@dataclass(frozen=True)
class ChoiceVerifier:
    """The letter (or digit) of an option. `error`: the reference is none."""

    def __call__(self, responses: Sequence[str], answers: Sequence[str]) -> list[Score]:
        return _score(responses, answers, letter)


@dataclass(frozen=True)
class YesNoVerifier:
    """Yes or no; true and false count as these. `error`: the reference is neither."""

    def __call__(self, responses: Sequence[str], answers: Sequence[str]) -> list[Score]:
        return _score(responses, answers, yes_or_no)


@dataclass(frozen=True)
class TextVerifier:
    """A short text or a number, as in SciKnowEval's questions that are no multiple choice. See `same_text`."""

    def __call__(self, responses: Sequence[str], answers: Sequence[str]) -> list[Score]:
        return _score(responses, answers, _text, same_text)
