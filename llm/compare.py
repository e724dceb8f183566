"""``python -m llm.compare --config FILE --output DIR``: methods at equal budget, over seeds and warm starts, paired.

One YAML file names warm starts (`checkpoints`), tasks (`dials`), methods (`variants`) and which of them meet
(`studies`). Every cell, one method on one task from one warm start with one seed, is one run of `llm.train` in a folder
of its own, exactly as its command line would make it. A few worker processes, one torch thread each, run one cell after
another, so that the libraries are imported once and not once a cell.

 1. warm starts that the repository does not hold are made (``warm:SEED``, by the recipe of `llm.tiny`);
 2. every method is tuned: the same learning rates, on seeds that are used for nothing else, the best mean accuracy up
    to the common token budget wins; a variant that names its learning rate is not;
 3. the cells are run, then compared at equal steps, rollouts and tokens (`llm.curves`).

A comparison that was stopped, or killed, goes on with ``--resume``: finished cells are kept, unfinished ones go on from
their last checkpoint. Methods, seeds and tasks may be added to the file before; a cell that would change is refused.

``python -m llm.compare --evaluations A B ...`` trains nothing: it compares finished evaluations (`llm.evaluations`).
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers.utils import logging as hf_logging

from llm.config import USER_ERRORS, ConfigError, config_from_args, listing, mapping, option, run_command, to_yaml
from llm.curves import AXES, HELD_OUT, Run, budgets, contrast, curve_of, held, held_out_of, mean_over, summarise
from llm.evaluations import compare_folders, print_comparison, write_comparison
from llm.report import over_warm_starts, shown, way, write_report
from llm.runs import RunFolder, alone_in, file_digest, new_folder, open_run, read_config, versions, weight_files
from llm.setup import resolve_model
from llm.tiny.__main__ import TinyConfig
from llm.tiny.__main__ import main as make_warm_start
from llm.train import TrainConfig, check_method
from llm.train import main as train

__all__ = ["Cell", "CompareConfig", "command", "main", "plan"]

_WARM = re.compile(r"warm:(\d+)")
_NAME = re.compile(r"[\w.+-]+")
_SET_BY_THE_PLAN = ("model", "task", "seed", "output", "resume", "dry_run")
_BYTES_PER_WORKER, _BYTES_PER_WEIGHT_BYTE = 2**31, 20
"""What a worker takes on a CPU. SmolLM2 with LoRA: 5.7 to 7.8 GiB for .27 GB of weights; the embedded model under 2."""
_WARM_EVAL = 50
_DEFAULTS: Mapping[str, Any] = {"threads": 1, "eval_problems": 0}


@dataclass(frozen=True)
class CompareConfig:
    """Compare methods over seeds, warm starts and tasks, at equal rollouts and at equal generated tokens.

    With --evaluations compare what llm.evaluate measured, problem by problem; nothing is trained.
    """

    evaluations: tuple[str, ...] = listing("Output folders of llm.evaluate to compare, the reference first.")
    output: str = option("", "Folder of the comparison.")
    resume: bool = option(False, "Keep the finished cells of --output and go on with the others.")
    jobs: int = option(0, "Worker processes, one torch thread each; 0 for one per core, as far as memory allows.")
    common: Mapping = mapping("Options of llm.train for every cell, such as {steps: 24, prompts: 32}.")
    checkpoints: Mapping = mapping("Warm starts by name: a model as in llm.train, or warm:SEED to make one.")
    dials: Mapping = mapping("Tasks by name, such as {short: 'chains:steps=5,hard=4'}.")
    variants: Mapping = mapping("Methods by name, each a mapping of options of llm.train.")
    studies: Mapping = mapping("By name what meets: {dials: [...], variants: [...], seeds: {CHECKPOINT: [...]}}.")
    tune: Mapping = mapping("{dial: NAME, learning_rates: [...], seeds: {CHECKPOINT: [...]}}; empty: no tuning.")
    contrasts: Mapping = mapping("By question the pairs of methods to subtract, such as {resets: [[rrpo, grpo]]}.")
    target: float = option(0.5, "Accuracy to which the way is measured in steps, rollouts and tokens.")


@dataclass(frozen=True)
class Cell:
    """One run of `llm.train`: where it stands in the comparison, its command-line words, and the config they make."""

    dial: str
    variant: str
    checkpoint: str
    seed: int
    words: tuple[str, ...]

    @property
    def config(self) -> TrainConfig:
        return config_from_args(TrainConfig, self.words, "llm.train")

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.output))


def command(cell: Cell) -> str:
    """The command that does this cell again."""
    return "python -m llm.train " + shlex.join(cell.words)


def _words(values: Mapping[str, Any]) -> tuple[str, ...]:
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return tuple(words)


def _cell(
    config: CompareConfig, part: str, dial: str, variant: str, checkpoint: str, seed: int, learning_rate: float | None
) -> Cell:
    tuned = {} if learning_rate is None else {"learning_rate": learning_rate}
    name = variant if part == "cells" else f"{variant}-lr{learning_rate:g}"
    folder = Path(config.output) / part / dial / name / f"{checkpoint}-s{seed}"
    values = {
        **_DEFAULTS,
        **config.common,
        **config.variants[variant],
        **tuned,
        "model": _model(config, checkpoint),
        "task": config.dials[dial],
        "seed": seed,
        "output": str(folder),
    }
    return Cell(dial, variant, checkpoint, seed, _words(values))


def _model(config: CompareConfig, checkpoint: str) -> str:
    made = _WARM.fullmatch(str(config.checkpoints[checkpoint]))
    return str(_warm_folder(config, int(made[1]))) if made else str(config.checkpoints[checkpoint])


def _warm_folder(config: CompareConfig, seed: int) -> Path:
    return Path(config.output) / "warm-starts" / f"seed-{seed}"


def _units(seeds: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    return [(checkpoint, int(seed)) for checkpoint, numbers in seeds.items() for seed in numbers]


def plan(config: CompareConfig, learning_rates: Mapping[str, float]) -> list[Cell]:
    """The cells of all studies, each once, unit by unit, so that what is finished at any time is balanced."""
    found: dict[tuple[str, str, str, int], Cell] = {}
    for study in config.studies.values():
        for checkpoint, seed in _units(study["seeds"]):
            for dial in study["dials"]:
                for variant in study["variants"]:
                    key = (dial, variant, checkpoint, seed)
                    found.setdefault(key, _cell(config, "cells", *key, learning_rates.get(variant)))
    return list(found.values())


def _used_variants(config: CompareConfig) -> list[str]:
    return list(dict.fromkeys(v for study in config.studies.values() for v in study["variants"]))


def _tuning_cells(config: CompareConfig) -> dict[tuple[str, float], list[Cell]]:
    """By variant and learning rate; a variant that names its own learning rate keeps it."""
    if not config.tune:
        return {}
    units = _units(config.tune["seeds"])
    return {
        (variant, float(rate)): [_cell(config, "tuning", config.tune["dial"], variant, *u, float(rate)) for u in units]
        for variant in _used_variants(config)
        if "learning_rate" not in config.variants[variant]
        for rate in config.tune["learning_rates"]
    }


def _check(config: CompareConfig) -> None:
    """Raises ConfigError, one line that says what to do, before anything is made."""
    if not config.output:
        raise ConfigError("give --output, the folder of the comparison")
    for group in ("checkpoints", "dials", "variants", "studies"):
        if not getattr(config, group):
            raise ConfigError(f"{group} is empty; give a --config such as configs/compare-quick.yaml")
    for name in (*config.checkpoints, *config.dials, *config.variants):
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(f"the name {name!r} becomes a folder; use letters, digits and . + - _ only")
    for name, options in {"common": config.common, **config.variants}.items():
        if not isinstance(options, Mapping):
            raise ConfigError(f"{name} must be a mapping of options of llm.train, such as {{method: grpo}}")
        for name in options:
            if name in _SET_BY_THE_PLAN:
                raise ConfigError(f"{name} is set for each cell by the comparison; leave it out of common and variants")
    parts = {f"study {name}": study for name, study in config.studies.items()}
    for where, part in (parts | ({"tune": config.tune} if config.tune else {})).items():
        _check_part(config, where, part)
    _check_seeds(config)
    _check_contrasts(config)
    for checkpoint, model in config.checkpoints.items():
        if not _WARM.fullmatch(str(model)):
            resolve_model(_model(config, checkpoint))
    cells = [*plan(config, {}), *(c for cells in _tuning_cells(config).values() for c in cells)]
    hf_logging.disable_progress_bar()
    for cell in {(cell.dial, cell.variant): cell for cell in cells}.values():
        try:
            check_method(cell.config)
        except ValueError as error:
            raise ConfigError(f"{cell.variant} on {cell.dial}: {error}") from error


def _check_part(config: CompareConfig, where: str, part: Mapping[str, Any]) -> None:
    needed = ("dial", "learning_rates", "seeds") if where == "tune" else ("dials", "variants", "seeds")
    if not isinstance(part, Mapping) or sorted(part) != sorted(needed):
        raise ConfigError(f"{where} must hold {', '.join(needed)}")
    seeds = part["seeds"]
    if (
        not isinstance(seeds, Mapping)
        or not seeds
        or not all(_is_list(own, int) and min(own) >= 0 for own in seeds.values())
    ):
        raise ConfigError(
            f"seeds of {where} must map checkpoints to lists of seeds from 0 on, such as {{base: [0, 1]}}"
        )
    for name in ("dials", "variants", "learning_rates"):
        wanted = (str, int, float) if name == "learning_rates" else (str,)  # YAML reads 1e-4 as text
        if name in part and not _is_list(part[name], *wanted):
            raise ConfigError(f"{name} of {where} must be a list that is not empty, got {part[name]!r}")
    for rate in part.get("learning_rates", ()):
        try:
            good = float(rate) > 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"learning_rates of {where} must be positive numbers, got {rate!r}")
    named = {
        "dials": [part["dial"]] if where == "tune" else part["dials"],
        "variants": part.get("variants", ()),
        "checkpoints": list(part["seeds"]),
    }
    for group, names in named.items():
        for name in names:
            if name not in getattr(config, group):
                known = ", ".join(map(str, getattr(config, group)))
                raise ConfigError(f"{where} names {name!r}, which is not among the {group}: {known}")


def _is_list(value: Any, *kinds: type) -> bool:
    """A list of one or more of a kind; truth values are no numbers."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, kinds) and v is not True for v in value)


