"""The localisation measurement: by hand, against closed forms on a scripted model, killed and resumed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import TreeTask, tree_simulator, tree_tokenizer

import llm.localization
from llm.config import ConfigError, config_from_args
from llm.evaluate import Subject
from llm.localization import BINS, LocalizationConfig, main, summarise
from llm.paper import paper_figure_4
from llm.runs import alone_in
from llm.statistics import wilson

RIGHT = (1, 2, 0)
P_RIGHT = np.array([0.5, 0.6, 0.7])
"""Of each of the three steps, so a response is right with probability 0.21."""
CONFIG = LocalizationConfig(
    model="scripted",
    task="tree",
    problems=12,
    localizers="random start entropy",
    temperature=1.0,
    top_p=1.0,
    max_tokens=3,
    max_thoughts=3,
    max_thought_tokens=3,
    localize_tokens=2,
    batch=5,
    seed=4,
)


def _theta(p_right: np.ndarray) -> np.ndarray:
    """Logits [3, 9, 3]: at each step the right action has its probability, the two others half of the rest each."""
    theta = np.zeros((3, 9, 3))
    for h, y in enumerate(RIGHT):
        theta[h, :, y] = np.log(2 * p_right[h] / (1 - p_right[h]))
    return theta


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tree_simulator(_theta(P_RIGHT), RIGHT)
    monkeypatch.setattr(llm.localization, "find_subject", lambda name: Subject(name, None, None))
    monkeypatch.setattr(llm.localization, "load_subject", lambda subject, dtype: (model, tree_tokenizer(3)))
    monkeypatch.setattr(llm.localization, "load_task", lambda spec: TreeTask(RIGHT))


@pytest.mark.usefixtures("scripted")
def test_correction_rates_are_the_tree_s_and_zero_where_an_error_is_kept(tmp_path: Path):
    """From a clean cut k the exact rate is the product of the right steps from k on; 4 standard errors."""
    result = main(replace(CONFIG, problems=400, batch=200, output=str(tmp_path / "out")))
    value = np.array([P_RIGHT[k:].prod() for k in range(3)])
    rows = [row for line in (tmp_path / "out/batches.jsonl").open() for row in json.loads(line)["rows"]]
    assert result["failures"] == len(rows)
    for name in ("oracle", "start"):
        want = np.mean([value[row["cuts"][name]] for row in rows])
        n = 4 * len(rows)
        assert abs(result["localisers"][name]["correction"]["value"] - want) < 4 * np.sqrt(want * (1 - want) / n)
    random = result["localisers"]["random"]
    late = [cell for label, cell in zip(BINS, random["correction_by_bin"], strict=True) if label in ("+1", "+2")]
    assert all(cell["value"] == 0 and cell["n"] > 100 for cell in late)
    assert random["pass_at_k"]["erroneous"]["value"] == 0
    assert random["pass_at_k"]["clean"]["low"] > 0.1


@pytest.mark.usefixtures("scripted")
def test_the_oracle_has_no_deviation_and_random_cuts_have_recall_one_and_precision_p(tmp_path: Path):
    result = main(replace(CONFIG, problems=60, batch=30, output=str(tmp_path / "out")))
    oracle, random = result["localisers"]["oracle"], result["localisers"]["random"]
    assert oracle["exact"]["value"] == 1.0 and oracle["deviation"] == 0.0
    assert result["oracle_sources"] == {"task": result["failures"]}
    assert random["kappa"] == 1.0
    assert random["rho"] == pytest.approx(result["p"])
    assert result["p"] == pytest.approx(1 / 3)  # one state of three is improvable in every failure


@pytest.mark.usefixtures("scripted")
def test_an_oracle_by_value_finds_the_task_s_first_error(tmp_path: Path):
    """64 continuations all miss a success of probability .21 with probability 3e-7."""
    config = replace(CONFIG, problems=20, batch=10, value_continuations=64)
    truth = main(replace(config, output=str(tmp_path / "task")))
    value = main(replace(config, oracle="value", output=str(tmp_path / "value")))
    assert value["oracle_sources"] == {"value": value["oracle_known"]}
    cuts = {
        folder: [
            row["oracle"] for line in (tmp_path / folder / "batches.jsonl").open() for row in json.loads(line)["rows"]
        ]
        for folder in ("task", "value")
    }
    assert cuts["task"] == cuts["value"]
    assert len(set(cuts["task"])) == 3
    assert truth["failures"] == value["failures"]


@pytest.mark.usefixtures("scripted")
def test_localisers_that_agree_share_their_continuations(tmp_path: Path):
    main(replace(CONFIG, output=str(tmp_path / "out")))
    rows = [row for line in (tmp_path / "out/batches.jsonl").open() for row in json.loads(line)["rows"]]
    for row in rows:
        assert set(row["continuations"]) == {str(k) for k in row["cuts"].values() if k is not None}
        assert all(len(outcomes) == 4 for outcomes in row["continuations"].values())
    assert any(len(row["continuations"]) < 4 for row in rows)


@pytest.mark.usefixtures("scripted")
def test_unusable_answers_are_no_cut_and_are_counted(tmp_path: Path):
    """The scripted model cannot say a number: every answer of the self-localiser is missing."""
    result = main(replace(CONFIG, localizers="self", output=str(tmp_path / "out")))
    own = result["localisers"]["self"]
    assert own["cuts"] == 0
    assert own["answers"] == {"missing": result["failures"]}
    assert own["correction"] is None and own["exact"] is None
    assert own["kappa"] == 0.0 and own["rho"] is None
    assert (tmp_path / "out/figure.png").stat().st_size > 0


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("batches_before_the_kill", [0, 2])
def test_a_killed_measurement_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches_before_the_kill: int
):
    whole = main(replace(CONFIG, output=str(tmp_path / "whole")))
    killed = tmp_path / "killed"
    original, calls = llm.localization._batch, iter(range(100))

    def dying(*args: Any) -> Any:
        if next(calls) == batches_before_the_kill:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(llm.localization, "_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            main(replace(CONFIG, output=str(killed)))
    with (killed / "batches.jsonl").open("a") as stream:
        stream.write('{"start": 10, "rows": [{"pro')  # and the next line was cut off as it was written
    with alone_in(killed), pytest.raises(ConfigError, match="another process is at work"):
        main(replace(CONFIG, output=str(killed), resume=True))
    assert main(replace(CONFIG, output=str(killed), resume=True)) == whole
    assert (killed / "batches.jsonl").read_bytes() == (tmp_path / "whole/batches.jsonl").read_bytes()


def _row(
    thoughts: int, oracle: int | None, cut: int | None, outcomes: dict[int, list[bool]], own_row: list[float]
) -> dict[str, Any]:
    return {
        "problem": 0,
        "thoughts": thoughts,
        "oracle": oracle,
        "source": "task",
        "cuts": {"oracle": oracle, "self": cut},
        "accepted": {"self": sum(own_row)},
        "accepted_G": {"self": own_row[oracle] if oracle is not None else None},
        "continuations": {str(k): [[s, 5] for s in successes] for k, successes in outcomes.items()},
        "response": "",
    }


def test_a_measurement_by_hand():
    """Five failures: exact, three early, one late, no answer, and one whose first error is not known."""
    yes, no = True, False
    rows = [
        _row(4, 1, 1, {1: [yes, yes, no, no]}, [0, 1, 0, 0]),
        _row(8, 5, 0, {0: [no, no, no, yes], 5: [yes, yes, yes, yes]}, [1, 0, 0, 0, 0, 0, 0, 0]),
        _row(4, 1, 2, {2: [no] * 4, 1: [no] * 4}, [0, 0, 1, 0]),
        _row(2, 0, None, {0: [no, no, no, yes]}, [0, 0]),
        _row(4, None, 3, {3: [no, yes, no, no]}, [0, 0, 0, 1]),
    ]
    batch = {"start": 0, "attempts": 9, "rows": rows, "answers": {"self": {"exact": 4, "missing": 1}}, "spent": {}}
    got = summarise([batch], ["self"], seed=0)
    assert (got["attempts"], got["failures"], got["oracle_known"]) == (9, 5, 4)
    assert got["p"] == pytest.approx(4 / (4 + 8 + 4 + 2))
    own = got["localisers"]["self"]
    assert own["cuts"] == 4
    assert own["answers"] == {"exact": 4, "missing": 1}
    assert (own["exact"]["count"], own["exact"]["n"], own["clean"]["count"]) == (1, 3, 2)
    assert own["deviation"] == pytest.approx((0 - 5 + 1) / 3)
    shares = {label: cell["count"] for label, cell in zip(BINS, own["share"], strict=True)}
    assert shares == {**dict.fromkeys(BINS, 0), "0": 1, "<=-4": 1, "+1": 1}
    rates = dict(zip(BINS, own["correction_by_bin"], strict=True))
    assert {label: cell["count"] / cell["n"] for label, cell in rates.items() if cell} == {
        "<=-4": 0.25, "0": 0.5, "+1": 0.0,
    }  # fmt: skip
    assert own["correction"]["value"] == pytest.approx(4 / 16)  # the failure without a known error takes part
    expected = wilson(4, 16)
    assert (own["correction"]["low"], own["correction"]["high"]) == (expected.low, expected.high)
    assert own["pass_at_k"]["clean"]["value"] == 1.0 and own["pass_at_k"]["clean"]["n"] == 2
    assert own["pass_at_k"]["erroneous"]["value"] == 0.0 and own["pass_at_k"]["erroneous"]["n"] == 1
    assert own["kappa"] == pytest.approx(1 / 4)
    assert own["rho"] == pytest.approx(1 / 3)
    assert got["localisers"]["oracle"]["correction"]["value"] == pytest.approx(7 / 16)


def test_the_paper_s_shares_add_up_to_one():
    """As printed, to a tenth of a percent each: nine bins are off by at most 9 * 0.05 percent."""
    for style in ("raw", "meaningful-steps"):
        own = [row for row in paper_figure_4() if row["filter"] == style]
        shares = [row["value"] for row in own if row["panel"] == "share"]
        assert [row["bin"] for row in own if row["panel"] == "share"] == list(BINS)
        assert sum(shares) == pytest.approx(1.0, abs=0.0045)


@pytest.mark.usefixtures("scripted")
def test_the_table_holds_own_and_the_paper_s_numbers(tmp_path: Path):
    result = main(replace(CONFIG, output=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out/result.json").read_text()) == json.loads(json.dumps(result))
    with (tmp_path / "out/table.csv").open() as file:
        table = {(row["source"], row["panel"], row["bin"]): row["value"] for row in csv.DictReader(file)}
    for label, cell in zip(BINS, result["localisers"]["random"]["share"], strict=True):
        assert float(table["random", "share", label]) == cell["value"]
    assert float(table["paper, raw", "pass_at_4", "clean"]) == pytest.approx(0.282)


def test_a_localiser_by_value_is_not_measured_against_its_own_draws(tmp_path: Path):
    config = LocalizationConfig(
        model="tiny", task="chains:steps=6,hard=4", oracle="value", localizers="value", value_continuations=2,
        problems=24, threads=1, output=str(tmp_path / "l"),
    )  # fmt: skip
    found = main(config)
    assert found["oracle_known"] > 5
    assert found["localisers"]["value"]["exact"]["value"] < 1.0


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--localizers", "self oracel"], ["unknown localizer 'oracel'", "entropy"]),
        (["--localizers", "oracle"], ["give at least one localizer"]),
        (["--continuations", "0"], ["continuations must be at least 1"]),
        (["--temperature", "0"], ["temperature must be positive"]),
        (["--oracle", "best"], ["unknown oracle 'best'", "auto, task, value"]),
        (["--top-p", "0"], ["top_p must lie in (0, 1]"]),
        (["--resume"], ["--resume needs --output"]),
        (["--output", "/proc/nowhere"], ["cannot write to", "--output"]),
    ],
)
def test_a_mistake_gets_one_line_that_says_what_to_do(options, words):
    with pytest.raises(ConfigError) as caught:
        main(config_from_args(LocalizationConfig, ["--task", "tree", "--problems", "2", *options], "llm.localization"))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_command_measures_the_embedded_model(tmp_path: Path):
    """Two batches; the embedded model's answers can be read, and its cuts are better than random ones."""
    argv = ["--problems", "24", "--batch", "12", "--localizers", "self random value", "--value-continuations", "2"]
    argv += ["--task", "chains:steps=4,hard=3", "--threads", "1", "--output", str(tmp_path / "out")]
    result = main(config_from_args(LocalizationConfig, argv, "llm.localization"))
    assert {"result.json", "table.csv", "figure.png", "batches.jsonl"} <= {p.name for p in (tmp_path / "out").iterdir()}
    own, random = (result["localisers"][name] for name in ("self", "random"))
    assert own["cuts"] > 10
    assert own["kappa"] * own["rho"] > 2 * result["p"]  # 3.6 times as measured; random cuts have the ratio 1
    assert random["kappa"] * random["rho"] == pytest.approx(result["p"])
    assert result["localisers"]["value"]["spent"]["rollouts"] > 0


def test_a_model_that_never_fails_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, _ = tree_simulator(_theta(np.full(3, 1 - 1e-12)), RIGHT)
    monkeypatch.setattr(llm.localization, "find_subject", lambda name: Subject(name, None, None))
    monkeypatch.setattr(llm.localization, "load_subject", lambda subject, dtype: (model, tree_tokenizer(3)))
    monkeypatch.setattr(llm.localization, "load_task", lambda spec: TreeTask(RIGHT))
    with pytest.raises(ConfigError, match="solved all 12 problems"):
        main(replace(CONFIG, output=str(tmp_path / "out")))
