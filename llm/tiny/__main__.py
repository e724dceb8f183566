"""``python -m llm.tiny``: make the embedded model (or, with another seed, a sister of it), and measure it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers.utils import logging as hf_logging

from cpi.draws import DrawKey
from cpi.groups import Phase, failed
from llm.config import ConfigError, option, run_command
from llm.generate import Sampling
from llm.measure import measure
from llm.runs import new_folder
from llm.setup import World, build_world, load_model
from llm.statistics import bootstrap_mean, pass_at_k
from llm.tasks.base import Problem
from llm.tasks.chains import RELIABILITIES, VALUES, Chains
from llm.tiny.recipe import Recipe, warm_start

__all__ = ["TinyConfig", "main", "measure_families"]

_TRIES = 8
_MEASURED = "measured.json"
_SAMPLINGS = ((0.7, 0.95), (1.0, 1.0))  # temperature and top-p of `sampled` and of `plain`


@dataclass(frozen=True)
class TinyConfig:
    """Warm-start the embedded model from scratch and measure it on held-out chains. Minutes on two cores."""

    out: str = option("", "Folder for the model; must be new or empty.")
    seed: int = option(0, "Seed of weights and data; 0 made the committed checkpoint.")
    updates: int = option(Recipe.updates, "Optimiser steps.")
    batch: int = option(Recipe.batch, "Sequences in one step.")
    blind: int = option(Recipe.blind, "Facts of each hard function that the localiser has wrong (0..11).")
    eval_problems: int = option(200, "Held-out problems for each row of the table.")
    threads: int = option(0, "Torch threads; 0 for one per core.")


def _check(config: TinyConfig) -> Path:
    if not config.out:
        raise ConfigError("give --out, a new folder for the model")
    for name in ("updates", "batch", "eval_problems"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not 0 <= config.blind <= VALUES:
        raise ConfigError(f"blind must lie in 0..{VALUES}, got {config.blind}")
    return new_folder(config.out, "out", _MEASURED)


def _train(recipe: Recipe, out: Path) -> None:
    with tqdm(total=recipe.updates, desc="warm start", unit="update") as bar:

        def on_update(update: int, language: float, localisation: float) -> None:
            if update % 20 == 0:
                bar.set_postfix({"language": f"{language:.3f}", "localisation": f"{localisation:.3f}"}, refresh=False)
            bar.update()

        model, tokenizer, _ = warm_start(recipe, on_update)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _tries(world: World, problems: Sequence[Problem]) -> np.ndarray:
    """How many of `_TRIES` samples of each problem are right, [P]."""
    keys = [
        DrawKey(seed=0, prompt=i, phase=Phase.EVALUATE, slot=2 + j) for i in range(len(problems)) for j in range(_TRIES)
    ]
    roots = [world.simulator.root(problem) for problem in problems for _ in range(_TRIES)]
    traces = world.simulator.continue_from(roots, keys)
    return np.array([not failed(trace) for trace in traces]).reshape(len(problems), _TRIES).sum(axis=1)


def measure_families(folder: str, eval_problems: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Per reliability (8 steps, 6 hard): greedy and sampled accuracy, pass@8 and the localiser, with 95% intervals.

    `sampled` is at temperature 0.7 and top-p 0.95, `plain` at temperature 1. `expected` is what the teacher's
    reliability gives at temperature 1: reliability ** 6.
    """
    model, tokenizer = load_model(folder, "float32")
    rng = np.random.default_rng(seed)
    rows: dict[str, dict[str, Any]] = {}
    for reliability in RELIABILITIES:
        task = Chains(reliability=reliability)
        problems = task.problems("eval", eval_problems, seed)
        worlds = [build_world(model, tokenizer, task, Sampling(T, p, 72, 20, 64), 512, 0.3, 48) for T, p in _SAMPLINGS]
        sampled, plain = (_tries(world, problems) for world in worlds)
        rows[task.name] = {
            **measure(worlds[0], problems, seed),
            "sampled": asdict(bootstrap_mean(sampled / _TRIES, rng)),
            "plain": asdict(bootstrap_mean(plain / _TRIES, rng)),
            "pass_at_8": asdict(bootstrap_mean(pass_at_k(sampled, _TRIES, _TRIES), rng)),
            "expected": reliability**task.hard,
        }
    return rows


def _cell(interval: dict[str, Any] | None) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" if interval else "-"


def _print(rows: dict[str, dict[str, Any]], eval_problems: int) -> None:
    table = Table(title=f"warm start, {eval_problems} held-out chains of 8 steps, 6 hard; 95% intervals")
    names = ("reliability", "greedy", "T = 0.7", "T = 1", "expected", "pass@8", "localiser exact", "clean")
    for name in names:
        table.add_column(name)
    for name, row in rows.items():
        localiser = row["localiser"]
        cells = [row["greedy"], row["sampled"], row["plain"], None, row["pass_at_8"]]
        shown = [_cell(cell) for cell in [*cells, localiser["exact"], localiser["clean"]]]
        shown[3] = f"{row['expected']:.4f}"
        table.add_row(str(Chains.from_spec(name).reliability), *shown)
    Console(width=180).print(table)


def main(config: TinyConfig) -> dict[str, Any]:
    """Train, save, reload through the Auto classes, measure; returns what `measured.json` holds.

    Raises ConfigError for a bad field or a folder that is not empty or cannot be written.
    """
    out = _check(config)
    hf_logging.set_verbosity_error()
    if config.threads:
        torch.set_num_threads(config.threads)
    recipe = Recipe(seed=config.seed, updates=config.updates, batch=config.batch, blind=config.blind)
    _train(recipe, out)
    return _record(recipe, out, config.eval_problems)


def _record(recipe: Recipe, out: Path, eval_problems: int) -> dict[str, Any]:
    rows = measure_families(str(out), eval_problems)
    measured = {"recipe": asdict(recipe), "torch": torch.__version__, "rows": rows}
    (out / _MEASURED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    _print(rows, eval_problems)
    return measured


if __name__ == "__main__":
    run_command(main, TinyConfig, "python -m llm.tiny")
