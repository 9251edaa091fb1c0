"""Settings: the only reader of the environment.

Everything is read once, at start, checked, and passed on as values. All mistakes are reported at once, one a line.
A mistake in the environment never repeats the value, because it may be a secret; the name of a region is the
exception.
"""

import os
import platform
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from dotenv import dotenv_values

from app import variables
from app.backends.azure import AZURE_REGIONS
from app.backends.table import KEPT_IN, Backend, BackendEntry, check
from app.call.plan import Plan
from app.config_file import ConfigFile, read_config_file
from app.regions.table import HOMES, LOCAL
from app.regions.zones import ZoneRule, shipped_zones
from app.validation import Field, Mistake, SettingsError, Variables, WrongValueError, refuse, refuse_placeholder
from app.variables import CALLS_MAX, DRAIN_ON_FLY_S, DRAIN_S, LAG_MAX_MS, SETUPS_MAX
from app.wire.tuning import VOICELIVE


@dataclass(frozen=True, slots=True)
class PrimarySettings:
    """The database of a zone, and the token that opens it."""

    url: str
    """https://host, or http://host of this machine."""
    token: Callable[[], str] = field(repr=False)
    """Returns the current token: one in a file is read each time, so it can be replaced without a restart.

    Raises ValueError, without the value, if there is none in the file.
    """


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Where records are kept."""

    region: str
    machine: str
    """The name of this machine, which distinguishes it from others with the same database."""
    data_dir: Path
    primaries: Mapping[str, PrimarySettings] = field(default_factory=dict)
    """By zone. A zone without one keeps its records in a file on this machine."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """By zone, what is wrong with the settings of its database, a line each. A server keeps such a zone's records
    on its disk; commands refuse to work."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """All secrets, which no log may contain. A token in a file is read now."""
        tokens: list[str] = []
        for primary in self.primaries.values():
            # The file may have been removed since it was checked. The ledger reports that with its first request.
            with suppress(ValueError):
                tokens.append(primary.token())
        return tuple(filter(None, tokens))


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """The zones and where their records are kept, for the commands about calls and the ledger."""

    zones: Mapping[str, ZoneRule]
    """Every zone there is, by name."""
    ledger: LedgerSettings

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, every_zone: bool = False) -> "RecordSettings":
        """Read and check these settings. Raises SettingsError.

        With `every_zone`, the databases of zones whose records may not be kept here are included. Migrations need
        them: they read no records, and Fly runs them in one region only (fly.md 2.3).
        """
        reader = Variables(environ)
        file = _config_file(reader)
        ledger, faults = _ledger(reader, file.zones, every_zone=every_zone)
        reader.mistakes += [mistake for mistakes in faults.values() for mistake in mistakes]
        _finish(reader, file)
        return cls(file.zones, ledger)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a server."""

    public_urls: tuple[str, ...]
    """The base URLs that Twilio calls; the first one is shown to operators."""
    secret: str = field(repr=False)
    """The secret that signs tickets. It is the same on every machine."""
    account_sid: str
    twilio_tokens: Mapping[str, str] = field(repr=False)
    """The auth token of each Twilio region."""
    backends: tuple[Backend, ...]
    """The backends that have a key."""
    ledger: LedgerSettings
    port: int
    plan: Plan
    """The plan of the built-in tenant."""
    zones: Mapping[str, ZoneRule] = field(default_factory=shipped_zones)
    """Every zone there is, by name."""
    backend_names: frozenset[str] = frozenset()
    """The names of all backends, with or without a key, because a tenant may prefer any of them."""
    deployed: tuple[str, ...] = HOMES
    """The regions that have machines of ours, to which calls may be sent on."""
    on_fly: bool = False
    """True on a Fly Machine: requests come through Fly's proxy, which names the client."""
    admin_token: str = field(default="", repr=False)
    """A request with this token gets the details of /healthz. If it is empty, no request does."""
    practice: bool = False
    """The embedded practice backend answers instead of `backends`: it repeats what callers say."""
    identity_secrets: tuple[str, ...] = field(default=(), repr=False)
    """The secrets that open Entra ID. azure-identity reads them itself."""
    calls_max: int = CALLS_MAX
    """How many calls this machine takes at a time. More are sent to another machine, or hear a busy tone."""
    setups_max: int = SETUPS_MAX
    """How many of them may be without a stream or a ready backend."""
    lag_max_s: float = LAG_MAX_MS / 1000
    """How late the event loop may be before this machine takes no new calls."""
    drain_s: float = DRAIN_S
    """How long the server hands its calls over after a stop signal."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that must never be seen in a log."""
        keys = filter(None, (backend.api_key for backend in self.backends))
        own = (self.secret, *filter(None, (self.admin_token,)), *self.twilio_tokens.values())
        return (*own, *keys, *self.identity_secrets, *self.ledger.secrets)

    @property
    def region(self) -> str:
        """The region that this machine is in."""
        return self.ledger.region

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, practice: bool = False) -> "Settings":
        """Read and check everything. Raises SettingsError with all problems at once.

        `practice`: the practice backend was asked for on the command line, whatever keys there are.
        """
        reader = Variables(environ)
        file = _config_file(reader)
        backends, practice = _who_answers(reader, file, practice=practice)
        ledger, faults = _ledger(reader, file.zones)
        settings = cls(
            public_urls=reader.take(variables.PUBLIC_URL),
            secret=reader.take(variables.SECRET),
            account_sid=reader.take(variables.ACCOUNT_SID),
            twilio_tokens=_twilio_tokens(reader),
            backends=backends,
            ledger=ledger,
            port=reader.take(variables.PORT),
            plan=file.default,
            zones=file.zones,
            backend_names=frozenset(file.backends),
            deployed=reader.take(variables.DEPLOYED),
            on_fly=reader.is_set(variables.MACHINE.name),
            admin_token=reader.take(variables.ADMIN_TOKEN),
            practice=practice,
            identity_secrets=_identity_secrets(reader),
            calls_max=reader.take(variables.CALLS),
            setups_max=reader.take(variables.SETUPS),
            lag_max_s=reader.take(variables.LAG),
            drain_s=reader.take(_drain_field(on_fly=reader.is_set(variables.MACHINE.name))),
        )
        if reader.mistakes:
            # Wrong settings of a database do not keep a server from starting; any other mistake does.
            reader.mistakes += [mistake for mistakes in faults.values() for mistake in mistakes]
        _finish(reader, file)
        return settings


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """The backends and the built-in tenant, for the check of backends."""

    entries: Mapping[str, BackendEntry]
    """All backends, with a key or without."""
    backends: tuple[Backend, ...]
    """The backends that have a key."""
    plan: Plan
    identity_secrets: tuple[str, ...] = field(default=(), repr=False)
    """The secrets that open Entra ID. azure-identity reads them itself."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that must never be seen in a log."""
        return (*filter(None, (backend.api_key for backend in self.backends)), *self.identity_secrets)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "BackendSettings":
        """Raises SettingsError."""
        reader = Variables(environ)
        file = _config_file(reader)
        backends = _backends(reader, file)
        settings = cls(file.backends, backends, file.default, _identity_secrets(reader))
        _finish(reader, file)
        return settings


