"""Methods as data: a split, a reset sampler, a seed policy and an advantage estimator over the same groups.

`Method` is Algorithm 2; GRPO, RRPO, SRPO and its kin are settings of it. `llm.baselines` holds what is not. Each
function of `METHODS` makes one method from a `MethodConfig`; deviations from the source are numbered in its docstring.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from cpi.advantages import AdvantageEstimator, LeaveOneOut, MeanBaseline, ZScore
from cpi.draws import DrawKey
from cpi.groups import FirstFailure, IntactBase, Plan, SeedPolicy, Split, collect, group_advantages
from cpi.resets import ResetSampler, Start, UniformWithinEpisode
from llm.config import ConfigError, option
from llm.generate import ThoughtSimulator
from llm.localize import EntropyLocalizer, SelfLocalizer, ValueLocalizer
from llm.objective import Length, Roll, TrainingMethod, trace_row
from llm.thoughts import Prefix

__all__ = [
    "ESTIMATORS",
    "LOCALIZERS",
    "METHODS",
    "SEED_POLICIES",
    "SPLITS",
    "Localizers",
    "Method",
    "MethodConfig",
    "build_method",
    "grpo",
    "oracle_srpo",
    "parse_split",
    "rrpo",
    "srpo",
]

SPLITS = {
    "1x4": Split((4,), (4,)),
    "2x4": Split((), (4, 4)),
    "1x8": Split((), (8,)),
    "base8": Split((8,), ()),
    "base4+4": Split((4, 4), ()),
}

ESTIMATORS: dict[str, AdvantageEstimator] = {
    "zscore": ZScore(ddof=0, eps=0.0),
    "zscore-bessel": ZScore(ddof=1, eps=1e-4),
    "mean": MeanBaseline(),
    "loo": LeaveOneOut(),
}

SEED_POLICIES: dict[str, Callable[[bool], SeedPolicy]] = {
    "first-failure": lambda share: FirstFailure(share_seed=share),
    "intact": lambda share: IntactBase("uniform", share_seed=share),
    "furthest": lambda share: IntactBase("furthest", share_seed=share),
}


@dataclass(frozen=True)
class Localizers:
    """What localisers are made of: the model's own, the task's oracle, and the simulator for Monte Carlo values."""

    self_localizer: SelfLocalizer
    oracle: ResetSampler
    simulator: ThoughtSimulator


LOCALIZERS: dict[str, Callable[[Localizers, int], ResetSampler]] = {
    "self": lambda at_hand, continuations: at_hand.self_localizer,
    "oracle": lambda at_hand, continuations: at_hand.oracle,
    "random": lambda at_hand, continuations: UniformWithinEpisode(),
    "value": lambda at_hand, continuations: ValueLocalizer(at_hand.simulator, continuations),
    "entropy": lambda at_hand, continuations: EntropyLocalizer(),
}


@dataclass(frozen=True)
class Method:
    """Algorithm 2 with its choices: the buffer (`plan`), how rewards are compared, and how responses are weighed."""

    name: str
    plan: Plan
    estimator: AdvantageEstimator = ESTIMATORS["zscore"]
    pooled: bool = False
    length: Length = "own"
    prefix_mask: bool = True

    @property
    def rows_per_prompt(self) -> int:
        return self.plan.split.total

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        before = self._answers()
        rollouts = collect(simulator, roots, keys, self.plan)
        advantages = group_advantages(rollouts.groups, self.estimator, pooled=self.pooled)
        longest = simulator.sampling.max_tokens
        rows = [
            trace_row(trace, float(a), longest, self.length, self.prefix_mask)
            for group, group_row in zip(rollouts.groups, advantages, strict=True)
            for trace, a in zip(group.episodes, group_row, strict=True)
        ]
        return Roll(rows, rollouts, advantages, self._answers() - before)

    def _answers(self) -> Counter[str]:
        """How often the localiser's answers have had each parse status so far."""
        return Counter(getattr(self.plan.sampler, "counts", {}))


_SIZES = r"(\d+(?:\+\d+)*)?"


def parse_split(text: str) -> Split:
    """A layout from its name in `SPLITS` or from sizes: base groups, then after ``/`` the reset groups.

    ``4/4`` is the paper's 1x4, ``/4+4`` its 2x4, ``4/2+2`` one base group and two resets, ``8`` GRPO. Raises
    ConfigError for anything else, and for a group of fewer than two rollouts.
    """
    if text in SPLITS:
        return SPLITS[text]
    match = re.fullmatch(f"{_SIZES}(?:/{_SIZES})?", text)
    if match is None or not any(match.groups()):
        raise ConfigError(f"unknown split {text!r}; give one of {', '.join(SPLITS)}, or BASE/RESET sizes such as 4/2+2")
    base, reset = (tuple(int(n) for n in part.split("+")) if part else () for part in match.groups())
    try:
        return Split(base, reset)
    except ValueError as error:
        raise ConfigError(f"split {text}: {error}") from error


