"""The phases of a call and of its backend: the tables say all that can happen, and all of it does happen."""

import runpy
from collections.abc import Callable, Iterable
from enum import Enum

import pytest

from app.call import limits, phases
from app.call.ending import EndReason
from app.call.events import (
    BackendConfigured,
    BackendOpened,
    Ended,
    Event,
    FindBackend,
    MoveRequested,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    ShutdownRequested,
    Side,
    SpeechStarted,
    ToolCalled,
)
from app.call.phases import (
    BACKEND_TRANSITIONS,
    TRANSITIONS,
    BackendCause,
    BackendPhase,
    Cause,
    Phase,
    diagram,
    following,
)
from app.call.plan import Plan
from tests.call.script import CALL_SID, STREAM_SID, Script, agent, answered, talking
from tests.call.test_failover import successor

CONNECTED = PhoneConnected()
STARTED = PhoneStarted(STREAM_SID, CALL_SID)
OPENED = BackendOpened()
CONFIGURED = BackendConfigured(formats_match=True)
LOST = PeerLost(Side.BACKEND, 1006)
SPEAKS = SpeechStarted("u1")


def before(*events: Event) -> Script:
    """A call to which this has happened, and which may have another backend."""
    script = Script(successors=[successor("azure")])
    script.at(0.0, *events)
    return script


def says_goodbye() -> Script:
    """The agent is saying goodbye."""
    script = talking()
    hang_up = ToolCalled("r1", "call_1", "hang_up", "{}")
    script.at(0.5, ResponseStarted("r1"), agent("item_A", 4_000), hang_up)
    script.at(0.6, ResponseEnded("r1", ResponseStatus.COMPLETED))
    return script


def leaves() -> Script:
    """The goodbye was heard."""
    script = says_goodbye()
    script.until(5.0)
    return script


def moves() -> Script:
    """Another machine is to go on with the call."""
    script = talking()
    script.at(0.3, MoveRequested(by=0.3))
    return script


def may_go_on(script: Script) -> Script:
    """A call that may have one other backend."""
    script.successors = [successor("azure")]
    return script


def heard() -> Script:
    """The caller has heard the agent."""
    return may_go_on(answered())


def takes_over(script: Script, *events: Event) -> Script:
    """A call that has lost its session; this has happened to the next one."""
    may_go_on(script).at(0.7, LOST, *events)
    return script


def asks_for_a_goodbye() -> Script:
    """The model has called hang_up, in a response that is about to end."""
    script = talking()
    hang_up = ToolCalled("r1", "call_1", "hang_up", "{}")
    script.at(0.5, ResponseStarted("r1"), agent("item_A", 4_000), hang_up)
    return script


Way = tuple[Callable[[], Script], Event | float]
"""A call, and the event that takes it to its next phase; or the instant until which nothing has to happen."""

WAYS: dict[tuple[Phase, Cause], Way] = {
    (Phase.EXPECTED, Cause.STREAM_CONNECTED): (before, CONNECTED),
    (Phase.EXPECTED, Cause.OVER): (before, limits.STREAM_WAIT_S),
    (Phase.ARRIVED, Cause.STREAM_STARTED): (lambda: before(CONNECTED), STARTED),
    (Phase.ARRIVED, Cause.OVER): (lambda: before(CONNECTED), limits.START_WAIT_S),
    (Phase.OPENING, Cause.BACKEND_READY): (lambda: before(CONNECTED, STARTED, OPENED), CONFIGURED),
    (Phase.OPENING, Cause.MOVE_DUE): (lambda: before(CONNECTED, STARTED), MoveRequested(by=0.0)),
    (Phase.OPENING, Cause.OVER): (lambda: before(CONNECTED, STARTED), limits.OPEN_LIMIT_S),
    (Phase.TALKING, Cause.BACKEND_REPLACED): (lambda: before(CONNECTED, STARTED, OPENED, CONFIGURED), LOST),
    (Phase.TALKING, Cause.GOODBYE_BEGUN): (asks_for_a_goodbye, ResponseEnded("r1", ResponseStatus.COMPLETED)),
    (Phase.TALKING, Cause.MOVE_DUE): (talking, MoveRequested(by=0.3)),
    (Phase.TALKING, Cause.OVER): (talking, PhoneStopped()),
    (Phase.TALKING, Cause.SESSION_LOST): (heard, LOST),
    (Phase.TAKING_OVER, Cause.BACKEND_READY): (lambda: takes_over(heard(), OPENED), CONFIGURED),
    (Phase.TAKING_OVER, Cause.GOODBYE_BEGUN): (lambda: takes_over(says_goodbye()), LOST),
    (Phase.TAKING_OVER, Cause.MOVE_DUE): (lambda: takes_over(heard()), MoveRequested(by=0.7)),
    (Phase.TAKING_OVER, Cause.OVER): (lambda: takes_over(heard()), LOST),
    (Phase.SAYING_GOODBYE, Cause.SESSION_LOST): (lambda: may_go_on(says_goodbye()), LOST),
    (Phase.SAYING_GOODBYE, Cause.CALLER_CUT_IN): (says_goodbye, SPEAKS),
    (Phase.SAYING_GOODBYE, Cause.GOODBYE_HEARD): (says_goodbye, 5.0),
    (Phase.SAYING_GOODBYE, Cause.OVER): (says_goodbye, PhoneStopped()),
    (Phase.LEAVING, Cause.OVER): (leaves, PhoneStopped()),
    (Phase.MOVING, Cause.OVER): (moves, ShutdownRequested()),
}

