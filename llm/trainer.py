"""`ResetTrainer`: Algorithm 2 on TRL's `GRPOTrainer`, as the thinnest possible skin.

TRL keeps the optimiser, LoRA, accelerate (several processes), checkpoints and loggers. This class adds the rollouts
(a method's `roll` through TRL's `rollout_func`) and replaces the advantages by the method's, and nothing else.

Deviations from the paper:
 1. The loss is TRL's ``grpo``: the mean over all rollouts of the batch of each rollout's mean over its own tokens. The
    paper sums the base and the reset group's means; the factor 1/2 between them is a matter of the learning rate.
 2. Clipping is off (a ratio bound of 1e9) unless asked for. With one update a step the ratio is 1 anyway; with several
    the later ones are weighed by it, where the paper's loss is -A log pi (`ratio` False).
 3. A fallback prompt (no failure, or no usable localisation) is one GRPO group of all its slots. With several updates
    a step each takes equally many of its rows, as TRL shuffles them, where the paper's take whole prompts.
    Methods list their own deviations (`llm.methods`, `llm.baselines`).

Deviations from TRL 1.16, each pinned by tests/test_trl_contract.py:
 4. `rollout_func` returns the rows of whole prompts, base and reset slots together (`llm.objective.Row`); ``env_mask``
    hides what is not trained on, such as the inherited prefix, from the loss; attention still sees it.
 5. TRL's group advantages (Bessel's std, eps 1e-4, groups by position, one per row) are overwritten after scoring by
    ours, one per token [rows, tokens]: TRL's loss takes both shapes.
 6. TRL's reward metrics are dropped: they describe its own groups. `log` writes ours.
 7. The order of prompts is a data set written out for the whole run (`schedule`), so there is only one epoch for TRL
    and a run resumed in its third pass over the problems sees what an uninterrupted one sees.
 8. `beta` stays 0, which would put a KL term on every row. Rows that ask for one (`llm.objective.Row.kl`) have its
    score-function gradient in their advantages; the initial model is the model with its adapter off, or a copy that
    is made before any checkpoint is loaded.
 9. Draws come from keys (seed, step, prompt, phase, slot); no generator has state.
10. With vLLM the rows carry the log-probabilities that they were sampled with, nan on inherited prefixes, and TRL
    corrects for the train/inference mismatch per token (`llm.vllm_backend`); its size is logged as ``mismatch``.
11. Rows without any advantage, those of groups with equal rewards, are left out of the forward and backward pass, rows
    of similar length share a micro-batch of an update, and columns that are padding in all of its rows are cut. The
    gradient is the same; where most groups are silent or responses differ in length an update costs a fraction.
12. On a CPU only the positions of responses are multiplied by the vocabulary matrix, as TRL does on GPUs; elsewhere it
    scores prompts and padding too and drops them, to keep shapes for a compiler. The gradient is the same.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl.trainer.utils
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import add_fused_lm_head

from cpi.draws import DrawKey
from cpi.groups import Rollouts
from llm import token_signal
from llm.first_errors import FirstErrors, Measuring
from llm.generate import ThoughtSimulator, TransformersBackend, evaluating
from llm.metrics import merge, step_metrics, step_sums
from llm.objective import Roll, Row, TrainingMethod
from llm.runs import file_digest
from llm.tasks.base import Problem
from llm.thoughts import ThoughtTrace
from llm.vllm_backend import VLLMBackend, engine_of

__all__ = ["ResetTrainer", "RunError", "Step", "complete_checkpoints", "kl_to_go", "schedule", "was_complete"]

_COMPLETE = "complete.json"


class RunError(ValueError):
    """A run cannot go on; the message is one line that says what to do."""


def schedule(num_problems: int, prompts_per_step: int, steps: int, seed: int) -> Dataset:
    """The prompts of a whole run: row i is prompt i mod prompts_per_step of step i // prompts_per_step.

    Each pass over the problems is a permutation of its own, a function of (seed, pass). A problem that a step holds
    more than once, where two passes meet or problems are few, has other draws each time: ``draws`` is what its keys are
    made of, the problem's index plus `num_problems` for each time before.
    """
    total = prompts_per_step * steps
    passes = math.ceil(total / num_problems)
    order = np.concatenate([np.random.default_rng([seed, p]).permutation(num_problems) for p in range(passes)])[:total]
    step = np.arange(total) // prompts_per_step
    seen: Counter[tuple[int, int]] = Counter()
    draws = []
    for at in zip(step.tolist(), order.tolist(), strict=True):
        draws.append(at[1] + num_problems * seen[at])
        seen[at] += 1
    return Dataset.from_dict({"prompt": [str(i) for i in order], "index": order, "draws": draws, "step": step})


@dataclass(frozen=True)
class Step:
    """What one step did on this process: the buffer, and the advantages of each group."""

    number: int
    rollouts: Rollouts[ThoughtTrace]
    advantages: list[NDArray[np.float64]]
    measuring: float
    """Seconds that measuring first errors took, which the method does not need."""


class ResetTrainer(GRPOTrainer):
    """TRL's trainer with Algorithm 2's rollouts and advantages; see the module's docstring for the deviations.

    on_step is called on every process after the rollouts of a step, on_log on the main process with the step's
    metrics; both are for reporting and change nothing. measuring says when first wrong thoughts that the task does not
    know are looked for, for the metrics. ratio: whether updates after the first of a step are weighed by the ratio of
    the policy to the one that sampled.
    """

    _last_loaded_step: int  # TRL's: the step whose weights vLLM holds
    _buffered_inputs: list[dict[str, Any]] | None  # TRL's: the micro-batches of a batch of rollouts

    def __init__(
        self,
        *,
        simulator: ThoughtSimulator,
        backend: TransformersBackend | VLLMBackend,
        method: TrainingMethod,
        problems: Sequence[Problem],
        args: GRPOConfig,
        on_step: Callable[[Step], None],
        on_log: Callable[[dict[str, float | None]], None],
        measuring: Measuring,
        ratio: bool = True,
        **kwargs: Any,
    ) -> None:
        self.simulator, self.backend, self.method, self.problems = simulator, backend, method, problems
        self.on_step, self.on_log, self.measuring, self.ratio = on_step, on_log, measuring, ratio
        self._reset_inputs: list[dict[str, Any]] = []
        self._reset_metrics: dict[str, float | None] = {}
        self._reset_roll: Roll
        self._reset_first_errors: FirstErrors
        keep = method.needs_reference and kwargs.get("peft_config") is None
        self._reset_reference = copy.deepcopy(kwargs["model"]).requires_grad_(False).eval() if keep else None
        super().__init__(reward_funcs=_no_reward, args=args, rollout_func=self._roll_out, **kwargs)
        if self._reset_reference is not None:
            self._reset_reference.to(self.accelerator.device)
            add_fused_lm_head(self._reset_reference, temperature=self.temperature)
            if is_deepspeed_zero3_enabled():
                _say_whole(self._reset_reference)
            if isinstance(backend, TransformersBackend):
                backend.initial = self._reset_reference
        if self.is_deepspeed_enabled:  # or stage 3 would write shards, which nothing but DeepSpeed reads
            zero = self.accelerator.state.deepspeed_plugin.deepspeed_config.setdefault("zero_optimization", {})
            zero["stage3_gather_16bit_weights_on_model_save"] = True
        self.remove_callback(PrinterCallback)  # the progress bar and metrics.jsonl are ours
        if isinstance(backend, VLLMBackend):
            backend.engine = engine_of(self.vllm_generation)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The backend samples from the model as it is now. Entered on every process: gathering is collective."""
        if isinstance(self.backend, VLLMBackend):
            assert self.backend.engine is not None
            if self._last_loaded_step != self.state.global_step:  # not yet done by TRL, which does it once a step
                self.vllm_generation.sync_weights()
                self._last_loaded_step = self.state.global_step
            with self.backend.engine.serving():
                yield
            return
        outside = self.backend.model
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            self.backend.model = model
            try:
                yield
            finally:
                self.backend.model = outside

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._reset_inputs = inputs  # rollout_func is handed the prompts only
        outputs: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.ratio:
            outputs.pop("old_per_token_logps", None)  # TRL then takes the policy's own, with its gradient: -A log pi
        roll = self._reset_roll
        log_ratio = self._log_ratio(outputs)
        advantages = self._advantages(outputs["completion_ids"]) * self._shaping(outputs)
        outputs["advantages"] = advantages - self._row_weights("kl") * kl_to_go(log_ratio)
        sums = step_sums(roll.rollouts, roll.advantages, self._reset_first_errors, roll.answers)
        if not token_signal.describes(self.method):
            sums.update(dict.fromkeys(token_signal.step_sums([], []), 0.0))
        sums["kl"], sums["tied"] = float(log_ratio.sum()), float(sum(row.kl > 0 for row in roll.rows))
        self._reset_metrics = {"step": self._reset_step.number, **step_metrics(merge(gather_object([sums])))}
        if mismatch := self._metrics["train"].get("sampling/sampling_logp_difference/mean"):
            self._reset_metrics["mismatch"] = mismatch[-1]
        self.on_step(self._reset_step)
        return outputs

    def _advantages(self, completion_ids: torch.Tensor) -> torch.Tensor:
        """Advantages of every token, [rows, width]; zero on padding."""
        padded = np.zeros(completion_ids.shape)
        for i, row in enumerate(self._reset_roll.rows):
            padded[i, : row.advantage_T.size] = row.advantage_T
        return torch.as_tensor(padded, dtype=torch.float32, device=self.accelerator.device)

    def _shaping(self, outputs: dict[str, Any]) -> torch.Tensor | float:
        """What turns a ratio into p / (p + gamma): its derivative at the policy, gamma p / (p + gamma)^2, per token.

        The gradient of p / (p + gamma) is that factor times the gradient of log p, so at the one on-policy step the
        factor on the advantage gives the very gradient. Rows with gamma = 0 are left alone.
        """
        g = self._row_weights("shaping")
        if not any(gather_object([bool(g.any())])):
            return 1.0
        p = self._log_probs(self.model, outputs).exp()
        return torch.where(g > 0, g * p / (p + g) ** 2, 1.0)

    def _log_ratio(self, outputs: dict[str, Any]) -> torch.Tensor:
        """log pi - log initial model of the trained tokens of rows with a KL weight, [rows, width]; 0 elsewhere."""
        tied = self._row_weights("kl") > 0
        mask = outputs["completion_mask"] * outputs["tool_mask"] * tied
        if not any(gather_object([bool(tied.any())])):
            return mask.float()
        log_p = self._log_probs(self.model, outputs)
        if self._reset_reference is not None:
            log_ref = self._log_probs(self._reset_reference, outputs)
        else:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                log_ref = self._log_probs(self.model, outputs)
        return torch.where(mask > 0, log_p - log_ref, 0.0)

    def _row_weights(self, name: str) -> torch.Tensor:
        """The field `name` of the rows, [rows, 1]."""
        weights = [getattr(row, name) for row in self._reset_roll.rows]
        return torch.tensor(weights, dtype=torch.float32, device=self.accelerator.device)[:, None]

    def _log_probs(self, model: Any, outputs: dict[str, Any]) -> torch.Tensor:
        """log p of every response token, [rows, width], at the sampling temperature, without dropout."""
        ids = torch.cat([outputs["prompt_ids"], outputs["completion_ids"]], dim=1)
        mask = torch.cat([outputs["prompt_mask"], outputs["completion_mask"]], dim=1)
        width = outputs["completion_ids"].shape[1]
        with torch.no_grad(), evaluating(model):
            log_p, _, _ = self._get_per_token_logps_and_entropies(
                model, ids, mask, width, batch_size=self.args.per_device_train_batch_size
            )
        return torch.as_tensor(log_p)

    def _roll_out(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """A method's rows, those of a prompt together; TRL repeats a prompt `num_generations` times, side by side."""
        inputs = self._reset_inputs[:: self.num_generations]
        keys = [DrawKey(seed=self.args.seed, step=int(r["step"]), prompt=int(r["draws"])) for r in inputs]
        roots = [self.simulator.root(self.problems[int(r["index"])]) for r in inputs]
        step = int(inputs[0]["step"])
        with self.sampling():
            roll = self.method.roll(self.simulator, roots, keys)
            begun = time.perf_counter()
            self._reset_first_errors = self.measuring(self.simulator, roll.rollouts, step)
            measuring = time.perf_counter() - begun
        if len(roll.rows) != len(inputs) * self.num_generations:
            raise AssertionError(f"{self.method.name} made {len(roll.rows)} rows of {len(inputs)} prompts")
        self._reset_roll = roll
        self._reset_step = Step(step, roll.rollouts, roll.advantages, measuring)
        return {
            "prompt_ids": [list(row.prompt_ids) for row in roll.rows],
            "completion_ids": [list(row.completion_ids) for row in roll.rows],
            "logprobs": [_sampled_at(row) for row in roll.rows] if isinstance(self.backend, VLLMBackend) else None,
            "env_mask": [row.mask_T.astype(int).tolist() for row in roll.rows],
            "unused": [0.0] * len(roll.rows),
        }

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's micro-batches, those of an update sorted by advantage and length whenever there are new ones."""
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is None or self._buffered_inputs is before:
            return inputs
        size, parts = self.args.gradient_accumulation_steps, self._buffered_inputs
        self._buffered_inputs = [b for i in range(0, len(parts), size) for b in _by_length(parts[i : i + size])]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's loss of the rows that have an advantage; the others have no gradient and only cost a pass.

        TRL's metrics want as many rows from every process, and every process has to join in the backward pass.
        """
        has_advantage = inputs["advantages"].ne(0).any(dim=1)
        rows, kept = len(has_advantage), max(1, *gather_object([int(has_advantage.sum())]))
        first = has_advantage.int().argsort(descending=True, stable=True)[:kept].sort().values
        with _scoring_responses_only(self.accelerator.device):
            loss: torch.Tensor = super().compute_loss(model, _trimmed(_rows(inputs, first)), *args, **kwargs)
        return loss * (kept / rows)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunError(f"the loss became {float(loss)} {self._advice()}")
        return loss

    def check_weights(self) -> None:
        """Raise RunError where a trained weight is not finite, on every process: such weights are never saved."""
        finite = all(bool(_own_part(p).isfinite().all()) for p in self.model.parameters() if p.requires_grad)
        if not all(gather_object([finite])):
            raise RunError(f"the weights became infinite or not a number {self._advice()}")

    def _advice(self) -> str:
        return (
            f"at step {self.state.global_step}; the last good checkpoint is kept in {self.args.output_dir}: start a "
            "new run with a lower --learning-rate, or in float32"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Our metrics in place of TRL's, which describe groups that it did not form."""
        self._metrics["train"].clear()
        for rows in self._logs.values():
            rows.clear()
        updates = self.args.steps_per_generation // self.args.gradient_accumulation_steps
        if "loss" not in logs or self.state.global_step % updates:  # the summary at the end; not a step's last update
            return
        optimiser: dict[str, float | None] = {
            name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs
        }
        row: dict[str, float | None] = {**self._reset_metrics, **optimiser}
        if self.accelerator.is_main_process:
            self.on_log(row)
        Trainer.log(self, {name: value for name, value in row.items() if value is not None}, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL's card would say that its own GRPO trained the model."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint counts only once its last file is written: then its file sizes and hashes are put beside it."""
        self.check_weights()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # each writer of a full disk complains in its own way
            reason = " ".join(str(error).split())[:160]
            raise RunError(
                f"cannot write the checkpoint of step {self.state.global_step}: {reason}; free space, then go on with "
                "--resume from the last whole checkpoint"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / _COMPLETE).write_text(json.dumps(_digests(folder), indent=1), encoding="utf-8")


@contextmanager
def _scoring_responses_only(device: torch.device) -> Iterator[None]:
    """TRL's fused head leaves out positions without a label on a CPU too; it asks `_use_triton` whether it may."""
    before = trl.trainer.utils._use_triton
    if device.type == "cpu":
        trl.trainer.utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = before


def _rows(inputs: dict[str, Any], index: torch.Tensor) -> dict[str, Any]:
    """The rows `index` of a batch; what is not one entry a row is kept as it is."""
    rows = len(inputs["advantages"])
    return {name: x[index] if torch.is_tensor(x) and x.shape[:1] == (rows,) else x for name, x in inputs.items()}


def _by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an update dealt out anew: first those with an advantage, then the others, each from short to long."""
    size = len(batches[0]["advantages"])
    joined = {
        name: torch.cat([b[name] for b in batches]) if torch.is_tensor(x) and x.shape[:1] == (size,) else x
        for name, x in batches[0].items()
    }
    tokens = joined["prompt_mask"].sum(dim=1) + joined["completion_mask"].sum(dim=1)
    silent = joined["advantages"].eq(0).all(dim=1)
    order = (tokens + silent * (tokens.max() + 1)).argsort(stable=True)
    return [_rows(joined, order[i : i + size]) for i in range(0, len(order), size)]


def _trimmed(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch without the columns that are padding in every row: on the left of prompts, on the right of responses."""
    prompt, response = inputs["prompt_mask"], inputs["completion_mask"]
    width = response.shape[1]
    begin, end = prompt.shape[1] - int(prompt.sum(dim=1).max()), max(1, int(response.sum(dim=1).max()))
    trimmed = {name: x[:, :end] if torch.is_tensor(x) and x.shape[1:] == (width,) else x for name, x in inputs.items()}
    return {**trimmed, **{name: inputs[name][:, begin:] for name in ("prompt_ids", "prompt_mask")}}


def kl_to_go(log_ratio: torch.Tensor) -> torch.Tensor:
    """Sums over s >= t of a response's log-ratios log pi(y_s) - log ref(y_s), [rows, width].

    For y ~ pi, sum_t grad log pi(y_t) kl_to_go_t is an unbiased estimate of grad KL(pi || ref): the score function's
    gradient of E sum_s log-ratio_s, without the terms s < t, which have mean zero, and grad log pi(y_s) itself has too.
    So subtracting beta kl_to_go from the advantages of sampled responses is a penalty beta KL. It is 0 at pi = ref.
    """
    return log_ratio.flip(1).cumsum(1).flip(1)


def _say_whole(model: torch.nn.Module) -> None:
    """Tell TRL's head, which gathers what ZeRO-3 has sharded, that every process holds all of this model."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    for weight in model.parameters():
        weight.ds_status = ZeroParamStatus.AVAILABLE  # type: ignore[attr-defined]


def _own_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight: its shard under ZeRO-3, where the weight itself is empty between passes."""
    return getattr(weight, "ds_tensor", weight)


def _sampled_at(row: Row) -> list[float]:
    size = len(row.completion_ids)
    return [math.nan] * size if row.logprob_T is None else [float(x) for x in row.logprob_T]


def _no_reward(unused: list[float], **_: Any) -> list[float]:
    """TRL wants a reward function; the method has scored and compared its rollouts already."""
    return unused


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _COMPLETE)
    return {str(f.relative_to(folder)): file_digest(f) for f in files}


def complete_checkpoints(folder: Path) -> tuple[list[Path], list[Path]]:
    """Checkpoints of a run, newest first: those that are whole, and those that are unfinished or corrupt."""
    named = [f for f in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if f.name.rsplit("-", 1)[1].isdecimal()]
    found = sorted(named, key=lambda f: -int(f.name.rsplit("-", 1)[1]))
    whole = [f for f in found if was_complete(f) and _is_whole(f)]
    return whole, [f for f in found if f not in whole]


def was_complete(folder: Path) -> bool:
    """Whether the checkpoint was once written to its end: if it is not whole now, it is corrupt and not unfinished."""
    return (folder / _COMPLETE).is_file()


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _COMPLETE).read_text(encoding="utf-8")) == _digests(folder))
    except (OSError, ValueError):
        return False
