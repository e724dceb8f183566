"""Continue any prefixes, all in one batch, every draw from its own key.

`ThoughtSimulator` is the language model's `cpi.simulate.Simulator`: a prefix is the token ids of prompt and response so
far; a continuation runs until a thought with a complete ``\\boxed{...}`` is closed, the end-of-sequence token, or a
cap.

`TransformersBackend` is a plain key-value-cache loop over any Hugging Face causal language model. It exists beside
``model.generate`` for what resets need: token t of a rollout is sampled by inverse CDF from draw t of its key, whatever
else is in the batch; a prefix shared by a group is computed once and its cache repeated; rows that are over leave the
batch, so that short suffixes cost little beside long ones. vLLM (`llm.vllm_backend`), or anything else that samples
token ids, can take its place through the `Backend` protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from cpi.draws import DrawKey, uniforms
from llm.tasks.base import Task
from llm.thoughts import THOUGHT_END, Prefix, Prompts, ThoughtTrace, ThoughtWatch

__all__ = [
    "Backend",
    "InitialBackend",
    "NoStop",
    "Request",
    "Sampled",
    "Sampling",
    "Stop",
    "ThoughtSimulator",
    "ThoughtStop",
    "TokenText",
    "TransformersBackend",
    "end_tokens",
    "evaluating",
]


_DRAWS_AT_ONCE = 128
_CANDIDATES = 256
"""Of the most probable tokens, how many are looked at for a nucleus before more are."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when a response is cut. temperature 0 is greedy; lengths in tokens."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 4096
    max_thoughts: int = 20
    max_thought_tokens: int = 256


class Stop(Protocol):
    """Told every token of one row; says when the row is over."""

    def push(self, piece: str) -> bool: ...


@dataclass(frozen=True)
class Request:
    """One row to sample: context ids, the key of its draws, the index of its first draw, its budget and stop rule."""

    ids: tuple[int, ...]
    key: DrawKey
    first_draw: int
    max_tokens: int
    stop: Stop


@dataclass(frozen=True)
class Sampled:
    """One row as sampled, the end-of-sequence token included. over: it ended by stop rule or end-of-sequence.

    entropies: empty from a backend that has none (vLLM).
    """

    ids: list[int]
    logprobs: list[float]
    entropies: list[float]
    over: bool


class Backend(Protocol):
    """Where tokens come from. Rows come back in the order of the requests."""

    @property
    def context(self) -> int | None:
        """The most tokens of prompt and response together; None where nothing names a bound."""
        ...

    def sample(self, requests: Sequence[Request], temperature: float, top_p: float) -> list[Sampled]: ...


class TokenText:
    """The text of single tokens, special tokens empty; decoded once each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = str(self._tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False))
            self._pieces[token] = piece
        return piece


class ThoughtStop:
    """A response is over when a thought with a complete box is closed, or when a thought or their number is too big.

    begun: the pieces of the response that a reset goes on from; its thoughts and the tokens of its open thought count.
    capped: the row ended for one of the latter reasons.
    """

    def __init__(self, max_thoughts: int, max_thought_tokens: int, begun: Sequence[str] = ()) -> None:
        self.watch = ThoughtWatch(begun)
        self.capped = False
        self._max_thoughts = max_thoughts
        self._max_thought_tokens = max_thought_tokens

    def push(self, piece: str) -> bool:
        self.watch.push(piece)
        too_many = len(self.watch.ends) >= self._max_thoughts
        self.capped = not self.watch.over and (too_many or self.watch.open_tokens >= self._max_thought_tokens)
        return self.watch.over or self.capped


class NoStop:
    """Nothing but the end-of-sequence token or the budget ends the row."""

    def push(self, piece: str) -> bool:
        return False


def context_of(model: PreTrainedModel) -> int | None:
    """The most tokens of prompt and response together that a model's config names, or None."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a sequence: the model's own and the tokenizer's."""
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = eos if isinstance(eos, list) else [eos]
    return frozenset(int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None)


@dataclass
class TransformersBackend:
    """Samples from a Hugging Face causal language model, `max_rows` rows at a time.

    `model` may be exchanged between calls: during a step the trainer puts the unwrapped model of accelerate here.
    `initial` is its copy of the model before training, if a method needs one and no adapter keeps the weights as they
    were.
    """

    model: Any
    eos_ids: frozenset[int]
    pad_id: int
    text: TokenText
    max_rows: int = 512
    initial: Any = None
    context: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_rows: int = 512) -> TransformersBackend:
        eos_ids = end_tokens(model, tokenizer)
        pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids))
        return cls(model, eos_ids, pad_id, TokenText(tokenizer), max_rows, context=context_of(model))

    def sample(self, requests: Sequence[Request], temperature: float, top_p: float) -> list[Sampled]:
        out: list[Sampled] = [Sampled([], [], [], False)] * len(requests)
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
        with torch.no_grad(), evaluating(self.model):
            for begin in range(0, len(requests), self.max_rows):
                chunk = longest_first[begin : begin + self.max_rows]
                rows = _Rows(self.model, [requests[i] for i in chunk], self, temperature, top_p)
                for i, sampled in zip(chunk, rows.run(), strict=True):
                    out[i] = sampled
        return out


