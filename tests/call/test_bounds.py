"""What a peer may make a call keep, do or write down: every count and size has an end."""

from typing import SupportsIndex

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddTurn,
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendOpened,
    BadMessage,
    CallerAudio,
    CallerTranscribed,
    CallerTurnCommitted,
    Ended,
    ErrorKind,
    FindBackend,
    KeyPressed,
    NoBackendLeft,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    Pong,
    Remember,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendAudio,
    Side,
    SpeechStarted,
    SpeechStopped,
)
from app.call.evidence import BackendChoice, Route
from app.call.journal import Facts, Journal
from app.call.plan import Plan
from app.call.playout import Playout
from app.call.records import CallEnded, CallEvent
from app.call.texts import CUT_MARK, cut
from app.call.wall import Wall
from tests.call.phone_model import Phone, length_ms, mulaw
from tests.call.script import CALL_SID, SILENT, STREAM_SID, UNIX_MS, Script, agent, fault, frame, only, talking

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


def test_long_payload_is_cut_without_copying_its_rest_for_each_piece() -> None:
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
    pieces = played_to_the_end(playout, "item")
    sizes = [length_ms(piece) * 8 for piece in pieces]
    assert "".join(pieces) == payload
    assert sum(sizes) == audio_bytes
    assert all(0 < size <= limits.PIECE_MAX_MS * limits.MULAW_BYTES_PER_MS for size in sizes)


def played_to_the_end(playout: Playout, item_id: str) -> list[str]:
    """The pieces in which an item goes to a phone that plays them all."""
    playout.complete(item_id)
    pieces: list[str] = []
    now = 0.0
    while playout.waiting_pieces:
        for command in playout.release(now):
            if isinstance(command, SendAudio):
                pieces.append(command.payload)
            else:
                playout.mark_returned(command.name, now)
        now += limits.PIECE_MAX_MS / 1000
    return pieces


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
    assert script.call.fill["agent_pieces"] == 0
    for _ in range(2):
        script.call.handle(NoBackendLeft(), 1.0)
    assert script.call.deadline() is None


# --- Messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "reason"),
    [(Side.PHONE, EndReason.PHONE_MISBEHAVED), (Side.BACKEND, EndReason.BACKEND_MISBEHAVED)],
)
def test_peer_whose_message_is_too_long_has_misbehaved_and_not_vanished(side: Side, reason: EndReason) -> None:
    script = talking()
    [ended] = only(Ended, script.at(1.0, PeerLost(side, 1006, "message too long")))
    assert (ended.reason, script.end_details) == (reason, ["message too long"])


def test_next_backend_takes_the_call_of_one_whose_message_is_too_long() -> None:
    script = Script()
    asked = script.at(0.1, BackendOpened(), PeerLost(Side.BACKEND, 1006, "message too long"))
    assert [each.failure.reason for each in only(FindBackend, asked)] == [EndReason.BACKEND_MISBEHAVED]


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


def test_evidence_has_texts_of_a_length_that_can_be_kept() -> None:
    long = "long " * 10_000
    facts = Facts(CALL_SID, "leg-1", "fra", "openai", choice=BackendChoice("openai", long, (), long))
    journal = Journal(facts, Wall(0.0, UNIX_MS))
    records = journal.started(Plan(), STREAM_SID, Route(long, "fra", None), 0.0)
    route, choice = (record.evidence for record in records if isinstance(record, CallEvent))
    assert isinstance(route, Route)
    assert isinstance(choice, BackendChoice)
    for text in (route.edge, choice.voice, choice.because):
        assert text is not None
        assert len(text) == limits.DETAIL_MAX_CHARS
        assert text.endswith(CUT_MARK)


@pytest.mark.parametrize("length", [0, 1, 99, 100])
def test_text_that_fits_is_not_cut(length: int) -> None:
    assert cut("x" * length, 100) == "x" * length


@pytest.mark.parametrize("length", [101, 108, 10_000])
def test_text_that_is_cut_is_as_long_as_it_may_be(length: int) -> None:
    assert len(cut("x" * length, 100)) == 100


# --- Turns -----------------------------------------------------------------------------------


def test_turns_beyond_the_limit_are_played_and_counted_and_have_no_record() -> None:
    script = talking()
    for number in range(limits.TURNS_MAX + 40):
        script.call.handle(SpeechStarted(f"u{number}"), 1.0)
    script.at(1.0, SpeechStopped("u0"), CallerTurnCommitted("u0"))
    commands = script.at(1.1, ResponseStarted("r1"), agent("item_A", 100), agent("item_A", 100))
    assert only(SendAudio, commands)
    commands = script.at(1.2, PhoneStopped())
    records = [each.record for each in only(Remember, commands)]
    assert [(each.kind, each.detail) for each in records if isinstance(each, CallEvent)] == [
        ("left_out", "turns 41")
    ]
    assert isinstance(records[-1], CallEnded)
    assert records[-1].turns == limits.TURNS_MAX


