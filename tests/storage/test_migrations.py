"""Migrations: all or nothing, once, in order, also by two processes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.ledger.records import TURNS, turn
from app.storage.database import Database, DatabaseError, open_for_writing
from app.storage.migrations import (
    Migration,
    MigrationError,
    SchemaChangedError,
    SchemaTooNewError,
    SchemaTooOldError,
    in_order,
    known_migrations,
    migrate,
    require_migrated,
)
from tests.ledger.samples import FaultyDatabase, NthStatement, rows

FIRST = ("0001_words.sql", "CREATE TABLE words (word TEXT); CREATE INDEX by_word ON words (word);")
SECOND = ("0002_more.sql", "ALTER TABLE words ADD COLUMN lang TEXT; INSERT INTO words VALUES ('moin', 'de');")
BOTH = in_order([FIRST, SECOND])
STATEMENTS = 12
"""What migrating with BOTH takes: BEGIN, marker table, two statements, marker row, COMMIT, for each of two."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = open_for_writing(path)
    yield database
    database.close()


def schema(database: Database) -> list[str]:
    return [str(name) for (name,) in database.query("SELECT name FROM sqlite_schema ORDER BY name")]


def names(migrations: tuple[Migration, ...]) -> list[str]:
    return [migration.name for migration in migrations]


def test_new_database_gets_every_migration_in_order(database: Database) -> None:
    assert migrate(database, BOTH) == BOTH
    assert database.query("SELECT version, name FROM schema_migrations ORDER BY version") == [
        (1, "0001_words.sql"),
        (2, "0002_more.sql"),
    ]
    assert database.query("SELECT word, lang FROM words") == [("moin", "de")]


def test_second_run_changes_nothing(database: Database) -> None:
    migrate(database, BOTH)
    markers = database.query("SELECT * FROM schema_migrations")
    assert migrate(database, BOTH) == ()
    assert database.query("SELECT * FROM schema_migrations") == markers
    assert database.query("SELECT count(*) FROM words") == [(1,)]


def test_older_database_gets_only_what_it_lacks(database: Database) -> None:
    migrate(database, BOTH[:1])
    assert names(migrate(database, BOTH)) == ["0002_more.sql"]


def test_migrating_two_files_takes_the_statements_that_the_next_test_fails(path: Path) -> None:
    count = NthStatement(0)
    open_for_writing(path).close()
    database = FaultyDatabase(path, count)
    migrate(database, BOTH)
    database.close()
    assert count.seen == STATEMENTS


@pytest.mark.parametrize("nth", range(1, STATEMENTS + 1))
def test_failure_at_any_statement_leaves_whole_migrations_and_a_rerun_ends(
    path: Path, database: Database, nth: int
) -> None:
    faulty = FaultyDatabase(path, NthStatement(nth))
    with pytest.raises((DatabaseError, MigrationError), match="disk is full"):
        migrate(faulty, BOTH)
    faulty.close()
    first_done = nth > STATEMENTS // 2
    assert schema(database) == (["by_word", "schema_migrations", "words"] if first_done else [])
    assert migrate(database, BOTH) == (BOTH[1:] if first_done else BOTH)
    assert database.query("SELECT word FROM words") == [("moin",)]


def test_wrong_sql_names_file_and_statement_and_leaves_no_trace(database: Database) -> None:
    wrong = in_order([("0001_bad.sql", "CREATE TABLE a (b);\n-- why\nCREATE TABEL c (d);")])
    with pytest.raises(MigrationError, match=r"0001_bad\.sql failed at 'CREATE TABEL c \(d\);': .*syntax error"):
        migrate(database, wrong)
    assert schema(database) == []


def test_newer_database_is_refused_naming_both_sides(database: Database) -> None:
    migrate(database, BOTH)
    with pytest.raises(SchemaTooNewError, match=r"has 0002_more\.sql, .* only up to 0001_words\.sql"):
        migrate(database, BOTH[:1])


@pytest.mark.parametrize("act", [migrate, require_migrated])
def test_changed_file_is_reported(database: Database, act: object) -> None:
    migrate(database, BOTH)
    changed = in_order([(FIRST[0], FIRST[1] + " -- harmless?"), SECOND])
    with pytest.raises(SchemaChangedError, match=r"0001_words\.sql is not what was applied"):
        act(database, changed)  # type: ignore[operator] # both take the same


def test_line_ends_of_another_system_are_no_change(database: Database) -> None:
    migrate(database, in_order([("0001_a.sql", "CREATE TABLE a (\nb\n);\n")]))
    assert migrate(database, in_order([("0001_a.sql", "CREATE TABLE a (\r\nb\r\n);\r\n")])) == ()


def test_reader_of_a_database_that_lacks_one_is_told(database: Database) -> None:
    migrate(database, BOTH[:1])
    with pytest.raises(SchemaTooOldError, match=r"lacks 0002_more\.sql"):
        require_migrated(database, BOTH)