def _check_seeds(config: CompareConfig) -> None:
    if not config.tune:
        return
    tuning = {seed for _, seed in _units(config.tune["seeds"])}
    both = tuning & {seed for study in config.studies.values() for _, seed in _units(study["seeds"])}
    if both:
        raise ConfigError(f"seed {min(both)} is used for tuning and for evaluation; use other seeds for tuning")


def _check_contrasts(config: CompareConfig) -> None:
    used = _used_variants(config)
    for question, pairs in config.contrasts.items():
        if not _is_list(pairs, list):
            raise ConfigError(f"contrast {question!r} must be a list of pairs, such as [[srpo, grpo]]")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or any(name not in used for name in pair):
                raise ConfigError(f"contrast {pair!r} of {question!r} must be two variants of the studies")


# ------------------------------------------------------------------------------------------------- running the cells


def _make(seed: int, folder: Path) -> None:
    """A warm start, under its name only once it is whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    make_warm_start(TinyConfig(out=str(part), seed=seed, threads=1, eval_problems=_WARM_EVAL))
    part.rename(folder)


def _is_finished(cell: Cell) -> bool:
    result = cell.folder.read_json("result.json")
    return result is not None and result["steps"] == cell.config.steps


def _run_cell(cell: Cell) -> None:
    started = cell.folder.file("config.yaml").is_file()
    train(config_from_args(TrainConfig, [*cell.words, *(["--resume"] if started else [])], "llm.train"))
    shutil.rmtree(cell.folder.checkpoints)
    gc.collect()  # trainer and model refer to each other


def _logged(job: Callable[..., None], args: tuple[Any, ...], log: Path) -> str | None:
    """Run a job with its output in a file; returns what went wrong, in one line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
        try:
            job(*args)
        except Exception as error:
            traceback.print_exc()
            user = type(error).__name__ in USER_ERRORS
            return str(error) if user else f"{type(error).__name__}: {error}; see {log}"
    return None


