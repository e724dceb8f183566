"""Tasks: what they load, whom they show it to, and what they refuse. All rows here are made up, in the real schemas."""

import base64
import inspect
import json
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.rewards.base import Score
from llm.rewards.worker import WorkerPool
from llm.tasks import TaskError, load_task, refuse_overlap, task_names
from llm.tasks.base import Problem
from llm.tasks.benchmarks import RECIPES, Benchmark
from llm.tasks.jsonl import read_problems
from llm.tasks.livecodebench import pickled_text, private_tests, split_tests
from llm.tasks.options import read_options
from llm.tasks.reasoning_gym_scorer import EVAL_SCORERS, EXPRESSION_SCORERS, score
from llm.tasks.splits import draw, partition, without_duplicates

ROWS = Path(__file__).parent / "data" / "rows"
BENCHMARK_ROWS = {
    "oly": ROWS / "oly.jsonl",
    "hmmt": ROWS / "hmmt.jsonl",
    "lvl5": ROWS / "lvl5",
    "stra": ROWS / "stra.jsonl",
    "ace": ROWS / "ace.jsonl",
    "chem": ROWS / "sciknoweval.jsonl",
    "bio": ROWS / "sciknoweval.jsonl",
    "csqa": ROWS / "csqa.jsonl",
    "mat": ROWS / "sciknoweval.jsonl",
    "phys": ROWS / "sciknoweval.jsonl",
}


def problem(question: str, **meta: Any) -> Problem:
    return Problem(f"uid of {question}", question, "1", meta)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def load_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / name).read_text("utf-8").splitlines()]


# --- names and options -----------------------------------------------------------------------------------------------


def test_an_unknown_task_is_refused_in_one_line_that_lists_the_valid_ones() -> None:
    with pytest.raises(TaskError) as caught:
        load_task("chians")
    assert "\n" not in str(caught.value)
    for name in task_names():
        assert name in str(caught.value)


