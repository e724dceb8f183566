"""Comparisons at equal budget: the arithmetic by hand, and ``python -m llm.compare`` as a user runs it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from training import SMALL

from benchmarks.step_cost import StepCostConfig
from benchmarks.step_cost import main as step_cost
from llm.compare import CompareConfig, _jobs, _logged, _run_cell, _tuning_cells, main, plan
from llm.config import ConfigError, config_from_args
from llm.curves import (
    HELD_OUT,
    WINDOW,
    Run,
    budgets,
    contrast,
    curve_of,
    held,
    held_out_of,
    mean_over,
    reach,
    summarise,
)
from llm.report import over_warm_starts, shown
from llm.runs import alone_in
from llm.train import TrainConfig
from llm.train import main as train


def _row(accuracy: float, tokens: float, **changes: Any) -> dict[str, Any]:
    zero = dict.fromkeys(("localisation_tokens", "localiser_tokens", "localiser_rollouts"), 0.0)
    return {"accuracy": accuracy, "rollouts": 8.0, "tokens": tokens, **zero, **changes}


def _run(variant: str, accuracies: list[float], tokens: float, checkpoint: str = "base", seed: int = 0) -> Run:
    return Run("dial", variant, checkpoint, seed, curve_of([_row(a, tokens) for a in accuracies]))


def test_the_mean_over_a_budget_is_the_exact_integral_of_the_linear_interpolant():
    x, y = np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 0.0])
    assert mean_over(x, y, 0.0, 3.0) == pytest.approx(0.5)
    assert mean_over(x, y, 0.5, 1.0) == pytest.approx(0.75)
    assert mean_over(x, y, 1.0, 2.0) == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"covers \[0, 3\], not \[0, 4\]"):
        mean_over(x, y, 0.0, 4.0)


def test_everything_generated_is_on_the_token_axis_and_everything_sampled_on_the_rollout_axis():
    extra = {"localisation_tokens": 5.0, "localiser_tokens": 7.0, "localiser_rollouts": 2.0}
    curve = curve_of([_row(0.1, 100.0, **extra), _row(0.2, 100.0, **extra), _row(0.3, 100.0, **extra)])
    assert curve.spent["tokens"].tolist() == [0.0, 112.0, 224.0]
    assert curve.spent["rollouts"].tolist() == [0.0, 10.0, 20.0]
    assert curve.spent["steps"].tolist() == [0.0, 1.0, 2.0]
    assert curve.means["tokens_per_step"] == 112.0


def test_one_collapsed_run_does_not_shorten_the_budget_and_is_held_at_its_last_level():
    accuracies = [0.0, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5]
    runs = [_run("a", accuracies, tokens, seed=s) for s, tokens in enumerate((10.0, 100.0, 110.0))]
    assert budgets(runs)["tokens"] == 600.0  # the median run; the collapsed one ends at 60
    x, y = held(runs[0].curve, "tokens", 600.0)
    level = np.mean(accuracies[-WINDOW:])
    assert mean_over(x, y, 60.0, 600.0) == pytest.approx(level)
    assert mean_over(x, y, 0.0, 60.0) == pytest.approx(mean_over(*held(runs[0].curve, "tokens", 60.0), 0.0, 60.0))
    assert held(runs[2].curve, "tokens", 600.0)[0][-1] == 660.0  # a run that goes further is left alone


def test_a_method_that_learns_as_fast_by_steps_but_costs_twice_the_tokens_loses_at_equal_tokens():
    accuracies = [0.0, 0.25, 0.5, 0.75, 1.0]
    runs = [_run("cheap", accuracies, 100.0), _run("dear", accuracies, 200.0)]
    assert budgets(runs) == {"steps": 4.0, "rollouts": 32.0, "tokens": 400.0}
    found = contrast(summarise(runs, target=0.5)["cells"], "cheap", "dear")
    assert found["steps"]["area"]["value"] == 0.0
    assert found["tokens"]["area"]["value"] == pytest.approx(0.5 - 0.25)
    late = found["tokens"]["late"]["value"]  # over the last 15% of 400 tokens: 1 - 0.15 / 2 against half of it
    assert late == pytest.approx(0.925 - 0.4625)


def test_the_way_to_a_target_is_read_from_a_centred_moving_average():
    x = np.arange(7) * 10.0
    assert reach(x, np.linspace(0, 0.6, 7), 0.25) == pytest.approx(25.0)  # a line is its own moving average
    spike = np.array([0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0])
    assert reach(x, spike, 0.5) is None
    assert reach(x, np.full(7, 0.6), 0.5) == 0.0


def test_a_contrast_uses_the_units_that_both_have_run_and_counts_wins():
    runs = [_run("a", [0.0, v], 10.0, c, s) for c, s, v in (("p", 0, 0.6), ("p", 1, 0.2), ("q", 0, 0.8), ("q", 1, 1.0))]
    runs += [_run("b", [0.0, v], 10.0, c, s) for c, s, v in (("p", 0, 0.4), ("p", 1, 0.4), ("q", 0, 0.4))]
    found = contrast(summarise(runs, target=0.5)["cells"], "a", "b")
    assert found["units"] == [["p", 0], ["p", 1], ["q", 0]]
    area = found["tokens"]["area"]  # half of the differences 0.2, -0.2, 0.4
    assert area["value"] == pytest.approx(0.4 / 3 / 2)
    assert (area["wins"], area["losses"], area["n"]) == (2, 1, 3)
    assert area["checkpoints"] == pytest.approx({"p": 0.0, "q": 0.2})
    assert area["low"] < area["value"] < area["high"]
    assert area["over_checkpoints"] is None, "two warm starts have no interval"
    assert contrast(summarise(runs, target=0.5)["cells"], "a", "nowhere") is None


def test_seeds_of_one_warm_start_are_one_value_of_the_interval_over_warm_starts():
    starts = {"p": (0.6, 0.6, 0.6, 0.6), "q": (0.1,), "r": (0.3, 0.5)}
    runs = [_run("a", [0.0, v], 10.0, c, s) for c, values in starts.items() for s, v in enumerate(values)]
    runs += [_run("b", [0.0, 0.0], 10.0, c, s) for c, values in starts.items() for s in range(len(values))]
    row = contrast(summarise(runs, target=0.5)["cells"], "a", "b")
    over = row["tokens"]["area"]["over_checkpoints"]
    expected = stats.ttest_1samp([0.3, 0.05, 0.2], 0.0).confidence_interval(0.95)
    assert (over["low"], over["high"]) == pytest.approx((expected.low, expected.high))
    assert (over["value"], over["n"]) == (pytest.approx(0.55 / 3), 3)
    assert over_warm_starts(row["tokens"]["area"]) == "+0.183 [-0.129, +0.496]"


def test_held_out_accuracy_is_compared_after_training_where_every_run_measured_it():
    def measured(variant: str, seed: int, before: float, after: float) -> Run:
        result = {when: {how: {"value": v} for how in HELD_OUT} for when, v in (("before", before), ("after", after))}
        run = _run(variant, [0.0, 0.1], 10.0, seed=seed)
        return replace(run, held_out=held_out_of(result))

    runs = [
        measured("a", 0, 0.1, 0.5),
        measured("a", 1, 0.2, 0.4),
        measured("b", 0, 0.1, 0.2),
        measured("b", 1, 0.2, 0.5),
    ]
    summary = summarise(runs, target=0.5)
    greedy = summary["variants"]["a"]["held_out"]["greedy"]
    assert [greedy[when]["value"] for when in ("before", "after", "gain")] == pytest.approx([0.15, 0.45, 0.3])
    difference = contrast(summary["cells"], "a", "b")["held_out"]["sampled"]
    assert difference["value"] == pytest.approx((0.3 - 0.1) / 2)
    assert (difference["wins"], difference["losses"]) == (1, 1)

    bare = summarise([*runs, _run("b", [0.0, 0.1], 10.0, seed=2)], target=0.5)
    assert bare["variants"]["a"]["held_out"] and bare["variants"]["b"]["held_out"] is None
    assert contrast(bare["cells"], "a", "b")["held_out"]  # of the two units that both have run
    assert held_out_of({"before": None, "after": None}) is None


STUDY: dict[str, Any] = {
    "common": {"steps": 3, "prompts": 2, "train_problems": 16, "eval_problems": 8},
    "checkpoints": {"base": SMALL["model"]},
    "dials": {"four": "chains:steps=4,hard=2", "three": "chains:steps=3,hard=1"},
    "variants": {"grpo": {"method": "grpo"}, "oracle": {"method": "oracle-srpo", "seed_policy": "intact"}},
    "studies": {
        "main": {"dials": ["four"], "variants": ["grpo", "oracle"], "seeds": {"base": [0, 1]}},
        "map": {"dials": ["three", "four"], "variants": ["grpo", "oracle"], "seeds": {"base": [0]}},
    },
    "tune": {"dial": "four", "learning_rates": [0.0003, 0.001], "seeds": {"base": [100]}},
    "contrasts": {"Do resets pay <here>?": [["oracle", "grpo"]]},
}


def _config(folder: Path, *words: str, **changes: Any) -> CompareConfig:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    given = ["--config", str(file), "--output", str(folder / "out"), "--jobs", "1", *words]
    return config_from_args(CompareConfig, given, "llm.compare")


def test_studies_share_their_cells_and_commands_make_the_configs(tmp_path: Path):
    cells = plan(_config(tmp_path), {"grpo": 0.001, "oracle": 0.0003})
    assert len(cells) == 2 * 2 + 2  # seed 0 of the dial "four" is in both studies
    assert len({cell.folder.path for cell in cells}) == len(cells)
    for cell in cells:
        expected = STUDY["common"] | STUDY["variants"][cell.variant]
        expected |= {"seed": cell.seed, "task": STUDY["dials"][cell.dial], "threads": 1}
        expected |= {"learning_rate": {"grpo": 0.001, "oracle": 0.0003}[cell.variant]}
        assert {name: getattr(cell.config, name) for name in expected} == expected


def test_a_variant_with_a_learning_rate_of_its_own_is_not_tuned(tmp_path: Path):
    given = {"grpo": {"method": "grpo", "learning_rate": 0.002}, "oracle": STUDY["variants"]["oracle"]}
    config = _config(tmp_path, variants=given)
    assert {variant for variant, _ in _tuning_cells(config)} == {"oracle"}
    rates = {(c.variant, c.config.learning_rate) for c in plan(config, {"oracle": 0.0003})}
    assert rates == {("grpo", 0.002), ("oracle", 0.0003)}


def test_a_comparison_runs_resumes_and_reports(tmp_path: Path):
    result = main(_config(tmp_path))
    out = tmp_path / "out"
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["dials"]["four"]["variants"]["oracle"]["units"] == 2
    assert result["dials"]["three"]["contrasts"]["Do resets pay <here>?"][0]["units"] == [["base", 0]]

    weights = Path(SMALL["model"]) / "model.safetensors"
    assert result["weights"]["base"] == {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}

    # the learning rate of each method is the better one on the tuning seed, and the cells use it
    folder = out / "cells/four/oracle/base-s1"
    best = float(max(result["tuning"]["oracle"], key=lambda rate: result["tuning"]["oracle"][rate]))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["learning_rate"] == best

    # a cell is the very run that llm.train makes, here in this process and with the cell's own command
    cell = next(c for c in plan(_config(tmp_path), {"oracle": best}) if c.folder.path == folder)
    again = config_from_args(TrainConfig, [*cell.words[:-1], str(tmp_path / "again")], "llm.train")
    train(again)
    assert (tmp_path / "again/metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()

    # the report needs nothing but itself
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3  # the map, and one question on each of two dials
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "Do resets pay &lt;here&gt;?" in page
    cell = json.loads((folder / "result.json").read_text())
    assert result["dials"]["four"]["cells"][3]["held_out"]["sampled"]["after"] == cell["after"]["sampled"]["value"]
    assert page.count("Held-out accuracy, before and after all steps") == 2
    assert all(command.replace("'", "&#x27;") in page for command in result["commands"])
    assert sum("/tuning/" in command for command in result["commands"]) == 4
    assert "6 evaluation runs" in page

    # resume: what is finished stays, what was interrupted ends as before, what was added is run
    kept, broken = out / "cells/four/grpo/base-s0", out / "cells/four/grpo/base-s1"
    before, stamp = (broken / "metrics.jsonl").read_bytes(), (kept / "result.json").stat().st_mtime_ns
    (broken / "result.json").unlink()
    with pytest.raises(ConfigError, match="--resume"):
        main(_config(tmp_path))
    studies = STUDY["studies"] | {"more": {"dials": ["four"], "variants": ["grpo"], "seeds": {"base": [2]}}}
    asked = (out / "config.yaml").read_bytes()
    with alone_in(out), pytest.raises(ConfigError, match="another process is at work"):
        main(_config(tmp_path, "--resume", studies=studies))
    assert (out / "config.yaml").read_bytes() == asked
    more = main(_config(tmp_path, "--resume", studies=studies))
    assert (kept / "result.json").stat().st_mtime_ns == stamp
    assert (broken / "metrics.jsonl").read_bytes() == before
    assert more["dials"]["four"]["variants"]["grpo"]["units"] == 3
    assert more["dials"]["four"]["contrasts"] == result["dials"]["four"]["contrasts"]
    asked = (out / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="was run with prompts=2, not 3; change the comparison's config back"):
        main(_config(tmp_path, "--resume", common=STUDY["common"] | {"prompts": 3}))
    assert (out / "config.yaml").read_bytes() == asked
    (kept / "weights.json").write_text('{"tiny/model.safetensors": "other"}')
    with pytest.raises(ConfigError, match=r"the weights are not those that .*base-s0 began with"):
        main(_config(tmp_path, "--resume"))


def test_a_training_run_is_not_resumed_as_a_comparison(tmp_path: Path):
    file = Path(_config(tmp_path).output) / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("method: srpo\n")
    with pytest.raises(ConfigError, match="holds no comparison to resume"):
        main(_config(tmp_path, "--resume"))
    assert file.read_text() == "method: srpo\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {}}, "variants is empty"),
        ({"variants": STUDY["variants"] | {"a b": {}}}, "letters, digits"),
        ({"common": {"seed": 3}}, "seed is set for each cell"),
        ({"common": {"stepz": 3}}, "--stepz"),
        ({"variants": {"grpo": {"method": "grpoo"}, "oracle": {}}}, "unknown method 'grpoo'"),
        ({"studies": {"main": {"dials": ["four"]}}}, "study main must hold dials, variants, seeds"),
        (
            {"studies": {"main": {"dials": ["five"], "variants": ["grpo"], "seeds": {"base": [0]}}}},
            "'five', which is not among the dials: four, three",
        ),
        ({"tune": STUDY["tune"] | {"seeds": {"base": [1]}}}, "seed 1 is used for tuning and for evaluation"),
        ({"contrasts": {"q": [["oracle", "rrpo"]]}}, "must be two variants of the studies"),
        ({"checkpoints": {"base": "no/such/folder"}}, "no model folder no/such/folder"),
        ({"dials": "four"}, "dials must be a mapping"),
        ({"dials": {"four": "chainz", "three": "chains"}}, "unknown task 'chainz'"),
        ({"variants": {"grpo": None, "oracle": {}}}, "grpo must be a mapping of options"),
        (
            {"variants": STUDY["variants"] | {"grpo": {"ratio": False, "clip": 0.2}}},
            "grpo on four: clip bounds the ratio",
        ),
        ({"tune": STUDY["tune"] | {"learning_rates": []}}, "learning_rates of tune must be a list that is not empty"),
        ({"tune": STUDY["tune"] | {"learning_rates": [1e-3, "fast"]}}, "must be positive numbers, got 'fast'"),
        ({"tune": STUDY["tune"] | {"seeds": {}}}, "seeds of tune must map checkpoints"),
        (
            {"studies": {"main": {"dials": ["four"], "variants": ["grpo"], "seeds": {"base": 3}}}},
            "seeds of study main must map checkpoints",
        ),
        (
            {"studies": {"main": {"dials": ["four"], "variants": ["grpo"], "seeds": {"base": [-1]}}}},
            "seeds of study main must map checkpoints to lists of seeds from 0 on",
        ),
        ({"contrasts": {"q": None}}, "contrast 'q' must be a list of pairs"),
    ],
    ids=str,
)
def test_a_mistake_gets_one_line_before_anything_is_made(changes, words, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        main(_config(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_mistake_that_a_run_meets_is_one_line_and_the_rest_is_in_its_log(tmp_path: Path):
    config = _config(tmp_path, variants={"grpo": {"method": "grpo"}, "oracle": {"method": "rrpo", "split": "4/1"}})
    cell = next(cell for cell in plan(config, {}) if cell.variant == "oracle")
    log = tmp_path / "cell.log"
    failure = _logged(_run_cell, (cell,), log)
    assert failure is not None and "at least 2" in failure and "\n" not in failure
    assert "ConfigError" in log.read_text()


@pytest.mark.parametrize(
    "name", ["quick", "full", "ablations", "confirm", "wide", "localisers", "tuned", "smollm2", "smollm2-gpu"]
)
def test_the_presets_are_valid_and_every_claim_has_its_units(name):
    file = Path(__file__).parent.parent / "configs" / f"compare-{name}.yaml"
    config = config_from_args(CompareConfig, ["--config", str(file), "--output", "nowhere"], "llm.compare")
    cells = plan(config, {})
    assert cells and all(cell.config.prompts * cell.config.steps <= cell.config.train_problems for cell in cells)
    units = {v: {(c.checkpoint, c.seed) for c in cells if c.variant == v} for v in config.variants}
    least = {"quick": (2, 1), "wide": (12, 12), "smollm2": (3, 1), "smollm2-gpu": (3, 1)}.get(name, (10, 3))
    for a, b in (pair for pairs in config.contrasts.values() for pair in pairs):
        both = units[a] & units[b]
        assert len(both) >= least[0] and len({checkpoint for checkpoint, _ in both}) >= least[1], (a, b)


def test_step_cost_counts_discarded_seeds_and_answers(tmp_path: Path):
    small = {name: SMALL[name] for name in ("model", "task", "train_problems")}
    rows = step_cost(StepCostConfig(**small, prompts=4, repeats=2, results=str(tmp_path / "cost.json")))
    assert json.loads((tmp_path / "cost.json").read_text())["rows"] == rows
    by_name = {row["name"]: row for row in rows}
    assert by_name["grpo"]["tokens"]["ratio"] == by_name["grpo"]["wall"]["ratio"] == 1.0
    assert all(row["median"]["rollouts"] - row["median"]["discarded"] == 4 * 8 for row in rows)
    assert by_name["srpo"]["median"]["discarded"] > 0
    assert by_name["srpo intact"]["median"]["discarded"] == by_name["srpo furthest"]["median"]["discarded"] == 0
    assert by_name["srpo intact"]["median"]["localise"] > 0 == by_name["grpo"]["median"]["localise"]
    with pytest.raises(ConfigError, match="unknown method 'srpoo' in only"):
        step_cost(StepCostConfig(**small, only="srpoo", results=str(tmp_path / "cost.json")))


def test_one_unit_has_no_interval():
    assert shown({"value": 0.1, "low": 0.1, "high": 0.1}, "+") == "+0.100"
    assert shown({"value": 0.1, "low": -0.1, "high": 0.2}) == "0.100 [-0.100, 0.200]"


def test_there_are_as_many_workers_as_memory_allows_for_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    big = tmp_path / "big"
    big.mkdir()
    (big / "config.json").write_text("{}")
    with (big / "model.safetensors").open("wb") as file:
        file.truncate(2**30)  # sparse: no byte of it is on the disk
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 48 * 2**30)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    config = _config(tmp_path)
    assert _jobs(replace(config, jobs=0)) == 16
    assert _jobs(replace(config, jobs=0, checkpoints={"base": "warm:7", "big": str(big)})) == 48 // (2 + 20)
    assert _jobs(replace(config, jobs=5)) == 5
