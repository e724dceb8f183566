"""``python -m llm.train`` as a user runs it: every method, errors in one line, kill and resume."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import SMALL

from llm.config import USER_ERRORS, ConfigError, config_from_args
from llm.methods import METHODS
from llm.train import TrainConfig, main

ROOT = Path(__file__).parent.parent


def _command(*options: str) -> list[str]:
    base = {"--" + name.replace("_", "-"): str(value) for name, value in SMALL.items()}
    given = dict(zip(options[::2], options[1::2], strict=False))
    flags = ["--resume"] if "--resume" in options else []
    given.pop("--resume", None)
    return [sys.executable, "-m", "llm.train", *(word for pair in (base | given).items() for word in pair), *flags]


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*options), capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.mark.parametrize("method", [m for m in ("grpo", "rrpo", "srpo", "oracle-srpo") if m in METHODS])
def test_every_method_trains_and_leaves_a_complete_run_folder(method, tmp_path: Path):
    run = tmp_path / "run"
    result = main(TrainConfig(**SMALL, method=method, output=str(run), sample_every=1))
    expected = {"config.yaml", "versions.json", "before.json", "metrics.jsonl", "timing.jsonl", "rollouts.jsonl"}
    assert expected | {"result.json", "figure.png", "checkpoints", "model"} <= {p.name for p in run.iterdir()}
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(result))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    budget = result["budget"]
    assert budget["rollouts"] == sum(row["rollouts"] for row in rows)
    assert budget["rollouts"] - budget["discarded_rollouts"] == 2 * 4 * 8
    if method == "srpo":
        assert budget["localisation_tokens"] > 0
    sampled = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(sampled) == 2 * 8
    assert all(
        row["seed"][: row["kept"]] == row["thoughts"][: row["kept"]] for row in sampled if row["kind"] == "reset"
    )
    assert result["before"]["sampled"]["n"] == SMALL["eval_problems"]


def test_several_updates_a_step_train_on_all_rollouts_and_report_once_a_step(tmp_path: Path):
    result = main(TrainConfig(**SMALL, updates=4, output=str(tmp_path / "run"), save_every=1))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"checkpoint-4", "checkpoint-8"}
    assert result["budget"]["rollouts"] == sum(row["rollouts"] for row in rows)
    with pytest.raises(ConfigError, match="of 3 updates"):
        main(TrainConfig(**SMALL, updates=3, output=str(tmp_path / "other")))


def test_a_killed_run_resumes_to_the_same_bits_across_passes_over_the_problems(tmp_path: Path):
    """8 problems, 4 a step, 6 steps: three passes. The kill comes after step 3, one past the checkpoint."""
    options = ("--steps", "6", "--train-problems", "8", "--save-every", "2", "--seed", "5", "--output")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _run(*options, str(whole)).returncode == 0
    process = subprocess.Popen(
        _command(*options, str(killed)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    done = _run(*options, str(killed), "--resume")
    assert done.returncode == 0, done.stderr
    assert (whole / "metrics.jsonl").read_bytes() == metrics.read_bytes()
    assert (whole / "model/model.safetensors").read_bytes() == (killed / "model/model.safetensors").read_bytes()
    results = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    assert results[0]["after"] == results[1]["after"]
    assert results[0]["budget"] == results[1]["budget"]

    # a corrupt checkpoint is named, passed over, and the run goes on from the one before
    newest = max((killed / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    with (newest / "model.safetensors").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\0\1\2\3" * 8)
    again = _run(*options, str(killed), "--resume")
    assert again.returncode == 0, again.stderr
    assert f"{newest.name} is unfinished or corrupt" in again.stderr
    assert (whole / "metrics.jsonl").read_bytes() == metrics.read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "grpoo"}, ["unknown method 'grpoo'", "grpo", "srpo"]),
        ({"task": "chainz"}, ["chainz", "chains"]),
        ({"task": "chains:stepz=3"}, ["stepz", "steps"]),
        ({"model": "no/such/folder"}, ["no/such/folder", "give a folder"]),
        ({"split": "1+4"}, ["1+4", "at least 2"]),
        ({"prompts": 0}, ["prompts must be at least 1"]),
        ({"temperature": 0}, ["temperature must be positive"]),
        ({"learning_rate": "nan"}, ["learning_rate must be positive"]),
        ({"max_tokens": 100_000}, ["exceeds the model's context", "--max-tokens"]),
        ({"resume": True}, ["--resume needs --output"]),
        ({"output": "/proc/nowhere/run"}, ["cannot write to", "--output"]),
    ],
    ids=str,
)
def test_a_mistake_gets_one_line_that_says_what_to_do(changes, words, tmp_path: Path):
    values = {**SMALL, "output": "" if changes == {"resume": True} else str(tmp_path / "run"), **changes}
    flags = [f"--{name.replace('_', '-')}" for name, value in values.items() if value is True]
    pairs = [(f"--{n.replace('_', '-')}", str(v)) for n, v in values.items() if v is not True]
    with pytest.raises(ValueError) as caught:
        main(config_from_args(TrainConfig, [word for pair in pairs for word in pair] + flags, "llm.train"))
    assert type(caught.value).__name__ in USER_ERRORS
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_a_mistake_on_the_command_line_is_one_line_and_status_2():
    done = _run("--method", "grpoo")
    assert done.returncode == 2
    assert done.stderr.startswith("llm.train: unknown method 'grpoo'")
    assert done.stderr.count("\n") == 1


def test_an_existing_folder_is_not_overwritten_and_another_config_is_not_resumed(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    done = _run("--output", str(run))
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert [p.name for p in run.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match="holds no run to resume"):
        main(TrainConfig(**SMALL, output=str(run), resume=True))

    main(TrainConfig(**SMALL, output=str(tmp_path / "other")))
    before = (tmp_path / "other" / "result.json").read_bytes()
    with pytest.raises(ConfigError, match=r"learning_rate=0.0003, not 0.5"):
        main(TrainConfig(**SMALL, learning_rate=0.5, output=str(tmp_path / "other"), resume=True))
    assert (tmp_path / "other" / "result.json").read_bytes() == before


def _no_file_beyond_300_kilobytes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_full_disk_stops_the_run_with_one_line_and_its_unfinished_checkpoint_is_not_used(tmp_path: Path):
    """Writes beyond 300 kB fail, as on a full disk: the first checkpoint does not fit."""
    command = _command("--save-every", "1", "--output", str(tmp_path / "run"))
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, preexec_fn=_no_file_beyond_300_kilobytes
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write the checkpoint of step 1" in done.stderr
    assert "Traceback" not in done.stderr
    again = _run("--save-every", "1", "--output", str(tmp_path / "run"), "--resume")
    assert "checkpoint-1 is unfinished or corrupt" in again.stderr
    assert "start the run anew" in again.stderr


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path):
    done = _run("--steps", "6", "--save-every", "1", "--learning-rate", "1e30", "--output", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "the loss became" in done.stderr
    assert "lower --learning-rate" in done.stderr
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/complete.json"))


def test_metrics_go_to_tensorboard_and_an_unknown_logger_is_one_line(tmp_path: Path):
    main(TrainConfig(**{**SMALL, "eval_problems": 0}, output=str(tmp_path / "run"), report_to="tensorboard"))
    (folder,) = {f.parent for f in (tmp_path / "run").rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("accuracy", "groups_with_signal", "tokens"):
        logged = [event.value for event in events.Scalars(f"train/{name}")]
        assert logged == pytest.approx([row[name] for row in rows])
    with pytest.raises(ConfigError, match="report_to 'clearml' is not installed"):
        main(TrainConfig(**SMALL, output=str(tmp_path / "other"), report_to="clearml"))
