"""Algorithm 2 in the table: GRPO, RRPO, SRPO with a localiser of chosen quality, oracle resets; splits; equal budgets.

The task is a thought tree (a chain of thoughts of which some are hard, with a right or wrong answer at the end), the
policy a softmax table, the method `cpi.policy_gradient` on `cpi.groups`, the code that the language model runs. All
methods get the same budget of generated decisions, thrown-away seeds included; what a localiser writes is free here,
which favours SRPO. The exact J is followed along the budget; its mean over the budget (area under the curve, AUC) is
compared over seeds.

Step sizes. Nothing in this task punishes large steps: a success has only right thoughts in it. So the AUC rises with
the learning rate for all methods, there is no best one inside of any grid, and the comparison is shown for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import softmax

from cpi.exact import expected_return
from cpi.experiments.figures import Style, mean_interval, new_figure
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.groups import FirstFailure, IntactBase, Plan, SeedPolicy, Split
from cpi.policy_gradient import PolicyGradient, step
from cpi.resets import Noisy, Start, UniformWithinEpisode
from toy_mdps import ThoughtTree, thought_tree

__all__ = ["EXPERIMENT", "METHODS", "Settings"]

Float = NDArray[np.float64]
EARLY, LATE = {-1: 0.5, -2: 0.5}, {1: 0.5, 2: 0.5}
ONE_BY_4, TWO_BY_4, ONE_BY_8 = Split((4,), (4,)), Split((), (4, 4)), Split((), (8,))


def _noisy(shifts: dict[int, float], seeds: SeedPolicy | None = None) -> Callable[[ThoughtTree], Plan]:
    """1x4 with a localiser that is exact half of the time, and otherwise off by `shifts`."""
    return lambda tree: Plan(ONE_BY_4, Noisy(tree.localiser(), 0.5, shifts), seeds or FirstFailure())


METHODS: dict[str, Callable[[ThoughtTree], Plan]] = {
    "grpo 8": lambda tree: Plan(Split((8,), ()), Start()),
    "grpo 4+4": lambda tree: Plan(Split((4, 4), ()), Start()),
    "rrpo 1x4": lambda tree: Plan(ONE_BY_4, UniformWithinEpisode()),
    "rrpo 1x4, intact": lambda tree: Plan(ONE_BY_4, UniformWithinEpisode(), IntactBase()),
    "srpo 1x4, half late": _noisy(LATE),
    "srpo 1x4, half early": _noisy(EARLY),
    "srpo 1x4, half early, intact": _noisy(EARLY, IntactBase()),
    "srpo 1x4, half early, furthest": _noisy(EARLY, IntactBase(pick="furthest")),
    "oracle 1x4": lambda tree: Plan(ONE_BY_4, tree.localiser()),
    "oracle 1x4, intact": lambda tree: Plan(ONE_BY_4, tree.localiser(), IntactBase()),
    "oracle 1x4, furthest": lambda tree: Plan(ONE_BY_4, tree.localiser(), IntactBase(pick="furthest")),
    "rrpo 2x4": lambda tree: Plan(TWO_BY_4, UniformWithinEpisode()),
    "oracle 2x4": lambda tree: Plan(TWO_BY_4, tree.localiser()),
    "rrpo 1x8": lambda tree: Plan(ONE_BY_8, UniformWithinEpisode()),
    "oracle 1x8": lambda tree: Plan(ONE_BY_8, tree.localiser()),
}
STYLES = {
    "grpo 8": Style("GRPO, 8", "#000000"),
    "grpo 4+4": Style("GRPO, 4 + 4", "#888888"),
    "rrpo 1x4": Style("RRPO 1x4", "#d95f02"),
    "srpo 1x4, half early": Style("SRPO 1x4, half early", "#66a61e"),
    "oracle 1x4": Style("oracle 1x4", "#1b6ca8"),
    "oracle 1x4, intact": Style("oracle 1x4, intact base", "#e6ab02"),
    "oracle 1x4, furthest": Style("oracle 1x4, furthest seed", "#e7298a"),
    "oracle 1x8": Style("oracle 1x8", "#7fb3d5"),
}


@dataclass(frozen=True)
class Settings:
    """The chain has H thoughts of Y values; `hard` of them, one task each, are right half of the time.

    budget: generated decisions a run; prompts: attempted a step; learning_rates; seeds; points of the curves.
    """

    H: int = 8
    Y: int = 4
    hard: tuple[int, ...] = (2, 6)
    budget: int = 10_000
    prompts: int = 4
    learning_rates: tuple[float, ...] = (10.0, 40.0, 160.0, 640.0)
    seeds: int = 12
    points: int = 51


def _key(method: str, hard: int, rate: float) -> str:
    return f"{method}-hard{hard}-rate{rate:g}".replace(" ", "-").replace(",", "").replace("+", "and")


def cells(settings: Settings) -> list[Cell]:
    return [
        Cell(_key(method, hard, rate), {"method": method, "hard": hard, "rate": rate})
        for hard in settings.hard
        for method in METHODS
        for rate in settings.learning_rates
    ]


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    tree = thought_tree(H=settings.H, Y=settings.Y, hard=cell.params["hard"])
    runs = [_train(tree, settings, cell, int(seed)) for seed in rng.integers(2**31, size=settings.seeds)]
    names = ("rollouts", "exact", "clean")
    means = {name: [run[name] for run in runs if run[name] is not None] for name in names}
    return {
        **cell.params,
        "J_0": tree.J,
        "auc": [run["auc"] for run in runs],
        "last": [run["last"] for run in runs],
        "J": np.mean([run["J"] for run in runs], axis=0).tolist(),
        **{name: float(np.mean(values)) if values else None for name, values in means.items()},
    }


def _train(tree: ThoughtTree, settings: Settings, cell: Cell, seed: int) -> Json:
    """One run: J along the budget, the rollouts it was spent on, and how good the cuts were."""
    plan = METHODS[cell.params["method"]](tree)
    method = PolicyGradient(lambda pi: plan, learning_rate=cell.params["rate"], prompts=settings.prompts)
    theta, spent, J = np.log(tree.pi), [0], [tree.J]
    rollouts, off = 0, []
    while spent[-1] < settings.budget:
        done = step(tree.mdp, theta, method, seed, len(J))
        theta = done.theta
        spent.append(spent[-1] + done.account.all_tokens)
        J.append(float(expected_return(tree.mdp, softmax(theta, axis=-1))))
        rollouts += done.account.rollouts
        cuts = [(found.seed, found.k) for found in done.rollouts.localisations if found.k >= 0]
        off += [k - int(tree.first_error(np.array(seed.actions))[0]) for seed, k in cuts]
    grid = np.linspace(0, settings.budget, settings.points)
    curve = np.interp(grid, spent, J)
    return {
        "J": curve,
        "auc": float(curve.mean()),
        "last": float(curve[-1]),
        "rollouts": rollouts,
        "exact": float(np.mean(np.array(off) == 0)) if off else None,
        "clean": float(np.mean(np.array(off) <= 0)) if off else None,
    }


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    rows = []
    for hard in settings.hard:
        for method in METHODS:
            for rate in settings.learning_rates:
                cell = results[_key(method, hard, rate)]
                row: Json = {"method": method, "hard": hard, "rate": rate, "auc": _interval(np.array(cell["auc"]))}
                for other in ("grpo 8", "grpo 4+4", "rrpo 1x4"):
                    control = np.array(results[_key(other, hard, rate)]["auc"])
                    row[f"minus {other}"] = _difference(np.array(cell["auc"]), control)
                rows.append(row | {name: cell[name] for name in ("exact", "clean", "rollouts")})
    return {"rows": rows}


def _interval(values: Float) -> Json:
    mean, low, high = mean_interval(values)
    return {"value": float(mean), "ci95": [float(low), float(high)]}


def _difference(a: Float, b: Float) -> Json:
    """Mean of a minus mean of b, independent runs: Welch's 95% interval."""
    from scipy.stats import ttest_ind

    interval = ttest_ind(a, b, equal_var=False).confidence_interval() if a is not b and a.std() + b.std() > 0 else None
    low, high = (interval.low, interval.high) if interval else (0.0, 0.0)
    return {"value": float(a.mean() - b.mean()), "ci95": [float(low), float(high)]}


