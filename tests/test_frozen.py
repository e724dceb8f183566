"""Localizer frozen: the cuts are those of the model before training, whatever training does to the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training import SMALL, tiny_trainer

from cpi.draws import DrawKey
from cpi.groups import Phase, failed
from llm.config import ConfigError
from llm.generate import InitialBackend
from llm.localize import Asked, SelfLocalizer
from llm.thoughts import ThoughtTrace
from llm.train import TrainConfig, _build, main
from llm.trainer import ResetTrainer

FROZEN = {"method": "srpo", "seed_policy": "intact", "localizer": "frozen", "learning_rate": 0.001}


def _failures(trainer: ResetTrainer) -> list[ThoughtTrace]:
    """Of the untrained model, so that every localiser is asked the same questions."""
    keys = [DrawKey(seed=5, prompt=i, phase=Phase.EVALUATE) for i in range(12)]
    roots = [trainer.simulator.root(p) for p in trainer.problems[:12]]
    return [t for t in trainer.simulator.continue_from(roots, keys) if failed(t)]


def _asked(localizer: object, failures: list[ThoughtTrace]) -> list[Asked]:
    assert isinstance(localizer, SelfLocalizer)
    localizer.cut_probs(failures)
    return [localizer.asked[t.key][0] for t in failures]


@pytest.mark.parametrize("lora", [False, True])
def test_answers_are_those_of_the_model_before_training(lora: bool, tmp_path: Path):
    trainer = tiny_trainer(tmp_path, **FROZEN, lora=lora, lora_rank=4, steps=3)
    failures = _failures(trainer)
    frozen = trainer.method.plan.sampler
    own = _build(TrainConfig(**SMALL))[0].localizers.self_localizer
    before = [(a.answer_ids, a.logprobs) for a in _asked(own, failures)]
    if not lora:  # nothing keeps the weights of a model that no trainer holds
        with pytest.raises(ValueError, match="nothing keeps the weights"):
            _asked(replace(frozen, backend=InitialBackend(own.backend)), failures)

    trainer.train()
    with trainer.sampling():
        after = [(a.answer_ids, a.logprobs) for a in _asked(frozen, failures)]
        own.backend = trainer.backend
        trained = [(a.answer_ids, a.logprobs) for a in _asked(own, failures)]
    assert after == before
    assert trained != before, "training moved the model, so this would have shown"
    # no second copy where the adapter leaves the weights as they were
    assert (trainer.backend.initial is None) == lora


def test_a_resumed_run_asks_the_model_of_its_very_start(tmp_path: Path):
    options = {**SMALL, **FROZEN, "save_every": 2, "eval_problems": 0}
    whole = main(TrainConfig(**options | {"steps": 4}, output=str(tmp_path / "whole")))
    main(TrainConfig(**options | {"steps": 2}, output=str(tmp_path / "parts")))
    parts = main(TrainConfig(**options | {"steps": 4}, output=str(tmp_path / "parts"), resume=True))
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()
    assert whole["budget"] == parts["budget"]
    assert whole["budget"]["localisation_tokens"] > 0


def test_vllm_has_no_model_of_before_training(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"frozen asks .* use --backend transformers"):
        _build(TrainConfig(**{**SMALL, **FROZEN, "backend": "vllm"}))
