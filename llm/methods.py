"""Methods as data: a split, a reset sampler, a seed policy and an advantage estimator over the same groups.

Each function returns a `Method`. Deviations from the source are numbered in its docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpi.advantages import AdvantageEstimator, ZScore
from cpi.groups import FirstFailure, Plan, SeedPolicy, Split
from cpi.resets import ResetSampler, Start, UniformWithinEpisode

__all__ = ["METHODS", "SPLITS", "Localizers", "Method", "grpo", "oracle_srpo", "rrpo", "srpo"]

PAPER_ZSCORE = ZScore(ddof=0, eps=0.0)

SPLITS = {
    "1x4": Split((4,), (4,)),
    "2x4": Split((), (4, 4)),
    "1x8": Split((), (8,)),
    "base8": Split((8,), ()),
    "base4+4": Split((4, 4), ()),
}


@dataclass(frozen=True)
class Method:
    """What distinguishes one method from another. Everything else (loss, optimiser, sampling) is common to all."""

    name: str
    plan: Plan
    estimator: AdvantageEstimator = PAPER_ZSCORE


@dataclass(frozen=True)
class Localizers:
    """The localisers at hand: the model itself, and the task's oracle."""

    self_localizer: ResetSampler
    oracle: ResetSampler


def grpo(split: Split, seeds: SeedPolicy, localizers: Localizers) -> Method:
    """GRPO (arXiv 2402.03300) on thoughts: all slots are base rollouts of one group, 8 of them for the split 1x4.

    Deviations: (1) no clipping and no KL term, one on-policy step, as the paper on resets runs it; (2) population std.
    """
    base = split.base if not split.reset else (split.total,)
    return Method("grpo", Plan(Split(base, ()), Start()))


def rrpo(split: Split, seeds: SeedPolicy, localizers: Localizers) -> Method:
    """RRPO (arXiv 2605.25507, Algorithm 2 with a random reset): the cut is uniform over the thoughts of the seed.

    Deviations: (1) an unfinished last thought of a truncated response counts as a thought; (2) the loss is the mean
    over all rollouts of the batch, the paper's sum over groups up to a constant factor, which Adam ignores.
    """
    return Method("rrpo", Plan(split, UniformWithinEpisode(), seeds))


def srpo(split: Split, seeds: SeedPolicy, localizers: Localizers) -> Method:
    """SRPO (arXiv 2605.25507, Algorithm 2): the cut is the model's own answer to "which step is the first wrong one".

    Deviations: (1) and (2) as `rrpo`; (3) an answer that cannot be parsed is no reset: the prompt's slots become one
    plain GRPO group (the authors' release resets to step 1).
    """
    return Method("srpo", Plan(split, localizers.self_localizer, seeds))


def oracle_srpo(split: Split, seeds: SeedPolicy, localizers: Localizers) -> Method:
    """SRPO with the task's true first wrong thought in place of the model's answer: the upper end of localisation."""
    return Method("oracle-srpo", Plan(split, localizers.oracle, seeds))


METHODS: dict[str, Callable[[Split, SeedPolicy, Localizers], Method]] = {
    "grpo": grpo,
    "rrpo": rrpo,
    "srpo": srpo,
    "oracle-srpo": oracle_srpo,
}

SEED_POLICIES: dict[str, SeedPolicy] = {"first-failure": FirstFailure()}
