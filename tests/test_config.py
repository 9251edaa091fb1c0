"""Settings: everything that can be missing or wrong, told at once, a line each, and never with the value."""

import os
import platform
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from app.call.plan import Plan
from app.config import (
    DOTENV,
    CallerSettings,
    LedgerSettings,
    RecordSettings,
    Settings,
    drop_tokens_of_other_zones,
    environment,
    lend_identity,
)
from app.regions.table import LOCAL
from app.regions.zones import shipped_zones
from app.validation import SettingsError
from app.variables import DECLARED, SECRET_CHARS_MIN
from app.wire.formats import AudioFormat

SECRET = "s3cret-" * 6
TOKEN = "0123456789abcdef0123456789abcdef"
IE1_TOKEN = "ie1ie1ie1ie1ie1ie1ie1ie1ie1ie1ie"
SID = "ACfedcba9876543210fedcba9876543210"
KEY = "sk-proj-abc"

NEEDED = {
    "NEARCALL_PUBLIC_URL": "https://calls.nearcall.test",
    "NEARCALL_SECRET": SECRET,
    "TWILIO_ACCOUNT_SID": SID,
    "TWILIO_AUTH_TOKEN": TOKEN,
    "NEARCALL_PRACTICE": "1",
}
"""Enough for a server, which then has nothing but the practice backend."""
NEEDED_WITHOUT_PRACTICE = {name: value for name, value in NEEDED.items() if name != "NEARCALL_PRACTICE"}


_A_BACKEND = re.compile("_(KEY|ENDPOINT|BASE_URL)$")


def read(**more: str) -> Settings:
    """As an operator would set it: the practice backend answers unless there is another one."""
    needed = NEEDED_WITHOUT_PRACTICE if any(map(_A_BACKEND.search, more)) else NEEDED
    return Settings.from_env(needed | more)


def problems(read: Callable[[], object]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        read()
    texts = [str(mistake) for mistake in raised.value.mistakes]
    assert str(raised.value) == "\n".join(texts)
    return texts


def problem(name: str, value: str) -> str:
    """The one problem that this value is."""
    of = RecordSettings.from_env if name.startswith("TURSO") else Settings.from_env
    (text,) = problems(lambda: of({**NEEDED, "FLY_REGION": "fra", name: value}))
    return text


# --- What is there -----------------------------------------------------------------------------------


def test_four_settings_are_enough() -> None:
    assert read() == Settings(
        public_urls=("https://calls.nearcall.test",),
        secret=SECRET,
        account_sid=SID,
        twilio_tokens={"us1": TOKEN},
        backends=(),
        ledger=LedgerSettings(LOCAL, platform.node(), Path("data")),
        port=8080,
        plan=Plan(),
        backend_names=frozenset({"openai", "openai-eu", "voicelive"}),
        practice=True,
    )


def test_all_settings_are_read(tmp_path: Path) -> None:
    tenant = tmp_path / "nearcall.toml"
    tenant.write_text('[default]\ngreeting = "Guten Tag."\n', encoding="utf-8")
    settings = read(
        NEARCALL_PUBLIC_URL="https://a.test/, http://localhost:8080",
        TWILIO_AUTH_TOKEN_IE1=IE1_TOKEN,
        OPENAI_API_KEY=KEY,
        OPENAI_BASE_URL="http://localhost:9/v1/",
        FLY_REGION="fra",
        FLY_MACHINE_ID="e784079b449483",
        NEARCALL_DATA_DIR="/var/nearcall",
        PORT="65535",
        NEARCALL_CONFIG=str(tenant),
    )
    assert settings.public_urls == ("https://a.test", "http://localhost:8080")
    assert settings.twilio_tokens == {"us1": TOKEN, "ie1": IE1_TOKEN}
    assert [(one.entry.url, one.api_key) for one in settings.backends] == [("http://localhost:9/v1", KEY)]
    assert (settings.region, settings.ledger.data_dir, settings.port) == ("fra", Path("/var/nearcall"), 65535)
    assert settings.ledger.machine == "e784079b449483"
    assert settings.plan == Plan(greeting="Guten Tag.")


def test_key_alone_means_openai_itself() -> None:
    [backend] = read(OPENAI_API_KEY=KEY).backends
    assert (backend.name, backend.entry.url, backend.api_key) == ("openai", "https://api.openai.com/v1", KEY)


def test_base_url_takes_no_promise_along(tmp_path: Path) -> None:
    """What a file says of the EU is said of its own URL: whoever sets another one has not said it of that."""
    file = tmp_path / "nearcall.toml"
    file.write_text(
        '[backends.openai]\nkind = "openai"\nurl = "https://eu.api.openai.com/v1"\nkey = "OPENAI_API_KEY"\n'
        'residency = ["eu"]\nnear = ["fra"]\n',
        encoding="utf-8",
    )
    said = {"OPENAI_API_KEY": KEY, "NEARCALL_CONFIG": str(file)}
    [moved] = read(**said, OPENAI_BASE_URL="https://api.openai.com/v1").backends
    assert (moved.entry.url, moved.entry.residency, moved.entry.near) == (
        "https://api.openai.com/v1",
        frozenset(),
        (),
    )
    for same in ("https://eu.api.openai.com/v1/", ""):
        [backend] = read(**said, OPENAI_BASE_URL=same).backends
        assert backend.entry.residency == {"eu"}


def test_base_url_without_a_key_is_no_backend() -> None:
    (told,) = problems(lambda: read(OPENAI_BASE_URL="http://localhost/v1"))
    assert told.startswith("OPENAI_API_KEY is missing, and no other backend is set up")


AZURE = "https://acme.services.ai.azure.com"


def test_endpoint_and_key_are_enough_for_voice_live() -> None:
    [backend] = read(AZURE_VOICELIVE_ENDPOINT=f"{AZURE}/", AZURE_VOICELIVE_API_KEY=KEY).backends
    entry = backend.entry
    assert (entry.name, entry.kind, entry.url, backend.api_key) == ("voicelive", "voicelive", AZURE, KEY)
    assert entry.tuning.model == "gpt-realtime-2.1"


def test_voice_live_without_a_key_is_opened_by_entra_id() -> None:
    [backend] = read(AZURE_VOICELIVE_ENDPOINT=AZURE, AZURE_VOICELIVE_MODEL="gpt-realtime-2.1-mini").backends
    assert (backend.api_key, backend.entry.tuning.model) == ("", "gpt-realtime-2.1-mini")


def test_voice_live_key_without_an_endpoint_is_reported() -> None:
    (told,) = problems(lambda: read(AZURE_VOICELIVE_API_KEY=KEY))
    assert told.startswith(
        "AZURE_VOICELIVE_ENDPOINT is missing. It should be a URL such as https://NAME.services.ai"
    )


def test_key_of_the_resource_may_be_in_another_variable(tmp_path: Path) -> None:
    file = tmp_path / "nearcall.toml"
    file.write_text('[backends.voicelive]\nkey = "OTHER_KEY"\n')
    named = {"NEARCALL_CONFIG": str(file), "AZURE_VOICELIVE_ENDPOINT": AZURE}
    [backend] = read(**named, OTHER_KEY=KEY).backends
    assert (backend.api_key, backend.entry.key) == (KEY, "OTHER_KEY")
    (told,) = problems(lambda: read(**named))  # and not opened by Entra ID
    assert told.startswith("OPENAI_API_KEY is missing, and no other backend is set up")


def test_key_in_another_variable_without_an_endpoint_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "nearcall.toml"
    file.write_text('[backends.voicelive]\nkey = "OTHER_KEY"\n')
    (told,) = problems(lambda: read(NEARCALL_CONFIG=str(file), OTHER_KEY=KEY))
    assert told.startswith(
        "AZURE_VOICELIVE_ENDPOINT is missing. It should be a URL such as https://NAME.services.ai"
    )


def test_voice_live_model_without_a_voice_of_its_own_is_reported() -> None:
    (told,) = problems(lambda: read(AZURE_VOICELIVE_ENDPOINT=AZURE, AZURE_VOICELIVE_MODEL="gpt-4.1"))
    assert told.startswith("`voice` of [backends.voicelive] in the file of NEARCALL_CONFIG is missing. ")
    assert "It should be an Azure voice such as en-US-AvaMultilingualNeural, because gpt-4.1 has none" in told


def test_resource_in_a_file_does_not_get_the_model_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "nearcall.toml"
    file.write_text(f'[backends.se]\nkind = "voicelive"\nurl = "{AZURE}"\nkey = "SE_KEY"\n')
    found = read(
        NEARCALL_CONFIG=str(file),
        SE_KEY=KEY,
        AZURE_VOICELIVE_MODEL="gpt-realtime-mini",
        AZURE_VOICELIVE_ENDPOINT=AZURE,
    )
    assert {one.name: one.entry.tuning.model for one in found.backends} == {
        "voicelive": "gpt-realtime-mini",
        "se": "gpt-realtime-2.1",
    }


def test_server_that_speaks_only_pcm_needs_its_url_and_its_format(tmp_path: Path) -> None:
    file = tmp_path / "nearcall.toml"
    file.write_text('[backends.openai]\naudio = "pcm16-24k"\n')
    [backend] = read(
        NEARCALL_CONFIG=str(file), OPENAI_API_KEY=KEY, OPENAI_BASE_URL="http://127.0.0.1:9/v1"
    ).backends
    assert (backend.entry.url, backend.entry.tuning.audio) == ("http://127.0.0.1:9/v1", AudioFormat.PCM16_24K)


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "PORT", "FLY_REGION", "TWILIO_AUTH_TOKEN_IE1", "NEARCALL_CONFIG"]
)
def test_empty_setting_is_a_missing_one(name: str) -> None:
    assert Settings.from_env({**NEEDED, name: "  "}) == read()


