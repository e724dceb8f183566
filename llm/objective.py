"""What a method hands the trainer: rows of the loss, with a weight for every token.

Whatever a method samples, and however it compares, it ends as rows (context, response, trained tokens, advantages) of

    (1/N) sum_i (1/T_i) sum_{t in M_i} A_it log pi(y_it | context_i, y_i,<t),

N the number of rows and T_i = |M_i| the number of trained tokens of row i. This is the paper's per-sequence mean and
TRL's loss type ``grpo``. Every other normaliser is a factor on the advantages (`length_factor`), so the trainer has one
loss. A method gives the same number of rows for every prompt, those of a prompt side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cpi.draws import DrawKey
from cpi.groups import Rollouts
from llm.generate import ThoughtSimulator
from llm.thoughts import Prefix, ThoughtTrace

__all__ = ["Length", "Roll", "Row", "TrainingMethod", "length_factor", "own_logprobs", "own_tokens", "trace_row"]

Length = Literal["own", "whole", "constant"]


@dataclass(frozen=True)
class Row:
    """One row of the loss: token ids, which response tokens are trained on [T], and their advantages [T].

    shaping: 0 for a response of the policy itself; gamma > 0 for one sampled in another context, whose tokens enter
    the objective as p / (p + gamma) in place of the importance ratio (Critique-GRPO).

    kl: the weight of a penalty KL(pi(. | context) || initial model) on the objective, estimated on this response, which
    the policy must have sampled in this context; 0 for none. It is on the scale of the advantages, so a factor on them
    belongs on it too.
    logprob_T: the log-probabilities [T] that the tokens were sampled with, nan where they are not known; None: nowhere.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mask_T: NDArray[np.bool_]
    advantage_T: NDArray[np.float64]
    shaping: float = 0.0
    kl: float = 0.0
    logprob_T: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Roll:
    """A step of a method on this process.

    rows: for the loss. rollouts and advantages (one array per group): for reports. answers: how often the localiser's
    answers in this step had each parse status.
    """

    rows: list[Row]
    rollouts: Rollouts[ThoughtTrace]
    advantages: list[NDArray[np.float64]]
    answers: Mapping[str, int] = field(default_factory=dict)


class TrainingMethod(Protocol):
    """A method: its name, how many rows it gives a prompt, and a step of it."""

    @property
    def name(self) -> str: ...

    @property
    def rows_per_prompt(self) -> int: ...

    @property
    def needs_reference(self) -> bool:
        """Whether the initial model must be kept: rows may have a KL weight, or its answers are asked for."""
        ...

    @property
    def remark(self) -> str | None:
        """What it says about an attempt that it puts into the context of another one; None if it never does."""
        ...

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        """Sample, compare, and give the rows: `keys[i]` fixes seed, step and prompt of all draws for `roots[i]`."""
        ...


def own_tokens(trace: ThoughtTrace) -> NDArray[np.bool_]:
    """The tokens [T] of a response that it sampled itself, and did not inherit from a reset prefix."""
    return np.arange(len(trace.ids)) >= trace.inherited_tokens


def own_logprobs(trace: ThoughtTrace) -> NDArray[np.float64]:
    """The log-probabilities [T] with which a response was sampled, nan on what it inherited."""
    return np.concatenate([np.full(trace.inherited_tokens, np.nan), trace.logprobs])


def length_factor(length: Length, trained: int, whole: int, longest: int) -> float:
    """The factor that turns 1/T_i of the trained tokens into another normaliser.

    "own": 1/T_i itself (the paper). "whole": 1/(length of the whole response, inherited prefix included), so a short
    suffix weighs less. "constant": 1/(longest possible response), the same for all rows (Dr. GRPO).
    """
    return {"own": 1.0, "whole": trained / whole, "constant": trained / longest}[length]


def trace_row(
    trace: ThoughtTrace, advantage: float, longest: int, length: Length = "own", prefix_mask: bool = True
) -> Row:
    """The row of one response with one advantage; ``prefix_mask=False`` trains on the inherited prefix too."""
    mask = own_tokens(trace) if prefix_mask else np.ones(len(trace.ids), dtype=np.bool_)
    factor = length_factor(length, int(mask.sum()), mask.size, longest)
    advantage_T = np.where(mask, advantage * factor, 0.0)
    return Row(trace.prompt_ids, trace.ids, mask, advantage_T, logprob_T=own_logprobs(trace))
