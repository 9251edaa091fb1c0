"""Makes one call in the world and reports its route and what the caller heard."""

import contextlib
from dataclasses import dataclass

from app.sim.fly.log import Decision
from app.sim.phone.caller import ScriptedLine, converse
from app.sim.phone.errors import PhoneError
from app.sim.phone.events import EndReason, SayHeard, StreamOpened, WebhookAnswered
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.world.world import ACCOUNT_SID, AUTH_TOKEN, NUMBERS, World

PATIENCE_S = 8.0
RETRIES = "#rc=2&rp=ct,rt,5xx"
"""As the README has numbers set up: Twilio asks again when the machine that it asked was just killed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call."""

    city: str
    zone: str
    call_sid: str
    edge: str
    answered_by: str
    """The region whose machine answered the webhook; empty: none did."""
    way: tuple[str, ...]
    """Regions whose machines were asked for the stream, in order; the last one accepted. Empty: no stream."""
    served: bool
    """The agent was heard."""
    sentence: str
    """The announcement instead of the agent, or after it; empty when there was none."""
    busy: bool
    greeted_ms: float | None
    """From the stream's start to the agent's first sound."""
    voice_to_voice_ms: float | None
    """From the caller's last sound to the agent's next one."""
    error: str
    """Why the caller heard Twilio's own error message, or silence; empty when the caller did not."""

    @property
    def good(self) -> bool:
        """True when the caller heard the agent or an announcement."""
        return not self.error and (self.served or bool(self.sentence))


def phone_in(world: World, city: str, zone: str) -> Phone:
    """Returns a phone in a city, ready to dial the number of a zone's tenant."""
    phone = Phone(
        PhoneOptions(
            f"{world.bases[city]}/twiml/voice{RETRIES}",
            AUTH_TOKEN,
            to=NUMBERS[zone],
            account_sid=ACCOUNT_SID,
            connected_after_ms=(0, 0),
            document_pace=0.0,
            keep_audio=False,
        )
    )
    world.rest.attach(phone)
    return phone


async def place(world: World, city: str, zone: str, line: bytes | None) -> Outcome:
    """Calls the number of a zone's tenant from a city. `line` is what the caller says; None for nothing."""
    greeted_ms = voice_to_voice_ms = None
    error = ""
    async with phone_in(world, city, zone) as phone:
        try:
            await phone.dial()
            if line is None:
                await phone.wait_for(lambda p: p.speech_ms > 100 or p.ended is not None)
                with contextlib.suppress(PhoneError):  # it may have ended by itself
                    await phone.hang_up()
            else:
                report = await converse(phone, [ScriptedLine(line)], patience_s=PATIENCE_S)
                greeted_ms = _ms(report.greeted_after_s)
                voice_to_voice_ms = _ms(report.said[0].answered_after_s) if report.said else None
        except PhoneError as failure:
            error = str(failure)
        if phone.ended is EndReason.APPLICATION_ERROR:
            error = error or str(phone.error or "application error")
        sid = phone.call_sid or ""
        return Outcome(
            city=city,
            zone=zone,
            call_sid=sid,
            edge=_edge(world, city),
            answered_by=_answered_by(phone),
            way=_way(world, phone),
            served=phone.speech_ms > 0,
            sentence=next((each.text for each in phone.timeline if isinstance(each, SayHeard)), ""),
            busy=phone.ended is EndReason.REJECTED,
            greeted_ms=greeted_ms,
            voice_to_voice_ms=voice_to_voice_ms,
            error=error,
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1_000 * seconds


def _target(phone: Phone) -> str | None:
    """The path of the call's stream."""
    opened = next((each for each in phone.timeline if isinstance(each, StreamOpened)), None)
    return None if opened is None else "/" + opened.url.partition("://")[2].partition("/")[2]


def _edge(world: World, city: str) -> str:
    """The edge at which a city's requests come in. It is the nearest one, so all of them have the same."""
    return next((trace.edge for trace in world.fly.traces if trace.client_location == city), "")


def _answered_by(phone: Phone) -> str:
    answers = (each for each in reversed(phone.timeline) if isinstance(each, WebhookAnswered))
    return next((each.region or "" for each in answers if each.purpose == "voice"), "")


def _way(world: World, phone: Phone) -> tuple[str, ...]:
    target = _target(phone)
    passed = (Decision.SERVED, Decision.REPLAYED)
    hops = (hop for trace in world.fly.traces if trace.target == target for hop in trace.hops)
    return tuple(hop.region or "" for hop in hops if hop.decision in passed)