@dataclass(frozen=True, slots=True)
class CallerSettings:
    """The account and the token of the server, with which a test call signs its requests as Twilio does."""

    account_sid: str
    auth_token: str = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "CallerSettings":
        """Raises SettingsError."""
        reader = Variables(environ)
        settings = cls(reader.take(variables.ACCOUNT_SID), reader.take(variables.AUTH_TOKEN))
        _finish(reader)
        return settings


DOTENV = Path(".env")
"""The file of settings for development, which need not exist."""


def environment(dotenv: Path = DOTENV) -> dict[str, str]:
    """Return the process's environment, completed from a file of NAME=value lines.

    Raises SettingsError for a file that cannot be read; the usual one may be missing.
    """
    try:
        text = dotenv.read_text(encoding="utf-8")
    except OSError as error:
        if dotenv == DOTENV and isinstance(error, FileNotFoundError):
            return dict(os.environ)
        raise SettingsError([Mistake((), str(error.strerror), file=str(dotenv))]) from None
    except UnicodeDecodeError:
        raise SettingsError([Mistake((), "The text is not UTF-8", file=str(dotenv))]) from None
    found = dotenv_values(stream=StringIO(text), interpolate=False)
    return {**{name: value for name, value in found.items() if value is not None}, **os.environ}


def lend_identity(environ: Mapping[str, str]) -> None:
    """Put Azure's settings into the process's environment, where azure-identity looks for them."""
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


