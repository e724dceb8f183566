"""The nucleus from the most probable tokens alone is the nucleus of the whole vocabulary; caps of a response; rows that
join the batch where their prefix ends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from cpi.draws import DrawKey, inverse_cdf
from llm.generate import (
    _CANDIDATES,
    NoStop,
    Request,
    Sampled,
    Sampling,
    ThoughtSimulator,
    TransformersBackend,
    _inverse_cdf,
    _nucleus,
)
from llm.rewards.base import Score
from llm.setup import build_world, load_model
from llm.tasks import load_task
from llm.tasks.base import Problem
from llm.thoughts import BarePrompts, Prefix
from llm.tiny.tokenizer import build_tokenizer


def _logp(V: int, scale: float) -> torch.Tensor:
    return torch.log_softmax(scale * torch.randn(8, V, generator=torch.Generator().manual_seed(V)), dim=-1)


def _by_definition(logp_V: np.ndarray, top_p: float) -> np.ndarray:
    """Token by token, from the most probable on, until their mass reaches top_p."""
    probs, kept, mass = np.exp(logp_V.astype(np.float64)), np.zeros(logp_V.size), 0.0
    for token in np.argsort(-probs):
        if mass >= top_p:
            break
        kept[token] = probs[token]
        mass += probs[token]
    return kept / kept.sum()


@pytest.mark.parametrize(("V", "scale"), [(50, 2.0), (3000, 6.0), (6000, 3.5), (6000, 0.1)])
@pytest.mark.parametrize("top_p", [0.5, 0.95])
def test_the_nucleus_is_the_smallest_set_of_most_probable_tokens(V, scale, top_p):
    logp = _logp(V, scale)
    probs, ids = _nucleus(logp, top_p, torch.float64)
    assert (ids.diff(dim=-1) > 0).all()
    whole = torch.zeros(8, V, dtype=torch.float64).scatter(1, ids, probs).numpy()
    for row, want in zip(whole, logp.numpy(), strict=True):
        np.testing.assert_allclose(row, _by_definition(want, top_p), atol=1e-12)


def test_a_peaked_distribution_over_a_large_vocabulary_is_not_sorted_whole():
    probs, _ = _nucleus(_logp(6000, 6.0), 0.95, torch.float64)
    assert probs.shape[1] == _CANDIDATES


def test_the_nucleus_of_a_row_is_its_own_where_probabilities_are_equal():
    """In bfloat16 many are; beside a flat row more candidates are looked at, and must be taken in the same order."""
    logits = torch.randn(64, 2000, generator=torch.Generator().manual_seed(0)).mul(2).bfloat16().float()
    logp = torch.log_softmax(logits, dim=-1)
    flat = torch.log_softmax(torch.zeros(1, 2000), dim=-1)

    def tokens(rows: torch.Tensor) -> list[dict[int, float]]:
        probs, ids = _nucleus(rows, 0.9, torch.float64)
        return [
            {int(i): float(p) for p, i in zip(*pair, strict=True) if p > 0} for pair in zip(probs, ids, strict=True)
        ]

    beside = tokens(torch.cat([logp, flat]))
    for row, (alone, other) in enumerate(zip((tokens(r[None])[0] for r in logp), beside, strict=False)):
        assert alone.keys() == other.keys()
        least = min(logp[row, i] for i in alone)
        left_out = [i for i in range(2000) if logp[row, i] == least and i not in alone]
        assert all(i > max(j for j in alone if logp[row, j] == least) for i in left_out)
    assert sorted(beside[-1]) == list(range(len(beside[-1]))) and len(beside[-1]) in (1800, 1801)


def test_a_draw_from_the_nucleus_is_the_draw_of_the_table():
    logp = _logp(3000, 6.0)
    probs, ids = _nucleus(logp, 0.95, torch.float64)
    whole = torch.zeros(8, 3000, dtype=torch.float64).scatter(1, ids, probs).numpy()
    u = np.random.default_rng(0).random(8)
    tokens = ids.gather(1, _inverse_cdf(probs, torch.as_tensor(u))[:, None])[:, 0]
    assert tokens.tolist() == inverse_cdf(whole, u).tolist()


def test_without_a_nucleus_every_token_may_be_drawn():
    logp = _logp(600, 1.0)
    probs, ids = _nucleus(logp, 1.0, torch.float64)
    assert ids.tolist() == [list(range(600))] * 8
    torch.testing.assert_close(probs, logp.to(torch.float64).exp())


@pytest.mark.parametrize(
    ("cap", "finished"),
    [({}, True), ({"max_thoughts": 2}, False), ({"max_thought_tokens": 3}, False), ({"max_tokens": 5}, False)],
)
def test_a_response_is_finished_if_it_ended_by_itself_and_not_at_a_cap(cap, finished):
    task = load_task("chains:steps=4,hard=0")
    sampling = Sampling(**({"temperature": 0.0, "max_tokens": 96} | cap))
    simulator = build_world(*load_model("tiny", "float32"), task, sampling, 8, 0.3, 8).simulator
    problems = task.problems("eval", 4, 0)
    keys = [DrawKey(seed=0, prompt=i) for i in range(4)]
    traces = simulator.continue_from([simulator.root(p) for p in problems], keys)
    assert [t.finished for t in traces] == [finished] * 4


PIECES = ["<pad>", "2+2=4", "</thought", ">", ">\\", "boxed{5}", "></", ".", "so ", "thought>", ">\n", "\\boxed{4}"]


class _Pieces:
    """A tokenizer whose tokens are `PIECES`, some of which carry text beyond the end of a thought."""

    def decode(self, ids, **_):
        return "".join(PIECES[i] for i in ids)

    def __call__(self, text, **_):
        return {"input_ids": [0]}


class _Says:
    """A backend that says given tokens, as far as the stop rule lets it; a reset goes on where its prefix ends."""

    context = None

    def __init__(self, ids):
        self.ids = ids

    def sample(self, requests, temperature, top_p):
        return [self._one(r) for r in requests]

    def _one(self, request):
        rest, out = self.ids[request.first_draw :], []
        over = any(out.append(i) or request.stop.push(PIECES[i]) for i in rest[: request.max_tokens])
        return Sampled(out, [0.0] * len(out), [0.0] * len(out), over)


@pytest.mark.parametrize(
    ("ids", "ends", "thoughts"),
    [
        ([1, 2, 3, 8, 11, 2, 3], (3, 7), ("2+2=4", "so \\boxed{4}")),
        ([1, 2, 10, 8, 11, 2, 10], (3, 7), ("2+2=4", "so \\boxed{4}")),  # a newline fused to the end of a thought
        ([1, 2, 3, 8, 11, 2, 6], (3, 7), ("2+2=4", "so \\boxed{4}")),  # a beginning of something: no third thought
        ([1, 2, 4, 5, 2, 3], (3, 6), ("2+2=4", "\\boxed{5}")),  # the box begins in the token that ends a thought
        ([1, 2, 6, 9, 8, 11, 2, 3], (3, 4, 8), ("2+2=4", "", "so \\boxed{4}")),  # so does an end of a thought
        ([1, 2, 3, 8, 7], (3, 5), ("2+2=4", "so .")),  # cut off
    ],
)
def test_text_beyond_the_end_of_a_thought_belongs_to_the_next_and_resets_keep_it(ids, ends, thoughts):
    says = _Says(ids if ids[-1] == 7 else [*ids, 7, 7, 7])
    task = SimpleNamespace(score=lambda problems, texts: [Score(0.0, "wrong")] * len(texts))
    simulator = ThoughtSimulator(says, _Pieces(), task, BarePrompts(), Sampling())
    root = Prefix(Problem("x", "x", "4", {}), (0,))
    (trace,) = simulator.continue_from([root], [DrawKey(seed=0)])
    assert (trace.ids, trace.ends, trace.thoughts) == (tuple(ids), ends, thoughts)
    for k in range(1, trace.num_decisions):
        (again,) = simulator.continue_from([trace.prefix(k)], [DrawKey(seed=0)])
        assert (again.ids, again.ends, again.thoughts, again.start) == (trace.ids, ends, thoughts, k)
        assert again.finished == trace.finished


V, LENGTH = 13, 24
SIZES = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


class _Counting:
    """A random model of 13 tokens that notes the attention mask of every pass; nothing but the budget ends a row."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.masks: list[torch.Tensor] = []
        model.register_forward_pre_hook(
            lambda _, a, k: self.masks.append(k["attention_mask"].clone()), with_kwargs=True
        )
        self.backend = TransformersBackend(model.double().eval(), frozenset(), 0, lambda token: "")

    def passes(self, requests: list[Request]) -> tuple[list[list[int]], list[torch.Tensor]]:
        """The tokens of each row, and the masks of the passes after the first one."""
        self.masks.clear()
        return [row.ids for row in self.backend.sample(requests, 0.7, 0.95)], self.masks[1:]


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(initializer_range=0.5, **SIZES))