def table(result: Json) -> Table:
    def shown(found: Json) -> str:
        return f"{found['value']:+.3f} [{found['ci95'][0]:+.3f}, {found['ci95'][1]:+.3f}]"

    rates = result["config"]["learning_rates"]
    chosen = (rates[1], rates[-1])
    rows = []
    for row in (r for r in result["rows"] if r["rate"] in chosen):
        quality = "" if row["exact"] is None else f"{row['exact']:.2f} / {row['clean']:.2f}"
        auc = f"{row['auc']['value']:.3f} [{row['auc']['ci95'][0]:.3f}, {row['auc']['ci95'][1]:.3f}]"
        differences = (shown(row["minus grpo 8"]), shown(row["minus grpo 4+4"]))
        rows.append((row["method"], str(row["hard"]), f"{row['rate']:g}", auc, *differences, quality))
    header = ("method", "hard steps", "learning rate", "AUC", "minus GRPO 8", "minus GRPO 4+4", "cuts exact / clean")
    return Table(header, rows)


def draw(result: Json) -> Figure:
    config = result["config"]
    rates = config["learning_rates"]
    figure, panels = new_figure(3, len(config["hard"]), width=4.6, height=4.0, squeeze=False)
    for (curves, over_rates, dots), hard in zip(panels, config["hard"], strict=True):
        x = np.linspace(0, config["budget"], config["points"])
        for method, style in STYLES.items():
            curves.plot(x, result["cells"][_key(method, hard, rates[1])]["J"], color=style.color, lw=1.4)
            rows = [r for r in result["rows"] if r["method"] == method and r["hard"] == hard]
            value = np.array([r["auc"]["value"] for r in rows])
            error = np.abs(np.array([r["auc"]["ci95"] for r in rows]).T - value)
            form = {"color": style.color, "lw": 1.4, "marker": "o", "ms": 3.5, "capsize": 2}
            over_rates.errorbar(rates, value, yerr=error, label=style.label, **form)
        curves.set(
            xlabel="decisions generated", ylabel="$J$ (exact)", title=f"{hard} hard steps, learning rate {rates[1]:g}"
        )
        over_rates.set(xscale="log", xlabel="learning rate", ylabel="AUC", xticks=rates, title="every learning rate")
        over_rates.set_xticks(rates, [f"{rate:g}" for rate in rates])
        over_rates.minorticks_off()
        over_rates.legend(frameon=False, fontsize=7.5, loc="lower right")
        _dots(dots, [r for r in result["rows"] if r["hard"] == hard and r["rate"] == rates[1]])
        dots.set_title(f"all methods, learning rate {rates[1]:g}")
    return figure


def _dots(axes: Any, rows: list[Json]) -> None:
    for i, row in enumerate(reversed(rows)):
        value, (low, high) = row["auc"]["value"], row["auc"]["ci95"]
        color = STYLES[row["method"]].color if row["method"] in STYLES else "0.45"
        axes.errorbar(value, i, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=2, ms=4)
    grpo = next(row["auc"]["value"] for row in rows if row["method"] == "grpo 8")
    axes.axvline(grpo, color="0.8", lw=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), [row["method"] for row in reversed(rows)], fontsize=8)
    axes.set_xlabel("AUC over equal budgets")


EXPERIMENT: Experiment[Any] = Experiment(
    name="resets-in-the-table",
    full=Settings(),
    quick=Settings(hard=(6,), budget=4000, learning_rates=(10.0, 40.0), seeds=4),
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
