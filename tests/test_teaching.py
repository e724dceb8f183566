"""Teachers: right solutions get full marks from the task's own scorer, wrong ones go wrong where they say."""

from __future__ import annotations

import numpy as np
import pytest

from llm.tasks import load_task
from llm.tasks.base import Task, TaskError
from llm.tasks.reasoning_gym_teachers import TEACHERS
from llm.tasks.teaching import Pen, Teaching, mistaken, solution

GENERATED = ["chains:steps=5,hard=3", "chains_words:steps=5,hard=2", "ledger_words:steps=5,hard=2,aside=2"]
GYM = [
    "reasoning_gym:chain_sum,min_terms=1,max_terms=5,min_digits=1,max_digits=3,allow_negation=True",
    "reasoning_gym:leg_counting,min_animals=1,max_animals=4",
]


def _response(thoughts: list[str]) -> str:
    return "".join(f"{thought}</thought>" for thought in thoughts)


def _teaching(spec: str) -> tuple[Task, Teaching]:
    task = load_task(spec)
    assert isinstance(task, Teaching)
    return task, task


def test_every_teacher_of_a_reasoning_gym_task_is_tested() -> None:
    assert {spec.partition(":")[2].partition(",")[0] for spec in GYM} == set(TEACHERS)


@pytest.mark.parametrize("spec", GENERATED + GYM)
def test_right_solutions_get_full_marks(spec: str) -> None:
    task, teacher = _teaching(spec)
    problems = task.problems("train", 200, 0)
    scores = task.score(problems, [_response(solution(teacher, p)) for p in problems])
    assert {(s.value, s.status) for s in scores} == {(1.0, "correct")}


@pytest.mark.parametrize("spec", GENERATED + GYM)
def test_wrong_solutions_fail_and_differ_from_the_right_ones_from_their_first_error_on(spec: str) -> None:
    task, teacher = _teaching(spec)
    rng = np.random.default_rng(0)
    problems = task.problems("train", 200, 1)
    wrong = [mistaken(teacher, p, rng) for p in problems]
    assert not any(s.value == 1.0 for s in task.score(problems, [_response(thoughts) for thoughts, _ in wrong]))
    for problem, (thoughts, k) in zip(problems, wrong, strict=True):
        right = solution(teacher, problem)
        assert len(thoughts) == len(right)
        assert thoughts[k] != right[k]
        if not spec.startswith("ledger"):  # where an earlier wrong number may be a harmless one
            assert thoughts[:k] == right[:k]
    lengths = [len(thoughts) for thoughts, _ in wrong]
    assert {k for _, k in wrong} >= set(range(min(lengths)))


@pytest.mark.parametrize("spec", GENERATED)
def test_the_task_finds_the_first_error_where_the_teacher_put_it(spec: str) -> None:
    task, teacher = _teaching(spec)
    rng = np.random.default_rng(2)
    for problem in task.problems("train", 200, 2):
        thoughts, k = mistaken(teacher, problem, rng)
        assert task.first_error(problem, thoughts) == k


@pytest.mark.parametrize("spec", GENERATED + GYM)
def test_no_thought_starts_with_a_sign_and_its_number_is_its_place(spec: str) -> None:
    task, teacher = _teaching(spec)
    for problem in task.problems("train", 50, 3):
        assert [t.partition(":")[0] for t in solution(teacher, problem)] == [
            str(n + 1) for n in range(len(solution(teacher, problem)))
        ]


def test_a_slip_keeps_the_sign_and_is_carried_on() -> None:
    task, teacher = _teaching("reasoning_gym:chain_sum,min_terms=3,max_terms=3")
    problem = task.problems("train", 1, 0)[0]
    right, wrong = teacher.write(problem, Pen()), teacher.write(problem, Pen(0, 10))
    first, second = (int(thoughts[0].partition("=")[2]) for thoughts in (right, wrong))
    assert abs(first - second) == 10
    assert wrong[1].startswith(f"2: {second}")
    assert Pen(0, -5)(0, 3) == 8
    assert Pen(0, 5)(0, -3) == -8


def test_a_task_without_a_teacher_says_which_have_one() -> None:
    task, teacher = _teaching("reasoning_gym:puzzle24")
    with pytest.raises(TaskError, match="there are: chain_sum, leg_counting"):
        solution(teacher, task.problems("train", 1, 0)[0])
