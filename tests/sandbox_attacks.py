"""Attacks on the sandbox, as programs. Each prints BREACH for what it got through; each is also watched from outside.

`python sandbox_attacks.py MODE` runs all of them and prints what came out as JSON, so that they can be tried as another
user, whose interpreter need not have pytest.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.rewards.sandbox import Limits, Outcome, Program, Run, Sandbox

LIMITS = Limits(
    cpu_s=1, wall_s=1.0, total_s=3.0, mean_s=0.5, memory_bytes=256 << 20, output_bytes=1 << 20, tmp_bytes=1 << 20
)
SECRET = "the-secret-of-the-parent"

_HEAD = """
import ctypes, json, os, sys, threading, time
target = json.loads(input())
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        result = act()
    except Exception as error:
        return None
    if result not in (-1, None, False, b'', ''):
        print('BREACH', name, repr(result)[:200], flush=True)
"""

ATTACKS = {
    "fork bomb": """
while True:
    os.fork()
""",
    "processes by every other way": """
import multiprocessing, pty, subprocess
attempt('popen', lambda: subprocess.Popen(['/bin/sh', '-c', 'sleep 100']).pid)
attempt('system', lambda: os.system('sleep 100') == 0)
attempt('spawn', lambda: os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 100'], {}))
attempt('multiprocessing', lambda: multiprocessing.Process(target=time.sleep, args=(100,)).start() or True)
attempt('pty', lambda: pty.fork()[0] + 1)
attempt('exec', lambda: os.execv(sys.executable, ['python', '-c', 'print("BREACH exec")']))
attempt('vfork', lambda: libc.syscall(58))
attempt('clone', lambda: libc.syscall(56, 17, 0, 0, 0, 0))
attempt('clone3', lambda: libc.syscall(435, (ctypes.c_uint64 * 11)(), 88))
""",
    "daemon": """
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(100)
        os._exit(0)
    return True
attempt('daemon', daemon)
attempt('thread', lambda: threading.Thread(target=time.sleep, args=(100,), daemon=True).start())
""",
    "threads without end": """
started = 0
try:
    while started < 5000:
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
print('started', started)
""",
    "memory bomb": """
blocks = []
while True:
    blocks.append(bytearray(16 << 20))
""",
    "memory outside the address space": """
import mmap, tempfile
attempt('memfd', lambda: os.memfd_create('x'))
attempt('shared map', lambda: len(mmap.mmap(-1, 1 << 30)))
attempt('System V shared memory', lambda: libc.shmget(0, 1 << 20, 0o1777))
def fill():
    for i in range(50):
        with open(f'/tmp/{i}', 'wb') as file:
            file.write(bytes(1 << 20))
    return 'filled'
attempt('/tmp beyond its size', fill)
def huge():
    with open('/tmp/huge', 'wb') as file:
        file.truncate(1 << 40)
    return 'huge'
attempt('huge file', huge)
""",
    "endless output": """
while True:
    os.write(1, b'x' * 65536)
""",
    "endless result": """
while True:
    os.write(3, b'x' * 65536)
""",
    "sleeping": "time.sleep(10 ** 6)",
    "sleeping in a thread that is waited for": "threading.Thread(target=time.sleep, args=(10 ** 6,)).start()",
    "busy, deaf to signals": """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "busy in C code": "sum(range(10 ** 18))",
    "closes its pipes and goes on": """
os.close(0); os.close(1); os.close(2); os.close(3)
while True:
    pass
""",
    "environment": f"""
attempt('environ', lambda: {SECRET[::-1]!r}[::-1] in str(os.environ))
for pid in ('self', '1', str(os.getppid()), str(target['parent'])):
    attempt(f'environ of {{pid}}', lambda: open(f'/proc/{{pid}}/environ', 'rb').read())
    attempt(f'command of {{pid}}', lambda: open(f'/proc/{{pid}}/cmdline', 'rb').read())
""",
    "reading the parent's files": """
for path in (target['secret'], f"/proc/{target['parent']}/root{target['secret']}", f"/proc/self/root{target['secret']}",
             '/etc/passwd', '/etc/shadow', '/etc/hostname', target['package'], '/proc/mounts', '/dev/mem', '/dev/kmsg'):
    attempt(path, lambda: open(path, 'rb').read(100))
for folder in ('/', '/home', '/root', '/etc', os.path.dirname(target['secret'])):
    attempt(folder, lambda: {'passwd', 'proc', 'secret'} & set(os.listdir(folder)) or None)
for fd in range(4, 300):
    attempt(f'descriptor {fd}', lambda: os.fstat(fd))
attempt('link', lambda: os.link(target['secret'], '/tmp/link') or 'linked')
def by_symlink():
    os.symlink(target['secret'], '/tmp/symlink')
    return open('/tmp/symlink').read()
attempt('symlink', by_symlink)
attempt('chroot', lambda: os.chroot('/tmp') or 'chroot')
""",
    "memory of the parent": """
for pid in (os.getppid(), target['parent'], 1):
    attempt(f'mem of {pid}', lambda: open(f'/proc/{pid}/mem', 'rb').read(1))
    attempt(f'ptrace {pid}', lambda: libc.ptrace(16, pid, 0, 0))
    local, buffer = ctypes.create_string_buffer(16), ctypes.create_string_buffer(8)
    attempt(f'process_vm_readv {pid}', lambda: libc.process_vm_readv(pid, local, 1, local, 1, 0))
""",
    "writing outside": """
victim = target['victim']
attempt('write', lambda: open(victim, 'w').write('overwritten'))
attempt('append', lambda: open(victim, 'a').write('appended'))
attempt('truncate', lambda: os.truncate(victim, 0) or 'truncated')
attempt('truncate on open', lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC))
attempt('remove', lambda: os.remove(victim) or 'removed')
attempt('rename', lambda: os.rename(victim, victim + '.x') or 'renamed')
attempt('chmod', lambda: os.chmod(victim, 0o777) or 'chmod')
attempt('chown', lambda: os.chown(victim, 0, 0) or 'chown')
attempt('utime', lambda: os.utime(victim, (0, 0)) or 'utime')
attempt('new file', lambda: open(victim + '.new', 'w').write('new'))
attempt('new folder', lambda: os.mkdir(victim + '.folder') or 'folder')
for path in ('/evil', '/usr/evil', '/dev/shm/evil', '/var/tmp/evil', os.path.dirname(os.__file__) + '/evil.py'):
    attempt(path, lambda: open(path, 'a').write('evil'))
""",
    "sockets": """
import socket
attempt('tcp', lambda: socket.create_connection(('127.0.0.1', target['port']), 0.3).fileno())
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', target['port'])))
attempt('tcp 6', lambda: socket.socket(socket.AF_INET6))
attempt('raw', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt('netlink', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt('vsock', lambda: socket.socket(40, socket.SOCK_STREAM))
def unix(address):
    link = socket.socket(socket.AF_UNIX)
    link.connect(address)
    return link.fileno()
attempt('unix', lambda: unix(target['unix']))
attempt('abstract unix', lambda: unix('\\0' + target['abstract']))
attempt('names', lambda: socket.gethostbyname('localhost'))
attempt('io_uring', lambda: libc.syscall(425, 8, ctypes.create_string_buffer(120)))
""",
    "killing the parent": """
import signal
for pid in (target['parent'], target['bystander'], os.getppid(), 1, -1, 0):
    attempt(f'kill {pid}', lambda: os.kill(pid, 9) or 'killed')
    attempt(f'stop {pid}', lambda: os.kill(pid, 19) or 'stopped')
attempt('killpg', lambda: os.killpg(os.getpgid(target['bystander']), 9) or 'killed')
attempt('pidfd', lambda: os.pidfd_open(target['bystander']))
attempt('tkill', lambda: libc.syscall(200, target['bystander'], 9))
attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, target['bystander'], 19) or 'slowed')
attempt('limits', lambda: libc.syscall(302, target['bystander'], 7, ctypes.create_string_buffer(16), None) == 0)
""",
    "the kernel's doors": """
attempt('new user namespace', lambda: libc.unshare(0x10000000))
attempt('setns', lambda: libc.setns(0, 0))
attempt('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))
attempt('umount', lambda: libc.umount2(b'/tmp', 2))
attempt('setuid', lambda: os.setuid(0) or 'root')
attempt('bpf', lambda: libc.syscall(321, 0, None, 0))
attempt('perf', lambda: libc.syscall(298, None, 0, -1, -1, 0))
attempt('userfaultfd', lambda: libc.syscall(323, 0))
attempt('keyctl', lambda: libc.syscall(250, 0, -3, 0))
attempt('open_by_handle_at', lambda: libc.syscall(304, -100, ctypes.create_string_buffer(128), 0))
attempt('reboot', lambda: libc.syscall(169, 0xfee1dead, 672274793, 0, None))
attempt('seccomp off', lambda: libc.prctl(22, 0, 0, 0, 0))
attempt('outlive the parent', lambda: libc.prctl(1, 0, 0, 0, 0) + 1)
import resource
def more():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
    return 'more memory'
attempt('rlimit', more)
""",
    "calls by the 32-bit table": """
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes([0xB8, 2, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 2 (fork); int 0x80; ret
result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
if result >= 0:
    print('BREACH int 0x80')
""",
}
"""Name -> program, without the common head, which reads the targets from one line of JSON."""


