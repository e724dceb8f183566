"""A model that ends at once: no thought, no reset, no signal, and no error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import EOS, tree_simulator
from test_parity import PROMPTS, RIGHT, THETA, _trainer

from cpi.groups import FirstFailure, IntactBase, Plan, Split
from cpi.resets import UniformWithinEpisode
from llm.localize import EntropyLocalizer, OracleLocalizer, SelfLocalizer
from llm.methods import Method
from llm.thoughts import BarePrompts


def _silent():
    model, simulator = tree_simulator(np.full_like(THETA, -1e4), RIGHT)
    with torch.no_grad():
        model.lm_head.weight[EOS] = 0.0
    return model, simulator


SAMPLERS = {
    "uniform": lambda s: UniformWithinEpisode(),
    "oracle": lambda s: OracleLocalizer(s.task),
    "entropy": lambda s: EntropyLocalizer(),
    "self": lambda s: SelfLocalizer(s.backend, s.tokenizer, BarePrompts(cue="?"), max_tokens=4),
}


@pytest.mark.parametrize("seeds", [FirstFailure(), IntactBase(), IntactBase("furthest")], ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_empty_completion_is_a_failure_without_a_reset(sampler, seeds, tmp_path: Path):
    model, simulator = _silent()
    plan = Plan(Split((4,), (4,)), SAMPLERS[sampler](simulator), seeds)
    trainer = _trainer(model, simulator, Method("silent", plan), tmp_path)
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    rollouts = trainer._reset_step.rollouts
    assert all(t.ids == (EOS,) and t.num_decisions == 0 and t.outcome == 0 for t in rollouts.episodes())
    assert all(g.kind == "base" and len(g.episodes) == 8 for g in rollouts.groups)
    assert rollouts.account.no_cut == PROMPTS
    loss = trainer.compute_loss(trainer.model, inputs)
    assert float(loss.detach()) == 0.0
