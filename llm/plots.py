"""Figures of runs, drawn without pyplot: no window, no backend that a notebook would have to share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

__all__ = ["localization_figure", "signal_figure", "training_figure"]

_FEWEST_RESETS = 8


def training_figure(rows: Sequence[dict[str, Any]], result: dict[str, Any], path: Path) -> None:
    """Learning curve (accuracy of fresh rollouts, success of suffixes) and localiser quality over the steps.

    What is measured on resets is drawn for steps with at least `_FEWEST_RESETS` of them: late in training few prompts
    have a failure left, and shares of two or three are noise.
    """
    step = [row["step"] + 1 for row in rows]
    many = [row if row["cuts"] >= _FEWEST_RESETS else {} for row in rows]
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    (left, right) = figure.subplots(1, 2)
    _curve(left, step, [row["accuracy"] for row in rows], "rollouts from the prompt", "C0")
    _curve(left, step, [row.get("reset_reward") for row in many], "suffixes from the reset", "C1")
    for name, x, measured in (("before", 0, result["before"]), ("after", step[-1] + 1, result["after"])):
        if measured:
            value = measured["sampled"]
            error = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
            left.errorbar(
                [x],
                [value["value"]],
                yerr=error,
                fmt="o",
                color="k",
                capsize=3,
                ms=4,
                label="held out, 95% interval" if name == "before" else None,
            )
    left.set(xlabel="step", ylabel="share correct", ylim=(-0.03, 1.03), title=f"{result['method']} on {result['task']}")
    left.legend(frameon=False, fontsize=8)
    _curve(right, step, [row.get("localiser_exact") for row in many], "exact", "C2")
    _curve(right, step, [row.get("localiser_clean") for row in many], "clean (not late)", "C4")
    right.set(
        xlabel=f"step (those with {_FEWEST_RESETS} resets or more)",
        ylabel="share of resets",
        ylim=(-0.03, 1.03),
        title="where the resets cut, against the true first error",
    )
    right.set_xlim(left.get_xlim())
    if right.has_data():
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _curve(axes: Any, x: Sequence[float], y: Sequence[float | None], label: str, color: str) -> None:
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, lw=1.6)


def localization_figure(result: dict[str, Any], path: Path) -> None:
    """The four panels of a localisation measurement (`llm.localization`): the first localiser beside the paper's.

    (a) distribution of its cut minus the oracle's, (b) share of continuations that succeed, by this deviation,
    (c) chance that one of k continuations succeeds from clean and erroneous prefixes, (d) all localisers compared.
    Bars and points have Wilson's 95% intervals and, in brackets, the number of trials; hollow marks are the paper's,
    of another model and task.
    """
    name, own = next(iter(result["localisers"].items()))
    bins = result["bins"]
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    panels = figure.subplots(2, 2)
    (a, b), (c, d) = panels
    _bars(a, bins, own["share"], "C0")
    _bars(b, bins, own["correction_by_bin"], "C1")
    k = own["pass_at_k"]["k"]
    _bars(c, ("clean", "erroneous"), [own["pass_at_k"][label] for label in ("clean", "erroneous")], "C2")
    _paper_marks(a, result["paper"], "share", bins)
    _paper_marks(b, result["paper"], "correction", bins)
    if k == 4:  # the paper's number of continuations
        _paper_marks(c, result["paper"], "pass_at_4", ("clean", "erroneous"))
    for axes in (a, b, c):
        axes.set_ylim(bottom=0)  # after all is drawn: it ends the automatic choice of the upper end
    a.set(xlabel=f"{name} - oracle, in thoughts", ylabel="share of failures", title="(a) where it cuts")
    b.set(xlabel=f"{name} - oracle, in thoughts", ylabel="share correct", title="(b) continuations from the cut")
    c.set(ylabel=f"Pass@{k}", title="(c) clean (not late) and erroneous prefixes")
    figure.legend(*a.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    _dots(d, result["localisers"])
    d.set(xlabel="share of continuations correct", title="(d) localisers compared")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['model']} on {result['task']}: {result['failures']} failures", fontsize=10)
    figure.savefig(path, dpi=150)


def _errors(cell: dict[str, Any]) -> list[list[float]]:
    return [[cell["value"] - cell["low"]], [cell["high"] - cell["value"]]]


def _bars(axes: Any, labels: Sequence[str], cells: Sequence[dict[str, Any] | None], color: str) -> None:
    """A bar for each cell that was measured, with its interval; under its label the number of trials."""
    counts = [str(cell["n"]) if cell else "-" for cell in cells]
    shown = labels if len(set(counts)) == 1 else [f"{label}\n({n})" for label, n in zip(labels, counts, strict=True)]
    axes.set_xticks(range(len(labels)), shown, fontsize=9)
    for x, cell in enumerate(cells):
        if cell:
            axes.bar(x, cell["value"], color=color, alpha=0.75, width=0.7)
            axes.errorbar(x, cell["value"], yerr=_errors(cell), color="k", capsize=2, lw=1)
    axes.set_xlim(-0.6, len(labels) - 0.4)


def _paper_marks(axes: Any, rows: Sequence[dict[str, Any]], panel: str, labels: Sequence[str]) -> None:
    for style, mark in (("meaningful-steps", "D"), ("raw", "o")):
        value = {row["bin"]: row["value"] for row in rows if row["panel"] == panel and row["filter"] == style}
        axes.plot(
            range(len(labels)), [value[label] for label in labels], mark, mfc="none", color="C3", ms=5,
            label=f"the paper's, {style.replace('-', ' ')}",
        )  # fmt: skip


def _dots(axes: Any, localisers: dict[str, Any]) -> None:
    shown = {name: m["correction"] for name, m in localisers.items() if m["correction"]}
    for y, (name, cell) in enumerate(reversed(shown.items())):
        axes.errorbar(cell["value"], y, xerr=_errors(cell), fmt="o", color="C0" if name != "oracle" else "k", capsize=3)
    axes.set_yticks(range(len(shown)), [f"{name} ({cell['n']})" for name, cell in reversed(shown.items())])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(left=0)


def signal_figure(result: dict[str, Any], path: Path) -> None:
    """The gradient signal of a run (`llm.signal`): its ratio over the steps, by thought, and its three factors."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    (left, middle, right) = figure.subplots(1, 3)
    left.axhspan(0.97, 1.76, color="C3", alpha=0.12, lw=0, label="the paper's range")
    left.axhline(1.21, color="C3", lw=1, ls="--", label="the paper's typical ratio")
    left.axhline(1.0, color="0.6", lw=1)
    for name, label, color in (
        ("signal_ratio", "all tokens", "C0"),
        ("signal_ratio_live", "groups with signal", "C2"),
    ):
        points = [(row["step"] + 1, row[name]) for row in result["steps"] if row[name]]  # no logarithm of 0
        if points:
            left.plot(*zip(*points, strict=True), "o-", color=color, ms=3, lw=1, label=label)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="step", ylabel="suffix / base", title="ratio of mean signals")
    left.legend(frameon=False, fontsize=8)
    for kind, color in (("base", "C0"), ("suffix", "C1"), ("prefix", "0.5")):
        of = result["fresh"]["by_thought"][kind]
        _curve(middle, [int(k) + 1 for k in of], [cell["g"] for cell in of.values()], _KIND_LABELS[kind], color)
    top = max(cell["g"] for of in result["fresh"]["by_thought"].values() for cell in of.values())
    middle.set(xlabel="thought", ylabel="mean g", ylim=(0, 1.4 * top or 1), title="by thought, trained model")
    if middle.has_data():
        middle.legend(frameon=False, fontsize=8)
    ratio = result["fresh"]["ratio"]
    names = [name for name in _FACTOR_LABELS if name in ratio]
    right.bar([_FACTOR_LABELS[name] for name in names], [ratio[name] for name in names], color="C4", width=0.6)
    right.axhline(1.0, color="0.6", lw=1)
    right.set(ylabel="suffix / base", title="what the ratio is made of")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


_KIND_LABELS = {"base": "base groups", "suffix": "suffixes", "prefix": "shared prefix, if it were not masked"}
_FACTOR_LABELS = {"g": "g", "advantage": "|A|", "inverse_length": "1/T", "miss": "1 - pi"}
