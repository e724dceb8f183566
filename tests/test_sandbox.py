"""The sandbox under attack. Every attack is watched from outside as well: what it aimed at must be as it was before.

A mode that this machine does not offer (a container without user namespaces, say) must refuse to run anything.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sandbox_attacks
from sandbox_attacks import ATTACKS, LIMITS, SECRET, Surroundings, run_attack

from llm.rewards.sandbox import Limits, Mode, Program, Run, Sandbox, SandboxError

ROOT = Path(__file__).parents[1]
HELLO = Program("print('hello', input())")
NEED_ALL_THEIR_TIME = ("sleeping", "sleeping in a thread", "busy", "closes its pipes")


def refusal(mode: Mode) -> str | None:
    """Why a mode is not to be had here, after checking that it then refuses."""
    try:
        Sandbox(modes=(mode,)).describe()
        return None
    except SandboxError as error:
        with pytest.raises(SandboxError, match="cannot isolate"):
            Sandbox(modes=(mode,)).run(HELLO, [Run("world")])
        return str(error)


@pytest.fixture(scope="module", params=["namespaces", "bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    reason = refusal(request.param)
    if reason is not None:
        pytest.skip(f"the sandbox refused, as it must: {reason}")
    return Sandbox(LIMITS, modes=(request.param,))


@pytest.fixture(scope="module")
def around() -> Iterator[Surroundings]:
    with sandbox_attacks.surroundings() as surroundings:
        yield surroundings


@pytest.fixture(scope="module", autouse=True)
def _adopt_orphans() -> Iterator[None]:
    """Processes that lose their parent become ours, so that nothing can hide from `descendants`."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1, 0, 0, 0)
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found |= {child} | descendants(child)
    return found


def running(pids: set[int]) -> set[int]:
    """Those that are no zombies."""
    alive = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z":
                alive.add(pid)
    return alive


def eventually_none(new: set[int], seconds: float = 3.0) -> bool:
    deadline = time.monotonic() + seconds
    while running(new) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(new)


