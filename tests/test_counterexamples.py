"""The counterexamples of docs/errata.md: exact, found by search, and as small as claimed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import cpi.bounds as b
import cpi.counterexamples as c
from cpi.exact import evaluate
from cpi.improvable import improvable_set
from cpi.mdp import FiniteMDP

F = Fraction


def _to_float(example: c.Counterexample) -> tuple[FiniteMDP, np.ndarray, np.ndarray]:
    mdp = example.mdp
    P, r, mu, pi, pi_new = (a.astype(float) for a in (mdp.P, mdp.r, mdp.mu, example.pi, example.pi_new))
    return FiniteMDP(P, r, mu), pi, pi_new


@pytest.fixture(scope="module")
def found() -> dict[str, c.Counterexample]:
    names = ["lemma_4_degenerate", "lemma_4_smallest", "corollary_5_degenerate", "corollary_5_smallest"]
    return {name: getattr(c, name)() for name in names}


@pytest.mark.parametrize(
    ("name", "size", "gain", "claimed", "eps"),
    [
        ("lemma_4_degenerate", (1, 1, 2), F(-1), F(-1, 2), F(-1)),
        ("lemma_4_smallest", (2, 2, 2), F(-1), F(0), F(0)),
        ("corollary_5_degenerate", (1, 1, 2), F(-1, 2), F(0), F(-1, 2)),
        ("corollary_5_smallest", (2, 2, 2), F(-3, 4), F(-1, 2), F(0)),
    ],
)
def test_search_finds_the_documented_instance(found, name, size, gain, claimed, eps):
    example = found[name]
    assert (example.size, example.gain, example.claimed, example.eps) == (size, gain, claimed, eps)
    assert example.violation == claimed - gain > 0


@pytest.mark.parametrize("name", ["lemma_4_degenerate", "lemma_4_smallest"])
def test_the_float_bound_sees_the_same_violation_of_lemma_4(found, name):
    example = found[name]
    bound = b.lemma_4(*_to_float(example), float(example.alpha))
    assert float(bound.slack) == pytest.approx(-float(example.violation))
    assert b.lemma_4_repaired(*_to_float(example), float(example.alpha)).holds()


@pytest.mark.parametrize("name", ["corollary_5_degenerate", "corollary_5_smallest"])
def test_the_float_bound_sees_the_same_violation_of_corollary_5(found, name):
    example = found[name]
    mdp, pi, pi_new = _to_float(example)
    G = improvable_set(evaluate(mdp, pi).A, float(example.tau))
    bound = b.corollary_5(mdp, pi, pi_new, G, float(example.alpha))
    assert float(bound.slack) == pytest.approx(-float(example.violation))
    assert b.corollary_5_repaired(mdp, pi, pi_new, G, float(example.alpha)).holds()


def test_no_smaller_instance_violates_lemma_4_with_eps_non_negative():
    """H = 1 or X = 1: with eps >= 0 the search over rewards 0, 1/2, 1 and policies in halves comes back empty."""

    def test(mdp: c.RationalMDP, pi: c.Exact, pi_new: c.Exact) -> c.Counterexample | None:
        example = c.lemma_4_violation(mdp, pi, pi_new, F(1))
        return example if example is not None and example.eps >= 0 else None

    rewards = (F(0), F(1, 2), F(1))
    assert c.search(test, [(1, 1, 2), (1, 1, 3), (1, 2, 2), (2, 1, 2)], rewards, parts=2) is None


@pytest.mark.parametrize("alpha", [F(1), F(1, 2), F(1, 64)])
def test_hand_checkable_instances_hold_for_every_step(found, alpha):
    """The closed forms that docs/errata.md gives for general alpha."""
    lemma = found["lemma_4_smallest"]
    example = c.lemma_4_violation(lemma.mdp, lemma.pi, lemma.pi_new, alpha)
    assert (example.gain, example.claimed) == (-(alpha**2), 0)
    corollary = found["corollary_5_smallest"]
    example = c.corollary_5_violation(corollary.mdp, corollary.pi, corollary.pi_new, alpha, corollary.tau)
    assert (example.gain, example.claimed) == (-alpha / 2 - alpha**2 / 4, -alpha / 2)


@pytest.mark.parametrize("alpha", [F(1), F(1, 4), F(1, 64)])
def test_algorithm_1_can_return_a_policy_that_violates_both_wordings(alpha):
    for example in c.algorithm_1_unvisited(alpha):
        assert (example.gain, example.claimed) == (alpha / 8 - alpha**2 / 2, alpha / 8 - alpha**2 / 4)
        assert example.eps == F(1, 8)


def test_the_step_of_algorithm_1_still_improves_there():
    """Theorem 1 survives its proof: the reward-range forms hold, and at its own step the gain is positive."""
    lemma, corollary = c.algorithm_1_unvisited(F(1))
    mdp, pi, pi_new = _to_float(lemma)
    assert b.lemma_4_reward_range(mdp, pi, pi_new, 1.0).holds()
    G = improvable_set(evaluate(mdp, pi).A, float(corollary.tau))
    assert b.corollary_5_reward_range(mdp, pi, pi_new, G, 1.0).holds()
    update = b.gated_update(mdp, pi, pi_new)
    assert float(update.gain(b.step_size(float(update.linear) / mdp.H, mdp.H, mdp.R_max))) > 0


@pytest.mark.parametrize(("n", "mean"), [(1, F(1, 2)), (2, F(1, 4)), (3, F(1, 8))])
def test_the_estimate_of_algorithm_1_is_biased_upwards(n, mean):
    assert c.estimate_bias(n) == mean


def test_greedy_transfer_is_attained_at_two_thirds_of_tau():
    reached, error = c.greedy_transfer_attained(F(3, 7))
    assert reached == F(3, 7) - 2 * error == F(2, 7)


@pytest.mark.parametrize("q", [F(1, 3), F(1, 2), F(9, 10)])
@pytest.mark.parametrize(("G", "attempts"), [(2, 3), (2, 4), (3, 6), (4, 8), (2, 7)])
def test_base_group_and_budget_formulas_agree_with_enumeration(q, G, attempts):
    law = c.enumerate_algorithm_2(q, G, attempts)
    assert b.base_group_mean(float(q), G, attempts) == pytest.approx(float(law.base_mean))
    given_seed = b.base_group_mean(float(q), G, attempts, given_seed=True)
    assert given_seed == pytest.approx(float(law.base_mean_given_seed))
    assert b.expected_rollouts(float(q), G, G, attempts) == pytest.approx(float(law.rollouts))


def test_base_group_of_four_at_one_half_is_79_of_128():
    law = c.enumerate_algorithm_2(F(1, 2), 4, 8)
    assert (law.base_mean, law.base_mean_given_seed, law.rollouts) == (F(79, 128), F(157, 255), F(1157, 128))


def test_a_grid_without_counterexample_gives_none():
    assert c.search(lambda m, pi, new: c.lemma_4_violation(m, pi, pi, F(1)), [(1, 1, 2)]) is None