def _start_worker() -> None:
    """A worker ends with its parent, also when that is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _jobs(config: CompareConfig) -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    weights = (sum(file.stat().st_size for file in files) for files in _weight_files(config).values())
    worker = _BYTES_PER_WORKER + _BYTES_PER_WEIGHT_BYTE * max(weights)
    return config.jobs or max(1, min(os.cpu_count() or 1, memory // worker))


def _weight_files(config: CompareConfig) -> dict[str, list[Path]]:
    """By warm start the files of its weights: none for a model of the hub, or one that is not made yet."""
    made = {name: bool(_WARM.fullmatch(str(model))) for name, model in config.checkpoints.items()}
    places = {name: _model(config, name) if made[name] else resolve_model(_model(config, name)) for name in made}
    return {name: weight_files(place) for name, place in places.items()}


class _Workers:
    """A pool of worker processes that goes through jobs with a progress bar, and stops at the first mistake."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def run(self, title: str, jobs: Sequence[tuple[Callable[..., None], tuple[Any, ...], Path]]) -> None:
        """Raises ConfigError with the first failure; what was finished by then is kept."""
        futures: dict[Future[str | None], Path] = {self.pool.submit(_logged, *job): job[2] for job in jobs}
        with tqdm(total=len(futures), desc=title, unit="run") as bar:
            for future in as_completed(futures):
                try:
                    failure = future.result()
                except BrokenProcessPool as error:
                    raise ConfigError(
                        "a worker process was killed (out of memory?): use fewer --jobs, and go on with --resume"
                    ) from error
                if failure:
                    raise ConfigError(f"{futures[future].with_suffix('')}: {failure}")
                bar.update()


