"""Learning curves on a common budget, and differences between methods over paired runs.

A step reports the accuracy of the policy *before* its update, on the fresh rollouts of that step, which are an unbiased
sample of it (`llm.metrics`). So step s is the point (what steps 0..s-1 have cost, accuracy of step s). The cost has
three axes:

    steps      updates of equally many trained rollouts
    rollouts   everything sampled: trained, discarded (the paper's seeds are), and made in order to localise
    tokens     everything generated: the tokens of these rollouts and of localisation answers

A budget on an axis is the least of what the compared methods cost, each by its median run; between its points a curve
is read by linear interpolation. A run that spent less (its policy may have collapsed to short responses) is held, from
its end on, at the mean of its last `WINDOW` steps: a budget of the cheapest run would let one collapsed run decide how
much of all others is looked at. So all methods of a dial are read up to one budget: a dearer method is not read to its
end, and in other company a method may be read up to another point. ``cheapest`` says whose budget it is, and the curves
are kept beside the values, to be read up to any other.

The noise of single steps is left in: means over a curve need no smoothing. Only the first point that reaches a target
would be biased by it, and is therefore read from a moving average; it counts if it is within the budget, beyond which
the curves of dearer methods go on.

A unit is a pair (warm start, seed). Methods are compared on the units that both have run, with a bootstrap over units.
Seeds of one warm start share its weaknesses, so where there are several warm starts there is a second interval, over
the means of the warm starts: it says what another warm start would show, the first one what another seed would.
Where the runs measured held-out accuracy before and after training, that is compared too, at equal steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.statistics import bootstrap_mean, paired_difference, student_mean

__all__ = [
    "AXES",
    "HELD_OUT",
    "LATE",
    "WINDOW",
    "Curve",
    "Run",
    "budgets",
    "contrast",
    "curve_of",
    "held",
    "held_out_of",
    "mean_over",
    "reach",
    "spendings",
    "summarise",
]

AXES = ("steps", "rollouts", "tokens")
LATE = 0.15
"""The share of the budget, at its end, over which the accuracy at the budget is averaged."""
HELD_OUT = ("greedy", "sampled")
"""How a run answers its held-out problems, before and after training."""
WINDOW = 5
"""Steps of the moving average from which the way to a target is read, and of the mean that holds a short run."""
_WARM_STARTS = 3
"""How many warm starts an interval over them takes at least."""
_QUALITY = (
    "kappa",
    "rho",
    "p",
    "localiser_exact",
    "localiser_clean",
    "localiser_deviation",
    "mean_cut",
    "reset_reward",
    "groups_with_signal",
    "signal_ratio_live",
)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Accuracy before each update, [S], and by axis what had been spent until then, [S], from 0 on.

    means: over the steps, of what `metrics.jsonl` says about resets; None where no step has a value.
    """

    accuracy_S: Array
    spent: Mapping[str, Array]
    means: Mapping[str, float | None]


@dataclass(frozen=True)
class Run:
    """A finished cell: which method ran where, its curve, and its held-out accuracies (see `held_out_of`)."""

    dial: str
    variant: str
    checkpoint: str
    seed: int
    curve: Curve
    held_out: Mapping[str, Mapping[str, float]] | None = None

    @property
    def unit(self) -> tuple[str, int]:
        return self.checkpoint, self.seed


