"""``python -m llm.account RUN [RUN ...]``: what runs cost, side by side (the paper's tables 7 and 8).

Everything sampled is counted: rollouts that were thrown away (the seed of Algorithm 2 is), the tokens of localisation
answers, and the localiser's own rollouts where it has any; only what vLLM draws beyond a stop and drops is not. The
paper's table counts neither of these. Seconds are wall clock of whole steps, sampling and update together, without what
measuring first errors took; tokens per second are all sampled tokens over these seconds.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llm.config import ConfigError, option, run_command
from llm.paper import TABLES
from llm.runs import RunFolder, read_config

__all__ = ["AccountConfig", "account", "main", "paper_accounts"]


@dataclass(frozen=True)
class AccountConfig:
    """What runs cost: rollouts, tokens, localisation tokens, tokens per second; ratios to the first run given."""

    runs: str = option("", "Run folders of llm.train, separated by blanks; they may also be given without --runs.")


def account(run: RunFolder) -> dict[str, Any]:
    """The account of one run, from its metrics.jsonl and timing.jsonl. Raises ConfigError where there is none.

    tokens: sampled in rollouts, discarded ones included. localisation_tokens: of answers; localiser_tokens: of
    rollouts made in order to localise. mean_response_tokens: of trained responses,
    inherited prefixes included; None of a run that did not keep it.
    """
    timed = {row["step"]: row for row in run.rows("timing.jsonl")}
    rows = [row for row in run.rows("metrics.jsonl") if row["step"] in timed]  # a kill may fall between the two
    times = [timed[row["step"]] for row in rows]
    if not rows or not run.file("config.yaml").is_file():
        raise ConfigError(f"{run.path} is no run of llm.train with at least one step; give its folder")
    config = read_config(run.path)
    total = {name: float(sum(row[name] for row in rows)) for name in _SUMS}
    seconds = float(sum(row["seconds"] for row in times))
    all_tokens = total["tokens"] + total["localisation_tokens"] + total["localiser_tokens"]
    return {
        "run": run.path.name,
        "method": config["method"],
        "steps": len(rows),
        **total,
        "all_tokens": all_tokens,
        "localisation_share": (total["localisation_tokens"] + total["localiser_tokens"]) / all_tokens,
        "mean_response_tokens": _mean([row.get("mean_response_tokens") for row in rows]),
        "seconds": seconds,
        "seconds_per_step": float(np.median([row["seconds"] for row in times])),
        "tokens_per_second": all_tokens / seconds,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


_SUMS = (
    "rollouts",
    "discarded_rollouts",
    "localiser_rollouts",
    "tokens",
    "discarded_tokens",
    "localisation_calls",
    "localisation_tokens",
    "localiser_tokens",
)


def paper_accounts() -> list[dict[str, Any]]:
    """Table 7 as printed: hours, millions of tokens and generated tokens per second of GRPO, RRPO and SRPO."""
    with (TABLES / "table7_compute.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v if k == "method" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def main(config: AccountConfig) -> list[dict[str, Any]]:
    """Print the accounts and return them, one for each run."""
    folders = config.runs.split()
    if not folders:
        raise ConfigError("give one or more run folders of llm.train")
    accounts = [account(RunFolder(Path(folder))) for folder in folders]
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_own_table(accounts))
    console.print(_paper_table(paper_accounts()))
    return accounts


def _own_table(accounts: Sequence[dict[str, Any]]) -> Table:
    columns = {
        "rollouts": "rollouts",
        "discarded": "discarded_rollouts",
        "tokens": "tokens",
        "localisation tokens": "localisation_tokens",
        "localiser's rollout tokens": "localiser_tokens",
        "all tokens": "all_tokens",
        "seconds": "seconds",
    }
    table = Table(title="own runs; in brackets, per step and relative to the first run")
    for column in ("run", "method", "steps", *columns, "mean response", "tokens/s"):
        table.add_column(column, justify="left" if column in ("run", "method") else "right")
    first = accounts[0]
    for a in accounts:
        cells = [_with_ratio(a, first, name) for name in columns.values()]
        fixed = (a["run"], a["method"], str(a["steps"]))
        table.add_row(*fixed, *cells, _length(a), f"{a['tokens_per_second']:.0f}")
    return table


def _length(a: dict[str, Any]) -> str:
    return "-" if a["mean_response_tokens"] is None else f"{a['mean_response_tokens']:.1f}"


def _with_ratio(a: dict[str, Any], first: dict[str, Any], name: str) -> str:
    if a is first or not first[name]:
        return f"{a[name]:.0f}"
    return f"{a[name]:.0f} ({a[name] / a['steps'] / (first[name] / first['steps']):.2f})"


def _paper_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="the paper's table 7; in brackets, relative to GRPO")
    columns = {"training h": "train_h", "of it sampling h": "gen_h", "million tokens": "tokens_m"}
    for column in ("method", *columns, "mean response", "tokens/s (sampling)"):
        table.add_column(column, justify="left" if column == "method" else "right")
    first = rows[0]
    for row in rows:
        cells = [f"{row[name]:.2f} ({row[name] / first[name]:.2f})" for name in columns.values()]
        table.add_row(row["method"], *cells, f"{row['mean_response_tokens']:.0f}", f"{row['gen_tok_per_s']:.0f}")
    return table


if __name__ == "__main__":
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        sys.argv[1:] = ["--runs", " ".join(words)]
    run_command(main, AccountConfig, "llm.account")
