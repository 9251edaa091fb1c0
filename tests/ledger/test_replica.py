"""The replica, its child process and a real primary: whatever breaks, it comes back, and nobody waited for it."""

import asyncio
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from app.ledger import replica_child
from app.ledger.freshness import Freshness, Look
from app.ledger.queries import Queries
from app.ledger.replica import Replica, look_at
from app.ledger.replica_child import Order
from app.storage.database import DatabaseError
from tests.ledger.replicas import WAIT_S, Beats, WatchedReplica, file_rows, migrated
from tests.ledger.sqld import Sqld, expired_token, foreign_token, token

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PARTS = ("", "-wal", "-shm", "-client_wal_index")
TURNS = "SELECT count(*) FROM legs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same faults, sooner."""
    for name, value in {
        "SYNC_INTERVAL_S": 0.05,
        "LOOK_S": 0.02,
        "RETRY_FIRST_S": 0.02,
        "RETRY_MAX_S": 0.1,
        "STOP_S": 0.5,
    }.items():
        monkeypatch.setattr(f"app.ledger.replica.{name}", value)
    monkeypatch.setattr("app.ledger.freshness.STUCK_S", 0.7)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who wait for the end of patience, and for nobody else: a machine that pauses for a second is no
    fault. The child ticks every 0.5 s."""
    monkeypatch.setattr("app.ledger.replica.CONNECT_S", 1)
    monkeypatch.setattr("app.ledger.replica.HANG_S", 2.0)


@pytest.fixture
def primary(sqld: Sqld, tmp_path: Path) -> Sqld:
    """Migrated, with 40 calls of some size."""
    migrated(sqld, tmp_path)
    add_calls(sqld, 40)
    return sqld


def add_calls(sqld: Sqld, number: int, prefix: str = "CA") -> None:
    sqld.execute(
        f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})"
        f" INSERT INTO legs SELECT '{prefix}' || i, '0', 'acme', 'global', 'fra', 'openai', 'gpt-realtime',"
        " hex(randomblob(1000)), '+491701234567', '+4930555', i FROM n"
    )


@pytest.fixture
async def replica(primary: Sqld, tmp_path: Path) -> AsyncIterator[WatchedReplica]:
    """Started, and in step."""
    replica = WatchedReplica(tmp_path / "replica.db", primary.url, token, Beats(primary))
    replica.start()
    await replica.in_step()
    yield replica
    await replica.stop()


def part(replica: Replica, suffix: str) -> Path:
    return replica.path.with_name(replica.path.name + suffix)


def gone(pid: int) -> bool:
    """True when there is no such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


# --- In step --------------------------------------------------------------------------------------


async def test_replica_is_in_step_and_shows_what_the_primary_has(replica: WatchedReplica) -> None:
    assert file_rows(replica.path, TURNS) == [(40,)]
    assert replica.healthy
    assert (replica.status().connected, replica.status().restarts, replica.status().error) == (True, 0, None)


async def test_row_written_on_the_primary_arrives(replica: WatchedReplica, primary: Sqld) -> None:
    add_calls(primary, 3, "CB")
    await replica.in_step()
    assert file_rows(replica.path, TURNS) == [(43,)]


async def test_questions_are_answered_from_the_replica(replica: WatchedReplica) -> None:
    queries = Queries(replica.path, replica.distrust)
    calls = await queries.recent_calls(2)
    await queries.close()
    assert [call.call_sid for call in calls] == ["CA40", "CA39"]


