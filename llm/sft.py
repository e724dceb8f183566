r"""``python -m llm.sft``: teach a model the thought format before resets train it (a supervised warm start).

A model that writes no `</thought>` and no ``\boxed{}`` gets no reward, and reinforcement learning has nothing to go
by. Here it learns from solutions that the tasks write themselves (`llm.tasks.teaching`), in the very prompts that
`llm.train` uses, and, in a share of the rows, from localisation questions: a solution with one number written wrong
and carried on, after which ``\boxed{N}`` names the first wrong thought. Only training problems are used.

The warm start is meant to be partial. Reinforcement learning needs successes *and* failures, so stop where the sampled
accuracy is about 0.1 to 0.5: few updates.

Rows are token ids: those of the prompt, then those of the answer, encoded apart because the sampler continues the ids
of the prompt. So a delimiter is learned as the tokens that sampling will see, which is why this uses transformers'
Trainer on ready rows and not TRL's SFTTrainer, which encodes the joined text. The answer ends with the end-of-sequence
token (sampling stops a response at its box, but a localisation answer only there). The loss of a row is its mean over
the answer's tokens, so a short localisation answer weighs as much as a solution; the prompt is masked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as hf_logging

from llm.config import ConfigError, option, run_command
from llm.generate import Sampling
from llm.measure import measure
from llm.runs import RunFolder, new_folder, versions
from llm.setup import PROMPT_STYLES, World, build_world, check_lengths, load_model, prompts_of
from llm.tasks import load_task
from llm.tasks.base import Problem, Task
from llm.tasks.teaching import Teaching, mistaken, solution
from llm.thoughts import THOUGHT_END, BarePrompts, Prompts

__all__ = ["Row", "SFTConfig", "collate", "main", "row_loss", "teacher_rows"]

_RECORD = "sft.json"
_IGNORED = -100


@dataclass(frozen=True)
class SFTConfig:
    """Warm-start a causal language model on solutions in the thought format, written by the tasks themselves."""

    model: str = option("", "Folder or hub id of a causal language model.")
    tasks: str = option("", "Tasks with teachers, separated by blanks; their rows are mixed in equal parts.")
    output: str = option("", "Folder for the model; must be new or empty. llm.train --model takes it.")
    seed: int = option(0, "Seed of problems, slips and the order of rows.")
    updates: int = option(60, "Optimiser updates.")
    batch: int = option(16, "Rows of an update, each a new problem.")
    micro_rows: int = option(8, "Rows in one backward pass.")
    learning_rate: float = option(1e-4, "Of AdamW; warm-up over a tenth of the updates, then linear decay to 0.")
    localisation: float = option(0.3, "Share of rows that ask for the first wrong thought of a wrong solution.")
    prompt_style: str = option(
        "auto", "instruct: the rules in a chat; bare: the question alone; auto: by the chat template.", PROMPT_STYLES
    )
    lora: bool = option(False, "Train a LoRA adapter on all linear layers and merge it at the end.")
    lora_rank: int = option(64, "Rank of the adapter; its scale is the same.")
    bf16: bool = option(False, "Multiply in bfloat16; the weights stay in float32.")
    eval_problems: int = option(100, "Held-out problems of each task, measured before and after; 0 for none.")
    before: bool = option(True, "Measure before training too.")
    temperature: float = option(0.7, "Of the measurement's sampled responses.")
    top_p: float = option(0.95, "Nucleus of the measurement.")
    max_tokens: int = option(128, "Response tokens of the measurement.")
    localize_tokens: int = option(16, "Tokens of a localisation answer in the measurement.")
    threads: int = option(0, "Torch threads; 0 leaves torch's choice.")


@dataclass(frozen=True)
class Row:
    """One training row: token ids of the prompt, which is masked, and of the answer, which is learned."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def _check(config: SFTConfig) -> Path:
    for name in ("model", "tasks", "output"):
        if not getattr(config, name):
            raise ConfigError(f"give --{name}; see python -m llm.sft --help")
    if torch.cuda.device_count() > 1:
        raise ConfigError("llm.sft trains on one GPU: set CUDA_VISIBLE_DEVICES=0")
    for name in ("updates", "batch", "micro_rows", "lora_rank", "max_tokens", "localize_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("seed", "eval_problems", "threads"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    if config.batch % config.micro_rows:
        raise ConfigError(f"batch must be a multiple of micro_rows, got {config.batch} and {config.micro_rows}")
    if not 0 <= config.localisation <= 1:
        raise ConfigError(f"localisation must lie in [0, 1], got {config.localisation}")
    if not config.learning_rate > 0 or not config.temperature > 0 or not 0 < config.top_p <= 1:
        raise ConfigError("learning_rate and temperature must be positive, and top_p must lie in (0, 1]")
    return new_folder(config.output, "output", _RECORD)


def _tasks(specs: str) -> dict[str, Task]:
    """The tasks by spec. Raises ConfigError for one that writes no solutions."""
    tasks = {spec: load_task(spec) for spec in dict.fromkeys(specs.split())}
    for spec, task in tasks.items():
        if not isinstance(task, Teaching):
            raise ConfigError(f"task {spec} writes no solutions; see llm.tasks.teaching for those that do")
    return tasks


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Row:
    """Prompt and answer encoded apart, without special tokens, as the sampler does; then the end of the sequence."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return Row(tuple(ids[0]), (*ids[1], *end))


def _row(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts, task: Any, problem: Problem, localise: bool, rng: Any
) -> Row:
    if not localise:
        response = "".join(f"{thought}{THOUGHT_END}" for thought in solution(task, problem))
        return _encode(tokenizer, prompts.solve(tokenizer, problem.question), response)
    thoughts, k = mistaken(task, problem, rng)
    return _encode(tokenizer, prompts.localize(tokenizer, problem.question, thoughts), f"\\boxed{{{k + 1}}}")


def teacher_rows(
    config: SFTConfig, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, tasks: Sequence[Task]
) -> list[Row]:
    """The rows of all updates in order: every row a new training problem, the tasks in turn.

    The rows of an update are sorted by length, so that a backward pass has little padding.
    """
    n = config.updates * config.batch
    rng = np.random.default_rng(config.seed)
    problems = [iter(task.problems("train", -(-n // len(tasks)), config.seed)) for task in tasks]
    localise = rng.random(n) < config.localisation
    rows = [
        _row(tokenizer, prompts, tasks[i % len(tasks)], next(problems[i % len(tasks)]), bool(localise[i]), rng)
        for i in range(n)
    ]
    batches = (rows[i : i + config.batch] for i in range(0, n, config.batch))
    return [row for batch in batches for row in sorted(batch, key=lambda r: len(r.prompt) + len(r.answer))]


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """A left-padded batch, so that answers end together and logits are needed at the last positions only.

    labels [B, K] are the last K tokens of each row, prompt tokens masked by -100, where K is the longest answer;
    logits_to_keep = K + 1 are the positions that predict them (and the one after, which predicts nothing).
    """
    width = max(len(r.prompt) + len(r.answer) for r in rows)
    K = max(len(r.answer) for r in rows)
    pads = [width - len(r.prompt) - len(r.answer) for r in rows]
    ids_BT = torch.tensor([[pad_id] * pad + [*r.prompt, *r.answer] for pad, r in zip(pads, rows, strict=True)])
    mask_BT = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    labels_BK = torch.tensor([[_IGNORED] * (K - len(r.answer)) + list(r.answer) for r in rows])
    return {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(dim=1) - 1).clamp(min=0),
        "labels": labels_BK,
        "logits_to_keep": K + 1,
    }


def row_loss(logits_BKV: Tensor, labels_BK: Tensor) -> Tensor:
    """Mean cross-entropy over the answer's tokens of each row, [B]; logits have one position more than labels."""
    nll_BK = cross_entropy(logits_BKV[:, :-1].float().transpose(1, 2), labels_BK, reduction="none")
    return nll_BK.sum(dim=1) / (labels_BK != _IGNORED).sum(dim=1)


class _Bar(TrainerCallback):
    """Progress and the loss of every update."""

    def __init__(self, updates: int) -> None:
        self.losses: list[float] = []
        self.bar = tqdm(total=updates, desc="warm start", unit="update")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.bar.set_postfix({"loss": f"{self.losses[-1]:.3f}"}, refresh=False)
            self.bar.update()


def _train(config: SFTConfig, model: Any, pad_id: int, rows: list[Row], out: Path) -> list[float]:
    """Train in place; returns the mean loss of each update."""
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=config.updates,
        per_device_train_batch_size=config.micro_rows,
        gradient_accumulation_steps=config.batch // config.micro_rows,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=-(-config.updates // 10),
        weight_decay=0.01,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
    )
    bar = _Bar(config.updates)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, pad_id),
        compute_loss_func=lambda outputs, labels, **_: row_loss(outputs.logits, labels).sum() / config.batch,
        callbacks=[bar],
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    bar.bar.close()
    return bar.losses


