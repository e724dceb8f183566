"""Every estimator is held to what it declares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cpi.advantages import LeaveOneOut, MeanBaseline, ZScore


def test_rewards_that_differ_by_rounding_are_equal():
    """Means of the same scores in another order differ in their last digit."""
    means = [[np.mean([0.1, 0.2, 0.3, 0.0]), np.mean([0.3, 0.2, 0.1, 0.0])]]
    assert means[0][0] != means[0][1]
    assert not ZScore(0, 0.0)(means).any()
    assert ZScore(0, 0.0)([[0.0, 1e-6]]).tolist() == [[-1.0, 1.0]]


ESTIMATORS = [MeanBaseline(), LeaveOneOut(), ZScore(0, 0.0), ZScore(1, 1e-4)]
GROUPS = arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(2, 6)),
    elements=st.floats(0, 1, allow_subnormal=False).map(lambda v: round(v, 6)),
)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("G", [2, 3, 4])
def test_expected_advantage_is_the_declared_multiple_of_the_true_one(estimator, G):
    """Exact enumeration: two actions, reward 0/1 with probability Q(y), G iid continuations of one state."""
    pi, Q = np.array([0.3, 0.7]), np.array([0.9, 0.2])
    V = float(pi @ Q)
    outcomes = list(itertools.product([0, 1], [0.0, 1.0]))  # (action, reward) of one continuation
    weight = {(y, r): pi[y] * (Q[y] if r else 1 - Q[y]) for y, r in outcomes}
    expected = np.zeros(2)  # E[A_hat_1 ; y_1 = y]
    for joint in itertools.product(outcomes, repeat=G):
        probability = np.prod([weight[o] for o in joint])
        advantage = estimator(np.array([[r for _, r in joint]]))[0, 0]
        expected[joint[0][0]] += probability * advantage
    scale = estimator.expected_scale(G)
    ratio = (expected / pi) / (Q - V)
    if scale is None:  # a z-score is no multiple of the advantage that would hold for every Q
        other = (expected / pi)[0] / (Q - V)[0]
        assert not np.isclose(other, (G - 1) / G, atol=1e-3)
        assert (ratio > 0).all()
    else:
        np.testing.assert_allclose(ratio, scale, rtol=1e-12)


@given(GROUPS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_advantages_of_a_group_sum_to_zero(estimator, rewards):
    # a z-score divides by a std of at least 1e-6 / G here, so rounding of 1e-16 grows to at most 1e-9
    assert np.abs(estimator(rewards).sum(axis=1)).max() < 1e-8


@given(st.floats(0, 1), st.integers(2, 9))
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_constant_group_has_no_signal(estimator, reward, G):
    np.testing.assert_allclose(estimator(np.full((3, G), reward)), 0.0, atol=1e-15)


def test_the_papers_z_score_uses_the_population_std_and_trl_bessels():
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(ZScore(0, 0.0)(rewards)[0, 0], np.sqrt(3))
    np.testing.assert_allclose(ZScore(1, 1e-4)(rewards)[0, 0], 0.75 / (0.5 + 1e-4))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize(
    ("rewards", "message"),
    [([1.0, 0.0], "shape"), ([[1.0]], "at least 2"), ([[1.0, np.nan]], "finite")],
)
def test_bad_rewards_get_one_clear_line(estimator, rewards, message):
    with pytest.raises(ValueError, match=message) as caught:
        estimator(rewards)
    assert "\n" not in str(caught.value)
