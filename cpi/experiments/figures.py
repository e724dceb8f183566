"""One look for all figures, and the one interval that they share.

Built without pyplot, so that no backend is touched; notebooks show figures as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

__all__ = ["CARO", "RR", "SEQUENCE", "Style", "mean_interval", "new_figure"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """How one method looks in every figure."""

    label: str
    color: str
    marker: str = "o"


RR = Style("CPI-RR", "#d95f02", "s")
CARO = Style("CPI-CARO", "#1b6ca8", "o")
SEQUENCE = ("#440154", "#31688e", "#35b779", "#d8a800")  # for values of a parameter, in order


def new_figure(
    columns: int = 1, rows: int = 1, width: float = 4.6, height: float = 3.5, **options: Any
) -> tuple[Figure, Any]:
    """(figure, axes): axes as `Figure.subplots` gives them, without the top and right spines."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for each in figure.axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def mean_interval(values: ArrayLike) -> tuple[Float, Float, Float]:
    """(mean, low, high) over the first axis, the independent seeds: Student's 95% interval."""
    array = np.asarray(values, dtype=np.float64)
    n = array.shape[0]
    mean = array.mean(axis=0)
    half = stdtrit(n - 1, 0.975) * array.std(axis=0, ddof=1) / n**0.5
    return mean, mean - half, mean + half
