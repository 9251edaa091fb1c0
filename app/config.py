"""Settings: the only reader of the environment.

Everything is read once, at start, checked, and passed on as values. Everything that is wrong is reported at
once, a line each: what is wrong, and what it should look like. What a variable has is never repeated, because it
may be a secret; the name of a region is the exception.
"""

import os
import platform
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values

from app.backends.azure import AZURE_REGIONS
from app.backends.table import KEPT_IN, Backend, BackendEntry, check
from app.call.plan import Plan
from app.config_file import ConfigFile, read_config_file
from app.regions.table import HOMES, LOCAL, REGIONS
from app.regions.zones import ZoneRule, shipped_zones
from app.tenants.document import DocumentError
from app.toml_tables import TableError
from app.urls import ExampleUrl, http_url, private_url
from app.wire.tuning import VOICELIVE

_T = TypeVar("_T")

SECRET_CHARS_MIN = 8
"""A shorter key or token is a typing mistake. It also could not be kept out of the log: every line that happens to
have those few letters in it would be made unreadable."""

_A_PUBLIC_URL = "the URL by which Twilio reaches this server, such as https://calls.example.com with your own host"
_A_SECRET = "at least 32 random characters (openssl rand -hex 32)"  # noqa: S105  what one looks like
_A_DATABASE = "a URL such as libsql://calls-acme.turso.io"
_AN_ENDPOINT = "a URL such as https://NAME.services.ai.azure.com, with the name of your resource"
_A_KEY = f"the key itself, {SECRET_CHARS_MIN} characters or more"
_REGION_CODES = f"codes of Fly's regions with commas between them, of {', '.join(REGIONS)}"
_NO_BACKEND = (
    "OPENAI_API_KEY is missing, and no other backend is set up: nothing would answer callers. Set it, or "
    "AZURE_VOICELIVE_ENDPOINT and AZURE_VOICELIVE_API_KEY. To try nearcall without either, start it with "
    "--practice or NEARCALL_PRACTICE=1: callers then hear their own words repeated."
)
_TWO_ANSWER = (
    "NEARCALL_PRACTICE is set, and so is the key of a backend: it is unclear which of them should answer callers. "
    "Unset one of them."
)
_AN_ACCOUNT = "AC and 32 hexadecimal digits"
_A_TOKEN = "the 32 characters of the auth token in Twilio's console"  # noqa: S105  what one looks like

CALLS_MAX = 200
"""At once on one machine, unless NEARCALL_CALLS_MAX says otherwise: about half of what one dedicated core carries.

`scripts/bench tls` measured 345 to 510 calls a core, in G.711 and with TLS to the backend. PCM takes another
tenth of a core for 100 calls. The rest is for a bad minute: calls that start together, a busy host, a database
that comes back.
"""
CALLS_LIMIT = 10_000
"""No core carries as many: a larger number is a slip of the hand."""


