"""One look for all figures. Built without pyplot, so that no backend is touched; notebooks show them as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

__all__ = ["CARO", "RR", "SEQUENCE", "Style", "new_figure"]


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
