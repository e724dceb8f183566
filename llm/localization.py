"""``python -m llm.localization``: where a model's localisers cut, and what cutting there is worth (figures 4 and 6).

Failures of the model are collected, one rollout for each problem. Each localiser names a cut; so does the oracle, which
is the task's true first wrong thought where the task knows it, and otherwise the last thought from which Monte Carlo
continuations still succeed (`llm.localize.ValueLocalizer`). From every cut the model continues a few times.

    deviation        localiser's cut - oracle's cut, in thoughts; <= 0 is *clean*: no wrong thought is kept
    correction rate  share of the continuations that succeed
    Pass@k           chance that one of k continuations succeeds, k = 4 if there are as many

Intervals of shares are Wilson's, as in the paper. They take continuations for independent, which those of one failure
are not; `result.json` holds beside them a bootstrap over failures ("over_failures"), which needs no such assumption.
kappa, rho and p are those of `llm.metrics`: by the theory, a localiser beats random resets where kappa * rho > p.

Continuations are drawn from (problem, cut, number), so localisers that name the same cut share them: differences
between localisers are paired, and their common cuts cost nothing twice. Work is done and stored in batches of
problems; a killed measurement goes on with ``--resume``.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers.utils import logging as hf_logging

from cpi.draws import DrawKey, uniforms
from cpi.groups import Phase, failed
from cpi.resets import ResetSampler, Start, draw_cuts
from llm.config import ConfigError, option, run_command
from llm.evaluate import Subject, find_subject, load_subject, start_engine
from llm.generate import Sampling
from llm.localize import ValueLocalizer, true_first_error
from llm.methods import LOCALIZERS, MethodConfig
from llm.paper import paper_figure_4
from llm.plots import localization_figure
from llm.runs import RunFolder, alone_in, default_folder, open_run, versions
from llm.setup import PROMPT_STYLES, World, build_world, check_lengths
from llm.statistics import Interval, mean_score, pass_at_k, wilson
from llm.tasks import load_task
from llm.tasks.base import Problem
from llm.tasks.splits import FiniteTask
from llm.thoughts import ThoughtTrace
from llm.vllm_backend import BackendConfig, check_backend

__all__ = ["BINS", "LocalizationConfig", "main", "summarise"]

BINS = ("<=-4", "-3", "-2", "-1", "0", "+1", "+2", "+3", ">=+4")
"""Deviations in thoughts; the outer bins hold everything beyond."""
ORACLE, START = "oracle", "start"
_NAMES = (*(name for name in LOCALIZERS if name not in ("frozen", "trained", "noisy", ORACLE)), START)
_PASS_K = 4
_PAPER_LENGTHS = {"max_tokens": 4096, "max_thoughts": 20, "max_thought_tokens": 256, "localize_tokens": 1024}


@dataclass(frozen=True)
class LocalizationConfig(BackendConfig):
    """Collect a model's failures, localise them, and continue from where the localisers cut."""

    model: str = option("tiny", "A run folder, a folder or hub id of a model, an adapter's folder, or tiny.")
    task: str = option("", "Task. Empty: the run's own, or chains.")
    prompt_style: str = option(
        "auto",
        "instruct: the rules in a chat; bare: the question alone; auto: the run's, else by the chat template.",
        PROMPT_STYLES,
    )
    problems: int = option(200, "Held-out problems, one rollout each; the failures among them are localised.")
    localizers: str = option("self entropy random start", f"Of {', '.join(_NAMES)}; the first one is drawn large.")
    oracle: str = option(
        "auto",
        "What the localisers are compared with: the task's true first error, Monte Carlo values, or values only where "
        "the task does not know.",
        ("auto", "task", "value"),
    )
    continuations: int = option(4, "Continuations from every cut.")
    value_continuations: int = option(16, "Continuations from every thought, for the oracle and localiser by value.")
    seed: int = option(0, "Seed of the choice of problems and of all draws.")
    temperature: float = option(0.7, "Of rollouts and continuations.")
    top_p: float = option(0.95, "Nucleus.")
    max_tokens: int = option(0, "Response tokens. 0: those of the run; for a model, 4096 or what its context allows.")
    max_thoughts: int = option(0, "Thoughts of a response. 0: those of the run; for a model, 20.")
    max_thought_tokens: int = option(0, "Tokens of a thought. 0: those of the run; for a model, 256.")
    localize_temperature: float = option(0.3, "Of localisation answers.")
    localize_tokens: int = option(
        0, "Tokens of a localisation answer. 0: the run's; else 1024, at most a quarter of the context."
    )
    batch: int = option(32, "Problems worked on, and stored, together.")
    sample_rows: int = option(512, "Responses sampled at once; vLLM queues by itself.")
    dtype: str = option("float32", "Of the weights; bfloat16 for GPUs.", ("float32", "bfloat16"))
    threads: int = option(0, "Torch threads; 0 leaves torch's choice.")
    output: str = option("", "Folder of the results; by default runs/localization-MODEL-NNN.")
    resume: bool = option(False, "Go on with the measurement in --output.")


