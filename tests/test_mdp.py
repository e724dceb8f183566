"""FiniteMDP, MDPStack, and the strategies that all theory tests draw from."""

import numpy as np
import pytest
import strategies
from hypothesis import find, given
from hypothesis import strategies as st
from scipy import sparse

from cpi.draws import inverse_cdf
from cpi.exact import occupancy
from cpi.mdp import FiniteMDP, MDPError, MDPStack, check_policy


def good(H=2, X=3, Y=2):
    P = np.full((H, X, Y, X), 1 / X)
    return {"P": P, "r": np.zeros((H, X, Y)), "mu": np.full(X, 1 / X)}


def csr_twin(mdp):
    kernels = [sparse.csr_array(mdp.P[h].reshape(-1, mdp.X)) for h in range(mdp.H)]
    return FiniteMDP(kernels, mdp.r, mdp.mu, mdp.R_max)


# The strategies themselves


@given(strategies.mdps_with_policies(count=2))
def test_strategies_give_valid_mdps_and_policies(drawn):
    mdp, *policies = drawn
    assert mdp.X <= 5
    assert mdp.Y <= 4
    assert mdp.H <= 6
    for pi in policies:
        np.testing.assert_allclose(check_policy(mdp, pi).sum(axis=-1), 1.0, atol=1e-12)


@given(st.data(), strategies.mdps())
def test_strategies_give_deterministic_policies_and_oracles_that_accept_somewhere(data, mdp):
    pi = data.draw(strategies.deterministic_policies(mdp))
    assert ((pi == 0) | (pi == 1)).all()
    g = data.draw(strategies.soft_oracles(mdp))
    assert g.shape == (mdp.H, mdp.X)
    assert 0 < g.max() <= 1


def reaches_nothing_somewhere(drawn):
    mdp, pi = drawn
    return bool((occupancy(mdp, pi)[-1] == 0).any()) and mdp.X > 1


def is_dense(drawn):
    mdp, pi = drawn
    return mdp.X > 2 and mdp.H > 2 and bool((mdp.P > 0).all() and (pi > 0).all())


@pytest.mark.parametrize("corner", [reaches_nothing_somewhere, is_dense])
def test_strategies_reach_the_corners_where_bounds_break(corner):
    find(strategies.mdps_with_policies(), corner)  # raises NoSuchExample if the strategy cannot


# Storage


def test_stationary_mdp_stores_its_kernel_once():
    P = np.full((3, 2, 3), 1 / 3)
    mdp = FiniteMDP.stationary(P, np.ones((3, 2)), np.full(3, 1 / 3), H=50)
    assert mdp.P.shape == (50, 3, 2, 3)
    assert mdp.P.strides[0] == 0
    assert mdp.P.base is not None


def test_arrays_of_an_mdp_cannot_be_written_to():
    mdp = FiniteMDP(**good())
    for array in (mdp.P, mdp.r, mdp.mu):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@given(strategies.mdps(), st.data())
def test_sparse_and_dense_kernels_act_alike(mdp, data):
    twin = csr_twin(mdp)
    V = data.draw(strategies.weights((2, mdp.X))) / 4
    w = data.draw(strategies.weights((2, mdp.X, mdp.Y))) / 4
    rows = np.arange(mdp.X * mdp.Y)
    x, y = rows // mdp.Y, rows % mdp.Y
    for h in range(mdp.H):  # products of numbers below 1: rounding only
        np.testing.assert_allclose(twin.expect(h, V), mdp.expect(h, V), atol=1e-13)
        np.testing.assert_allclose(twin.expect(h, V[0]), mdp.expect(h, V[0]), atol=1e-13)
        np.testing.assert_allclose(twin.push(h, w), mdp.push(h, w), atol=1e-12)
        np.testing.assert_allclose(twin.push(h, w[0]), mdp.push(h, w[0]), atol=1e-12)
        np.testing.assert_array_equal(twin.next_state_probs(h, x, y), mdp.next_state_probs(h, x, y))


def test_time_dependent_kernels_given_as_a_list_of_arrays_are_dense():
    parts = good()
    mdp = FiniteMDP(list(parts["P"]), parts["r"], parts["mu"])
    assert not mdp.is_sparse
    assert mdp.P.shape == (2, 3, 2, 3)


def test_r_max_defaults_to_the_largest_reward_and_to_one_if_there_is_none():
    parts = good()
    assert FiniteMDP(**parts).R_max == 1.0
    parts["r"] = parts["r"] + 0.25
    assert FiniteMDP(**parts).R_max == 0.25


# Sampling


@given(strategies.mdps(), st.integers(0, 2**32 - 1), st.booleans())
def test_sample_next_is_the_inverse_cdf_of_the_kernel(mdp, seed, as_sparse):
    model = csr_twin(mdp) if as_sparse else mdp
    rng = np.random.default_rng(seed)
    x, y = rng.integers(mdp.X, size=50), rng.integers(mdp.Y, size=50)
    u = rng.random(50)  # a generic uniform is farther than 1e-9 from every multiple of 1/16
    for h in range(mdp.H):
        expected = inverse_cdf(mdp.next_state_probs(h, x, y), u)
        np.testing.assert_array_equal(model.sample_next(h, x, y, u), expected)