def test_the_ten_benchmarks_are_those_of_the_papers_table() -> None:
    table = Path(__file__).parents[1] / "llm" / "paper_tables" / "table3_main.csv"
    names = list(dict.fromkeys(line.split(",")[2] for line in table.read_text().splitlines()[1:]))
    assert names == list(RECIPES)
    assert set(names) < set(task_names())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lvl5@", "give a path"),
        ("lvl5:steps=3", "NAME or NAME@PATH"),
        ("lvl5@/no/such/rows.jsonl", "no file or folder /no/such/rows.jsonl"),
        ("jsonl:", "give a file"),
        ("jsonl:/no/such/file.jsonl", "no file /no/such/file.jsonl"),
        ("reasoning_gym", "reasoning_gym:NAME"),
        ("reasoning_gym:chain_sums", "no task 'chain_sums'; it has: "),
        ("reasoning_gym:chain_sum,terms=2", "no option 'terms'; it has: min_terms"),
        ("reasoning_gym:chain_sum,seed=2", "no option 'seed'"),
        ("reasoning_gym:chain_sum,min_terms=0", "refuses these options"),
        ("code@,tests_seed=1", "write code, code@PATH"),
        ("code@x,tests_seed=one", "wrong type"),
        ("code@x,allow_unisolated=yes", "wrong type"),
        ("chains:depth=3", "no dial 'depth'"),
        ("chains:steps=8,steps=9", "'steps' is given twice"),
        ("chains,steps=3", "dials are written chains:NAME=VALUE"),
        ("ledger_words@rows", "dials are written ledger_words:NAME=VALUE"),
        ("code:tests_seed=1", "write code, code@PATH"),
        ("code,tests_seed=-1", "must not be negative"),
    ],
)
def test_a_bad_spec_gives_one_line_that_says_what_to_do(spec: str, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(spec).problems("eval", 1, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_keep_commas_inside_brackets() -> None:
    assert read_options("a,b=1,c=[2, 3],d=x", None) == ("a", {"b": 1, "c": [2, 3], "d": "x"})


@pytest.mark.parametrize("spec", ["a,b", "a,b=1,b=2", "a,=1"])
def test_options_that_cannot_be_read_are_refused(spec: str) -> None:
    with pytest.raises(TaskError):
        read_options(spec, None)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_partition_is_disjoint_whole_and_independent_of_the_order_of_rows() -> None:
    problems = [problem(f"question {i}") for i in range(40)]
    train, evaluation = partition(problems, 15)
    shuffled = [problems[i] for i in np.random.default_rng(0).permutation(40)]
    assert partition(shuffled, 15) == (train, evaluation)
    assert len(evaluation) == 15
    assert {p.uid for p in train} | {p.uid for p in evaluation} == {p.uid for p in problems}
    assert not {p.uid for p in train} & {p.uid for p in evaluation}


def test_a_question_that_differs_in_white_space_or_unicode_form_only_is_a_duplicate() -> None:
    same = [problem("x² + 1"), problem("x2  +\n1 "), problem("x2 + 2")]
    assert without_duplicates(same) == [same[0], same[2]]


def test_a_draw_is_a_function_of_its_seed_and_a_larger_one_begins_with_the_smaller() -> None:
    problems = [problem(f"question {i}") for i in range(50)]
    small, large = draw(problems, 10, 3, "it"), draw(problems, 30, 3, "it")
    assert large[:10] == small
    assert len({p.uid for p in large}) == 30
    assert draw(problems, 10, 4, "it") != small


def test_more_problems_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(TaskError, match="the split has only 3 problems, 4 were asked for"):
        draw([problem(str(i)) for i in range(3)], 4, 0, "the split")


def test_overlap_of_training_and_evaluation_is_refused_with_the_first_pair() -> None:
    train, evaluation = [problem("a"), problem("b  c")], [problem("d"), problem("b c")]
    with pytest.raises(TaskError, match=re.escape("1 evaluation question(s) are also training questions")) as caught:
        refuse_overlap(train, evaluation)
    assert "uid of b  c = uid of b c" in str(caught.value)
    refuse_overlap(train, [problem("d")])


def test_the_same_code_question_with_other_tests_is_no_overlap() -> None:
    refuse_overlap([problem("q", tests="reward")], [problem("q", tests="held-out")])
    with pytest.raises(TaskError):
        refuse_overlap([problem("q", tests="reward")], [problem("q", tests="reward")])
    with pytest.raises(TaskError):
        refuse_overlap([problem("q")], [problem("q", tests="held-out")])
    twice = [problem("q", tests="reward", tests_seed=0), problem("q", tests="reward", tests_seed=1)]
    with pytest.raises(TaskError, match="1 evaluation question"):
        refuse_overlap(twice, [problem("q", tests="held-out", tests_seed=0)])


# --- own JSONL -------------------------------------------------------------------------------------------------------


def test_jsonl_splits_are_disjoint_and_cover_the_file() -> None:
    task = load_task(f"jsonl:{ROWS / 'own.jsonl'}")
    train, evaluation = task.problems("train", 4, 0), task.problems("eval", 1, 0)
    assert {p.question for p in train + evaluation} == {row["question"] for row in load_rows("own.jsonl")}
    refuse_overlap(train, evaluation)


def test_jsonl_numbers_become_texts_and_other_fields_are_kept() -> None:
    by_question = {p.question: p for p in read_problems(ROWS / "own.jsonl")}
    assert by_question["What is 5 * 5?"].answer == "25"
    assert by_question["What is one half as a fraction?"].meta == {"source": "made up"}


def test_jsonl_first_error_counts_from_one_and_stops_at_the_last_thought() -> None:
    task = load_task(f"jsonl:{ROWS / 'own.jsonl'}")
    known = Problem("u", "q", "1", {"first_error": 2})
    assert task.first_error(known, ["a", "b", "c"]) == 1
    assert task.first_error(known, ["a"]) == 0
    assert task.first_error(known, []) is None
    assert task.first_error(Problem("u", "q", "1"), ["a"]) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "x"}', "line 2: no field 'answer' (there is: question)"),
        ('{"answer": "x"}', "line 2: no field 'question'"),
        ("{not json", "line 2: not JSON"),
        ("[1, 2]", "line 2: expected an object"),
        ('{"question": " ", "answer": "1"}', "line 2: 'question' must be a text"),
        ('{"question": 3, "answer": "1"}', "line 2: 'question' must be a text"),
        ('{"question": "x", "answer": null}', "line 2: 'answer' must be a text or a number, got null"),
        ('{"question": "x", "answer": true}', "line 2: 'answer' must be"),
        ('{"question": "x", "answer": "1", "first_error": "2"}', "line 2: 'first_error' must be the number of a step"),
        ('{"question": "x", "answer": "1", "first_error": 0}', "line 2: 'first_error' counts steps from 1"),
        ('{"question": "first ", "answer": "2"}', "line 2: repeats the question of line 1"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path / "rows.jsonl", {"question": "first", "answer": "1"}, line)
    with pytest.raises(TaskError) as caught:
        load_task(f"jsonl:{file}").problems("train", 1, 0)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("verifier", "good", "bad"),
    [("choice", "(B)", "Paris"), ("yes_no", "Yes.", "maybe"), ("code", "", '{"tests": []}')],
)
def test_an_answer_that_the_verifier_cannot_read_is_named_with_its_line(
    tmp_path: Path, verifier: str, good: str, bad: str
) -> None:
    tests = '{"tests": [{"input": "1", "output": "1", "testtype": "stdin"}]}'
    right = tests if verifier == "code" else good
    file = write(tmp_path / "rows.jsonl", {"question": "a", "answer": right}, {"question": "b", "answer": bad})
    with pytest.raises(TaskError, match=f"line 2: the verifier '{verifier}' cannot compare with the answer '"):
        load_task(f"jsonl:{file},verifier={verifier}").problems("train", 1, 0)
    fine = write(tmp_path / "fine.jsonl", {"question": "a", "answer": right}, {"question": "b", "answer": right})
    assert load_task(f"jsonl:{fine},verifier={verifier}").problems("train", 1, 0)


