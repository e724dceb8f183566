"""``python -m llm.show RUN [--step N]``: the rollouts that a run has sampled, as trees.

For each recorded step one prompt with all its groups: the base rollouts; the seed with the place of the reset and the
first wrong thought, where the task knows it; the suffixes that grew from there. Every rollout has its reward and its
advantage. On a terminal the trees are coloured and go through a pager; elsewhere they are plain text with the same
marks, so that they can be searched and stored.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cpi.groups import Rollouts, failed
from llm.config import ConfigError, option, run_command
from llm.runs import RunFolder
from llm.tasks.base import Task
from llm.thoughts import ThoughtTrace

__all__ = ["ShowConfig", "main", "rollout_rows", "step_text", "step_tree"]

WRONG, RESET = "✗ ", "⟲ reset "
_PLAIN_WIDTH = 120
_BETWEEN = Text.assemble((" | ", "dim"))


@dataclass(frozen=True)
class ShowConfig:
    """Show a run's sampled rollouts as trees: prompt, base rollouts, seed with its reset, suffixes."""

    run: str = option("", "Run folder of llm.train; `python -m llm.show RUN` does as well.")
    step: int = option(-1, "The step to show; -1 for all that were recorded (see --sample-every of llm.train).")


def main(config: ShowConfig, console: Console | None = None) -> None:
    """Print the trees. Raises ConfigError: one line that says what to do."""
    console = console or Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    trees = list(_trees(_rows(config), console.width))
    if not console.is_terminal:
        for tree in trees:
            console.print(tree)
        return
    os.environ.setdefault("LESS", "-RFX")  # colours; no pager for what fits on the screen
    with console.pager(styles=True):
        for tree in trees:
            console.print(tree)


def _rows(config: ShowConfig) -> list[dict[str, Any]]:
    run = RunFolder(Path(config.run))
    if not config.run or not run.path.is_dir():
        raise ConfigError(f"there is no run folder {config.run or 'given'}; give the folder of a run of llm.train")
    rows = run.rows("rollouts.jsonl")
    if not rows:
        raise ConfigError(f"{run.path} holds no rollouts.jsonl with a whole line; give a run that has made a step")
    if config.step < 0:
        return rows
    recorded = sorted({row["step"] for row in rows})
    if config.step not in recorded:
        raise ConfigError(f"step {config.step} was not recorded; choose one of {', '.join(map(str, recorded))}")
    return [row for row in rows if row["step"] == config.step]


def rollout_rows(
    step: int, rollouts: Rollouts[ThoughtTrace], advantages: Sequence[NDArray[np.float64]], task: Task
) -> list[dict[str, Any]]:
    """The lines of rollouts.jsonl for one step: all rollouts of its first prompt with a reset (else of its first).

    group: number of the group within the prompt. kept: thoughts inherited from the seed. first_error: 0-based index of
    the first wrong thought of a failed response, None where it succeeded or the task does not know.
    """
    prompt = next((g.prompt for g in rollouts.groups if g.kind == "reset"), 0)
    of_prompt = [(g, row) for g, row in zip(rollouts.groups, advantages, strict=True) if g.prompt == prompt]
    return [
        {
            "step": step,
            "question": trace.problem.question,
            "answer": trace.problem.answer,
            "group": number,
            "kind": group.kind,
            "kept": group.k,
            "thoughts": list(trace.thoughts),
            "first_error": _first_error(task, trace),
            "seed": list(group.seed.thoughts) if group.seed else None,
            "seed_first_error": _first_error(task, group.seed) if group.seed else None,
            "reward": trace.outcome,
            "advantage": float(advantage),
        }
        for number, (group, row) in enumerate(of_prompt)
        for trace, advantage in zip(group.episodes, row, strict=True)
    ]


def _first_error(task: Task, trace: ThoughtTrace) -> int | None:
    from llm.localize import true_first_error  # here, so that looking at a run does not load torch

    return true_first_error(task, trace) if failed(trace) else None


def _trees(rows: Sequence[dict[str, Any]], width: int) -> Iterator[Tree]:
    for _, step in groupby(rows, key=lambda row: row["step"]):
        yield step_tree(list(step), width)


def step_tree(rows: Sequence[dict[str, Any]], width: int = _PLAIN_WIDTH) -> Tree:
    """The tree of one step's prompt from its rows of rollouts.jsonl; `width` decides where thoughts get own lines."""
    first = rows[0]
    tree = Tree(
        Text.assemble((f"step {first['step']}  ", "bold"), first["question"], (f"  = {first['answer']}", "bold"))
    )
    for _, members in groupby(rows, key=lambda row: row["group"]):
        group = list(members)
        if group[0]["kind"] == "reset":
            branch = _seed(tree, group[0], width).add(_group_title("reset", group))
        else:
            branch = tree.add(_group_title("base", group))
        for row in group:
            _rollout(branch, row, width)
    return tree


def step_text(rows: Sequence[dict[str, Any]]) -> str:
    """The tree of one step as plain text, with the same marks."""
    stream = io.StringIO()
    Console(file=stream, width=_PLAIN_WIDTH, force_terminal=False).print(step_tree(rows))
    return stream.getvalue()


def _group_title(kind: str, group: Sequence[dict[str, Any]]) -> Text:
    mean = sum(row["reward"] for row in group) / len(group)
    what = f"{kind} group, {len(group)} rollouts" if kind == "base" else f"{kind} group, {len(group)} suffixes"
    return Text(f"{what}, mean reward {mean:.2f}", style="bold blue" if kind == "base" else "bold magenta")


def _seed(tree: Tree, row: dict[str, Any], width: int) -> Tree:
    head = Text.assemble(("seed ", "bold yellow"), (f"reset before thought {row['kept'] + 1}  ", "magenta"))
    thoughts = _thoughts(row["seed"], 0, row["seed_first_error"])
    thoughts.insert(row["kept"], Text(RESET, style="bold magenta"))
    return _add(tree, head, thoughts, width)


def _rollout(branch: Tree, row: dict[str, Any], width: int) -> None:
    right = row["reward"] >= 1.0
    advantage = row["advantage"]
    colour = "green" if advantage > 0 else "red" if advantage < 0 else "dim"
    head = Text.assemble(
        (f"reward {row['reward']:.2f} ", "green" if right else "red"), (f"advantage {advantage:+.2f}  ", colour)
    )
    _add(branch, head, _thoughts(row["thoughts"], row["kept"], row["first_error"]), width)


def _thoughts(thoughts: Sequence[str], kept: int, first_error: int | None) -> list[Text]:
    """Thoughts from `kept` on, numbered from 1; the first wrong one, if it is among them, is marked and red."""
    shown = []
    for k, thought in enumerate(thoughts[kept:], kept):
        wrong = k == first_error
        shown.append(
            Text.assemble((WRONG if wrong else "", "bold red"), (" ".join(thought.split()), "red" if wrong else ""))
        )
    return shown


def _add(branch: Tree, head: Text, thoughts: Sequence[Text], width: int) -> Tree:
    """Short thoughts side by side, wrapped; thoughts of more than a quarter of the `width` on a line each."""
    if all(thought.cell_len <= width // 4 for thought in thoughts):
        return branch.add(Text.assemble(head, _BETWEEN.join(thoughts)))
    node = branch.add(head)
    for thought in thoughts:
        node.add(thought)
    return node


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv[1:2] = ["--run", sys.argv[1]]
    run_command(main, ShowConfig, "llm.show")
