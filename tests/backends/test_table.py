"""Which backend a call gets, and tables that cannot be used."""

import re
from dataclasses import replace
from typing import Any

import pytest

from app.backends.table import Backend, BackendEntry, choose, read_backend, read_backends
from app.config_file import ConfigFile
from app.regions.zones import read_zone, shipped_zones
from app.validation import Mistake, SettingsError
from app.wire.formats import AudioFormat
from app.wire.tuning import Tuning

ZONES = shipped_zones()
WORLD = Backend(BackendEntry("world", "openai", "https://a.test/v1", "A"), "k")
EU = Backend(BackendEntry("eu", "openai", "https://b.test/v1", "B", frozenset({"eu"}), ("fra", "ams")), "k")
TOKYO = Backend(BackendEntry("tokyo", "openai", "https://c.test/v1", "C", frozenset(), ("nrt",)), "k")
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
        ("global", "nrt", ("world", "eu", "world"), (), "world", "preferred"),
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


GOOD: dict[str, Any] = {"kind": "openai", "url": "https://a.test/v1", "key": "A_KEY"}


def test_table_is_read() -> None:
    entry = read_backend("acme", {**GOOD, "url": "https://a.test/v1/", "residency": ["eu"], "near": ["fra"]})
    assert entry == BackendEntry("acme", "openai", "https://a.test/v1", "A_KEY", frozenset({"eu"}), ("fra",))


VOICELIVE = {"kind": "voicelive", "url": "https://a.services.ai.azure.com"}


def test_table_of_voice_live_is_read_with_what_only_it_has() -> None:
    table = {
        **VOICELIVE,
        "model": "gpt-realtime-2.1-datazone",
        "residency": ["eu"],
        "audio": "pcm16-16k",
        "vad": "semantic_vad",
        "noise_reduction": "none",
        "echo_cancellation": True,
        "auto_truncate": True,
        "echoes_formats": False,
    }
    assert read_backend("acme", table) == BackendEntry(
        "acme",
        "voicelive",
        "https://a.services.ai.azure.com",
        "",
        frozenset({"eu"}),
        tuning=Tuning(
            AudioFormat.PCM16_16K,
            "gpt-realtime-2.1-datazone",
            vad="semantic_vad",
            noise_reduction="none",
            echo_cancellation=True,
            auto_truncate=True,
            echoes_formats=False,
        ),
    )


def test_text_model_between_azures_own_recognition_and_voice_is_read() -> None:
    entry = read_backend("acme", {**VOICELIVE, "model": "gpt-4.1", "voice": "de-DE-KatjaNeural"})
    assert entry.tuning == Tuning(model="gpt-4.1", voice="de-DE-KatjaNeural")


def test_table_without_kind_and_url_changes_a_shipped_backend() -> None:
    shipped = ConfigFile.shipped().backends
    changed = read_backends({"openai-eu": {"audio": "pcm16-24k"}}, shipped, [])["openai-eu"]
    assert changed == replace(shipped["openai-eu"], tuning=Tuning(AudioFormat.PCM16_24K))


def test_table_with_a_url_of_its_own_inherits_no_promise() -> None:
    shipped = ConfigFile.shipped().backends
    assert read_backends({"openai-eu": GOOD}, shipped, [])["openai-eu"].residency == frozenset()