def test_space_around_a_setting_is_not_part_of_it() -> None:
    assert read(TWILIO_AUTH_TOKEN=f" {TOKEN}\n").twilio_tokens == {"us1": TOKEN}


@pytest.mark.parametrize(
    "url",
    ["https://calls.nearcall.test", "http://localhost:8080", "https://[2001:db8::1]:8443", "https://a.test/"],
)
def test_public_url_may_be(url: str) -> None:
    assert read(NEARCALL_PUBLIC_URL=url).public_urls == (url.rstrip("/"),)


# --- What is not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDED_WITHOUT_PRACTICE)
def test_missing_setting_is_named_with_what_it_should_look_like(name: str) -> None:
    (text,) = problems(lambda: Settings.from_env({k: v for k, v in NEEDED.items() if k != name}))
    assert text.startswith(f"{name} is missing. It should be ")
    assert text.endswith(".")


def test_everything_that_is_missing_is_reported_at_once() -> None:
    told = problems(lambda: Settings.from_env({}))
    assert [text.split()[0] for text in told] == ["OPENAI_API_KEY", *NEEDED_WITHOUT_PRACTICE]


BAD = [
    ("NEARCALL_PUBLIC_URL", "calls.nearcall.test"),
    ("NEARCALL_PUBLIC_URL", "wss://calls.nearcall.test"),
    ("NEARCALL_PUBLIC_URL", "https://"),
    ("NEARCALL_PUBLIC_URL", "https://calls.nearcall.test/path"),
    ("NEARCALL_PUBLIC_URL", "https://calls.nearcall.test?query=1"),
    ("NEARCALL_PUBLIC_URL", "https://calls.nearcall.test#fragment"),
    ("NEARCALL_PUBLIC_URL", "https://user:password@calls.nearcall.test"),
    ("NEARCALL_PUBLIC_URL", "https://calls.nearcall.test:99999"),
    ("NEARCALL_PUBLIC_URL", "https://calls.nearcall.test:port"),
    ("NEARCALL_PUBLIC_URL", "https://calls example.com"),
    ("NEARCALL_PUBLIC_URL", "https://[::1"),
    ("NEARCALL_PUBLIC_URL", "https://a.test,,https://b.test"),
    ("NEARCALL_SECRET", "x" * 31),
    ("NEARCALL_ADMIN_TOKEN", "x" * 31),
    ("TWILIO_ACCOUNT_SID", SID[:-1]),
    ("TWILIO_ACCOUNT_SID", SID + "0"),
    ("TWILIO_ACCOUNT_SID", "SK" + SID[2:]),
    ("TWILIO_ACCOUNT_SID", SID[:-1] + "g"),
    ("TWILIO_AUTH_TOKEN", TOKEN[:-1]),
    ("TWILIO_AUTH_TOKEN", TOKEN + "0"),
    ("TWILIO_AUTH_TOKEN", TOKEN[:-1] + "-"),
    ("TWILIO_AUTH_TOKEN_IE1", "short"),
    ("TWILIO_AUTH_TOKEN_AU1", "short"),
    ("OPENAI_API_KEY", "sk two"),
    ("OPENAI_API_KEY", "sk-\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ("OPENAI_API_KEY", "sk-\x07"),
    ("OPENAI_API_KEY", "7-chars"),
    ("AZURE_CLIENT_SECRET", "7-chars"),
    ("TURSO_TOKEN", "7-chars"),
    ("NEARCALL_PRACTICE", "yes"),
    ("OPENAI_BASE_URL", "api.openai.com/v1"),
    ("OPENAI_BASE_URL", "wss://api.openai.com/v1"),
    ("OPENAI_BASE_URL", "https://api.openai.com:99999/v1"),
    ("OPENAI_BASE_URL", "https://user:hidden@api.openai.com/v1"),
    ("OPENAI_BASE_URL", "https://api.openai.com/v1?model=x"),
    ("OPENAI_BASE_URL", "http://speech.nearcall.test/v1"),
    ("OPENAI_BASE_URL", "http://10.0.0.1/v1"),
    ("AZURE_VOICELIVE_ENDPOINT", "http://acme.services.ai.azure.com"),
    ("AZURE_VOICELIVE_ENDPOINT", "http://127.0.0.1.evil.test"),
    ("NEARCALL_REGIONS", "fra,mars"),
    ("NEARCALL_REGIONS", "fra,,iad"),
    ("NEARCALL_REGIONS", SECRET),
    ("FLY_MACHINE_ID", "two words"),
    ("NEARCALL_DRAIN_S", "0"),
    ("NEARCALL_DRAIN_S", "5m"),
    ("NEARCALL_DRAIN_S", "3601"),
    ("FLY_REGION", "fra-1"),
    ("FLY_REGION", "frankfurt-am-main"),
    ("PORT", "0"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "80x"),
    ("PORT", "+80"),
    ("PORT", "8_080"),
    ("PORT", "\N{FULLWIDTH DIGIT EIGHT}0"),
    ("PORT", "1e3"),
    ("NEARCALL_CALLS_MAX", "0"),
    ("NEARCALL_CALLS_MAX", "-1"),
    ("NEARCALL_CALLS_MAX", "2e2"),
    ("NEARCALL_CALLS_MAX", "10001"),
    ("NEARCALL_SETUPS_MAX", "0"),
    ("NEARCALL_LAG_MAX_MS", "0"),
    ("NEARCALL_LAG_MAX_MS", "0.1"),
    ("NEARCALL_LAG_MAX_MS", "10001"),
    ("TURSO_URL", "calls-acme.turso.io"),
    ("TURSO_URL", "wss://calls-acme.turso.io"),
    ("TURSO_URL", "libsql://"),
    ("TURSO_URL", "libsql://calls-acme.turso.io/v2/pipeline"),
    ("TURSO_URL", "libsql://calls-acme.turso.io?authToken=abc"),
    ("TURSO_URL", "https://calls-acme.turso.io:99999"),
    ("TURSO_URL", "http://calls-acme.turso.io"),
    ("TURSO_URL", "http://10.0.0.1:8080"),
    ("TURSO_URL", "http://127.0.0.1.evil.test"),
    ("TURSO_EU_URL", "ftp://calls-acme-eu.turso.io"),
    ("TURSO_TOKEN", "two words"),
    ("TURSO_EU_TOKEN", "tab\tbed"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_malformed_setting_is_named_with_what_it_should_look_like(name: str, value: str) -> None:
    text = problem(name, value)
    assert text.startswith(f"{name} is malformed")
    assert ". It should be " in text
    assert "\n" not in text


@pytest.mark.parametrize(("name", "value"), BAD)
def test_value_of_a_malformed_setting_is_not_repeated(name: str, value: str) -> None:
    wrong, _, _ = problem(name, value).partition(" It should be ")
    assert value not in wrong or name in {"FLY_REGION", "NEARCALL_REGIONS"}


PLACEHOLDERS = [
    ("NEARCALL_PUBLIC_URL", "https://calls.example.com"),
    ("NEARCALL_PUBLIC_URL", "https://NAME.fly.dev"),
    ("NEARCALL_PUBLIC_URL", "https://calls.nearcall.test,https://calls.example.com:8443/"),
    ("NEARCALL_PUBLIC_URL", "..."),
    ("NEARCALL_SECRET", "..."),
    ("NEARCALL_SECRET", "<at least 32 random characters, as openssl makes them>"),
    ("TWILIO_ACCOUNT_SID", "AC..."),
    ("TWILIO_AUTH_TOKEN", "..."),
    ("TWILIO_AUTH_TOKEN_IE1", "..."),
    ("OPENAI_API_KEY", "sk-..."),
    ("OPENAI_API_KEY", "sk-proj-…"),
    ("OPENAI_EU_API_KEY", "sk-..."),
    ("OPENAI_BASE_URL", "https://speech.example.com/v1"),
    ("AZURE_VOICELIVE_ENDPOINT", "https://NAME.services.ai.azure.com"),
    ("AZURE_CLIENT_SECRET", "<your secret>"),
    ("TURSO_URL", "libsql://..."),
    ("TURSO_TOKEN", "..."),
]


@pytest.mark.parametrize(("name", "value"), PLACEHOLDERS)
def test_placeholder_of_the_documentation_is_refused(name: str, value: str) -> None:
    told = problem(name, value)
    assert told.startswith(f"{name} still has the placeholder of the documentation. It should be ")


def test_placeholder_key_of_voice_live_is_refused_with_its_resource() -> None:
    (told,) = problems(lambda: read(AZURE_VOICELIVE_ENDPOINT=AZURE, AZURE_VOICELIVE_API_KEY="..."))
    assert told.startswith("AZURE_VOICELIVE_API_KEY still has the placeholder of the documentation. It should be")


def test_placeholders_of_the_readme_are_refused_one_by_one(tmp_path: Path) -> None:
    """Its `.env`, as somebody pastes it."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    block = re.search(r"((?:       \S.*\n)*       NEARCALL_SECRET=.*\n(?:       \S.*\n)+)", readme)
    assert block is not None
    file = tmp_path / "readme.env"
    file.write_text(re.sub("(?m)^ +", "", block[1]), encoding="utf-8")
    pasted = {name: value for name, value in environment(file).items() if f" {name}=" in block[1]}
    told = problems(lambda: Settings.from_env(pasted))
    assert [text.split()[0] for text in told if "placeholder" in text] == [text.split()[0] for text in told]
    assert sorted(text.split()[0] for text in told) == sorted(pasted)


@pytest.mark.parametrize("value", ["https://name.fly.dev", "https://my-host.test", "https://example.company.test"])
def test_name_that_only_resembles_a_placeholder_is_taken(value: str) -> None:
    assert read(NEARCALL_PUBLIC_URL=value).public_urls == (value,)


def test_token_file_with_a_placeholder_has_no_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("rw-token...", encoding="utf-8")
    primary = ledger(TURSO_URL=TURSO["TURSO_URL"], TURSO_TOKEN_FILE=str(file)).primaries["global"]
    with pytest.raises(ValueError, match=r"^TURSO_TOKEN_FILE: .* has no token in it$"):
        primary.token()


# --- Who answers -------------------------------------------------------------------------------------


def test_server_without_any_backend_is_not_started() -> None:
    (told,) = problems(lambda: Settings.from_env(NEEDED_WITHOUT_PRACTICE))
    assert told.startswith("OPENAI_API_KEY is missing")
    assert "AZURE_VOICELIVE_ENDPOINT" in told
    assert "--practice" in told
    assert "NEARCALL_PRACTICE=1" in told


def test_malformed_key_is_not_repeated_as_a_missing_backend_too() -> None:
    (told,) = problems(lambda: read(OPENAI_API_KEY="two words"))
    assert told.startswith("OPENAI_API_KEY is malformed")


@pytest.mark.parametrize("public", ["https://calls.nearcall.test", "http://127.0.0.1:8080"])
def test_practice_on_the_command_line_wins_over_any_key(public: str) -> None:
    given = {**NEEDED_WITHOUT_PRACTICE, "OPENAI_API_KEY": "sk-...", "NEARCALL_PUBLIC_URL": public}
    settings = Settings.from_env(given, practice=True)
    assert (settings.backends, settings.practice) == ((), True)


def test_practice_setting_beside_a_key_is_a_mistake() -> None:
    (told,) = problems(lambda: read(NEARCALL_PRACTICE="1", OPENAI_API_KEY=KEY))
    assert told.startswith("NEARCALL_PRACTICE is set, and so is the key of a backend")
    assert not read(NEARCALL_PRACTICE="0", OPENAI_API_KEY=KEY).practice


# --- Where a Voice Live resource is ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "model", "near", "residency"),
    [
        ("swedencentral", "gpt-realtime-2.1-datazone", ("arn",), {"eu"}),
        ("Sweden Central", "gpt-realtime-2.1-regional", ("arn",), {"eu"}),
        ("swedencentral", "gpt-realtime-2.1", ("arn",), set()),
        ("swedencentral", "", ("arn",), set()),
        ("eastus2", "gpt-realtime-2.1-datazone", ("iad",), set()),
        ("uksouth", "gpt-realtime-2.1-datazone", ("lhr",), set()),
        ("centralindia", "gpt-realtime-2.1-regional", ("bom",), set()),
        ("japaneast", "", ("nrt",), set()),
        ("", "gpt-realtime-2.1-datazone", (), set()),
    ],
)
def test_azure_region_gives_nearness_and_with_the_model_the_residency(
    region: str, model: str, near: tuple[str, ...], residency: set[str]
) -> None:
    given = {"AZURE_VOICELIVE_ENDPOINT": AZURE, "AZURE_VOICELIVE_REGION": region, "AZURE_VOICELIVE_MODEL": model}
    [backend] = read(**given).backends
    assert (backend.entry.near, set(backend.entry.residency)) == (near, residency)


def test_unknown_azure_region_is_named_with_those_there_are() -> None:
    (told,) = problems(lambda: read(AZURE_VOICELIVE_ENDPOINT=AZURE, AZURE_VOICELIVE_REGION="swedennorth"))
    assert told.startswith(
        "AZURE_VOICELIVE_REGION is malformed (there is no region 'swedennorth'). It should be one"
    )
    assert "swedencentral" in told


def test_promise_that_the_azure_region_breaks_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "nearcall.toml"
    file.write_text('[backends.voicelive]\nresidency = ["eu"]\nmodel = "gpt-realtime-2.1-datazone"\n')
    given = {"NEARCALL_CONFIG": str(file), "AZURE_VOICELIVE_ENDPOINT": AZURE}
    (told,) = problems(lambda: read(**given, AZURE_VOICELIVE_REGION="eastus2"))
    assert told.startswith("AZURE_VOICELIVE_REGION does not keep what `residency` of [backends.voicelive]")
    [backend] = read(**given, AZURE_VOICELIVE_REGION="swedencentral").backends
    assert backend.entry.residency == {"eu"}


# --- Variables that depend on each other -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("REGION", "swedencentral"), ("MODEL", "gpt-realtime"), ("API_KEY", "key-of-azure")]
)
def test_voice_live_without_its_endpoint_is_reported(name: str, value: str) -> None:
    variable = f"AZURE_VOICELIVE_{name}"
    (told,) = problems(
        lambda: Settings.from_env({**NEEDED_WITHOUT_PRACTICE, "OPENAI_API_KEY": KEY, variable: value})
    )
    assert told.startswith("AZURE_VOICELIVE_ENDPOINT is missing. It should be a URL such as")


def test_variables_that_a_url_in_the_file_makes_useless_are_reported(tenant: Path) -> None:
    tenant.write_text(f'[backends.voicelive]\nkind = "voicelive"\nurl = "{AZURE}"\nkey = "SE_KEY"\n', "utf-8")
    unused = {
        "AZURE_VOICELIVE_ENDPOINT": AZURE,
        "AZURE_VOICELIVE_API_KEY": "key-of-azure",
        "AZURE_VOICELIVE_MODEL": "gpt-realtime",
        "AZURE_VOICELIVE_REGION": "swedencentral",
    }
    told = problems(lambda: read(NEARCALL_CONFIG=str(tenant), SE_KEY=KEY, **unused))
    assert [text.split(":")[0] for text in told] == [f"{each} is set, and no backend uses it" for each in unused]


def test_key_that_a_table_of_voice_live_names_is_used(tenant: Path) -> None:
    key = "AZURE_VOICELIVE_API_KEY"
    tenant.write_text(f'[backends.voicelive]\nkind = "voicelive"\nurl = "{AZURE}"\nkey = "{key}"\n', "utf-8")
    [backend] = read(NEARCALL_CONFIG=str(tenant), **{key: KEY}).backends
    assert (backend.entry.url, backend.api_key) == (AZURE, KEY)


def test_base_url_without_a_key_beside_another_backend_is_reported() -> None:
    given = {"AZURE_VOICELIVE_ENDPOINT": AZURE, "AZURE_VOICELIVE_API_KEY": KEY}
    (told,) = problems(lambda: read(**given, OPENAI_BASE_URL="http://localhost/v1"))
    assert told.startswith("OPENAI_BASE_URL is set, and OPENAI_API_KEY is missing. ")


def test_half_a_service_principal_is_reported_where_entra_is_used() -> None:
    half = {"AZURE_CLIENT_SECRET": "secret-of-a-principal", "AZURE_TENANT_ID": "tenant"}
    (told,) = problems(lambda: read(AZURE_VOICELIVE_ENDPOINT=AZURE, **half))
    assert told.startswith("AZURE_CLIENT_ID is missing. ")
    assert read(AZURE_VOICELIVE_ENDPOINT=AZURE, AZURE_VOICELIVE_API_KEY=KEY, **half).backends


@pytest.mark.parametrize(
    ("missing", "there"),
    [
        ("NEARCALL_SECRET", "NEARCALL_SECERT"),
        ("TWILIO_ACCOUNT_SID", "TWILIO_ACOUNT_SID"),
        ("NEARCALL_PUBLIC_URL", "NEARCALL_PUBLIC_URLS"),
    ],
)
def test_misspelt_variable_is_suggested_for_the_missing_one(missing: str, there: str) -> None:
    given = {there if name == missing else name: value for name, value in NEEDED.items()}
    (told,) = problems(lambda: Settings.from_env(given))
    assert told.startswith(f"{missing} is missing. ")
    assert told.endswith(f" {there} is set, which looks like a misspelling of it.")


def test_variable_of_another_zone_is_no_misspelt_one() -> None:
    (told,) = problems(lambda: ledger(TURSO_URL=TURSO["TURSO_URL"], **TURSO_EU))
    assert told.startswith("TURSO_TOKEN is missing. ")
    assert "misspelling" not in told


# --- All at once -------------------------------------------------------------------------------------


def test_mistakes_of_all_sources_are_reported_at_once(tenant: Path) -> None:
    """A mistake in the file hides none in the environment, not even in what the file names."""
    tenant.write_text(
        """\
[default]
voice = 1
backends = ["jp"]
[backends.jp]
kind = "openai"
url = "https://jp.nearcall.test"
key = "JP_KEY"
[backends.se]
kind = "telepathy"
[zones.apac]
regions = ["nrt"]
residency = "any"
database = "TURSO_APAC"
[zones.swiss]
regions = ["zrh"]
""",
        "utf-8",
    )
    given = {**NEEDED_WITHOUT_PRACTICE, "JP_KEY": "short", "TURSO_APAC_TOKEN": "apac-token", "PORT": "http"}
    told = problems(lambda: Settings.from_env({**given, "NEARCALL_CONFIG": str(tenant)}))
    assert [
        text.replace(f"NEARCALL_CONFIG: {tenant}:", "").split(" is ")[0].split(" contains ")[0] for text in told
    ] == [
        "JP_KEY",
        "PORT",
        "TURSO_APAC_URL",
        "2: default.voice",
        "8: backends.se.url",
        "9: backends.se.kind",
        "14: zones.swiss.residency",
        "14: zones.swiss.database",
        "15: zones.swiss.regions",
    ]


def test_mistake_elsewhere_in_the_file_is_not_a_missing_backend_too(tenant: Path) -> None:
    tenant.write_text("[default]\nvoice = 1\n[backends.jp]\nkind = 1\n", "utf-8")
    told = problems(lambda: Settings.from_env({**NEEDED_WITHOUT_PRACTICE, "NEARCALL_CONFIG": str(tenant)}))
    assert not [text for text in told if "OPENAI_API_KEY" in text]


def test_readme_names_every_variable() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1] for line in readme.split("\n## Settings\n")[1].splitlines() if line.startswith("| `")
    ]
    named = set(re.findall(r"`([A-Z0-9_]+)`", "".join(rows)))
    assert named >= {field.name for field in DECLARED}


# --- Regions -----------------------------------------------------------------------------------------


def test_regions_are_read_in_capitals_too_and_an_unknown_one_is_named() -> None:
    assert read(NEARCALL_REGIONS="FRA, iad").deployed == ("fra", "iad")
    assert problem("NEARCALL_REGIONS", "fra,mars").startswith(
        "NEARCALL_REGIONS is malformed (there is no region 'mars'). It should be codes of Fly's regions"
    )


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    wrong = {"NEARCALL_SECRET": "x", "TWILIO_AUTH_TOKEN_AU1": "y", "PORT": "z", "NEARCALL_CONFIG": "/nowhere.toml"}
    told = problems(lambda: read(**wrong))
    assert sorted(text.split()[0].rstrip(":") for text in told) == sorted(wrong)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "nearcall.toml"
    file.write_text(f'[backends.se]\nkind = "voicelive"\nurl = "{AZURE}"\nkey = "SE_KEY"\n')
    settings = read(
        TWILIO_AUTH_TOKEN_IE1=IE1_TOKEN,
        NEARCALL_CONFIG=str(file),
        OPENAI_API_KEY=KEY,
        NEARCALL_ADMIN_TOKEN="admin" * 8,
        SE_KEY="key-of-a-table",
        AZURE_VOICELIVE_ENDPOINT=AZURE,
        AZURE_TENANT_ID="tenant-of-azure",
        AZURE_CLIENT_ID="client-of-azure",
        AZURE_CLIENT_SECRET="secret-of-a-principal",
        **TURSO,
        **TURSO_EU,
    )
    tables = {"key-of-a-table", "secret-of-a-principal", "rw-token", "eu-token"}
    assert set(settings.secrets) == {SECRET, TOKEN, IE1_TOKEN, KEY, "admin" * 8} | tables
    assert min(map(len, settings.secrets)) >= SECRET_CHARS_MIN
    assert not [secret for secret in settings.secrets if secret in repr(settings)]


def test_without_an_admin_token_there_is_none() -> None:
    assert read().admin_token == ""


def test_machine_of_flys_is_known_by_its_id() -> None:
    assert not read().on_fly
    assert read(FLY_MACHINE_ID="148e", FLY_REGION="fra").on_fly


def test_time_to_drain_fits_into_the_kill_timeout_of_where_the_server_runs() -> None:
    assert read().drain_s == 8
    assert read(FLY_MACHINE_ID="148e", FLY_REGION="fra").drain_s == 280
    assert read(FLY_MACHINE_ID="148e", FLY_REGION="fra", NEARCALL_DRAIN_S="100").drain_s == 100


@pytest.mark.parametrize("name", ["FLY_MACHINE_ID", "FLY_APP_NAME"])
@pytest.mark.parametrize("region", [{}, {"FLY_REGION": ""}])
def test_machine_of_fly_that_does_not_know_its_region_does_not_start(name: str, region: dict[str, str]) -> None:
    """Without a region a machine belongs to every zone: one in Virginia would take calls of the EU."""
    (text,) = problems(lambda: read(**{name: "x"}, **region))
    assert text.startswith("FLY_REGION is missing. It should be one of ams, ")
    assert problems(lambda: ledger(**{name: "x"}, **region)) == [text]


# --- The ledger's ------------------------------------------------------------------------------------

TURSO = {"TURSO_URL": "libsql://calls-acme.turso.io", "TURSO_TOKEN": "rw-token"}
TURSO_EU = {"TURSO_EU_URL": "https://calls-acme-eu.turso.io", "TURSO_EU_TOKEN": "eu-token"}


def ledger(**environ: str) -> LedgerSettings:
    return RecordSettings.from_env(environ).ledger


def test_ledger_needs_no_setting_at_all() -> None:
    assert ledger() == LedgerSettings(LOCAL, platform.node(), Path("data"))


def test_each_zone_has_a_database_and_a_token_of_its_own() -> None:
    primaries = ledger(**TURSO, **TURSO_EU).primaries
    assert {zone: (primary.url, primary.token()) for zone, primary in primaries.items()} == {
        "global": ("https://calls-acme.turso.io", "rw-token"),
        "eu": ("https://calls-acme-eu.turso.io", "eu-token"),
    }


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("libsql://calls-acme.turso.io/", "https://calls-acme.turso.io"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("libsql://127.0.0.1:8080", "https://127.0.0.1:8080"),
    ],
)
def test_url_of_a_database_may_be(url: str, used: str) -> None:
    assert ledger(TURSO_URL=url, TURSO_TOKEN="rw-token").primaries["global"].url == used


def test_database_on_this_machine_may_do_without_a_token() -> None:
    assert ledger(TURSO_URL="http://127.0.0.1:8080").primaries["global"].token() == ""


def test_token_in_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token\n", encoding="utf-8")
    primary = ledger(TURSO_URL=TURSO["TURSO_URL"], TURSO_TOKEN_FILE=str(file)).primaries["global"]
    assert primary.token() == "first-token"
    file.write_text("second-token\n", encoding="utf-8")
    assert primary.token() == "second-token"


def test_token_file_that_went_away_is_reported_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token", encoding="utf-8")
    settings = ledger(TURSO_URL=TURSO["TURSO_URL"], TURSO_TOKEN_FILE=str(file))
    file.unlink()
    with pytest.raises(ValueError, match=r"^TURSO_TOKEN_FILE: .*token: No such file or directory$"):
        settings.primaries["global"].token()
    assert settings.secrets == ()


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff"])
def test_file_without_a_token_is_reported_and_what_it_has_is_not(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    settings = ledger(TURSO_URL=TURSO["TURSO_URL"], TURSO_TOKEN_FILE=str(file))
    with pytest.raises(ValueError, match=f"^TURSO_TOKEN_FILE: {file} ") as raised:
        settings.primaries["global"].token()
    assert "two words" not in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"TURSO_URL": TURSO["TURSO_URL"]}, "TURSO_TOKEN is missing. "),
        ({"TURSO_EU_URL": TURSO_EU["TURSO_EU_URL"]}, "TURSO_EU_TOKEN is missing. "),
        ({"TURSO_TOKEN": "rw-token"}, "TURSO_URL is missing. "),
        ({"TURSO_EU_TOKEN": "rw-token"}, "TURSO_EU_URL is missing. "),
        (
            {
                **TURSO,
                "TURSO_EU_URL": TURSO["TURSO_URL"].upper().replace("LIBSQL", "https"),
                "TURSO_EU_TOKEN": "rw-token",
            },
            "TURSO_EU_URL is the database of TURSO_URL",
        ),
    ],
)
def test_half_a_database_is_reported(environ: dict[str, str], told: str) -> None:
    (text,) = problems(lambda: ledger(**environ))
    assert text.startswith(told)


@pytest.mark.parametrize("host", ["calls-acme.turso.io:443", "calls-acme.turso.io.", "Calls-acme.turso.io.:443"])
def test_one_database_for_two_zones_is_reported_however_it_is_spelled(host: str) -> None:
    told = problems(lambda: ledger(**TURSO, TURSO_EU_URL=f"https://{host}", TURSO_EU_TOKEN="eu-token"))
    assert told == ["TURSO_EU_URL is the database of TURSO_URL. Each zone should have one of its own."]


def test_server_is_reported_of_a_bad_database_and_starts() -> None:
    settings = read(TURSO_URL="calls-acme.turso.io", **TURSO_EU)
    assert settings.ledger.faults["global"].startswith("TURSO_URL is malformed (not a URL)")
    assert set(settings.ledger.primaries) == {"eu"}


def test_database_of_two_zones_is_used_by_neither_and_nowhere() -> None:
    shared = {**TURSO, "TURSO_EU_URL": TURSO["TURSO_URL"], "TURSO_EU_TOKEN": "rw-token"}
    in_the_eu, outside = read(**shared, FLY_REGION="fra").ledger, read(**shared, FLY_REGION="nrt").ledger
    assert (in_the_eu.primaries, outside.primaries) == ({}, {})
    assert set(in_the_eu.faults) == {"global", "eu"}
    assert set(outside.faults) == {"global"}


def test_bad_database_of_a_zone_that_is_not_kept_here_is_no_mistake() -> None:
    assert read(**TURSO, TURSO_EU_URL="nonsense", FLY_REGION="nrt").ledger.faults == {}


def test_token_twice_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t", encoding="utf-8")
    told = problems(lambda: ledger(**TURSO, TURSO_TOKEN_FILE=str(file)))
    assert told == ["TURSO_TOKEN and TURSO_TOKEN_FILE are both set. Keep one of them."]


@pytest.mark.parametrize("region", ["nrt", "gru", "syd", "iad", "lax", "lhr"])
def test_machine_outside_the_eu_does_not_even_have_the_eu_token(region: str) -> None:
    settings = ledger(**TURSO, **TURSO_EU, FLY_REGION=region)
    assert set(settings.primaries) == {"global"}
    assert settings.secrets == ("rw-token",)


@pytest.mark.parametrize(("region", "left"), [("iad", False), ("fra", True)])
def test_token_of_a_zone_not_kept_here_leaves_the_environment(
    monkeypatch: pytest.MonkeyPatch, region: str, left: bool
) -> None:
    """Neither a library nor a child process can find it there."""
    monkeypatch.setenv("TURSO_TOKEN", "t-global")
    monkeypatch.setenv("TURSO_EU_TOKEN", "t-eu")
    drop_tokens_of_other_zones(shipped_zones(), region)
    assert (os.environ.get("TURSO_TOKEN"), os.environ.get("TURSO_EU_TOKEN")) == (
        "t-global",
        "t-eu" if left else None,
    )


def test_migrations_reach_every_zone_from_the_one_region_they_run_in() -> None:
    environ = {**TURSO, **TURSO_EU, "FLY_REGION": "iad"}
    assert set(RecordSettings.from_env(environ, every_zone=True).ledger.primaries) == {"global", "eu"}


@pytest.mark.parametrize("region", ["ams", "arn", "cdg", "fra"])
def test_machine_in_the_eu_has_both(region: str) -> None:
    assert set(ledger(**TURSO, **TURSO_EU, FLY_REGION=region).primaries) == {"global", "eu"}


def test_tokens_of_databases_are_secrets_of_the_server_and_not_shown() -> None:
    settings = read(**TURSO, **TURSO_EU)
    assert {"rw-token", "eu-token"} <= set(settings.secrets)
    assert "token" not in repr(settings).replace("twilio_tokens", "")


# --- The caller's ------------------------------------------------------------------------------------


def test_caller_needs_the_account_and_its_token_alone() -> None:
    keys = CallerSettings.from_env({"TWILIO_ACCOUNT_SID": SID, "TWILIO_AUTH_TOKEN": TOKEN})
    assert (keys.account_sid, keys.auth_token) == (SID, TOKEN)
    assert TOKEN not in repr(keys)


def test_caller_is_reported_both_that_are_missing() -> None:
    told = problems(lambda: CallerSettings.from_env({}))
    assert [text.split()[0] for text in told] == ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"]


# --- The environment and .env ------------------------------------------------------------------------


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / "test.env"


def test_environment_wins_over_the_file(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv.write_text("NC_ONE=file\nNC_TWO=file\nNC_NOTHING\n", encoding="utf-8")
    monkeypatch.setenv("NC_ONE", "environment")
    found = environment(dotenv)
    assert (found["NC_ONE"], found["NC_TWO"]) == ("environment", "file")
    assert "NC_NOTHING" not in found


def test_reading_the_file_does_not_change_the_environment(dotenv: Path) -> None:
    dotenv.write_text("NC_TWO=file\n", encoding="utf-8")
    environment(dotenv)
    assert "NC_TWO" not in os.environ


def test_usual_file_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment(DOTENV) == dict(os.environ)


def test_azure_identity_finds_the_settings_of_the_file(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"AZURE_TENANT_ID": "set"})
    dotenv.write_text("AZURE_TENANT_ID=file\nAZURE_CLIENT_SECRET=file\nNC_TWO=file\n", encoding="utf-8")
    lend_identity(environment(dotenv))
    assert os.environ == {"AZURE_TENANT_ID": "set", "AZURE_CLIENT_SECRET": "file"}


def test_file_that_was_asked_for_may_not_be_missing(dotenv: Path) -> None:
    assert problems(lambda: environment(dotenv)) == [f"{dotenv}: No such file or directory."]


def test_directory_is_not_a_file(tmp_path: Path) -> None:
    assert problems(lambda: environment(tmp_path)) == [f"{tmp_path}: Is a directory."]


def test_file_that_is_not_utf8_is_reported(dotenv: Path) -> None:
    dotenv.write_bytes(b"NC_ONE=\xff\xfe\n")
    assert problems(lambda: environment(dotenv)) == [f"{dotenv}: The text is not UTF-8."]


def test_dollar_in_a_secret_is_a_dollar(dotenv: Path) -> None:
    dotenv.write_text("NC_SECRET=abc${HOME}def\n", encoding="utf-8")
    assert environment(dotenv)["NC_SECRET"] == "abc${HOME}def"


# --- The tenant's file -------------------------------------------------------------------------------


@pytest.fixture
def tenant(tmp_path: Path) -> Path:
    return tmp_path / "nearcall.toml"


def plan_of(tenant: Path, text: str) -> Plan:
    tenant.write_text(text, encoding="utf-8")
    return read(NEARCALL_CONFIG=str(tenant)).plan


EVERY_FIELD = {
    "language": "de",
    "instructions": "Sei freundlich.",
    "greeting": "",
    "greeting_interruptible": False,
    "voice": "cedar",
    "model": "gpt-realtime",
    "transcription_model": "whisper-1",
    "vad_silence_ms": 300,
    "idle_prompt_s": 3.5,
    "idle_prompts_max": 0,
    "max_call_s": 30.0,
    "max_call_warning_s": 30.0,
    "sorry": "Es tut uns leid.",
    "fallback_number": "+4930123456",
    "pause": "off",
    "backends": ("openai",),
    "max_calls": 5,
    "max_calls_everywhere": 12,
    "when_full": "sorry",
}


def test_every_field_of_the_tenant_may_be_set(tenant: Path) -> None:
    text = "".join(f"{name} = {_toml(value)}\n" for name, value in EVERY_FIELD.items())
    assert plan_of(tenant, f"[default]\n{text}") == Plan(**EVERY_FIELD)  # type: ignore[arg-type]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def test_no_field_of_a_plan_is_forgotten_here() -> None:
    assert {field.name for field in fields(Plan)} - {"tenant", "zone", "tools"} == set(EVERY_FIELD)


def test_whole_number_is_good_for_seconds(tenant: Path) -> None:
    assert plan_of(tenant, "[default]\nidle_prompt_s = 20\n").idle_prompt_s == 20.0


def test_zones_of_the_file_are_the_zones_of_the_server_and_of_commands(tenant: Path) -> None:
    tenant.write_text('[zones.apac]\nregions = ["nrt"]\nresidency = "any"\ndatabase = "TURSO_APAC"\n', "utf-8")
    zones = read(NEARCALL_CONFIG=str(tenant)).zones
    assert zones.keys() == {*shipped_zones(), "apac"}
    assert zones["apac"].regions == frozenset({"nrt"})
    assert RecordSettings.from_env({"NEARCALL_CONFIG": str(tenant)}).zones == zones


@pytest.mark.parametrize("text", ["", "[default]\n"])
def test_file_that_sets_nothing_is_fine(tenant: Path, text: str) -> None:
    assert plan_of(tenant, text) == Plan()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[acme]\n", "1: acme is not a known table. It should be one of default, zones, backends."),
        ("[defautl]\n", "1: defautl is not a known table. Did you mean default?"),
        (
            "greeting = 'hello'\n",
            "1: greeting is not a known table. It should be one of default, zones, backends.",
        ),
        ("default = 1\n", "1: default is 1. It should be a table, [default]."),
        ("[[default]]\n", "1: default is a list. It should be a table, [default]."),
        ("[[backends]]\n", "1: backends is a list. It should be tables, each with its name: [backends.NAME]."),
        ("zones = 1\n", "1: zones is 1. It should be tables, each with its name: [zones.NAME]."),
        ("[default]\ngreting = 'hello'\n", "2: default.greting is not a known field. Did you mean greeting?"),
        (
            "[default]\n\nvad_silence_ms = true\n",
            "3: default.vad_silence_ms is true. It should be a whole number from 100 to 5000.",
        ),
        (
            "default.backends = ['opnai']",
            (
                '1: default.backends contains "opnai".'
                " It should be a list of names, each one of openai, openai-eu, voicelive. Did you mean openai?"
            ),
        ),
        (
            "[default]\nmax_call_s = 60\nmax_call_warning_s = 61\n",
            "3: default.max_call_warning_s is 61. It should be a number from 0 to 60, which is max_call_s.",
        ),
        (
            "# short\n[default]\nmax_call_s = 30\n",
            (
                "2: default.max_call_warning_s is left out, which means 60."
                " It should be a number from 0 to 30, which is max_call_s."
            ),
        ),
        ("[default\n", "1: Expected ']' at the end of a table declaration, in column 9."),
        ("[default]\ngreeting = 'a'\ngreeting = 'b'\n", "3: Cannot overwrite a value, in column 15."),
    ],
)
def test_mistake_in_the_tenants_file_names_the_file_the_line_and_the_field(
    tenant: Path, text: str, why: str
) -> None:
    assert problems(lambda: plan_of(tenant, text)) == [f"NEARCALL_CONFIG: {tenant}:{why}"]


def test_every_mistake_in_the_tables_is_reported_at_once(tenant: Path) -> None:
    text = """\
[default]
backends = ["jp"]
[backends.jp]
keey = "JP_KEY"
kind = "voice-live"
near = ["tokyo"]
[backends.se]
kind = "voicelive"
[zones.apac]
regions = ["nrt"]
residency = "any"
"""
    told = [problem.split(f"{tenant}:")[1] for problem in problems(lambda: plan_of(tenant, text))]
    assert [problem.split(". ")[0] for problem in told] == [
        "3: backends.jp.url is missing",
        "4: backends.jp.keey is not a known field",
        '5: backends.jp.kind is "voice-live"',
        '6: backends.jp.near contains "tokyo"',
        "7: backends.se.url is missing",
        "9: zones.apac.database is missing",
    ]
    assert told[1].endswith(" Did you mean key?")
    assert told[2].endswith(" It should be one of openai, azure-openai, voicelive. Did you mean voicelive?")


@pytest.mark.parametrize("field", ["tenant", "zone", "tools"])
def test_what_the_built_in_tenant_cannot_set_is_no_field(tenant: Path, field: str) -> None:
    (told,) = problems(lambda: plan_of(tenant, f"[default]\n{field} = 'global'\n"))
    assert told.startswith(f"NEARCALL_CONFIG: {tenant}:2: default.{field} is not a known field.")


def test_all_mistakes_in_the_tenants_file_are_reported_at_once(tenant: Path) -> None:
    told = problems(lambda: plan_of(tenant, "[default]\nvoice = ''\nmax_calls = -1\n[acme]\n"))
    assert [problem.split(":")[2:] for problem in told] == [
        ["2", ' default.voice is "". It should be a text that is not empty.'],
        ["3", " default.max_calls is -1. It should be a whole number from 0 to 100000."],
        ["4", " acme is not a known table. It should be one of default, zones, backends."],
    ]


def test_missing_tenants_file_is_named(tenant: Path) -> None:
    assert f"{tenant}: No such file or directory" in problem("NEARCALL_CONFIG", str(tenant))


def test_directory_for_a_tenants_file_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}: Is a directory" in problem("NEARCALL_CONFIG", str(tmp_path))


def test_tenants_file_that_is_not_utf8_is_named(tenant: Path) -> None:
    tenant.write_bytes(b"[default]\ngreeting = '\xff'\n")
    assert f"{tenant}:2: The text is not UTF-8." in problem("NEARCALL_CONFIG", str(tenant))


def test_tenants_file_is_read_once(tenant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        opened.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    plan_of(tenant, "[default]\n")
    assert opened.count(tenant) == 1
