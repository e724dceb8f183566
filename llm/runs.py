"""The folder of a run: what it holds, who may write to it, and what a resumed run takes from it.

config.yaml        the full config                      metrics.jsonl   one row a step, free of timings
versions.json      library versions, device, threads    timing.jsonl    a step's seconds, tokens
weights.json       digests of the weights begun with
before.json        measurement before training          rollouts.jsonl  a sample of rollouts a step (also .txt)
checkpoints/       `checkpoint-N`, resumable            model/          the trained model or adapter
result.json        before, after, budget                figure.png      learning curve
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from llm.config import ConfigError, to_yaml

__all__ = [
    "RunFolder",
    "alone_in",
    "default_folder",
    "file_digest",
    "new_folder",
    "open_run",
    "read_config",
    "versions",
    "weight_files",
]

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "math-verify", "reasoning-gym")


def versions() -> dict[str, Any]:
    """What a figure has to be traced to: versions, device, threads."""
    import torch  # here, so that reading a run folder does not load it

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.machine()
    return {"python": platform.python_version(), **found, "device": device, "threads": torch.get_num_threads()}


def default_folder(stem: str) -> Path:
    """``runs/STEM-NNN`` with the first free number; printed, for who interrupts the run must know where to go on."""
    numbers = (Path("runs") / f"{stem}-{i:03d}" for i in range(1, 10_000))
    folder = next(folder for folder in numbers if not folder.exists())
    print(f"run folder: {folder}", file=sys.stderr)
    return folder


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and the few ways in which its files are written."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def file(self, name: str) -> Path:
        return self.path / name

    def read_json(self, name: str) -> Any | None:
        return self._parsed(name, self.file(name).read_bytes()) if self.file(name).is_file() else None

    def _parsed(self, name: str, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{self.file(name)} is corrupt ({error}): mend it, or begin again elsewhere") from error

    def write_json(self, name: str, value: Any) -> None:
        """Written whole or not at all: a killed run leaves no half file."""
        temporary = self.file(name + ".part")
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(temporary, self.file(name))

    def append(self, name: str, row: dict[str, Any]) -> None:
        self.append_text(name, json.dumps(row) + "\n")

    def append_text(self, name: str, text: str) -> None:
        with self.file(name).open("a", encoding="utf-8") as stream:
            stream.write(text)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file; a last line cut off by a kill is dropped."""
        if not self.file(name).is_file():
            return []
        return [self._parsed(name, line) for line in self.file(name).read_bytes().split(b"\n")[:-1]]

    def keep_steps(self, step: int) -> None:
        """Drop the rows of steps >= `step` from every JSONL file: those that a resumed run does again."""
        for name in ("metrics.jsonl", "timing.jsonl", "rollouts.jsonl"):
            kept = [row for row in self.rows(name) if row["step"] < step]
            temporary = self.file(name + ".part")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(temporary, self.file(name))


def file_digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(model: str | Path) -> list[Path]:
    """The weights in the folder of a model or an adapter; none for a hub id."""
    return sorted(Path(model).expanduser().glob("*.safetensors"))


def new_folder(place: str, option: str, record: str) -> Path:
    """A new or empty folder for a model, with its empty `record` in it. Raises ConfigError naming the `option`.

    A folder in which nothing but an empty record was left counts as empty: what began there wrote nothing.
    """
    out = Path(place).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(file.name != record or file.stat().st_size for file in out.iterdir()):
            raise ConfigError(f"{out} is not empty; give another --{option}, nothing is overwritten")
        (out / record).touch()
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --{option}") from error
    return out


def open_run(config: Any, folder: Path, resume: bool, weights: Sequence[Path] = ()) -> RunFolder:
    """A fresh folder with the config in it, or an existing one with the same config. Raises ConfigError otherwise.

    weights: the files that the run starts from, which have to be the same when it is resumed.
    """
    run = RunFolder(folder)
    digests = {f"{file.parent.name}/{file.name}": file_digest(file) for file in weights}
    if not resume:
        _begin(config, digests, run)
        return run
    longer = _check_same(config, folder)
    before = run.read_json("weights.json")
    if before not in (None, digests):
        raise ConfigError(
            f"the weights are not those that {folder} began with (its weights.json): put them back, or start a new run"
        )
    if longer:
        with alone_in(folder), _writing_to(folder):
            _write_config(dataclasses.replace(config, resume=False), folder)
    return run


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; give another --output") from error


def _begin(config: Any, digests: dict[str, str], run: RunFolder) -> None:
    folder = run.path
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists; give another --output, or --resume to go on with that run")
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run.write_json("weights.json", digests)
        _write_config(config, folder)


def _write_config(config: Any, folder: Path) -> None:
    (folder / "config.yaml.part").write_text(to_yaml(config), encoding="utf-8")
    os.replace(folder / "config.yaml.part", folder / "config.yaml")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run. Raises ConfigError where there is none, or none that can be read."""
    file = folder / "config.yaml"
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{folder} holds no run to resume; give another --output and leave --resume out to start one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(saved, dict):
        raise ConfigError(f"{file} holds no config; start a new run")
    return saved


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process works in the folder meanwhile. The lock is the system's: it ends with a process that is killed.

    Raises ConfigError if another one does.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"another process is at work in {folder}; wait until it has ended, or give another --output"
        ) from None


def _check_same(config: Any, folder: Path) -> bool:
    """Whether it grows: a resumed run must be the same run, but longer it may be (the schedule of prompts is extended).

    A field that a run's config lacks is newer than the run, which did what the default does.
    """
    saved = read_config(folder)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, value in dataclasses.asdict(config).items():
        before = saved.get(name, defaults[name])
        if name in ("output", "resume") or before == value:
            continue
        if name == "steps" and value >= before:
            continue
        raise ConfigError(
            f"{folder} was run with {name}={before!r}, not {value!r}; resume with the same config "
            f"(--config {folder / 'config.yaml'}), or start a new run"
        )
    return bool(saved.get("steps") != getattr(config, "steps", None))
