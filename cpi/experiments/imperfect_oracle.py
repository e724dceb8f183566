"""When does an imperfect oracle beat random resets? One step of Algorithm 1 over a grid of recall and precision.

The theorem: a soft oracle's guaranteed gain is kappa rho p tau^2 / (8 H R_max), that of random resets p^2 tau^2 /
(8 H R_max), so the oracle is worth having when kappa rho > p. Here the gain itself is measured, J(pi_new) - J(pi)
exactly, for the policy that one step with alpha = min{1, Ahat / (H^2 R_max)} reaches:

    exact     Ahat and pi+ without error, on two MDPs. Where rewards are additive and nothing is to be gained off G
              (decision points), the ratio of gains is kappa rho / p and the frontier is exact.
    sampled   n Q-rollouts and a table, mean over independent runs: precision also buys accuracy.

A grid point with off-G acceptance above one does not exist: an oracle of recall kappa that accepts everything else has
precision kappa p / (kappa p + 1 - p) already. The paper's half step (c = 2) moves the frontier to kappa rho = 2p.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cpi.exact import evaluate, expected_return
from cpi.experiments.figures import new_figure
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.improvable import coverage, improvable_set, oracle_statistics
from cpi.iteration import Estimator, Exact, RandomResets, Sampled, SoftOracle, Variant, step
from cpi.regression import Tabular
from toy_mdps import decision_points, thought_tree

__all__ = ["EXPERIMENT", "Settings", "feasible"]

Float = NDArray[np.float64]
TOYS: dict[str, tuple[Callable[[], Any], float]] = {
    "decision points": (lambda: decision_points(H=10, decisive=1), 0.3),
    "thought tree": (lambda: thought_tree(H=10, Y=4, hard=2, easy_reliability=0.97), 0.1),
}
KINDS = ("exact", "sampled")


@dataclass(frozen=True)
class Settings:
    """`grid` values of kappa and of rho, geometric from `lowest` to 1; n Q-rollouts a step; runs a grid point."""

    grid: int = 13
    lowest: float = 0.03
    n: int = 400
    runs: int = 400


def _grid(settings: Settings) -> list[float]:
    return [float(v) for v in np.geomspace(settings.lowest, 1.0, settings.grid)]


def feasible(kappa: float, rho: float, p: float) -> bool:
    """Whether an oracle that is constant on G and off G can have this recall and precision at coverage p."""
    return kappa * p * (1 - rho) <= rho * (1 - p) * (1 + 1e-9)


def cells(settings: Settings) -> list[Cell]:
    rows = [
        Cell(f"{toy}-{kind}-kappa{kappa:.3f}".replace(" ", "-"), {"mdp": toy, "kind": kind, "kappa": kappa})
        for toy in TOYS
        for kind in KINDS
        for kappa in _grid(settings)
    ]
    random = [Cell(f"{t}-{k}-random".replace(" ", "-"), {"mdp": t, "kind": k}) for t in TOYS for k in KINDS]
    return random + rows


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    make, tau = TOYS[cell.params["mdp"]]
    toy = make()
    E = evaluate(toy.mdp, toy.pi)
    G = improvable_set(E.A, tau)
    p = float(coverage(E.d, G).p)
    estimator: Estimator = Exact()
    if cell.params["kind"] == "sampled":
        estimator = Sampled(settings.n, Tabular(toy.mdp.H, toy.mdp.X, toy.mdp.Y))
    runs = 1 if cell.params["kind"] == "exact" else settings.runs
    if "kappa" not in cell.params:
        return {**cell.params, "p": p, **_gain(toy, RandomResets(), estimator, runs, rng)}
    kappa = cell.params["kappa"]
    points = []
    for rho in (rho for rho in _grid(settings) if feasible(kappa, rho, p)):
        oracle = SoftOracle(tau, kappa, rho, step_scale=1.0)
        measured = oracle_statistics(E.d, G, oracle.acceptance(E))
        found = {"rho": rho, "measured_rho": measured.rho, "measured_kappa": measured.kappa}
        points.append(found | _gain(toy, oracle, estimator, runs, rng))
    return {**cell.params, "p": p, "points": points}


def _gain(toy: Any, variant: Variant, estimator: Estimator, runs: int, rng: np.random.Generator) -> Json:
    """Exact J(pi_new) - J(pi), mean and standard error over independent single steps."""
    before = float(expected_return(toy.mdp, toy.pi))
    after = (step(toy.mdp, toy.pi, variant, estimator, rng).pi for _ in range(runs))
    gains = np.array([float(expected_return(toy.mdp, pi)) - before for pi in after])
    return {"gain": float(gains.mean()), "se": float(gains.std(ddof=1) / runs**0.5) if runs > 1 else 0.0}


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    maps = []
    for toy in TOYS:
        for kind in KINDS:
            random = results[f"{toy}-{kind}-random".replace(" ", "-")]
            rows = [r for r in results.values() if r["mdp"] == toy and r["kind"] == kind and "kappa" in r]
            points = [
                {"kappa": row["kappa"], "rho": q["rho"]} | _ratio(q, random) for row in rows for q in row["points"]
            ]
            p = random["p"]
            maps.append(
                {"mdp": toy, "kind": kind, "p": p, "random_gain": random["gain"], "points": points}
                | {"frontier": _frontier(points, p), "agree": _agree(points, p)}
            )
    return {"maps": maps}


def _ratio(found: Json, random: Json) -> Json:
    """Gain over that of random resets, with a 95% interval by the delta method on the logarithm."""
    ratio = found["gain"] / random["gain"]
    half = 1.96 * float(np.hypot(found["se"] / found["gain"], random["se"] / random["gain"]))
    return {"ratio": ratio, "ci95": [ratio * float(np.exp(-half)), ratio * float(np.exp(half))]}


def _frontier(points: list[Json], p: float) -> float | None:
    """The kappa rho / p at which the gains are equal: from a line through log ratio over log(kappa rho / p)."""
    x = np.log([q["kappa"] * q["rho"] / p for q in points])
    y = np.log([max(q["ratio"], 1e-9) for q in points])
    near = np.abs(x) < 1.5
    if near.sum() < 3:
        return None
    slope, offset = np.polyfit(x[near], y[near], 1)
    return float(np.exp(-offset / slope))


def _agree(points: list[Json], p: float) -> Json:
    """Of the grid points whose interval excludes 1: in how many the frontier kappa rho = p names the better one."""
    told = [q for q in points if not q["ci95"][0] <= 1 <= q["ci95"][1]]
    right = [q for q in told if (q["ratio"] > 1) == (q["kappa"] * q["rho"] > p)]
    return {"right": len(right), "decided": len(told), "points": len(points)}


def table(result: Json) -> Table:
    rows = []
    for found in result["maps"]:
        agree, frontier = found["agree"], found["frontier"]
        best = max(found["points"], key=lambda q: q["kappa"] * q["rho"])
        name = (found["mdp"], found["kind"], f"{found['p']:.3f}", f"{found['random_gain']:.6f}")
        ratio = f"{best['ratio']:.2f} [{best['ci95'][0]:.2f}, {best['ci95'][1]:.2f}]"
        decided = f"{agree['right']}/{agree['decided']} of {agree['points']}"
        rows.append((*name, ratio, f"{1 / found['p']:.2f}", "-" if frontier is None else f"{frontier:.2f}", decided))
    header = (
        "MDP",
        "values",
        "p",
        "random gain",
        "exact oracle / random",
        "1/p",
        "equal at kappa rho / p",
        "frontier right",
    )
    return Table(header, rows)


def draw(result: Json) -> Figure:
    figure, panels = new_figure(3, 2, width=4.4, height=3.5)
    for row, toy in zip(panels, TOYS, strict=True):
        maps = {found["kind"]: found for found in result["maps"] if found["mdp"] == toy}
        for axes, kind in zip(row, KINDS, strict=False):
            image = _heat(axes, maps[kind])
            n = result["config"]["n"]
            axes.set_title(f"{toy}, " + ("exact values" if kind == "exact" else f"{n} Q-rollouts a step"))
        figure.colorbar(image, ax=row[1], label="ratio of gains", ticks=[0.1, 0.3, 1, 3, 10])
        _collapse(row[2], maps)
    panels[0, 0].legend(frameon=True, framealpha=0.9, fontsize=7.5, loc="lower left")
    panels[0, 2].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _heat(axes: Any, found: Json) -> Any:
    from matplotlib.colors import LogNorm

    grid = sorted({q["kappa"] for q in found["points"]})
    ratio = np.full((len(grid), len(grid)), np.nan)
    for q in found["points"]:
        ratio[grid.index(q["rho"]), grid.index(q["kappa"])] = max(q["ratio"], 1e-3)
    image = axes.pcolormesh(grid, grid, ratio, norm=LogNorm(0.1, 10), cmap="RdBu_r", shading="nearest")
    axes.set(xscale="log", yscale="log", xlabel="recall $\\kappa$", ylabel="precision $\\rho$")
    low, p = grid[0], found["p"]
    line = np.geomspace(low, 1, 200)
    for factor, ls in ((1, "-"), (2, ":")):
        told = (factor * p / line >= low) & (factor * p / line <= 1)
        label = f"$\\kappa\\rho = {'2' if factor == 2 else ''}p$"
        axes.plot(line[told], factor * p / line[told], color="k", lw=1.6, ls=ls, label=label)
    if np.nanmin(ratio) < 1 < np.nanmax(ratio):
        axes.contour(grid, grid, np.ma.masked_invalid(np.log(ratio)), levels=[0], colors="#1b9e3c", linestyles="--")
    axes.plot([], [], color="#1b9e3c", ls="--", label="measured: equal gain")
    axes.fill_between(
        line, low, np.maximum(line * p / (line * p + 1 - p), low), color="0.85", lw=0, label="no such oracle"
    )
    axes.set(xlim=(low * 0.9, 1.1), ylim=(low * 0.9, 1.1))
    return image


def _collapse(axes: Any, maps: Mapping[str, Json]) -> None:
    for kind, color, marker in (("exact", "0.2", "."), ("sampled", "#d95f02", "o")):
        found = maps[kind]
        x = np.array([q["kappa"] * q["rho"] / found["p"] for q in found["points"]])
        y = np.array([q["ratio"] for q in found["points"]])
        error = np.abs(np.array([q["ci95"] for q in found["points"]]).T - y)
        axes.errorbar(x, y, yerr=error, fmt=marker, color=color, ms=4, lw=0.8, alpha=0.7, label=kind)
    span = np.array(axes.get_xlim())
    span[0] = max(span[0], 1e-2)
    axes.plot([1e-2, 1e2], [1e-2, 1e2], color="0.5", lw=1, ls="--", label="ratio $= \\kappa\\rho / p$")
    axes.axhline(1, color="0.8", lw=0.8, zorder=0)
    axes.axvline(1, color="0.8", lw=0.8, zorder=0)
    top = 2 / maps["exact"]["p"]
    axes.set(xscale="log", yscale="log", xlabel="$\\kappa\\rho / p$", ylabel="gain / gain of random resets")
    axes.set(xlim=(1 / 30, top), ylim=(1 / 30, top))


EXPERIMENT: Experiment[Any] = Experiment(
    name="imperfect-oracle",
    full=Settings(),
    quick=Settings(grid=7, runs=40),
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
