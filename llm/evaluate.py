"""``python -m llm.evaluate``: greedy accuracy and pass@k of a model, an adapter or a run, with intervals.

Every problem's outcome is one line of ``problems.jsonl``. A killed evaluation goes on with ``--resume`` and ends with
the result of an uninterrupted one: draws are keyed by problem and sample, and problems are sampled in fixed batches,
of which an unfinished one is done again. ``result.json`` and ``table.csv`` hold the same numbers; where the model is
one of the paper's, its table 3 stands beside them. ``python -m llm.compare --evaluations`` reads these files and pairs
the problems of several evaluations (`llm.evaluations`).

Intervals are over problems: Wilson's for the share of problems solved, the bootstrap's for mean scores and pass@k. They
say how well this sample of problems pins down the accuracy of *this* model, and nothing about training seeds.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from cpi.draws import DrawKey
from cpi.groups import Phase
from llm.config import ConfigError, option, run_command
from llm.generate import Sampling
from llm.paper import paper_numbers
from llm.runs import RunFolder, alone_in, default_folder, open_run, read_config, versions, weight_files
from llm.setup import PROMPT_STYLES, World, build_world, check_lengths, load_model, resolve_model
from llm.statistics import Interval, mean_score, pass_at_k, wilson
from llm.tasks import BENCHMARKS, load_task, refuse_overlap
from llm.tasks.base import Problem, Task, TaskError
from llm.tasks.splits import FiniteTask
from llm.thoughts import ThoughtTrace
from llm.vllm_backend import BackendConfig, VLLMBackend, check_backend, colocated_engine

__all__ = ["EvaluateConfig", "Subject", "find_subject", "load_subject", "main", "solved", "start_engine"]

_PAPER_LENGTHS = {"max_tokens": 4096, "max_thoughts": 20, "max_thought_tokens": 256}
_PAPER_COLUMNS = ("Base", "GRPO", "RRPO", "SRPO")


@dataclass(frozen=True)
class EvaluateConfig(BackendConfig):
    """Measure a model on held-out problems: greedy accuracy and, with samples, pass@k, each with a 95% interval."""

    model: str = option("tiny", "A run folder, a folder or hub id of a model, an adapter's folder, or tiny.")
    tasks: str = option("", "Tasks, separated by blanks; paper: its ten benchmarks. Empty: the run's own, or chains.")
    prompt_style: str = option(
        "auto",
        "instruct: the rules in a chat; bare: the question alone; auto: the run's, else by the chat template.",
        PROMPT_STYLES,
    )
    problems: int = option(500, "Held-out problems of each task; all of them where a benchmark has fewer.")
    samples: int = option(0, "Sampled responses to each problem, for pass@k with k = 1, 2, 4, ... up to this number.")
    seed: int = option(0, "Seed of the choice of problems and of the samples.")
    temperature: float = option(0.7, "Of the samples; greedy accuracy is at temperature 0.")
    top_p: float = option(0.95, "Nucleus of the samples.")
    max_tokens: int = option(0, "Response tokens. 0: those of the run; for a model, 4096 or what its context allows.")
    max_thoughts: int = option(0, "Thoughts of a response. 0: those of the run; for a model, 20.")
    max_thought_tokens: int = option(0, "Tokens of a thought. 0: those of the run; for a model, 256.")
    batch: int = option(32, "Problems sampled together and written together.")
    sample_rows: int = option(512, "Responses sampled at once; vLLM queues by itself.")
    dtype: str = option("float32", "Of the weights; bfloat16 for GPUs.", ("float32", "bfloat16"))
    threads: int = option(0, "Torch threads; 0 leaves torch's choice.")
    output: str = option("", "Folder of the results; by default runs/evaluate-MODEL-NNN.")
    resume: bool = option(False, "Go on with the evaluation in --output.")


def _check(config: EvaluateConfig) -> None:
    for name in ("problems", "batch", "sample_rows"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("samples", "seed", "threads", "max_tokens", "max_thoughts", "max_thought_tokens"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    if config.samples and not config.temperature > 0:
        raise ConfigError("temperature must be positive: samples at temperature 0 are all the greedy response")
    if not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p must lie in (0, 1], got {config.top_p}")
    check_backend(config, (), start=True)
    if config.resume and not config.output:
        raise ConfigError("--resume needs --output, the folder of the evaluation to go on with")


@dataclass(frozen=True)
class Subject:
    """What is evaluated: base model, adapter on it (or None), and, for a run, the config it was trained with."""

    base: str
    adapter: Path | None
    run: dict[str, Any] | None

    @property
    def task(self) -> str:
        return str(self.run["task"]) if self.run else "chains"

    def prompt_style(self, asked: str) -> str:
        """The style asked for; `auto` is that of the run."""
        return str(self.run.get("prompt_style", asked)) if self.run and asked == "auto" else asked

    @property
    def weight_files(self) -> list[Path]:
        """What is loaded, as far as it lies in folders here."""
        base = resolve_model(self.base) if self.base == "tiny" else self.base
        return weight_files(base) + (weight_files(self.adapter) if self.adapter else [])

    def length(self, name: str) -> int:
        return int(self.run[name]) if self.run else _PAPER_LENGTHS[name]


def find_subject(model: str) -> Subject:
    """A run folder, an adapter's folder, a model's folder, a hub id or ``tiny``. Raises ConfigError for half a run."""
    folder = Path(model).expanduser()
    trained = folder / "model"
    run = None
    if (folder / "config.yaml").is_file():
        run = read_config(folder)
        if "task" not in run or "localizers" in run:  # an evaluation's, a comparison's or a measurement's
            raise ConfigError(f"{model} is no training run; give the folder of one, or of a model")
        if not trained.is_dir():
            raise ConfigError(f"{model} is a run without a trained model; finish it with llm.train --resume first")
        folder = trained
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = run["model"] if run else json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return Subject(str(base), folder, run)
    return Subject(str(folder) if run else model, None, run)


def load_subject(subject: Subject, dtype: str) -> tuple[Any, Any]:
    """Model, on the GPU if there is one, and tokenizer; an adapter is put on its base."""
    model, tokenizer = load_model(subject.base, dtype)
    if subject.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(subject.adapter))
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, tokenizer


def _world(config: EvaluateConfig, subject: Subject, model: Any, tokenizer: Any, task: Task) -> World:
    lengths = {name: getattr(config, name) or subject.length(name) for name in _PAPER_LENGTHS}
    sampling = Sampling(config.temperature, config.top_p, **lengths)
    style = subject.prompt_style(config.prompt_style)
    return build_world(model, tokenizer, task, sampling, config.sample_rows, 0.3, 16, style, config.backend)


def start_engine(config: BackendConfig, worlds: Sequence[World]) -> None:
    """A vLLM engine for worlds over one model, where it is asked for."""
    if config.backend != "vllm":
        return
    engine = colocated_engine(worlds[0].model, worlds[0].tokenizer, config.vllm_memory)
    for world in worlds:
        assert isinstance(world.backend, VLLMBackend)
        world.backend.engine = engine


def _fit(config: EvaluateConfig, subject: Subject, world: World, problems: Sequence[Problem]) -> None:
    """Shorten the default response to the context; a length that was asked for, or trained with, must fit."""
    context = world.backend.context
    if context is not None and not config.max_tokens and subject.run is None:
        longest = max(len(world.simulator.root(p).prompt_ids) for p in problems)
        sampling = world.simulator.sampling
        world.simulator.sampling = Sampling(**{**vars(sampling), "max_tokens": max(1, min(4096, context - longest))})
    check_lengths(world, list(problems))


def _problems(config: EvaluateConfig, task: Task) -> list[Problem]:
    n = min(config.problems, task.size("eval")) if isinstance(task, FiniteTask) else config.problems
    return task.problems("eval", n, config.seed)


def _trained_on(subject: Subject) -> list[Problem] | None:
    """The run's training problems; None if there is no run, or its task cannot be had here."""
    if subject.run is None:
        return None
    try:
        return load_task(subject.run["task"]).problems("train", subject.run["train_problems"], subject.run["seed"])
    except TaskError:
        return None


