"""The keystone: one thought tree once as a table and once as tokens. Same cuts, groups, advantages, gradient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scripted import actions_of, tree_mdp, tree_simulator
from trl import GRPOConfig

from cpi.advantages import LeaveOneOut, MeanBaseline, ZScore
from cpi.draws import DrawKey
from cpi.groups import FirstFailure, IntactBase, Phase, Plan, Split, collect, group_advantages
from cpi.policy_gradient import policy_gradient
from cpi.resets import Noisy, Oracle, ResetSampler, Start, UniformWithinEpisode
from cpi.simulate import TabularPrefix, TabularSimulator
from llm.first_errors import Measuring
from llm.localize import OracleLocalizer
from llm.methods import Method
from llm.trainer import ResetTrainer, schedule

DEPTH, ACTIONS, RIGHT, PROMPTS = 3, 3, (1, 2, 0), 6
THETA = np.random.default_rng(7).normal(size=(DEPTH, ACTIONS ** (DEPTH - 1), ACTIONS)) * 0.7
for _h, _y in enumerate(RIGHT):  # right often enough that groups have something to compare
    THETA[_h, :, _y] += 1.0
ESTIMATORS = {"zscore": ZScore(0, 0.0), "mean": MeanBaseline(), "loo": LeaveOneOut()}


def _first_error_table(episode):
    wrong = np.array(episode.actions) != np.array(RIGHT)
    row = np.zeros(DEPTH)
    row[np.argmax(wrong)] = float(wrong.any())
    return row


@dataclass(frozen=True)
class _LateFirst:
    """One thought too late for a rollout, exact for a suffix: the second cut falls into the inherited prefix."""

    oracle: ResetSampler[Any]

    @property
    def spent(self):
        return self.oracle.spent

    def cut_probs(self, episodes):
        late = Noisy(self.oracle, 0.0, {1: 1.0}).cut_probs([e for e in episodes if e.start == 0])
        exact = self.oracle.cut_probs([e for e in episodes if e.start])
        rows = {0: iter(late), 1: iter(exact)}
        return [next(rows[e.start > 0]) for e in episodes]


def _plans(simulator):
    """Every pair is one plan on tokens and the same plan on the table."""
    table_oracle, token_oracle = Oracle(_first_error_table), OracleLocalizer(simulator.task)
    return {
        "grpo": (Plan(Split((8,), ()), Start()), Plan(Split((8,), ()), Start())),
        "rrpo": (Plan(Split((4,), (4,)), UniformWithinEpisode()), Plan(Split((4,), (4,)), UniformWithinEpisode())),
        "oracle-1x4": (Plan(Split((4,), (4,)), token_oracle), Plan(Split((4,), (4,)), table_oracle)),
        "oracle-intact": (
            Plan(Split((4,), (4,)), token_oracle, IntactBase()),
            Plan(Split((4,), (4,)), table_oracle, IntactBase()),
        ),
        "oracle-furthest": (
            Plan(Split((4,), (4,)), token_oracle, IntactBase(pick="furthest")),
            Plan(Split((4,), (4,)), table_oracle, IntactBase(pick="furthest")),
        ),
        "noisy": (
            Plan(Split((4,), (4,)), Noisy(token_oracle, 0.5, {-1: 0.5, 1: 0.5})),
            Plan(Split((4,), (4,)), Noisy(table_oracle, 0.5, {-1: 0.5, 1: 0.5})),
        ),
        "2x4": (
            Plan(Split((), (4, 4)), UniformWithinEpisode(), FirstFailure()),
            Plan(Split((), (4, 4)), UniformWithinEpisode(), FirstFailure()),
        ),
        "two-rounds": (
            Plan(Split((4,), (2, 2), rounds=2), token_oracle, IntactBase()),
            Plan(Split((4,), (2, 2), rounds=2), table_oracle, IntactBase()),
        ),
        "late-then-exact": (
            Plan(Split((2,), (4, 4), rounds=2), _LateFirst(token_oracle)),
            Plan(Split((2,), (4, 4), rounds=2), _LateFirst(table_oracle)),
        ),
        "1x8-scouts": (
            Plan(Split((), (8,)), token_oracle, IntactBase(scouts=2)),
            Plan(Split((), (8,)), table_oracle, IntactBase(scouts=2)),
        ),
    }


PLAN_NAMES = [
    "grpo",
    "rrpo",
    "oracle-1x4",
    "oracle-intact",
    "oracle-furthest",
    "noisy",
    "2x4",
    "two-rounds",
    "late-then-exact",
    "1x8-scouts",
]


def _keys(step):
    return [DrawKey(seed=3, step=step, prompt=i) for i in range(PROMPTS)]


def _table(plan, step):
    simulator = TabularSimulator(tree_mdp(DEPTH, ACTIONS, RIGHT), softmax(THETA, axis=-1))
    return collect(simulator, [TabularPrefix.at(0)] * PROMPTS, _keys(step), plan)


def _tokens(simulator, plan, step):
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    return collect(simulator, [root] * PROMPTS, _keys(step), plan)


@pytest.mark.parametrize("name", PLAN_NAMES)
def test_table_and_tokens_fill_the_same_buffer(name):
    _, simulator = tree_simulator(THETA, RIGHT)
    token_plan, table_plan = _plans(simulator)[name]
    resets = second = inside = 0
    for step in range(4):
        tokens, table = _tokens(simulator, token_plan, step), _table(table_plan, step)
        assert [(g.prompt, g.kind, g.k) for g in tokens.groups] == [(g.prompt, g.kind, g.k) for g in table.groups]
        assert [actions_of(e) for e in tokens.episodes()] == [list(e.actions) for e in table.episodes()]
        assert [e.start for e in tokens.episodes()] == [e.start for e in table.episodes()]
        for a, b in zip(tokens.localisations, table.localisations, strict=True):
            np.testing.assert_array_equal(a.row_K, b.row_K)
        for estimator in ESTIMATORS.values():
            a, b = group_advantages(tokens.groups, estimator), group_advantages(table.groups, estimator)
            np.testing.assert_array_equal(np.concatenate(a), np.concatenate(b))
        assert tokens.account == table.account
        resets += sum(g.kind == "reset" for g in tokens.groups)
        deeper = [g for g in tokens.groups if g.seed and g.seed.key.phase == Phase.RESET]
        second += len(deeper)
        inside += sum(g.k < g.seed.start for g in deeper)
    assert (resets > 0) == (name != "grpo")
    assert (second > 0) == (name in ("two-rounds", "late-then-exact"))
    assert (inside > 0) == (name == "late-then-exact")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", PLAN_NAMES)
def test_trainer_gradient_is_the_tables(name, estimator, tmp_path: Path):
    model, simulator = tree_simulator(THETA, RIGHT)
    token_plan, table_plan = _plans(simulator)[name]
    trainer = _trainer(model, simulator, Method(name, token_plan, ESTIMATORS[estimator]), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._generate_and_score_completions(batch)
    trainer.compute_loss(trainer.model, inputs).backward()

    keys = [DrawKey(seed=3, step=0, prompt=int(i)) for i in trainer.train_dataset["index"][:PROMPTS]]
    table_simulator = TabularSimulator(tree_mdp(DEPTH, ACTIONS, RIGHT), softmax(THETA, axis=-1))
    table = collect(table_simulator, [TabularPrefix.at(0)] * PROMPTS, keys, table_plan)
    want = policy_gradient(THETA, table.groups, group_advantages(table.groups, ESTIMATORS[estimator]))
    assert np.abs(want).max() > 1e-3
    # the trainer keeps advantages in float32
    np.testing.assert_allclose(-model.theta_grad(THETA.shape[1]), want, atol=1e-6)


def _trainer(model, simulator, method, folder: Path) -> ResetTrainer:
    total = method.plan.split.total
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PROMPTS * total,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=total,
        max_completion_length=DEPTH,
        temperature=1.0,
        loss_type="grpo",
        beta=0.0,
        epsilon=1e9,
        max_steps=1,
        seed=3,
        shuffle_dataset=False,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    problems = simulator.task.problems("train", PROMPTS, 0)
    trainer = ResetTrainer(
        simulator=simulator,
        backend=simulator.backend,
        method=method,
        problems=problems,
        on_step=lambda step: None,
        on_log=lambda row: None,
        measuring=Measuring(),
        model=model,
        processing_class=simulator.tokenizer,
        train_dataset=schedule(PROMPTS, PROMPTS, 1, 3),
        args=args,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called here
    return trainer


def test_a_context_is_computed_once_and_finished_rows_leave_the_batch():
    model, simulator = tree_simulator(THETA, RIGHT)
    rows = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    first = simulator.continue_from([root] * 5, [DrawKey(seed=1, slot=i) for i in range(5)])
    assert rows[0][0] == 1  # five rows share one prompt
    rows.clear()
    deep, shallow = first[0].prefix(2), first[0].prefix(0)
    simulator.continue_from([deep] * 3 + [shallow] * 2, [DrawKey(seed=2, slot=i) for i in range(5)])
    assert [shape[0] for shape in rows] == [2, 2, 2]  # two contexts; then the three deep rows are over
    assert torch.is_grad_enabled()
