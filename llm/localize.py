"""Localisers of the language model: reset samplers that name the first wrong thought of a failed response.

`SelfLocalizer` asks the model itself and parses its answer; `OracleLocalizer` asks a task that knows; `ValueLocalizer`
estimates from which thoughts the problem can still be solved; `EntropyLocalizer` cuts where the model was least sure.
An answer that cannot be used is *no reset* (the prompt falls back to plain GRPO) and is counted by kind. It never
becomes step 1.
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

from cpi.draws import DrawKey
from cpi.groups import Phase, failed
from cpi.resets import Cost, ResetSampler
from llm.generate import Backend, NoStop, Request, Sampled, ThoughtSimulator
from llm.tasks.base import Task
from llm.thoughts import Prompts, ThoughtTrace, last_boxed
from llm.values import episode_number, prefix_values

__all__ = [
    "Answer",
    "Earlier",
    "EntropyLocalizer",
    "OracleLocalizer",
    "SelfLocalizer",
    "ValueLocalizer",
    "parse_answer",
    "true_first_error",
]

_BOX = re.compile(r"\\boxed\s*\{")
_INTEGER = re.compile(r"\s*(?:step\s*)?(-?)0*(\d+)\s*", re.IGNORECASE)
_MOST_DIGITS = 9


@dataclass(frozen=True)
class Answer:
    """A localisation answer as read: status and, where it can be used, the cut k (0-based: keep k thoughts).

    usable: "exact" (one box) and "repeated" (several boxes: the last one counts, as the prompt asks for it on the last
    line). not usable: "missing" (no complete box), "not_a_number" (text, fractions, ranges), "out_of_range"; not
    asked: "too_long" (the question does not fit the context), "no_thought" (there is none that could be wrong).
    """

    status: Literal["exact", "repeated", "missing", "not_a_number", "out_of_range", "too_long", "no_thought"]
    k: int | None


def parse_answer(text: str, num_thoughts: int) -> Answer:
    r"""Read the step number N in 1..num_thoughts from the last complete ``\boxed{N}``; k = N - 1."""
    content = last_boxed(text)
    if content is None:
        return Answer("missing", None)
    number = _INTEGER.fullmatch(content)
    if number is None:
        return Answer("not_a_number", None)
    sign, digits = number.groups()
    if sign or len(digits) > _MOST_DIGITS or not 1 <= int(digits) <= num_thoughts:
        return Answer("out_of_range", None)
    return Answer("repeated" if len(_BOX.findall(text)) > 1 else "exact", int(digits) - 1)


@dataclass(frozen=True)
class Asked:
    """A localisation answer: key and length of its episode, tokens of question and answer, reading, logprobs."""

    seed: DrawKey
    num_decisions: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: Answer
    logprobs: tuple[float, ...]


def _point_mass(size: int, k: int | None) -> NDArray[np.float64]:
    row = np.zeros(size)
    if k is not None:
        row[k] = 1.0
    return row


def true_first_error(task: Task, episode: ThoughtTrace) -> int | None:
    """The index of the first wrong thought; None where the task does not know, or where no thought is wrong.

    The latter is a failure too: a response that was cut off, or stopped, before it went wrong.
    """
    k = task.first_error(episode.problem, episode.thoughts)
    return k if k is not None and k < episode.num_decisions else None


@dataclass
class SelfLocalizer:
    """The model's own answer to "which step is the first wrong one", one batch for all episodes.

    The answer is sampled at its own temperature from the key of the episode, so it does not depend on the batch. With
    `answers_per_seed` above 1 the row is the share of answers that name each cut; what is missing are unusable ones.
    `counts` holds the parse statuses so far, `asked` the answers of the last call by the key of their episode.
    A question that leaves no room for an answer in the backend's context, or is about a response without a thought, is
    not asked.
    """

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    temperature: float = 0.3
    top_p: float = 0.95
    max_tokens: int = 1024
    answers_per_seed: int = 1
    spent: Cost = field(default_factory=Cost)
    counts: Counter[str] = field(default_factory=Counter)
    asked: dict[DrawKey, list[Asked]] = field(default_factory=dict)

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        asked = self._ask([e for e in episodes for _ in range(self.answers_per_seed)])
        self.counts.update(a.answer.status for a in asked)
        self.asked = {}
        for a in asked:
            self.asked.setdefault(a.seed, []).append(a)
        masses = [_point_mass(a.num_decisions, a.answer.k) for a in asked]
        n = self.answers_per_seed
        return [np.mean(masses[i : i + n], axis=0) for i in range(0, len(masses), n)]

    def answers(self, episodes: Sequence[ThoughtTrace]) -> list[Answer]:
        """One answer for each episode."""
        return [a.answer for a in self._ask(episodes)]

    def _ask(self, episodes: Sequence[ThoughtTrace]) -> list[Asked]:
        """One answer for each entry; an episode that is given several times is asked from several draws."""
        times: Counter[DrawKey] = Counter()
        requests = []
        for e in episodes:
            requests.append(self._request(e, times[e.key]))
            times[e.key] += 1
        sampled = self.backend.sample(requests, self.temperature, self.top_p)
        self.spent.localisation_calls += sum(r.max_tokens > 0 for r in requests)
        self.spent.localisation_tokens += sum(len(s.ids) for s in sampled)
        return [self._read(*row) for row in zip(episodes, requests, sampled, strict=True)]

    def _read(self, episode: ThoughtTrace, request: Request, sampled: Sampled) -> Asked:
        if request.max_tokens > 0:
            text = self.tokenizer.decode(sampled.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answer = parse_answer(str(text), episode.num_decisions)
        else:
            answer = Answer("too_long" if episode.num_decisions else "no_thought", None)
        ids, logprobs = tuple(sampled.ids), tuple(sampled.logprobs)
        return Asked(episode.key, episode.num_decisions, request.ids, ids, answer, logprobs)

    def _request(self, episode: ThoughtTrace, again: int) -> Request:
        prompt = self.prompts.localize(self.tokenizer, episode.problem.question, episode.thoughts)
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        key = episode.key.at(phase=Phase.LOCALISE, slot=again << 32 | episode_number(episode))
        context = self.backend.context
        room = self.max_tokens if context is None else max(0, min(self.max_tokens, context - len(ids)))
        room = room if episode.num_decisions else 0
        return Request(tuple(ids), key, first_draw=0, max_tokens=room, stop=NoStop())


@dataclass
class OracleLocalizer:
    """The task's true first wrong thought; no reset where the task does not know. Each prefix counts as one query."""

    task: Task
    spent: Cost = field(default_factory=Cost)

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        self.spent.oracle_queries += sum(e.num_decisions for e in episodes)
        return [_point_mass(e.num_decisions, true_first_error(self.task, e)) for e in episodes]


