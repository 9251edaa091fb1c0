"""A session that is lost in the middle of a conversation: the next one goes on with it, and repeats nothing."""

from dataclasses import replace

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AddTurn,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFault,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    Command,
    CreateResponse,
    DeleteItem,
    Ended,
    ErrorKind,
    Event,
    FindBackend,
    HangUp,
    KeyPressed,
    NoBackendLeft,
    PassOn,
    PeerLost,
    PeerSlow,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    RunTool,
    SendAudio,
    SendClear,
    Side,
    SpeechStarted,
    SpeechStopped,
    SwitchBackend,
    ToolCalled,
    ToolFinished,
    Truncate,
)
from app.call.evidence import BackendChoice
from app.call.failure import BackendFailure, Scope
from app.call.pause import TONE
from app.call.phases import Phase
from app.call.plan import Plan, Purpose
from app.call.records import CallEvent, Speaker
from tests.call.script import Script, agent, answered, failure, fault, frame, only, talking
from tests.call.test_failover import successor

LOST = PeerLost(Side.BACKEND, 1006)
OPENED = BackendOpened()
CONFIGURED = BackendConfigured(formats_match=True)
SENTENCE = "On Tuesday we have a free appointment at half past ten in the morning"
"""At the usual pace, 15 letters a second, 4.6 s of speech."""


def conversation(*successors: str, **changes: object) -> Script:
    """The caller has heard the agent; these backends may go on."""
    script = answered(**changes)  # type: ignore[arg-type]  # kept short
    found = [successor(name) for name in successors]
    script.successors = [replace(each, plan=replace(each.plan, **changes)) for each in found]  # type: ignore[arg-type]
    return script


def speaks(script: Script, at: float, ms: int, text: str = SENTENCE, response_id: str = "r1") -> None:
    """The agent begins to speak; its words run ahead of its audio."""
    said = AgentText(response_id, f"item_{response_id}_A", text)
    audio = agent(f"item_{response_id}_A", ms, response_id)
    script.at(at, ResponseStarted(response_id), said, audio)


def asks(script: Script, at: float, words: str | None = None, item_id: str = "u1") -> None:
    """The caller asks something, of one second, in frames; with `words` it is written down at once."""
    script.at(at, SpeechStarted(item_id))
    for number in range(50):
        script.at(at + number / 50, frame(20_000 + 20 * number))
    script.at(at + 1.0, SpeechStopped(item_id), CallerTurnCommitted(item_id))
    if words is not None:
        script.at(at + 1.0, CallerTranscribed(item_id, words))


def goes_on(script: Script, at: float, opens_after_s: float = 0.2) -> list[Command]:
    """The session is lost, and the next one is ready a moment later. Returns what that leads to."""
    script.at(at, LOST)
    script.at(at + opens_after_s / 2, OPENED)
    return script.at(at + opens_after_s, CONFIGURED)


def told(commands: list[Command]) -> list[tuple[Speaker, str]]:
    """The turns that a session is told of."""
    return [(each.speaker, each.text) for each in only(AddTurn, commands)]


def asked(commands: list[Command]) -> list[Purpose]:
    return [each.purpose for each in only(CreateResponse, commands)]


def events_of(script: Script, kind: str) -> list[str]:
    return [each.detail for each in script.records if isinstance(each, CallEvent) and each.kind == kind]


# --- Who goes on -------------------------------------------------------------------------------------

SLOW = PeerSlow(Side.BACKEND)
WHO: dict[str, tuple[Event, tuple[str, ...]]] = {
    "lost": (LOST, ()),
    "slow": (SLOW, ("openai",)),
    "no credit": (fault(ErrorKind.FATAL, "insufficient_quota"), ("openai",)),
}


@pytest.mark.parametrize(("event", "excluded"), WHO.values(), ids=WHO)
def test_same_backend_goes_on_unless_it_is_to_blame(event: Event, excluded: tuple[str, ...]) -> None:
    script = conversation("azure")
    script.at(1.0, event)
    [(_, search)] = script.every(FindBackend)
    assert (search.excluded, search.only_working) == (excluded, False)
    assert len(script.every(SwitchBackend)) == 1
    assert script.call.phase is Phase.TAKING_OVER


