"""Entra ID tokens, for backends that take them instead of a key: one at hand, renewed long before it expires.

    azure-identity -> a task that asks, and again at half of a token's life -> a token in memory -> the dialler

The dialler takes what is in memory and never waits for Azure. While Entra ID cannot be asked the old token is used
until it expires; from then on there is none, and `why` says so.

Every attempt has a credential of its own, closed when it is over. One that is kept answers from its cache, says
nothing when a renewal fails, and holds a connection open for the hour between two requests.

Which backend wants a token, and what becomes of calls without one, is decided elsewhere. The environment says who
we are to Entra ID; azure-identity reads that itself.
"""

import asyncio
import importlib.util
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.wire.dialect import NoKey

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential

SCOPE = "https://ai.azure.com/.default"
"""Of Azure AI resources, Voice Live among them."""

RENEW_AT = 0.5
"""Share of a token's life, for one that comes without a time to renew it. Tokens live an hour and more, so no call
notices when Entra ID is out for half an hour."""
RETRY_FIRST_S = 2.0
"""After a failure; then twice as long each time. Also the least time between any two requests."""
RETRY_MAX_S = 30.0
"""How long there may be no token after Entra ID is back. Two requests a minute are no burden to it."""
LOOK_S = 1.0
"""How often it is looked whether a token is due. One long sleep would not notice that the clock was set, or that
the Machine was suspended."""

CONNECT_LIMIT_S = 4.0
"""As for a backend. Whether there is a metadata service at all, azure-identity finds out within a second."""
READ_LIMIT_S = 10.0
"""For an answer; Entra ID takes well under a second, a managed identity's first token a few."""
ATTEMPT_LIMIT_S = 20.0
"""For all of it together: the credentials are tried one after the other."""

WHY_CHARS_MAX = 500
PER_CREDENTIAL_CHARS_MAX = 200

_PACKAGES = {"azure.identity": "azure-identity", "aiohttp": "aiohttp"}
"""What has to be there, by the name it is imported as."""
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*", re.ASCII)
"""RFC 6750's b64token: all that may follow `Bearer` in a header."""
_SECRET = re.compile(r"[A-Za-z0-9\-._~+=]{40,}")
"""Longer than any id of Azure's (36) and any word: a token or a client secret, that somebody's answer repeats."""
_ADVICE = re.compile(r"\s*\b(?:See|Visit)\b[^:]*?:?\s*https?://\S+")
"""Where azure-identity's manual is; in the place of nearly every reason."""
_TRACE = re.compile(r"\s*Trace ID:.*")
"""Different each time: the same failure would be another line in the log at each attempt."""

_log = logging.getLogger("nearcall.backends")


class EntraNotInstalled(Exception):  # noqa: N818  says what is wrong
    """The optional packages are not there. `str()` says how to install them."""


class NoToken(NoKey):
    """There is no token that a backend would take. `str()` says why, for an operator, and holds no secret."""


@dataclass(slots=True)
class TokenLife:
    """One token: whether it is still good, and when to ask for the next. Pure.

    `now` is Unix time in seconds: Entra ID says in Unix time when a token expires.
    """

    token: str = field(default="", repr=False)
    expires_on: float = float("-inf")
    ask_at: float = float("-inf")
    trouble: str | None = None
    """Why the last attempt failed; None when it did not."""
    _asked_at: float = float("-inf")
    _retry_s: float = RETRY_FIRST_S

    def due(self, now: float) -> bool:
        """True when it is time to ask."""
        return now >= self.ask_at or now < self._asked_at  # a clock that was set back, else, would stop the asking

    def got(self, now: float, token: str, expires_on: float, refresh_on: float | None) -> None:
        """A token came; `refresh_on` is when Entra ID wants it renewed. One that cannot be used is a failure."""
        if expires_on <= now:
            self.failed(now, f"the token that came expired at {_utc(expires_on)}; is this machine's clock right?")
            return
        if not _TOKEN.fullmatch(token):
            self.failed(now, "what came as a token is none")
            return
        renew_at = now + (expires_on - now) * RENEW_AT
        if refresh_on is not None and refresh_on < expires_on:
            renew_at = refresh_on
        self.token, self.expires_on = token, expires_on
        self.ask_at, self._asked_at = max(renew_at, now + RETRY_FIRST_S), now
        self.trouble, self._retry_s = None, RETRY_FIRST_S

    def failed(self, now: float, why: str) -> None:
        """An attempt brought no token. The old one stays."""
        self.trouble = why
        self.ask_at, self._asked_at = now + self._retry_s, now
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def why(self, now: float) -> str | None:
        """Why there is no token; None when there is one."""
        if now < self.expires_on:
            return None
        trouble = self.trouble or "it has not answered yet"
        if self.token:
            return f"Entra ID's token expired at {_utc(self.expires_on)}, and there is no new one: {trouble}"
        return f"no token from Entra ID: {trouble}"

    def current(self, now: float) -> str:
        """The token. Raises NoToken."""
        if (why := self.why(now)) is not None:
            raise NoToken(why)
        return self.token