class SettingsError(Exception):
    """The settings cannot be used. `problems` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class PrimarySettings:
    """Where a zone's database is, and what opens it."""

    url: str
    """https://host, or http://host of this machine."""
    token: Callable[[], str] = field(repr=False)
    """The token as it is now: one in a file is read anew each time, so it may be replaced without a restart.

    Raises ValueError, without the value, when the file does not have one.
    """


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Where records are kept."""

    region: str
    machine: str
    """Tells the machines that share a database apart."""
    data_dir: Path
    primaries: Mapping[str, PrimarySettings] = field(default_factory=dict)
    """By zone. A zone without one keeps its records in a file on this machine."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """By zone, what is wrong with the settings of its database, a line each. A server keeps such a zone's records
    on its disk; commands refuse to work."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that must never be seen in a log. Of a token in a file, what is there now."""
        tokens: list[str] = []
        for primary in self.primaries.values():
            # The file may have gone away since it was checked. The ledger says so with its first request.
            with suppress(ValueError):
                tokens.append(primary.token())
        return tuple(filter(None, tokens))


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """The zones and where their records are kept: all that the commands about calls and the ledger need."""

    zones: Mapping[str, ZoneRule]
    """Every zone there is, by name."""
    ledger: LedgerSettings

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, every_zone: bool = False) -> "RecordSettings":
        """Raises SettingsError.

        `every_zone`: also the databases of zones whose records may not be kept here. For migrations, which say
        nothing about anybody, and which Fly runs in one region only (fly.md 2.3).
        """
        reader = _Reader(environ)
        zones = _config_file(reader).zones
        ledger = _ledger(reader, zones, every_zone=every_zone)
        faults = (line for text in ledger.faults.values() for line in text.splitlines())
        problems = list(dict.fromkeys([*reader.problems, *faults]))
        if problems:
            raise SettingsError(problems)
        return cls(zones, ledger)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with."""

    public_urls: tuple[str, ...]
    """The bases that Twilio calls; the first is the one to hand out."""
    secret: str = field(repr=False)
    """Signs tickets; the same on every machine."""
    account_sid: str
    twilio_tokens: Mapping[str, str] = field(repr=False)
    """Twilio region to auth token."""
    backends: tuple[Backend, ...]
    """Those that have a key."""
    ledger: LedgerSettings
    port: int
    plan: Plan
    """Of the built-in tenant, which answers every number."""
    zones: Mapping[str, ZoneRule] = field(default_factory=shipped_zones)
    """Every zone there is, by name."""
    backend_names: frozenset[str] = frozenset()
    """Of all backends, with a key or without: what a tenant may prefer."""
    deployed: tuple[str, ...] = HOMES
    """The regions that have machines of ours: where calls may be sent on to."""
    on_fly: bool = False
    """True on a Machine of Fly's: requests come through Fly's proxy, which says whose they are."""
    admin_token: str = field(default="", repr=False)
    """What an operator shows to be told more than strangers are; empty: nobody is."""
    practice: bool = False
    """The embedded practice backend answers instead of `backends`: it repeats what callers say."""
    identity_secrets: tuple[str, ...] = field(default=(), repr=False)
    """What opens Entra ID, which azure-identity reads itself."""
    calls_max: int = CALLS_MAX
    """At once on this machine; the next one is sent on, or hears a busy tone."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that must never be seen in a log."""
        keys = filter(None, (backend.api_key for backend in self.backends))
        own = (self.secret, *filter(None, (self.admin_token,)), *self.twilio_tokens.values())
        return (*own, *keys, *self.identity_secrets, *self.ledger.secrets)

    @property
    def region(self) -> str:
        """Where this machine is."""
        return self.ledger.region

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, practice: bool = False) -> "Settings":
        """Read and check everything. Raises SettingsError with all problems at once.

        `practice`: the practice backend was asked for on the command line, whatever keys there are.
        """
        reader = _Reader(environ)
        file = _config_file(reader)
        backends, practice = _who_answers(reader, file.backends, practice=practice)
        settings = cls(
            public_urls=reader.take("NEARCALL_PUBLIC_URL", _public_urls, _A_PUBLIC_URL),
            secret=reader.take("NEARCALL_SECRET", _secret, _A_SECRET),
            account_sid=reader.take("TWILIO_ACCOUNT_SID", _account_sid, _AN_ACCOUNT),
            twilio_tokens=_tokens(reader),
            backends=backends,
            ledger=_ledger(reader, file.zones),
            port=reader.take("PORT", _port, "a port number such as 8080", 8080),
            plan=file.default,
            zones=file.zones,
            backend_names=frozenset(file.backends),
            deployed=reader.take("NEARCALL_REGIONS", _regions, _REGION_CODES, HOMES),
            on_fly=bool(environ.get("FLY_MACHINE_ID", "").strip()),
            admin_token=reader.take("NEARCALL_ADMIN_TOKEN", _secret, _A_SECRET, ""),
            practice=practice,
            identity_secrets=_identity_secrets(reader),
            calls_max=reader.take("NEARCALL_CALLS_MAX", calls_max, f"a number from 1 to {CALLS_LIMIT}", CALLS_MAX),
        )
        if reader.problems:
            raise SettingsError(reader.problems)
        return settings


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """The backends and the built-in tenant: all that it takes to try them."""

    entries: Mapping[str, BackendEntry]
    """Every one, with a key or without."""
    backends: tuple[Backend, ...]
    """Those that have a key."""
    plan: Plan
    identity_secrets: tuple[str, ...] = field(default=(), repr=False)
    """What opens Entra ID, which azure-identity reads itself."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that must never be seen in a log."""
        return (*filter(None, (backend.api_key for backend in self.backends)), *self.identity_secrets)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "BackendSettings":
        """Raises SettingsError."""
        reader = _Reader(environ)
        file = _config_file(reader)
        settings = cls(file.backends, _backends(reader, file.backends), file.default, _identity_secrets(reader))
        if reader.problems:
            raise SettingsError(reader.problems)
        return settings


