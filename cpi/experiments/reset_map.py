"""Where resets should help on the language model's chains, before any language model is run.

`cpi.chain_gradient` gives the exact mean, second moment, signal and cost of one prompt's gradient for GRPO, RRPO, SRPO
and their variants, and from these a learning curve without noise. Three products:

    dials    the settings of the language model's map (configs/compare-full.yaml): for each method the figures of
             merit at the start and the mean accuracy over the budget by the noiseless curve; the same at other step
             sizes, without Adam's memory, and for other localisers. `reset` splits what one reset group gains over one
             base group into suffix success, decisions credited, weight by length and saved thoughts.
    trained  the same dials with everything that the curve leaves out: facts that are shared but learned one by one,
             finite batches, Adam (`cpi.experiments.shared_facts`), in paired seeds. The only part that samples.
    map      chains of `map_steps` thoughts over the number of hard steps and their reliability, by the noiseless curve

The step size is the one number that is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cpi.chain_gradient import METHODS, RATE, WARM_START, Chain, NearError, Scheme, predict, reset_gain
from cpi.experiments.figures import Style, mean_interval, new_figure
from cpi.experiments.runner import Cell, Experiment, Json, Table
from cpi.experiments.shared_facts import train_facts

__all__ = ["EXPERIMENT", "Settings"]

Float = NDArray[np.float64]
COMPARED = ("signal", "gain_per_thought", "area", "area_minus_grpo")
MAPPED = ("grpo", "rrpo", "oracle", "srpo-furthest", "oracle-furthest", "oracle-furthest-whole")
STYLES = {
    "grpo-4+4": Style("GRPO, 4 + 4", "#888888", "s"),
    "rrpo": Style("RRPO", "#d95f02", "s"),
    "srpo": Style("SRPO", "#66a61e", "v"),
    "oracle": Style("oracle", "#1b6ca8", "o"),
    "srpo-furthest": Style("SRPO, furthest seed", "#a6761d", "v"),
    "oracle-furthest": Style("oracle, furthest seed", "#e7298a", "o"),
    "oracle-furthest-whole": Style("the same, whole length", "#7b3294", "D"),
}


@dataclass(frozen=True)
class Settings:
    """dials: (steps, hard, reliability). rate: logits a step, and `other_rates` as multiples of it.

    localisers: (exact, too early by one, too late by one) of the srpo methods; the first row is the default one of
    `cpi.chain_gradient.predict`. trained: the methods that are trained on shared facts, "grpo" among them, in `seeds`
    runs each. The map: `map_steps` thoughts, hard steps and reliabilities.
    """

    dials: tuple[tuple[int, int, float], ...] = (
        (4, 3, 0.5),
        (8, 2, 0.5),
        (8, 6, 0.5),
        (8, 8, 0.5),
        (8, 6, 0.3),
        (8, 6, 0.7),
        (12, 6, 0.5),
    )
    rate: float = RATE
    other_rates: tuple[float, ...] = (0.5, 2.0)
    localisers: tuple[tuple[float, float, float], ...] = (
        (WARM_START.exact, 0.56, 0.44),
        (0.5, 1.0, 0.0),
        (0.5, 0.0, 1.0),
    )
    trained: tuple[str, ...] = (
        "grpo",
        "grpo-4+4",
        "grpo-mean",
        "rrpo",
        "srpo",
        "oracle",
        "srpo-intact",
        "srpo-furthest",
        "oracle-furthest",
        "srpo-furthest-mean",
        "oracle-furthest-mean",
        "oracle-furthest-whole",
    )
    seeds: int = 8
    map_steps: int = 10
    map_hard: tuple[int, ...] = tuple(range(1, 11))
    map_reliability: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def _name(dial: tuple[int, int, float]) -> str:
    return "-".join(f"{x:g}" for x in dial)


def cells(settings: Settings) -> list[Cell]:
    dials = [Cell(f"dial-{_name(dial)}", {"dial": dial}) for dial in settings.dials]
    trained = [
        Cell(f"trained-{_name(dial)}-{method}".replace("+", "and"), {"dial": dial, "method": method})
        for dial in settings.dials
        for method in settings.trained
    ]
    return [*dials, *trained, *(Cell(f"map-{hard}", {"hard": hard}) for hard in settings.map_hard)]


def compute(settings: Settings, cell: Cell, rng: np.random.Generator) -> Json:
    if "method" in cell.params:  # the seeds are those of every other method: runs are paired
        scheme, chain = METHODS[cell.params["method"]](_localiser(settings.localisers[0])), Chain(*cell.params["dial"])
        return {"area": [train_facts(chain, scheme, seed, settings.rate).area for seed in range(settings.seeds)]}
    if "dial" in cell.params:
        return _dial(settings, cell.params["dial"])
    hard, rate = cell.params["hard"], settings.rate
    rows = {
        name: [predict(settings.map_steps, hard, r, name, rate=rate) for r in settings.map_reliability]
        for name in MAPPED
    }
    return {name: {what: [row[what] for row in found] for what in COMPARED} for name, found in rows.items()}


def _localiser(quality: tuple[float, float, float]) -> NearError:
    exact, early, late = quality
    return NearError(exact, ((-1, early), (1, late)))


def _dial(settings: Settings, dial: tuple[int, int, float]) -> Json:
    first, *others = [_localiser(quality) for quality in settings.localisers]
    rate = settings.rate
    own = [name for name in METHODS if METHODS[name](first) != METHODS[name](NearError())]

    def differences(**changed: Any) -> Json:
        options: dict[str, Any] = {"localiser": first, "rate": rate} | changed
        return {name: predict(*dial, name, **options)["area_minus_grpo"] for name in METHODS}

    return {
        "methods": {name: predict(*dial, name, first, rate) for name in METHODS},
        "other_rates": {f"{factor:g}": differences(rate=factor * rate) for factor in settings.other_rates},
        "without_memory": differences(betas=(0.0, 0.0)),
        "localisers": [{n: predict(*dial, n, localiser, rate)["area_minus_grpo"] for n in own} for localiser in others],
        "reset": {name: _factors(dial, make(first)) for name, make in METHODS.items() if make(first).split.reset},
    }


def _factors(dial: tuple[int, int, float], scheme: Scheme) -> Json:
    gain = reset_gain(Chain(*dial), scheme)
    return asdict(gain) | {"product": gain.product}


def conclude(settings: Settings, results: Mapping[str, Json], rng: np.random.Generator) -> Json:
    rows = [
        {"dial": list(dial), "method": name, **found, **_trained(settings, results, dial, name)}
        for dial in settings.dials
        for name, found in results[f"dial-{_name(dial)}"]["methods"].items()
    ]
    maps = {
        name: {what: [results[f"map-{hard}"][name][what] for hard in settings.map_hard] for what in COMPARED}
        for name in MAPPED
    }
    return {"rows": rows, "map": maps}


def _trained(settings: Settings, results: Mapping[str, Json], dial: tuple[int, int, float], name: str) -> Json:
    """Mean accuracy over the runs, and its paired difference to GRPO, with Student's 95% intervals."""
    if name not in settings.trained:
        return {"trained": None, "trained_minus_grpo": None}
    area, grpo = (
        np.array(results[f"trained-{_name(dial)}-{method}".replace("+", "and")]["area"]) for method in (name, "grpo")
    )
    return {"trained": _interval(area), "trained_minus_grpo": _interval(area - grpo)}


