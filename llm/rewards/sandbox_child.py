"""The far side of `llm.rewards.sandbox`: locks itself in, then runs a program once for each input it is sent.

Three kinds of process, from the outside in. The *launcher* is started by the parent, enters the namespaces and waits.
The *supervisor* (process 1 of the new pid namespace, so that all inside die with it) locks itself in, reports what it
achieved, and forks one *candidate* for each input. Only the candidate runs foreign code, under a system call filter
that knows no fork, no exec and no socket; it holds no pipe to the parent. It is never asked for a verdict: what it
printed or returned goes to the parent as text, and the expected output never comes here.

Nothing but the standard library is imported, because this file runs in a bare interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import json
import os
import random
import resource
import select
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from llm.rewards import kernel
from llm.rewards.frames import read_frame, write_frame

__all__ = ["main"]

_CONTROL_IN, _CONTROL_OUT = 0, 1
_RESULT = 3
_NOBODY = 65534
_FIRST_UID = 0x7000_0000
_STACK = 128 << 20
_FUNCTIONS = "solution"
"""The module of a program whose function is called: what stands under a guard of `__main__` must not run there."""
_PRELUDE = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "json", "typing"),
)


def main(mode: str) -> None:
    """Locks this process in as `mode` says and serves programs from stdin to stdout until stdin ends."""
    options: dict[str, Any] = read_frame(_CONTROL_IN) or {}
    prelude = _prelude()
    number = os.getpid()  # before there is a namespace in which it would be 1
    try:
        layers = _enter(mode, options["tmp_bytes"], number)
        if mode != "none":
            kernel.seccomp_program(os.getpid())  # unknown machine: refuse now, not in the candidate
    except OSError as error:
        write_frame(_CONTROL_OUT, {"refused": str(error)})
        return
    write_frame(_CONTROL_OUT, {"layers": layers})
    program: Mapping[str, Any] = {}
    message: dict[str, Any] | None
    while (message := read_frame(_CONTROL_IN)) is not None:
        if "source" in message:
            program = message
        else:
            write_frame(_CONTROL_OUT, _run(mode, program, message, options, prelude))


# --- locking in -------------------------------------------------------------------------------------------------------


def _enter(mode: str, tmp_bytes: int, number: int) -> list[str]:
    """Takes every layer of a mode; the names of the layers in force. Raises OSError if one that it needs is refused.

    number: that of this sandbox, different for all that run at a time.
    """
    if mode == "none":
        return []
    layers = []
    trees = _readable_trees()
    writable: list[str] = []
    if mode == "namespaces":
        layers += [_new_namespaces(), "a private root"]
        _private_root(trees, tmp_bytes)
        writable = ["/tmp"]
    elif mode == "bubblewrap":
        layers += ["bubblewrap (user, pid, net, mount, ipc, uts namespaces, a private root)"]
        writable = ["/tmp"]
    if os.geteuid() == 0:
        _become_nobody(number)
        layers.append("root's uid dropped")
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    if mode != "landlock":
        kernel.die_with_parent()
    os.chdir("/tmp" if writable else "/")
    _check_standard_library()
    try:
        abi = kernel.landlock([*trees, "/dev/urandom"], [*writable, "/dev/null"])
        layers.append(f"Landlock (ABI {abi})")
    except OSError:
        if mode == "landlock":
            raise
    return [*layers, "seccomp", "rlimits"]


def _readable_trees() -> list[str]:
    """What a running interpreter may still want to read: the standard library and the folders of its libraries."""
    trees = {os.path.dirname(os.path.realpath(os.__file__))}
    with open("/proc/self/maps") as maps:
        mapped = {line.split(None, 5)[5].strip() for line in maps if len(line.split(None, 5)) == 6}
    program = os.path.realpath(sys.executable)
    trees |= {os.path.dirname(path) for path in mapped if path.startswith("/") and path != program}
    trees |= {path for path in ("/etc/ld.so.cache",) if os.path.exists(path)}
    trees.discard("/")
    return sorted(t for t in trees if not any(t != other and t.startswith(other + "/") for other in trees))


def _new_namespaces() -> str:
    """New namespaces; the caller goes on as process 1 of the new pid namespace, the old process waits and ends."""
    uid, gid = os.geteuid(), os.getegid()
    names = ["user", *kernel.NAMESPACES] if uid else list(kernel.NAMESPACES)
    kernel.unshare(sum(kernel.NAMESPACES.values()) | (kernel.CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_NOBODY} {uid} 1"),
            ("gid_map", f"{_NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    child = os.fork()
    if child:
        _wait_for(child)
    kernel.die_with_parent()  # again in _enter: a change of credentials clears it
    return f"{', '.join(names)} namespaces"


def _wait_for(child: int) -> NoReturn:
    """The launcher's end: its own death ends the namespace, and it ends after the namespace."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    os.close(_CONTROL_IN)
    os.close(_CONTROL_OUT)
    os.waitpid(child, 0)
    os._exit(0)