@dataclass(frozen=True)
class InitialBackend:
    """Samples from the model that another backend's was before training: from its copy, or with the adapter off."""

    trained: TransformersBackend

    @property
    def context(self) -> int | None:
        return self.trained.context

    def sample(self, requests: Sequence[Request], temperature: float, top_p: float) -> list[Sampled]:
        if self.trained.initial is not None:
            return replace(self.trained, model=self.trained.initial).sample(requests, temperature, top_p)
        if not hasattr(self.trained.model, "disable_adapter"):
            raise ValueError(
                "nothing keeps the weights of before training: set `initial` of the backend, or an adapter"
            )
        with self.trained.model.disable_adapter():
            return self.trained.sample(requests, temperature, top_p)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No dropout, and a cache even under gradient checkpointing, which is off outside training mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass
class _Batch:
    """Rows with a common width: logits of their next token [N, V], their cache, and which slots are theirs [N, T]."""

    logits: torch.Tensor
    cache: DynamicCache
    attention: torch.Tensor
    where: Mapping[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def can_be_cut(self) -> bool:
        """Whether the cache has one slot for every token; a sliding window or a recurrent state has not."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def rows(self, contexts: Sequence[tuple[int, ...]], width: int) -> _Batch:
        """The rows of these contexts, as often as they are named, as wide as asked for (if the cache can be cut)."""
        index = torch.tensor([self.where[ids] for ids in contexts], device=self.logits.device)
        if not self.can_be_cut:
            self.cache.reorder_cache(index)  # which every kind of layer has, recurrent ones too
            return _Batch(self.logits[index], self.cache, self.attention[index])
        padding = max(0, width - self.attention.shape[1])
        cache = DynamicCache()
        for i, layer in enumerate(self.cache.layers):
            slots = (pad(x[:, :, -width:][index], (0, 0, padding, 0)) for x in (layer.keys, layer.values))
            cache.update(*slots, i)
        return _Batch(self.logits[index], cache, pad(self.attention[index, -width:], (padding, 0)))

    def joined(self, other: _Batch) -> _Batch:
        """These rows and then the other ones, of the same width."""
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])
        logits = torch.cat([self.logits, other.logits])
        return _Batch(logits, self.cache, torch.cat([self.attention, other.attention]))


class _Rows:
    """One batch of rows being sampled. `live` holds the positions of rows that have joined it and are not over.

    Rows of resets differ in how much of the response they begin with. Padded to the longest, a short prefix would carry
    padding through all its suffix. So a row joins when the batch has come to its place in the response: the padding
    evens out no more than prompts, and the passes are no more than a response has tokens.
    """

    def __init__(
        self, model: Any, requests: Sequence[Request], backend: TransformersBackend, temperature: float, top_p: float
    ) -> None:
        self.model, self.requests, self.backend = model, requests, backend
        self.temperature, self.top_p = temperature, top_p
        self.device = next(model.parameters()).device
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64  # Apple GPUs lack float64
        self.done = [Sampled([], [], [], False) for _ in requests]
        self.over = np.array([r.max_tokens <= 0 for r in requests])
        self._u_NT = np.empty((len(requests), 0))

    def _uniforms(self, rows: np.ndarray) -> torch.Tensor:
        """The draw of each row's next token; drawn in chunks, since most rows end early."""
        t_N = np.array([len(self.done[row].ids) for row in rows])
        while t_N.max() >= (drawn := self._u_NT.shape[1]):
            more = [uniforms([r.key], _DRAWS_AT_ONCE, start=r.first_draw + drawn) for r in self.requests]
            self._u_NT = np.concatenate([self._u_NT, np.concatenate(more)], axis=1)
        return torch.as_tensor(self._u_NT[rows, t_N], device=self.device, dtype=self.dtype)

    def run(self) -> list[Sampled]:
        waiting = np.flatnonzero(~self.over)
        if waiting.size == 0:
            return self.done
        prefilled = self._prefill(waiting)
        starts = self._starts(waiting, prefilled)
        width = max(len(self.requests[int(row)].ids) - start for row, start in zip(waiting, starts, strict=True))
        live, batch = waiting[:0], None
        step = 0
        while live.size or waiting.size:
            if not live.size:
                step, batch = max(step, int(starts.min())), None
            now = starts <= step
            if now.any():
                joining = prefilled.rows([self.requests[row].ids for row in waiting[now]], width + step)
                batch = joining if batch is None else batch.joined(joining)
                live = np.concatenate([live, waiting[now]])
                waiting, starts = waiting[~now], starts[~now]
            assert batch is not None
            tokens = self._draw(batch.logits, live)
            keep = ~self.over[live]
            live = live[keep]
            step += 1
            if live.size:
                self._forward(batch, tokens, keep)
        return self.done

    def _starts(self, waiting: np.ndarray, prefilled: _Batch) -> np.ndarray:
        """The step at which each row joins: as far into the response as its prefix is, the shortest at once."""
        begun = np.array([self.requests[row].first_draw for row in waiting])
        if not prefilled.can_be_cut:
            return np.zeros_like(begun)
        return begun - begun.min()

    def _forward(self, batch: _Batch, tokens: torch.Tensor, keep: np.ndarray) -> None:
        """One pass over the rows to keep, each with its new token; those that are over leave the batch."""
        if not keep.all():
            index = torch.as_tensor(np.flatnonzero(keep), device=self.device)
            batch.cache.reorder_cache(index)
            batch.attention, tokens = batch.attention[index], tokens[index]
        batch.attention = torch.cat([batch.attention, batch.attention.new_ones(len(tokens), 1)], dim=1)
        batch.logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=batch.attention,
            position_ids=batch.attention.sum(dim=1, keepdim=True) - 1,
            past_key_values=batch.cache,
            use_cache=True,
        ).logits[:, -1]

    def _prefill(self, rows: np.ndarray) -> _Batch:
        """Each distinct context once, left-padded."""
        contexts = list(dict.fromkeys(self.requests[i].ids for i in rows))
        width = max(len(ids) for ids in contexts)
        filler = self.backend.pad_id
        ids_CT = torch.tensor([[filler] * (width - len(c)) + list(c) for c in contexts], device=self.device)
        attention = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=self.device)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=ids_CT,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            # by index and not as a slice: torch multiplies a strided slice by a frozen head as a batch of copies of it
            logits_to_keep=torch.tensor([width - 1], device=self.device),
        ).logits[:, -1]
        return _Batch(logits, cache, attention, {ids: c for c, ids in enumerate(contexts)})

    def _draw(self, logits_NV: torch.Tensor, live: np.ndarray) -> torch.Tensor:
        logp_NV = torch.log_softmax(logits_NV.float() / (self.temperature or 1.0), dim=-1)
        if self.temperature == 0:
            tokens = logp_NV.argmax(dim=-1)
        else:
            probs_NC, ids_NC = _nucleus(logp_NV, self.top_p, self.dtype)
            drawn = _inverse_cdf(probs_NC, self._uniforms(live))
            tokens = ids_NC.gather(1, drawn[:, None])[:, 0]
        chosen = logp_NV.gather(1, tokens[:, None])[:, 0].tolist()
        entropies = -(logp_NV.exp() * logp_NV).nan_to_num().sum(dim=-1)
        for row, token, logprob, entropy in zip(live, tokens.tolist(), chosen, entropies.tolist(), strict=True):
            self._append(int(row), token, logprob, entropy)
        return tokens

    def _append(self, row: int, token: int, logprob: float, entropy: float) -> None:
        request, sampled = self.requests[row], self.done[row]
        sampled.ids.append(token)
        sampled.logprobs.append(logprob)
        sampled.entropies.append(entropy)
        ended = token in self.backend.eos_ids or request.stop.push(self.backend.text(token))
        if ended:
            self.done[row] = Sampled(sampled.ids, sampled.logprobs, sampled.entropies, True)
        self.over[row] = ended or len(sampled.ids) >= request.max_tokens


