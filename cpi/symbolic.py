"""The algebra of the statements in SymPy: best steps, gains, moments of Proposition 10, Algorithm 2's base group.

Every function derives its answer (it maximises, sums or expands) and does not restate it, so that the numbers of
`cpi.bounds` can be held against it. The symbols are module attributes; all are positive.
"""

from __future__ import annotations

from typing import Literal

import sympy as sp

__all__ = [
    "base_group_mean",
    "best_step",
    "estimator_moments",
    "expected_rollouts",
    "fit_constant",
    "front_loading_gap",
    "guaranteed_gain",
    "sample_constant",
    "step_gain",
]

H, R, A, Ahat, q, t, c = sp.symbols("H R_max A Ahat q t c", positive=True)
k, p, tau, eps = sp.symbols("k p tau epsilon", positive=True)
G = sp.symbols("G", positive=True, integer=True)
alpha = sp.symbols("alpha", positive=True)
HALF = sp.Rational(1, 2)


def quadratic_bound() -> sp.Expr:
    """The lower bound alpha H q A - c alpha^2 H^3 q R_max on J(pi_alpha) - J(pi); q = 1 and c = 1/2 for CPI-RR."""
    return alpha * H * q * A - c * alpha**2 * H**3 * q * R


def best_step() -> tuple[sp.Expr, sp.Expr]:
    """The step that maximises `quadratic_bound`, and the maximum: A / (2 c H^2 R_max) and q A^2 / (4 c H R_max)."""
    bound = quadratic_bound()
    (step,) = sp.solve(sp.diff(bound, alpha), alpha)
    return step, sp.simplify(bound.subs(alpha, step))


def step_gain(step_constant: int = 1) -> sp.Expr:
    """`quadratic_bound` at the estimated step alpha = Ahat / (step_constant H^2 R_max), factored.

    With c = 1/2 and step_constant 1 it is q Ahat (2 A - Ahat) / (2 H R_max).
    """
    return sp.factor(quadratic_bound().subs(alpha, Ahat / (step_constant * H**2 * R)))


def guaranteed_gain(step_constant: int = 1, penalty: sp.Expr = HALF) -> sp.Expr:
    """The least `step_gain` over all (A, Ahat) with Ahat >= t/2 and 2 A - Ahat >= t/2, for c = penalty.

    Substituting A = (Ahat + u)/2 with u = 2 A - Ahat makes the gain increasing in u (its coefficient is positive), so u
    = t/2; then it must be increasing in Ahat on [t/2, oo), which is checked, so Ahat = t/2.
    """
    u = sp.symbols("u", positive=True)
    gain = sp.expand(step_gain(step_constant).subs(c, penalty).subs(A, (Ahat + u) / 2))
    at_u = gain.subs(u, t / 2)
    slope = sp.simplify(sp.diff(at_u, Ahat))
    if sp.simplify(sp.diff(gain, u)).is_positive is not True or slope.is_nonnegative is not True:
        raise ValueError("the gain is not monotone for this step: the least value is not at the corner")
    return sp.simplify(at_u.subs(Ahat, t / 2))


def front_loading_gap() -> sp.Expr:
    """H(H-1)/2 minus the weight of the i-th gated time, (H-i+1)(H-i)/2 + (i-1)(H-i+1): it is (i-1)(i-2)/2 >= 0.

    This is the step of theory.md that bounds sum_{k<h} (H-h+1) (g_k + g_k g_h) by H(H-1)/2 sum_k g_k.
    """
    i = sp.symbols("i", positive=True, integer=True)
    weight = (H - i + 1) * (H - i) / 2 + (i - 1) * (H - i + 1)
    return sp.factor(H * (H - 1) / 2 - weight)


def fit_constant() -> sp.Expr:
    """C0 = 1 / (1 - exp(-1/2)) of Lemma 7, from the best exponent of its Chernoff bound.

    E exp(-lam Z | u) <= exp(-lam D2 + lam^2 D2 B^2 / 2) with D2 = (f - Q)^2 in [0, B^2]. The best lam gives exp(-D2 /
    (2 B^2)); convexity in D2 on [0, B^2] turns it into exp(-(1 - e^{-1/2}) E D2 / B^2).
    """
    lam, D2, B = sp.symbols("lambda D2 B", positive=True)
    exponent = -lam * D2 + lam**2 * D2 * B**2 / 2
    (best,) = sp.solve(sp.diff(exponent, lam), lam)
    at_best = sp.simplify(exponent.subs(lam, best))
    chord = 1 - sp.exp(at_best.subs(D2, B**2))  # the chord's slope of 1 - exp(.) over D2 / B^2 in [0, 1]
    return 1 / chord


