"""The caller: says numbered sentences, waits for each answer to its end, and asks again when it does not come."""

import asyncio
import random
from dataclasses import dataclass

from app.sim.phone.errors import CallEndedError, PhoneError
from app.sim.phone.events import (
    EndReason,
    PhoneEvent,
    SayHeard,
    StreamClosed,
    StreamOpened,
    WebhookAnswered,
)
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.phone.twilio_rest import TwilioRest
from scripts.survivelib.stamps import Ear, Voice, speech
from scripts.survivelib.story import SENTENCE_FRAMES, Leg, Request, Sentence, Story

BREATH_S = (0.2, 1.4)
"""Between an answer and the next sentence."""
GREETING_LIMIT_S = 8.0


@dataclass(slots=True)
class Caller:
    """One call, as it goes on."""

    story: Story
    phone: Phone
    patience_s: float
    """How long the caller waits without hearing any more of an answer."""

    async def talk(self, sentences: int, chance: random.Random) -> None:
        """Says so many sentences and hangs up. The story says how it went."""
        story, phone = self.story, self.phone
        loop = asyncio.get_running_loop()
        story.began = loop.time()
        try:
            await phone.dial()
            await phone.answered()
            await self._greeted()
            for number in range(1, sentences + 1):
                await self._passes(chance.uniform(*BREATH_S))
                await self._exchange(number)
            await self._passes(BREATH_S[0])
        except PhoneError as error:
            story.dropped = _reason(phone, error)
        else:
            await phone.hang_up()
            if phone.ended is not EndReason.CALLER:
                story.dropped = _reason(phone, None)
        story.ended = loop.time()
        story.legs = legs_of(phone.timeline)
        story.requests = requests_of(phone.timeline)

    async def _greeted(self) -> None:
        try:
            async with asyncio.timeout(GREETING_LIMIT_S):
                await self.phone.wait_for(lambda p: bool(self.story.heard) and not p.agent_speaking)
        except TimeoutError:
            pass  # the caller speaks first then; a missing greeting is not what is tried here

    async def _passes(self, seconds: float) -> None:
        """Lets time pass, unless the call ends."""
        try:
            async with asyncio.timeout(seconds):
                await self.phone.wait_for(lambda _: False)
        except TimeoutError:
            pass

    async def _exchange(self, number: int) -> None:
        story, phone = self.story, self.phone
        loop = asyncio.get_running_loop()
        sentence = Sentence(number, loop.time(), loop.time())
        story.sentences.append(sentence)
        phone.say(speech(Voice.CALLER, story.call, number, 0, range(SENTENCE_FRAMES)))
        await phone.spoken()
        sentence.ended = loop.time()
        while not story.complete(number):
            heard = len(story.heard)
            try:
                async with asyncio.timeout(self.patience_s):
                    await phone.wait_for(lambda _, heard=heard: len(story.heard) > heard)  # type: ignore[misc]
            except TimeoutError:
                sentence.given_up = loop.time()
                return


def caller(story: Story, options: PhoneOptions, rest: TwilioRest, patience_s: float) -> Caller:
    """Returns a caller with a phone; enter the phone before `talk`."""
    ear = Ear()
    phone = Phone(options, lambda at, audio: story.heard.extend(ear.hear(at, audio)))
    story.call_sid = phone.call_sid
    rest.attach(phone)
    return Caller(story, phone, patience_s)


def region_of(phone: Phone) -> str:
    """Returns where the call's live stream is; empty: there is none, or the server does not say."""
    if not phone.connected:
        return ""
    return next((each.region or "" for each in reversed(phone.timeline) if isinstance(each, StreamOpened)), "")


def legs_of(events: list[PhoneEvent]) -> list[Leg]:
    """Returns the streams of a call."""
    legs: list[Leg] = []
    opened: StreamOpened | None = None
    for event in events:
        match event:
            case StreamOpened():
                opened = event
            case StreamClosed(at=at, by=by, reason=reason) if opened is not None:
                legs.append(Leg(opened.at, opened.region or "", at, f"{by} ({reason})" if reason else by))
                opened = None
            case _:
                pass
    if opened is not None:
        legs.append(Leg(opened.at, opened.region or "", float("inf"), ""))
    return legs


def requests_of(events: list[PhoneEvent]) -> list[Request]:
    """Returns Twilio's questions what comes next."""
    return [
        Request(event.at - event.took_ms / 1_000, event.purpose, event.at)
        for event in events
        if isinstance(event, WebhookAnswered) and event.purpose != "voice"
    ]


def _reason(phone: Phone, error: PhoneError | None) -> str:
    said = next((each.text for each in phone.timeline if isinstance(each, SayHeard)), "")
    if said:
        return f'the caller heard "{said}"'
    why = str(phone.error or ("" if isinstance(error, CallEndedError) or error is None else error))
    return f"{phone.ended or 'the call ended'}{f': {why}' if why else ''}"
