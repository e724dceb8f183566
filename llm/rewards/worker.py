"""A pool of warm processes for functions that may hang, exhaust the memory, or crash.

A worker imports the function's module once and then forks a *server*, which answers requests one by one. The server
runs under a limit of CPU time for each request (a signal that kills it, even inside C code), a limit of memory, and,
where the kernel offers it, without the right to write files (Landlock), open sockets or start processes (seccomp). When
it dies, the worker says so and forks the next one in milliseconds, without importing anything again. CPU time and not
wall time, so that an answer does not depend on what else the machine is doing; a much longer wall time is the backstop.

Requests and answers are JSON. Nothing here uses signals of the calling process, so any thread may call.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from llm.rewards import kernel
from llm.rewards.frames import ChildGoneError, ChildStalledError, read_frame, receive, write_frame

__all__ = ["Reply", "WorkerError", "WorkerPool", "serve"]

_STARTUP_S = 120.0
_LARGEST_REPLY = 1 << 24
_BACKSTOP = 20.0
"""Wall seconds for each CPU second of the limit before a worker counts as stuck."""
_RENEW = 3


class WorkerError(RuntimeError):
    """A worker cannot be started; the message is one line that says why."""


@dataclass(frozen=True)
class Reply:
    """`value` is the function's where `status` is "done"; "memory", "timeout": a limit was hit; "crashed": anything
    else, an exception included (`value` names it)."""

    status: Literal["done", "timeout", "memory", "crashed"]
    value: Any = None


@dataclass(frozen=True)
class WorkerPool:
    """Runs ``function(request) -> answer`` (plain data both) in worker processes, started when first used.

    function: "package.module:name". cpu_s: CPU seconds for each request. memory_bytes: address space of a server.
    size: how many workers at most. Safe to use from several threads, and after a fork.
    """

    function: str
    cpu_s: float = 2.0
    memory_bytes: int = 1 << 30
    size: int = 2
    _idle: queue.LifoQueue[_Worker | None] = field(default_factory=queue.LifoQueue, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.cpu_s <= 0 or self.memory_bytes <= 0 or self.size < 1:
            raise ValueError("cpu_s and memory_bytes must be positive and size at least 1")
        for _ in range(self.size):
            self._idle.put(None)

    def map(self, requests: Sequence[Any]) -> list[Reply]:
        """The replies, in order. Raises WorkerError if no worker can be started."""
        if not requests:
            return []
        with ThreadPoolExecutor(min(self.size, len(requests))) as threads:
            return list(threads.map(self.call, requests))

    def call(self, request: Any) -> Reply:
        """One reply; waits while all workers are busy. Raises WorkerError if none can be started."""
        worker = self._idle.get()
        try:
            if worker is not None and worker.owner == os.getpid():
                if (reply := worker.call(request)) is not None:
                    return reply
                worker.close()  # perhaps it was lost before this request: ask a new one
            worker = None
            worker = _Worker(self.function, self.cpu_s, self.memory_bytes)
            if (reply := worker.call(request)) is not None:
                return reply
            worker.close()
            worker = None
            return Reply("crashed", "the worker was lost")
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the workers that are idle; the next call starts new ones."""
        for _ in range(self._idle.qsize()):
            worker = self._idle.get()
            self._idle.put_nowait(None)
            if worker is not None and worker.owner == os.getpid():
                worker.close()


class _Worker:
    def __init__(self, function: str, cpu_s: float, memory_bytes: int) -> None:
        self.owner = os.getpid()
        self._wait_s = 5.0 + _BACKSTOP * cpu_s
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-c", "from llm.rewards.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={
                "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        try:
            write_frame(self._to, {"function": function, "cpu_s": cpu_s, "memory_bytes": memory_bytes})
            hello = receive(self._from, _STARTUP_S, _LARGEST_REPLY)
        except (OSError, ChildGoneError, ChildStalledError) as error:
            hello = f"it did not start ({type(error).__name__})"
        if hello != "ready":
            self.close()
            raise WorkerError(f"the worker for {function} cannot run: {hello}")

    def call(self, request: Any) -> Reply | None:
        """None if the worker is lost."""
        try:
            poll = select.poll()
            poll.register(self._from, select.POLLIN)
            while poll.poll(0):  # a server that died idle
                receive(self._from, self._wait_s, _LARGEST_REPLY)
            write_frame(self._to, request)
            status, value = receive(self._from, self._wait_s, _LARGEST_REPLY)
        except ChildStalledError:
            self.close()
            return Reply("timeout")
        except (OSError, ChildGoneError, ValueError):
            return None
        return Reply(status, value)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


# --- the worker's side ------------------------------------------------------------------------------------------------


def serve() -> None:
    """The main loop of a worker process: imports, then one server after another until stdin ends."""
    options: dict[str, Any] = read_frame(0) or {}
    try:
        module, _, name = options["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        write_frame(1, f"{type(error).__name__}: {error}")
        return
    write_frame(1, "ready")
    while True:
        server = os.fork()
        if server == 0:
            try:
                _answer(function, options["cpu_s"], options["memory_bytes"])
            finally:
                os._exit(1)
        _, status = os.waitpid(server, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == _RENEW):
            timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
            write_frame(1, ["timeout" if timed_out else "crashed", None])


def _answer(function: Callable[[Any], Any], cpu_s: float, memory_bytes: int) -> None:
    """A server: answers until stdin ends (exit 0), or until the memory was exhausted once (then it is renewed)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with contextlib.suppress(OSError):
        kernel.die_with_parent()
        kernel.no_new_privileges()
        with contextlib.suppress(OSError):  # an older kernel; the filter of system calls does not tell files apart
            kernel.landlock(["/"], ["/dev/null"])
        kernel.seccomp(kernel.seccomp_program(os.getpid()))
    while (request := read_frame(0)) is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF is not handled: it ends the process
        try:
            reply = ["done", function(request)]
        except MemoryError:
            reply = ["memory", None]
        except Exception as error:
            reply = ["crashed", type(error).__name__]
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(1, reply)
        if reply[0] == "memory":
            os._exit(_RENEW)
    os._exit(0)
