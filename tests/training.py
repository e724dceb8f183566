"""Small real training set-ups for the tests: the embedded model, few prompts, short runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.first_errors import Measuring
from llm.runs import RunFolder
from llm.setup import TINY
from llm.train import TrainConfig, _build, _lora, _trainer_args
from llm.trainer import ResetTrainer, schedule

SMALL = {
    "prompts": 4,
    "train_problems": 16,
    "eval_problems": 8,
    "steps": 2,
    "threads": 1,
    "model": str(TINY),
    "task": "chains:steps=4,hard=3",  # short enough that a few rollouts hold both successes and failures
}

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
"""``accelerate launch`` with two processes, by gloo in the environment `WITHOUT_GPU`.

With ``--cpu`` in place of ``--multi_gpu`` accelerate 1.15 starts a single process, whatever ``--num_processes`` says.
"""
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def tiny_trainer(
    folder: Path, on_log: Callable[[dict[str, Any]], None] = lambda row: None, **changes: Any
) -> ResetTrainer:
    """A `ResetTrainer` as `llm.train` builds it, without its run folder."""
    config = TrainConfig(**{**SMALL, **changes})
    world, method, problems, _ = _build(config)
    trainer = ResetTrainer(
        simulator=world.simulator,
        backend=world.backend,
        method=method,
        problems=problems,
        on_step=lambda step: None,
        on_log=on_log,
        measuring=Measuring(config.oracle_every, config.oracle_seeds, config.oracle_continuations),
        ratio=config.ratio,
        model=world.model,
        processing_class=world.tokenizer,
        train_dataset=schedule(len(problems), config.prompts, config.steps, config.seed),
        args=_trainer_args(config, method.rows_per_prompt, RunFolder(folder)),
        peft_config=_lora(config),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer
