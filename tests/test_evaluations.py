"""Evaluations side by side: the arithmetic by hand, and ``python -m llm.compare --evaluations`` as a user runs it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm.evaluate
from llm.compare import CompareConfig, main
from llm.config import ConfigError, config_from_args, run_command
from llm.evaluate import EvaluateConfig
from llm.evaluations import ALL, Evaluation, compare
from llm.setup import TINY
from llm.statistics import wilson

SETTINGS = {"samples": 2, "temperature": 0.7, "top_p": 0.95, "prompt_style": "auto"}
LENGTHS = {"max_tokens": 0, "max_thoughts": 0, "max_thought_tokens": 0}
Outcomes = Mapping[str, Mapping[str, tuple[int, int]]]
"""By task and uid: whether the greedy response was right, and how many of two samples were."""


def _evaluation(name: str, outcomes: Outcomes, **settings: Any) -> Evaluation:
    rows = {
        task: {
            uid: {"greedy": {"value": float(greedy)}, "samples": [{"value": float(i < right)} for i in range(2)]}
            for uid, (greedy, right) in by_uid.items()
        }
        for task, by_uid in outcomes.items()
    }

    def half(value: float, n: int) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.2, "n": n}

    tasks = {
        task: {
            "greedy": half(float(np.mean([greedy for greedy, _ in by_uid.values()])), len(by_uid)),
            "pass_at_k": {
                "1": half(float(np.mean([right / 2 for _, right in by_uid.values()])), len(by_uid)),
                "2": half(float(np.mean([right > 0 for _, right in by_uid.values()])), len(by_uid)),
            },
        }
        for task, by_uid in outcomes.items()
    }
    result = {"model": name, "base": name, "run": None, "tasks": tasks}
    return Evaluation(f"runs/{name}", name, {**SETTINGS, **LENGTHS, **settings}, result, rows)


BASE: Outcomes = {
    "x": {"p": (1, 2), "q": (0, 0), "r": (0, 1), "s": (0, 0)},
    "y": {"p": (1, 2), "q": (1, 0)},
}
TRAINED: Outcomes = {  # in another order, as problems of other runs may be
    "x": {"s": (1, 1), "r": (1, 1), "q": (0, 0), "p": (1, 0)},
    "y": {"q": (1, 2), "p": (0, 2)},
}


def test_problems_are_paired_by_task_and_uid_and_tasks_count_alike() -> None:
    tasks = compare([_evaluation("base", BASE), _evaluation("trained", TRAINED)])["tasks"]
    found = {task: group["evaluations"]["trained"] for task, group in tasks.items()}

    def differences(metric: str) -> dict[str, tuple[float, int, int]]:
        rows = {task: measured[metric]["difference"] for task, measured in found.items()}
        return {task: (pytest.approx(d["value"]), d["wins"], d["losses"]) for task, d in rows.items()}

    assert list(found) == ["x", "y", ALL]
    assert [group["problems"] for group in tasks.values()] == [4, 2, 6]
    # greedy: x gains on s and r of four, y loses p of two; pooled over problems it would be 1 / 6, not 0
    assert differences("greedy") == {"x": (2 / 4, 2, 0), "y": (-1 / 2, 0, 1), ALL: (0.0, 2, 1)}
    # of two samples right: x has s 0 -> 1 and p 2 -> 0, y has q 0 -> 2
    assert differences("pass@1") == {"x": (-0.5 / 4, 1, 1), "y": (1 / 2, 1, 0), ALL: (0.1875, 2, 1)}
    assert differences("pass@2") == {"x": (0.0, 1, 1), "y": (1 / 2, 1, 0), ALL: (0.25, 2, 1)}
    for metric in ("greedy", "pass@1", "pass@2"):
        one = found["x"][metric]["difference"]
        assert one["low"] < one["value"] < one["high"] and one["n"] == 4


def test_values_keep_the_intervals_of_the_evaluation_and_the_reference_has_no_difference() -> None:
    tasks = compare([_evaluation("base", BASE), _evaluation("trained", TRAINED)])["tasks"]
    base = {task: group["evaluations"]["base"]["greedy"] for task, group in tasks.items()}
    assert all(found["difference"] is None for found in base.values())
    ends = {
        task: (found["value"]["value"], found["value"]["low"], found["value"]["high"]) for task, found in base.items()
    }
    assert ends["x"] == pytest.approx((0.25, 0.15, 0.45))
    # the mean of .25 and 1, and of distances .1 and .1 (.2 and .2) the root of the sum of squares, halved
    assert ends[ALL] == pytest.approx((0.625, 0.625 - 0.1 / 2**0.5, 0.625 + 0.2 / 2**0.5))


def test_the_interval_of_a_difference_is_that_of_paired_problems() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(400) < 0.5
    base = {"x": {f"{i}": (int(e), 0) for i, e in enumerate(easy)}}
    trained = {"x": {f"{i}": (int(e or i < 20), 0) for i, e in enumerate(easy)}}
    result = compare([_evaluation("base", base), _evaluation("trained", trained)])
    found = result["tasks"]["x"]["evaluations"]["trained"]["greedy"]["difference"]
    won = int((~easy[:20]).sum())
    assert (found["wins"], found["losses"]) == (won, 0)
    exact = wilson(won, 400)  # wins alone: a share, for which Wilson's interval is near the bootstrap's
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high), abs=0.01)
    assert ALL not in result["tasks"]  # one task is all tasks
    alone = compare([_evaluation("base", base), _evaluation("same", base), _evaluation("trained", trained)])
    assert alone["tasks"]["x"]["evaluations"]["trained"]["greedy"]["difference"] == found  # whoever stands beside it


@pytest.mark.parametrize(
    ("outcomes", "settings", "words"),
    [
        (TRAINED, {"samples": 4}, "runs/b was evaluated with samples=4, runs/a with samples=2"),
        (TRAINED, {"temperature": 1.0}, "temperature=1.0, runs/a with temperature=0.7; evaluate both with the same"),
        (TRAINED, {"top_p": 1.0}, "the same --top-p"),
        ({"x": TRAINED["x"]}, {}, "on the tasks x, runs/a on x y; evaluate both with the same --tasks"),
        (
            {**TRAINED, "y": {"p": (0, 0), "z": (0, 0)}},
            {},
            "share 1 of their 2 and 2 problems of y; evaluate both with the same --problems and --seed",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_paired_is_refused(outcomes: Outcomes, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        compare([_evaluation("a", BASE), _evaluation("b", outcomes, **settings)])
    assert "\n" not in str(caught.value)


def test_a_temperature_that_nothing_was_sampled_at_is_no_obstacle() -> None:
    greedy = [_evaluation("a", BASE, samples=0), _evaluation("b", TRAINED, samples=0, temperature=1.0)]
    for evaluation in greedy:
        for summary in evaluation.result["tasks"].values():
            summary["pass_at_k"] = {}
    assert list(compare(greedy)["tasks"]["x"]["evaluations"]["b"]) == ["greedy"]


def test_other_response_lengths_are_noted_and_not_refused() -> None:
    run = _evaluation("run", TRAINED)
    run.result["run"] = {"max_tokens": 96, "max_thoughts": 20, "max_thought_tokens": 256, "prompt_style": "bare"}
    notes = compare([_evaluation("base", BASE, prompt_style="bare"), run])["notes"]
    assert notes == ["run has max_tokens 96, base 4096; --max-tokens sets one for both"]
    assert compare([_evaluation("base", BASE, max_tokens=96, prompt_style="bare"), run])["notes"] == []


# -------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two evaluations: `base`, of the embedded model, and `noisy`, of it with noise in its weights."""
    folder = tmp_path_factory.mktemp("evaluated")
    model = AutoModelForCausalLM.from_pretrained(TINY)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / "model")
    for name, place in (("base", "tiny"), ("noisy", str(folder / "model"))):
        words = ["--model", place, "--tasks", "chains:steps=3,hard=1 chains:steps=4,hard=2", "--problems", "12"]
        words += ["--samples", "3", "--max-tokens", "48", "--threads", "1", "--output", str(folder / name)]
        llm.evaluate.main(config_from_args(EvaluateConfig, words, "llm.evaluate"))
    return folder