def _interval(values: Float) -> Json:
    mean, low, high = mean_interval(values)
    return {"value": float(mean), "ci95": [float(low), float(high)]}


def table(result: Json) -> Table:
    def shown(found: Json | None, sign: str = "") -> str:
        if not found:
            return ""
        low, high = found["ci95"]
        return f"{found['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    rows = [
        (
            f"{row['dial'][1]}/{row['dial'][0]} at {row['dial'][2]:g}",
            row["method"],
            f"{row['signal']:.3f}",
            f"{row['gain_per_thought']:.2f}",
            f"{row['rollouts']:.2f}",
            f"{row['thoughts']:.1f}",
            f"{row['area']:.3f}",
            f"{row['area_minus_grpo']:+.3f}",
            shown(row["trained"]),
            shown(row["trained_minus_grpo"], "+"),
        )
        for row in result["rows"]
    ]
    head = ("hard/steps", "method", "P(signal)", "gain a thought", "rollouts", "thoughts", "curve", "minus GRPO")
    return Table((*head, "trained", "minus GRPO"), rows)


def draw(result: Json) -> Figure:
    figure, panels = new_figure(3, 2, width=4.6, height=3.9)
    (signal, gain, published), (furthest, whole, dials) = panels
    maps = result["map"]
    found = np.log10(np.array(maps["grpo"]["signal"]))
    title = "GRPO: P(a prompt gives a gradient); line: 1/16"
    _heat(figure, signal, result, found, title, label="$\\log_{10}$ probability", cmap="cividis")
    _contour(signal, result, found, np.log10(1 / 16), "black")
    log2 = np.log2(np.array(maps["oracle-furthest"]["gain_per_thought"]))
    title = "oracle, furthest seed: the first step"
    _heat(figure, gain, result, log2, title, label="$\\log_2$ efficiency a thought / GRPO's", limit=3.0)
    _contour(gain, result, log2, 0.0, "black")
    for axes, name, title in (
        (published, "oracle", "oracle, first failure: mean accuracy"),
        (furthest, "oracle-furthest", "oracle, furthest seed: mean accuracy"),
        (whole, "oracle-furthest-whole", "the same, weighed by the whole length"),
    ):
        values = np.array(maps[name]["area_minus_grpo"])
        _heat(figure, axes, result, values, title, label="minus GRPO, equal thoughts", limit=0.25)
    _dots(dials, result)
    return figure


