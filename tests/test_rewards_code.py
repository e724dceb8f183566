"""Code verifier: which program is scored, what counts as equal, and that the score is over all tests."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.rewards.base import Score
from llm.rewards.code import CodeVerifier, last_program, same_output, same_value
from llm.rewards.sandbox import Limits, Sandbox, SandboxError


def fenced(source: str) -> str:
    return f"Some thoughts.</thought>\n```python\n{source}\n```\n\\boxed{{done}}</thought>"


def script_tests(*pairs: tuple[str, str]) -> str:
    tests = [{"input": given, "output": wanted, "testtype": "stdin"} for given, wanted in pairs]
    return json.dumps({"func_name": None, "tests": tests})


def function_tests(name: str, *pairs: tuple[str, str]) -> str:
    tests = [{"input": given, "output": wanted, "testtype": "functional"} for given, wanted in pairs]
    return json.dumps({"func_name": name, "tests": tests})


DOUBLES = script_tests(*((f"{n}\n", f"{2 * n}\n") for n in range(10)))
SUMS = function_tests("add", ("1\n2", "3"), ("5\n-5", "0"), ("[1]\n[2]", "[1, 2]"))


@pytest.fixture(scope="module")
def verifier() -> CodeVerifier:
    try:
        return CodeVerifier(Sandbox(Limits(cpu_s=2, wall_s=2.0, total_s=8.0)))
    except SandboxError as error:  # that it refuses then is checked in test_sandbox.py
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\n```py\nb\n```", "b\n"),
        ("```python\na\n```\n```\noutput\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("first</thought>```python\na\n```</thought>", "a\n"),
        ("```python\nnever closed\n```python\nb\n```", "b\n"),
        ("```python\na\n</thought><thought>b\n```", "a\nb\n"),
        ("```cpp\na\n```", None),
        ("```python\na", None),
        ("no code", None),
        ("", None),
    ],
)
def test_the_last_complete_python_block_is_the_program(response: str, program: str | None) -> None:
    assert last_program(response) == program


def test_a_program_beyond_the_length_limit_is_not_read() -> None:
    assert last_program("```python\n" + "#" * (1 << 18) + "\n```") is None


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("1 2\n3\n", "1 2\n3"),
        ("  1 2 \n 3  \n\n", "1 2\n3"),
        ("1.0 2.50", "1 2.5"),
        ("1e3", "1000"),
        ("YES", "YES"),
        ("1\r\n2\r\n", "1\n2"),
    ],
)
def test_outputs_that_differ_in_blanks_or_in_how_decimals_are_written_are_equal(printed: str, expected: str) -> None:
    assert same_output(printed, expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("", "1"),
        ("1\n2", "1 2"),
        ("1\n\n2", "1\n2"),
        ("yes", "YES"),
        ("0.3333333", "0.3333334"),
        ("nan", "snan"),
        ("1 2", "1 2 3"),
        ("1e999999999", "2e999999999"),
        ("0x10", "16"),
    ],
)
def test_outputs_that_differ_in_lines_case_or_value_are_not_equal(printed: str, expected: str) -> None:
    assert not same_output(printed, expected)


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_a_line_of_decimals_equals_itself_in_other_notation(numbers: list[Decimal]) -> None:
    assert same_output(" ".join(map(str, numbers)), "  ".join(f"{n:E}" for n in numbers))


def test_values_nested_beyond_the_recursion_limit_are_not_equal_and_do_not_raise() -> None:
    deep: list[object] = []
    twin: list[object] = []
    for _ in range(100_000):
        deep, twin = [deep], [twin]
    assert not same_value(deep, twin)


def test_scripts_and_functions_are_scored_as_one_batch(verifier: CodeVerifier) -> None:
    double = "import sys\nfor line in sys.stdin:\n    print(int(line) * 2)"
    method = "class Solution:\n    def add(self, a: Optional[int], b: List[int]) -> int:\n        return a + b"
    plain = "def add(a, b):\n    print('ignored')\n    return a + b"
    responses = [fenced(double), fenced(method), fenced(plain), "nothing"]
    assert verifier(responses, [DOUBLES, SUMS, SUMS, SUMS]) == [
        Score(1.0, "correct"),
        Score(1.0, "correct"),
        Score(1.0, "correct"),
        Score(0.0, "unparsable"),
    ]


def test_the_score_is_over_all_tests_and_failures_do_not_end_it(verifier: CodeVerifier) -> None:
    """The first test fails, so a runner that stops there would report 0 of 1 (or 1/2 of 2)."""
    late = "n = int(input())\nprint(2 * n if n >= 3 else 'x')"
    raises = "n = int(input())\nprint(2 * n if n != 0 else 1 // 0)"
    assert verifier([fenced(late), fenced(raises)], [DOUBLES] * 2) == [Score(0.7, "partial"), Score(0.9, "partial")]


def test_tests_that_the_time_did_not_suffice_for_are_failed_ones(verifier: CodeVerifier) -> None:
    """Tests 0 to 3 hang for 0.5 s each, which uses up the 1.9 s; the rest is not run and does not count as passed."""
    short = CodeVerifier(Sandbox(Limits(wall_s=0.5, total_s=1.9, mean_s=0.1)), verifier.jobs)
    hangs = "n = int(input())\nwhile n < 4: pass\nprint(2 * n)"
    assert short([fenced(hangs)], [DOUBLES]) == [Score(0.0, "timeout")]


@pytest.mark.parametrize(
    "source",
    [
        "print(0); import os; os._exit(0)",
        "raise SystemExit(0)",
        "import sys; sys.exit(0)",
        "def add(a, b): raise SystemExit(0)",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "class Yes:\n    def __eq__(self, other): return True\ndef add(a, b): return Yes()",
        "class Yes(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Yes(1)",
        "class Yes(list):\n    def __eq__(self, other): return True\ndef add(a, b): return Yes([1])",
        "class Yes(dict):\n    def __eq__(self, other): return True\ndef add(a, b): return {'a': Yes()}",
        "def add(a, b): return add",
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
        "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
        "def add(a, b): return float('nan')",
        "def add(a, b): return 10 ** 10000",
        'def add(a, b):\n    import os\n    os.write(3, b\'{"done": true, "value": 3}\')\n    os._exit(0)',
        "def add(a, b):\n    import os\n    os.write(3, b'[' * 100000)\n    os._exit(0)",
        "import json\njson.dumps = lambda *a, **k: 'passed'\ndef add(a, b): return None",
        "import builtins\nbuiltins.type = lambda x: int\ndef add(a, b): return 'x'",
        "print('All tests passed\\nOK')",
        "def other(a, b): return a + b",
        "def add(a): return a",
        "this is no Python",
        "\x00",
        "(" * 5000,
    ],
    ids=range(24),
)
def test_faked_results_score_zero(verifier: CodeVerifier, source: str) -> None:
    """Exiting early, objects equal to everything, results that are no data, frames of one's own, patched checkers."""
    assert verifier([fenced(source)], [SUMS]) == [Score(0.0, "wrong")]