def test_a_file_that_is_not_utf8_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9", "answer": "1"}\n')
    with pytest.raises(TaskError, match="line 1: not UTF-8"):
        read_problems(tmp_path / "latin.jsonl")
    with pytest.raises(TaskError, match="holds no rows"):
        read_problems(write(tmp_path / "empty.jsonl"))


def test_two_files_that_share_a_question_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"question": "a", "answer": "1"}, {"question": "b", "answer": "1"})
    evaluation = write(tmp_path / "test.jsonl", {"question": " b", "answer": "1"})
    with pytest.raises(TaskError, match="are also training questions"):
        load_task(f"jsonl:{train},eval={evaluation}").problems("train", 1, 0)
    other = write(tmp_path / "other.jsonl", {"question": "c", "answer": "1"})
    assert [p.question for p in load_task(f"jsonl:{train},eval={other}").problems("eval", 1, 0)] == ["c"]


@pytest.mark.parametrize("option", ["eval_share=0", "eval_share=1", "verifier=eval"])
def test_jsonl_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(TaskError):
        load_task(f"jsonl:{ROWS / 'own.jsonl'},{option}")


# --- benchmarks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_benchmark_loads_from_rows_in_its_schema(name: str) -> None:
    task = load_task(f"{name}@{BENCHMARK_ROWS[name]}")
    problems = task.problems("eval", 1, 0)
    assert problems == task.problems("eval", 1, 0)
    assert problems[0].uid.startswith(f"{name}/")
    assert problems[0].question
    assert problems[0].answer
    assert task.first_error(problems[0], ["a"]) is None


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, recipe in RECIPES.items() for field in recipe.fields]
)
def test_a_missing_field_is_named_with_its_benchmark(tmp_path: Path, name: str, field: str) -> None:
    source = "lvl5/algebra/test-00000-of-00001.jsonl" if name == "lvl5" else BENCHMARK_ROWS[name].name
    row = load_rows(source)[0]
    outer, _, inner = field.partition(".")
    if inner:
        del row[outer][inner]
    else:
        del row[outer]
    file = write(tmp_path / "test.jsonl", row)
    with pytest.raises(TaskError) as caught:
        load_task(f"{name}@{file}").problems("eval", 1, 0)
    assert str(caught.value).startswith(f"{name}: {file}, row 1 has no field {field!r}")
    assert "\n" not in str(caught.value)


