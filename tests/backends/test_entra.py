"""Tokens of Entra ID: when to ask, as arithmetic; the real azure-identity against stand-ins of what it asks."""

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.backends import entra
from app.backends.entra import (
    RETRY_FIRST_S,
    RETRY_MAX_S,
    WHY_CHARS_MAX,
    EntraNotInstalled,
    EntraTokens,
    NoToken,
    TokenLife,
)
from app.world.process import free_port
from tests.bridge.azure import (
    CLIENT_SECRET,
    HEADER_SECRET,
    HOUR_S,
    IN_TIME_S,
    Answer,
    Clock,
    app_service,
    entra_id,
    jwt,
    said,
)
from tests.bridge.peers import LOOPS
from tests.waiting import a_moment

# --- When to ask, and what is good: without a clock --------------------------------------------------


def test_there_is_no_token_before_the_first_and_it_is_due_at_once() -> None:
    life = TokenLife()
    assert life.due(0.0)
    assert life.why(0.0) == "no token from Entra ID: it has not answered yet"
    with pytest.raises(NoToken, match="it has not answered yet"):
        life.current(0.0)


@pytest.mark.parametrize(
    ("now", "expires_on", "refresh_on", "ask_at"),
    [
        pytest.param(1000.0, 4600.0, None, 2800.0, id="half of its life"),
        pytest.param(4000.0, 4600.0, None, 4300.0, id="half of what is left of a cached one"),
        pytest.param(1000.0, 4600.0, 1900.0, 1900.0, id="when Entra ID says"),
        pytest.param(1000.0, 4600.0, 4600.0, 2800.0, id="not when Entra ID says too late"),
        pytest.param(1000.0, 4600.0, 900.0, 1002.0, id="not at once again"),
        pytest.param(1000.0, 1001.0, None, 1002.0, id="not many times a second"),
    ],
)
def test_token_is_renewed(now: float, expires_on: float, refresh_on: float | None, ask_at: float) -> None:
    life = TokenLife()
    life.got(now, "t0", expires_on, refresh_on)
    assert life.ask_at == ask_at
    assert not life.due(ask_at - 0.001)
    assert life.due(ask_at)


def test_token_is_good_until_it_expires_whatever_fails_meanwhile() -> None:
    life = TokenLife()
    life.got(0.0, "t0", HOUR_S, None)
    life.failed(1800.0, "it said 500")
    assert life.current(3599.9) == "t0"
    assert life.why(3599.9) is None
    with pytest.raises(NoToken) as no_token:
        life.current(HOUR_S)
    assert str(no_token.value) == life.why(HOUR_S)
    assert life.why(HOUR_S) == (
        "Entra ID's token expired at 1970-01-01 01:00:00 UTC, and there is no new one: it said 500"
    )


def test_failures_are_retried_ever_later_until_a_token_comes() -> None:
    life, now, waits = TokenLife(), 0.0, []
    for _ in range(6):
        life.failed(now, "no")
        waits.append(life.ask_at - now)
        now = life.ask_at
    assert waits == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert (waits[0], waits[-1]) == (RETRY_FIRST_S, RETRY_MAX_S)
    life.got(now, "t0", now + HOUR_S, None)
    life.failed(now, "no")
    assert life.ask_at == now + RETRY_FIRST_S


@pytest.mark.parametrize("token", ["", "two words", "a\r\nb", "a\n", "ä", "=", "Bearer x"])
def test_what_may_not_stand_in_a_header_is_no_token(token: str) -> None:
    life = TokenLife()
    life.got(0.0, "t0", HOUR_S, None)
    life.got(1800.0, token, 3 * HOUR_S, None)
    assert life.current(1801.0) == "t0"
    assert life.trouble == "what came as a token is none"
    assert life.ask_at == 1800.0 + RETRY_FIRST_S


def test_token_that_comes_expired_is_a_failure_that_names_the_clock() -> None:
    life = TokenLife()
    life.got(HOUR_S, "t0", HOUR_S, None)
    assert life.why(HOUR_S) == (
        "no token from Entra ID: the token that came expired at 1970-01-01 01:00:00 UTC; "
        "is this machine's clock right?"
    )


def test_clock_that_is_set_back_does_not_stop_the_asking() -> None:
    life = TokenLife()
    life.failed(2 * HOUR_S, "no")
    assert not life.due(2 * HOUR_S + 1)
    assert life.due(HOUR_S)