def test_session_that_expired_goes_on_with_the_same_backend() -> None:
    script = conversation("azure")
    expired = BackendFailure(EndReason.BACKEND_REFUSED, "session_expired", Scope.CALL, text="session_expired")
    script.at(1.0, BackendFault(ErrorKind.FATAL, expired))
    assert [search.excluded for _, search in script.every(FindBackend)] == [()]


def test_backend_that_lost_two_sessions_is_left_for_another() -> None:
    script = conversation("openai", "azure")
    goes_on(script, 1.0)
    goes_on(script, 5.0)
    assert [search.excluded for _, search in script.every(FindBackend)] == [(), ("openai",)]


def test_only_backend_is_asked_again_when_it_did_not_read() -> None:
    call = conversation().call
    [first] = only(FindBackend, call.handle(SLOW, 1.0))
    [second] = only(FindBackend, call.handle(NoBackendLeft(), 1.0))
    assert (first.excluded, second.excluded) == (("openai",), ())


def test_backend_that_refuses_its_work_is_not_asked_again() -> None:
    call = conversation().call
    call.handle(fault(ErrorKind.FATAL, "insufficient_quota"), 1.0)
    assert [type(each) for each in call.handle(NoBackendLeft(), 1.0)][-1] is Ended


def test_more_lost_sessions_than_three_in_a_minute_end_in_the_apology() -> None:
    script = conversation(*["openai"] * 5, idle_prompt_s=600.0)
    for number in range(limits.TAKE_OVERS_MAX):
        goes_on(script, 1.0 + 10 * number)
        assert script.call.phase is Phase.TALKING
    script.at(45.0, LOST)
    assert script.ended == Ended(EndReason.BACKEND_LOST)


def test_lost_sessions_of_long_ago_do_not_count() -> None:
    script = conversation(*["openai"] * 6, idle_prompt_s=600.0)
    for number in range(6):
        goes_on(script, 1.0 + 30 * number)
    assert script.ended is None


@pytest.mark.parametrize("hangs", [(), (OPENED,)], ids=["at its handshake", "at its configuration"])
def test_no_backend_that_opens_ends_in_the_apology_after_five_seconds(hangs: tuple[Event, ...]) -> None:
    script = conversation("openai")
    script.at(1.0, LOST, *hangs)
    script.to_the_end()
    [(at, ended)] = script.every(Ended)
    assert ended.reason is EndReason.BACKEND_NOT_READY
    assert at == pytest.approx(1.0 + limits.OPEN_LIMIT_S)


def test_no_backend_at_all_ends_in_the_apology_at_once() -> None:
    script = conversation()
    script.at(1.0, LOST)
    assert script.ended == Ended(EndReason.BACKEND_LOST)


# --- What the agent was saying -----------------------------------------------------------------------


def test_reply_that_broke_off_goes_on_where_it_stopped() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=2_000)
    commands = goes_on(script, 1.5)
    heard = "On Tuesday we have a free"
    assert told(commands)[-1] == (Speaker.AGENT, heard)
    assert asked(commands) == [Purpose.CONTINUE]
    assert f'"{heard}"' in only(CreateResponse, commands)[0].instructions
    script.at(
        1.8, ResponseStarted("r2"), agent("item_B", 500, "r2"), ResponseEnded("r2", ResponseStatus.COMPLETED)
    )
    script.until(5.0)
    assert script.phone.played_ms("A") == pytest.approx(2_000)
    assert script.phone.played_ms("B") == pytest.approx(500)
    assert len(script.phone.gaps_s) == 1, "between the reply before and this one, and not within it"
    assert not script.every(SendClear)
    assert not script.every(Truncate)
    first, second = script.turns[-2:]
    assert (first.said_ms, first.heard_ms, first.heard, first.interrupted) == (2_000, 2_000, heard, True)
    assert (second.seq, second.heard_ms, second.interrupted) == (first.seq + 1, 500, False)
    assert [turn.seq for turn in script.turns] == [0, 1, 2]


def test_reply_that_stalled_goes_on_in_the_next_session_where_it_stopped() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=2_000)
    script.until(1.0 + limits.RESPONSE_STALL_S + 1.0)
    commands = goes_on(script, 1.0 + limits.RESPONSE_STALL_S + 2.0)
    assert asked(commands) == [Purpose.CONTINUE]
    assert "On Tuesday we have a free" in only(CreateResponse, commands)[0].instructions


