"""Running programs that a model wrote: locked in, limited, and never asked whether they were right.

What holds a program in, in the order in which a mode is tried:

- `namespaces`: own user, pid, net, mount, ipc and uts namespaces; a private root that holds the standard library,
  read-only, and an empty /tmp; no /proc; Landlock where the kernel has it; a system call filter; rlimits. Root first
  gives up its uid.
- `bubblewrap`: the same, the namespaces made by `bwrap`, for systems that reserve them for it.
- `landlock`: no namespaces are to be had (most containers). Landlock (ABI 3 or newer) denies every file but the
  standard library, the filter denies sockets, signals and processes. No file can be written at all. Names and sizes
  of files outside can still be asked for, their content not.

The system call filter is part of every mode: no fork, no exec, no socket, no ptrace, signals only to oneself. So one
program is one process, its memory is its address space, and it can leave nothing behind. Where no mode is to be had,
`Sandbox` refuses, unless `allow_unisolated=True` says that the code may do what it likes to this machine.

Isolation does not make a result true. The expected output never enters the sandbox; what the program printed or
returned comes out as text, must be plain data, and is compared by the caller. A run counts only if the program came to
its end and the harness said so under the run's nonce: an exit code says nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import llm
from llm.rewards.frames import ChildGoneError, ChildStalledError, receive, write_frame

__all__ = ["Limits", "Outcome", "Program", "Run", "Sandbox", "SandboxError"]

Mode = Literal["namespaces", "bubblewrap", "landlock", "none"]
_MODES: tuple[Mode, ...] = ("namespaces", "bubblewrap", "landlock")
NO_TIME_LEFT = "no time left"
"""The `error` of a run that was not started."""
_STARTUP_S = 20.0
_GRACE_S = 2.0


class SandboxError(RuntimeError):
    """No isolation, or not as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. Times in seconds, sizes in bytes.

    cpu_s, wall_s: of one run. total_s, mean_s: all runs of a program have the larger of total_s and mean_s a run in
    wall time; runs that it leaves no time for are not started and count as timed out. memory_bytes: address space.
    output_bytes: of what is printed and of what is returned, each.
    tmp_bytes: of its /tmp in all. threads: at a time.
    """

    cpu_s: int = 6
    wall_s: float = 8.0
    total_s: float = 30.0
    mean_s: float = 2.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 8 << 20
    tmp_bytes: int = 16 << 20
    threads: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"Limits.{name} must be positive, got {value}")


@dataclass(frozen=True)
class Program:
    """Python source. `function` None: a script from standard input to standard output; else the function (or method of
    a class `Solution`) that is called and whose value is the result."""

    source: str
    function: str | None = None


@dataclass(frozen=True)
class Run:
    """One run's input: the text for a script, the arguments for a function."""

    stdin: str = ""
    arguments: Sequence[Any] = ()


@dataclass(frozen=True)
class Outcome:
    """What one run gave. `stdout` and `value` are the program's claims; only `status == "finished"` makes them count.

    finished: it came to its end. error: it raised (`error` says what). timeout: wall or CPU time, or the program's
    total. output: it wrote too much. died: it ended in another way (a crash, `os._exit`).
    """

    status: Literal["finished", "error", "timeout", "output", "died"]
    stdout: str = ""
    value: Any = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Sandbox:
    """Runs programs, each in a process tree of its own; safe to use from several threads.

    Raises SandboxError on first use where nothing can isolate and `allow_unisolated` is False.
    `modes`: the modes to try, in order.
    """

    limits: Limits = field(default_factory=Limits)
    allow_unisolated: bool = False
    modes: tuple[Mode, ...] = _MODES

    def describe(self) -> str:
        """The isolation in force on this machine, in words."""
        mode, layers = self._isolation
        return f"{mode}: {', '.join(layers)}" if layers else "none: model-written code runs with the user's rights"

    def run(self, program: Program, runs: Sequence[Run]) -> list[Outcome]:
        """The outcome of each run; always as many as `runs`. Each is a process of its own; only /tmp is shared by them.

        Raises SandboxError if the sandbox itself cannot be started.
        """
        mode, _ = self._isolation
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + max(self.limits.total_s, self.limits.mean_s * len(runs))
        while len(outcomes) < len(runs) and time.monotonic() < deadline:
            with _Child(mode, self.limits) as child:  # a second one only if a run took the supervisor down
                child.load(program)
                for run in runs[len(outcomes) :]:
                    outcome = child.run(run, deadline)
                    outcomes.append(outcome or Outcome("died"))
                    if outcome is None or time.monotonic() >= deadline:
                        break
        return outcomes + [Outcome("timeout", error=NO_TIME_LEFT)] * (len(runs) - len(outcomes))

    @cached_property
    def _isolation(self) -> tuple[Mode, tuple[str, ...]]:
        with _probing:
            return _strongest(self.modes, self.allow_unisolated)


_probing = threading.Lock()
_probed: dict[Mode, tuple[str, ...] | SandboxError] = {}


