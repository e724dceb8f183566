"""What one training step needs in memory: ``python -m benchmarks.memory [--model ...] [--stand-in]``.

Takes the options of llm.train. Rewards are tossed by the hash of a response, so that nearly every group has a signal
and nearly every row is trained on: without a signal an update is skipped, and its memory with it. With ``--stand-in``
responses are random tokens of the greatest length instead of the model's, which costs no time: the longest update there
can be, without the sampling. Printed is the most that the process has held so far, after the imports, with the model,
after sampling and after the update.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as hf_logging

from benchmarks.step_cost import Stepper
from cpi.draws import uniforms
from llm.config import option, run_command
from llm.generate import Backend, Request, Sampled
from llm.rewards.base import Score
from llm.runs import versions
from llm.tasks.base import Problem, Split
from llm.train import TrainConfig

RESULT = Path(__file__).parent / "results" / "memory.json"


@dataclass(frozen=True)
class MemoryConfig(TrainConfig):
    """Peak memory of one training step in which every group has a signal. Takes the options of llm.train."""

    threads: int = option(1, "Torch threads.")
    stand_in: bool = option(False, "Random tokens of the greatest length instead of the model's responses.")
    results: str = option(str(RESULT), "Where the JSON goes.")


@dataclass(frozen=True)
class Coin:
    """Half of all responses are right, by their hash."""

    name = "coin"
    knows_first_error = False

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """None: the questions are another task's."""
        return []

    def first_error(self, problem: Problem, thoughts: Sequence[str]) -> None:
        """None: a coin makes no error."""

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Score]:
        bits = [hashlib.blake2b(response.encode()).digest()[0] & 1 for response in responses]
        return [Score(float(bit), "correct" if bit else "wrong") for bit in bits]


@dataclass(frozen=True)
class Longest:
    """A backend that says random tokens up to the limit."""

    vocabulary: int
    context: int | None = None

    def sample(self, requests: Sequence[Request], temperature: float, top_p: float) -> list[Sampled]:
        out = []
        for request in requests:
            u_T = uniforms([request.key], request.max_tokens)[0]
            ids = (u_T * self.vocabulary).astype(np.int64).tolist()
            out.append(Sampled(ids, [-np.log(self.vocabulary)] * len(ids), [0.0] * len(ids), over=False))
        return out


def peak_mib() -> int:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(config: MemoryConfig) -> dict[str, Any]:
    """Peaks in MiB after imports, model, sampling and update, and what was trained on."""
    found: dict[str, Any] = {}
    peak = {"imports": peak_mib()}
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(replace(config, steps=1, eval_problems=0), Path(folder))
        trainer = stepper.trainer
        backend: Backend = trainer.simulator.backend
        if config.stand_in:
            backend = Longest(len(trainer.simulator.tokenizer))
        trainer.simulator = replace(trainer.simulator, task=Coin(), backend=backend)
        peak["model"] = peak_mib()

        def sampled(step: Any) -> None:
            peak["sampling"] = peak_mib()
            lengths = [len(e.ids) for e in step.rollouts.episodes()]
            found["responses"], found["mean_tokens"] = len(lengths), float(np.mean(lengths))
            found["rows_with_an_advantage"] = int(sum((a != 0).sum() for a in step.advantages))

        trainer.on_step = sampled
        begun = time.perf_counter()
        stepper.step()
        found["seconds"] = time.perf_counter() - begun
    peak["update"] = peak_mib()
    return {**found, "peak_mib": peak}


def main(config: MemoryConfig) -> dict[str, Any]:
    """Measure, print, write the JSON."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    torch.set_num_threads(config.threads)
    found = measure(config)
    names = ("model", "task", "method", "split", "prompts", "lora", "dtype", "max_tokens", "micro_rows", "sample_rows")
    setting = {name: getattr(config, name) for name in (*names, "gradient_checkpointing", "stand_in", "seed")}
    environment = {**versions(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    Path(config.results).write_text(
        json.dumps({"environment": environment, "setting": setting, **found}, indent=1) + "\n"
    )
    print(
        f"{found['responses']} responses of {found['mean_tokens']:.0f} tokens on average, "
        f"{found['rows_with_an_advantage']} of them trained on, in {found['seconds']:.0f} s; the process held at most: "
        + ", ".join(f"{phase} {mib} MiB" for phase, mib in found["peak_mib"].items())
    )
    return found


if __name__ == "__main__":
    run_command(main, MemoryConfig, "benchmarks.memory")
