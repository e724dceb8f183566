r"""How the embedded model is warm-started: supervised fine-tuning from scratch on an unreliable teacher.

The teacher writes chains in the thought format. It always knows the easy functions. Each fact of a hard function
(its value at one x) it gets right with the family's reliability; otherwise it states that fact's *misconception*, one
fixed other value. A student that fits the teacher is then as unreliable as the teacher, step by step and
independently, and its most likely answer to a half-known fact is as often the misconception as the truth: greedy
decoding leaves as much to learn as sampling does. The misconception of x is the truth of x + s, so wrong steps are
bijections too and no wrong value absorbs.

Localisation is taught on the teacher's failures, which are like the model's own: after the response come the cue and
a check that recomputes each step from the value that the step itself started with, puts what the step says beside it,
and ends where they differ:

    First wrong step: 1:4 4 2:9 9 3:5 0 \boxed{3}

(The bare number alone, or a verdict such as "ok" for each step, was not learned in 2500 and 1500 updates: whether a
value is right depends on function, argument and value together, and no two of them say anything.) The checker has blind
spots, `blind` facts of each hard function where it holds the misconception itself, so the localiser errs in both
directions. Its loss is held back until `language_share` of the training is over, so that the chains are learned first;
a caution that this form of the check could do without (mixed in from the first update, both losses fall as fast).

Questions of the evaluation split are never used (a chain is in one split, by its hash, see `llm.tasks.dials`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm.tasks.base import Problem
from llm.tasks.chains import EASY, FUNCTIONS, FUNCTIONS_PER_FAMILY, RELIABILITIES, VALUES, Chains
from llm.tasks.dials import MAX_STEPS, split_of
from llm.thoughts import THOUGHT_END, BarePrompts
from llm.tiny.tokenizer import build_tokenizer

__all__ = ["Recipe", "Teacher", "build_model", "warm_start"]

_NONE, _LANGUAGE, _LOCALISATION = range(3)
_MIN_STEPS = 2
_VALUE = re.compile(r"=([0-9]+)")


@dataclass(frozen=True)
class Recipe:
    """What `warm_start` does; the defaults made the committed checkpoint (with seed 0).

    seed: of the weights and of the data. updates: optimiser steps. batch: sequences in one step (all of one length).
    peak_lr: of AdamW, constant but for a warm-up and a final decay. language_share: the share of the updates
    before localisation joins. blind: facts of each hard function that the checker has wrong.
    hidden, layers, heads, feed_forward: the size of the Llama.
    """

    seed: int = 0
    updates: int = 2000
    batch: int = 32
    peak_lr: float = 3e-3
    language_share: float = 0.35
    blind: int = 1
    hidden: int = 64
    layers: int = 4
    heads: int = 4
    feed_forward: int = 128


@dataclass(frozen=True)
class Example:
    """A chain as the teacher did it; `check` names its first wrong step and is empty where there is none."""

    prompt: str
    response: str
    check: str


@dataclass(frozen=True)
class Teacher:
    """Writes chains and checks them. blind: how many values of each hard function the checker has wrong. shift: s."""

    blind: int = 1
    shift: int = 3

    def misconception(self, name: str, x: int) -> int:
        """What is wrongly held to be the value of a hard function at x; easy functions are not misremembered."""
        return FUNCTIONS[name][x if name[0] == EASY else (x + self.shift) % VALUES]

    def step(self, name: str, x: int, reliability: float, u: float) -> int:
        """The teacher's value of `name` at x, from a uniform `u`."""
        return FUNCTIONS[name][x] if u < reliability else self.misconception(name, x)

    def believed(self, name: str, x: int) -> int:
        """The checker's value of `name` at x: the misconception on its blind spots, which are x < `blind`."""
        return FUNCTIONS[name][x] if x >= self.blind else self.misconception(name, x)

    def attempt(self, problem: Problem, reliability: float, rng: np.random.Generator) -> list[str]:
        """A response to a chain, right or not, as thoughts."""
        functions, values = problem.meta["functions"], [problem.meta["values"][0]]
        for name, u in zip(functions, rng.random(len(functions)), strict=True):
            values.append(self.step(name, values[-1], reliability, u))
        return Chains.thoughts(functions, values)

    def question(self, steps: int, rng: np.random.Generator) -> tuple[Problem, float]:
        """A training question with any number of hard steps of any family, and the family's reliability."""
        reliability, family = list(RELIABILITIES.items())[rng.integers(len(RELIABILITIES))]
        while True:
            hard = rng.permutation(steps) < rng.integers(steps + 1)
            which = rng.integers(FUNCTIONS_PER_FAMILY, size=steps)
            functions = [f"{family if h else EASY}{i}" for h, i in zip(hard, which, strict=True)]
            problem = Chains.problem(int(rng.integers(VALUES)), functions)
            if split_of(problem.question) == "train":
                return problem, reliability

    def check(self, problem: Problem, thoughts: Sequence[str]) -> str:
        """The checker's answer to a failed response: each step recomputed, up to the first that disagrees."""
        functions = problem.meta["functions"]
        values = [problem.meta["values"][0], *(int(_VALUE.findall(thought)[0]) for thought in thoughts)]
        steps: list[str] = []
        for n, (name, x, y) in enumerate(zip(functions, values, values[1:], strict=False), 1):
            believed = self.believed(name, x)
            steps.append(f"{n}:{believed} {y}")
            if believed != y:
                break
        return " ".join(steps) + f" \\boxed{{{len(steps)}}}"

    def example(self, steps: int, rng: np.random.Generator) -> Example:
        """One training sequence of a chain with `steps` steps."""
        problem, reliability = self.question(steps, rng)
        thoughts = self.attempt(problem, reliability, rng)
        return Example(
            prompt=BarePrompts().solve(None, problem.question),
            response="".join(f"{thought}{THOUGHT_END}" for thought in thoughts),
            check="" if Chains().first_error(problem, thoughts) is None else self.check(problem, thoughts),
        )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _encode(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids, and for each the kind of loss that it takes part in."""
    parts = [(example.prompt, _NONE), (example.response, _LANGUAGE)]
    parts += [(BarePrompts().cue, _NONE), (example.check, _LOCALISATION)] if example.check else []
    ids: list[int] = []
    kinds: list[int] = []
    for text, kind in parts:
        new = tokenizer(text).input_ids
        ids, kinds = ids + new, kinds + [kind] * len(new)
    return [*ids, tokenizer.eos_token_id], [*kinds, kinds[-1]]


def losses(model: LlamaForCausalLM, tokenizer: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the tokens of responses, and over those of checks (0 where there are none)."""
    rows = [_encode(example, tokenizer) for example in examples]
    T = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (T - len(ids)) for ids, _ in rows])
    kinds_BT = torch.tensor([kinds + [_NONE] * (T - len(kinds)) for _, kinds in rows])
    logits = model(input_ids=ids_BT[:, :-1]).logits  # padded on the right, so causal attention needs no mask
    nll_BT = cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none")
    language, localisation = (kinds_BT[:, 1:] == kind for kind in (_LANGUAGE, _LOCALISATION))
    return (nll_BT * language).sum() / language.sum(), (nll_BT * localisation).sum() / localisation.sum().clamp(min=1)


def _lr_factor(update: int, updates: int) -> float:
    """Linear warm-up over the first twentieth, linear decay over the last quarter, constant between."""
    return min(1.0, 20 * (update + 1) / updates, 4 * (1 - update / updates))


def warm_start(
    recipe: Recipe, on_update: Callable[[int, float, float], None] = lambda update, language, localisation: None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, NDArray[np.float64]]:
    """Train a model from scratch by the recipe; returns it, its tokenizer and both losses of every update [U, 2]."""
    tokenizer, teacher, rng = build_tokenizer(), Teacher(recipe.blind), np.random.default_rng(recipe.seed)
    model = build_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: _lr_factor(update, recipe.updates))
    history = np.zeros((recipe.updates, 2))
    for update in range(recipe.updates):
        steps = int(rng.integers(_MIN_STEPS, MAX_STEPS + 1))
        examples = [teacher.example(steps, rng) for _ in range(recipe.batch)]
        language, localisation = losses(model, tokenizer, examples)
        loss = language + localisation if update >= recipe.language_share * recipe.updates else language
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history[update] = language.item(), localisation.item()
        on_update(update, *history[update])
    return model.eval(), tokenizer, history
