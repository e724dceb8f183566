"""docs/paper_index.md says what is there: every function, test, experiment and notebook that it names exists."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import cpi.bounds
from cpi.experiments import NAMES
from cpi.slack import hunt

ROOT = Path(__file__).resolve().parent.parent
STATUSES = {"holds", "false as worded", "repaired", "extension"}


@dataclass(frozen=True)
class Row:
    statement: str
    functions: list[str]
    tests: list[str]
    shown_in: list[str]
    status: str


def _rows() -> list[Row]:
    lines = [line for line in (ROOT / "docs" / "paper_index.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return [Row(c[0], *(re.findall(r"`([^`]+)`", cell) for cell in c[1:4]), c[4]) for c in cells]


ROWS = _rows()


def test_the_table_has_a_row_for_every_numbered_statement():
    numbers = ["Lemma 2", "Lemma 3", "Lemma 4", "Corollary 5", "Lemma 6", "Lemma 7", "Lemma 8", "Lemma 9"]
    numbers += ["Theorem 1a", "Theorem 1b", "Proposition 10", "Algorithm 2", "Algorithm 3", "Imperfect", "Convergence"]
    statements = [row.statement for row in ROWS]
    assert all(any(s.startswith(number) for s in statements) for number in numbers)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.statement)
def test_every_name_in_the_row_exists(row):
    assert row.functions
    assert row.tests
    assert row.status in STATUSES
    for name in row.functions:
        module, _, function = name.rpartition(".")
        assert callable(getattr(import_module(module or "cpi.bounds"), function)), name
    for name in row.tests:
        file, _, test = name.rpartition("::")
        source = (ROOT / (file or "tests/test_bounds.py")).read_text()
        assert re.search(rf"^def {re.escape(test)}\(", source, re.MULTILINE), name
    for name in row.shown_in:
        assert name in NAMES or (ROOT / "notebooks" / f"{name}.ipynb").exists(), name


def test_every_statement_of_bounds_is_in_the_table():
    listed = {name for row in ROWS for name in row.functions}
    functions = {n: f for n in cpi.bounds.__all__ if inspect.isfunction(f := getattr(cpi.bounds, n))}
    statements = {name for name, f in functions.items() if f.__annotations__.get("return") == "Bound"}
    assert len(statements) > 25
    assert statements <= listed


def test_statuses_are_what_a_hunt_finds():
    """The statements marked "false as worded", and no others, are violated by some instance of the hunt."""
    false = {row.statement for row in ROWS if row.status == "false as worded"}
    violated = {name for name, slack in hunt(seed=2, count=1000).items() if slack.violations}
    assert violated == {f"{statement} (as worded)" for statement in false}
