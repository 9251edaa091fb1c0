"""Counts what a process holds: sockets, tasks, timers, sessions, memory. An increase afterwards is a leak."""

import asyncio
import ctypes
import gc
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from app.bridge.session import Session


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts of everything that a call could leave behind."""

    sockets: int
    tasks: int
    timers: int
    """Armed and not cancelled, of asyncio and of uvloop."""
    sessions: int

    def more_than(self, before: "Holdings") -> dict[str, int]:
        """Returns the counts that have increased, and by how much."""
        grown = Counter(asdict(self))
        grown.subtract(asdict(before))
        return {name: count for name, count in grown.items() if count > 0}


def holdings(pooled_port: int | None = None) -> Holdings:
    """Counts the holdings of this process after a garbage collection. Call it on the event loop.

    Connections to `pooled_port` do not count: an HTTP client keeps a bounded number of them for its next request.
    """
    gc.collect()
    timers = sessions = 0
    for each in gc.get_objects():
        timers += type(each).__name__ == "TimerHandle" and not each.cancelled()
        sessions += isinstance(each, Session)
    return Holdings(_sockets(pooled_port), len(asyncio.all_tasks()), timers, sessions)


class _MallInfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


EXACT_MEMORY = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
"""The environment in which `memory_in_use` knows of everything: Python asks the C library for each object, and
that has one arena, the only one that mallinfo2 looks at."""


def memory_in_use() -> int:
    """Bytes that this process has allocated and not freed. Unlike resident memory it has no gaps in it.

    Without what SQLite has: its page cache grows to 2 MB (its default), however few calls there are at a time.
    Raises AttributeError where the C library is not glibc 2.33 or later, OSError where SQLite is not a library.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    sqlite_bytes = ctypes.CDLL("libsqlite3.so.0").sqlite3_memory_used
    sqlite_bytes.restype = ctypes.c_int64
    info = mallinfo()
    return int(info.uordblks + info.hblkhd - sqlite_bytes())


def _sockets(pooled_port: int | None) -> int:
    pooled = set() if pooled_port is None else _connections_to(pooled_port)
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            name = str(descriptor.readlink())
        except FileNotFoundError:  # the listing itself
            continue
        count += name.startswith("socket:") and name not in pooled
    return count


def _connections_to(port: int) -> set[str]:
    """Names of the sockets that are connected to this port, as /proc/PID/fd has them (proc_pid_net(5), "tcp")."""
    fields = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{line[9]}]" for line in fields if int(line[2].rpartition(":")[2], 16) == port}