def _with_a_window() -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(initializer_range=0.5, num_key_value_heads=2, sliding_window=8, **SIZES))


def _request(prompt: tuple[int, ...], response: list[int], cut: int, row: int, length: int = LENGTH) -> Request:
    return Request((*prompt, *response[:cut]), DrawKey(seed=0, prompt=row), cut, length - cut, NoStop())


def _recurrent() -> Lfm2ForCausalLM:
    torch.manual_seed(0)
    return Lfm2ForCausalLM(
        Lfm2Config(initializer_range=0.5, num_key_value_heads=2, layer_types=["conv", "full_attention"], **SIZES)
    )


@pytest.mark.parametrize("model", [_llama, _with_a_window, _recurrent])
@pytest.mark.parametrize("prompts", [[(1, 2, 3)] * 6, [(1,), (1, 2, 3, 4, 5), (6, 7), (8, 9, 10, 11), (5,), (5, 5, 5)]])
def test_a_row_continued_from_any_of_its_prefixes_goes_on_as_it_did(model, prompts):
    counting = _Counting(model())
    whole, _ = counting.passes([_request(p, [], 0, i) for i, p in enumerate(prompts)])
    assert len({tuple(ids) for ids in whole}) == len(prompts)
    cuts = [11, 3, 23, 0, 3, 17]
    requests = [_request(p, whole[i], cut, i) for i, (p, cut) in enumerate(zip(prompts, cuts, strict=True))]
    rest, _ = counting.passes(requests)
    assert rest == [ids[cut:] for ids, cut in zip(whole, cuts, strict=True)]


