"""The CPI inequality against the exact J(pi_alpha), over alpha: how much each bound gives away, and in which term.

Exact throughout: J(pi_alpha) is a polynomial in alpha. Two updates towards the greedy pi+: everywhere (Lemma 4) and on
the improvable set only (Corollary 5), on five toy MDPs, and on the chain on which the per-step form of Lemma 4 is an
equality. A bound reads

    J(pi_alpha) - J(pi) >= first order - penalty,

its first order is exact, so all that it gives away is in the penalty. `penalties` takes this apart at one small alpha,
every term divided by the first order, so that a bound is worth something where its penalty is below 1:

    exact         first order - gain: what is lost in truth. Negative on most MDPs, where second order adds to the gain
    TV exactly    alpha sum_h TV(d_h^{pi_alpha}, d_h) max_x f_h: the law moves this much, but taken to move against us
    coupling      the law bounded by the chance to have strayed (per step: taken to happen at rate alpha everywhere)
    pairs         its second order: how often a path passes two gates
    repaired      H(H-1)/2 q eps: every path strays at the average rate, everywhere, and loses the largest f there is
    as worded     H^2/2 eps everywhere, H^2 p eps on G
    reward range  eps replaced by what it can be at most
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cpi import bounds
from cpi.bounds import Bound
from cpi.exact import evaluate, greedy, mixture, return_polynomial
from cpi.experiments.figures import Style
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.improvable import coverage, improvable_set, restrict
from cpi.mdp import FiniteMDP
from cpi.slack import tight_chain
from toy_mdps import combination_lock, decision_points, delayed_symptom, garnet, thought_tree

__all__ = ["EXPERIMENT", "INSTANCES", "Settings"]

Float = NDArray[np.float64]
Update = tuple[FiniteMDP, Float, Float, Float]  # mdp, pi, pi', G


def _toy(toy: Any) -> tuple[FiniteMDP, Float]:
    return toy.mdp, toy.pi


INSTANCES: dict[str, Callable[[], tuple[FiniteMDP, Float]]] = {
    "thought tree": lambda: _toy(thought_tree(H=6, Y=4, hard=2)),
    "combination lock": lambda: _toy(combination_lock(H=5, Y=2)),
    "decision points": lambda: _toy(decision_points(H=12, decisive=3, trifle=0.02)),
    "delayed symptom": lambda: _toy(delayed_symptom(H=8, delay=2, c=0.8)),
    "garnet": lambda: _toy(garnet(X=10, Y=3, H=8, branching=3, seed=1)),
    "tight chain": lambda: tight_chain(H=6, up=1.0, down=0.0)[:2],
}
EVERYWHERE: dict[str, Callable[[Update, float], Bound]] = {
    "per step": lambda u, a: bounds.lemma_4_sharp(u[0], u[1], u[2], a),
    "repaired": lambda u, a: bounds.lemma_4_repaired(u[0], u[1], u[2], a),
    "as worded": lambda u, a: bounds.lemma_4(u[0], u[1], u[2], a),
    "reward range": lambda u, a: bounds.lemma_4_reward_range(u[0], u[1], u[2], a),
}
ON_G: dict[str, Callable[[Update, float], Bound]] = {
    "coupling": lambda u, a: bounds.corollary_5_sharp(*u, a),
    "pairs": lambda u, a: bounds.corollary_5_pairs(*u, a),
    "repaired": lambda u, a: bounds.corollary_5_repaired(*u, a),
    "as worded": lambda u, a: bounds.corollary_5(*u, a),
    "reward range": lambda u, a: bounds.corollary_5_reward_range(*u, a),
}
UPDATES = {"everywhere": EVERYWHERE, "on G": ON_G}
STYLES = {
    "TV exactly": Style("total variation exactly", "#a6cee3"),
    "per step": Style("per step / coupling", "#1b6ca8"),
    "coupling": Style("per step / coupling", "#1b6ca8"),
    "pairs": Style("pairs of gates", "#66a61e"),
    "repaired": Style("repaired", "#7570b3"),
    "as worded": Style("as worded in the paper", "#d95f02"),
    "reward range": Style("$\\epsilon$ replaced by $H R_{\\max}$", "#999999"),
}


@dataclass(frozen=True)
class Settings:
    """tau is a share of the MDP's largest advantage; `points` values of alpha in [0, 1]; `small` for the penalties."""

    tau_share: float = 0.3
    points: int = 101
    small: float = 0.05


def cells(settings: Settings) -> list[Cell]:
    return [Cell(_key(name, update), {"mdp": name, "update": update}) for name in INSTANCES for update in UPDATES]


def _key(name: str, update: str) -> str:
    return f"{name}-{update}".replace(" ", "-")