def curve_of(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve of a run from the rows of its `metrics.jsonl`."""
    cost = {
        "steps": [1.0 for _ in rows],
        "rollouts": [row["rollouts"] + row["localiser_rollouts"] for row in rows],
        "tokens": [row["tokens"] + row["localisation_tokens"] + row["localiser_tokens"] for row in rows],
    }
    spent = {axis: np.concatenate([[0.0], np.cumsum(cost[axis])[:-1]]) for axis in AXES}
    means = {name: _mean(row.get(name) for row in rows) for name in _QUALITY}
    per_step = {f"{axis}_per_step": float(np.mean(cost[axis])) for axis in AXES[1:]}
    return Curve(np.array([row["accuracy"] for row in rows], dtype=np.float64), spent, {**means, **per_step})


def held_out_of(result: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
    """By way of answering: accuracy ``before`` and ``after`` training, from a run's `result.json`; None without."""
    before, after = result.get("before"), result.get("after")
    if before is None or after is None:
        return None
    return {name: {"before": before[name]["value"], "after": after[name]["value"]} for name in HELD_OUT}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def mean_over(x_S: Array, y_S: Array, begin: float, end: float) -> float:
    """The mean of the piecewise linear curve through (x, y) over [begin, end], exactly.

    Example: through (0, 0), (1, 1) the mean over [0.5, 1] is 0.75. Raises ValueError unless
    x_0 <= begin < end <= x_S.
    """
    if not x_S[0] <= begin < end <= x_S[-1]:
        raise ValueError(f"the curve covers [{x_S[0]:g}, {x_S[-1]:g}], not [{begin:g}, {end:g}]")
    inner = x_S[(x_S > begin) & (x_S < end)]
    knots = np.concatenate([[begin], inner, [end]])
    return float(np.trapezoid(np.interp(knots, x_S, y_S), knots) / (end - begin))


def reach(x_S: Array, y_S: Array, target: float) -> float | None:
    """Where the moving average of the curve first is at `target`; None if it never is.

    The average is centred, over `WINDOW` steps (fewer at the ends, as many to either side), and linear in between.
    """
    half = np.minimum(WINDOW // 2, np.minimum(np.arange(len(y_S)), np.arange(len(y_S))[::-1]))
    smooth = np.array([y_S[s - h : s + h + 1].mean() for s, h in enumerate(half)])
    above = np.flatnonzero(smooth >= target)
    if above.size == 0:
        return None
    s = int(above[0])
    if s == 0:
        return float(x_S[0])
    share = (target - smooth[s - 1]) / (smooth[s] - smooth[s - 1])
    return float(x_S[s - 1] + share * (x_S[s] - x_S[s - 1]))


def spendings(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """By axis and method what its median run has spent by its last measured point."""
    by_variant: dict[str, list[Curve]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run.curve)
    return {
        axis: {name: float(np.median([c.spent[axis][-1] for c in curves])) for name, curves in by_variant.items()}
        for axis in AXES
    }


def budgets(runs: Iterable[Run]) -> dict[str, float]:
    """On each axis what the cheapest method has spent by the last measured point of its median run."""
    return {axis: min(spent.values()) for axis, spent in spendings(runs).items()}


def held(curve: Curve, axis: str, end: float) -> tuple[Array, Array]:
    """The points (x, y) of a curve on an axis; if it ends before `end`, held there at the mean of its last `WINDOW`."""
    x_S, y_S = curve.spent[axis], curve.accuracy_S
    if x_S[-1] >= end:
        return x_S, y_S
    level = float(y_S[-WINDOW:].mean())
    return np.append(x_S, [np.nextafter(x_S[-1], np.inf), end]), np.append(y_S, [level, level])


def _values(run: Run, budget: Mapping[str, float], target: float) -> dict[str, dict[str, float | None]]:
    """Of one run, by axis: mean accuracy up to the budget, accuracy at it, and the way to the target if within it."""
    curve = run.curve
    out: dict[str, dict[str, float | None]] = {}
    for axis in AXES:
        x, y = held(curve, axis, budget[axis])
        reached = reach(curve.spent[axis], curve.accuracy_S, target)
        out[axis] = {
            "area": mean_over(x, y, 0.0, budget[axis]),
            "late": mean_over(x, y, (1 - LATE) * budget[axis], budget[axis]),
            "reach": reached if reached is not None and reached <= budget[axis] else None,
        }
    return out


def summarise(runs: Sequence[Run], target: float) -> dict[str, Any]:
    """All of one dial: the budgets and whose they are, every run's values and curve, and by method their means."""
    budget = budgets(runs)
    cells = [
        {
            "variant": run.variant,
            "checkpoint": run.checkpoint,
            "seed": run.seed,
            "axes": _values(run, budget, target),
            "means": dict(run.curve.means),
            "held_out": run.held_out,
            "total": {axis: float(run.curve.spent[axis][-1]) for axis in AXES},
            "curve": {"accuracy": run.curve.accuracy_S.tolist()} | {a: run.curve.spent[a].tolist() for a in AXES[1:]},
        }
        for run in runs
    ]
    names = list(dict.fromkeys(run.variant for run in runs))
    own = {name: [c for c in cells if c["variant"] == name] for name in names}
    variants = {name: _variant(mine) for name, mine in own.items()}
    cheapest = {axis: min(spent, key=spent.__getitem__) for axis, spent in spendings(runs).items()}
    return {"budget": budget, "cheapest": cheapest, "target": target, "variants": variants, "cells": cells}


def _variant(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    axes: dict[str, Any] = {}
    for axis in AXES:
        of = {name: [c["axes"][axis][name] for c in cells] for name in ("area", "late", "reach")}
        reached = [np.inf if x is None else x for x in of["reach"]]
        median = float(np.median(reached))
        axes[axis] = {
            "area": _interval(of["area"]),
            "late": _interval(of["late"]),
            "reach": {
                "median": median if np.isfinite(median) else None,
                "reached": sum(x is not None for x in of["reach"]),
                "of": len(cells),
            },
        }
    means = {name: _mean(c["means"][name] for c in cells) for name in cells[0]["means"]}
    return {"units": len(cells), "axes": axes, "means": means, "held_out": _held_out([c["held_out"] for c in cells])}


def _held_out(cells: Sequence[Mapping[str, Mapping[str, float]] | None]) -> dict[str, Any] | None:
    """Mean held-out accuracy before and after, and mean gain, over the units; None unless every unit measured it."""
    known = [c for c in cells if c is not None]
    if len(known) < len(cells):
        return None
    out: dict[str, Any] = {}
    for name in HELD_OUT:
        before_N, after_N = ([c[name][when] for c in known] for when in ("before", "after"))
        gain_N = [after - before for before, after in zip(before_N, after_N, strict=True)]
        out[name] = {"before": _interval(before_N), "after": _interval(after_N), "gain": _interval(gain_N)}
    return out


def _interval(values: Sequence[float]) -> dict[str, Any]:
    return asdict(bootstrap_mean(values, np.random.default_rng(0)))


def contrast(cells: Sequence[Mapping[str, Any]], a: str, b: str) -> dict[str, Any] | None:
    """a - b over the units that both have run, by axis and measure; None if there are none.

    Each holds the mean difference with its paired bootstrap interval, the wins of a (ties count for neither), the mean
    difference on each warm start, which says whether one of them carries the result, and Student's interval over these
    means (None for fewer than `_WARM_STARTS`). ``held_out`` holds the same of held-out accuracy after training, None
    unless all of these runs measured it.
    """
    of = {name: {(c["checkpoint"], c["seed"]): c for c in cells if c["variant"] == name} for name in (a, b)}
    units = sorted(of[a].keys() & of[b].keys())
    if not units:
        return None
    pairs = [(of[a][unit], of[b][unit]) for unit in units]
    out: dict[str, Any] = {"a": a, "b": b, "units": [list(unit) for unit in units], "held_out": None}
    for axis in AXES:
        out[axis] = {measure: _paired(pairs, "axes", axis, measure) for measure in ("area", "late")}
    if all(c.get("held_out") is not None for pair in pairs for c in pair):  # results of before this was kept lack it
        out["held_out"] = {name: _paired(pairs, "held_out", name, "after") for name in HELD_OUT}
    return out


def _paired(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], *path: str) -> dict[str, Any]:
    """The difference of what stands at `path` in the cells of each pair."""
    a_N, b_N = (np.array([reduce(getitem, path, pair[i]) for pair in pairs], dtype=np.float64) for i in (0, 1))
    difference, starts = a_N - b_N, np.array([pair[0]["checkpoint"] for pair in pairs])
    means = {str(name): float(difference[starts == name].mean()) for name in dict.fromkeys(starts)}
    return {
        **asdict(paired_difference(a_N, b_N, np.random.default_rng(0))),
        "wins": int((difference > 0).sum()),
        "losses": int((difference < 0).sum()),
        "checkpoints": means,
        "over_checkpoints": asdict(student_mean(list(means.values()))) if len(means) >= _WARM_STARTS else None,
    }
