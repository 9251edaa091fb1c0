"""The command line as a stranger meets it: what it prints, what it exits with, what it leaves behind."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app import main as main_module
from app.call.plan import Plan
from app.cli.demo import VOICES
from app.cli.main import app
from app.config import Settings
from app.sim.phone.phone import Phone
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.wav import MULAW_SILENCE, write_wav
from app.world.process import free_port
from tests.cli.servers import (
    ACCOUNT_SID,
    IN_TIME_S,
    KEYS,
    NEARCALL,
    SECRET,
    TOKEN,
    Ran,
    Served,
    environ,
    run,
    server_environ,
    serving,
)
from tests.commands import run_nearcall

pytestmark = pytest.mark.anyio

COMMANDS = ("serve", "demo", "call")
OPTIONS = {
    "serve": ("--host", "--port", "--practice", "--env-file", "--log-level"),
    "demo": ("--port", "--say", "--save", "--data-dir", "--once"),
    "call": (
        "--say",
        "--interrupt-after",
        "--answer-within",
        "--greeting-optional",
        "--from",
        "--to",
        "--public-url",
        "--region",
        "--save",
        "--json",
    ),
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment and a directory without settings, for `run_here`."""
    for name in os.environ.keys() - environ().keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run_here(*arguments: str, **settings: str) -> Ran:
    """As `run`, in the process of the test: for what has to be tried with many values."""
    ran = run_nearcall(*arguments, **settings)
    return Ran(ran.code, ran.out, ran.err)


# --- Help and mistakes -------------------------------------------------------------------------------


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_version_is_the_packages() -> None:
    result = ask("--version")
    assert (result.exit_code, result.stdout) == (0, "nearcall 0.1.0\n")


def test_help_names_every_command() -> None:
    result = ask("--help")
    assert result.exit_code == 0
    assert [command for command in COMMANDS if f" {command} " in result.stdout] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_help_for_each_of_its_options(command: str) -> None:
    result = ask(command, "--help")
    assert result.exit_code == 0
    (group,) = [
        found for found in app.registered_commands if found.callback and found.callback.__name__ == command
    ]
    assert group.callback is not None
    assert group.callback.__doc__
    assert group.callback.__doc__.split("\n")[0][:30] in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("serve", "--nonsense"),
        ("serve", "extra"),
        ("call",),
        ("call", "http://h", "--patience", "0"),
        ("call", "http://h", "--patience", "soon"),
        ("call", "http://h", "--interrupt-after", "-1"),
        ("call", "http://h", "--answer-within", "0"),
        ("call", "http://h", "--interrupt-after", "1"),
        ("call", "http://h", "--region", "Frankfurt"),
        ("call", "http://h", "--region", "fr\n"),
        ("demo", "--port", "65536"),
        ("serve", "--port", "0"),
    ],
)
def test_wrong_command_line_is_status_2(arguments: tuple[str, ...]) -> None:
    assert ask(*arguments).exit_code == 2


def test_log_level_that_is_none_is_status_2_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server_environ(tmp_path, 8080).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    result = ask("serve", "--log-level", "loud")
    assert result.exit_code == 2
    assert "--log-level" in result.stderr


@pytest.mark.usefixtures("clean")
def test_server_outside_a_zone_removes_its_token_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    async def serve(settings: Settings, _host: str) -> None:
        seen.extend([settings.region, os.environ.get("TURSO_TOKEN"), os.environ.get("TURSO_EU_TOKEN")])

    monkeypatch.setattr(main_module, "serve", serve)
    databases = {"TURSO_URL": "libsql://a.example", "TURSO_EU_URL": "libsql://b.example"}
    tokens = {"TURSO_TOKEN": "t-global", "TURSO_EU_TOKEN": "t-eu"}
    settings = server_environ(tmp_path, 8080, FLY_REGION="iad", **databases, **tokens)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert ask("serve").exit_code == 0
    assert seen == ["iad", "t-global", None]


# --- serve, refused ----------------------------------------------------------------------------------


async def test_serve_without_settings_is_status_1_and_a_line_for_each(tmp_path: Path) -> None:
    ran = await run("serve", env=environ(), cwd=tmp_path)
    assert ran.code == 1
    assert [line.split()[1] for line in ran.complaints] == [
        "OPENAI_API_KEY",
        "NEARCALL_PUBLIC_URL",
        "NEARCALL_SECRET",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_AUTH_TOKEN",
    ]
    assert ran.out == ""
    assert os.listdir(tmp_path) == []  # noqa: PTH208  Path's own way is forbidden here too


async def test_serve_on_a_port_in_use_is_status_1_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = await run("serve", env=server_environ(tmp_path / "data", port), cwd=tmp_path)
    assert ran.code == 1
    (told,) = ran.complaints
    assert told.startswith(f"nearcall: Cannot listen on 127.0.0.1, port {port}: Address already in use. Another")
    assert os.listdir(tmp_path) == []  # noqa: PTH208  Path's own way is forbidden here too


