"""vLLM behind the backend protocol, against a stand-in with vLLM's own signatures; and the seams of TRL in use."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import fake_vllm
import numpy as np
import pytest
import torch
import yaml
from fake_vllm import LLM, Core, SamplingParams
from peft import PeftModel
from safetensors.torch import load_file
from scripted import EOS, FIRST_ACTION, tree_simulator
from training import LAUNCH, SMALL, WITHOUT_GPU, tiny_trainer
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.scripts.vllm_serve import ScriptArguments, build_command

import llm.evaluate
import llm.localization
from cpi.draws import DrawKey, uniforms
from llm.config import ConfigError
from llm.generate import NoStop, Request, Sampled, ThoughtStop, TransformersBackend
from llm.methods import METHODS
from llm.runs import open_run
from llm.setup import TINY, load_model, resolve_model
from llm.tasks import load_task
from llm.thoughts import BarePrompts
from llm.train import TrainConfig, main
from llm.trainer import _sampled_at
from llm.vllm_backend import Colocated, Draw, VLLMBackend, engine_of, server_command

ROOT = Path(__file__).parent.parent
TASK = "chains:steps=4,hard=3"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    return fake_vllm.install(monkeypatch)


@pytest.fixture(scope="module")
def tiny():
    return load_model(str(TINY), "float32")


def _over(backend: TransformersBackend, chunk: int, eos: frozenset[int] | None = None, context: int = 256):
    """A vLLM backend on the model of another one, and the core that it asks."""
    core = Core(backend.model, backend.eos_ids if eos is None else eos, context)
    generation = types.SimpleNamespace(llm=LLM.over(core), enable_sleep_mode=False)
    return VLLMBackend(backend.eos_ids, backend.text, Colocated(generation), chunk), core


def _requests(tokenizer, n: int = 12, max_tokens: int = 60, stop=lambda: ThoughtStop(3, 24)) -> list[Request]:
    problems = load_task(TASK).problems("eval", n, 0)
    ids = [
        tokenizer(BarePrompts().solve(tokenizer, p.question), add_special_tokens=False)["input_ids"] for p in problems
    ]
    return [Request(tuple(x), DrawKey(seed=3, prompt=i), 2 * i, max_tokens, stop()) for i, x in enumerate(ids)]


def _same(ours: list[Sampled], want: list[Sampled]) -> None:
    assert [s.ids for s in ours] == [s.ids for s in want]
    assert [s.over for s in ours] == [s.over for s in want]
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)
        assert a.entropies == []


# --- the stop rule, budgets, ids, order -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 256])
@pytest.mark.parametrize("max_tokens", [5, 60])
def test_greedy_rows_are_those_of_the_other_backend_whatever_the_chunk(chunk, max_tokens, vllm, tiny):
    """Stop rules, budgets, end of sequence, ids and log-probabilities at once: greedy rows have no draws to differ."""
    model, tokenizer = tiny
    other = TransformersBackend.of(model, tokenizer)
    backend, core = _over(other, chunk)
    want = other.sample(_requests(tokenizer, max_tokens=max_tokens), 0.0, 0.9)
    _same(backend.sample(_requests(tokenizer, max_tokens=max_tokens), 0.0, 0.9), want)
    assert {s.over for s in want} == ({True} if max_tokens == 60 else {False})
    assert max(params.max_tokens for _, params in core.requests) <= min(chunk, max_tokens)


def test_with_chunks_of_one_token_the_draws_are_those_of_the_other_backend(vllm, tiny):
    model, tokenizer = tiny
    other = TransformersBackend.of(model, tokenizer)
    _same(_over(other, 1)[0].sample(_requests(tokenizer), 0.8, 1.0), other.sample(_requests(tokenizer), 0.8, 1.0))


def test_log_probabilities_are_those_of_the_policy_up_to_the_mass_of_the_nucleus(vllm, tiny):
    model, tokenizer = tiny
    other = TransformersBackend.of(model, tokenizer)
    want = other.sample(_requests(tokenizer), 2.0, 0.5)
    ours = _over(other, 1)[0].sample(_requests(tokenizer), 2.0, 0.5)
    assert [s.ids for s in ours] == [s.ids for s in want]
    excess = np.concatenate([np.subtract(a.logprobs, b.logprobs) for a, b in zip(ours, want, strict=True)])
    assert (excess > -1e-5).all()
    assert (excess < -np.log(0.5) + 1e-5).all()
    assert excess.max() > 0.1


def test_what_comes_after_the_end_is_thrown_away_and_the_rest_is_asked_for_again(vllm):
    """A tree of depth 6 that never ends by itself; two thoughts a response, three tokens a request."""
    theta = np.zeros((6, 32, 2))
    _, simulator = tree_simulator(theta, right=(0, 0, 0, 0, 0, 0))
    assert isinstance(simulator.backend, TransformersBackend)
    backend, core = _over(simulator.backend, chunk=3)
    requests = [Request((2, 3), DrawKey(0, slot=i), 0, 6, ThoughtStop(n, 9)) for i, n in enumerate((1, 2, 3, 4, 5, 9))]
    rows = backend.sample(requests, 1.0, 1.0)
    assert [len(r.ids) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r.over for r in rows] == [True] * 5 + [False]
    assert [len(r.logprobs) for r in rows] == [len(r.ids) for r in rows]
    assert all(token >= FIRST_ACTION for r in rows for token in r.ids)
    again = core.requests[6:]
    assert [prompt for prompt, _ in again] == [[2, 3, *r.ids[:3]] for r in rows[3:]]
    assert [params.max_tokens for _, params in core.requests] == [3] * 9


def test_seeds_are_functions_of_key_and_position_and_rows_do_not_depend_on_the_batch(vllm, tiny):
    model, tokenizer = tiny
    backend, core = _over(TransformersBackend.of(model, tokenizer), chunk=8)
    together = backend.sample(_requests(tokenizer), 0.9, 0.95)
    for prompt, params in core.requests:
        request = next(r for r in _requests(tokenizer) if tuple(prompt[: len(r.ids)]) == r.ids)
        draw = request.first_draw + len(prompt) - len(request.ids)
        assert params.seed == int(uniforms([request.key], 1, start=draw)[0, 0] * 2**53)
        assert (params.temperature, params.top_p, params.logprobs) == (0.9, 0.95, 0)
        assert params.stop_token_ids == sorted(backend.eos_ids)
    assert len({params.seed for _, params in core.requests}) == len(core.requests) > len(together)
    alone = [backend.sample([r], 0.9, 0.95)[0].ids for r in _requests(tokenizer)]
    assert alone == [s.ids for s in together]
    shuffled = [*reversed(_requests(tokenizer))]
    assert [s.ids for s in backend.sample(shuffled, 0.9, 0.95)] == alone[::-1]


def test_only_our_end_of_sequence_tokens_end_a_row(vllm, tiny):
    """An engine that also ends at a token of its own is asked again; ours ends the row, and is kept."""
    model, tokenizer = tiny
    other = TransformersBackend.of(model, tokenizer)
    [want] = other.sample(_requests(tokenizer, n=1, stop=NoStop), 0.0, 1.0)
    wrong = frozenset({want.ids[4]})
    backend, core = _over(other, 256, eos=wrong)
    _same(backend.sample(_requests(tokenizer, n=1, stop=NoStop), 0.0, 1.0), [want])
    assert len(core.requests) > 1
    backend.eos_ids = wrong
    [row] = backend.sample(_requests(tokenizer, n=1, stop=NoStop), 0.0, 1.0)
    assert row.over and row.ids == want.ids[: want.ids.index(want.ids[4]) + 1]


def test_a_row_without_a_stop_rule_is_asked_for_once(vllm, tiny):
    model, tokenizer = tiny
    backend, core = _over(TransformersBackend.of(model, tokenizer), chunk=2)
    backend.sample(_requests(tokenizer, n=3, max_tokens=20, stop=NoStop), 0.7, 1.0)
    assert [params.max_tokens for _, params in core.requests] == [20] * 3


def test_a_full_context_and_an_empty_budget_end_a_row_before_vllm_would_refuse_it(vllm, tiny):
    model, tokenizer = tiny
    requests = _requests(tokenizer, n=3, stop=NoStop)
    long = max(len(r.ids) for r in requests)
    backend, core = _over(TransformersBackend.of(model, tokenizer), 4, context=long)
    full = replace(requests[0], ids=(requests[0].ids * 9)[:long])
    rows = backend.sample([full, replace(requests[1], max_tokens=0), replace(requests[2], ids=full.ids[:-2])], 0.7, 1.0)
    assert [(len(r.ids), r.over) for r in rows[:2]] == [(0, False), (0, False)]
    assert 1 <= len(rows[2].ids) <= 2
    assert len(core.requests) == 1
    assert backend.sample([], 0.7, 1.0) == []


def test_the_stand_in_refuses_what_vllm_refuses(vllm):
    with pytest.raises(TypeError):
        SamplingParams(logprobs=0, first_draw=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_tokens"):
        SamplingParams(logprobs=0, max_tokens=0)


# --- training -------------------------------------------------------------------------------------------------------


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_through_vllm_makes_the_rollouts_and_the_weights_of_one_without_it(vllm, monkeypatch, tmp_path: Path):
    """Chunks of one token, no nucleus: same draws, ratio 1 up to rounding; so vLLM had the weights of every update."""
    monkeypatch.setattr(VLLMBackend.__init__, "__defaults__", (None, 1, None))
    config = {**SMALL, "top_p": 1.0, "steps": 3, "method": "srpo"}
    results = [
        main(TrainConfig(**config, output=str(tmp_path / name), backend=name)) for name in ("transformers", "vllm")
    ]
    [engine] = vllm.made
    assert engine.memory == 0.3
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("transformers", "vllm")
    ]
    for plain, ours in zip(*rows, strict=True):
        assert ours.pop("mismatch") < 1e-4
        assert set(plain) == set(ours)
        for name in plain:
            np.testing.assert_allclose(ours[name] or 0.0, plain[name] or 0.0, rtol=1e-3, atol=1e-4, err_msg=name)
    assert results[0]["before"] == results[1]["before"]
    assert results[0]["after"]["greedy"] == results[1]["after"]["greedy"]
    plain, ours = _weights(tmp_path / "transformers"), _weights(tmp_path / "vllm")
    start = load_file(TINY / "model.safetensors")
    assert max(float((plain[n] - start[n]).abs().max()) for n in start) > TrainConfig().learning_rate
    assert np.mean([float((plain[n] - ours[n]).abs().mean()) for n in start]) < 1e-5
    held = dict(engine.core.model.named_parameters())
    assert all(torch.equal(held[n], ours[n]) for n in held)  # measured, in the end, with the weights of the end
    number = len(held)
    assert engine.core.loads == 4 * number  # once before, which step 0 shares, then once a step, and for the end
    assert engine.resets == 4


@pytest.mark.parametrize("sleep", [False, True])
def test_an_adapter_is_merged_into_what_is_sampled_from_and_sleep_loses_nothing(sleep, vllm, tmp_path: Path):
    """Asleep after the first measurement, it must have its weights again for the first step."""
    config = {**SMALL, "eval_problems": 2, "lora": True, "lora_rank": 4, "learning_rate": 0.01}
    main(TrainConfig(**config, backend="vllm", vllm_sleep=sleep, output=str(tmp_path / "run")))
    [engine] = vllm.made
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["mismatch"] < 0.02 for row in rows)  # that of the nucleus; old or lost weights would show
    assert engine.awake == (set() if sleep else {"weights", "kv_cache"})
    if not sleep:  # it still holds the weights that were measured last
        start = AutoModelForCausalLM.from_pretrained(TINY)
        merged = dict(
            PeftModel.from_pretrained(start, str(tmp_path / "run" / "model")).merge_and_unload().named_parameters()
        )
        held = dict(engine.core.model.named_parameters())
        for name in held:
            torch.testing.assert_close(held[name], merged[name])
        first = load_file(TINY / "model.safetensors")
        assert max(float((held[name] - first[name]).detach().abs().max()) for name in held) > 1e-4


def test_the_policy_sampled_after_an_update_is_the_new_one(vllm, tmp_path: Path):
    trainer = tiny_trainer(tmp_path, method="oracle-srpo", backend="vllm", save_every=100)
    [engine] = vllm.made
    for step in range(2):
        trainer.state.global_step = step
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(0.001)
        now = {n: p.clone() for n, p in trainer.model.named_parameters()}
        batch = next(iter(trainer.get_train_dataloader()))
        trainer._generate_and_score_completions(batch)
        assert all(torch.equal(p, now[n]) for n, p in engine.core.model.named_parameters())
    assert engine.resets == 2


@pytest.fixture
def step(vllm, tmp_path: Path):
    trainer = tiny_trainer(tmp_path, method="oracle-srpo", backend="vllm", prompts=4)
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, trainer._generate_and_score_completions(batch)


def test_rows_carry_what_they_were_sampled_with_and_prefixes_are_left_alone(step):
    trainer, out = step
    ratio, mask = out["importance_sampling_ratio"], out["tool_mask"] * out["completion_mask"]
    sampled = out["sampling_per_token_logps"]
    for i, (row, trace) in enumerate(
        zip(trainer._reset_roll.rows, trainer._reset_step.rollouts.episodes(), strict=True)
    ):
        cut, end = trace.inherited_tokens, len(trace.ids)
        assert len(_sampled_at(row)) == end
        assert torch.isnan(sampled[i, :cut]).all()
        np.testing.assert_allclose(sampled[i, cut:end].numpy(), trace.logprobs, rtol=1e-5)
        assert (ratio[i, :cut] == 1).all()
    assert any(trace.inherited_tokens for trace in trainer._reset_step.rollouts.episodes())
    trained = ratio[mask.bool()]
    assert ratio.shape == mask.shape  # one per token, not one per sequence
    assert trained.max() <= 1 + 1e-4  # the same weights: what is left is the nucleus' mass Z
    assert trained.min() >= 0.95 - 1e-4
    assert trained.min() < 0.999


def test_the_correction_is_the_factor_on_the_loss_and_can_be_left_out(step, tmp_path: Path):
    trainer, out = step
    off = tiny_trainer(tmp_path / "off", method="oracle-srpo", backend="vllm", prompts=4, vllm_correction=False)
    plain = off._generate_and_score_completions(next(iter(off.get_train_dataloader())))
    assert "importance_sampling_ratio" not in plain
    assert torch.equal(plain["completion_ids"], out["completion_ids"])
    mask = out["completion_mask"] * out["tool_mask"]
    lengths = mask.sum(1).clamp(min=1)
    normaliser = trainer.current_gradient_accumulation_steps
    want = -((out["advantages"] * out["importance_sampling_ratio"] * mask).sum(1) / lengths).mean() / normaliser
    torch.testing.assert_close(trainer.compute_loss(trainer.model, out), want, rtol=1e-4, atol=1e-6)
    uncorrected = -((out["advantages"] * mask).sum(1) / lengths).mean() / normaliser
    torch.testing.assert_close(off.compute_loss(off.model, plain), uncorrected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_takes_a_step(method, vllm, tmp_path: Path):
    few = {"continuations": 2} if method in ("vineppo", "spo-chain") else {}
    trainer = tiny_trainer(tmp_path, method=method, backend="vllm", prompts=2, max_tokens=48, **few)
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    rows = trainer._reset_roll.rows
    assert all(len(_sampled_at(row)) == len(row.completion_ids) for row in rows)
    known = [np.isfinite(_sampled_at(row))[row.mask_T].all() for row in rows if not row.shaping and row.mask_T.any()]
    assert known and all(known)
    assert all(np.isnan(_sampled_at(row)).all() for row in rows if row.shaping)


def test_answers_of_a_trained_localiser_are_corrected_too(vllm, tmp_path: Path):
    trainer = tiny_trainer(
        tmp_path,
        method="srpo",
        localizer="trained",
        answers=2,
        share_seed=True,
        split="4/2+2",
        backend="vllm",
        prompts=4,
    )
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    own = [row for row in trainer._reset_roll.rows if row.mask_T.any()]
    assert all(np.isfinite(_sampled_at(row))[row.mask_T].all() for row in own)


def test_two_processes_make_the_rollouts_that_one_makes(tmp_path: Path):
    """Each with an engine of its own, in a script that installs the stand-in."""
    script = "import pytest, fake_vllm, llm.train as t; fake_vllm.install(pytest.MonkeyPatch()); "
    script += "from llm.config import run_command; run_command(t.main, t.TrainConfig, 'llm.train')"
    (tmp_path / "start.py").write_text(script)
    options = [w for name, value in SMALL.items() for w in ("--" + name.replace("_", "-"), str(value))]
    options += ["--backend", "vllm", "--method", "oracle-srpo", "--top-p", "1.0", "--output"]
    environment = {**os.environ, **WITHOUT_GPU, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    rows = []
    for name, launcher in (("one", []), ("two", LAUNCH)):
        command = [sys.executable, *launcher, str(tmp_path / "start.py"), *options, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        rows.append([json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    for one, two in zip(*rows, strict=True):
        for name in ("rollouts", "tokens", "accuracy", "reset_reward"):
            assert one[name] == two[name]
        assert two["batches"] > one["batches"]  # each process has asked its own engine
        np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-3)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["before"] == results[1]["before"]


# --- the server -----------------------------------------------------------------------------------------------------


def test_a_run_with_a_server_sends_its_weights_and_trains_as_one_without(vllm, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(VLLMBackend.__init__, "__defaults__", (None, 16, None))
    config = {**SMALL, "eval_problems": 2, "max_tokens": 40}
    with fake_vllm.serve(monkeypatch, str(TINY)) as (address, core, log):
        main(TrainConfig(**config, backend="vllm", vllm_server=address, output=str(tmp_path / "server")))
    main(TrainConfig(**config, backend="vllm", output=str(tmp_path / "colocated")))
    assert log[:4] == ["init", "weights", "/reset_prefix_cache", "weights"]
    assert log.count("weights") == 3
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("server", "colocated")
    ]
    for ours, want in zip(*rows, strict=True):
        assert ours["tokens"] == want["tokens"] and ours["accuracy"] == want["accuracy"]
        np.testing.assert_allclose(ours["loss"], want["loss"], rtol=1e-3, atol=1e-5)
    held = dict(core.model.named_parameters())
    trained = _weights(tmp_path / "server")
    assert all(torch.equal(held[n], trained[n]) for n in held)
    assert len({params.seed for _, params in core.requests}) > 100


def test_another_process_asks_the_server_through_a_client_of_its_own(vllm, monkeypatch, tiny):
    _, tokenizer = tiny
    with fake_vllm.serve(monkeypatch, str(TINY)) as (address, _core, log):
        accelerator = types.SimpleNamespace(waits=0)
        accelerator.wait_for_everyone = lambda: log.append("wait")
        generation = types.SimpleNamespace(mode="server", server_base_url=address, accelerator=accelerator)
        engine = engine_of(generation)
        assert engine.context == 256
        with engine.serving():
            assert log == ["wait"]  # nobody asks before the main process has sent the weights
            prompt = list(_requests(tokenizer, n=1)[0].ids)
            rows = engine.generate([Draw(prompt, 5, 3), Draw(prompt, 5, 1)], 0.7, 0.9, [EOS])
    assert [len(row) for row in rows] == [3, 1]
    assert rows[0][0] == rows[1][0]


def test_a_server_that_is_not_there_or_differs_is_one_line_with_the_command_that_starts_it(
    vllm, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr(VLLMClient.check_server, "__defaults__", (0.0, 0.01))
    from llm import vllm_backend

    settings = vllm_backend.trl_settings
    monkeypatch.setattr("llm.train.trl_settings", lambda c: {**settings(c), "vllm_server_timeout": 0.0})
    config = TrainConfig(**SMALL, backend="vllm", vllm_server="http://127.0.0.1:9", output=str(tmp_path / "none"))
    with pytest.raises(ConfigError) as gone:
        main(config)
    with fake_vllm.serve(monkeypatch, str(TINY), "raw_logprobs") as (address, *_), pytest.raises(ConfigError) as raw:
        main(replace(config, vllm_server=address, output=str(tmp_path / "raw")))
    for caught in (gone, raw):
        assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in str(caught.value)
        assert "\n" not in str(caught.value)


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_and_localisation_sample_through_vllm_with_the_adapter_merged(vllm, tmp_path: Path):
    run = tmp_path / "run"
    main(TrainConfig(**{**SMALL, "eval_problems": 0}, lora=True, lora_rank=4, learning_rate=0.02, output=str(run)))
    common = {"model": str(run), "problems": 12, "threads": 1}
    results = [
        llm.evaluate.main(llm.evaluate.EvaluateConfig(**common, backend=name, output=str(tmp_path / f"e-{name}")))
        for name in ("transformers", "vllm")
    ]
    assert results[0]["tasks"] == results[1]["tasks"]  # greedy
    measured = llm.localization.main(
        llm.localization.LocalizationConfig(
            **common, localizers="self random", backend="vllm", vllm_memory=0.5, output=str(tmp_path / "l")
        )
    )
    assert measured["failures"] > 0
    assert [engine.memory for engine in vllm.made] == [0.3, 0.5]


# --- mistakes, the plan ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_how_to_get_and_start_it(tmp_path: Path):
    assert "vllm" not in sys.modules
    with pytest.raises(ConfigError) as caught:
        main(TrainConfig(**SMALL, backend="vllm", output=str(tmp_path / "run")))
    line = str(caught.value)
    assert "\n" not in line
    assert all(
        w in line for w in ("pip install 'trl[vllm]==1.16.*'", "--vllm-server", "VLLM_SERVER_DEV_MODE=1 vllm serve")
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="not installed"):
        llm.evaluate.main(llm.evaluate.EvaluateConfig(backend="vllm", output=str(tmp_path / "e")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"localizer": "entropy"}, "entropies"),
        ({"vllm_memory": 1.5}, "vllm_memory"),
        ({"vllm_server": "localhost:8000"}, "http://localhost:8000"),
    ],
    ids=str,
)
def test_what_vllm_cannot_do_is_one_line(changes, words, vllm, tmp_path: Path):
    with pytest.raises(ConfigError, match=words) as caught:
        main(TrainConfig(**SMALL, backend="vllm", output=str(tmp_path / "run"), **changes))
    assert "\n" not in str(caught.value)
    assert not vllm.made


def test_localisation_refuses_entropy(vllm, tmp_path: Path):
    with pytest.raises(ConfigError, match="entropies"):
        llm.localization.main(llm.localization.LocalizationConfig(backend="vllm", output=str(tmp_path / "l")))


def test_the_dry_run_needs_no_vllm_and_says_what_would_be_started(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(**SMALL, dry_run=True)
    plain = main(config)
    plan = main(replace(config, backend="vllm", vllm_memory=0.5, vllm_sleep=True))
    assert (
        "a vLLM engine in each process, with 50% of its GPU's memory, freed between samplings"
        in capsys.readouterr().out
    )
    assert plan["cache"] == 0 < plain["cache"]
    main(replace(config, backend="vllm", vllm_server="http://localhost:8000"))
    shown = capsys.readouterr().out
    assert (
        f"vLLM server at http://localhost:8000; start it first, on GPUs of its own: {server_command(SMALL['model'])}"
        in shown
    )
    assert not list(tmp_path.iterdir())


def test_a_run_from_before_these_options_is_resumed_with_their_defaults(tmp_path: Path):
    config = TrainConfig(output=str(tmp_path))
    younger = ("backend", "vllm_memory", "vllm_server", "vllm_sleep", "vllm_correction")
    saved = {name: value for name, value in vars(config).items() if name not in younger}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert open_run(config, tmp_path, resume=True).path == tmp_path
    with pytest.raises(ConfigError, match="backend='transformers', not 'vllm'"):
        open_run(replace(config, backend="vllm"), tmp_path, resume=True)


# --- the seams of TRL -----------------------------------------------------------------------------------------------


def test_trl_takes_the_arguments_and_keeps_the_attributes_that_are_used():
    generation = inspect.signature(VLLMGeneration.__init__).parameters
    assert list(generation)[1:5] == ["model", "accelerator", "processing_class", "mode"]
    assert "gpu_memory_utilization" in generation
    source = inspect.getsource(VLLMGeneration)
    for name in (
        "llm",
        "vllm_client",
        "mode",
        "server_base_url",
        "accelerator",
        "enable_sleep_mode",
        "_llm_weights_sleeping",
    ):
        assert f"self.{name} = " in source
    assert 'logprobs_mode="processed_logprobs"' in source
    assert 'wake_up(tags=["weights"])' in inspect.getsource(VLLMGeneration.sync_weights)
    client = inspect.signature(VLLMClient.generate).parameters
    assert {"prompts", "temperature", "top_p", "max_tokens", "logprobs", "generation_kwargs"} <= set(client)
    assert [client[n].default for n in ("n", "repetition_penalty", "top_k", "min_p")] == [1, 1.0, 0, 0.0]
    assert "base_url" in inspect.signature(VLLMClient.__init__).parameters
    settings = set(inspect.signature(GRPOConfig.__init__).parameters)
    assert {"use_vllm", "vllm_mode", "vllm_server_base_url", "vllm_enable_sleep_mode"} <= settings


def test_trl_synchronises_before_the_rollouts_and_remembers_the_step():
    source = inspect.getsource(GRPOTrainer._generate)
    seam = "if self.use_vllm and self.state.global_step != self._last_loaded_step"
    assert source.index(seam) < source.index("self.vllm_generation.sync_weights()") < source.index("self.rollout_func(")
    assert "self._last_loaded_step = -1" in inspect.getsource(GRPOTrainer.__init__)


def test_trls_own_server_command_has_the_settings_of_ours():
    ours = server_command("org/model").split(" ", 3)
    assert ours[:3] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve"]
    trls = build_command(ScriptArguments(model="org/model"))
    for name, value in (("--weight-transfer-config", '{"backend": "nccl"}'), ("--logprobs-mode", "processed_logprobs")):
        assert trls[trls.index(name) + 1] == value
        assert f"{name} " in ours[3] and value in ours[3]
    assert resolve_model("org/model") == "org/model"


def test_a_server_with_less_context_than_its_model_bounds_questions_and_prompts(tiny):
    model, tokenizer = tiny
    backend = VLLMBackend.of(model, tokenizer)
    assert backend.context == model.config.max_position_embeddings
    backend.engine = types.SimpleNamespace(context=60)
    assert backend.context == 60
    backend.engine = types.SimpleNamespace(context=10**6)
    assert backend.context == model.config.max_position_embeddings
