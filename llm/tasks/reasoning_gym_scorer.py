"""The part of the reasoning-gym task that runs in a worker process (see `llm.rewards.worker`): the library's scorers.

The worker has limits on CPU time and memory. What makes it safe to show model text to scorers that evaluate it at all
is done here:

- `eval` of a text alone is `ast.literal_eval` while a scorer runs;
- the scorers that use SymPy's `parse_expr` see an answer only if it is an expression of numbers, single letters, a few
  function names, arithmetic operators and brackets; any other answer reaches them as an empty text.
"""

from __future__ import annotations

import ast
import base64
import builtins
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

from reasoning_gym.factory import DATASETS

__all__ = ["EVAL_SCORERS", "EXPRESSION_SCORERS", "score"]

EVAL_SCORERS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Tasks whose scorer calls `eval` on the answer."""
EXPRESSION_SCORERS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Tasks whose scorer calls SymPy's `parse_expr` on the answer."""
_OWN_EVAL = frozenset({"bitwise_arithmetic"})
"""Tasks whose scorer calls `eval` on the problem that the library made, and not on the answer."""

_EXPRESSION = re.compile(
    r"(?:\s|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|\*\*|[-+*/^(),]"
    r"|(?:sin|cos|tan|sec|csc|cot|sinh|cosh|tanh|asin|acos|atan|exp|log|ln|sqrt|Abs|pi|[A-Za-z])(?![A-Za-z0-9_]))*"
)


def score(request: dict[str, Any]) -> float:
    """The library's score of an answer: {task, options, answer, entry}.

    `entry` is the library's own, pickled by the parent, because its tuples and integer keys would not survive JSON.
    """
    task, answer = request["task"], request["answer"]
    entry = pickle.loads(base64.b64decode(request["entry"]))
    if task in EXPRESSION_SCORERS and not _EXPRESSION.fullmatch(answer):
        answer = ""
    literal = nullcontext() if task in EXPRESSION_SCORERS | _OWN_EVAL else _literal_eval()
    with redirect_stdout(StringIO()), literal:  # what the library prints is no reply
        return float(_dataset(task, repr(sorted(request["options"].items()))).score_answer(answer, entry))


@lru_cache(maxsize=8)
def _dataset(task: str, options: str) -> Any:
    """Any data set of the task and its options: a scorer knows them and the entry, no seed."""
    dataset_cls, config_cls = DATASETS[task]
    return dataset_cls(config=config_cls(**dict(ast.literal_eval(options)), seed=0))


@contextmanager
def _literal_eval() -> Iterator[None]:
    """`eval` of a text alone reads literals; with namespaces it is the library's own (named tuples are made so)."""
    original = builtins.eval
    builtins.eval = lambda source, *spaces: original(source, *spaces) if spaces else ast.literal_eval(source)
    try:
        yield
    finally:
        builtins.eval = original
