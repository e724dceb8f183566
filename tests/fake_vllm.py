"""A stand-in for vLLM with its real names and signatures, over any Hugging Face causal model on the CPU.

From vLLM's sources, and as 0.29 was seen to do (tests/test_real_vllm.py): `SamplingParams`, `LLM.generate`,
`RequestOutput`, `CompletionOutput` and `Logprob` have the fields and arguments that the real ones have, and refuse
others; token ids hold the token that stopped; log-probabilities are ``processed_logprobs``. One thing is chosen: the
*first* token of a request falls by inverse CDF on the uniform seed / 2**53, later ones come from a generator with that
seed. So with chunks of one token the backend must make the very draws of `TransformersBackend`.

`install` puts it into `sys.modules` and into the modules of TRL that looked for vLLM when they were imported; `serve`
runs the HTTP server that TRL's client talks to, with the weight transfer (NCCL in vLLM) a call.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@dataclass
class SamplingParams:
    """vllm.SamplingParams: its fields of sampling and stopping; the same checks and the same greedy rule."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        assert self.n == 1 and not self.stop and self.logprobs == 0  # all that the fake can do
        assert (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) == (0.0, 0.0, 1.0)
        assert self.top_k == 0 and self.min_p == 0.0
        if self.max_tokens is None or self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if not 0.0 <= self.temperature <= 2.0 or not 0.0 < self.top_p <= 1.0:
            raise ValueError("temperature must be in [0, 2] and top_p in (0, 1]")
        assert self.seed is None or -(2**63) <= self.seed < 2**63
        if self.temperature < 1e-5:
            self.top_p = 1.0


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: None
    outputs: list[CompletionOutput]
    finished: bool


