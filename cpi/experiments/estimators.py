"""Which part of the gap between p^-2 and p^0 belongs to random resets, and which to the estimator.

The 1/p^2 of Prop. 10 is proved for one estimator: no baseline, one mean over all states. On its MDP (eps = 0), with
random resets and pi+ given, as in the proposition, four estimators are compared:

    none       mean of k (pi+ - pi)(y|x) r
    baseline   mean of k (pi+ - pi)(y|x) (r - V(x)), V known
    paired     mean of k pi+(y|x) (r - r'), r' from a second continuation of the same state with an action of pi:
               a group of two. It costs two Q-rollouts a sample.
    per-state  fit Q by the mean of each cell, take A(x) = Q(x, y1) - Q(x, y0) where it is at least tau / 2, else 0,
               and average over the states. A state with an empty cell counts 0.

beside the paper's estimator under the credit sampler. Rewards are deterministic, or 0/1 with the same means, as a
verifier gives them. Measured: Q-rollouts until P(Ahat <= 0) = 0.05.

`predicted` is the exponent over the same p of: z^2 Var/mean^2 for the means (normal sums); for deterministic rewards
with a baseline, where Ahat <= 0 means that (x1, y1) was never drawn, (1 - p/k)^n = 0.05; for per-state the
same with either cell of x1 empty, or with 0/1 rewards a normal A(x1) against tau / 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from cpi.experiments.figures import Style, new_figure
from cpi.experiments.one_step import Misses, ProbitFit, SampleLaw, power_law, slope, smallest_n
from cpi.experiments.runner import Cell, Experiment, Json, Table

__all__ = ["EXPERIMENT", "PerState", "Settings", "sample_law"]

Float = NDArray[np.float64]
REWARDS = ("deterministic", "bernoulli")
ESTIMATORS = ("none", "baseline", "paired", "per-state", "credit")
ROLLOUTS = {"paired": 2}  # Q-rollouts a sample, where it is not 1
STYLES = {
    "none": Style("no baseline (the paper's)", "#d95f02", "s"),
    "baseline": Style("baseline $V$", "#7570b3", "^"),
    "paired": Style("paired continuations", "#66a61e", "v"),
    "per-state": Style("per-state threshold", "#e7298a", "D"),
    "credit": Style("no baseline, credit sampler", "#1b6ca8", "o"),
}


@dataclass(frozen=True)
class Settings:
    """Prop. 10's MDP with R_max = 1, gap tau, k actions and eps = 0; the coverages p.

    level: the P(Ahat <= 0) asked for; trials at each of `points` sample sizes around the threshold; resamples of the
    bootstrap.
    """

    tau: float = 0.3
    k: int = 4
    p: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    level: float = 0.05
    trials: int = 200_000
    points: int = 7
    resamples: int = 4000


def sample_law(estimator: str, reward: str, p: float, tau: float, k: int) -> SampleLaw:
    """The law of one sample of the mean estimators (all but per-state), at R = 1 and eps = 0.

    `share` is P(x1) under the reset sampler. Each line of `outcomes` is (probability, value).
    """
    share = 1.0 if estimator == "credit" else p
    high = 0.5 + tau  # the mean reward of (x1, y1); everywhere else it is 1/2
    outcomes: list[tuple[float, float]]
    if reward == "deterministic":
        one, rest = (high, 0.5)
        base = {"none": 0.0, "credit": 0.0, "baseline": 0.5, "paired": 0.5}[estimator]
        y0 = [] if estimator == "paired" else [(1 / k, -k * (0.5 - base))]
        outcomes = [*y0, (share / k, k * (one - base)), ((1 - share) / k, k * (rest - base))]
    elif estimator == "paired":  # r - r' in {-1, 0, 1}
        up = share * high / 2 + (1 - share) / 4
        down = share * (1 - high) / 2 + (1 - share) / 4
        outcomes = [(up / k, float(k)), (down / k, float(-k))]
    else:
        base = 0.5 if estimator == "baseline" else 0.0
        right = share * high + (1 - share) / 2  # P(r = 1 | y1)
        outcomes = [
            (0.5 / k, -k * (1 - base)),
            (0.5 / k, k * base),
            (right / k, k * (1 - base)),
            ((1 - right) / k, -k * base),
        ]
    probs, values = np.array(outcomes).T
    return SampleLaw(np.append(values, 0.0), np.append(probs, 1 - probs.sum()))


@dataclass(frozen=True)
class PerState:
    """The per-state estimator: `misses` counts the trials in which no state passes."""

    reward: str
    p: float
    tau: float
    k: int

    def misses(self, n: int, trials: int, rng: np.random.Generator) -> int:
        shares = np.array([self.p, self.p, 1 - self.p, 1 - self.p]) / self.k  # (x1, y0), (x1, y1), (x2, y0), (x2, y1)
        counts = rng.multinomial(n, np.append(shares, 1 - shares.sum()), size=trials)[:, :4]
        means = np.array([0.5, 0.5 + self.tau, 0.5, 0.5])
        total = rng.binomial(counts, means) if self.reward == "bernoulli" else counts * means
        Q = total / np.maximum(counts, 1)
        seen = (counts > 0).reshape(trials, 2, 2).all(axis=2)
        gap = Q.reshape(trials, 2, 2)[..., 1] - Q.reshape(trials, 2, 2)[..., 0]
        return int((~(seen & (gap >= self.tau / 2 - 1e-12)).any(axis=1)).sum())

    def predicted(self, level: float) -> float:
        """The sample size at which x1 does not pass with probability `level`, taking x2 never to pass."""
        if self.reward == "bernoulli":
            variance = 0.25 + (0.5 + self.tau) * (0.5 - self.tau)
            return float(ndtri(level) ** 2 * variance / (self.tau / 2) ** 2 * self.k / self.p)
        one, both = 1 - self.p / self.k, 1 - 2 * self.p / self.k
        return float(brentq(lambda n: 2 * one**n - both**n - level, 1, 100 * self.k / self.p))


def _study(estimator: str, reward: str, p: float, settings: Settings) -> tuple[Misses, float]:
    """(the event to count, the predicted sample size)."""
    tau, k, level = settings.tau, settings.k, settings.level
    if estimator == "per-state":
        fitted = PerState(reward, p, tau, k)
        return fitted.misses, fitted.predicted(level)
    law = sample_law(estimator, reward, p, tau, k)
    if reward == "deterministic" and estimator in ("baseline", "paired"):
        return law.misses, math.log(level) / math.log1p(-p / k)
    return law.misses, law.normal_threshold(level)


def cells(settings: Settings) -> list[Cell]:
    return [
        Cell(f"{reward}-{estimator}-p{p:g}", {"reward": reward, "estimator": estimator, "p": p})
        for reward in REWARDS
        for estimator in ESTIMATORS
        for p in settings.p
    ]


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    reward, estimator, p = cell.params["reward"], cell.params["estimator"], cell.params["p"]
    misses, predicted = _study(estimator, reward, p, settings)
    fit = smallest_n(misses, settings.level, settings.trials, settings.points, rng)
    cost = ROLLOUTS.get(estimator, 1)
    return {**cell.params, "grid_n": fit.n.tolist(), "hits": fit.hits.tolist(), "rollouts_per_sample": cost} | {
        "predicted": cost * predicted
    }


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    exponents: Json = {}
    for reward in REWARDS:
        exponents[reward] = {}
        for estimator in ESTIMATORS:
            rows = [results[f"{reward}-{estimator}-p{p:g}"] for p in settings.p]
            fits = [ProbitFit(np.array(row["grid_n"]), np.array(row["hits"]), settings.trials) for row in rows]
            cost = ROLLOUTS.get(estimator, 1)
            n = np.array([float(fit.threshold(settings.level)) for fit in fits])
            boot = np.stack([fit.resampled(settings.level, settings.resamples, rng) for fit in fits], axis=-1)
            found = power_law(settings.p, cost * n, cost * boot)
            predicted = np.array([row["predicted"] for row in rows])
            found["predicted"] = float(slope(np.log(settings.p), np.log(predicted)))
            for point, value in zip(found["points"], predicted, strict=True):
                point["predicted"] = float(value)
            exponents[reward][estimator] = found
    return {"exponents": exponents}


def table(result: Json) -> Table:
    rows = []
    for reward in REWARDS:
        for estimator in ESTIMATORS:
            e = result["exponents"][reward][estimator]
            last = e["points"][-1]
            interval = f"[{e['ci95'][0]:+z.3f}, {e['ci95'][1]:+z.3f}]"
            rows.append(
                (reward, estimator, f"{e['value']:+z.3f}", interval, f"{e['predicted']:+z.3f}", f"{last['value']:.3g}")
            )
    smallest = f"rollouts at p={result['config']['p'][-1]:g}"
    return Table(("rewards", "estimator", "exponent of p", "95% interval", "predicted", smallest), rows)


def draw(result: Json) -> Figure:
    figure, panels = new_figure(2, sharey=True)
    for axes, reward, title in zip(panels, REWARDS, ("deterministic rewards", "0/1 rewards"), strict=True):
        for estimator in ESTIMATORS:
            e, style = result["exponents"][reward][estimator], STYLES[estimator]
            p, value = [q["p"] for q in e["points"]], np.array([q["value"] for q in e["points"]])
            error = np.abs(np.array([q["ci95"] for q in e["points"]]).T - value)
            label = f"{style.label}: {e['value']:.2f}" if abs(e["value"]) >= 0.005 else f"{style.label}: 0"
            axes.errorbar(p, value, yerr=error, fmt=style.marker, color=style.color, capsize=2, ms=4.5, label=label)
            axes.plot(p, [q["predicted"] for q in e["points"]], color=style.color, lw=1, ls="--")
        axes.set(xscale="log", yscale="log", xlabel="coverage $p$", title=title)
    panels[0].set_ylabel("Q-rollouts for $P(\\hat A \\leq 0) = 0.05$")
    high = max(q["value"] for e in result["exponents"].values() for s in e.values() for q in s["points"])
    for axes in panels:
        axes.set_ylim(None, high * 3e3)  # room for the legend
        axes.legend(frameon=False, fontsize=8, loc="upper right", title="exponent of $p$", title_fontsize=8)
    return figure


QUICK = Settings(trials=30_000, resamples=1000)
EXPERIMENT: Experiment[Any] = Experiment(
    name="estimators",
    full=Settings(),
    quick=QUICK,
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
