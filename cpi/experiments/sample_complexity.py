"""How many Q-rollouts until Ahat has the right sign, against the coverage p (Theorem 1, Prop. 10).

Measured: the sample size n at which P(Ahat <= 0) = 0.05, so that Algorithm 1 makes no update in one of twenty runs,
on Prop. 10's MDP, by bisection and a probit line through many trials around it. The exponent is the slope of log n over
log p. Its interval is the parametric bootstrap over the trials; it says how well the slope over *this* range of p is
known. `predicted` is the same slope for normal sums, z^2 Var(Y) / E[Y]^2: it tends to -2 as p -> 0, and departs
from it by the p-dependence of Var(Y).

For CPI-CARO the law of Ahat given n does not depend on p at all (it sees x1 only), hence the exponent 0; what grows is
the number of resets that its oracle turns down, measured on `cpi.improvable.CreditSampler`.

For the p of `check_p`, Algorithm 1's own step (`cpi.iteration.step`: reset sampler, rollouts, least squares over a
finite class, greedy policy, Ahat) is run at the measured n, and its share of Ahat <= 0 is set beside 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from cpi.exact import evaluate
from cpi.experiments.figures import CARO, RR, new_figure
from cpi.experiments.one_step import ProbitFit, SampleLaw, power_law, slope, smallest_n
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.improvable import CreditSampler
from cpi.iteration import ExactOracle, RandomResets, Sampled, Variant, step
from cpi.regression import FiniteClass
from toy_mdps.tightness import Tightness, tightness

__all__ = ["EXPERIMENT", "Settings"]

Float = NDArray[np.float64]
VARIANTS = ("cpi-rr", "cpi-caro")
COSTS = ("q_rollouts", "cheap_trials")
THEORY = {"cpi-rr": {"q_rollouts": -2, "cheap_trials": -2}, "cpi-caro": {"q_rollouts": 0, "cheap_trials": -1}}


@dataclass(frozen=True)
class Settings:
    """tau, k (actions), R_max of Prop. 10's MDP; eps = eps_share * tau p / (1 - p), so A^{G^c} << tau.

    p: the coverages. level: the P(Ahat <= 0) asked for. trials: at each of `points` sample sizes around the threshold.
    sampler_runs: runs of the credit sampler that count cheap trials. check_p, check_runs: where, and how often,
    Algorithm 1's own step is run; class_size: functions in its class F. resamples: of the bootstrap.
    """

    tau: float = 0.05
    k: int = 4
    R_max: float = 1.0
    eps_share: float = 0.05
    p: tuple[float, ...] = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005)
    level: float = 0.05
    trials: int = 200_000
    points: int = 7
    sampler_runs: int = 20
    check_p: tuple[float, ...] = (0.1,)
    check_runs: int = 2000
    class_size: int = 16
    resamples: int = 4000


QUICK = Settings(trials=40_000, sampler_runs=5, check_runs=300)


def _mdp(settings: Settings, p: float) -> Tightness:
    eps = settings.eps_share * settings.tau * p / (1 - p)
    return tightness(p=p, tau=settings.tau, eps=eps, k=settings.k, R=settings.R_max)


def cells(settings: Settings) -> list[Cell]:
    thresholds = [Cell(f"{v}-p{p:g}", {"variant": v, "p": p}) for v in VARIANTS for p in settings.p]
    checks = [
        Cell(f"check-{v}-p{p:g}", {"variant": v, "p": p, "check": True}) for v in VARIANTS for p in settings.check_p
    ]
    return thresholds + checks


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    variant, p = cell.params["variant"], cell.params["p"]
    toy = _mdp(settings, p)
    law = SampleLaw.of(toy, credit=variant == "cpi-caro")
    fit = smallest_n(law.misses, settings.level, settings.trials, settings.points, rng)
    n = math.ceil(float(fit.threshold(settings.level)))
    found: Json = {
        "variant": variant,
        "p": p,
        "grid_n": fit.n.tolist(),
        "hits": fit.hits.tolist(),
        "normal_threshold": law.normal_threshold(settings.level),
    }
    if cell.params.get("check"):
        return found | {
            "n": n,
            "runs": settings.check_runs,
            "nonpositive": _algorithm_1(toy, variant, settings, n, rng),
        }
    if variant == "cpi-caro":
        runs = _trials_per_draw(toy, settings, n, rng)
        found |= {
            "trials_per_draw": float(runs.mean()),
            "trials_per_draw_se": float(runs.std(ddof=1) / len(runs) ** 0.5),
        }
    return found


def _trials_per_draw(toy: Tightness, settings: Settings, n: int, rng: np.random.Generator) -> Float:
    """Cheap trials of the credit sampler for n accepted draws, divided by n; one entry a run."""
    E = evaluate(toy.mdp, toy.pi)
    sampler = CreditSampler(E.d, ExactOracle(settings.tau * (1 - 1e-9)).acceptance(E), max_trials=2**40)
    return np.array([sampler.draw(n, rng).cheap_trials / n for _ in range(settings.sampler_runs)])


def _algorithm_1(toy: Tightness, variant: str, settings: Settings, n: int, rng: np.random.Generator) -> int:
    """How often Algorithm 1's own step, with n Q-rollouts, finds Ahat <= 0."""
    # the advantage of x1 is tau up to rounding, and the oracle must not miss it
    kind: Variant = RandomResets() if variant == "cpi-rr" else ExactOracle(settings.tau * (1 - 1e-9))
    F = FiniteClass.around(evaluate(toy.mdp, toy.pi).Q, settings.class_size, settings.tau, rng)
    estimates = (step(toy.mdp, toy.pi, kind, Sampled(n, F), rng).estimate for _ in range(settings.check_runs))
    return sum(estimate.Ahat <= 1e-12 for estimate in estimates)


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    exponents: Json = {v: {} for v in VARIANTS}
    points: list[Json] = []
    for variant in VARIANTS:
        rows = [results[f"{variant}-p{p:g}"] for p in settings.p]
        for cost, (value, resampled, normal) in _costs(settings, variant, rows, rng).items():
            found = power_law(settings.p, value, resampled)
            for point, predicted in zip(found.pop("points"), normal, strict=True):
                points.append({"variant": variant, "cost": cost, **point, "normal": float(predicted)})
            predicted_slope = float(slope(np.log(settings.p), np.log(normal)))
            exponents[variant][cost] = found | {"predicted": predicted_slope, "theory": THEORY[variant][cost]}
    return {"exponents": exponents, "points": points, "algorithm_1": _checks(settings, results)}


