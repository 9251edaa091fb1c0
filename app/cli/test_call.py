"""`nearcall call`: calls any server with the simulated phone, and reports how the call went."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from app.cli.call_view import CallView
from app.config import CallerSettings
from app.sim.phone.caller import ANSWER_WITHIN_S, ScriptedLine, converse
from app.sim.phone.errors import PhoneError
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.phone.recording import read_speech

VOICE_PATH = "/twiml/voice"


@dataclass(frozen=True, slots=True)
class CallPlan:
    """A call to place."""

    url: str
    say: tuple[Path, ...]
    interrupt_after_s: float | None
    caller: str
    called: str
    public_url: str | None
    patience_s: float
    save: Path | None
    region: str | None = None
    """The region of which Fly's edge is asked for a Machine."""
    answer_within_s: float = ANSWER_WITHIN_S
    greeting_required: bool = True


async def place_call(console: Console, plan: CallPlan, keys: CallerSettings, *, json_lines: bool) -> bool:
    """Place the call and print it as it goes. Returns whether it went well; see Report.good.

    Raises PhoneError if the call cannot be placed, and WavError for a file that cannot be used. All files are read
    before the call is placed.
    """
    lines = [ScriptedLine(read_speech(path)) for path in plan.say]
    if lines and plan.interrupt_after_s is not None:
        lines[-1] = ScriptedLine(lines[-1].audio, plan.interrupt_after_s)
    options = PhoneOptions(
        webhook_url=_webhook(plan.url),
        auth_token=keys.auth_token,
        account_sid=keys.account_sid,
        public_url=plan.public_url,
        from_=plan.caller,
        to=plan.called,
        prefer_region=plan.region,
    )
    view = CallView(console, json_lines=json_lines)
    async with Phone(options) as phone:
        await phone.dial()
        viewing = asyncio.create_task(_show(phone, view))
        report = await converse(
            phone,
            lines,
            patience_s=plan.patience_s,
            answer_within_s=plan.answer_within_s,
            greeting_required=plan.greeting_required,
        )
        await viewing
        if plan.save is not None:
            await asyncio.to_thread(phone.save_wav, plan.save)
    view.report(report)
    return report.good


async def _show(phone: Phone, view: CallView) -> None:
    async for event in phone.events():
        view.show(event)


def _webhook(url: str) -> str:
    """Return the webhook's URL. A URL without a path gets the path of nearcall's voice webhook."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise PhoneError(f"{url} is not a URL.") from None
    return url if parts.path not in {"", "/"} else f"{parts.scheme}://{parts.netloc}{VOICE_PATH}"