def _outcome(trace: ThoughtTrace) -> dict[str, Any]:
    return {
        "value": trace.score.value,
        "status": trace.score.status,
        "tokens": trace.generated,
        "thoughts": trace.num_decisions,
        "finished": trace.finished,
    }


def _batch_rows(
    config: EvaluateConfig, world: World, spec: str, problems: Sequence[Problem], start: int
) -> Iterator[dict[str, Any]]:
    """The rows of problems start .. start + batch - 1: all greedy responses in one call, all samples in another."""
    indices = range(start, min(start + config.batch, len(problems)))
    roots = [world.simulator.root(problems[i]) for i in indices]
    key = DrawKey(seed=config.seed, phase=Phase.EVALUATE)
    greedy = world.at_temperature(0.0).continue_from(roots, [key.at(prompt=i) for i in indices])
    slots = range(1, config.samples + 1)
    sampled = world.simulator.continue_from(
        [root for root in roots for _ in slots], [key.at(prompt=i, slot=s) for i in indices for s in slots]
    )
    for n, i in enumerate(indices):
        yield {
            "task": spec,
            "problem": i,
            "uid": problems[i].uid,
            "greedy": {**_outcome(greedy[n]), "response": greedy[n].text},
            "samples": [_outcome(t) for t in sampled[n * config.samples : (n + 1) * config.samples]],
        }


