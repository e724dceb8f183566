"""The gradient signal against autograd, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training import SMALL, tiny_trainer

from cpi.draws import DrawKey
from cpi.groups import Account, Group, Plan, Rollouts, Split, collect
from cpi.resets import UniformWithinEpisode
from llm.config import ConfigError, config_from_args
from llm.first_errors import FirstErrors
from llm.generate import Sampling, ThoughtSimulator, TokenText, TransformersBackend
from llm.metrics import step_metrics, step_sums
from llm.rewards.base import Score
from llm.signal import SignalConfig, main
from llm.tasks.base import Problem
from llm.tasks.chains import Chains
from llm.thoughts import BarePrompts, ThoughtTrace
from llm.tiny.recipe import Recipe, build_model
from llm.tiny.tokenizer import build_tokenizer
from llm.token_signal import roll_signal, step_ratios, summary
from llm.token_signal import step_sums as signal_sums
from llm.train import TrainConfig
from llm.train import main as train

TEMPERATURE = 0.7


def _buffer():
    """A random Llama's base and reset groups, and random advantages: g does not ask where an advantage is from."""
    tokenizer = build_tokenizer()
    model = build_model(Recipe(hidden=16, layers=2, heads=2, feed_forward=32), tokenizer).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(6.0)  # sure of some tokens, and not of others
    backend = TransformersBackend(model, frozenset(), tokenizer.pad_token_id, TokenText(tokenizer))
    sampling = Sampling(TEMPERATURE, 1.0, max_tokens=120, max_thoughts=20, max_thought_tokens=120)
    task = Chains(steps=4, hard=2)
    simulator = ThoughtSimulator(backend, tokenizer, task, BarePrompts(), sampling)
    roots = [simulator.root(p) for p in task.problems("train", 12, 0)]
    keys = [DrawKey(seed=1, prompt=i) for i in range(12)]
    groups = collect(simulator, roots, keys, Plan(Split((2,), (3,)), UniformWithinEpisode())).groups
    rng = np.random.default_rng(0)
    return model, groups, [rng.normal(size=len(g.episodes)) for g in groups]


def _logit_gradient(model, trace, advantage, first):
    """|d loss / d logit of the sampled token| for the tokens from `first` on, by autograd; logits / temperature."""
    ids = torch.tensor([trace.prompt_ids + trace.ids])
    scaled = (model(ids).logits[0].double() / TEMPERATURE).detach().requires_grad_()
    tokens = torch.arange(len(trace.prompt_ids) + first, ids.shape[1])
    chosen = torch.log_softmax(scaled, dim=-1)[tokens - 1, ids[0, tokens]]
    (-advantage * chosen.mean()).backward()
    return scaled.grad[tokens - 1, ids[0, tokens]].abs().numpy()


def test_the_signal_is_the_gradient_at_the_sampled_tokens_logit():
    """The stored probabilities are those of batched sampling in float32: they agree to about 1e-6 of 1."""
    model, groups, advantages = _buffer()
    signals = [s for s in roll_signal(groups, advantages) if s.kind != "prefix"]
    assert sum(s.first > 0 for s in signals) > 3
    for signal in signals:
        want = _logit_gradient(model, signal.trace, signal.advantage, signal.first)
        np.testing.assert_allclose(signal.g_T, want, rtol=1e-4, atol=1e-7)
    miss = np.concatenate([s.miss_T for s in signals])
    assert miss.min() < 0.7 and miss.max() > 0.99


def test_the_signal_of_a_hidden_prefix_is_the_gradient_without_the_mask():
    model, groups, advantages = _buffer()
    prefixes = [s for s in roll_signal(groups, advantages) if s.kind == "prefix"]
    assert len(prefixes) > 3
    for signal in prefixes:
        want = _logit_gradient(model, signal.trace, signal.advantage, first=0)
        np.testing.assert_allclose(signal.g_T, want[: signal.trace.inherited_tokens], rtol=1e-4, atol=1e-7)


def test_the_signal_is_what_the_trainers_loss_does_to_its_log_probabilities(tmp_path: Path):
    """TRL's own loss: |d loss / d log pi| times (1 - pi), times the number of rows that the loss is a mean over."""
    trainer = tiny_trainer(tmp_path, method="oracle-srpo", seed=2, micro_rows=32)
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
    seen = inputs["advantages"].ne(0).any(dim=1)  # rows without an advantage are left out of the loss
    rows = len(seen)
    got_NT = (captured[0].grad.abs() * -torch.expm1(captured[0].detach()) * rows).numpy()
    step = trainer._reset_step
    signals = [s for s in roll_signal(step.rollouts.groups, step.advantages) if s.kind != "prefix"]
    assert len(signals) == rows
    assert not any(signal.g_T.any() for signal, kept in zip(signals, seen, strict=True) if not kept)
    for signal, got_T in zip((s for s, kept in zip(signals, seen, strict=True) if kept), got_NT, strict=True):
        end = signal.first + signal.miss_T.size
        np.testing.assert_allclose(got_T[signal.first : end], signal.g_T, atol=1e-5)
        assert not got_T[: signal.first].any()
    assert got_NT.max() > 1e-2


def _trace(ends, probs, start=0, slot=0):
    size = ends[-1]
    return ThoughtTrace(
        problem=Problem("p", "?", ""),
        prompt_ids=(1,),
        ids=tuple(range(size)),
        ends=tuple(ends),
        thoughts=tuple("x" for _ in ends),
        start=start,
        text="",
        score=Score(0.0, "wrong"),
        key=DrawKey(0, slot=slot),
        finished=True,
        logprobs=tuple(np.log(probs)),
    )


