"""Experiments: `python -m cpi list`, `python -m cpi run NAME`. One file each, on the small runner of `runner.py`.

This package and `cpi.__main__` are the top layer: they use `toy_mdps`, matplotlib and tqdm, which nothing else in
`cpi` does. A module is imported when its experiment is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cpi.experiments.runner import Experiment, ExperimentError

__all__ = ["NAMES", "load"]

NAMES: dict[str, str] = {
    "sample-complexity": "Q-rollouts and cheap trials needed against the coverage p: CPI-RR, CPI-CARO",
    "estimators": "the same with a baseline, paired continuations, per-state thresholds; deterministic and 0/1 rewards",
    "cpi-inequality": "the exact J(pi_alpha) against the bounds over alpha, classical and credit-aware",
    "tightness": "Prop. 10: P(Ahat <= 0) over n against the Berry-Esseen bound and 0.18",
    "convergence": "many steps of Algorithm 1: random resets, oracle, soft oracle; exact and sampled",
    "imperfect-oracle": "one step with a soft oracle over a (kappa, rho) grid, and the frontier kappa rho = p",
    "resets-in-the-table": "Algorithm 2 in the table: GRPO, RRPO, SRPO, oracle; splits; localisers; equal budgets",
    "base-group-bias": "Algorithm 2: the base group by formula and simulation, its gradient; two uniform resets",
    "reset-map": "where resets should help on chains, exactly: signal, efficiency, cost, learning curves; no sampling",
}


def load(name: str) -> Experiment[Any]:
    """The experiment of that name. Raises ExperimentError with the valid names."""
    if name not in NAMES:
        raise ExperimentError(f"there is no experiment {name!r}; choose one of: {', '.join(NAMES)}")
    module = import_module(f"cpi.experiments.{name.replace('-', '_')}")
    experiment: Experiment[Any] = module.EXPERIMENT
    return experiment