def test_token_is_not_in_a_repr() -> None:
    life = TokenLife()
    life.got(0.0, "not-to-be-seen", HOUR_S, None)
    assert "not-to-be-seen" not in repr(life)


# --- The real azure-identity -------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(autouse=True)
def no_identity_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who we are nor where, and no address outside of this machine."""
    for name in os.environ:
        if name.startswith(("AZURE_", "IDENTITY_", "IMDS_", "MSI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")


@pytest.fixture(autouse=True)
def the_librarys_log_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("azure")
    level = logger.level
    yield
    logger.setLevel(level)


@asynccontextmanager
async def started(clock: Clock) -> AsyncIterator[EntraTokens]:
    tokens = EntraTokens(clock=clock, look_s=0.001)
    tokens.start()
    try:
        yield tokens
    finally:
        await tokens.stop()


async def until(condition: Callable[[], object]) -> None:
    """The test's own time-out ends the waiting."""
    while not condition():
        await a_moment()


async def another_attempt(tokens: EntraTokens, clock: Clock) -> None:
    """Due now, and over."""
    due = tokens.asks_at
    clock.ahead_s += max(0.0, due - clock())
    await until(lambda: tokens.asks_at != due)


async def trouble(tokens: EntraTokens) -> str:
    """What the operator reads after the first attempt."""
    await until(lambda: "not answered yet" not in (tokens.why or ""))
    with pytest.raises(NoToken) as no_token:
        tokens.current()
    assert str(no_token.value) == tokens.why
    return str(no_token.value)


# --- A token, and the next ---------------------------------------------------------------------------


async def test_managed_identity_gives_a_token_for_azure_ai(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure, started(clock) as tokens:
        await until(lambda: tokens.why is None)
        assert tokens.current() == jwt("1")
    [request] = azure.asked
    method, target, _ = request.split(" ", 2)
    assert method == "GET"
    assert urlsplit(target).path == "/msi/token"
    assert parse_qs(urlsplit(target).query) == {
        "api-version": ["2019-08-01"],
        "resource": ["https://ai.azure.com"],
    }
    assert f"X-IDENTITY-HEADER: {HEADER_SECRET}\r\n" in request


async def test_service_principal_gets_a_token_for_azure_ai(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with entra_id(monkeypatch, clock) as azure, started(clock) as tokens:
        await until(lambda: tokens.why is None)
        assert tokens.current() == jwt("1")
    [request] = azure.asked
    head, _, form = request.partition("\r\n\r\n")
    assert head.startswith("POST /a-tenant/oauth2/v2.0/token HTTP/1.1\r\n")
    assert parse_qs(form) == {
        "client_id": ["a-client"],
        "client_secret": [CLIENT_SECRET],
        "grant_type": ["client_credentials"],
        "scope": ["https://ai.azure.com/.default"],
    }


async def test_asking_takes_no_time_from_whoever_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure, started(clock) as tokens:
        azure.hang = True
        await until(lambda: azure.asked)
        with pytest.raises(NoToken, match="no token from Entra ID: it has not answered yet"):
            tokens.current()


async def test_token_is_renewed_at_half_of_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure, started(clock) as tokens:
        await until(lambda: tokens.why is None)
        clock.ahead_s = azure.life_s / 2 + 1
        assert tokens.current() == jwt("1")
        await until(lambda: tokens.current() == jwt("2"))
        clock.ahead_s += azure.life_s / 2 + 1
        await until(lambda: tokens.current() == jwt("3"))


async def test_token_of_seconds_is_renewed_in_time_by_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entra, "RETRY_FIRST_S", 0.2)
    async with app_service(monkeypatch, Clock()) as azure:
        azure.life_s = 3.0
        gaps = []
        async with started(Clock()) as tokens:
            await until(lambda: tokens.why is None)
            while azure.given < 2:
                gaps.append(tokens.why)
                await a_moment()
            await until(lambda: tokens.current() == jwt("2"))
        assert set(gaps) == {None}


# --- When it cannot be had ---------------------------------------------------------------------------

NO_EXPIRY = said({"access_token": jwt("lost"), "resource": "https://ai.azure.com"})

BAD: list[Any] = [
    pytest.param(said({"message": "boom"}, 500), ": (None) boom", id="500"),
    pytest.param((500, "text/plain", b"oops"), 'Unexpected content type "text/plain"', id="500 without JSON"),
    pytest.param((200, "text/html", b"<h1>Hotel"), 'Unexpected content type "text/html"', id="a portal"),
    pytest.param((200, "application/json", b"{"), "Failed to deserialize JSON", id="broken JSON"),
    pytest.param((200, "application/json", b""), "No token received", id="nothing"),
    pytest.param((200, "application/json", b"\xff\xfe"), "Failed to deserialize JSON", id="no text"),
    pytest.param(NO_EXPIRY, "Unexpected response \"{'access_token': '****'", id="no expiry"),
    pytest.param(said(jwt("lost")), 'Unexpected response "***"', id="a token alone"),
    pytest.param(said([]), "No token received", id="an empty list"),
    pytest.param(said(5), "argument of type 'int'", id="a number"),
    pytest.param(
        said({"access_token": 5, "expires_on": "9999999999", "resource": "r"}), "expected string", id="token 5"
    ),
    pytest.param(
        said({"access_token": "a\r\nb", "expires_on": "9999999999", "resource": "r"}), "is none", id="two lines"
    ),
    pytest.param(
        said({"access_token": jwt("lost"), "expires_on": "1", "resource": "r"}), "clock right?", id="expired"
    ),
    pytest.param(
        said({"access_token": jwt("lost"), "expires_on": "soon", "resource": "r"}), "invalid literal", id="soon"
    ),
    pytest.param(None, "Server disconnected", id="it hangs up"),
]


@pytest.mark.parametrize(("answer", "words"), BAD)
async def test_bad_answer_is_told_in_words_and_retried(
    monkeypatch: pytest.MonkeyPatch, answer: Answer | None, words: str
) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure:
        azure.answer = lambda: answer
        async with started(clock) as tokens:
            why = await trouble(tokens)
            assert why.startswith("no token from Entra ID: ")
            assert words in why
            assert "not-to-be-seen" not in why
            assert why.isprintable()
            azure.answer = azure.token
            await another_attempt(tokens, clock)
            assert tokens.current() == jwt("1")


async def test_endpoint_that_does_not_answer_is_given_up_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entra, "READ_LIMIT_S", 0.01)
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure:
        azure.hang = True
        async with started(clock) as tokens:
            assert "Timeout on reading data" in await trouble(tokens)
            await until(lambda: azure.left == [True])
            azure.hang = False
            monkeypatch.setattr(entra, "READ_LIMIT_S", 10.0)
            await another_attempt(tokens, clock)
            assert tokens.current() == jwt("1")