@dataclass
class Surroundings:
    """What the attacks aim at, and how it looked before."""

    folder: Path
    listener: socket.socket
    sockets: list[socket.socket]
    bystander: subprocess.Popen[bytes]
    before: dict[str, Any] = field(default_factory=dict)

    def target(self) -> str:
        return json.dumps(
            {
                "parent": os.getpid(),
                "bystander": self.bystander.pid,
                "secret": str(self.folder / "secret"),
                "victim": str(self.folder / "victim"),
                "package": sys.modules["llm.rewards.sandbox"].__file__,
                "port": self.listener.getsockname()[1],
                "unix": str(self.folder / "socket"),
                "abstract": f"sandbox-test-{os.getpid()}",
            }
        )

    def state(self) -> dict[str, Any]:
        """What an attack could have changed: files and their modes, the bystander, connections made."""
        files = {
            path.name: (oct(path.stat().st_mode), path.stat().st_uid, path.stat().st_mtime, path.stat().st_size)
            for path in sorted(self.folder.iterdir())
        }
        connected = []
        for server in self.sockets:
            with contextlib.suppress(BlockingIOError):
                server.accept() if server.type == socket.SOCK_STREAM else server.recv(1)
                connected.append(str(server.getsockname()))
        stopped = Path(f"/proc/{self.bystander.pid}/stat").read_text().rsplit(")")[1].split()[0] not in "SRD"
        outside = [path for path in ("/evil", "/usr/evil", "/dev/shm/evil", "/var/tmp/evil") if os.path.exists(path)]
        return {"files": files, "connected": connected, "stopped": stopped, "outside": outside}


