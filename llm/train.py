"""``python -m llm.train``: train a model with GRPO, RRPO, SRPO or oracle-SRPO, and say what it bought and cost."""

from __future__ import annotations

import errno
import math
import os
import resource
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging as hf_logging
from trl import GRPOConfig

from llm.config import ConfigError, option, run_command
from llm.first_errors import Measuring
from llm.generate import Sampling
from llm.measure import counts, measured
from llm.methods import MethodConfig, asks_the_model, build_method
from llm.objective import TrainingMethod
from llm.plan import make_plan
from llm.plots import training_figure
from llm.runs import RunFolder, alone_in, default_folder, open_run, versions, weight_files
from llm.setup import PROMPT_STYLES, World, build_world, check_lengths, load_model, resolve_model
from llm.show import rollout_rows, step_text
from llm.tasks import load_task
from llm.tasks.base import Problem, Task
from llm.trainer import ResetTrainer, RunError, Step, complete_checkpoints, schedule, was_complete
from llm.vllm_backend import BackendConfig, check_backend, connecting, describe, trl_settings

__all__ = ["TrainConfig", "check_method", "main"]

_BUDGET = (
    "rollouts",
    "tokens",
    "discarded_rollouts",
    "discarded_tokens",
    "localisation_calls",
    "localisation_tokens",
    "localiser_rollouts",
    "localiser_tokens",
    "oracle_queries",
    "oracle_rollouts",
    "oracle_tokens",
)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)
_PATIENCE = 24 * 3600
"""Seconds that processes wait for each other: sampling thousands of tokens a rollout, they are never quite in step."""