async def test_attempt_as_a_whole_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entra, "ATTEMPT_LIMIT_S", 0.5)
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure:
        azure.hang = True
        async with started(clock) as tokens:
            assert await trouble(tokens) == "no token from Entra ID: no answer within 0.5 s"


async def test_endpoint_where_nobody_is_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock):
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{free_port()}/msi/token")
        async with started(clock) as tokens:
            assert "Cannot connect to host 127.0.0.1" in await trouble(tokens)


async def test_outage_is_bridged_by_the_old_token_until_that_expires(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure, started(clock) as tokens:
        await until(lambda: tokens.why is None)
        azure.answer = lambda: said({"message": "boom"}, 500)
        for _ in range(3):
            await another_attempt(tokens, clock)
        assert len(azure.asked) == 4
        assert tokens.current() == jwt("1")

        clock.ahead_s = HOUR_S + 1
        with pytest.raises(NoToken, match=r"Entra ID's token expired at .* UTC, and there is no new one: .*boom"):
            tokens.current()
        await another_attempt(tokens, clock)
        await until(lambda: "entra_token_missing" in caplog.messages)

        azure.answer = azure.token
        await another_attempt(tokens, clock)
        assert tokens.why is None
        assert tokens.current() == jwt("2")
    told = [(record.levelname, record.message) for record in caplog.records if record.name == "nearcall.backends"]
    assert told == [("WARNING", "entra_token_not_renewed"), ("ERROR", "entra_token_missing")]


async def test_refused_secret_is_told_in_one_line_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    refusal = (
        f"AADSTS7000215: Invalid client secret provided: {CLIENT_SECRET}. Ensure the secret being sent in the "
        "request is the client secret value. Trace ID: 1 Correlation ID: 2 Timestamp: 2026-11-20 16:00:00Z"
    )
    async with entra_id(monkeypatch, clock) as azure:
        azure.answer = lambda: said({"error": "invalid_client", "error_description": refusal}, 401)
        async with started(clock) as tokens:
            why = await trouble(tokens)
    assert why.startswith(
        "no token from Entra ID: EnvironmentCredential: Microsoft Entra ID error '(invalid_client) "
        "AADSTS7000215: Invalid client secret provided: "
    )
    assert CLIENT_SECRET not in why
    assert "Trace ID" not in why


async def test_long_reason_is_cut() -> None:
    attempts = "\n\t".join(f"Credential{n}: {'because ' * 50}" for n in range(5))
    assert len(entra.in_words(RuntimeError(f"No.\nAttempted credentials:\n\t{attempts}"))) == WHY_CHARS_MAX


# --- Settings and packages ---------------------------------------------------------------------------


async def test_environment_that_says_nothing_is_told_without_the_manual() -> None:
    async with asyncio.timeout(IN_TIME_S), started(Clock()) as tokens:
        assert await trouble(tokens) == (
            "no token from Entra ID: EnvironmentCredential: Environment variables are not fully configured"
        )


async def test_each_credential_that_was_tried_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure:
        monkeypatch.delenv("AZURE_TOKEN_CREDENTIALS")
        azure.answer = lambda: (500, "text/plain", b"oops")
        async with started(clock) as tokens:
            assert await trouble(tokens) == (
                "no token from Entra ID: EnvironmentCredential: Environment variables are not fully configured; "
                "WorkloadIdentityCredential: The workload options are not fully configured. Missing required "
                "arguments: 'tenant_id', 'client_id', 'token_file_path'; "
                'ManagedIdentityCredential: Unexpected content type "text/plain"'
            )


@pytest.mark.parametrize("value", ["nonsense", "dev"])
async def test_choice_of_credentials_that_leaves_none_is_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", value)
    async with asyncio.timeout(IN_TIME_S), started(Clock()) as tokens:
        why = await trouble(tokens)
    assert why.startswith("no token from Entra ID: the AZURE_ settings in the environment cannot be used: ")


async def test_certificate_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZURE_TENANT_ID", "a-tenant")
    monkeypatch.setenv("AZURE_CLIENT_ID", "a-client")
    monkeypatch.setenv("AZURE_CLIENT_CERTIFICATE_PATH", "/nowhere/client.pem")
    async with asyncio.timeout(IN_TIME_S), started(Clock()) as tokens:
        why = await trouble(tokens)
    assert "cannot be used: [Errno 2] No such file or directory: '/nowhere/client.pem'" in why


@pytest.mark.parametrize(("module", "package"), [("azure.identity", "azure-identity"), ("aiohttp", "aiohttp")])
async def test_package_that_is_missing_is_named_at_start(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EntraNotInstalled) as missing:
        EntraTokens().start()
    assert str(missing.value) == (
        f"Entra ID needs the package {package}, which is not there: pip install 'nearcall[entra]'"
    )


async def test_nothing_of_azure_at_all_is_a_missing_package_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(EntraNotInstalled, match="azure-identity"):
        EntraTokens().start()


# --- What is left ------------------------------------------------------------------------------------


async def test_stop_does_not_wait_for_a_request_and_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure:
        azure.hang = True
        async with started(clock):
            await until(lambda: azure.asked)
        await until(lambda: azure.left == [True])


async def test_stop_does_not_wait_for_a_request_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with entra_id(monkeypatch, clock) as azure:
        azure.hang = True
        async with started(clock):
            await until(lambda: azure.asked)
        await until(lambda: azure.left == [True])


async def test_stop_without_a_start_is_harmless() -> None:
    await EntraTokens().stop()


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG], ids=["root", "azure"])
async def test_no_secret_is_in_the_log_at_debug_level(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    """Also for who has turned on azure-identity's own log before."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("azure").setLevel(level)
    clock = Clock()
    async with app_service(monkeypatch, clock) as azure:
        azure.answer = lambda: NO_EXPIRY
        async with started(clock) as tokens:
            await trouble(tokens)
            azure.answer = azure.token
            await another_attempt(tokens, clock)
            assert tokens.why is None
    async with entra_id(monkeypatch, clock), started(clock) as tokens:
        await until(lambda: tokens.why is None)
    assert "entra_token_missing" in caplog.messages
    assert caplog.messages.count("entra_token_received") == 2
    everything = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for secret in ("not-to-be-seen", "anna@example.com"):
        assert secret not in everything