def _update(name: str, update: str, settings: Settings) -> tuple[Update, float]:
    mdp, pi = INSTANCES[name]()
    E = evaluate(mdp, pi)
    visited = E.A * (E.d > 0)[..., None]
    G = improvable_set(E.A, settings.tau_share * float(visited.max()))
    pi_plus = greedy(E.A)
    pi_new = restrict(pi, pi_plus, G) if update == "on G" else pi_plus
    gate = G.astype(np.float64) if update == "on G" else np.ones(G.shape)
    return (mdp, pi, pi_new, gate), float(coverage(E.d, G).p)


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    update, p = _update(cell.params["mdp"], cell.params["update"], settings)
    mdp, pi, pi_new, _ = update
    alpha = np.linspace(0, 1, settings.points)
    c = return_polynomial(mdp, pi, mixture(pi, pi_new, 1.0))
    gain = np.polynomial.polynomial.polyval(alpha, c) - c[0]
    claims = {
        name: np.array([float(f(update, a).rhs) for a in alpha]) for name, f in UPDATES[cell.params["update"]].items()
    }
    return {
        **cell.params,
        "p": p,
        "alpha": alpha.tolist(),
        "gain": gain.tolist(),
        "first_order": (c[1] * alpha).tolist(),
        "claims": {name: claim.tolist() for name, claim in claims.items()},
        "best": {"alpha": float(alpha[gain.argmax()]), "gain": float(gain.max())},
        "recommended": {
            name: {"alpha": float(alpha[q.argmax()]), "claim": float(q.max()), "gain": float(gain[q.argmax()])}
            for name, q in claims.items()
        },
        "penalties": _penalties(update, cell.params["update"], settings.small),
    }


def _penalties(update: Update, kind: str, alpha: float) -> dict[str, float]:
    """Every term at `alpha`, divided by the first order."""
    mdp, pi, pi_new, _ = update
    E, moved = evaluate(mdp, pi), evaluate(mdp, mixture(pi, pi_new, alpha))
    f = (pi_new * E.A).sum(axis=-1)
    first = alpha * float((E.d * f).sum())
    tv_H = 0.5 * np.abs(moved.d - E.d).sum(axis=-1)
    found = {"exact": first - float(moved.J - E.J), "TV exactly": alpha * float(tv_H @ f.max(axis=-1))}
    found |= {name: first - float(claim(update, alpha).rhs) for name, claim in UPDATES[kind].items()}
    return {name: value / first for name, value in found.items()}


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    """Nothing beyond the cells: all numbers are exact."""
    return {}


def table(result: Json) -> Table:
    rows = []
    for cell in result["cells"].values():
        row = [cell["mdp"], cell["update"], f"{cell['p']:.3f}", f"{cell['best']['gain']:.4f}"]
        for name in ("coupling" if cell["update"] == "on G" else "per step", "repaired", "as worded", "reward range"):
            found = cell["recommended"][name]
            row.append(f"{found['claim']:.4f} ({found['gain']:.4f})")
        rows.append(tuple(row))
    header = ("MDP", "update", "p", "best gain", "coupling: claim (gain)", "repaired", "as worded", "reward range")
    return Table(header, rows)


def draw(result: Json) -> Figure:
    names = list(INSTANCES)
    figure = Figure(figsize=(2.7 * len(names), 9.2), layout="constrained")
    top, bottom = cast(Any, figure.subfigures(2, 1, height_ratios=(1.9, 1)))
    panels = top.subplots(2, len(names), sharex=True, sharey=True)
    for row, update in zip(panels, UPDATES, strict=True):
        for axes, name in zip(row, names, strict=True):
            _curves(axes, result["cells"][_key(name, update)])
            axes.set_title(f"{name}\n$\\pi^+$ {update}" if update == "everywhere" else "$\\pi^+$ on $G$ only")
        row[0].set_ylabel("gain / best gain")
    for axes in panels[1]:
        axes.set_xlabel("$\\alpha$")
    shown = [line for row in panels for line in row[0].get_lines()]
    lines = {line.get_label(): line for line in shown if not line.get_label().startswith("_")}
    top.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=7, frameon=False, fontsize=9)
    for axes, update in zip(bottom.subplots(1, 2, sharey=True), UPDATES, strict=True):
        _bars(axes, [result["cells"][_key(name, update)] for name in names])
        small = result["config"]["small"]
        axes.set_title(f"penalty / first order at $\\alpha = {small:g}$, $\\pi^+$ {update.replace('G', '$G$')}")
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center")
    return figure


def _curves(axes: Any, cell: Json) -> None:
    scale = cell["best"]["gain"]
    alpha = np.array(cell["alpha"])
    axes.plot(alpha, np.array(cell["gain"]) / scale, color="k", lw=1.8, label="exact gain")
    axes.plot(alpha, np.array(cell["first_order"]) / scale, color="k", lw=0.8, ls=":", label="first order")
    for name, claim in cell["claims"].items():
        style = STYLES[name]
        axes.plot(alpha, np.array(claim) / scale, color=style.color, lw=1.3, label=style.label)
    axes.axhline(0, color="0.8", lw=0.8, zorder=0, label="_zero")
    axes.set_ylim(-0.3, 1.25)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, cells: list[Json]) -> None:
    kinds = [kind for kind in cells[0]["penalties"] if kind != "exact"]
    width = 0.8 / len(kinds)
    for j, kind in enumerate(kinds):
        x = np.arange(len(cells)) + (j - (len(kinds) - 1) / 2) * width
        # a bar in log scale needs a floor: what is below it counts as nothing
        heights = [max(cell["penalties"][kind], 1e-3) for cell in cells]
        axes.bar(x, heights, width, bottom=0, color=STYLES[kind].color, label=STYLES[kind].label)
    axes.axhline(1, color="k", lw=0.8)
    axes.set(yscale="log", ylim=(1e-3, 1e3))
    names = [f"{cell['mdp']}\nexact: {cell['penalties']['exact']:+z.3f}" for cell in cells]
    axes.set_xticks(range(len(cells)), names, fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


EXPERIMENT: Experiment[Any] = Experiment(
    name="cpi-inequality",
    full=Settings(),
    quick=Settings(points=51),
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
