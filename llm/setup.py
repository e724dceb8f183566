"""From a config's names to objects: model and tokenizer, task, simulator, localisers, method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llm.config import ConfigError
from llm.generate import Sampling, ThoughtSimulator, TransformersBackend, end_tokens
from llm.localize import OracleLocalizer, SelfLocalizer
from llm.methods import Localizers
from llm.tasks.base import Problem, Task
from llm.thoughts import BarePrompts, InstructPrompts, Prompts
from llm.vllm_backend import VLLMBackend

__all__ = [
    "PROMPT_STYLES",
    "TINY",
    "World",
    "build_world",
    "check_lengths",
    "load_model",
    "prompts_of",
    "resolve_model",
]

TINY = Path(__file__).parent / "tiny" / "checkpoint"
PROMPT_STYLES = ("auto", "bare", "instruct")


@dataclass
class World:
    """A model that can be re-entered on a task, and the localisers over it."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    prompts: Prompts
    backend: TransformersBackend | VLLMBackend
    simulator: ThoughtSimulator
    localizers: Localizers

    def at_temperature(self, temperature: float) -> ThoughtSimulator:
        """The same simulator at another sampling temperature (0: greedy)."""
        sampling = Sampling(**{**vars(self.simulator.sampling), "temperature": temperature})
        return ThoughtSimulator(self.backend, self.tokenizer, self.task, self.prompts, sampling)


def resolve_model(name: str) -> str:
    """The folder or hub id of a model; ``tiny`` is the embedded default. Raises ConfigError for a missing folder."""
    if name == "tiny":
        return str(TINY)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if Path(name).expanduser().is_dir():
        if not (Path(name).expanduser() / "config.json").is_file():
            raise ConfigError(f"{name} holds no config.json; give the folder of a Hugging Face model")
        return str(Path(name).expanduser())
    if looks_local:
        raise ConfigError(f"there is no model folder {name}; give a folder, a hub id (owner/name), or `tiny`")
    return name


def load_model(name: str, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or hub id, in the given dtype ("float32", "bfloat16")."""
    place = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot load model {name}: {reason}") from error
    if tokenizer.pad_token_id is None and not end_tokens(model, tokenizer):
        raise ConfigError(f"model {name} has no end-of-sequence token: set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def prompts_of(tokenizer: PreTrainedTokenizerBase, style: str) -> Prompts:
    """The prompts of a style; `auto` is `instruct` for a tokenizer with a chat template and `bare` for one without.

    Raises ConfigError for `instruct` without a chat template.
    """
    if style == "instruct" and not tokenizer.chat_template:
        raise ConfigError("prompt_style instruct needs a tokenizer with a chat template; use bare or auto")
    return InstructPrompts() if tokenizer.chat_template and style != "bare" else BarePrompts()


def build_world(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    sampling: Sampling,
    max_rows: int,
    localize_temperature: float,
    localize_tokens: int,
    prompt_style: str = "auto",
    backend_name: str = "transformers",
) -> World:
    """All that samples, around one model. `prompt_style` is one of `PROMPT_STYLES` (see `prompts_of`).

    A backend "vllm" has no engine yet; `max_rows` is not for it, as vLLM queues what does not fit.
    """
    prompts = prompts_of(tokenizer, prompt_style)
    backend = (
        VLLMBackend.of(model, tokenizer)
        if backend_name == "vllm"
        else TransformersBackend.of(model, tokenizer, max_rows)
    )
    simulator = ThoughtSimulator(backend, tokenizer, task, prompts, sampling)
    self_localizer = SelfLocalizer(
        backend,
        tokenizer,
        prompts,
        temperature=localize_temperature,
        max_tokens=localize_tokens,
    )
    localizers = Localizers(self_localizer, OracleLocalizer(task), simulator)
    return World(model, tokenizer, task, prompts, backend, simulator, localizers)


def check_lengths(
    world: World, problems: list[Problem], max_prompt_tokens: int | None = None, remark: str | None = None
) -> None:
    """Raise ConfigError where a prompt is longer than asked for, or does not fit the context with a full response.

    With a `remark` (of a method that puts an attempt into the context) it is two responses that must fit.
    """
    longest = max(len(world.simulator.root(p).prompt_ids) for p in problems)
    if max_prompt_tokens is not None and longest > max_prompt_tokens:
        raise ConfigError(
            f"the longest prompt has {longest} tokens, more than {max_prompt_tokens}: raise --max-prompt-tokens or use "
            "shorter questions"
        )
    context = world.backend.context
    if context is None:
        return
    response_tokens = world.simulator.sampling.max_tokens
    if remark is not None:
        longest = max(len(world.simulator.revision_root(p, "", remark).prompt_ids) for p in problems)
        response_tokens *= 2
    if longest + response_tokens > context:
        raise ConfigError(
            f"the longest prompt has {longest} tokens; with {response_tokens} response tokens it exceeds the model's "
            f"context of {context}: lower --max-tokens or use shorter questions"
        )