class Core:
    """A model with vLLM's sampler. requests: every (prompt, params) so far; eos: what the engine itself ends at."""

    def __init__(self, model: Any, eos: frozenset[int], max_model_len: int) -> None:
        self.model, self.eos, self.max_model_len = model.eval(), eos, max_model_len
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.loads = 0

    @classmethod
    def of(cls, place: str) -> Core:
        model = AutoModelForCausalLM.from_pretrained(place)
        eos = frozenset({int(AutoTokenizer.from_pretrained(place).eos_token_id)})
        return cls(model, eos, model.config.max_position_embeddings)

    def load_weights(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters())
        for name, value in weights:
            own[name].data.copy_(value)
        self.loads += len(weights)

    def discard(self) -> None:
        for parameter in self.model.parameters():
            parameter.data.fill_(float("nan"))

    @torch.no_grad()
    def run(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[CompletionOutput]:
        self.requests += zip(prompts, params, strict=True)
        for prompt in prompts:
            if len(prompt) >= self.max_model_len:
                raise ValueError(
                    f"The decoder prompt (length {len(prompt)}) plus the number of requested output tokens (at least "
                    f"1) is longer than the maximum model length of {self.max_model_len}."
                )
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        cache = DynamicCache(config=self.model.config)
        rows = [_Row(p, q, self) for p, q in zip(prompts, params, strict=True)]
        while True:
            positions = (attention.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = self.model(
                input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits[:, -1]
            ids = torch.tensor([[row.step(z)] for row, z in zip(rows, logits, strict=True)])
            if all(row.reason for row in rows):
                return [row.output() for row in rows]
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)


class _Row:
    def __init__(self, prompt: list[int], params: SamplingParams, core: Core) -> None:
        self.params, self.core, self.length = params, core, len(prompt)
        self.generator = torch.Generator().manual_seed(params.seed) if params.seed is not None else None
        self.ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.reason: str | None = None
        self.stop_reason: int | None = None

    def step(self, logits: torch.Tensor) -> int:
        if self.reason:
            return 0
        params = self.params
        logp = torch.log_softmax(logits.float() / (params.temperature or 1.0), dim=-1)
        probs = _nucleus(logp.double().exp(), params.top_p)
        if not params.temperature:
            token = int(logp.argmax())
        elif self.ids or params.seed is None:
            token = int(torch.multinomial(probs, 1, generator=self.generator))
        else:
            cdf = probs.cumsum(0)
            token = int(torch.searchsorted(cdf, cdf[-1] * params.seed * 2.0**-53, right=True))
        self.ids.append(token)
        self.logprobs.append({token: Logprob(float(probs[token].log()))})
        stops = params.stop_token_ids or []
        if token in self.core.eos and not params.ignore_eos:  # asked for first: such an end has no stop_reason
            self.reason = "stop"
        elif token in stops:
            self.reason, self.stop_reason = "stop", token
        elif len(self.ids) >= (params.max_tokens or 0) or self.length + len(self.ids) >= self.core.max_model_len:
            self.reason = "length"
        return token

    def output(self) -> CompletionOutput:
        return CompletionOutput(0, "", list(self.ids), None, self.logprobs, self.reason, self.stop_reason)


def _nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of most probable tokens whose mass reaches top_p, renormalised."""
    ordered, index = probs.sort(descending=True)
    outside = (ordered.cumsum(0) - ordered >= top_p) & (top_p < 1.0)
    kept = torch.zeros_like(probs).scatter(0, index, ordered.masked_fill(outside, 0.0))
    return kept / kept.sum()


def _space(**fields: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**fields)


class LLM:
    """vllm.LLM with the arguments that TRL gives it. Asleep it cannot be asked, and its weights are gone."""

    made: list[LLM] = []  # noqa: RUF012

    def __init__(
        self,
        model: str,
        *,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        enable_sleep_mode: bool = False,
        model_impl: str = "auto",
        distributed_executor_backend: str | None = None,
        seed: int = 0,
        max_num_batched_tokens: int | None = None,
        logprobs_mode: str = "raw_logprobs",
        quantization: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        assert logprobs_mode == "processed_logprobs" and max_model_len is None
        self._start(Core.of(model), enable_sleep_mode)
        self.memory = gpu_memory_utilization

    @classmethod
    def over(cls, core: Core) -> LLM:
        llm = cls.__new__(cls)
        llm._start(core, sleeps=False)
        return llm

    def _start(self, core: Core, sleeps: bool) -> None:
        self.core, self.sleeps = core, sleeps
        self.awake = {"weights", "kv_cache"}
        self.resets = 0
        runner = _space(model=_space(load_weights=self._load))
        self.llm_engine = _space(
            model_config=_space(max_model_len=self.core.max_model_len),
            model_executor=_space(driver_worker=_space(model_runner=runner)),
        )
        LLM.made.append(self)

    def _load(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        assert "weights" in self.awake
        self.core.load_weights(weights)

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True

    def sleep(self, level: int = 1) -> None:
        assert self.sleeps and level == 2
        self.awake.clear()
        self.core.discard()

    def wake_up(self, tags: list[str] | None = None) -> None:
        assert self.sleeps
        self.awake |= set(tags or ["weights", "kv_cache"])

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: None = None,
        priority: list[int] | None = None,
    ) -> list[RequestOutput]:
        assert self.awake == {"weights", "kv_cache"}
        assert isinstance(sampling_params, list) and all(set(p) == {"prompt_token_ids"} for p in prompts)
        ids = [p["prompt_token_ids"] for p in prompts]
        done = self.core.run(ids, sampling_params)
        return [RequestOutput(str(i), None, p, None, [o], True) for i, (p, o) in enumerate(zip(ids, done, strict=True))]


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """vLLM is installed, for this test."""
    import trl.generation.vllm_client
    import trl.generation.vllm_generation

    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.31.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    for place in (trl.generation.vllm_client, trl.generation.vllm_generation):
        monkeypatch.setattr(place, "is_vllm_available", lambda **_: True)
    monkeypatch.setattr(trl.generation.vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(trl.generation.vllm_generation, "SamplingParams", SamplingParams, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:  # TRL sets them for a single process; a launcher's are kept
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
    monkeypatch.setattr(LLM, "made", [])
    return LLM


class _Handler(BaseHTTPRequestHandler):
    core: Core
    logprobs_mode: str
    log: list[str]
    lock: threading.Lock

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        model_config = {"logprobs_mode": self.logprobs_mode, "max_model_len": self.core.max_model_len}
        info = {"vllm_config": {"model_config": model_config, "weight_transfer_config": {"backend": "nccl"}}}
        known = {"/health": {}, "/v1/models": {"data": [{"id": "served"}]}, "/server_info": info}
        self._answer(known[place])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path != "/v1/completions":
            self.log.append(self.path)
            return self._answer({"success": True})
        assert body.pop("model") == "served" and body.pop("return_token_ids") and body.pop("return_tokens_as_token_ids")
        prompts = body.pop("prompt")
        with self.lock:
            choices = [self._choice(i, p, SamplingParams(**body)) for i, p in enumerate(prompts)]
        return self._answer({"choices": choices})

    def _choice(self, index: int, prompt: list[int], params: SamplingParams) -> dict[str, Any]:
        [row] = self.core.run([prompt], [params])
        tokens = [f"token_id:{t}" for t in row.token_ids]
        values = [of[t].logprob for t, of in zip(row.token_ids, row.logprobs or [], strict=True)]
        logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": [None] * len(tokens)}
        return {
            "index": index,
            "prompt_token_ids": prompt,
            "token_ids": list(row.token_ids),
            "logprobs": logprobs,
            "finish_reason": row.finish_reason,
        }


@contextmanager
def serve(
    monkeypatch: pytest.MonkeyPatch, place: str, logprobs_mode: str = "processed_logprobs"
) -> Iterator[tuple[str, Core, list[str]]]:
    """Address, core and log of a server over the model at `place`; TRL's client sends its weights by a call."""
    from trl.generation.vllm_client import VLLMClient

    core, log = Core.of(place), []  # type: ignore[var-annotated]
    fields = {"core": core, "logprobs_mode": logprobs_mode, "log": log, "lock": threading.Lock()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), fields))
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: log.append("init"))
    monkeypatch.setattr(
        VLLMClient,
        "update_named_params",
        lambda self, metadata, named: (log.append("weights"), core.load_weights(list(named))),
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", core, log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
