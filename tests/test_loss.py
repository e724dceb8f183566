"""The trainer's gradient against a hand-written reference of the SRPO loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training import tiny_trainer
from transformers import AutoModelForCausalLM, TrainerCallback

from llm.setup import TINY


def _reference_loss(model, traces, advantages, temperature, prefix_mask):
    """-(1/N) sum_i A_i (1/T_i) sum_t log pi(y_t), one sequence at a time, nothing padded, nothing shared."""
    total = torch.zeros(())
    for trace, advantage in zip(traces, advantages, strict=True):
        ids = torch.tensor([trace.prompt_ids + trace.ids])
        log_probs = torch.log_softmax(model(ids).logits[0] / temperature, dim=-1)
        first = len(trace.prompt_ids) + (trace.inherited_tokens if prefix_mask else 0)
        tokens = torch.arange(first, ids.shape[1])
        own = log_probs[tokens - 1, ids[0, tokens]]
        total = total - advantage * own.mean()
    return total / len(traces)


@pytest.mark.parametrize(
    ("method", "prefix_mask"),
    [("grpo", True), *((m, masked) for m in ("rrpo", "srpo", "oracle-srpo") for masked in (True, False))],
)
@pytest.mark.parametrize("micro_rows", [32, 8])
def test_the_gradient_is_the_hand_written_srpo_gradient(method, prefix_mask, micro_rows, tmp_path: Path):
    trainer = tiny_trainer(tmp_path, method=method, prefix_mask=prefix_mask, micro_rows=micro_rows, seed=2)
    model = trainer.model
    trainer._step = 0
    batch = next(iter(trainer.get_train_dataloader()))
    for _ in range(trainer.args.gradient_accumulation_steps):
        inputs = trainer._prepare_inputs(batch)
        trainer._step += 1
        trainer.compute_loss(model, inputs).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    step = trainer._reset_step
    traces, advantages = step.rollouts.episodes(), np.concatenate(step.advantages)
    assert (method == "grpo") != any(t.inherited_tokens for t in traces)
    assert np.abs(advantages).max() > 0
    _reference_loss(model, traces, advantages, trainer.args.temperature, prefix_mask).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    assert largest > 1e-4
    for name, p in model.named_parameters():
        assert float((got[name] - p.grad).abs().max()) < 1e-6, name


def test_masked_prefix_tokens_have_no_gradient_at_all(tmp_path: Path):
    """The logits at prefix positions do not move the loss: their gradient is exactly zero."""
    trainer = tiny_trainer(tmp_path, method="oracle-srpo", seed=2)
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    captured = []
    original = trainer._get_per_token_logps_and_entropies

    def capture(*args, **kwargs):
        logps, entropies, aux = original(*args, **kwargs)
        logps.retain_grad()
        captured.append(logps)
        return logps, entropies, aux

    trainer._get_per_token_logps_and_entropies = capture
    trainer.compute_loss(trainer.model, inputs).backward()
    grad = captured[0].grad
    seen = inputs["advantages"].ne(0).any(dim=1)  # rows without an advantage are left out
    assert grad.shape[0] == seen.sum()
    hidden = ((inputs["tool_mask"] == 0) & (inputs["completion_mask"] == 1))[seen]
    assert hidden.any()
    assert grad[hidden].abs().max() == 0
    assert grad.abs().max() > 0


@pytest.mark.parametrize("loud", [0, 3])
def test_rows_without_an_advantage_are_not_computed_and_change_nothing(loud, tmp_path: Path):
    """As many rows pass through the model as have an advantage, and the gradient is that of all rows."""
    trainer = tiny_trainer(tmp_path, method="grpo", seed=2)
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    inputs["advantages"][5 : 5 + loud] = torch.tensor([1.0, -2.0, 0.5])[:loud, None]
    passes = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"]), with_kwargs=True
    )
    trainer.compute_loss(trainer.model, inputs).backward()
    assert [len(ids) for ids in passes] == [max(loud, 1)]
    got = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    super(type(trainer), trainer).compute_loss(trainer.model, inputs).backward()
    assert len(passes[1]) == len(inputs["advantages"])
    for name, p in trainer.model.named_parameters():
        assert float((got[name] - p.grad).abs().max()) < 1e-6, name
    assert any(g.abs().max() > 1e-4 for g in got.values()) == (loud > 0)


def test_an_update_deals_rows_of_similar_length_together_and_pads_no_column(tmp_path: Path):
    """Rows of any length: every one is there once, silent ones last, and the gradient is that of one padded batch."""
    trainer = tiny_trainer(tmp_path, method="grpo", micro_rows=8, seed=2)
    model, trainer._step = trainer.model, 0
    batch = next(iter(trainer.get_train_dataloader()))
    whole = trainer._generate_and_score_completions(batch)
    rows, width = whole["completion_ids"].shape
    lengths = torch.randint(1, width, (rows, 1), generator=torch.Generator().manual_seed(0))
    whole["completion_mask"] = whole["tool_mask"] = (torch.arange(width) < lengths).long()
    whole["advantages"] = torch.linspace(-1, 1, rows)[:, None] * (torch.arange(rows) % 3 > 0)[:, None].expand(-1, width)
    trainer._generate_and_score_completions = lambda inputs: whole
    passes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["attention_mask"]), with_kwargs=True
    )
    dealt = []
    for _ in range(trainer.args.gradient_accumulation_steps):
        dealt.append(trainer._prepare_inputs(batch))
        trainer._step += 1
        trainer.compute_loss(model, dealt[-1]).backward()
    hook.remove()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    seen = (
        torch.cat([part["advantages"][:, 0] for part in dealt]),
        torch.cat([part["completion_mask"] for part in dealt]),
    )
    order = [(abs(float(a)), int(m.sum())) for a, m in zip(*seen, strict=True)]
    assert sorted(order) == sorted(
        (abs(float(a[0])), int(n)) for a, n in zip(whole["advantages"], lengths, strict=True)
    )
    loud = [n for a, n in order if a > 0]
    assert [a > 0 for a, _ in order] == [True] * len(loud) + [False] * (rows - len(loud))
    assert loud == sorted(loud) and len(set(loud)) > 8
    assert all(mask.any(dim=0).all() for mask in passes)

    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    super(type(trainer), trainer).compute_loss(model, whole).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) > 1e-4
    for name, p in model.named_parameters():
        assert float((got[name] - p.grad).abs().max()) < 1e-6, name


# --- several updates of one batch -----------------------------------------------------------------------------------


def _update(trainer, batch):
    """The inputs of one update's micro-batches; their gradients are left in the model."""
    parts = []
    for _ in range(trainer.args.gradient_accumulation_steps):
        parts.append(trainer._prepare_inputs(batch))
        trainer._step += 1
        trainer.compute_loss(trainer.model, parts[-1]).backward()
    return parts


