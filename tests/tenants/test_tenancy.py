"""Whose call it is: with tenants, without, and before the tenants are read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.call.plan import Plan
from app.call.records import CallStarted
from app.cli.tenant_store import write_tenants
from app.ledger.zones import Zone
from app.sim.phone.phone import Phone
from app.tenants.directory import TenantDirectory
from app.tenants.fields import Known
from app.tenants.store import TenantRows
from app.tenants.tenancy import COPY_WAIT_S, Tenancy
from tests.bridge.world import World, world
from tests.tenants.samples import KNOWN, rows

pytestmark = pytest.mark.anyio

BUILTIN = Plan(greeting="Built in.")
ACME = '[tenants.acme]\nnumbers = ["+4930654321"]\ngreeting = "Acme."\nzone = "eu"\n'


async def imported(data_dir: Path) -> None:
    """The file of a server that is to start has this tenant in it."""
    await write_tenants(Zone("global", data_dir, None, str), TenantRows(), rows(ACME), 1)


def tenancy(
    path: Path, *, known: Known = KNOWN, now_s: list[float] | None = None, **changes: Any
) -> tuple[TenantDirectory, Tenancy]:
    directory = TenantDirectory(path, known, damaged=lambda _why: None)
    clock = now_s or [0.0]
    given: dict[str, Any] = {"copied": False, "promised": False, "current": lambda: True, "test_zones": ()}
    return directory, Tenancy(directory, BUILTIN, clock=lambda: clock[0], **given | changes)


async def test_without_tenants_every_number_is_the_built_in_ones(tmp_path: Path) -> None:
    directory, whose = tenancy(tmp_path / "ledger.db")
    await directory.look()
    assert whose.settled
    assert whose.plan_for("+4930654321") == BUILTIN
    assert (whose.plan_of("default"), whose.plan_of("acme")) == (BUILTIN, None)
    await directory.stop()


async def test_with_tenants_a_number_is_theirs_or_unknown(tmp_path: Path) -> None:
    await imported(tmp_path)
    directory, whose = tenancy(tmp_path / "ledger.db")
    await directory.look()
    acme = whose.plan_for("+4930654321")
    assert acme is not None
    assert (acme.tenant, acme.greeting, acme.zone) == ("acme", "Acme.", "eu")
    assert whose.plan_for("+4930000000") is None
    assert whose.plan_of("acme") == acme
    await directory.stop()


async def test_test_number_of_a_zone_is_the_built_in_tenants_in_that_zone(
    tmp_path: Path,
) -> None:
    await imported(tmp_path)
    directory, whose = tenancy(tmp_path / "ledger.db", test_zones=("global", "eu"))
    await directory.look()
    for zone in ("global", "eu"):
        plan = whose.plan_for(f"test:{zone}")
        assert plan == replace(BUILTIN, tenant=f"test:{zone}", zone=zone)
        # The stream may come to another machine than the webhook: it knows the plan by the ticket's tenant.
        assert whose.plan_of(f"test:{zone}") == plan
    assert whose.plan_for("test:apac") is None
    await directory.stop()


async def test_number_of_a_tenant_that_cannot_be_used_is_not_the_built_in_ones(tmp_path: Path) -> None:
    await imported(tmp_path)
    directory, whose = tenancy(tmp_path / "ledger.db", known=Known({"global"}, {"openai"}))
    await directory.look()
    assert directory.broken.keys() == {"acme"}
    assert whose.plan_for("+4930654321") is None
    await directory.stop()


async def test_new_machine_waits_for_its_copy_and_not_for_ever(tmp_path: Path) -> None:
    now_s = [100.0]
    directory, whose = tenancy(tmp_path / "replica.db", copied=True, now_s=now_s)
    await directory.look()
    before = whose.settled
    now_s[0] += COPY_WAIT_S + 1
    assert (before, whose.settled) == (False, True)
    await directory.stop()


@pytest.mark.parametrize("copied", [True, False])
async def test_number_not_looked_up_has_no_plan_while_a_zone_promises_something(
    tmp_path: Path, *, copied: bool
) -> None:
    """It may be a tenant's of the EU: the built-in one would answer it anywhere, by any backend."""
    now_s = [100.0]
    directory, whose = tenancy(
        tmp_path / "replica.db", copied=copied, now_s=now_s, promised=True, current=lambda: False
    )
    await directory.look()
    now_s[0] += COPY_WAIT_S + 1
    assert (whose.settled, whose.plan_for("+4930654321")) == (False, None)
    await imported(tmp_path)
    (tmp_path / "ledger.db").rename(tmp_path / "replica.db")
    await directory.look()
    assert whose.settled
    assert getattr(whose.plan_for("+4930654321"), "tenant", None) == "acme"
    await directory.stop()


async def test_copy_without_tenants_is_believed_once_it_is_current(tmp_path: Path) -> None:
    """One that is being made shows the past first: the time before the first import."""
    await write_tenants(Zone("global", tmp_path, None, str), TenantRows(), {}, 1)
    (tmp_path / "ledger.db").rename(tmp_path / "replica.db")
    current = [False]
    directory, whose = tenancy(tmp_path / "replica.db", copied=True, promised=True, current=lambda: current[0])
    await directory.look()
    assert (directory.read, whose.settled, whose.plan_for("+4930654321")) == (True, False, None)
    current[0] = True
    assert (whose.settled, whose.plan_for("+4930654321")) == (True, BUILTIN)
    current[0] = False
    assert (whose.settled, whose.plan_for("+4930654321")) == (True, BUILTIN)
    await directory.stop()


async def greeted(nearcall: World, number: str) -> Phone:
    async with Phone(nearcall.phone(to=number)) as phone:
        await phone.dial()
        await phone.wait_for(lambda p: p.speech_ms > 200 or p.ended is not None)
        await phone.hang_up()
        return phone


async def test_server_answers_each_number_as_its_tenant_wants(tmp_path: Path) -> None:
    await imported(tmp_path)
    async with world(tmp_path) as nearcall:
        await greeted(nearcall, "+4930654321")
        stranger = await greeted(nearcall, "+4930000000")
        assert stranger.streams == []
    leg, refused = [record for record in nearcall.records if isinstance(record, CallStarted)]
    assert (leg.tenant, leg.zone) == ("acme", "eu")
    assert (refused.stream_sid, refused.caller, refused.called) == ("", "", "+4930000000")
