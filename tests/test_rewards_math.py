r"""Math answers: what is equal, what hostile answers cost, and that limits and failures are statuses of their own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.rewards import kernel
from llm.rewards.base import Score
from llm.rewards.math import MathVerifier, _at_once, normal_form, plain_number, refused
from llm.rewards.worker import Reply, WorkerError, WorkerPool
from llm.thoughts import last_boxed

CORRECT, WRONG, UNPARSABLE, TIMEOUT = (
    Score(1.0, "correct"),
    Score(0.0, "wrong"),
    Score(0.0, "unparsable"),
    Score(0.0, "timeout"),
)


def boxed(answer: str) -> str:
    return rf"A thought.</thought>So it is \boxed{{{answer}}}.</thought>"


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    pool = WorkerPool("llm.rewards.math_worker:compare", cpu_s=1.5, size=1)
    yield MathVerifier(pool)
    pool.close()


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """Workers for the functions at the end of this file."""
    pool = WorkerPool("test_rewards_math:misbehave", cpu_s=0.3, memory_bytes=512 << 20, size=2)
    yield pool
    pool.close()


# --- the last box -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed {1}", "1"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"} \boxed{1}", "1"),
        (r"{ { \boxed{1}", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"a \\\boxed{1}", "1"),
        (r"a \\boxed{1}", "1"),
        (r"\boxed{}", ""),
        (r"\boxed1", None),
        ("boxed{1}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_read(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize("unit", ["\\boxed{", "{", "}", "\\boxed{}", "\\boxed{x", "\\boxed ", "\\", "\\\\boxed{"])
def test_reading_the_box_is_linear(unit: str) -> None:
    """10^5 repetitions. A scan from each opening would look at 10^10 characters, which takes hours; 2 s is generous."""
    began = time.perf_counter()
    last_boxed(unit * 10**5)
    assert time.perf_counter() - began < 2.0


# --- without the library ----------------------------------------------------------------------------------------------


@given(st.fractions(), st.booleans())
def test_a_fraction_in_latex_is_its_own_value(number: Fraction, style: bool) -> None:
    top, bottom = abs(number.numerator), number.denominator
    text = rf"\{'d' if style else ''}frac{{{top}}}{{ {bottom} }}"
    assert plain_number(normal_form(("-" if number < 0 else "") + text)) == number


@given(st.integers(), st.booleans())
def test_an_integer_with_or_without_thousands_separators_is_its_own_value(number: int, commas: bool) -> None:
    assert plain_number(f"{number:,}" if commas else str(number)) == number


@pytest.mark.parametrize(
    ("response", "reference", "verdict"),
    [
        ("370, 153", "153, 370", "correct"),
        ("153, 370", "153, 370", "correct"),
        ("102, 120, 201, 210", "210, 201, 120, 102", "correct"),
        (r"$153$,\ $370$", "370, 153", "correct"),
        ("153370", "153, 370", "wrong"),
        ("153, 371", "153, 370", "wrong"),
        ("5, 6", "56", "wrong"),
        ("1 2", "12", "wrong"),
        ("3 1/4", "31/4", "wrong"),
        ("3 1/4", "13/4", "correct"),
        ("-1 1/2", "-3/2", "correct"),
        ("10 000", "10000", "correct"),
        ("153, 370, 371, 407", "153,370,371,407", "correct"),
        ("100,200", "100, 200", "correct"),
        (r"10,\,000", "10000", "correct"),
        ("1 000/2", "500", "correct"),
        ("1 000/2000", "0.5", "correct"),
        (r"2 500/3000", r"\frac{5}{6}", "correct"),
        (r"10\,000", "10,000", "correct"),
    ],
)
def test_a_list_of_numbers_is_not_one_number(
    verifier: MathVerifier, response: str, reference: str, verdict: str
) -> None:
    (score,) = verifier([rf"\boxed{{{response}}}"], [reference])
    assert score.status == verdict


@pytest.mark.parametrize("unit", ["1 , ", "1,\\, ", "1 \\; ", "1" + " " * 50, ","])
def test_the_normal_form_takes_linear_time(unit: str) -> None:
    began = time.perf_counter()
    normal_form(unit * 20_000)
    normal_form("1" + " " * 10**5 + "x")
    normal_form("1," + " " * 10**5 + "x")
    assert time.perf_counter() - began < 3.0


@pytest.mark.parametrize("text", ["", "x", "1x", "1/0", "1,23", "--1", "1e5", "9**9", "٣" * 200, "1" * 101])
def test_what_is_no_plain_number_is_left_to_the_library(text: str) -> None:
    assert plain_number(text) is None


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9**9", "9^{9^{9^9}}", "9^(9^(9^9))", "2^{999999999}", "(10^10)^{1000000}", "99999999!", "(99999)!",
        "{" * 60 + "1" + "}" * 60, "(" * 10_000, "1" * 1001, "((" * 30,
    ],
)  # fmt: skip
def test_absurd_powers_factorials_depths_and_lengths_are_refused(answer: str) -> None:
    assert refused(answer)


@pytest.mark.parametrize(
    "answer",
    [
        r"\frac{1}{2}", "x^2y^2z^2w^2", "2^{2^{10}}", "e^{e^{x^2}}", "2^{10000}", "1000!", r"\sqrt[3]{1+\sqrt{2}}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "(((((x+1)+1)+1)+1)+1)",
    ],
)  # fmt: skip
def test_ordinary_answers_are_not_refused(answer: str) -> None:
    assert not refused(answer)


# --- with the library -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("42", "42"),
        ("$42$", "42."),
        (r"\dfrac{1}{2}", r"\frac12"),
        ("0.5", r"\frac{1}{2}"),
        ("1,234", "1234"),
        ("2/4", "1/2"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("x^2 - 1", "(x-1)(x+1)"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        (r"[0, \infty)", r"[0,\infty)"),
        (r"\frac{\pi}{2}", r"\pi/2"),
        ("x = 5", "5"),
        (r"50\%", r"50\%"),
        (r"10\text{ cm}", "10"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("2^{10000}", "2^{10000}"),
    ],
)
def test_answers_of_equal_value_are_correct(verifier: MathVerifier, response: str, reference: str) -> None:
    assert verifier([boxed(response)], [reference]) == [CORRECT]


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("41", "42"),
        ("1/3", "1/2"),
        ("0.51", r"\frac{1}{2}"),
        (r"\sqrt{7}", r"2\sqrt{2}"),
        ("x^2 + 1", "(x-1)(x+1)"),
        ("(2, 1)", "(1, 2)"),
        (r"(0, \infty)", r"[0, \infty)"),
    ],
)
def test_answers_of_another_value_are_wrong(verifier: MathVerifier, response: str, reference: str) -> None:
    assert verifier([boxed(response)], [reference]) == [WRONG]


def test_what_is_decided_without_the_library_agrees_with_it(verifier: MathVerifier) -> None:
    """All pairs of these numbers; where the fast path passes (decimals that differ), there is nothing to compare."""
    numbers = [
        "1",
        "-1",
        "0.5",
        r"\frac{1}{2}",
        "2/4",
        r"-\dfrac{1}{2}",
        "1,000",
        "1000.0",
        "+5",
        "007",
        r"\frac{-3}{7}",
    ]
    pairs = [(a, b) for a in numbers for b in numbers if _at_once(a, b) is not None]
    replies = verifier.pool.map([{"response": a, "reference": b} for a, b in pairs])
    assert [reply.value for reply in replies] == [_at_once(a, b) for a, b in pairs]
    assert len(pairs) > 70


@pytest.mark.parametrize("response", ["42", "no box", "", boxed(""), boxed(" "), r"\boxed{42"])
def test_a_response_without_a_box_or_with_an_empty_one_is_unparsable(verifier: MathVerifier, response: str) -> None:
    assert verifier([response], ["42"]) == [UNPARSABLE]


HOSTILE = [
    "9**9**9**9", "9^{9^{9^9}}", "99999999!", "{" * 10_000, "{" * 10_000 + "}" * 10_000, "\\boxed{" * 10_000,
    "1" * 10**6, "(" * 10_000 + "1" + ")" * 10_000, "\\frac{" * 5_000, "__import__('os').system('touch /tmp/evil')",
    "exit()", "\\x00", "\x00", "\ud800", "\\sqrt{" * 40 + "2" + "}" * 40, "x" * 999, "+".join("abcdefghijklmnop" * 30),
    "(x+y+z)^{999}", "\\sum_{n=1}^{99999} n^{9999}", "\\prod_{i=1}^{10000} i", "\\binom{99999}{49999}", "\\int " * 100,
    "((((9^{999})^{999})^{999})^{999})", "2^{2^{30}}", "9999!!!",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_answer_costs_bounded_time_and_scores_zero(verifier: MathVerifier, answer: str) -> None:
    """0.5 s of CPU time is the limit; on a machine with busy cores that may take a few times as long."""
    began, own = time.monotonic(), time.process_time()
    score = verifier([boxed(answer)], ["42"])[0]
    assert score.value == 0.0
    assert score.status in ("wrong", "unparsable", "timeout", "error")
    assert time.monotonic() - began < 10.0
    assert time.process_time() - own < 1.0
    assert not Path("/tmp/evil").exists()


def test_the_worker_is_well_after_an_attack(verifier: MathVerifier) -> None:
    """The first answer is killed at the limit, the second comes from a fresh server."""
    scores = verifier([boxed("(x+y+z)^{999}"), boxed(r"\sqrt{8}")], ["42", r"2\sqrt{2}"])
    assert scores == [TIMEOUT, CORRECT]


def test_the_caps_catch_the_classics_without_a_worker() -> None:
    """A pool that cannot start is never asked."""
    verifier = MathVerifier(WorkerPool("no_such_module:f"))
    classics = ["9**9**9**9", "9^{9^{9^9}}", "99999999!", "{" * 10_000]
    assert verifier([boxed(answer) for answer in classics], ["42"] * 4) == [UNPARSABLE] * 4


def test_equal_answers_of_a_batch_are_compared_once(verifier: MathVerifier) -> None:
    """500 copies of an answer that takes the whole limit of 0.5 s cost one limit and not 500."""
    began = time.monotonic()
    scores = verifier([boxed("(x+y+z)^{999}")] * 500 + [boxed("1")], ["42"] * 500 + ["1"])
    assert scores[:500] == [TIMEOUT] * 500
    assert scores[500] == CORRECT
    assert time.monotonic() - began < 20.0


def test_any_thread_may_verify(verifier: MathVerifier) -> None:
    """`math-verify` itself raises outside the main thread, because its time limit is a signal."""
    results: list[list[Score]] = []
    threads = [
        threading.Thread(target=lambda: results.append(verifier([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[CORRECT]] * 4


def test_this_process_imports_neither_sympy_nor_math_verify_for_it() -> None:
    script = (
        "import sys; from llm.rewards.math import MathVerifier\n"
        r"status = MathVerifier()([r'\boxed{\sqrt{8}}'], [r'2\sqrt{2}'])[0].status"
        "\n"
        "print(status, 'sympy' in sys.modules, 'math_verify' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "correct False False\n"


# --- the pool ---------------------------------------------------------------------------------------------------------


def misbehave(request: dict[str, Any]) -> object:
    """Run in a worker: the kinds of failure that a pool must survive."""
    kind, n = next(iter(request.items()))
    if kind == "spin":
        while True:
            pass
    if kind == "spin in C":
        return sum(range(10**18))
    if kind == "allocate":
        return len(bytearray(n))
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(n)
    if kind == "raise":
        raise KeyError(n)
    if kind == "fork":
        return os.fork()
    if kind == "write":
        Path(n).write_text("x")
    if kind == "environment":
        return sorted(os.environ)
    return n


def test_replies_come_in_order(pool: WorkerPool) -> None:
    assert pool.map([{"echo": n} for n in range(50)]) == [Reply("done", n) for n in range(50)]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"spin": 0}, "timeout"),
        ({"spin in C": 0}, "timeout"),
        ({"allocate": 1 << 33}, "memory"),
        ({"crash": 0}, "crashed"),
        ({"exit": 1}, "crashed"),
        ({"raise": 0}, "crashed"),
        ({"fork": 0}, "crashed"),
    ],
)
def test_a_failure_is_one_replys_and_the_next_request_is_answered(
    pool: WorkerPool, request_: dict[str, int], status: str
) -> None:
    began = time.monotonic()
    assert [reply.status for reply in pool.map([{"echo": 1}, request_, {"echo": 2}])] == ["done", status, "done"]
    assert time.monotonic() - began < 8.0


def test_a_server_that_ends_the_worker_with_it_is_replaced(pool: WorkerPool) -> None:
    """Exit code 0 reads as the end of the work, so the whole worker goes; the pool starts another."""
    assert pool.call({"exit": 0}).status == "crashed"
    assert pool.call({"echo": 3}) == Reply("done", 3)


def test_a_worker_that_was_lost_between_two_calls_costs_no_answer() -> None:
    fresh = WorkerPool("test_rewards_math:misbehave", size=1)
    assert fresh.call({"echo": 1}) == Reply("done", 1)
    worker = fresh._idle.queue[0]
    assert worker is not None
    os.killpg(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert fresh.call({"echo": 2}) == Reply("done", 2)
    fresh.close()


def test_a_server_cannot_write_files(pool: WorkerPool, tmp_path: Path) -> None:
    if kernel.landlock_abi() < 3:
        pytest.skip("this kernel has no Landlock that knows truncation")
    assert pool.call({"write": str(tmp_path / "x")}) == Reply("crashed", "PermissionError")
    assert not list(tmp_path.iterdir())


def test_a_worker_does_not_see_the_environment(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    fresh = WorkerPool(pool.function, size=1)
    names = fresh.call({"environment": 0}).value
    fresh.close()
    assert "PYTHONPATH" in names
    assert "SECRET_TOKEN" not in names


def test_a_function_that_cannot_be_imported_is_one_clear_line() -> None:
    with pytest.raises(WorkerError, match=r"worker for no_such_module:f cannot run: ModuleNotFoundError"):
        WorkerPool("no_such_module:f").call(1)


def test_workers_end_with_their_parent() -> None:
    script = (
        "from llm.rewards.worker import WorkerPool; import os, subprocess\n"
        "pool = WorkerPool('math:sqrt', size=1); pool.call(4.0)\n"
        "print(pool._idle.queue[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    worker = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 5
    while worker.exists() and worker.joinpath("stat").read_text().rsplit(")")[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pools_of_no_size_or_without_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="size at least 1"):
        WorkerPool("math:sqrt", size=0)