async def test_serve_without_a_backend_is_status_1_and_says_what_to_set(tmp_path: Path) -> None:
    env = server_environ(tmp_path / "data", free_port(), NEARCALL_PRACTICE="")
    ran = await run("serve", env=env, cwd=tmp_path)
    (told,) = ran.complaints
    assert ran.code == 1
    assert told.startswith("nearcall: OPENAI_API_KEY is missing")
    assert "--practice" in told
    assert os.listdir(tmp_path) == []  # noqa: PTH208  Path's own way is forbidden here too


async def test_serve_with_a_data_directory_that_is_none_is_status_1_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    ran = await run("serve", env=server_environ(tmp_path / "data", free_port()), cwd=tmp_path)
    assert ran.code == 1
    assert ran.complaints == [
        f"nearcall: Cannot use {tmp_path / 'data'} (NEARCALL_DATA_DIR): it is not a directory."
    ]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_settings_file_that_cannot_be_read_is_status_1_and_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "my.env"
    if content is not None:
        file.write_bytes(content)
    ran = run_here("serve", "--env-file", str(file))
    assert ran.code == 1
    assert len(ran.complaints) == 1
    assert str(file) in ran.complaints[0]


# --- call, refused -----------------------------------------------------------------------------------


async def test_call_without_keys_is_status_1_and_a_line_for_each(tmp_path: Path) -> None:
    ran = await run("call", "http://127.0.0.1:1", env=environ(), cwd=tmp_path)
    assert ran.code == 1
    assert [line.split()[1] for line in ran.complaints] == ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1/twiml/voice"),
        ("http://nowhere.invalid", "nowhere.invalid"),
        ("calls.example.com", "calls.example.com"),
        ("ftp://calls.example.com", "ftp://calls.example.com"),
        ("http://[::1", "http://[::1"),
        ("http://127.0.0.1:99999", "99999"),
        ("", "URL"),
    ],
)
def test_call_to_nobody_is_status_1_and_one_line(url: str, named: str) -> None:
    ran = run_here("call", url, **KEYS)
    assert ran.code == 1
    assert len(ran.complaints) == 1
    assert ran.complaints[0].startswith("nearcall: ")
    assert named in ran.complaints[0]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("content", [None, b"RIFF", b"this is text"])
def test_call_with_a_recording_that_is_none_is_status_1_and_names_it(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "said.wav"
    if content is not None:
        file.write_bytes(content)
    ran = run_here("call", "http://127.0.0.1:1", "--say", str(file), **KEYS)
    assert ran.code == 1
    assert len(ran.complaints) == 1
    assert ran.complaints[0].startswith(f"nearcall: {file}: ")


@pytest.mark.usefixtures("clean")
def test_call_with_a_recording_of_silence_is_refused_before_it_is_placed(tmp_path: Path) -> None:
    file = tmp_path / "silence.wav"
    write_wav(file, bytes([MULAW_SILENCE]) * 24_000)
    ran = run_here("call", "http://127.0.0.1:1", "--say", str(file), **KEYS)
    assert ran.code == 1
    assert ran.complaints == [
        f"nearcall: {file}: there is no speech in it that a server would hear, so nothing to answer"
    ]


# --- serve and call, together ------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served")) as served:
        yield served


async def test_serve_says_where_it_is_in_one_json_line(served: Served) -> None:
    line = await served.logged("server_started")
    assert (line["level"], line["url"]) == ("INFO", served.url)
    assert line["webhook"] == f"{served.url}/twiml/voice"
    assert line["backends"] == "practice"


async def test_port_and_practice_options_override_the_settings(tmp_path: Path) -> None:
    port = free_port()
    key = {"NEARCALL_PRACTICE": "", "OPENAI_API_KEY": "sk-not-used"}
    async with serving(tmp_path, "--practice", "--port", str(port), **key) as served:
        line = await served.logged("server_started")
        assert (line["url"], line["backends"]) == (f"http://127.0.0.1:{port}", "practice")
        warned = await served.logged("practice_backend_used")
        assert warned["level"] == "WARNING"


async def test_refused_key_is_logged_at_startup_by_variable_without_its_value(
    tmp_path: Path,
) -> None:
    async with RealtimeSimulator(api_key="another") as backend:
        key = {"NEARCALL_PRACTICE": "", "OPENAI_API_KEY": "sk-of-nobody", "OPENAI_BASE_URL": backend.url}
        key["NEARCALL_ADMIN_TOKEN"] = token = "a" * 32
        async with serving(tmp_path, **key) as served:
            told = await served.logged("backend_given_up")
            operator = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(trust_env=False, headers=operator) as client:
                health = await client.get(f"{served.url}/healthz")
    assert (told["level"], told["error"]) == ("ERROR", "the key was refused (HTTP 401)")
    assert told["hint"].startswith("OPENAI_API_KEY does not have a key")
    assert (health.status_code, health.json()["why"]) == (200, "no_backend")
    assert health.json()["backends"] == {"openai": "failing"}
    assert "sk-of-nobody" not in json.dumps(served.lines)


async def test_interrupted_start_is_status_130_and_silent(tmp_path: Path) -> None:
    """Ctrl-C while Python still loads what the command needs."""
    env = server_environ(tmp_path / "data", free_port())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", NEARCALL, "serve"), stderr=PIPE, env=env, cwd=tmp_path
    )
    assert process.stderr is not None
    async with asyncio.timeout(IN_TIME_S):
        while b"typer" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        err = await process.stderr.read()
        code = await process.wait()
    said = [line for line in err.decode().splitlines() if not line.startswith("import time:")]
    assert (code, said) == (130, [])