BACKEND_WAYS: dict[tuple[BackendPhase, BackendCause], Way] = {
    (BackendPhase.DIALLING, BackendCause.OPENED): (before, OPENED),
    (BackendPhase.DIALLING, BackendCause.REPLACED): (before, LOST),
    (BackendPhase.CONFIGURING, BackendCause.CONFIGURED): (lambda: before(OPENED), CONFIGURED),
    (BackendPhase.CONFIGURING, BackendCause.REPLACED): (lambda: before(OPENED), LOST),
    (BackendPhase.READY, BackendCause.REPLACED): (lambda: before(OPENED, CONFIGURED), LOST),
    (BackendPhase.READY, BackendCause.LOST): (says_goodbye, LOST),
    (BackendPhase.DIALLING, BackendCause.LOST): (lambda: takes_over(says_goodbye()), LOST),
    (BackendPhase.CONFIGURING, BackendCause.LOST): (lambda: takes_over(says_goodbye(), OPENED), LOST),
}


def go(script: Script, step: Event | float) -> None:
    """Let this happen, or time pass."""
    if isinstance(step, float):
        script.until(step)
    else:
        script.at(script.now, step)


def names(rows: Iterable[tuple[Enum, Enum]]) -> list[str]:
    """Readable test ids."""
    return [f"{phase.name}-{cause.name}" for phase, cause in rows]


@pytest.mark.parametrize(("row", "way"), WAYS.items(), ids=names(WAYS))
def test_call_goes_from_phase_to_phase_as_the_table_says(row: tuple[Phase, Cause], way: Way) -> None:
    (phase, cause), (call, step) = row, way
    script = call()
    assert script.call.phase is phase
    go(script, step)
    assert script.call.phase is TRANSITIONS[phase][cause]


@pytest.mark.parametrize(("row", "way"), BACKEND_WAYS.items(), ids=names(BACKEND_WAYS))
def test_backend_goes_from_phase_to_phase_as_the_table_says(
    row: tuple[BackendPhase, BackendCause], way: Way
) -> None:
    (phase, cause), (call, step) = row, way
    script = call()
    assert script.call.backend is phase
    go(script, step)
    assert script.call.backend is BACKEND_TRANSITIONS[phase][cause]


def test_every_transition_of_the_tables_is_one_that_calls_take() -> None:
    assert set(WAYS) == {(phase, cause) for phase, causes in TRANSITIONS.items() for cause in causes}
    rows = {(phase, cause) for phase, causes in BACKEND_TRANSITIONS.items() for cause in causes}
    assert set(BACKEND_WAYS) == rows


def test_every_phase_is_in_its_table() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert set(BACKEND_TRANSITIONS) == set(BackendPhase)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("cause", Cause)
def test_transition_that_the_table_does_not_have_is_a_bug(phase: Phase, cause: Cause) -> None:
    if cause in TRANSITIONS[phase]:
        return
    with pytest.raises(AssertionError, match=f"{cause.name} is impossible in {phase.name}"):
        following(TRANSITIONS, phase, cause)


def test_diagrams_in_the_docs_are_those_of_the_tables() -> None:
    assert phases.__doc__ is not None
    assert f"\n\n{diagram(TRANSITIONS)}\n\n" in phases.__doc__
    assert f"\n\n{diagram(BACKEND_TRANSITIONS)}\n\n" in phases.__doc__


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_module_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("app.call.phases", run_name="__main__")
    printed = capsys.readouterr().out
    assert printed == f"{diagram(TRANSITIONS)}\n\n{diagram(BACKEND_TRANSITIONS)}\n"


def test_goodbye_does_not_begin_while_another_backend_is_looked_for() -> None:
    """The greeting is late at the very instant at which the longest allowed time is over."""
    script = talking(Plan(greeting="Hello.", max_call_s=limits.GREETING_LATE_S))
    script.successors = [successor("azure")]
    script.until(0.3 + limits.GREETING_LATE_S)
    assert len(script.every(FindBackend)) == 1
    assert script.call.phase is Phase.OPENING
    script.at(script.now, OPENED, CONFIGURED)
    script.to_the_end()
    assert script.ended == Ended(EndReason.MAX_LENGTH)
