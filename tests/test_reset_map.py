"""`cpi.chain_gradient`: exact moments against enumeration and against the code that trains; limits; predictions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from scipy.special import expit

from cpi.advantages import LeaveOneOut, MeanBaseline, ZScore
from cpi.chain_gradient import (
    FACTS,
    METHODS,
    PROMPTS,
    RATE,
    WARM_START,
    Chain,
    NearError,
    Scheme,
    UniformCut,
    learning_curve,
    moments,
    predict,
    reset_gain,
)
from cpi.draws import DrawKey, uniforms
from cpi.exact import evaluate
from cpi.experiments.shared_facts import Checker, FactEpisode, accuracy, draw_step, gradient, train_facts
from cpi.groups import FirstFailure, Group, IntactBase, Phase, Plan, Split, collect, group_advantages
from cpi.policy_gradient import policy_gradient
from cpi.resets import Cost, Noisy, UniformWithinEpisode
from cpi.simulate import TabularEpisode, TabularPrefix, TabularSimulator
from toy_mdps import thought_tree

SHIFTY = NearError(0.5, ((-1, 0.5), (-2, 0.2), (1, 0.3)))


def _tree(chain):
    """The chain as a thought tree of two values; a table has two logits a state, so its squares are twice ours."""
    return thought_tree(chain.steps, Y=2, hard=chain.places, reliability=chain.reliability, easy_reliability=1.0)


def _logits(pi):
    with np.errstate(divide="ignore"):
        return np.log(pi)


def _right_logits(tree, grad_HXY):
    """The derivative along each hard step's own logit, on the path that is right so far."""
    return np.array([grad_HXY[h, 0, tree.right_H[h]] for h in tree.hard])


def _advantages(chain, scheme, groups):
    """As trained; with length "whole", times T_i / T to undo the 1 / T_i of `policy_gradient`."""
    found = group_advantages(groups, scheme.estimator)
    if scheme.length == "own":
        return found
    return [a * (chain.steps - g.k) / chain.steps for g, a in zip(groups, found, strict=True)]


# Enumeration ----------------------------------------------------------------------------------------------------------


def _continuations(tree, prefix):
    """(probability, episode) of every way to go on from a prefix."""
    out = [(1.0, prefix)]
    for h in range(prefix.k, tree.mdp.H):
        longer = []
        for weight, p in out:
            for y in range(2):
                chance = tree.pi[h, p.states[-1], y]
                x = int(tree.mdp.next_state_probs(h, np.array([p.states[-1]]), np.array([y]))[0].argmax())
                reward = float(tree.mdp.r[h, p.states[-1], y])
                longer.append((weight * chance, TabularPrefix((*p.states, x), (*p.actions, y), (*p.rewards, reward))))
        out = [(w, p) for w, p in longer if w > 0]
    key = DrawKey(seed=0)
    return [(w, TabularEpisode(p.states[:-1], p.actions, p.rewards, prefix.k, key)) for w, p in out]


def _draws(tree, prefix, count):
    """(probability, episodes) of `count` independent continuations."""
    for drawn in itertools.product(_continuations(tree, prefix), repeat=count):
        yield float(np.prod([w for w, _ in drawn])), tuple(e for _, e in drawn)


def _buffers(tree, scheme):
    """(probability, groups, thoughts, rollouts) of every buffer: Algorithm 2, by hand."""
    root, H = TabularPrefix.at(0), tree.mdp.H
    answer_KT = np.zeros((H, H))
    answer_KT[list(tree.hard)] = scheme.cuts(np.array([tree.hard]), H)[0]
    b, total = scheme.split.num_base, scheme.split.total
    intact = isinstance(scheme.seeds, IntactBase)
    if not scheme.split.reset:
        for w, drawn in _draws(tree, root, b):
            yield w, [Group(0, "base", drawn)], H * b, b
        return
    for w, drawn in _draws(tree, root, b if intact else total):
        failures = [i for i, e in enumerate(drawn) if e.outcome < 1]
        if not failures:
            for v, more in _draws(tree, root, total - len(drawn)):
                yield w * v, [Group(0, "base", drawn + more)], H * total, total
            continue
        first = [int(tree.first_error(np.array(drawn[i].actions))[0]) for i in failures]
        if intact:
            attempts, base = b, drawn
        else:
            attempts = max(b + 1, failures[0] + 1)
            base = tuple(e for i, e in enumerate(drawn) if i != failures[0])[:b]
        for cuts in itertools.product(*[np.flatnonzero(answer_KT[k]) for k in first]):
            v = w * float(np.prod([answer_KT[k, c] for k, c in zip(first, cuts, strict=True)]))
            seeds = list(zip(failures, cuts, strict=True)) if intact else [(failures[0], cuts[0])]
            if intact and scheme.seeds.pick == "furthest":
                seeds = [(i, c) for i, c in seeds if c == max(cuts)]
            for i, c in seeds:
                for u, suffixes in _draws(tree, drawn[i].prefix(c), total - b):
                    groups = [Group(0, "base", base)] * bool(base) + [Group(0, "reset", suffixes, c)]
                    yield v * u / len(seeds), groups, H * attempts + (H - c) * (total - b), attempts + total - b


