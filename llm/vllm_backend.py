r"""Tokens from vLLM, in this process or from a server, behind the `Backend` protocol.

TRL (1.16, with vLLM 0.22 to 0.31) starts the engine or connects to the server, and puts the trained weights into it
(`trl.generation.vllm_generation.VLLMGeneration`: adapters merged, FSDP and DeepSpeed gathered). What TRL does not have
is resets, so the requests are ours. tests/test_vllm_backend.py pins the seams of TRL that are used.

Stop rules. A `Stop` sees single tokens, which vLLM cannot run. So rows are asked for `chunk` tokens at a time; each
token is pushed through the row's rule, what comes after the end is thrown away, and rows that are not over are asked
for again with all their tokens as the prompt, which the prefix cache makes cheap. The result is exactly that of
stopping at once: a token depends on those before it only. Chunks of one length keep the rows in step, which stopping
at every ``</thought>`` would not; the waste is at most chunk - 1 tokens a row, and none where the model ends by itself.
Token ids are those sampled; nothing is decoded and encoded again.

Draws. Each request has a seed of its own, a function of the row's `DrawKey` and of the index of its first token
(first_draw + tokens so far), so a rollout is a function of prefix, key, chunk and weights, *as far as vLLM's logits
are*: by default its kernels round differently in batches of different sizes, and a near tie can then fall the other
way. Hence, unlike `TransformersBackend`: a resumed run goes on with the same prompts and seeds but is not equal bit for
bit, and the number of processes may change rollouts. VLLM_BATCH_INVARIANT=1 (H100 and the like) takes that away, on
one machine and one version. Seeded rows are sampled by vLLM's torch sampler, not by FlashInfer's.

Log-probabilities are vLLM's ``processed_logprobs``: after temperature *and* nucleus, that is log pi(y) - log Z, pi =
softmax(logits / temperature) and Z in [top_p, 1] the nucleus' mass. At top_p = 1 they are those of
`TransformersBackend`, else higher by at most -log(top_p) (0.051 at 0.95); vLLM returns nothing from which Z could be
had, and its raw ones are at temperature 1. Read by: TRL's importance ratio (below), the probability threshold of
spo-chain and spo-tree, the token signal. Entropies are not to be had: localizer entropy is refused.

Train/inference mismatch. vLLM's probabilities differ a little from the trainer's of the same weights. TRL multiplies a
token's loss by min(pi_trainer / pi_vllm, 3), truncated importance sampling per token (Ionides 2008), unless
``--no-vllm-correction``. TRL's default, one ratio for the sequence, is not used: with a nucleus it is a product of Z's
and vanishes with length, while per token it costs a factor Z >= top_p at uncertain tokens. Tokens without a
log-probability (an inherited prefix, a refinement trained in another context) have ratio 1.

Precision. TRL names no dtype for an engine in this process, and vLLM's choice for float32 weights is bfloat16 (float16
on GPUs without it). On the embedded model log-probabilities are then off by 2.5e-3 on average, by 4e-7 with an engine
in float32; and what an update changes by less than a bfloat16's rounding is not sampled from until it has added up. A
server can be started with ``--dtype float32``.

What was run. tests/test_real_vllm.py runs sampling, weight sync, training and evaluation on vLLM 0.29's CPU build: that
build takes new weights only with the tests' help (tests/real_vllm.py), has no sleep, and its server cannot be sent
weights, as the transfer is NCCL's. Those two, and anything on a GPU, are tested with a stand-in alone.

Several processes: each samples its own prompts. Colocated, each has an engine of its own on its GPU; a model that must
be spread over GPUs for sampling wants the server, whose ``--tensor-parallel-size`` is its own affair.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cpi.draws import uniforms
from llm.config import ConfigError, option
from llm.generate import NoStop, Request, Sampled, TokenText, context_of, end_tokens

__all__ = [
    "BackendConfig",
    "Colocated",
    "Draw",
    "Engine",
    "Server",
    "VLLMBackend",
    "check_backend",
    "colocated_engine",
    "connecting",
    "describe",
    "engine_of",
    "server_command",
    "trl_settings",
]

_CONNECTIONS = 64  # what TRL's client keeps open
_INSTALL = "pip install 'trl[vllm]==1.16.*'"


@dataclass(frozen=True)
class BackendConfig:
    """Where tokens come from; the options of every command that samples from a large model."""

    backend: str = option(
        "transformers", "What samples. vllm needs a GPU and the extra `vllm`.", ("transformers", "vllm")
    )
    vllm_memory: float = option(0.3, "Share of the GPU's memory that a vLLM engine in this process takes.")


def server_command(model: str) -> str:
    """The command that starts the server which TRL's client expects."""
    return (
        f'VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config \'{{"backend": "nccl"}}\' '
        "--logprobs-mode processed_logprobs"
    )


