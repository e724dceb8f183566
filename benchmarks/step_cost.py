"""What a step with resets costs beside a GRPO step: ``python -m benchmarks.step_cost [--model ...] [--repeats N]``.

All methods train equally many rollouts on the same prompts, from the same weights, in one process, step after step in
turn, so that another load on the machine slows all of them. The learning rate is next to nothing: every step is timed
on the same policy. A ratio is that of a step to the GRPO step of the same round; given are the median over the rounds
and the 10th and 90th percentile. A step is everything from prompts to updated weights.

    goal, SRPO / GRPO           at most
    generated tokens            1.0
    wall clock                  1.1

Tokens count discarded seeds and localisation answers. The paper's seed policy (first failure) throws its seed away, one
rollout a prompt more than are trained; `intact` and `furthest` take it from the base group and throw nothing away.
The columns say how much of a step each part takes. What costs time without costing tokens: every batch has as many
forward passes as its longest row, and SRPO has three batches where GRPO has one. An update leaves out the rows without
an advantage, so where few groups have a signal a step is nearly all sampling, and the ratio is that of sampling.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from tqdm import tqdm
from transformers.utils import logging as hf_logging

from cpi.draws import DrawKey
from cpi.resets import Cost, ResetSampler
from llm.config import ConfigError, option, run_command
from llm.first_errors import Measuring
from llm.generate import ThoughtSimulator
from llm.methods import Method
from llm.objective import Roll
from llm.runs import RunFolder, versions
from llm.thoughts import Prefix, ThoughtTrace
from llm.train import TrainConfig, _build, _trainer_args
from llm.trainer import ResetTrainer, schedule

RESULT = Path(__file__).parent / "results" / "step_cost.json"
REFERENCE = "grpo"
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {"method": "grpo"},
    "srpo": {"method": "srpo"},
    "srpo intact": {"method": "srpo", "seed_policy": "intact"},
    "srpo furthest": {"method": "srpo", "seed_policy": "furthest"},
    "rrpo intact": {"method": "rrpo", "seed_policy": "intact"},
    "oracle furthest": {"method": "oracle-srpo", "seed_policy": "furthest"},
}
GOALS = {"tokens": 1.0, "wall": 1.1}


@dataclass(frozen=True)
class StepCostConfig(TrainConfig):
    """Time steps with resets against GRPO steps of equally many trained rollouts. Takes the options of llm.train."""

    learning_rate: float = option(1e-12, "Next to nothing, so that all steps are timed on the same policy.")
    threads: int = option(1, "Torch threads.")
    repeats: int = option(12, "Rounds; one step of every method in each.")
    only: str = option("", "Methods to time beside grpo, separated by commas, such as 'srpo intact'; empty: all.")
    results: str = option(str(RESULT), "Where the JSON goes.")


@dataclass
class Clock:
    """Seconds by name, since the last `read`."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def read(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds


@dataclass
class TimedSampler:
    """A reset sampler whose time is taken."""

    inner: ResetSampler[Any]
    clock: Clock

    @property
    def spent(self) -> Cost:
        return self.inner.spent

    def cut_probs(self, episodes: Sequence[ThoughtTrace]) -> list[NDArray[np.float64]]:
        with self.clock("localise"):
            return self.inner.cut_probs(episodes)


@dataclass(frozen=True)
class TimedMethod(Method):
    """A method whose sampling time is taken, that of its sampler apart."""

    clock: Clock = field(default_factory=Clock)

    @classmethod
    def of(cls, method: Method) -> TimedMethod:
        timed = cls(**{f.name: getattr(method, f.name) for f in fields(method)})
        sampler = TimedSampler(method.plan.sampler, timed.clock)
        return replace(timed, plan=replace(method.plan, sampler=sampler))

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        with self.clock("sample"):
            return super().roll(simulator, roots, keys)


