"""Algorithm 2's rollout buffer, for any `Simulator`: base groups, a seed, a reset, reset groups, and what it all cost.

A *group* is a set of iid continuations of one prefix; advantages compare inside a group. A prompt's slots are laid out
by a `Split`: base groups continue the prompt itself, reset groups a prefix of a failed attempt, the *seed*.

    1. base      sample from the prompt; find the seed among the failures (`FirstFailure`, `IntactBase`)
    2. localise  ask the `ResetSampler` for the cuts of all seeds of all prompts, in one call
    3. reset     sample all reset groups of all prompts, in one batch

With `Split.rounds` above 1 the reset groups come in rounds: 2 and 3 are done again for failed suffixes of the round
before. Each phase of each round is one batch over all prompts. A prompt without a failure, or whose sampler says "no
reset", falls back to plain GRPO: its reset slots become base rollouts and all its slots form one group, drawn in the
same batch as the reset groups of the others.

Every rollout is drawn from a key (seed, step, prompt, phase, slot), so the buffer does not depend on what else is in
the batch. `Account` counts all that was sampled, thrown-away seeds included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cpi.advantages import AdvantageEstimator
from cpi.draws import DrawKey, uniforms
from cpi.episodes import Episode
from cpi.resets import ResetSampler, draw_cuts
from cpi.simulate import Simulator

__all__ = [
    "Account",
    "FirstFailure",
    "Group",
    "IntactBase",
    "Localisation",
    "Phase",
    "Plan",
    "Rollouts",
    "SeedPolicy",
    "Split",
    "collect",
    "failed",
    "group_advantages",
]

PrefixT = TypeVar("PrefixT")
EpisodeT = TypeVar("EpisodeT", bound=Episode[Any])


class Phase(IntEnum):
    """The phase of a step, as a coordinate of its draws."""

    BASE = 0
    PICK = 1
    LOCALISE = 2
    CUT = 3
    RESET = 4
    EVALUATE = 5
    START = 6
    VALUE = 7
    REVISE = 8


def failed(episode: Episode[Any]) -> bool:
    """A failed attempt: the verifier gave less than full marks."""
    return episode.outcome < 1.0


@dataclass(frozen=True)
class Split:
    """How a prompt's slots are laid out: the sizes of its base groups and of its reset groups.

    ``Split((4,), (4,))`` is the paper's 1x4, ``Split((), (4, 4))`` its 2x4, ``Split((), (8,))`` its 1x8;
    ``Split((8,), ())`` is GRPO, and ``Split((4, 4), ())`` GRPO with two groups, the control for the split itself.

    rounds: the reset groups are dealt out in as many equal rounds. A group of a later round re-enters a failed suffix
    of the group in its place one round before: ``Split((4,), (2, 2), rounds=2)`` samples two suffixes of the seed, and
    two of a failed one among these. Where there is no failure, or no cut for it, the group re-enters the first seed
    instead, as it would in one round: at another cut for as long as the seed's row has mass left.
    """

    base: tuple[int, ...]
    reset: tuple[int, ...]
    rounds: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= max(len(self.reset), 1) or len(self.reset) % self.rounds:
            raise ValueError(f"{len(self.reset)} reset groups cannot be dealt out in {self.rounds} equal rounds")
        if any(size < 2 for size in self.base + self.reset) or not self.base + self.reset:
            raise ValueError(
                f"each group needs at least 2 rollouts to compare, got base {self.base}, reset {self.reset}"
            )

    @property
    def num_base(self) -> int:
        return sum(self.base)

    @property
    def width(self) -> int:
        """Reset groups a round."""
        return len(self.reset) // self.rounds

    @property
    def total(self) -> int:
        """Slots a prompt: the rollouts that are trained on."""
        return sum(self.base) + sum(self.reset)


@dataclass
class Account:
    """What a buffer cost, exactly. Comparisons between methods are made at equal accounts.

    rollouts and tokens count everything sampled from the policy, discarded seeds included; discarded_* is the part of
    them that is not trained on. no_failure and no_cut count prompts that fell back to plain GRPO; went_back counts
    reset groups of a later round that re-entered the first seed, for want of a failed suffix or of a cut. batches
    counts calls of the simulator.
    """

    prompts: int = 0
    rollouts: int = 0
    tokens: int = 0
    discarded_rollouts: int = 0
    discarded_tokens: int = 0
    localisation_calls: int = 0
    localisation_tokens: int = 0
    localiser_rollouts: int = 0
    localiser_tokens: int = 0
    oracle_queries: int = 0
    no_failure: int = 0
    no_cut: int = 0
    went_back: int = 0
    batches: int = 0

    @property
    def all_tokens(self) -> int:
        """Every token sampled for this buffer: rollouts, localisation answers, the localiser's own rollouts."""
        return self.tokens + self.localisation_tokens + self.localiser_tokens