def config_file(environ: Mapping[str, str]) -> ConfigFile:
    """Read only the operator's file, and collect the mistakes in it."""
    return _config_file(Variables(environ))


def _config_file(reader: Variables) -> ConfigFile:
    """Read the file that NEARCALL_CONFIG names; without one, the built-in configuration."""
    name = reader.take(variables.CONFIG)
    if not name:
        return ConfigFile.shipped()
    file = read_config_file(Path(name))
    return replace(file, mistakes=tuple(replace(each, variable=variables.CONFIG.name) for each in file.mistakes))


def _finish(reader: Variables, file: ConfigFile | None = None) -> None:
    """Raise SettingsError if there are mistakes in the environment or in the file."""
    reader.suggest()
    refuse([*reader.mistakes, *(file.mistakes if file else ())])


# --- Twilio -------------------------------------------------------------------------------------


def _twilio_tokens(reader: Variables) -> Mapping[str, str]:
    tokens = {"us1": reader.take(variables.AUTH_TOKEN)}
    tokens |= {region: reader.take(each) for region, each in variables.OTHER_AUTH_TOKENS.items()}
    return MappingProxyType({region: token for region, token in tokens.items() if token})


def _drain_field(*, on_fly: bool) -> Field[int]:
    return replace(variables.DRAIN, default=DRAIN_ON_FLY_S) if on_fly else variables.DRAIN


# --- Backends -----------------------------------------------------------------------------------


def _who_answers(reader: Variables, file: ConfigFile, *, practice: bool) -> tuple[tuple[Backend, ...], bool]:
    """Return the backends, and whether the practice backend answers in their place, which it does only on request.

    NEARCALL_PRACTICE may be forgotten on a server that takes real calls, so it is a mistake together with a key.
    `practice` comes from the command line, and overrides whatever `.env` has.
    """
    before = len(reader.mistakes)
    by_variable = reader.take(variables.PRACTICE)
    if practice:
        return (), True
    backends = _backends(reader, file, practice=by_variable)
    if backends and by_variable:
        reader.add(
            variables.PRACTICE.name,
            "is set, and so is the key of a backend: it is unclear which of them should answer callers",
            "Unset one of them.",
        )
    # A file with a mistake may have a backend in it that could not be read.
    if not backends and not by_variable and not file.mistakes and len(reader.mistakes) == before:
        reader.add(
            "OPENAI_API_KEY",
            "is missing, and no other backend is set up: nothing would answer callers",
            "Set it, or AZURE_VOICELIVE_ENDPOINT and AZURE_VOICELIVE_API_KEY. To try nearcall without either,"
            " start it with --practice or NEARCALL_PRACTICE=1: callers then hear their own words repeated.",
        )
    return backends, by_variable


def _backends(reader: Variables, file: ConfigFile, *, practice: bool = False) -> tuple[Backend, ...]:
    """The backends that have a key. OPENAI_BASE_URL sets the URL of `openai`, as it does for the official SDK."""
    base_url = reader.take(variables.OPENAI_BASE_URL)
    found: list[Backend] = []
    for each in file.backends.values():
        entry = _voicelive(reader, each) if each.kind == VOICELIVE else each
        key = reader.take(variables.key(entry.key)) if entry.key else ""
        if key or (entry.url and not entry.key):
            found.append(Backend(_moved(entry, base_url) if entry.name == "openai" else entry, key))
    if not practice:
        _refuse_unused(reader, file, found, base_url)
    return tuple(found)


