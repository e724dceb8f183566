"""How often CPI-RR sees no improvement at all on Prop. 10's MDP, against the lower bounds.

P(Ahat <= 0) over the number n of Q-rollouts: measured (multinomial counts, so any n costs the same), and exactly at the
smaller n; beside it Phi(-sqrt(n) A / sigma) - 0.6 E|Y - A|^3 / (sigma^3 sqrt(n)) from Berry-Esseen, and the 0.18 that
Prop. 10 promises for 6400 k^2 <= n <= sigma^2 / (4 A^2). `cpi.bounds.proposition_10` proves it from n = 44 k on. At
n = sigma^2 / (4 A^2) the normal law gives Phi(-1/2) = 0.309, whatever p, tau and k are. Under the credit sampler the
same n is far beyond what is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import ndtr
from scipy.stats import binomtest

from cpi.bounds import TightnessLaw
from cpi.experiments.figures import SEQUENCE, new_figure
from cpi.experiments.one_step import SampleLaw
from cpi.experiments.runner import Cell, Experiment, Json, Table
from toy_mdps.tightness import tightness

__all__ = ["EXPERIMENT", "Settings"]

PROMISED = 0.18


@dataclass(frozen=True)
class Settings:
    """Prop. 10's MDP with R_max = 1 and eps = 0, at the coverages p.

    `points` values of n, from 10 to `beyond` times sigma^2 / (4 A^2), with `trials` trials each; the exact probability
    at `exact_points` of them up to `exact_n`.
    """

    p: tuple[float, ...] = (0.03, 0.01, 0.003, 0.001)
    tau: float = 0.3
    k: int = 4
    points: int = 25
    beyond: float = 16.0
    trials: int = 200_000
    exact_points: int = 6
    exact_n: int = 60_000


def _law(settings: Settings, p: float) -> TightnessLaw:
    return TightnessLaw(p=p, k=settings.k, tau=settings.tau, eps=0.0)


def _grid(settings: Settings, p: float) -> list[int]:
    """Sample sizes from 10 on, the last of the range of Prop. 10 among them."""
    last = int(_law(settings, p).n_range[1])
    below = np.geomspace(10, last, settings.points - settings.points // 4).astype(int)
    above = np.geomspace(last, settings.beyond * last, settings.points // 4 + 1)[1:].astype(int)
    return sorted({*below.tolist(), last, *above.tolist()})


def cells(settings: Settings) -> list[Cell]:
    return [Cell(f"p{p:g}-n{n}", {"p": p, "n": n}) for p in settings.p for n in _grid(settings, p)]


def _exact_at(settings: Settings, p: float) -> set[int]:
    small = [n for n in _grid(settings, p) if n <= settings.exact_n]
    return {small[i] for i in np.linspace(0, len(small) - 1, settings.exact_points).astype(int)}


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    p, n = cell.params["p"], cell.params["n"]
    law = _law(settings, p)
    toy = tightness(p=p, tau=settings.tau, k=settings.k)
    misses = SampleLaw.of(toy, credit=False).misses(n, settings.trials, rng)
    interval = binomtest(misses, settings.trials).proportion_ci(method="wilson")
    root = law.mean / law.sigma * n**0.5
    return {
        "p": p,
        "n": n,
        "nonpositive": misses,
        "value": misses / settings.trials,
        "ci95": [interval.low, interval.high],
        "credit_nonpositive": SampleLaw.of(toy, credit=True).misses(n, settings.trials, rng),
        "exact": law.probability_not_positive(n) if n in _exact_at(settings, p) else None,
        "normal": float(ndtr(-root)),
        "berry_esseen": law.berry_esseen_floor(n),
    }


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    curves = []
    for p in settings.p:
        law = _law(settings, p)
        last, paper = int(law.n_range[1]), 6400 * settings.k**2
        rows = [results[f"p{p:g}-n{n}"] for n in _grid(settings, p)]
        inside = [row for row in rows if law.n_range[0] <= row["n"] <= last]
        lowest = min(inside, key=lambda row: row["value"])
        at_last = next(row for row in rows if row["n"] == last)
        curves.append(
            {
                "p": p,
                "range": [law.n_range[0], last],
                "paper_range": [paper, last] if paper <= last else None,
                "lowest": {name: lowest[name] for name in ("n", "value", "ci95")},
                "berry_esseen_at_last": at_last["berry_esseen"],
                "credit_at_last": at_last["credit_nonpositive"] / settings.trials,
                "points": rows,
            }
        )
    return {"promised": PROMISED, "curves": curves}


def table(result: Json) -> Table:
    rows = []
    for curve in result["curves"]:
        low, paper = curve["lowest"], curve["paper_range"]
        rows.append(
            (
                f"{curve['p']:g}",
                f"{curve['range'][0]:.0f}..{curve['range'][1]}",
                f"{paper[0]}..{paper[1]}" if paper else "empty",
                f"{low['value']:.4f} [{low['ci95'][0]:.4f}, {low['ci95'][1]:.4f}]",
                f"{curve['berry_esseen_at_last']:.4f}",
                f"{PROMISED}",
                f"{curve['credit_at_last']:.4f}",
            )
        )
    header = (
        "p",
        "range of n",
        "the paper's",
        "lowest P(Ahat <= 0) there",
        "Berry-Esseen",
        "promised",
        "credit sampler",
    )
    return Table(header, rows)


def draw(result: Json) -> Figure:
    figure, (left, right) = new_figure(2, sharey=True)
    for curve, color in zip(result["curves"], SEQUENCE, strict=False):
        last = curve["range"][1]
        n = np.array([q["n"] for q in curve["points"]])
        value = np.array([q["value"] for q in curve["points"]])
        error = np.abs(np.array([q["ci95"] for q in curve["points"]]).T - value)
        bound = np.array([q["berry_esseen"] for q in curve["points"]])
        style = {"fmt": "o", "ms": 3.5, "color": color, "capsize": 1.5, "lw": 1}
        left.errorbar(n, value, yerr=error, label=f"$p = {curve['p']:g}$", **style)
        left.plot(n, bound, color=color, lw=1, ls="--")
        exact = [(q["n"], q["exact"]) for q in curve["points"] if q["exact"] is not None]
        left.plot(*zip(*exact, strict=True), "x", color="k", ms=5)
        right.errorbar(n / last, value, yerr=error, **style)
        right.plot(n / last, bound, color=color, lw=1, ls="--")
    left.plot([], [], "x", color="k", ms=5, label="exact")
    left.plot([], [], color="0.3", lw=1, ls="--", label="Berry-Esseen bound")
    x = np.geomspace(1e-5, result["config"]["beyond"], 200)
    right.plot(
        x, ndtr(-np.sqrt(x) / 2), color="k", lw=1, label="normal: $\\Phi(-\\frac{1}{2}\\sqrt{4A^2 n/\\sigma^2})$"
    )
    for axes in (left, right):
        axes.axhline(PROMISED, color="0.5", lw=1, ls=":", label="0.18 (Prop. 10)")
        axes.set(xscale="log", ylim=(-0.02, 0.86))
    left.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    right.axvline(1.0, color="0.5", lw=1)
    right.annotate(" end of\n Prop. 10's range", (1.0, 0.52), fontsize=8, color="0.3")
    left.set(xlabel="Q-rollouts $n$", ylabel="$P(\\hat A \\leq 0)$, CPI-RR")
    right.set(xlabel="$n \\, / \\, (\\sigma^2 / 4 A^2)$")
    return figure


QUICK = Settings(points=17, trials=20_000, exact_points=3, exact_n=3000)
EXPERIMENT: Experiment[Any] = Experiment(
    name="tightness",
    full=Settings(),
    quick=QUICK,
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
