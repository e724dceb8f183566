"""Figures of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["training_figure"]


def training_figure(rows: Sequence[dict[str, Any]], result: dict[str, Any], path: Path) -> None:
    """Learning curve (accuracy of fresh rollouts, success of suffixes) and localiser quality over the steps."""
    step = [row["step"] + 1 for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    _curve(left, step, [row["accuracy"] for row in rows], "rollouts from the prompt", "C0")
    _curve(left, step, [row["reset_reward"] for row in rows], "suffixes from the reset", "C1")
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
    _curve(right, step, [row["localiser_exact"] for row in rows], "exact", "C2")
    _curve(right, step, [row["localiser_clean"] for row in rows], "clean (not late)", "C4")
    right.set(xlabel="step", ylabel="share of resets", ylim=(-0.03, 1.03), title="reset against the true first error")
    if right.has_data():
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _curve(axes: Any, x: Sequence[float], y: Sequence[float | None], label: str, color: str) -> None:
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, lw=1.6)