@dataclass(frozen=True)
class TrainConfig(BackendConfig, MethodConfig):
    """Train a language model with resets. Without options: SRPO on the embedded default model, a few minutes."""

    model: str = option("tiny", "Folder or hub id of a causal language model; tiny is the embedded default.")
    task: str = option("chains", "Task, with its dials: chains, chains:steps=6,hard=4, reasoning_gym:NAME, ...")
    prompt_style: str = option(
        "auto", "instruct: the rules in a chat; bare: the question alone; auto: by the chat template.", PROMPT_STYLES
    )
    seed: int = option(0, "Seed of every random draw.")
    steps: int = option(30, "Training steps (batches of prompts).")
    prompts: int = option(32, "Prompts a step, over all processes.")
    train_problems: int = option(2048, "Size of the training set; it is gone through again when used up.")
    eval_problems: int = option(200, "Held-out problems measured before and after; 0 for none.")
    learning_rate: float = option(
        3e-4, "Of AdamW, constant; tuned for the embedded model. With LoRA the paper uses 5e-5."
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    updates: int = option(
        1, "Optimiser updates a step, on equal parts of its rollouts; the paper: 4, on 8 prompts each."
    )
    grad_clip: float = option(1.0, "Maximal norm of the gradient.")
    ratio: bool = option(
        True, "Weigh updates after a step's first by the ratio to the policy that sampled; no: -A log pi, as the paper."
    )
    clip: float = option(0.0, "PPO's ratio bound (0.2 is usual); 0 for none, as in the paper.")
    micro_rows: int = option(64, "Rollouts in one backward pass, on each process.")
    sample_rows: int = option(512, "Rollouts sampled at once, on each process; vLLM queues by itself.")
    temperature: float = option(0.7, "Sampling temperature of rollouts.")
    top_p: float = option(0.95, "Nucleus of rollouts and of localisation.")
    max_prompt_tokens: int = option(2048, "Prompt tokens; a longer prompt is refused before anything starts.")
    max_tokens: int = option(96, "Response tokens. The paper: 4096.")
    max_thoughts: int = option(20, "Thoughts of a response.")
    max_thought_tokens: int = option(64, "Tokens of a thought. The paper: 256.")
    localize_temperature: float = option(0.3, "Sampling temperature of localisation answers.")
    localize_tokens: int = option(64, "Tokens of a localisation answer. Reasoning models need hundreds.")
    lora: bool = option(False, "Train a LoRA adapter on all linear layers instead of the weights.")
    lora_rank: int = option(64, "Rank of the adapter.")
    lora_alpha: int = option(64, "Scale of the adapter.")
    dtype: str = option("float32", "Of the weights; bfloat16 for GPUs.", ("float32", "bfloat16"))
    gradient_checkpointing: bool = option(False, "Trade time for memory in the backward pass.")
    vllm_server: str = option(
        "", "Address of a vLLM server, such as http://localhost:8000; none: an engine in each process."
    )
    vllm_sleep: bool = option(False, "Free the memory of that engine between samplings, at the cost of moving weights.")
    vllm_correction: bool = option(True, "Correct for vLLM's probabilities being a little off, by TRL's token ratios.")
    threads: int = option(0, "Torch threads; 0 for one per core, but a single one where the machine is busy.")
    save_every: int = option(10, "Steps between checkpoints.")
    sample_every: int = option(1, "Steps between samples of rollouts in rollouts.jsonl and rollouts.txt.")
    oracle_every: int = option(
        10,
        "Where the task does not know first errors: steps between measurements of the localiser against Monte Carlo "
        "values; 0 for none.",
    )
    oracle_seeds: int = option(4, "Seeds of such a measurement, on each process.")
    oracle_continuations: int = option(4, "Continuations from each thought of such a seed.")
    report_to: str = option("none", "Logger of transformers, beside metrics.jsonl: tensorboard, wandb, ...; or none.")
    output: str = option("", "Run folder; by default runs/METHOD-TASK-sSEED-NNN.")
    resume: bool = option(False, "Go on with the run in --output from its last whole checkpoint.")
    dry_run: bool = option(False, "Print the plan (processes, memory, rollouts, tokens) and start nothing.")


def _check(config: TrainConfig) -> None:
    positive = (
        "steps",
        "prompts",
        "updates",
        "max_prompt_tokens",
        "train_problems",
        "max_tokens",
        "max_thoughts",
        "max_thought_tokens",
        "micro_rows",
        "sample_rows",
        "localize_tokens",
        "save_every",
        "sample_every",
        "lora_rank",
        "oracle_seeds",
        "oracle_continuations",
    )
    if config.seed >= 2**32:
        raise ConfigError(f"seed must be below 2**32, got {config.seed}")
    for name in positive:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    not_negative = ("seed", "eval_problems", "threads", "clip", "grad_clip", "weight_decay", "lora_alpha")
    for name in (*not_negative, "localize_temperature", "oracle_every"):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    if not config.temperature > 0:
        raise ConfigError("temperature must be positive: a greedy policy has nothing to compare in a group")
    if not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p must lie in (0, 1], got {config.top_p}")
    if not (config.learning_rate > 0 and math.isfinite(config.learning_rate)):
        raise ConfigError(f"learning_rate must be positive, got {config.learning_rate}")
    if config.clip and not config.ratio:
        raise ConfigError("clip bounds the ratio, which --no-ratio leaves out: give one of them")
    if config.vllm_server and not config.vllm_server.startswith(("http://", "https://")):
        raise ConfigError(f"vllm_server must be an address such as http://localhost:8000, got {config.vllm_server!r}")
    check_backend(config, [config.localizer], start=not config.dry_run)
    _check_idle(config)
    if config.backend == "transformers" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ConfigError(
            "with FSDP all processes make every pass together, and sampling takes a different number on each: "
            "use --backend vllm, or instead of FSDP plain data parallelism or DeepSpeed (configs/accelerate-zero3.yaml)"
        )
    precision = _deepspeed_precision()
    if precision not in ("no", "bf16" if config.dtype == "bfloat16" else "no"):
        raise ConfigError(
            f"DeepSpeed would train in {precision} what is sampled in {config.dtype}: give accelerate "
            "mixed_precision no, or bf16 with --dtype bfloat16"
        )
    loggers = ("none", *get_available_reporting_integrations())
    if config.report_to not in loggers:
        raise ConfigError(
            f"report_to {config.report_to!r} is not installed or not known; install it, or use one of: "
            + ", ".join(loggers)
        )
    if config.resume and not config.output:
        raise ConfigError("--resume needs --output, the folder of the run to go on with")
    if _processes() > 1 and not config.output:
        raise ConfigError("several processes need --output, so that all of them use one run folder")


def _check_idle(config: TrainConfig) -> None:
    """Raises ConfigError for an option that would be ignored without a word."""
    idle = {
        "lora_rank": not config.lora and "--lora",
        "lora_alpha": not config.lora and "--lora",
        "vllm_server": config.backend != "vllm" and "--backend vllm",
        "vllm_sleep": config.backend != "vllm" and "--backend vllm",
        "vllm_correction": config.backend != "vllm" and "--backend vllm",
        "localize_temperature": config.localizer == "trained"
        and "another --localizer: trained samples as rollouts are",
    }
    defaults = {f.name: f.default for f in fields(config)}
    for name, missing in idle.items():
        if missing and getattr(config, name) != defaults[name]:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} does nothing here: leave it out, or give {missing}")
    if config.lora and config.lora_alpha <= 0:
        raise ConfigError(f"lora_alpha must be positive, got {config.lora_alpha}: the adapter is scaled by it")


