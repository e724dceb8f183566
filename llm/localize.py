"""Localisers of the language model: reset samplers that name the first wrong thought of a failed response.

`SelfLocalizer` asks the model itself and parses its answer; `OracleLocalizer` asks a task that knows. An answer that
cannot be used is *no reset* (the prompt falls back to plain GRPO) and is counted by kind. It never becomes step 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cpi.groups import Phase
from cpi.resets import Cost
from llm.generate import Backend, NoStop, Request, TokenText
from llm.tasks.base import Task
from llm.thoughts import Prompts, ThoughtTrace

__all__ = ["Answer", "OracleLocalizer", "SelfLocalizer", "parse_answer"]

_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_INTEGER = re.compile(r"\s*(?:step\s*)?(\d+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A localisation answer as read: status and, where it can be used, the cut k (0-based: keep k thoughts).

    usable: "exact" (one box) and "repeated" (several boxes: the last one counts, as the prompt asks for it on the last
    line). not usable: "missing" (no box), "not_a_number" (also fractions and ranges), "out_of_range".
    """

    status: Literal["exact", "repeated", "missing", "not_a_number", "out_of_range"]
    k: int | None


def parse_answer(text: str, num_thoughts: int) -> Answer:
    r"""Read the step number N in 1..num_thoughts from the last ``\boxed{N}``; k = N - 1."""
    boxes = _BOX.findall(text)
    if not boxes:
        return Answer("missing", None)
    number = _INTEGER.fullmatch(boxes[-1])
    if number is None or len(number[1]) > 6:
        return Answer("not_a_number", None)
    n = int(number[1])
    if not 1 <= n <= num_thoughts:
        return Answer("out_of_range", None)
    return Answer("exact" if len(boxes) == 1 else "repeated", n - 1)


def _point_mass(size: int, k: int | None) -> NDArray[np.float64]:
    row = np.zeros(size)
    if k is not None:
        row[k] = 1.0
    return row


@dataclass
class SelfLocalizer:
    """The model's own answer to "which step is the first wrong one", one batch for all episodes.

    The answer is sampled at its own temperature from the key of the episode, so it does not depend on the batch.
    `counts` holds the parse statuses so far.
    """

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    temperature: float = 0.3
    top_p: float = 0.95
    max_tokens: int = 1024
    spent: Cost = field(default_factory=Cost)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._text = TokenText(self.tokenizer)

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        answers = self.answers(episodes)
        self.counts.update(a.status for a in answers)
        return [_point_mass(e.num_decisions, a.k) for e, a in zip(episodes, answers, strict=True)]

    def answers(self, episodes: Sequence[ThoughtTrace]) -> list[Answer]:
        sampled = self.backend.sample([self._request(e) for e in episodes], self.temperature, self.top_p)
        self.spent.localisation_calls += len(sampled)
        self.spent.localisation_tokens += sum(len(s.ids) for s in sampled)
        texts = ["".join(self._text(t) for t in s.ids) for s in sampled]
        return [parse_answer(text, e.num_decisions) for text, e in zip(texts, episodes, strict=True)]

    def _request(self, episode: ThoughtTrace) -> Request:
        prompt = self.prompts.localize(self.tokenizer, episode.problem.question, episode.thoughts)
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        # the phase of the episode is folded into the slot: base and reset rollouts number their slots alike
        slot = episode.key.slot * len(Phase) + episode.key.phase
        key = episode.key.at(phase=Phase.LOCALISE, slot=slot)
        return Request(tuple(ids), key, first_draw=0, max_tokens=self.max_tokens, stop=NoStop())


@dataclass
class OracleLocalizer:
    """The task's true first wrong thought; no reset where the task does not know. Each prefix counts as one query."""

    task: Task
    spent: Cost = field(default_factory=Cost)

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        self.spent.oracle_queries += sum(e.num_decisions for e in episodes)
        return [_point_mass(e.num_decisions, self.task.first_error(e.problem, e.thoughts)) for e in episodes]
