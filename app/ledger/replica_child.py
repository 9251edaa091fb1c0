"""The process that keeps one replica file in step with its primary, and alone runs libsql_experimental.

That library holds the interpreter lock through every network wait and knows no time-out (libsql.md 1), so it gets
a process in which nothing else happens. replica.py starts this file by its path, and talks to it like this:

    stdin   one line of JSON, the fields of `Order`; its end means: stop
    stdout  "." every TICK_S while Python runs, "+" once the replica follows its primary
    stderr  why it ended, in one line; the exit code says the same in a number
    exit    0 told to stop, BUSY, FILE, PRIMARY; killed by SIGALRM: the primary did not answer in time

It never outlives its parent: the kernel kills it with the parent, and where the kernel does not know how (not
Linux) the end of stdin does. Refuses to know what the tables are, when to restart, and any other module of ours.
"""

import ctypes
import fcntl
import json
import os
import signal
import sqlite3
import sys
import threading
import urllib.error
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

TICK_S = 0.5
PROBE_S = 5.0

BUSY = 3
"""Another process keeps this replica."""
FILE = 4
"""The file cannot be used, and has to be made anew."""
PRIMARY = 5
"""The primary refused, or there is nobody at its address."""

PARTS = ("-client_wal_index", "-wal", "-shm", "")
"""What a replica consists of, in the order in which it is removed: without its index nobody trusts the rest, so a
removal that is cut short is finished by the next start."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Order:
    """What the parent asks for. The token comes this way because arguments and environments are for all to see."""

    path: str
    url: str
    token: str
    sync_interval_s: float
    connect_s: int
    anew: bool
    """True: the file is not to be trusted."""
    parent: int


class ReplicaError(Exception):
    """Why this process cannot go on, and the exit code for it."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def main() -> int:
    """Follow the primary until stdin ends. Returns the exit code."""
    os.umask(0o077)  # what callers said is nobody else's business
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    _die_with(order.parent)
    threading.Thread(target=_tick, daemon=True).start()
    try:
        _follow(order)
    except ReplicaError as error:
        print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201 - the parent reads it
        return error.code
    return 0


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew
        raise SystemExit(0)


def _tick() -> None:
    pause = threading.Event()
    while not pause.wait(TICK_S):
        _say(b".")


def _say(sign: bytes) -> None:
    try:
        os.write(1, sign)
    except BrokenPipeError:
        os._exit(0)  # nobody is there to listen


def _follow(order: Order) -> None:
    path = Path(order.path)
    lock = _lock(path)
    try:
        _make_usable(path, order)
        import libsql_experimental  # noqa: PLC0415 - not before it is needed: it starts threads of its own

        # Its wait for a primary that hangs is ended by nothing but a signal's default action (libsql.md 6).
        signal.alarm(order.connect_s)
        try:
            replica = libsql_experimental.connect(
                order.path,
                sync_url=order.url,
                auth_token=order.token,
                sync_interval=order.sync_interval_s,
                isolation_level=None,
            )
        except ValueError as error:  # all that the library raises (libsql.md 3)
            # Only the first contact fails with these words; everything else is about the file.
            code = PRIMARY if "sync error" in str(error) else FILE
            raise ReplicaError(code, str(error)) from error
        signal.alarm(0)
        _say(b"+")
        sys.stdin.buffer.read()
        # Closing may wait for a sync that waits for the primary; the file is safe without (libsql.md 4.5).
        signal.alarm(1)
        replica.close()
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    """One process at a time may write or remove the file. The lock goes with the process, however it ends."""
    try:
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ReplicaError(FILE, f"{path.with_suffix('.lock')}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ReplicaError(
            BUSY, f"{path} is kept by another process: one server for each data directory"
        ) from error
    return lock


def _make_usable(path: Path, order: Order) -> None:
    """Remove what the library would refuse, or worse, take for good."""
    damaged = _damaged(path)
    # A file without its index is refused. An index without its file is believed: the replica then stays empty for
    # ever and says nothing.
    unpaired = path.exists() != _part(path, "-client_wal_index").exists()
    if not (order.anew or damaged or unpaired):
        return
    if path.exists() and not damaged and not _answers(order.url):
        # It can still be read, which is better than nothing while nobody can give us a new one.
        raise ReplicaError(PRIMARY, f"{path} has to be made anew, and the primary does not answer")
    _remove(path)


def _damaged(path: Path) -> bool:
    """True when SQLite finds the file broken.

    The library goes on syncing over broken pages without a word. The standard library's sqlite3 looks, because it
    lets the tick go on meanwhile; it has closed the file before libSQL opens it (file.py says why).
    """
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]
    except sqlite3.DatabaseError:
        return True


def _answers(url: str) -> bool:
    """True when there is an HTTP server at the address, whatever it says."""
    probe = url.replace("libsql://", "https://", 1)
    try:
        urllib.request.urlopen(probe, timeout=PROBE_S).close()  # noqa: S310 - the operator's own URL
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _remove(path: Path) -> None:
    try:
        for part in PARTS:
            with suppress(FileNotFoundError):
                _part(path, part).unlink()
    except OSError as error:
        raise ReplicaError(FILE, f"cannot remove {error.filename}: {error.strerror}") from error


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


if __name__ == "__main__":
    sys.exit(main())
