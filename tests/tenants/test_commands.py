"""`nearcall tenants` as an operator meets it: a file is checked, imported, shown and exported."""

from functools import partial
from pathlib import Path

import pytest

from app.storage.database import Database
from app.storage.statement import Row
from app.storage.store import PrimaryStore
from app.tenants.store import ImportedMeanwhileError
from app.world.process import free_port
from tests.commands import Nearcall, Ran, run_nearcall
from tests.ledger.samples import rows as file_rows
from tests.ledger.sqld import Sqld, token
from tests.tenants.samples import BETA, acme


@pytest.fixture
def nearcall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nearcall:
    """Runs `nearcall tenants ...` in an empty directory, without any other setting."""
    monkeypatch.chdir(tmp_path)

    return partial(run_nearcall, "tenants")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two tenants."""
    path = tmp_path / "tenants.toml"
    path.write_text(acme() + BETA, encoding="utf-8")
    return path


def stored(tmp_path: Path) -> list[Row]:
    """Numbers and their tenants in the local file."""
    return file_rows(tmp_path / "data/ledger.db", "SELECT number, tenant FROM tenant_numbers ORDER BY number")


BOTH: list[Row] = [("+4930123456", "acme"), ("+4930123457", "beta"), ("+4930123458", "beta")]

# --- check -------------------------------------------------------------------------------------


def test_good_file_is_checked_without_any_database(nearcall: Nearcall, file: Path, tmp_path: Path) -> None:
    ran = nearcall("check", str(file), TURSO_URL="not a database")
    assert (ran.code, ran.out, ran.err) == (0, f"{file}: 2 tenants, 3 numbers, nothing wrong\n", "")
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_wrong_is_reported_as_editors_read_it(nearcall: Nearcall, file: Path) -> None:
    file.write_text('[tenants.acme]\nnumbers = ["+4930123456"]\nzone = "mars"\nbackends = ["hal"]\n')
    ran = nearcall("check", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        f'{file}:3: tenants.acme.zone is "mars". It should be one of eu, global.',
        (
            f'{file}:4: tenants.acme.backends contains "hal".'
            " It should be a list of names, each one of openai, openai-eu, voicelive."
        ),
        f"nearcall: 2 mistakes in {file}",
    ]


def test_what_is_wrong_is_reported_to_machines(nearcall: Nearcall, file: Path) -> None:
    file.write_text("[tenants]\nx = 1\n")
    ran = nearcall("check", "--json", str(file))
    why = "tenants.x is 1. It should be a table, [tenants.x]."
    assert ran.code == 1
    assert ran.objects == [{"file": str(file), "line": 2, "field": "tenants.x", "problem": why}]


def test_mistakes_of_file_config_and_environment_come_together(
    nearcall: Nearcall, file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "nearcall.toml"
    config.write_text("[zones.apac]\nregions = ['nrt']\nresidency = 'any'\n[default]\nvoice = 1\n")
    file.write_text('[tenants.acme]\nnumbers = ["+4930123456"]\nzone = "apac"\nmood = 1\n')
    environ = {"NEARCALL_CONFIG": str(config), "TURSO_TOKEN": "rw-token"}
    in_files = [
        f"{file}:4: tenants.acme.mood is not a known field.",
        f"NEARCALL_CONFIG: {config}:1: zones.apac.database is missing.",
        f"NEARCALL_CONFIG: {config}:5: default.voice is 1.",
    ]
    ran = nearcall("check", str(file), **environ)
    *lines, total = ran.err.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, in_files, strict=True)] == in_files
    assert (ran.code, total) == (1, f"nearcall: 1 mistake in {file}, 2 mistakes in {config}")
    *lines, total = nearcall("import", str(file), **environ).err.splitlines()
    assert lines[3].startswith("TURSO_URL is missing.")
    assert total.endswith(", 1 mistake in the environment")


def test_file_that_is_not_there_is_named(nearcall: Nearcall) -> None:
    ran = nearcall("check", "nowhere.toml")
    assert ran.err.splitlines() == [
        "nowhere.toml: No such file or directory.",
        "nearcall: 1 mistake in nowhere.toml",
    ]


@pytest.mark.parametrize("arguments", [(), ("check",), ("import",), ("show",), ("list", "--no"), ("chekc", "x")])
def test_wrong_command_line_is_2(nearcall: Nearcall, arguments: tuple[str, ...]) -> None:
    assert nearcall(*arguments).code == 2


# --- import ------------------------------------------------------------------------------------


def test_import_says_what_it_changes_and_makes_the_local_file(
    nearcall: Nearcall, file: Path, tmp_path: Path
) -> None:
    ran = nearcall("import", str(file))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "+ acme",
        '    numbers: ["+4930123456"]',
        '    greeting: "Hello."',
        "+ beta",
        '    numbers: ["+4930123457","+4930123458"]',
        '    zone: "eu"',
        "2 added, 0 changed, 0 removed, 0 as before (data/ledger.db)",
    ]
    assert stored(tmp_path) == BOTH


def test_second_import_changes_what_differs(nearcall: Nearcall, file: Path) -> None:
    nearcall("import", str(file))
    file.write_text(acme("Hallo.") + BETA.replace('zone = "eu"', "max_calls = 2"))
    assert nearcall("import", str(file)).out.splitlines() == [
        "~ acme",
        '    greeting: "Hello." -> "Hallo."',
        "~ beta",
        "    max_calls: default -> 2",
        '    zone: "eu" -> default',
        "0 added, 2 changed, 0 removed, 0 as before (data/ledger.db)",
    ]
    assert nearcall("import", str(file)).out == "0 added, 0 changed, 0 removed, 2 as before (data/ledger.db)\n"


def test_tenant_that_is_not_in_the_file_stays_without_remove(
    nearcall: Nearcall, file: Path, tmp_path: Path
) -> None:
    nearcall("import", str(file))
    file.write_text(acme("Hallo."))
    ran = nearcall("import", str(file))
    assert (ran.code, stored(tmp_path)) == (1, BOTH)
    assert ran.err == "nearcall: beta would be removed. Nothing was changed. To remove tenants, use --remove.\n"
    assert '"Hello."' in nearcall("show", "acme").out
    ran = nearcall("import", "--remove", "--json", str(file))
    assert (ran.code, stored(tmp_path)) == (0, BOTH[:1])
    assert [(each["tenant"], each["change"]) for each in ran.objects] == [("acme", "changed"), ("beta", "removed")]
    assert ran.objects[0]["fields"] == {"greeting": ["Hello.", "Hallo."]}


def test_file_with_a_problem_changes_nothing(nearcall: Nearcall, file: Path, tmp_path: Path) -> None:
    nearcall("import", str(file))
    file.write_text(acme("Hallo.") + BETA.replace("eu", "mars"))
    assert nearcall("import", "--remove", str(file)).code == 1
    assert stored(tmp_path) == BOTH
    assert '"Hello."' in nearcall("show", "acme").out


def test_malformed_settings_are_named(nearcall: Nearcall, file: Path) -> None:
    ran = nearcall("import", str(file), TURSO_URL="nonsense")
    assert ran.code == 1
    assert "TURSO_URL is malformed" in ran.err


def test_import_that_came_second_says_so(nearcall: Nearcall, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def meanwhile(*_: object) -> None:
        raise ImportedMeanwhileError("somebody else")

    monkeypatch.setattr("app.cli.tenant_store.replace_all", meanwhile)
    ran = nearcall("import", str(file))
    assert (ran.code, ran.err) == (1, "nearcall: somebody else\n")


# --- A primary ---------------------------------------------------------------------------------


@pytest.fixture
def turso(sqld: Sqld) -> dict[str, str]:
    return {"TURSO_URL": sqld.url, "TURSO_TOKEN": token()}


def migrated(turso: dict[str, str]) -> None:
    assert run_nearcall("migrate", **turso).code == 0


def test_import_goes_to_the_primary_and_is_read_from_there(
    nearcall: Nearcall, file: Path, sqld: Sqld, turso: dict[str, str], tmp_path: Path
) -> None:
    migrated(turso)
    ran = nearcall("import", str(file), **turso)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, f"2 added, 0 changed, 0 removed, 0 as before ({sqld.url})")
    assert sqld.query("SELECT number, tenant FROM tenant_numbers ORDER BY number") == BOTH
    assert [one["tenant"] for one in nearcall("list", "--json", **turso).objects] == ["acme", "beta"]
    assert list((tmp_path).glob("data/*")) == []


def test_primary_without_tables_is_reported_what_to_do(
    nearcall: Nearcall, file: Path, turso: dict[str, str]
) -> None:
    ran = nearcall("import", str(file), **turso)
    assert ran.code == 1
    assert ran.err.endswith("Run 'nearcall migrate'\n")


def test_primary_that_is_away_is_reported(nearcall: Nearcall, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.tenant_store.PrimaryStore", partial(PrimaryStore, pauses_s=()))
    ran = nearcall("import", str(file), TURSO_URL=f"http://127.0.0.1:{free_port()}", TURSO_TOKEN="rw-token")
    assert (ran.code, ran.out) == (1, "")
    assert "cannot reach 127.0.0.1" in ran.err


# --- list, show, export ------------------------------------------------------------------------


def test_nothing_is_shown_where_nothing_was_imported(nearcall: Nearcall, tmp_path: Path) -> None:
    assert nearcall("list", "--json") == Ran(0, "", "")
    assert nearcall("export") == Ran(0, "", "")
    assert nearcall("show", "acme") == Ran(1, "", "nearcall: There is no tenant acme; there are none yet\n")
    assert list(tmp_path.iterdir()) == []


def test_list_has_a_line_for_each_tenant(nearcall: Nearcall, file: Path) -> None:
    nearcall("import", str(file))
    lines = [line.split() for line in nearcall("list").out.splitlines()]
    assert lines == [
        ["tenant", "zone", "language", "model", "numbers", "state"],
        ["acme", "global", "en", "gpt-realtime-2.1", "+4930123456", "good"],
        ["beta", "eu", "en", "gpt-realtime-2.1", "+4930123457,+4930123458", "good"],
    ]


def test_show_has_everything_and_marks_what_is_left_out(nearcall: Nearcall, file: Path) -> None:
    nearcall("import", str(file))
    lines = nearcall("show", "beta").out.splitlines()
    assert lines[:4] == [
        "[tenants.beta]",
        'numbers = ["+4930123457", "+4930123458"]',
        'zone = "eu"',
        'language = "en"  # default',
    ]
    [shown] = nearcall("show", "beta", "--json").objects
    assert (shown["zone"], shown["voice"], shown["set"]) == ("eu", "marin", ["zone"])


def test_show_of_a_tenant_that_is_not_there_suggests_one(nearcall: Nearcall, file: Path) -> None:
    nearcall("import", str(file))
    assert nearcall("show", "acmee") == Ran(1, "", "nearcall: There is no tenant acmee; did you mean acme?\n")


def test_export_is_a_file_that_import_finds_nothing_new_in(nearcall: Nearcall, file: Path, tmp_path: Path) -> None:
    nearcall("import", str(file))
    exported = tmp_path / "exported.toml"
    assert nearcall("export", "--output", str(exported)).err == f"2 tenants, 3 numbers written to {exported}\n"
    assert exported.read_text() == nearcall("export").out
    assert nearcall("import", str(exported)).out.startswith("0 added, 0 changed, 0 removed, 2 as before")


def test_export_to_where_nobody_may_write_is_reported(nearcall: Nearcall, tmp_path: Path) -> None:
    assert nearcall("export", "--output", str(tmp_path)).err == f"nearcall: {tmp_path}: Is a directory.\n"


def test_unusable_tenant_is_named_everywhere_and_mended_by_an_import(
    nearcall: Nearcall, file: Path, tmp_path: Path
) -> None:
    nearcall("import", str(file))
    database = Database(tmp_path / "data/ledger.db")
    database.execute("UPDATE tenants SET content = '{\"mood\":1}' WHERE name = 'beta'")
    database.close()
    listed = nearcall("list")
    assert listed.code == 1
    assert "cannot be used: mood is not a known field." in listed.out.splitlines()[2]
    assert listed.err == "nearcall: beta cannot be used: their callers hear an apology.\n"
    assert nearcall("list", "--json").objects[1]["error"].startswith("mood is not a known field.")
    assert nearcall("show", "beta").err.startswith("nearcall: beta cannot be used: mood is not ")
    assert nearcall("export").code == 1
    assert nearcall("import", str(file)).out.splitlines()[:3] == [
        "~ beta",
        '    zone: default -> "eu"',
        "    mood: 1 -> default",
    ]
    assert nearcall("list").code == 0
