"""Exact evaluation against three independent witnesses: enumeration of all paths, QuantEcon, and identities."""

from itertools import product

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import polynomial
from quantecon.markov import DiscreteDP, backward_induction
from scipy.sparse import csr_array

from cpi.exact import (
    advantages,
    evaluate,
    expected_return,
    greedy,
    mixture,
    occupancy,
    optimal,
    policy_advantage,
    return_polynomial,
    state_values,
    values,
)
from cpi.mdp import FiniteMDP, MDPError
from toy_mdps import garnet

# All quantities are at most H * R_max = 18, and each is a sum of fewer than 1000 products: rounding stays below 1e-12.
ATOL = 1e-11


def all_paths(mdp, pi):
    """(probability, states, actions) of every path."""
    for states in product(range(mdp.X), repeat=mdp.H):
        for actions in product(range(mdp.Y), repeat=mdp.H):
            prob = mdp.mu[states[0]]
            for h in range(mdp.H):
                prob *= pi[h, states[h], actions[h]]
                prob *= mdp.P[h, states[h], actions[h], states[h + 1]] if h + 1 < mdp.H else 1.0
            if prob > 0:
                yield prob, states, actions


@given(strategies.mdps_with_policies(max_X=3, max_Y=2, max_H=3))
def test_return_and_occupancy_equal_the_sum_over_all_paths(drawn):
    mdp, pi = drawn
    J, d, reward_to_go = 0.0, np.zeros((mdp.H, mdp.X)), np.zeros((mdp.H, mdp.X, mdp.Y))
    visits = np.zeros((mdp.H, mdp.X, mdp.Y))
    for prob, states, actions in all_paths(mdp, pi):
        rewards = mdp.r[range(mdp.H), states, actions]
        J += prob * rewards.sum()
        for h in range(mdp.H):
            d[h, states[h]] += prob
            visits[h, states[h], actions[h]] += prob
            reward_to_go[h, states[h], actions[h]] += prob * rewards[h:].sum()
    E = evaluate(mdp, pi)
    np.testing.assert_allclose(E.J, J, atol=ATOL)
    np.testing.assert_allclose(E.d, d, atol=ATOL)
    np.testing.assert_allclose(E.Q * visits, reward_to_go, atol=ATOL)


@given(strategies.mdps_with_policies())
def test_one_evaluation_agrees_with_the_separate_functions(drawn):
    mdp, pi = drawn
    E = evaluate(mdp, pi)
    V, Q = values(mdp, pi)
    np.testing.assert_array_equal(E.V, V)
    np.testing.assert_array_equal(E.V, state_values(mdp, pi))
    np.testing.assert_array_equal(E.Q, Q)
    np.testing.assert_array_equal(E.A, advantages(mdp, pi))
    np.testing.assert_array_equal(E.d, occupancy(mdp, pi))
    np.testing.assert_array_equal(E.J, expected_return(mdp, pi))
    np.testing.assert_allclose((E.d.sum(axis=-1)), 1.0, atol=ATOL)


@given(strategies.mdps_with_policies())
def test_advantages_of_a_policy_average_to_zero_under_it(drawn):
    mdp, pi = drawn
    np.testing.assert_allclose((pi * advantages(mdp, pi)).sum(axis=-1), 0.0, atol=ATOL)


@given(strategies.mdps_with_policies(count=2))
def test_performance_difference_lemma(drawn):
    mdp, pi, pi_new = drawn
    gain = (occupancy(mdp, pi_new) * (pi_new * advantages(mdp, pi)).sum(axis=-1)).sum()
    np.testing.assert_allclose(expected_return(mdp, pi_new) - expected_return(mdp, pi), gain, atol=ATOL)