ENUMERATED = {
    "one group": Scheme(Split((2,), ())),
    "first failure": Scheme(Split((2,), (2,))),
    "first failure, no base": Scheme(Split((), (2,)), estimator=MeanBaseline()),
    "uniform": Scheme(Split((2,), (2,)), seeds=IntactBase()),
    "furthest": Scheme(Split((2,), (2,)), seeds=IntactBase("furthest"), estimator=LeaveOneOut()),
    "furthest of three": Scheme(Split((3,), (2,)), seeds=IntactBase("furthest")),
    "furthest of three, inexact": Scheme(Split((3,), (2,)), SHIFTY, IntactBase("furthest")),
    "first failure, inexact": Scheme(Split((), (2,)), SHIFTY),
    "uniform, inexact": Scheme(Split((2,), (2,)), SHIFTY, IntactBase()),
    "random": Scheme(Split((), (2,)), UniformCut()),
    "uniform, whole length": Scheme(Split((2,), (2,)), seeds=IntactBase(), length="whole"),
}


@pytest.mark.parametrize("name", ENUMERATED)
def test_moments_are_those_of_a_full_enumeration(name):
    scheme, chain = ENUMERATED[name], Chain(3, 2, 0.6, (0, 2))
    tree = _tree(chain)
    theta, N = _logits(tree.pi), scheme.split.total
    mean, square, signal, thoughts, rollouts, mass = np.zeros(2), 0.0, 0.0, 0.0, 0.0, 0.0
    for w, groups, cost, count in _buffers(tree, scheme):
        advantages = _advantages(chain, scheme, groups)
        mass, thoughts, rollouts = mass + w, thoughts + w * cost, rollouts + w * count
        if any(np.abs(a).max() > 0 for a in advantages):
            grad = policy_gradient(theta, groups, advantages)
            mean, square, signal = mean + w * _right_logits(tree, grad), square + w * (grad**2).sum() / 2, signal + w
    assert mass == pytest.approx(1)
    assert sum(len(g.episodes) for g in groups) == N
    exact = moments(chain, scheme)
    np.testing.assert_allclose(exact.mean_M, mean, rtol=1e-10)
    np.testing.assert_allclose(
        (exact.square, exact.signal, exact.thoughts, exact.rollouts), (square, signal, thoughts, rollouts), rtol=1e-10
    )


# The code that trains -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """One answer a seed, drawn from the rows of `inner`: what a language model's localiser gives."""

    inner: Noisy
    spent: Cost = field(default_factory=Cost, compare=False)

    def cut_probs(self, episodes):
        rows = self.inner.cut_probs(episodes)
        u = uniforms([e.key.at(phase=Phase.LOCALISE) for e in episodes], 1)[:, 0]
        return [np.eye(row.size)[np.searchsorted(np.cumsum(row), v)] for row, v in zip(rows, u, strict=True)]


def _sampler(tree, cuts):
    if isinstance(cuts, UniformCut):
        return UniformWithinEpisode()
    return _Drawn(Noisy(tree.localiser(), cuts.exact, dict(cuts.shifts)))


def _measured(chain, scheme, prompts, seed):
    """One row a prompt: gradient on the hard steps' logits [M], |ghat|^2, signal, thoughts, rollouts."""
    tree = _tree(chain)
    theta = _logits(tree.pi)
    simulator = TabularSimulator(tree.mdp, tree.pi)
    plan = Plan(scheme.split, _sampler(tree, scheme.cuts), scheme.seeds)
    rows = []
    for i in range(prompts):
        rollouts = collect(simulator, [TabularPrefix.at(0)], [DrawKey(seed=seed, prompt=i)], plan)
        groups = rollouts.groups
        advantages = _advantages(chain, scheme, groups)
        account = rollouts.account
        signal = any(np.abs(a).max() > 0 for a in advantages)
        grad = policy_gradient(theta, groups, advantages) if signal else np.zeros_like(theta)
        square = (grad**2).sum() / 2
        rows.append([*_right_logits(tree, grad), square, float(signal), account.tokens, account.rollouts])
    return np.array(rows)


