"""reasoning-gym's scorers in a worker process, so that a hostile answer costs bounded time and memory and runs no code.

The worker is a fresh interpreter with an environment of its own, limits on memory and file size, and no output channel
but one pipe. The parent sends the task's entry and the answer, and kills the worker if no score comes back in time.
What makes it safe to let `eval`-using scorers see model text at all happens in the worker, in `_score`:

- `eval` of a text alone is replaced by `ast.literal_eval` while a scorer runs;
- the scorers that use SymPy's `parse_expr` see an answer only if it is an expression of numbers, single letters, a few
  function names, arithmetic operators and brackets; any other answer reaches them as an empty text.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import json
import os
import pickle
import re
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from llm.rewards.base import Score
from llm.tasks.base import TaskError

__all__ = ["EVAL_SCORERS", "EXPRESSION_SCORERS", "score_entries"]

EVAL_SCORERS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Tasks whose scorer calls `eval` on the answer."""
EXPRESSION_SCORERS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Tasks whose scorer calls SymPy's `parse_expr` on the answer."""

_OWN_EVAL = frozenset({"bitwise_arithmetic"})
"""Tasks whose scorer calls `eval` on the problem that the library made, and not on the answer."""

TIME_LIMIT = 5.0
"""Seconds for one answer."""
_START_LIMIT = 120.0
_MEMORY_LIMIT = 2 * 2**30
_LONGEST_ANSWER = 20_000
_EXPRESSION = re.compile(
    r"(?:\s|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|\*\*|[-+*/^(),]"
    r"|(?:sin|cos|tan|sec|csc|cot|sinh|cosh|tanh|asin|acos|atan|exp|log|ln|sqrt|Abs|pi|[A-Za-z])(?![A-Za-z0-9_]))*"
)


def score_entries(task: str, options: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Score]:
    """The library's score of every (answer, entry), clipped to [0, 1].

    `correct` is a full score, `partial` anything between; `timeout` and `error` are the scorer's failures (value 0).
    """
    with _lock:
        return [_ask(task, options, answer, entry) for answer, entry in rows]


def _ask(task: str, options: Mapping[str, Any], answer: str, entry: Mapping[str, Any]) -> Score:
    global _worker
    if len(answer) > _LONGEST_ANSWER:
        return Score(0.0, "unparsable")
    if _worker is None or not _worker.usable():
        _worker = _Worker()
    try:
        reply = _worker.ask((task, dict(options), answer, dict(entry)))
    except TimeoutError:
        _worker.close()
        return Score(0.0, "timeout")
    except (OSError, ValueError, EOFError):  # the worker died: out of memory, or a crash of the interpreter
        _worker.close()
        return Score(0.0, "error")
    if not isinstance(reply, int | float) or not 0 <= reply <= 1:
        return Score(0.0, "error")
    return Score(float(reply), "correct" if reply == 1 else "partial" if reply > 0 else "wrong")


class _Worker:
    """The child process and its two pipes."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *(p for p in sys.path if p)])
        self._pid = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": path, "PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            self._read(_START_LIMIT)
        except (TimeoutError, EOFError):
            self.close()
            raise TaskError("the worker for reasoning-gym's scorers does not start; is it installed?") from None

    def usable(self) -> bool:
        return self._pid == os.getpid() and self._process.poll() is None

    def ask(self, question: Any) -> Any:
        body = pickle.dumps(question)
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("<I", len(body)) + body)
        self._process.stdin.flush()
        return json.loads(self._read(TIME_LIMIT))

    def _read(self, limit: float) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        if not line:
            raise EOFError
        return line

    def close(self) -> None:
        if self._pid == os.getpid():
            self._process.kill()
            self._process.communicate()


_worker: _Worker | None = None
_lock = threading.Lock()


@atexit.register
def _close() -> None:
    if _worker is not None:
        _worker.close()


# --- what follows runs in the worker ---------------------------------------------------------------------------------


def _score(dataset: Any, task: str, answer: str, entry: dict[str, Any]) -> float:
    if task in EXPRESSION_SCORERS:
        return float(dataset.score_answer(answer if _EXPRESSION.fullmatch(answer) else "", entry))
    with _literal_eval() if task not in _OWN_EVAL else nullcontext():
        return float(dataset.score_answer(answer, entry))


@contextmanager
def _literal_eval() -> Iterator[None]:
    """`eval` of a text alone reads literals; with namespaces it is the library's own (named tuples are made so)."""
    original = builtins.eval
    builtins.eval = lambda source, *spaces: original(source, *spaces) if spaces else ast.literal_eval(source)
    try:
        yield
    finally:
        builtins.eval = original


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answers(questions: IO[bytes]) -> Iterator[Any]:
    from reasoning_gym.factory import DATASETS

    yield "ready"
    datasets: dict[str, Any] = {}
    while header := questions.read(4):
        task, options, answer, entry = pickle.loads(questions.read(struct.unpack("<I", header)[0]))
        key = repr((task, options))
        try:
            if key not in datasets:
                dataset_cls, config_cls = DATASETS[task]
                datasets[key] = dataset_cls(config=config_cls(**options, seed=0))
            yield _score(datasets[key], task, answer, entry)
        except Exception as error:  # a scorer that fails on an answer is counted, not fatal
            yield f"{type(error).__name__}: {error}"


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the library prints is no reply
    _limit()
    for reply in _answers(sys.stdin.buffer):
        replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    _serve()
