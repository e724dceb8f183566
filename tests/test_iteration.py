"""Algorithm 1: its estimates, its step sizes, its account, and how runs end."""

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from cpi.exact import evaluate, expected_return, greedy, optimal
from cpi.improvable import NothingAcceptedError, coverage, improvable_set, oracle_statistics
from cpi.iteration import (
    Counts,
    Exact,
    ExactOracle,
    RandomResets,
    Sampled,
    SoftOracle,
    Stopped,
    StoppingRule,
    greedy_near,
    run,
    step,
)
from cpi.mdp import MDPError
from cpi.regression import FiniteClass, Tabular
from cpi.simulate import q_rollouts, sample_paths
from toy_mdps import combination_lock, decision_points, garnet, thought_tree, tightness


def knows_q(toy):
    """The finite class that holds the true Q and nothing else: no fit error."""
    return FiniteClass(evaluate(toy.mdp, toy.pi).Q[None])


# Rollouts


@pytest.mark.parametrize("sparse", [False, True])
def test_a_q_rollout_is_an_unbiased_draw_of_q(sparse):
    toy = garnet(4, 3, 5, 2, seed=0, sparse=sparse)
    E, n, rng = evaluate(toy.mdp, toy.pi), 20_000, np.random.default_rng(0)
    for h, x, y in [(0, 0, 0), (2, 3, 1), (4, 1, 2)]:
        draws = q_rollouts(toy.mdp, toy.pi, *(np.full(n, value) for value in (h, x, y)), rng)
        # Fixed seed; five standard errors (the last step has none: its reward is certain).
        assert abs(draws.mean() - E.Q[h, x, y]) <= 5 * draws.std() / np.sqrt(n) + 1e-12


def test_sampled_paths_visit_states_as_the_occupancy_says_and_return_j():
    toy = garnet(4, 3, 5, 2, seed=0)
    E, n = evaluate(toy.mdp, toy.pi), 50_000
    paths = sample_paths(toy.mdp, toy.pi, n, np.random.default_rng(0))
    for h in range(5):
        share = np.bincount(paths.x_NH[:, h], minlength=4) / n
        assert (np.abs(share - E.d[h]) <= 5 * np.sqrt(0.25 / n)).all()
    assert abs(paths.returns_N.mean() - E.J) <= 5 * paths.returns_N.std() / np.sqrt(n)


def test_sampled_paths_follow_the_kernels_and_the_policy():
    toy = thought_tree(H=4, hard=2)
    paths = sample_paths(toy.mdp, toy.pi, 500, np.random.default_rng(0))
    for h in range(4):
        assert (toy.pi[h, paths.x_NH[:, h], paths.y_NH[:, h]] > 0).all()
        if h < 3:
            assert (toy.mdp.P[h, paths.x_NH[:, h], paths.y_NH[:, h], paths.x_NH[:, h + 1]] > 0).all()


def test_rollouts_of_a_bad_policy_or_from_outside_the_mdp_are_refused():
    toy, rng, one = thought_tree(H=3, hard=1), np.random.default_rng(0), np.array([0])
    with pytest.raises(MDPError, match="pi must have shape"):
        sample_paths(toy.mdp, toy.pi[:1], 5, rng)
    with pytest.raises(MDPError, match="pi must sum to one"):
        q_rollouts(toy.mdp, toy.pi / 2, one, one, one, rng)
    for h, x, y, message in ((3, 0, 0, "h must lie in 0..2"), (0, -1, 0, "x must lie"), (0, 0, 9, "y must lie")):
        with pytest.raises(MDPError, match=message):
            q_rollouts(toy.mdp, toy.pi, one + h, one + x, one + y, rng)


# One step with exact estimates: the theorem's gains


@given(strategies.mdps_with_policies())
def test_an_exact_step_of_cpi_rr_gains_what_theorem_1a_rests_on(drawn):
    mdp, pi = drawn
    after = step(mdp, pi, RandomResets(), Exact(), np.random.default_rng(0))
    gain = expected_return(mdp, after.pi) - expected_return(mdp, pi)
    assert gain >= after.estimate.Ahat**2 / (2 * mdp.H * mdp.R_max) - 1e-12


