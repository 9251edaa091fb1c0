"""A backend spoken to in PCM: the same events as of one in mu-law, and no millisecond more than it spoke."""

import base64
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.call.events import (
    AgentAudio,
    AgentAudioEnded,
    BackendOpened,
    CancelResponse,
    Event,
    ResponseEnded,
    ResponseStatus,
    SpeechStarted,
    Truncate,
)
from app.call.plan import NO_ABILITIES, Plan
from app.wire.audio import silence
from app.wire.dialect import Address, BackendCommand, bearer
from app.wire.errors import WireError
from app.wire.formats import AudioFormat
from app.wire.openai import OpenAIRealtime
from app.wire.pcm import FromMulaw, ToMulaw
from app.wire.text import Message
from app.wire.transcoded import ITEMS_MAX, Transcoded

INNER = OpenAIRealtime("https://api.openai.com/v1", bearer(lambda: "sk-secret"))
FORMATS = [AudioFormat.PCM16_8K, AudioFormat.PCM16_16K, AudioFormat.PCM16_24K]
SPEECH = np.random.default_rng(3).integers(-20_000, 20_000, 9_600).astype("<i2").tobytes()
MORE_SPEECH = SPEECH[::-1]


def message(kind: str, **values: Any) -> bytes:
    """A server event."""
    return json.dumps({"type": kind, "event_id": "event_1", **values}).encode()


def delta(pcm: bytes, item_id: str = "item_1", response_id: str = "resp_1") -> bytes:
    """Agent audio."""
    payload = base64.b64encode(pcm).decode()
    return message("response.output_audio.delta", response_id=response_id, item_id=item_id, delta=payload)


def done(item_id: str = "item_1", response_id: str = "resp_1") -> bytes:
    """The end of an item's audio."""
    return message("response.output_audio.done", response_id=response_id, item_id=item_id)


def response_done(response_id: str) -> bytes:
    """The end of a response that was cancelled."""
    return message("response.done", response={"id": response_id, "status": "cancelled"})


def heard(dialect: Transcoded, messages: Iterable[bytes]) -> list[Event]:
    """What all of them mean."""
    return [event for each in messages for event in dialect.parse(each)]


def mulaw_of(events: Sequence[Event], item_id: str = "item_1") -> bytes:
    """What an item's pieces are together; each counts its own bytes."""
    found = [each for each in events if isinstance(each, AgentAudio) and each.item_id == item_id]
    pieces = [base64.b64decode(each.payload, validate=True) for each in found]
    assert [len(piece) for piece in pieces] == [each.audio_bytes for each in found]
    assert b"" not in pieces
    return b"".join(pieces)


def alone(pcm: bytes, audio_format: AudioFormat) -> bytes:
    """What an item becomes when it is the only one, and whole."""
    item = ToMulaw(audio_format.rate_hz)
    return item.convert(pcm) + item.flush()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The same bytes in pieces."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# --- The caller ------------------------------------------------------------------------------


@pytest.mark.parametrize("audio_format", FORMATS)
def test_the_callers_frames_reach_the_backend_as_one_stream_of_pcm(audio_format: AudioFormat) -> None:
    dialect = Transcoded(INNER, audio_format)
    mulaw = np.random.default_rng(4).integers(0, 256, 1_600, np.uint8).tobytes()
    frames = [base64.b64encode(mulaw[at : at + 160]).decode() for at in range(0, 1_600, 160)]
    sent = [json.loads(dialect.append(frame)) for frame in frames]
    assert {each["type"] for each in sent} == {"input_audio_buffer.append"}
    pcm = b"".join(base64.b64decode(each["audio"], validate=True) for each in sent)
    assert pcm == FromMulaw(audio_format.rate_hz).convert(mulaw)
    assert len(pcm) == 200 * audio_format.rate_hz // 1000 * 2


@pytest.mark.parametrize("audio_format", FORMATS)
def test_silence_is_silence_in_pcm(audio_format: AudioFormat) -> None:
    sent = json.loads(Transcoded(INNER, audio_format).append(silence(200)))
    assert set(base64.b64decode(sent["audio"])) == {0}


