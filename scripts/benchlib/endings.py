"""Every way a call can end, as callers, networks and backends bring it about, and what must be true afterwards.

The calls are made by the simulators that the tests use; which fault a backend session has is dealt at random, so
that each way of calling meets each fault sooner or later. Knows a server by its URL only.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.call.journal import FAILOVER
from app.sim.phone.errors import CallEndedError, PhoneError, WebhookStatusError
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.phone.twilio_rest import TwilioRest
from app.sim.phone.twiml_document import Connect, Say, read_answer
from app.sim.phone.webhook import Addresses, Signer, Webhooks
from app.sim.phone.wire import CONNECTED, Script
from app.sim.realtime.faults import NO_FAULTS, Faults, Timing
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest, parrot
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.sim.speech import Sentence, spoken
from app.storage.database import open_for_reading
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN

BACKEND_KEY = "sk-of-the-simulator"

CALL_LIMIT_S = 40.0
"""The slowest ending is a peer that has gone silent: 12 s, and a webhook whose stream never comes: 15 s."""

SOUND_SHARE = 0.6
"""Of the backend sessions, so many have no fault: a call must live to end in another way."""


def _faults(audio_delta: str, wrong_format: str) -> Sequence[Faults]:
    """`audio_delta`: what the service calls it; `wrong_format`: a format of its own that no client asks for."""
    return (
        Faults(refuse_upgrade=503),
        Faults(refuse_upgrade=429),
        Faults(echo_format=wrong_format),
        Faults(error_code="insufficient_quota"),
        Faults(error_code="session_expired", error_after="response.created"),
        Faults(end="abort"),
        Faults(end="internal_error", end_after="session.updated"),
        Faults(end="abort", end_after=audio_delta, end_after_count=3),
        Faults(end="internal_error", end_after=audio_delta, end_after_count=5),
        Faults(end="clean", end_after="response.done"),
        Faults(end="expire", end_after="response.created"),
        Faults(unknown_event_every=3, extra_fields=True, deltas_cut_samples=True),
        Faults(transcription="never"),
        Faults(transcription="after_response"),
    )


OPENAI_FAULTS = _faults("response.output_audio.delta", "audio/pcma")
VOICELIVE_FAULTS = (
    *_faults("response.audio.delta", "g711_alaw"),
    Faults(warning_every=2),
)
SLOW_FAULTS: Sequence[Faults] = (
    Faults(never_greet=True),
    Faults(end="stall"),
    Faults(end="stall", end_after="response.created"),
)
"""They end a call only when a time-out of several seconds has passed."""


class _RandomFaults:
    """Gives each connection a random fault, or none, and answers at random.

    It comes before a simulator among a class's bases: what the simulator takes as its `faults` is dealt here.
    """

    def __init__(self, chance: random.Random, deck: Sequence[Faults], *, slow: bool) -> None:
        self._chance = chance
        self._deck = (*deck, *(SLOW_FAULTS if slow else ()))
        self._dealt: WeakKeyDictionary[asyncio.Task[Any], Faults] = WeakKeyDictionary()
        """By the task of the connection: it begins with the upgrade."""

    @property
    def faults(self) -> Faults:
        task = asyncio.current_task()
        assert task is not None, "only connections look at this"
        if task not in self._dealt:
            sound = self._chance.random() < SOUND_SHARE
            self._dealt[task] = NO_FAULTS if sound else self._chance.choice(self._deck)
        return self._dealt[task]

    @faults.setter
    def faults(self, faults: Faults) -> None:
        """Set by the simulator's constructor; here they are dealt."""

    def _answer(self, request: ReplyRequest) -> Reply:
        """A few words, sometimes the last ones, sometimes the whole turn again."""
        match self._chance.randrange(4):
            case 0:
                return Reply((Message.lasting("Goodbye.", 300), FunctionCall("hang_up")))
            case 1:
                return parrot(request)
            case _:
                return Reply((Message.lasting("Of course.", 1_500),))


class OpenAIBackend(_RandomFaults, RealtimeSimulator):
    """OpenAI with a random fault, or none, on each connection."""

    def __init__(self, chance: random.Random, *, slow: bool, **manners: Any) -> None:
        _RandomFaults.__init__(self, chance, OPENAI_FAULTS, slow=slow)
        RealtimeSimulator.__init__(
            self, api_key=BACKEND_KEY, script=self._answer, timing=Timing(speed=5), record=False, **manners
        )