@given(strategies.mdps_with_policies(), st.data())
def test_an_exact_step_of_cpi_caro_gains_what_theorem_1b_rests_on(drawn, data):
    mdp, pi = drawn
    E = evaluate(mdp, pi)
    visited = np.where(E.d > 0, E.A.max(axis=-1), 0.0).max()
    tau = data.draw(st.floats(0.1, 1.0)) * max(visited, 1e-3)  # at or below the best gain, where there is any
    try:
        after = step(mdp, pi, ExactOracle(tau), Exact(), np.random.default_rng(0))
    except NothingAcceptedError:
        assert visited < tau  # nothing to gain is the only excuse
        return
    p = coverage(E.d, improvable_set(E.A, tau)).p
    assert after.estimate.Ahat >= tau - 1e-12
    gain = expected_return(mdp, after.pi) - E.J
    assert gain >= p * after.estimate.Ahat**2 / (4 * mdp.H * mdp.R_max) - 1e-12


@given(strategies.mdps_with_policies(), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_an_exact_step_with_a_soft_oracle_gains_at_least_q_ahat_squared_over_4_h_r(drawn, kappa, rho):
    mdp, pi = drawn
    E = evaluate(mdp, pi)
    tau = max(np.where(E.d > 0, E.A.max(axis=-1), 0.0).max() / 2, 1e-3)
    try:
        after = step(mdp, pi, SoftOracle(tau, kappa, rho), Exact(), np.random.default_rng(0))
    except NothingAcceptedError:
        assert coverage(E.d, improvable_set(E.A, tau)).p == 0
        return
    q = coverage(E.d, after.g).p
    gain = expected_return(mdp, after.pi) - E.J
    assert gain >= q * after.estimate.Ahat**2 / (4 * mdp.H * mdp.R_max) - 1e-12


@pytest.mark.parametrize("variant", [ExactOracle(0.3), SoftOracle(0.3, 1.0, 1.0)])
def test_an_oracle_leaves_the_policy_untouched_off_the_improvable_set(variant):
    toy = decision_points(6, decisive=2, trifle=0.1)
    after = step(toy.mdp, toy.pi, variant, Exact(), np.random.default_rng(0))
    decisive = np.isin(np.arange(6), toy.decisive)
    np.testing.assert_array_equal(after.pi[~decisive], toy.pi[~decisive])
    assert (after.pi[decisive, 0, 1] > toy.c).all()


@pytest.mark.parametrize(("kappa", "rho"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.6, 0.7)])
def test_a_soft_oracle_has_the_recall_and_precision_it_was_given(kappa, rho):
    toy = decision_points(10, decisive=3)
    E = evaluate(toy.mdp, toy.pi)
    stats = oracle_statistics(E.d, improvable_set(E.A, 0.3), SoftOracle(0.3, kappa, rho).acceptance(E))
    np.testing.assert_allclose([stats.kappa, stats.rho], [kappa, rho], atol=1e-12)


def test_a_precision_out_of_reach_becomes_accepting_everything_off_the_set():
    toy = decision_points(10, decisive=3)
    E = evaluate(toy.mdp, toy.pi)
    g = SoftOracle(0.3, 1.0, 0.1).acceptance(E)  # below p = 0.3, which accepting everything has
    np.testing.assert_array_equal(g, 1.0)


# One step from samples


@pytest.mark.parametrize("variant", [RandomResets(), ExactOracle(0.3), SoftOracle(0.3, 0.8, 0.6)])
def test_the_sampled_estimate_is_unbiased_when_q_is_known(variant):
    toy = decision_points(4, decisive=2, c=0.4, trifle=0.05)
    rng = np.random.default_rng(0)
    exact = step(toy.mdp, toy.pi, variant, Exact(), rng).estimate
    draws = [step(toy.mdp, toy.pi, variant, Sampled(50, knows_q(toy)), rng).estimate for _ in range(400)]
    Ahat = np.array([d.Ahat for d in draws])
    # Fixed seed; five standard errors.
    assert abs(Ahat.mean() - exact.Ahat) <= 5 * Ahat.std() / np.sqrt(len(Ahat))
    acceptance = np.array([d.acceptance for d in draws])
    # n / trials overestimates q by at most (1 - q) / n in the mean.
    assert abs(acceptance.mean() - exact.acceptance) <= 5 * acceptance.std() / np.sqrt(len(Ahat)) + 1 / 50


def test_counts_are_exact():
    toy = decision_points(5, decisive=1)
    rng = np.random.default_rng(0)
    blind = step(toy.mdp, toy.pi, RandomResets(), Sampled(70, knows_q(toy)), rng).estimate
    assert blind.counts == Counts(q_rollouts=70, cheap_trials=70, oracle_queries=0)
    asked = step(toy.mdp, toy.pi, ExactOracle(0.3), Sampled(70, knows_q(toy)), rng).estimate
    assert asked.counts.q_rollouts == 70
    assert asked.counts.cheap_trials == asked.counts.oracle_queries > 70
    assert asked.acceptance == 70 / asked.counts.cheap_trials