def _measure(config: SFTConfig, worlds: dict[str, World]) -> dict[str, Any]:
    return {
        spec: measure(world, world.task.problems("eval", config.eval_problems, config.seed), config.seed)
        for spec, world in worlds.items()
    }


def main(config: SFTConfig) -> dict[str, Any]:
    """Measure, train, measure, save; returns what `sft.json` holds. Raises ConfigError or TaskError."""
    out = _check(config)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    tasks = _tasks(config.tasks)
    model, tokenizer = load_model(config.model, "float32")
    prompts = prompts_of(tokenizer, config.prompt_style)
    rows = teacher_rows(config, tokenizer, prompts, list(tasks.values()))
    if torch.cuda.is_available():
        model = model.to("cuda")
    worlds = _worlds(config, model, tokenizer, tasks)
    before = _measure(config, worlds) if config.before and config.eval_problems else None
    if config.lora:
        adapter = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules="all-linear")
        model = get_peft_model(model, adapter)
    begun = time.process_time()
    losses = _train(config, model, int(tokenizer.pad_token_id), rows, out)
    cpu_seconds = time.process_time() - begun
    model = model.merge_and_unload() if config.lora else model
    if isinstance(prompts, BarePrompts):
        tokenizer.chat_template = None  # so that `auto` asks the new model as it was taught
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    after = _measure(config, _worlds(config, model, tokenizer, tasks)) if config.eval_problems else None
    result = {
        "config": asdict(config),
        "before": before,
        "after": after,
        "losses": losses,
        "cpu_seconds": cpu_seconds,
        "versions": versions(),
    }
    RunFolder(out).write_json(_RECORD, result)
    _print(result)
    return result


