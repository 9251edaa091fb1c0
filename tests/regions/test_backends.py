"""Which backend a call gets, and tables that cannot be used."""

from typing import Any

import pytest

from app.config_file import ConfigFile
from app.regions.backends import Backend, BackendEntry, choose, read_backend
from app.regions.tables import TableError
from app.regions.zones import read_zone, shipped_zones

ZONES = shipped_zones()
WORLD = Backend(BackendEntry("world", "openai", "https://a.example/v1", "A"), "k")
EU = Backend(BackendEntry("eu", "openai", "https://b.example/v1", "B", frozenset({"eu"}), ("fra", "ams")), "k")
TOKYO = Backend(BackendEntry("tokyo", "openai", "https://c.example/v1", "C", frozenset(), ("nrt",)), "k")
ALL = (WORLD, EU, TOKYO)


@pytest.mark.parametrize(
    ("zone", "region", "preferred", "down", "name", "why"),
    [
        ("global", "nrt", (), (), "tokyo", "nearest"),
        ("global", "fra", (), (), "eu", "nearest"),
        ("global", "gru", (), (), "world", "nearest"),
        ("global", "local", (), (), "eu", "nearest"),
        ("global", "nrt", ("world",), (), "world", "preferred"),
        ("global", "nrt", ("gone", "eu", "world"), (), "eu", "preferred"),
        ("global", "nrt", (), ("tokyo",), "world", "nearest, not usable: tokyo"),
        ("global", "nrt", ("eu",), ("eu", "tokyo"), "world", "nearest, not usable: eu tokyo"),
        ("eu", "nrt", (), (), "eu", "only"),
        ("eu", "fra", ("world", "tokyo"), (), "eu", "only"),
    ],
)
def test_choice_is_by_zone_then_preference_then_nearness(
    zone: str, region: str, preferred: tuple[str, ...], down: tuple[str, ...], name: str, why: str
) -> None:
    choice = choose(ALL, ZONES[zone], region, preferred, lambda one: one not in down)
    assert choice is not None
    assert (choice.backend.name, choice.why) == (name, why)


def test_zone_whose_backends_are_all_down_has_none() -> None:
    assert choose(ALL, ZONES["eu"], "fra", ("world",), lambda one: one != "eu") is None


def test_zone_that_no_backend_satisfies_has_none() -> None:
    swiss = read_zone("swiss", {"regions": ["fra"], "residency": "swiss", "database": "TURSO_SWISS"})
    assert choose(ALL, swiss, "fra", (), lambda _one: True) is None


def test_key_is_not_shown() -> None:
    assert "s3cret" not in repr(Backend(WORLD.entry, "s3cret"))


GOOD: dict[str, Any] = {"kind": "openai", "url": "https://a.example/v1", "key": "A_KEY"}


def test_table_is_read() -> None:
    entry = read_backend("acme", {**GOOD, "url": "https://a.example/v1/", "residency": ["eu"], "near": ["fra"]})
    assert entry == BackendEntry("acme", "openai", "https://a.example/v1", "A_KEY", frozenset({"eu"}), ("fra",))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("Acme", {}, "backends.Acme: the name"),
        ("acme", {"kind": "telepathy"}, "backends.acme.kind: should be one of openai"),
        ("acme", {"url": "wss://a.example"}, "backends.acme.url: should be a URL"),
        ("acme", {"url": "https://user:key@a.example"}, "backends.acme.url: should be a URL"),
        ("acme", {"url": 3}, "backends.acme.url: should be a URL"),
        ("acme", {"key": "sk-proj-1"}, "backends.acme.key: should be the name"),
        ("acme", {"near": ["fra", "mars"]}, "backends.acme.near: should be a list of Fly's regions"),
        ("acme", {"residency": "eu"}, "backends.acme.residency: should be a list"),
        ("acme", {"price": 1}, "backends.acme.price: there is no such field"),
    ],
)
def test_table_that_cannot_be_used_is_told_with_its_field(name: str, change: dict[str, Any], told: str) -> None:
    with pytest.raises(TableError) as raised:
        read_backend(name, {**GOOD, **change})
    assert str(raised.value).startswith(told)


def test_missing_field_is_told() -> None:
    with pytest.raises(TableError, match=r"backends.acme: url is missing; it should be a URL"):
        read_backend("acme", {"kind": "openai", "key": "A_KEY"})


def test_what_ships_keeps_the_promise_of_the_eu() -> None:
    entries = ConfigFile.shipped().backends
    assert {name for name, entry in entries.items() if "eu" in entry.residency} == {"openai-eu"}
    assert entries["openai-eu"].url == "https://eu.api.openai.com/v1"
