"""Methods as data: a split, a reset sampler, a seed policy and an advantage estimator over the same groups.

`Method` is Algorithm 2; GRPO, RRPO, SRPO and its kin are settings of it. `llm.baselines` holds what is not. Each
function of `METHODS` makes one method from a `MethodConfig`; deviations from the source are numbered in its docstring.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, get_args

import numpy as np

from cpi.advantages import AdvantageEstimator, LeaveOneOut, MeanBaseline, ZScore
from cpi.draws import DrawKey
from cpi.groups import FirstFailure, Group, IntactBase, Plan, SeedPolicy, Split, collect, group_advantages
from cpi.resets import Cost, Noisy, ResetSampler, Start, UniformWithinEpisode
from llm.baselines import CritiqueGRPO, SCoRe, SegmentTree, SegmentUnit, SegmentValues
from llm.config import ConfigError, option
from llm.generate import InitialBackend, ThoughtSimulator, TransformersBackend
from llm.localize import Asked, Earlier, EntropyLocalizer, SelfLocalizer, ValueLocalizer
from llm.objective import Length, Roll, Row, TrainingMethod, length_factor, trace_row
from llm.thoughts import Prefix, ThoughtTrace

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
    "critique_grpo",
    "dr_grpo",
    "grpo",
    "localizer_rows",
    "oracle_srpo",
    "parse_branching",
    "parse_split",
    "rrpo",
    "score",
    "spo_chain",
    "spo_tree",
    "srpo",
    "tree_rpo",
    "values_from_rollouts",
    "vineppo",
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


def _own(at_hand: Localizers, config: MethodConfig) -> SelfLocalizer:
    """The model's own localiser with the answers that the config asks for; its account starts empty."""
    return replace(at_hand.self_localizer, answers_per_seed=config.answers, spent=Cost(), counts=Counter(), asked={})


def _frozen(at_hand: Localizers, config: MethodConfig) -> SelfLocalizer:
    """The same, asked of the model as it was before training, which training on solutions alone cannot spoil."""
    own = _own(at_hand, config)
    if not isinstance(own.backend, TransformersBackend):
        raise ConfigError(
            "localizer frozen asks the model before training, which vLLM does not hold: use --backend transformers"
        )
    return replace(own, backend=InitialBackend(own.backend))


def _trained(at_hand: Localizers, config: MethodConfig) -> SelfLocalizer:
    """The same, but sampled as rollouts are: an answer that is trained on must be on-policy, and explore."""
    sampling = at_hand.simulator.sampling
    return replace(_own(at_hand, config), temperature=sampling.temperature, top_p=sampling.top_p)


def _noisy(at_hand: Localizers, config: MethodConfig) -> Noisy:
    """The task's oracle, made worse on purpose."""
    if not 0.0 <= config.noise_exact <= 1.0:
        raise ConfigError(f"noise_exact must be a probability, got {config.noise_exact}")
    if config.noise_shift == 0:
        raise ConfigError(
            "noise_shift must not be 0: give -1 for a thought too early, 1 for one too late, or --localizer oracle"
        )
    return Noisy(at_hand.oracle, config.noise_exact, {config.noise_shift: 1.0})


LOCALIZERS: dict[str, Callable[[Localizers, MethodConfig], ResetSampler]] = {
    "self": _own,
    "frozen": _frozen,
    "trained": _trained,
    "oracle": lambda at_hand, config: at_hand.oracle,
    "random": lambda at_hand, config: UniformWithinEpisode(),
    "value": lambda at_hand, config: ValueLocalizer(at_hand.simulator, config.continuations),
    "entropy": lambda at_hand, config: EntropyLocalizer(),
    "noisy": _noisy,
}


