"""The process that keeps one replica file in step with its primary, and alone runs libsql_experimental.

That library holds the interpreter lock through every network wait and knows no time-out (libsql.md 1), so it gets
a process in which nothing else happens. replica.py starts this file by its path, and talks to it like this:

    stdin   one line of JSON, the fields of `Order`; its end means: stop
    stdout  "." every TICK_S while Python runs, "+" once the replica follows its primary, "~" before the first
            sync, which may take FIRST_SYNC_S without a tick, "=" after it
    stderr  why it ended, in one line; the exit code says the same in a number
    exit    0 told to stop, BUSY, FILE, PRIMARY, LOST; killed by SIGALRM: the primary did not answer in time

A sync makes the file what the primary is, also when the primary has lost everything and begins anew: the library
overwrites the old pages without a word (libsql.md 4.5). The file may then be the last copy there is. So before
each sync the primary is asked which database it is, and one that the file is no copy of does not get near it.

It never outlives its parent: on Linux the kernel kills it with the parent, elsewhere it ends when stdin ends. It
does not know what the tables are and when to restart, and imports no other module of ours.
"""

import ctypes
import fcntl
import http.client
import json
import os
import select
import signal
import sqlite3
import ssl
import sys
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TICK_S = 0.5
PROBE_S = 5.0
FIRST_SYNC_S = 900
"""Whole seconds: a whole database, or a night's backlog. Later ones are short; the parent ends one that hangs."""

BUSY = 3
"""Another process keeps this replica."""
FILE = 4
"""The file cannot be used, and has to be made anew."""
PRIMARY = 5
"""The primary refused, or could not be reached."""
LOST = 6
"""The primary is another database than the one that the file is a copy of. The file is as it was."""

ORIGIN = "SELECT applied_ms FROM schema_migrations WHERE version = 1"
"""When a database got its first table, Unix ms: tells one from another. A backup that is restored keeps it."""
CONSENT = "SELECT count(*) FROM database_replacements"
"""Above 0 when an operator has said that this database takes the place of a lost one (`nearcall migrate`)."""

PARTS = ("-client_wal_index", "-wal", "-shm", "")
"""The files of a replica, in the order in which they are removed. Without its index the rest is not used, so the
next start finishes a removal that was cut short."""

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
        print(" ".join(str(error).split()), file=sys.stderr, flush=True)  # noqa: T201 - the parent reads it
        # At once: the library removes the file's log on its way out, and the parent takes that for damage.
        os._exit(error.code)
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
        with closing(_Primary(order.url, order.token)) as primary:
            _make_usable(path, order, primary)
            _keep_in_step(path, order, primary)
    finally:
        os.close(lock)


def _keep_in_step(path: Path, order: Order, primary: "_Primary") -> None:
    """Until stdin ends."""
    if path.is_file() and not _continues(path, _origin(path), primary):
        raise ReplicaError(PRIMARY, f"the primary does not say which database it is: {primary.why}")
    import libsql_experimental  # noqa: PLC0415 - not before it is needed: it starts threads of its own

    # Its wait for a primary that hangs is ended by nothing but a signal's default action (libsql.md 6).
    signal.alarm(order.connect_s)
    try:
        # Without a sync_interval: its syncs would come whenever they like.
        replica = libsql_experimental.connect(
            order.path, sync_url=order.url, auth_token=order.token, isolation_level=None
        )
    except ValueError as error:  # all that the library raises (libsql.md 3)
        # Only the first contact fails with these words; everything else is about the file.
        code = PRIMARY if "sync error" in str(error) else FILE
        raise ReplicaError(code, str(error)) from error
    signal.alarm(0)
    _say(b"+~")
    first = True
    while True:
        # Asked through the library: another SQLite that closes the file would drop the locks of this one.
        if _continues(path, _copied_origin(replica), primary):
            signal.alarm(FIRST_SYNC_S if first else 0)
            # A failure is one of the network, or of the primary: the heartbeat that is missing tells of it.
            with suppress(ValueError):
                replica.sync()
            signal.alarm(0)
            if first:
                _say(b"=")
            first = False
        if select.select([sys.stdin], [], [], order.sync_interval_s)[0]:
            break
    # Closing may wait for the primary; the file is safe without (libsql.md 4.5).
    signal.alarm(1)
    replica.close()


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


