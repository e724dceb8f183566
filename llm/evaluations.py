"""``python -m llm.compare --evaluations A B ...``: finished evaluations (`llm.evaluate`), problem by problem.

The first one is the reference. Problems are paired by task and uid; all evaluations must have the same ones, and
samples made in the same way, or the comparison is refused. Of each evaluation, for every task and over all tasks:

    value         greedy accuracy, and pass@k for each k that was evaluated, with the intervals of its `result.json`
    difference    to the reference, with a bootstrap over problems of the paired differences
    wins, losses  problems on which it scores more, or less, than the reference

Over all tasks means the mean over tasks, which count alike, however many problems they have: intervals of values are
put together from those of the tasks (`mean_of_intervals`), differences are resampled within tasks
(`stratified_difference`). Where two evaluations differ by the same amount on every problem, the bootstrap sees no
spread and no interval is printed. All intervals are over problems: they say nothing about training seeds, for which the
studies of `llm.compare` are, and are not corrected for their number.
"""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from llm.config import ConfigError
from llm.evaluate import Subject, solved
from llm.report import shown
from llm.runs import RunFolder, read_config, versions
from llm.statistics import Interval, mean_of_intervals, pass_at_k, stratified_difference

__all__ = ["Evaluation", "compare", "compare_folders", "print_comparison", "read_evaluation", "write_comparison"]

ALL = "all tasks"
_FIELDS = {"tasks", "problems", "samples"}
"""Of the config of an evaluation; a training run has not all of them."""
_LENGTHS = ("max_tokens", "max_thoughts", "max_thought_tokens")


@dataclass(frozen=True)
class Evaluation:
    """What a folder of `llm.evaluate` holds: its config, its result, and by task and uid the rows of its problems."""

    folder: str
    name: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def metrics(self) -> list[str]:
        summary = next(iter(self.result["tasks"].values()))
        return ["greedy", *(f"pass@{k}" for k in summary["pass_at_k"])]

    def interval(self, task: str, metric: str) -> Interval:
        summary = self.result["tasks"][task]
        found = summary["greedy"] if metric == "greedy" else summary["pass_at_k"][metric.removeprefix("pass@")]
        return Interval(**found)

    def scores(self, task: str, metric: str, uids: Sequence[str]) -> NDArray[np.float64]:
        """The score of each of these problems, [P]: right or not, or the estimate of pass@k."""
        rows = [self.rows[task][uid] for uid in uids]
        if metric == "greedy":
            return np.array([solved(row["greedy"]) for row in rows], dtype=np.float64)
        correct_P = [sum(solved(sample) for sample in row["samples"]) for row in rows]
        return pass_at_k(correct_P, self.config["samples"], int(metric.removeprefix("pass@")))

    def settings(self) -> dict[str, Any]:
        """Lengths of a response, before a context shortens it, and style of the prompt: as asked, else the run's."""
        subject = Subject(self.result["base"], None, self.result["run"])
        lengths = {name: self.config[name] or subject.length(name) for name in _LENGTHS}
        return {**lengths, "prompt_style": subject.prompt_style(self.config["prompt_style"])}


def read_evaluation(folder: str, name: str) -> Evaluation:
    """Raises ConfigError where the folder holds no evaluation, an unfinished one, or one that cannot be read."""
    run = RunFolder(Path(folder).expanduser())
    try:
        config = _config(run)
        result, rows = run.read_json("result.json"), run.rows("problems.jsonl")
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(f"cannot read the evaluation in {folder} ({cause}); run llm.evaluate again") from error
    if config is None:
        model = folder if run.file("model").is_dir() else "MODEL"
        raise ConfigError(
            f"{folder} holds no evaluation; make one with python -m llm.evaluate --model {model} --output FOLDER, "
            "and give that FOLDER"
        )
    if result is None:
        raise ConfigError(
            f"the evaluation in {folder} is unfinished; go on with python -m llm.evaluate "
            f"--config {run.file('config.yaml')} --output {folder} --resume"
        )
    by_task = {task: {row["uid"]: row for row in rows if row["task"] == task} for task in result["tasks"]}
    for task, summary in result["tasks"].items():
        if len(by_task[task]) != summary["problems"]:
            raise ConfigError(
                f"{run.file('problems.jsonl')} has {len(by_task[task])} problems of {task}, result.json "
                f"{summary['problems']}; run llm.evaluate again"
            )
    return Evaluation(folder, name, config, result, by_task)


def _config(run: RunFolder) -> dict[str, Any] | None:
    """The config of an evaluation; None where the folder has none."""
    if not run.file("config.yaml").is_file():
        return None
    config = read_config(run.path)
    return config if set(config) >= _FIELDS else None