@dataclass(frozen=True)
class Method:
    """Algorithm 2 with its choices: the buffer (`plan`), how rewards are compared, and how responses are weighed.

    trained: the plan's sampler, if its answers are trained on as well (`localizer_rows`).
    """

    name: str
    plan: Plan
    estimator: AdvantageEstimator = ESTIMATORS["zscore"]
    pooled: bool = False
    length: Length = "own"
    prefix_mask: bool = True
    trained: SelfLocalizer | None = None
    needs_reference: bool = False
    remark: ClassVar[None] = None

    @property
    def rows_per_prompt(self) -> int:
        return self.plan.split.total + (self.trained.answers_per_seed if self.trained else 0)

    def roll(self, simulator: ThoughtSimulator, roots: Sequence[Prefix], keys: Sequence[DrawKey]) -> Roll:
        before = self._answers()
        rollouts = collect(simulator, roots, keys, self.plan)
        advantages = group_advantages(rollouts.groups, self.estimator, pooled=self.pooled)
        rows: list[list[Row]] = [[] for _ in roots]
        for group, group_row in zip(rollouts.groups, advantages, strict=True):
            rows[group.prompt] += [
                self._row(t, float(a), simulator) for t, a in zip(group.episodes, group_row, strict=True)
            ]
        if self.trained:
            resets = [g for g in rollouts.groups if g.kind == "reset"]
            for prompt, own in enumerate(rows):
                own += localizer_rows(
                    [g for g in resets if g.prompt == prompt], self.trained, self.estimator, own[0], self.length
                )
        return Roll([r for own in rows for r in own], rollouts, advantages, self._answers() - before)

    def _row(self, trace: ThoughtTrace, advantage: float, simulator: ThoughtSimulator) -> Row:
        return trace_row(trace, advantage, simulator.sampling.max_tokens, self.length, self.prefix_mask)

    def _answers(self) -> Counter[str]:
        """How often the localiser's answers have had each parse status so far."""
        return Counter(getattr(self.plan.sampler, "counts", {}))


def localizer_rows(
    resets: Sequence[Group[ThoughtTrace]],
    localizer: SelfLocalizer,
    estimator: AdvantageEstimator,
    filler: Row,
    length: Length = "own",
) -> list[Row]:
    """Rows for the answers about one seed, rewarded by what the suffixes tell.

    The reward of an answer is the mean outcome of the reset group at the cut that it names, and 0 if it names none. An
    answer whose cut no group tried is not compared. Answers about one seed are continuations of one prompt, so
    they are compared like any group. There is always a row for every answer; those without a comparison repeat
    `filler` with nothing in it trained. An answer inherits nothing, so its own length is its whole length.
    """
    nothing = replace(filler, mask_T=np.zeros_like(filler.mask_T), advantage_T=np.zeros_like(filler.advantage_T))
    outcome = {g.k: float(np.mean([e.outcome for e in g.episodes])) for g in resets}
    answers = localizer.asked[resets[0].seed.key] if resets and resets[0].seed else []
    tried = [a for a in answers if a.answer.k is None or a.answer.k in outcome]
    if len(tried) < 2:
        return [nothing] * localizer.answers_per_seed
    rewards = [0.0 if a.answer.k is None else outcome[a.answer.k] for a in tried]
    (advantages,) = estimator([rewards])
    longest = localizer.max_tokens
    rows = [_answer_row(a, float(advantage), length, longest) for a, advantage in zip(tried, advantages, strict=True)]
    return rows + [nothing] * (localizer.answers_per_seed - len(rows))


def _answer_row(asked: Asked, advantage: float, length: Length, longest: int) -> Row:
    size = len(asked.answer_ids)
    mask = np.ones(size, dtype=np.bool_)
    advantage_T = np.full(size, advantage * length_factor(length, size, size, longest))
    return Row(asked.prompt_ids, asked.answer_ids, mask, advantage_T, logprob_T=np.array(asked.logprobs))


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


def _in_rounds(split: Split, config: MethodConfig) -> Split:
    try:
        return replace(split, rounds=config.rounds)
    except ValueError as error:
        raise ConfigError(f"{error}: for --rounds 2 give a split such as 4/2+2, not {config.split}") from error


