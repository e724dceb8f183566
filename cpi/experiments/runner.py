"""What all experiments share: cells, seeds, the run folder, the result.

An experiment is a list of independent *cells*. Each cell has its own generator, seeded by the run's seed and the
cell's key, and its result is kept in the run folder as soon as it is there. So an interrupted run goes on where it
stopped, a cell's numbers do not depend on which other cells there are, and the result is the same either way.

    DIR/run.json          experiment, settings, seed, versions: written first
    DIR/cells/KEY.json    one file per finished cell
    DIR/result.json       settings, seed, versions, the cells, and every number of the figure
    DIR/NAME.png          the figure
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cell", "Experiment", "ExperimentError", "RunFolder", "Table", "default_folder", "execute", "generator"]

SettingsT = TypeVar("SettingsT")
Json = dict[str, Any]
_PACKAGES = ("credit-resets", "numpy", "scipy", "matplotlib")
_CONCLUDE = "conclude"  # the key of the generator that `Experiment.conclude` gets


class ExperimentError(ValueError):
    """A run that cannot be made as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class Cell:
    """One independent piece of an experiment. `key` names its file and seeds its generator."""

    key: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table for the terminal."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        ruled = [lines[0], tuple("-" * w for w in widths), *lines[1:]]
        return "\n".join(
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in ruled
        )


@dataclass(frozen=True)
class Experiment(Generic[SettingsT]):
    """An experiment as data and functions.

    cells(settings) lists the cells; compute(settings, cell, rng) gives a cell's JSON result; conclude(settings, cells,
    rng) turns all of them, by key, into the entries of result.json that the figure and the table show; table and draw
    read the finished result only.
    """

    name: str
    full: SettingsT
    quick: SettingsT
    cells: Callable[[SettingsT], list[Cell]]
    compute: Callable[[SettingsT, Cell, np.random.Generator], Json]
    conclude: Callable[[SettingsT, Mapping[str, Json], np.random.Generator], Json]
    table: Callable[[Json], Table]
    draw: Callable[[Json], Figure]

    def settings(self, quick: bool) -> SettingsT:
        return self.quick if quick else self.full


def generator(seed: int, key: str) -> np.random.Generator:
    """The generator of the cell `key` in a run with `seed`: independent of all other cells."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(key.encode())]))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def default_folder(name: str) -> Path:
    """``runs/cpi-NAME-NNN`` with the first free number."""
    numbered = (Path("runs") / f"cpi-{name}-{i:03d}" for i in range(1, 10_000))
    return next(folder for folder in numbered if not folder.exists())


def _write(path: Path, value: Any) -> None:
    """Written whole or not at all: a killed run leaves no half file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @classmethod
    def open(cls, path: Path, header: Json, resume: bool) -> RunFolder:
        """A new folder that holds `header` as run.json, or with `resume` one whose run.json says the same.

        Raises ExperimentError when the folder is not empty, cannot be written, or belongs to another run.
        """
        folder = cls(path)
        try:
            if resume:
                folder._check_same(header)
            elif path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ExperimentError(f"{path} is not an empty folder; give another --out, or --resume its run")
            (path / "cells").mkdir(parents=True, exist_ok=True)
            _write(path / "run.json", header)
        except OSError as error:
            raise ExperimentError(f"cannot write to {path}: {error.strerror}; give another --out") from error
        return folder

    def _check_same(self, header: Json) -> None:
        try:
            saved = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{self.path} holds no run to resume; leave --resume out") from error
        # through JSON, so that tuples and lists compare equal
        for name, value in json.loads(json.dumps(header)).items():
            if name != "versions" and saved.get(name) != value:
                raise ExperimentError(f"{self.path} holds a run with another {name}; resume it with its own")

    def finished(self, key: str) -> Json | None:
        path = self.path / "cells" / f"{key}.json"
        if not path.is_file():
            return None
        found: Json = json.loads(path.read_text(encoding="utf-8"))
        return found

    def keep(self, key: str, result: Json) -> None:
        _write(self.path / "cells" / f"{key}.json", result)


def header(experiment: Experiment[Any], settings: Any, seed: int) -> Json:
    """What a figure is traced to."""
    config = dataclasses.asdict(settings)
    return {"experiment": experiment.name, "seed": seed, "config": config, "versions": versions()}


def execute(
    experiment: Experiment[SettingsT],
    settings: SettingsT,
    seed: int = 0,
    folder: RunFolder | None = None,
    progress: Callable[[Iterable[Cell]], Iterable[Cell]] = iter,
) -> Json:
    """Run all cells and conclude. Returns what result.json holds; with a `folder`, files are kept there."""
    results: dict[str, Json] = {}
    for cell in progress(experiment.cells(settings)):
        done = folder.finished(cell.key) if folder else None
        if done is None:
            # JSON and back, so that a resumed run sees the very numbers of an uninterrupted one
            done = json.loads(json.dumps(experiment.compute(settings, cell, generator(seed, cell.key))))
            if folder:
                folder.keep(cell.key, done)
        results[cell.key] = done
    conclusion = experiment.conclude(settings, results, generator(seed, _CONCLUDE))
    result: Json = json.loads(
        json.dumps(header(experiment, settings, seed) | conclusion | {"cells": results}, allow_nan=False)
    )
    if folder:
        _write(folder.path / "result.json", result)
        figure = experiment.draw(result)
        dpi = min(130.0, 1150 / figure.get_figwidth())  # wide figures stay below 200 kB
        figure.savefig(folder.path / f"{experiment.name}.png", dpi=dpi)
    return result
