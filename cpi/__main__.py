"""`python -m cpi list` and `python -m cpi run NAME [--quick] [--seed N] [--out DIR] [--resume]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpi.experiments.runner import Cell

__all__ = ["main"]


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("a seed is a non-negative integer")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cpi", description="Experiments on finite MDPs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the experiments")
    run = commands.add_parser("run", help="run one: a table here; result.json and a figure in the run folder")
    run.add_argument("name", help="see `python -m cpi list`")
    run.add_argument("--quick", action="store_true", help="small settings: within a minute on one core")
    run.add_argument("--seed", type=_seed, default=0, help="of every draw (default 0)")
    run.add_argument("--out", type=Path, help="run folder, new or empty (default runs/cpi-NAME-NNN)")
    run.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out")
    return parser


def _run(args: argparse.Namespace) -> None:
    from cpi.experiments import load
    from cpi.experiments.runner import ExperimentError, RunFolder, default_folder, execute, header

    experiment = load(args.name)
    settings = experiment.settings(args.quick)
    if args.resume and args.out is None:
        raise ExperimentError("--resume needs --out, the folder of the interrupted run")
    path = args.out or default_folder(args.name)
    folder = RunFolder.open(path, header(experiment, settings, args.seed), args.resume)
    try:
        result = execute(experiment, settings, args.seed, folder, partial(_progress, args.name))
    except KeyboardInterrupt:
        quick = " --quick" if args.quick else ""
        again = f"python -m cpi run {args.name}{quick} --seed {args.seed} --out {path} --resume"
        raise ExperimentError(f"interrupted; go on with: {again}") from None
    print(experiment.table(result))
    print(f"\n{path / 'result.json'}\n{path / (args.name + '.png')}")


def _progress(name: str, cells: Iterable[Cell]) -> Iterable[Cell]:
    from tqdm import tqdm

    return tqdm(cells, desc=name, unit="cell", dynamic_ncols=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status (2: it could not be done as asked)."""
    args = _parser().parse_args(argv)
    from cpi.experiments import NAMES
    from cpi.experiments.runner import ExperimentError

    if args.command == "list":
        width = max(map(len, NAMES))
        for name, line in NAMES.items():
            print(f"{name:{width}}  {line}")
        return 0
    try:
        _run(args)
    except ExperimentError as error:
        print(f"cpi: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "tqdm"):
            raise
        print(f"cpi: experiments need {error.name}: pip install 'credit-resets[theory]'", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