def _compare(*words: str | Path) -> dict[str, Any]:
    return main(config_from_args(CompareConfig, [str(word) for word in words], "llm.compare"))


def test_two_evaluations_are_compared_on_the_command_line(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(evaluated / name) for name in ("base", "noisy")]
    monkeypatch.setattr(sys, "argv", ["llm.compare", "--evaluations", *folders, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run_command(main, CompareConfig, "llm.compare")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    own = [json.loads((Path(folder) / "result.json").read_text())["tasks"] for folder in folders]
    rows = [
        {
            (row["task"], row["uid"]): row
            for row in map(json.loads, (Path(f) / "problems.jsonl").read_text().splitlines())
        }
        for f in folders
    ]
    for task in own[0]:
        found = result["tasks"][task]["evaluations"]
        for name, evaluation in zip(("base", "noisy"), own, strict=True):
            for part in ("value", "low", "high"):
                assert found[name]["greedy"]["value"][part] == pytest.approx(evaluation[task]["greedy"][part])
                assert found[name]["pass@2"]["value"][part] == pytest.approx(evaluation[task]["pass_at_k"]["2"][part])
        greedy = found["noisy"]["greedy"]["difference"]
        gains = [rows[1][key]["greedy"]["value"] - rows[0][key]["greedy"]["value"] for key in rows[0] if key[0] == task]
        assert (greedy["value"], greedy["wins"], greedy["losses"]) == (
            pytest.approx(np.mean(gains)),
            gains.count(1.0),
            gains.count(-1.0),
        )
        assert f"{greedy['value']:+.3f}" in printed and f"{greedy['wins']} / {greedy['losses']}" in printed
    assert any(group["evaluations"]["noisy"]["greedy"]["difference"]["value"] for group in result["tasks"].values())

    with (tmp_path / "out" / "table.csv").open() as file:
        table = {(row["task"], row["metric"], row["evaluation"]): row for row in csv.DictReader(file)}
    assert len(table) == 3 * 4 * 2  # tasks and their mean; greedy and pass@1, 2, 3; evaluations
    total = result["tasks"][ALL]["evaluations"]["noisy"]["pass@3"]
    line = table[ALL, "pass@3", "noisy"]
    assert float(line["value"]) == total["value"]["value"] and int(line["wins"]) == total["difference"]["wins"]
    assert float(line["difference_low"]) == total["difference"]["low"]
    assert table[ALL, "pass@3", "base"]["difference"] == ""
    assert ALL in printed and "pass@3" in printed and "pass@2" not in printed


def test_evaluations_of_one_name_are_told_apart_by_their_paths(evaluated: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(evaluated / "noisy", tmp_path / "base")
    assert list(_compare("--evaluations", evaluated / "base", twin)["evaluations"]) == [
        str(evaluated / "base"),
        str(twin),
    ]


def _lose_a_problem(folder: Path) -> None:
    lines = (folder / "problems.jsonl").read_text().splitlines(keepends=True)
    (folder / "problems.jsonl").write_text("".join(lines[1:]))


def _as_run(folder: Path) -> None:
    (folder / "config.yaml").write_text("task: chains\nsteps: 3\n")
    (folder / "model").mkdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "holds no evaluation; make one with python -m llm.evaluate --model MODEL"),
        (_as_run, "holds no evaluation; make one with python -m llm.evaluate --model {folder} --output"),
        (lambda folder: (folder / "result.json").unlink(), "--config {folder}/config.yaml --output {folder} --resume"),
        (_lose_a_problem, "has 11 problems of chains:steps=3,hard=1, result.json 12; run llm.evaluate again"),
        (lambda folder: (folder / "result.json").write_text("{"), "cannot read the evaluation in {folder}"),
        (lambda folder: (folder / "config.yaml").write_text("a: ["), "cannot read the evaluation in {folder}"),
    ],
    ids=["nothing", "a run", "unfinished", "a row is missing", "half a result", "no YAML"],
)
def test_a_folder_that_holds_no_finished_evaluation_says_what_to_do(
    evaluated: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = Path(shutil.copytree(evaluated / "noisy", tmp_path / "noisy"))
    change(folder)
    with pytest.raises(ConfigError, match=re.escape(words.format(folder=folder))) as caught:
        _compare("--evaluations", evaluated / "base", folder, "--output", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_advice_for_an_unfinished_evaluation_finishes_it(evaluated: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(evaluated / "noisy", tmp_path / "noisy"))
    (folder / "result.json").unlink()
    _lose_a_problem(folder)
    with pytest.raises(ConfigError) as caught:
        _compare("--evaluations", evaluated / "base", folder)
    advice = str(caught.value).partition("python -m llm.evaluate ")[2]
    llm.evaluate.main(config_from_args(EvaluateConfig, advice.split(), "llm.evaluate"))
    tasks = [_compare("--evaluations", evaluated / "base", f)["tasks"] for f in (folder, evaluated / "noisy")]
    assert tasks[0] == tasks[1]


def test_one_folder_a_folder_twice_and_a_study_beside_evaluations_are_refused(evaluated: Path, tmp_path: Path) -> None:
    base, noisy = evaluated / "base", evaluated / "noisy"
    with pytest.raises(ConfigError, match="needs two folders or more, the reference first"):
        _compare("--evaluations", base)
    with pytest.raises(ConfigError, match="is given twice"):
        _compare("--evaluations", base, noisy, f"{base}/")
    quick = Path(__file__).parent.parent / "configs" / "compare-quick.yaml"
    with pytest.raises(ConfigError, match="goes with --output only; leave out common"):
        _compare("--config", quick, "--evaluations", base, noisy)
    with pytest.raises(ConfigError, match="leave out resume"):
        _compare("--evaluations", base, noisy, "--resume")
    (tmp_path / "kept").touch()
    with pytest.raises(ConfigError, match="is not empty; give another --output"):
        _compare("--evaluations", base, noisy, "--output", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
