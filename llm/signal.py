r"""The gradient signal: how hard each sampled token is pulled (the paper's appendix G), and what that is made of.

The loss of rollout i is -(A_i / T_i) sum_t log pi(y_t). Its gradient with respect to the logit of the sampled token is
-(A_i / T_i)(1 - pi(y_t)), and one token's logit appears in one term only, so

    g_it = (|A_i| / T_i) (1 - pi(y_t))

is the size of the pull on token t. A token that the policy is sure of (pi near 1) is not pulled, whatever its
advantage; a short response concentrates its advantage on few tokens. pi is softmax(logits / temperature), the policy
that is trained, and "logit" means logits / temperature: with respect to the raw logits, g is divided by the
temperature. T_i counts the tokens that rollout i sampled itself (length "own" of `llm.objective`).

Three kinds of tokens:

    base    those of the base groups
    suffix  those that a reset group sampled after its shared prefix; it is this group that the paper compares with the
            base group (its "shared-prefix group"): typical ratio 1.21, between 0.97 and 1.76 over the steps
    prefix  the shared prefix itself. The mask hides it, so its signal is what it *would* be without the mask, where
            T_i is the length of the whole response

`step_sums` and `step_ratios` put the means and the ratio into every step's metrics, at no cost: the probabilities were
stored when the tokens were sampled. ``python -m llm.signal RUN`` shows them over the run, and by thought on fresh
rollouts of the trained model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cpi.draws import DrawKey
from cpi.groups import Group
from llm.config import ConfigError, option, run_command
from llm.thoughts import ThoughtTrace

__all__ = [
    "KINDS",
    "Kind",
    "SignalConfig",
    "TokenSignal",
    "main",
    "roll_signal",
    "step_ratios",
    "step_sums",
    "summary",
]

Kind = Literal["base", "suffix", "prefix"]
KINDS: tuple[Kind, ...] = ("base", "suffix", "prefix")


@dataclass(frozen=True)
class TokenSignal:
    """The signal on consecutive tokens of one response.

    first: position of the first of them in `trace.ids`. advantage: A_i; length: T_i; miss_T: 1 - pi(y_t), [T].
    """

    kind: Kind
    trace: ThoughtTrace
    first: int
    advantage: float
    length: int
    miss_T: NDArray[np.float64]

    @property
    def g_T(self) -> NDArray[np.float64]:
        return abs(self.advantage) / self.length * self.miss_T

    def by_thought(self) -> dict[int, float]:
        """The mean of g over the tokens of each thought k; tokens after the last thought's end belong to it."""
        position_T = self.first + np.arange(self.miss_T.size)
        k_T = np.minimum(np.searchsorted(self.trace.ends, position_T, side="right"), self.trace.num_decisions - 1)
        return {int(k): float(self.g_T[k_T == k].mean()) for k in np.unique(k_T)}


def roll_signal(groups: Sequence[Group[ThoughtTrace]], advantages: Sequence[NDArray[np.float64]]) -> list[TokenSignal]:
    """The signal on every token of a step: one entry for each response, and one more for each hidden prefix.

    advantages: one array for each group, as `llm.objective.Roll` holds them. A prefix whose probabilities were not
    stored (its seed has itself inherited it) is left out.
    """
    signals: list[TokenSignal] = []
    for group, row in zip(groups, advantages, strict=True):
        for trace, advantage in zip(group.episodes, row, strict=True):
            if trace.generated:
                kind: Kind = "suffix" if group.kind == "reset" else "base"
                signals.append(_of(kind, trace, trace.inherited_tokens, float(advantage), trace.logprobs))
            if group.seed is not None and group.seed.start == 0 and trace.inherited_tokens:
                hidden = group.seed.logprobs[: trace.inherited_tokens]
                signals.append(_of("prefix", trace, 0, float(advantage), hidden))
    return signals


def _of(kind: Kind, trace: ThoughtTrace, first: int, advantage: float, logprobs: Sequence[float]) -> TokenSignal:
    length = len(trace.ids) if kind == "prefix" else trace.generated
    miss_T = np.maximum(-np.expm1(np.asarray(logprobs, dtype=np.float64)), 0.0)  # a logprob may round to above 0
    return TokenSignal(kind, trace, first, advantage, length, miss_T)


