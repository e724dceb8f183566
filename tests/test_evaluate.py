"""Evaluation against a scripted model whose accuracy is known, killed and resumed, and from the command line."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import llm.evaluate
from llm.config import ConfigError, config_from_args, run_command
from llm.evaluate import EvaluateConfig, find_subject, main
from llm.paper import paper_means, paper_model, paper_numbers
from llm.runs import alone_in
from llm.tasks import TaskError
from llm.tiny.tokenizer import build_tokenizer
from tests.scripted import ScriptedConfig, ScriptedLM, TreeTask, tree_tokenizer

DEPTH, ACTIONS, RIGHT = 2, 2, (1, 0)
P_RIGHT = 0.6
"""Of each of the two steps, so a sample is right with probability 0.36 and the greedy response always."""

CONFIG = EvaluateConfig(
    model="scripted",
    tasks="tree",
    problems=10,
    samples=4,
    temperature=1.0,
    top_p=1.0,
    max_tokens=DEPTH,
    max_thoughts=DEPTH,
    batch=3,
    seed=5,
)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`llm.evaluate` with the scripted tree for a model and a task."""
    theta = np.zeros((DEPTH, ACTIONS ** (DEPTH - 1), ACTIONS))
    theta[0, 0, 1] = theta[1, 1, 0] = np.log(P_RIGHT / (1 - P_RIGHT))
    model = ScriptedLM(ScriptedConfig(depth=DEPTH, actions=ACTIONS))
    model.load_theta(theta)
    monkeypatch.setattr(llm.evaluate, "load_model", lambda name, dtype: (model, tree_tokenizer(ACTIONS)))
    monkeypatch.setattr(llm.evaluate, "load_task", lambda spec: TreeTask(RIGHT, name=spec))


