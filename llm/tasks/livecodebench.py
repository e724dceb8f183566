"""LiveCodeBench, release v6, medium difficulty (383 problems): programs, scored by the share of tests they pass.

As in the paper, the questions of training and evaluation are the same and the *tests* are disjoint: each problem's
private tests are split in half by seed; the reward is the share passed of the public tests and the reward half, the
evaluation that of the held-out half. A problem's `meta["tests"]` and `meta["tests_seed"]` say which (and keep
`splits.refuse_overlap` from refusing what is meant, and nothing else).

A row's private tests are base64 of zlib of *pickle* of a JSON text. Unpickling runs code, so it is not done here: the
pickle's opcodes are read, and only the sequence that spells one str is accepted. The decompressed size is limited
before it is reached, so a small file cannot fill the memory. Tests stay in the file and are read when a response is
scored: together they are several gigabytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import pickletools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llm.rewards.base import Score, Verifier
from llm.tasks.base import Problem, Split, TaskError
from llm.tasks.options import boolean, read_options
from llm.tasks.rows import Row, check_fields, local_files, unreachable
from llm.tasks.splits import draw, question_hash

__all__ = ["MAX_TEST_BYTES", "LiveCodeBench", "pickled_text", "private_tests", "split_tests"]

HUB_ID = "livecodebench/code_generation_lite"
FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")
MAX_TEST_BYTES = 2**28
"""Most bytes that one problem's private tests may have when decompressed."""

_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "question_content": str,
    "starter_code": str,
    "platform": str,
    "question_id": str,
    "difficulty": str,
    "public_test_cases": str,
    "private_test_cases": str,
    "metadata": str,
}
_STR_OPCODES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_SILENT_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"}


def pickled_text(data: bytes) -> str:
    """The str that a pickle holds, read from its opcodes; nothing is executed or built.

    Raises ValueError for a pickle that is anything but one str.
    """
    found: str | None = None
    ended = 0
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _STR_OPCODES and found is None:
                found = argument
            elif opcode.name == "STOP" and found is not None:
                ended += 1
            elif opcode.name not in _SILENT_OPCODES:
                raise ValueError(f"opcode {opcode.name} has no place in a pickled text")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not a pickled text: {error}") from None
    if found is None or not ended:
        raise ValueError("not a pickled text: it holds no str")
    return found


def _decompress(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"not zlib data: {error}") from None
    if stream.unconsumed_tail or (not stream.eof and len(text) >= limit):
        raise ValueError(f"more than {limit} bytes when decompressed")
    if not stream.eof:
        raise ValueError("zlib data that breaks off")
    return text


