"""The nucleus from the most probable tokens alone is the nucleus of the whole vocabulary; caps of a response; rows that
join the batch where their prefix ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from cpi.draws import DrawKey, inverse_cdf
from llm.generate import _CANDIDATES, NoStop, Request, Sampling, TransformersBackend, _inverse_cdf, _nucleus
from llm.setup import build_world, load_model
from llm.tasks import load_task


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


@pytest.mark.parametrize("model", [_llama, _with_a_window])
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
