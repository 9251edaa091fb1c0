"""The environment variables of nearcall, each declared once: how it is read, what it should be, its default.

Refuses to know the environment: config.py reads it. The README's table of variables names the same ones.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from app.backends.azure import AZURE_REGIONS
from app.regions.table import HOMES, REGIONS, region_code
from app.urls import http_url, private_url
from app.validation import Field, WrongValueError, one_of

SECRET_CHARS_MIN = 8
"""A shorter key or token is a typing mistake. It also could not be kept out of the log: every line that happens to
have those few letters in it would be made unreadable."""

CALLS_MAX = 200
"""At once on one machine, unless NEARCALL_CALLS_MAX says otherwise: about half of what one dedicated core carries.

`scripts/bench tls` measured 345 to 510 calls a core, in G.711 and with TLS to the backend. PCM takes another
tenth of a core for 100 calls. The rest is for a bad minute: calls that start together, a busy host, a database
that comes back.
"""
SETUPS_MAX = 50
"""The most calls that are set up at once, unless NEARCALL_SETUPS_MAX says otherwise.

Setting a call up takes a second or two: the webhook, Twilio's stream, the backend's session. So this is a burst of
25 to 50 calls a second; `scripts/bench` measured the audio of 100 other calls up to 20 a second.
"""
LAG_MAX_MS = 100
"""How late the event loop may be before new calls go elsewhere, unless NEARCALL_LAG_MAX_MS says otherwise.

Five frames. Measured with the load of `scripts/bench` while other programs competed for the core: 8 to 25 ms with
200 calls. With 300, when the lag was above 100 ms, one caller's frame in a hundred came 350 ms late.
"""
LAG_LIMIT_MS = 10_000
CALLS_LIMIT = 10_000
"""No core carries as many: a larger number is a slip of the hand."""


DRAIN_S = 8
"""How long a server hands its calls over after a stop signal. `docker stop` kills after 10 s."""
DRAIN_ON_FLY_S = 280
"""The same on Fly: kill_timeout in fly.toml, 300 s, less DRAIN_MARGIN_S."""
DRAIN_MARGIN_S = 20
"""From the end of a drain to the end of the process: open requests, the ledgers' last records."""
DRAIN_LIMIT_S = 3_600
"""Fly waits for five minutes at most, and a longer drain than an hour is a slip of the hand."""

# --- Parsers ------------------------------------------------------------------------------------


def calls_max(text: str) -> int:
    """Read NEARCALL_CALLS_MAX. Raises WrongValueError."""
    return _whole_number(text, CALLS_LIMIT)


def _lag(text: str) -> float:
    return _whole_number(text, LAG_LIMIT_MS) / 1000


def drain_s(text: str) -> int:
    """Read NEARCALL_DRAIN_S. Raises WrongValueError."""
    return _whole_number(text, DRAIN_LIMIT_S)


def _port(text: str) -> int:
    return _whole_number(text, 65_535)


def _whole_number(text: str, most: int) -> int:
    # int() also takes spaces, signs, underscores and the digits of other scripts.
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= most:
        raise WrongValueError
    return int(text)


def _public_urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip().rstrip("/") for url in text.split(","))
    for url in urls:
        if http_url(url).path:
            raise WrongValueError("only scheme and host, no path")
    return urls


def _long_secret(text: str) -> str:
    if len(text) < 32:
        raise WrongValueError(f"{len(text)} characters are too few")
    return text


def _account_sid(text: str) -> str:
    if re.fullmatch(r"AC[0-9a-fA-F]{32}", text) is None:
        raise WrongValueError
    return text


def _twilio_token(text: str) -> str:
    if len(text) != 32 or not text.isalnum():
        raise WrongValueError
    return text


def _printable(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise WrongValueError
    return text


def credential(text: str) -> str:
    """Read a key or a token, which travels in a header. Raises WrongValueError."""
    return _hidden(_printable(text))


def _hidden(text: str) -> str:
    """Read a secret of any characters that is long enough to be kept out of the log."""
    if len(text) < SECRET_CHARS_MIN:
        raise WrongValueError(f"{len(text)} characters are too few")
    return text


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise WrongValueError
    return text == "1"


def _base_url(text: str) -> str:
    private_url(text)
    return text.rstrip("/")


def _database_url(text: str) -> str:
    """Turso's own scheme means https (libsql.md 8)."""
    parts = private_url(f"https://{text.removeprefix('libsql://')}" if text.startswith("libsql://") else text)
    if parts.path.strip("/"):
        raise WrongValueError("only scheme and host, no path")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _region(text: str) -> str:
    """Read a code of Fly's, in capitals too."""
    return _named(text, region_code)


def _regions(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_region(code.strip()) for code in text.split(",")))


def _azure_region(text: str) -> str:
    """Read a name of Azure's, also as its portal shows it: Sweden Central."""
    return _named(text.replace(" ", ""), one_of(AZURE_REGIONS))


def _named(text: str, parse: Callable[[str], str]) -> str:
    """Read a region. The mistake repeats an unknown one that looks like a name, for then it is no secret."""
    try:
        return parse(text.lower())
    except WrongValueError as error:
        if re.fullmatch("[a-zA-Z0-9-]{1,20}", text) is None:
            raise WrongValueError("there is no such region") from None
        raise WrongValueError(f"there is no region {text!r}", suggestion=error.suggestion) from None


# --- The server ---------------------------------------------------------------------------------

