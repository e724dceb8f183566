"""Experiments at small settings: what they must find, and that each one runs, draws and tabulates."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure

from cpi.experiments import NAMES, load
from cpi.experiments.one_step import ProbitFit, SampleLaw, smallest_n
from cpi.experiments.runner import execute, generator
from toy_mdps import tightness

TINY = {
    "sample-complexity": {
        "p": (0.1, 0.03, 0.01),
        "trials": 20_000,
        "sampler_runs": 3,
        "check_p": (0.5,),
        "check_runs": 300,
        "resamples": 200,
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
    from scipy.special import ndtr

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