def _refuse_unused(reader: Variables, file: ConfigFile, found: Collection[Backend], base_url: str) -> None:
    """Report variables that are set and have no effect because another one is missing."""
    openai = file.backends["openai"]
    if found and base_url and not reader.is_set(openai.key):
        reader.add(
            variables.OPENAI_BASE_URL.name,
            f"is set, and {openai.key} is missing",
            "Set both, or neither: a server that asks for no key still needs some word of eight letters.",
        )
    if not file.mistakes and not any(each.kind == VOICELIVE and not each.url for each in file.backends.values()):
        keys = {each.key for each in file.backends.values()}
        for name in _VOICELIVE_VARIABLES:
            if name not in keys and reader.is_set(name):
                reader.add(
                    name,
                    "is set, and no backend uses it: [backends.voicelive] of NEARCALL_CONFIG's file has a url",
                    "Remove the url there, or unset this variable and say the same in that table.",
                )
    # azure-identity silently ignores a service principal with a missing part.
    if reader.is_set(variables.AZURE_CLIENT_SECRET.name) and any(not each.api_key for each in found):
        reader.take(variables.AZURE_TENANT)
        reader.take(variables.AZURE_CLIENT)


_VOICELIVE_VARIABLES = tuple(
    each.name
    for each in (
        variables.VOICELIVE_ENDPOINT,
        variables.VOICELIVE_KEY,
        variables.VOICELIVE_MODEL,
        variables.VOICELIVE_REGION,
    )
)


def _voicelive(reader: Variables, entry: BackendEntry) -> BackendEntry:
    """A Voice Live resource with a model. An entry without a URL is completed from the environment."""
    model = entry.tuning.model
    if not entry.url:
        key_name = entry.key or variables.VOICELIVE_KEY.name
        if not reader.is_set(key_name, *_VOICELIVE_VARIABLES):
            return entry
        url = reader.take(variables.VOICELIVE_ENDPOINT)
        key = entry.key or (key_name if reader.is_set(key_name) else "")
        entry = replace(entry, url=url, key=key)
        model = model or reader.take(variables.VOICELIVE_MODEL)
        region = reader.take(variables.VOICELIVE_REGION)
        if region:
            entry = _placed(reader, entry, region, model or VOICELIVE_MODEL)
    entry = replace(entry, tuning=replace(entry.tuning, model=model or VOICELIVE_MODEL))
    for mistake in check(entry):
        # The mistake depends on the environment, so there is no line in the file to name.
        name = f"`{mistake.path[-1]}` of [backends.{entry.name}] in the file of NEARCALL_CONFIG"
        reader.mistakes.append(replace(mistake, path=(), found=f"{name} {mistake.found}"))
    return entry


def _placed(reader: Variables, entry: BackendEntry, region: str, model: str) -> BackendEntry:
    """Add what the resource's region implies. What a file says stays, unless the region contradicts it."""
    place = AZURE_REGIONS[region]
    # Any other model runs anywhere in the world, whatever region the resource is in (realtime.md 2.8).
    kept = place.residency if model.endswith(KEPT_IN) else frozenset()
    if not entry.residency <= place.residency:
        promised = f"`residency` of [backends.{entry.name}] in the file of NEARCALL_CONFIG"
        reader.add(
            variables.VOICELIVE_REGION.name, f"does not keep what {promised} promises", "Change one of them."
        )
    return replace(entry, near=entry.near or place.near, residency=entry.residency | kept)


VOICELIVE_MODEL = "gpt-realtime-2.1"
"""A model that most of Azure's regions have (realtime.md 2.8)."""