def check_backend(config: BackendConfig, localizers: Sequence[str], start: bool) -> None:
    """Raise ConfigError where the backend cannot do what is asked or, if it is to be started, is not installed."""
    if not 0 < config.vllm_memory < 1:
        raise ConfigError(f"vllm_memory must lie in (0, 1), got {config.vllm_memory}")
    if config.backend != "vllm":
        return
    if "entropy" in localizers:
        raise ConfigError("vLLM does not give entropies: use another localizer than entropy, or --backend transformers")
    if start and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"backend vllm needs vLLM, which is not installed: {_INSTALL}; then nothing else is to be started, or, in "
            f"training with --vllm-server http://HOST:8000, this on HOST: {server_command('MODEL')}"
        )


def trl_settings(config: Any) -> dict[str, Any]:
    """What TRL's `GRPOConfig` is told about vLLM by a `TrainConfig`."""
    if config.backend != "vllm":
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": "server" if config.vllm_server else "colocate",
        "vllm_server_base_url": config.vllm_server or None,
        "vllm_gpu_memory_utilization": config.vllm_memory,
        "vllm_enable_sleep_mode": config.vllm_sleep,
        "vllm_importance_sampling_correction": config.vllm_correction,
        "vllm_importance_sampling_mode": "token_truncate",
    }


def describe(config: Any) -> str:
    """What a run with vLLM starts, or needs to be started, in one line."""
    if config.vllm_server:
        return (
            f"vLLM server at {config.vllm_server}; start it first, on GPUs of its own: {server_command(config.model)}"
        )
    asleep = ", freed between samplings" if config.vllm_sleep else ""
    return f"a vLLM engine in each process, with {config.vllm_memory:.0%} of its GPU's memory{asleep}"


@contextmanager
def connecting(config: Any) -> Iterator[None]:
    """Turns what goes wrong on the way to a server into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if config.backend != "vllm" or not config.vllm_server:
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"no use of {config.vllm_server}: {reason}; start {server_command(config.model)}") from error


@dataclass(frozen=True)
class Draw:
    """What vLLM is asked for: at most max_tokens tokens after `ids`."""

    ids: list[int]
    seed: int
    max_tokens: int


class Engine(Protocol):
    """vLLM with some weights. Tokens come back with log-probabilities, in the order of the draws."""

    @property
    def context(self) -> int:
        """The most tokens of prompt and response together."""
        ...

    def generate(
        self, draws: Sequence[Draw], temperature: float, top_p: float, eos_ids: Sequence[int]
    ) -> list[list[tuple[int, float]]]: ...

    def serving(self) -> Any:
        """A context in which it can be asked; entered on every process."""
        ...


@dataclass
class VLLMBackend:
    """Samples from `engine`, which is put there once TRL has started it. `chunk` is in tokens."""

    eos_ids: frozenset[int]
    text: TokenText
    engine: Engine | None = None
    chunk: int = 256
    model_context: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> VLLMBackend:
        return cls(end_tokens(model, tokenizer), TokenText(tokenizer), model_context=context_of(model))

    @property
    def context(self) -> int | None:
        """The model's, and once there is an engine the least of both (a server may be started with less)."""
        known = [self.model_context, self.engine.context if self.engine else None]
        return min((c for c in known if c is not None), default=None)

    def sample(self, requests: Sequence[Request], temperature: float, top_p: float) -> list[Sampled]:
        assert self.engine is not None, "the engine is started with the trainer"
        rows = [_Row(r, self, self.engine.context) for r in requests]
        eos = sorted(self.eos_ids)
        while live := [row for row in rows if row.room > 0]:
            answers = self.engine.generate([row.draw() for row in live], temperature, top_p, eos)
            for row, answer in zip(live, answers, strict=True):
                row.take(answer)
        return [Sampled(row.ids, row.logprobs, [], row.over) for row in rows]


