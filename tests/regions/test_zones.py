"""Zones' tables: what ships, what an operator may add, and what is refused with its field."""

from typing import Any

import pytest

from app.regions.zones import ZoneRule, read_zone, read_zones, shipped_zones
from app.validation import Mistake, SettingsError

EU = frozenset({"ams", "arn", "cdg", "fra"})
"""Fly's regions in the European Union, as the design says it, not as the code does."""

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
    mistakes: list[Mistake] = []
    zones = read_zones({"apac": GOOD, "eu": strict}, shipped_zones(), mistakes)
    assert mistakes == []
    assert set(zones) == {"global", "eu", "apac"}
    assert (zones["eu"].twilio_region, zones["eu"].edges) == ("ie1", frozenset({"fra", "ams"}))
    assert zones["apac"].regions == frozenset({"nrt", "syd"})


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("../x", {}, 'zones."../x" is not the name of a zone. It should be a lower-case word.'),
        ("apac", {"regions": ["mars"]}, 'zones.apac.regions contains "mars". It should be "any", or a list'),
        ("apac", {"regions": []}, "zones.apac.regions is an empty list. It should be"),
        ("apac", {"regions": "nrt"}, 'zones.apac.regions is "nrt". It should be'),
        ("apac", {"regions": [["nrt"]]}, "zones.apac.regions contains a list. It should be"),
        ("apac", {"residency": ["eu"]}, "zones.apac.residency is a list. It should be"),
        ("apac", {"database": "turso"}, 'zones.apac.database is "turso". It should be'),
        ("apac", {"twilio_region": "de1"}, 'zones.apac.twilio_region is "de1". It should be one of us1, ie1, au1'),
        ("apac", {"edges": ["eu"]}, 'zones.apac.edges contains "eu". It should be'),
        ("apac", {"sorry": " "}, 'zones.apac.sorry is " ". It should be a sentence.'),
        ("apac", {"language": 7}, "zones.apac.language is 7. It should be"),
        ("apac", {"secure": True}, "zones.apac.secure is not a known field. It should be one of regions, "),
    ],
)
def test_table_that_cannot_be_used_is_reported_with_its_field(
    name: str, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        read_zone(name, {**GOOD, **change})
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize("field", ["regions", "residency", "database"])
def test_what_a_zone_promises_is_never_left_to_a_default(field: str) -> None:
    with pytest.raises(SettingsError, match=f"^zones.apac.{field} is missing. It should be "):
        read_zone("apac", {name: value for name, value in GOOD.items() if name != field})


def test_two_zones_with_one_database_are_refused() -> None:
    mistakes: list[Mistake] = []
    read_zones({"apac": {**GOOD, "database": "TURSO_EU"}}, shipped_zones(), mistakes)
    assert [str(each) for each in mistakes] == [
        'zones.apac.database is "TURSO_EU", which zone eu has already. It should be one of its own.'
    ]


def test_all_mistakes_of_all_zones_are_reported_at_once() -> None:
    mistakes: list[Mistake] = []
    tables = {
        "apac": {"regions": ["nrt", "mars", "fraa"], "residency": "any", "twilio_region": "ie"},
        "swiss": {**GOOD, "database": "TURSO_EU"},
        "Bad": GOOD,
    }
    read = read_zones(tables, shipped_zones(), mistakes)
    assert read.keys() == {"global", "eu", "swiss"}
    assert [(each.path, each.suggestion) for each in mistakes] == [
        (("zones", "apac", "database"), ""),
        (("zones", "apac", "regions", 1), ""),
        (("zones", "apac", "regions", 2), "fra"),
        (("zones", "apac", "twilio_region"), "ie1"),
        (("zones", "Bad"), ""),
        (("zones", "swiss", "database"), ""),
    ]