def test_reply_whose_end_never_came_is_not_repeated() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=4_600)
    script.at(1.2, AgentAudioEnded("r1", "item_r1_A"))
    script.until(1.0 + limits.RESPONSE_STALL_S + 1.0)
    commands = goes_on(script, 1.0 + limits.RESPONSE_STALL_S + 2.0)
    script.until(20.0)
    assert asked(commands) == []
    assert script.every(CreateResponse) == []
    assert script.phone.played_ms("A") == pytest.approx(4_600)


def test_reply_whose_audio_had_all_come_is_not_repeated() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=4_600)
    script.at(1.2, AgentAudioEnded("r1", "item_r1_A"))
    commands = goes_on(script, 1.3)
    assert asked(commands) == []
    assert told(commands)[-1] == (Speaker.AGENT, SENTENCE)
    script.until(10.0)
    turn = script.turns[-1]
    assert (turn.heard, turn.heard_ms, turn.interrupted) == (SENTENCE, 4_600, False)


def test_reply_that_had_not_begun_to_be_heard_is_asked_for_anew() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    script.at(2.1, ResponseStarted("r1"), AgentText("r1", "item_A", SENTENCE))
    commands = goes_on(script, 2.2)
    assert told(commands)[-1] == (Speaker.CALLER, "When?")
    assert asked(commands) == [Purpose.RETRY]
    assert [turn.seq for turn in script.turns] == [0, 1]


def test_continuation_that_breaks_off_is_gone_on_with_from_its_own_words() -> None:
    script = conversation("openai", "openai")
    speaks(script, 1.0, ms=2_000)
    goes_on(script, 1.5)
    speaks(script, 1.8, ms=1_000, text="appointment at half past ten", response_id="r2")
    commands = goes_on(script, 2.0)
    assert told(commands)[-2:] == [
        (Speaker.AGENT, "On Tuesday we have a free"),
        (Speaker.AGENT, "appointment at"),
    ]
    [again] = only(CreateResponse, commands)
    assert again.purpose is Purpose.CONTINUE
    assert '"appointment at"' in again.instructions


def test_request_that_was_not_granted_yet_is_made_again() -> None:
    script = conversation("openai", idle_prompt_s=5.0)
    script.until(6.0)
    assert [each.purpose for _, each in script.every(CreateResponse)] == [Purpose.IDLE]
    assert asked(goes_on(script, 6.0)) == [Purpose.IDLE]


def test_session_learns_where_the_caller_cut_into_an_earlier_reply() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=4_000)
    commands = goes_on(script, 1.1)
    [item_id] = [each.item_id for each in only(AddTurn, commands) if each.item_id]
    cut = script.at(3.0, SpeechStarted("u1"))
    assert only(SendClear, cut)
    assert not only(Truncate, cut)
    turn = script.turns[-1]
    assert turn.heard_ms == pytest.approx(2_000, abs=40)
    assert only(AddTurn, cut) == [AddTurn(Speaker.AGENT, turn.heard or "", after=item_id)]
    assert only(DeleteItem, cut) == [DeleteItem(item_id)]
    assert script.phone.played_ms("A") == pytest.approx(2_000, abs=40)


def test_new_session_may_use_the_names_of_the_old_one() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=2_000)
    goes_on(script, 1.1)
    speaks(script, 1.4, ms=1_000, text="appointment.")
    script.at(1.5, AgentAudioEnded("r1", "item_r1_A"), ResponseEnded("r1", ResponseStatus.COMPLETED))
    cut = script.at(3.5, SpeechStarted("u1"))
    assert [(each.item_id, each.audio_end_ms) for each in only(Truncate, cut)] == [("item_r1_A", 500)]
    assert [turn.heard_ms for turn in script.turns[-2:]] == [2_000, 500]


# --- What the caller was saying ----------------------------------------------------------------------


