"""Rows of a published data set: from the Hugging Face hub, or from files on disk; checked field by field.

Data files are loaded, never loading scripts. Without the hub (no network, no account, `datasets` not installed) one
line says so and how to give the rows as files: ``NAME@PATH``, where PATH is a .jsonl, .json or .parquet file or a
folder of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.tasks.base import TaskError
from llm.tasks.jsonl import read_jsonl

__all__ = ["Row", "Source", "check_fields", "hub_rows", "local_files", "local_rows"]

_OTHER_SPLITS = ("train", "validation", "valid", "dev", "test")
SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Source:
    """One split of one configuration of a data set on the hub."""

    config: str | None
    split: str


@dataclass(frozen=True)
class Row:
    """A row, the hub's split that it belongs to, and where it stands, for messages."""

    fields: Mapping[str, Any]
    split: str
    where: str


def check_fields(task: str, row: Row, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    """Raises TaskError with the task's name and the field if one is missing or of another type.

    A dotted name is a field of a field: ``choices.label``.
    """
    for path, kind in kinds.items():
        value: Any = row.fields
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                there = ", ".join(map(str, row.fields)) or "none"
                raise TaskError(
                    f"{task}: {row.where} has no field {path!r} (its fields: {there}); the data set's schema is not "
                    f"the one this package knows: give rows with this field as {task}@PATH"
                )
            value = value[name]
        if not isinstance(value, kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise TaskError(f"{task}: {row.where}: field {path!r} is of type {type(value).__name__}, not {names}")


def hub_rows(task: str, hub_id: str, sources: Sequence[Source]) -> Iterator[Row]:
    """Rows from the hub, streamed, source by source. Raises TaskError where the hub cannot be reached."""
    try:
        from datasets import load_dataset

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the last word is ours
        for source in sources:
            stream = load_dataset(hub_id, source.config, split=source.split, streaming=True)
            place = "/".join(filter(None, (hub_id, source.config, source.split)))
            for number, fields in enumerate(stream, 1):
                yield Row(fields, source.split, f"row {number} of {place}")
    except Exception as error:  # the hub's clients raise from half a dozen libraries
        raise unreachable(task, hub_id, error) from error


def unreachable(task: str, hub_id: str, error: Exception, suffixes: Sequence[str] = SUFFIXES) -> TaskError:
    """The error for rows that could not be had from the hub, whatever the reason was."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return TaskError(
        f"{task}: could not load {hub_id} from the Hugging Face hub ({reason}); connect to the hub, or give the rows "
        f"as files: {task}@PATH (a {', '.join(suffixes)} file or a folder of them)"
    )


def local_files(task: str, path: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The data files at a path, in order of their names. Raises TaskError where there are none."""
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix in suffixes)
    else:
        raise TaskError(f"{task}: there is no file or folder {path}")
    if not files or files[0].suffix not in suffixes:
        raise TaskError(f"{task}: {path} holds no {', '.join(suffixes)} file")
    return files


def local_rows(task: str, path: Path, splits: Sequence[str]) -> Iterator[Row]:
    """Rows from files. A file belongs to the split that its name begins with, else to the last of `splits`.

    In a folder, files of splits that the task does not use (a copy of the hub's repository has them) are passed over.
    Raises TaskError where all are.
    """
    files = local_files(task, path)
    if path.is_dir():
        used = [f for f in files if _split_of(f, splits) in splits]
        if not used:
            names = ", ".join(f.name for f in files[:5])
            raise TaskError(f"{task}: {path} holds no file of the split {' or '.join(splits)} (there is: {names})")
        files = used
    for file in files:
        split = _split_of(file, splits)
        split = split if split in splits else splits[-1]
        for number, fields in _read(task, file):
            yield Row(fields, split, f"{file}, row {number}")


def _split_of(file: Path, splits: Sequence[str]) -> str:
    return next((s for s in (*splits, *_OTHER_SPLITS) if file.name.startswith(s)), splits[-1])


def _read(task: str, file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if file.suffix == ".jsonl":
        yield from read_jsonl(file)
    elif file.suffix == ".json":
        yield from enumerate(_read_json(file), 1)
    else:
        yield from enumerate(_read_parquet(task, file), 1)


def _read_json(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{file}: not JSON ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{file}: expected a list of objects")
    return rows


def _read_parquet(task: str, file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError:
        raise TaskError(f"{task}: reading {file} needs pyarrow (pip install datasets), or give .jsonl") from None
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise TaskError(f"{file}: not a Parquet file ({error})") from None