def _algorithm_2(config: MethodConfig, sampler: ResetSampler) -> Method:
    """The method that resets where `sampler` says, everything else as configured."""
    split = parse_split(config.split)
    if not split.reset:
        raise ConfigError(f"method {config.method} needs a reset group: give a split such as 4/4, not {config.split}")
    if not split.base and config.seed_policy != "first-failure":
        raise ConfigError(
            f"seed policy {config.seed_policy} takes its seed from a base group: give a split such as 4/4, "
            f"not {config.split}"
        )
    seeds = SEED_POLICIES[config.seed_policy](config.share_seed)
    return _weighted(config, Plan(split, sampler, seeds))


def _weighted(config: MethodConfig, plan: Plan) -> Method:
    length: Length = config.length  # type: ignore[assignment]  # its choices are checked by llm.config
    return Method(config.method, plan, ESTIMATORS[config.estimator], config.pooled, length, config.prefix_mask)


def grpo(config: MethodConfig, localizers: Localizers) -> Method:
    """GRPO (arXiv 2402.03300) on thoughts: all slots are base rollouts of one group, 8 of them for the split 1x4.

    A split of base groups only keeps its groups: ``4+4`` is the control for the split itself.
    Deviations: (1) no KL term, and no clipping unless asked for; one on-policy step, as the paper on resets runs it;
    (2) population std.
    """
    split = parse_split(config.split)
    return _weighted(config, Plan(Split((split.total,), ()) if split.reset else split, Start()))


def rrpo(config: MethodConfig, localizers: Localizers) -> Method:
    """RRPO (arXiv 2605.25507, Algorithm 2 with a random reset): the cut is uniform over the thoughts of the seed.

    Deviations: (1) an unfinished last thought of a truncated response counts as a thought; (2) the loss is the mean
    over all rollouts of the batch, the paper's sum over groups up to a constant factor, which Adam ignores.
    """
    return _algorithm_2(config, UniformWithinEpisode())


def srpo(config: MethodConfig, localizers: Localizers) -> Method:
    """SRPO (arXiv 2605.25507, Algorithm 2): the cut is the model's own answer to "which step is the first wrong one".

    Deviations: (1) and (2) as `rrpo`; (3) an answer that cannot be parsed is no reset: the prompt's slots become one
    plain GRPO group (the authors' release resets to step 1). Other values of ``localizer`` put another sampler in the
    model's place (`LOCALIZERS`).
    """
    return _algorithm_2(config, LOCALIZERS[config.localizer](localizers, config.continuations))


def oracle_srpo(config: MethodConfig, localizers: Localizers) -> Method:
    """SRPO with the task's true first wrong thought in place of the model's answer: the upper end of localisation."""
    return _algorithm_2(config, localizers.oracle)


METHODS: dict[str, Callable[[MethodConfig, Localizers], TrainingMethod]] = {
    "grpo": grpo,
    "rrpo": rrpo,
    "srpo": srpo,
    "oracle-srpo": oracle_srpo,
}


@dataclass(frozen=True)
class MethodConfig:
    """What makes one method another; the options of every command that trains."""

    method: str = option("srpo", "Method.", tuple(METHODS))
    split: str = option(
        "1x4",
        f"Layout of a prompt's slots: {', '.join(SPLITS)}, or sizes of base/reset groups such as 4/2+2, /4+4 or 8. "
        "grpo takes all slots as one group.",
    )
    seed_policy: str = option(
        "first-failure",
        "Which failed attempt is re-entered: the first (the paper's, which biases the base group), any of an intact "
        "base group, or the one whose cut is latest.",
        tuple(SEED_POLICIES),
    )
    share_seed: bool = option(False, "All reset groups of a prompt re-enter one seed, at distinct cuts.")
    localizer: str = option("self", "What says where srpo cuts.", tuple(LOCALIZERS))
    continuations: int = option(4, "Continuations from each thought where values are estimated by Monte Carlo.")
    estimator: str = option("zscore", "How rewards of a group become advantages.", tuple(ESTIMATORS))
    pooled: bool = option(False, "Compare all groups of a prompt together.")
    length: str = option(
        "own",
        "What a response's loss is divided by: its trained tokens, its whole length, or the longest length.",
        get_args(Length),
    )
    prefix_mask: bool = option(True, "Hide the shared prefix of reset groups from the loss.")


def build_method(config: MethodConfig, localizers: Localizers) -> TrainingMethod:
    """The method of a config. Raises ConfigError where its settings do not fit together."""
    if config.localizer != "self" and config.method != "srpo":
        raise ConfigError(f"method {config.method} has no choice of localizer: use --method srpo --localizer ...")
    if config.continuations < 1:
        raise ConfigError(f"continuations must be at least 1, got {config.continuations}")
    return METHODS[config.method](config, localizers)