@dataclass(frozen=True, slots=True)
class CallerSettings:
    """What it takes to call a server as Twilio would: the same account and token as the server's."""

    account_sid: str
    auth_token: str = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "CallerSettings":
        """Raises SettingsError."""
        reader = _Reader(environ)
        settings = cls(
            account_sid=reader.take("TWILIO_ACCOUNT_SID", _account_sid, _AN_ACCOUNT),
            auth_token=reader.take("TWILIO_AUTH_TOKEN", _token, _A_TOKEN),
        )
        if reader.problems:
            raise SettingsError(reader.problems)
        return settings


DOTENV = Path(".env")
"""Read in development, if it is there."""


def environment(dotenv: Path = DOTENV) -> dict[str, str]:
    """The process's environment; what is missing there is taken from a file of NAME=value lines.

    Raises SettingsError for a file that cannot be read; the usual one may be missing.
    """
    try:
        text = dotenv.read_text(encoding="utf-8")
    except OSError as error:
        if dotenv == DOTENV and isinstance(error, FileNotFoundError):
            return dict(os.environ)
        raise SettingsError([f"{dotenv}: {error.strerror}."]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{dotenv} is not UTF-8."]) from None
    found = dotenv_values(stream=StringIO(text), interpolate=False)
    return {**{name: value for name, value in found.items() if value is not None}, **os.environ}


def lend_identity(environ: Mapping[str, str]) -> None:
    """Azure's settings, from a file as well, where azure-identity looks for them: in the process's environment."""
    for name, value in environ.items():
        if name.startswith("AZURE_"):
            os.environ.setdefault(name, value)


def drop_tokens_of_other_zones(zones: Mapping[str, ZoneRule], region: str) -> None:
    """Remove the database tokens of zones that may not be kept here from the process's environment.

    Fly gives every machine all secrets of the app. Afterwards neither this process nor one that it starts finds
    such a token; the kernel still shows its user and root what it was started with (/proc/PID/environ).
    """
    for rule in zones.values():
        if not rule.allows(region):
            os.environ.pop(f"{rule.database}_TOKEN", None)


class Placeholder(ValueError):  # noqa: N818  says what is wrong
    """A value is the documentation's, which nobody has replaced with one of their own."""


def _refuse_placeholder(text: str) -> None:
    """Raises Placeholder for what the README shows in the place of a secret: `...`, `sk-...`, `<your key>`."""
    if "..." in text or "…" in text or (text.startswith("<") and text.endswith(">")):
        raise Placeholder


class _Reader:
    """Takes values out of the environment and collects what is wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def take(self, name: str, parse: Callable[[str], _T], looks_like: str, default: _T | None = None) -> _T:
        """The parsed value. A missing one is the default, or a problem when there is none.

        After a problem the result is None: `from_env` raises before anybody sees it.
        """
        text = self.environ.get(name, "").strip()
        if not text and default is not None:
            return default
        try:
            if text:
                _refuse_placeholder(text)
                return parse(text)
            self.problems.append(f"{name} is missing. It should be {looks_like}.")
        except (ExampleUrl, Placeholder):
            self.problems.append(
                f"{name} still has the placeholder of the documentation. It should be {looks_like}."
            )
        except ValueError as error:
            why = f" ({error})" if str(error) else ""
            self.problems.append(f"{name} is malformed{why}. It should be {looks_like}.")
        return None  # type: ignore[return-value]  # see the docstring


def _public_urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip().rstrip("/") for url in text.split(","))
    for url in urls:
        if http_url(url).path:
            raise ValueError("only scheme and host, no path")
    return urls


def _secret(text: str) -> str:
    if len(text) < 32:
        raise ValueError(f"{len(text)} characters are too few")
    return text


def _account_sid(text: str) -> str:
    digits = text.removeprefix("AC")
    if len(text) != 34 or len(digits) != 32 or set(digits.lower()) - set("0123456789abcdef"):
        raise ValueError
    return text


def _token(text: str) -> str:
    if len(text) != 32 or not text.isalnum():
        raise ValueError
    return text


def _tokens(reader: _Reader) -> Mapping[str, str]:
    tokens = {"us1": reader.take("TWILIO_AUTH_TOKEN", _token, _A_TOKEN)}
    for region in ("ie1", "au1"):
        token = reader.take(f"TWILIO_AUTH_TOKEN_{region.upper()}", _token, _A_TOKEN, "")
        if token:
            tokens[region] = token
    return MappingProxyType(tokens)


def config_file(environ: Mapping[str, str]) -> ConfigFile:
    """The operator's file alone. Raises SettingsError."""
    reader = _Reader(environ)
    file = _config_file(reader)
    if reader.problems:
        raise SettingsError(reader.problems)
    return file


def _config_file(reader: _Reader) -> ConfigFile:
    """What the file has that NEARCALL_CONFIG names; what ships, when there is none or after a problem."""
    name = "NEARCALL_CONFIG"
    text = reader.environ.get(name, "").strip()
    try:
        return read_config_file(Path(text)) if text else ConfigFile.shipped()
    except DocumentError as error:
        reader.problems += [f"{name}: {problem}" for problem in error.problems]
    return ConfigFile.shipped()


def _who_answers(
    reader: _Reader, entries: Mapping[str, BackendEntry], *, practice: bool
) -> tuple[tuple[Backend, ...], bool]:
    """The backends, and whether the practice backend answers in their place. It never does so unasked.

    A setting may be forgotten on a server that takes real calls, so beside a key it is a mistake. `practice` was
    said on the command line a moment ago, and wins over whatever `.env` has.
    """
    before = len(reader.problems)
    by_setting = reader.take("NEARCALL_PRACTICE", _switch, "1, or left out", default=False)
    if practice:
        return (), True
    backends = _backends(reader, entries)
    if backends and by_setting:
        reader.problems.append(_TWO_ANSWER)
    if not backends and not by_setting and len(reader.problems) == before:
        reader.problems.append(_NO_BACKEND)
    return backends, by_setting


def _backends(reader: _Reader, entries: Mapping[str, BackendEntry]) -> tuple[Backend, ...]:
    """Those whose key is there. OPENAI_BASE_URL is where `openai` is, as for the official SDK."""
    base_url = reader.take("OPENAI_BASE_URL", _base_url, "a URL such as https://host/v1", "")
    found: list[Backend] = []
    for each in entries.values():
        entry = _voicelive(reader, each) if each.kind == VOICELIVE else each
        key = reader.take(entry.key, _credential, _A_KEY, "") if entry.key else ""
        if key or (entry.url and not entry.key):
            found.append(Backend(_moved(entry, base_url) if entry.name == "openai" else entry, key))
    return tuple(found)


def _voicelive(reader: _Reader, entry: BackendEntry) -> BackendEntry:
    """A Voice Live resource with a model; one without a URL is what the environment says, if it says anything."""
    model = entry.tuning.model
    if not entry.url:
        key_name = entry.key or "AZURE_VOICELIVE_API_KEY"
        names = ["AZURE_VOICELIVE_ENDPOINT", key_name, "AZURE_VOICELIVE_MODEL", "AZURE_VOICELIVE_REGION"]
        if not any(reader.environ.get(name, "").strip() for name in names):
            return entry
        url = reader.take(names[0], _base_url, _AN_ENDPOINT)
        key = entry.key or (names[1] if reader.environ.get(names[1], "").strip() else "")
        entry = replace(entry, url=url, key=key)
        model = model or reader.take(names[2], _key, "the name of a model", "")
        region = reader.take(names[3], _azure_region, f"one of {', '.join(AZURE_REGIONS)}", "")
        if region:
            entry = _placed(reader, entry, region, model or VOICELIVE_MODEL)
    entry = replace(entry, tuning=replace(entry.tuning, model=model or VOICELIVE_MODEL))
    try:
        check(entry)
    except TableError as error:
        field = f"`{error.path[-1]}` of [backends.{entry.name}] in the file of NEARCALL_CONFIG"
        reader.problems.append(f"{field} {error.why}.")
    return entry


def _placed(reader: _Reader, entry: BackendEntry, region: str, model: str) -> BackendEntry:
    """The resource where Azure has it. What a file says of it stays, unless its place makes that untrue."""
    place = AZURE_REGIONS[region]
    # Whatever region the resource is in, any other model thinks anywhere in the world (realtime.md 2.8).
    kept = place.residency if model.endswith(KEPT_IN) else frozenset()
    if not entry.residency <= place.residency:
        promised = f"`residency` of [backends.{entry.name}] in the file of NEARCALL_CONFIG"
        reader.problems.append(
            f"AZURE_VOICELIVE_REGION does not keep what {promised} promises. Change one of them."
        )
    return replace(entry, near=entry.near or place.near, residency=entry.residency | kept)


VOICELIVE_MODEL = "gpt-realtime-2.1"
"""In most of Azure's regions (realtime.md 2.8)."""


def _moved(entry: BackendEntry, url: str) -> BackendEntry:
    """The entry with another URL. What it promises, and where it is, was said of the one it had."""
    if url in {"", entry.url}:
        return entry
    return replace(entry, url=url, residency=frozenset(), near=())


def _regions(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_region(code.strip()) for code in text.split(",")))