async def test_age_is_the_time_since_the_newest_beat_it_shows(
    replica: WatchedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replica.beats.acked_ms is not None
    monkeypatch.setattr("time.time", lambda: (replica.beats.acked_ms or 0) / 1000 + 7.5)
    assert replica.age_s() == pytest.approx(7.5)
    monkeypatch.setattr("time.time", lambda: (replica.beats.acked_ms or 0) / 1000 - 1)
    assert replica.age_s() == 0.0


async def test_silent_primary_makes_the_replica_unhealthy_but_readable(
    replica: WatchedReplica, primary: Sqld, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary.stop()
    monkeypatch.setattr("app.ledger.replica.STALE_S", 0.0)
    assert not replica.healthy
    assert file_rows(replica.path, TURNS) == [(40,)]


async def test_library_is_not_in_this_process(replica: WatchedReplica) -> None:
    assert "libsql_experimental" not in sys.modules


async def test_token_is_in_no_argument_and_no_environment(replica: WatchedReplica) -> None:
    process = Path(f"/proc/{replica.pid}")
    shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert b"replica_child.py" in shown
    assert token().encode() not in shown
    assert (process / "environ").read_bytes() == b"RUST_LOG=off\0"


async def test_files_are_private(replica: WatchedReplica) -> None:
    assert {part(replica, suffix).stat().st_mode & 0o777 for suffix in PARTS} == {0o600}


async def test_stop_leaves_no_process_and_a_file_that_can_be_read(replica: WatchedReplica) -> None:
    pid = replica.pid
    await replica.stop()
    assert gone(pid)
    assert file_rows(replica.path, "PRAGMA integrity_check") == [("ok",)]
    assert file_rows(replica.path, TURNS) == [(40,)]


async def test_stop_does_not_wait_for_a_child_that_hangs(replica: WatchedReplica) -> None:
    pid = replica.pid
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        await replica.stop()
    assert gone(pid)


async def test_stop_right_after_start_leaves_no_process(primary: Sqld, tmp_path: Path) -> None:
    replica = Replica(tmp_path / "replica.db", primary.url, token, Beats(primary))
    replica.start()
    await asyncio.sleep(0)
    await replica.stop()
    assert children() == {primary.pid}


def children() -> set[int]:
    """Of this process, zombies included."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


# --- Faults of the child --------------------------------------------------------------------------


async def test_child_is_killed_and_another_takes_over(replica: WatchedReplica) -> None:
    pid = replica.pid
    await replica.next_child(lambda: os.kill(pid, signal.SIGKILL))
    assert gone(pid)
    assert replica.pid != pid


async def test_look_at_a_file_in_the_making_is_no_evidence(primary: Sqld, tmp_path: Path) -> None:
    """It began before the child was done, and was thought about after."""
    connected = threading.Event()
    looks = 0

    class Waited(Freshness):
        def connected(self, now_s: float) -> None:
            super().connected(now_s)
            connected.set()

    def half_made_at_first(path: Path, machine: str) -> Look:
        nonlocal looks
        looks += 1
        if looks > 1:
            return look_at(path, machine)
        assert connected.wait(WAIT_S)
        return Look(frozenset({"", "-wal"}), b"", damage="database disk image is malformed")

    replica = WatchedReplica(
        tmp_path / "replica.db", primary.url, token, Beats(primary), freshness=Waited(), look=half_made_at_first
    )
    replica.start()
    await replica.in_step()
    assert replica.status().restarts == 0
    await replica.stop()


@pytest.mark.usefixtures("impatient")
async def test_child_hangs_and_another_takes_over(replica: WatchedReplica) -> None:
    pid = replica.pid
    await replica.next_child(lambda: os.kill(pid, signal.SIGSTOP))
    assert gone(pid)


SERVER = """
import asyncio, sys
from pathlib import Path
from app.ledger.replica import Replica
from app.ledger.replica_child import Order

class Beats:
    machine = "m1"
    acked_ms = None

class Told(Replica):
    def _consider(self, look, connected_s):
        super()._consider(look, connected_s)
        if self.status().connected:
            print(self._process.pid, flush=True)

async def serve():
    replica = Told(Path(sys.argv[1]), sys.argv[2], lambda: sys.argv[3], Beats())
    replica.start()
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def test_end_of_its_input_ends_the_child(primary: Sqld, tmp_path: Path) -> None:
    """Where the kernel does not end it with its parent."""
    order = Order(str(tmp_path / "replica.db"), primary.url, token(), 0.05, 15, anew=False, parent=os.getpid())
    child = subprocess.run(
        [sys.executable, "-I", replica_child.__file__],
        input=json.dumps(asdict(order)).encode(),
        env={"RUST_LOG": "off"},
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (child.returncode, child.stdout.replace(b".", b""), child.stderr) == (0, b"+~=", b"")


def test_child_of_a_parent_that_is_gone_does_nothing(primary: Sqld, tmp_path: Path) -> None:
    order = Order(str(tmp_path / "replica.db"), primary.url, token(), 0.05, 15, anew=False, parent=1)
    child = subprocess.run(
        [sys.executable, "-I", replica_child.__file__],
        input=json.dumps(asdict(order)).encode(),
        env={"RUST_LOG": "off"},
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (child.returncode, child.stdout, list(tmp_path.glob("replica*"))) == (0, b"", [])


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_server_is_killed_and_its_child_goes_with_it(primary: Sqld, tmp_path: Path, state: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path / "replica.db"), primary.url, token()],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert server.stdout is not None
    child = int(server.stdout.readline())
    ended = os.pidfd_open(child)
    os.kill(child, signal.SIGSTOP if state == "stopped" else 0)
    server.kill()
    server.wait()
    assert select.select([ended], [], [], WAIT_S)[0] == [ended]
    os.close(ended)
    server.stdout.close()


# --- Faults of the file, while it is in use -------------------------------------------------------


@pytest.mark.parametrize("suffix", PARTS)
async def test_part_of_the_file_is_removed_and_all_of_it_comes_back(replica: WatchedReplica, suffix: str) -> None:
    await replica.next_child(part(replica, suffix).unlink)
    assert file_rows(replica.path, "PRAGMA integrity_check") == [("ok",)]
    assert file_rows(replica.path, TURNS) == [(40,)]


async def test_question_meets_damage_and_the_file_is_made_anew(primary: Sqld, tmp_path: Path) -> None:
    """Broken pages hinder no sync and no heartbeat: only who reads them notices."""
    first = WatchedReplica(tmp_path / "replica.db", primary.url, token, Beats(primary))
    first.start()
    await first.in_step()
    await first.stop()
    with closing(sqlite3.connect(first.path)) as database:  # everything into the file itself, out of its log
        assert database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    replica = WatchedReplica(first.path, primary.url, token, first.beats)
    replica.start()
    await replica.in_step()
    [(page,)] = file_rows(replica.path, "SELECT rootpage FROM sqlite_schema WHERE name = 'legs'")
    scribble(replica.path, 4096 * (int(page or 0) - 1), 4096)
    queries = Queries(replica.path, replica.distrust)
    with pytest.raises(DatabaseError, match="malformed"):
        await queries.recent_calls(1_000)
    await replica.until(lambda: replica.status().restarts == 1)
    await replica.in_step()
    assert len(await queries.recent_calls(1_000)) == 40
    await queries.close()
    await replica.stop()


# --- Faults of the file, found at start -----------------------------------------------------------


def scribble(path: Path, start: int, length: int) -> None:
    """Bytes that are no page of SQLite's."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xee" * length)


def without(suffix: str) -> Callable[[Path], None]:
    return lambda path: path.with_name(path.name + suffix).unlink()


def index_alone(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    os.truncate(path, 4096 * 3 + 100)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def overwritten_from(start: int) -> Callable[[Path], None]:
    return lambda path: scribble(path, start, 4096 * 4)


def index_overwritten(path: Path) -> None:
    path.with_name(path.name + "-client_wal_index").write_bytes(b"\xff" * 32)


def index_emptied(path: Path) -> None:
    path.with_name(path.name + "-client_wal_index").write_bytes(b"")


def nothing_left(path: Path) -> None:
    path.unlink()
    path.with_name(path.name + "-client_wal_index").unlink()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(without("-client_wal_index"), id="without its index"),
        index_alone,
        truncated,
        emptied,
        pytest.param(overwritten_from(0), id="no database at all"),
        pytest.param(overwritten_from(4096 * 12), id="broken pages"),
        index_overwritten,
        index_emptied,
        nothing_left,
    ],
)
async def test_start_finds_a_faulty_file_and_replaces_it(
    replica: WatchedReplica, primary: Sqld, fault: Callable[[Path], None]
) -> None:
    await replica.stop()
    fault(replica.path)
    add_calls(primary, 1, "CB")
    again = WatchedReplica(replica.path, primary.url, token, replica.beats)
    again.start()
    await again.in_step()
    await again.stop()
    assert file_rows(replica.path, "PRAGMA integrity_check") == [("ok",)]
    assert file_rows(replica.path, TURNS) == [(41,)]


async def test_file_without_index_is_not_thrown_away_while_the_primary_is_down(
    replica: WatchedReplica, primary: Sqld
) -> None:
    await replica.stop()
    without("-client_wal_index")(replica.path)
    primary.stop()
    again = WatchedReplica(replica.path, primary.url, token, replica.beats)
    again.start()
    await again.until(lambda: again.status().restarts >= 2)
    assert "has to be made anew" in (again.status().error or "")
    assert file_rows(replica.path, TURNS) == [(40,)]
    primary.start()
    await again.in_step()
    await again.stop()


async def test_distrusted_file_is_not_thrown_away_while_the_primary_is_down(
    replica: WatchedReplica, primary: Sqld
) -> None:
    primary.stop()
    replica.distrust("for no reason")
    await replica.until(lambda: "has to be made anew" in (replica.status().error or ""))
    assert file_rows(replica.path, TURNS) == [(40,)]
    primary.start()
    await replica.in_step()


async def test_file_in_use_by_another_server_is_left_alone(replica: WatchedReplica, primary: Sqld) -> None:
    other = WatchedReplica(replica.path, primary.url, token, Beats(primary, "m2"))
    other.start()
    await other.until(lambda: other.status().restarts >= 2)
    assert "one server for each data directory" in (other.status().error or "")
    await other.stop()
    await replica.in_step()
    assert replica.status().restarts == 0


async def test_directory_is_missing_and_used_once_it_is_there(primary: Sqld, tmp_path: Path) -> None:
    replica = WatchedReplica(tmp_path / "later" / "replica.db", primary.url, token, Beats(primary))
    replica.start()
    await replica.until(lambda: replica.status().restarts >= 1)
    assert replica.status().error == f"{tmp_path}/later/replica.lock: No such file or directory"
    replica.path.parent.mkdir()
    await replica.in_step()
    await replica.stop()


# --- Faults of the primary ------------------------------------------------------------------------


async def test_primary_is_down_at_start_and_found_later(primary: Sqld, tmp_path: Path) -> None:
    primary.stop()
    replica = WatchedReplica(tmp_path / "replica.db", primary.url, token, Beats(primary))
    replica.start()
    await replica.until(lambda: replica.status().restarts >= 2)
    assert "Connection refused" in (replica.status().error or "")
    assert (replica.age_s(), replica.healthy, replica.status().connected) == (None, False, False)
    primary.start()
    await replica.in_step()
    await replica.stop()


@pytest.mark.usefixtures("impatient")
async def test_primary_hangs_at_start_and_is_found_later(primary: Sqld, tmp_path: Path) -> None:
    primary.hang()
    replica = WatchedReplica(tmp_path / "replica.db", primary.url, token, Beats(primary))
    replica.start()
    await replica.until(lambda: replica.status().restarts >= 1)
    assert replica.status().error == "the primary did not answer within 1 s"
    primary.wake()
    await replica.in_step()
    await replica.stop()


async def test_primary_is_away_for_a_while_and_the_same_child_catches_up(
    replica: WatchedReplica, primary: Sqld
) -> None:
    primary.stop()
    assert file_rows(replica.path, TURNS) == [(40,)]
    primary.start()
    add_calls(primary, 1, "CB")
    await replica.in_step()
    assert (file_rows(replica.path, TURNS), replica.status().restarts) == ([(41,)], 0)


def lost_and_migrated(primary: Sqld, tmp_path: Path) -> None:
    """The primary comes back empty, and a deploy gives it the schema."""
    primary.lose_disk()
    primary.start()
    (tmp_path / "again").mkdir()
    migrated(primary, tmp_path / "again")


async def test_primary_lost_everything_and_the_replica_keeps_the_last_copy(
    replica: WatchedReplica, primary: Sqld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost_and_migrated(primary, tmp_path)
    replica.beats.beat()
    await replica.until(lambda: "another database" in (replica.trouble or ""))
    assert file_rows(replica.path, TURNS) == [(40,)]
    assert {record.levelname for record in caplog.records if record.message == "replica_stopped"} == {"ERROR"}


async def test_start_beside_a_primary_that_lost_everything_keeps_the_last_copy(
    replica: WatchedReplica, primary: Sqld, tmp_path: Path
) -> None:
    await replica.stop()
    lost_and_migrated(primary, tmp_path)
    again = WatchedReplica(replica.path, primary.url, token, replica.beats)
    again.start()
    again.distrust("for no reason")
    await again.until(lambda: again.status().restarts >= 2)
    await again.stop()
    assert "another database" in (again.status().error or "")
    assert file_rows(replica.path, TURNS) == [(40,)]


async def test_primary_is_empty_and_the_replica_keeps_the_last_copy(
    replica: WatchedReplica, primary: Sqld
) -> None:
    primary.lose_disk()
    primary.start()
    primary.execute("CREATE TABLE t (k INTEGER)")
    await replica.until(lambda: "is empty" in (replica.status().error or ""))
    assert file_rows(replica.path, TURNS) == [(40,)]


async def test_database_of_a_backup_is_followed(replica: WatchedReplica, primary: Sqld, tmp_path: Path) -> None:
    [(applied_ms,)] = primary.query("SELECT applied_ms FROM schema_migrations WHERE version = 1")
    primary.lose_disk()
    primary.start()
    (tmp_path / "again").mkdir()
    migrated(primary, tmp_path / "again")
    primary.execute(f"UPDATE schema_migrations SET applied_ms = {applied_ms} WHERE version = 1")
    add_calls(primary, 3, "CB")
    await replica.in_step()
    assert file_rows(replica.path, TURNS) == [(3,)]


async def test_operator_consents_and_the_replica_follows_the_new_database(
    replica: WatchedReplica, primary: Sqld, tmp_path: Path
) -> None:
    lost_and_migrated(primary, tmp_path)
    await replica.until(lambda: "another database" in (replica.status().error or ""))
    primary.execute("INSERT INTO database_replacements VALUES (1)")
    await replica.in_step()
    assert file_rows(replica.path, TURNS) == [(0,)]
    assert file_rows(replica.path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("wrong", [expired_token(), foreign_token(), ""], ids=["expired", "foreign", "none"])
async def test_token_is_refused_and_the_next_one_of_its_source_used(
    primary: Sqld, tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The library says nothing of it (libsql.md 6); the beat, which got through, gives it away."""
    tokens = [wrong]
    replica = WatchedReplica(tmp_path / "replica.db", primary.url, lambda: tokens[-1], Beats(primary))
    replica.start()
    replica.beats.beat()
    await replica.until(lambda: replica.status().connected)
    assert replica.age_s() is None
    tokens.append(token())

    def given_up() -> bool:
        replica.beats.beat()
        return replica.status().restarts >= 1

    await replica.until(given_up)
    assert "behind the primary" in caplog.records[-1].why  # type: ignore[attr-defined] # given as extra
    await replica.in_step()
    await replica.stop()


async def test_token_source_fails_and_is_asked_again(primary: Sqld, tmp_path: Path) -> None:
    file = tmp_path / "token"

    def read() -> str:
        if not file.exists():
            raise ValueError(f"there is no token in {file}")
        return file.read_text()

    replica = WatchedReplica(tmp_path / "replica.db", primary.url, read, Beats(primary))
    replica.start()
    await replica.until(lambda: replica.status().restarts >= 1)
    assert replica.status().error == f"there is no token in {file}"
    file.write_text(token())
    await replica.in_step()
    await replica.stop()


async def test_token_that_may_only_read_is_enough(primary: Sqld, tmp_path: Path) -> None:
    replica = WatchedReplica(tmp_path / "replica.db", primary.url, lambda: token("ro"), Beats(primary))
    replica.start()
    await replica.in_step()
    await replica.stop()


# --- Regions and zones ----------------------------------------------------------------------------


async def test_global_rows_are_in_both_regions_and_eu_rows_in_the_eu_alone(primary: Sqld, tmp_path: Path) -> None:
    with Sqld(tmp_path / "eu-primary") as eu_primary:
        (tmp_path / "eu").mkdir()
        migrated(eu_primary, tmp_path / "eu")
        fra = WatchedReplica(tmp_path / "fra.db", primary.url, token, Beats(primary, "fra"))
        nrt = WatchedReplica(tmp_path / "nrt.db", primary.url, token, Beats(primary, "nrt"))
        fra_eu = WatchedReplica(tmp_path / "eu" / "replica.db", eu_primary.url, token, Beats(eu_primary, "fra"))
        for replica in (fra, nrt, fra_eu):
            replica.start()
        add_calls(eu_primary, 2, "EU")
        add_calls(primary, 1, "CB")
        for replica in (fra, nrt, fra_eu):
            await replica.in_step()
        count = "SELECT count(*), count(*) FILTER (WHERE call_sid LIKE 'EU%') FROM legs"
        assert [file_rows(replica.path, count) for replica in (fra, nrt, fra_eu)] == [
            [(41, 0)],
            [(41, 0)],
            [(2, 2)],
        ]
        for replica in (fra, nrt, fra_eu):
            await replica.stop()