def test_ctrl_c_while_a_c_extension_loads_does_not_crash(tmp_path: Path) -> None:
    """orjson imports json while it initialises, and crashes the process when that raises KeyboardInterrupt."""
    code = """
import signal, sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "json":
            signal.raise_signal(signal.SIGINT)
from app.__main__ import main
sys.meta_path.insert(0, Interrupter())
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")


async def test_call_with_another_token_is_status_1_and_says_403(served: Served, tmp_path: Path) -> None:
    env = environ(TWILIO_AUTH_TOKEN="f" * 32, TWILIO_ACCOUNT_SID=ACCOUNT_SID)
    ran = await run("call", served.url, env=env, cwd=tmp_path)
    assert ran.code == 1
    assert len(ran.complaints) == 2
    assert "403" in ran.complaints[0]
    assert "TWILIO_AUTH_TOKEN" in ran.complaints[1]


async def test_call_hears_the_greeting_and_is_told_line_by_line_as_json(served: Served, tmp_path: Path) -> None:
    arguments = ("call", served.url, "--json", "--save", "call.wav", "--patience", "1")
    ran = await run(*arguments, env=environ(**KEYS), cwd=tmp_path)
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, ran.err) == (0, "")
    assert told[-1]["event"] == "Report"
    assert told[-1]["greeted_after_s"] > 0
    assert (told[-1]["webhook_region"], told[-1]["stream_region"]) == ("local", "local")
    assert {"WebhookAnswered", "StreamStarted", "AgentSpoke", "HungUp"} <= {line["event"] for line in told}
    assert (tmp_path / "call.wav").stat().st_size > 8_000


async def test_interrupted_caller_is_status_130_and_prints_no_traceback(served: Served, tmp_path: Path) -> None:
    long = ["--say", str(VOICES / "caller_asks.wav")] * 20  # not over before it is interrupted, on a slow machine
    process = await asyncio.create_subprocess_exec(
        NEARCALL, "call", served.url, "--json", *long, stdout=PIPE, stderr=PIPE, env=environ(**KEYS), cwd=tmp_path
    )
    assert process.stdout is not None
    async with asyncio.timeout(IN_TIME_S):
        while b"StreamStarted" not in await process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err


async def test_terminated_server_ends_its_call_politely_and_exits_with_0(tmp_path: Path) -> None:
    async with asyncio.timeout(IN_TIME_S), serving(tmp_path) as served, Phone(served.phone()) as phone:
        await phone.dial()
        await phone.answered()
        await served.logged("call_started")
        served.process.terminate()
        await phone.over()
        assert await served.ended() == 0
    assert phone.announcements == [Plan().sorry]
    assert phone.violations == []
    assert (await served.logged("call_ended"))["reason"] == "shutdown"
    assert SECRET not in json.dumps(served.lines)
    assert TOKEN not in json.dumps(served.lines)


async def test_second_ctrl_c_does_not_wait_for_the_calls(tmp_path: Path) -> None:
    async with asyncio.timeout(IN_TIME_S), serving(tmp_path) as served, Phone(served.phone()) as phone:
        await phone.dial()
        await phone.answered()
        phone.freeze()
        served.process.send_signal(signal.SIGINT)
        await served.logged("server_stopping")
        served.process.send_signal(signal.SIGINT)
        assert await served.ended() == -signal.SIGINT


# --- demo --------------------------------------------------------------------------------------------


async def test_demo_on_a_port_in_use_is_status_1_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = await run("demo", "--once", "--port", str(port), env=environ(), cwd=tmp_path)
    assert ran.code == 1
    (told,) = ran.complaints
    assert told.startswith(f"nearcall: Cannot listen on 127.0.0.1, port {port}: Address already in use. Another")


async def test_demo_that_may_not_save_its_sound_is_status_1_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    ran = await run("demo", "--once", "--port", "0", "--save", "file/call.wav", env=environ(), cwd=tmp_path)
    assert ran.code == 1
    assert ran.complaints == ["nearcall: file is not a directory."]


@pytest.mark.long
def test_demo_once_plays_the_whole_call_and_exits_with_0(tmp_path: Path) -> None:
    """The one slow test: a demonstration is as long as a conversation, about 20 s."""
    ran = subprocess.run(
        [NEARCALL, "demo", "--once", "--port", "0"],
        env=environ(),
        cwd=tmp_path,
        capture_output=True,
        timeout=90,
        check=False,
    )
    out = ran.stdout.decode()
    assert (ran.returncode, ran.stderr.decode()) == (0, "")
    assert out.count("✓") == 5
    assert (tmp_path / "data" / "demo" / "call.wav").is_file()
