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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpi.groups import Group
from llm.thoughts import ThoughtTrace

__all__ = ["KINDS", "Kind", "TokenSignal", "describes", "roll_signal", "step_ratios", "step_sums", "summary"]

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


def describes(method: Any) -> bool:
    """Whether g is the signal of the method's loss: one that weighs a rollout by the tokens that it sampled itself."""
    return getattr(method, "length", None) == "own"


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