def test_turn_without_words_is_heard_by_the_next_session() -> None:
    script = conversation("openai")
    asks(script, 1.0)
    commands = goes_on(script, 2.1)
    frames = [each.payload for each in only(PassOn, commands)]
    assert frames == [f"f{20_000 + 20 * number}" for number in range(50)]
    assert told(commands) == []
    assert asked(commands) == []
    script.at(2.4, SpeechStarted("v1"), SpeechStopped("v1"), CallerTurnCommitted("v1"))
    script.at(2.5, ResponseStarted("r1"), agent("item_A", 100, "r1"), CallerTranscribed("v1", "When?"))
    script.at(2.6, ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(10.0)
    assert [(turn.seq, turn.speaker, turn.said_ms) for turn in script.turns] == [
        (0, Speaker.AGENT, 20),
        (1, Speaker.CALLER, 500),
        (2, Speaker.AGENT, 100),
    ]
    assert script.turns[2].answer_sent_ms == 1_000, "as the caller waited, the pause included"
    assert [each.purpose for _, each in script.every(CreateResponse)] == []


def test_turn_whose_words_were_given_up_is_heard_again_and_answered_once() -> None:
    script = conversation("openai")
    asks(script, 1.0)
    script.at(2.1, ResponseStarted("r1"))
    script.until(12.0)
    commands = goes_on(script, 12.5)
    assert len(only(PassOn, commands)) == 50
    script.at(12.8, SpeechStarted("v1"), SpeechStopped("v1"), CallerTurnCommitted("v1"))
    script.at(12.9, ResponseStarted("r2"), agent("item_B", 100, "r2"))
    script.at(13.0, ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(20.0)
    assert script.every(CreateResponse) == []


def test_turn_that_is_written_down_is_not_heard_again() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    commands = goes_on(script, 2.1)
    assert told(commands) == [(Speaker.CALLER, "When?")]
    assert only(PassOn, commands) == []
    assert asked(commands) == [Purpose.RETRY]


def test_caller_in_the_middle_of_a_sentence_is_heard_from_the_first_word() -> None:
    script = conversation("openai")
    for number in range(100):
        at = 1.0 + number / 50
        if number == 60:
            script.at(at, SpeechStarted("u1"))
        if number == 80:
            script.at(at, LOST)
        script.at(at, frame(20_000 + 20 * number))
    script.at(3.0, OPENED)
    frames = [each.payload for each in only(PassOn, script.at(3.1, CONFIGURED))]
    assert frames == [f"f{20_000 + 20 * number}" for number in range(60 - limits.PRE_ROLL_FRAMES, 100)]


def test_turn_in_which_the_next_session_hears_nothing_is_answered() -> None:
    script = conversation("openai")
    asks(script, 1.0)
    goes_on(script, 2.1)
    script.until(2.3 + limits.TURN_WAIT_S + 0.1)
    assert [each.purpose for _, each in script.every(CreateResponse)] == [Purpose.RETRY]


def test_tool_of_a_turn_that_is_heard_again_is_answered_at_once() -> None:
    script = conversation("openai")
    asks(script, 1.0)
    goes_on(script, 2.1)
    script.at(2.4, SpeechStarted("v1"), SpeechStopped("v1"), CallerTurnCommitted("v1"))
    script.at(2.5, ResponseStarted("r1"), ToolCalled("r1", "call_1", "find_slot", "{}"))
    assert asked(script.at(2.6, ResponseEnded("r1", ResponseStatus.COMPLETED))) == [Purpose.TOOL]


def test_what_was_answered_is_not_heard_again() -> None:
    script = conversation("openai")
    asks(script, 1.0)
    speaks(script, 2.1, ms=1_000)
    script.at(2.2, AgentAudioEnded("r1", "item_r1_A"), ResponseEnded("r1", ResponseStatus.COMPLETED))
    assert only(PassOn, goes_on(script, 4.0)) == []


def test_key_that_is_pressed_into_the_gap_is_told_and_answered() -> None:
    script = conversation("openai")
    script.at(1.0, LOST)
    script.at(1.1, KeyPressed("5"))
    script.at(1.2, OPENED)
    commands = script.at(1.3, CONFIGURED)
    assert told(commands)[-1] == (Speaker.CALLER, "(The caller pressed the key 5.)")
    script.until(4.0)
    assert [each.purpose for _, each in script.every(CreateResponse)] == [Purpose.KEYS]


def test_guarded_greeting_keeps_the_caller_back_after_a_loss_as_well() -> None:
    script = talking(Plan(greeting="Hello there.", greeting_interruptible=False))
    script.successors = [successor("openai")]
    speaks(script, 0.4, ms=2_000, text="Hello there, how can I help?", response_id="r0")
    script.at(0.5, frame(0))
    assert only(PassOn, goes_on(script, 0.6)) == []


# --- Tools -------------------------------------------------------------------------------------------


def runs_a_tool(script: Script, at: float) -> None:
    script.at(at, ResponseStarted("r1"), ToolCalled("r1", "call_1", "find_slot", '{"day":"tuesday"}'))
    script.at(at, ResponseEnded("r1", ResponseStatus.COMPLETED))


def test_output_of_a_tool_that_runs_goes_to_the_next_session() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    runs_a_tool(script, 2.1)
    commands = goes_on(script, 2.2)
    assert only(AddToolCall, commands) == [AddToolCall("call_1", "find_slot", '{"day":"tuesday"}')]
    assert only(AddToolOutput, commands) == []
    assert asked(commands) == []
    after = script.at(3.0, ToolFinished("call_1", "10:30"))
    assert only(AddToolOutput, after) == [AddToolOutput("call_1", "10:30")]
    assert asked(after) == [Purpose.TOOL]
    assert len(script.every(RunTool)) == 1


def test_tool_that_does_not_exist_is_told_to_the_next_session() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    script.at(2.1, ResponseStarted("r1"), ToolCalled("r1", "call_1", "look_up", "{}"))
    script.at(2.2, ResponseEnded("r1", ResponseStatus.COMPLETED))
    commands = goes_on(script, 2.3)
    assert only(AddToolCall, commands) == [AddToolCall("call_1", "look_up", "{}")]
    assert len(only(AddToolOutput, commands)) == 1
    assert asked(commands) == [Purpose.TOOL]


def test_tool_that_finishes_in_the_gap_is_answered_once() -> None:
    script = conversation("openai")
    runs_a_tool(script, 1.0)
    script.at(1.1, LOST, OPENED)
    script.at(1.2, ToolFinished("call_1", "10:30"))
    commands = script.at(1.3, CONFIGURED)
    assert [type(each) for each in commands if isinstance(each, AddToolCall | AddToolOutput | CreateResponse)] == [
        AddToolCall,
        AddToolOutput,
        CreateResponse,
    ]
    assert asked(commands) == [Purpose.TOOL]
    script.until(3.0)
    assert len(script.every(AddToolOutput)) == 1


def test_tool_whose_response_was_not_over_is_not_run() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    speaks(script, 2.1, ms=1_000, text="One moment please.")
    script.at(2.2, AgentAudioEnded("r1", "item_r1_A"), ToolCalled("r1", "call_1", "find_slot", "{}"))
    commands = goes_on(script, 2.3)
    assert not script.every(RunTool)
    assert asked(commands) == [Purpose.CONTINUE]


# --- The goodbye -------------------------------------------------------------------------------------


def says_goodbye(script: Script) -> None:
    hang_up = ToolCalled("r1", "call_1", "hang_up", "{}")
    script.at(
        1.0, ResponseStarted("r1"), AgentText("r1", "item_A", "Goodbye then."), agent("item_A", 3_000), hang_up
    )
    script.at(1.0, AgentAudioEnded("r1", "item_A"), ResponseEnded("r1", ResponseStatus.COMPLETED))
    assert script.call.phase is Phase.SAYING_GOODBYE


def test_goodbye_that_came_whole_is_heard_and_the_call_ends_as_it_should() -> None:
    script = conversation("openai")
    says_goodbye(script)
    assert asked(goes_on(script, 1.5)) == []
    script.until(6.0)
    assert script.phone.played_ms("A") == pytest.approx(3_000)
    assert len(script.every(HangUp)) == 1


def test_caller_who_cuts_into_a_goodbye_is_heard_by_the_next_session() -> None:
    script = conversation("openai")
    says_goodbye(script)
    goes_on(script, 1.5)
    script.at(2.0, SpeechStarted("u1"))
    assert script.call.phase is Phase.TALKING
    assert not script.every(AddToolOutput)


def test_goodbye_is_worth_no_apology_when_no_backend_is_left() -> None:
    script = conversation()
    says_goodbye(script)
    script.at(1.5, LOST)
    script.until(6.0)
    assert script.phone.played_ms("A") == pytest.approx(3_000)
    assert len(script.every(HangUp)) == 1


# --- The pause ---------------------------------------------------------------------------------------


def tones(script: Script) -> list[float]:
    return [at for at, sent in script.every(SendAudio) if sent.payload == TONE]


def test_pause_of_a_caller_who_waits_is_filled_with_a_tone() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    script.at(2.0, LOST)
    script.until(6.0)
    assert tones(script)[0] == pytest.approx(2.0 + limits.PAUSE_MAX_S)
    assert len(tones(script)) == 2
    assert len(script.turns) == 2


def test_pause_begins_when_the_last_of_the_reply_was_played() -> None:
    script = conversation("openai")
    speaks(script, 1.0, ms=3_000)
    script.at(1.5, LOST)
    script.until(7.0)
    assert tones(script)[0] == pytest.approx(4.0 + limits.PAUSE_MAX_S, abs=0.05)


@pytest.mark.parametrize("opens_after_s", [0.2, 1.4])
def test_short_pause_has_no_tone(opens_after_s: float) -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    goes_on(script, 2.0, opens_after_s)
    script.at(2.0 + opens_after_s, ResponseStarted("r1"))
    script.until(4.0)
    assert tones(script) == []


def test_pause_in_which_nobody_waits_has_no_tone() -> None:
    script = conversation("openai")
    script.at(2.0, LOST)
    script.until(6.0)
    assert tones(script) == []


def test_tenant_may_want_no_tone() -> None:
    script = conversation("openai", pause="off")
    asks(script, 1.0, "When?")
    script.at(2.0, LOST)
    script.until(6.0)
    assert tones(script) == []


def test_tone_is_cut_like_speech_and_the_backend_is_told_nothing_of_it() -> None:
    script = conversation("openai")
    asks(script, 1.0, "When?")
    script.at(2.0, LOST)
    script.at(3.55, OPENED, CONFIGURED)
    cut = script.at(3.6, SpeechStarted("v1"))
    assert only(SendClear, cut)
    assert not only(Truncate, cut)


# --- The records -------------------------------------------------------------------------------------


def test_record_names_what_was_lost_and_the_length_of_the_pause() -> None:
    script = conversation("azure")
    speaks(script, 1.0, ms=1_000)
    goes_on(script, 1.5, opens_after_s=0.8)
    assert events_of(script, "take_over") == ["openai backend_lost 1006 next=azure pause_ms=300"]
    chosen = [each.evidence for each in script.records if isinstance(each, CallEvent) and each.kind == "backend"]
    assert chosen == [BackendChoice("azure", "azure-voice", ("eu",), "near")]
    assert events_of(script, "failover") == []


def test_backend_that_fails_while_it_takes_over_is_recorded_as_a_failover() -> None:
    script = conversation("openai", "azure")
    script.at(1.0, LOST)
    script.at(1.1, PeerLost(Side.BACKEND, 1011), OPENED)
    script.at(1.3, CONFIGURED)
    assert events_of(script, "failover") == ["openai backend_lost 1011"]
    assert events_of(script, "take_over") == ["openai backend_lost 1006 next=azure pause_ms=300"]


def test_turns_name_the_backend_that_spoke_them() -> None:
    script = conversation("azure")
    speaks(script, 1.0, ms=1_000)
    goes_on(script, 1.2)
    script.at(
        1.5, ResponseStarted("r2"), agent("item_B", 500, "r2"), ResponseEnded("r2", ResponseStatus.COMPLETED)
    )
    script.until(5.0)
    assert [(turn.backend, turn.model) for turn in script.turns[-2:]] == [
        ("openai", Plan().model),
        ("azure", "azure-model"),
    ]


def test_session_that_was_lost_is_reported_with_its_failure() -> None:
    script = conversation("azure")
    script.at(1.0, fault(ErrorKind.FATAL, "insufficient_quota"))
    assert script.outcomes == [(1.0, failure("insufficient_quota"))]