def compare_folders(folders: Sequence[str]) -> dict[str, Any]:
    """Read and compare; the first folder is the reference. Raises ConfigError."""
    if len(folders) < 2:
        raise ConfigError("--evaluations needs two folders or more, the reference first")
    places = [Path(folder).expanduser().resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder} is given twice; give each evaluation once, the reference first")
    short = [place.name for place in places]
    names = short if len(set(short)) == len(short) else folders
    return compare([read_evaluation(folder, name) for folder, name in zip(folders, names, strict=True)])


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Each evaluation against the first; what `result.json` holds. Raises ConfigError where they cannot be paired."""
    reference = evaluations[0]
    for own in evaluations[1:]:
        _check_alike(own, reference)
    tasks = list(reference.rows)
    groups = {task: [task] for task in tasks} | ({ALL: tasks} if len(tasks) > 1 else {})
    return {
        "command": "python -m llm.compare --evaluations " + shlex.join(e.folder for e in evaluations),
        "reference": reference.name,
        "samples": reference.config["samples"],
        "evaluations": {e.name: {"folder": e.folder, "model": e.result["model"], **e.settings()} for e in evaluations},
        "tasks": {
            name: {
                "problems": sum(len(reference.rows[task]) for task in group),
                "evaluations": {own.name: _measured(own, reference, group) for own in evaluations},
            }
            for name, group in groups.items()
        },
        "notes": [note for own in evaluations[1:] for note in _notes(own, reference)],
        "versions": versions(),
    }


def _check_alike(own: Evaluation, reference: Evaluation) -> None:
    for name in ("samples", "temperature", "top_p") if own.config["samples"] else ("samples",):
        mine, other = own.config[name], reference.config[name]
        if mine != other:
            raise ConfigError(
                f"{own.folder} was evaluated with {name}={mine}, {reference.folder} with {name}={other}; "
                f"evaluate both with the same --{name.replace('_', '-')}"
            )
    if set(own.rows) != set(reference.rows):
        mine, other = " ".join(own.rows), " ".join(reference.rows)
        raise ConfigError(
            f"{own.folder} was evaluated on the tasks {mine}, {reference.folder} on {other}; "
            "evaluate both with the same --tasks"
        )
    for task, rows in reference.rows.items():
        if rows.keys() != own.rows[task].keys():
            shared = len(rows.keys() & own.rows[task].keys())
            raise ConfigError(
                f"{own.folder} and {reference.folder} share {shared} of their {len(own.rows[task])} and {len(rows)} "
                f"problems of {task}; evaluate both with the same --problems and --seed"
            )


def _notes(own: Evaluation, reference: Evaluation) -> Iterator[str]:
    """What may explain a difference beside the models: not refused, as a run is evaluated with its own settings."""
    other = reference.settings()
    for name, value in own.settings().items():
        if value != other[name]:
            yield (
                f"{own.name} has {name} {value}, {reference.name} {other[name]}; "
                f"--{name.replace('_', '-')} sets one for both"
            )


def _measured(own: Evaluation, reference: Evaluation, tasks: Sequence[str]) -> dict[str, Any]:
    """By metric the value over these tasks and, but for the reference itself, the difference to the reference."""
    found: dict[str, Any] = {}
    for metric in own.metrics:
        value = mean_of_intervals([own.interval(task, metric) for task in tasks])
        difference = None if own is reference else _difference(own, reference, tasks, metric)
        found[metric] = {"value": asdict(value), "difference": difference}
    return found


def _difference(own: Evaluation, reference: Evaluation, tasks: Sequence[str], metric: str) -> dict[str, Any]:
    uids = {task: list(reference.rows[task]) for task in tasks}
    pairs = [tuple(e.scores(task, metric, uids[task]) for e in (own, reference)) for task in tasks]
    gains_P = np.concatenate([mine_P - other_P for mine_P, other_P in pairs])
    interval = stratified_difference([(mine, other) for mine, other in pairs], np.random.default_rng(0))
    return {**asdict(interval), "wins": int((gains_P > 0).sum()), "losses": int((gains_P < 0).sum())}


def _rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers in long form: a row for each task, metric and evaluation."""
    for task, group in result["tasks"].items():
        for name, measured in group["evaluations"].items():
            for metric, found in measured.items():
                row = {"evaluation": name, "model": result["evaluations"][name]["model"], "task": task}
                row |= {"metric": metric, **{part: found["value"][part] for part in ("value", "low", "high", "n")}}
                difference = found["difference"] or dict.fromkeys(("value", "low", "high", "wins", "losses"), "")
                row |= {"difference": difference["value"]}
                row |= {f"difference_{end}": difference[end] for end in ("low", "high")}
                yield row | {part: difference[part] for part in ("wins", "losses")}


def write_comparison(result: Mapping[str, Any], folder: Path) -> None:
    """``result.json`` and ``table.csv``."""
    rows = list(_rows(result))
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    RunFolder(folder).write_json("result.json", dict(result))


def print_comparison(result: Mapping[str, Any]) -> None:
    """One table: greedy accuracy, pass@1 and pass@k for the largest k; the others are in the files."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"difference to {result['reference']}, 95% intervals over problems")
    for column in ("task", "problems", "metric", "evaluation", "value", "difference", "won / lost"):
        table.add_column(column, justify="right" if column == "problems" else "left")
    for task, group in result["tasks"].items():
        heads = iter([(task, str(group["problems"]))])
        for metric in _printed(group):
            for name, measured in group["evaluations"].items():
                table.add_row(*next(heads, ("", "")), metric, name, *_cells(measured[metric]))
        table.add_section()
    console.print(table)
    for name, evaluation in result["evaluations"].items():
        console.print(f"{name}: {evaluation['model']}, from {evaluation['folder']}", highlight=False)
    for note in result["notes"]:
        console.print(f"note: {note}", highlight=False)


def _printed(group: Mapping[str, Any]) -> list[str]:
    metrics = list(next(iter(group["evaluations"].values())))
    return list(dict.fromkeys([*metrics[:2], metrics[-1]]))


def _cells(found: Mapping[str, Any]) -> tuple[str, str, str]:
    difference = found["difference"]
    if difference is None:
        return shown(found["value"]), "", ""
    return shown(found["value"]), shown(difference, "+"), f"{difference['wins']} / {difference['losses']}"