def step_sums(groups: Sequence[Group[ThoughtTrace]], advantages: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """By kind: the sum of g, the number of tokens, and of those with a non-zero advantage; additive over processes."""
    sums = {f"signal_{what}_{kind}": 0.0 for kind in KINDS for what in ("sum", "tokens", "live")}
    for signal in roll_signal(groups, advantages):
        sums[f"signal_sum_{signal.kind}"] += float(signal.g_T.sum())
        sums[f"signal_tokens_{signal.kind}"] += signal.miss_T.size
        sums[f"signal_live_{signal.kind}"] += signal.miss_T.size * (signal.advantage != 0)
    return sums


def step_ratios(sums: Mapping[str, float]) -> dict[str, float | None]:
    """Mean g by kind, and two ratios suffix / base; None where there is nothing to divide by.

    signal_ratio: means over all tokens. signal_ratio_live: over those of groups whose rewards differ, so that groups
    without any signal, of which there are the more base ones the better the policy is, do not dilute the mean.
    """
    over_all = {kind: _divide(sums[f"signal_sum_{kind}"], sums[f"signal_tokens_{kind}"]) for kind in KINDS}
    over_live = {kind: _divide(sums[f"signal_sum_{kind}"], sums[f"signal_live_{kind}"]) for kind in KINDS}
    return {
        **{f"signal_{kind}": mean for kind, mean in over_all.items()},
        "signal_ratio": _divide(over_all["suffix"], over_all["base"]),
        "signal_ratio_live": _divide(over_live["suffix"], over_live["base"]),
    }


def _divide(over: float | None, under: float | None) -> float | None:
    return over / under if under and over is not None else None


def summary(signals: Sequence[TokenSignal]) -> dict[str, Any]:
    """Means over tokens by kind: g and its three factors |A|, 1/T and 1 - pi; then g by thought.

    "ratio" holds suffix / base of each. The factors' ratios multiply to g's only where they are uncorrelated.
    by_thought: kind -> thought k -> mean over responses of the thought's mean g, with the number of responses.
    """
    means: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        own = [s for s in signals if s.kind == kind]
        if own:
            means[kind] = _factor_means(own)
    ratio = {}
    if {"base", "suffix"} <= set(means):
        ratio = {name: means["suffix"][name] / x for name, x in means["base"].items() if x and name != "tokens"}
    return {"means": means, "ratio": ratio, "by_thought": {kind: _by_thought(signals, kind) for kind in KINDS}}


def _factor_means(signals: Sequence[TokenSignal]) -> dict[str, float]:
    tokens = np.array([s.miss_T.size for s in signals])
    weighted = {
        "g": sum(float(s.g_T.sum()) for s in signals),
        "advantage": float(tokens @ [abs(s.advantage) for s in signals]),
        "inverse_length": float(tokens @ [1 / s.length for s in signals]),
        "miss": sum(float(s.miss_T.sum()) for s in signals),
    }
    return {"tokens": float(tokens.sum()), **{name: value / tokens.sum() for name, value in weighted.items()}}


def _by_thought(signals: Sequence[TokenSignal], kind: Kind) -> dict[str, dict[str, float]]:
    values: dict[int, list[float]] = {}
    for signal in signals:
        if signal.kind == kind:
            for k, g in signal.by_thought().items():
                values.setdefault(k, []).append(g)
    return {str(k): {"g": float(np.mean(values[k])), "responses": len(values[k])} for k in sorted(values)}


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
    import torch
    from transformers.utils import logging as hf_logging

    from llm.plots import signal_figure
    from llm.runs import RunFolder

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


def _fresh_signal(config: SignalConfig, run: Any) -> list[TokenSignal]:
    """One step's groups of the trained model, by the run's own method, on prompts that it was not trained on."""
    from llm.evaluate import find_subject, load_subject
    from llm.generate import Sampling
    from llm.methods import build_method
    from llm.setup import build_world
    from llm.tasks import load_task
    from llm.train import TrainConfig

    subject = find_subject(str(run.path))
    trained = TrainConfig(**yaml.safe_load(run.file("config.yaml").read_text(encoding="utf-8")))
    task = load_task(trained.task)
    problems = task.problems("eval", config.problems, config.seed)
    model, tokenizer = load_subject(subject, trained.dtype)
    sampling = Sampling(
        trained.temperature, trained.top_p, trained.max_tokens, trained.max_thoughts, trained.max_thought_tokens
    )
    world = build_world(
        model, tokenizer, task, sampling, trained.sample_rows, trained.localize_temperature, trained.localize_tokens
    )
    method = build_method(trained, world.localizers)
    keys = [DrawKey(seed=config.seed, step=trained.steps, prompt=i) for i in range(len(problems))]
    roll = method.roll(world.simulator, [world.simulator.root(p) for p in problems], keys)
    return roll_signal(roll.rollouts.groups, roll.advantages)


def _print(result: dict[str, Any], output: Any) -> None:
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
