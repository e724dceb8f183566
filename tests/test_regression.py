"""Least squares over a finite class and over the tabular class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpi.mdp import MDPError
from cpi.regression import FiniteClass, Tabular

SHAPE = (2, 3, 2)


def data(seed, n=40):
    rng = np.random.default_rng(seed)
    return *(rng.integers(size, size=n) for size in SHAPE), rng.random(n)


def squared_error(f, h, x, y, targets):
    return float(((f[h, x, y] - targets) ** 2).sum())


@given(st.integers(0, 2**32 - 1))
def test_finite_class_returns_the_member_with_the_least_squared_error(seed):
    F = np.random.default_rng(seed + 1).random((20, *SHAPE))
    h, x, y, targets = data(seed)
    errors = [squared_error(f, h, x, y, targets) for f in F]
    best = FiniteClass(F).fit(h, x, y, targets)
    np.testing.assert_allclose(squared_error(best, h, x, y, targets), min(errors), atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_tabular_fit_is_the_least_squares_solution(seed):
    h, x, y, targets = data(seed)
    cells = np.ravel_multi_index((h, x, y), SHAPE)
    design = np.eye(int(np.prod(SHAPE)))[cells]
    solution = np.linalg.lstsq(design, targets, rcond=None)[0].reshape(SHAPE)  # minimum norm: zero where unseen
    np.testing.assert_allclose(Tabular(*SHAPE).fit(h, x, y, targets), solution, atol=1e-12)


def test_tabular_gives_the_stated_value_where_there_is_no_data():
    one = np.array([0])
    fit = Tabular(*SHAPE, unseen=0.5).fit(one, one, one, np.array([2.0]))
    assert fit[0, 0, 0] == 2.0
    assert np.count_nonzero(fit == 0.5) == fit.size - 1


def test_a_realizable_class_finds_the_truth_in_its_own_noiseless_data():
    Q = np.random.default_rng(0).random(SHAPE)
    F = FiniteClass.around(Q, M=50, spread=0.5, rng=np.random.default_rng(1))
    h, x, y, _ = data(2)
    assert F.size == 50
    np.testing.assert_array_equal(F.fit(h, x, y, Q[h, x, y]), Q)


def test_lemma_7_the_fit_error_of_a_finite_class_falls_as_one_over_n():
    """Mean square error times n stays bounded while n grows 100-fold: the rate of Lemma 7, and not 1/sqrt(n)."""
    rng = np.random.default_rng(0)
    Q = 0.5 + 0.3 * rng.random(SHAPE)
    scaled = {}
    for n in (50, 5_000):
        errors = []
        for _ in range(200):
            # Neighbours at distance about 1/sqrt(n), the hardest there are at this n.
            F = FiniteClass.around(Q, M=30, spread=2 / np.sqrt(n), rng=rng)
            h, x, y, _ = data(rng.integers(2**32), n)
            fit = F.fit(h, x, y, (rng.random(n) < Q[h, x, y]).astype(float))
            errors.append(((fit - Q) ** 2).mean())
        scaled[n] = n * np.mean(errors)
    # log(30) = 3.4 with targets in [0, 1]: the bound's scale. A rate of 1/sqrt(n) would give a ratio of 10.
    assert max(scaled.values()) < 3.4
    assert 1 / 3 < scaled[5_000] / scaled[50] < 3


@pytest.mark.parametrize(
    ("F", "message"),
    [
        (np.zeros((2, 2)), r"shape \[M, H, X, Y\]"),
        (np.zeros((0, 1, 1, 1)), "M >= 1"),
        (np.full((1, 1, 1, 1), np.nan), "NaN"),
    ],
)
def test_a_bad_class_is_refused(F, message):
    with pytest.raises(MDPError, match=message):
        FiniteClass(F)


def test_targets_that_are_not_numbers_are_refused():
    one = np.array([0])
    with pytest.raises(MDPError, match="regression targets hold NaN"):
        Tabular(*SHAPE).fit(one, one, one, np.array([np.nan]))