@contextlib.contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Files with open permissions, listening sockets of three kinds, and a process of the same user."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o777)
        for name in ("secret", "victim"):
            (folder / name).write_text(SECRET)
            (folder / name).chmod(0o666)
        sockets = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0sandbox-test-{os.getpid()}"),
        ):
            server = stack.enter_context(socket.socket(family, kind))
            server.bind(address)
            server.listen()
            sockets.append(server)
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(sockets[0].getsockname())
        for server in (*sockets, udp):
            server.setblocking(False)
        bystander = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        stack.callback(bystander.kill)
        yield Surroundings(folder, sockets[0], [*sockets, udp], bystander)


def run_attack(sandbox: Sandbox, name: str, around: Surroundings) -> tuple[Outcome, float]:
    """The outcome of an attack and the wall time that it cost."""
    began = time.monotonic()
    outcome = sandbox.run(Program(_HEAD + ATTACKS[name]), [Run(around.target() + "\n")])[0]
    return outcome, time.monotonic() - began


def main(mode: Any) -> None:
    os.environ["SANDBOX_TEST_SECRET"] = SECRET
    sandbox = Sandbox(LIMITS, modes=(mode,))
    report: dict[str, Any] = {"describe": sandbox.describe(), "attacks": {}}
    with surroundings() as around:
        before = around.state()
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda name: run_attack(sandbox, name, around), ATTACKS))
        for name, (outcome, seconds) in zip(ATTACKS, results, strict=True):
            report["attacks"][name] = [outcome.status, outcome.stdout[:1000], outcome.error, seconds]
        report["changed"] = around.state() != before
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