def _by_hand():
    """Base: two rollouts of 4 and 2 tokens. Seed: thoughts of 2 and 3 tokens, reset after the first. A suffix of 2."""
    base = (_trace([2, 4], [0.5, 0.9, 0.8, 0.2]), _trace([2], [0.5, 1.0]))
    seed = _trace([2, 5], [0.6, 0.7, 0.5, 0.5, 0.5])
    suffix = _trace([2, 4], [0.1, 0.4], start=1)
    return [Group(0, "base", base), Group(0, "reset", (suffix,), k=1, seed=seed)], [
        np.array([1.0, -2.0]),
        np.array([0.5]),
    ]


def test_means_and_ratio_by_hand():
    groups, advantages = _by_hand()
    ratios = step_ratios(signal_sums(groups, advantages))
    base = (1 / 4 * (0.5 + 0.1 + 0.2 + 0.8) + 2 / 2 * (0.5 + 0.0)) / 6
    suffix = 0.5 / 2 * (0.9 + 0.6) / 2
    assert ratios["signal_base"] == pytest.approx(base)
    assert ratios["signal_suffix"] == pytest.approx(suffix)
    assert ratios["signal_prefix"] == pytest.approx(0.5 / 4 * (0.4 + 0.3) / 2)  # the seed's own probabilities
    assert ratios["signal_ratio"] == pytest.approx(suffix / base)
    assert ratios["signal_ratio_live"] == pytest.approx(suffix / base)
    means = summary(roll_signal(groups, advantages))["means"]
    assert means["base"]["advantage"] == pytest.approx((4 * 1 + 2 * 2) / 6)
    assert means["base"]["inverse_length"] == pytest.approx((4 / 4 + 2 / 2) / 6)
    assert means["base"]["miss"] == pytest.approx((1.6 + 0.5) / 6)


def test_groups_without_signal_dilute_one_ratio_and_not_the_other():
    groups, advantages = _by_hand()
    idle = [Group(1, "base", groups[0].episodes)] * 2
    before = step_ratios(signal_sums(groups, advantages))
    after = step_ratios(signal_sums([*groups, *idle], [*advantages, np.zeros(2), np.zeros(2)]))
    assert after["signal_ratio"] == pytest.approx(3 * before["signal_ratio"])
    assert after["signal_ratio_live"] == pytest.approx(before["signal_ratio_live"])


def test_each_token_belongs_to_one_thought():
    groups, advantages = _by_hand()
    base, short, suffix, prefix = roll_signal(groups, advantages)
    assert base.by_thought() == pytest.approx({0: 1 / 4 * 0.3, 1: 1 / 4 * 0.5})
    assert short.by_thought() == pytest.approx({0: 0.25})
    assert suffix.by_thought() == pytest.approx({1: 0.25 * 0.75})
    assert prefix.by_thought() == pytest.approx({0: 0.125 * 0.35})
    trailing = _trace([2, 4], [0.5] * 5)
    object.__setattr__(trailing, "ids", tuple(range(5)))
    (signal,) = roll_signal([Group(0, "base", (trailing,))], [np.array([5.0])])
    assert signal.by_thought() == pytest.approx({0: 0.5, 1: 0.5})


def test_a_step_without_resets_or_without_signal_has_no_ratio():
    groups, advantages = _by_hand()
    no_resets = step_ratios(signal_sums(groups[:1], advantages[:1]))
    assert no_resets["signal_suffix"] is None and no_resets["signal_ratio"] is None
    no_base = step_ratios(signal_sums(groups, [np.zeros(2), np.array([0.5])]))
    assert no_base["signal_base"] == 0.0 and no_base["signal_ratio"] is None


def test_the_metrics_of_a_step_hold_the_signal():
    _, groups, advantages = _buffer()
    rollouts = Rollouts(groups, [], Account(), [])
    metrics = step_metrics(step_sums(rollouts, advantages, FirstErrors(Chains(steps=4, hard=2)), {}))
    expected = step_ratios(signal_sums(groups, advantages))
    assert {name: metrics[name] for name in expected} == expected
    assert expected["signal_ratio"] > 0


def test_the_command_measures_a_run(tmp_path: Path):
    run = tmp_path / "run"
    train(TrainConfig(**SMALL, output=str(run)))
    result = main(config_from_args(SignalConfig, ["--run", str(run), "--problems", "8"], "llm.signal"))
    assert json.loads((run / "signal.json").read_text()) == result
    assert (run / "signal.png").stat().st_size > 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["signal_ratio"] for row in result["steps"]] == [row["signal_ratio"] for row in metrics]
    assert result["fresh"]["means"]["base"]["tokens"] > 0


def test_a_loss_that_weighs_tokens_otherwise_has_no_signal_in_its_metrics(tmp_path: Path):
    run = tmp_path / "run"
    train(TrainConfig(**SMALL | {"eval_problems": 0}, method="dr-grpo", output=str(run)))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["signal_base"] for row in metrics} == {None}
    with pytest.raises(ConfigError, match=r"dr-grpo \(.*\) weighs them otherwise"):
        main(config_from_args(SignalConfig, ["--run", str(run)], "llm.signal"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["is no run", "give its folder"]),
        (["--run", "no/such/run"], ["no/such/run", "give its folder"]),
        (["--run", ".", "--problems", "0"], ["problems must be at least 1"]),
    ],
)
def test_a_mistake_gets_one_line(argv, words):
    with pytest.raises(ConfigError) as caught:
        main(config_from_args(SignalConfig, argv, "llm.signal"))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