class _Primary:
    """Asks a primary two questions, on a connection that stays open: they are asked twice a second."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url.replace("libsql://", "https://", 1))
        self._path = f"{parts.path.rstrip('/')}/v2/pipeline"
        self._headers = {"content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        host = parts.hostname or ""
        if parts.scheme == "http":
            self._http = http.client.HTTPConnection(host, parts.port, timeout=PROBE_S)
        else:
            import certifi  # noqa: PLC0415 - only where there is TLS; the same authorities as app/storage/primary.py

            trust = ssl.create_default_context(cafile=certifi.where())
            self._http = http.client.HTTPSConnection(host, parts.port, timeout=PROBE_S, context=trust)
        self.why = ""
        """Why the last question was not answered."""

    def close(self) -> None:
        self._http.close()

    def identity(self) -> tuple[str | None, bool] | None:
        """When its schema was made, None without one; and whether it may replace another. None: no answer."""
        requests = [{"type": "execute", "stmt": {"sql": sql}} for sql in (ORIGIN, CONSENT)]
        body = json.dumps({"requests": [*requests, {"type": "close"}]})
        try:
            self._http.request("POST", self._path, body, self._headers)
            answer = self._http.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()  # the next question opens another one
            self.why = f"{type(error).__name__}: {error}"
            return None
        self.why = f"HTTP {answer.status}: {content[:200].decode(errors='replace')}"
        if answer.status != http.client.OK:
            return None
        try:
            origin, consent = map(_first_value, json.loads(content)["results"][:2])
        except (ValueError, LookupError, TypeError):
            return None
        return origin, consent not in {None, "0"}


def _first_value(result: Mapping[str, Any]) -> str | None:
    """None where there is no row, or no such table. Raises ValueError, LookupError or TypeError for all else."""
    if result["type"] == "ok":
        rows = result["response"]["result"]["rows"]
        return str(rows[0][0]["value"]) if rows else None
    if "no such table" in str(result["error"]["message"]):
        return None
    raise ValueError(str(result["error"]))


def _continues(path: Path, copied: str | None, primary: _Primary) -> bool:
    """True when the primary is the database that the file is a copy of, or may take its place.

    `copied` is the file's origin. False when the primary does not answer. Raises ReplicaError when it is another.
    """
    identity = primary.identity()
    if identity is None or copied is None:
        return identity is not None
    origin, consent = identity
    if origin == copied or consent:
        return True
    what = "is empty" if origin is None else "is another database than before"
    raise ReplicaError(
        LOST,
        f"the primary {what}, and {path} may be the last copy of what it had: it is kept, and no longer updated."
        " Restore the database; or, to begin anew, run 'nearcall migrate --replace-lost-database ZONE'",
    )


def _origin(path: Path) -> str | None:
    """Of the database that a file is a copy of; None when the file cannot tell: nothing is lost with it then."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(ORIGIN).fetchall()
    except sqlite3.Error:
        return None
    return str(rows[0][0]) if rows else None


def _copied_origin(replica: Any) -> str | None:
    """As `_origin`, of the file that the library has open."""
    try:
        rows = replica.execute(ORIGIN).fetchall()
    except ValueError:
        return None
    return str(rows[0][0]) if rows else None


def _make_usable(path: Path, order: Order, primary: _Primary) -> None:
    """Remove what the library would refuse, or worse, take for good."""
    damaged = _damaged(path)
    # A file without its index is refused. An index without its file is believed: the replica then stays empty for
    # ever and says nothing.
    unpaired = path.exists() != _part(path, "-client_wal_index").exists()
    if not (order.anew or damaged or unpaired):
        return
    if path.exists() and not damaged and not _continues(path, _origin(path), primary):
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
