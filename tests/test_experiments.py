"""Experiments at small settings: what they must find, and that each one runs, draws and tabulates."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.special import ndtr

from cpi.bounds import base_group_law
from cpi.experiments import NAMES, load
from cpi.experiments.base_group_bias import cut_law, signal
from cpi.experiments.estimators import PerState, sample_law
from cpi.experiments.imperfect_oracle import feasible
from cpi.experiments.one_step import ProbitFit, SampleLaw, smallest_n
from cpi.experiments.runner import execute, generator
from toy_mdps import thought_tree, tightness

TINY = {
    "sample-complexity": {
        "p": (0.1, 0.03, 0.01),
        "trials": 20_000,
        "sampler_runs": 3,
        "check_p": (0.5,),
        "check_runs": 300,
        "resamples": 200,
    },
    "estimators": {"p": (0.1, 0.03, 0.01), "trials": 8000, "resamples": 200},
    "tightness": {"p": (0.03, 0.01), "points": 9, "trials": 8000, "exact_points": 3, "exact_n": 1500},
    "cpi-inequality": {"points": 21},
    "convergence": {"exact_steps": 300, "sampled_steps": 4, "n": 200, "seeds": 2},
    "imperfect-oracle": {"grid": 5, "runs": 4, "n": 100},
    "resets-in-the-table": {"hard": (6,), "budget": 1500, "learning_rates": (10.0, 40.0), "seeds": 2},
    "base-group-bias": {"q": (0.2, 0.8), "prompts": 60, "batches": 10, "episodes": 2000},
    "reset-map": {
        "dials": ((4, 3, 0.5),),
        "seeds": 3,
        "map_steps": 4,
        "map_hard": (1, 3),
        "map_reliability": (0.3, 0.7),
    },
}


@cache
def _result(name):
    experiment = load(name)
    return execute(experiment, dataclasses.replace(experiment.quick, **TINY[name]), seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_draws_and_tabulates(name):
    experiment, result = load(name), _result(name)
    assert experiment.name == name == result["experiment"]
    assert {"config", "seed", "versions", "cells"} < set(result)
    assert isinstance(experiment.draw(result), Figure)
    assert len(str(experiment.table(result)).splitlines()) > 2
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_generators_of_cells_depend_on_seed_and_key():
    draws = {(s, k): generator(s, k).random() for s in (0, 1) for k in ("a", "b")}
    assert len(set(draws.values())) == 4
    assert generator(1, "a").random() == draws[1, "a"]


# sample-complexity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", [False, True])
def test_counts_give_the_law_of_the_sum_of_samples(credit):
    toy = tightness(p=0.3, tau=0.3, eps=0.05, k=3)
    law, n, trials = SampleLaw.of(toy, credit), 3, 200_000
    outcomes = itertools.product(range(law.values.size), repeat=n)
    exact = sum(np.prod(law.probs[list(o)]) for o in outcomes if law.values[list(o)].sum() <= 1e-12)
    share = law.misses(n, trials, np.random.default_rng(0)) / trials
    assert abs(share - exact) < 4 * (exact * (1 - exact) / trials) ** 0.5


def test_the_probit_line_finds_the_threshold_of_a_normal_sum():
    n = np.array([800.0, 900.0, 1000.0, 1100.0, 1200.0])
    # P = Phi(-sqrt(n) / 20) is 0.05 at n = (1.6449 * 20)^2 = 1082.2
    fit = ProbitFit(n, 1e6 * ndtr(-np.sqrt(n) / 20), 1_000_000)
    assert fit.threshold(0.05) == pytest.approx((1.6448536 * 20) ** 2, rel=1e-6)
    spread = fit.resampled(0.05, 500, np.random.default_rng(0))
    assert abs(spread.mean() - 1082.2) < 1
    assert 0.5 < spread.std() < 5


def test_the_measured_threshold_is_that_of_normal_sums_when_p_is_small():
    law = SampleLaw.of(tightness(p=0.01, tau=0.1), credit=False)
    fit = smallest_n(law.misses, 0.05, 20_000, 5, np.random.default_rng(1))
    # one standard error of the threshold is about 1% at these trials
    assert fit.threshold(0.05) == pytest.approx(law.normal_threshold(0.05), rel=0.04)


@pytest.mark.parametrize(
    ("variant", "cost", "exponent"),
    [
        ("cpi-rr", "q_rollouts", -2),
        ("cpi-rr", "cheap_trials", -2),
        ("cpi-caro", "q_rollouts", 0),
        ("cpi-caro", "cheap_trials", -1),
    ],
)
def test_exponents_of_the_sample_complexity_are_the_theorems(variant, cost, exponent):
    found = _result("sample-complexity")["exponents"][variant][cost]
    low, high = found["ci95"]
    # 2 intervals' half-widths (4 standard errors), and 0.01 for Var(Y), which depends on p a little
    assert abs(found["value"] - exponent) < high - low + 0.01
    assert high - low < 0.05


def test_algorithm_1_misses_as_often_as_the_law_says():
    for check in _result("sample-complexity")["algorithm_1"]:
        # 300 runs at 0.05: 4 standard errors
        assert abs(check["share"] - 0.05) < 4 * (0.05 * 0.95 / check["runs"]) ** 0.5


# estimators -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["deterministic", "bernoulli"])
@pytest.mark.parametrize("estimator", ["none", "baseline", "paired", "credit"])
def test_mean_estimators_are_unbiased_for_the_policy_advantage(reward, estimator):
    law = sample_law(estimator, reward, p=0.2, tau=0.3, k=4)
    assert law.probs.min() >= 0
    assert law.probs.sum() == pytest.approx(1)
    assert law.mean == pytest.approx(0.3 if estimator == "credit" else 0.2 * 0.3)


def test_the_papers_estimator_has_the_closed_form_variance_of_proposition_10():
    toy = tightness(p=0.2, tau=0.3, k=4)
    assert sample_law("none", "deterministic", 0.2, 0.3, 4).variance == pytest.approx(toy.var_Y)
    assert SampleLaw.of(toy, credit=False).variance == pytest.approx(toy.var_Y)


def test_per_state_thresholds_miss_as_often_as_an_empty_cell_of_x1_when_rewards_are_deterministic():
    p, k, n, trials = 0.2, 4, 60, 100_000
    one, both = 1 - p / k, 1 - 2 * p / k
    exact = 2 * one**n - both**n
    share = PerState("deterministic", p, 0.3, k).misses(n, trials, np.random.default_rng(0)) / trials
    assert abs(share - exact) < 4 * (exact * (1 - exact) / trials) ** 0.5


@pytest.mark.parametrize("reward", ["deterministic", "bernoulli"])
@pytest.mark.parametrize("estimator", ["none", "baseline", "paired", "per-state", "credit"])
def test_exponents_of_the_estimators_are_those_predicted(reward, estimator):
    found = _result("estimators")["exponents"][reward][estimator]
    low, high = found["ci95"]
    # 4 standard errors, and 0.02 for sums of a few hundred samples on a lattice, which are not normal
    assert abs(found["value"] - found["predicted"]) < high - low + 0.02


# tightness ------------------------------------------------------------------------------------------------------------


def test_measured_probabilities_are_the_exact_ones_and_above_berry_esseen():
    compared = 0
    for curve in _result("tightness")["curves"]:
        for q in curve["points"]:
            se = (q["value"] * (1 - q["value"]) / 8000) ** 0.5
            assert q["value"] > q["berry_esseen"] - 4 * se
            if q["exact"] is not None:
                compared += 1
                assert abs(q["value"] - q["exact"]) < 4 * se
        assert curve["lowest"]["value"] > 0.18
    assert compared >= 6


# cpi-inequality -------------------------------------------------------------------------------------------------------


def test_no_bound_claims_more_than_the_exact_gain_of_a_greedy_update():
    for cell in _result("cpi-inequality")["cells"].values():
        for claim in cell["claims"].values():
            assert (np.array(claim) <= np.array(cell["gain"]) + 1e-9).all()


def test_the_per_step_bound_is_the_exact_gain_on_the_tight_chain():
    cell = _result("cpi-inequality")["cells"]["tight-chain-everywhere"]
    np.testing.assert_allclose(cell["claims"]["per step"], cell["gain"], atol=1e-9)


# convergence, imperfect-oracle ----------------------------------------------------------------------------------------


def test_exact_runs_never_lose_and_stay_below_the_bounds_on_the_gap():
    for cell in _result("convergence")["cells"].values():
        if "seed" in cell:
            continue
        assert (np.diff(cell["gap"]) <= 1e-12).all()
        at = dict(zip(cell["step"], cell["gap"], strict=True))
        for step, sharp, bound in zip(*(cell["trace"][n] for n in ("step", "sharp", "bound")), strict=True):
            assert sharp < 0 or at[step] <= sharp + 1e-9
            assert bound < 0 or sharp <= bound + 1e-9
        if cell["stopped_because"].startswith("the oracle accepted") and cell["variant"].startswith("cpi-caro"):
            assert cell["last_gap"] <= cell["H"] * cell["tau"]


def test_an_oracle_falls_silent_on_the_garnet():
    cell = _result("convergence")["cells"]["garnet-cpi-caro-exact"]
    assert cell["stopped_because"].startswith("the oracle accepted")


def test_the_ratio_of_exact_gains_is_kappa_rho_over_p_where_nothing_is_lost():
    maps = {(m["mdp"], m["kind"]): m for m in _result("imperfect-oracle")["maps"]}
    found = maps["decision points", "exact"]
    for q in found["points"]:
        assert q["ratio"] == pytest.approx(q["kappa"] * q["rho"] / found["p"], rel=1e-9)
    assert found["agree"]["right"] == found["agree"]["decided"] == len(found["points"])
    assert found["frontier"] == pytest.approx(1.0)


def test_feasible_oracles_are_those_whose_off_G_acceptance_is_a_probability():
    assert feasible(1.0, 0.1, 0.1)  # accept everything
    assert not feasible(1.0, 0.05, 0.1)
    assert feasible(0.5, 0.06, 0.1)


# Algorithm 2 ----------------------------------------------------------------------------------------------------------


def test_cuts_of_the_localisers_have_the_chosen_quality():
    cells = _result("resets-in-the-table")["cells"]
    for method in ("oracle-1x4", "oracle-1x8", "oracle-2x4", "oracle-1x4-furthest"):
        cell = cells[f"{method}-hard6-rate40"]
        assert cell["exact"] == cell["clean"] == 1.0
    early, late = cells["srpo-1x4-half-early-hard6-rate40"], cells["srpo-1x4-half-late-hard6-rate40"]
    assert early["clean"] == 1.0
    # some 180 cuts each; an early shift that is clipped at the start is exact after all
    assert 0.35 < early["exact"] < 0.85
    assert 0.35 < late["exact"] <= late["clean"] < 0.65
    assert cells["grpo-8-hard6-rate40"]["exact"] is None


def test_learning_curves_start_at_the_reference_policy_and_rise():
    for cell in _result("resets-in-the-table")["cells"].values():
        assert cell["J"][0] == pytest.approx(cell["J_0"])
        assert cell["J"][-1] > cell["J_0"]


def test_base_group_mean_and_budget_are_the_formulas():
    for row in _result("base-group-bias")["groups"]:
        for what in ("mean", "rollouts", "length mean", "length zscore"):
            found = row[what]
            low, high = found["ci95"]
            # twice the half-width of Student's 95% interval over 10 batches is 4.5 standard errors
            assert abs(found["value"] - found["exact"]) <= high - low + 1e-9, (row["seeds"], row["q"], what)


def test_an_intact_group_has_the_scale_that_the_mean_baseline_declares():
    q, G = 0.3, 4
    iid = np.polynomial.polynomial.polypow([1 - q, q], G)
    assert signal(iid, q, "mean") == pytest.approx((G - 1) / G)
    assert signal(base_group_law(q, G), q, "mean") > signal(iid, q, "mean")
    assert signal(base_group_law(0.9, G), 0.9, "mean") < 0.3 * (G - 1) / G


def test_the_base_groups_bias_does_not_bend_the_gradient():
    for row in _result("base-group-bias")["groups"]:
        if row["seeds"] == "first-failure" and row["q"] == 0.2:
            assert row["cosine"]["mean"] > 0.99


def test_cut_laws_of_the_samplers_are_the_exact_ones():
    result = _result("base-group-bias")
    for found in result["cuts"]:
        # 2000 episodes, each adding at most 1/2 to an entry: 4 standard errors
        np.testing.assert_allclose(found["measured"], found["exact"], atol=4 * 0.5 / 2000**0.5)
        assert abs(found["measured_clean"] - found["clean"]) < 4 * 0.5 / 2000**0.5
    exact = {found["law"]: np.array(found["exact"]) for found in result["cuts"]}
    assert np.abs(exact["uniform"] - exact["visitation"]).max() > 0.05


def test_uniform_cuts_are_visitation_when_no_episode_ends_early():
    tree = thought_tree(H=5, hard=2)
    whole, clean = cut_law(tree, 5, "uniform")
    np.testing.assert_allclose(whole, cut_law(tree, 5, "visitation")[0])
    np.testing.assert_allclose(whole, 0.2)
    assert clean < 1


# reset-map ------------------------------------------------------------------------------------------------------------


def test_the_reset_map_reports_predictions_beside_trained_runs():
    result = _result("reset-map")
    rows = {row["method"]: row for row in result["rows"]}
    assert rows["grpo"]["trained_minus_grpo"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert rows["oracle-2x4"]["trained"] is None
    for name in ("grpo", "oracle-furthest"):
        # 3 seeds that differ by about .01, and what the noiseless curve leaves out
        assert rows[name]["trained"]["value"] == pytest.approx(rows[name]["area"], abs=0.06)
    grid = np.array(result["map"]["grpo"]["signal"])
    assert grid.shape == (2, 2)
    assert grid[1, 0] == pytest.approx(1 - 0.027**8 - (1 - 0.027) ** 8)
    factors = result["cells"]["dial-4-3-0.5"]["reset"]["oracle"]
    assert factors["product"] == pytest.approx(np.prod([v for k, v in factors.items() if k != "product"]))