def _done(run: RunFolder, config: EvaluateConfig, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of finished batches; the file is rewritten without those of an unfinished one."""
    rows = run.rows("problems.jsonl")
    count = Counter((row["task"], row["problem"] // config.batch) for row in rows)
    whole = {
        (task, b) for (task, b), n in count.items() if n == min(config.batch, sizes.get(task, 0) - b * config.batch)
    }
    kept = [row for row in rows if (row["task"], row["problem"] // config.batch) in whole]
    temporary = run.file("problems.jsonl.part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(temporary, run.file("problems.jsonl"))
    return kept


def _run_task(
    config: EvaluateConfig, world: World, run: RunFolder, spec: str, problems: Sequence[Problem], done: set[int]
) -> None:
    starts = range(0, len(problems), config.batch)
    with tqdm(total=len(problems), desc=spec, unit="problem", initial=len(done)) as bar:
        for start in starts:
            if start in done:
                continue
            rows = list(_batch_rows(config, world, spec, problems, start))
            for row in rows:
                run.append("problems.jsonl", row)
            bar.update(len(rows))


def _interval(interval: Interval) -> dict[str, Any]:
    return asdict(interval)


def _summary(config: EvaluateConfig, subject: Subject, spec: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `result.json` holds of a task; rows in the order of problems."""
    greedy = [row["greedy"] for row in rows]
    rng = np.random.default_rng(config.seed)
    summary: dict[str, Any] = {
        "problems": len(rows),
        "drawn": hashlib.blake2b("\n".join(row["uid"] for row in rows).encode(), digest_size=8).hexdigest(),
        "greedy": _interval(wilson(sum(solved(g) for g in greedy), len(greedy))),
        "score": _interval(mean_score([g["value"] for g in greedy], rng)),
        "pass_at_k": {},
        "statuses": dict(Counter(g["status"] for g in greedy)),
        "truncated": sum(not g["finished"] for g in greedy),
        "mean_tokens": float(np.mean([g["tokens"] for g in greedy])),
        "paper": [asdict(n) for n in paper_numbers(subject.base, spec.partition("@")[0])],
    }
    correct = [sum(solved(s) for s in row["samples"]) for row in rows]
    for k in _ks(config.samples):
        summary["pass_at_k"][str(k)] = _interval(mean_score(pass_at_k(correct, config.samples, k), rng))
    return summary


def solved(outcome: Mapping[str, Any]) -> bool:
    """Whether a response, as a row of ``problems.jsonl`` holds it, is right; a graded score below 1 is not."""
    return bool(outcome["value"] >= 1.0)


def _ks(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | ({samples} if samples else set()))


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate; returns what `result.json` holds. Raises ConfigError or TaskError."""
    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    subject = find_subject(config.model)
    specs = _specs(config.tasks or subject.task)
    tasks = {spec: load_task(spec) for spec in specs}
    problems = {spec: _problems(config, task) for spec, task in tasks.items()}
    trained_on = _trained_on(subject)
    for spec in specs:
        refuse_overlap(trained_on or (), problems[spec], f"the run's task and {spec}")
    model, tokenizer = load_subject(subject, config.dtype)
    worlds = {spec: _world(config, subject, model, tokenizer, task) for spec, task in tasks.items()}
    for spec in specs:
        _fit(config, subject, worlds[spec], problems[spec])
    start_engine(config, list(worlds.values()))
    for spec in specs:  # an engine may have a smaller context than its model
        _fit(config, subject, worlds[spec], problems[spec])

    stem = f"evaluate-{Path(config.model).name}"
    output = Path(config.output) if config.output else default_folder(stem)
    run = open_run(config, output, config.resume, subject.weight_files)
    with alone_in(run.path):
        done = _done(run, config, {spec: len(ps) for spec, ps in problems.items()})
        for spec in specs:
            finished = {row["problem"] for row in done if row["task"] == spec}
            _run_task(config, worlds[spec], run, spec, problems[spec], finished)
        rows = sorted(run.rows("problems.jsonl"), key=lambda row: int(row["problem"]))
        result = {
            "model": config.model,
            "base": subject.base,
            "run": subject.run,
            "seed": config.seed,
            "samples": config.samples,
            "training_questions_checked": trained_on is not None,
            "tasks": {spec: _summary(config, subject, spec, [r for r in rows if r["task"] == spec]) for spec in specs},
            "versions": versions(),
        }
        run.write_json("result.json", result)
        _write_table(result, run)
    _print(result, run)
    return result


def _specs(tasks: str) -> list[str]:
    specs = [s for word in tasks.split() for s in (BENCHMARKS if word == "paper" else (word,))]
    return list(dict.fromkeys(specs))


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers in long form: a row for each task and metric, shares in [0, 1]; the paper gives SDs over seeds."""
    for spec, summary in result["tasks"].items():
        metrics = {"greedy": summary["greedy"], "score": summary["score"]}
        metrics |= {f"pass@{k}": interval for k, interval in summary["pass_at_k"].items()}
        for metric, i in metrics.items():
            source = {"source": "own", "model": result["model"], "task": spec, "metric": metric}
            yield {**source, **{name: i[name] for name in ("value", "low", "high", "n")}, "sd": ""}
        for n in summary["paper"]:
            source = {"source": f"paper, {n['method']}", "model": n["model"], "task": spec, "metric": "greedy"}
            sd = "" if n["sd"] is None else n["sd"] / 100
            yield {**source, "value": n["mean"] / 100, "low": "", "high": "", "n": "", "sd": sd}


def _write_table(result: dict[str, Any], run: RunFolder) -> None:
    rows = list(_rows(result))
    with run.file("table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _print(result: dict[str, Any], run: RunFolder) -> None:
    ks = _ks(result["samples"])
    beside = any(summary["paper"] for summary in result["tasks"].values())
    table = Table(title=f"{result['model']}, 95% intervals over problems, seed {result['seed']}")
    for column in ("task", "problems", "greedy", *(f"pass@{k}" for k in ks)):
        table.add_column(column)
    for method in _PAPER_COLUMNS if beside else ():
        table.add_column(f"paper\n{method}")
    for spec, summary in result["tasks"].items():
        own = [_cell(summary["greedy"]), *(_cell(summary["pass_at_k"][str(k)]) for k in ks)]
        printed = {n["method"]: f"{n['mean'] / 100:.3f}" for n in summary["paper"]}
        paper = [printed.get(method, "-") for method in _PAPER_COLUMNS] if beside else []
        table.add_row(spec, str(summary["problems"]), *own, *paper)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if beside:
        console.print("The paper's items are other draws from the same benchmarks; its SDs are in result.json.")
    for spec, summary in result["tasks"].items():
        lost = {status: n for status, n in summary["statuses"].items() if status in ("timeout", "error")}
        if lost:
            counted = ", ".join(f"{status} {n}" for status, n in lost.items())
            console.print(f"{spec}: greedy answers on which the verifier gave up, and which count as wrong: {counted}")
    console.print(f"results: {run.path} (result.json, table.csv, problems.jsonl)", highlight=False)


def _cell(interval: dict[str, Any]) -> str:
    return f"{interval['value']:.3f}\n[{interval['low']:.3f}, {interval['high']:.3f}]"


if __name__ == "__main__":
    run_command(main, EvaluateConfig, "llm.evaluate")