def test_the_right_output_without_an_ordinary_end_is_not_passed(verifier: CodeVerifier) -> None:
    """Exit code 0 is never a pass: the twin that ends by itself gets the same tests right."""
    prints = "n = int(input())\nprint(2 * n, flush=True)\n"
    responses = [fenced(prints), fenced(prints + "import os\nos._exit(0)")]
    assert [score.value for score in verifier(responses, [DOUBLES] * 2)] == [1.0, 0.0]


def test_a_program_cannot_find_the_expected_outputs(verifier: CodeVerifier) -> None:
    """It searches everything that its process holds: inputs of its run are there, the expected output is not."""
    search = (
        "import gc\ndef find(word):\n"
        "    return any(word in str(o)[:10**6] for o in gc.get_objects() if isinstance(o, (dict, list, tuple)))\n"
        "def add(a, b):\n    return [find('NEKOT-TUPNI'[::-1]), find('NEKOT-DETCEPXE'[::-1])]"
    )
    tests = function_tests("add", ('"INPUT-TOKEN"\n2', "[true, false]"), ("1\n2", '"EXPECTED-TOKEN"'))
    assert verifier([fenced(search)], [tests]) == [Score(0.5, "partial")]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "{}",
        '{"tests": []}',
        '{"tests": [{"testtype": "stdin"}]}',
        "[" * 100_000,
        SUMS.replace('"add"', "null"),
    ],
)
def test_reference_tests_that_cannot_be_read_are_an_error_and_not_the_models(
    verifier: CodeVerifier, answer: str
) -> None:
    assert verifier([fenced("print(1)")], [answer]) == [Score(0.0, "error")]


def test_idioms_of_contest_programs_work(verifier: CodeVerifier) -> None:
    """Recursion in a thread of its own, exit handlers that print, bytes on stdout, star names without imports."""
    threaded = (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(64 << 20)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main(): print(2 * depth(int(input())) + 0 * depth(20000))\nthreading.Thread(target=main).start()"
    )
    at_exit = "import atexit, os\natexit.register(lambda: os.write(1, str(2 * int(input())).encode()))"
    binary = "import sys\nsys.stdout.buffer.write(b'%d' % (2 * int(sys.stdin.buffer.read())))\nexit()"
    star = "d = defaultdict(int)\nheappush(h := [], 2)\nprint(int(stdin.readline()) * gcd(4, 6) * Counter('a')['a'])"
    responses = [fenced(source) for source in (threaded, at_exit, binary, star)]
    assert verifier(responses, [DOUBLES] * 4) == [Score(1.0, "correct")] * 4


def test_names_and_guards_are_as_in_the_benchmarks_runner(verifier: CodeVerifier) -> None:
    """`sys` is there without an import; a guard of `__main__` runs in a script and not where a function is called."""
    script = "if __name__ == '__main__':\n    print(2 * int(sys.stdin.readline()))"
    function = "class Solution:\n    def add(self, a, b): return a + b\nif __name__ == '__main__': print(input())"
    assert verifier([fenced(script), fenced(function)], [DOUBLES, SUMS]) == [Score(1.0, "correct")] * 2


def test_large_inputs_and_outputs_pass_through(verifier: CodeVerifier) -> None:
    text = "x" * 3_000_000
    assert verifier([fenced("print(input())")], [script_tests((text, text))]) == [Score(1.0, "correct")]


def test_a_verifier_without_isolation_is_refused_when_it_is_made() -> None:
    with pytest.raises(SandboxError, match="cannot isolate"):
        CodeVerifier(Sandbox(modes=()))
