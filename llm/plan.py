"""What a training run will need, before it starts: rollouts, tokens, memory. Printed by ``llm.train --dry-run``.

The weights, the adapter and the key-value cache are counted exactly from the model's config (on torch's meta device,
so nothing is loaded). Activations of the backward pass are an estimate: without checkpointing, per layer and token
about 34 hidden-sized values plus attention's share (Korthikanti et al. 2022, eq. 1, with fused attention), with it one
hidden-sized value a layer and one layer in full; plus the logits of one micro-batch, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from llm.config import ConfigError
from llm.methods import asks_the_model, values_from_rollouts

__all__ = ["Plan", "cache_bytes", "count_parameters", "load_architecture", "make_plan"]

_SHIPPED = Path(__file__).parent / "architectures"
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Plan:
    """Bytes on each process, and counts of the whole run."""

    parameters: int
    trained: int
    weights: int
    optimiser: int
    cache: int
    activations: int
    rollouts: int
    tokens: int

    @property
    def peak(self) -> int:
        """Sampling and the backward pass take turns, so the larger of the two counts."""
        return self.weights + self.optimiser + max(self.cache, self.activations)

    def lines(self) -> list[str]:
        gib = 2.0**30
        return [
            f"parameters  {self.parameters / 1e6:,.1f} M, {self.trained / 1e6:,.1f} M of them trained",
            f"memory      {self.peak / gib:.2f} GiB a process, without sharding: weights {self.weights / gib:.2f}, "
            f"gradients and Adam {self.optimiser / gib:.2f}, then the larger of key-value cache {self.cache / gib:.2f} "
            f"and activations {self.activations / gib:.2f} (estimate)",
            f"rollouts    {self.rollouts:,} are trained on, of at most {self.tokens:,} tokens; discarded attempts and "
            "measurements are extra",
        ]


def load_architecture(place: str) -> Any:
    """The config of a model: from its folder or the hub, else from the few that ship with the package."""
    shipped = _SHIPPED / place.replace("/", "--")
    try:
        return AutoConfig.from_pretrained(str(shipped) if shipped.is_dir() else place)
    except OSError as error:
        raise ConfigError(f"cannot read the config of {place}: {' '.join(str(error).split())[:160]}") from error


def count_parameters(architecture: Any, lora_rank: int | None) -> tuple[int, int]:
    """(all, trained) parameters; trained are the adapter's on all linear layers where `lora_rank` is given."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
        whole = sum(p.numel() for p in model.parameters())
        if lora_rank is None:
            return whole, whole
        adapted = get_peft_model(model, LoraConfig(r=lora_rank, target_modules="all-linear"))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return whole + trained, trained


def cache_bytes(architecture: Any, rows: int, length: int, dtype: str) -> int:
    """Keys and values of `rows` sequences of `length` tokens; layers with a sliding window keep that window only."""
    heads = architecture.num_key_value_heads
    head_dim = getattr(architecture, "head_dim", None) or architecture.hidden_size // architecture.num_attention_heads
    kinds = getattr(architecture, "layer_types", None) or ["full_attention"] * architecture.num_hidden_layers
    window = getattr(architecture, "sliding_window", None) or length
    tokens = sum(min(length, window) if kind == "sliding_attention" else length for kind in kinds)
    return 2 * rows * heads * head_dim * tokens * _BYTES[dtype]


def _activation_bytes(architecture: Any, rows: int, length: int, dtype: str, checkpointing: bool) -> int:
    per_layer = rows * length * architecture.hidden_size * _BYTES[dtype]
    layers = architecture.num_hidden_layers
    body = per_layer * (layers + 17) if checkpointing else 17 * per_layer * layers
    logits = rows * length * architecture.vocab_size * 4
    return int(body + logits)


def make_plan(
    config: Any,
    place: str,
    rows_per_prompt: int,
    prompt_tokens: int,
    processes: int,
    reference: bool = False,
    revises: bool = False,
) -> Plan:
    """The plan of a `TrainConfig` for the model at `place`, with prompts of at most `prompt_tokens` tokens.

    reference: the method keeps the initial model, which without an adapter is a second copy of the weights. revises:
    some of its prompts hold a whole response. Nothing is sharded.
    """
    architecture = load_architecture(place)
    parameters, trained = count_parameters(architecture, config.lora_rank if config.lora else None)
    length = prompt_tokens + config.max_tokens * (1 + revises)
    local_rows = config.prompts * rows_per_prompt // processes
    weights = (parameters - trained * config.lora) * _BYTES[config.dtype] + 4 * trained * config.lora
    return Plan(
        parameters=parameters,
        trained=trained,
        weights=weights * 2 if reference and not config.lora else weights,
        optimiser=trained * 3 * (4 if config.lora else _BYTES[config.dtype]),
        cache=0  # vLLM's memory is a share of the GPU that is set aside, or another machine's
        if config.backend == "vllm"
        else cache_bytes(
            architecture,
            config.sample_rows if values_from_rollouts(config) else min(config.sample_rows, local_rows),
            length + asks_the_model(config) * config.localize_tokens,
            config.dtype,
        ),
        activations=_activation_bytes(
            architecture, min(config.micro_rows, local_rows), length, config.dtype, config.gradient_checkpointing
        ),
        rollouts=config.steps * config.prompts * rows_per_prompt,
        tokens=config.steps * config.prompts * rows_per_prompt * config.max_tokens,
    )
