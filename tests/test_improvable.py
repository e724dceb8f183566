"""Improvable sets, coverage, oracles, and Algorithm 3's sampler."""

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cpi.exact import evaluate, greedy
from cpi.improvable import (
    CreditSampler,
    NothingAcceptedError,
    coverage,
    credit_law,
    improvable_set,
    oracle_statistics,
    restrict,
    soft_mixture,
)
from cpi.mdp import MDPError
from toy_mdps import garnet, thought_tree


@given(strategies.mdps_with_policies(), strategies.taus())
def test_the_greedy_action_gains_at_least_tau_exactly_on_the_improvable_set(drawn, share):
    mdp, pi = drawn
    A = evaluate(mdp, pi).A
    tau = share * mdp.R_max
    G = improvable_set(A, tau)
    gain = (greedy(A) * A).sum(axis=-1)
    assert (gain[G] >= tau).all()
    assert (gain[~G] < tau).all()


@given(strategies.mdps_with_policies(), st.data())
def test_a_larger_threshold_never_covers_more(drawn, data):
    mdp, pi = drawn
    E = evaluate(mdp, pi)
    low, high = sorted((data.draw(strategies.taus()), data.draw(strategies.taus())))
    few, many = coverage(E.d, improvable_set(E.A, high)), coverage(E.d, improvable_set(E.A, low))
    assert (few.p_H <= many.p_H).all()
    assert 0 <= few.p <= many.p <= 1 + 1e-12


@given(strategies.mdps_with_policies(count=2), st.data())
def test_soft_mixture_with_a_zero_one_oracle_is_the_restriction(drawn, data):
    mdp, pi, pi_new = drawn
    G = data.draw(strategies.soft_oracles(mdp)) > 0.5
    np.testing.assert_array_equal(soft_mixture(pi, pi_new, G), restrict(pi, pi_new, G))


@given(strategies.mdps_with_policies(), st.data())
def test_oracle_statistics_are_conditional_probabilities(drawn, data):
    mdp, pi = drawn
    d = evaluate(mdp, pi).d
    g = 0.25 + 0.75 * data.draw(strategies.soft_oracles(mdp))  # accepts everywhere a little: q > 0
    G = np.zeros(d.shape, dtype=bool)
    G[0] = True  # p >= 1/H > 0
    stats = oracle_statistics(d, G, g)
    law = credit_law(d, g)
    np.testing.assert_allclose(law.sum(), 1.0, atol=1e-12)
    np.testing.assert_allclose(stats.rho, law[G].sum(), atol=1e-12)
    np.testing.assert_allclose(stats.q * stats.rho, stats.kappa * stats.p, atol=1e-12)
    np.testing.assert_allclose(stats.q, coverage(d, g).p, atol=1e-12)


@given(strategies.mdps_with_policies())
def test_the_exact_oracle_has_precision_and_recall_one_and_random_resets_have_precision_p(drawn):
    mdp, pi = drawn
    d = evaluate(mdp, pi).d
    G = np.zeros(d.shape, dtype=bool)
    G[-1] = True
    exact, blind = oracle_statistics(d, G, G), oracle_statistics(d, G, np.ones(d.shape))
    np.testing.assert_allclose([exact.kappa, exact.rho, exact.q], [1, 1, exact.p], atol=1e-12)
    np.testing.assert_allclose([blind.kappa, blind.rho, blind.q], [1, blind.p, 1], atol=1e-12)


def test_a_stack_of_oracles_has_a_law_for_each_member():
    d = np.array([[[0.5, 0.5]], [[1.0, 0.0]]])
    g = np.array([[[1.0, 0.0]], [[0.5, 1.0]]])
    np.testing.assert_array_equal(credit_law(d, g), [[[1.0, 0.0]], [[1.0, 0.0]]])


# Algorithm 3


@pytest.mark.parametrize("seed", range(3))
def test_algorithm_3_draws_from_the_exact_credit_law(seed):
    toy = garnet(4, 3, 5, 3, seed=seed)
    d = evaluate(toy.mdp, toy.pi).d
    g = np.random.default_rng(seed).choice([0.0, 0.3, 1.0], size=d.shape)
    law, n = credit_law(d, g), 40_000
    draws = CreditSampler(d, g).draw(n, np.random.default_rng(seed))
    counts = np.zeros(d.shape)
    np.add.at(counts, (draws.h_N, draws.x_N), 1)
    assert (counts[law == 0] == 0).all()
    # Fixed seeds; an exact sampler fails one such test with probability 10^-3.
    assert chisquare(counts[law > 0], n * law[law > 0]).pvalue > 1e-3