PUBLIC_URL = Field(
    "NEARCALL_PUBLIC_URL",
    _public_urls,
    "the URL by which Twilio reaches this server, such as https://calls.example.com with your own host",
)
_A_SECRET = "at least 32 random characters (openssl rand -hex 32)"  # noqa: S105  what one looks like
SECRET = Field("NEARCALL_SECRET", _long_secret, _A_SECRET)
ADMIN_TOKEN = Field("NEARCALL_ADMIN_TOKEN", _long_secret, _A_SECRET, "")
PORT = Field("PORT", _port, "a port number such as 8080", 8080)
CALLS = Field("NEARCALL_CALLS_MAX", calls_max, f"a number from 1 to {CALLS_LIMIT}", CALLS_MAX)
SETUPS = Field("NEARCALL_SETUPS_MAX", calls_max, f"a number from 1 to {CALLS_LIMIT}", SETUPS_MAX)
LAG = Field("NEARCALL_LAG_MAX_MS", _lag, f"milliseconds, from 1 to {LAG_LIMIT_MS}", LAG_MAX_MS / 1000)
DRAIN = Field("NEARCALL_DRAIN_S", drain_s, f"seconds, from 1 to {DRAIN_LIMIT_S}", DRAIN_S)
PRACTICE = Field("NEARCALL_PRACTICE", _switch, "1, or left out", default=False)
DEPLOYED: Field[tuple[str, ...]] = Field(
    "NEARCALL_REGIONS",
    _regions,
    f"codes of Fly's regions with commas between them, of {', '.join(REGIONS)}",
    tuple(HOMES),
)
CONFIG = Field("NEARCALL_CONFIG", str, "the path of a TOML file", "")
DATA_DIR = Field("NEARCALL_DATA_DIR", Path, "a directory", Path("data"))

# --- Fly ----------------------------------------------------------------------------------------

REGION = Field("FLY_REGION", _region, f"one of {', '.join(REGIONS)}")
MACHINE = Field("FLY_MACHINE_ID", _printable, "the machine's id", "")

# --- Twilio -------------------------------------------------------------------------------------

ACCOUNT_SID = Field("TWILIO_ACCOUNT_SID", _account_sid, "AC and 32 hexadecimal digits")
_A_TOKEN = "the 32 characters of the auth token in Twilio's console"  # noqa: S105  what one looks like
AUTH_TOKEN = Field("TWILIO_AUTH_TOKEN", _twilio_token, _A_TOKEN)
OTHER_AUTH_TOKENS = MappingProxyType(
    {
        region: Field(f"TWILIO_AUTH_TOKEN_{region.upper()}", _twilio_token, _A_TOKEN, "")
        for region in ("ie1", "au1")
    }
)
"""By Twilio region."""

# --- Backends -----------------------------------------------------------------------------------

_A_KEY = f"the key itself, {SECRET_CHARS_MIN} characters or more"


def key(name: str) -> Field[str]:
    """The variable that has the key of a backend."""
    return Field(name, credential, _A_KEY, "")


OPENAI_BASE_URL = Field("OPENAI_BASE_URL", _base_url, "a URL such as https://host/v1", "")
VOICELIVE_ENDPOINT = Field(
    "AZURE_VOICELIVE_ENDPOINT",
    _base_url,
    "a URL such as https://NAME.services.ai.azure.com, with the name of your resource",
)
VOICELIVE_KEY = key("AZURE_VOICELIVE_API_KEY")
VOICELIVE_MODEL = Field("AZURE_VOICELIVE_MODEL", _printable, "the name of a model", "")
VOICELIVE_REGION = Field("AZURE_VOICELIVE_REGION", _azure_region, f"one of {', '.join(AZURE_REGIONS)}", "")
AZURE_TENANT = Field("AZURE_TENANT_ID", _printable, "the id of the directory that the service principal is in")
AZURE_CLIENT = Field("AZURE_CLIENT_ID", _printable, "the id of the service principal's application")
AZURE_CLIENT_SECRET = Field("AZURE_CLIENT_SECRET", _hidden, _A_KEY, "")
IDENTITY_SECRETS = (
    AZURE_CLIENT_SECRET,
    Field("AZURE_CLIENT_CERTIFICATE_PASSWORD", _hidden, _A_KEY, ""),
    Field("AZURE_PASSWORD", _hidden, _A_KEY, ""),
)
"""What opens Entra ID. azure-identity reads them itself."""

# --- Zones' databases ---------------------------------------------------------------------------


def database_url(prefix: str) -> Field[str]:
    """The variable that names the database of a zone."""
    return Field(f"{prefix}_URL", _database_url, "a URL such as libsql://calls-acme.turso.io", "")


def database_token(prefix: str) -> Field[str]:
    """The variable that has the token of a zone's database."""
    return Field(f"{prefix}_TOKEN", credential, "the token that 'turso db tokens create' prints", "")


def database_token_file(prefix: str) -> Field[str]:
    """The variable that names a file with the token of a zone's database."""
    return Field(f"{prefix}_TOKEN_FILE", str, "the path of a file that has the token", "")


DECLARED: tuple[Field[Any], ...] = (
    *(PUBLIC_URL, SECRET, ADMIN_TOKEN, PORT, CALLS, SETUPS, LAG, DRAIN, PRACTICE, DEPLOYED, CONFIG, DATA_DIR),
    *(ACCOUNT_SID, AUTH_TOKEN, *OTHER_AUTH_TOKENS.values()),
    *(key("OPENAI_API_KEY"), key("OPENAI_EU_API_KEY"), OPENAI_BASE_URL),
    *(VOICELIVE_ENDPOINT, VOICELIVE_KEY, VOICELIVE_MODEL, VOICELIVE_REGION),
    *(
        of(prefix)
        for prefix in ("TURSO", "TURSO_EU")
        for of in (database_url, database_token, database_token_file)
    ),
)
"""Every variable that an operator may set, with what ships. More zones and backends bring more."""
