"""Two processes make the groups, and up to rounding the weights, that one process makes of the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from training import SMALL

from llm.train import TrainConfig

ROOT = Path(__file__).parent.parent
SHARES = ("loss", "grad_norm")


def _train(launcher: list[str], run: Path) -> None:
    options = [word for name, value in SMALL.items() for word in ("--" + name.replace("_", "-"), str(value))]
    command = [*launcher, "-m", "llm.train", *options, "--method", "oracle-srpo", "--output", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_accelerate_launch_with_two_processes_equals_one(tmp_path: Path):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
                  "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                  "--main_process_port", "0"]  # fmt: skip
    _train([sys.executable], tmp_path / "one")
    _train(accelerate, tmp_path / "two")
    rows = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    for one, two in zip(*rows, strict=True):
        counts = {n: v for n, v in one.items() if n not in (*SHARES, "batches") and not n.startswith("signal")}
        assert counts == {name: two[name] for name in counts}
        for name in ("signal_base", "signal_suffix", "signal_ratio"):  # sums of probabilities, in another order
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4)
        np.testing.assert_allclose(two["grad_norm"], one["grad_norm"], rtol=1e-4)
    weights = [load_file(tmp_path / run / "model/model.safetensors") for run in ("one", "two")]
    start = load_file(Path(str(SMALL["model"])) / "model.safetensors")
    moved = max(float(np.abs(weights[0][name] - start[name]).max()) for name in start)
    apart = max(float(np.abs(weights[0][name] - weights[1][name]).max()) for name in start)
    rate = TrainConfig().learning_rate
    assert moved > rate
    # the two sums of gradients differ in their order only; Adam's first steps turn a tiny gradient into a full step,
    # so single weights with a gradient near zero may differ, by less than one step of the learning rate
    assert apart < rate
    assert np.mean([np.abs(weights[0][n] - weights[1][n]).mean() for n in start]) < 1e-5
