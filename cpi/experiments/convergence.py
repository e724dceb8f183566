"""Many steps of Algorithm 1: random resets, the oracle, and a soft oracle, with exact values and with rollouts.

Every run starts from the reference policy of a toy MDP. With exact values (n to infinity) the rate is that of the step
sizes alone; with n rollouts a step, estimates are noisy and the policy that is played is greedy for a fitted Q. All
variants take the step alpha = min{1, Ahat / (H^2 R_max)}; `cpi-caro, c = 2` is the paper's half step.

An oracle at threshold tau stops seeing anything once no advantage reaches tau; then J(pi*) - J(pi) <= H tau. On the way
down the theorem bounds the gap by H tau + C H^2 R_max p_pi, C the concentrability of the current policy, and in its
sharper form by H tau + C H a_pi (`cpi.bounds.convergence_gap`, `convergence_gap_sharp`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cpi.bounds import convergence_gap, convergence_gap_sharp
from cpi.exact import expected_return, optimal
from cpi.experiments.figures import CARO, RR, Style, mean_interval, new_figure
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.improvable import coverage, improvable_set
from cpi.iteration import Exact, ExactOracle, RandomResets, Sampled, SoftOracle, Step, StoppingRule, Variant, run
from cpi.mdp import FiniteMDP
from cpi.regression import Tabular
from toy_mdps import decision_points, garnet, thought_tree

__all__ = ["EXPERIMENT", "Settings"]

Float = NDArray[np.float64]
TOYS: dict[str, Callable[[], Any]] = {
    "thought tree": lambda: thought_tree(H=6, Y=4, hard=2),
    "decision points": lambda: decision_points(H=12, decisive=2, trifle=0.02),
    "garnet": lambda: garnet(X=10, Y=3, H=8, branching=3, seed=1),
}
VARIANTS: dict[str, Callable[[float], Variant]] = {
    "cpi-rr": lambda tau: RandomResets(),
    "cpi-caro": lambda tau: ExactOracle(tau, step_scale=1.0),
    "cpi-caro, c = 2": lambda tau: ExactOracle(tau),
    "soft": lambda tau: SoftOracle(tau, kappa=0.7, rho=0.5, step_scale=1.0),
}
STYLES = {
    "cpi-rr": RR,
    "cpi-caro": CARO,
    "cpi-caro, c = 2": Style("CPI-CARO, the paper's step", "#7fb3d5"),
    "soft": Style("soft oracle, $\\kappa = 0.7$, $\\rho = 0.5$", "#66a61e"),
}
SAMPLED = ("cpi-rr", "cpi-caro", "soft")


@dataclass(frozen=True)
class Settings:
    """tau by MDP (in the order of TOYS); steps of the exact and of the sampled runs; n Q-rollouts a step; seeds."""

    tau: tuple[float, ...] = (0.02, 0.05, 0.2)
    exact_steps: int = 10_000
    sampled_steps: int = 400
    n: int = 500
    seeds: int = 8
    recorded: int = 60


def cells(settings: Settings) -> list[Cell]:
    exact = [Cell(_key(t, v, "exact"), {"mdp": t, "variant": v}) for t in TOYS for v in VARIANTS]
    sampled = [
        Cell(_key(t, v, f"seed{s}"), {"mdp": t, "variant": v, "seed": s})
        for t in TOYS
        for v in SAMPLED
        for s in range(settings.seeds)
    ]
    return exact + sampled


def _key(toy: str, variant: str, what: str) -> str:
    return f"{toy}-{variant}-{what}".replace(" ", "-").replace(",", "").replace("=-", "")


def _recorded(settings: Settings, steps: int) -> list[int]:
    """Step numbers to keep, from 0 to `steps`, dense at the start."""
    return np.unique(np.round(np.geomspace(1, steps + 1, settings.recorded)).astype(int) - 1).tolist()


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    toy = TOYS[cell.params["mdp"]]()
    tau = dict(zip(TOYS, settings.tau, strict=True))[cell.params["mdp"]]
    exact = "seed" not in cell.params
    steps = settings.exact_steps if exact else settings.sampled_steps
    kept = set(_recorded(settings, steps))
    trace: list[tuple[float, ...]] = []
    number = 0

    def record(now: Step) -> None:
        nonlocal number
        if exact and number in kept:
            p = float(coverage(now.before.d, improvable_set(now.before.A, tau)).p)
            trace.append((number, p, *_bounds(toy.mdp, now, tau)))
        number += 1

    mdp: FiniteMDP = toy.mdp
    estimator = Exact() if exact else Sampled(settings.n, Tabular(mdp.H, mdp.X, mdp.Y))
    # a sampled Ahat may be unlucky once; an exact one at rounding level means that there is nothing left
    rule = StoppingRule(max_steps=steps, tol=1e-12, patience=1 if exact else 10)
    done = run(mdp, toy.pi, VARIANTS[cell.params["variant"]](tau), estimator, rng, rule, record)
    best = float(expected_return(mdp, optimal(mdp)[2]))
    at = [t for t in sorted(kept) if t <= done.steps]
    gap = best - done.J
    return {
        **cell.params,
        "tau": tau,
        "H": mdp.H,
        "R_max": mdp.R_max,
        "step": at,
        "gap": [float(max(gap[t], 0.0)) for t in at],
        "first_gap": float(gap[0]),
        "last_gap": float(gap[-1]),
        "steps": done.steps,
        "first_gain": float(done.J[1] - done.J[0]) if done.steps else 0.0,
        "stopped_because": str(done.stopped_because),
        "q_rollouts": done.counts.q_rollouts,
        "cheap_trials": done.counts.cheap_trials,
    } | (
        {"trace": dict(zip(("step", "p", "bound", "sharp"), np.array(trace).T.tolist(), strict=True))} if trace else {}
    )


def _bounds(mdp: FiniteMDP, now: Step, tau: float) -> tuple[float, float]:
    """The right sides of the convergence theorem; -1 where they say nothing (C is infinite)."""
    sides = [float(f(mdp, now.pi, tau).rhs) for f in (convergence_gap, convergence_gap_sharp)]
    return sides[0] if np.isfinite(sides[0]) else -1.0, sides[1] if np.isfinite(sides[1]) else -1.0


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    curves = []
    at = _recorded(settings, settings.sampled_steps)
    for toy in TOYS:
        for variant in SAMPLED:
            runs = [results[_key(toy, variant, f"seed{s}")] for s in range(settings.seeds)]
            # a run that stopped keeps its policy
            gaps = np.array([np.interp(at, r["step"], r["gap"], right=r["last_gap"]) for r in runs])
            mean, low, high = mean_interval(gaps)
            trials = float(np.mean([r["cheap_trials"] / r["q_rollouts"] for r in runs]))
            curves.append(
                {"mdp": toy, "variant": variant, "q_rollouts": [settings.n * t for t in at]}
                | {"gap": mean.tolist(), "low": low.tolist(), "high": high.tolist(), "trials_per_rollout": trials}
            )
    return {"sampled": curves}


def table(result: Json) -> Table:
    rows = []
    for toy in TOYS:
        for variant in VARIANTS:
            cell = result["cells"][_key(toy, variant, "exact")]
            half = next((t for t, g in zip(cell["step"], cell["gap"], strict=True) if g <= cell["first_gap"] / 2), None)
            curve = [c for c in result["sampled"] if c["mdp"] == toy and c["variant"] == variant]
            end = f"{curve[0]['gap'][-1]:.4f} [{curve[0]['low'][-1]:.4f}, {curve[0]['high'][-1]:.4f}]" if curve else ""
            steps = "never" if half is None else f"<= {half}"
            row = (toy, variant, f"{cell['first_gain']:.6f}", steps, f"{cell['last_gap']:.4f}", str(cell["steps"]))
            rows.append((*row, cell["stopped_because"], end))
    header = (
        "MDP",
        "variant",
        "first gain",
        "steps to half gap",
        "last gap",
        "steps",
        "stopped because",
        "sampled gap",
    )
    return Table(header, rows)


def draw(result: Json) -> Figure:
    figure, panels = new_figure(len(TOYS), 3, width=4.2, height=3.0)
    for column, toy in enumerate(TOYS):
        top, middle, bottom = panels[:, column]
        for variant, style in STYLES.items():
            cell = result["cells"][_key(toy, variant, "exact")]
            step = np.array(cell["step"]) + 1
            top.plot(step, cell["gap"], color=style.color, lw=1.5, label=style.label)
            if cell["stopped_because"] != "max_steps were taken":
                top.plot(cell["steps"] + 1, cell["last_gap"], "o", color=style.color, ms=5)
        tau, H = cell["tau"], cell["H"]
        top.axhline(H * tau, color="0.5", lw=1, ls=":", label="$H \\tau$")
        top.set(xscale="log", yscale="log", xlabel="step", title=f"{toy}, $\\tau = {tau:g}$")
        for curve in (c for c in result["sampled"] if c["mdp"] == toy):
            style = STYLES[curve["variant"]]
            x = np.array(curve["q_rollouts"]) + result["config"]["n"]
            middle.plot(x, curve["gap"], color=style.color, lw=1.5, label=style.label)
            middle.fill_between(x, curve["low"], curve["high"], color=style.color, alpha=0.25, lw=0)
        middle.set(xscale="log", xlabel="Q-rollouts")
        caro = result["cells"][_key(toy, "cpi-caro", "exact")]
        trace = {name: np.array(values) for name, values in caro["trace"].items()}
        bottom.plot(np.array(caro["step"]) + 1, caro["gap"], color=CARO.color, lw=1.5, label="gap of CPI-CARO")
        for name, label, ls in (
            ("bound", "$H\\tau + C H^2 R_{\\max} p_\\pi$", "-"),
            ("sharp", "$H\\tau + C H a_\\pi$", "--"),
        ):
            told = trace[name] >= 0
            bottom.plot(trace["step"][told] + 1, trace[name][told], color="k", lw=1, ls=ls, label=label)
        bottom.set(xscale="log", yscale="log", xlabel="step")
    panels[0, 0].set_ylabel("$J^* - J$, exact values")
    panels[1, 0].set_ylabel("$J^* - J$, sampled")
    panels[2, 0].set_ylabel("gap and its bounds")
    for row in panels:
        row[0].legend(frameon=False, fontsize=8)
    return figure


EXPERIMENT: Experiment[Any] = Experiment(
    name="convergence",
    full=Settings(),
    quick=Settings(exact_steps=600, sampled_steps=60, seeds=4),
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
