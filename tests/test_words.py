"""The tasks in plain English: verifier and first error are exact, splits are apart, dials are what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.tasks.base import Problem, TaskError
from llm.tasks.dials import MAX_STEPS, split_of
from llm.tasks.teaching import Pen
from llm.tasks.words import ChainsWords, LedgerWords


def response(thoughts: list[str]) -> str:
    return "".join(f"{thought}</thought>" for thought in thoughts)


TASKS = [ChainsWords(), ChainsWords(6, 3), LedgerWords(), LedgerWords(3, 0, 2, 0), LedgerWords(5, 5, 3, 4)]


@pytest.mark.parametrize("task", [*TASKS, ChainsWords(12, 12), LedgerWords(12, 12, 3, 6)])
def test_splits_are_disjoint_deterministic_and_without_repetition(task: ChainsWords | LedgerWords) -> None:
    train = [p.question for p in task.problems("train", 300, seed=0)]
    held_out = [p.question for s in range(3) for p in task.problems("eval", 100, seed=s)]
    assert not set(train) & set(held_out)
    assert len(set(train)) == 300
    assert all(split_of(q) == "train" for q in train)
    assert all(split_of(q) == "eval" for q in held_out)
    assert [p.question for p in task.problems("train", 100, seed=0)] == train[:100]
    assert [p.question for p in task.problems("train", 300, seed=1)] != train


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_its_name(task: ChainsWords | LedgerWords) -> None:
    assert type(task).from_spec(task.name) == task


WORDS = ChainsWords.problem(42, [17, -3, 25])  # 42, 59, 56, 81


@pytest.mark.parametrize(
    ("thoughts", "first"),
    [
        (["Step 1: 42 + 17 = 59.", "Step 2: 59 - 3 = 56.", "Step 3: 56 + 25 = 81. The answer is \\boxed{81}"], None),
        (["We start with 42.", "Adding 17 gives 59", "Then 56", "81, so \\boxed{81}"], None),
        (["Let us begin.", "42+17=59, 59-3=56", "56 + 25 = 81", "\\boxed{81}"], None),
        (["42 + 17 = 59", "59 - 3 = 55", "55 + 25 = 80 \\boxed{80}"], 1),
        (["42 + 17 = 58", "58 - 3 = 55", "55 + 25 = 80 \\boxed{80}"], 0),
        (["42 + 17 = 59", "59 - 3 = 56", "56 + 25 = 82 \\boxed{82}"], 2),
        (["42 + 17 = 59", "59 - 3 = 56", "56 + 25 = 81 \\boxed{eighty}"], 2),
        (["42 + 17 = 59 \\boxed{59}", "59 - 3 = 56"], 0),
        (["42 + 17 = 59", "59 - 3 = 59", "59 - 3 = 56"], 1),
        (["42 + 17 = 56", "56 + 25 = 81 \\boxed{81}"], 0),
        (["42 + 17 - 3 = 56", "5 * 5 + 30 + 26 = 81 \\boxed{81}"], None),
        (["42 + 17 - 3 = 56", "(60 - 4) + 25 = 81 \\boxed{81}"], None),
        (["42 + 17 = 59", "59 - 3 = 56"], 1),
        ([], 0),
    ],
)
def test_words_first_error_reads_the_numbers_of_the_thoughts(thoughts: list[str], first: int | None) -> None:
    assert ChainsWords().first_error(WORDS, thoughts) == first


@given(st.integers(1, MAX_STEPS), st.integers(0, 1000), st.data())
def test_words_a_wrong_sum_at_k_is_the_first_error(steps: int, seed: int, data: st.DataObject) -> None:
    task = ChainsWords(steps, steps // 2)
    problem = task.problems("train", 1, seed)[0]
    thoughts = task.solution(problem)
    assert task.first_error(problem, thoughts) is None
    assert task.score([problem], [response(thoughts)])[0].value == 1.0
    k = data.draw(st.integers(0, steps - 1))
    # a shift of 10,000 is out of reach of the true values, so the corrupted claim cannot be a later true value
    value = problem.meta["values"][k + 1]
    thoughts[k] = thoughts[k].replace(f"={value}", f"={value + 10_000}")
    assert task.first_error(problem, thoughts) == k


# --- ledger ----------------------------------------------------------------------------------------------------------


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[LedgerWords, Problem]:
    steps = draw(st.integers(1, 6))
    persons = draw(st.sampled_from([2, 3]))
    aside = draw(st.integers(0, steps - 1)) if persons == 3 else 0
    task = LedgerWords(steps, draw(st.integers(0, steps)), persons, aside)
    return task, task.problems("train", 1, draw(st.integers(0, 10_000)))[0]


@given(ledgers())
def test_ledgers_have_the_transfers_and_persons_of_the_dials_and_nobody_overdraws(
    case: tuple[LedgerWords, Problem],
) -> None:
    task, problem = case
    meta, holds = problem.meta, list(problem.meta["coins"])
    assert len(holds) == len(set(meta["names"])) == task.persons
    for giver, taker, gift in meta["transfers"]:
        assert giver != taker
        holds[giver], holds[taker] = holds[giver] - gift, holds[taker] + gift
        assert min(holds) >= 0
    assert problem.answer == str(holds[meta["asked"]])
    assert sum(gift >= 12 for _, _, gift in meta["transfers"]) == task.hard
    assert sum(meta["asked"] not in transfer[:2] for transfer in meta["transfers"]) == task.aside
    assert len(meta["transfers"]) == task.steps


@given(ledgers())
def test_the_right_ledger_passes_and_has_no_error(case: tuple[LedgerWords, Problem]) -> None:
    task, problem = case
    thoughts = task.solution(problem)
    assert len(thoughts) == task.steps
    assert task.first_error(problem, thoughts) is None
    assert task.score([problem], [response(thoughts)])[0].status == "correct"


@given(ledgers(), st.data())
def test_a_wrong_amount_of_the_person_asked_for_is_the_first_error_and_its_consequences_are_not(
    case: tuple[LedgerWords, Problem], data: st.DataObject
) -> None:
    """Off by 10,000 the wrong amounts are out of reach of the true ones, so none of them is a later true one."""
    task, problem = case
    asked, transfers = problem.meta["asked"], problem.meta["transfers"]
    touching = [k for k, transfer in enumerate(transfers) if asked in transfer[:2]]
    slip = data.draw(st.integers(0, len(touching) - 1))
    thoughts = task.write(problem, Pen(slip, 10_000))
    assert task.first_error(problem, thoughts) == touching[slip]
    assert task.score([problem], [response(thoughts)])[0].status == "wrong"


@given(ledgers(), st.data())
def test_wrong_amounts_of_others_are_harmless_and_no_first_error(
    case: tuple[LedgerWords, Problem], data: st.DataObject
) -> None:
    task, problem = case
    pen = Pen()
    task.write(problem, pen)
    thoughts = task.write(problem, Pen(harmless=data.draw(st.integers(0, pen.others - 1)), by=10_000))
    assert thoughts != task.solution(problem)
    assert task.first_error(problem, thoughts) is None
    assert task.score([problem], [response(thoughts)])[0].status == "correct"


LEDGER = LedgerWords.problem(["Ann", "Ben", "Tom"], [42, 50, 61], 1, [(0, 1, 12), (2, 0, 3), (1, 2, 20)])  # Ben: 62, 42


@pytest.mark.parametrize(
    ("thoughts", "first"),
    [
        (["1: Ann 42-12=30, Ben 50+12=62", "2: Tom 61-3=58, Ann 30+3=33", "3: Ben 62-20=42, Tom 78 \\boxed{42}"], None),
        (["Ann gives Ben 12, so Ben has 50 + 12 = 62 coins.", "Ben gives Tom 20: Ben has 42. \\boxed{42}"], None),
        (["1: Ann 42-12=31, Ben 50+12=62", "2: Tom 61-3=57, Ann 34", "3: Ben 62-20=43, Tom 77 \\boxed{43}"], 2),
        (["1: Ann 42-12=30, Ben 50+12=61", "2: Tom 61-3=58, Ann 33", "3: Ben 61-20=41, Tom 78 \\boxed{41}"], 0),
        (["1: Ann 30, Ben 62", "2: Tom 58, Ann 33", "3: Tom 78 \\boxed{62}"], 2),
        (["1: Ann 30, Ben 62 \\boxed{62}"], 0),
        (["1: Ann 30, Ben 62", "2: Tom 58, Ann 33", "3: Ben 42, Tom 78"], 2),
        (["1: Ann 30, Ben 62", "3: Ben 42 \\boxed{many}"], 1),
        ([], 0),
    ],
)
def test_ledger_first_error_reads_the_amounts_of_the_person_asked_for(thoughts: list[str], first: int | None) -> None:
    assert LEDGER is not None
    assert LedgerWords().first_error(LEDGER, thoughts) == first


def test_transfers_that_overdraw_are_no_problem() -> None:
    assert LedgerWords.problem(["Ann", "Ben"], [40, 40], 0, [(0, 1, 39), (0, 1, 2)]) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ledger_words:step=3", "its dials are steps, hard, persons, aside"),
        ("ledger_words:steps=13", "steps must lie in 1..12"),
        ("ledger_words:steps=2,hard=3", r"hard must lie in 0..steps = 0..2"),
        ("ledger_words:persons=4", "persons must be 2 or 3"),
        ("ledger_words:steps=2,aside=2", r"aside must lie in 0..steps-1 = 0..1"),
        ("ledger_words:persons=2,aside=1", "aside must be 0 with two persons"),
        ("chains_words:steps=0", "steps must lie in 1..12"),
    ],
)
def test_bad_dials_get_one_line_that_says_what_to_do(spec: str, message: str) -> None:
    task = LedgerWords if spec.startswith("ledger") else ChainsWords
    with pytest.raises(TaskError, match=message) as error:
        task.from_spec(spec)
    assert "\n" not in str(error.value)
