"""``python -m llm.signal RUN``: the gradient signal of a run (`llm.token_signal`), over its steps and by thought."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as hf_logging

from cpi.draws import DrawKey
from llm.config import ConfigError, option, run_command
from llm.evaluate import find_subject, load_subject
from llm.generate import Sampling, TransformersBackend
from llm.methods import build_method
from llm.plots import signal_figure
from llm.runs import RunFolder, read_config
from llm.setup import build_world, load_model
from llm.tasks import load_task
from llm.token_signal import TokenSignal, describes, roll_signal, summary
from llm.train import TrainConfig

__all__ = ["SignalConfig", "main"]


@dataclass(frozen=True)
class SignalConfig:
    """The gradient signal of a run: the ratio suffix / base over its steps, and by thought on fresh rollouts."""

    run: str = option("", "Run folder of llm.train; `python -m llm.signal RUN` does as well.")
    problems: int = option(64, "Held-out prompts on which the trained model's groups are sampled afresh.")
    seed: int = option(0, "Seed of the choice of prompts and of the rollouts.")
    threads: int = option(0, "Torch threads; 0 leaves torch's choice.")
    output: str = option("", "Folder of signal.json and signal.png; by default the run folder.")


def main(config: SignalConfig) -> dict[str, Any]:
    """Measure; returns what signal.json holds. Raises ConfigError."""
    if config.problems < 1 or config.seed < 0:
        raise ConfigError(f"problems must be at least 1 and seed not negative, got {config.problems}, {config.seed}")
    run = RunFolder(Path(config.run))
    if not config.run or not run.file("config.yaml").is_file():
        raise ConfigError(f"{config.run or 'no folder'} is no run of llm.train; give its folder")
    hf_logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    signals = _fresh_signal(config, run)
    rows = [row for row in run.rows("metrics.jsonl") if "signal_ratio_live" in row]
    names = ("step", "signal_base", "signal_suffix", "signal_prefix", "signal_ratio", "signal_ratio_live")
    result = {
        "run": str(run.path),
        "problems": config.problems,
        "seed": config.seed,
        "steps": [{name: row[name] for name in names} for row in rows],
        "fresh": summary(signals),
    }
    output = RunFolder(Path(config.output) if config.output else run.path)
    try:
        output.path.mkdir(parents=True, exist_ok=True)
        output.write_json("signal.json", result)
    except OSError as error:
        raise ConfigError(f"cannot write to {output.path}: {error.strerror}; give another --output") from error
    signal_figure(result, output.file("signal.png"))
    _print(result, output)
    return result


def _fresh_signal(config: SignalConfig, run: RunFolder) -> list[TokenSignal]:
    """One step's groups of the trained model, by the run's own method, on prompts that it was not trained on."""
    subject = find_subject(str(run.path))
    trained = TrainConfig(**read_config(run.path))
    task = load_task(trained.task)
    problems = task.problems("eval", config.problems, config.seed)
    model, tokenizer = load_subject(subject, trained.dtype)
    sampling = Sampling(
        trained.temperature, trained.top_p, trained.max_tokens, trained.max_thoughts, trained.max_thought_tokens
    )
    world = build_world(
        model,
        tokenizer,
        task,
        sampling,
        trained.sample_rows,
        trained.localize_temperature,
        trained.localize_tokens,
        trained.prompt_style,
    )
    method = build_method(trained, world.localizers)
    if not describes(method):
        raise ConfigError(
            f"{run.path}: the signal is that of a loss that weighs a rollout by its own tokens, and {trained.method} "
            f"(length {trained.length}) weighs them otherwise"
        )
    if method.needs_reference and not trained.lora:
        assert isinstance(world.backend, TransformersBackend)
        world.backend.initial = load_model(trained.model, trained.dtype)[0]
    keys = [DrawKey(seed=config.seed, step=trained.steps, prompt=i) for i in range(len(problems))]
    roll = method.roll(world.simulator, [world.simulator.root(p) for p in problems], keys)
    return roll_signal(roll.rollouts.groups, roll.advantages)


def _print(result: dict[str, Any], output: RunFolder) -> None:
    console = Console(width=None if sys.stdout.isatty() else 100)
    for name, of in (("signal_ratio", "all tokens"), ("signal_ratio_live", "tokens of groups with signal")):
        ratios = [row[name] for row in result["steps"] if row[name] is not None]
        if ratios:
            console.print(
                f"suffix / base, {of}: median {np.median(ratios):.2f} over {len(ratios)} steps, from {min(ratios):.2f} "
                f"to {max(ratios):.2f}, above 1 in {sum(r > 1 for r in ratios)}",
                highlight=False,
            )
    console.print("the paper: typically 1.21 over 11 steps, from 0.97 to 1.76, above 1 in 10", highlight=False)
    table = Table(title=f"means over tokens, {result['problems']} held-out prompts, trained model")
    for column in ("tokens of", "number", "g", "|A|", "1/T", "1 - pi"):
        table.add_column(column)
    for kind, m in result["fresh"]["means"].items():
        cells = [f"{m[name]:.4g}" for name in ("g", "advantage", "inverse_length", "miss")]
        table.add_row(kind, f"{m['tokens']:.0f}", *cells)
    if ratio := result["fresh"]["ratio"]:
        cells = [f"{ratio[n]:.2f}" if n in ratio else "-" for n in ("g", "advantage", "inverse_length", "miss")]
        table.add_row("suffix / base", "", *cells)
    console.print(table)
    console.print(f"results: {output.path} (signal.json, signal.png)", highlight=False)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1:2] = ["--run", sys.argv[1]]
    run_command(main, SignalConfig, "llm.signal")