def _deepspeed_precision() -> str:
    """The mixed precision that accelerate was told to give DeepSpeed, ``no`` without DeepSpeed."""
    used = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if used else "no"


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _free_threads() -> int:
    """One thread per core of an idle machine. Threads that wait for each other on a busy one cost a factor of ten."""
    cores = os.cpu_count() or 1
    return max(1, cores // _processes()) if os.getloadavg()[0] < cores / 2 else 1


def _is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _rows_of_an_update(config: TrainConfig, total: int) -> int:
    """Rows of an optimiser update on each process, `total` rows a prompt. Raises ConfigError if they do not divide."""
    parts = _processes() * config.updates
    if config.prompts % _processes() or config.prompts * total % parts:
        raise ConfigError(
            f"prompts must be a multiple of the {_processes()} processes, and their {config.prompts * total} rollouts "
            f"of {config.updates} updates on each"
        )
    return config.prompts * total // parts


def _trainer_args(config: TrainConfig, total: int, run: RunFolder) -> GRPOConfig:
    """`updates` optimiser steps per batch of rollouts; rows of a prompt stay on one process."""
    local = _rows_of_an_update(config, total)
    micro = next(m for m in range(min(config.micro_rows, local), 0, -1) if local % m == 0)
    return GRPOConfig(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=local // micro,
        steps_per_generation=local // micro * config.updates,
        num_generations=total,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        loss_type="grpo",
        scale_rewards="none",
        beta=0.0,
        epsilon=config.clip or 1e9,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=config.weight_decay,
        max_grad_norm=config.grad_clip,
        max_steps=config.steps * config.updates,
        save_steps=config.save_every * config.updates,
        save_total_limit=2,
        logging_steps=1,
        report_to=config.report_to,
        seed=config.seed,
        shuffle_dataset=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        bf16=_deepspeed_precision() == "bf16",  # the two have to agree; else the weights' own type is the precision
        gradient_checkpointing=config.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        ddp_timeout=_PATIENCE,
        ddp_backend="gloo" if _processes() > 1 and not torch.cuda.is_available() else None,
        **trl_settings(config),
    )


def _lora(config: TrainConfig) -> LoraConfig | None:
    if not config.lora:
        return None
    return LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear")


class _Reporter:
    """Progress bar, metrics and samples of a run; on the main process only."""

    def __init__(self, config: TrainConfig, run: RunFolder, first_step: int, task: Task) -> None:
        self.config, self.run, self.task, self.first_step = config, run, task, first_step
        self.measuring = 0.0

    def start(self) -> None:
        self.clock = time.perf_counter()
        self.bar = tqdm(
            total=self.config.steps,
            initial=self.first_step,
            desc=self.config.method,
            unit="step",
            disable=not _is_main(),
        )

    def on_step(self, step: Step) -> None:
        self.measuring += step.measuring
        if not _is_main() or step.number % self.config.sample_every:
            return
        rows = rollout_rows(step.number, step.rollouts, step.advantages, self.task)
        for row in rows:
            self.run.append("rollouts.jsonl", row)
        self.run.append_text("rollouts.txt", step_text(rows))

    def on_log(self, row: dict[str, Any]) -> None:
        now = time.perf_counter()
        seconds, self.clock, measuring, self.measuring = now - self.clock, now, self.measuring, 0.0
        seconds -= measuring
        tokens = row["tokens"] + row["localisation_tokens"] + row["localiser_tokens"]
        self.run.append("metrics.jsonl", row)
        times = {"step": row["step"], "seconds": seconds, "measuring": measuring, "tokens": tokens}
        self.run.append("timing.jsonl", times)
        self.bar.set_postfix({**_shown(row), "tok/s": f"{tokens / seconds:.0f}"}, refresh=False)
        self.bar.update()


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """What the progress bar says of a step: rewards of fresh rollouts and of suffixes, and where the cuts were."""
    names = {
        "reward": "reward",
        "accuracy": "accuracy",
        "suffix": "reset_reward",
        "exact": "localiser_exact",
        "clean": "localiser_clean",
    }
    return {name: f"{row[key]:.2f}" for name, key in names.items() if row[key] is not None}


def _world(config: TrainConfig, task: Task, model: str) -> World:
    sampling = Sampling(
        config.temperature, config.top_p, config.max_tokens, config.max_thoughts, config.max_thought_tokens
    )
    return build_world(
        *load_model(model, config.dtype),
        task,
        sampling,
        config.sample_rows,
        config.localize_temperature,
        config.localize_tokens,
        config.prompt_style,
        config.backend,
    )


def _build(config: TrainConfig) -> tuple[World, TrainingMethod, list[Problem], list[Problem]]:
    task = load_task(config.task)
    problems = task.problems("train", config.train_problems, config.seed)
    held_out = task.problems("eval", config.eval_problems, config.seed) if config.eval_problems else []
    world = _world(config, task, config.model)
    method = build_method(config, world.localizers)
    _check_oracle(config, task)
    check_lengths(world, [*problems, *held_out], config.max_prompt_tokens, method.remark)
    return world, method, problems, held_out


def check_method(config: TrainConfig) -> tuple[Task, TrainingMethod]:
    """Task and method of a config. Raises ConfigError or TaskError for what can be told without its model and data."""
    _check(config)
    task = load_task(config.task)
    _check_oracle(config, task)
    method = build_method(config, _world(replace(config, prompt_style="bare"), task, "tiny").localizers)
    _rows_of_an_update(config, method.rows_per_prompt)
    return task, method


def _check_oracle(config: TrainConfig, task: Task) -> None:
    asks = config.method == "oracle-srpo" or config.localizer in ("oracle", "noisy")
    if asks and not task.knows_first_error:
        what = config.method if config.method == "oracle-srpo" else f"localizer {config.localizer}"
        raise ConfigError(
            f"task {task.name} does not know first errors, which {what} asks for; --method srpo --localizer value "
            "estimates them"
        )


def _checkpoint(run: RunFolder, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for the start; unfinished and corrupt ones are named and passed over.

    A run that was killed in its first checkpoint has nothing to lose and starts over; where checkpoints that were whole
    are corrupt it is for the user to say so.
    """
    if not resume:
        return None
    whole, broken = complete_checkpoints(run.checkpoints)
    for folder in broken if _is_main() else []:
        print(f"{folder.name} is unfinished or corrupt and is passed over", file=sys.stderr)
    if whole:
        return whole[0]
    if any(was_complete(folder) for folder in broken):
        raise RunError(f"every checkpoint in {run.checkpoints} is corrupt; start the run anew in another --output")
    if _is_main():
        print("there is no whole checkpoint yet: the run starts over at step 0", file=sys.stderr)
    return None


@contextmanager
def _writing(run: RunFolder) -> Iterator[None]:
    """Turns a full disk, and what else the system or a server refuses meanwhile, into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        disk = isinstance(error, SafetensorError) or error.errno in _DISK
        what, way_out = (f"cannot write to {run.path}", "free space, then ") if disk else ("the run stopped", "")
        raise RunError(f"{what}: {reason}; {way_out}go on with --resume from the last whole checkpoint") from error


def _measure(trainer: ResetTrainer, world: World, held_out: list[Problem], seed: int) -> dict[str, Any]:
    """The model as it is now; each process measures its share of the problems."""
    mine = range(trainer.accelerator.process_index, len(held_out), trainer.accelerator.num_processes)
    with trainer.sampling():
        parts = gather_object([counts(world, held_out, mine, seed)])
    return measured(sum(parts, start=Counter()))


def _save_model(trainer: ResetTrainer, tokenizer: PreTrainedTokenizerBase, run: RunFolder) -> None:
    """Written whole or not at all, like the other files of a run."""
    unfinished, model = run.file("model.part"), run.file("model")
    if _is_main():
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(unfinished))
    trainer.accelerator.wait_for_everyone()
    if _is_main():
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(model, ignore_errors=True)
        os.replace(unfinished, model)


def _dry_run(config: TrainConfig) -> dict[str, Any]:
    """The plan of a run from configs alone: no weights of its model are loaded, no data fetched, nothing written."""
    task, method = check_method(config)
    rows = method.rows_per_prompt
    model = resolve_model(config.model)
    revises = method.remark is not None
    plan = make_plan(config, model, rows, config.max_prompt_tokens, _processes(), method.needs_reference, revises)
    print(f"method      {config.method} on {task.name}: {config.steps} steps, {config.prompts} prompts x {rows} rows")
    print(
        f"processes   {_processes()}, {torch.cuda.device_count()} GPUs on this machine; several: accelerate launch "
        "--num_processes N -m llm.train --config FILE --output DIR"
    )
    if config.backend == "vllm":
        print(f"sampling    {describe(config)}")
    print("\n".join(plan.lines()))
    if asks_the_model(config):
        print(f"            and of at most {config.localize_tokens} tokens for each localisation answer")
    return asdict(plan)


def main(config: TrainConfig) -> dict[str, Any]:
    """Run a config to its end; returns what `result.json` holds. Raises ConfigError, TaskError or RunError."""
    _check(config)
    warnings.filterwarnings("ignore", category=FutureWarning)  # between TRL and transformers, not ours
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if config.dry_run:
        return _dry_run(config)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(config.threads or _free_threads())
    world, method, problems, held_out = _build(config)
    stem = f"{config.method}-{config.task.partition(':')[0]}-s{config.seed}"
    folder = Path(config.output) if config.output else default_folder(stem)
    weights = weight_files(resolve_model(config.model))
    run = open_run(config, folder, config.resume, weights) if _is_main() else RunFolder(folder)
    with alone_in(folder) if _is_main() else nullcontext():
        return _train(config, run, world, method, problems, held_out)


def _train(
    config: TrainConfig,
    run: RunFolder,
    world: World,
    method: TrainingMethod,
    problems: list[Problem],
    held_out: list[Problem],
) -> dict[str, Any]:
    checkpoint = _checkpoint(run, config.resume)
    first_step = int(checkpoint.name.rsplit("-", 1)[1]) // config.updates if checkpoint else 0

    before = run.read_json("before.json")
    if _is_main():
        with _writing(run):
            _go_back(run, first_step)
    reporter = _Reporter(config, run, first_step, world.task)
    args = _trainer_args(config, method.rows_per_prompt, run)
    with connecting(config):
        trainer = ResetTrainer(
            simulator=world.simulator,
            backend=world.backend,
            method=method,
            problems=problems,
            on_step=reporter.on_step,
            on_log=reporter.on_log,
            measuring=Measuring(config.oracle_every, config.oracle_seeds, config.oracle_continuations),
            ratio=config.ratio,
            model=world.model,
            processing_class=world.tokenizer,
            train_dataset=schedule(len(problems), config.prompts, config.steps, config.seed),
            args=args,
            peft_config=_lora(config),
        )
    check_lengths(world, [*problems, *held_out], config.max_prompt_tokens, method.remark)  # now with vLLM's context
    trainer.accelerator.wait_for_everyone()  # all have looked for before.json
    if before is None and held_out:
        before = _measure(trainer, world, held_out, config.seed)
        with _writing(run):
            if _is_main():
                run.write_json("before.json", before)
    reporter.start()
    with _writing(run):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        reporter.bar.close()
        trainer.check_weights()
        _save_model(trainer, world.tokenizer, run)
    after = _measure(trainer, world, held_out, config.seed) if held_out else None
    memory = gather_object([_peak_memory()])
    result: dict[str, Any] = {}
    if trainer.accelerator.is_main_process:
        result = _result(config, run, before, after, {name: max(m[name] for m in memory) for name in memory[0]})
        with _writing(run):
            run.write_json("result.json", result)
            training_figure(run.rows("metrics.jsonl"), result, run.file("figure.png"))
        _print_result(result, run)
    if _processes() > 1:  # a process that ends before the others, its threads still connected, can take them with it
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    return result


def _go_back(run: RunFolder, step: int) -> None:
    """A resumed run does steps >= `step` again; a fresh one has nothing to drop."""
    run.keep_steps(step)
    sampled = groupby(run.rows("rollouts.jsonl"), key=lambda row: row["step"])
    run.file("rollouts.txt").write_text("".join(step_text(list(rows)) for _, rows in sampled), encoding="utf-8")
    run.write_json("versions.json", versions())


def _peak_memory() -> dict[str, int]:
    """MiB of this process at most, in memory and on its GPU (0 without one; a vLLM engine's is not torch's)."""
    gpu = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0
    return {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "peak_gpu_memory_mib": gpu}


def _result(config: TrainConfig, run: RunFolder, before: Any, after: Any, memory: dict[str, int]) -> dict[str, Any]:
    rows = run.rows("metrics.jsonl")
    return {
        "method": config.method,
        "model": config.model,
        "task": config.task,
        "seed": config.seed,
        "steps": config.steps,
        "before": before,
        "after": after,
        "budget": {name: sum(row[name] for row in rows) for name in _BUDGET},
        "seconds": sum(row["seconds"] for row in run.rows("timing.jsonl")),
        **memory,
        "versions": versions(),
    }


def _cell(measured: dict[str, Any] | None, name: str) -> str:
    value = (measured["localiser"] if name in ("exact", "clean") else measured).get(name) if measured else None
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else "-"


def _print_result(result: dict[str, Any], run: RunFolder) -> None:
    n = result["before"]["problems"] if result["before"] else 0
    table = Table(title=f"{result['method']} on {result['task']}, {result['steps']} steps, seed {result['seed']}")
    for column in (f"{n} held-out problems, 95% intervals", "before", "after"):
        table.add_column(column)
    names = {
        "greedy": "accuracy, greedy",
        "sampled": "accuracy, sampled",
        "exact": "localiser exact",
        "clean": "localiser clean (not late)",
    }
    for name, title in names.items():
        table.add_row(title, _cell(result["before"], name), _cell(result["after"], name))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    budget = result["budget"]
    values = (
        f"{budget['localiser_rollouts']:.0f} rollouts and {budget['localiser_tokens']:.0f} tokens of the localiser's"
    )
    console.print(
        f"budget: {budget['rollouts']:.0f} rollouts ({budget['discarded_rollouts']:.0f} discarded), "
        f"{budget['tokens']:.0f} tokens, {budget['localisation_tokens']:.0f} localisation tokens in "
        f"{budget['localisation_calls']:.0f} answers, {values}; {result['seconds']:.0f} s of training, "
        f"peak memory {result['peak_memory_mib']} MiB",
        highlight=False,
    )
    console.print(f"run folder: {run.path} (result.json, metrics.jsonl, figure.png, model/)", highlight=False)


if __name__ == "__main__":
    run_command(main, TrainConfig, "llm.train")
