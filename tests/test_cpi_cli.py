"""`python -m cpi`: what it prints, what it writes, and what it refuses in one line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

import cpi.experiments
from cpi.__main__ import main
from cpi.experiments import NAMES, load

TINY = {"p": (0.1, 0.05), "trials": 2000, "points": 3, "sampler_runs": 2, "check_runs": 5, "resamples": 50}


@pytest.fixture
def tiny(monkeypatch):
    """`sample-complexity` with settings that take a fraction of a second, counting the cells that are computed."""
    experiment = load("sample-complexity")
    computed = []

    def compute(settings, cell, rng):
        computed.append(cell.key)
        return experiment.compute(settings, cell, rng)

    small = dataclasses.replace(experiment.full, **TINY)
    fake = dataclasses.replace(experiment, full=small, quick=small, compute=compute)
    monkeypatch.setattr(cpi.experiments, "load", lambda name: fake)
    return computed


def _run(*args):
    return subprocess.run([sys.executable, "-m", "cpi", *args], capture_output=True, text=True, check=False)


def test_list_names_every_experiment_with_one_line_each():
    shown = _run("list")
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == list(NAMES)


def test_an_unknown_name_is_answered_with_the_valid_ones_in_one_line():
    shown = _run("run", "sample_complexity")
    assert shown.returncode == 2
    assert shown.stdout == ""
    (line,) = shown.stderr.splitlines()
    assert "'sample_complexity'" in line
    assert all(name in line for name in NAMES)


def test_a_run_writes_result_figure_and_table(tiny, tmp_path, capsys):
    out = tmp_path / "new" / "run"
    assert main(["run", "sample-complexity", "--seed", "3", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["seed"] == 3
    assert result["config"]["trials"] == 2000
    assert {"python", "numpy", "scipy"} <= set(result["versions"])
    for variant in ("cpi-rr", "cpi-caro"):
        for cost in ("q_rollouts", "cheap_trials"):
            low, high = result["exponents"][variant][cost]["ci95"]
            assert low <= result["exponents"][variant][cost]["value"] <= high
    assert (out / "sample-complexity.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "cpi-caro" in shown
    assert str(out / "result.json") in shown


def test_the_default_folder_is_the_first_free_number(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in ("001", "002"):
        assert main(["run", "sample-complexity"]) == 0
        assert (tmp_path / "runs" / f"cpi-sample-complexity-{number}" / "result.json").is_file()


def test_an_interrupted_run_goes_on_to_the_same_result(tiny, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["run", "sample-complexity", "--out", str(whole)]) == 0
    cells = list(tiny)

    interrupting = cpi.experiments.load("sample-complexity")

    def compute(settings, cell, rng):
        if cell.key == cells[3]:
            raise KeyboardInterrupt
        return interrupting.compute(settings, cell, rng)

    with monkeypatch.context() as patch:
        patch.setattr(cpi.experiments, "load", lambda name: dataclasses.replace(interrupting, compute=compute))
        assert main(["run", "sample-complexity", "--out", str(broken)]) == 2
    assert f"--out {broken} --resume" in capsys.readouterr().err
    assert not (broken / "result.json").exists()

    tiny.clear()
    assert main(["run", "sample-complexity", "--out", str(broken), "--resume"]) == 0
    assert tiny == cells[3:]
    assert (broken / "result.json").read_bytes() == (whole / "result.json").read_bytes()


def test_a_folder_with_something_in_it_is_left_alone(tiny, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["run", "sample-complexity", "--out", str(tmp_path)]) == 2
    assert "not an empty folder; give another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert tiny == []


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_an_out_that_cannot_be_a_folder_is_one_line(tiny, tmp_path, below, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["run", "sample-complexity", "--out", str(tmp_path / below)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give another --out" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--seed", "1", "--out", "done", "--resume"], "another seed"),
        (["--out", "nowhere", "--resume"], "holds no run to resume"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_resume_refuses_another_run(tiny, tmp_path, monkeypatch, args, says, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "sample-complexity", "--out", "done"]) == 0
    before = (tmp_path / "done" / "run.json").read_bytes()
    capsys.readouterr()
    assert main(["run", "sample-complexity", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert (tmp_path / "done" / "run.json").read_bytes() == before


def test_a_negative_seed_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "sample-complexity", "--seed", "-1"])
    assert stopped.value.code == 2
    assert "non-negative" in capsys.readouterr().err