CHECKED = {name: make(SHIFTY) for name, make in METHODS.items()} | {
    "grpo-4+4-loo": Scheme(Split((4, 4), ()), estimator=LeaveOneOut()),
    "srpo-2x4": Scheme(Split((), (4, 4)), SHIFTY),
    "oracle-intact-3+5-bessel": Scheme(Split((3,), (5,)), seeds=IntactBase(), estimator=ZScore(1, 1e-4)),
}


@pytest.mark.parametrize("name", CHECKED)
def test_moments_and_costs_are_those_of_the_code_that_trains(name):
    chain, scheme, prompts = Chain(4, 3, 0.6, (0, 1, 3)), CHECKED[name], 1200
    found = _measured(chain, scheme, prompts, seed=3)
    exact = moments(chain, scheme)
    told = np.array([*exact.mean_M, exact.square, exact.signal, exact.thoughts, exact.rollouts])
    # 7 numbers for each of 22 schemes: 4.2 standard errors are passed by chance once in 250 runs
    error = found.std(axis=0) / prompts**0.5
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - told), 4.2 * error + 1e-9)


@pytest.mark.parametrize("name", ["rrpo", "srpo-furthest", "oracle-2x4"])
def test_random_places_are_the_mean_over_all_places(name):
    scheme, chain = METHODS[name](SHIFTY), Chain(5, 3, 0.6)
    fixed = [moments(replace(chain, places=p), scheme) for p in itertools.combinations(range(5), 3)]
    whole = moments(chain, scheme)
    np.testing.assert_allclose(whole.mean_M, np.mean([f.mean_M for f in fixed], axis=0))
    for what in ("square", "signal", "thoughts", "rollouts"):
        assert getattr(whole, what) == pytest.approx(np.mean([getattr(f, what) for f in fixed]))


# Closed forms and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hard", "r"), [(1, 0.3), (3, 0.5), (6, 0.9)])
def test_grpo_gives_a_signal_unless_all_rollouts_agree(hard, r):
    q = r**hard
    signal = moments(Chain(7, hard, r), METHODS["grpo"](WARM_START)).signal
    assert signal == pytest.approx(1 - q**8 - (1 - q) ** 8)


@pytest.mark.parametrize(("estimator", "scale"), [(MeanBaseline(), 3 / 4), (LeaveOneOut(), 1.0)])
def test_linear_estimators_have_the_scale_that_they_declare(estimator, scale):
    chain = Chain(6, 3, 0.6, (0, 2, 5))
    tree = _tree(chain)
    E = evaluate(tree.mdp, tree.pi)
    grad_J = _right_logits(tree, E.d[..., None] * tree.pi * E.A)
    found = moments(chain, Scheme(Split((4, 4), ()), estimator=estimator))
    assert scale == estimator.expected_scale(4)
    np.testing.assert_allclose(found.mean_M, scale * grad_J / chain.steps)


@pytest.mark.parametrize("G", [4, 8])
def test_rare_successes_give_the_efficiency_of_single_successes(G):
    r, m = 0.3, 10
    rare = G * r**m * (G - 1) * (1 - r) / ((G - 1) * (1 - r) + r)
    assert moments(Chain(m, m, r), Scheme(Split((G,), ()))).efficiency == pytest.approx(rare, rel=1e-3)


def test_a_reset_to_the_only_hard_step_gives_a_group_of_grpo():
    one, chain = Scheme(Split((8,), ())), Chain(1, 1, 0.4)
    reset = moments(chain, Scheme(Split((), (8,))))
    grpo, seed = moments(chain, one), 1 - chain.q**8
    np.testing.assert_allclose(
        (reset.total, reset.square, reset.signal), np.array([grpo.total, grpo.square, grpo.signal]) * seed
    )
    # attempts until the first failure, at most 8, come on top
    assert reset.rollouts == pytest.approx(8 * seed + (1 - chain.q**8) / (1 - chain.q))


def test_near_certainty_one_failure_is_all_there_is_to_learn_from():
    m, r = 3, 1 - 1e-6
    found = moments(Chain(4, m, r), METHODS["grpo"](WARM_START))
    assert found.signal == pytest.approx(8 * m * (1 - r), rel=1e-4)
    # its score is -1 on one of the m steps, advantage -sqrt(7), and 1 - r = 0 for the successes
    assert found.square == pytest.approx(found.signal * 7 / (8 * 4) ** 2, rel=1e-4)
    assert found.efficiency == pytest.approx(found.signal / m, rel=1e-4)


