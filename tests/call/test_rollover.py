"""A session that is about to end: another one takes its place at a quiet moment, unnoticed by the caller."""

from dataclasses import replace

import pytest

from app.call import limits
from app.call.events import (
    AddTurn,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendOpened,
    CallerTranscribed,
    CreateResponse,
    FindBackend,
    OpenSpare,
    PassOn,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendClear,
    Side,
    SpareLost,
    SpareReady,
    SpeechStarted,
    SpeechStopped,
    SwitchBackend,
    SwitchToSpare,
)
from app.call.journal import ROLLOVER, TAKE_OVER
from app.call.phases import Phase
from app.call.records import CallEvent
from tests.call.script import CALL_SID, SILENT, STREAM_SID, UNIX_MS, Script, agent, frame
from tests.call.test_failover import successor

ENDS_S = 600.0
OPENS_AT = ENDS_S - limits.ROLLOVER_BEFORE_S
LOST = PeerLost(Side.BACKEND, 1001)
SPARE = SpareReady(successor("openai"), UNIX_MS + 4_000_000)


def begun(*, ends_s: float | None = ENDS_S) -> Script:
    """A call whose session ends after so long; the agent has been heard. No caller is asked to speak."""
    script = Script(replace(SILENT, idle_prompt_s=5_000.0, max_call_s=10_000.0))
    script.at(0.0, BackendOpened(None if ends_s is None else UNIX_MS + round(ends_s * 1000)))
    script.at(0.1, BackendConfigured(formats_match=True), PhoneConnected(), PhoneStarted(STREAM_SID, CALL_SID))
    speaks(script, 0.3)
    return script


def speaks(script: Script, at: float) -> None:
    """The agent says a sentence of a second."""
    said = AgentText("r1", "item_A", "We are open until six.", final=True)
    script.at(at, ResponseStarted("r1"), said, agent("item_A", 1_000), AgentAudioEnded("r1", "item_A"))
    script.at(at, ResponseEnded("r1", ResponseStatus.COMPLETED))


def events_of(script: Script, kind: str) -> list[str]:
    return [each.detail for each in script.records if isinstance(each, CallEvent) and each.kind == kind]


@pytest.mark.parametrize(("ends_s", "at"), [(ENDS_S, OPENS_AT), (None, 3_600.0 - limits.ROLLOVER_BEFORE_S)])
def test_spare_is_opened_some_minutes_before_the_session_ends(ends_s: float | None, at: float) -> None:
    script = begun(ends_s=ends_s)
    script.until(at + 10.0)
    assert [opened for opened, _ in script.every(OpenSpare)] == [pytest.approx(at)]


def test_spare_takes_over_at_once_when_it_is_quiet() -> None:
    script = begun()
    script.at(OPENS_AT, frame(0))
    commands = script.at(OPENS_AT + 1.0, SPARE)
    told = [each for each in commands if isinstance(each, SwitchToSpare | AddTurn | PassOn | CreateResponse)]
    assert [type(each) for each in told] == [SwitchToSpare, AddTurn, PassOn]
    assert script.call.phase is Phase.TALKING
    assert events_of(script, ROLLOVER) == ["openai next=openai"]
    assert events_of(script, TAKE_OVER) == []
    assert [outcome for _, outcome in script.outcomes] == [None]


def test_spare_waits_until_the_agent_was_heard() -> None:
    script = begun()
    speaks(script, OPENS_AT)
    script.at(OPENS_AT + 0.5, SPARE)
    assert not script.every(SwitchToSpare)
    script.until(OPENS_AT + 1.2)
    assert [at for at, _ in script.every(SwitchToSpare)] == [pytest.approx(OPENS_AT + 1.0, abs=0.1)]
    assert not script.every(SendClear)


def test_spare_waits_while_the_caller_speaks_and_is_owed_an_answer() -> None:
    script = begun()
    script.at(OPENS_AT, SpeechStarted("u1"))
    script.at(OPENS_AT + 1.0, SPARE)
    script.at(OPENS_AT + 2.0, SpeechStopped("u1"))
    assert not script.every(SwitchToSpare)
    speaks(script, OPENS_AT + 3.0)
    script.until(OPENS_AT + 5.0)
    assert not script.every(SwitchToSpare), "the words of the turn have not come"
    script.at(OPENS_AT + 5.0, CallerTranscribed("u1", "When?"))
    assert len(script.every(SwitchToSpare)) == 1


def test_conversation_goes_on_in_the_next_session() -> None:
    script = begun()
    script.at(OPENS_AT + 1.0, SPARE)
    script.at(OPENS_AT + 2.0, ResponseStarted("r1"), agent("item_A", 500))
    script.at(OPENS_AT + 2.0, ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(OPENS_AT + 4.0)
    assert script.turns[-1].heard_ms == 500
    assert [turn.seq for turn in script.turns] == [0, 1]


def test_session_that_ends_under_constant_talk_is_taken_over_by_the_spare() -> None:
    script = begun()
    script.at(OPENS_AT, SpeechStarted("u1"), frame(0))
    script.at(OPENS_AT + 1.0, SPARE, frame(20))
    commands = script.at(OPENS_AT + 2.0, LOST)
    assert not script.every(FindBackend)
    assert not script.every(SwitchBackend)
    assert [type(each) for each in commands if isinstance(each, SwitchToSpare | AddTurn | PassOn)] == [
        SwitchToSpare,
        AddTurn,
        PassOn,
        PassOn,
    ]
    assert events_of(script, TAKE_OVER) == ["openai backend_lost 1001 next=openai pause_ms=0"]
    assert script.call.phase is Phase.TALKING


def test_spare_that_cannot_be_opened_is_tried_again() -> None:
    script = begun()
    script.until(OPENS_AT)
    script.at(OPENS_AT + 1.0, SpareLost("connection refused"))
    script.until(OPENS_AT + 30.0)
    opened = [at for at, _ in script.every(OpenSpare)]
    assert opened == [pytest.approx(OPENS_AT), pytest.approx(OPENS_AT + 1.0 + limits.SPARE_AGAIN_S)]
    assert script.ended is None


def test_spare_that_was_lost_is_not_used() -> None:
    script = begun()
    script.at(OPENS_AT, SpeechStarted("u1"))
    script.at(OPENS_AT + 1.0, SPARE)
    script.at(OPENS_AT + 2.0, SpareLost("1006"))
    script.at(OPENS_AT + 3.0, LOST)
    assert not script.every(SwitchToSpare)


def test_next_session_is_rolled_over_as_well() -> None:
    script = begun()
    script.at(OPENS_AT + 1.0, SPARE)
    script.until(OPENS_AT + 3_600.0 - limits.ROLLOVER_BEFORE_S + 2.0)
    assert len(script.every(OpenSpare)) == 2