class VoiceLiveBackend(_RandomFaults, VoiceLiveSimulator):
    """Voice Live with a random fault, or none, on each connection."""

    def __init__(self, chance: random.Random, *, slow: bool) -> None:
        _RandomFaults.__init__(self, chance, VOICELIVE_FAULTS, slow=slow)
        VoiceLiveSimulator.__init__(
            self, api_key=BACKEND_KEY, script=self._answer, timing=Timing(speed=5), record=False
        )


class NoStreamError(Exception):
    """The webhook opened no stream; the caller heard an announcement."""


@dataclass(slots=True)
class Scene:
    """The server under test, and the results of the calls made to it."""

    url: str
    """The server's, http://127.0.0.1:port."""
    rest: TwilioRest
    chance: random.Random
    made: Counter[str] = field(default_factory=Counter)
    heard: set[str] = field(default_factory=set)
    """Calls in which the agent was heard: the ledger must know them."""
    problems: list[str] = field(default_factory=list)
    unanswered: int = 0
    """Webhooks by hand that were answered with a sentence: every backend was given up just then."""

    def phone(self, *, attached: bool = True, **options: Any) -> Phone:
        """A phone that has not dialled. Unless `attached`, hanging up by REST fails for its call."""
        given = {"connected_after_ms": (0, 0), "document_pace": 0.0, "keep_audio": False, **options}
        phone = Phone(PhoneOptions(f"{self.url}/twiml/voice", AUTH_TOKEN, account_sid=ACCOUNT_SID, **given))
        if attached:
            self.rest.attach(phone)
        return phone

    async def shortly(self, longest_s: float = 2.0) -> None:
        """A random moment later."""
        await asyncio.sleep(self.chance.uniform(0, longest_s))


Ending = Callable[[Scene], Awaitable[None]]


async def make_calls(
    scene: Scene, count: int, at_once: int, endings: Sequence[Ending], over: Callable[[], None] = lambda: None
) -> None:
    """Make `count` calls, each ending in the list in turn, `at_once` of them at a time.

    `over` is called at the end of each. Errors are added to `scene.problems`.
    """
    places = asyncio.Semaphore(at_once)

    async def one(ending: Ending) -> None:
        async with places:
            try:
                async with asyncio.timeout(CALL_LIMIT_S):
                    await ending(scene)
            except TimeoutError:
                scene.problems.append(f"{ending.__name__}: not over after {CALL_LIMIT_S:.0f} s")
            except PhoneError as error:
                scene.problems.append(f"{ending.__name__}: {error}")
            except NoStreamError:
                scene.unanswered += 1
            scene.made[ending.__name__] += 1
            over()

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(endings[number % len(endings)]))


# --- Calls by phone --------------------------------------------------------------------------


async def hangs_up_while_it_rings(scene: Scene) -> None:
    async with scene.phone(connected_after_ms=(200, 200)) as phone:
        await phone.dial()
        await phone.hang_up()


async def hangs_up_before_start(scene: Scene) -> None:
    async with scene.phone(connected_after_ms=(500, 500)) as phone:
        await phone.dial()
        await scene.shortly(0.5)
        await phone.hang_up()