def test_the_default_sandbox_isolates_and_says_how_or_refuses() -> None:
    if all(refusal(mode) is not None for mode in ("namespaces", "bubblewrap", "landlock")):
        with pytest.raises(SandboxError, match="cannot isolate model-written code"):
            Sandbox().describe()
    else:
        assert "seccomp" in Sandbox().describe()
        assert Sandbox().run(HELLO, [Run("world")])[0].stdout == "hello world\n"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_nothing_and_costs_bounded_time(
    sandbox: Sandbox, around: Surroundings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 s: the limit of 1 s a run, the start, and a busy machine."""
    monkeypatch.setenv("SANDBOX_TEST_SECRET", SECRET)
    before, children = around.state(), descendants(os.getpid())
    with open(around.folder / "secret") as inherited:  # an open file of the parent's, for the taking
        os.set_inheritable(inherited.fileno(), True)
        outcome, seconds = run_attack(sandbox, name, around)
    assert "BREACH" not in outcome.stdout
    assert SECRET not in outcome.stdout + outcome.error
    assert around.state() == before
    assert around.bystander.poll() is None
    assert seconds < 5.0
    assert (outcome.status == "timeout") == name.startswith(NEED_ALL_THEIR_TIME)
    assert eventually_none(descendants(os.getpid()) - children)


def test_the_attacks_do_succeed_where_nothing_isolates(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harmless ones, unisolated: so the suite can tell a breach. Also what `allow_unisolated` lets through."""
    monkeypatch.setenv("SANDBOX_TEST_SECRET", SECRET)
    sandbox = Sandbox(LIMITS, allow_unisolated=True, modes=())
    assert sandbox.describe().startswith("none")
    for name in ("environment", "reading the parent's files", "sockets"):
        outcome, _ = run_attack(sandbox, name, around)
        assert "BREACH" in outcome.stdout, name
    around.state()  # takes the connections that were made off the listeners


def test_output_beyond_the_limit_is_cut_and_not_kept(sandbox: Sandbox, around: Surroundings) -> None:
    outcome, _ = run_attack(sandbox, "endless output", around)
    assert outcome.status == "output"
    assert len(outcome.stdout) == LIMITS.output_bytes


def test_memory_beyond_the_limit_is_refused(sandbox: Sandbox) -> None:
    """256 MiB of address space: 100 MiB can be had, 1 GiB cannot."""
    fits = Program("x = bytearray(100 << 20)\nprint(len(x))")
    exceeds = Program("x = bytearray(1 << 30)\nprint(len(x))")
    assert sandbox.run(fits, [Run()])[0].status == "finished"
    assert sandbox.run(exceeds, [Run()])[0].error == "MemoryError"


def test_threads_are_limited_where_the_sandbox_has_a_user_of_its_own() -> None:
    if refusal("namespaces") is not None:
        pytest.skip("no namespaces here")
    limits = Limits(threads=10)
    source = ATTACKS["threads without end"]
    program = Program(f"import threading, time\n{source}")
    outcome = Sandbox(limits, modes=("namespaces",)).run(program, [Run()])[0]
    assert outcome.status == "finished"
    assert int(outcome.stdout.split()[1]) < 10


def test_threads_of_one_program_do_not_count_for_another() -> None:
    if refusal("namespaces") is not None or os.geteuid() != 0:
        pytest.skip("no namespaces here, or no right to take another uid")
    sandbox = Sandbox(Limits(threads=10), modes=("namespaces",))
    source = (
        "import threading, time\nstop = time.monotonic() + 1\n"
        "many = [threading.Thread(target=lambda: time.sleep(max(0, stop - time.monotonic()))) for _ in range(7)]\n"
        "[t.start() for t in many]\n[t.join() for t in many]\nprint('ok')"
    )
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: sandbox.run(Program(source), [Run()])[0], range(4)))
    assert [outcome.stdout for outcome in outcomes] == ["ok\n"] * 4


def test_a_programs_time_grows_with_its_runs(sandbox: Sandbox) -> None:
    short = Sandbox(Limits(total_s=0.1, mean_s=1.0), modes=sandbox.modes)
    outcomes = short.run(Program("import time\ntime.sleep(0.05)"), [Run()] * 8)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 8


def test_a_programs_own_folder_is_empty_writable_and_small(around: Surroundings) -> None:
    if refusal("namespaces") is not None:
        pytest.skip("no namespaces here")
    source = (
        "import os\nprint(os.listdir('/tmp'))\nopen('/tmp/x', 'w').write('a')\nprint(open('x').read())\n"
        "try:\n    for i in range(9): open(f'/tmp/{i}', 'wb').write(bytes(200_000))\n"
        "except OSError as error: print(error.strerror)"
    )
    outcome = Sandbox(LIMITS, modes=("namespaces",)).run(Program(source), [Run()])[0]
    assert outcome.stdout == "[]\na\nNo space left on device\n"
    assert not (Path("/tmp/x").is_file() and Path("/tmp/x").read_text() == "a")


def test_a_run_that_fails_takes_no_other_run_with_it(sandbox: Sandbox) -> None:
    source = (
        "import os, time\nn = int(input())\n"
        "if n == 1: os._exit(0)\nif n == 2: os.abort()\nif n == 3: raise ValueError('three')\n"
        "if n == 4: time.sleep(1000)\nif n == 5: sum(bytearray(1 << 30))\nprint(n)"
    )
    outcomes = sandbox.run(Program(source), [Run(str(n)) for n in range(7)])
    statuses = ["finished", "died", "died", "error", "timeout", "error", "finished"]
    assert [outcome.status for outcome in outcomes] == statuses
    assert [outcome.error for outcome in outcomes][3:6:2] == ["ValueError: three", "MemoryError"]