def test_a_science_row_needs_its_options_only_if_it_is_a_choice(tmp_path: Path) -> None:
    choice, filling = load_rows("sciknoweval.jsonl")[:2]
    filling["choices"] = filling["answerKey"] = None
    assert len(load_task(f"chem@{write(tmp_path / 'a.jsonl', choice, filling)}").problems("eval", 2, 0)) == 2
    del choice["choices"]["text"]
    with pytest.raises(TaskError, match=r"chem: .*row 2 has no field 'choices.text'"):
        load_task(f"chem@{write(tmp_path / 'b.jsonl', filling, choice)}").problems("eval", 1, 0)


def test_a_science_answer_that_is_a_list_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = load_rows("sciknoweval.jsonl")[:2]
    rows[1]["answer"] = ["2", "3"]
    task = Benchmark("chem", write(tmp_path / "rows.jsonl", *rows))
    assert [p.answer for p in task.problems("eval", 1, 0)] == ["A"]
    assert task.skipped == {"with an answer that is no text or number": 1}


def test_a_field_of_another_type_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"question": "Do cats bark?", "answer": "false"})
    with pytest.raises(TaskError, match=r"stra: .* field 'answer' is of type str, not bool"):
        load_task(f"stra@{file}").problems("eval", 1, 0)


def test_olympiad_rows_keep_the_last_box_and_lose_what_cannot_be_verified() -> None:
    task = Benchmark("oly", BENCHMARK_ROWS["oly"])
    answers = {p.question: p.answer for p in task.problems("eval", 3, 0)}
    assert answers == {
        "Find the sum of the first 4 odd numbers.": "16",
        "For which n is n + 1 = 2n?": "\\frac{2}{2}",
        "How many ways are there to order 3 books?": "6",
    }
    assert task.skipped == {"without a boxed answer": 1, "with an answer that is not short and verifiable": 2}


def test_level_five_keeps_the_hubs_splits_and_drops_a_training_question_of_the_test_set() -> None:
    task = load_task(f"lvl5@{ROWS / 'lvl5'}")
    train, evaluation = task.problems("train", 3, 0), task.problems("eval", 4, 0)
    assert sorted(p.answer for p in train) == ["3", "6", "9"]
    assert sorted(p.answer for p in evaluation) == ["10", "4", "4", "\\pi"]
    refuse_overlap(train, evaluation)


def test_choices_become_lettered_lines_and_science_rows_their_own_verifier() -> None:
    csqa = next(p for p in load_task(f"csqa@{ROWS / 'csqa.jsonl'}").problems("eval", 3, 0) if p.answer == "B")
    assert "A. pillow\nB. tin opener\nC. candle\nD. stamp\nE. scarf" in csqa.question
    chem = load_task(f"chem@{ROWS / 'sciknoweval.jsonl'}").problems("eval", 2, 0)
    assert {(p.answer, p.meta["verifier"]) for p in chem} == {("A", "choice"), ("2", "text")}
    stra = load_task(f"stra@{ROWS / 'stra.jsonl'}").problems("eval", 3, 0)
    assert sorted(p.answer for p in stra) == ["no", "no", "yes"]


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_benchmark_scores_its_own_answers_and_others(name: str) -> None:
    task = load_task(f"{name}@{BENCHMARK_ROWS[name]}")
    problems = task.problems("eval", task.size("eval"), 0)
    others = {"yes": "no", "no": "yes", "A": "B", "B": "C", "C": "A", "False": "True"}
    right = [f"So.</thought>\n\\boxed{{{p.answer}}}</thought>" for p in problems]
    wrong = [f"\\boxed{{{others.get(p.answer, '17')}}}" for p in problems]
    assert {s.status for s in task.score(problems, right)} == {"correct"}
    assert {s.status for s in task.score(problems, wrong)} == {"wrong"}
    assert {s.status for s in task.score(problems, ["no box"] * len(problems))} == {"unparsable"}