def test_a_reset_group_at_the_start_is_a_base_group():
    always_start = NearError(0.0, ((-3, 1.0),))  # clipped to the response
    gain = reset_gain(Chain(6, 4, 0.5, (0, 1, 2, 3)), Scheme(Split((4,), (4,)), always_start))
    assert (gain.success, gain.decisions, gain.length, gain.thoughts) == pytest.approx((1, 1, 1, 1))


def test_factors_of_a_reset_group_where_successes_are_rare():
    m, r = 8, 0.01
    gain = reset_gain(Chain(m, m, r), Scheme(Split((4,), (4,))))
    n = np.arange(1, m + 1)
    # a cut with n steps ahead has probability (1 - r) r^(m - n) and a success 4 r^n: a product that no n changes
    assert gain.success == pytest.approx(m * (1 - r), rel=0.02)
    assert gain.decisions == pytest.approx((m + 1) / (2 * m), rel=0.02)
    assert gain.length == pytest.approx(2 * m / ((m + 1) * (1 / n).sum()), rel=0.02)
    assert gain.thoughts == pytest.approx(m / (m - r / (1 - r)), rel=1e-6)


def test_factors_of_a_reset_group_where_successes_are_not_rare():
    """theory.md, section 11: at r = 1/2 the closed forms, 4.00, .562, .654 and 1.47, are no more than a first guide."""
    gain = reset_gain(Chain(8, 8, 0.5), Scheme(Split((4,), (4,))))
    assert (gain.success, gain.decisions, gain.length) == pytest.approx((3.463, 0.612, 0.538), abs=1e-3)
    assert gain.success * gain.decisions * gain.length == pytest.approx(1.141, abs=1e-3)


@dataclass(frozen=True)
class _Keep:
    """Keeps c thoughts, wherever the error is."""

    c: int

    def __call__(self, place_PM, steps):
        return np.broadcast_to(np.eye(steps)[self.c], (*place_PM.shape, steps))


def test_a_cut_that_is_too_early_costs_what_the_corollary_says():
    m, r, seed_exists = 10, 0.3, 1 - (0.3**10) ** 4

    def given_clean(n):
        """Efficiency of a reset with n hard thoughts ahead of it, where it kept no error."""
        chain = Chain(m, m, r)
        clean = chain.first_error_M[m - n :].sum() * seed_exists
        return moments(chain, Scheme(Split((), (4,)), _Keep(m - n))).efficiency / clean

    for n, d in ((7, 1), (6, 2), (6, 4)):
        assert given_clean(n + d) / given_clean(n) == pytest.approx(r**d * (1 + d / n), rel=5e-3)


def test_early_cuts_are_worth_as_much_as_exact_ones_and_late_ones_next_to_nothing():
    chain = Chain(8, 6, 0.5)

    def worth(cuts, seeds):
        found, grpo = moments(chain, METHODS[f"srpo-{seeds}"](cuts)), moments(chain, METHODS["grpo"](cuts))
        return found.efficiency / found.thoughts / (grpo.efficiency / grpo.thoughts)

    cuts = [NearError(), *(NearError(0.0, ((-d, 1.0),)) for d in (1, 2, 3)), UniformCut(), NearError(0.0, ((1, 1.0),))]
    # docs/theory.md, section 11
    assert [worth(c, "furthest") for c in cuts] == pytest.approx([0.95, 1.10, 1.06, 0.99, 0.37, 0.19], abs=0.005)
    assert [worth(c, "intact") for c in cuts] == pytest.approx([0.64, 0.81, 0.87, 0.88, 0.55, 0.16], abs=0.005)


def test_the_furthest_seed_succeeds_more_and_costs_less():
    chain = Chain(8, 6, 0.5)
    furthest, uniform = (reset_gain(chain, METHODS[f"oracle-{n}"](WARM_START)) for n in ("furthest", "intact"))
    assert furthest.success > 2 * uniform.success
    assert furthest.thoughts > uniform.thoughts
    assert furthest.decisions < uniform.decisions < 1


# Figures of merit and curves ------------------------------------------------------------------------------------------


