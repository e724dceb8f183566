"""`python -m notebooks.execute [NAMES] [--write]`: run every notebook, each in a process of its own; an error is fatal.

NAMES are file names without `.ipynb`, or their beginnings (`01`). Nothing is written back, unless --write asks for the
outputs to be saved in the notebooks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

__all__ = ["FOLDER", "execute", "main", "select"]

FOLDER = Path(__file__).resolve().parent
CELL_TIMEOUT_S = 600


def select(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """The notebooks whose names begin with one of `names` (none: all). Raises ValueError for a name that fits none."""
    found = sorted(folder.glob("*.ipynb"))
    for name in names:
        if not any(path.stem.startswith(name) for path in found):
            raise ValueError(f"there is no notebook {name!r}; choose from: {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or any(path.stem.startswith(name) for name in names)]


def execute(path: Path, write: bool = False) -> tuple[float, str | None]:
    """Run one notebook in its folder. Returns (seconds, None), or (seconds, what went wrong)."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    begin = time.perf_counter()
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return time.perf_counter() - begin, str(error)
    if write:
        # free of what differs from machine to machine, so that a difference in the file is one in the outputs
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
    return time.perf_counter() - begin, None


def main(argv: Sequence[str] | None = None) -> int:
    """Execute; 1 if a notebook fails, 2 if a name fits none."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.execute", description="Execute the notebooks.")
    parser.add_argument("names", nargs="*", help="file names or their beginnings, such as 01 (default: all)")
    parser.add_argument("--write", action="store_true", help="save the outputs in the notebooks")
    parser.add_argument("--processes", type=int, default=2, help="notebooks that run at once (default 2)")
    args = parser.parse_args(argv)
    try:
        paths = select(args.names)
    except ValueError as error:
        print(f"notebooks: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several run at once
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    failed = 0
    with ProcessPoolExecutor(args.processes) as pool:
        for path, (seconds, problem) in zip(paths, pool.map(execute, paths, [args.write] * len(paths)), strict=True):
            print(f"{path.stem:50} {seconds:6.1f} s  {'failed' if problem else 'ok'}", flush=True)
            if problem:
                failed += 1
                print(problem, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
