"""`nearcall backends check`, as an operator meets it: the real command, and backends of this machine."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from app.sim.realtime.faults import NO_FAULTS, Faults
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Reply, ReplyError, Script, parrot
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.world.process import free_port
from tests.bridge.azure import Clock, app_service, jwt, said
from tests.commands import Ran, run_nearcall

pytestmark = pytest.mark.anyio

Check = Callable[..., Awaitable[Ran]]


@pytest.fixture
async def backend() -> AsyncIterator[RealtimeSimulator]:
    async with RealtimeSimulator(api_key="sk-good-one") as backend:
        yield backend


@pytest.fixture
async def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: RealtimeSimulator) -> Check:
    """Runs `nearcall backends check ...` in an empty directory; `openai` is the simulator."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_EU_API_KEY", "AZURE_VOICELIVE_ENDPOINT", "AZURE_VOICELIVE_API_KEY", "NEARCALL_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    async def check(*arguments: str, config: str = "", **environ: str) -> Ran:
        given = {"OPENAI_API_KEY": "sk-good-one", "OPENAI_BASE_URL": backend.url, **environ}
        if config:
            file = tmp_path / "nearcall.toml"
            await asyncio.to_thread(file.write_text, config, encoding="utf-8")
            given["NEARCALL_CONFIG"] = str(file)
        async with asyncio.timeout(20):
            return await asyncio.to_thread(run_nearcall, "backends", "check", *arguments, **given)

    return check


# --- It works ----------------------------------------------------------------------------------------


async def test_backend_that_is_well_is_told_with_how_long_it_took(check: Check) -> None:
    ran = await check()
    _, tried, *others = ran.out.splitlines()
    name, kind, model, audio, opened, configured, first_audio, outcome = tried.split()
    assert (ran.code, ran.err) == (0, "")
    assert (name, kind, model, audio, outcome) == ("openai", "openai", "gpt-realtime-2.1", "g711", "ok")
    assert all(time.isdigit() for time in (opened, configured, first_audio))
    assert [(line.split()[0], line.split("  ")[-1].strip()) for line in others] == [
        ("openai-eu", "OPENAI_EU_API_KEY is not set"),
        ("voicelive", "AZURE_VOICELIVE_ENDPOINT is not set"),
    ]


async def test_backend_is_only_configured_when_it_should_not_speak(
    check: Check, backend: RealtimeSimulator
) -> None:
    ran = await check("--no-speak", "--json")
    [told] = ran.objects
    assert (ran.code, told["ok"], told["first_audio_ms"]) == (0, True, None)
    session = await backend.session(0)
    assert [each.type for each in session.received] == ["session.update"]


async def test_named_backend_alone_is_tried(check: Check) -> None:
    config = '[backends.other]\nkind = "openai"\nurl = "http://127.0.0.1:9/v1"\nkey = "OTHER"\n'
    ran = await check("openai", "--json", config=config, OTHER="key-of-the-other")
    assert (ran.code, [told["backend"] for told in ran.objects]) == (0, ["openai"])


# --- It does not -------------------------------------------------------------------------------------


QUOTA = Reply(status="failed", error=ReplyError("insufficient_quota", "insufficient_quota", "No credit."))
LIMIT = Reply(status="failed", error=ReplyError("rate_limit_exceeded", "rate_limit_exceeded", "Wait."))


@pytest.mark.parametrize(
    ("faults", "script", "problem", "hint"),
    [
        (
            Faults(refuse_upgrade=403),
            parrot,
            "access was refused (HTTP 403)",
            "OPENAI_API_KEY does not have a key",
        ),
        (Faults(refuse_upgrade=429), parrot, "over its quota (HTTP 429)", "Its quota for this minute is used up"),
        (
            Faults(refuse_upgrade=404),
            parrot,
            "refused (HTTP 404)",
            "right? If so: There has to be a model gpt-",
        ),
        (
            Faults(echo_format="audio/pcm"),
            parrot,
            "formats audio/pcm@24000",
            'It does not speak "g711": `audio` of [backends.openai] in the file of NEARCALL_CONFIG should be',
        ),
        (Faults(end="abort"), parrot, "it closed the connection (1006)", "can it be reached from here?"),
        (
            Faults(error_code="model_not_found", error_after="session.created"),
            parrot,
            "the error model_not_found",
            "There has to be a model gpt-realtime-2.1 for this key",
        ),
        (
            NO_FAULTS,
            lambda _: QUOTA,
            "it could not speak: insufficient_quota",
            "behind OPENAI_API_KEY has no credit",
        ),
        (
            NO_FAULTS,
            lambda _: Reply(),
            "it answered without audio. Is gpt-realtime-2.1 a model that speaks? If so: `voice` of [backends.",
            "its server has to allow audio as output.",
        ),
        (
            Faults(refuse_upgrade=503),
            parrot,
            "it is out of order, or what is in front of it (HTTP 503)",
            "If so, wait, or ask whoever runs 127.0.0.1",
        ),
        (NO_FAULTS, lambda _: LIMIT, "it could not speak: rate_limit_exceeded", "wait, raise it, or spread calls"),
    ],
    ids=lambda value: None if callable(value) or isinstance(value, Faults) else str(value)[:30],
)
async def test_what_is_wrong_is_said_in_words_and_what_to_do_about_it(
    check: Check, backend: RealtimeSimulator, faults: Faults, script: Script, problem: str, hint: str
) -> None:
    backend.faults, backend.script = faults, script
    ran = await check()
    assert ran.code == 1
    assert "not usable" in ran.out
    [told] = ran.err.splitlines()
    assert told.startswith("nearcall: openai: ")
    assert problem in told
    assert hint in told