def _private_root(trees: list[str], tmp_bytes: int) -> None:
    """A root of its own: the trees, read-only, at their old names; /dev/null and /dev/urandom; an empty /tmp."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    os.umask(0o022)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", flags, "mode=755,size=1m")
    os.mkdir("/tmp/.old")
    kernel.pivot_root("/tmp", "/tmp/.old")
    os.chdir("/")
    for path in (*trees, "/dev/null", "/dev/urandom"):
        kernel.bind(f"/.old{path}", path)
    kernel.unmount("/.old")
    os.rmdir("/.old")
    os.makedirs("/tmp", exist_ok=True)
    kernel.make_read_only("/")
    kernel.mount("tmpfs", "/tmp", "tmpfs", flags, f"mode=1777,size={tmp_bytes}")


def _become_nobody(number: int) -> None:
    """A uid that no other sandbox has, so that its limit on threads counts its own; `nobody` where uids are few."""
    os.setgroups([])
    for uid in (_FIRST_UID + number, _NOBODY):
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return
        except OSError:
            if uid == _NOBODY:
                raise


def _check_standard_library() -> None:
    try:
        with open(os.__file__, "rb"):
            pass
    except OSError as error:
        raise OSError(f"without root's rights the Python at {sys.base_prefix} cannot be read ({error})") from None


# --- one run ----------------------------------------------------------------------------------------------------------


def _prelude() -> dict[str, Any]:
    """The names that LiveCodeBench puts before a program: modules of the standard library and what they export.

    `sys` and its names are added in the candidate.
    """
    names: dict[str, Any] = {}
    modules = {name: importlib.import_module(name) for name in _PRELUDE}
    for module in modules.values():
        public = getattr(module, "__all__", [n for n in dir(module) if not n.startswith("_")])
        names.update({n: getattr(module, n) for n in public})
    names.update({n: v for n, v in vars(importlib.import_module("builtins")).items() if not n.startswith("_")})
    return {**names, **modules}


def _run(
    mode: str, program: Mapping[str, Any], test: Mapping[str, Any], options: Mapping[str, Any], prelude: dict[str, Any]
) -> dict[str, Any]:
    """Forks a candidate for one input and watches it: {status, stdout, result, seconds}."""
    began = time.monotonic()
    stdin = _sealed_file(test["stdin"])
    out_read, out_write = os.pipe()
    result_read, result_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _candidate(mode, (stdin, out_write, result_write), program, test, options, prelude)
        finally:
            os._exit(1)
    for fd in (stdin, out_write, result_write):
        os.close(fd)
    try:
        status, texts = _watch(pid, (out_read, result_read), test["wall_s"], options["output_bytes"])
    finally:
        _kill(mode, pid)
        for fd in (out_read, result_read):
            os.close(fd)
    stdout, result = (bytes(text).decode("utf-8", "replace") for text in texts)
    return {"status": status, "stdout": stdout, "result": result, "seconds": time.monotonic() - began}


def _sealed_file(text: str) -> int:
    """Standard input as a file in memory that cannot be changed: no writer is needed that could block."""
    fd = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _watch(pid: int, pipes: tuple[int, int], wall_s: float, max_bytes: int) -> tuple[str, list[bytearray]]:
    """Reads both pipes until the candidate ends, its time is up, it has written too much, or the parent is gone."""
    deadline = time.monotonic() + wall_s
    texts = [bytearray(), bytearray()]
    ended = os.pidfd_open(pid)
    poll = select.poll()
    for fd in (*pipes, ended):
        poll.register(fd, select.POLLIN)
    poll.register(_CONTROL_IN, 0)  # hang-up only
    try:
        while True:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(0.0, left) * 1000))
            if left <= 0 or _CONTROL_IN in ready:
                return "timeout", texts
            for fd, text in zip(pipes, texts, strict=True):
                if fd in ready and not _take(fd, text):
                    poll.unregister(fd)
                if len(text) > max_bytes:
                    del text[max_bytes:]
                    return "output", texts
            if ended in ready and not (ready.keys() & set(pipes)):
                return _how_it_ended(pid), texts
    finally:
        os.close(ended)


def _take(fd: int, text: bytearray) -> bool:
    chunk = os.read(fd, 1 << 20)
    text += chunk
    return bool(chunk)


def _how_it_ended(pid: int) -> str:
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    killed_by = info.si_status if info is not None and info.si_code != os.CLD_EXITED else 0
    return "timeout" if killed_by in (signal.SIGXCPU, signal.SIGKILL) else "died" if killed_by else "ended"


def _kill(mode: str, pid: int) -> None:
    if mode == "none":  # without a filter it may have forked; what left its process group is not found
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# --- inside the candidate ---------------------------------------------------------------------------------------------


def _candidate(
    mode: str,
    fds: tuple[int, int, int],
    program: Mapping[str, Any],
    test: Mapping[str, Any],
    options: Mapping[str, Any],
    prelude: dict[str, Any],
) -> None:
    _take_pipes(fds)
    if mode == "none":
        os.setpgid(0, 0)
    else:
        kernel.die_with_parent()
    _set_limits(mode, options)
    if mode != "none":
        kernel.seccomp(kernel.seccomp_program(os.getpid()))
    try:
        answer: dict[str, Any] = {"value": _execute(program, test, prelude)}
    except BaseException as error:
        answer = {"error": traceback.format_exception_only(error)[-1].strip()[:300], "kind": type(error).__name__}
    data = memoryview(json.dumps({"nonce": test["nonce"], **answer}).encode())
    while data:
        data = data[os.write(_RESULT, data) :]
    os._exit(0)


def _take_pipes(fds: tuple[int, int, int]) -> None:
    """Descriptors 0 to 3 and no other: the pipes to the parent are overwritten."""
    stdin, stdout, result = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in fds)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(os.open("/dev/null", os.O_RDWR), 2)
    os.dup2(result, _RESULT)
    os.closerange(_RESULT + 1, 256)
    text: dict[str, Any] = {"encoding": "utf-8", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, errors="replace", **text)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", errors="replace", **text)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", errors="replace", **text)  # type: ignore[misc]  # noqa: SIM115


def _set_limits(mode: str, options: Mapping[str, Any]) -> None:
    stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    limits = {
        resource.RLIMIT_CPU: options["cpu_s"],
        resource.RLIMIT_FSIZE: options["tmp_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: _STACK if stack == resource.RLIM_INFINITY else min(_STACK, stack),
        resource.RLIMIT_AS: options["memory_bytes"],
    }
    if mode == "namespaces":  # elsewhere the kernel would count the threads of all processes of this user
        limits[resource.RLIMIT_NPROC] = options["threads"]
    for which, limit in limits.items():
        hard = resource.getrlimit(which)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit + 1 if which == resource.RLIMIT_CPU and limit != hard else limit))


def _execute(program: Mapping[str, Any], test: Mapping[str, Any], prelude: dict[str, Any]) -> Any:
    """Runs the program; for a function, calls it on the arguments and returns its value as plain data."""
    sys.setrecursionlimit(50_000)
    random.seed(0)
    name = program["function"]
    module = types.ModuleType("__main__" if name is None else _FUNCTIONS)
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    module.__dict__.update(prelude, sys=sys)
    module.__dict__.update({n: getattr(sys, n) for n in dir(sys) if not n.startswith("_")})
    module.__dict__.pop(name, None)  # it must be the program's own: `add`, say, is in the prelude
    try:
        exec(compile(program["source"], "<program>", "exec"), module.__dict__)
        if name is None:
            _finish()
    except SystemExit:
        if name is not None:
            raise
        _finish()
    if name is None:
        return None
    owner = module.Solution() if "Solution" in module.__dict__ else module
    return _plain(getattr(owner, name)(*test["arguments"]))


def _finish() -> None:
    """What the end of an ordinary interpreter does: waits for threads, runs exit handlers, flushes."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """Plain data only, by exact type: an object that says it equals everything is none. Tuples become lists."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if type(value) is dict and all(type(key) in (str, int, float, bool) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"a value of type {type(value).__name__} is no plain data")