def _algorithm_2(config: MethodConfig, sampler: ResetSampler) -> Method:
    """The method that resets where `sampler` says, everything else as configured."""
    split = _in_rounds(parse_split(config.split), config)
    if not split.reset:
        raise ConfigError(f"method {config.method} needs a reset group: give a split such as 4/4, not {config.split}")
    if config.share_seed and len(split.reset) < 2:
        raise ConfigError(f"share_seed is for two or more reset groups: give a split such as 4/2+2, not {config.split}")
    if not split.base and config.seed_policy != "first-failure":
        raise ConfigError(
            f"seed policy {config.seed_policy} takes its seed from a base group: give a split such as 4/4, "
            f"not {config.split}"
        )
    seeds = SEED_POLICIES[config.seed_policy](config.share_seed)
    cuts = Earlier(sampler, config.margin) if config.margin else sampler
    return _weighted(config, Plan(split, cuts, seeds))


def _weighted(config: MethodConfig, plan: Plan) -> Method:
    length: Length = config.length  # type: ignore[assignment]  # its choices are checked by llm.config
    return Method(
        name=config.method,
        plan=plan,
        estimator=ESTIMATORS[config.estimator],
        pooled=config.pooled,
        length=length,
        prefix_mask=config.prefix_mask,
    )


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
    over all rollouts of the batch, the paper's sum over groups up to a constant factor, which Adam ignores but for
    its epsilon and a clip of the gradient's norm.
    """
    return _algorithm_2(config, UniformWithinEpisode())


def srpo(config: MethodConfig, localizers: Localizers) -> Method:
    """SRPO (arXiv 2605.25507, Algorithm 2): the cut is the model's own answer to "which step is the first wrong one".

    Deviations: (1) and (2) as `rrpo`; (3) an answer that cannot be parsed is no reset: the prompt's slots become one
    plain GRPO group (the authors' release resets to step 1).

    Other values of ``localizer`` put another sampler in the model's place (`LOCALIZERS`). "noisy" is the task's oracle,
    wrong by design (`cpi.resets.Noisy`). "frozen" asks the model as it was before training. "trained" is the paper's
    open direction: the model is asked `answers` times about one seed, the reset groups try distinct ones of its
    answers, and the answers are trained on as well (`localizer_rows`).
    """
    sampler = LOCALIZERS[config.localizer](localizers, config)
    method = replace(_algorithm_2(config, sampler), needs_reference=config.localizer == "frozen")
    if config.localizer != "trained" or not isinstance(sampler, SelfLocalizer):
        return method
    several = config.share_seed and len(method.plan.split.reset) > 1 and config.rounds == 1
    if config.answers < 2 or not several or config.margin:
        raise ConfigError(
            "localizer trained compares answers about one seed: give --answers 4 --share-seed and a split with two "
            "reset groups in one round, such as 4/2+2, and no margin"
        )
    return replace(method, trained=sampler)


def oracle_srpo(config: MethodConfig, localizers: Localizers) -> Method:
    """SRPO with the task's true first wrong thought in place of the model's answer: the upper end of localisation."""
    return _algorithm_2(config, localizers.oracle)


def dr_grpo(config: MethodConfig, localizers: Localizers) -> Method:
    """Dr. GRPO (arXiv 2503.20783): GRPO with r - mean, not divided by the std, and a constant length normaliser.

    Deviations: (1) of `grpo`; (2) the constant is the longest response allowed.
    """
    return replace(grpo(config, localizers), estimator=ESTIMATORS["mean"], length="constant")


def vineppo(config: MethodConfig, localizers: Localizers) -> SegmentValues:
    """`llm.baselines.SegmentValues` on all thoughts of as many rollouts as the split has slots."""
    return SegmentValues(config.method, parse_split(config.split).total, config.continuations)


def spo_chain(config: MethodConfig, localizers: Localizers) -> SegmentValues:
    """The same on segments of `interval` tokens of low probability each."""
    return replace(vineppo(config, localizers), max_prob=0.9, interval=config.interval)


def spo_tree(config: MethodConfig, localizers: Localizers) -> SegmentTree:
    """`llm.baselines.SegmentTree` with r - mean among siblings, on tokens of low probability."""
    branching = parse_branching(config.branching)
    unit: SegmentUnit = config.segment_unit  # type: ignore[assignment]  # its choices are checked by llm.config
    return SegmentTree(config.method, branching, config.segment, ESTIMATORS["mean"], max_prob=0.9, unit=unit)


def tree_rpo(config: MethodConfig, localizers: Localizers) -> SegmentTree:
    """`llm.baselines.SegmentTree` with (r - mean)/std among siblings, on all tokens."""
    return replace(spo_tree(config, localizers), estimator=ESTIMATORS["zscore"], max_prob=1.0)


def critique_grpo(config: MethodConfig, localizers: Localizers) -> CritiqueGRPO:
    """`llm.baselines.CritiqueGRPO`; half the slots are originals, so with their refinements it stays in the budget."""
    return CritiqueGRPO(config.method, _half(config))


def score(config: MethodConfig, localizers: Localizers) -> SCoRe:
    """`llm.baselines.SCoRe`; two slots make a pair of attempts."""
    for name in ("score_stage1_steps", "score_beta1", "score_beta2"):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    return SCoRe(
        config.method,
        _half(config),
        stage1_steps=config.score_stage1_steps,
        beta1=config.score_beta1,
        beta2=config.score_beta2,
    )


def _half(config: MethodConfig) -> int:
    total = parse_split(config.split).total
    if total < 4 or total % 2:
        raise ConfigError(f"method {config.method} halves the slots: give a split of 4, 6, 8, ..., not {config.split}")
    return total // 2


def parse_branching(text: str) -> tuple[int, ...]:
    """The widths of a tree's levels, such as ``2x4`` or ``6x6x6``. Raises ConfigError for anything else."""
    if not re.fullmatch(r"\d{1,3}(x\d{1,3})+", text) or min(widths := tuple(map(int, text.split("x")))) < 2:
        raise ConfigError(f"branching must be two or more widths of at least 2, such as 2x4, got {text!r}")
    return widths


METHODS: dict[str, Callable[[MethodConfig, Localizers], TrainingMethod]] = {
    "grpo": grpo,
    "rrpo": rrpo,
    "srpo": srpo,
    "oracle-srpo": oracle_srpo,
    "dr-grpo": dr_grpo,
    "vineppo": vineppo,
    "spo-chain": spo_chain,
    "spo-tree": spo_tree,
    "treerpo": tree_rpo,
    "critique-grpo": critique_grpo,
    "score": score,
}


@dataclass(frozen=True)
class MethodConfig:
    """What makes one method another; the options of every command that trains."""

    method: str = option("srpo", "How rollouts, resets and advantages are made.", tuple(METHODS))
    split: str = option(
        "1x4",
        f"Layout of a prompt's slots: {', '.join(SPLITS)}, or sizes of base/reset groups such as 4/2+2, /4+4 or 8. "
        "grpo takes all slots as one group.",
    )
    rounds: int = option(
        1,
        "Rounds of resets, each with its share of the reset groups: a later one re-enters failed suffixes of the one "
        "before.",
    )
    seed_policy: str = option(
        "first-failure",
        "Which failed attempt is re-entered: the first (the paper's, which biases the base group), any of an intact "
        "base group, or the one whose cut is latest.",
        tuple(SEED_POLICIES),
    )
    share_seed: bool = option(False, "All reset groups of a prompt re-enter one seed, at distinct cuts.")
    localizer: str = option("self", "What says where srpo cuts.", tuple(LOCALIZERS))
    noise_exact: float = option(0.5, "Localizer noisy: the probability that it names the task's first wrong thought.")
    noise_shift: int = option(
        -1, "Localizer noisy: by how many thoughts it is off where it errs; negative is too early, positive too late."
    )
    margin: int = option(0, "Thoughts by which a reset goes back further than the localiser says.")
    answers: int = option(1, "Localisation answers asked for each seed, by localizers self, frozen and trained.")
    continuations: int = option(
        4, "Continuations from each thought or segment for Monte Carlo values: localizer value, vineppo, spo-chain."
    )
    estimator: str = option("zscore", "How rewards of a group become advantages.", tuple(ESTIMATORS))
    pooled: bool = option(False, "Compare all groups of a prompt together.")
    length: str = option(
        "own",
        "What a response's loss is divided by: its trained tokens, its whole length, or the longest length.",
        get_args(Length),
    )
    branching: str = option("2x4", "Widths of the levels of the tree of spo-tree and treerpo.")
    segment: int = option(2, "Thoughts, or tokens, between two branchings of that tree.")
    segment_unit: str = option("thoughts", "What segment counts; SPO counts tokens.", get_args(SegmentUnit))
    interval: int = option(5, "Cut points, that is tokens of probability below 0.9, in a segment of spo-chain.")
    score_stage1_steps: int = option(10, "Steps of score's stage I, which trains second attempts; 0 for none.")
    score_beta1: float = option(0.01, "Weight of score's KL to the initial model, on both attempts and in both stages.")
    score_beta2: float = option(0.1, "Weight of the further KL that holds first attempts in stage I.")
    prefix_mask: bool = option(True, "Hide the shared prefix of reset groups from the loss.")


_GROUPS = frozenset({"split", "estimator", "pooled", "length"})
_RESETS = _GROUPS | {"rounds", "seed_policy", "share_seed", "margin", "prefix_mask"}
_TREE = frozenset({"branching", "segment", "segment_unit"})
_USED: dict[str, frozenset[str]] = {
    "grpo": _GROUPS,
    "rrpo": _RESETS,
    "srpo": _RESETS | {"localizer", "noise_exact", "noise_shift", "answers", "continuations"},
    "oracle-srpo": _RESETS,
    "dr-grpo": frozenset({"split", "pooled"}),
    "vineppo": frozenset({"split", "continuations"}),
    "spo-chain": frozenset({"split", "continuations", "interval"}),
    "spo-tree": _TREE,
    "treerpo": _TREE,
    "critique-grpo": frozenset({"split"}),
    "score": frozenset({"split", "score_stage1_steps", "score_beta1", "score_beta2"}),
}
"""The options of `MethodConfig` that a method looks at."""
_LOCALIZERS_OF = {
    "noise_exact": ("noisy",),
    "noise_shift": ("noisy",),
    "answers": ("self", "frozen", "trained"),
    "continuations": ("value",),
}
"""The localizers of srpo that look at an option."""


def asks_the_model(config: MethodConfig) -> bool:
    """Whether a model is asked about whole responses, which takes room beyond them."""
    return config.method == "srpo" and config.localizer in ("self", "frozen", "trained")


def values_from_rollouts(config: MethodConfig) -> bool:
    """Whether values are estimated by sampling from many prefixes at once."""
    return config.method in ("vineppo", "spo-chain") or (config.method == "srpo" and config.localizer == "value")


def _check_used(config: MethodConfig) -> None:
    """An option that the method does not look at must be left at its default: it would be ignored without a word."""
    used = _USED[config.method] | {"method"}
    for field in fields(MethodConfig):
        if field.name not in used and getattr(config, field.name) != field.default:
            users = ", ".join(method for method, names in _USED.items() if field.name in names)
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(f"method {config.method} does not use {flag}: leave it out, or take one of {users}")
    for name, localizers in _LOCALIZERS_OF.items() if config.method == "srpo" else ():
        if config.localizer not in localizers and getattr(config, name) != getattr(MethodConfig, name):
            raise ConfigError(
                f"localizer {config.localizer} does not use --{name.replace('_', '-')}: leave it out, or take "
                f"{' or '.join(localizers)}"
            )


def build_method(config: MethodConfig, localizers: Localizers) -> TrainingMethod:
    """The method of a config. Raises ConfigError where its settings do not fit together."""
    _check_used(config)
    if config.margin < 0:
        raise ConfigError(f"margin must not be negative, got {config.margin}")
    for name in ("answers", "continuations", "segment", "interval"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    return METHODS[config.method](config, localizers)
