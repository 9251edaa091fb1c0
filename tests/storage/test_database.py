"""One libSQL file: opening, transactions, other processes."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.ledger.local import open_migrated, write
from app.storage.database import Database, DatabaseError, RefusedError, damage, open_for_reading, open_for_writing
from app.storage.errors import StorageError
from tests.ledger.faulty_disk import no_descriptor_left
from tests.ledger.samples import NOW_MS, FaultyDatabase, rows, turn


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Database]:
    database = open_for_writing(tmp_path / "ledger.db")
    database.execute("CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT")
    yield database
    database.close()


def test_missing_directory_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"/gone does not exist: create it, or point NEARCALL_DATA_DIR"):
        open_for_writing(tmp_path / "gone" / "ledger.db")


def test_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="/data is not a directory"):
        open_for_writing(tmp_path / "data" / "ledger.db")


def test_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(StorageError, match=r"ledger\.db is a directory"):
        open_for_writing(tmp_path / "ledger.db")


def test_something_else_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("my shopping list " * 100)
    with pytest.raises(DatabaseError, match=r"ledger\.db: file is not a database"):
        open_for_writing(tmp_path / "ledger.db")


@pytest.fixture
def read_only_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o555)
        yield directory
        directory.chmod(0o755)


def test_damage_is_told_from_other_errors(file: Database, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as missing:
        file.query("SELECT 1 FROM nowhere")
    (tmp_path / "list.db").write_text("my shopping list " * 100)
    with pytest.raises(DatabaseError) as broken:
        open_for_reading(tmp_path / "list.db")
    assert damage(missing.value) is None
    assert damage(broken.value) == f"{tmp_path}/list.db: file is not a database"


def test_read_only_directory_is_named(read_only_directory: Path, as_nobody: None) -> None:
    with pytest.raises(StorageError, match=r"cannot create the ledger .*ledger\.db: Permission denied"):
        open_for_writing(read_only_directory / "ledger.db")


def test_file_that_may_only_be_read_is_named(as_nobody: None) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        open_for_writing(path).close()
        path.chmod(0o444)
        with pytest.raises(StorageError, match=r"ledger\.db may not be written: give it to the user"):
            open_for_writing(path)


def test_file_that_may_not_be_read_is_named(as_nobody: None) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.db"
        open_for_writing(path).close()
        path.chmod(0o200)
        with pytest.raises(StorageError, match=r"ledger\.db may not be read: ask as the user who runs the server"):
            open_for_reading(path)


def test_path_with_signs_of_a_uri_is_a_path(tmp_path: Path) -> None:
    odd = tmp_path / "100% ?mode=ro#1"
    odd.mkdir()
    database = open_for_writing(odd / "ledger.db")
    database.execute("CREATE TABLE t (a)")
    database.close()
    assert [path.name for path in odd.iterdir()] == ["ledger.db"]


def test_new_file_is_private(tmp_path: Path) -> None:
    open_for_writing(tmp_path / "ledger.db").close()
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_reader_does_not_make_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no ledger at"):
        open_for_reading(tmp_path / "ledger.db")
    assert list(tmp_path.iterdir()) == []


def test_reader_cannot_write(file: Database, tmp_path: Path) -> None:
    reader = open_for_reading(tmp_path / "ledger.db")
    with pytest.raises(DatabaseError, match="readonly"):
        reader.execute("INSERT INTO t VALUES (1)")
    reader.close()


def test_commit_waits_for_the_disk_and_the_log_is_written_ahead(file: Database) -> None:
    assert file.query("PRAGMA journal_mode") == [("wal",)]
    assert file.query("PRAGMA synchronous") == [(2,)]


def test_failing_block_leaves_nothing(file: Database) -> None:
    def insert_both() -> None:
        with file.transaction():
            file.execute("INSERT INTO t VALUES (1)")
            file.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(DatabaseError, match="no such table"):
        insert_both()
    assert file.query("SELECT a FROM t") == []
    with file.transaction():
        file.execute("INSERT INTO t VALUES (2)")
    assert file.query("SELECT a FROM t") == [(2,)]


def test_failing_commit_leaves_nothing_and_the_file_usable(file: Database, tmp_path: Path) -> None:
    faulty = FaultyDatabase(tmp_path / "ledger.db", lambda sql: sql == "COMMIT")
    with pytest.raises(DatabaseError, match="disk is full"), faulty.transaction():
        faulty.execute("INSERT INTO t VALUES (1)")
    with file.transaction():
        file.execute("INSERT INTO t VALUES (2)")
    assert faulty.query("SELECT a FROM t") == [(2,)]
    faulty.close()


def test_full_disk_is_not_taken_for_a_fault_of_the_values(file: Database) -> None:
    file.execute("CREATE TABLE words (word TEXT)")
    file.query("PRAGMA max_page_count = 3")
    with pytest.raises(DatabaseError, match="database or disk is full") as failure:
        file.execute("INSERT INTO words VALUES (?)", ("x" * 100_000,))
    assert not isinstance(failure.value, RefusedError)


def test_locked_file_is_waited_for_and_then_named(
    file: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.database.LOCK_WAIT_S", 0.02)
    other = open_for_writing(tmp_path / "ledger.db")
    with (
        file.transaction(),
        pytest.raises(DatabaseError, match=r"ledger\.db: database is locked"),
        other.transaction(),
    ):
        pass
    other.close()


def test_snapshot_does_not_see_what_is_written_meanwhile(file: Database, tmp_path: Path) -> None:
    reader = open_for_reading(tmp_path / "ledger.db")
    with reader.snapshot():
        before = reader.query("SELECT a FROM t")
        file.execute("INSERT INTO t VALUES (1)")
        assert reader.query("SELECT a FROM t") == before == []
    assert reader.query("SELECT a FROM t") == [(1,)]
    reader.close()


VISITOR = """
import sqlite3, sys
visitor = sqlite3.connect(sys.argv[1])
print(visitor.execute("SELECT count(*) FROM t").fetchone()[0])
visitor.close()
"""


def visit(path: Path) -> int:
    """Another process opens the file, counts the rows of t, and closes it."""
    done = subprocess.run([sys.executable, "-c", VISITOR, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_other_processes_come_and_go_and_lose_nothing(file: Database, tmp_path: Path) -> None:
    file.execute("INSERT INTO t VALUES (1)")
    reader = open_for_reading(tmp_path / "ledger.db")
    assert reader.query("SELECT a FROM t") == [(1,)]
    reader.close()
    assert visit(tmp_path / "ledger.db") == 1
    file.execute("INSERT INTO t VALUES (2)")
    assert visit(tmp_path / "ledger.db") == 2


LIBSQL = """
import sys
import libsql_experimental
database = libsql_experimental.connect(sys.argv[1], isolation_level=None)
print(database.execute("SELECT said, started_ms, typeof(started_ms) FROM turns").fetchall())
print(database.execute("PRAGMA integrity_check").fetchall())
columns = "call_sid, leg, seq, at_ms, kind, detail"
row = ('CA1', '0', 0, 1763632800123, 'noted', 'by libSQL')
database.execute(f"INSERT INTO events ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)
database.close()
"""


def test_file_is_a_libsql_database_also_while_this_process_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    database = open_migrated(path)
    assert write(database, [turn(0, said="Grüß Gott")]) == []
    libsql = subprocess.run(
        [sys.executable, "-c", LIBSQL, str(path)], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert libsql.stdout.splitlines() == [f"[('Grüß Gott', {NOW_MS}, 'integer')]", "[('ok',)]"]
    assert database.query("SELECT at_ms, typeof(at_ms), detail FROM events") == [(NOW_MS, "integer", "by libSQL")]
    assert write(database, [turn(1)]) == []
    database.close()
    assert rows(path, "SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM events)") == [(2, 1)]


def test_lack_of_descriptors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    open_for_writing(path).close()
    with no_descriptor_left(), pytest.raises(DatabaseError, match=r"Too many open files \(EMFILE\)"):
        Database(path)