@given(strategies.mdps_with_policies(count=2), strategies.alphas())
def test_return_along_a_mixture_is_its_polynomial(drawn, alpha):
    mdp, pi, pi_new = drawn
    c = return_polynomial(mdp, pi, pi_new)
    assert c.shape == (mdp.H + 1,)
    # Coefficients reach binomial(6, 3) * 2^3 * H R_max: rounding of their alternating sum stays below 1e-11.
    J = expected_return(mdp, mixture(pi, pi_new, alpha))
    np.testing.assert_allclose(polynomial.polyval(alpha, c), J, atol=1e-10)
    np.testing.assert_allclose(c[1], mdp.H * policy_advantage(mdp, pi, pi_new), atol=1e-10)


@given(strategies.mdps(max_X=3, max_Y=3, max_H=2))
def test_no_deterministic_policy_beats_the_optimal_one(mdp):
    V, Q, pi_star = optimal(mdp)
    best = max(
        float(expected_return(mdp, np.eye(mdp.Y)[np.array(choice).reshape(mdp.H, mdp.X)]))
        for choice in product(range(mdp.Y), repeat=mdp.H * mdp.X)
    )
    np.testing.assert_allclose(mdp.mu @ V[0], best, atol=ATOL)
    np.testing.assert_allclose(expected_return(mdp, pi_star), best, atol=ATOL)
    np.testing.assert_array_equal(Q.max(axis=-1), V[:-1])


