"""Tasks by name: `load_task` turns a spec such as ``chains:steps=8``, ``lvl5`` or ``jsonl:rows.jsonl`` into a Task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from llm.tasks.base import Problem, Split, Task, TaskError
from llm.tasks.splits import refuse_overlap

__all__ = ["Problem", "Split", "Task", "TaskError", "load_task", "refuse_overlap", "task_names"]


def _chains(spec: str) -> Task:
    from llm.tasks.chains import Chains

    return Chains.from_spec(spec)


def _chains_words(spec: str) -> Task:
    from llm.tasks.words import ChainsWords

    return ChainsWords.from_spec(spec)


def _ledger_words(spec: str) -> Task:
    from llm.tasks.words import LedgerWords

    return LedgerWords.from_spec(spec)


def _reasoning_gym(spec: str) -> Task:
    from llm.tasks.reasoning_gym import ReasoningGym

    return ReasoningGym.from_spec(spec)


def _jsonl(spec: str) -> Task:
    from llm.tasks.jsonl import JsonlTask

    return JsonlTask.from_spec(spec)


def _benchmark(spec: str) -> Task:
    from llm.tasks.benchmarks import Benchmark

    return Benchmark.from_spec(spec)


def _code(spec: str) -> Task:
    from llm.tasks.livecodebench import LiveCodeBench

    return LiveCodeBench.from_spec(spec)


BENCHMARKS = ("oly", "hmmt", "lvl5", "stra", "ace", "chem", "bio", "csqa", "mat", "phys")
"""The ten benchmarks of the paper's table 3, in its order."""

_LOADERS: Mapping[str, Callable[[str], Task]] = {
    "chains": _chains,
    "chains_words": _chains_words,
    "ledger_words": _ledger_words,
    "reasoning_gym": _reasoning_gym,
    "jsonl": _jsonl,
    **dict.fromkeys(BENCHMARKS, _benchmark),
    "code": _code,
}
_USAGE = {"reasoning_gym": "reasoning_gym:NAME", "jsonl": "jsonl:PATH"}


def task_names() -> list[str]:
    """How tasks are written, one name each; NAME and PATH stand for what the user gives."""
    return [_USAGE.get(name, name) for name in _LOADERS]


def load_task(spec: str) -> Task:
    """The task of a spec: ``NAME``, ``NAME:options``, or ``NAME@PATH`` for a benchmark's rows in local files.

    Libraries are imported, and rows are read, when they are first needed. Raises TaskError: one line that says what
    to do.
    """
    spec = spec.strip()
    family = re.split(r"[:@,]", spec, maxsplit=1)[0]
    if family not in _LOADERS:
        raise TaskError(f"unknown task {spec!r}; choose one of: {', '.join(task_names())}")
    return _LOADERS[family](spec)