def llama(folder: Path) -> Path:
    """A random model of the kind of the embedded one."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("scripted")
def test_greedy_accuracy_and_pass_at_k_cover_the_known_values(tmp_path: Path) -> None:
    config = replace(CONFIG, problems=400, samples=8, batch=100, output=str(tmp_path / "out"))
    measured = main(config)["tasks"]["tree"]
    assert measured["greedy"]["value"] == 1.0
    q = P_RIGHT**2
    for k in (1, 2, 4, 8):
        interval, true = measured["pass_at_k"][str(k)], 1 - (1 - q) ** k
        # 3,200 samples: the widest interval (k = 8) has a standard error of .0083; four intervals at 95% with one
        # fixed seed may miss, so the bound is two half-widths
        half = (interval["high"] - interval["low"]) / 2
        assert abs(interval["value"] - true) < 2 * half
        assert half < 0.05


@pytest.mark.usefixtures("scripted")
def test_the_result_the_table_and_the_problems_hold_the_same_numbers(tmp_path: Path) -> None:
    result = main(replace(CONFIG, output=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    rows = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in rows] == list(range(10))
    solved = [sum(s["value"] == 1 for s in row["samples"]) / 4 for row in rows]
    assert result["tasks"]["tree"]["pass_at_k"]["1"]["value"] == pytest.approx(np.mean(solved))
    with (tmp_path / "out" / "table.csv").open() as file:
        table = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert table == {
        "greedy": 1.0,
        "score": 1.0,
        **{f"pass@{k}": pytest.approx(result["tasks"]["tree"]["pass_at_k"][str(k)]["value"]) for k in (1, 2, 4)},
    }


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("calls_before_the_kill", [0, 3, 5])
def test_a_killed_evaluation_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before_the_kill: int
) -> None:
    config = replace(CONFIG, tasks="tree twin")
    whole = main(replace(config, output=str(tmp_path / "whole")))

    killed = tmp_path / "killed"
    calls = iter(range(100))
    score = TreeTask.score

    def dying(self: TreeTask, problems: Any, responses: Any) -> Any:
        if next(calls) == calls_before_the_kill:
            raise KeyboardInterrupt
        return score(self, problems, responses)

    with monkeypatch.context() as patch:
        patch.setattr(TreeTask, "score", dying)
        with pytest.raises(KeyboardInterrupt):
            main(replace(config, output=str(killed)))
    file = killed / "problems.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == calls_before_the_kill // 2 * 3  # two calls a batch of three problems
    cut = "".join(lines[:-1]) + (lines[-1][:40] if lines else "")  # and the last line was cut off as it was written
    file.write_text(cut)

    resumed = main(replace(config, output=str(killed), resume=True))
    assert resumed == whole
    by_place = sorted(file.read_text().splitlines(), key=lambda line: (json.loads(line)["task"] == "twin", line))
    expected = (tmp_path / "whole" / "problems.jsonl").read_text().splitlines()
    assert sorted(by_place) == sorted(expected)


@pytest.mark.usefixtures("scripted")
def test_a_finished_evaluation_that_is_resumed_samples_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, output=str(tmp_path / "out"))
    first = main(config)
    monkeypatch.setattr(TreeTask, "score", lambda *args: pytest.fail("sampled again"))
    assert main(replace(config, resume=True)) == first


@pytest.mark.usefixtures("scripted")
def test_more_samples_leave_the_first_samples_and_the_greedy_responses_as_they_were(tmp_path: Path) -> None:
    main(replace(CONFIG, samples=2, output=str(tmp_path / "two")))
    main(replace(CONFIG, samples=6, batch=5, output=str(tmp_path / "six")))
    two, six = (
        [json.loads(line) for line in (tmp_path / name / "problems.jsonl").read_text().splitlines()]
        for name in ("two", "six")
    )
    assert [row["samples"] for row in two] == [row["samples"][:2] for row in six]
    assert [row["greedy"] for row in two] == [row["greedy"] for row in six]


@pytest.mark.usefixtures("scripted")
def test_a_resume_with_another_config_and_a_used_folder_are_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, output=str(tmp_path / "out"))
    main(config)
    before = (tmp_path / "out" / "result.json").read_text()
    with pytest.raises(ConfigError, match="was run with samples=4, not 5"):
        main(replace(config, samples=5, resume=True))
    with pytest.raises(ConfigError, match="exists; give another --output, or --resume"):
        main(config)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        main(replace(config, output=str(tmp_path / "none"), resume=True))
    with alone_in(tmp_path / "out"), pytest.raises(ConfigError, match="another process is at work"):
        main(replace(config, resume=True))
    assert (tmp_path / "out" / "result.json").read_text() == before


def test_an_evaluation_is_not_resumed_with_other_weights(tmp_path: Path) -> None:
    """What was answered before a model was trained on, and what after, would be mixed without a word."""
    model = llama(tmp_path / "model")
    config = EvaluateConfig(model=str(model), tasks="chains", problems=2, max_tokens=8, output=str(tmp_path / "out"))
    main(config)
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"the weights are not those that .*out began with"):
        main(replace(config, resume=True))


@pytest.mark.usefixtures("scripted")
def test_the_papers_table_stands_beside_one_of_its_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, model="Qwen/Qwen2.5-14B-Instruct", tasks="lvl5 tree", output=str(tmp_path / "out"))
    tasks = main(config)["tasks"]
    assert {n["method"]: n["mean"] for n in tasks["lvl5"]["paper"]}["SRPO"] == 55.2
    assert tasks["tree"]["paper"] == []
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in ("SRPO", "0.552", "other draws"))
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "paper, SRPO"]
    assert [row["task"] for row in rows] == ["lvl5"]
    assert (float(rows[0]["value"]), float(rows[0]["sd"])) == pytest.approx((0.552, 0.007))


def test_the_papers_models_are_known_by_the_last_part_of_their_name() -> None:
    assert paper_model("/models/qwen2.5-14b-instruct/") == "Qwen2.5-14B-Instruct"
    assert paper_model("allenai/Olmo-3-7B-Instruct") == "OLMo-3-7B-Instruct"
    assert paper_model("Qwen/Qwen2.5-7B-Instruct") is None
    assert paper_numbers("tiny", "lvl5") == []


def test_the_default_split_of_the_ablation_table_is_srpo_of_the_main_table():
    benchmarks = ("oly", "hmmt", "lvl5", "stra", "ace", "chem", "bio", "csqa", "mat", "phys")
    for model in ("OLMo-3-7B-Instruct", "Qwen2.5-14B-Instruct"):
        srpo = [n.mean for b in benchmarks for n in paper_numbers(model, b) if n.method == "SRPO"]
        assert paper_means("table6_splits")[model, "1x4"] == pytest.approx(np.mean(srpo))


def test_the_papers_means_over_benchmarks_are_those_of_its_table() -> None:
    benchmarks = ("oly", "hmmt", "lvl5", "stra", "ace", "chem", "bio", "csqa", "mat", "phys")

    def mean(model: str, method: str) -> float:
        cells = [n.mean for b in benchmarks for n in paper_numbers(model, b) if n.method == method]
        assert len(cells) == 10
        return round(float(np.mean(cells)), 1)

    assert [mean("Qwen2.5-14B-Instruct", m) for m in ("Base", "GRPO", "RRPO", "SRPO")] == [37.5, 37.6, 41.5, 43.2]
    assert [mean("OLMo-3-7B-Instruct", m) for m in ("Base", "GRPO", "RRPO", "SRPO")] == [40.1, 43.9, 40.7, 47.3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": 0}, "problems must be at least 1"),
        ({"samples": -1}, "samples must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"resume": True, "output": ""}, "--resume needs --output"),
        ({"model": "./no/such/model"}, "no model folder"),
    ],
)
def test_a_bad_setting_gives_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main(replace(CONFIG, **{"tasks": "chains", "output": str(tmp_path / "out"), **changes}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_and_too_many_problems_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="unknown task 'nonsense'"):
        main(replace(CONFIG, tasks="chains nonsense", output=str(tmp_path / "out")))
    with pytest.raises(TaskError, match="ask for fewer"):
        main(replace(CONFIG, tasks="chains:steps=1,hard=0", problems=500, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_benchmark_smaller_than_asked_is_evaluated_whole(tmp_path: Path) -> None:
    rows = Path(__file__).parent / "data" / "rows" / "own.jsonl"
    arguments = ["--model", str(llama(tmp_path / "model")), "--tasks", f"jsonl:{rows},eval_share=0.6", "--samples", "2"]
    arguments += ["--output", str(tmp_path / "out"), "--threads", "1"]
    result = main(config_from_args(EvaluateConfig, arguments, "llm.evaluate"))
    (summary,) = result["tasks"].values()
    assert summary["problems"] == 3
    assert summary["greedy"]["n"] == 3


def test_the_command_line_evaluates_a_model_folder_and_shortens_responses_to_its_context(tmp_path: Path) -> None:
    arguments = ["--model", str(llama(tmp_path / "model")), "--tasks", "chains:steps=2,hard=1 chains_words"]
    arguments += ["--problems", "2", "--output", str(tmp_path / "out"), "--threads", "1", "--max-thoughts", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llm.evaluate", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command(main, EvaluateConfig, "llm.evaluate")
    assert ended.value.code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {spec: task["problems"] for spec, task in result["tasks"].items()} == {
        "chains:steps=2,hard=1": 2,
        "chains_words": 2,
    }
    assert result["tasks"]["chains:steps=2,hard=1"]["greedy"]["n"] == 2


def test_a_response_length_that_does_not_fit_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exceeds the model's context of 128"):
        main(replace(CONFIG, model=str(llama(tmp_path / "model")), tasks="chains", max_tokens=200, output=""))


def adapter(folder: Path, base: Path) -> Path:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_evaluated_on_the_model_it_was_trained_on(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    subject = find_subject(str(adapter(tmp_path / "adapter", base)))
    assert (subject.base, subject.run) == (str(base), None)
    ids = torch.tensor([[5, 6, 7]])
    adapted, _ = llm.evaluate.load_subject(subject, "float32")
    plain, _ = llm.evaluate.load_subject(find_subject(str(base)), "float32")
    assert not torch.allclose(adapted(ids).logits, plain(ids).logits)
    config = replace(CONFIG, tasks="chains", samples=0, problems=2, max_tokens=20, max_thought_tokens=10)
    main(replace(config, model=str(tmp_path / "adapter"), output=str(tmp_path / "out")))
    assert (tmp_path / "out" / "result.json").is_file()


def fake_run(folder: Path, **config: Any) -> Path:
    """A run's folder as `llm.train` leaves it, with a random model."""
    folder.mkdir()
    lengths = {"max_tokens": 24, "max_thoughts": 3, "max_thought_tokens": 8}
    settings = {"model": "tiny", "task": "chains:steps=2,hard=1", "train_problems": 20, "seed": 0, **lengths, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_a_run_is_evaluated_on_its_own_task_with_its_own_lengths(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    llama(run / "model")
    result = main(EvaluateConfig(model=str(run), problems=4, output=str(tmp_path / "out"), threads=1))
    assert list(result["tasks"]) == ["chains:steps=2,hard=1"]
    assert result["training_questions_checked"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert max(row["greedy"]["tokens"] for row in rows) <= 24


def test_a_run_without_a_model_says_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run without a trained model"):
        find_subject(str(fake_run(tmp_path / "run")))


def test_a_run_is_not_evaluated_on_questions_it_was_trained_on(tmp_path: Path) -> None:
    rows = Path(__file__).parent / "data" / "rows" / "own.jsonl"
    run = fake_run(tmp_path / "run", task=f"jsonl:{rows},eval_share=0.2", train_problems=4)
    llama(run / "model")
    with pytest.raises(TaskError, match="evaluation question"):
        main(EvaluateConfig(model=str(run), tasks=f"jsonl:{rows},eval_share=0.8", output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