def test_backend_that_hears_turns_without_end_is_broken() -> None:
    script = talking()
    for number in range(limits.TURNS_ABSURD):
        script.call.handle(SpeechStarted(f"u{number}"), 1.0)
    script.at(1.0, SpeechStarted("one more"))
    assert script.ended == Ended(EndReason.BACKEND_MISBEHAVED)


def test_call_events_beyond_the_limit_are_counted_and_the_end_is_recorded() -> None:
    script = talking()
    for number in range(limits.CALL_EVENTS_MAX + 7):
        script.at(1.0 + number / 100, fault(ErrorKind.HARMLESS, "invalid_value"))
    script.at(9.0, PeerLost(Side.PHONE, 1006))
    told = [record for record in script.records if isinstance(record, CallEvent)]
    assert [(each.kind, each.detail) for each in told[-2:]] == [("left_out", "events 7"), ("end", "1006")]
    assert [each.seq for each in told] == list(range(limits.CALL_EVENTS_MAX + 2))


# --- Keys ------------------------------------------------------------------------------------


def keys(script: Script, since: float, number: int, per_s: float) -> int:
    """How many of so many keys reach the backend."""
    told = [script.at(since + n / per_s, KeyPressed("1")) for n in range(number)]
    return sum(len(only(AddTurn, each)) for each in told)


def test_card_number_and_more_may_be_typed_at_once() -> None:
    assert keys(talking(), 1.0, limits.KEYS_AT_ONCE_MAX, 1_000.0) == limits.KEYS_AT_ONCE_MAX


def test_thousand_keys_a_second_are_counted_and_not_all_passed_on() -> None:
    script = talking(idle_prompt_s=600.0)
    told = keys(script, 1.0, 3_000, 1_000.0)
    assert told <= limits.KEYS_AT_ONCE_MAX + 3 * limits.KEYS_PER_S
    script.at(5.0, PhoneStopped())
    [left_out] = [
        each.detail for each in script.records if isinstance(each, CallEvent) and each.kind == "left_out"
    ]
    assert left_out == f"keys {3_000 - told}"


def test_keys_of_a_whole_call_have_an_end() -> None:
    script = talking(idle_prompt_s=600.0)
    told = sum(
        len(only(AddTurn, script.call.handle(KeyPressed("1"), 1.0 + n / 9))) for n in range(limits.KEYS_MAX + 50)
    )
    assert told == limits.KEYS_MAX


# --- Odd messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
def test_messages_that_are_odd_now_and_then_do_not_end_a_long_call(side: Side) -> None:
    script = talking(idle_prompt_s=1_700.0)
    for number in range(60):
        script.at(1.0 + number * limits.BAD_MESSAGE_FORGIVEN_S, BadMessage(side, "not JSON"))
    assert script.ended is None


@pytest.mark.parametrize("side", Side)
def test_messages_that_are_all_odd_end_the_call(side: Side) -> None:
    script = talking()
    assert not only(Ended, script.at(1.0, *[BadMessage(side, "not JSON")] * limits.BAD_MESSAGES_MAX))
    script.at(1.1, BadMessage(side, "not JSON"))
    assert script.ended is not None
    assert script.ended.reason in {EndReason.PHONE_MISBEHAVED, EndReason.BACKEND_MISBEHAVED}


# --- A phone that does not read --------------------------------------------------------------


def speaking(script: Script) -> None:
    """The agent speaks without end from 1 s on, and the caller's frames come."""
    script.at(1.0, ResponseStarted("r1"))
    for number in range(120):
        at = 1.0 + number
        script.at(at, Pong(Side.BACKEND), frame(1_000 * number, 1_000), agent("item_A", 1_000))
        if script.ended is not None:
            return


def test_phone_that_stops_reading_is_noticed_though_it_sends() -> None:
    script = talking(max_call_s=600.0)
    script.until(0.9)
    script.pongs, script.phone.loses_marks = False, True
    speaking(script)
    assert script.ended == Ended(EndReason.PHONE_SLOW)
    assert script.now <= 1.0 + limits.UNREAD_S + limits.PING_EVERY_S


def test_phone_that_has_never_read_is_noticed_by_its_marks() -> None:
    script = Script(SILENT, Phone(loses_marks=True), pongs=False).begin()
    speaking(script)
    assert script.ended == Ended(EndReason.PHONE_SLOW)
    assert 20.0 < script.now < 45.0


@pytest.mark.parametrize(("pongs", "loses_marks"), [(True, True), (False, False)])
def test_phone_that_answers_pings_or_returns_marks_reads(pongs: bool, loses_marks: bool) -> None:
    script = Script(SILENT, Phone(loses_marks=loses_marks)).begin()
    script.until(0.9)
    script.pongs = pongs
    speaking(script)
    assert script.ended is None


# --- Held audio ------------------------------------------------------------------------------


def test_audio_held_in_tiny_frames_is_bounded_by_their_number() -> None:
    script = Script()
    script.at(0.0, PhoneConnected(), PhoneStarted(STREAM_SID, CALL_SID))
    for number in range(20_000):
        script.call.handle(CallerAudio("AA==", 1, number), 0.1)
    assert script.call.fill["held_frames"] == limits.HELD_FRAMES_MAX