class EntraTokens:
    """Keeps a token for SCOPE at hand. One serves every backend. Ask it from the event loop's thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time, look_s: float = LOOK_S) -> None:
        """`clock`: Unix time."""
        self._clock = clock
        self._look_s = look_s
        self._life = TokenLife()
        self._logged: tuple[bool, str] | None = None
        self.answered = asyncio.Event()
        """Set once the first attempt is over, with or without a token."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask; returns at once. Raises EntraNotInstalled."""
        for module, package in _PACKAGES.items():
            if not _is_there(module):
                raise EntraNotInstalled(
                    f"Entra ID needs the package {package}, which is not there: pip install 'nearcall[entra]'"
                )
        self._task = asyncio.create_task(self._run(), name="entra")

    async def stop(self) -> None:
        """Stop asking. Does not wait for Azure, and leaves nothing open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def current(self) -> str:
        """A token to dial with, as it follows `Bearer`. Raises NoToken. Never waits."""
        return self._life.current(self._clock())

    @property
    def asks_at(self) -> float:
        """When the next token will be asked for, in Unix time."""
        return self._life.ask_at

    @property
    def why(self) -> str | None:
        """Why there is no token, for operators and a backend's circuit; None while there is one."""
        return self._life.why(self._clock())

    async def _run(self) -> None:
        while True:
            if self._life.due(self._clock()):
                await self._ask()
                self.answered.set()
            self._tell()
            await asyncio.sleep(self._look_s)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ATTEMPT_LIMIT_S):
                # In a thread: to import it and to make its TLS settings takes most of a second.
                credential = await asyncio.to_thread(_credential)
                try:
                    found = await credential.get_token_info(SCOPE)
                finally:
                    await credential.close()
            self._life.got(self._clock(), found.token, found.expires_on, found.refresh_on)
        except TimeoutError:
            self._life.failed(self._clock(), f"no answer within {ATTEMPT_LIMIT_S:g} s")
            return
        except Exception as error:  # noqa: BLE001 - a library's, of which any kind is a failed attempt and no more
            self._life.failed(self._clock(), in_words(error))
            return
        if self._life.trouble is None:
            self._logged = None
            _log.info("entra_token_received", extra={"expires": _utc(self._life.expires_on)})

    def _tell(self) -> None:
        """Log that there is trouble, and again when it is another one or has cost us the token."""
        trouble, why = self._life.trouble, self.why
        if trouble is None or self._logged == (why is None, trouble):
            return
        self._logged = (why is None, trouble)
        if why is None:
            expires = _utc(self._life.expires_on)
            _log.warning("entra_token_not_renewed", extra={"error": trouble, "expires": expires})
        else:
            _log.error("entra_token_missing", extra={"error": why})


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is in
        return False


def _credential() -> "DefaultAzureCredential":
    """What the environment says we are: a service principal, a workload's identity or a managed one.

    Not somebody's login on a developer's machine: a server must not take another identity when its own fails, and
    nothing ends an `az` that hangs when the attempt that started it is over. AZURE_TOKEN_CREDENTIALS narrows it
    further. Raises ValueError.
    """
    from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415  optional, and slow to import

    # Below that it names accounts, and repeats whole answers: one that lacks an expiry has the token in it. We log
    # each failure ourselves, made from the same words.
    logging.getLogger("azure").setLevel(logging.ERROR)
    try:
        return DefaultAzureCredential(
            exclude_shared_token_cache_credential=True,
            exclude_visual_studio_code_credential=True,
            exclude_cli_credential=True,
            exclude_powershell_credential=True,
            exclude_developer_cli_credential=True,
            connection_timeout=CONNECT_LIMIT_S,
            read_timeout=READ_LIMIT_S,
            retry_total=0,  # TokenLife says when
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"the AZURE_ settings in the environment cannot be used: {error}") from error


def in_words(error: Exception) -> str:
    """A failure in one line: what each credential said, without advice, whole answers and secrets."""
    text = str(error) or type(error).__name__
    _, _, attempts = text.partition("Attempted credentials:\n\t")
    # An attempt's first line is the reason. On the others are a page of the manual, and the body of the answer.
    reasons = [attempt.splitlines()[0] for attempt in (attempts or text).split("\n\t")]
    return "; ".join(map(_plain, reasons))[:WHY_CHARS_MAX]


def _plain(reason: str) -> str:
    reason = _SECRET.sub("***", _TRACE.sub("", _ADVICE.sub("", reason)))
    return re.sub(r"^(\w+): \1 authentication unavailable\. ", r"\1: ", reason).strip(" .")[
        :PER_CREDENTIAL_CHARS_MAX
    ]


def _utc(instant: float) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d %H:%M:%S} UTC"