@contextmanager
def _workers(jobs: int) -> Iterator[_Workers]:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read by the workers when they start
    context = get_context("forkserver")
    context.set_forkserver_preload(["llm.train", "llm.tiny.__main__"])  # imported once, for all workers
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        yield _Workers(pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_begun(cells: Sequence[Cell]) -> None:
    """Raises ConfigError where a cell that was begun, or is finished, was another run or began with other weights."""
    for cell in cells:
        if cell.folder.file("config.yaml").is_file():
            try:
                open_run(cell.config, cell.folder.path, resume=True, weights=weight_files(cell.config.model))
            except ConfigError as error:  # which names the cell's config, and the comparison's is to be changed
                what, other, _ = str(error).partition("; resume with")
                way_out = "; change the comparison's config back, or give another --output" if other else ""
                raise ConfigError(what + way_out) from error


def _run_cells(workers: _Workers, title: str, cells: Sequence[Cell]) -> None:
    open_cells = [cell for cell in cells if not _is_finished(cell)]
    workers.run(title, [(_run_cell, (c,), c.folder.path.with_name(c.folder.path.name + ".log")) for c in open_cells])


def _warm_starts(config: CompareConfig) -> dict[int, Path]:
    """By their seeds the folders of the warm starts that the comparison makes for itself."""
    used = {name for study in config.studies.values() for name in study["seeds"]} | set(config.tune.get("seeds", ()))
    seeds = [int(m[1]) for name in sorted(used) if (m := _WARM.fullmatch(str(config.checkpoints[name])))]
    return {seed: _warm_folder(config, seed) for seed in seeds}


def _make_warm_starts(workers: _Workers, config: CompareConfig) -> None:
    missing = {seed: folder for seed, folder in _warm_starts(config).items() if not folder.is_dir()}
    if missing:
        workers.run("warm starts", [(_make, item, item[1].with_suffix(".log")) for item in missing.items()])


def _as_run(cell: Cell) -> Run:
    rows = cell.folder.rows("metrics.jsonl")
    held_out = held_out_of(cell.folder.read_json("result.json") or {})
    return Run(cell.dial, cell.variant, cell.checkpoint, cell.seed, curve_of(rows), held_out)


def _tune(workers: _Workers, config: CompareConfig) -> dict[str, dict[str, float]]:
    """By variant and learning rate the mean accuracy up to a token budget, over the tuning units.

    The budget is the variant's own, the same for all of its rates: no other variant has a say in which is chosen.
    """
    grid = _tuning_cells(config)
    _run_cells(workers, "tuning", [cell for cells in grid.values() for cell in cells])
    runs = {key: [_as_run(cell) for cell in cells] for key, cells in grid.items()}
    scores: dict[str, dict[str, float]] = {}
    for (variant, rate), group in runs.items():
        budget = budgets(run for (name, _), own in runs.items() if name == variant for run in own)["tokens"]
        areas = [mean_over(*held(run.curve, "tokens", budget), 0.0, budget) for run in group]
        scores.setdefault(variant, {})[f"{rate:g}"] = float(np.mean(areas))
    return scores


def main(config: CompareConfig) -> dict[str, Any]:
    """Run the comparison to its end; returns what `result.json` holds. Raises ConfigError, TaskError or RunError."""
    if config.evaluations:
        return _compare_evaluations(config)
    _check(config)
    folder = _open(config)
    with alone_in(folder.path):
        return _compare(config, folder)


def _compare(config: CompareConfig, folder: RunFolder) -> dict[str, Any]:
    clock = time.perf_counter()
    with _workers(_jobs(config)) as workers:
        _make_warm_starts(workers, config)
        _check_begun([cell for cells in _tuning_cells(config).values() for cell in cells])
        tuning = _tune(workers, config)
        chosen = {variant: float(max(scores, key=lambda rate: scores[rate])) for variant, scores in tuning.items()}
        cells = plan(config, chosen)
        _check_begun(cells)
        folder.file("config.yaml").write_text(to_yaml(config), encoding="utf-8")  # more may have been asked for
        _run_cells(workers, "cells", cells)
    result = _result(config, cells, tuning, time.perf_counter() - clock)
    folder.write_json("result.json", result)
    write_report(result, [_as_run(cell) for cell in cells], folder.path)
    _print_result(result, folder.path)
    return result


def _compare_evaluations(config: CompareConfig) -> dict[str, Any]:
    for f in fields(config):
        if f.name not in ("evaluations", "output") and getattr(config, f.name) != getattr(CompareConfig(), f.name):
            raise ConfigError(
                f"--evaluations trains nothing and goes with --output only; leave out {f.name}, or the --config with it"
            )
    result = compare_folders(config.evaluations)
    if config.output:
        write_comparison(result, new_folder(config.output, "output", "result.json"))
    print_comparison(result)
    return result


def _open(config: CompareConfig) -> RunFolder:
    folder = Path(config.output)
    if not config.resume:
        return open_run(config, folder, resume=False)
    if not (folder / "config.yaml").is_file() or "studies" not in read_config(folder):
        raise ConfigError(f"{folder} holds no comparison to resume; leave --resume out to start one, in a new --output")
    return RunFolder(folder)


def _result(
    config: CompareConfig, cells: Sequence[Cell], tuning: Mapping[str, Mapping[str, float]], seconds: float
) -> dict[str, Any]:
    dials: dict[str, Any] = {}
    for dial in dict.fromkeys(cell.dial for cell in cells):
        summary = summarise([_as_run(cell) for cell in cells if cell.dial == dial], config.target)
        found = {
            question: [c for pair in pairs if (c := contrast(summary["cells"], *pair))]
            for question, pairs in config.contrasts.items()
        }
        contrasts = {question: rows for question, rows in found.items() if rows}
        dials[dial] = {"task": config.dials[dial], **summary, "contrasts": contrasts}
    results = [cell.folder.read_json("result.json") or {} for cell in cells]
    return {
        "config": {f.name: getattr(config, f.name) for f in fields(config)},
        "command": "python -m llm.compare " + shlex.join(sys.argv[1:]),
        "dials": dials,
        "tuning": tuning,
        "commands": [
            *(
                f"python -m llm.tiny --seed {seed} --threads 1 --out {shlex.quote(str(folder))}"
                for seed, folder in _warm_starts(config).items()
            ),
            *(command(cell) for cells in _tuning_cells(config).values() for cell in cells),
            *(command(cell) for cell in cells),
        ],
        "weights": {
            name: {file.name: file_digest(file) for file in files} for name, files in _weight_files(config).items()
        },
        "cell_seconds": sum(r["seconds"] for r in results),
        "seconds": seconds,
        "jobs": _jobs(config),
        "versions": versions(),
    }


def _print_result(result: Mapping[str, Any], folder: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    for name, dial in result["dials"].items():
        console.print(_variants_table(name, dial))
        if all(found["held_out"] for found in dial["variants"].values()):
            console.print(_held_out_table(name, dial))
        for question, rows in dial["contrasts"].items():
            console.print(_contrast_table(f"{name}: {question}", rows))
    console.print(f"report: {folder / 'report.html'}; numbers: {folder / 'result.json'}", highlight=False)


def _variants_table(name: str, dial: Mapping[str, Any]) -> Table:
    table = Table(title=f"{name} ({dial['task']}): budget {dial['budget']['tokens']:.0f} tokens, mean [95% interval]")
    columns = ("method", "units", "mean accuracy", "accuracy at budget", "steps", "tokens")
    for column in (
        *columns[:4],
        *(f"{c} to {dial['target']:g} (reached)" for c in columns[4:]),
        "tokens/step",
        "exact",
    ):
        table.add_column(column, justify="left" if column == "method" else "right")
    best_first = sorted(dial["variants"].items(), key=lambda item: -item[1]["axes"]["tokens"]["area"]["value"])
    for variant, found in best_first:
        tokens, steps = found["axes"]["tokens"], found["axes"]["steps"]
        table.add_row(
            variant,
            str(found["units"]),
            shown(tokens["area"]),
            shown(tokens["late"]),
            way(steps["reach"]),
            way(tokens["reach"]),
            f"{found['means']['tokens_per_step']:.0f}",
            "-" if found["means"]["localiser_exact"] is None else f"{found['means']['localiser_exact']:.2f}",
        )
    return table


def _contrast_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title)
    several = any(row["tokens"]["area"]["over_checkpoints"] for row in rows)
    columns = ["difference of mean accuracy", *(f"at equal {axis}" for axis in AXES), "wins at equal tokens"]
    for column in columns + ["tokens, over warm starts"] * several:
        table.add_column(column, justify="left" if column.startswith("diff") else "right")
    for row in rows:
        tokens = row["tokens"]["area"]
        wins, over = f"{tokens['wins']} of {len(row['units'])}", [over_warm_starts(tokens)] * several
        table.add_row(f"{row['a']} - {row['b']}", *(shown(row[axis]["area"], "+") for axis in AXES), wins, *over)
    return table


def _held_out_table(name: str, dial: Mapping[str, Any]) -> Table:
    table = Table(title=f"{name}: held-out accuracy, mean over units [95% interval]")
    for column in ("method", *(f"{how}, {when}" for how in HELD_OUT for when in ("before", "after"))):
        table.add_column(column, justify="left" if column == "method" else "right")
    for variant, found in dial["variants"].items():
        values = (found["held_out"][how][when] for how in HELD_OUT for when in ("before", "after"))
        table.add_row(variant, *(shown(value) for value in values))
    return table


if __name__ == "__main__":
    run_command(main, CompareConfig, "llm.compare")