def test_reader_does_not_mind_a_newer_database(database: Database) -> None:
    migrate(database, BOTH)
    require_migrated(database, BOTH[:1])


@pytest.mark.parametrize(
    ("files", "should_be"),
    [
        ([("0002_a.sql", "")], "0001_"),
        ([("0001_a.sql", ""), ("0003_b.sql", "")], "0002_"),
        ([("0001_a.sql", ""), ("0001_b.sql", "")], "0002_"),
        ([("1_a.sql", "")], "0001_"),
        ([("0001_A b.sql", "")], "0001_"),
    ],
)
def test_gap_double_or_odd_name_is_refused(files: list[tuple[str, str]], should_be: str) -> None:
    with pytest.raises(MigrationError, match=f"should be called {should_be}"):
        in_order(files)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("CREATE TABLE a (b TEXT DEFAULT ';');", ["a"]),
        ("-- one; two\nCREATE TABLE a (b); /* three; */", ["a"]),
        ("CREATE TABLE a (b);\nCREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM a; END;", ["a", "t"]),
        ("CREATE TABLE a (b);;\n\n;", ["a"]),
        ("\n-- nothing to do\n", []),
    ],
    ids=["string", "comment", "trigger", "stray semicolons", "comment only"],
)
def test_semicolons_that_end_no_statement_do_not_split_it(database: Database, sql: str, tables: list[str]) -> None:
    migrate(database, in_order([("0001_a.sql", sql)]))
    assert schema(database) == sorted([*tables, "schema_migrations"])


@pytest.mark.parametrize("sql", ["CREATE TABLE a (b)", "CREATE TABLE a (b); CREATE TABLE c (';);"])
def test_file_that_ends_in_a_statement_is_refused(database: Database, sql: str) -> None:
    with pytest.raises(MigrationError, match="ends in the middle of a statement"):
        migrate(database, in_order([("0001_a.sql", sql)]))
    assert schema(database) == []


@pytest.mark.parametrize("sql", ["BEGIN;", "-- now\ncommit;", "ROLLBACK;", "SAVEPOINT s;"])
def test_file_with_its_own_transaction_is_refused(database: Database, sql: str) -> None:
    with pytest.raises(MigrationError, match="handles transactions itself"):
        migrate(database, in_order([("0001_a.sql", "CREATE TABLE a (b);" + sql)]))
    assert schema(database) == []


def test_packed_migrations_make_the_tables(database: Database) -> None:
    migrate(database, known_migrations())
    assert {"legs", "turns", "events", "endings", "refused"} <= set(schema(database))


def test_other_process_that_migrates_first_leaves_nothing_to_do(path: Path, database: Database) -> None:
    """It comes between our look at the database and our getting the write lock."""

    def overtaken(sql: str) -> bool:
        if sql == "BEGIN IMMEDIATE":
            migrate(database, BOTH)
        return False

    slower = FaultyDatabase(path, overtaken)
    assert migrate(slower, BOTH) == ()
    slower.close()
    assert database.query("SELECT word FROM words") == [("moin",)]


RACER = """
import sys
from pathlib import Path
from app.ledger.local import open_migrated
path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
open_migrated(path).close()
"""


@pytest.mark.parametrize("attempt", range(2))
def test_two_processes_at_once_migrate_once(path: Path, attempt: int) -> None:
    root = Path(__file__).parents[2]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for _ in range(2)
    ]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n", "ready\n"]
    results = [racer.communicate("go\n", timeout=10) for racer in racers]
    assert results == [("", ""), ("", "")]
    assert [racer.returncode for racer in racers] == [0, 0]
    known = [(migration.name,) for migration in known_migrations()]
    assert rows(path, "SELECT name FROM schema_migrations ORDER BY version") == known


OLD_TURN = (
    "INSERT INTO turns (call_sid, leg, seq, speaker, said, heard, started_ms, ended_ms, backend, interrupted,"
    " said_ms, heard_ms, answer_sent_ms, answer_heard_ms, input_text_tokens, input_audio_tokens,"
    " cached_text_tokens, cached_audio_tokens, output_text_tokens, output_audio_tokens)"
    " VALUES ('CA1', '0', ?, 'agent', 'Hi', 'Hi', 1, 2, 'openai', 0, 0, 0, NULL, NULL, 0, 0, 0, 0, 0, 0)"
    " ON CONFLICT DO NOTHING"
)
"""What programs wrote that knew the first migration alone."""


def test_program_that_knows_the_first_migration_alone_goes_on_writing(database: Database) -> None:
    migrate(database, known_migrations()[:1])
    database.execute(OLD_TURN, (0,))
    migrate(database, known_migrations())
    database.execute(OLD_TURN, (1,))
    turns = [turn(row) for row in database.query(f"SELECT {', '.join(TURNS.columns)} FROM turns ORDER BY seq")]
    assert [(each.seq, each.said, each.model, each.cost_microusd) for each in turns] == [
        (0, "Hi", "", None),
        (1, "Hi", "", None),
    ]
