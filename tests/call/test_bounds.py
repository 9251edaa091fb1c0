"""What a peer may make a call keep, do or write down: every count and size has an end."""

from typing import SupportsIndex

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendOpened,
    CallerTranscribed,
    Ended,
    FindBackend,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    Side,
    SpeechStarted,
    SpeechStopped,
)
from app.call.playout import Playout
from app.call.records import Happening
from app.call.texts import CUT_MARK, cut
from tests.call.phone_model import length_ms, mulaw
from tests.call.script import CALL_SID, STREAM_SID, Script, agent, only, talking

# --- Agent audio -----------------------------------------------------------------------------


class Counted(str):
    """Base64 that counts how many characters are copied out of it, and out of what was copied."""

    __slots__ = ("copied",)

    copied: list[int]

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        part = Counted(str.__getitem__(self, key))
        part.copied = self.copied
        self.copied.append(len(part))
        return part


def test_long_payload_is_cut_into_pieces_without_copying_the_rest_for_each_of_them() -> None:
    payload = Counted(mulaw("a", 90_000))
    payload.copied = []
    playout = Playout()
    assert playout.receive("item", payload, 90_000 * 8)
    assert sum(payload.copied) == len(payload)


@pytest.mark.parametrize("audio_bytes", [1, 2, 2_399, 2_400, 2_401, 4_800, 4_801, 720_000, 720_001])
def test_pieces_of_a_payload_are_the_payload(audio_bytes: int) -> None:
    groups, rest = divmod(audio_bytes, 3)
    payload = "abcd" * groups + ("", "ef==", "ghi=")[rest]
    playout = Playout()
    assert playout.receive("item", payload, audio_bytes)
    pieces = list(playout._waiting)
    assert "".join(text for _, text, _ in pieces) == payload
    assert [length_ms(text) * 8 for _, text, _ in pieces] == [size for _, _, size in pieces]
    assert sum(size for _, _, size in pieces) == audio_bytes
    assert all(0 < size <= limits.PIECE_MAX_MS * limits.MULAW_BYTES_PER_MS for _, _, size in pieces)


def test_audio_that_may_not_wait_here_is_refused_before_any_of_it_is_kept() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"))
    commands = script.at(1.0, agent("item_A", limits.AGENT_AUDIO_WAITING_MAX_MS + 1))
    assert only(Ended, commands) == [Ended(EndReason.BACKEND_MISBEHAVED)]
    assert not script.turns


def test_audio_in_pieces_of_one_byte_is_refused_by_their_number() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"))
    tiny = AgentAudio("r1", "item_A", "AA==", 1)
    for _ in range(limits.AGENT_PIECES_WAITING_MAX + 20_000):
        if script.ended is not None:
            break
        script.call.handle(tiny, 1.0)
        script.log.clear()
    assert len(script.call._conversation.playout._waiting) == 0
    assert script.call.deadline() is None


# --- Messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "reason"),
    [(Side.PHONE, EndReason.PHONE_MISBEHAVED), (Side.BACKEND, EndReason.BACKEND_MISBEHAVED)],
)
def test_peer_whose_message_is_too_long_has_misbehaved_and_not_vanished(side: Side, reason: EndReason) -> None:
    [ended] = only(Ended, talking().at(1.0, PeerLost(side, 1006, "message too long")))
    assert (ended.reason, ended.detail) == (reason, "message too long")


def test_next_backend_takes_the_call_of_one_whose_message_is_too_long() -> None:
    script = Script()
    asked = script.at(0.1, BackendOpened(), PeerLost(Side.BACKEND, 1006, "message too long"))
    assert only(FindBackend, asked) == [FindBackend(EndReason.BACKEND_MISBEHAVED)]


# --- Texts -----------------------------------------------------------------------------------

NOVEL = "words without end " * 60_000


def test_transcripts_are_cut_and_say_so() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"), SpeechStopped("u1"), CallerTranscribed("u1", NOVEL))
    script.at(2.0, ResponseStarted("r1"), agent("item_A", 100), AgentText("r1", "item_A", NOVEL, final=True))
    script.at(2.1, AgentAudioEnded("r1", "item_A"), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(4.0)
    assert [turn.said == cut(NOVEL, limits.TRANSCRIPT_MAX_CHARS) for turn in script.turns] == [True, True]
    assert all((turn.said or "").endswith(CUT_MARK) for turn in script.turns)
    assert [turn.heard for turn in script.turns] == [turn.said for turn in script.turns]


def test_transcript_in_pieces_is_cut_once() -> None:
    script = talking()
    script.at(2.0, ResponseStarted("r1"), agent("item_A", 100))
    script.at(2.0, *[AgentText("r1", "item_A", "x" * 1_000)] * 40)
    script.at(2.1, AgentAudioEnded("r1", "item_A"), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(4.0)
    assert [turn.said for turn in script.turns] == [cut("x" * 40_000, limits.TRANSCRIPT_MAX_CHARS)]


def test_happening_has_a_detail_of_a_length_that_can_be_kept() -> None:
    script = Script()
    script.at(0.0, BackendOpened(), BackendConfigured(formats_match=True), PhoneConnected("edge " * 10_000))
    script.at(0.1, PhoneStarted(STREAM_SID, CALL_SID))
    [trail] = [record.detail for record in script.records if isinstance(record, Happening)]
    assert len(trail) == limits.DETAIL_MAX_CHARS
    assert trail.endswith(CUT_MARK)


@pytest.mark.parametrize("length", [0, 1, 99, 100])
def test_text_that_fits_is_not_cut(length: int) -> None:
    assert cut("x" * length, 100) == "x" * length


@pytest.mark.parametrize("length", [101, 108, 10_000])
def test_text_that_is_cut_is_as_long_as_it_may_be(length: int) -> None:
    assert len(cut("x" * length, 100)) == 100
