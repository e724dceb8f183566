"""The supervised warm start: masked prompts, the sampler's tokens, a falling loss, a folder that trains on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import SMALL

from llm.config import ConfigError
from llm.evaluate import Subject
from llm.runs import open_run
from llm.setup import TINY, load_model, prompts_of
from llm.sft import Row, SFTConfig, collate, main, row_loss, teacher_rows
from llm.tasks import TaskError, load_task
from llm.tasks.base import Problem
from llm.tasks.dials import split_of
from llm.tasks.teaching import solution
from llm.thoughts import THOUGHT_END, BarePrompts, InstructPrompts, ThoughtWatch
from llm.train import TrainConfig
from llm.train import main as train

FAST: dict[str, Any] = {
    "model": str(TINY),
    "tasks": "chains:steps=3,hard=2 chains:steps=4,hard=1",
    "updates": 2,
    "batch": 8,
    "micro_rows": 4,
    "learning_rate": 1e-3,
    "eval_problems": 4,
    "max_tokens": 40,
    "threads": 1,
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("sft") / "model"
    return out, main(SFTConfig(**FAST, output=str(out)))


def test_the_loss_falls_and_the_record_holds_config_and_measurements(taught: tuple[Path, dict[str, Any]]) -> None:
    out, result = taught
    assert len(result["losses"]) == 2
    assert result["losses"][1] < result["losses"][0]
    record = json.loads((out / "sft.json").read_text())
    assert record == json.loads(json.dumps(result))
    for when in ("before", "after"):
        assert list(record[when]) == FAST["tasks"].split()
        assert all(m["sampled"]["n"] == 4 and m["readable"]["n"] == 4 for m in record[when].values())


def test_the_folder_loads_and_resets_train_it_on(taught: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    settings = {**SMALL, "model": str(taught[0]), "steps": 1, "eval_problems": 0}
    result = train(TrainConfig(**settings, output=str(tmp_path / "run")))
    assert result["budget"]["rollouts"] > 0


def test_a_lora_warm_start_is_merged_into_a_plain_model_that_differs_from_its_start(tmp_path: Path) -> None:
    out = tmp_path / "model"
    main(SFTConfig(**{**FAST, "eval_problems": 0}, lora=True, lora_rank=4, output=str(out)))
    start, after = (load_model(str(folder), "float32")[0].state_dict() for folder in (TINY, out))
    assert start.keys() == after.keys()
    assert any(not torch.equal(start[name], after[name]) for name in start)


def test_a_localisation_share_of_0_or_1_makes_rows_of_one_kind() -> None:
    tokenizer = load_model(str(TINY), "float32")[1]
    tasks = [load_task("chains:steps=3,hard=2")]
    cue = tokenizer(BarePrompts().cue, add_special_tokens=False)["input_ids"][-1]
    for share in (0.0, 1.0):
        rows = teacher_rows(SFTConfig(**{**FAST, "localisation": share}), tokenizer, BarePrompts(), tasks)
        assert len(rows) == 16
        assert [r.prompt[-1] == cue for r in rows] == [share == 1.0] * 16
        assert all(r.answer[-1] == tokenizer.eos_token_id for r in rows)


def test_rows_are_the_samplers_prompt_and_the_teachers_solution_of_training_problems_only() -> None:
    tokenizer = load_model(str(TINY), "float32")[1]
    task = load_task("chains:steps=3,hard=2")
    rows = teacher_rows(SFTConfig(**{**FAST, "localisation": 0.0}), tokenizer, BarePrompts(), [task])
    for row in rows:
        question = tokenizer.decode(row.prompt).rstrip("\n")
        assert split_of(question) == "train"
        watch = ThoughtWatch()
        for token in row.answer[:-1]:
            watch.push(tokenizer.decode([token]))
        assert watch.over and watch.ends[-1] == len(row.answer) - 1
        thoughts = tokenizer.decode(row.answer[:-1]).split(THOUGHT_END)[:-1]
        start, *names = question.removeprefix("Push ").replace("through ", "").split()
        problem: Problem = task.problem(int(start), [n.partition(":")[2] for n in names])  # type: ignore[attr-defined]
        assert thoughts == solution(task, problem)  # type: ignore[arg-type]


def test_only_the_answers_tokens_are_learned_and_every_row_weighs_the_same() -> None:
    rows = [Row((5, 6, 7), (8, 9)), Row((4,), (10, 11, 12))]
    batch = collate(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [0, 4, 10, 11, 12]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [10, 11, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    assert batch["logits_to_keep"] == 4


def test_the_loss_is_the_models_own_where_the_labels_are_masked_by_hand() -> None:
    model, tokenizer = load_model(str(TINY), "float32")
    tasks = [load_task("chains:steps=3,hard=2"), load_task("chains:steps=5,hard=2")]
    rows = teacher_rows(SFTConfig(**FAST), tokenizer, BarePrompts(), tasks)[:8]
    batch = collate(rows, tokenizer.pad_token_id)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = row_loss(model(**batch).logits, labels)
        for row, loss in zip(rows, found, strict=True):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            masked = torch.tensor([[-100] * len(row.prompt) + list(row.answer)])
            assert model(ids, labels=masked).loss.item() == pytest.approx(loss.item(), abs=1e-4)


def test_prompt_styles_follow_the_template_unless_they_are_named() -> None:
    tokenizer = load_model(str(TINY), "float32")[1]
    assert isinstance(prompts_of(tokenizer, "auto"), BarePrompts)
    with pytest.raises(ConfigError, match="chat template"):
        prompts_of(tokenizer, "instruct")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert isinstance(prompts_of(tokenizer, "auto"), InstructPrompts)
    assert isinstance(prompts_of(tokenizer, "bare"), BarePrompts)


def test_auto_asks_a_trained_model_as_its_run_did_and_runs_older_than_the_field_by_the_template() -> None:
    assert Subject("m", None, {"prompt_style": "bare"}).prompt_style("auto") == "bare"
    assert Subject("m", None, {"prompt_style": "bare"}).prompt_style("instruct") == "instruct"
    assert Subject("m", None, {}).prompt_style("auto") == "auto"


def test_a_run_that_is_older_than_a_field_resumes_with_its_default_only(tmp_path: Path) -> None:
    config = TrainConfig(**SMALL, output=str(tmp_path / "run"))
    open_run(config, tmp_path / "run", resume=False)
    saved = (tmp_path / "run" / "config.yaml").read_text().replace("prompt_style: auto\n", "")
    (tmp_path / "run" / "config.yaml").write_text(saved)
    open_run(config, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="prompt_style='auto', not 'bare'"):
        open_run(replace(config, prompt_style="bare"), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "give --model"),
        ({"tasks": ""}, "give --tasks"),
        ({"output": ""}, "give --output"),
        ({"updates": 0}, "updates must be at least 1"),
        ({"eval_problems": -1}, "eval_problems must not be negative"),
        ({"micro_rows": 3}, "batch must be a multiple of micro_rows"),
        ({"localisation": 1.5}, "localisation must lie in"),
        ({"learning_rate": 0.0}, "learning_rate and temperature must be positive"),
        ({"tasks": "lvl5"}, "task lvl5 writes no solutions"),
    ],
)
def test_bad_fields_get_one_line_before_anything_is_trained(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        main(SFTConfig(**{**FAST, "output": str(tmp_path / "out"), **change}))
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        main(SFTConfig(**FAST, output=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_several_gpus_are_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        main(SFTConfig(model="tiny", output=str(tmp_path / "out"), tasks="chains_words"))
    assert not list(tmp_path.iterdir())


def test_a_run_that_wrote_nothing_does_not_block_the_next(tmp_path: Path):
    with pytest.raises(TaskError, match="unknown task"):
        main(SFTConfig(**FAST | {"tasks": "chainz"}, output=str(tmp_path / "out")))
    with pytest.raises(TaskError, match="unknown task"):
        main(SFTConfig(**FAST | {"tasks": "chainz"}, output=str(tmp_path / "out")))