@pytest.mark.parametrize("q", [1.0, 0.3, 0.01])
def test_algorithm_3_pays_n_over_q_cheap_trials_and_n_rollouts(q):
    d, n = np.full((2, 5), 0.2), 2_000
    draws = CreditSampler(d, np.full(d.shape, q)).draw(n, np.random.default_rng(1))
    assert draws.q_rollouts == n
    # The number of trials is negative binomial: mean n/q, standard deviation sqrt(n (1 - q)) / q. Five of them.
    assert abs(draws.cheap_trials - n / q) <= 5 * np.sqrt(n * (1 - q)) / q


def test_the_count_of_trials_ends_with_the_last_accepted_draw():
    """Batches must not be paid for beyond the n-th acceptance: one draw at a time costs the same on average."""
    sampler = CreditSampler(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]))
    rng = np.random.default_rng(0)
    singles = [sampler.draw(1, rng).cheap_trials for _ in range(4_000)]
    # Geometric with mean 2 and standard deviation sqrt(2): five standard errors.
    assert abs(np.mean(singles) - 2) <= 5 * np.sqrt(2 / 4_000)


@given(strategies.mdps_with_policies(), st.data(), st.integers(0, 2**32 - 1))
def test_algorithm_3_never_draws_what_is_unvisited_or_rejected(drawn, data, seed):
    mdp, pi = drawn
    d = evaluate(mdp, pi).d
    g = data.draw(strategies.soft_oracles(mdp))
    g[0, np.argmax(d[0])] = 1.0
    draws = CreditSampler(d, g).draw(50, np.random.default_rng(seed))
    assert (d[draws.h_N, draws.x_N] > 0).all()
    assert (g[draws.h_N, draws.x_N] > 0).all()


def test_no_draws_cost_nothing():
    draws = CreditSampler(np.ones((1, 1)), np.ones((1, 1))).draw(0, np.random.default_rng(0))
    assert (draws.cheap_trials, draws.q_rollouts) == (0, 0)


# Bad input


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan])
def test_a_threshold_that_is_not_positive_is_refused(tau):
    with pytest.raises(MDPError, match="tau must be positive"):
        improvable_set(np.zeros((1, 1, 1)), tau)


def test_an_oracle_that_accepts_nothing_ends_after_a_bounded_number_of_trials():
    with pytest.raises(NothingAcceptedError, match=r"accepted 0 of 5000 trials, 10 draws were asked for") as caught:
        CreditSampler(np.ones((1, 1)), np.zeros((1, 1)), max_trials=5_000).draw(10, np.random.default_rng(0))
    assert caught.value.trials == 5_000


def test_an_oracle_that_accepts_too_little_says_how_many_it_gave():
    d = np.array([[0.999, 0.001]])
    with pytest.raises(NothingAcceptedError, match=r"accepted \d+ of 2000 trials, 100 draws"):
        CreditSampler(d, np.array([[0.0, 1.0]]), max_trials=2_000).draw(100, np.random.default_rng(0))


def test_statistics_of_an_empty_improvable_set_or_of_a_silent_oracle_are_refused():
    d = np.array([[1.0, 0.0]])
    with pytest.raises(MDPError, match="the improvable set has no mass"):
        oracle_statistics(d, np.array([[False, True]]), np.ones((1, 2)))
    with pytest.raises(NothingAcceptedError, match="accepts nothing that pi visits"):
        oracle_statistics(d, np.array([[True, True]]), np.array([[0.0, 1.0]]))
    with pytest.raises(NothingAcceptedError, match="accepts nothing that pi visits"):
        credit_law(d, np.array([[0.0, 1.0]]))


def test_acceptances_outside_zero_one_and_shapes_that_differ_are_refused():
    toy = thought_tree(H=2)
    for g in (np.full((2, 2), 1.5), np.full((2, 2), -0.1), np.full((2, 2), np.nan)):
        with pytest.raises(MDPError, match=r"must lie in \[0, 1\]"):
            soft_mixture(toy.pi, toy.pi, g)
    with pytest.raises(MDPError, match="d and g must have one shape"):
        CreditSampler(np.ones((1, 2)), np.ones((1, 1)))
    with pytest.raises(MDPError, match="max_trials must be at least 1"):
        CreditSampler(np.ones((1, 1)), np.ones((1, 1)), max_trials=0)
