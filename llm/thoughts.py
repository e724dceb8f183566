"""Thoughts: a response is a sequence of thoughts, each a run of tokens that ends with `</thought>`.

The thought is the action of the Thought MDP, and a reset state is *token ids exactly as sampled*: a prefix is a slice
of them and never decoded and encoded again, so a suffix sampled from it is on-policy.

Indices: `k` counts thoughts from 0, `t` counts tokens. The model is asked for a step in 1..n; its answer N is k = N-1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cpi.draws import DrawKey
from llm.rewards.base import Score
from llm.tasks.base import Problem

__all__ = [
    "THOUGHT_END",
    "BarePrompts",
    "InstructPrompts",
    "Prefix",
    "Prompts",
    "ThoughtTrace",
    "ThoughtWatch",
    "last_boxed",
    "split_text",
]

THOUGHT_END = "</thought>"


_BRACES = re.compile(r"\\\\(?!boxed)|\\[{}]|\\boxed\s*\{|[{}]")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` of a text, nested braces kept, or None.

    Escaped braces (``\{``) do not count as braces. One pass, whatever the text.
    """
    opened: list[int | None] = []  # where the content of a box begins; None for a plain brace
    found = (-1, -1)
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            begin = opened.pop() if opened else None
            if begin is not None and begin > found[0]:
                found = (begin, match.start())
        elif token == "{" or token.startswith("\\boxed"):
            opened.append(match.end() if len(token) > 1 else None)
    return text[found[0] : found[1]] if found[0] >= 0 else None


def split_text(text: str) -> list[str]:
    """A response as thoughts; text after the last delimiter counts as a thought unless it is blank."""
    pieces = text.split(THOUGHT_END)
    return [p.strip() for p in pieces[:-1]] + ([pieces[-1].strip()] if pieces[-1].strip() else [])


class ThoughtWatch:
    """Follows a response token by token: where thoughts end, and whether the final one is over.

    A thought ends after the token that completes the delimiter, even if that token carries further text (a byte pair
    tokenizer may fuse ``>`` with a newline, or with the beginning of ``\\boxed``). That text belongs to the next
    thought and is kept in `rests`, one for each end; by itself, without a token of its own, it is no thought. The
    response is over when a thought with a complete ``\\boxed{...}`` ends. Pieces given at once count as pushed.
    """

    def __init__(self, pieces: Sequence[str] = ()) -> None:
        self.ends: list[int] = []
        self.rests: list[str] = []
        self.over = False
        self._tail = ""
        self._count = 0
        for piece in pieces:
            self.push(piece)

    def push(self, piece: str) -> None:
        self._count += 1
        self._tail += piece
        if ">" not in piece or THOUGHT_END not in self._tail:
            return
        thought, _, rest = self._tail.rpartition(THOUGHT_END)
        self.ends.append(self._count)
        self.rests.append(rest)
        self.over = last_boxed(thought) is not None
        self._tail = rest

    @property
    def open_tokens(self) -> int:
        """Tokens since the last thought ended."""
        return self._count - (self.ends[-1] if self.ends else 0)

    @property
    def has_open_text(self) -> bool:
        carried = len(self.rests[-1]) if self.rests else 0
        return bool(self._tail[carried:].strip())


@dataclass(frozen=True)
class Prefix:
    """A reset state: the prompt's token ids and those of the response so far, as sampled.

    ends: for each whole thought the position in `thought_ids` after its last token. A prefix of whole thoughts stops
    there; one that was cut inside a thought goes on with the first tokens of that thought, `open_ids`.
    """

    problem: Problem
    prompt_ids: tuple[int, ...]
    thought_ids: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def k(self) -> int:
        """How many whole thoughts are kept."""
        return len(self.ends)

    @property
    def open_ids(self) -> tuple[int, ...]:
        """The tokens of the thought that the prefix ends in; none where it ends between thoughts."""
        return self.thought_ids[self.ends[-1] if self.ends else 0 :]


