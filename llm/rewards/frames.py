"""Messages between a parent and its child processes: four bytes of length, then JSON. Nothing is unpickled or run.

Both sides bound what they read, and the parent's reads have a deadline, so a child that stalls, floods or dies costs
its parent a known time and memory.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

__all__ = ["ChildGoneError", "ChildStalledError", "read_frame", "receive", "write_frame"]

MAX_FRAME = 1 << 30
"""Most bytes of a message that a child accepts from its parent."""
_HEADER = struct.Struct(">I")


class ChildGoneError(Exception):
    """The other side closed the pipe or sent something that is no message."""


class ChildStalledError(Exception):
    """No whole message came before the deadline."""


def write_frame(fd: int, message: Any) -> None:
    """Sends one message; blocks until the pipe took it. Raises OSError where the other side is gone."""
    body = json.dumps(message).encode()
    data = memoryview(_HEADER.pack(len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int) -> Any | None:
    """The next message, however long it takes; None when the other side has closed the pipe."""
    header = _read(fd, _HEADER.size, None)
    if header is None:
        return None
    body = _read(fd, min(_HEADER.unpack(header)[0], MAX_FRAME), None)
    return None if body is None else json.loads(body)


def receive(fd: int, seconds: float, max_bytes: int) -> Any:
    """The next message of a child that is not trusted to answer.

    Raises ChildStalledError after `seconds`, ChildGoneError at the pipe's end, for more than `max_bytes` and for no
    JSON.
    """
    deadline = time.monotonic() + seconds
    header = _read(fd, _HEADER.size, deadline)
    length = _HEADER.unpack(header)[0] if header is not None else max_bytes + 1
    body = _read(fd, length, deadline) if length <= max_bytes else None
    if body is None:
        raise ChildGoneError
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ChildGoneError from None


def _read(fd: int, size: int, deadline: float | None) -> bytes | None:
    """`size` bytes, or None if the pipe ends before."""
    data = bytearray()
    poll = select.poll()  # not select.select: a trainer may have more than 1024 files open
    poll.register(fd, select.POLLIN)
    while len(data) < size:
        if deadline is not None and not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ChildStalledError
        chunk = os.read(fd, min(size - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
