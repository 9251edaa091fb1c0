"""Zones' tables: what ships, what an operator may add, and what is refused with its field."""

from typing import Any

import pytest

from app.regions.table import EU
from app.regions.zones import ZoneRule, read_zone, read_zones, shipped_zones
from app.toml_tables import TableError

GOOD: dict[str, Any] = {"regions": ["nrt", "syd"], "residency": "any", "database": "TURSO_APAC"}


def test_what_ships() -> None:
    zones = shipped_zones()
    assert zones["global"] == ZoneRule("global", None, None, "TURSO")
    assert zones["eu"] == ZoneRule("eu", EU, "eu", "TURSO_EU")


@pytest.mark.parametrize(
    ("region", "kept"), [("fra", True), ("cdg", True), ("lhr", False), ("iad", False), ("local", True)]
)
def test_where_the_eu_is(region: str, kept: bool) -> None:
    assert shipped_zones()["eu"].allows(region) == kept


def test_operator_may_add_a_zone_and_make_one_strict() -> None:
    strict = {
        "regions": ["fra"],
        "residency": "eu",
        "database": "TURSO_EU",
        "twilio_region": "ie1",
        "edges": ["fra", "ams"],
        "language": "de",
        "sorry": "Es tut uns leid.",
    }
    zones = read_zones({"apac": GOOD, "eu": strict}, shipped_zones())
    assert set(zones) == {"global", "eu", "apac"}
    assert (zones["eu"].twilio_region, zones["eu"].edges) == ("ie1", frozenset({"fra", "ams"}))
    assert zones["apac"].regions == frozenset({"nrt", "syd"})


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("../x", {}, "zones.../x: the name"),
        ("apac", {"regions": ["mars"]}, "zones.apac.regions: should be"),
        ("apac", {"regions": []}, "zones.apac.regions: should be"),
        ("apac", {"regions": "nrt"}, "zones.apac.regions: should be"),
        ("apac", {"regions": [["nrt"]]}, "zones.apac.regions: should be"),
        ("apac", {"residency": ["eu"]}, "zones.apac.residency: should be"),
        ("apac", {"database": "turso"}, "zones.apac.database: should be"),
        ("apac", {"twilio_region": "de1"}, "zones.apac.twilio_region: should be one of us1, ie1, au1"),
        ("apac", {"edges": ["eu"]}, "zones.apac.edges: should be"),
        ("apac", {"sorry": " "}, "zones.apac.sorry: should be a sentence"),
        ("apac", {"language": 7}, "zones.apac.language: should be"),
        ("apac", {"secure": True}, "zones.apac.secure: there is no such field"),
    ],
)
def test_table_that_cannot_be_used_is_told_with_its_field(name: str, change: dict[str, Any], told: str) -> None:
    with pytest.raises(TableError) as raised:
        read_zone(name, {**GOOD, **change})
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize("field", ["regions", "residency", "database"])
def test_what_a_zone_promises_is_never_left_to_a_default(field: str) -> None:
    with pytest.raises(TableError, match=f"zones.apac: {field} is missing"):
        read_zone("apac", {name: value for name, value in GOOD.items() if name != field})


def test_two_zones_with_one_database_are_refused() -> None:
    with pytest.raises(TableError, match=r"zones.apac.database: zone eu has it already"):
        read_zones({"apac": {**GOOD, "database": "TURSO_EU"}}, shipped_zones())
