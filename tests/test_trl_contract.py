"""The seams of TRL that `ResetTrainer` stands on. If TRL moves one, a test here says which."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
import trl.kernels
import trl.trainer.utils
from training import tiny_trainer
from trl import GRPOTrainer

import llm.trainer
from llm.trainer import schedule


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory):
    return tiny_trainer(tmp_path_factory.mktemp("contract"), method="oracle-srpo", prompts=4)


@pytest.fixture(scope="module")
def outputs(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    return batch, trainer._generate_and_score_completions(batch)


def test_the_pinned_minor_version_is_installed():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("log", ["self", "logs", "start_time"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
    ],
)
def test_overridden_methods_keep_their_signature(name, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters


def test_no_attribute_of_ours_hides_one_of_trls():
    ours = {"simulator", "backend", "method", "problems", "on_step", "on_log", "measuring", "check_weights"}
    source = inspect.getsource(GRPOTrainer) + inspect.getsource(GRPOTrainer.__mro__[2])
    assert not [name for name in ours if f"self.{name} " in source]
    assert "self._reset_" not in source


def test_each_prompt_is_repeated_side_by_side_and_carries_its_columns(trainer, outputs):
    batch, _ = outputs
    index = [row["index"] for row in batch]
    total = trainer.num_generations
    assert [index[i * total] for i in range(4)] == list(trainer.train_dataset["index"][:4])
    assert all(len(set(index[i * total : (i + 1) * total])) == 1 for i in range(4))


def test_micro_batches_are_trls_slices_and_each_update_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """TRL buffers one slice a pass; ours hold, update by update, the very rows that TRL gave that update."""
    trainer = tiny_trainer(tmp_path, method="grpo", prompts=4, updates=2, micro_rows=4, seed=2)
    size, total = trainer.args.gradient_accumulation_steps, trainer.args.steps_per_generation
    assert (size, total) == (4, 8)
    given = []
    by_length = llm.trainer._by_length
    monkeypatch.setattr(llm.trainer, "_by_length", lambda parts: given.append(parts) or by_length(parts))
    batch = next(iter(trainer.get_train_dataloader()))
    dealt = []
    for trainer._step in range(total):
        dealt.append(trainer._prepare_inputs(batch))
    assert [len(parts) for parts in given] == [size, size]
    for update, parts in enumerate(given):
        assert _row_contents(dealt[update * size : (update + 1) * size]) == _row_contents(parts)
    assert _row_contents(given[0]) != _row_contents(given[1])


def _row_contents(parts):
    names = ("prompt_ids", "completion_ids", "completion_mask", "tool_mask", "advantages")
    return sorted(
        [row.tolist() for row in rows] for part in parts for rows in zip(*(part[n] for n in names), strict=True)
    )


def test_trl_keeps_the_rows_in_our_order_and_our_mask(trainer, outputs):
    _, out = outputs
    traces = trainer._reset_step.rollouts.episodes()
    for row, trace in enumerate(traces):
        length = len(trace.ids)
        assert out["completion_ids"][row, :length].tolist() == list(trace.ids)
        want = [0] * trace.inherited_tokens + [1] * (length - trace.inherited_tokens)
        assert out["tool_mask"][row, :length].tolist() == want
        prompt = out["prompt_ids"][row][out["prompt_mask"][row].bool()]
        assert prompt.tolist() == list(trace.prompt_ids)
    assert any(trace.inherited_tokens for trace in traces)


def test_our_advantages_are_the_ones_that_are_trained_on(trainer, outputs):
    _, out = outputs
    trained = (out["completion_mask"] * out["tool_mask"]).numpy()
    want = np.concatenate(trainer._reset_step.advantages)[:, None] * trained
    np.testing.assert_allclose(out["advantages"].numpy(), want, rtol=1e-6)


def test_the_model_is_in_training_mode_after_sampling(trainer, outputs):
    assert trainer.model.training
    assert torch.is_grad_enabled()


def test_old_log_probs_are_not_computed_so_the_ratio_is_one(outputs):
    assert "old_per_token_logps" not in outputs[1]


def test_the_schedule_is_a_permutation_in_every_pass_and_its_prefix_does_not_depend_on_the_length():
    short, long = schedule(10, 4, 5, seed=3), schedule(10, 4, 9, seed=3)
    index = list(long["index"])
    assert index[:20] == list(short["index"])
    assert all(sorted(index[b : b + 10]) == list(range(10)) for b in (0, 10, 20))
    assert index[:10] != index[10:20]
    assert list(long["step"]) == [i // 4 for i in range(36)]


def test_a_problem_that_comes_twice_in_a_step_has_other_draws_the_second_time(tmp_path: Path):
    rows = schedule(3, 4, 6, seed=3)
    assert [draws % 3 for draws in rows["draws"]] == list(rows["index"])
    by_step = [rows["draws"][4 * s : 4 * s + 4] for s in range(6)]
    assert all(len(set(draws)) == 4 for draws in by_step)
    assert max(rows["draws"]) < 6  # four prompts of three problems: one comes twice

    trainer = tiny_trainer(tmp_path, method="grpo", prompts=4, steps=1, train_problems=2)
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    groups = trainer._reset_step.rollouts.groups
    same = [g for g in groups if g.episodes[0].problem == groups[0].episodes[0].problem]
    assert len(groups) == 4 and len(same) == 2
    assert [t.ids for t in same[0].episodes] != [t.ids for t in same[1].episodes]


def test_metrics_are_ours(tmp_path: Path):
    rows = []
    trainer = tiny_trainer(tmp_path, method="srpo", prompts=4, steps=2, on_log=rows.append)
    trainer.train()
    assert [row["step"] for row in rows] == [0, 1]
    logged = [name for entry in trainer.state.log_history for name in entry]
    assert not [name for name in logged if name.startswith(("rewards/", "completions/", "clip_ratio"))]
    assert all(entry["reward"] == row["reward"] for entry, row in zip(trainer.state.log_history, rows, strict=False))


def test_only_response_positions_pass_through_the_vocabulary_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = tiny_trainer(tmp_path, method="grpo", prompts=4)
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    scored = []

    class Counting:
        @staticmethod
        def apply(hidden, *args):
            scored.append(len(hidden))
            return trl.kernels.ChunkedLogProbFunction.apply(hidden, *args)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Counting)
    before = trl.trainer.utils._use_triton
    trainer.compute_loss(trainer.model, inputs).backward()
    seen = inputs["advantages"].ne(0).any(dim=1)
    assert scored == [int((inputs["completion_mask"] * inputs["tool_mask"])[seen].sum())]
    assert trl.trainer.utils._use_triton is before