def test_efficiency_of_a_batch_is_that_of_the_mean_over_questions_that_share_facts():
    r, B, F, trials = 0.3, 4, 3, 200_000
    found = moments(Chain(1, 1, r), METHODS["grpo"](WARM_START))
    rng = np.random.default_rng(0)
    s = rng.binomial(8, r, size=(trials, B))
    std = np.sqrt(s * (8 - s)) / 8
    # each success weighs (1 - s/8) / std times 1 - r, each failure (s/8) / std times r
    g = np.divide(s * (8 - s) / 64, std, out=np.zeros(s.shape), where=std > 0)
    u = np.zeros((trials, F))
    np.add.at(u, (np.arange(trials)[:, None], rng.integers(F, size=s.shape)), g / B)
    along, square = u.sum(axis=1) / F**0.5, (u**2).sum(axis=1)
    measured = along.mean() ** 2 / square.mean()
    error = 2 * along.std() / along.mean() / trials**0.5 + square.std() / square.mean() / trials**0.5
    assert found.batch_efficiency(B, F) == pytest.approx(measured, rel=4 * error)
    assert found.batch_efficiency(10**9, F) == pytest.approx(1)
    assert found.batch_efficiency(1, 1) == pytest.approx(found.efficiency)


@pytest.mark.parametrize("name", METHODS)
def test_efficiencies_are_shares(name):
    for r in (0.05, 0.5, 0.99):
        found = moments(Chain(5, 3, r), METHODS[name](WARM_START))
        assert 0 < found.efficiency < 1
        assert found.variance > 0


def test_a_step_without_memory_moves_by_the_root_of_the_efficiency():
    chain, scheme = Chain(8, 6, 0.5), METHODS["oracle-furthest"](WARM_START)
    curve = learning_curve(chain, scheme, rate=0.3, betas=(0.0, 0.0))
    found = moments(chain, scheme)
    z = 0.3 * found.batch_efficiency(PROMPTS, FACTS) ** 0.5
    # the moments are interpolated between logits 0.2 apart; 0 is one of them
    assert curve.accuracy_S[0] == chain.q
    assert curve.accuracy_S[1] == pytest.approx(float(expit(z)) ** 6, rel=1e-9)
    assert curve.spent_S[1] == pytest.approx(PROMPTS * found.thoughts)


def test_the_first_step_of_adam_does_not_depend_on_its_memory():
    chain, scheme = Chain(8, 6, 0.5), METHODS["grpo"](WARM_START)
    first = [learning_curve(chain, scheme, betas=b).accuracy_S[1] for b in ((0.0, 0.0), (0.9, 0.999))]
    assert first[0] == pytest.approx(first[1])


def test_the_rate_puts_the_area_of_grpo_at_one_half():
    assert predict(8, 6, 0.5, "grpo")["area"] == pytest.approx(0.5, abs=2e-4)
    assert predict(8, 6, 0.5, "grpo", rate=2 * RATE)["area"] > 0.6


def test_predictions_compare_with_grpo():
    grpo = predict(8, 6, 0.5, "grpo")
    assert grpo["area_minus_grpo"] == 0
    assert grpo["gain_per_thought"] == 1
    furthest, random = predict(8, 6, 0.5, "oracle-furthest"), predict(8, 6, 0.5, "rrpo")
    assert furthest["area_minus_grpo"] == pytest.approx(furthest["area"] - grpo["area"])
    assert furthest["area"] > grpo["area"] > random["area"]
    exact = predict(8, 6, 0.5, "srpo", localiser=NearError())
    assert exact == predict(8, 6, 0.5, "oracle")


# Shared facts ---------------------------------------------------------------------------------------------------------


def test_accuracy_is_the_mean_over_questions():
    known = np.array([0.1, 0.5, 0.9, 0.3])
    exact = np.mean([np.prod(known[list(facts)]) for facts in itertools.combinations(range(4), 3)])
    assert accuracy(known, 3) == pytest.approx(exact)
    assert accuracy(known, 0) == 1


@pytest.mark.parametrize("name", ["grpo", "srpo", "srpo-furthest", "oracle-furthest-whole"])
def test_a_step_on_shared_facts_has_the_exact_moments(name):
    chain, scheme, facts, prompts, trials = Chain(5, 3, 0.6), METHODS[name](SHIFTY), 7, 4, 500
    known = np.full(facts, chain.reliability)
    rows = []
    for seed in range(trials):
        rollouts = draw_step(known, chain, scheme, prompts, seed, step=1)
        u = gradient(known, rollouts, scheme)
        rows.append([u.sum(), (u**2).sum(), rollouts.account.tokens / prompts])
    exact = moments(chain, scheme)
    square = exact.square / prompts + (1 - 1 / prompts) * exact.total**2 / facts
    found = np.array(rows)
    # 12 numbers: 4 standard errors are passed by chance once in 1300 runs
    error = found.std(axis=0) / trials**0.5
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - [exact.total, square, exact.thoughts]), 4 * error + 1e-9)