def test_prefixes_of_other_lengths_are_not_padded_and_cost_no_pass_more():
    counting = _Counting(_llama())
    response = counting.passes([_request((1, 2), [], 0, 0)])[0][0]
    _, masks = counting.passes([_request((1, 2), response, cut, row) for row, cut in enumerate([20, 4, 9, 9])])
    assert [tuple(mask.shape) for mask in masks] == [
        (1 if width <= 11 else 3 if width <= 22 else 4, width) for width in range(7, 26)
    ]
    assert all(mask.all() for mask in masks)
    assert len(masks) == LENGTH - 4 - 1


def test_no_pass_is_made_between_the_end_of_all_rows_and_the_next_to_join():
    counting = _Counting(_llama())
    whole = [counting.passes([_request((1, 2), [], 0, row)])[0][0] for row in range(2)]
    short, late = _request((1, 2), [], 0, 0, length=3), _request((1, 2), whole[1], 20, 1)
    rows, masks = counting.passes([short, late])
    assert rows == [whole[0][:3], whole[1][20:]]
    assert len(masks) == 2 + 3


def test_a_bare_prompt_begins_as_the_tokenizer_begins_a_text():
    tokenizer = build_tokenizer()
    assert BarePrompts().solve(tokenizer, "Push 4") == "Push 4\n"
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert BarePrompts().solve(tokenizer, "Push 4") == "Push 4\n", "it knows such a token and does not put it there"
    first = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=first)
    asked = BarePrompts().revise(tokenizer, "Push 4", "1:e1(4)=4</thought>", "")
    assert asked == "<s>Push 4\n1:e1(4)=4</thought>\nPush 4\n"
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