# --- The agent -------------------------------------------------------------------------------


@pytest.mark.parametrize("audio_format", FORMATS)
@given(places=st.lists(st.integers(0, len(SPEECH)), max_size=20))
def test_an_item_is_the_same_wherever_its_deltas_are_cut(audio_format: AudioFormat, places: list[int]) -> None:
    deltas = [delta(piece) for piece in cut(SPEECH, places)]
    events = heard(Transcoded(INNER, audio_format), [*deltas, done()])
    assert events[-1] == AgentAudioEnded("resp_1", "item_1")
    assert mulaw_of(events) == alone(SPEECH, audio_format)


@pytest.mark.parametrize("audio_format", FORMATS)
@given(sizes=st.lists(st.integers(0, 700), max_size=20))
def test_the_core_is_never_given_more_than_the_backend_has_spoken(
    audio_format: AudioFormat, sizes: list[int]
) -> None:
    dialect = Transcoded(INNER, audio_format)
    events: list[Event] = []
    for number in range(len(sizes)):
        events += dialect.parse(delta(bytes(sizes[number])))
        spoken = sum(sizes[: number + 1]) // 2 * 8_000 // audio_format.rate_hz
        assert len(mulaw_of(events)) <= spoken
    events += dialect.parse(done())
    assert len(mulaw_of(events)) == sum(sizes) // 2 * 8_000 // audio_format.rate_hz


def test_the_tail_of_an_item_comes_before_its_end_and_belongs_to_it() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    dialect.parse(delta(SPEECH, "item_7", "resp_7"))
    tail, end = dialect.parse(done("item_7", "resp_7"))
    assert isinstance(tail, AgentAudio)
    assert (tail.response_id, tail.item_id, tail.audio_bytes) == ("resp_7", "item_7", 22)
    assert end == AgentAudioEnded("resp_7", "item_7")


def test_a_piece_too_short_for_the_filter_is_no_event_until_the_item_ends() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    assert dialect.parse(delta(SPEECH[:60])) == []
    assert len(mulaw_of(dialect.parse(done()))) == 10


def test_an_item_without_audio_ends_without_a_tail() -> None:
    assert Transcoded(INNER, AudioFormat.PCM16_24K).parse(done()) == [AgentAudioEnded("resp_1", "item_1")]


@pytest.mark.parametrize("audio_format", FORMATS)
def test_every_item_begins_anew(audio_format: AudioFormat) -> None:
    dialect = Transcoded(INNER, audio_format)
    first = heard(dialect, [delta(SPEECH), done()])
    second = heard(dialect, [delta(MORE_SPEECH, "item_2"), done("item_2")])
    assert mulaw_of(first) == alone(SPEECH, audio_format)
    assert mulaw_of(second, "item_2") == alone(MORE_SPEECH, audio_format)


