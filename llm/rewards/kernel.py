"""What Linux offers to lock a process in, by ctypes: namespaces, a private root, Landlock, seccomp, capabilities.

References: namespaces(7), mount_namespaces(7), pivot_root(2), landlock(7), seccomp(2), capabilities(7). Every function
raises OSError where the kernel refuses; what to do about it is the caller's business (`llm.rewards.sandbox_child`).
All changes are to the calling process (or thread) and its children and cannot be taken back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
from collections.abc import Iterable

__all__ = [
    "NAMESPACES",
    "bind",
    "die_with_parent",
    "drop_capabilities",
    "landlock",
    "landlock_abi",
    "make_read_only",
    "mount",
    "no_new_privileges",
    "pivot_root",
    "seccomp",
    "seccomp_program",
    "unmount",
    "unshare",
]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]

# --- numbers of the system calls, x86-64 and 64-bit ARM (None: the architecture has none) -----------------------------

_PLAIN: dict[str, tuple[int | None, int | None]] = {
    # files: names are confined by the mount namespace or by Landlock
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "open": (2, None),
    "openat": (257, 56), "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49),
    "statfs": (137, 43), "fstatfs": (138, 44), "fcntl": (72, 25), "ioctl": (16, 29), "flock": (73, 32),
    "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "mkdir": (83, None), "mkdirat": (258, 34),
    "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "umask": (95, 166),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "membarrier": (324, 283),
    # waiting and time
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "setitimer": (38, 103), "getitimer": (36, 102), "alarm": (37, None), "pause": (34, None),
    # oneself
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "uname": (63, 160), "sysinfo": (99, 179), "getrlimit": (97, 163),
    "getrandom": (318, 278), "arch_prctl": (158, None), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
    # threads
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
}  # fmt: skip
"""Allowed whatever the arguments. Not here, so refused: fork, exec, sockets, ptrace, other processes' memory, mounts,
namespaces, chmod, chown, links, shared memory, memfd, io_uring, bpf, keys, and what kernels to come may add."""

_MACHINES = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_KILL, _TGKILL, _PRLIMIT = (62, 129), (234, 131), (302, 261)
_CAPSET, _PIVOT_ROOT = (126, 91), (155, 41)
_MOUNT_SETATTR, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 442, 444, 445, 446


def _machine() -> int:
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"the system call filter is not written for {platform.machine()}")
    return _MACHINES[platform.machine()]


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(number: int, what: str, *args: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args), what)


# --- namespaces and mounts --------------------------------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
NAMESPACES = {"mount": CLONE_NEWNS, "pid": CLONE_NEWPID, "net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
"""Without the user namespace, which root does not need."""

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 2, -100, 0x8000, 1


def unshare(flags: int) -> None:
    """Enters new namespaces; a new pid namespace holds from the next fork on."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    _check(_libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(options)), f"mount {target}")


def bind(source: str, target: str) -> None:
    """Shows `source` (a file or a folder) at `target`, which is made where it is missing."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_RDONLY, 0o444))
    mount(source, target, None, MS_BIND | MS_REC)


def unmount(target: str) -> None:
    """Detaches a mount with all that is mounted below it."""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def make_read_only(target: str) -> None:
    """Makes a mount and all below it read-only (Linux 5.12)."""
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _syscall(
        _MOUNT_SETATTR, "mount_setattr", _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes,
        ctypes.c_size_t(len(attributes)),
    )  # fmt: skip


def pivot_root(new_root: str, put_old: str) -> None:
    _syscall(_PIVOT_ROOT[_machine()], "pivot_root", new_root.encode(), put_old.encode())


# --- privileges -------------------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_SIGKILL = 9


def die_with_parent() -> None:
    """SIGKILL to this process when its parent dies. To be set after the last change of credentials."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl PDEATHSIG")


def no_new_privileges() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl DUMPABLE")


def drop_capabilities() -> None:
    """Gives up every capability, for this process and whatever it may execute."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = struct.pack("Ii", 0x20080522, 0)
    _syscall(_CAPSET[_machine()], "capset", header, struct.pack("6I", *[0] * 6))


# --- Landlock ---------------------------------------------------------------------------------------------------------

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_WRITE = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8) | (1 << 14)  # write, remove, make, truncate
_ON_FILES = (1 << 1) | _READ_FILE | (1 << 14)


def landlock_abi() -> int:
    """The kernel's Landlock ABI version; 0 where there is none."""
    return max(0, _libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), 1))


def landlock(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Denies all files but these trees (and TCP from ABI 4, signals to others from ABI 6). Returns the ABI used.

    Raises OSError below ABI 3, which does not know truncation.
    """
    abi = landlock_abi()
    if abi < 3:
        raise OSError(errno.ENOSYS, f"Landlock ABI 3 (Linux 6.2) is needed, this kernel has {abi}")
    handled = _ALL_RIGHTS[min(abi, 5)]
    fields = (handled, 3, 3)[: 1 if abi < 4 else 2 if abi < 6 else 3]  # files; TCP bind, connect; sockets, signals
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _syscall(_CREATE_RULESET, "landlock", attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in writable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR | _WRITE)
        _syscall(_RESTRICT_SELF, "landlock", ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _ON_FILES
        _syscall(_ADD_RULE, f"landlock {path}", ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


# --- seccomp ----------------------------------------------------------------------------------------------------------

_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCH, _ARG0 = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def seccomp_program(pid: int) -> bytes:
    """A filter (classic BPF) for process `pid`: the plain calls, threads, and signals and limits of its own.

    Everything else fails with EPERM; a call by another architecture's table ends the process. clone3 fails with ENOSYS,
    because its flags lie in memory that a filter cannot read; C libraries then fall back to clone.
    """
    machine = _machine()
    program = [(_LOAD, 0, 0, _ARCH), (_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL_PROCESS)]
    program.append((_LOAD, 0, 0, _NUMBER))
    for numbers in _PLAIN.values():
        number = numbers[machine]
        if number is not None:
            program += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [(_IF_EQUAL, 0, 1, _CLONE3[machine]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number, test in (
        (_CLONE[machine], (_IF_SET, 0, 1, _CLONE_THREAD)),
        (_KILL[machine], (_IF_EQUAL, 0, 1, pid)),
        (_TGKILL[machine], (_IF_EQUAL, 0, 1, pid)),
        (_PRLIMIT[machine], (_IF_EQUAL, 0, 1, 0)),
    ):
        program += [(_IF_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARG0), test]
        program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    program.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("HBBI", *line) for line in program)


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp(program: bytes) -> None:
    """Installs a filter; needs `no_new_privileges` first."""
    prog = _SockFprog(len(program) // 8, program)
    _check(_libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(prog), 0, 0), "prctl SECCOMP")
