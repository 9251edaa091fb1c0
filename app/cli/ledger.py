"""`nearcall ledger`: how the ledger is doing, and erasure. Works beside a running server and without one."""

import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from app.cli import ledger_view as view
from app.cli.ledger_status import ZoneReport, report
from app.cli.shared import EnvFile, Json, fail, record_settings, run, working
from app.cli.when import span_ms, span_shown
from app.ledger.purge import Erased, OlderThan, OneCall, OneCaller, Target, number_of, purge_zone
from app.ledger.resend import Resent, resend_aside, resend_refused
from app.ledger.zone_files import set_aside, zones_with_traces
from app.ledger.zones import Zone
from app.storage.database import Database
from app.storage.errors import StorageError
from app.storage.migrations import known_migrations, require_migrated
from app.storage.primary import Primary
from app.storage.store import FileStore, PrimaryStore

_T = TypeVar("_T")

app = typer.Typer(help="Inspect and repair the ledger: status, resend, purge.", no_args_is_help=True)


@app.command()
def status(json: Json = False, env_file: EnvFile = Path(".env")) -> None:
    """Show each zone's primary, spool and replica, seen from this machine. Exits with 1 if something is wrong."""

    async def ask() -> list[ZoneReport]:
        found = []
        for zone in zones_with_traces(settings):
            with working(f"{zone.name}: asking {zone.url or zone.local}"):
                found.append(await report(zone))
        return found

    settings = record_settings(env_file)
    reports = run(ask())
    if json:
        for each in reports:
            print(view.json_text(asdict(each)))
    else:
        header = ("zone", "ledger", "round trip", "spooled", "oldest", "set aside", "replica age")
        rows = [
            (
                each.zone,
                each.where,
                "" if each.round_trip_ms is None else f"{each.round_trip_ms:.1f} ms",
                "" if each.spool_depth is None else str(each.spool_depth),
                "" if each.spool_oldest_s is None else span_shown(each.spool_oldest_s * 1_000),
                str(each.set_aside),
                "" if each.replica_age_s is None else span_shown(each.replica_age_s * 1_000),
            )
            for each in reports
        ]
        print("\n".join(view.table(header, rows)))
    problems = [f"{each.zone}: {problem}" for each in reports for problem in each.problems]
    if problems:
        fail("\n".join(problems))


@app.command()
def resend(json: Json = False, env_file: EnvFile = Path(".env")) -> None:
    """Send refused records again, in every zone of this machine.

    Records that were set aside on the primary, or in the local file, are stored at once. This machine's server
    sends those in its spool within a minute. Exits with 1 if a record is refused again; it stays set aside.
    """
    settings = record_settings(env_file)

    async def send() -> dict[str, Resent]:
        return {zone.name: await _resend(zone) for zone in zones_with_traces(settings)}

    try:
        resent = run(send())
    except StorageError as error:
        fail(str(error))
    for zone, what in resent.items():
        if json:
            print(view.json_text({"zone": zone, **asdict(what)}))
        else:
            print(
                f"{zone}: {what.stored} records stored, {what.spooled} on their way, {len(what.refused)} refused"
            )
    refused = [f"{zone}: {why}" for zone, what in resent.items() for why in what.refused]
    if refused:
        fail("\n".join(refused))


async def _resend(zone: Zone) -> Resent:
    spooled = resend_aside(zone.spool).spooled if zone.spool.is_file() else 0
    if zone.url is not None:
        with working(f"{zone.name}: asking {zone.url}"):
            async with Primary(zone.url, zone.token) as primary:
                return replace(await resend_refused(PrimaryStore(primary)), spooled=spooled)
    if not zone.local.is_file():
        return Resent(spooled=spooled)
    with closing(Database(zone.local)) as database:
        require_migrated(database, known_migrations())
        return replace(await resend_refused(FileStore(database)), spooled=spooled)


@app.command()
def purge(
    older_than: Annotated[
        str | None, typer.Option(help="Erase calls without newer records: 30d, 12h.", show_default=False)
    ] = None,
    call_sid: Annotated[
        str | None, typer.Option("--call", help="Erase one call: CA...", show_default=False)
    ] = None,
    caller: Annotated[
        str | None, typer.Option(help="Erase all calls from a number: +4930123456.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be erased.")] = False,
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Erase calls in every zone of this machine: on the primary, in this machine's spool and in the local file.

    Needs exactly one of --older-than, --call and --caller. It also erases from a spool or a local file that the
    settings no longer use. Replicas follow with their next sync. A call erased by id or by caller stays erased:
    records of it that another machine still holds are not stored when they arrive. Exits with 1 if a damaged file
    is left.
    """
    now_ms = time.time_ns() // 1_000_000

    def target() -> Target:
        match older_than, call_sid, caller:
            case str(text), None, None:
                return OlderThan(now_ms - _checked("--older-than", span_ms, text))
            case None, str(sid), None:
                return OneCall(_checked("--call", _a_sid, sid))
            case None, None, str(number):
                return OneCaller(_checked("--caller", number_of, number))
        raise typer.BadParameter("give exactly one of --older-than, --call and --caller")

    wanted = target()
    settings = record_settings(env_file)
    zones = zones_with_traces(settings)
    if not any(zone.url or zone.local.exists() or zone.spool.exists() or set_aside(zone) for zone in zones):
        fail(f"there is no ledger in {settings.ledger.data_dir}: nothing was erased.")

    async def erase() -> dict[str, Erased]:
        return {zone.name: await _purge(zone, wanted, now_ms, dry_run=dry_run) for zone in zones}

    try:
        erased = run(erase())
    except StorageError as error:
        fail(str(error))
    for zone, what in erased.items():
        if json:
            print(view.json_text({"zone": zone, "dry_run": dry_run, "calls": len(what.call_sids), **what.rows}))
        else:
            rows = ", ".join(f"{count} {table}" for table, count in what.rows.items())
            print(f"{zone}: {len(what.call_sids)} calls {'would be' if dry_run else 'were'} erased ({rows})")
    unread = [path for zone in zones for path in set_aside(zone)]
    if unread:
        fail("\n".join(f"{path} is damaged and was not looked into: delete it" for path in unread))


async def _purge(zone: Zone, target: Target, now_ms: int, *, dry_run: bool) -> Erased:
    if zone.url is None:
        return await purge_zone(zone, None, target, now_ms, dry_run=dry_run)
    with working(f"{zone.name}: asking {zone.url}"):
        async with Primary(zone.url, zone.token) as primary:
            return await purge_zone(zone, PrimaryStore(primary), target, now_ms, dry_run=dry_run)


def _a_sid(text: str) -> str:
    if re.fullmatch(r"CA[0-9a-f]{32}", text) is None:
        raise ValueError(f"{text!r} should be Twilio's id of a call: CA and 32 hexadecimal digits")
    return text


def _checked(option: str, parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
