"""A real vLLM behind the backend protocol, where one is installed; on a machine without a GPU, its CPU build.

Not in the extra `test`: the CPU build has to be put by hand into an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import real_vllm
import torch
from peft import PeftModel
from training import SMALL
from transformers import AutoModelForCausalLM

import llm.evaluate
from cpi.draws import DrawKey
from llm.generate import NoStop, Request, Sampled, ThoughtStop, TransformersBackend
from llm.setup import load_model
from llm.tasks import load_task
from llm.thoughts import BarePrompts
from llm.train import TrainConfig, main
from llm.vllm_backend import VLLMBackend, colocated_engine

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

N, T = 16, 0.7


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        real_vllm.install(monkeypatch, float32=True)
        yield real_vllm.widened(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def backends(place: str) -> tuple[VLLMBackend, TransformersBackend]:
    """Over the same weights, which are not those of the checkpoint that the engine was started with."""
    model, tokenizer = load_model(place, "float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    ours = VLLMBackend.of(model, tokenizer)
    ours.engine = colocated_engine(model, tokenizer, 0.3)
    return ours, TransformersBackend.of(model, tokenizer)


def _requests(backend: TransformersBackend, n: int = N, stop=lambda: ThoughtStop(3, 24)) -> list[Request]:
    tokenizer = backend.text._tokenizer
    problems = load_task("chains:steps=4,hard=3").problems("eval", n, 0)
    ids = [
        tokenizer(BarePrompts().solve(tokenizer, p.question), add_special_tokens=False)["input_ids"] for p in problems
    ]
    return [Request(tuple(x), DrawKey(seed=3, prompt=i), 0, 48, stop()) for i, x in enumerate(ids)]


def _log_probs(model, row: Sampled, request: Request, temperature: float) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([[*request.ids, *row.ids]])).logits[0, len(request.ids) - 1 : -1]
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp.gather(1, torch.tensor(row.ids)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_greedy_rows_are_those_of_the_other_backend_whatever_the_chunk(chunk, backends):
    ours, other = backends
    ours.chunk = chunk
    want = other.sample(_requests(other), 0.0, 1.0)
    rows = ours.sample(_requests(other), 0.0, 1.0)
    assert [(r.ids, r.over) for r in rows] == [(r.ids, r.over) for r in want]
    for row, of in zip(rows, want, strict=True):
        np.testing.assert_allclose(row.logprobs, of.logprobs, atol=1e-4)


@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_log_probabilities_are_those_of_the_synchronised_model_up_to_the_mass_of_the_nucleus(top_p, backends):
    ours, other = backends
    ours.chunk = 256
    rows = ours.sample(_requests(other), T, top_p)
    wanted = [_log_probs(other.model, row, request, T) for row, request in zip(rows, _requests(other), strict=True)]
    excess = np.concatenate([np.subtract(row.logprobs, want) for row, want in zip(rows, wanted, strict=True)])
    assert (excess > -1e-4).all()
    assert (excess < -math.log(top_p) + 1e-4).all()
    assert top_p == 1.0 or excess.max() > 1e-3


def test_a_row_is_a_function_of_its_key_and_not_of_the_batch(backends):
    ours, other = backends
    together = [row.ids for row in ours.sample(_requests(other), 1.3, 1.0)]
    assert [row.ids for row in ours.sample(_requests(other), 1.3, 1.0)] == together
    assert [ours.sample([r], 1.3, 1.0)[0].ids for r in _requests(other, n=6)] == together[:6]
    assert len({tuple(ids[:8]) for ids in together}) > N // 2


def test_the_end_of_sequence_is_kept_and_the_context_is_not_exceeded(backends):
    ours, other = backends
    assert ours.engine is not None and ours.engine.context == 256
    for row in ours.sample(_requests(other, stop=NoStop), 0.0, 1.0):
        assert row.over and row.ids[-1] in ours.eos_ids
    [request] = _requests(other, n=1, stop=NoStop)
    rows = ours.sample([Request((request.ids * 99)[:n], request.key, 0, 48, NoStop()) for n in (254, 256)], T, 1.0)
    assert 1 <= len(rows[0].ids) <= 2 and rows[1].ids == []


@pytest.mark.parametrize("lora", [False, True])
def test_training_samples_from_the_weights_of_every_step(lora, place, tmp_path: Path):
    run = tmp_path / "run"
    main(
        TrainConfig(
            **{**SMALL, "model": place, "steps": 3},
            backend="vllm",
            lora=lora,
            lora_rank=4,
            top_p=1.0,
            learning_rate=0.003,
            output=str(run),
        )
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and rows[0]["grad_norm"] > 0
    assert all(row["mismatch"] < 1e-5 for row in rows)
    first, last = load_model(place, "float32")[0], AutoModelForCausalLM.from_pretrained(place)
    last = PeftModel.from_pretrained(last, str(run / "model")) if lora else load_model(str(run / "model"), "float32")[0]
    x = torch.arange(3, 40)[None]
    moved = (torch.log_softmax(first(x).logits, -1) - torch.log_softmax(last(x).logits, -1)).abs().mean()
    assert moved > 1e-3  # the size of a mismatch with old weights


def test_an_evaluation_is_that_without_vllm(place, tmp_path: Path):
    results = [
        llm.evaluate.main(
            llm.evaluate.EvaluateConfig(model=place, problems=8, threads=1, backend=b, output=str(tmp_path / b))
        )
        for b in ("transformers", "vllm")
    ]
    assert results[0]["tasks"] == results[1]["tasks"]
