"""What a real vLLM needs to run, and to take new weights, on a machine without a GPU. For tests alone.

vLLM's CPU build packs the weights of linear layers when it has loaded them and throws the originals away, so TRL's
`load_weights` finds nothing to write to; on a GPU they stay. Here they stay too, and layers are plain matrix products.
TRL names no dtype and vLLM's choice for float32 weights is bfloat16; `float32` makes it that of the weights.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.setup import TINY

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_AOT_COMPILE": "0",  # with the next: eager, as TRL does not ask for it and compiling takes minutes
    "TORCHDYNAMO_DISABLE": "1",
}


def install(monkeypatch: pytest.MonkeyPatch, float32: bool) -> None:
    """Before vLLM is imported, for its environment is read then."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    import vllm.model_executor.layers.utils as layers
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(layers, "dispatch_cpu_unquantized_gemm", keep)
    if float32:
        monkeypatch.setattr(type(current_platform), "supported_dtypes", [torch.float32])


def widened(folder: Path) -> str:
    """The embedded model with heads of 32 in place of 16, which vLLM's attention on CPUs lacks; the same function.

    Coordinate i of a head turns with frequency theta^(-2i / head_dim), so it becomes coordinate 2i of a head twice as
    wide; the rest is zero, and queries grow by sqrt(2) against the division by sqrt(head_dim).
    """
    model = AutoModelForCausalLM.from_pretrained(TINY)
    d, H = model.config.head_dim, model.config.num_attention_heads
    config = copy.deepcopy(model.config)
    config.head_dim = 2 * d
    place = torch.arange(d) * 2
    weights = model.state_dict()
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            wide = weight.new_zeros(H, 2 * d, weight.shape[1])
            wide[:, place] = weight.view(H, d, -1) * (math.sqrt(2) if "q_proj" in name else 1.0)
            weights[name] = wide.flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            wide = weight.new_zeros(weight.shape[0], H, 2 * d)
            wide[..., place] = weight.view(-1, H, d)
            weights[name] = wide.flatten(1)
    wider = AutoModelForCausalLM.from_config(config)
    wider.load_state_dict(weights)
    wider.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)
