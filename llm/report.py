"""The report of a comparison: one HTML file with its figures in it, and the figures as PNG beside it.

Everything shown is read from `result.json` and from the curves of the runs; nothing is computed here but the smoothing
of the learning curves, which is for the eye only and is named below them.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from llm.curves import AXES, HELD_OUT, LATE, WINDOW, Run, held

__all__ = ["over_warm_starts", "shown", "way", "write_report"]

_GRID = 200
_SMOOTH = 0.025
_ENOUGH = 8
_LINES = ("-", "--", "-.")
_STYLE = """body{font:15px/1.5 sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.7em 0;font-size:13px}th,td{padding:.25em .7em;text-align:right;
border-bottom:1px solid #ddd;white-space:nowrap}th{white-space:normal}.wide{overflow-x:auto}
th:first-child,td:first-child{text-align:left}th{background:#f4f4f4}
img{max-width:100%}pre{background:#f4f4f4;padding:.7em;overflow-x:auto;font-size:12px}.clear{font-weight:bold}
summary{cursor:pointer}h2{margin-top:1.6em;border-bottom:1px solid #ccc}"""


def write_report(result: Mapping[str, Any], runs: Sequence[Run], folder: Path) -> None:
    """Write ``report.html`` and ``figures/*.png`` into `folder`."""
    (folder / "figures").mkdir(exist_ok=True)
    colours = _colours(result)
    parts = [_head(result)]
    if any(len(dial["contrasts"]) for dial in result["dials"].values()) and len(result["dials"]) > 1:
        parts.append(_map_section(result, folder))
    for name, dial in result["dials"].items():
        parts.append(_dial_section(name, dial, [r for r in runs if r.dial == name], colours, folder))
    parts.append(_tuning_section(result))
    parts.append(_commands_section(result))
    title = "Comparison of methods at equal budget"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1>{''.join(parts)}</html>\n"
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _colours(result: Mapping[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys(v for dial in result["dials"].values() for v in dial["variants"])
    dark_first = [*range(0, 20, 2), *range(1, 20, 2)]
    return {name: plt.get_cmap("tab20")(dark_first[i % 20]) for i, name in enumerate(names)}


# --------------------------------------------------------------------------------------------------------- sections


def _head(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    minutes, runs = result["seconds"] / 60, sum(len(dial["cells"]) for dial in result["dials"].values())
    return (
        f"<pre>{html.escape(result['command'])}</pre><p>{runs} evaluation runs, "
        f"{minutes:.1f} minutes of wall clock in this call with {result['jobs']} processes "
        f"({result['cell_seconds'] / 60:.1f} minutes of training steps in all evaluation runs). "
        f"{html.escape(versions)}.</p>"
        "<p>A unit is a pair of warm start and seed. <i>Mean accuracy</i> is the area under the learning curve up to "
        "the budget, divided by the budget; <i>accuracy at budget</i> is its mean over the last "
        f"{LATE:.0%} of the budget. The accuracy of a step is measured on the fresh rollouts of the policy before its "
        "update. The budget is what the median run of the cheapest method spent (named with it), so that dearer "
        "methods are not read to their end; a run that ended before it is held at "
        f"the mean of its last {WINDOW} steps. Tokens count everything generated: trained rollouts, "
        "discarded seeds, localisation answers, and rollouts made to localise; rollouts likewise. Intervals are 95% "
        "percentile bootstraps over units, paired for differences; with 3 units they hold a mean 75% of the time, "
        "with 4 80%, with 12 91% (normal values). They are not corrected for the number of "
        "contrasts, and they take the units of one warm start for independent: they say what other seeds of these warm "
        "starts would show. What other warm starts would is said by the interval <i>over warm starts</i>, Student's of "
        "the means of each; figures show it where there are enough of them. A contrast stands only where both methods "
        "have run the same units. The way to a target is "
        f"read from a centred moving average of {WINDOW} steps; its median counts runs that never get there as "
        "infinite.</p>"
    )


def _dial_section(
    name: str, dial: Mapping[str, Any], runs: Sequence[Run], colours: Mapping[str, Any], folder: Path
) -> str:
    budget = ", ".join(f"{dial['budget'][axis]:.0f} {axis} ({dial['cheapest'][axis]})" for axis in AXES)
    out = [f"<h2>{html.escape(name)}: {html.escape(dial['task'])}</h2><p>Budget: {budget}.</p>", _variants_table(dial)]
    if all(found["held_out"] for found in dial["variants"].values()):
        out.append(_held_out_section(dial))
    groups = {q: list(dict.fromkeys(v for row in rows for v in (row["a"], row["b"]))) for q, rows in _items(dial)}
    for question, members in (groups or {"all methods": list(dial["variants"])}).items():
        path = folder / "figures" / f"{_slug(name)}-{_slug(question)}.png"
        rows = dial["contrasts"].get(question, [])
        _question_figure([r for r in runs if r.variant in members], rows, dial["budget"], colours, path)
        out.append(f"<h3>{html.escape(question)}</h3>{_image(path)}")
        out.append("".join(_contrast_table(rows, measure) for measure in ("area", "late")) if rows else "")
    return "".join(out)


def _items(dial: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(dial["contrasts"].items())


def _variants_table(dial: Mapping[str, Any]) -> str:
    head = ["method", "units", "mean accuracy, equal tokens", "at budget", "mean accuracy, equal rollouts"]
    head += [f"{axis} to {dial['target']:g} (reached)" for axis in ("steps", "tokens")]
    head += ["tokens a step", "rollouts a step", "kappa", "rho", "p", "exact", "clean", "suffix success", "signal"]
    rows = []
    for variant, found in sorted(dial["variants"].items(), key=lambda v: -v[1]["axes"]["tokens"]["area"]["value"]):
        tokens, rollouts, steps = (found["axes"][axis] for axis in ("tokens", "rollouts", "steps"))
        m = found["means"]
        rows.append(
            [variant, str(found["units"]), _interval(tokens["area"]), _interval(tokens["late"])]
            + [_interval(rollouts["area"]), way(steps["reach"]), way(tokens["reach"])]
            + [f"{m['tokens_per_step']:.0f}", f"{m['rollouts_per_step']:.0f}"]
            + [_number(m[k]) for k in ("kappa", "rho", "p", "localiser_exact", "localiser_clean")]
            + [_number(m["reset_reward"]), _number(m["groups_with_signal"])]
        )
    note = (
        "<p>kappa, rho, p: recall, precision and coverage of the resets (llm.metrics); exact, clean: cut at, or not "
        "after, the true first wrong thought; suffix success: mean reward after a reset; signal: share of groups "
        "whose rewards differ. Means over the steps.</p>"
    )
    return _table(head, rows) + note


def _contrast_table(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    title = {"area": "mean accuracy", "late": "accuracy at budget"}[measure]
    head = [f"difference in {title}", *(f"equal {axis}" for axis in AXES), "wins"]
    head += ["equal tokens, over warm starts", "on each"]
    body = []
    for row in rows:
        tokens = row["tokens"][measure]
        starts = ", ".join(f"{name} {value:+.3f}" for name, value in tokens["checkpoints"].items())
        cells = [_interval(row[axis][measure], sign="+") for axis in AXES]
        wins = f"{tokens['wins']} of {len(row['units'])}"
        body.append([f"{row['a']} - {row['b']}", *cells, wins, over_warm_starts(tokens, _interval), starts])
    return _table(head, body)


def _held_out_section(dial: Mapping[str, Any]) -> str:
    """Accuracy on held-out problems, greedy and sampled: by method, and the contrasts of what it is after training."""
    parts = [(how, when) for how in HELD_OUT for when in ("before", "after", "gain")]
    body = [
        [v, *(_interval(found["held_out"][how][when], sign="+" if when == "gain" else "") for how, when in parts)]
        for v, found in dial["variants"].items()
    ]
    rows = [row for _, group in _items(dial) for row in group]
    differences = [
        [f"{row['a']} - {row['b']}", *(_interval(row["held_out"][how], sign="+") for how in HELD_OUT)] for row in rows
    ]
    head = ["difference after training", *HELD_OUT]
    return (
        "<h3>Held-out accuracy, before and after all steps</h3>"
        + _table(["method", *(f"{how}, {when}" for how, when in parts)], body)
        + (_table(head, differences) if rows else "")
        + "<p>At equal steps. The interval is over units; each unit's accuracy is itself an estimate.</p>"
    )


def _map_section(result: Mapping[str, Any], folder: Path) -> str:
    path = folder / "figures" / "map.png"
    _map_figure(result, path)
    return (
        f"<h2>Over the tasks</h2>{_image(path)}<p>Paired differences at equal tokens; bars: 95% intervals, over warm "
        f"starts where there are at least {_ENOUGH}, else over units (n).</p>"
    )


def _tuning_section(result: Mapping[str, Any]) -> str:
    if not result["tuning"]:
        return ""
    rates = list(next(iter(result["tuning"].values())))
    rows = []
    for variant, scores in result["tuning"].items():
        best = max(scores, key=lambda rate: scores[rate])
        rows.append([variant, *(f"{scores[rate]:.3f}{' *' if rate == best else ''}" for rate in rates)])
    tune = result["config"]["tune"]
    where = f"dial {tune['dial']}, seeds {tune['seeds']}"
    table = _table(["learning rate", *rates], rows)
    return f"<h2>Tuning</h2><p>Mean accuracy at equal tokens; {html.escape(where)}; * chosen.</p>{table}"


def _commands_section(result: Mapping[str, Any]) -> str:
    config = {k: v for k, v in result["config"].items() if k not in ("output", "resume", "jobs")}
    text = html.escape(yaml.safe_dump(config, sort_keys=False, width=120))
    commands = html.escape("\n".join(result["commands"]))
    return (
        f"<h2>How it was made</h2><details><summary>The config</summary><pre>{text}</pre></details>"
        f"<details><summary>The command of every run</summary><pre>{commands}</pre></details>"
    )


# ---------------------------------------------------------------------------------------------------------- figures


def _question_figure(
    runs: Sequence[Run],
    rows: Sequence[Mapping[str, Any]],
    budget: Mapping[str, float],
    colours: Mapping[str, Any],
    path: Path,
) -> None:
    """Learning curves on the token and on the rollout axis, and the differences as a forest plot."""
    height = max(3.8, 1.2 + 0.42 * len(rows))
    figure, axes = plt.subplots(1, 3, figsize=(14, height), layout="constrained", width_ratios=(1, 1, 0.8))
    for panel, axis in zip(axes, ("tokens", "rollouts"), strict=False):
        _curves(panel, runs, axis, budget[axis], colours)
    best_first = sorted(zip(*axes[0].get_legend_handles_labels(), strict=True), key=lambda c: -c[0].get_ydata()[-1])
    axes[0].legend(*zip(*best_first, strict=True), frameon=False, fontsize=8)
    _forest(axes[2], rows)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curves(panel: Any, runs: Sequence[Run], axis: str, budget: float, colours: Mapping[str, Any]) -> None:
    grid = np.linspace(0, budget, _GRID)
    for number, variant in enumerate(dict.fromkeys(run.variant for run in runs)):
        own = [run.curve for run in runs if run.variant == variant]
        y_NG = np.array([_smooth(np.interp(grid, *held(c, axis, budget))) for c in own])
        mean = y_NG.mean(axis=0)
        error = y_NG.std(axis=0, ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.zeros_like(mean)
        panel.plot(grid, mean, label=f"{variant} ({len(own)})", color=colours[variant], lw=1.7, ls=_LINES[number % 3])
        panel.fill_between(grid, mean - error, mean + error, color=colours[variant], alpha=0.15, lw=0)
    panel.set(xlabel=f"{axis} spent", ylabel="accuracy of fresh rollouts", ylim=(-0.02, 1.02))
    panel.set_title("mean over units, smoothed for the eye; band: ± 1 s.e.", fontsize=8)
    panel.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4))


def _smooth(y_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """A Gaussian mean over the grid, of width `_SMOOTH` times its length, renormalised at the ends."""
    at = np.arange(y_G.size)
    kernel = np.exp(-0.5 * ((at[:, None] - at[None, :]) / (_SMOOTH * y_G.size)) ** 2)
    return np.asarray(kernel @ y_G / kernel.sum(axis=1))


def _forest(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    marks = (("tokens", "o", "C0"), ("rollouts", "s", "C7"))
    for i, row in enumerate(rows):
        for shift, (axis, marker, colour) in zip((-0.12, 0.12), marks, strict=True):
            d = _drawn(row[axis]["area"])
            panel.plot([d["low"], d["high"]], [i + shift] * 2, color=colour, lw=1.5)
            label = f"equal {axis}" if i == 0 else None
            panel.plot([d["value"]], [i + shift], marker, color=colour, ms=5, label=label)
    panel.axvline(0, color="k", lw=0.8)
    panel.set_yticks(range(len(rows)), [f"{r['a']} - {r['b']}" for r in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel("difference in mean accuracy, 95% interval")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    if rows:
        panel.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _drawn(difference: Mapping[str, Any]) -> Mapping[str, Any]:
    """The difference with the interval that a figure shows: over warm starts where they are many, else over units."""
    over = difference["over_checkpoints"]
    return over if over is not None and over["n"] >= _ENOUGH else difference


def _map_figure(result: Mapping[str, Any], path: Path) -> None:
    """One panel for each contrast that several dials have: its difference at equal tokens on each of them."""
    dials = list(result["dials"])
    found: dict[str, dict[str, Any]] = {}
    for dial in dials:
        for _, rows in _items(result["dials"][dial]):
            for row in rows:
                found.setdefault(f"{row['a']} - {row['b']}", {})[dial] = _drawn(row["tokens"]["area"])
    units = {dial: max((rows[dial]["n"] for rows in found.values() if dial in rows), default=0) for dial in dials}
    several = {name: rows for name, rows in found.items() if len(rows) > 1}
    columns = min(3, max(1, len(several)))
    lines = -(-max(1, len(several)) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.4 * columns, 0.35 * len(dials) * lines + 1.4 * lines), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for panel, (name, rows) in zip(axes.flat, several.items(), strict=False):
        for dial, d in rows.items():
            y = dials.index(dial)
            panel.plot([d["low"], d["high"]], [y, y], color="C0", lw=1.6)
            panel.plot([d["value"]], [y], "o", color="C0", ms=5)
        panel.axvline(0, color="k", lw=0.8)
        panel.set_title(name, fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_yticks(range(len(dials)), [f"{dial} (n = {units[dial]})" for dial in dials], fontsize=8)
        panel.set_xlabel("difference in mean accuracy, equal tokens", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes.flat[0].invert_yaxis()
    for panel in list(axes.flat)[len(several) :]:
        panel.axis("off")
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------------------- HTML


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def shown(interval: Mapping[str, float], sign: str = "") -> str:
    """A value with its interval; alone where the interval is a point, as of one unit, which shows no spread."""
    value = f"{interval['value']:{sign}.3f}"
    point = interval["low"] == interval["high"]
    return value if point else f"{value} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def over_warm_starts(difference: Mapping[str, Any], show: Callable[..., str] = shown) -> str:
    """The interval of a difference over the means of its warm starts; "-" where they are too few."""
    found = difference["over_checkpoints"]
    return "-" if found is None else show(found, sign="+")


def _interval(interval: Mapping[str, float], sign: str = "") -> str:
    """A difference whose interval leaves out zero is set in bold, if it is of enough units to say so."""
    text = shown(interval, sign)
    clear = sign and interval["n"] >= _ENOUGH and (interval["low"] > 0 or interval["high"] < 0)
    return f'<span class="clear">{text}</span>' if clear else text


def way(found: Mapping[str, Any]) -> str:
    """The median way to the target, and how many units reached it."""
    median = "-" if found["median"] is None else f"{found['median']:.0f}"
    return f"{median} ({found['reached']}/{found['of']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