def private_tests(field: str, limit: int = MAX_TEST_BYTES) -> list[dict[str, Any]]:
    """The tests of the field `private_test_cases`; plain JSON is accepted too.

    Raises ValueError for data in another form, for more than `limit` bytes, and for a pickle of anything but a str.
    """
    if field.lstrip()[:1] == "[":
        return _tests(field)
    try:
        packed = base64.b64decode(field, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    return _tests(pickled_text(_decompress(packed, limit)))


def _tests(text: str) -> list[dict[str, Any]]:
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    fields = ("input", "output", "testtype")
    if not isinstance(tests, list) or not all(
        isinstance(test, dict) and all(isinstance(test.get(f), str) for f in fields) for test in tests
    ):
        raise ValueError(f"expected a list of tests with the texts {', '.join(fields)}")
    return [{f: test[f] for f in fields} for test in tests]


def split_tests(tests: Sequence[Any], question_id: str, seed: int) -> tuple[list[Any], list[Any]]:
    """(reward half, held-out half) of a problem's private tests; the odd one is held out. Deterministic in the seed."""
    stream = int(question_hash(question_id)[:16], 16)
    order = np.random.default_rng([seed, stream]).permutation(len(tests))
    half = len(tests) // 2
    return [tests[i] for i in sorted(order[:half])], [tests[i] for i in sorted(order[half:])]


@dataclass(frozen=True)
class LiveCodeBench:
    """The task `code`. `path`: a folder of the hub's files, or one of them; `tests_seed` splits the private tests.

    `allow_unisolated`: run model-written code even where this machine offers nothing to lock it in.
    """

    path: Path | None = None
    tests_seed: int = 0
    allow_unisolated: bool = False

    name = "code"

    @classmethod
    def from_spec(cls, spec: str) -> LiveCodeBench:
        """The task of ``code``, ``code@PATH`` or ``code@PATH,tests_seed=1,allow_unisolated=True``.

        Raises TaskError for anything else.
        """
        head, options = read_options(spec, {"tests_seed": int, "allow_unisolated": boolean})
        name, at, path = head.partition("@")
        if name != cls.name or (at and not path):
            raise TaskError(f"cannot read {spec!r}: write code, code@PATH, code,tests_seed=1 or code@PATH,tests_seed=1")
        if options.get("tests_seed", 0) < 0:
            raise TaskError(f"tests_seed must not be negative, got {options['tests_seed']}")
        return cls(Path(path) if path else None, **options)

    def _files(self) -> list[Path]:
        if self.path is not None:
            return local_files(self.name, self.path, [".jsonl"])
        try:
            from huggingface_hub import hf_hub_download

            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the last word is ours
            return [Path(hf_hub_download(HUB_ID, name, repo_type="dataset")) for name in FILES]
        except Exception as error:  # the hub's client raises from several libraries
            raise unreachable(self.name, HUB_ID, error, [".jsonl"]) from error

    @cached_property
    def _problems(self) -> list[Problem]:
        """All problems, without tests: meta holds the place of the row."""
        problems: dict[str, Problem] = {}
        for file in self._files():
            for number, offset, fields in _lines(file):
                check_fields(self.name, Row(fields, "test", f"{file}, line {number}"), _FIELDS)
                if fields["difficulty"] == "medium":
                    problem = _problem(fields, {"file": str(file), "offset": offset})
                    problems.setdefault(problem.question, problem)
        if not problems:
            raise TaskError(f"{self.name}: no problem of medium difficulty in {self.path or HUB_ID}")
        return list(problems.values())

    def size(self, split: Split) -> int:
        """How many problems the split holds."""
        return len(self._problems)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        tests = "reward" if split == "train" else "held-out"
        drawn = draw(self._problems, n, seed, f"the {split} split of {self.name}")
        half = {"tests": tests, "tests_seed": self.tests_seed}
        return [Problem(f"{p.uid}#{tests}", p.question, p.answer, {**p.meta, **half}) for p in drawn]

    @cached_property
    def _verifier(self) -> Verifier:
        """Raises TaskError where nothing isolates the code and `allow_unisolated` is not given."""
        from llm.rewards.code import CodeVerifier
        from llm.rewards.sandbox import Sandbox, SandboxError

        try:
            return CodeVerifier(Sandbox(allow_unisolated=self.allow_unisolated))
        except SandboxError as error:
            raise TaskError(f"{self.name}: {error} (as a task: {self.name},allow_unisolated=True)") from None

    def tests(self, problem: Problem) -> dict[str, Any]:
        """The tests that score a problem, read from its row: {"func_name": ..., "tests": [{input, output, testtype}]}.

        Raises TaskError where the row's tests cannot be read.
        """
        with Path(problem.meta["file"]).open("rb") as file:
            file.seek(problem.meta["offset"])
            fields = json.loads(file.readline())
        try:
            public, private = _tests(fields["public_test_cases"]), private_tests(fields["private_test_cases"])
            func_name = json.loads(fields["metadata"] or "{}").get("func_name")
        except (ValueError, AttributeError) as error:
            raise TaskError(f"{self.name}: tests of {problem.uid}: {error}") from None
        reward, held_out = split_tests(private, fields["question_id"], self.tests_seed)
        chosen = [*public, *reward] if problem.meta["tests"] == "reward" else held_out
        if not chosen:
            raise TaskError(f"{self.name}: {problem.uid} has no tests for this split")
        return {"func_name": func_name, "tests": chosen}

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        """The share of tests passed; `error` where the row's tests cannot be read.

        Each problem's tests are read once for all of its responses.
        """
        scores = [Score(0.0, "error")] * len(problems)
        places: dict[str, list[int]] = {}
        for i, problem in enumerate(problems):
            places.setdefault(problem.uid, []).append(i)
        for rows in places.values():
            try:
                answer = json.dumps(self.tests(problems[rows[0]]))
            except TaskError:
                continue
            verdicts = self._verifier([responses[i] for i in rows], [answer] * len(rows))
            for i, score in zip(rows, verdicts, strict=True):
                scores[i] = score
        return scores

    @property
    def knows_first_error(self) -> bool:
        return False

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        """None: the benchmark does not know."""
        return None


def _lines(file: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, byte offset, row) of a file of JSON lines."""
    try:
        with file.open("rb") as stream:
            offset = 0
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, offset, _row(file, number, line)
                offset += len(line)
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error.strerror}") from None


def _row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{file}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise TaskError(f"{file}, line {number}: expected an object, got {type(row).__name__}")
    return row


def _problem(fields: Mapping[str, Any], place: dict[str, Any]) -> Problem:
    if fields["starter_code"].strip():
        form = f"Complete this code; it is called and its return value is compared.\n\n{fields['starter_code']}"
    else:
        form = "Write a program that reads from standard input and writes to standard output."
    question = (
        f"{fields['question_content']}\n\n{form}\n\nEnd with the whole program in one Python code block "
        "(```python ... ```); a long one may run over several steps, whose tags are no part of it. After the block "
        "write \\boxed{done}."
    )
    return Problem(f"code/{fields['question_id']}", question, "", place)