def test_table_of_an_unknown_name_without_kind_and_url_is_not_complete() -> None:
    mistakes: list[Mistake] = []
    read_backends({"acme": {"audio": "g711"}}, ConfigFile.shipped().backends, mistakes)
    assert [str(each).split(". ")[0] for each in mistakes] == [
        "backends.acme.kind is missing",
        "backends.acme.url is missing",
    ]


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("Acme", {}, "backends.Acme is not the name of a backend"),
        (
            "acme",
            {"kind": "telepathy"},
            r"backends.acme.kind .*It should be one of openai, azure-openai, voicelive",
        ),
        (
            "acme",
            {"audio": "mp3"},
            r"backends.acme.audio .*It should be one of g711, pcm16-8k, pcm16-16k, pcm16-24k",
        ),
        ("acme", {"audio": 8}, r"backends.acme.audio .*It should be one of"),
        ("acme", {"model": ""}, r"backends.acme.model .*It should be the name of a model"),
        ("acme", {"voice": "marin\n"}, r"backends.acme.voice .*It should be the name of a voice"),
        (
            "acme",
            {"vad": "azure_semantic_vad"},
            r"backends.acme.vad .*It should be one of server_vad, semantic_vad",
        ),
        (
            "acme",
            {"noise_reduction": "loud"},
            r"backends.acme.noise_reduction .*It should be one of near_field, far_f",
        ),
        (
            "acme",
            {"auto_truncate": True},
            r"backends.acme.auto_truncate .*It should be left out, because only voicelive has it",
        ),
        ("acme", {"echo_cancellation": 1}, r"backends.acme.echo_cancellation .*It should be true or false"),
        ("acme", {"url": ""}, "backends.acme.url is missing. It should be a URL"),
        (
            "acme",
            {"kind": "azure-openai", "vad": "semantic_vad"},
            r"backends.acme.vad .*It should be one of server_vad",
        ),
        (
            "acme",
            {"kind": "azure-openai", "audio": "pcm16-8k"},
            r"backends.acme.audio .*It should be g711 or pcm16-24k",
        ),
        (
            "acme",
            {**VOICELIVE, "vad": "fast"},
            r"backends.acme.vad .*It should be one of azure_semantic_vad, azure_",
        ),
        ("acme", {**VOICELIVE, "model": "gpt-4.1"}, r"backends.acme.voice .*It should be an Azure voice such as"),
        (
            "acme",
            {**VOICELIVE, "model": "gpt-4.1", "voice": "marin"},
            r"backends.acme.voice .*It should be an Azure",
        ),
        (
            "acme",
            {**VOICELIVE, "model": "azure-realtime"},
            r"backends.acme.voice .*It should be a voice of azure-realtime such as ava, or one of Azure's",
        ),
        (
            "acme",
            {**VOICELIVE, "model": "azure-realtime", "voice": "ava", "vad": "semantic_vad"},
            r"backends.acme.vad .*It should be an azure_ one or server_vad, because azure-realtime has no",
        ),
        (
            "acme",
            {**VOICELIVE, "residency": ["eu"]},
            r"backends.acme.model .*It should be one that ends in -datazone or -regional",
        ),
        (
            "acme",
            {**VOICELIVE, "residency": ["eu"], "model": "gpt-realtime-2.1"},
            r"backends.acme.model .*It should be one that ends in -datazone or -regional, because no other",
        ),
        ("acme", {"url": "wss://a.test"}, r"backends.acme.url .*It should be a URL"),
        ("acme", {"url": "https://user:key@a.test"}, r"backends.acme.url .*It should be a URL"),
        ("acme", {"url": 3}, r"backends.acme.url .*It should be a URL"),
        ("acme", {"key": "sk-proj-1"}, "backends.acme.key is malformed. It should be the name"),
        ("acme", {"near": ["fra", "mars"]}, r"backends.acme.near .*It should be a list of Fly's regions"),
        ("acme", {"residency": "eu"}, r"backends.acme.residency .*It should be a list"),
        ("acme", {"price": 1}, "backends.acme.price is not a known field. It should be one of kind, url, key, "),
    ],
)
def test_table_that_cannot_be_used_is_told_with_its_field(name: str, change: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_backend(name, {**GOOD, **change})
    [mistake] = raised.value.mistakes
    assert re.match(told, str(mistake))


SEVERAL = {
    "kind": "voicelive",
    "url": "http://10.0.0.1",
    "keey": "sk-secret",
    "key": "sk-secret",
    "vad": "fast",
    "noise_reduction": "loud",
    "near": ["tokyo", "nrt", "frra"],
    "residency": ["eu"],
}


def test_all_mistakes_of_a_table_are_reported_and_no_secret_is_repeated() -> None:
    with pytest.raises(SettingsError) as raised:
        read_backend("acme", SEVERAL)
    assert "secret" not in str(raised.value)
    assert "10.0.0.1" not in str(raised.value)
    assert [(*each.path[2:], each.suggestion) for each in raised.value.mistakes] == [
        ("url", ""),
        ("keey", "key"),
        ("key", ""),
        ("near", 0, "nrt"),
        ("near", 2, "fra"),
        ("vad", ""),
        ("noise_reduction", ""),
        ("model", ""),
    ]


def test_missing_field_is_told() -> None:
    with pytest.raises(SettingsError, match=r"^backends.acme.url is missing. It should be a URL"):
        read_backend("acme", {"kind": "openai", "key": "A_KEY"})


def test_what_ships_keeps_the_promise_of_the_eu() -> None:
    entries = ConfigFile.shipped().backends
    assert {name for name, entry in entries.items() if "eu" in entry.residency} == {"openai-eu"}
    assert entries["openai-eu"].url == "https://eu.api.openai.com/v1"
