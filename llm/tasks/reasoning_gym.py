r"""Any task of the library reasoning-gym by name, scored by its own scorer: ``reasoning_gym:chain_sum,min_terms=2``.

Options after the name are fields of the task's config. The model is asked for the answer in ``\boxed{}``; what stands
in the last box is what the scorer sees, and its score in [0, 1] is the reward (some scorers give a little for any
answer, which is theirs to decide).

Splits. Training and evaluation questions come from disjoint streams of seeds, and a question's hash must besides fall
into its split's half: small tasks repeat questions under different seeds, and so none of them is ever in both splits.
Repetitions within a split are dropped.

Scorers and hostile answers. Nine scorers of reasoning-gym 0.1.25 hand the model's text to `eval` or to SymPy's
`parse_expr` (which is eval). Here they run in a worker with limits on time and memory, in which `eval` of a text
reads literals only, and an answer to a SymPy scorer must be an arithmetic expression of a fixed vocabulary before it
is looked at.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm.rewards.base import Score
from llm.rewards.worker import Reply, WorkerError, WorkerPool
from llm.tasks.base import Problem, Split, TaskError
from llm.tasks.options import read_options
from llm.tasks.reasoning_gym_teachers import TEACHERS
from llm.tasks.splits import normal_question, question_hash
from llm.tasks.teaching import Pen
from llm.thoughts import last_boxed

__all__ = ["ReasoningGym", "reasoning_gym_names"]

_BLOCK = 500
"""Candidates from one data set object; some tasks build all their questions when they are made."""
_STREAM = 10**6
"""Seeds of one stream. Streams are numbered 2 * seed for training and 2 * seed + 1 for evaluation."""
_STREAMS = 4096
"""Numbers of streams, taken modulo this, keep every seed below 2**32, which NumPy's old generator requires."""

_LONGEST_ANSWER = 20_000
_scorers = WorkerPool("llm.tasks.reasoning_gym_scorer:score", cpu_s=5.0, memory_bytes=2 << 30)


def reasoning_gym_names() -> list[str]:
    """The library's tasks. Raises TaskError where it is not installed."""
    return sorted(_registry())


def _registry() -> Mapping[str, tuple[Any, Any]]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise TaskError("reasoning-gym is not installed: pip install reasoning-gym") from None
    return {name: value for name, value in DATASETS.items() if name != "composite"}


def split_of(question: str) -> Split:
    """The half of the questions, by hash, that a question belongs to."""
    return "eval" if int(question_hash(question)[0], 16) < 8 else "train"


@dataclass(frozen=True)
class ReasoningGym:
    """A task of reasoning-gym. `options`: fields of its config."""

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        registry = _registry()
        if self.task not in registry:
            raise TaskError(f"reasoning-gym has no task {self.task!r}; it has: {', '.join(sorted(registry))}")
        known = [f.name for f in dataclasses.fields(registry[self.task][1]) if f.name not in ("seed", "size")]
        for name in self.options:
            if name not in known:
                raise TaskError(f"reasoning-gym's {self.task} has no option {name!r}; it has: {', '.join(known)}")
        self._dataset(0)

    @classmethod
    def from_spec(cls, spec: str) -> ReasoningGym:
        """The task of a spec such as ``reasoning_gym:chain_sum,min_terms=2``."""
        name, options = read_options(spec.partition(":")[2], None)
        if not name:
            raise TaskError("give a task of reasoning-gym: reasoning_gym:NAME, such as reasoning_gym:chain_sum")
        return cls(name, options)

    @property
    def name(self) -> str:
        return ",".join([f"reasoning_gym:{self.task}", *(f"{k}={v!r}" for k, v in self.options.items())])

    def _dataset(self, seed: int) -> Any:
        dataset_cls, config_cls = _registry()[self.task]
        try:
            config = config_cls(**self.options, seed=seed, size=_BLOCK)
            if hasattr(config, "validate"):
                config.validate()
            return dataset_cls(config=config)
        except (AssertionError, TypeError, ValueError) as error:
            raise TaskError(
                f"{self.name}: the library refuses these options: {error or type(error).__name__}"
            ) from None

    def _entries(self, split: Split, seed: int) -> Iterator[dict[str, Any]]:
        stream = (2 * seed + (split == "eval")) % _STREAMS
        for block in range(_STREAM // _BLOCK):
            with _quietly():
                dataset = self._dataset(stream * _STREAM + block * _BLOCK)
            for index in range(_BLOCK):
                with _quietly():
                    entry = dataset[index]
                yield entry

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """`n` different problems; the first m of them are ``problems(split, m, seed)``.

        Raises TaskError where 500 candidates in a row are no new problem of this split.
        """
        found: dict[str, Problem] = {}
        idle = 0
        for entry in self._entries(split, seed) if n > 0 else ():
            key = normal_question(entry["question"])
            idle += 1
            if split_of(key) == split and key not in found:
                found[key] = self._problem(entry)
                idle = 0
            if len(found) >= n:
                break
            if idle >= _BLOCK:
                raise TaskError(
                    f"the {split} split of {self.name} gave {len(found)} different problems, {n} were asked for: "
                    "ask for fewer, or set options that make more"
                )
        return list(found.values())

    def _problem(self, entry: dict[str, Any]) -> Problem:
        uid = f"reasoning_gym:{self.task}/{question_hash(entry['question'])[:16]}"
        question = f"{entry['question']}\n\nGive the final answer as \\boxed{{answer}}."
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return Problem(uid, question, answer, {"entry": entry})

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        """The library's score of the last box; an exception in it, or a score outside [0, 1], is an `error`.

        `unparsable`: no box, or a very long one. `correct` is a full score, `partial` anything between.
        Raises TaskError if the worker cannot be started.
        """
        boxes = [last_boxed(text) for text in responses]
        asked = [i for i, box in enumerate(boxes) if box is not None and len(box) <= _LONGEST_ANSWER]
        requests = [self._request(problems[i], str(boxes[i]).strip()) for i in asked]
        try:
            replies = _scorers.map(requests)
        except WorkerError as error:
            raise TaskError(f"{self.name}: {error}") from None
        scores = [Score(0.0, "unparsable")] * len(boxes)
        for i, reply in zip(asked, replies, strict=True):
            scores[i] = _as_score(reply)
        return scores

    def _request(self, problem: Problem, answer: str) -> dict[str, Any]:
        entry = base64.b64encode(pickle.dumps(problem.meta["entry"])).decode()
        return {"task": self.task, "options": dict(self.options), "answer": answer, "entry": entry}

    def write(self, problem: Problem, pen: Pen) -> list[str]:
        """A solution as thoughts (see `llm.tasks.teaching`). Raises TaskError where the task has no teacher."""
        if self.task not in TEACHERS:
            raise TaskError(
                f"no teacher writes solutions of reasoning_gym:{self.task}; there are: {', '.join(TEACHERS)}"
            )
        return TEACHERS[self.task](problem.meta["entry"]["metadata"], pen)

    @property
    def knows_first_error(self) -> bool:
        return False

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        """None: the library checks answers, not steps."""
        return None


def _as_score(reply: Reply) -> Score:
    if reply.status == "timeout":
        return Score(0.0, "timeout")
    value = reply.value
    if reply.status != "done" or not isinstance(value, int | float) or not 0 <= value <= 1:
        return Score(0.0, "error")
    return Score(float(value), "correct" if value == 1 else "partial" if value > 0 else "wrong")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No prints of the library, and NumPy's global generator, which one of its tasks seeds, left as it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
