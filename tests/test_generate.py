"""The nucleus from the most probable tokens alone is the nucleus of the whole vocabulary; caps of a response."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpi.draws import DrawKey, inverse_cdf
from llm.generate import _CANDIDATES, Sampling, _inverse_cdf, _nucleus
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
