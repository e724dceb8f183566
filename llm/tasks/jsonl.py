r"""Your own questions: a file of JSON lines with `question`, `answer` and, if known, `first_error`.

    {"question": "What is 2 + 2?", "answer": "4"}
    {"question": "...", "answer": "7", "first_error": 2}

`answer` is a string or a number and is compared with the last ``\boxed{}`` of the response by the verifier that the
spec names (`math` if none). `first_error` is the number, from 1, of the step in which solutions of this question go
wrong, for data that know it (a planted trap, a known hard step); the oracle localiser and the localisation metrics use
it, and a response that ended before that step has its first error in its last step. Other fields are kept in
`Problem.meta`.

Specs: ``jsonl:rows.jsonl`` sets a fifth of the rows aside for evaluation (``eval_share=0.5`` for another share; which
rows is decided by the hash of the question, so adding rows can move others between the splits);
``jsonl:train.jsonl,eval=test.jsonl`` takes two files and refuses questions that are in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.rewards.base import Score
from llm.tasks.base import Problem, Split, TaskError
from llm.tasks.options import read_options
from llm.tasks.splits import draw, normal_question, partition, question_hash, refuse_overlap
from llm.tasks.verifiers import VERIFIERS, can_read, named_verifier

__all__ = ["JsonlTask", "read_jsonl", "read_problems"]


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of every line that is not blank.

    Raises TaskError, with the line, for a file that cannot be read, is not UTF-8, or holds a line that is no object.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _row(path, number, line)
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from None


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise TaskError(f"{path}, line {number}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise TaskError(f"{path}, line {number}: expected an object like {{...}}, got {type(row).__name__}")
    return row


def read_problems(path: Path, verifier: str = "math") -> list[Problem]:
    """The problems of a file, checked.

    Raises TaskError with the line number for a bad row, a repeated question, or an answer unreadable to the verifier.
    """
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for number, row in read_jsonl(path):
        problem = _problem(f"{path}, line {number}", row)
        if not can_read(verifier, problem.answer):
            shown = problem.answer if len(problem.answer) <= 40 else problem.answer[:37] + "..."
            raise TaskError(
                f"{path}, line {number}: the verifier {verifier!r} cannot compare with the answer {shown!r}"
            )
        key = normal_question(problem.question)
        if key in first:
            raise TaskError(f"{path}, line {number}: repeats the question of line {first[key]}; remove one of them")
        first[key] = number
        problems.append(problem)
    if not problems:
        raise TaskError(f"{path} holds no rows; each line must be like {{'question': ..., 'answer': ...}}")
    return problems


def _problem(where: str, row: dict[str, Any]) -> Problem:
    for field in ("question", "answer"):
        if field not in row:
            raise TaskError(f"{where}: no field {field!r} (there is: {', '.join(map(str, row)) or 'nothing'})")
    question, answer, first_error = row["question"], row["answer"], row.get("first_error")
    if not isinstance(question, str) or not question.strip():
        raise TaskError(f"{where}: 'question' must be a text that is not empty")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise TaskError(f"{where}: 'answer' must be a text or a number, got {json.dumps(answer)[:40]}")
    if first_error is not None and (isinstance(first_error, bool) or not isinstance(first_error, int)):
        raise TaskError(
            f"{where}: 'first_error' must be the number of a step, from 1, got {json.dumps(first_error)[:40]}"
        )
    if first_error is not None and first_error < 1:
        raise TaskError(f"{where}: 'first_error' counts steps from 1, got {first_error}")
    meta = {name: value for name, value in row.items() if name not in ("question", "answer")}
    return Problem(f"jsonl/{question_hash(question)[:16]}", question, str(answer), meta)


@dataclass(frozen=True)
class JsonlTask:
    """Problems from JSON lines. `eval` names a second file; without it `eval_share` of the rows are for evaluation."""

    path: Path
    eval: Path | None = None
    eval_share: float = 0.2
    verifier: str = "math"

    def __post_init__(self) -> None:
        if not 0 < self.eval_share < 1:
            raise TaskError(f"eval_share must lie strictly between 0 and 1, got {self.eval_share}")
        if self.verifier not in VERIFIERS:
            raise TaskError(f"no verifier {self.verifier!r}; there are {', '.join(VERIFIERS)}")

    @classmethod
    def from_spec(cls, spec: str) -> JsonlTask:
        """The task of a spec such as ``jsonl:rows.jsonl,verifier=choice``."""
        path, options = read_options(spec.partition(":")[2], {"eval": str, "eval_share": float, "verifier": str})
        if not path:
            raise TaskError("give a file: jsonl:PATH")
        options["eval"] = Path(options["eval"]) if "eval" in options else None
        task = cls(Path(path), **options)
        for file in filter(None, (task.path, task.eval)):
            if not file.is_file():
                raise TaskError(f"there is no file {file}")
        return task

    @property
    def name(self) -> str:
        return f"jsonl:{self.path}"

    @cached_property
    def _splits(self) -> dict[Split, list[Problem]]:
        rows = read_problems(self.path, self.verifier)
        if self.eval is None:
            train, evaluation = partition(rows, max(1, round(self.eval_share * len(rows))))
            return {"train": train, "eval": evaluation}
        held_out = read_problems(self.eval, self.verifier)
        refuse_overlap(rows, held_out, f"{self.path} and {self.eval}")
        return {"train": rows, "eval": held_out}

    def size(self, split: Split) -> int:
        """How many problems the split holds."""
        return len(self._splits[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        return draw(self._splits[split], n, seed, f"the {split} split of {self.name}")

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        return named_verifier(self.verifier)(responses, [p.answer for p in problems])

    @property
    def knows_first_error(self) -> bool:
        return any(p.meta.get("first_error") is not None for rows in self._splits.values() for p in rows)

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        """The row's `first_error` as an index from 0, at most the last thought; None where the row does not say."""
        number = problem.meta.get("first_error")
        return None if number is None or not thoughts else min(int(number), len(thoughts)) - 1