@pytest.mark.parametrize("audio_format", FORMATS)
@given(
    old=st.lists(st.integers(0, len(SPEECH)), min_size=3, max_size=6),
    new=st.lists(st.integers(0, len(SPEECH)), min_size=3, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_late_pieces_of_an_item_that_was_cut_off_leave_the_next_one_whole(
    audio_format: AudioFormat, old: list[int], new: list[int], order: Any
) -> None:
    late = [delta(piece, "item_1", "resp_1") for piece in cut(SPEECH, old)]
    next_ = [delta(piece, "item_2", "resp_2") for piece in cut(MORE_SPEECH, new)]
    takes = [True] * len(late) + [False] * len(next_)
    order.shuffle(takes)
    olds, news = iter(late), iter(next_)
    mixed = [next(olds if old_one else news) for old_one in takes]
    events = heard(Transcoded(INNER, audio_format), [*mixed, done("item_1", "resp_1"), done("item_2", "resp_2")])
    assert mulaw_of(events, "item_1") == alone(SPEECH, audio_format)
    assert mulaw_of(events, "item_2") == alone(MORE_SPEECH, audio_format)


def test_of_items_that_never_end_only_the_latest_are_kept() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    heard(dialect, [delta(SPEECH, f"item_{number}") for number in range(50)])
    assert dialect.items == [f"item_{number}" for number in range(50 - ITEMS_MAX, 50)]


def test_item_still_in_use_is_kept_before_one_that_began_later() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    heard(dialect, [delta(SPEECH, item_id) for item_id in ("item_1", "item_2", "item_1", "item_3")])
    assert dialect.items == ["item_1", "item_3"]


def test_an_item_ends_once_and_would_then_begin_anew() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    once = heard(dialect, [delta(SPEECH), done()])
    assert dialect.parse(done()) == [AgentAudioEnded("resp_1", "item_1")]
    assert heard(dialect, [delta(SPEECH), done()]) == once


def test_item_that_did_not_end_with_its_response_ends_without_a_tail() -> None:
    """The core has settled the item by then; a piece more would be an item of its own to it."""
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    heard(dialect, [delta(SPEECH, "item_1", "resp_1"), delta(SPEECH, "item_2", "resp_2")])
    (ended,) = dialect.parse(response_done("resp_1"))
    assert isinstance(ended, ResponseEnded)
    assert ended.status is ResponseStatus.CANCELLED
    assert dialect.parse(done("item_1", "resp_1")) == [AgentAudioEnded("resp_1", "item_1")]
    assert len(mulaw_of(dialect.parse(done("item_2", "resp_2")), "item_2")) == 22


# --- What is not audio -----------------------------------------------------------------------


def test_other_events_pass_as_they_are() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    speech = message("input_audio_buffer.speech_started", item_id="item_9", audio_start_ms=0)
    found = heard(dialect, [message("session.created"), message("rate_limits.updated"), speech])
    assert found == [BackendOpened(), SpeechStarted("item_9")]


@pytest.mark.parametrize("command", [Truncate("item_1", 1_480), CancelResponse("resp_1")])
def test_commands_are_the_dialects_own_and_milliseconds_stay_what_they_are(command: BackendCommand) -> None:
    assert Transcoded(INNER, AudioFormat.PCM16_24K).render(command) == INNER.render(command)


def test_name_and_address_are_the_dialects_own() -> None:
    dialect = Transcoded(INNER, AudioFormat.PCM16_24K)
    assert (dialect.name, dialect.address("model")) == (INNER.name, INNER.address("model"))


# --- What is wrong ---------------------------------------------------------------------------


class Careless:
    """A dialect that has not looked at the audio it was sent."""

    name = "careless"

    abilities = NO_ABILITIES

    def fitted(self, plan: Plan) -> Plan:
        raise NotImplementedError

    def address(self, model: str) -> Address:
        raise NotImplementedError

    def parse(self, message: Message) -> Sequence[Event]:
        return (AgentAudio("resp_1", "item_1", str(message), 3),)

    def render(self, command: BackendCommand) -> bytes:
        raise NotImplementedError

    def append(self, payload: str) -> bytes:
        return payload.encode()


NOT_BASE64 = [
    "AAA",
    "A===",
    "AA=A",
    "AAAA=",
    "AAAA====",
    "AA==AAAA",
    "====",
    "=AAA",
    "AA AA",
    "AAA\n",
    "AA-_",
    "ÄÄÄÄ",
]


@pytest.mark.parametrize("payload", NOT_BASE64)
def test_audio_that_is_not_base64_is_a_wire_error_and_the_item_goes_on(payload: str) -> None:
    dialect = Transcoded(Careless(), AudioFormat.PCM16_24K)
    before = dialect.parse(base64.b64encode(SPEECH[:4_001]).decode())
    with pytest.raises(WireError, match=r"^audio is not base64$"):
        dialect.parse(payload)
    after = dialect.parse(base64.b64encode(SPEECH[4_001:]).decode())
    assert alone(SPEECH, AudioFormat.PCM16_24K).startswith(mulaw_of([*before, *after]))


def test_audio_of_no_length_is_nothing() -> None:
    assert Transcoded(Careless(), AudioFormat.PCM16_24K).parse("") == []