def _key(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return text


def _credential(text: str) -> str:
    """A key or a token, as it fits into a header."""
    return _hidden(_key(text))


def _identity_secrets(reader: _Reader) -> tuple[str, ...]:
    """Of a service principal, for azure-identity."""
    names = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_PASSWORD")
    return tuple(filter(None, (reader.take(name, _hidden, _A_KEY, "") for name in names)))


def _hidden(text: str) -> str:
    """A secret of any characters, long enough to be kept out of the log."""
    if len(text) < SECRET_CHARS_MIN:
        raise ValueError(f"{len(text)} characters are too few")
    return text


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError
    return text == "1"


def _base_url(text: str) -> str:
    private_url(text)
    return text.rstrip("/")


def _region(text: str) -> str:
    """A code of Fly's, in capitals too."""
    return _one_of(REGIONS, text)


def _azure_region(text: str) -> str:
    """A name of Azure's, also as its portal shows it: Sweden Central."""
    return _one_of(AZURE_REGIONS, text.replace(" ", ""))


def _one_of(names: Collection[str], text: str) -> str:
    """The name. An unknown one is repeated in the error when it looks like a name, for then it is no secret."""
    name = text.lower()
    if name in names:
        return name
    shown = f" {text!r}" if re.fullmatch("[a-zA-Z0-9-]{1,20}", text) else ""
    raise ValueError(f"there is no region{shown}")


def calls_max(text: str) -> int:
    """What NEARCALL_CALLS_MAX says. Raises ValueError."""
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= CALLS_LIMIT:
        raise ValueError
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError
    return int(text)


# --- Zones' databases ---------------------------------------------------------------------------


def _ledger(reader: _Reader, zones: Mapping[str, ZoneRule], *, every_zone: bool = False) -> LedgerSettings:
    # Without a region a machine is nowhere in particular and belongs to every zone: never one of Fly's.
    on_fly = any(reader.environ.get(name, "").strip() for name in ("FLY_MACHINE_ID", "FLY_APP_NAME"))
    a_region = f"one of {', '.join(REGIONS)}"
    region = reader.take("FLY_REGION", _region, a_region, None if on_fly else LOCAL)
    machine = reader.take("FLY_MACHINE_ID", _key, "the machine's id", platform.node() or LOCAL)
    data_dir = reader.take("NEARCALL_DATA_DIR", Path, "a directory", Path("data"))
    primaries: dict[str, PrimarySettings] = {}
    faults: dict[str, str] = {}
    owners: dict[tuple[str, int], str] = {}
    for zone, rule in zones.items():
        prefix = rule.database
        its = _Reader(reader.environ)
        url = its.take(f"{prefix}_URL", _turso_url, _A_DATABASE, "")
        here = every_zone or rule.allows(region)
        # Where a zone is not kept, its token is not read: it may rightly not be there.
        primary = _primary(its, prefix, url) if here and not its.problems else None
        if primary is not None:
            primaries[zone] = primary
        if url and (owner := owners.setdefault(_address(url), zone)) != zone:
            # Whose database it is cannot be told: neither zone uses it, wherever this machine is.
            other = zones[owner].database
            twice = f"{prefix}_URL is the database of {other}_URL. Each zone should have one of its own."
            its.problems.append(twice)
            faults[owner] = twice
        if its.problems and here:
            faults[zone] = "\n".join(its.problems)
    usable = {zone: primary for zone, primary in primaries.items() if zone not in faults}
    return LedgerSettings(region, machine, data_dir, MappingProxyType(usable), MappingProxyType(faults))


def _primary(reader: _Reader, prefix: str, url: str) -> PrimarySettings | None:
    """The settings of one zone; None when there are none, or after a problem."""
    token_like = "the token that 'turso db tokens create' prints"  # noqa: S105  what one looks like
    token = reader.take(f"{prefix}_TOKEN", _credential, token_like, "")
    file = reader.environ.get(f"{prefix}_TOKEN_FILE", "").strip()
    if reader.problems:
        return None
    if token and file:
        reader.problems.append(f"{prefix}_TOKEN and {prefix}_TOKEN_FILE are both set. Keep one of them.")
    elif (token or file) and not url:
        reader.problems.append(f"{prefix}_URL is missing. It should be {_A_DATABASE}.")
    elif url.startswith("https:") and not (token or file):
        reader.problems.append(f"{prefix}_TOKEN is missing. It should be {token_like}.")
    if reader.problems or not url:
        return None
    return PrimarySettings(
        url, (lambda: _token_in(f"{prefix}_TOKEN_FILE", Path(file))) if file else (lambda: token)
    )


def _turso_url(text: str) -> str:
    """Turso's own scheme means https (libsql.md 8)."""
    parts = private_url(f"https://{text.removeprefix('libsql://')}" if text.startswith("libsql://") else text)
    if parts.path.strip("/"):
        raise ValueError("only scheme and host, no path")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _address(url: str) -> tuple[str, int]:
    """Host and port: one database has many spellings, with the usual port or a dot at the end."""
    parts = urlsplit(url)
    return (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


def _token_in(name: str, path: Path) -> str:
    """The token in the file that a setting names. Raises ValueError, without the token, when there is none."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"{name}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {path} is not UTF-8") from None
    try:
        _refuse_placeholder(token)
        return _credential(token)
    except ValueError as error:
        why = f" ({error})" if token and str(error) else ""
        raise ValueError(f"{name}: {path} has no token in it{why}") from None