@dataclass
class ValueLocalizer:
    """Monte Carlo values: cut before the thought after which no continuation has succeeded.

    V_k is the share of `continuations` rollouts from the first k thoughts that get full marks: a part of them, which
    some tasks give to wrong answers, is no success. The cut is the largest k with V_k > 0, so success has been seen
    from the prefix kept: on a task where errors cannot be undone the cut is never late, and it is early only where the
    rollouts from a good prefix all failed. If all of them failed there is nothing to tell and no reset ("no_success");
    other answers count as "success". Each seed of n thoughts costs n * continuations rollouts, which the account holds.
    Samplers of different `stream` (0 or 1) draw independently.
    """

    simulator: ThoughtSimulator
    continuations: int = 4
    stream: int = 0
    spent: Cost = field(default_factory=Cost)
    counts: Counter[str] = field(default_factory=Counter)

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        found = prefix_values(
            self.simulator,
            [(e, k) for e in episodes for k in range(e.num_decisions)],
            self.continuations,
            stream=self.stream,
            worth=lambda rollout: float(not failed(rollout)),
        )
        self.spent.rollouts += len(found.rollouts)
        self.spent.tokens += found.tokens
        ends = np.cumsum([e.num_decisions for e in episodes])
        return [self._row(values_K) for values_K in np.split(found.values, ends[:-1])]

    def _row(self, values_K: NDArray[np.float64]) -> NDArray[np.float64]:
        alive = np.flatnonzero(values_K > 0)
        self.counts["success" if alive.size else "no_success"] += 1
        return _point_mass(values_K.size, int(alive[-1]) if alive.size else None)


@dataclass
class EntropyLocalizer:
    """Cut before the thought that holds the token of highest entropy: where the model was least sure.

    The entropies were stored when the episode was sampled, so this costs nothing. Only thoughts that the episode
    sampled itself are considered; an episode without any is not reset. After the entropy-guided resets of FR3E
    (arXiv 2507.07017), which branches at tokens of a correct or wrong rollout alike.
    """

    spent: Cost = field(default_factory=Cost)

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        return [_point_mass(e.num_decisions, self._least_sure(e)) for e in episodes]

    def _least_sure(self, episode: ThoughtTrace) -> int | None:
        if episode.num_decisions == episode.start:
            return None
        token = episode.inherited_tokens + int(np.argmax(episode.entropies))
        return min(int(np.searchsorted(episode.ends, token, side="right")), episode.num_decisions - 1)


@dataclass(frozen=True)
class Earlier:
    """Another localiser's cuts, moved `by` thoughts towards the start: a margin against cuts that are late.

    An early cut throws away good thoughts, a late one keeps the error, so where errors cannot be undone it is never
    rewarded. A margin helps where late answers are late by little; those of the embedded model are late by several
    thoughts, and a margin of one did not help it (docs/log.md). Answers and cost are the other localiser's.
    """

    inner: ResetSampler[ThoughtTrace]
    by: int

    @property
    def spent(self) -> Cost:
        return self.inner.spent

    @property
    def counts(self) -> Counter[str]:
        return Counter(getattr(self.inner, "counts", {}))

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        return [self._moved(row_K) for row_K in self.inner.cut_probs(episodes)]

    def _moved(self, row_K: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = np.zeros_like(row_K)
        np.add.at(moved, np.maximum(np.arange(row_K.size) - self.by, 0), row_K)
        return moved
