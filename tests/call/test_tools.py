"""Tools: which are run, when, and when the model is asked to go on (realtime.md 1.10)."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddToolOutput,
    CallerTurnCommitted,
    CreateResponse,
    Ended,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    RunTool,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    ToolFinished,
)
from app.call.plan import Purpose
from app.call.records import CallEvent
from tests.call.script import Script, agent, only, talking, without_records

R1 = ResponseStarted("r1")
R1_DONE = ResponseEnded("r1", ResponseStatus.COMPLETED)


def call(number: int, name: str = "find_slot", response_id: str = "r1") -> ToolCalled:
    """The model wants a tool."""
    return ToolCalled(response_id, f"call_{number}", name, '{"day":"tuesday"}')


def purposes(script: Script) -> list[Purpose]:
    """Why responses were asked for."""
    return [create.purpose for _, create in script.every(CreateResponse)]


def test_tool_runs_when_its_response_is_over_and_not_before() -> None:
    script = talking()
    assert not only(RunTool, script.at(1.0, R1, call(1)))
    assert only(RunTool, script.at(1.5, R1_DONE)) == [RunTool("call_1", "find_slot", '{"day":"tuesday"}')]


def test_tool_call_that_is_told_by_its_arguments_and_by_its_item_runs_once() -> None:
    script = talking()
    commands = script.at(1.0, R1, call(1), call(1), call(2), call(2), R1_DONE)
    assert [run.tool_call_id for run in only(RunTool, commands)] == ["call_1", "call_2"]


def test_call_too_many_that_is_told_twice_is_answered_once() -> None:
    script = talking()
    calls = [call(number) for number in range(limits.TOOL_CALLS_MAX + 3) for _ in range(2)]
    refused = only(AddToolOutput, script.at(1.0, R1, *calls))
    assert [each.tool_call_id for each in refused] == [f"call_{limits.TOOL_CALLS_MAX + n}" for n in range(3)]


def test_id_of_a_tool_call_may_come_again_in_another_response() -> None:
    script = talking()
    script.at(1.0, R1, call(1), R1_DONE, ToolFinished("call_1", "a"))
    script.at(2.0, ResponseStarted("r2"), call(1, response_id="r2"))
    assert only(RunTool, script.at(2.1, ResponseEnded("r2", ResponseStatus.COMPLETED)))


def test_output_of_a_tool_goes_before_the_one_response_it_asks_for() -> None:
    script = talking()
    script.at(1.0, R1, call(1), R1_DONE)
    assert without_records(script.at(2.0, ToolFinished("call_1", "10:30"))) == [
        AddToolOutput("call_1", "10:30"),
        CreateResponse(Purpose.TOOL, ""),
    ]


def test_three_tools_ask_for_one_response_after_the_last_output() -> None:
    script = talking()
    script.at(1.0, R1, call(1), call(2), call(3), R1_DONE)
    script.at(2.0, ToolFinished("call_3", "c"))
    script.at(2.1, ToolFinished("call_1", "a"))
    script.until(2.9)
    assert purposes(script) == []
    script.at(3.0, ToolFinished("call_2", "b"))
    script.until(5.0)
    assert purposes(script) == [Purpose.TOOL]


@pytest.mark.parametrize("status", [ResponseStatus.CANCELLED, ResponseStatus.INCOMPLETE, ResponseStatus.FAILED])
def test_response_did_not_complete_and_its_tools_are_not_run(status: ResponseStatus) -> None:
    script = talking()
    script.at(1.0, R1, call(1), ResponseEnded("r1", status))
    script.until(1.5)
    assert not script.every(RunTool)


def test_tools_of_a_cancelled_response_are_not_run_by_the_next_one_either() -> None:
    script = talking()
    script.at(1.0, R1, call(1), ResponseEnded("r1", ResponseStatus.CANCELLED))
    script.at(2.0, ResponseStarted("r2"), ResponseEnded("r2", ResponseStatus.COMPLETED))
    assert not script.every(RunTool)


def test_many_cancelled_calls_do_not_use_up_what_one_response_may_call() -> None:
    script = talking()
    for number in range(limits.TOOL_CALLS_MAX + 1):
        cut, turn = f"cut{number}", f"u{number}"
        script.at(1.0, ResponseStarted(cut), call(number, response_id=cut), SpeechStarted(turn))
        script.at(1.0, ResponseEnded(cut, ResponseStatus.CANCELLED), SpeechStopped(turn))
    script.at(2.0, R1, call(99), R1_DONE)
    assert [tool.tool_call_id for _, tool in script.every(RunTool)] == ["call_99"]


def test_model_calls_a_tool_that_does_not_exist_and_is_told_so() -> None:
    script = talking()
    script.at(1.0, R1, call(1, "make_coffee"))
    commands = without_records(script.at(1.5, R1_DONE))
    assert [type(command) for command in commands] == [AddToolOutput, CreateResponse]
    assert "error" in only(AddToolOutput, commands)[0].output


def test_unknown_tool_beside_a_real_one_waits_for_the_real_ones_output() -> None:
    script = talking()
    script.at(1.0, R1, call(1, "make_coffee"), call(2), R1_DONE)
    script.until(1.9)
    assert purposes(script) == []
    script.at(2.0, ToolFinished("call_2", "10:30"))
    assert purposes(script) == [Purpose.TOOL]


def test_every_tool_call_gets_an_output_when_the_model_makes_too_many() -> None:
    script = talking()
    script.at(1.0, R1, *[call(n) for n in range(limits.TOOL_CALLS_MAX + 3)], R1_DONE)
    script.at(2.0, *[ToolFinished(tool.tool_call_id, "x") for _, tool in script.every(RunTool)])
    assert len(script.every(RunTool)) == limits.TOOL_CALLS_MAX
    assert len(script.every(AddToolOutput)) == limits.TOOL_CALLS_MAX + 3


def test_tool_never_answers_and_the_model_is_told_so() -> None:
    script = talking()
    script.at(1.0, R1, call(1), R1_DONE)
    script.until(1.0 + limits.TOOL_WAIT_S + 1.0)
    ((instant, output),) = script.every(AddToolOutput)
    assert instant == pytest.approx(1.0 + limits.TOOL_WAIT_S)
    assert "error" in output.output
    assert purposes(script) == [Purpose.TOOL]


def test_output_after_a_tool_was_given_up_is_not_added_twice() -> None:
    script = talking(idle_prompt_s=600.0)
    script.at(1.0, R1, call(1), R1_DONE)
    script.until(1.0 + limits.TOOL_WAIT_S)
    script.at(1.0 + limits.TOOL_WAIT_S + 1.0, ToolFinished("call_1", "10:30"))
    assert len(script.every(AddToolOutput)) == 1


@pytest.mark.parametrize("tool_call_id", ["call_1", "call_9", ""])
def test_output_that_nobody_waits_for_is_dropped(tool_call_id: str) -> None:
    assert talking().at(1.0, ToolFinished(tool_call_id, "x")) == []


def test_output_of_a_tool_during_speech_asks_for_no_second_answer() -> None:
    script = talking()
    script.at(1.0, R1, call(1), R1_DONE)
    script.at(2.0, SpeechStarted("u1"))
    script.at(2.5, ToolFinished("call_1", "10:30"))
    script.at(3.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(4.0, agent("item_A", 200, "r2"), ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(6.0)
    assert [output.output for _, output in script.every(AddToolOutput)] == ["10:30"]
    assert purposes(script) == []


def test_caller_is_not_asked_whether_they_are_there_while_a_tool_runs() -> None:
    script = talking(idle_prompt_s=10.0)
    script.at(1.0, R1, call(1), R1_DONE)
    script.until(25.0)
    assert purposes(script) == []


def test_caller_hangs_up_while_a_tool_runs_and_its_output_goes_nowhere() -> None:
    script = talking()
    script.at(1.0, R1, call(1), R1_DONE)
    assert script.at(2.0, PhoneStopped())[-1] == Ended(EndReason.CALLER_HUNG_UP)
    assert script.at(3.0, ToolFinished("call_1", "10:30")) == []


def test_tool_call_is_recorded_by_its_name_and_without_its_arguments() -> None:
    script = talking()
    script.at(1.0, R1, call(1), R1_DONE)
    notes = [(record.kind, record.detail) for record in script.records if isinstance(record, CallEvent)]
    assert notes == [("tool", "find_slot")]


def test_response_that_speaks_and_calls_a_tool_does_both() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 500), call(1), R1_DONE)
    script.at(1.2, ToolFinished("call_1", "10:30"))
    script.until(3.0)
    assert script.phone.played_ms("A") == pytest.approx(500)
    assert purposes(script) == [Purpose.TOOL]