def _second_update(trainer):
    """Micro-batches and gradients of a batch's second update, after a first one that moved the policy far."""
    model, trainer._step = trainer.model, 0
    batch = next(iter(trainer.get_train_dataloader()))
    _update(trainer, batch)
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.5 * p.grad
    model.zero_grad()
    parts = _update(trainer, batch)
    return parts, {name: p.grad.clone() for name, p in model.named_parameters()}


def _ppo_loss(new, old, parts, temperature, clip):
    """-(1/N) sum_i (1/T_i) sum_t min(r A, clipped r A), r = pi_new / pi_old, one sequence at a time; and all r, A."""
    total, rows, ratios, advantages_T = torch.zeros(()), 0, [], []
    for part in parts:
        for i in range(len(part["advantages"])):
            prompt = part["prompt_ids"][i][part["prompt_mask"][i] == 1]
            real = part["completion_mask"][i] == 1
            ids = torch.cat([prompt, part["completion_ids"][i][real]])[None]
            own = torch.arange(len(prompt), ids.shape[1])[part["tool_mask"][i][real] == 1]
            log_new, log_old = (
                torch.log_softmax(m(ids).logits[0] / temperature, dim=-1)[own - 1, ids[0, own]] for m in (new, old)
            )
            ratio = (log_new - log_old.detach()).exp()
            advantage = part["advantages"][i][real][part["tool_mask"][i][real] == 1]
            clipped = ratio.clamp(1 - clip, 1 + clip) if clip else ratio
            total = total - torch.minimum(ratio * advantage, clipped * advantage).mean()
            rows += 1
            ratios.append(ratio.detach())
            advantages_T.append(advantage)
    return total / rows, torch.cat(ratios), torch.cat(advantages_T)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_second_update_of_a_batch_has_the_gradient_of_the_hand_written_ppo_loss(clip, tmp_path: Path):
    """The first one leaves the policy that sampled far behind; without a clip nothing is cut off."""
    trainer = tiny_trainer(tmp_path, method="oracle-srpo", updates=2, clip=clip, micro_rows=8, seed=2)
    model = trainer.model
    parts, got = _second_update(trainer)
    old = AutoModelForCausalLM.from_pretrained(TINY)

    def gradient(bound):
        model.zero_grad()
        loss, ratios, advantages = _ppo_loss(model, old, parts, trainer.args.temperature, bound)
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}, ratios, advantages

    want, ratios, advantages = gradient(clip)
    above, below = ratios > 1.2, ratios < 0.8
    assert (above & (advantages > 0)).any() and (below & (advantages < 0)).any()  # what a clip of 0.2 cuts off
    assert (above & (advantages < 0) | below & (advantages > 0)).any()  # outside too, and not cut off
    for name in want:
        assert float((got[name] - want[name]).abs().max()) < 1e-6, name
    other, *_ = gradient(0.2 - clip)
    assert max(float((got[name] - other[name]).abs().max()) for name in other) > 1e-3


