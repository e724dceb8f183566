"""Methods as data: layouts, seeds, estimators, weights; each defining computation on an example done by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from scripted import actions_of, tree_simulator
from training import tiny_trainer

from cpi.advantages import LeaveOneOut, MeanBaseline, ZScore
from cpi.draws import DrawKey
from cpi.groups import FirstFailure, Group, IntactBase, Split, failed, group_advantages
from cpi.resets import Noisy, UniformWithinEpisode
from llm.config import ConfigError
from llm.localize import Answer, Asked, EntropyLocalizer, OracleLocalizer, SelfLocalizer, ValueLocalizer
from llm.methods import (
    _USED,
    METHODS,
    Localizers,
    Method,
    MethodConfig,
    build_method,
    localizer_rows,
    parse_split,
)
from llm.objective import trace_row

RIGHT = (1, 2, 0)
THETA = np.random.default_rng(3).normal(size=(3, 9, 3)) * 0.5
for _h, _y in enumerate(RIGHT):
    THETA[_h, :, _y] += 0.8


def _world():
    model, simulator = tree_simulator(THETA, RIGHT)
    own = SelfLocalizer(simulator.backend, simulator.tokenizer, simulator.prompts)
    return model, simulator, Localizers(own, OracleLocalizer(simulator.task), simulator)


def _method(**settings) -> Method:
    return build_method(MethodConfig(**settings), _world()[2])


def _roll(prompts=12, step=0, **settings):
    _, simulator, localizers = _world()
    method = build_method(MethodConfig(**settings), localizers)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    keys = [DrawKey(seed=3, step=step, prompt=i) for i in range(prompts)]
    return method, method.roll(simulator, [root] * prompts, keys)


@pytest.mark.parametrize(
    ("text", "base", "reset"),
    [
        ("1x4", (4,), (4,)),
        ("2x4", (), (4, 4)),
        ("1x8", (), (8,)),
        ("4/4", (4,), (4,)),
        ("/4+4", (), (4, 4)),
        ("8", (8,), ()),
        ("8/", (8,), ()),
        ("4+4", (4, 4), ()),
        ("4/2+2+2", (4,), (2, 2, 2)),
    ],
)
def test_a_layout_is_a_name_or_base_and_reset_sizes(text, base, reset):
    assert parse_split(text) == Split(base, reset)


@pytest.mark.parametrize("text", ["", "/", "4x", "4//4", "4+/4", "-4/4", "4 / 4", "four", "3x4"])
def test_an_unreadable_layout_is_one_clear_line(text):
    with pytest.raises(ConfigError, match=r"unknown split .* such as 4/2") as error:
        parse_split(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["1/4", "4/1", "4+1", "0/4"])
def test_a_group_below_two_is_one_clear_line(text):
    with pytest.raises(ConfigError, match=r"^split .*at least 2 rollouts"):
        parse_split(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "8"}, "needs a reset group"),
        ({"split": "/8", "seed_policy": "intact"}, "takes its seed from a base group"),
        ({"method": "rrpo", "localizer": "value"}, "does not use --localizer: leave it out, or take one of srpo"),
        ({"localizer": "trained"}, "give --answers 4 --share-seed"),
        ({"split": "4/4", "rounds": 2}, r"cannot be dealt out in 2 equal rounds.*such as 4/2\+2, not 4/4"),
        ({"split": "4/2+2", "rounds": 0}, "cannot be dealt out in 0 equal rounds"),
        (
            {"method": "grpo", "rounds": 2},
            "use --rounds: leave it out, or take one of rrpo, srpo, oracle-srpo",
        ),
        (
            {"localizer": "trained", "split": "4/2+2", "rounds": 2, "share_seed": True, "answers": 4},
            "in one round",
        ),
        ({"answers": 0}, "answers must be at least 1"),
        ({"localizer": "value", "continuations": 0}, "continuations must be at least 1"),
        ({"continuations": 16}, "localizer self does not use --continuations: leave it out, or take value"),
        (
            {"localizer": "random", "answers": 4},
            "does not use --answers: .* take self or frozen or trained",
        ),
        ({"noise_shift": 2}, "localizer self does not use --noise-shift: leave it out, or take noisy"),
        ({"share_seed": True}, "share_seed is for two or more reset groups"),
        ({"method": "spo-chain", "interval": 0}, "interval must be at least 1"),
        ({"method": "score", "score_stage1_steps": -1}, "score_stage1_steps must not be negative"),
        ({"method": "score", "score_beta2": float("nan")}, "score_beta2 must not be negative"),
        ({"localizer": "noisy", "noise_exact": 1.1}, "noise_exact must be a probability"),
        ({"localizer": "noisy", "noise_exact": float("nan")}, "noise_exact must be a probability"),
        ({"localizer": "noisy", "noise_shift": 0}, "noise_shift must not be 0"),
        ({"method": "vineppo", "length": "whole"}, "vineppo does not use --length: leave it out"),
        (
            {"method": "spo-tree", "split": "2/2", "estimator": "mean"},
            "does not use --split",
        ),
        ({"method": "grpo", "seed_policy": "intact"}, "grpo does not use --seed-policy"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_clear_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        _method(**settings)


def test_every_option_is_used_by_some_method():
    assert set(_USED) == set(METHODS)
    assert set().union(*_USED.values()) | {"method"} == {f.name for f in fields(MethodConfig)}


def test_names_mean_what_they_say():
    assert _method(seed_policy="first-failure").plan.seeds == FirstFailure()
    assert _method(seed_policy="intact").plan.seeds == IntactBase("uniform")
    shared = _method(seed_policy="furthest", split="4/2+2", share_seed=True)
    assert shared.plan.seeds == IntactBase("furthest", share_seed=True)
    estimators = {name: _method(estimator=name).estimator for name in ("zscore", "zscore-bessel", "mean", "loo")}
    assert estimators == {
        "zscore": ZScore(ddof=0, eps=0.0),
        "zscore-bessel": ZScore(ddof=1, eps=1e-4),
        "mean": MeanBaseline(),
        "loo": LeaveOneOut(),
    }
    samplers = {name: type(_method(localizer=name).plan.sampler) for name in ("self", "oracle", "random", "value")}
    assert samplers == {
        "self": SelfLocalizer,
        "oracle": OracleLocalizer,
        "random": UniformWithinEpisode,
        "value": ValueLocalizer,
    }
    assert type(_method(localizer="entropy").plan.sampler) is EntropyLocalizer
    noisy = _method(localizer="noisy", noise_exact=0.8, noise_shift=2).plan.sampler
    assert isinstance(noisy, Noisy)
    assert (type(noisy.inner), noisy.exact, noisy.shift_probs) == (OracleLocalizer, 0.8, {2: 1.0})
    assert _method(split="4/2+2", rounds=2).plan.split == Split((4,), (2, 2), rounds=2)
    assert _method(method="grpo").plan.split == Split((8,), ())
    assert _method(method="grpo", split="4+4").plan.split == Split((4, 4), ())


def test_groups_that_share_a_seed_take_distinct_cuts_and_each_failure_its_own_without():
    for share in (True, False):
        _, roll = _roll(prompts=20, method="rrpo", split="/2+2+2", share_seed=share)
        resets = [g for g in roll.rollouts.groups if g.kind == "reset"]
        by_prompt = [[g for g in resets if g.prompt == i] for i in range(20)]
        seeds = [len({id(g.seed) for g in groups}) for groups in by_prompt if groups]
        assert len(seeds) > 10
        if share:
            assert set(seeds) == {1}
            assert all(len({g.k for g in groups}) == 3 for groups in by_prompt if groups)
        else:
            assert Counter(seeds)[3] > 5


def test_a_point_mass_leaves_groups_with_one_seed_at_one_cut():
    _, roll = _roll(prompts=20, method="oracle-srpo", split="4/2+2", share_seed=True)
    cuts = [[g.k for g in roll.rollouts.groups if g.kind == "reset" and g.prompt == i] for i in range(20)]
    assert all(a == b for pair in cuts if pair for a, b in [pair])
    assert any(cuts)


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("exact", [0.3, 0.8])
def test_a_noisy_oracle_is_exact_and_off_as_often_as_asked(exact, shift):
    """Cuts that can be off; the number of exact ones lies in the central 99.9% of its binomial law."""
    settings = {"localizer": "noisy", "noise_exact": exact, "noise_shift": shift, "seed_policy": "furthest"}
    _, roll = _roll(prompts=200, split="4/2", **settings)
    found = [(loc.k, _error(loc.seed)) for loc in roll.rollouts.localisations]
    movable = [(k, true) for k, true in found if 0 <= true + shift <= 2]
    assert len(movable) > 60
    assert {k - true for k, true in movable} == {0, shift}
    low, high = binom.interval(0.999, len(movable), exact)
    assert low <= sum(k == true for k, true in movable) <= high
    assert all(k == true for k, true in found if not 0 <= true + shift <= 2)  # clipped to the episode
    # three queries for each failure, as by the oracle itself
    assert roll.rollouts.account.oracle_queries == 3 * sum(failed(t) for ts in roll.rollouts.fresh for t in ts)


class _Reward:
    def __init__(self, outcome):
        self.outcome = outcome


def test_pooled_advantages_compare_all_groups_of_a_prompt():
    """Base 1, 0 and reset 1, 1: apart they are +-1/2 and 0, pooled they are compared with the mean 3/4."""
    groups = [
        Group(0, "base", (_Reward(1.0), _Reward(0.0))),
        Group(0, "reset", (_Reward(1.0), _Reward(1.0))),
        Group(1, "base", (_Reward(0.0), _Reward(0.0), _Reward(1.0))),
    ]
    apart = group_advantages(groups, MeanBaseline())
    pooled = group_advantages(groups, MeanBaseline(), pooled=True)
    assert [a.tolist() for a in apart[:2]] == [[0.5, -0.5], [0.0, 0.0]]
    assert [a.tolist() for a in pooled[:2]] == [[0.25, -0.75], [0.25, 0.25]]
    np.testing.assert_array_equal(apart[2], pooled[2])


def test_length_weights_of_a_suffix_by_hand():
    """A suffix of one thought (one token) of a response of three, longest response 4."""
    _, simulator, _ = _world()
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    (full,) = simulator.continue_from([root], [DrawKey(seed=1)])
    (suffix,) = simulator.continue_from([full.prefix(2)], [DrawKey(seed=2)])
    rows = {name: trace_row(suffix, 2.0, longest=4, length=name) for name in ("own", "whole", "constant")}
    assert all(row.mask_T.tolist() == [False, False, True] for row in rows.values())
    # sum over trained tokens of A / T: 2/1, 2/3 and 2/4
    assert [row.advantage_T.sum() / row.mask_T.sum() for row in rows.values()] == pytest.approx([2.0, 2 / 3, 0.5])
    unmasked = trace_row(suffix, 2.0, longest=4, prefix_mask=False)
    assert unmasked.mask_T.all()
    assert unmasked.advantage_T.tolist() == [2.0, 2.0, 2.0]


def test_the_latest_cut_is_re_entered_by_furthest_and_any_failure_by_intact():
    cuts = {}
    for policy in ("intact", "furthest"):
        _, roll = _roll(prompts=40, method="oracle-srpo", seed_policy=policy)
        base = {g.prompt: g for g in roll.rollouts.groups if g.kind == "base"}
        resets = [g for g in roll.rollouts.groups if g.kind == "reset"]
        assert all(any(e is g.seed for e in base[g.prompt].episodes) for g in resets)
        latest = [max(_error(e) for e in base[g.prompt].episodes if failed(e)) for g in resets]
        cuts[policy] = [g.k == k for g, k in zip(resets, latest, strict=True)]
    assert all(cuts["furthest"])
    assert not all(cuts["intact"])


def _suffixes(k, outcomes, seed):
    return Group(0, "reset", tuple(_Reward(r) for r in outcomes), k, seed)


def test_a_trained_localiser_is_rewarded_by_what_the_suffixes_of_its_cuts_achieve():
    """Answers 1, 3, 1, none, 2; groups at cuts 0 (mean 1/4) and 2 (mean 3/4): rewards .25, .75, .25, 0, not tried."""
    own = _world()[2].self_localizer
    _, roll = _roll(prompts=1, method="grpo")
    filler, seed = roll.rows[0], roll.rollouts.groups[0].episodes[0]
    named = [(0, "exact"), (2, "exact"), (0, "repeated"), (None, "missing"), (1, "exact")]
    own.answers_per_seed = 5
    own.asked = {
        seed.key: [Asked(seed.key, 3, (9,), (i, i), Answer(s, k), (0.0, 0.0)) for i, (k, s) in enumerate(named)]
    }
    resets = [_suffixes(0, [1, 0, 0, 0], seed), _suffixes(2, [1, 1, 0, 1], seed)]
    rows = localizer_rows(resets, own, MeanBaseline(), filler)
    assert [r.completion_ids for r in rows[:4]] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [r.advantage_T.tolist() for r in rows[:4]] == [[a, a] for a in (-0.0625, 0.4375, -0.0625, -0.3125)]
    assert not rows[4].mask_T.any()
    assert rows[4].completion_ids == filler.completion_ids
    own.max_tokens = 8  # of which an answer of two tokens has a quarter
    for length, factor in (("whole", 1.0), ("constant", 0.25)):
        again = localizer_rows(resets, own, MeanBaseline(), filler, length)[:4]
        assert [r.advantage_T.tolist() for r in again] == [[factor * a for a in r.advantage_T] for r in rows[:4]]
    for nothing_to_compare in ([], [_suffixes(1, [1, 0], seed)]):
        rows = localizer_rows(nothing_to_compare, own, MeanBaseline(), filler)
        assert len(rows) == 5
        assert nothing_to_compare or not any(r.mask_T.any() for r in rows)


def _error(trace):
    return next(k for k, (y, right) in enumerate(zip(actions_of(trace), RIGHT, strict=True)) if y != right)


def test_an_attempt_that_does_not_fit_the_context_beside_another_is_one_clear_line(tmp_path: Path):
    tiny_trainer(tmp_path, method="grpo", max_tokens=120)
    with pytest.raises(ConfigError, match=r"with 240 response tokens it exceeds .* lower --max-tokens"):
        tiny_trainer(tmp_path, method="score", max_tokens=120)


@pytest.mark.parametrize("settings", [{"method": name} for name in METHODS] + [
    {"localizer": "value", "continuations": 1, "seed_policy": "furthest"},
    {"localizer": "entropy", "split": "4/2+2", "share_seed": True, "estimator": "loo", "pooled": True},
    {"localizer": "trained", "split": "2/2+2", "share_seed": True, "answers": 3},
    {"localizer": "noisy", "noise_exact": 0.5, "noise_shift": 1},
    {"method": "spo-tree", "segment_unit": "tokens", "segment": 7, "branching": "2x2x2"},
    {"localizer": "oracle", "split": "4/2+2", "rounds": 2},
    {"localizer": "random", "split": "/2+2", "length": "whole", "estimator": "mean", "prefix_mask": False},
], ids=lambda s: "-".join(map(str, s.values())))  # fmt: skip
def test_two_steps_of_every_method_have_a_gradient(settings, tmp_path: Path):
    rows = []
    trainer = tiny_trainer(tmp_path, on_log=rows.append, max_tokens=64, **settings)
    trainer.args.save_strategy = "no"
    trainer.train()
    assert [row["step"] for row in rows] == [0, 1]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert max(row["grad_norm"] for row in rows) > 0
    assert rows[0]["p"] is not None