@dataclass(frozen=True)
class ThoughtTrace:
    """A finished response (a `cpi.episodes.Episode`): token ids with thought boundaries, text and score.

    ids: response token ids, inherited prefix included. ends: for each thought the position in `ids` after its last
    token, so thought k is ``ids[ends[k-1]:ends[k]]`` and reads `thoughts[k]`. start: whole thoughts inherited from the
    reset prefix; start_tokens: tokens inherited beyond them, where the prefix was cut inside thought `start`. finished:
    it ended by itself and not at a cap. logprobs, entropies: one per generated token (those from
    ``ids[inherited_tokens:]``), under softmax(logits / temperature) before top-p: the policy that is trained.
    """

    problem: Problem
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    thoughts: tuple[str, ...]
    start: int
    text: str
    score: Score
    key: DrawKey
    finished: bool
    logprobs: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    start_tokens: int = 0

    @property
    def num_decisions(self) -> int:
        return len(self.ends)

    @property
    def outcome(self) -> float:
        return self.score.value

    @property
    def inherited_tokens(self) -> int:
        """Length of the reset prefix in tokens of `ids`: the part that the prefix mask hides from the loss."""
        return (self.ends[self.start - 1] if self.start else 0) + self.start_tokens

    @property
    def generated(self) -> int:
        return len(self.ids) - self.inherited_tokens

    def prefix(self, k: int) -> Prefix:
        if not 0 <= k < max(self.num_decisions, 1):
            raise IndexError(f"cut {k} is outside 0..{self.num_decisions - 1}")
        return Prefix(self.problem, self.prompt_ids, self.ids[: self.ends[k - 1] if k else 0], self.ends[:k])

    def token_prefix(self, t: int) -> Prefix:
        """The first t tokens kept, wherever in a thought they end; at a thought's end it is the thought's prefix."""
        if not 0 <= t < max(len(self.ids), 1):
            raise IndexError(f"cut {t} is outside the tokens 0..{len(self.ids) - 1}")
        return Prefix(self.problem, self.prompt_ids, self.ids[:t], tuple(e for e in self.ends if e <= t))


class Prompts(Protocol):
    """How a model is asked to solve, to localise and to revise; all return the text to be tokenised."""

    def solve(self, tokenizer: Any, question: str) -> str: ...

    def localize(self, tokenizer: Any, question: str, thoughts: Sequence[str]) -> str: ...

    def revise(self, tokenizer: Any, question: str, attempt: str, remark: str) -> str:
        """To solve anew with an earlier attempt and a remark about it in the context."""
        ...


@dataclass(frozen=True)
class BarePrompts:
    """For models without a chat template: the question, and for localisation the thoughts and one cue.

    They begin as the tokenizer begins a text: without its first token, where there is one, base models such as Llama's
    and Gemma's are lost.

    The localisation prompt is the solve prompt, the thoughts each ended by the delimiter (so far the very text of the
    response), and the cue ``First wrong step: ``; the answer expected is ``\\boxed{N}``.
    """

    cue: str = "First wrong step: "

    def solve(self, tokenizer: Any, question: str) -> str:
        return f"{_beginning(tokenizer)}{question}\n"

    def localize(self, tokenizer: Any, question: str, thoughts: Sequence[str]) -> str:
        steps = "".join(f"{thought}{THOUGHT_END}" for thought in thoughts)
        return f"{self.solve(tokenizer, question)}{steps}{self.cue}"

    def revise(self, tokenizer: Any, question: str, attempt: str, remark: str) -> str:
        """The attempt, and the question once more: a model without a chat template is not told things in words."""
        return f"{self.solve(tokenizer, question)}{attempt}\n{question}\n"


def _beginning(tokenizer: Any) -> str:
    """What a tokenizer puts before every text, as text; without a tokenizer, as in `llm.tiny.recipe`, nothing."""
    if tokenizer is None:
        return ""
    first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    return str(tokenizer.bos_token) if first and first[0] == tokenizer.bos_token_id else ""


_SOLVE = """\
Work through the problem below one step at a time.

Rules for your answer:
- End every single step with the tag </thought> and write nothing else between steps.
- A step states one observation, one deduction or one calculation, complete in itself.
- Each step must follow from the problem and the steps before it, add something of substance and bring the solution \
forward; do not repeat, plan or comment.
- In the last step give the final answer inside \\boxed{{}}, and end that step with </thought> too.

Problem:
{question}"""

_LOCALIZE = """\
Here is a problem and an attempt to solve it, split into numbered steps.

Problem:
{question}

Attempt:
{steps}

The final answer of this attempt is wrong, so at least one step contains an error. Find the step in which things first \
go wrong: the origin of the error, not a later step in which its consequences show. Count a step as wrong if it cannot \
be justified from the problem statement together with the earlier steps that you have checked. Check the steps in \
order, and do not solve the problem anew. Name exactly one step, a number from 1 to {n}.

The last line of your reply must be the number of that step in this form:
\\boxed{{N}}"""


@dataclass(frozen=True)
class InstructPrompts:
    """For instruction-tuned models: the rules of the thought format and of localisation, in a chat template."""

    def solve(self, tokenizer: Any, question: str) -> str:
        return self._chat(tokenizer, _SOLVE.format(question=question))

    def localize(self, tokenizer: Any, question: str, thoughts: Sequence[str]) -> str:
        steps = "\n".join(f"Step {n}: {thought}" for n, thought in enumerate(thoughts, 1))
        return self._chat(tokenizer, _LOCALIZE.format(question=question, steps=steps, n=len(thoughts)))

    def revise(self, tokenizer: Any, question: str, attempt: str, remark: str) -> str:
        return self._chat(tokenizer, _SOLVE.format(question=question), attempt, remark)

    def _chat(self, tokenizer: Any, *turns: str) -> str:
        """Turns of user and assistant, in alternation, up to the assistant's next one."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