async def hangs_up_in_the_greeting(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _spoken_to(scene, phone)
        await scene.shortly()
        await _hang_up(scene, phone)


async def hangs_up_in_a_reply(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _spoken_to(scene, phone)
        phone.say(spoken(Sentence.GENERAL).mulaw)
        await scene.shortly(3)
        await _hang_up(scene, phone)


async def talks_over_the_agent(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _spoken_to(scene, phone)
        phone.say(spoken(Sentence.IDLE).mulaw)
        await scene.shortly()
        phone.say(spoken(Sentence.YOU_SAID).mulaw)
        await scene.shortly()
        await _hang_up(scene, phone)


async def presses_keys(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _spoken_to(scene, phone)
        with suppress(PhoneError):  # the stream is gone already
            phone.press("5")
            phone.press("#")
        await scene.shortly()
        await _hang_up(scene, phone)


async def leaves_the_end_to_the_agent(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _stays(scene, phone)


async def leaves_the_end_to_an_agent_without_rest(scene: Scene) -> None:
    async with scene.phone(attached=False) as phone:
        await _stays(scene, phone)


async def goes_without_a_stop(scene: Scene) -> None:
    async with scene.phone(send_stop=False) as phone:
        await _spoken_to(scene, phone)
        await _hang_up(scene, phone)


async def loses_its_connection(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _spoken_to(scene, phone)
        await scene.shortly()
        with suppress(PhoneError):  # as above
            phone.cut()
        with suppress(PhoneError):  # as above; else the call is resumed
            await phone.answered(streams=2)
            await phone.hang_up()
        await phone.over()


async def is_half_open(scene: Scene) -> None:
    async with scene.phone() as phone:
        await _spoken_to(scene, phone)
        with suppress(PhoneError):  # as above
            phone.freeze()
        await asyncio.sleep(15)  # the server gives it up after 12
        await phone.hang_up()


async def has_a_wrong_signature(scene: Scene) -> None:
    async with scene.phone(signing="wrong") as phone:
        try:
            await phone.dial()
        except WebhookStatusError as error:
            if error.status == 403:
                return
        scene.problems.append("a webhook with a wrong signature was not refused with 403")


async def has_a_wrong_signature_on_the_stream(scene: Scene) -> None:
    async with scene.phone(stream_signing="wrong") as phone:
        await phone.dial()
        await phone.over()
        if phone.started_streams:
            scene.problems.append("a stream with a wrong signature was accepted")


async def _spoken_to(scene: Scene, phone: Phone) -> None:
    """Dial and wait for the agent's first words, if they come."""
    await phone.dial()
    with suppress(CallEndedError):
        await phone.heard_speech(scene.chance.randrange(40, 600))
        scene.heard.add(phone.call_sid)


async def _stays(scene: Scene, phone: Phone) -> None:
    await _spoken_to(scene, phone)
    with suppress(TimeoutError):
        async with asyncio.timeout(4):
            await phone.over()
    await _hang_up(scene, phone)


async def _hang_up(scene: Scene, phone: Phone) -> None:
    await phone.hang_up()
    if phone.violations:
        scene.problems.append(f"Twilio would not take this: {phone.violations[0].why}")


# --- Calls by hand, for what no phone does ---------------------------------------------------


async def comes_no_further_than_the_webhook(scene: Scene) -> None:
    await _ManualCall(scene).webhook()


async def never_sends_start(scene: Scene) -> None:
    call = _ManualCall(scene)
    async with call.stream(await call.webhook()) as stream:
        await stream.send(CONNECTED)
        await stream.wait_closed()


async def talks_nonsense(scene: Scene) -> None:
    call = _ManualCall(scene)
    async with call.stream(await call.webhook()) as stream:
        await stream.send(CONNECTED)
        await stream.send(call.script.start({}))
        for _ in range(10):
            await stream.send("{nonsense")
            await stream.send(b"\0binary")
            await stream.send('{"event":"media","media":{"payload":"*","timestamp":"x"}}')
            await stream.send("[" + "1," * 40_000 + "1]")
        await stream.wait_closed()


async def names_another_call(scene: Scene) -> None:
    call = _ManualCall(scene)
    async with call.stream(await call.webhook()) as stream:
        await stream.send(CONNECTED)
        await stream.send(Script(ACCOUNT_SID, "CA" + "f" * 32, "MZ" + "f" * 32).start({}))
        await stream.wait_closed()


async def uses_a_ticket_twice(scene: Scene) -> None:
    call = _ManualCall(scene)
    url = await call.webhook()
    async with call.stream(url) as stream:
        await stream.send(CONNECTED)
        try:
            async with call.stream(url):
                scene.problems.append("a ticket was accepted twice")
        except InvalidStatus as error:
            if error.response.status_code != 403:
                scene.problems.append(f"a used ticket was answered with {error.response.status_code}")


async def breaks_off_without_a_close(scene: Scene) -> None:
    call = _ManualCall(scene)
    async with call.stream(await call.webhook()) as stream:
        await stream.send(CONNECTED)
        await stream.send(call.script.start({}))
        await scene.shortly(1)
        stream.transport.abort()


class _ManualCall:
    """One call whose Twilio side the test sends by hand, message by message."""

    def __init__(self, scene: Scene) -> None:
        options = PhoneOptions(f"{scene.url}/twiml/voice", AUTH_TOKEN, account_sid=ACCOUNT_SID)
        call_sid = f"CA{scene.chance.getrandbits(128):032x}"
        self.script = Script(ACCOUNT_SID, call_sid, f"MZ{call_sid[2:]}")
        self._form = {"AccountSid": ACCOUNT_SID, "CallSid": call_sid, "From": options.from_, "To": options.to}
        self._addresses = Addresses(options.webhook_url, None)
        self._signer = Signer(AUTH_TOKEN)
        self._webhooks = Webhooks(options, self._addresses, self._signer)

    async def webhook(self) -> str:
        """Ask; returns the URL of the stream. Raises NoStreamError."""
        try:
            answer = await self._webhooks.request("POST", self._addresses.webhook_url, self._form)
        finally:
            await self._webhooks.aclose()
        document = read_answer(answer.content_type, answer.body, allow_ws=True)
        verb = document.verbs[0]
        if isinstance(verb, Say):
            raise NoStreamError
        assert isinstance(verb, Connect), f"the webhook answered {answer.body!r}"
        return verb.stream.url

    @asynccontextmanager
    async def stream(self, url: str) -> AsyncIterator[ClientConnection]:
        """Open the stream. The block is left early when the server closes it, as it may at any time."""
        headers = self._signer.headers("right", url, {})
        async with connect(url, additional_headers=headers, compression=None, proxy=None) as stream:
            with suppress(ConnectionClosed):
                yield stream


QUICK_ENDINGS: Sequence[Ending] = (
    hangs_up_while_it_rings,
    hangs_up_before_start,
    hangs_up_in_the_greeting,
    hangs_up_in_a_reply,
    talks_over_the_agent,
    presses_keys,
    leaves_the_end_to_the_agent,
    leaves_the_end_to_an_agent_without_rest,
    goes_without_a_stop,
    loses_its_connection,
    has_a_wrong_signature,
    has_a_wrong_signature_on_the_stream,
    talks_nonsense,
    names_another_call,
    uses_a_ticket_twice,
    breaks_off_without_a_close,
    comes_no_further_than_the_webhook,
)
"""None takes longer than ten seconds; the last leaves a session that waits for its stream."""

ALL_ENDINGS: Sequence[Ending] = (*QUICK_ENDINGS, never_sends_start, is_half_open)


# --- What must be true afterwards ------------------------------------------------------------


def check_ledger(path: Path, heard: set[str]) -> list[str]:
    """What is wrong with the ledger, in sentences. Read it after the server has closed it."""
    legs = {(sid, leg) for sid, leg in _rows(path, "SELECT call_sid, leg FROM legs")}
    endings = {(sid, leg): turns for sid, leg, turns in _rows(path, "SELECT call_sid, leg, turns FROM endings")}
    turns: dict[tuple[str, str], list[int]] = {}
    for sid, leg, seq in _rows(path, "SELECT call_sid, leg, seq FROM turns ORDER BY seq"):
        turns.setdefault((sid, leg), []).append(seq)
    [(refused,)] = _rows(path, "SELECT count(*) FROM refused")
    problems = [f"leg {key} began and has no ending" for key in legs - endings.keys()]
    problems += [f"leg {key} ended and never began" for key in endings.keys() - legs]
    problems += [
        f"leg {key} has turns {turns.get(key, [])}, and its ending says {count}"
        for key, count in endings.items()
        if turns.get(key, []) != list(range(count))
    ]
    problems += [f"turns of a leg {key} that never began" for key in turns.keys() - legs]
    problems += [
        f"call {sid} was answered by the agent, and is not in the ledger" for sid in heard - {s for s, _ in legs}
    ]
    if refused:
        problems.append(f"{refused} records were refused by the database")
    return problems


def failover_reasons(path: Path) -> Counter[str]:
    """How often each made another backend take a call before it talked."""
    details = _rows(path, "SELECT detail FROM events WHERE kind = ?", FAILOVER)
    return Counter(detail.split()[1] for (detail,) in details)


def ending_reasons(path: Path) -> Counter[str]:
    """How often each reason is in the ledger."""
    return Counter(dict(_rows(path, "SELECT reason, count(*) FROM endings GROUP BY reason")))


def _rows(path: Path, sql: str, *values: str) -> list[Any]:
    with closing(open_for_reading(path)) as database:
        return database.query(sql, values)
