"""Algorithm 2's buffer: layout, seeds, fallbacks, and an account that misses nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpi.advantages import MeanBaseline
from cpi.draws import DrawKey
from cpi.groups import FirstFailure, IntactBase, Plan, Split, collect, failed, group_advantages
from cpi.mdp import FiniteMDP
from cpi.resets import Cost, Oracle, Start, UniformWithinEpisode
from cpi.simulate import TabularPrefix, TabularSimulator

H = 3


def _simulator(q):
    """H steps, each right with probability q; reward 1 iff all are right. State 0 is right so far, 1 is lost."""
    P = np.zeros((H, 2, 2, 2))
    P[:, 0, 0, 0] = P[:, 0, 1, 1] = 1.0
    P[:, 1, :, 1] = 1.0
    r = np.zeros((H, 2, 2))
    r[H - 1, 0, 0] = 1.0
    pi = np.broadcast_to([q, 1 - q], (H, 2, 2)).copy()
    return TabularSimulator(FiniteMDP(P=P, r=r, mu=np.array([1.0, 0.0]), R_max=1.0), pi)


def _collect(plan, q=0.6, prompts=40, seed=0):
    keys = [DrawKey(seed=seed, prompt=i) for i in range(prompts)]
    return collect(_simulator(q), [TabularPrefix.at(0)] * prompts, keys, plan)


def _true_first_error(episode):
    wrong = np.array(episode.actions) == 1
    row = np.zeros(H)
    row[np.argmax(wrong)] = float(wrong.any())
    return row


SPLITS = [
    Split((4,), (4,)),
    Split((), (4, 4)),
    Split((), (8,)),
    Split((8,), ()),
    Split((4, 4), ()),
    Split((2, 3), (3, 2)),
    Split((4,), (2, 3), rounds=2),
    Split((), (2, 2, 2, 2), rounds=2),
    Split((2,), (2, 2, 2), rounds=3),
]
POLICIES = [
    FirstFailure(),
    IntactBase(scouts=2),
    IntactBase("furthest", scouts=1),
    IntactBase(scouts=1, share_seed=True),
]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("seeds", POLICIES, ids=repr)
@settings(max_examples=8)
@given(q=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]), seed=st.integers(0, 1000))
def test_every_prompt_gets_exactly_its_slots_and_every_rollout_is_accounted_for(split, seeds, q, seed):
    sampler = UniformWithinEpisode() if split.reset else Start()
    rollouts = _collect(Plan(split, sampler, seeds), q=q, prompts=5, seed=seed)
    slots = Counter(g.prompt for g in rollouts.groups for _ in g.episodes)
    assert slots == dict.fromkeys(range(5), split.total)
    account = rollouts.account
    trained = rollouts.episodes()
    assert account.rollouts == len(trained) + account.discarded_rollouts
    assert account.tokens == sum(e.generated for e in trained) + account.discarded_tokens
    assert len({id(e) for e in trained}) == len(trained)
    assert len({e.key for e in trained}) == len(trained)
    for group in rollouts.groups:
        assert all(e.start == group.k for e in group.episodes)
        if group.kind == "reset":
            assert failed(group.seed)
            assert all(e.states[: group.k + 1] == group.seed.states[: group.k + 1] for e in group.episodes)
            assert all(e.actions[: group.k] == group.seed.actions[: group.k] for e in group.episodes)


def test_one_batch_a_phase():
    """Base, then resets: two calls of the simulator, and only the prompts without a failure so far ask for more."""
    assert _collect(Plan(Split((4,), (4,)), UniformWithinEpisode(), IntactBase())).account.batches == 2
    assert _collect(Plan(Split((8,), ()), Start())).account.batches == 1


def test_the_papers_seed_is_left_out_of_its_base_group_and_costs_one_rollout_more():
    rollouts = _collect(Plan(Split((4,), (4,)), UniformWithinEpisode(), FirstFailure()), q=0.5)
    by_prompt = {g.prompt: g for g in rollouts.groups if g.kind == "reset"}
    assert len(by_prompt) == 40
    for group in rollouts.groups:
        if group.kind == "base":
            assert by_prompt[group.prompt].seed not in group.episodes
    assert rollouts.account.rollouts >= 40 * 9


def test_an_intact_base_group_keeps_its_seed_and_costs_exactly_its_slots():
    rollouts = _collect(Plan(Split((4,), (4,)), UniformWithinEpisode(), IntactBase()), q=0.5)
    base = {g.prompt: g for g in rollouts.groups if g.kind == "base"}
    resets = [g for g in rollouts.groups if g.kind == "reset"]
    assert resets
    assert all(any(e is g.seed for e in base[g.prompt].episodes) for g in resets)
    assert rollouts.account.rollouts == 40 * 8


def test_the_papers_base_group_is_biased_upwards_and_the_intact_one_is_not():
    """Success of a rollout q = 0.8**3 = 0.512; 6,000 prompts, 24,000 base rollouts, standard error below 0.0035."""
    means = {}
    for name, seeds in (("paper", FirstFailure()), ("intact", IntactBase())):
        rollouts = _collect(Plan(Split((4,), (4,)), UniformWithinEpisode(), seeds), q=0.8, prompts=6000)
        base = [e.outcome for g in rollouts.groups if g.kind == "base" for e in g.episodes[:4]]
        means[name] = np.mean(base)
        assert np.mean([e.outcome for es in rollouts.fresh for e in es]) == pytest.approx(0.512, abs=0.014)
    assert means["intact"] == pytest.approx(0.512, abs=0.014)
    assert means["paper"] > 0.59


def test_a_prompt_without_failure_falls_back_to_one_grpo_group():
    rollouts = _collect(Plan(Split((4,), (4,)), UniformWithinEpisode(), FirstFailure()), q=1.0)
    assert [(g.kind, len(g.episodes)) for g in rollouts.groups] == [("base", 8)] * 40
    assert rollouts.account.no_failure == 40
    assert rollouts.account.rollouts == 40 * 8


def test_a_sampler_that_does_not_answer_makes_plain_grpo_and_never_a_reset_to_the_start():
    silent = Oracle(lambda e: np.zeros(e.num_decisions))
    rollouts = _collect(Plan(Split((4,), (4,)), silent, FirstFailure()), q=0.5)
    assert all(g.kind == "base" and g.k == 0 and len(g.episodes) == 8 for g in rollouts.groups)
    assert rollouts.account.no_cut == 40


def test_the_furthest_seed_is_the_failure_whose_first_error_is_latest():
    plan = Plan(Split((4,), (4,)), Oracle(_true_first_error), IntactBase("furthest"))
    rollouts = _collect(plan, q=0.6)
    base = {g.prompt: g for g in rollouts.groups if g.kind == "base"}
    resets = [g for g in rollouts.groups if g.kind == "reset"]
    assert len(resets) > 20
    for group in resets:
        latest = max(np.argmax(np.array(e.actions) == 1) for e in base[group.prompt].episodes if failed(e))
        assert group.k == latest


def test_several_resets_share_one_seed_or_take_one_each():
    shared = _collect(Plan(Split((4,), (2, 2)), UniformWithinEpisode(), IntactBase(share_seed=True)), q=0.4)
    spread = _collect(Plan(Split((4,), (2, 2)), UniformWithinEpisode(), IntactBase()), q=0.4)
    seeds = [
        [[g.seed for g in run.groups if g.kind == "reset" and g.prompt == i] for i in range(40)]
        for run in (shared, spread)
    ]
    assert all(a is b for pair in seeds[0] if pair for a, b in [pair])
    assert any(a is not b for pair in seeds[1] if pair for a, b in [pair])


def test_the_buffer_of_a_prompt_does_not_depend_on_the_rest_of_the_batch():
    plan = Plan(Split((4,), (4,)), Oracle(_true_first_error), FirstFailure())
    keys = [DrawKey(seed=4, prompt=i) for i in range(6)]
    roots = [TabularPrefix.at(0)] * 6
    together = collect(_simulator(0.6), roots, keys, plan)
    halves = [collect(_simulator(0.6), roots[:3], keys[b : b + 3], plan) for b in (0, 3)]
    assert together.episodes() == halves[0].episodes() + halves[1].episodes()


class _Charging:
    """A sampler that costs something."""

    def __init__(self):
        self.spent = Cost()

    def cut_probs(self, episodes):
        self.spent.localisation_calls += len(episodes)
        self.spent.localisation_tokens += 7 * len(episodes)
        self.spent.rollouts += 2 * len(episodes)
        self.spent.tokens += 3 * len(episodes)
        return [np.eye(H)[0] for _ in episodes]


def test_what_a_localiser_spends_is_in_the_account_step_by_step():
    plan = Plan(Split((4,), (4,)), _Charging(), FirstFailure())
    for seed in (0, 1):  # the second step counts its own cost, not the running total
        account = _collect(plan, q=0.2, seed=seed).account
        assert (account.localisation_calls, account.localisation_tokens) == (40, 280)
        assert (account.localiser_rollouts, account.localiser_tokens) == (80, 120)
        assert account.all_tokens == account.tokens + 280 + 120


def _rounds(rollouts):
    """The groups of prompts with a reset, prompt by prompt."""
    by_prompt = [[g for g in rollouts.groups if g.prompt == i] for i in range(rollouts.account.prompts)]
    return [groups for groups in by_prompt if groups[-1].kind == "reset"]


@pytest.mark.parametrize("seeds", [FirstFailure(), IntactBase(), IntactBase("furthest")], ids=repr)
def test_a_later_round_re_enters_a_failed_suffix_of_the_one_before(seeds):
    sampler = Oracle(_true_first_error)
    rollouts = _collect(Plan(Split((4,), (2, 2), rounds=2), sampler, seeds), q=0.7, prompts=100)
    went_back = 0
    for base, first, second in _rounds(rollouts):
        assert (first.seed in base.episodes) == (seeds != FirstFailure())
        failures = [e for e in first.episodes if failed(e)]
        errors = [int(_true_first_error(e).argmax()) for e in failures]
        went_back += not failures
        if not failures:
            assert (second.seed, second.k) == (first.seed, first.k)  # a point mass leaves no other cut
        else:
            assert any(second.seed is e for e in failures)
            assert second.k == int(_true_first_error(second.seed).argmax())
            assert second.k == (max(errors) if seeds == IntactBase("furthest") else second.k)
            assert seeds != FirstFailure() or second.seed is failures[0]
    account = rollouts.account
    assert account.went_back == went_back
    assert 10 < went_back < len(_rounds(rollouts)) - 10
    assert account.oracle_queries == sampler.spent.oracle_queries
    if seeds == FirstFailure():  # one seed for the first round, one more where a suffix failed
        assert account.oracle_queries == H * (2 * len(_rounds(rollouts)) - went_back)
    else:
        assert account.batches == 3
        assert account.rollouts == 100 * 8


def test_the_first_round_is_what_it_is_alone():
    two = _collect(Plan(Split((4,), (2, 2), rounds=2), UniformWithinEpisode()))
    one = _collect(Plan(Split((4,), (2,)), UniformWithinEpisode()))
    for (base, first, _), (base_alone, alone) in zip(_rounds(two), _rounds(one), strict=True):
        assert (base, first) == (base_alone, alone)


def test_a_group_without_a_failed_suffix_takes_another_cut_of_the_first_seed():
    rollouts = _collect(Plan(Split((4,), (2, 2), rounds=2), UniformWithinEpisode()), q=0.9, prompts=200)
    back = [(a, b) for _, a, b in _rounds(rollouts) if not any(map(failed, a.episodes))]
    assert len(back) == rollouts.account.went_back > 10
    assert all(b.seed is a.seed and b.k != a.k for a, b in back)


@dataclass(frozen=True)
class _OnlyBase:
    """Cuts rollouts of a prompt at their last decision, and leaves suffixes alone."""

    spent: Cost = field(default_factory=Cost)

    def cut_probs(self, episodes):
        return [np.eye(H)[H - 1] * (e.start == 0) for e in episodes]


def test_a_suffix_without_a_cut_leaves_the_later_round_at_the_first_seed():
    rollouts = _collect(Plan(Split((4,), (2, 2), rounds=2), _OnlyBase()), q=0.5)
    assert all(b.seed is a.seed and b.k == a.k == H - 1 for _, a, b in _rounds(rollouts))
    assert rollouts.account.went_back == len(_rounds(rollouts)) > 20
    assert rollouts.account.no_cut == 0
    failures = sum(any(map(failed, a.episodes)) for _, a, _ in _rounds(rollouts))
    assert sum(found.k < 0 for found in rollouts.localisations) == failures > 10


@pytest.mark.parametrize(("reset", "rounds"), [((2, 2), 3), ((2, 2, 2), 2), ((2, 2), 0), ((), 2), ((4,), 2)])
def test_groups_that_do_not_fill_their_rounds_are_refused(reset, rounds):
    with pytest.raises(ValueError, match="cannot be dealt out"):
        Split((4,), reset, rounds)


def test_advantages_come_back_in_the_groups_order():
    rollouts = _collect(Plan(Split((2, 3), (4,)), UniformWithinEpisode(), FirstFailure()), q=0.7)
    advantages = group_advantages(rollouts.groups, MeanBaseline())
    assert {len(g.episodes) for g in rollouts.groups} >= {2, 3, 4}
    for group, row in zip(rollouts.groups, advantages, strict=True):
        rewards = np.array([e.outcome for e in group.episodes])
        np.testing.assert_allclose(row, rewards - rewards.mean())


@pytest.mark.parametrize("sizes", [((), ()), ((1,), (4,)), ((4,), (1,))])
def test_a_group_below_two_is_refused(sizes):
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        Split(*sizes)


def test_a_split_without_base_group_and_scouts_is_refused():
    with pytest.raises(ValueError, match="scouts >= 1"):
        _collect(Plan(Split((), (4, 4)), UniformWithinEpisode(), IntactBase()))