def _nucleus(logp_NV: torch.Tensor, top_p: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020).

    Of tokens of one probability (in bfloat16 there are many) those of smaller id are taken first. Returns probabilities
    [N, C], renormalised, and token ids [N, C] in ascending order; what is outside has probability zero. Sorting a
    vocabulary of 50,000 takes longer than a small model's forward pass, so only as many of the most probable tokens are
    looked at as hold the nucleus of every row, and what is as probable as its last token; the result is the same.
    """
    V = logp_NV.shape[1]
    if top_p >= 1.0:
        return logp_NV.to(dtype).exp(), torch.arange(V, device=logp_NV.device).expand_as(logp_NV)
    C = min(_CANDIDATES, V)
    while True:
        best, ids = _by_probability(logp_NV, C)
        probs = best.to(dtype).exp()
        outside = probs.cumsum(dim=-1) - probs >= top_p
        last = best.masked_fill(outside, torch.inf).amin(dim=-1)  # the least probable of the nucleus
        if C == V or bool((best[:, -1] < last).all()):
            break
        C = min(C * 16, V)
    ids, order = ids.sort(dim=-1)
    kept = probs.masked_fill(outside, 0.0).gather(1, order)
    return kept / kept.sum(dim=-1, keepdim=True), ids


def _by_probability(logp_NV: torch.Tensor, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The C most probable tokens [N, C] with their ids, the most probable first, ties by id (but at the last place)."""
    if logp_NV.shape[1] == C:
        return logp_NV.sort(dim=-1, descending=True, stable=True)
    best, ids = logp_NV.topk(C, dim=-1, sorted=False)
    ids, order = ids.sort(dim=-1)
    best, order = best.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return best, ids.gather(1, order)