def _strongest(modes: Sequence[Mode], allow_unisolated: bool) -> tuple[Mode, tuple[str, ...]]:
    """The first mode that starts here, by starting it; probed once a process."""
    for mode in modes:
        if mode not in _probed:
            try:
                with _Child(mode, Limits()) as child:
                    _probed[mode] = tuple(child.layers)
            except SandboxError as error:
                _probed[mode] = error
        found = _probed[mode]
        if not isinstance(found, SandboxError):
            return mode, found
    if allow_unisolated:
        return "none", ()
    reasons = "; ".join(f"{mode}: {_probed[mode]}" for mode in modes)
    raise SandboxError(
        "this machine cannot isolate model-written code, so none is run. Allow unprivileged user namespaces, install "
        f"bubblewrap, or use a kernel with Landlock (Linux 6.2); or pass allow_unisolated=True ({reasons})"
    )


# the package alone goes on the path, and only until it is imported
_BOOT = (
    "import sys; sys.path.insert(0, {root!r}); from llm.rewards.sandbox_child import main; sys.path.pop(0); "
    "main({mode!r})"
)
_PACKAGE = Path(llm.__file__).parent
_CHILD_FILES = (
    "__init__.py",
    "rewards/__init__.py",
    "rewards/frames.py",
    "rewards/kernel.py",
    "rewards/sandbox_child.py",
)


class _Child:
    """A supervisor and what it runs, from its start to the end of its namespace."""

    def __init__(self, mode: Mode, limits: Limits) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"the sandbox needs Linux, this is {sys.platform}")
        self._limits = limits
        self._process = subprocess.Popen(
            _command(mode, limits.tmp_bytes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # the harness's own; a program's goes to /dev/null
            bufsize=0,
            cwd="/",
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        try:
            self.layers = self._hello()
        except BaseException:
            self._end()
            raise

    def _hello(self) -> list[str]:
        try:
            write_frame(self._to, vars(self._limits))
            report = receive(self._from, _STARTUP_S, 1 << 16)
        except (OSError, ChildGoneError, ChildStalledError):
            self._process.kill()
            assert self._process.stderr is not None
            words = self._process.stderr.read(1 << 16).decode(errors="replace").strip().rpartition("\n")[2]
            raise SandboxError(f"the process did not start ({words[:300] or 'no message'})") from None
        if "refused" in report:
            raise SandboxError(report["refused"])
        return list(report["layers"])

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Returns when nothing is left: the launcher ends after its namespace."""
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def load(self, program: Program) -> None:
        with _gone_is_an_error():
            write_frame(self._to, {"source": program.source, "function": program.function})

    def run(self, run: Run, deadline: float) -> Outcome | None:
        """None if the supervisor was lost."""
        nonce = secrets.token_hex(16)
        wall = min(self._limits.wall_s, max(0.01, deadline - time.monotonic()))
        message = {"nonce": nonce, "stdin": run.stdin, "arguments": list(run.arguments), "wall_s": wall}
        try:
            write_frame(self._to, message)
            reply = receive(self._from, wall + _GRACE_S, 8 * self._limits.output_bytes + (16 << 20))
        except (OSError, ChildGoneError):
            return None
        except ChildStalledError:
            self._process.terminate()
            return Outcome("timeout", error="the supervisor did not answer")
        return _outcome(reply, nonce)


@contextmanager
def _gone_is_an_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SandboxError(f"the sandbox ended ({error})") from None


def _outcome(reply: dict[str, Any], nonce: str) -> Outcome:
    status, stdout, seconds = reply["status"], reply["stdout"], reply["seconds"]
    if status != "ended":
        return Outcome(status, stdout, seconds=seconds)
    try:
        answer = json.loads(reply["result"])
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or answer.get("nonce") != nonce:
        return Outcome("died", stdout, seconds=seconds)
    if "value" not in answer:
        return Outcome("error", stdout, error=str(answer.get("error", ""))[:300], seconds=seconds)
    return Outcome("finished", stdout, answer["value"], seconds=seconds)


def _command(mode: Mode, tmp_bytes: int) -> list[str]:
    """The bare interpreter (not the virtual environment's, no site-packages) on the child's module."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    command = [python, "-S", "-P", "-s", "-B", "-c", _BOOT.format(root=str(_PACKAGE.parent), mode=mode)]
    return [*_bubblewrap(python, tmp_bytes), *command] if mode == "bubblewrap" else command


def _bubblewrap(python: str, tmp_bytes: int) -> list[str]:
    """The options of bubblewrap 0.7 or newer (older ones cannot limit the size of /tmp, fail, and are not used)."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError("bubblewrap is not installed")
    if os.geteuid() == 0:
        raise SandboxError("bubblewrap is not used by root, who could not give up its uid inside")
    files = [str(_PACKAGE / name) for name in _CHILD_FILES]
    system = [d for d in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache") if os.path.exists(d)]
    shown = [python, f"{sys.base_prefix}/lib", *system, *files]
    binds = [word for path in dict.fromkeys(shown) for word in ("--ro-bind", path, path)]
    return [
        bwrap, "--unshare-all", "--die-with-parent", "--new-session", *binds, "--dev", "/dev", "--proc", "/proc",
        "--size", str(tmp_bytes), "--tmpfs", "/tmp", "--remount-ro", "/", "--",
    ]  # fmt: skip