async def test_model_that_the_region_of_voice_live_does_not_have_is_named(check: Check) -> None:
    async with VoiceLiveSimulator(api_key="key-of-azure", models=("gpt-realtime",)) as resource:
        ran = await check(
            "voicelive", AZURE_VOICELIVE_ENDPOINT=resource.url, AZURE_VOICELIVE_API_KEY="key-of-azure"
        )
        assert (
            "the error invalid_model about model. The resource's region does not have gpt-realtime-2.1" in ran.err
        )
        found = await check(
            "voicelive",
            AZURE_VOICELIVE_ENDPOINT=resource.url,
            AZURE_VOICELIVE_API_KEY="key-of-azure",
            AZURE_VOICELIVE_MODEL="gpt-realtime",
        )
        assert (found.code, found.err) == (0, "")


async def test_identity_without_its_role_is_told(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_service(monkeypatch, Clock()), VoiceLiveSimulator(tokens=()) as resource:
        ran = await check("voicelive", AZURE_VOICELIVE_ENDPOINT=resource.url)
    assert "The identity needs the role 'Cognitive Services User' or 'Foundry User' on 127.0.0.1." in ran.err
    assert jwt("1") not in ran.out + ran.err


async def test_resource_without_credit_is_named_when_there_is_no_key(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(error_code="insufficient_quota", error_after="session.created")
    async with (
        app_service(monkeypatch, Clock()),
        VoiceLiveSimulator(tokens=(jwt("1"),), faults=faults) as resource,
    ):
        ran = await check("voicelive", AZURE_VOICELIVE_ENDPOINT=resource.url)
    assert "The account behind 127.0.0.1 has no credit left." in ran.err


async def test_identity_that_gets_no_token_is_told(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_service(monkeypatch, Clock()) as azure:
        azure.answer = lambda: said({"error": {"code": "ServerError", "message": "no"}}, 500)
        ran = await check("voicelive", AZURE_VOICELIVE_ENDPOINT="http://127.0.0.1:9")
    assert ran.code == 1
    assert ran.err.startswith("nearcall: voicelive: no token from Entra ID: ")
    assert "Set AZURE_VOICELIVE_API_KEY, or an identity" in ran.err
    assert "can it be reached" not in ran.err


async def test_wrong_key_is_told_with_its_variable_and_never_shown(check: Check) -> None:
    ran = await check(OPENAI_API_KEY="sk-wrong")
    assert ran.err.startswith(
        "nearcall: openai: the key was refused (HTTP 401). OPENAI_API_KEY does not have a key"
    )
    assert "sk-wrong" not in ran.out + ran.err


async def test_address_where_nobody_is_is_told(check: Check) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    ran = await check(OPENAI_BASE_URL=url)
    assert f"Is {url} right, and can it be reached from here?" in ran.err


async def test_setting_that_the_backend_does_not_take_is_told_with_its_place(check: Check) -> None:
    ran = await check(config='[backends.openai]\nvoice = "nova"\n')
    assert "invalid_value about session.audio.output.voice. It does not take a setting of" in ran.err
    assert "[backends.openai] or [default] in the file of NEARCALL_CONFIG" in ran.err


async def test_server_that_refuses_the_format_is_told_as_one_that_speaks_another(check: Check) -> None:
    async with RealtimeSimulator(g711=False) as only_pcm:
        ran = await check(OPENAI_BASE_URL=only_pcm.url)
        assert 'invalid_value about session.audio.input.format.type. It does not speak "g711": ' in ran.err
        narrow = await check(OPENAI_BASE_URL=only_pcm.url, config='[backends.openai]\naudio = "pcm16-8k"\n')
        assert 'about session.audio.input.format.rate. It does not speak "pcm16-8k": ' in narrow.err
        found = await check(OPENAI_BASE_URL=only_pcm.url, config='[backends.openai]\naudio = "pcm16-24k"\n')
        assert (found.code, found.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "told"),
    [
        (("opnai",), {}, 2, "did you mean openai?"),
        (("openai-eu",), {}, 1, "openai-eu is not configured: OPENAI_EU_API_KEY is not set."),
        (
            (),
            {"OPENAI_API_KEY": ""},
            1,
            "No backend is configured: OPENAI_API_KEY is not set (openai), OPENAI_EU_API_KEY is not set (",
        ),
        ((), {"AZURE_VOICELIVE_API_KEY": "key-of-azure"}, 1, "AZURE_VOICELIVE_ENDPOINT is missing."),
        ((), {"OPENAI_API_KEY": "sk-..."}, 1, "OPENAI_API_KEY still has the placeholder of the documentation."),
        (
            ("voicelive",),
            {"AZURE_VOICELIVE_ENDPOINT": "https://NAME.services.ai.azure.com"},
            1,
            "AZURE_VOICELIVE_ENDPOINT still has the placeholder of the documentation.",
        ),
    ],
)
async def test_misuse_has_a_clear_answer(
    check: Check, arguments: tuple[str, ...], environ: dict[str, str], code: int, told: str
) -> None:
    ran = await check(*arguments, **environ)
    assert (ran.code, told in ran.err) == (code, True)