def _moved(entry: BackendEntry, url: str) -> BackendEntry:
    """Return the entry with another URL, without the promises and the region of the server at the old one."""
    if url in {"", entry.url}:
        return entry
    return replace(entry, url=url, residency=frozenset(), near=())


def _identity_secrets(reader: Variables) -> tuple[str, ...]:
    """The secrets of a service principal, which azure-identity reads."""
    return tuple(filter(None, (reader.take(each) for each in variables.IDENTITY_SECRETS)))


# --- Zones' databases ---------------------------------------------------------------------------


def _ledger(
    reader: Variables, zones: Mapping[str, ZoneRule], *, every_zone: bool = False
) -> tuple[LedgerSettings, Mapping[str, list[Mistake]]]:
    """Return where records are kept, and for each zone the mistakes about its database."""
    # A machine without a region belongs to every zone. A Fly Machine always has a region.
    on_fly = reader.is_set("FLY_MACHINE_ID", "FLY_APP_NAME")
    region = reader.take(variables.REGION if on_fly else replace(variables.REGION, default=LOCAL))
    machine = reader.take(variables.MACHINE) or platform.node() or LOCAL
    data_dir = reader.take(variables.DATA_DIR)
    primaries: dict[str, PrimarySettings] = {}
    faults: dict[str, list[Mistake]] = {}
    owners: dict[tuple[str, int], str] = {}
    for zone, rule in zones.items():
        prefix = rule.database
        before, reader.mistakes = reader.mistakes, []
        url = reader.take(variables.database_url(prefix))
        here = every_zone or rule.allows(region)
        # The token of a zone that is not kept here is not read: this machine need not have it.
        primary = _primary(reader, prefix, url) if here and not reader.mistakes else None
        if primary is not None:
            primaries[zone] = primary
        if url and (owner := owners.setdefault(_address(url), zone)) != zone:
            # Nobody knows which zone the database is for, so neither zone uses it, wherever this machine is.
            other = zones[owner].database
            reader.add(f"{prefix}_URL", f"is the database of {other}_URL", "Each zone should have one of its own.")
            faults.setdefault(owner, []).extend(reader.mistakes[-1:])
        if reader.mistakes and here:
            faults.setdefault(zone, []).extend(reader.mistakes)
        reader.mistakes = before
    usable = {zone: primary for zone, primary in primaries.items() if zone not in faults}
    texts = {zone: "\n".join(map(str, mistakes)) for zone, mistakes in faults.items()}
    ledger = LedgerSettings(region, machine, data_dir, MappingProxyType(usable), MappingProxyType(texts))
    return ledger, faults


def _primary(reader: Variables, prefix: str, url: str) -> PrimarySettings | None:
    """The database of one zone; None if it has none, or if its settings are wrong."""
    database, token_field = variables.database_url(prefix), variables.database_token(prefix)
    token = reader.take(token_field)
    file_field = variables.database_token_file(prefix)
    file = reader.text(file_field.name)
    if reader.mistakes:
        return None
    if token and file:
        reader.add(token_field.name, f"and {file_field.name} are both set", "Keep one of them.")
    elif (token or file) and not url:
        reader.add_missing(database)
    elif url.startswith("https:") and not (token or file):
        reader.add_missing(token_field)
    if reader.mistakes or not url:
        return None
    return PrimarySettings(url, (lambda: _token_in(file_field.name, Path(file))) if file else (lambda: token))


def _address(url: str) -> tuple[str, int]:
    """Host and port, to compare URLs: one may name the default port or end its host with a dot."""
    parts = urlsplit(url)
    return (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


def _token_in(name: str, path: Path) -> str:
    """The token in the file that a variable names. Raises ValueError, without the token, if there is none."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"{name}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {path} is not UTF-8") from None
    try:
        refuse_placeholder(token)
        return variables.credential(token)
    except WrongValueError as error:
        why = f" ({error})" if token and str(error) else ""
        raise ValueError(f"{name}: {path} has no token in it{why}") from None
