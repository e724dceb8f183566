"""The paper's tables as data (arXiv 2605.25507), to be set beside own numbers. Accuracies in percent, as printed.

The paper evaluates at temperature 0 on 500 random items per benchmark and gives mean and SD over three training seeds
(no SD for the untrained model). Which items it drew it does not say, so a difference of a few points can be the draw.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["TABLES", "PaperNumber", "paper_figure_4", "paper_means", "paper_model", "paper_numbers"]

TABLES = Path(__file__).parent / "paper_tables"


@dataclass(frozen=True)
class PaperNumber:
    """One cell of table 3: accuracy in percent, its SD over seeds (None for the untrained model)."""

    model: str
    method: str
    benchmark: str
    mean: float
    sd: float | None


@cache
def _table_3() -> tuple[PaperNumber, ...]:
    return tuple(_read(TABLES / "table3_main.csv"))


def _read(path: Path) -> Iterator[PaperNumber]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sd = float(row["sd"]) if row["sd"] else None
            yield PaperNumber(row["model"], row["method"], row["benchmark"], float(row["mean"]), sd)


def paper_model(name: str) -> str | None:
    """The paper's model of a hub id or folder, by the last part of its name, whatever its case; None for others.

    Example: ``Qwen/Qwen2.5-14B-Instruct`` and ``/models/qwen2.5-14b-instruct`` are ``Qwen2.5-14B-Instruct``.
    """
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((number.model for number in _table_3() if number.model.lower() == last), None)


def paper_numbers(model: str, benchmark: str) -> list[PaperNumber]:
    """Table 3's row of a model and a benchmark, one number per method, in the paper's order; empty if there is none."""
    known = paper_model(model)
    return [n for n in _table_3() if n.model == known and n.benchmark == benchmark]


def paper_means(table: str) -> dict[tuple[str, str], float]:
    """An ablation table of SRPO ("table4_clip" or "table6_splits") as (model, setting): mean over the ten benchmarks.

    In percent. The mean is ours, from the printed cells.
    """
    with (TABLES / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    setting = list(rows[0])[1]
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["model"], row[setting]), []).append(float(row["mean"]))
    return {key: sum(values) / len(values) for key, values in found.items()}


def paper_figure_4() -> list[dict[str, str | float]]:
    """Figure 4 as rows of filter ("meaningful-steps", "raw"), panel, bin and value (a share in [0, 1]).

    Panels: "share" of failures by deviation, "correction" rate by deviation, "pass_at_4" of clean and erroneous cuts.
    """
    with (TABLES / "figure4_localisation.csv").open(newline="", encoding="utf-8") as file:
        return [
            {
                "filter": row["filter"],
                "panel": row["panel"],
                "bin": row["bin"],
                "value": float(row["value_percent"]) / 100,
            }
            for row in csv.DictReader(file)
        ]
