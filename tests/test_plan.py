"""The dry run's numbers against the things they count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from training import SMALL
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.memory import MemoryConfig
from benchmarks.memory import main as memory
from llm.config import config_from_args
from llm.plan import cache_bytes, count_parameters, load_architecture, make_plan
from llm.setup import TINY
from llm.train import TrainConfig, main

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*-srpo.yaml"))


def test_parameters_and_adapter_are_counted_exactly():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    architecture = load_architecture(str(TINY))
    size = sum(p.numel() for p in model.parameters())
    assert count_parameters(architecture, None) == (size, size)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count_parameters(architecture, 8) == (size + trained, trained)


def test_the_cache_is_counted_exactly():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.zeros(3, 17, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model.config, rows=3, length=17, dtype="float32") == held


def test_a_sliding_window_caps_the_cache_of_its_layers():
    olmo = load_architecture("allenai/Olmo-3-7B-Instruct")
    short, long = (cache_bytes(olmo, 1, length, "bfloat16") for length in (4096, 8192))
    per_token = 2 * olmo.num_key_value_heads * (olmo.hidden_size // olmo.num_attention_heads) * 2
    full_layers = olmo.layer_types.count("full_attention")
    assert short == per_token * 4096 * olmo.num_hidden_layers
    assert long - short == per_token * 4096 * full_layers


@pytest.mark.parametrize(
    ("name", "size"), [("Qwen/Qwen2.5-14B-Instruct", 14.77e9), ("allenai/Olmo-3-7B-Instruct", 7.298e9)]
)
def test_the_papers_models_have_their_published_size(name, size):
    assert count_parameters(load_architecture(name), None)[0] == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_has_a_plan_and_starts_nothing(path, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    plan = main(config_from_args(TrainConfig, ["--config", str(path), "--dry-run"], "llm.train"))
    assert plan["rollouts"] == 25 * 32 * 8
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("memory", "GiB", "rollouts", "srpo on oly"))
    assert not list(tmp_path.iterdir())


def test_more_micro_rows_cost_activations_and_checkpointing_saves_them():
    config = TrainConfig(**{**SMALL, "prompts": 32})
    plans = [
        make_plan(TrainConfig(**{**SMALL, "prompts": 32, **changes}), str(TINY), 8, 64, 1)
        for changes in ({"micro_rows": 8}, {"micro_rows": 64}, {"micro_rows": 64, "gradient_checkpointing": True})
    ]
    assert plans[0].activations < plans[2].activations < plans[1].activations
    assert config.sample_rows >= 256
    length = 64 + config.max_tokens + config.localize_tokens  # a localisation question holds the whole response
    assert plans[0].cache == cache_bytes(load_architecture(str(TINY)), 256, length, "float32")
    silent = make_plan(replace(config, method="grpo"), str(TINY), 8, 64, 1)
    assert silent.cache == cache_bytes(load_architecture(str(TINY)), 256, 64 + config.max_tokens, "float32")


def test_a_kept_initial_model_doubles_the_weights_unless_there_is_an_adapter():
    for lora, times in ((False, 2), (True, 1)):
        config = TrainConfig(**{**SMALL, "lora": lora})
        alone, beside = (make_plan(config, str(TINY), 8, 64, 1, reference) for reference in (False, True))
        assert beside.weights == times * alone.weights


def test_values_are_sampled_in_full_batches_and_a_revision_holds_a_response():
    config = TrainConfig(**{**SMALL, "method": "grpo", "sample_rows": 96})
    plain = make_plan(config, str(TINY), 8, 64, 1)
    assert make_plan(replace(config, method="vineppo"), str(TINY), 8, 64, 1).cache == plain.cache * 96 // 32
    longer = make_plan(config, str(TINY), 8, 64, 1, revises=True)
    total = 64 + config.max_tokens
    assert longer.cache * total == plain.cache * (total + config.max_tokens)


def test_the_memory_benchmark_trains_on_every_row_of_the_greatest_length(tmp_path: Path):
    config = {**SMALL, "method": "grpo", "stand_in": True, "results": str(tmp_path / "memory.json")}
    found = memory(MemoryConfig(**config))
    longest = MemoryConfig(**config).max_tokens
    assert found["mean_tokens"] == longest
    assert found["rows_with_an_advantage"] == found["responses"] == 8 * SMALL["prompts"]
    assert list(found["peak_mib"].values()) == sorted(found["peak_mib"].values())