def test_own_rows_are_scored_by_the_verifier_they_name(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", *({"question": q, "answer": "b"} for q in ("x", "y")))
    problem = Problem("u", "q", "b")
    assert load_task(f"jsonl:{file},verifier=choice").score([problem], ["\\boxed{(B)}"]) == [Score(1.0, "correct")]
    assert load_task(f"jsonl:{file}").score([Problem("u", "q", "1/2")], ["\\boxed{0.5}"]) == [Score(1.0, "correct")]


def test_without_a_split_of_the_hub_the_rest_of_the_evaluation_rows_are_for_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.tasks.benchmarks.EVAL_AT_LEAST", 5)
    task = load_task(f"ace@{ROWS / 'ace.jsonl'}")
    train, evaluation = task.problems("train", 3, 0), task.problems("eval", 5, 1)
    refuse_overlap(train, evaluation)
    assert len({p.uid for p in train + evaluation}) == 8


def test_a_benchmark_too_small_to_train_on_says_so() -> None:
    with pytest.raises(TaskError, match="the train split of hmmt has no problems, 1 were asked for"):
        load_task(f"hmmt@{ROWS / 'hmmt.jsonl'}").problems("train", 1, 0)


def test_parquet_and_json_files_give_the_same_problems_as_json_lines(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    rows = load_rows("csqa.jsonl")
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    expected = load_task(f"csqa@{ROWS / 'csqa.jsonl'}").problems("eval", 3, 0)
    assert load_task(f"csqa@{tmp_path / 'rows.parquet'}").problems("eval", 3, 0) == expected
    assert load_task(f"csqa@{tmp_path / 'rows.json'}").problems("eval", 3, 0) == expected
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(TaskError, match="not a Parquet file"):
        load_task(f"csqa@{tmp_path / 'bad.parquet'}").problems("eval", 1, 0)


def test_rows_of_another_data_set_leave_no_usable_row(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"source": "cn_k12", "problem": "1 + 1?", "solution": "$\\boxed{2}$"})
    with pytest.raises(TaskError, match=r"oly: no usable row .*none is of this benchmark"):
        load_task(f"oly@{file}").problems("eval", 1, 0)


def test_a_copy_of_the_hubs_folder_gives_the_split_that_is_used(tmp_path: Path) -> None:
    text = (ROWS / "csqa.jsonl").read_text()
    (tmp_path / "train-00000.jsonl").write_text(text)
    with pytest.raises(TaskError, match=r"no file of the split validation \(there is: train-00000.jsonl\)"):
        load_task(f"csqa@{tmp_path}").problems("eval", 1, 0)
    (tmp_path / "validation-00000.jsonl").write_text(text.splitlines()[0] + "\n")
    (tmp_path / "test-00000.jsonl").write_text(text)
    task = load_task(f"csqa@{tmp_path}")
    assert isinstance(task, Benchmark) and task.size("eval") == 1
    assert load_task(f"csqa@{tmp_path / 'train-00000.jsonl'}").problems("eval", 3, 0)  # a file is what it is said to be


@pytest.mark.parametrize("name", ["oly", "code"])
def test_without_the_hub_one_line_says_so_and_how_to_give_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(TaskError) as caught:
        load_task(name).problems("eval", 1, 0)
    assert f"{name}: could not load" in str(caught.value)
    assert f"{name}@PATH" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_the_hub_are_streamed_by_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load(hub_id: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        calls.append((hub_id, config, split, streaming))
        return load_rows("lvl5/algebra/test-00000-of-00001.jsonl") if (config, split) == ("algebra", "test") else []

    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(load_task("lvl5").problems("eval", 2, 0)) == 2
    assert len(calls) == 14
    assert calls[0] == ("EleutherAI/hendrycks_math", "algebra", "train", True)


def test_a_streamed_pool_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> Any:
        for i in range(10**9):
            yield {"source": "olympiads", "problem": f"What is {i} + 0?", "solution": f"$\\boxed{{{i}}}$"}

    monkeypatch.setattr("datasets.load_dataset", load)
    task = load_task("oly")
    train, evaluation = task.problems("train", 400, 0), task.problems("eval", 500, 1)
    refuse_overlap(train, evaluation)
    assert len({p.uid for p in train + evaluation}) == 900


# --- LiveCodeBench ---------------------------------------------------------------------------------------------------


def code_task(options: str = "") -> Any:
    return load_task(f"code@{ROWS / 'code.jsonl'}{options}")


def pack(payload: bytes) -> str:
    return base64.b64encode(zlib.compress(payload)).decode()


def test_code_keeps_the_medium_problems_and_their_form() -> None:
    problems = {p.uid: p for p in code_task().problems("train", 2, 0)}
    assert set(problems) == {"code/made_up_a#reward", "code/made_up_c#reward"}
    assert "standard input" in problems["code/made_up_a#reward"].question
    assert "def double" in problems["code/made_up_c#reward"].question


def test_reward_and_held_out_tests_are_disjoint_and_together_all() -> None:
    task = code_task()
    rewards, held_outs = task.problems("train", 2, 0), task.problems("eval", 2, 7)
    refuse_overlap(rewards, held_outs)
    for row in load_rows("code.jsonl"):
        if row["difficulty"] != "medium":
            continue
        reward = next(task.tests(p)["tests"] for p in rewards if row["question_id"] in p.uid)
        held_out = next(task.tests(p)["tests"] for p in held_outs if row["question_id"] in p.uid)
        assert not [test for test in held_out if test in reward]
        public, private = json.loads(row["public_test_cases"]), private_tests(row["private_test_cases"])
        assert len(reward) + len(held_out) == len(public) + len(private)
        assert all(test in reward for test in public)


def test_halves_depend_on_the_tests_seed_and_on_no_other() -> None:
    tests = list(range(20))
    assert split_tests(tests, "q", 0) == split_tests(tests, "q", 0)
    assert split_tests(tests, "q", 0) != split_tests(tests, "q", 1)
    assert split_tests(tests, "q", 0) != split_tests(tests, "r", 0)
    reward, held_out = split_tests(list(range(5)), "q", 0)
    assert (len(reward), len(held_out)) == (2, 3)


def test_tests_of_another_seed_are_an_overlap() -> None:
    """The held-out half of one split holds tests of the other split's reward half."""
    one, other = code_task(), code_task(",tests_seed=1")
    rewards, held_outs = one.problems("train", 2, 0), other.problems("eval", 2, 0)
    rewarded = {p.question: one.tests(p)["tests"] for p in rewards}
    assert any(test in rewarded[p.question] for p in held_outs for test in other.tests(p)["tests"])
    with pytest.raises(TaskError, match=re.escape("2 evaluation question(s) are also training questions")) as caught:
        refuse_overlap(rewards, held_outs, "code")
    assert str(caught.value).endswith("use one tests_seed for both")
    refuse_overlap(other.problems("train", 2, 0), held_outs)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_text_of_any_protocol_is_read(protocol: int) -> None:
    for text in ("", "plain", "ünï çødé \U0001f600\n'\"\\", "x" * 70_000):
        assert pickled_text(pickle.dumps(text, protocol)) == text


class Attack:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "owned"
    payload = pickle.dumps(Attack(target), protocol)
    with pytest.raises(ValueError, match="not a pickled text"):
        private_tests(pack(payload))
    assert not target.exists()
    pickle.loads(payload)  # the attack is real
    assert target.exists()


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps(["a", "list"]),
        pickle.dumps({"a": 1}),
        pickle.dumps(b"bytes"),
        pickle.dumps(7),
        pickle.dumps(None),
        b"",
        b"\x80\x04\x8c",  # breaks off
        b"\x80\x04\x96" + (2**60).to_bytes(8, "little") + b".",  # a bytearray of an exabyte
        b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b".",  # a text of an exabyte
        pickle.dumps("text")[:-1],  # no STOP
        pickle.dumps("text")[:-1] + pickle.dumps("more")[2:],  # two texts
        b"cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_what_is_no_pickled_text_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a pickled text"):
        pickled_text(payload)


def test_a_decompression_bomb_is_stopped_at_its_limit() -> None:
    bomb = pack(b"\0" * 50_000_000)  # 65 KB packed
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="more than 1000000 bytes"):
        private_tests(bomb, limit=1_000_000)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("not base64!", "not base64"),
        (base64.b64encode(b"not zlib").decode(), "not zlib"),
        (base64.b64encode(zlib.compress(b"x" * 1000)[:-6]).decode(), "breaks off"),
        (pack(pickle.dumps("no json")), "not JSON"),
        (pack(pickle.dumps("[" * 100_000)), "not JSON"),
        (pack(pickle.dumps('{"input": "1"}')), "expected a list of tests"),
        (pack(pickle.dumps('[{"input": "1", "output": 2, "testtype": "stdin"}]')), "expected a list of tests"),
    ],
)
def test_private_tests_in_another_form_are_refused(field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        private_tests(field)


GOOD_PROGRAMS = {
    "made_up_a": "print(int(input()) + 1)",
    "made_up_c": "class Solution:\n    def double(self, x):\n        return 2 * x",
}


def test_programs_are_scored_by_the_share_of_their_splits_tests() -> None:
    task = code_task()
    for split, share in (("train", 1 / 3), ("eval", 0.0)):
        problems = task.problems(split, 2, 0)
        programs = [next(code for name, code in GOOD_PROGRAMS.items() if name in p.uid) for p in problems]
        responses = [f"A plan.</thought>\n```python\n{code}\n```\n\\boxed{{done}}</thought>" for code in programs]
        assert task.score(problems, responses) == [Score(1.0, "correct")] * 2
        one = [p for p in problems if "made_up_a" in p.uid]  # 1 -> 2 is its public test, which only the reward sees
        (score,) = task.score(one, ["```python\nprint(2)\n```"])
        assert score.value == pytest.approx(share)


def test_where_nothing_isolates_code_is_not_run_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.rewards.sandbox.Sandbox.describe", refuse_to_isolate)
    task = code_task()
    with pytest.raises(TaskError, match=r"code: no isolation here .*allow_unisolated=True") as caught:
        task.score(task.problems("eval", 1, 0), ["```python\nprint(1)\n```"])
    assert "\n" not in str(caught.value)
    told = load_task(f"code@{ROWS / 'code.jsonl'},allow_unisolated=True")
    assert told.score(told.problems("eval", 1, 0), ["no code"]) == [Score(0.0, "unparsable")]


def refuse_to_isolate(sandbox: Any) -> str:
    from llm.rewards.sandbox import SandboxError

    if sandbox.allow_unisolated:
        return "none"
    raise SandboxError("no isolation here")


def test_a_row_with_hostile_tests_scores_as_an_error_and_runs_nothing(tmp_path: Path) -> None:
    row = load_rows("code.jsonl")[0]
    row["private_test_cases"] = pack(pickle.dumps(Attack(tmp_path / "owned")))
    task = load_task(f"code@{write(tmp_path / 'code.jsonl', row)}")
    problems = task.problems("eval", 1, 0)
    assert task.score(problems, ["```python\nprint(1)\n```"]) == [Score(0.0, "error")]
    with pytest.raises(TaskError, match="made_up_a#held-out: not a pickled text"):
        task.tests(problems[0])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("field", ["question_content", "private_test_cases", "metadata", "difficulty"])
def test_a_code_row_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    row = load_rows("code.jsonl")[0]
    del row[field]
    with pytest.raises(TaskError, match=f"code: .*line 1 has no field '{field}'"):
        load_task(f"code@{write(tmp_path / 'code.jsonl', row)}").problems("eval", 1, 0)


# --- reasoning-gym ---------------------------------------------------------------------------------------------------

SMALL_SUMS = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"


def test_reasoning_gym_splits_share_no_question_whatever_the_seeds() -> None:
    task = load_task(SMALL_SUMS)  # 180 questions in all, so that chance alone would make them meet
    train = [p for seed in range(3) for p in task.problems("train", 60, seed)]
    evaluation = [p for seed in range(3) for p in task.problems("eval", 60, seed)]
    refuse_overlap(train, evaluation)
    assert len({p.question for p in task.problems("train", 60, 0)}) == 60


def test_reasoning_gym_draws_begin_alike_and_leave_the_global_generator_alone() -> None:
    task = load_task("reasoning_gym:pool_matrix")  # it seeds NumPy's global generator
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    problems = task.problems("train", 6, 2)
    assert np.random.random() == expected  # noqa: NPY002
    assert task.problems("train", 3, 2) == problems[:3]
    assert task.problems("train", 3, 3) != problems[:3]


def test_a_task_that_runs_out_of_questions_says_how_many_there_were() -> None:
    with pytest.raises(TaskError, match=r"gave [0-9]+ different problems, 1000 were asked for"):
        load_task(SMALL_SUMS).problems("eval", 1000, 0)


@pytest.mark.parametrize("name", ["chain_sum", "n_queens", "countdown", "polynomial_multiplication", "figlet_font"])
def test_the_librarys_own_answer_gets_the_full_score(name: str) -> None:
    task = load_task(f"reasoning_gym:{name}")
    problems = task.problems("eval", 2, 0)
    scores = task.score(problems, [f"So it is \\boxed{{{p.answer}}}" for p in problems])
    assert scores == [Score(1.0, "correct")] * 2


def test_a_response_without_a_box_is_unparsable_and_a_wrong_one_wrong() -> None:
    task = load_task("reasoning_gym:chain_sum")
    problems = task.problems("eval", 2, 0)
    assert task.score(problems, ["no box", "\\boxed{x}"]) == [Score(0.0, "unparsable"), Score(0.0, "wrong")]


@pytest.mark.parametrize("name", sorted(EVAL_SCORERS | EXPRESSION_SCORERS))
def test_the_scorers_guard_alone_runs_no_code_of_an_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, without the worker's limits: a list that the attack would append to stays empty."""
    ran: list[str] = []
    monkeypatch.setattr("builtins.attack", ran.append, raising=False)
    entry = load_task(f"reasoning_gym:{name}").problems("eval", 1, 0)[0].meta["entry"]
    packed = base64.b64encode(pickle.dumps(entry)).decode()
    for answer in ("attack('x')", "[attack('x')]", "__import__('builtins').attack('x')", "S('attack(1)')"):
        assert score({"task": name, "options": {}, "answer": answer, "entry": packed}) < 0.1
    assert ran == []
    assert eval("1 + 1") == 2  # and this process has its own eval back


@pytest.mark.parametrize("name", sorted(EVAL_SCORERS | EXPRESSION_SCORERS))
def test_an_answer_with_code_in_it_is_not_run(name: str, tmp_path: Path) -> None:
    task = load_task(f"reasoning_gym:{name}")
    target = tmp_path / "owned"
    attacks = [
        f"__import__('pathlib').Path('{target}').touch()",
        f"[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', '{target}'])",
        f"S('__import__(chr(111)+chr(115)).system(\"touch {target}\")')",
    ]
    scores = task.score(task.problems("eval", 1, 0) * 3, [f"\\boxed{{{attack}}}" for attack in attacks])
    assert not target.exists()
    assert all(score.value < 0.1 for score in scores)


def test_an_endless_answer_costs_bounded_time_and_the_next_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = WorkerPool("llm.tasks.reasoning_gym_scorer:score", cpu_s=1.0, memory_bytes=2 << 30, size=1)
    monkeypatch.setattr("llm.tasks.reasoning_gym._scorers", impatient)
    task = load_task("reasoning_gym:puzzle24")
    problems = task.problems("eval", 1, 0)
    responses = ["\\boxed{9**9**9**9}", f"\\boxed{{{problems[0].answer}}}"]
    assert task.score(problems * 2, responses) == [Score(0.0, "timeout"), Score(1.0, "correct")]
    impatient.close()


def test_an_answer_of_a_hundred_thousand_brackets_is_refused_unseen() -> None:
    task = load_task("reasoning_gym:n_queens")
    attack = "\\boxed{" + "[" * 100_000 + "}"
    assert task.score(task.problems("eval", 1, 0), [attack]) == [Score(0.0, "unparsable")]


def test_the_tasks_that_evaluate_text_are_the_known_ones() -> None:
    """Pins the library: where a module newly calls eval or parse_expr, look whether model text can reach it."""
    from reasoning_gym.factory import DATASETS

    sources = {name: inspect.getsource(inspect.getmodule(dataset)) for name, (dataset, _) in DATASETS.items()}
    evaluating = {name for name, source in sources.items() if re.search(r"\b(eval|exec)\(", source)}
    parsing = {name for name, source in sources.items() if re.search(r"\b(parse_expr|sympify)\(", source)}
    # these evaluate what the library wrote: a problem, a reference answer, a generated program
    assert evaluating - EVAL_SCORERS == {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting"}
    assert parsing - EXPRESSION_SCORERS == {"propositional_logic"}  # a parser of its own, which only builds a tree
    assert evaluating >= EVAL_SCORERS
    assert parsing >= EXPRESSION_SCORERS


def test_a_scorer_that_evaluates_its_own_problem_still_works() -> None:
    task = load_task("reasoning_gym:bitwise_arithmetic")
    problems = task.problems("eval", 3, 0)
    assert [s.value for s in task.score(problems, [f"\\boxed{{{p.answer}}}" for p in problems])] == [1.0] * 3