def test_runs_after_the_programs_time_are_timeouts_and_not_run(sandbox: Sandbox) -> None:
    short = Sandbox(Limits(wall_s=0.4, total_s=1.0, mean_s=0.01), modes=sandbox.modes)
    outcomes = short.run(Program("while True: pass"), [Run()] * 50)
    assert [outcome.status for outcome in outcomes] == ["timeout"] * 50
    assert sum(outcome.seconds for outcome in outcomes) < 3.0


def test_results_do_not_depend_on_hash_or_random_seeds(sandbox: Sandbox) -> None:
    program = Program("import random\nprint(hash('x'), list({'a', 'b', 'c', 'd'}), random.random())")
    outcomes = [sandbox.run(program, [Run()])[0].stdout for _ in range(3)]
    assert len(set(outcomes)) == 1


def test_many_threads_can_share_a_sandbox(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda n: sandbox.run(HELLO, [Run(str(n))])[0].stdout, range(12)))
    assert outcomes == [f"hello {n}\n" for n in range(12)]


def test_nothing_outlives_a_parent_that_is_killed(sandbox: Sandbox) -> None:
    script = (
        "import sys\nfrom llm.rewards.sandbox import *\n"
        f"box = Sandbox(Limits(wall_s=60.0), modes=({sandbox.modes[0]!r},))\n"
        "print(box.describe(), flush=True)\nbox.run(Program('import time; time.sleep(1000)'), [Run()])"
    )
    before = descendants(os.getpid())
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        assert sandbox.modes[0] in parent.stdout.readline().decode()
        deadline = time.monotonic() + 10
        while len(descendants(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)  # into the run
        inside = descendants(parent.pid)
        assert len(running(inside)) >= 2
        parent.send_signal(signal.SIGKILL)
    assert eventually_none(inside | (descendants(os.getpid()) - before))


def other_users_python() -> str | None:
    """An interpreter that another user may run, 3.11 or newer."""
    for path in (os.path.realpath(sys.executable), shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if path is not None:
            test = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            with contextlib.suppress(OSError):
                if subprocess.run(test, user=65534, group=65534, extra_groups=[], cwd="/", check=False).returncode == 0:
                    return path
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run without root's rights")
@pytest.mark.parametrize("mode", ["namespaces", "bubblewrap", "landlock"])
def test_the_attacks_are_contained_for_a_user_without_roots_rights_too(mode: str) -> None:
    python = other_users_python()
    if python is None:
        pytest.skip("no Python here that another user may run")
    done = subprocess.run(
        [python, "-B", str(ROOT / "tests/sandbox_attacks.py"), mode],
        user=65534, group=65534, extra_groups=[], cwd="/", env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if "SandboxError" in done.stderr:
        pytest.skip(f"the sandbox refused, as it must: {done.stderr.splitlines()[-1]}")
    report = json.loads(done.stdout)
    assert mode in report["describe"]
    assert not report["changed"]
    assert list(report["attacks"]) == list(ATTACKS)
    assert not [name for name, (_, stdout, _, _) in report["attacks"].items() if "BREACH" in stdout]


def test_limits_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="wall_s must be positive"):
        Limits(wall_s=0.0)


def test_bubblewrap_that_is_not_installed_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.rewards.sandbox.shutil.which", lambda name: None)
    monkeypatch.setattr("llm.rewards.sandbox._probed", {})
    with pytest.raises(SandboxError, match="bubblewrap is not installed"):
        Sandbox(modes=("bubblewrap",)).describe()


def test_the_next_mode_is_taken_where_one_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    if refusal("namespaces") is not None:
        pytest.skip("no namespaces here")
    monkeypatch.setattr("llm.rewards.sandbox.shutil.which", lambda name: None)
    monkeypatch.setattr("llm.rewards.sandbox._probed", {})
    assert Sandbox(modes=("bubblewrap", "namespaces")).describe().startswith("namespaces")
