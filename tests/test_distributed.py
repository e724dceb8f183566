"""Two processes make the groups, and up to rounding the weights, that one process makes of the same batch.

With `updates` > 1 they do not: TRL shuffles the rows of a batch on each process, so its updates see other rows each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file
from training import LAUNCH, SMALL, WITHOUT_GPU

from llm.train import TrainConfig

ROOT = Path(__file__).parent.parent
SHARES = ("loss", "grad_norm")


def _start(launcher: list[str], run: Path, *more: str) -> subprocess.Popen[str]:
    config = {**SMALL, "steps": 4, "save_every": 2, "method": "oracle-srpo", "output": run}
    options = [word for name, value in config.items() for word in ("--" + name.replace("_", "-"), str(value))]
    command = [sys.executable, *launcher, "-m", "llm.train", *options, *more]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **WITHOUT_GPU},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _train(launcher: list[str], run: Path, *more: str) -> None:
    process = _start(launcher, run, *more)
    _, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints[-3000:]


def _rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("distributed") / "two"
    _train(LAUNCH, run)
    return run


def test_accelerate_launch_with_two_processes_equals_one(two_processes: Path, tmp_path: Path):
    _train([], tmp_path / "one")
    rows = [_rows(run) for run in (tmp_path / "one", two_processes)]
    for one, two in zip(*rows, strict=True):
        counts = {n: v for n, v in one.items() if n not in (*SHARES, "batches") and not n.startswith("signal")}
        assert counts == {name: two[name] for name in counts}
        for name in ("signal_base", "signal_suffix", "signal_ratio"):  # sums of probabilities, in another order
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4)
        np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-4)
        assert two["batches"] > one["batches"]  # of sampling, over all processes: each has made its own
    results = [json.loads((run / "result.json").read_text()) for run in (tmp_path / "one", two_processes)]
    assert results[0]["before"] == results[1]["before"] and results[0]["after"]["problems"] == SMALL["eval_problems"]
    weights = [load_file(run / "model/model.safetensors") for run in (tmp_path / "one", two_processes)]
    start = load_file(Path(str(SMALL["model"])) / "model.safetensors")
    moved = max(float(np.abs(weights[0][name] - start[name]).max()) for name in start)
    apart = max(float(np.abs(weights[0][name] - weights[1][name]).max()) for name in start)
    rate = TrainConfig().learning_rate
    assert moved > rate
    # the two sums of gradients differ in their order only; Adam's first steps turn a tiny gradient into a full step,
    # so single weights with a gradient near zero may differ, by less than one step of the learning rate
    assert apart < rate
    assert np.mean([np.abs(weights[0][n] - weights[1][n]).mean() for n in start]) < 1e-7


def test_two_processes_that_were_killed_resume_to_the_same_bits(two_processes: Path, tmp_path: Path):
    """The kill comes after step 2, one past the checkpoint."""
    killed = tmp_path / "killed"
    process = _start(LAUNCH, killed)
    deadline = time.monotonic() + 120
    while not ((killed / "metrics.jsonl").is_file() and len(_rows(killed)) >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    both = psutil.Process(process.pid).children()  # of the launcher, which would end them if it could
    for each in (psutil.Process(process.pid), *both):
        each.kill()
    process.communicate()
    assert len(both) == 2
    assert not (killed / "result.json").exists()
    _train(LAUNCH, killed, "--resume")
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (two_processes / file).read_bytes() == (killed / file).read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_zero_3_trains_the_same_model_and_writes_it_whole(
    two_processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not in the extra `test`: on a CPU it compiles its collectives first, which takes two minutes."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    zero = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate-zero3.yaml"]
    _train(zero, tmp_path / "zero")
    scattered = {"stage": 3, "stage3_param_persistence_threshold": 0}  # or weights as small as these stay whole
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": scattered} | dict.fromkeys(sizes, "auto")))
    accelerate: dict[str, object] = {"distributed_type": "DEEPSPEED", "num_processes": 2}
    accelerate |= {"deepspeed_config": {"deepspeed_config_file": str(tmp_path / "zero.json"), "zero3_init_flag": False}}
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(accelerate))
    _train([*zero[:3], str(tmp_path / "zero.yaml")], tmp_path / "scattered", "--micro-rows", "4")
    for run in (tmp_path / "zero", tmp_path / "scattered"):
        for plain, sharded in zip(_rows(two_processes), _rows(run), strict=True):
            for name in ("accuracy", "tokens", "cuts"):
                assert plain[name] == sharded[name]
            np.testing.assert_allclose(sharded["grad_norm"], plain["grad_norm"], rtol=1e-4)
        weights = [load_file(folder / "model/model.safetensors") for folder in (two_processes, run)]
        assert weights[0].keys() == weights[1].keys()
        assert np.mean([np.abs(weights[0][n] - weights[1][n]).mean() for n in weights[0]]) < 1e-7

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "zero", resumed)
    shutil.rmtree(resumed / "checkpoints/checkpoint-4")
    (resumed / "result.json").unlink()
    _train(zero, resumed, "--resume")
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "zero" / file).read_bytes() == (resumed / file).read_bytes()
