"""The SymPy algebra agrees with the numbers of `cpi.bounds` and of the toy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import sympy as sp

import cpi.bounds as b
import cpi.symbolic as s
from toy_mdps.tightness import tightness


def test_best_steps_are_those_of_algorithm_1():
    step, gain = s.best_step()
    assert sp.simplify(step.subs(s.c, s.HALF) - s.A / (s.H**2 * s.R)) == 0
    assert sp.simplify(step.subs(s.c, 1) - s.A / (2 * s.H**2 * s.R)) == 0
    assert sp.simplify(gain.subs(s.c, s.HALF) - s.q * s.A**2 / (2 * s.H * s.R)) == 0


@pytest.mark.parametrize("step_constant", [1, 2])
def test_guaranteed_gain_agrees_with_bounds(step_constant):
    values = {s.t: sp.Rational(1, 3), s.H: 5, s.R: 2, s.q: sp.Rational(1, 7)}
    symbolic = float(s.guaranteed_gain(step_constant).subs(values))
    assert b.guaranteed_gain(1 / 3, 5, 2.0, 1 / 7, step_constant) == pytest.approx(symbolic)


def test_with_the_papers_penalty_the_oracle_step_gives_one_sixteenth():
    gain = s.guaranteed_gain(2, sp.Integer(1)).subs(s.t, s.tau)
    assert sp.simplify(gain - s.q * s.tau**2 / (16 * s.H * s.R)) == 0


def test_a_step_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="not monotone"):
        s.guaranteed_gain(1, sp.Integer(3))


def test_front_loading_gap_is_never_negative_at_an_integer():
    i = next(iter(s.front_loading_gap().free_symbols))
    assert sp.expand(s.front_loading_gap() - (i - 1) * (i - 2) / 2) == 0
    assert min(int(s.front_loading_gap().subs(i, v)) for v in range(1, 50)) == 0


@pytest.mark.parametrize("H", [1, 2, 5, 9])
def test_no_gated_path_weighs_more_than_the_front_loaded_one(H):
    """theory.md, section 4, by enumeration of the vertices: sum_{k<h} (H-h+1)(g_k + g_k g_h) <= H(H-1)/2 sum_k g_k."""
    for g in product((0, 1), repeat=H):
        pairs = [(k, h) for h in range(H) for k in range(h)]
        assert sum((H - h) * g[k] * (1 + g[h]) for k, h in pairs) <= H * (H - 1) / 2 * sum(g)


def test_constants_agree_with_bounds():
    assert float(s.fit_constant()) == pytest.approx(b.FIT_CONSTANT)
    assert b.SAMPLE_CONSTANT - 1 < float(s.sample_constant()) <= b.SAMPLE_CONSTANT


@pytest.mark.parametrize("state", ["mixed", "improvable"])
def test_moments_of_proposition_10_agree_with_the_toy(state):
    toy = tightness(0.3, tau=0.2, eps=0.05, k=5, R=2.0)
    numbers = {s.p: 0.3, s.tau: 0.2, s.eps: 0.05, s.k: 5, s.R: 2.0}
    first, second = (float(m.subs(numbers)) for m in s.estimator_moments(False, "deterministic", state))
    values, probs = toy.Y_law(0 if state == "improvable" else None)
    assert (first, second) == (pytest.approx(probs @ values), pytest.approx(probs @ values**2))


@pytest.mark.parametrize(
    ("baseline", "rewards", "exponent"),
    [(False, "deterministic", -2), (False, "bernoulli", -2), (True, "deterministic", -1), (True, "bernoulli", -2)],
)
def test_samples_needed_scale_with_p_as_the_moments_say(baseline, rewards, exponent):
    """Var / mean^2, to leading order for small p and eps = 0. A baseline helps only where rewards are deterministic."""
    first, second = s.estimator_moments(baseline, rewards)
    need = sp.simplify((second / first**2 - 1).subs(s.eps, 0))
    assert sp.limit(need * s.p ** (-exponent), s.p, 0) not in (0, sp.oo)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("G", [2, 4])
def test_algorithm_2_formulas_agree_with_bounds(q, G):
    assert float(s.base_group_mean().subs({s.q: q, s.G: G})) == pytest.approx(b.base_group_mean(q, G))
    assert float(s.expected_rollouts().subs({s.q: q, s.G: G})) == pytest.approx(b.expected_rollouts(q, G, G))


def test_step_gain_is_the_quadratic_bound_at_the_estimated_step():
    rng = np.random.default_rng(0)
    A, Ahat, H, R, q = rng.uniform(0.1, 1.0, 5)
    alpha = Ahat / (H**2 * R)
    symbolic = s.step_gain().subs({s.c: s.HALF, s.A: A, s.Ahat: Ahat, s.H: H, s.R: R, s.q: q})
    assert float(symbolic) == pytest.approx(alpha * H * q * A - alpha**2 * H**3 * q * R / 2)