class Stepper:
    """Does the training steps of one method, one at a time."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        world, method, problems, _ = _build(config)
        if not isinstance(method, Method):
            raise ConfigError(f"method {config.method} is not measured here")
        self.method = TimedMethod.of(method)
        lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear")
        self.trainer = ResetTrainer(
            simulator=world.simulator,
            backend=world.backend,
            method=self.method,
            problems=problems,
            on_step=lambda step: None,
            on_log=lambda row: None,
            measuring=Measuring(),
            model=world.model,
            processing_class=world.tokenizer,
            train_dataset=schedule(len(problems), config.prompts, config.steps, config.seed),
            args=_trainer_args(config, method.rows_per_prompt, RunFolder(folder)),
            peft_config=lora if config.lora else None,
        )
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps
        self.optimizer = self.trainer.create_optimizer()
        self.batches = iter(self.trainer.get_train_dataloader())

    def step(self) -> dict[str, float]:
        """Seconds (wall, cpu, and by part of the step) and the account of one step."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.trainer.args.gradient_accumulation_steps):
            self.trainer.training_step(self.trainer.model, next(self.batches), None)
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        total = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        parts = self.method.clock.read()
        a = self.trainer._reset_roll.rollouts.account
        account = {"tokens": a.all_tokens, "rollouts": a.rollouts, "discarded": a.discarded_rollouts}
        return {**total, **parts, "update": total["wall"] - parts["sample"], **account}


def _chosen(config: StepCostConfig) -> list[str]:
    others = [name for name in VARIANTS if name != REFERENCE]
    chosen = [name.strip() for name in config.only.split(",")] if config.only else others
    for name in chosen:
        if name not in others:
            raise ConfigError(f"unknown method {name!r} in only; choose of: {', '.join(others)}")
    return chosen


def measure(config: StepCostConfig) -> dict[str, list[dict[str, float]]]:
    """By variant the measurements of its steps; a first round, not counted, warms up."""
    rounds = config.repeats + 1
    names = [REFERENCE, *_chosen(config)]
    own = {name: replace(config, **VARIANTS[name], steps=rounds, eval_problems=0) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        steppers = {name: Stepper(c, Path(folder) / str(i)) for i, (name, c) in enumerate(own.items())}
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for i in tqdm(range(rounds), unit="round"):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                rows[name].append(steppers[name].step())
    return {name: found[1:] for name, found in rows.items()}


def summary(rows: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """By variant the ratios to GRPO, and the medians of everything measured."""
    out = []
    for name, found in rows.items():
        row: dict[str, Any] = {"name": name}
        for what in ("tokens", "wall", "cpu"):
            ratios = [own[what] / grpo[what] for own, grpo in zip(found, rows[REFERENCE], strict=True)]
            low, ratio, high = (float(q) for q in np.quantile(ratios, [0.1, 0.5, 0.9]))
            row[what] = {"ratio": ratio, "p10": low, "p90": high}
            if what in GOALS:
                row[what] |= {"goal": GOALS[what], "met": ratio <= GOALS[what]}
        row["median"] = {key: float(np.median([r.get(key, 0.0) for r in found])) for key in ("localise", *found[0])}
        out.append(row)
    return out


def main(config: StepCostConfig) -> list[dict[str, Any]]:
    """Measure, print the ratios, write the JSON."""
    if config.repeats < 2:
        raise ConfigError(f"repeats must be at least 2, got {config.repeats}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    torch.set_num_threads(config.threads)
    load = os.getloadavg()[0]
    rows = summary(measure(config))
    environment = {
        **versions(),
        "cores": os.cpu_count(),
        "load_1min": round(load, 1),
        "date": time.strftime("%Y-%m-%d"),
    }
    setting = {name: getattr(config, name) for name in ("model", "task", "prompts", "lora", "dtype", "repeats", "seed")}
    path = Path(config.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment, "setting": setting, "rows": rows}, indent=1) + "\n")
    for row in rows:
        shown = "   ".join(
            f"{what} {row[what]['ratio']:.3f} [{row[what]['p10']:.3f}, {row[what]['p90']:.3f}]"
            for what in ("tokens", "wall", "cpu")
        )
        m = row["median"]
        print(
            f"{row['name']:<16} {shown}   {m['wall']:.2f} s = base and suffixes {m['sample'] - m['localise']:.2f} "
            f"+ localise {m['localise']:.2f} + update {m['update']:.2f}; {m['rollouts']:.0f} rollouts"
        )
    return rows


if __name__ == "__main__":
    run_command(main, StepCostConfig, "benchmarks.step_cost")