def _check(config: LocalizationConfig) -> None:
    for name in ("problems", "continuations", "value_continuations", "batch", "sample_rows"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("seed", "threads", "localize_temperature", *_PAPER_LENGTHS):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    if not config.temperature > 0:
        raise ConfigError("temperature must be positive: continuations at temperature 0 are all the same")
    if not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p must lie in (0, 1], got {config.top_p}")
    for name in _localizers(config):
        if name not in _NAMES:
            raise ConfigError(f"unknown localizer {name!r}; choose some of: {', '.join(_NAMES)}")
    if not _localizers(config):
        raise ConfigError(f"give at least one localizer of: {', '.join(_NAMES)}")
    check_backend(config, _localizers(config), start=True)
    if config.resume and not config.output:
        raise ConfigError("--resume needs --output, the folder of the measurement to go on with")


def _localizers(config: LocalizationConfig) -> list[str]:
    return list(dict.fromkeys(name for name in config.localizers.split() if name != ORACLE))


def _world(config: LocalizationConfig, subject: Subject, problems: Sequence[Problem]) -> World:
    """The model with its lengths: those asked for, else the run's, else the paper's, shortened to the context."""
    task = load_task(config.task or subject.task)
    model, tokenizer = load_subject(subject, config.dtype)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    default = _PAPER_LENGTHS | ({"localize_tokens": min(1024, context // 4)} if context is not None else {})
    length = {
        name: getattr(config, name) or int(subject.run[name] if subject.run else default[name]) for name in default
    }
    localize_tokens = length.pop("localize_tokens")
    sampling = Sampling(config.temperature, config.top_p, **length)
    world = build_world(
        model,
        tokenizer,
        task,
        sampling,
        config.sample_rows,
        config.localize_temperature,
        localize_tokens,
        subject.prompt_style(config.prompt_style),
        config.backend,
    )
    longest = max(len(world.simulator.root(p).prompt_ids) for p in problems)
    if context is not None and not config.max_tokens and subject.run is None:
        room = max(1, min(length["max_tokens"], context - longest))
        world.simulator.sampling = replace(sampling, max_tokens=room)
    check_lengths(world, list(problems), longest)
    start_engine(config, [world])
    check_lengths(world, list(problems), longest)  # an engine may have a smaller context than its model
    return world


def _samplers(config: LocalizationConfig, world: World) -> dict[str, ResetSampler[ThoughtTrace]]:
    """The localisers by name, each with an account of its own."""
    method = MethodConfig(continuations=config.value_continuations)
    return {
        name: Start() if name == START else LOCALIZERS[name](world.localizers, method) for name in _localizers(config)
    }


@dataclass(frozen=True)
class _Cut:
    """A localiser's cut of one failure (None: no reset), and its row as an acceptance test: g_k = row_k / max(row)."""

    k: int | None
    g_K: NDArray[np.float64]


def _oracle(config: LocalizationConfig, world: World, failures: Sequence[ThoughtTrace]) -> list[tuple[int | None, str]]:
    """The oracle's cut of each failure with its source, "task" or "value"; None where it has nothing to say."""
    known = [true_first_error(world.task, t) if config.oracle != "value" else None for t in failures]
    unknown = [t for t, k in zip(failures, known, strict=True) if k is None]
    rows: list[NDArray[np.float64]] = []
    if config.oracle != "task" and unknown:
        # draws of its own: localiser value must not be measured against its own continuations
        rows = ValueLocalizer(world.simulator, config.value_continuations, stream=1).cut_probs(unknown)
    estimated = iter(rows)
    cuts: list[tuple[int | None, str]] = []
    for k in known:
        row = None if k is not None else next(estimated, None)
        by_value = int(row.argmax()) if row is not None and row.sum() > 0 else None
        cuts.append((k, "task") if k is not None else (by_value, "value"))
    return cuts


def _cuts(sampler: ResetSampler[ThoughtTrace], failures: Sequence[ThoughtTrace]) -> list[_Cut]:
    rows = sampler.cut_probs(failures) if failures else []
    keys = [t.key.at(phase=Phase.CUT) for t in failures]
    u = uniforms(keys, 1)[:, 0] if keys else np.empty(0)
    tiny = np.finfo(float).tiny
    return [
        _Cut(k if k >= 0 else None, row / max(float(row.max(initial=0.0)), tiny))
        for k, row in zip(draw_cuts(rows, u), rows, strict=True)
    ]


def _continue(config: LocalizationConfig, world: World, wanted: Sequence[tuple[ThoughtTrace, int]]) -> list[list[Any]]:
    """For each (failure, cut) the [success, tokens] of its continuations; all in one batch."""
    n = config.continuations
    keys = [t.key.at(phase=Phase.RESET, slot=k * n + j) for t, k in wanted for j in range(n)]
    rollouts = world.simulator.continue_from([t.prefix(k) for t, k in wanted for _ in range(n)], keys)
    pairs = [[not failed(r), r.generated] for r in rollouts]
    return [pairs[i : i + n] for i in range(0, len(pairs), n)]


def _batch(config: LocalizationConfig, world: World, problems: Sequence[Problem], start: int) -> dict[str, Any]:
    """Problems start .. start + batch - 1: sample, find the failures, localise, continue."""
    indices = range(start, min(start + config.batch, len(problems)))
    keys = [DrawKey(seed=config.seed, prompt=i, phase=Phase.EVALUATE) for i in indices]
    traces = world.simulator.continue_from([world.simulator.root(problems[i]) for i in indices], keys)
    failures = [t for t in traces if failed(t) and t.num_decisions]
    oracle = _oracle(config, world, failures)
    samplers = _samplers(config, world)
    cuts = {name: _cuts(sampler, failures) for name, sampler in samplers.items()}
    rows: list[dict[str, Any]] = []
    for i, (trace, (true, source)) in enumerate(zip(failures, oracle, strict=True)):
        own = {name: of[i] for name, of in cuts.items()}
        rows.append(
            {
                "problem": trace.key.prompt,
                "thoughts": trace.num_decisions,
                "oracle": true,
                "source": source,
                "cuts": {ORACLE: true, **{name: c.k for name, c in own.items()}},
                "accepted": {name: float(c.g_K.sum()) for name, c in own.items()},
                "accepted_G": {name: float(c.g_K[true]) if true is not None else None for name, c in own.items()},
                "continuations": {},
                "response": trace.text,
            }
        )
    wanted = [(i, k) for i, row in enumerate(rows) for k in _distinct(row["cuts"].values())]
    outcomes = _continue(config, world, [(failures[i], k) for i, k in wanted])
    for (i, k), own_outcomes in zip(wanted, outcomes, strict=True):
        rows[i]["continuations"][str(k)] = own_outcomes
    return {
        "start": start,
        "attempts": len(traces),
        "rows": rows,
        "answers": {name: dict(s.counts) for name, s in samplers.items() if hasattr(s, "counts")},
        "spent": {name: vars(s.spent.copy()) for name, s in samplers.items()},
    }


def _distinct(cuts: Iterable[int | None]) -> list[int]:
    return sorted({k for k in cuts if k is not None})


def summarise(batches: Sequence[dict[str, Any]], names: Sequence[str], seed: int) -> dict[str, Any]:
    """The measurement of each localiser (and of the oracle) from the stored batches."""
    rows = [row for batch in batches for row in batch["rows"]]
    known = [row for row in rows if row["oracle"] is not None]
    states = sum(row["thoughts"] for row in known)
    return {
        "attempts": sum(batch["attempts"] for batch in batches),
        "failures": len(rows),
        "oracle_known": len(known),
        "oracle_sources": dict(Counter(row["source"] for row in known)),
        "p": len(known) / states if states else None,
        "localisers": {name: _localiser(name, rows, batches, seed) for name in (*names, ORACLE)},
    }


def _localiser(
    name: str, rows: Sequence[dict[str, Any]], batches: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
    cut = [row for row in rows if row["cuts"][name] is not None]
    known = [row for row in rows if row["oracle"] is not None]
    compared = [row for row in cut if row["oracle"] is not None]
    deviation = np.array([row["cuts"][name] - row["oracle"] for row in compared], dtype=np.int64)
    bins = np.clip(deviation, -4, 4) + 4
    rng = np.random.default_rng(seed)
    measured: dict[str, Any] = {
        "cuts": len(cut),
        "answers": dict(sum((Counter(b["answers"].get(name, {})) for b in batches), Counter())),
        "spent": dict(sum((Counter(b["spent"].get(name, {})) for b in batches), Counter())),
        "exact": _share(int((deviation == 0).sum()), len(compared)),
        "clean": _share(int((deviation <= 0).sum()), len(compared)),
        "deviation": float(deviation.mean()) if compared else None,
        "kept_share": float(np.mean([row["cuts"][name] / row["thoughts"] for row in cut])) if cut else None,
        "share": [_share(int((bins == b).sum()), len(compared)) for b in range(len(BINS))],
        "correction": _correction(name, cut, rng),
        "correction_by_bin": [
            _correction(name, [row for row, own in zip(compared, bins, strict=True) if own == b], rng)
            for b in range(len(BINS))
        ],
        "tokens": float(np.mean([t for row in cut for _, t in _own(name, row)])) if cut else None,
        "pass_at_k": {
            "k": _pass_k(rows),
            "clean": _pass_at_k(name, [r for r, d in zip(compared, deviation, strict=True) if d <= 0], rng),
            "erroneous": _pass_at_k(name, [r for r, d in zip(compared, deviation, strict=True) if d > 0], rng),
        },
    }
    if name != ORACLE and known:
        accepted_G = sum(row["accepted_G"][name] for row in known)
        accepted = sum(row["accepted"][name] for row in known)
        measured |= {"kappa": accepted_G / len(known), "rho": accepted_G / accepted if accepted else None}
    return measured


def _pass_k(rows: Sequence[dict[str, Any]]) -> int:
    """4, or the number of continuations where they are fewer."""
    return min([_PASS_K, *(len(outcomes) for row in rows for outcomes in row["continuations"].values())])


def _own(name: str, row: dict[str, Any]) -> list[list[Any]]:
    """[success, tokens] of the continuations from the localiser's cut."""
    continuations: list[list[Any]] = row["continuations"][str(row["cuts"][name])]
    return continuations


def _share(count: int, n: int) -> dict[str, Any] | None:
    return {"count": count, **asdict(wilson(count, n))} if n else None


def _correction(name: str, rows: Sequence[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any] | None:
    successes = [[bool(s) for s, _ in _own(name, row)] for row in rows]
    if not successes:
        return None
    pooled = _share(sum(map(sum, successes)), sum(map(len, successes)))
    return {**(pooled or {}), "over_failures": asdict(mean_score([float(np.mean(s)) for s in successes], rng))}


def _pass_at_k(name: str, rows: Sequence[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any] | None:
    if not rows:
        return None
    correct = [sum(s for s, _ in _own(name, row)) for row in rows]
    values = pass_at_k(correct, len(_own(name, rows[0])), _pass_k(rows))
    solved = set(np.unique(values)) <= {0.0, 1.0}
    interval: Interval = wilson(int(values.sum()), len(values)) if solved else mean_score(values, rng)
    return asdict(interval)


def _done(run: RunFolder, config: LocalizationConfig) -> list[dict[str, Any]]:
    """The finished batches; the file is rewritten without a last line that was cut off."""
    batches = run.rows("batches.jsonl")
    temporary = run.file("batches.jsonl.part")
    temporary.write_text("".join(json.dumps(batch) + "\n" for batch in batches), encoding="utf-8")
    os.replace(temporary, run.file("batches.jsonl"))
    return batches


def main(config: LocalizationConfig) -> dict[str, Any]:
    """Measure; returns what `result.json` holds. Raises ConfigError or TaskError."""
    _check(config)
    hf_logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    subject = find_subject(config.model)
    spec = config.task or subject.task
    task = load_task(spec)
    n = min(config.problems, task.size("eval")) if isinstance(task, FiniteTask) else config.problems
    problems = task.problems("eval", n, config.seed)
    world = _world(config, subject, problems)
    folder = Path(config.output) if config.output else default_folder(f"localization-{Path(config.model).name}")
    run = open_run(config, folder, config.resume, subject.weight_files)
    with alone_in(run.path):
        done = {batch["start"] for batch in _done(run, config)}
        with tqdm(total=n, desc="localization", unit="problem", initial=min(n, len(done) * config.batch)) as bar:
            for start in range(0, n, config.batch):
                if start not in done:
                    batch = _batch(config, world, problems, start)
                    run.append("batches.jsonl", batch)
                    bar.update(batch["attempts"])
        summary = summarise(run.rows("batches.jsonl"), _localizers(config), config.seed)
        if not summary["failures"]:
            raise ConfigError(f"the model solved all {n} problems, so there is nothing to localise; raise --problems")
        result = {
            "model": config.model,
            "task": spec,
            "seed": config.seed,
            "continuations": config.continuations,
            "bins": BINS,
            **summary,
            "paper": paper_figure_4(),
            "versions": versions(),
        }
        run.write_json("result.json", result)
        _write_table(result, run)
        localization_figure(result, run.file("figure.png"))
    _print(result, run)
    return result


def _write_table(result: dict[str, Any], run: RunFolder) -> None:
    """The panels in long form, the paper's beside: shares in [0, 1]."""
    columns = ("source", "panel", "bin", "value", "low", "high", "n")
    with run.file("table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        for name, measured in result["localisers"].items():
            panels = {"share": measured["share"], "correction": measured["correction_by_bin"]}
            for panel, cells in panels.items():
                for label, cell in zip(BINS, cells, strict=True):
                    writer.writerow({"source": name, "panel": panel, "bin": label, **(cell or {})})
            for label in ("clean", "erroneous"):
                cell = measured["pass_at_k"][label] or {}
                writer.writerow(
                    {"source": name, "panel": f"pass_at_{measured['pass_at_k']['k']}", "bin": label, **cell}
                )
        for row in result["paper"]:
            writer.writerow({**row, "source": f"paper, {row['filter']}"})


def _print(result: dict[str, Any], run: RunFolder) -> None:
    title = (
        f"{result['model']} on {result['task']}: {result['failures']} failures of {result['attempts']} rollouts, "
        f"oracle known for {result['oracle_known']}, p = {_number(result['p'])}"
    )
    table = Table(title=title)
    k = result["localisers"][ORACLE]["pass_at_k"]["k"]
    columns = ("localiser", "cuts", "exact", "clean", "deviation", "corrects", f"Pass@{k} clean",
               f"Pass@{k} erroneous", "tokens", "kappa", "rho", "kappa rho / p")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "localiser" else "right")
    for name, m in result["localisers"].items():
        kappa, rho, p = m.get("kappa"), m.get("rho"), result["p"]
        gain = kappa * rho / p if kappa is not None and rho is not None and p else None
        table.add_row(
            name,
            str(m["cuts"]),
            _cell(m["exact"]),
            _cell(m["clean"]),
            _number(m["deviation"]),
            _cell(m["correction"]),
            _cell(m["pass_at_k"]["clean"]),
            _cell(m["pass_at_k"]["erroneous"]),
            _number(m["tokens"], ".1f"),
            _number(kappa),
            _number(rho),
            _number(gain),
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"results: {run.path} (result.json, table.csv, figure.png, batches.jsonl)", highlight=False)


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _cell(interval: dict[str, Any] | None) -> str:
    if interval is None:
        return "-"
    return f"{interval['value']:.3f}\n[{interval['low']:.3f}, {interval['high']:.3f}]"


if __name__ == "__main__":
    run_command(main, LocalizationConfig, "llm.localization")