class _Row:
    """One row being sampled. room: tokens that it may still draw; 0 when it is over or the context is full."""

    def __init__(self, request: Request, backend: VLLMBackend, context: int) -> None:
        self.request, self.backend = request, backend
        self.room = min(request.max_tokens, context - len(request.ids))
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.over = False

    def draw(self) -> Draw:
        request = self.request
        u = uniforms([request.key], 1, start=request.first_draw + len(self.ids))[0, 0]
        tokens = self.room if isinstance(request.stop, NoStop) else min(self.room, self.backend.chunk)
        return Draw([*request.ids, *self.ids], int(u * 2**53), tokens)

    def take(self, answer: Sequence[tuple[int, float]]) -> None:
        for token, logprob in answer:
            self.ids.append(token)
            self.logprobs.append(logprob)
            self.room -= 1
            if token in self.backend.eos_ids or self.request.stop.push(self.backend.text(token)):
                self.over, self.room = True, 0
                return


@dataclass
class Colocated:
    """The engine in this process that TRL's `generation` has made, asleep between steps if TRL is told so."""

    generation: Any

    @property
    def context(self) -> int:
        return int(self.generation.llm.llm_engine.model_config.max_model_len)

    def generate(
        self, draws: Sequence[Draw], temperature: float, top_p: float, eos_ids: Sequence[int]
    ) -> list[list[tuple[int, float]]]:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                seed=d.seed,
                max_tokens=d.max_tokens,
                stop_token_ids=list(eos_ids),
                logprobs=0,  # that of the sampled token
                detokenize=False,
            )
            for d in draws
        ]
        prompts = [{"prompt_token_ids": d.ids} for d in draws]
        done = [o.outputs[0] for o in self.generation.llm.generate(prompts, sampling_params=params, use_tqdm=False)]
        return [
            [(int(t), float(of[t].logprob)) for t, of in zip(row.token_ids, row.logprobs, strict=True)] for row in done
        ]

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Awake inside, as in TRL's own `generate`: sleep throws the weights away, so they are put there again."""
        generation = self.generation
        if not generation.enable_sleep_mode:
            yield
            return
        if generation._llm_weights_sleeping:
            generation.sync_weights()
        generation.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True


@dataclass
class Server:
    """A server through TRL's client, one HTTP request a row: only so can each row have its own seed and length."""

    client: Any
    accelerator: Any
    context: int = field(init=False)

    def __post_init__(self) -> None:
        served = self.client.get_server_info()["model_config"]
        if served["logprobs_mode"] != "processed_logprobs":
            raise ConfigError(f"the vLLM server runs with other log-probabilities; start {server_command('MODEL')}")
        self.context = int(served["max_model_len"])

    def generate(
        self, draws: Sequence[Draw], temperature: float, top_p: float, eos_ids: Sequence[int]
    ) -> list[list[tuple[int, float]]]:
        def ask(draw: Draw) -> list[tuple[int, float]]:
            answer = self.client.generate(
                [draw.ids],
                temperature=temperature,
                top_p=top_p,
                max_tokens=draw.max_tokens,
                logprobs=0,
                generation_kwargs={"seed": draw.seed, "stop_token_ids": list(eos_ids)},
            )
            ids, logprobs = answer["completion_ids"][0], answer["logprobs"][0]
            return [(int(t), math.nan if lp is None else float(lp)) for t, (lp, *_) in zip(ids, logprobs, strict=True)]

        with ThreadPoolExecutor(max_workers=min(_CONNECTIONS, len(draws))) as pool:
            return list(pool.map(ask, draws))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Only the main process sends weights, and nobody may ask before it has."""
        self.accelerator.wait_for_everyone()
        yield


def engine_of(generation: Any) -> Engine:
    """The engine of a trainer's `vllm_generation`, on every process: TRL gives the main one alone a client."""
    if generation.mode == "colocate":
        return Colocated(generation)
    from trl.generation.vllm_client import VLLMClient

    client = getattr(generation, "vllm_client", None) or VLLMClient(base_url=generation.server_base_url)
    return Server(client, generation.accelerator)


def colocated_engine(model: Any, tokenizer: PreTrainedTokenizerBase, memory: float) -> Engine:
    """An engine in this process with the weights of `model`, an adapter merged in; `model` itself leaves the GPU."""
    from accelerate import Accelerator
    from trl.generation.vllm_generation import VLLMGeneration

    model.to("cpu")
    torch.cuda.empty_cache()
    generation = VLLMGeneration(model, Accelerator(), tokenizer, mode="colocate", gpu_memory_utilization=memory)
    generation.sync_weights()
    return Colocated(generation)