def _heat(figure: Figure, axes: Any, result: Json, values: Float, title: str, **form: Any) -> None:
    """`values` over hard steps (rows) and reliability; with `limit` around 0."""
    config = result["config"]
    limit, label = form.pop("limit", None), form.pop("label")
    if limit:
        form |= {"norm": TwoSlopeNorm(0.0, -limit, limit), "cmap": "RdBu"}
    image = axes.pcolormesh(config["map_reliability"], config["map_hard"], values, shading="nearest", **form)
    figure.colorbar(image, ax=axes, label=label, extend="both" if limit else "neither")
    axes.set(title=title, xlabel="reliability of a hard step", ylabel=f"hard steps of {config['map_steps']}")
    axes.title.set_fontsize(10)


def _contour(axes: Any, result: Json, values: Float, level: float, color: str) -> None:
    config = result["config"]
    if min(values.shape) > 1 and values.min() < level < values.max():
        lines = {"colors": color, "linewidths": 1.2}
        axes.contour(config["map_reliability"], config["map_hard"], values, levels=[level], **lines)


def _dots(axes: Any, result: Json) -> None:
    """Trained runs with their intervals, and the noiseless curve's prediction as a vertical tick."""
    dials = result["config"]["dials"]
    for i, (name, style) in enumerate(STYLES.items()):
        for y, dial in enumerate(dials):
            rows = [row for row in result["rows"] if row["method"] == name and row["dial"] == dial]
            at = y + (i - (len(STYLES) - 1) / 2) * 0.12
            axes.plot([row["area_minus_grpo"] for row in rows], [at] * len(rows), "|", ms=6, mew=1.4, color=style.color)
            for found in (row["trained_minus_grpo"] for row in rows if row["trained_minus_grpo"]):
                low, high = found["ci95"]
                axes.plot([low, high], [at, at], lw=1, color=style.color)
                axes.plot(found["value"], at, style.marker, ms=4, color=style.color)
        axes.plot([], [], style.marker, ms=4, color=style.color, label=style.label)
    axes.plot([], [], "|", ms=6, mew=1.4, color="0.3", label="(ticks: the curve)")
    for i in range(len(dials) - 1):
        axes.axhline(i + 0.5, color="0.9", lw=0.8, zorder=0)
    axes.axvline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_yticks(range(len(dials)), [f"{hard} of {steps}, {r:g}" for steps, hard, r in dials], fontsize=8)
    axes.set_ylim(len(dials) + 1.6, -0.6)  # room for the legend
    axes.set_xlabel("mean accuracy minus GRPO's, equal thoughts")
    axes.set_title("the language model's dials, trained", fontsize=10)
    axes.legend(frameon=False, fontsize=7, loc="lower center", ncols=3, columnspacing=0.8, handletextpad=0.2)


EXPERIMENT: Experiment[Any] = Experiment(
    name="reset-map",
    full=Settings(),
    quick=Settings(
        dials=((4, 3, 0.5), (8, 6, 0.5)),
        trained=("grpo", "oracle-furthest"),
        seeds=4,
        map_steps=6,
        map_hard=(1, 3, 6),
        map_reliability=(0.2, 0.5, 0.8),
    ),
    cells=cells,
    compute=compute,
    conclude=conclude,
    table=table,
    draw=draw,
)
