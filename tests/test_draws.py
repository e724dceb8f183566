"""Counter-based draws: a function of the key alone, uniform, and independent between keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cpi.draws import DrawKey, inverse_cdf, uniforms


def test_a_draw_depends_on_its_key_and_its_place_only():
    keys = [DrawKey(seed=s, step=2, prompt=5, slot=i) for s in range(3) for i in range(4)]
    together = uniforms(keys, 9)
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(uniforms([key], 9)[0], together[i])
        np.testing.assert_array_equal(uniforms([key], 4, start=5)[0], together[i, 5:])


def test_keys_that_differ_in_one_coordinate_give_other_draws():
    key = DrawKey(1, 1, 1, 1, 1)
    others = [key.at(**{name: 2}) for name in ("seed", "step", "prompt", "phase", "slot")]
    assert len({float(uniforms([k], 1)[0, 0]) for k in [key, *others]}) == 6


def test_draws_are_uniform_within_and_across_keys():
    """Kolmogorov-Smirnov on 20,000 fixed draws each; p > 1e-3 is expected of 99.9 % of good generators."""
    across = uniforms([DrawKey(0, step=i // 100, prompt=i % 100) for i in range(20_000)], 1)[:, 0]
    within = uniforms([DrawKey(3)], 20_000)[0]
    for sample in (across, within):
        assert stats.kstest(sample, "uniform").pvalue > 1e-3


def test_neighbouring_keys_are_uncorrelated():
    draws = uniforms([DrawKey(0, slot=i) for i in range(200)], 400)
    correlation = np.corrcoef(draws)[np.triu_indices(200, 1)]
    # 19,900 correlations of 400 draws have standard deviation 1/20; the largest of them stays below 5 of these
    assert np.abs(correlation).max() < 5 / np.sqrt(400)
    assert abs(correlation.mean()) < 4 / np.sqrt(400 * correlation.size)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_never_draws_an_index_of_probability_zero(weights, u):
    probs = np.array(weights) / sum(weights)
    index = int(inverse_cdf(probs[None], np.array([u]))[0])
    assert probs[index] > 0


def test_inverse_cdf_of_a_sub_stochastic_row_draws_nothing_with_the_missing_mass():
    u = np.linspace(0, 1, 10_000, endpoint=False)
    index = inverse_cdf(np.broadcast_to([0.1, 0.0, 0.25], (u.size, 3)), u)
    counts = {k: np.mean(index == k) for k in (-1, 0, 1, 2)}
    np.testing.assert_allclose([counts[k] for k in (-1, 0, 1, 2)], [0.65, 0.1, 0.0, 0.25], atol=1e-3)
