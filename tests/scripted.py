"""A scripted language model: a table in the clothes of a Hugging Face causal model, for exact tests.

A thought tree of depth H and Y actions a node, as a `FiniteMDP` and as tokens. State (h, x) of the table is the node
reached by the first h actions, x their number in base Y. As tokens each thought is one token, ``0</thought>`` and so
on, and the model's last layer *is* the table of logits: its hidden state is the one-hot of the node, so
``lm_head.weight[token of y, node] = theta[h, x, y]``. The same theta gives the same policy on both sides, and the
gradient with respect to `lm_head.weight` is the gradient with respect to theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from cpi.mdp import FiniteMDP
from llm.generate import Sampling, ThoughtSimulator, TransformersBackend
from llm.rewards.base import Score
from llm.tasks.base import Problem
from llm.thoughts import BarePrompts, ThoughtTrace

PAD, EOS, ASK, BREAK = 0, 1, 2, 3
FIRST_ACTION = 4
NEVER = -1e4


class ScriptedConfig(PretrainedConfig):
    model_type = "scripted"

    def __init__(self, depth: int = 3, actions: int = 3, **kwargs: Any) -> None:
        self.depth, self.actions = depth, actions
        self.vocab_size = FIRST_ACTION + actions
        self.hidden_size = sum(actions**h for h in range(depth + 1)) + 1
        self.num_hidden_layers = 1
        super().__init__(**kwargs)


class _Nodes(torch.nn.Module):
    """Token history -> one-hot of the node after it; the history is kept as the keys of the cache."""

    def __init__(self, config: ScriptedConfig) -> None:
        super().__init__()
        self.config = config
        first = np.cumsum([0] + [config.actions**h for h in range(config.depth + 1)])
        self.first = [int(f) for f in first]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past_key_values: Any = None, **_: Any
    ) -> BaseModelOutputWithPast:
        history = input_ids
        if past_key_values is not None:
            keys = input_ids.to(torch.float64)[:, None, :, None]
            history = past_key_values.update(keys, keys, 0)[0][:, 0, :, 0].long()
        states = torch.stack([self._node(row, mask) for row, mask in zip(history, attention_mask, strict=True)])
        hidden = torch.nn.functional.one_hot(states, self.config.hidden_size).to(torch.float64)
        hidden = hidden[:, -input_ids.shape[1] :]
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _node(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The node after each position; the last hidden unit stands for "before or beyond the tree"."""
        h = x = 0
        out = []
        for token, real in zip(tokens.tolist(), mask.tolist(), strict=True):
            if real and token >= FIRST_ACTION:
                h, x = h + 1, x * self.config.actions + token - FIRST_ACTION
            outside = h > self.config.depth
            out.append(self.config.hidden_size - 1 if outside else self.first[h] + x)
        return torch.tensor(out)


class ScriptedLM(PreTrainedModel, GenerationMixin):
    """See the module's docstring."""

    config_class = ScriptedConfig
    base_model_prefix = "nodes"

    def __init__(self, config: ScriptedConfig) -> None:
        super().__init__(config)
        self.nodes = _Nodes(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=torch.float64)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        keep = kwargs.pop("logits_to_keep", 0)
        body = self.nodes(input_ids, attention_mask, **kwargs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(body.last_hidden_state[:, -keep:]), past_key_values=body.past_key_values
        )

    def load_theta(self, theta: np.ndarray) -> None:
        """Logits theta [H, X, Y] of the table, X = Y**(H-1) (only the first Y**h states exist at time h)."""
        weight = torch.full_like(self.lm_head.weight, NEVER)
        for h in range(self.config.depth):
            for x in range(self.config.actions**h):
                weight[FIRST_ACTION:, self.nodes.first[h] + x] = torch.as_tensor(theta[h, x])
        with torch.no_grad():
            self.lm_head.weight.copy_(weight)

    def theta_grad(self, X: int) -> np.ndarray:
        """The gradient of the output layer, laid out as theta [H, X, Y]."""
        grad = self.lm_head.weight.grad.numpy()
        out = np.zeros((self.config.depth, X, self.config.actions))
        for h in range(self.config.depth):
            for x in range(self.config.actions**h):
                out[h, x] = grad[FIRST_ACTION:, self.nodes.first[h] + x]
        return out


def tree_mdp(depth: int, actions: int, right: Sequence[int]) -> FiniteMDP:
    """The tree as a table: reward 1 at the end of the one path `right`, deterministic moves."""
    X = actions ** (depth - 1)
    P = np.zeros((depth, X, actions, X))
    r = np.zeros((depth, X, actions))
    P[:, :, :, 0] = 1.0
    for h in range(depth - 1):
        for x in range(actions**h):
            P[h, x] = 0.0
            P[h, x, np.arange(actions), x * actions + np.arange(actions)] = 1.0
    leaf = int(sum(y * actions ** (depth - 1 - h) for h, y in enumerate(right)))
    r[depth - 1, leaf // actions, leaf % actions] = 1.0
    return FiniteMDP(P=P, r=r, mu=np.eye(1, X)[0])


@dataclass(frozen=True)
class TreeTask:
    """The tree as a task: right iff the thoughts name the path; the first error is the first step off it."""

    right: tuple[int, ...]
    name: str = field(default="tree")

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        return [Problem(uid=f"{split}{i}", question="?", answer="") for i in range(n)]

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        want = "".join(f"{y}</thought>" for y in self.right)
        return [Score(1.0, "correct") if r.replace(" ", "") == want else Score(0.0, "wrong") for r in responses]

    @property
    def knows_first_error(self) -> bool:
        return True

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> int | None:
        wrong = [k for k, (t, y) in enumerate(zip(thoughts, self.right, strict=False)) if t.strip() != str(y)]
        return wrong[0] if wrong else None


def tree_tokenizer(actions: int) -> PreTrainedTokenizerFast:
    vocab = {"<pad>": PAD, "<eos>": EOS, "?": ASK, "\n": BREAK}
    vocab |= {f"{y}</thought>": FIRST_ACTION + y for y in range(actions)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d</thought>|\n|\?"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def tree_simulator(theta: np.ndarray, right: Sequence[int]) -> tuple[ScriptedLM, ThoughtSimulator]:
    """The tree as a language model with logits `theta`, sampled at temperature 1 without a nucleus."""
    depth, _, actions = theta.shape
    model = ScriptedLM(ScriptedConfig(depth=depth, actions=actions))
    model.load_theta(theta)
    tokenizer = tree_tokenizer(actions)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=depth, max_thoughts=depth)
    backend = TransformersBackend.of(model, tokenizer)
    return model, ThoughtSimulator(backend, tokenizer, TreeTask(tuple(right)), BarePrompts(), sampling)


def actions_of(trace: ThoughtTrace) -> list[int]:
    return [token - FIRST_ACTION for token in trace.ids]
