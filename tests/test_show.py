"""`llm.show`: what a run's trees say, with and without a terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scripted import actions_of, tree_simulator

from cpi.advantages import ZScore
from cpi.draws import DrawKey
from cpi.groups import Plan, Split, collect, group_advantages
from llm.config import ConfigError, config_from_args
from llm.localize import OracleLocalizer
from llm.show import RESET, WRONG, ShowConfig, main, rollout_rows

RIGHT = (1, 2, 0)
ROOT = Path(__file__).parent.parent


def _step(step: int, base: tuple[int, ...] = (4,), reset: tuple[int, ...] = (4,)):
    """One step of four prompts of the scripted tree, reset by the oracle."""
    _, simulator = tree_simulator(np.random.default_rng(3).normal(size=(3, 9, 3)) * 0.5, RIGHT)
    root = simulator.root(simulator.task.problems("train", 1, 0)[0])
    keys = [DrawKey(seed=2, step=step, prompt=i) for i in range(4)]
    rollouts = collect(simulator, [root] * 4, keys, Plan(Split(base, reset), OracleLocalizer(simulator.task)))
    advantages = group_advantages(rollouts.groups, ZScore(ddof=0, eps=0.0))
    return rollouts, advantages, rollout_rows(step, rollouts, advantages, simulator.task)


def _run(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _shown(run: Path, *options: str, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal, color_system="standard" if terminal else None)
    main(config_from_args(ShowConfig, ["--run", str(run), *options], "llm.show"), console)
    return out.getvalue()


def test_rows_hold_all_rollouts_of_one_prompt_with_a_reset():
    rollouts, advantages, rows = _step(0)
    prompt = _first_reset(rollouts)
    own = [(g, a) for g, a in zip(rollouts.groups, advantages, strict=True) if g.prompt == prompt]
    assert [row["kind"] for row in rows] == ["base"] * 4 + ["reset"] * 4
    assert [row["reward"] for row in rows] == [e.outcome for g, _ in own for e in g.episodes]
    assert [row["advantage"] for row in rows] == np.concatenate([a for _, a in own]).tolist()
    for row in rows[4:]:
        assert row["kept"] == row["seed_first_error"]  # the oracle resets at the first error
        assert row["seed"][: row["kept"]] == row["thoughts"][: row["kept"]]
    for row in rows:
        wrong = [k for k, (t, y) in enumerate(zip(row["thoughts"], RIGHT, strict=True)) if t != str(y)]
        assert row["first_error"] == (wrong[0] if wrong else None)


def _first_reset(rollouts) -> int:
    return next(g.prompt for g in rollouts.groups if g.kind == "reset")


def test_the_tree_says_what_the_rollouts_were(tmp_path: Path):
    rollouts, _, rows = _step(0)
    prompt = _first_reset(rollouts)
    base, reset = (
        next(g for g in rollouts.groups if (g.prompt, g.kind) == (prompt, kind)) for kind in ("base", "reset")
    )
    lines = _shown(_run(tmp_path / "run", rows)).splitlines()
    assert lines[0].startswith("step 0  ?")
    shown = [line for line in lines if "advantage" in line]
    assert len(shown) == 8
    for line, trace in zip(shown[:4], base.episodes, strict=True):
        assert line.replace(WRONG, "").endswith(" | ".join(map(str, actions_of(trace))))
    for line, trace in zip(shown[4:], reset.episodes, strict=True):  # what was inherited is in the seed only
        assert line.replace(WRONG, "").endswith("  " + " | ".join(map(str, actions_of(trace)[reset.k :])))
    (seed,) = [line for line in lines if "seed" in line]
    marked = [str(y) for y in actions_of(reset.seed)]
    marked[reset.k] = WRONG + marked[reset.k]
    marked.insert(reset.k, RESET)
    assert f"reset before thought {reset.k + 1}" in seed
    assert seed.endswith(" | ".join(marked))
    assert f"mean reward {np.mean([e.outcome for e in reset.episodes]):.2f}" in "\n".join(lines)


def test_two_resets_are_two_branches_each_with_its_seed(tmp_path: Path):
    _, _, rows = _step(0, (), (2, 2))
    text = _shown(_run(tmp_path / "run", rows))
    assert text.count("reset group, 2 suffixes") == 2
    assert text.count(RESET.strip() + " ") >= 2 and text.count("seed reset before") == 2


def test_a_step_is_picked_and_all_are_shown_without_one(tmp_path: Path):
    run = _run(tmp_path / "run", _step(0)[2] + _step(5)[2])
    assert [line.split()[1] for line in _shown(run).splitlines() if line.startswith("step")] == ["0", "5"]
    only = _shown(run, "--step", "5")
    assert "step 5" in only and "step 0" not in only


def test_text_of_the_model_is_shown_as_it_is(tmp_path: Path):
    """Brackets are not markup, and long thoughts get lines of their own."""
    row = _step(0)[2][0] | {"thoughts": ["[red]so[/red] x" + " and on" * 20, "b\nc"], "first_error": 0, "kept": 0}
    text = _shown(_run(tmp_path / "run", [row]))
    assert f"{WRONG}[red]so[/red] x and on" in text
    assert "b c" in text


def test_colours_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rich.pager.SystemPager.show", lambda self, content: captured.append(content))
    captured: list[str] = []
    run = _run(tmp_path / "run", _step(0)[2])
    assert "\x1b[" not in _shown(run)
    _shown(run, terminal=True)
    assert "\x1b[31m" in captured[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no run folder", "give the folder"]),
        (["--run", "no/such/run"], ["no/such/run", "give the folder"]),
        (["--run", "tests"], ["holds no rollouts.jsonl"]),
    ],
)
def test_a_mistake_gets_one_line(options, words, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as caught:
        main(config_from_args(ShowConfig, options, "llm.show"))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_an_unrecorded_step_names_the_recorded_ones(tmp_path: Path):
    run = _run(tmp_path / "run", _step(0)[2] + _step(5)[2])
    with pytest.raises(ConfigError, match="step 3 was not recorded; choose one of 0, 5"):
        _shown(run, "--step", "3")


def test_the_command_takes_the_folder_as_its_first_word(tmp_path: Path):
    run = _run(tmp_path / "run", _step(0)[2])
    done = subprocess.run(
        [sys.executable, "-m", "llm.show", str(run), "--step", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0 and "step 0" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "llm.show", "nowhere"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "llm.show: there is no run folder nowhere; give the folder of a run of llm.train"
    ]