@pytest.mark.parametrize(("variant", "c"), [(RandomResets(), 1), (ExactOracle(0.3), 2), (SoftOracle(0.3, 1.0, 0.5), 2)])
def test_the_step_size_is_ahat_over_c_h_squared_r_max(variant, c):
    toy = decision_points(4, decisive=2)
    after = step(toy.mdp, toy.pi, variant, Sampled(200, knows_q(toy)), np.random.default_rng(1))
    assert after.estimate.Ahat > 0
    np.testing.assert_allclose(after.alpha, after.estimate.Ahat / (c * 16 * toy.mdp.R_max), rtol=1e-14)


def test_the_step_size_never_exceeds_one():
    toy = tightness(1.0, tau=0.5, k=8)
    steps = [
        step(toy.mdp, toy.pi, RandomResets(), Sampled(3, Tabular(1, 2, 8)), np.random.default_rng(seed))
        for seed in range(40)
    ]
    assert max(s.estimate.Ahat for s in steps) > toy.R  # an unlucky estimate that would overshoot
    assert max(s.alpha for s in steps) == 1.0


def test_a_non_positive_estimate_makes_no_update():
    toy = tightness(0.05, tau=0.1)
    steps = [
        step(toy.mdp, toy.pi, RandomResets(), Sampled(20, knows_q(toy)), np.random.default_rng(seed))
        for seed in range(60)
    ]
    refused = [s for s in steps if s.estimate.Ahat <= 0]
    assert len(refused) > 5  # Proposition 10's regime: about half of all estimates
    for s in refused:
        assert s.alpha == 0.0
        np.testing.assert_array_equal(s.pi, toy.pi)


def test_an_optimal_policy_is_left_as_it_is():
    mdp = garnet(5, 3, 4, 2, seed=3).mdp
    _, Q, pi_star = optimal(mdp)
    after = step(mdp, pi_star, RandomResets(), Sampled(100, FiniteClass(Q[None])), np.random.default_rng(0))
    assert after.estimate.Ahat == 0.0
    np.testing.assert_array_equal(after.pi, pi_star)


def test_a_state_without_data_keeps_its_policy():
    pi = np.array([[[0.25, 0.75], [0.5, 0.5]]])
    Q = np.array([[[0.0, 0.0], [1.0, 2.0]]])
    np.testing.assert_array_equal(greedy_near(Q, pi), [[[0.25, 0.75], [0.0, 1.0]]])


@given(strategies.mdps_with_policies(count=2))
def test_greedy_near_is_greedy_and_a_policy(drawn):
    _, pi, other = drawn
    Q = np.round(4 * other) / 4  # coarse values: ties are common
    chosen = greedy_near(Q, pi)
    np.testing.assert_allclose((chosen * Q).sum(axis=-1), Q.max(axis=-1), atol=1e-14)
    np.testing.assert_allclose(chosen.sum(axis=-1), 1.0, atol=1e-14)
    untied = (Q.max(axis=-1, keepdims=True) == Q).sum(axis=-1) == 1
    np.testing.assert_array_equal(chosen[untied], greedy(Q)[untied])


# Many steps


@settings(max_examples=25)
@given(strategies.mdps_with_policies(max_H=3))
def test_exact_runs_never_lose_and_an_exact_oracle_ends_within_h_tau_of_its_greedy_gain(drawn):
    mdp, pi = drawn
    tau = 0.25 * mdp.R_max
    done = run(mdp, pi, ExactOracle(tau), Exact(), np.random.default_rng(0), StoppingRule(max_steps=20_000))
    assert (np.diff(done.J) >= -1e-12).all()
    assert done.converged
    assert done.stopped_because is Stopped.NOTHING_ACCEPTED
    # No visited state is improvable any more, and every step before gained at least tau^2 p / (4 H R_max).
    E = evaluate(mdp, done.pi)
    assert coverage(E.d, improvable_set(E.A, tau)).p == 0
    assert done.J[-1] - done.J[0] >= (done.acceptance * tau**2).sum() / (4 * mdp.H * mdp.R_max) - 1e-10


def test_a_run_of_random_resets_approaches_the_optimum_and_stops_at_its_tolerance():
    toy = combination_lock(3, c=0.5)
    done = run(toy.mdp, toy.pi, RandomResets(), Exact(), np.random.default_rng(0), StoppingRule(2_000, tol=1e-2))
    assert done.stopped_because is Stopped.NO_IMPROVEMENT
    assert done.converged
    # J* - J = H * Ahat up to the change of occupancy, which is below 1.1 so near the optimum.
    assert toy.J_star - done.J[-1] < 3 * 1e-2 * 1.1
    assert done.Ahat[-1] <= 1e-2 < done.Ahat[-2]