def test_runs_on_shared_facts_start_where_the_curve_starts_and_follow_it():
    chain, scheme = Chain(8, 6, 0.7), METHODS["oracle-furthest-whole"](WARM_START)
    runs = [train_facts(chain, scheme, seed) for seed in range(3)]
    curve = learning_curve(chain, scheme)
    assert runs[0].accuracy_S[0] == pytest.approx(curve.accuracy_S[0])
    assert runs[0].budget == curve.budget
    # the seeds differ by about .01; the rest is what the curve leaves out
    assert np.mean([run.area for run in runs]) == pytest.approx(curve.area, abs=0.05)
    assert runs[0].area == train_facts(chain, scheme, 0).area != runs[1].area


def test_one_second_moment_for_all_facts_gives_the_curves_difference_to_grpo():
    chain, oracle, grpo = Chain(8, 2, 0.5), METHODS["oracle"](WARM_START), METHODS["grpo"](WARM_START)
    told = learning_curve(chain, oracle).area - learning_curve(chain, grpo).area
    own, pooled = (
        np.mean([np.subtract(*(train_facts(chain, s, i, pooled=p).area for s in (oracle, grpo))) for i in range(4)])
        for p in (False, True)
    )
    # -.04 by the curve; one seed's difference has a standard deviation of .012
    assert pooled == pytest.approx(told, abs=0.02)
    assert own > pooled + 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain(4, 5, 0.5), "hard must lie in 1..steps = 1..4"),
        (lambda: Chain(4, 2, 1.0), "strictly between 0 and 1"),
        (lambda: Chain(4, 2, 0.5, (1, 1)), "places must be 2 different steps below 4"),
        (lambda: NearError(0.5, ((-1, 0.5),)), "shifts must sum to 1"),
        (lambda: moments(Chain(4, 3, 0.5), Scheme(Split((), (4, 4)), UniformCut())), "no exact moments"),
        (
            lambda: moments(Chain(4, 3, 0.5), Scheme(Split((4,), (4,)), seeds=FirstFailure(share_seed=True))),
            "no exact moments",
        ),
        (lambda: predict(8, 6, 0.5, "ppo"), "no method 'ppo'; choose one of grpo"),
        (lambda: predict(8, 6, 0.001, "grpo"), "a curve starts at a reliability"),
        (lambda: moments(Chain(4, 3, 0.5), Scheme(Split((4,), ()))).batch_efficiency(1, 2), "facts must be at least"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_checker_errs_on_its_blind_facts_in_both_directions():
    def named(fact: list[int], right: list[bool]) -> int:
        asked = np.array(fact)
        episode = FactEpisode(asked, asked, np.array(right), 0, DrawKey(seed=0))
        (row,) = Checker(frozenset({7})).cut_probs([episode])
        assert row.sum() == 1
        return int(row.argmax())

    assert named([3, -1, 4, 5], [True, True, False, True]) == 2
    assert named([3, 7, -1, 4], [True, False, True, False]) == 3  # passes what is wrong: late
    assert named([7, -1, 4, 5], [True, True, False, True]) == 0  # objects to what is right: early
    assert named([3, 7, -1, -1], [True, False, True, True]) == 3  # nothing disagrees: the last


def test_a_checker_without_blind_spots_is_exact_and_its_answers_are_on_the_budget():
    chain, scheme = Chain(6, 4, 0.6), METHODS["srpo-furthest"](NearError())
    exact, free, dear = (
        train_facts(chain, scheme, 0, localiser=localiser)
        for localiser in (None, Checker(frozenset()), Checker(frozenset(), thoughts_per_answer=2))
    )
    assert free.area == exact.area
    np.testing.assert_array_equal(free.accuracy_S[: dear.accuracy_S.size], dear.accuracy_S)
    assert dear.accuracy_S.size < free.accuracy_S.size
    # before any success every prompt has four failures, and each of them is asked about
    localiser = Checker(frozenset(), thoughts_per_answer=2)
    account = draw_step(np.full(33, 1e-9), chain, scheme, 5, seed=0, step=1, localiser=localiser).account
    assert (account.localisation_calls, account.localisation_tokens) == (5 * 4, 5 * 4 * 2)