def sample_constant() -> sp.Expr:
    """The least C with 3 eta + zeta <= t/2 in N0 = C k H^2 R_max^2 log(4 card(F)/delta): (a + sqrt(a^2 + 2))^2.

    With n = N0 / t^2: eta <= t sqrt(2 C0 / C) by Lemma 7, zeta <= t (2 / sqrt(C) + 1 / C) by Bernstein and Lemma 8 (k
    >= 2 and t <= H R_max), and a = 3 sqrt(2 C0) + 2.
    """
    root = sp.symbols("root", positive=True)  # sqrt(C)
    a = 3 * sp.sqrt(2 * fit_constant()) + 2
    solutions = sp.solve(sp.Eq(root**2 / 2 - a * root - 1, 0), root)
    return sp.simplify(max(solutions, key=lambda s: float(s)) ** 2)


def estimator_moments(
    baseline: bool, rewards: Literal["deterministic", "bernoulli"], state: Literal["mixed", "improvable"] = "mixed"
) -> tuple[sp.Expr, sp.Expr]:
    """(E Y, E Y^2) of Y = k (pi+ - pi)(y|x) (r - b(x)) on Proposition 10's MDP, by summing over states, actions,
    rewards.

    b = 0 is the paper's estimator, b = V^pi(x) = R/2 the baseline. `bernoulli` pays R or 0 with the mean of the
    deterministic reward. `improvable`: conditioned on x1, what the credit sampler sees.
    """
    b = R / 2 if baseline else sp.Integer(0)
    states = [(sp.Integer(1), tau)] if state == "improvable" else [(p, tau), (1 - p, eps)]
    first = second = sp.Integer(0)
    for weight, gain in states:
        for sign, mean in ((-1, R / 2), (1, R / 2 + gain)):  # y0 and y1; the other actions have Y = 0
            outcomes = [(sp.Integer(1), mean)] if rewards == "deterministic" else [(mean / R, R), (1 - mean / R, 0)]
            for chance, paid in outcomes:
                Y = k * sign * (paid - b)
                first += weight / k * chance * Y
                second += weight / k * chance * Y**2
    return sp.factor(sp.expand(first)), sp.factor(sp.expand(second))


def base_group_mean() -> sp.Expr:
    """Expected base-group mean of Algorithm 2 for at least 2G attempts, summed over the first failure: q (1 +
    (1-q^G)/G).

    j < G successes come before the first failure with probability q^j (1-q); the base group then is these j and G-j
    fresh rollouts. Otherwise (probability q^G) it is all correct.
    """
    j = sp.symbols("j", integer=True, nonnegative=True)
    s = sp.symbols("s", positive=True)
    term = s**j * (1 - s) * (j + (G - j) * s) / G
    total = _geometric(term, j, sp.Integer(0), G - 1, s) + s**G
    return sp.simplify(total.subs(s, q))


def expected_rollouts() -> sp.Expr:
    """Expected rollouts of Algorithm 2 a prompt (groups G + G, 2G attempts), summed over the first failure T.

    max(T, G+1) + G for T <= 2G, and 2G without a failure: 2G + 1 + (q^{G+1} - q^{2G}) / (1-q) - G q^{2G}.
    """
    T = sp.symbols("T", integer=True, positive=True)
    s = sp.symbols("s", positive=True)
    early = _geometric(s ** (T - 1) * (1 - s) * (2 * G + 1), T, sp.Integer(1), G + 1, s)
    late = _geometric(s ** (T - 1) * (1 - s) * (T + G), T, G + 2, 2 * G, s)
    return sp.simplify((early + late + 2 * G * s ** (2 * G)).subs(s, q))


def _geometric(term: sp.Expr, index: sp.Symbol, first: sp.Expr, last: sp.Expr, s: sp.Symbol) -> sp.Expr:
    """sum over index of (polynomial of degree <= 1 in index) * s^index, as a closed form valid for s != 1."""
    coefficient = sp.expand(sp.simplify(term / s**index))
    slope, constant = coefficient.coeff(index, 1), coefficient.coeff(index, 0)
    m = sp.symbols("m", integer=True)
    plain = (s**first - s ** (last + 1)) / (1 - s)
    upto = (s - (m + 1) * s ** (m + 1) + m * s ** (m + 2)) / (1 - s) ** 2  # sum_{i=0}^m i s^i
    weighted = upto.subs(m, last) - upto.subs(m, first - 1)
    return constant * plain + slope * weighted