def test_a_run_that_hits_max_steps_has_not_converged():
    toy = combination_lock(4)
    done = run(toy.mdp, toy.pi, RandomResets(), Exact(), np.random.default_rng(0), StoppingRule(max_steps=7))
    assert not done.converged
    assert done.stopped_because is Stopped.MAX_STEPS
    assert done.steps == 7
    assert done.J.shape == (8,)


def test_a_run_stops_at_its_coverage_goal_within_the_proven_number_of_steps():
    toy = decision_points(4, decisive=2)
    tau, p0 = 0.1, 0.2
    rule = StoppingRule(max_steps=100_000, acceptance_goal=p0)
    done = run(toy.mdp, toy.pi, ExactOracle(tau), Exact(), np.random.default_rng(0), rule)
    assert done.converged
    # Either the goal is met at a step, or coverage falls from above it to nothing at all.
    assert done.stopped_because in (Stopped.COVERAGE, Stopped.NOTHING_ACCEPTED)
    assert done.steps <= 16 * 4**2 * toy.mdp.R_max**2 / (tau**2 * p0)


def test_the_coverage_goal_is_reported_when_it_is_met():
    toy = decision_points(10, decisive=1)
    rule = StoppingRule(acceptance_goal=0.15)
    done = run(toy.mdp, toy.pi, ExactOracle(0.3), Sampled(500, knows_q(toy)), np.random.default_rng(0), rule)
    assert done.stopped_because is Stopped.COVERAGE
    assert done.steps == 1


def test_a_sampled_run_adds_up_its_account_including_the_last_rejected_trials():
    toy = decision_points(4, decisive=1)
    seen = []
    estimator = Sampled(300, Tabular(4, 2, 2), max_trials=20_000)
    done = run(toy.mdp, toy.pi, ExactOracle(0.3), estimator, np.random.default_rng(0), on_step=seen.append)
    assert done.stopped_because is Stopped.NOTHING_ACCEPTED
    assert len(seen) == done.steps
    assert done.counts.q_rollouts == 300 * done.steps
    assert done.counts.cheap_trials == sum(s.estimate.counts.cheap_trials for s in seen) + 20_000
    assert done.counts.oracle_queries == done.counts.cheap_trials
    assert done.J[-1] > done.J[0]


def test_patience_outlasts_unlucky_estimates():
    toy = tightness(0.3, tau=0.5, k=2)
    ends = {}
    for patience in (1, 30):
        rule = StoppingRule(max_steps=300, patience=patience)
        runs = [
            run(toy.mdp, toy.pi, RandomResets(), Sampled(8, knows_q(toy)), np.random.default_rng(seed), rule)
            for seed in range(20)
        ]
        ends[patience] = np.mean([r.J[-1] for r in runs])
    assert ends[30] > ends[1] + 0.01


def test_the_seed_decides_a_run():
    toy = garnet(4, 3, 3, 2)
    one, same, other = (
        run(
            toy.mdp,
            toy.pi,
            RandomResets(),
            Sampled(50, Tabular(3, 4, 3)),
            np.random.default_rng(seed),
            StoppingRule(20),
        )
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.pi, same.pi)
    assert not np.array_equal(one.pi, other.pi)


# Bad input


def test_bad_settings_are_refused():
    with pytest.raises(MDPError, match="n must be at least 1"):
        Sampled(0, Tabular(1, 1, 1))
    for kappa, rho in ((0.0, 0.5), (0.5, 1.5)):
        with pytest.raises(MDPError, match="kappa and rho must lie in"):
            SoftOracle(0.1, kappa, rho)
    with pytest.raises(MDPError, match="max_steps and patience"):
        StoppingRule(max_steps=0)


def test_a_step_with_an_empty_improvable_set_says_so():
    toy = combination_lock(3)
    with pytest.raises(NothingAcceptedError, match="accepts nothing that pi visits"):
        step(toy.mdp, toy.pi, ExactOracle(5.0), Exact(), np.random.default_rng(0))
    with pytest.raises(NothingAcceptedError, match="accepted 0 of 100 trials"):
        step(toy.mdp, toy.pi, ExactOracle(5.0), Sampled(5, Tabular(3, 2, 2), max_trials=100), np.random.default_rng(0))
    with pytest.raises(MDPError, match="tau must be positive"):
        step(toy.mdp, toy.pi, ExactOracle(0.0), Exact(), np.random.default_rng(0))
    with pytest.raises(MDPError, match="pi must have shape"):
        step(toy.mdp, toy.pi[:2], RandomResets(), Exact(), np.random.default_rng(0))