@dataclass(frozen=True)
class Group(Generic[EpisodeT]):
    """iid continuations of one prefix. `prompt` is the position in the batch, `k` the number of decisions kept."""

    prompt: int
    kind: Literal["base", "reset"]
    episodes: tuple[EpisodeT, ...]
    k: int = 0
    seed: EpisodeT | None = None


@dataclass(frozen=True)
class Localisation(Generic[EpisodeT]):
    """A sampler's answer for one seed: the row of cut probabilities, and the cut drawn from it (-1: no reset)."""

    prompt: int
    seed: EpisodeT
    row_K: NDArray[np.float64]
    k: int


@dataclass(frozen=True)
class Rollouts(Generic[EpisodeT]):
    """The buffer of one step: groups in prompt order, the localisations behind them, and the account.

    fresh: for each prompt the rollouts of its first wave, whose number does not depend on their outcome: an unbiased
    sample of the policy, unlike the base groups of `FirstFailure`.
    """

    groups: list[Group[EpisodeT]]
    localisations: list[Localisation[EpisodeT]]
    account: Account
    fresh: list[tuple[EpisodeT, ...]]

    def episodes(self) -> list[EpisodeT]:
        return [e for g in self.groups for e in g.episodes]


@dataclass
class _Attempts(Generic[EpisodeT]):
    """One prompt while its buffer is being filled: rollouts and suffixes in the order drawn, candidates for the seed.

    seeds, rows, cuts: one for each reset group; those of a later round stay the first seed's until its turn comes.
    """

    prompt: int
    key: DrawKey
    drawn: list[EpisodeT] = field(default_factory=list)
    base: list[EpisodeT] = field(default_factory=list)
    candidates: list[EpisodeT] = field(default_factory=list)
    seeds: list[EpisodeT] = field(default_factory=list)
    rows: list[NDArray[np.float64]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    suffixes: list[EpisodeT] = field(default_factory=list)

    def localisation(self, g: int) -> Localisation[EpisodeT]:
        """What reset group `g` re-enters."""
        return Localisation(self.prompt, self.seeds[g], self.rows[g], self.cuts[g])


class SeedPolicy(Protocol):
    """Which failed attempt is re-entered, and what this does to the base group."""

    def first_wave(self, split: Split) -> int:
        """How many rollouts of each prompt to draw at once."""
        ...

    def wants_more(self, drawn: Sequence[Episode[Any]], split: Split) -> bool:
        """Whether a prompt needs one more attempt before its seed is settled."""
        ...

    def base_and_candidates(self, drawn: Sequence[EpisodeT], split: Split) -> tuple[list[EpisodeT], list[EpisodeT]]:
        """The base rollouts (num_base of them, if there is a candidate) and the failures that may become seeds."""
        ...

    def order(self, candidates: int, rows: Sequence[NDArray[np.float64]] | None, u: float) -> list[int]:
        """Candidates in order of preference; `rows` are their cut probabilities if `needs_rows`."""
        ...

    @property
    def needs_rows(self) -> bool: ...


@dataclass(frozen=True)
class FirstFailure:
    """The paper's policy: sample until the first failure, which is the seed and is left out of the base group.

    Each reset group of a round has a seed of its own, so R of them ask for the first R failures (where attempts run out
    before, the failures found are used in turn); with ``share_seed`` all of them re-enter the first one. The base group
    is the first `num_base` of the other rollouts, so it is *not* iid: see `cpi.bounds.base_group_mean` for its upward
    bias. A prompt costs at least one rollout a seed more than it has slots, and more where the failure comes late: then
    successes beyond the base group are thrown away too. Attempts stop at as many rollouts as the prompt has slots.
    """

    share_seed: bool = False

    @property
    def needs_rows(self) -> bool:
        return False

    def first_wave(self, split: Split) -> int:
        return min(split.num_base + self._seeds(split), split.total)

    def wants_more(self, drawn: Sequence[Episode[Any]], split: Split) -> bool:
        return sum(failed(e) for e in drawn) < self._seeds(split) and len(drawn) < split.total

    def base_and_candidates(self, drawn: Sequence[EpisodeT], split: Split) -> tuple[list[EpisodeT], list[EpisodeT]]:
        seeds = [i for i, e in enumerate(drawn) if failed(e)][: self._seeds(split)]
        others = [e for i, e in enumerate(drawn) if i not in seeds]
        return (others[: split.num_base] if seeds else others), [drawn[i] for i in seeds]

    def _seeds(self, split: Split) -> int:
        return 1 if self.share_seed else split.width

    def order(self, candidates: int, rows: Sequence[NDArray[np.float64]] | None, u: float) -> list[int]:
        return list(range(candidates))


@dataclass(frozen=True)
class IntactBase:
    """An unbiased policy: the base group is iid and stays whole; the seed is one of its failures, at no extra rollout.

    pick: "uniform" among the failures, or "furthest", the failure whose cut is latest by the sampler's own account
    (which then localises all failures). scouts: rollouts that only serve to find seeds, needed where a split has no
    base group. share_seed: all reset groups re-enter one seed; otherwise each takes the next failure in order.
    """

    pick: Literal["uniform", "furthest"] = "uniform"
    scouts: int = 0
    share_seed: bool = False

    @property
    def needs_rows(self) -> bool:
        return self.pick == "furthest"

    def first_wave(self, split: Split) -> int:
        wave = split.num_base + self.scouts
        if wave == 0:
            raise ValueError("a split without a base group needs scouts >= 1 to find a seed")
        return wave

    def wants_more(self, drawn: Sequence[Episode[Any]], split: Split) -> bool:
        return False

    def base_and_candidates(self, drawn: Sequence[EpisodeT], split: Split) -> tuple[list[EpisodeT], list[EpisodeT]]:
        return list(drawn[: split.num_base]), [e for e in drawn if failed(e)]

    def order(self, candidates: int, rows: Sequence[NDArray[np.float64]] | None, u: float) -> list[int]:
        shift = int(u * candidates)
        rotated = [(shift + i) % candidates for i in range(candidates)]
        if rows is not None:
            expected_cut = [float(row @ np.arange(row.size)) if row.sum() > 0 else -1.0 for row in rows]
            rotated.sort(key=lambda i: -expected_cut[i])
        return rotated[:1] if self.share_seed else rotated


@dataclass(frozen=True)
class Plan:
    """Algorithm 2 as data: the layout of a prompt's slots, where to reset, and which attempt to re-enter."""

    split: Split
    sampler: ResetSampler[Any]
    seeds: SeedPolicy = field(default_factory=FirstFailure)


def collect(
    simulator: Simulator[PrefixT, EpisodeT], roots: Sequence[PrefixT], keys: Sequence[DrawKey], plan: Plan
) -> Rollouts[EpisodeT]:
    """Fill the buffer for prompts `roots`; `keys[i]` fixes seed, step and prompt of all draws of prompt i."""
    account = Account(prompts=len(roots))
    attempts = [_Attempts[EpisodeT](i, key) for i, key in enumerate(keys)]
    sampler = _Sampling(simulator, roots, attempts, account)
    _base_phase(sampler, plan)
    localisations = _localise_phase(attempts, plan, account) if plan.split.reset else []
    _sample_round(sampler, plan.split, 0)
    for number in range(1, plan.split.rounds):
        localisations += _deeper_phase(attempts, plan, number, account)
        _sample_round(sampler, plan.split, number)
    groups = [g for a in attempts for g in (_reset_groups if a.cuts else _fallback_groups)(a, plan.split)]
    used = {id(e) for g in groups for e in g.episodes}
    discarded = [e for a in attempts for e in a.drawn if id(e) not in used]
    account.discarded_rollouts = len(discarded)
    account.discarded_tokens = sum(e.generated for e in discarded)
    wave = plan.seeds.first_wave(plan.split) if plan.split.reset else plan.split.total
    return Rollouts(groups, localisations, account, [tuple(a.drawn[:wave]) for a in attempts])


@dataclass
class _Sampling(Generic[PrefixT, EpisodeT]):
    """The simulator with its account."""

    simulator: Simulator[PrefixT, EpisodeT]
    roots: Sequence[PrefixT]
    attempts: list[_Attempts[EpisodeT]]
    account: Account

    def run(self, prefixes: Sequence[PrefixT], keys: Sequence[DrawKey]) -> list[EpisodeT]:
        if not prefixes:
            return []
        episodes = list(self.simulator.continue_from(prefixes, keys))
        self.account.batches += 1
        self.account.rollouts += len(episodes)
        self.account.tokens += sum(e.generated for e in episodes)
        return episodes

    def base_requests(self, prompt: int, count: int) -> tuple[list[PrefixT], list[DrawKey]]:
        """Requests for `count` further rollouts of a prompt, numbered on from those it has."""
        first = len(self.attempts[prompt].drawn)
        key = self.attempts[prompt].key
        return [self.roots[prompt]] * count, [key.at(phase=Phase.BASE, slot=first + i) for i in range(count)]


def _base_phase(sampling: _Sampling[PrefixT, EpisodeT], plan: Plan) -> None:
    split, attempts = plan.split, sampling.attempts
    if not split.reset:  # GRPO: no seed to look for
        _draw_base(sampling, dict.fromkeys(range(len(attempts)), split.total))
        return
    _draw_base(sampling, {i: plan.seeds.first_wave(split) for i in range(len(attempts))})
    while more := {i: 1 for i, a in enumerate(attempts) if plan.seeds.wants_more(a.drawn, split)}:
        _draw_base(sampling, more)
    for a in attempts:
        a.base, a.candidates = plan.seeds.base_and_candidates(a.drawn, split)


def _draw_base(sampling: _Sampling[PrefixT, EpisodeT], counts: dict[int, int]) -> None:
    requests = {i: sampling.base_requests(i, n) for i, n in counts.items()}
    prefixes = [p for ps, _ in requests.values() for p in ps]
    keys = [k for _, ks in requests.values() for k in ks]
    episodes = iter(sampling.run(prefixes, keys))
    for i, n in counts.items():
        sampling.attempts[i].drawn += [next(episodes) for _ in range(n)]


def _localise_phase(attempts: list[_Attempts[EpisodeT]], plan: Plan, account: Account) -> list[Localisation[EpisodeT]]:
    """Choose seeds and cuts of all prompts with one call of the sampler."""
    R, width = len(plan.split.reset), plan.split.width
    account.no_failure += sum(not a.candidates for a in attempts)
    live = [a for a in attempts if a.candidates]
    picks = [a.key.at(phase=Phase.PICK) for a in live]
    out: list[Localisation[EpisodeT]] = []
    for a, ranked in zip(live, _ranked(plan, [a.candidates for a in live], width, picks, account), strict=True):
        chosen = [g % width % len(ranked) for g in range(R)]
        a.seeds, a.rows = [ranked[j][0] for j in chosen], [ranked[j][1] for j in chosen]
        a.cuts = _distinct_cuts(a.rows, chosen, uniforms([a.key.at(phase=Phase.CUT)], R)[0])
        for g in range(width, R):  # whether there is a reset at all is settled by the first round
            a.cuts[g] = a.cuts[g] if a.cuts[g] >= 0 else a.cuts[g - width]
        out += [a.localisation(g) for g in range(width)]
        if min(a.cuts) < 0:  # one slot without a reset makes the prompt plain GRPO: its groups stay comparable
            account.no_cut += 1
            a.cuts = []
    return out


def _deeper_phase(
    attempts: list[_Attempts[EpisodeT]], plan: Plan, number: int, account: Account
) -> list[Localisation[EpisodeT]]:
    """Put failed suffixes of the round before in the place of the first seeds, with one call of the sampler.

    The seed policy chooses among the failures of a group as it does among those of a prompt. The suffix that becomes a
    seed stays in its group. Answers that name no cut are in the list too, before the localisation that takes over.
    """
    width = plan.split.width
    groups = [(a, g) for a in attempts if a.cuts for g in range(number * width, (number + 1) * width)]
    ends = np.cumsum((0, *plan.split.reset))
    before = [a.suffixes[ends[g - width] : ends[g - width + 1]] for a, g in groups]
    failures = [[e for e in members if failed(e)] for members in before]
    picks = [a.key.at(phase=Phase.PICK, slot=g) for a, g in groups]
    found = _ranked(plan, failures, 1, picks, account)
    out: list[Localisation[EpisodeT]] = []
    for (a, g), ranked in zip(groups, found, strict=True):
        k = -1
        if ranked:
            seed, row = ranked[0]
            (k,) = draw_cuts([row], uniforms([a.key.at(phase=Phase.CUT, slot=g)], 1)[0])
            if k < 0:
                out.append(Localisation(a.prompt, seed, row, k))
            else:
                a.seeds[g], a.rows[g], a.cuts[g] = seed, row, k
        account.went_back += k < 0
        out.append(a.localisation(g))
    return out


def _ranked(
    plan: Plan, candidates: Sequence[list[EpisodeT]], most: int, picks: Sequence[DrawKey], account: Account
) -> list[list[tuple[EpisodeT, NDArray[np.float64]]]]:
    """For each list of failures at most `most` of them, the most wanted first, each with its row of cuts.

    One call of the sampler for all lists; its cost goes on the account.
    """
    policy = plan.seeds
    u_pick = uniforms(picks, 1)[:, 0].tolist() if picks else []
    if not policy.needs_rows:  # settle the seeds first, so that only they are localised
        ordered = [policy.order(len(own), None, u) if own else [] for own, u in zip(candidates, u_pick, strict=True)]
        candidates = [[own[j] for j in ranked][:most] for own, ranked in zip(candidates, ordered, strict=True)]
    asked = [e for own in candidates for e in own]
    before = plan.sampler.spent.copy()
    rows = iter(plan.sampler.cut_probs(asked) if asked else [])
    spent = plan.sampler.spent.minus(before)
    account.localisation_calls += spent.localisation_calls
    account.localisation_tokens += spent.localisation_tokens
    account.oracle_queries += spent.oracle_queries
    account.localiser_rollouts += spent.rollouts
    account.localiser_tokens += spent.tokens

    out = []
    for own, u in zip(candidates, u_pick, strict=True):
        found = [(e, next(rows)) for e in own]
        if found and policy.needs_rows:
            found = [found[j] for j in policy.order(len(found), [row for _, row in found], u)][:most]
        out.append(found)
    return out


def _distinct_cuts(rows: list[NDArray[np.float64]], seeds: list[int], u: NDArray[np.float64]) -> list[int]:
    """One cut per reset group; groups that share a seed take different ones for as long as its row has mass left.

    A cut that is taken is struck from the row and the rest scaled up, so the probability of "no reset" stays.
    """
    left = dict(zip(seeds, rows, strict=True))
    cuts = []
    for seed, u_group in zip(seeds, u, strict=True):
        row = left[seed]
        (k,) = draw_cuts([row], np.asarray([u_group]))
        cuts.append(k)
        rest = row * (np.arange(row.size) != k)
        if rest.sum() > 0:
            left[seed] = rest * (row.sum() / rest.sum())
    return cuts


def _sample_round(sampling: _Sampling[PrefixT, EpisodeT], split: Split, number: int) -> None:
    """The reset groups of one round, and beside the first the fill-in rollouts of prompts that fell back: one batch."""
    ends = np.cumsum((0, *split.reset)).tolist()
    prefixes: list[PrefixT] = []
    keys: list[DrawKey] = []
    targets: list[list[EpisodeT]] = []
    for i, a in enumerate(sampling.attempts):
        if a.cuts:
            groups = range(number * split.width, (number + 1) * split.width)
            more = [a.seeds[g].prefix(a.cuts[g]) for g in groups for _ in range(split.reset[g])]
            first = ends[groups[0]]
            more_keys = [a.key.at(phase=Phase.RESET, slot=first + j) for j in range(len(more))]
        else:
            more, more_keys = sampling.base_requests(i, max(0, split.total - len(a.drawn)))
        prefixes += more
        keys += more_keys
        targets += [a.suffixes if a.cuts else a.drawn] * len(more)
    for target, episode in zip(targets, sampling.run(prefixes, keys), strict=True):
        target.append(episode)


def _reset_groups(a: _Attempts[EpisodeT], split: Split) -> list[Group[EpisodeT]]:
    groups = _slice(a.prompt, a.base, split.base)
    for g, group in enumerate(_slice(a.prompt, a.suffixes, split.reset)):
        groups.append(replace(group, kind="reset", k=a.cuts[g], seed=a.seeds[g]))
    return groups


def _fallback_groups(a: _Attempts[EpisodeT], split: Split) -> list[Group[EpisodeT]]:
    """All slots are base rollouts, in the order drawn (which is iid): one group, or GRPO's own groups."""
    return _slice(a.prompt, a.drawn, (split.total,) if split.reset else split.base)


def _slice(prompt: int, episodes: list[EpisodeT], sizes: Sequence[int]) -> list[Group[EpisodeT]]:
    ends = np.cumsum((0, *sizes))
    return [Group(prompt, "base", tuple(episodes[b:e])) for b, e in pairwise(ends)]


def group_advantages(
    groups: Sequence[Group[EpisodeT]],
    estimator: AdvantageEstimator,
    reward: Callable[[EpisodeT], float] = lambda e: e.outcome,
    pooled: bool = False,
) -> list[NDArray[np.float64]]:
    """Advantages of each group's episodes, in the groups' order.

    A group is compared within itself; with ``pooled`` all groups of a prompt are compared together, as if they
    continued one prefix (which they do not: the difference of the prefixes' values enters the advantages).
    """
    members: dict[tuple[int, int], list[int]] = {}
    for i, g in enumerate(groups):
        members.setdefault((g.prompt, 0 if pooled else i), []).append(i)
    rewards = [np.array([reward(e) for i in m for e in groups[i].episodes]) for m in members.values()]
    pools = list(members.values())
    out: list[NDArray[np.float64]] = [np.empty(0)] * len(groups)
    for size in {r.size for r in rewards}:  # pools of equal size are estimated together
        index = [j for j, r in enumerate(rewards) if r.size == size]
        for j, row in zip(index, estimator(np.array([rewards[j] for j in index])), strict=True):
            ends = np.cumsum([len(groups[i].episodes) for i in pools[j]])
            for i, part in zip(pools[j], np.split(row, ends[:-1]), strict=True):
                out[i] = part
    return out