def _costs(
    settings: Settings, variant: str, rows: list[Json], rng: np.random.Generator
) -> dict[str, tuple[Float, Float, Float]]:
    """By cost: what was measured [M], its bootstrap [B, M], and what normal sums would need [M]; M values of p."""
    fits = [ProbitFit(np.array(row["grid_n"]), np.array(row["hits"]), settings.trials) for row in rows]
    n = np.array([float(fit.threshold(settings.level)) for fit in fits])
    boot = np.stack([fit.resampled(settings.level, settings.resamples, rng) for fit in fits], axis=-1)
    normal = np.array([row["normal_threshold"] for row in rows])
    per_draw, per_draw_boot, expected = np.ones(len(rows)), np.ones(boot.shape), np.ones(len(rows))
    if variant == "cpi-caro":
        per_draw = np.array([row["trials_per_draw"] for row in rows])
        se = np.array([row["trials_per_draw_se"] for row in rows])
        per_draw_boot = per_draw + se * rng.standard_normal(boot.shape)
        expected = 1 / np.array(settings.p)
    return {
        "q_rollouts": (n, boot, normal),
        "cheap_trials": (n * per_draw, boot * per_draw_boot, normal * expected),
    }


def _checks(settings: Settings, results: Mapping[str, Json]) -> list[Json]:
    checks = []
    for variant in VARIANTS:
        for p in settings.check_p:
            found = results[f"check-{variant}-p{p:g}"]
            interval = binomtest(found["nonpositive"], found["runs"]).proportion_ci(method="wilson")
            shown = {name: found[name] for name in ("variant", "p", "n", "runs", "nonpositive")}
            share = found["nonpositive"] / found["runs"]
            checks.append(shown | {"share": share, "ci95": [interval.low, interval.high]})
    return checks


def table(result: Json) -> Table:
    rows = []
    for variant in VARIANTS:
        for cost in COSTS:
            e = result["exponents"][variant][cost]
            rows.append(
                (
                    variant,
                    cost,
                    f"{e['value']:+z.3f}",
                    f"[{e['ci95'][0]:+z.3f}, {e['ci95'][1]:+z.3f}]",
                    f"{e['predicted']:+z.3f}",
                    f"{e['theory']:+d}",
                )
            )
    return Table(("variant", "cost", "exponent of p", "95% interval", "normal law", "theory"), rows)


def draw(result: Json) -> Figure:
    figure, (left, right) = new_figure(2)
    for axes, cost, title in ((left, "q_rollouts", "Q-rollouts"), (right, "cheap_trials", "cheap trials (resets)")):
        for variant, style in (("cpi-rr", RR), ("cpi-caro", CARO)):
            points = [q for q in result["points"] if q["variant"] == variant and q["cost"] == cost]
            p, value = [q["p"] for q in points], np.array([q["value"] for q in points])
            error = np.abs(np.array([q["ci95"] for q in points]).T - value)
            e = result["exponents"][variant][cost]
            label = f"{style.label}: exponent {e['value']:z.3f} [{e['ci95'][0]:z.3f}, {e['ci95'][1]:z.3f}]"
            axes.errorbar(p, value, yerr=error, fmt=style.marker, color=style.color, capsize=2, ms=4.5, label=label)
            axes.plot(p, [q["normal"] for q in points], color=style.color, lw=1, ls="--")
        axes.plot(
            [], [], color="0.3", lw=1, ls="--", label="normal sums: $z^2\\,\\mathrm{Var}\\,Y/(\\mathrm{E}\\,Y)^2$"
        )
        axes.set(xscale="log", yscale="log", xlabel="coverage $p$", ylabel=f"{title} for $P(\\hat A \\leq 0) = 0.05$")
    values = [q["value"] for q in result["points"]]
    for axes in (left, right):
        axes.set_ylim(min(values) / 2, max(values) * 60)  # room for the legend
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


EXPERIMENT: Experiment[Any] = Experiment(
    name="sample-complexity",
    full=Settings(),
    quick=QUICK,
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
