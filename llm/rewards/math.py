r"""Mathematical answers: the last ``\boxed{}`` of a response against a reference, by value.

Three steps, from cheap to costly. Equal text (up to blanks, dollar signs and the like) is correct, and plain numbers
are compared exactly, here. What is too long, too deep or raised to absurd powers is not read at all. All else goes to
`math-verify`, in a warm worker process with limits on CPU time and memory: the library parses by means that may
evaluate the text, and its own time limit works in the main thread only and answers a plain "no". Here a limit that was
hit is a status of its own, and nothing of a response is ever evaluated in this process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from llm.rewards.base import Score, Status
from llm.rewards.worker import WorkerPool
from llm.thoughts import last_boxed

__all__ = ["MathVerifier", "normal_form", "plain_number", "refused"]

MAX_LENGTH = 1000
"""Most characters of an answer that is read."""
MAX_NESTING = 50
"""Most brackets that may be open at a time."""
MAX_POWER_DIGITS = 5
"""Most digits of an exponent, and of a number before a factorial sign less one."""

_MARKUP = re.compile(r"\$|\\[()\[\]]|\\(?:left|right|displaystyle)(?![A-Za-z])")
_SPACING = re.compile(r"\s|~|\\[,;:! ]")
_BLANK = r"(?:[\s~]|\\[;: ])"
_THIN = r"(?:\\[,!])"
_BETWEEN_NUMBERS = re.compile(rf"(?<=\d)(?:{_BLANK}*,{_THIN}*{_BLANK}(?:{_BLANK}|{_THIN})*|{_BLANK}+,?)(?=[-+]?\.?\d)")
"""What keeps two numbers apart: without the blank 153, 370 would be one number, and so would 3 1/4."""
_FRACTION_STYLE = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_INTEGER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
_DECIMAL = re.compile(rf"({_INTEGER})\.?(\d*)|([-+]?)\.(\d+)")
_RATIO = re.compile(rf"(-?)\\frac\{{({_INTEGER})\}}\{{({_INTEGER})\}}|()({_INTEGER})/({_INTEGER})")
_MIXED = re.compile(r"([-+]?)(\d+) (?!\d{3}/)([1-9]\d*)/([1-9]\d*)")
_POWER = re.compile(r"\^[{(\[]*[-+]?(\d+)")
_FACTORIAL = re.compile(r"(\d+)[)}\]]*!")
_TOKEN = re.compile(r"\^|[{(\[]|[})\]]|\d+|\\[A-Za-z]+|.", re.DOTALL)


def normal_form(answer: str) -> str:
    """Without math delimiters, blanks (but those between two numbers), fraction styles, and a full stop at the end."""
    apart = _BETWEEN_NUMBERS.sub(lambda m: ",\0" if "," in m[0] else "\0", _MARKUP.sub("", answer).replace("\0", ""))
    return _FRACTION_STYLE.sub(r"\\frac", _SPACING.sub("", apart)).replace("\0", " ").rstrip(".")


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer, a decimal, a fraction of integers or a mixed number in normal form, else None."""
    if len(text) > 100:
        return None
    if match := _DECIMAL.fullmatch(text):
        return Fraction(re.sub("[, ]", "", text).rstrip("."))
    if (match := _MIXED.fullmatch(text)) and int(match[3]) < int(match[4]):
        return (-1 if match[1] == "-" else 1) * (int(match[2]) + Fraction(int(match[3]), int(match[4])))
    if match := _RATIO.fullmatch(text):
        sign, over, under = (match[1], match[2], match[3]) if match[2] else ("", match[5], match[6])
        top, bottom = (int(re.sub("[, ]", "", part)) for part in (over, under))
        return None if bottom == 0 else Fraction(-top if sign else top, bottom)
    return None


def refused(answer: str) -> bool:
    """Is the answer beyond the caps on length, nesting, exponents and factorials? Linear in its length."""
    if len(answer) > MAX_LENGTH:
        return True
    text = re.sub(r"\s", "", answer).replace("**", "^")
    powers = [len(digits) > MAX_POWER_DIGITS for digits in _POWER.findall(text)]
    factorials = [len(digits) >= MAX_POWER_DIGITS for digits in _FACTORIAL.findall(text)]
    nesting, tower = _depths(text)
    numeric = re.search(r"[A-Za-z]", text) is None
    return any(powers) or any(factorials) or nesting > MAX_NESTING or (numeric and tower > 2)


def _depths(text: str) -> tuple[int, int]:
    """(most brackets open at a time, most powers stacked on each other): ``2^{3^4}`` gives (1, 2)."""
    nesting = tower = below = chain = 0
    opened: list[tuple[int, int]] = []
    in_exponent = False
    for token in _TOKEN.findall(text):
        if token == "^":
            chain += 1
            tower = max(tower, below + chain)
            in_exponent = True
        elif token in "{([":
            opened.append((below, chain if in_exponent else 0))
            nesting = max(nesting, len(opened))
            below, chain = below + opened[-1][1], 0
            in_exponent = False
        elif token in "})]":
            below, chain = opened.pop() if opened else (0, 0)
            in_exponent = False
        else:
            chain = chain if in_exponent else 0
            in_exponent = False
    return nesting, tower


def _at_once(response: str, reference: str) -> Status | None:
    """The verdict where it needs no algebra, else None."""
    left, right = normal_form(response), normal_form(reference)
    if left and left.replace(", ", ",") == right.replace(", ", ","):  # one may part its list without blanks
        return "correct"
    a, b = plain_number(left), plain_number(right)
    if a is not None and b is not None:
        if a == b:
            return "correct"
        if not {".", ","} & set(left + right):  # decimals may be rounded, commas may part a list: the library decides
            return "wrong"
    return "unparsable" if not left or refused(response) else None


@dataclass(frozen=True)
class MathVerifier:
    """Statuses: `correct`, `wrong`, `unparsable` (no box, nothing mathematical in it, or beyond the caps), `timeout`
    (CPU time), `error` (memory, or a crash of the library).

    pool: the workers. Raises WorkerError on first use where `math-verify` is not installed.
    """

    pool: WorkerPool = field(default_factory=lambda: WorkerPool("llm.rewards.math_worker:compare"))

    def __call__(self, responses: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """Each distinct pair of answer and reference is compared once."""
        pairs = [(last_boxed(response), answer) for response, answer in zip(responses, answers, strict=True)]
        verdicts: dict[tuple[str | None, str], Status | None] = {
            (boxed, answer): "unparsable" if boxed is None else _at_once(boxed, answer) for boxed, answer in pairs
        }
        open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None]
        replies = self.pool.map([{"response": boxed, "reference": answer} for boxed, answer in open_pairs])
        for pair, reply in zip(open_pairs, replies, strict=True):
            verdicts[pair] = _status(reply.status, reply.value)
        return [Score(float(verdicts[pair] == "correct"), verdicts[pair] or "error") for pair in pairs]


def _status(status: str, value: object) -> Status:
    if status == "done" and value in ("correct", "wrong", "unparsable"):
        return value  # type: ignore[return-value]
    return "timeout" if status == "timeout" else "error"