@given(strategies.mdps())
def test_sample_next_never_draws_a_state_of_probability_zero(mdp):
    rows = np.repeat(np.arange(mdp.X * mdp.Y), 3)
    x, y = rows // mdp.Y, rows % mdp.Y
    u = np.tile([0.0, 0.5, np.nextafter(1.0, 0.0)], mdp.X * mdp.Y)
    for h in range(mdp.H):
        drawn = mdp.sample_next(h, x, y, u)
        assert (mdp.P[h, x, y, drawn] > 0).all()


# Bad input: one clear message each


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("P", lambda P: P * 0.9, "P must sum to one"),
        ("P", lambda P: P + np.array([-0.5, 0.25, 0.25]), "P holds a negative probability"),
        ("P", lambda P: P * np.nan, "P holds NaN"),
        ("P", lambda P: P * np.inf, "P holds NaN or infinity"),
        ("P", lambda P: P[:1], "P must have shape"),
        ("P", lambda P: "kernel", "P must be an array of numbers"),
        ("mu", lambda mu: mu / 2, "mu must sum to one"),
        ("mu", lambda mu: mu[:2], "mu must have shape"),
        ("mu", lambda mu: np.array([1.5, -0.5, 0.0]), "mu holds a negative"),
        ("r", lambda r: r[0], r"r must have shape \[H, X, Y\]"),
        ("r", lambda r: r - 1, "rewards must lie in"),
        ("r", lambda r: r * np.nan, "r holds NaN"),
        ("r", lambda r: r[:, :0], "X must be at least 1"),
    ],
)
def test_a_bad_mdp_is_refused_with_a_clear_message(field, change, message):
    parts = good()
    parts[field] = change(parts[field])
    with pytest.raises(MDPError, match=message):
        FiniteMDP(**parts)


@pytest.mark.parametrize(
    ("R_max", "message"), [(0.5, "rewards must lie in"), (0.0, "positive"), (np.nan, "positive and finite")]
)
def test_a_bad_r_max_is_refused(R_max, message):
    parts = good()
    parts["r"] = parts["r"] + 1
    with pytest.raises(MDPError, match=message):
        FiniteMDP(**parts, R_max=R_max)


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (lambda k: [k], "sequence of H = 2"),
        (lambda k: [k, k[:4]], "sparse kernel 1 must be a SciPy sparse matrix of shape"),
        (lambda k: [k, k.toarray()], "sparse kernel 1 must be a SciPy sparse"),
        (lambda k: [k, 0.5 * k], "rows of sparse kernel 1 must sum to one"),
        (lambda k: [k, k * np.nan], "sparse kernel 1 holds NaN"),
        (lambda k: [k - sparse.csr_array(np.tile([0.5, -0.25, -0.25], (6, 1)))] * 2, "negative"),
    ],
)
def test_a_bad_sparse_kernel_is_refused(kernels, message):
    k = sparse.csr_array(np.full((6, 3), 1 / 3))
    with pytest.raises(MDPError, match=message):
        FiniteMDP(kernels(k), np.zeros((2, 3, 2)), np.full(3, 1 / 3))


def test_an_empty_horizon_is_refused():
    with pytest.raises(MDPError, match="H must be at least 1"):
        FiniteMDP.stationary(np.full((2, 2, 2), 0.5), np.zeros((2, 2)), np.full(2, 0.5), H=0)


@pytest.mark.parametrize(
    ("pi", "message"),
    [
        (np.full((2, 3, 3), 1 / 3), "pi must have shape"),
        (np.full((2, 3, 2), 0.4), "pi must sum to one"),
        (np.tile([1.5, -0.5], (2, 3, 1)), "pi holds a negative"),
        (np.full((2, 3, 2), np.nan), "pi holds NaN"),
    ],
)
def test_a_bad_policy_is_refused(pi, message):
    with pytest.raises(MDPError, match=message):
        check_policy(FiniteMDP(**good()), pi)


# Stacks


@given(strategies.stacks())
def test_a_stack_is_its_members(drawn):
    stack, *_ = drawn
    again = MDPStack.of([stack[b] for b in range(len(stack))])
    for name in ("P", "r", "mu", "R_max"):
        np.testing.assert_array_equal(getattr(again, name), getattr(stack, name))


def test_a_bad_stack_is_refused():
    small, large, thin = FiniteMDP(**good()), FiniteMDP(**good(H=3)), csr_twin(FiniteMDP(**good()))
    for mdps, message in (
        ([], "at least one"),
        ([small, large], "same H, X and Y"),
        ([small, thin], "dense MDPs only"),
    ):
        with pytest.raises(MDPError, match=message):
            MDPStack.of(mdps)
    parts = {name: np.stack([value] * 2) for name, value in good().items()}
    for field, change, message in (
        ("P", lambda P: P[:, :1], "P must have shape"),
        ("P", lambda P: P / 2, "P must sum to one"),
        ("r", lambda r: r[0], r"r must have shape \[B, H, X, Y\]"),
        ("r", lambda r: r - 1, "rewards must lie in"),
        ("mu", lambda mu: mu[:1], "mu must have shape"),
    ):
        with pytest.raises(MDPError, match=message):
            MDPStack(**{**parts, field: change(parts[field])})


def test_a_policy_for_a_stack_needs_its_leading_axis():
    stack = MDPStack.of([FiniteMDP(**good())] * 2)
    with pytest.raises(MDPError, match="pi must have shape"):
        check_policy(stack, np.full((2, 3, 2), 0.5))