@pytest.mark.parametrize(("X", "Y", "H", "branching"), [(1, 1, 1, 1), (7, 3, 9, 2), (30, 4, 25, 30), (50, 5, 40, 5)])
@pytest.mark.parametrize("sparse", [False, True])
def test_quantecon_agrees_on_stationary_backward_induction(X, Y, H, branching, sparse):
    mdp = garnet(X, Y, H, branching, seed=X, stationary=True, sparse=sparse).mdp
    dense = garnet(X, Y, H, branching, seed=X, stationary=True).mdp
    V_qe, sigmas = backward_induction(DiscreteDP(dense.r[0], dense.P[0], 1 - 1e-15), H)
    V, Q, _ = optimal(mdp)
    np.testing.assert_allclose(V, V_qe, atol=1e-10 * H)
    # QuantEcon's greedy action must be among ours; which of two equal ones it names is its own affair.
    chosen = np.take_along_axis(Q, sigmas[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, V[:-1], atol=1e-10 * H)


@pytest.mark.parametrize("seed", range(5))
def test_quantecon_agrees_on_the_evaluation_of_a_deterministic_policy(seed):
    toy = garnet(12, 3, 15, 4, seed=seed, stationary=True)
    choice_X = np.random.default_rng(seed).integers(3, size=12)
    r_X, P_XX = DiscreteDP(toy.mdp.r[0], toy.mdp.P[0], 0.9).RQ_sigma(choice_X)
    V = np.zeros(12)
    for _ in range(15):
        V = r_X + P_XX @ V
    ours, _ = values(toy.mdp, np.broadcast_to(np.eye(3)[choice_X], (15, 12, 3)))
    np.testing.assert_allclose(ours[0], V, atol=1e-11)


@given(strategies.mdps_with_policies(count=2))
def test_sparse_and_dense_mdps_have_the_same_values(drawn):
    mdp, pi, pi_new = drawn
    twin = FiniteMDP(
        [csr_array(P.reshape(-1, mdp.X)) for P in mdp.P],
        mdp.r,
        mdp.mu,
        mdp.R_max,
    )
    ours, theirs = evaluate(twin, pi), evaluate(mdp, pi)
    for name in ("V", "Q", "A", "d", "J"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=ATOL)
    np.testing.assert_allclose(return_polynomial(twin, pi, pi_new), return_polynomial(mdp, pi, pi_new), atol=1e-10)
    np.testing.assert_allclose(optimal(twin)[0], optimal(mdp)[0], atol=ATOL)


@given(strategies.stacks())
def test_a_stack_evaluates_like_its_members_one_by_one(drawn):
    stack, pi, pi_new = drawn
    E, c, best = evaluate(stack, pi), return_polynomial(stack, pi, pi_new), optimal(stack)
    gain = policy_advantage(stack, pi, pi_new)
    for b in range(len(stack)):
        one = evaluate(stack[b], pi[b])
        for name in ("V", "Q", "A", "d", "J"):
            np.testing.assert_allclose(getattr(E, name)[b], getattr(one, name), atol=ATOL)
        np.testing.assert_allclose(c[b], return_polynomial(stack[b], pi[b], pi_new[b]), atol=1e-10)
        np.testing.assert_allclose(gain[b], policy_advantage(stack[b], pi[b], pi_new[b]), atol=ATOL)
        for ours, alone in zip(best, optimal(stack[b]), strict=True):
            np.testing.assert_allclose(ours[b], alone, atol=ATOL)


@given(strategies.mdps_with_policies(count=3))
def test_many_policies_at_once_evaluate_like_one_by_one(drawn):
    mdp, *policies = drawn
    E = evaluate(mdp, np.stack(policies))
    for m, pi in enumerate(policies):
        one = evaluate(mdp, pi)
        for name in ("V", "Q", "A", "d", "J"):
            np.testing.assert_allclose(getattr(E, name)[m], getattr(one, name), atol=ATOL)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("H", [1, 2, 3, 20])
def test_time_independent_policies_take_a_short_cut_to_the_same_values(sparse, H):
    mdp = garnet(7, 3, H, 4, seed=H, stationary=True, sparse=sparse).mdp
    rng = np.random.default_rng(H)
    for pi_XY in (rng.dirichlet(np.ones(3), 7), np.eye(3)[rng.integers(3, size=7)]):
        pi = np.broadcast_to(pi_XY, (H, 7, 3))
        short, copied = evaluate(mdp, pi), evaluate(mdp, pi.copy())
        general = evaluate(mdp, pi[None])  # many policies at once know no short cut
        for name in ("V", "Q", "A", "d", "J"):
            np.testing.assert_allclose(getattr(short, name), getattr(general, name)[0], atol=ATOL)
            np.testing.assert_array_equal(getattr(short, name), getattr(copied, name))
        np.testing.assert_array_equal(state_values(mdp, pi), short.V)


def test_policies_that_differ_only_in_the_middle_take_no_short_cut():
    toy = garnet(4, 2, 5, 3, stationary=True)
    pi = toy.pi.copy()
    pi[2] = (1.0, 0.0)
    np.testing.assert_allclose(evaluate(toy.mdp, pi).V, evaluate(toy.mdp, pi[None]).V[0], atol=ATOL)


@given(strategies.mdps_with_policies(count=2), st.floats(0, 1))
def test_a_mixture_is_a_policy_between_its_ends(drawn, alpha):
    _, pi, pi_new = drawn
    mixed = mixture(pi, pi_new, alpha)
    np.testing.assert_allclose(mixed.sum(axis=-1), 1.0, atol=1e-12)
    assert (mixed >= np.minimum(pi, pi_new) - 1e-15).all()
    assert (mixed <= np.maximum(pi, pi_new) + 1e-15).all()


def test_greedy_breaks_ties_towards_the_lowest_index():
    np.testing.assert_array_equal(greedy([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]]), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_a_step_size_outside_zero_one_is_refused(alpha):
    pi = np.full((1, 1, 2), 0.5)
    with pytest.raises(MDPError, match=r"alpha must lie in \[0, 1\]"):
        mixture(pi, pi, alpha)


def test_a_policy_of_another_mdp_is_refused():
    toy = garnet(3, 2, 2, 2)
    for function in (values, evaluate, occupancy, expected_return, advantages):
        with pytest.raises(MDPError, match="pi must have shape"):
            function(toy.mdp, toy.pi[:, :2])
    with pytest.raises(MDPError, match="pi_new must have shape"):
        policy_advantage(toy.mdp, toy.pi, toy.pi[:1])
