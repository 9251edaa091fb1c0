"""The whole service: server processes behind the edge, real databases, far callers, and machines that fail."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.regions.zones import shipped_zones
from app.sim.realtime.reply import Message, Reply
from app.world.calls import Outcome, place
from app.world.chaos import ChaosReport, chaos, strays
from app.world.world import World, world
from tests.ledger.sqld import sqld_program

pytestmark = pytest.mark.anyio

BRIEF = Reply((Message.lasting("Yes.", 300),))


async def served(running: World, city: str, zone: str, in_region: Callable[[str], bool]) -> Outcome:
    """Call until a call is handled in such a region; each one on the way has to be served all the same."""
    while True:
        outcome = await place(running, city, zone, None)
        assert outcome.good, outcome
        if outcome.way and in_region(outcome.way[-1]):
            return outcome


@pytest.mark.long
async def test_calls_land_where_they_should_and_return_to_a_recovered_region(tmp_path: Path) -> None:
    cities = ("osaka", "berlin", "ashburn")
    async with world(
        tmp_path / "w", ("nrt", "fra", "iad"), cities, sqld_program=sqld_program(), script=lambda _: BRIEF
    ) as running:
        found = {
            (city, zone): await place(running, city, zone, None) for city in cities for zone in ("global", "eu")
        }
        assert {key: outcome.way for key, outcome in found.items()} == {
            ("osaka", "global"): ("nrt",),
            ("osaka", "eu"): ("nrt", "fra"),
            ("berlin", "global"): ("fra",),
            ("berlin", "eu"): ("fra",),
            ("ashburn", "global"): ("iad",),
            ("ashburn", "eu"): ("iad", "fra"),
        }
        assert all(outcome.served for outcome in found.values())

        # The first call of a region that is cut off is served too: its stream is sent on.
        await running.sicken("nrt")
        first = await place(running, "osaka", "global", None)
        assert (first.served, first.way) == (True, ("nrt", "iad"))
        await running.heal("nrt")
        await served(running, "osaka", "global", lambda region: region == "nrt")

        # The only machine of the EU is gone: nobody else takes its calls.
        await running.kill("fra")
        lost = await place(running, "berlin", "eu", None)
        assert (lost.served, lost.way, bool(lost.sentence)) == (False, (), True)
        await running.start("fra")
        await served(running, "berlin", "eu", lambda region: region == "fra")

        eu_calls = [outcome.call_sid for (_, zone), outcome in found.items() if zone == "eu"]
        assert strays(running.directory, ("nrt", "fra", "iad"), [*eu_calls, lost.call_sid]) == []


async def no_backend(running: World, region: str) -> bool:
    """True when a machine says that it reaches no backend; it has to stay in the routing then."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{running.machines[region].port}/healthz")
    return (answer.status_code, answer.json().get("why")) == (200, "no_backend")


@pytest.mark.long
async def test_when_every_region_is_sick_every_caller_hears_the_sentence(tmp_path: Path) -> None:
    """Had the machines answered Fly's checks with 503, the edge would have had no candidate."""
    cities, regions = ("osaka", "berlin", "ashburn"), ("nrt", "fra", "iad")
    async with world(tmp_path / "w", regions, cities, sqld_program=None, script=lambda _: BRIEF) as running:
        await asyncio.gather(*(running.sicken(region) for region in regions))
        heard: list[Outcome] = []
        while not all([await no_backend(running, region) for region in regions]):
            heard += await asyncio.gather(*(place(running, city, "global", None) for city in cities))
            heard += await asyncio.gather(*(place(running, city, "eu", None) for city in cities))
        for _ in range(2):
            # Meanwhile the checks have run again, and new calls meet what the edges believe now.
            heard += await asyncio.gather(*(place(running, city, "global", None) for city in cities))
        assert [(each.good, each.served, bool(each.sentence)) for each in heard] == [(True, False, True)] * len(
            heard
        )
        assert all(each.edge in regions and each.answered_by in regions for each in heard)
        assert all(running.fly.machine(region).checks_ok for region in regions)
        # One of them is well again: the other regions send it their calls.
        await running.heal("fra")
        assert (await served(running, "ashburn", "global", lambda region: region == "fra")).served


@pytest.mark.long
@pytest.mark.parametrize(("databases", "calls"), [(True, 25), (False, 10)], ids=["sqld", "files"])
async def test_no_call_leaves_its_zone_while_machines_fail(tmp_path: Path, databases: bool, calls: int) -> None:
    """`nearcall world --chaos 500` is the long run; these are as many as a test has time for."""
    regions = ("nrt", "fra", "cdg", "iad")
    async with world(
        tmp_path / "w",
        regions,
        ("osaka", "berlin", "ashburn"),
        sqld_program=sqld_program() if databases else None,
        script=lambda _: BRIEF,
    ) as running:
        report = await chaos(running, calls, random.Random(4))
    assert report.good, (report.breaches, report.unserved)
    handled = {each.way[-1] for each in report.outcomes if each.zone == "eu" and each.way}
    assert all(shipped_zones()["eu"].allows(region) for region in handled)


@pytest.mark.long
async def test_callers_hear_something_while_all_regions_lose_their_backends(tmp_path: Path) -> None:
    """And agents answer again without anybody's help."""
    async with world(
        tmp_path / "w", ("fra", "iad"), ("berlin", "ashburn"), sqld_program=None, script=lambda _: BRIEF
    ) as running:
        report = await chaos(running, 40, random.Random(4), kinds=("blackout",))
    assert report.good, (report.breaches, report.unserved, report.forsaken)
    assert report.faults.keys() == {"blackout"}
    assert any(each.sentence and not each.served for each in report.outcomes)


SERVED = Outcome("osaka", "eu", "CA1", "nrt", "fra", ("nrt", "fra"), True, "", False, 490.4, 997.0, "")
WITH_A_SENTENCE = replace(SERVED, way=(), served=False, sentence="Sorry.")


@pytest.mark.parametrize(
    ("outcome", "forsaken", "good"),
    [
        (SERVED, [], True),
        (WITH_A_SENTENCE, [], True),
        (replace(WITH_A_SENTENCE, sentence=""), [], False),
        (replace(WITH_A_SENTENCE, error="the webhook failed"), [], False),
        (SERVED, ["eu"], False),
    ],
)
def test_verdict_finds_callers_who_heard_nothing(outcome: Outcome, forsaken: list[str], good: bool) -> None:
    assert ChaosReport([SERVED, outcome], judged=2, forsaken=forsaken).good is good


def test_stray_call_is_found_in_a_log(tmp_path: Path) -> None:
    """The search that the report rests on finds what it is for."""
    (tmp_path / "iad").mkdir()
    (tmp_path / "fra").mkdir()
    for region in ("iad", "fra"):
        (tmp_path / region / "log").write_text('{"call_sid":"CA1"}\n', encoding="utf-8")
    assert strays(tmp_path, ("iad", "fra"), ["CA1", "CA2"]) == ["CA1 is mentioned in iad/log"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--from", "atlantis"), "'atlantis' should be one of"),
        (("--regions", "mars"), "'mars' should be one of"),
        (("--kill", "cdg"), "'cdg' should be one of"),
        (("--keep", "."), "should not exist yet"),
        (("--sqld", "/nowhere/sqld"), "cannot run /nowhere/sqld: No such file or directory"),
    ],
)
def test_world_that_cannot_be_made_is_told(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ("world", *arguments))
    assert result.exit_code in {1, 2}
    assert told in " ".join(result.stderr.replace("│", " ").split())
