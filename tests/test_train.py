"""``python -m llm.train`` as a user runs it: every method, errors in one line, kill and resume."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import SMALL, tiny_trainer
from trl import GRPOTrainer

from llm.config import USER_ERRORS, ConfigError, config_from_args
from llm.methods import METHODS
from llm.runs import alone_in
from llm.setup import TINY, load_model
from llm.show import RESET, WRONG
from llm.train import TrainConfig, main
from llm.trainer import ResetTrainer, RunError

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


def test_two_processes_do_not_write_to_one_run(tmp_path: Path):
    run = tmp_path / "run"
    config = TrainConfig(**SMALL, output=str(run))
    main(config)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with alone_in(run):
        done = _run("--output", str(run), "--resume")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"llm.train: another process is at work in {run}; wait until it has ended, or give another --output"
    ]
    assert before.items() <= {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}.items()
    main(replace(config, resume=True))


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
    assert again.returncode == 0, again.stderr
    assert "checkpoint-1 is unfinished or corrupt" in again.stderr
    assert "the run starts over at step 0" in again.stderr
    assert _run("--save-every", "1", "--output", str(tmp_path / "whole")).returncode == 0
    for name in ("metrics.jsonl", "before.json", "rollouts.txt", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # a checkpoint that was whole once is not silently done again
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"every checkpoint .* is corrupt; start the run anew"):
        main(TrainConfig(**SMALL, save_every=1, output=str(tmp_path / "run"), resume=True))


def test_a_disk_that_is_full_at_the_end_is_one_line_and_leaves_no_half_model(tmp_path: Path, monkeypatch):
    config = TrainConfig(**SMALL, save_every=1, output=str(tmp_path / "run"))
    save = ResetTrainer.save_model

    def full(trainer, place, *args, **kwargs):
        save(trainer, place, *args, **kwargs)
        if Path(place).name.startswith("model"):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(ResetTrainer, "save_model", full)
    with pytest.raises(RunError, match=r"No space left on device .* free space, then go on with --resume"):
        main(config)
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    result = main(replace(config, resume=True))
    assert result["after"] and (tmp_path / "run" / "model" / "tokenizer.json").is_file()
    assert not (tmp_path / "run" / "model.part").exists()


def test_a_server_that_is_gone_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gone(*args, **kwargs):
        raise requests.ConnectionError("Connection to localhost:8000 refused")

    monkeypatch.setattr(ResetTrainer, "_roll_out", gone)
    config = TrainConfig(**(SMALL | {"eval_problems": 0}), output=str(tmp_path / "run"))
    with pytest.raises(RunError, match=r"the run stopped: Connection to localhost:8000 refused; go on with --resume"):
        main(config)


def test_a_run_that_has_grown_is_not_resumed_shorter_and_a_stranger_among_the_checkpoints_is_left_alone(tmp_path: Path):
    config = TrainConfig(**(SMALL | {"eval_problems": 0}), save_every=1, output=str(tmp_path / "run"))
    main(config)
    shutil.copytree(tmp_path / "run/checkpoints/checkpoint-2", tmp_path / "run/checkpoints/checkpoint-2.bak")
    (tmp_path / "run/checkpoints/checkpoint-2/complete.json").write_bytes(b"\xff\xfe")
    main(replace(config, steps=3, resume=True))
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["steps"] == 3
    with pytest.raises(ConfigError, match="was run with steps=3, not 2"):
        main(replace(config, resume=True))
    (tmp_path / "run/weights.json").write_text("{}")
    with pytest.raises(ConfigError, match="the weights are not those"):
        main(replace(config, steps=3, resume=True))
    (tmp_path / "run/weights.json").write_bytes(b"\0\0")
    with pytest.raises(ConfigError, match=r"weights\.json is corrupt"):
        main(replace(config, steps=3, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 8}, "--lora-rank does nothing here: leave it out, or give --lora"),
        ({"vllm_server": "http://localhost:8000"}, "--vllm-server does nothing here: .* give --backend vllm"),
        ({"lora": True, "lora_alpha": 0}, "lora_alpha must be positive"),
        ({"seed": 2**32}, "seed must be below"),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        main(TrainConfig(**SMALL | changes))


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch):
    """A gradient without bounds spoils the weights: they are not saved over a checkpoint that can be used."""
    config = TrainConfig(**(SMALL | {"steps": 6}), save_every=1, output=str(tmp_path / "run"))
    main(replace(config, steps=2))
    update = ResetTrainer.training_step

    def explode(trainer, *args, **kwargs):
        loss = update(trainer, *args, **kwargs)
        if trainer.state.global_step == 3:
            for p in trainer.model.parameters():
                p.grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(ResetTrainer, "training_step", explode)
    with pytest.raises(RunError, match=r"the weights became .* at step 4; the last good checkpoint is kept"):
        main(replace(config, resume=True))
    newest = max((tmp_path / "run" / "checkpoints").glob("checkpoint-*/complete.json"), key=lambda f: f.stat().st_mtime)
    assert newest.parent.name == "checkpoint-3"
    assert all(np.isfinite(w).all() for w in load_file(newest.parent / "model.safetensors").values())

    monkeypatch.setattr(ResetTrainer, "training_step", update)
    monkeypatch.setattr(GRPOTrainer, "training_step", lambda *args, **kwargs: torch.tensor(torch.nan))
    with pytest.raises(RunError, match="the loss became nan at step 3"):
        main(replace(config, resume=True))


def test_weights_that_deepspeed_has_sharded_are_checked_by_their_shards(tmp_path: Path):
    trainer = tiny_trainer(tmp_path)
    trainer.check_weights()
    next(trainer.model.parameters()).ds_tensor = torch.tensor([1.0, torch.nan])
    with pytest.raises(RunError, match="the weights became infinite or not a number"):
        trainer.check_weights()


def test_the_progress_bar_shows_rewards_cuts_and_speed_and_the_samples_can_be_read(tmp_path: Path, capsys):
    main(TrainConfig(**SMALL, method="oracle-srpo", output=str(tmp_path / "run")))
    bar = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert all(f"{name}=" in bar for name in ("reward", "accuracy", "suffix", "exact", "clean", "tok/s")), bar
    text = (tmp_path / "run" / "rollouts.txt").read_text()
    assert text.index("step 0") < text.index("step 1")
    assert RESET in text and WRONG in text and "\x1b" not in text


def test_a_task_without_first_errors_is_measured_by_values_and_refused_as_an_oracle(tmp_path: Path):
    task = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    config = TrainConfig(**(SMALL | {"task": task, "eval_problems": 0}), oracle_every=2, max_tokens=24)
    with pytest.raises(ConfigError, match=r"does not know first errors, which oracle-srpo asks for; .* value"):
        main(replace(config, method="oracle-srpo", output=str(tmp_path / "no")))
    with pytest.raises(ConfigError, match="which localizer noisy asks for"):
        main(replace(config, localizer="noisy", dry_run=True))
    main(replace(config, output=str(tmp_path / "run")))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["oracle_rollouts"] > 0 and rows[0]["oracle_tokens"] > 0
    assert rows[1]["oracle_rollouts"] == rows[1]["oracle_tokens"] == 0
    assert rows[1]["p"] is None
    main(replace(config, oracle_every=0, output=str(tmp_path / "without")))
    without = [json.loads(line) for line in (tmp_path / "without" / "metrics.jsonl").read_text().splitlines()]
    for row, bare in zip(rows, without, strict=True):  # measuring changes nothing of the run
        assert all(row[name] == bare[name] for name in ("rollouts", "tokens", "accuracy", "loss", "grad_norm"))
        assert bare["oracle_rollouts"] == 0


def test_a_dry_run_refuses_what_a_run_refuses_and_needs_no_chat_template(capsys):
    shipped = ["--config", "configs/olmo-3-7b-srpo.yaml", "--dry-run", "--task", "chains"]
    main(config_from_args(TrainConfig, [*shipped, "--prompt-style", "instruct"], "llm.train"))
    assert "tokens for each localisation answer" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="of 7 updates"):
        main(config_from_args(TrainConfig, [*shipped, "--updates", "7"], "llm.train"))


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


def test_sharding_the_model_over_processes_that_sample_by_themselves_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"with FSDP .* use --backend vllm"):
        main(TrainConfig(**SMALL))


def test_deepspeed_trains_in_the_precision_that_is_sampled_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="DeepSpeed would train in bf16 what is sampled in float32"):
        main(TrainConfig(**SMALL))


@pytest.mark.parametrize("broken", ["no tokenizer", "weights cut short", "another shape", "no causal model"])
def test_a_broken_model_folder_is_one_line(tmp_path: Path, broken: str):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    if broken == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    if broken == "weights cut short":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    if broken == "another shape":
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2 * config["hidden_size"]}))
    if broken == "no causal model":
        (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ConfigError, match="cannot load model") as caught:
        load_model(str(folder), "float32")
    assert "\n" not in str(caught.value)
