"""The chain tasks: the verifier and the first error are exact, the splits are apart, dials are checked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.tasks.base import Problem, TaskError
from llm.tasks.chains import FUNCTIONS, RELIABILITIES, VALUES, Chains
from llm.tasks.dials import MAX_STEPS, split_of

HARD_AND_EASY = sorted(FUNCTIONS)
F0 = (3, 10, 2, 8, 1, 4, 7, 0, 5, 6, 9)


@st.composite
def chains(draw: st.DrawFn) -> Problem:
    functions = draw(st.lists(st.sampled_from(HARD_AND_EASY), min_size=1, max_size=MAX_STEPS))
    return Chains.problem(draw(st.integers(0, VALUES - 1)), functions)


@st.composite
def chains_wrong_from(draw: st.DrawFn) -> tuple[Problem, int, list[str]]:
    """A chain and a response that goes wrong at step k by a wrong value, all later steps right given that value."""
    problem = draw(chains())
    functions, values = problem.meta["functions"], list(problem.meta["values"])
    k = draw(st.integers(0, len(functions) - 1))
    values[k + 1] = (values[k + 1] + draw(st.integers(1, VALUES - 1))) % VALUES
    for j in range(k + 1, len(functions)):
        values[j + 1] = FUNCTIONS[functions[j]][values[j]]
    return problem, k, Chains.thoughts(functions, values)


def response(thoughts: list[str]) -> str:
    return "".join(f"{thought}</thought>" for thought in thoughts)


def test_functions_are_bijections_so_no_value_absorbs() -> None:
    assert all(sorted(table) == list(range(VALUES)) for table in FUNCTIONS.values())
    assert len(set(FUNCTIONS.values())) == len(FUNCTIONS)


def test_the_tables_are_the_same_on_every_machine() -> None:
    assert FUNCTIONS["f0"] == F0
    assert Chains.problem(7, ["f0"]).answer == str(F0[7])


@given(chains())
def test_the_right_chain_passes_and_has_no_error(problem: Problem) -> None:
    task = Chains()
    thoughts = task.solution(problem)
    assert task.first_error(problem, thoughts) is None
    assert task.score([problem], [response(thoughts)])[0].status == "correct"


@given(chains_wrong_from())
def test_a_wrong_value_at_k_is_the_first_error_and_its_consequences_are_not(
    case: tuple[Problem, int, list[str]],
) -> None:
    problem, k, thoughts = case
    assert Chains().first_error(problem, thoughts) == k
    assert Chains().score([problem], [response(thoughts)])[0].status == "wrong"


@given(chains_wrong_from())
def test_one_error_never_leads_to_the_answer(case: tuple[Problem, int, list[str]]) -> None:
    problem, _, thoughts = case
    assert Chains(verifier="answer").score([problem], [response(thoughts)])[0].value == 0.0


@given(chains(), st.data())
def test_any_other_corruption_of_thought_k_is_the_first_error(problem: Problem, data: st.DataObject) -> None:
    task, thoughts = Chains(), Chains().solution(problem)
    k = data.draw(st.integers(0, len(thoughts) - 1))
    other = data.draw(st.sampled_from([f for f in HARD_AND_EASY if f != problem.meta["functions"][k]]))
    broken = [
        thoughts[k].replace(problem.meta["functions"][k], other),
        thoughts[k].replace(f"{k + 1}:", f"{k + 2}:", 1),
        thoughts[k].partition("(")[0],
        "",
        "so",
    ]
    thoughts[k] = data.draw(st.sampled_from(broken))
    assert task.first_error(problem, thoughts) == k


@given(chains(), st.data())
def test_a_response_that_stops_early_is_wrong_in_its_last_thought(problem: Problem, data: st.DataObject) -> None:
    task, right = Chains(), Chains().solution(problem)
    kept = data.draw(st.integers(0, len(right) - 1))
    assert task.first_error(problem, right[:kept]) == max(kept - 1, 0)
    assert task.score([problem], [response(right[:kept])])[0].status == "unparsable"


def test_a_thought_after_the_answer_is_an_error() -> None:
    problem = Chains.problem(3, ["e0", "f1"])
    right = Chains().solution(problem)
    assert Chains().first_error(problem, [*right, right[-1]]) == 2


def test_a_box_before_the_last_step_is_an_error() -> None:
    problem = Chains.problem(3, ["e0", "f1"])
    first, last = Chains().solution(problem)
    assert Chains().first_error(problem, [f"{first} \\boxed{{{problem.answer}}}", last]) == 0


def test_luck_passes_the_answer_verifier_and_not_the_chain_verifier() -> None:
    problem = Chains.problem(3, ["f0", "f1"])
    wrong = (problem.meta["values"][1] + 1) % VALUES
    lucky = response(Chains.thoughts(["f0", "f1"], [3, wrong, problem.meta["values"][2]]))
    assert Chains(verifier="answer").score([problem], [lucky])[0].status == "correct"
    assert Chains(verifier="chain").score([problem], [lucky])[0].status == "wrong"


@pytest.mark.parametrize("text", ["", "\\boxed{}", "\\boxed{four}", "\\boxed{4", "\\boxed{4.0}", "\\boxed{" + "9" * 99])
def test_a_response_without_a_boxed_integer_is_unparsable(text: str) -> None:
    problem = Chains.problem(3, ["f0"])
    assert Chains().score([problem], [text])[0].status == "unparsable"


@given(
    st.integers(1, MAX_STEPS).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, steps))),
    st.sampled_from(sorted(RELIABILITIES)),
)
def test_problems_have_the_steps_hard_steps_and_family_of_the_dials(dials: tuple[int, int], reliability: float) -> None:
    steps, hard = dials
    task = Chains(steps, hard, reliability)
    for problem in task.problems("train", 5, seed=3):
        families = [name[0] for name in problem.meta["functions"]]
        assert len(families) == steps
        assert families.count(RELIABILITIES[reliability]) == hard
        assert families.count("e") == steps - hard


@pytest.mark.parametrize("task", [Chains(), Chains(3, 1)])
def test_splits_are_disjoint_deterministic_and_without_repetition(task: Chains) -> None:
    train = [p.question for p in task.problems("train", 300, seed=0)]
    held_out = [p.question for s in range(3) for p in task.problems("eval", 100, seed=s)]
    assert not set(train) & set(held_out)
    assert len(set(train)) == 300
    assert all(split_of(q) == "train" for q in train)
    assert all(split_of(q) == "eval" for q in held_out)
    assert [p.question for p in task.problems("train", 300, seed=0)] == train
    assert [p.question for p in task.problems("train", 100, seed=0)] == train[:100]
    assert [p.question for p in task.problems("train", 300, seed=1)] != train


def test_all_questions_of_small_dials_are_found_and_a_split_that_is_too_small_is_refused() -> None:
    task = Chains(steps=2, hard=1)
    size = VALUES * 2 * 3**2
    counts = [_available(task, split) for split in ("train", "eval")]
    assert sum(counts) == size


def _available(task: Chains, split: str) -> int:
    with pytest.raises(TaskError) as error:
        task.problems(split, 10**6, seed=0)  # type: ignore[arg-type]
    return int(str(error.value).split("holds ")[1].split()[0])


def test_problems_do_not_depend_on_the_process() -> None:
    code = "from llm.tasks.chains import Chains; print(Chains().problems('eval', 3, 7)[2].question)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == Chains().problems("eval", 3, 7)[2].question


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chains:step=3", "its dials are steps, hard, reliability, verifier"),
        ("chains:steps=three", "dial steps of task chains needs a number"),
        ("chains:steps=13", "steps must lie in 1..12"),
        ("chains:steps=3,hard=4", r"hard must lie in 0..steps = 0..3"),
        ("chains:reliability=0.4", "reliability must be one of 0.3, 0.5, 0.7, 0.9"),
        ("chains:verifier=lucky", "verifier must be chain or answer"),
    ],
)
def test_bad_dials_get_one_line_that_says_what_to_do(spec: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        Chains.from_spec(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", [Chains(), Chains(10, 4, 0.7, "answer")])
def test_a_task_is_its_name(task: Chains) -> None:
    assert type(task).from_spec(task.name) == task
