"""Programs, scored by the share of tests that they pass, in the format of LiveCodeBench.

A reference answer is JSON: ``{"func_name": null or name, "tests": [{"input", "output", "testtype"}, ...]}``. A test of
type `stdin` compares what a script prints; one of type `functional` calls the function (a method of `Solution` if there
is such a class) on arguments given as JSON, one per line, and compares its value with `output` as JSON.

Comparison is LiveCodeBench's. Printed: outer blanks and blanks at the ends of lines are ignored, the number of lines
must agree, and two lines agree as text or else as lists of decimal numbers, exactly (``1.0`` is ``1``, no tolerance).
Returned: equal as Python's plain data, tuples as lists.

Unlike in its runner, (1) a run does not end at the first failure: the score is passed tests over *all* tests; (2)
beside six seconds of CPU time a test there is a limit on the wall time of all tests (`Limits.total_s`, `mean_s`), and a
test that it leaves no time for is a failed one.

The comparison happens here, where the model's code is not: see `llm.rewards.sandbox`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from llm.rewards.base import Score
from llm.rewards.sandbox import NO_TIME_LEFT, Outcome, Program, Run, Sandbox, SandboxError

__all__ = ["CodeTest", "CodeVerifier", "last_program", "readable", "same_output", "same_value"]

_FENCE = re.compile(r"^(?:[^\n]*</thought>)?[ \t]*```[ \t]*(\w*)[^\n]*\n", re.MULTILINE)
_TAG = re.compile(r"</?thought>")
_LONGEST_PROGRAM = 1 << 18


def last_program(response: str) -> str | None:
    """The last complete fenced block that is marked as Python, or else as nothing; None if there is none.

    A program may be longer than a thought: tags of thoughts in the block are taken out.
    """
    fences = list(_FENCE.finditer(response if response.endswith("\n") else response + "\n"))
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in fences:
        if opened is None or fence[1]:
            opened = fence
        else:
            blocks.append((opened[1].lower(), response[opened.end() : fence.start()]))
            opened = None
    python = [code for language, code in blocks if language in ("python", "python3", "py")]
    plain = [code for language, code in blocks if not language]
    found = python or plain
    return _TAG.sub("", found[-1]) if found and len(found[-1]) <= _LONGEST_PROGRAM else None


def same_output(printed: str, expected: str) -> bool:
    """Line by line: equal text, or equal lists of decimal numbers."""
    left, right = _lines(printed), _lines(expected)
    return len(left) == len(right) and all(a == b or _same_numbers(a, b) for a, b in zip(left, right, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(left: str, right: str) -> bool:
    try:
        return [Decimal(word) for word in left.split()] == [Decimal(word) for word in right.split()]
    except InvalidOperation:  # a word that is no number, or a signalling NaN
        return False


def same_value(value: Any, expected: Any) -> bool:
    """Equality of plain data (both came through JSON, so no object can define what is equal)."""
    try:
        return bool(value == expected)
    except RecursionError:
        return False


@dataclass(frozen=True)
class CodeTest:
    """One test: what goes in, and what must come out (text for a script, plain data for a function)."""

    run: Run
    expected: Any
    functional: bool

    def passed_by(self, outcome: Outcome) -> bool:
        if outcome.status != "finished":
            return False
        if self.functional:
            return same_value(outcome.value, self.expected)
        return same_output(outcome.stdout, self.expected)


def _tests(answer: str) -> tuple[str | None, list[CodeTest]]:
    """(function name, tests) of a reference answer. Raises ValueError where it has another form."""
    fields = json.loads(answer)
    try:
        function, tests = fields.get("func_name"), [_test(test) for test in fields["tests"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a set of tests: {error!r}") from None
    if not tests or (not isinstance(function, str) and any(test.functional for test in tests)):
        raise ValueError("no tests, or tests of a function without its name")
    return function, tests


def readable(answer: str) -> bool:
    """Whether a reference answer is a set of tests."""
    try:
        return bool(_tests(answer))
    except (ValueError, RecursionError):
        return False


def _test(test: Mapping[str, Any]) -> CodeTest:
    if test["testtype"] == "functional":
        arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
        return CodeTest(Run(arguments=arguments), json.loads(test["output"]), True)
    return CodeTest(Run(stdin=test["input"]), str(test["output"]), False)


@dataclass(frozen=True)
class CodeVerifier:
    """Scores the last Python block of each response. `jobs`: programs that run at a time.

    Raises SandboxError when it is made where nothing can isolate the code; after that it does not raise. Statuses:
    `correct` (all tests), `partial`, `wrong`, `timeout` (the time did not suffice for all tests; the value is the share
    of all that were passed), `unparsable` (no code block, or longer than 256 KiB), `error` (reference tests that cannot
    be read, or a sandbox that did not start).
    """

    sandbox: Sandbox = field(default_factory=Sandbox)
    jobs: int = field(default_factory=lambda: max(1, min(8, len(os.sched_getaffinity(0)))))

    def __post_init__(self) -> None:
        self.sandbox.describe()

    def __call__(self, responses: Sequence[str], answers: Sequence[str]) -> list[Score]:
        tests: dict[str, tuple[str | None, list[CodeTest]] | None] = {}
        for answer in answers:
            if answer not in tests:
                try:
                    tests[answer] = _tests(answer)
                except (ValueError, RecursionError):
                    tests[answer] = None
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda r, a: self._score(r, tests[a]), responses, answers))

    def _score(self, response: str, reference: tuple[str | None, list[CodeTest]] | None) -> Score:
        if reference is None:
            return Score(0.0, "error")
        function, tests = reference
        source = last_program(response)
        if source is None:
            return Score(0.0, "unparsable")
        try:
            outcomes = self._outcomes(source, function, tests)
        except SandboxError:
            return Score(0.0, "error")
        share = sum(test.passed_by(outcome) for test, outcome in outcomes) / len(tests)
        if any(outcome.error == NO_TIME_LEFT for _, outcome in outcomes):
            return Score(share, "timeout")
        return Score(share, "correct" if share == 1 else "partial" if share > 0 else "wrong")

    def _outcomes(self, source: str, function: str | None, tests: Sequence[CodeTest]) -> list[tuple[CodeTest, Outcome]]:
        """Each test with its outcome; scripts and functions are run as what they are."""
        found: list[tuple[CodeTest, Outcome]] = []
        for functional in (False, True):
            own = [test for test in tests if test.functional is functional]
            if own:
                program = Program(source, function if functional else None)
                found += zip(own, self.sandbox.run(program, [test.run for test in own]), strict=True)
        return found