def _inverse_cdf(probs_NC: torch.Tensor, u_N: torch.Tensor) -> torch.Tensor:
    """The column that u falls on, in the order of token ids, as `cpi.draws.inverse_cdf` on a table."""
    cdf = probs_NC.cumsum(dim=-1)
    u = (u_N * cdf[:, -1])[:, None]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp(max=probs_NC.shape[1] - 1)


@dataclass
class ThoughtSimulator:
    """Continues prefixes of thoughts with a language model and has the task score the results, in one batch each."""

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    task: Task
    prompts: Prompts
    sampling: Sampling

    def __post_init__(self) -> None:
        self._text = TokenText(self.tokenizer)

    def root(self, problem: Any) -> Prefix:
        """The start state of a problem: its prompt's token ids and no thought."""
        return self._state(problem, self.prompts.solve(self.tokenizer, problem.question))

    def revision_root(self, problem: Any, attempt: str, remark: str) -> Prefix:
        """The start state of a second attempt, which sees the first one and a remark about it."""
        return self._state(problem, self.prompts.revise(self.tokenizer, problem.question, attempt, remark))

    def _state(self, problem: Any, text: str) -> Prefix:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prefix(problem, tuple(ids))

    def continue_from(self, prefixes: Sequence[Prefix], keys: Sequence[DrawKey]) -> list[ThoughtTrace]:
        caps = self.sampling.max_thoughts, self.sampling.max_thought_tokens
        stops = [ThoughtStop(*caps, self._pieces(p.thought_ids)) for p in prefixes]
        requests = [
            Request(
                ids=p.prompt_ids + p.thought_ids,
                key=key,
                first_draw=len(p.thought_ids),
                max_tokens=self.sampling.max_tokens - len(p.thought_ids),
                stop=stop,
            )
            for p, key, stop in zip(prefixes, keys, stops, strict=True)
        ]
        sampled = self.backend.sample(requests, self.sampling.temperature, self.sampling.top_p)
        texts = [self._decode(p.thought_ids + tuple(s.ids)) for p, s in zip(prefixes, sampled, strict=True)]
        scores = self.task.score([p.problem for p in prefixes], texts) if prefixes else []
        finished = [row.over and not stop.capped for row, stop in zip(sampled, stops, strict=True)]
        rows = zip(prefixes, keys, sampled, texts, scores, finished, strict=True)
        return [self._trace(*row) for row in rows]

    def _trace(self, prefix: Prefix, key: DrawKey, row: Sampled, text: str, score: Any, finished: bool) -> ThoughtTrace:
        ids = prefix.thought_ids + tuple(row.ids)
        watch = ThoughtWatch(self._pieces(ids))
        ends = [*watch.ends, len(ids)] if watch.has_open_text else watch.ends  # cut off in the middle of a thought
        return ThoughtTrace(
            problem=prefix.problem,
            prompt_ids=prefix.prompt_ids,
            ids=ids,
            ends=tuple(ends),
            thoughts=self._thoughts(ids, ends, watch.rests),
            start=prefix.k,
            text=text,
            score=score,
            key=key,
            finished=finished,
            logprobs=tuple(row.logprobs),
            entropies=tuple(row.entropies),
            start_tokens=len(prefix.open_ids),
        )

    def _thoughts(self, ids: tuple[int, ...], ends: Sequence[int], rests: Sequence[str]) -> tuple[str, ...]:
        """The texts of thoughts; what a token carries beyond a thought's end is moved to the next one."""
        texts = [self._decode(ids[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
        for i, rest in enumerate(rests):
            texts[i] = texts[i].removesuffix(rest)
            if i + 1 < len(texts):
                texts[i + 1] = rest + texts[i + 1]
        return tuple(text.replace(THOUGHT_END, "").strip() for text in texts)

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._text(token) for token in ids]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
