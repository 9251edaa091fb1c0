"""`nearcall demo`: a server on this machine with the practice backend, and one automatic call to it."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from app.call.plan import Plan
from app.call.records import Record, Speaker, Turn
from app.cli.call_view import CallView, show_turn
from app.config import LedgerSettings, Settings
from app.main import running
from app.process import bind, stop_signal
from app.regions.table import LOCAL
from app.sim.phone.caller import ScriptedLine, converse
from app.sim.phone.judging import Report
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.phone.recording import read_speech
from app.sim.speech import Sentence
from app.sim.wav import read_wav

VOICES = Path(__file__).parent.parent / "sim" / "voices"

INTERRUPT_AFTER_S = 1.5
PATIENCE_S = 20.0
ACCOUNT_SID = "AC" + "0" * 31 + "1"


@dataclass(slots=True)
class Witness:
    """Counts the turns that reach the ledger during the demonstration."""

    caller_turns: int = 0
    agent_turns_heard: int = 0
    interrupted_turns: int = 0

    def see(self, record: Record) -> None:
        """Count a record."""
        if not isinstance(record, Turn):
            return
        self.caller_turns += record.speaker is Speaker.CALLER
        self.agent_turns_heard += record.speaker is Speaker.AGENT and record.heard_ms > 0
        self.interrupted_turns += record.interrupted


def demo_settings(url: str, data_dir: Path, port: int) -> Settings:
    """Return settings that need no account: the practice backend, and random secrets for this run."""
    return Settings(
        public_urls=(url,),
        secret=secrets.token_hex(32),
        account_sid=ACCOUNT_SID,
        twilio_tokens={"us1": secrets.token_hex(16)},
        backends=(),
        ledger=LedgerSettings(LOCAL, LOCAL, data_dir),
        port=port,
        plan=Plan(greeting=Sentence.GREETING.words),
        practice=True,
    )


async def demo(console: Console, *, port: int, data_dir: Path, say: Path | None, save: Path, once: bool) -> int:
    """Run the demonstration. Returns the exit status: with `once`, 0 only if every check passed.

    Raises StartError, StorageError, WavError or OSError if the server or the files cannot be used.
    """
    lines = [
        ScriptedLine(read_speech(say or VOICES / "caller_asks.wav")),
        ScriptedLine(read_wav(VOICES / "caller_interrupts.wav"), interrupts_after_s=INTERRUPT_AFTER_S),
    ]
    save.parent.mkdir(parents=True, exist_ok=True)
    listener = bind("127.0.0.1", port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = demo_settings(url, data_dir, port)
    witness = Witness()

    def watch(record: Record) -> None:
        witness.see(record)
        show_turn(console, record)

    async with AsyncExitStack() as stack:
        stop = stop_signal(stack)
        await stack.enter_async_context(running(settings, listener, api_hosts={}, watch=watch))
        console.print(
            f"nearcall is up at {url}, with the practice backend. A caller is calling ...\n", soft_wrap=True
        )
        report = await _call(settings, url, lines, save, until=stop)
        passed = report is not None and _passed(console, report, witness, save)
        if once or report is None:
            return 0 if passed else 1
        _what_next(console, settings, url)
        await stop.wait()
        return 0


async def _call(
    settings: Settings, url: str, lines: list[ScriptedLine], save: Path, until: asyncio.Event
) -> Report | None:
    """Place the automatic call. Returns None if Ctrl-C ended it."""
    options = PhoneOptions(
        webhook_url=f"{url}/twiml/voice",
        auth_token=settings.twilio_tokens["us1"],
        account_sid=settings.account_sid,
    )
    async with Phone(options) as phone:
        await phone.dial()
        calling = asyncio.create_task(converse(phone, lines, patience_s=PATIENCE_S))
        stopping = asyncio.create_task(until.wait())
        try:
            await asyncio.wait({calling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                return None
            report = calling.result()
            await asyncio.to_thread(phone.save_wav, save)
            return report
        finally:
            for task in (calling, stopping):
                task.cancel()
            await asyncio.gather(calling, stopping, return_exceptions=True)


def _passed(console: Console, report: Report, witness: Witness, save: Path) -> bool:
    CallView(console, json_lines=False).report(report)
    console.print(f"{'recording of the call':<34}{save}", highlight=False)
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("the caller was heard", lambda: witness.caller_turns >= len(report.said) > 0),
        (
            "the caller was answered",
            lambda: report.answered and bool(report.said) and witness.agent_turns_heard > 0,
        ),
        ("the ledger has the interruption", lambda: witness.interrupted_turns > 0),
        (
            "the agent stopped when it was interrupted",
            lambda: report.obeyed and any(said.interrupted for said in report.said),
        ),
        ("Twilio would accept every message", lambda: report.violations == 0),
    ]
    console.print()
    results = [(text, check()) for text, check in checks]
    for text, good in results:
        console.print(f"  [green]✓[/] {text}" if good else f"  [red]✗ {text}: failed[/]")
    return all(good for _, good in results)


def _what_next(console: Console, settings: Settings, url: str) -> None:
    token = settings.twilio_tokens["us1"]
    console.print(
        f"\nThe server keeps running. Call it again from another terminal, with a recording of your own:\n\n"
        f"  TWILIO_AUTH_TOKEN={token} TWILIO_ACCOUNT_SID={settings.account_sid} \\\n"
        f"    .venv/bin/nearcall call {url} --say your.wav\n\n"
        f"Watch the turns as they are recorded:\n\n"
        f"  NEARCALL_DATA_DIR={settings.ledger.data_dir} .venv/bin/nearcall calls tail\n\n"
        f"Press Ctrl-C to stop.\n",
        highlight=False,
        soft_wrap=True,
    )
