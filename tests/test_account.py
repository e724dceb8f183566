"""The account of a run: sums of its metrics, and the paper's table beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.account import AccountConfig, account, main, paper_accounts
from llm.config import ConfigError
from llm.runs import RunFolder


def _run(folder: Path, method: str, localisation_tokens: int) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"method: {method}\n")
    metrics = {
        "rollouts": 10,
        "discarded_rollouts": 2,
        "localiser_rollouts": 0,
        "tokens": 300,
        "discarded_tokens": 50,
        "localisation_calls": 3,
        "localisation_tokens": localisation_tokens,
        "localiser_tokens": 0,
        "mean_response_tokens": 31.0,
    }
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, **metrics}) + "\n" for i in range(4)))
    timing = [{"step": i, "seconds": s, "tokens": 0} for i, s in enumerate([5.0, 1.0, 1.0, 3.0])]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timing))
    return folder


def test_every_sampled_token_is_in_the_account(tmp_path: Path):
    got = account(RunFolder(_run(tmp_path / "srpo", "srpo", 20)))
    assert (got["method"], got["steps"], got["rollouts"], got["discarded_rollouts"]) == ("srpo", 4, 40, 8)
    assert got["all_tokens"] == 4 * (300 + 20)
    assert got["localisation_share"] == pytest.approx(20 / 320)
    assert got["tokens_per_second"] == pytest.approx(1280 / 10)
    assert got["seconds_per_step"] == 2.0  # the median, so that the first step's warm-up does not count


def test_a_step_that_a_kill_left_without_a_time_is_not_counted(tmp_path: Path):
    folder = _run(tmp_path / "srpo", "srpo", 20)
    lines = (folder / "timing.jsonl").read_text().splitlines(keepends=True)
    (folder / "timing.jsonl").write_text("".join(lines[:3]))
    got = account(RunFolder(folder))
    assert (got["steps"], got["all_tokens"], got["seconds"]) == (3, 3 * 320, 7.0)
    (folder / "timing.jsonl").write_text("")
    with pytest.raises(ConfigError, match="at least one step"):
        account(RunFolder(folder))


def test_runs_are_set_beside_each_other_and_beside_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [_run(tmp_path / "grpo", "grpo", 0), _run(tmp_path / "srpo", "srpo", 30)]
    main(AccountConfig(" ".join(map(str, runs))))
    shown = capsys.readouterr().out
    assert "1320 (1.10)" in shown  # all tokens of srpo, and per step relative to grpo
    assert "8.75 (1.08)" in shown and "5.21 (1.51)" in shown  # the paper's SRPO


def test_the_paper_s_ratios_are_those_that_it_states():
    grpo, _, srpo = paper_accounts()
    assert srpo["train_h"] / grpo["train_h"] == pytest.approx(1.51, abs=0.005)
    assert srpo["tokens_m"] / grpo["tokens_m"] == pytest.approx(1.08, abs=0.005)


@pytest.mark.parametrize("runs", ["", "no/such/run"])
def test_a_mistake_gets_one_line(runs):
    with pytest.raises(ConfigError, match="run") as caught:
        main(AccountConfig(runs))
    assert "\n" not in str(caught.value)