def _worlds(config: SFTConfig, model: Any, tokenizer: Any, tasks: dict[str, Task]) -> dict[str, World]:
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens, 20, config.max_tokens)
    style = config.prompt_style
    worlds = {
        spec: build_world(model, tokenizer, task, sampling, 512, 0.3, config.localize_tokens, style)
        for spec, task in tasks.items()
    }
    for world in worlds.values():
        check_lengths(world, world.task.problems("eval", max(config.eval_problems, 1), config.seed))
    return worlds


def _cell(measured: dict[str, Any], name: str) -> str:
    value = (measured["localiser"] if name in ("exact", "clean") else measured)[name]
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value else "-"


def _print(result: dict[str, Any]) -> None:
    config = result["config"]
    table = Table(
        title=f"{config['updates']} updates of {config['batch']} rows, loss {result['losses'][0]:.3f} -> "
        f"{result['losses'][-1]:.3f}; {config['eval_problems']} held-out problems a task, 95% intervals"
    )
    columns = ("task", "", "greedy", "sampled", "readable", "tokens", "localiser exact", "clean")
    for column in columns:
        table.add_column(column)
    for spec in result["after"] or {}:
        for when in ("before", "after"):
            if result[when]:
                m = result[when][spec]
                shares = [_cell(m, name) for name in ("greedy", "sampled", "readable")]
                located = [_cell(m, name) for name in ("exact", "clean")]
                table.add_row(spec, when, *shares, f"{m['tokens']:.0f}", *located)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"model folder: {config['output']}", highlight=False)


if __name__ == "__main__":
    run_command(main, SFTConfig, "llm.sft")