def test_without_the_ratio_the_second_update_has_the_gradient_of_minus_a_log_pi(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, method="oracle-srpo", updates=2, ratio=False, micro_rows=8, seed=2)
    model = trainer.model
    parts, got = _second_update(trainer)
    model.zero_grad()
    loss, ratios, _ = _ppo_loss(model, model, parts, trainer.args.temperature, 0.0)  # gradient of r A at r = 1
    loss.backward()
    assert torch.allclose(ratios, torch.ones(()), atol=1e-5)
    for name, p in model.named_parameters():
        assert float((got[name] - p.grad).abs().max()) < 1e-6, name


# --- gradient checkpointing -----------------------------------------------------------------------------------------


class _Gradients(TrainerCallback):
    """The gradients of a run's updates, as the optimiser is handed them."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def _trained(folder: Path, **changes):
    """A trainer after one step, the gradient of that step, and how often training passed through a layer."""
    trainer = tiny_trainer(folder, method="oracle-srpo", steps=1, seed=2, micro_rows=16, **changes)
    passes = []
    layer = next(m for name, m in trainer.model.named_modules() if name.endswith("layers.1.self_attn"))
    layer.register_forward_pre_hook(lambda module, _: passes.append(module.training))
    trainer.add_callback(gradients := _Gradients())
    trainer.train()
    [found] = gradients.found
    return trainer, found, sum(passes)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_computes_layers_twice_and_the_same_gradient(lora, tmp_path: Path):
    _, want, once = _trained(tmp_path / "plain", lora=lora)
    _, got, twice = _trained(tmp_path / "checkpointed", lora=lora, gradient_checkpointing=True)
    assert twice == 2 * once > 0
    assert got.keys() == want.keys()
    assert max(float(g.abs().max()) for g in want.values()) > 1e-4
    for name in want:
        assert float((got[name] - want[name]).abs().max()) < 1e-6, name


def test_a_float32_adapter_trains_on_a_bfloat16_model_with_gradient_checkpointing(tmp_path: Path):
    rows = []
    settings = {"lora": True, "lora_rank": 4, "dtype": "bfloat16", "gradient_checkpointing": True}
    trainer, found, _ = _trained(tmp_path, on_log=rows.append, **settings)
    kinds = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert np.isfinite(rows[0]["loss"])
    assert all(torch.isfinite(g).all() for g in found.values())
    moved = [name for name, p in trainer.model.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert len(moved) == sum("lora_B" in name for name in found)  # B starts at zero
