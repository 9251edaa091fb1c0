"""OpenAI Realtime, read and written (realtime.md 1). What we send is checked against the vendor's own types."""

import base64
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AddTurn,
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFault,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    Configure,
    CreateResponse,
    DeleteItem,
    ErrorKind,
    Event,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    Truncate,
    Usage,
)
from app.call.plan import HANG_UP, Plan, Purpose, Tool, wording
from app.call.records import Speaker
from app.call.texts import CUT_MARK, cut
from app.wire.audio import silence
from app.wire.dialect import BackendCommand, Dialect, api_key, bearer
from app.wire.errors import WireError
from app.wire.failures import classify
from app.wire.formats import AudioFormat
from app.wire.openai import OpenAIRealtime
from app.wire.realtime import CONFIGURATION_ID
from app.wire.tuning import NOISE_REDUCTIONS, OPENAI, Tuning
from tests.openai_types import check_client_event
from tests.wire.vectors import damaged, event, lines

DIALECT = OpenAIRealtime("https://api.openai.com/v1", bearer(lambda: "sk-secret"))
FROM_OPENAI = lines("openai_server.jsonl")


def parsed(text: bytes) -> list[Event]:
    """What it means."""
    return list(DIALECT.parse(text))


def rendered(command: BackendCommand) -> dict[str, Any]:
    """What a command is on the wire."""
    value: dict[str, Any] = json.loads(DIALECT.render(command))
    return value


# --- What the backend sends ------------------------------------------------------------------

MEANINGS: list[tuple[str, list[Event]]] = [
    ("session.created", [BackendOpened(ends_unix_ms=1_795_000_000_000)]),
    ("session.updated", [BackendConfigured(True, "audio/pcmu/audio/pcmu")]),
    ("input_audio_buffer.timeout_triggered", []),
    ("conversation.item.truncated", []),
    ("conversation.item.deleted", []),
    ("input_audio_buffer.cleared", []),
    ("input_audio_buffer.dtmf_event_received", []),
    ("rate_limits.updated", []),
    ("response.function_call_arguments.delta", []),
    ("mcp_list_tools.in_progress", []),
    ("response.created", [ResponseStarted("resp_1")]),
    (
        "response.function_call_arguments.done",
        [ToolCalled("resp_5", "call_9", "find_slot", '{"day":"tuesday"}')],
    ),
    ("response.output_item.done", []),
]


def vector(kind: str) -> bytes:
    """The first message of a kind."""
    return next(text for text in FROM_OPENAI if json.loads(text)["type"] == kind)


def test_every_server_message_of_the_reference_is_understood() -> None:
    assert len([DIALECT.parse(text) for text in FROM_OPENAI]) == len(FROM_OPENAI) > 40


@pytest.mark.parametrize(("kind", "meaning"), MEANINGS)
def test_server_message_means_what_the_reference_says(kind: str, meaning: list[Event]) -> None:
    assert parsed(vector(kind)) == meaning


PARTS = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
ONE_EACH: list[tuple[bytes, list[Event]]] = [
    (event("response.output_audio.delta", **PARTS, delta="/////w=="), [AgentAudio("r", "i", "/////w==", 4)]),
    (event("response.output_audio.delta", **PARTS, delta=""), []),
    (event("response.output_audio.done", **PARTS), [AgentAudioEnded("r", "i")]),
    (event("response.output_audio_transcript.delta", **PARTS, delta="Hel"), [AgentText("r", "i", "Hel")]),
    (
        event("response.output_audio_transcript.done", **PARTS, transcript="Hi."),
        [AgentText("r", "i", "Hi.", True)],
    ),
    (event("response.output_text.delta", **PARTS, delta="Hel"), [AgentText("r", "i", "Hel")]),
    (event("response.output_text.done", **PARTS, text="Hi."), [AgentText("r", "i", "Hi.", True)]),
    (event("input_audio_buffer.speech_started", item_id="u", audio_start_ms=12), [SpeechStarted("u")]),
    (event("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=99), [SpeechStopped("u")]),
    (event("input_audio_buffer.committed", item_id="u", previous_item_id=None), [CallerTurnCommitted("u")]),
    (
        event("conversation.item.input_audio_transcription.completed", item_id="u", transcript="Hi."),
        [CallerTranscribed("u", "Hi.")],
    ),
    (
        event("conversation.item.input_audio_transcription.failed", item_id="u", error={"code": "x"}),
        [CallerTranscribed("u", None)],
    ),
    (event("response.created", response={"id": "r"}), [ResponseStarted("r")]),
    (event("some.event.of.the.future", anything=1), []),
]


@pytest.mark.parametrize(("text", "meaning"), ONE_EACH, ids=lambda value: str(value)[:60])
def test_event_the_call_depends_on_is_read(text: bytes, meaning: list[Event]) -> None:
    assert parsed(text) == meaning


def test_tool_call_is_understood_from_the_end_of_its_item_as_well() -> None:
    [told] = [parsed(text) for text in FROM_OPENAI if b"output_item.done" in text and b"call_9" in text]
    assert told == parsed(vector("response.function_call_arguments.done"))


def test_arguments_without_a_name_come_again_with_their_item() -> None:
    assert (
        parsed(event("response.function_call_arguments.done", response_id="r", call_id="c", arguments="{}")) == []
    )


def test_tool_call_that_was_cut_off_is_none() -> None:
    item = {"type": "function_call", "status": "incomplete", "call_id": "c", "name": "n", "arguments": '{"day'}
    assert parsed(event("response.output_item.done", response_id="r", item=item)) == []


def test_long_audio_is_counted_and_passed_on_as_it_came() -> None:
    payload = silence(30_000)
    text = event("response.output_audio.delta", **PARTS, delta=payload)
    assert parsed(text) == [AgentAudio("r", "i", payload, 240_000)]


PCMU = {"format": {"type": "audio/pcmu"}}
PCM = {"format": {"type": "audio/pcm", "rate": 24_000}}
FORMATS = [
    ({"audio": {"input": PCMU, "output": PCMU}}, True),
    ({"audio": {"input": PCM, "output": PCMU}}, False),
    ({"audio": {"input": PCMU, "output": PCM}}, False),
    ({"audio": {"input": PCMU}}, False),
    ({"audio": {"input": {"format": "audio/pcmu"}, "output": PCMU}}, False),
    ({"input_audio_format": "g711_ulaw", "output_audio_format": "g711_ulaw"}, False),
    ({}, False),
    (None, False),
    ({"audio": {"input": {"format": {"type": "audio/pcmu", "channels": 1}}, "output": PCMU}}, True),
]


@pytest.mark.parametrize(("session", "match"), FORMATS)
def test_formats_match_only_when_both_are_what_was_asked_for(session: Any, match: bool) -> None:
    (configured,) = parsed(event("session.updated", session=session))
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match is match


UNTOLD = [
    ({"audio": {"input": PCMU, "output": PCMU}}, True),
    ({"audio": {"input": PCMU}}, True),
    ({"audio": {"input": {"format": {}}}}, True),
    ({}, True),
    (None, True),
    ({"audio": {"input": PCM, "output": PCMU}}, False),
    ({"audio": {"output": PCM}}, False),
    ({"audio": {"output": {"format": {"type": None}}}}, False),
]


@pytest.mark.parametrize(("session", "match"), UNTOLD)
def test_formats_that_a_server_need_not_echo_must_not_be_others(session: Any, match: bool) -> None:
    dialect = replace(DIALECT, tuning=Tuning(echoes_formats=False))
    (configured,) = dialect.parse(event("session.updated", session=session))
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match is match


PCM_ECHOES = [
    (AudioFormat.PCM16_24K, PCM, PCM, True),
    (AudioFormat.PCM16_24K, PCM, PCMU, False),
    (AudioFormat.PCM16_24K, {"format": {"type": "audio/pcm"}}, PCM, False),
    (AudioFormat.PCM16_16K, PCM, PCM, False),
    (AudioFormat.PCM16_16K, {"format": {"type": "audio/pcm", "rate": 16_000}}, PCM, False),
]


@pytest.mark.parametrize(("audio", "taken", "given", "match"), PCM_ECHOES)
def test_pcm_matches_only_at_the_rate_that_was_asked_for(
    audio: AudioFormat, taken: Any, given: Any, match: bool
) -> None:
    dialect = replace(DIALECT, tuning=Tuning(audio))
    text = event("session.updated", session={"audio": {"input": taken, "output": given}})
    (configured,) = dialect.parse(text)
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match is match


def test_formats_that_are_a_novel_are_cut_before_they_get_into_a_log() -> None:
    long = {"format": {"type": "x" * 100_000}}
    (configured,) = parsed(event("session.updated", session={"audio": {"input": long, "output": long}}))
    assert isinstance(configured, BackendConfigured)
    assert len(configured.echoed) < 200


# --- The end of a response -------------------------------------------------------------------


def ended(**response: Any) -> ResponseEnded:
    """What a response.done means."""
    (only,) = parsed(event("response.done", response={"id": "r", **response}))
    assert isinstance(only, ResponseEnded)
    return only


def test_completed_response_of_the_reference_has_its_tokens_by_kind() -> None:
    assert parsed(vector("response.done")) == [
        ResponseEnded("resp_1", ResponseStatus.COMPLETED, usage=Usage(119, 13, 64, 0, 30, 91))
    ]


def test_cancelled_response_of_the_reference_still_has_its_tokens() -> None:
    texts = [text for text in FROM_OPENAI if b'"resp_2"' in text and b"response.done" in text]
    assert parsed(texts[0]) == [
        ResponseEnded("resp_2", ResponseStatus.CANCELLED, usage=Usage(200, 130, 192, 64, 20, 60))
    ]


def test_failed_response_of_the_reference_says_why() -> None:
    texts = [text for text in FROM_OPENAI if b'"resp_3"' in text]
    assert parsed(texts[0]) == [ResponseEnded("resp_3", ResponseStatus.FAILED, *classify("rate_limit_exceeded"))]


@pytest.mark.parametrize("status", ["completed", "cancelled", "incomplete", "failed"])
def test_status_is_read(status: str) -> None:
    assert ended(status=status).status.value == status


@pytest.mark.parametrize("status", ["in_progress", "", None, 7, "of_the_future"])
def test_status_of_the_future_is_no_failure(status: Any) -> None:
    assert ended(status=status) == ResponseEnded("r", ResponseStatus.COMPLETED)


def test_error_of_a_response_that_did_not_fail_is_none() -> None:
    details = {"type": "cancelled", "error": {"code": "insufficient_quota"}}
    assert ended(status="cancelled", status_details=details).error is None


@pytest.mark.parametrize(
    "usage",
    [
        None,
        7,
        {},
        {"input_token_details": None},
        *({"input_token_details": {"text_tokens": each}} for each in ("9", -1, -(2**63), -1e30, True, [3], 0.5)),
    ],
)
def test_tokens_that_are_not_told_are_none(usage: Any) -> None:
    assert ended(status="completed", usage=usage).usage == Usage()


def test_tokens_beyond_all_reason_cost_nothing() -> None:
    counts = [b"7", b"7.0", b"10000001", b"1e30", b"18446744073709551615", b"1e308"]
    text = b'{"type":"response.done","response":{"id":"r","usage":{"output_token_details":{"audio_tokens":%s}}}}'
    assert [
        end.usage.output_audio for each in counts for end in parsed(text % each) if isinstance(end, ResponseEnded)
    ] == [
        7,
        7,
        *[0] * 4,
    ]


@pytest.mark.parametrize("number", [b"1e999", b"NaN", b"Infinity", b"-Infinity"])
def test_number_that_json_does_not_have_spoils_only_its_message(number: bytes) -> None:
    text = b'{"type":"response.done","response":{"id":"r","usage":{"output_token_details":{"audio_tokens":%s}}}}'
    try:
        (end,) = parsed(text % number)
    except WireError:
        return
    assert isinstance(end, ResponseEnded)
    assert 0 <= end.usage.output_audio <= limits.TOKENS_MAX


# --- Errors ----------------------------------------------------------------------------------

KINDS = [
    ("session_expired", ErrorKind.FATAL),
    ("insufficient_quota", ErrorKind.FATAL),
    ("billing_hard_limit_reached", ErrorKind.FATAL),
    ("invalid_api_key", ErrorKind.FATAL),
    ("model_not_found", ErrorKind.FATAL),
    ("beta_api_shape_disabled", ErrorKind.FATAL),
    ("conversation_already_has_active_response", ErrorKind.BUSY),
    ("rate_limit_exceeded", ErrorKind.RETRY),
    ("server_error", ErrorKind.RETRY),
    ("response_cancel_not_active", ErrorKind.HARMLESS),
    ("input_audio_buffer_commit_empty", ErrorKind.HARMLESS),
    ("invalid_value", ErrorKind.HARMLESS),
    ("unknown_parameter", ErrorKind.HARMLESS),
    ("of_the_future", ErrorKind.HARMLESS),
]


@pytest.mark.parametrize(("code", "kind"), KINDS)
def test_error_is_classified_by_its_code(code: str, kind: ErrorKind) -> None:
    text = event("error", error={"type": "invalid_request_error", "code": code, "message": "x"})
    (fault,) = parsed(text)
    assert isinstance(fault, BackendFault)
    assert (fault.kind, fault.failure.code, fault.failure.reason) == (kind, code, EndReason.BACKEND_REFUSED)


@pytest.mark.parametrize(("code", "kind"), KINDS)
def test_failed_response_is_classified_by_the_same_code(code: str, kind: ErrorKind) -> None:
    ending = ended(status="failed", status_details={"type": "failed", "error": {"code": code}})
    assert ending.failure is not None
    assert (ending.error, ending.failure.code) == (kind, code)


@pytest.mark.parametrize("code", [None, "", 7])
def test_error_without_a_code_goes_by_its_type(code: Any) -> None:
    text = event("error", error={"type": "server_error", "code": code, "message": "x"})
    assert parsed(text) == [BackendFault(*classify("server_error"))]


@pytest.mark.parametrize("error", [None, {}, [], "bad", {"message": "only words"}])
def test_error_without_code_and_type_is_harmless_and_unknown(error: Any) -> None:
    assert parsed(event("error", error=error)) == [BackendFault(*classify("unknown"))]


def test_error_message_which_may_quote_the_caller_is_never_taken_along() -> None:
    text = event("error", error={"type": "t", "code": "c" * 500, "message": "my card number is 4711"})
    (fault,) = parsed(text)
    assert isinstance(fault, BackendFault)
    assert fault.failure.code == cut("c" * 500, limits.CODE_MAX_CHARS)
    assert fault.failure.code.endswith(CUT_MARK)


@pytest.mark.parametrize(
    ("param", "formats"),
    [
        ("session.audio.input.format.type", True),
        ("session.audio.output.format", True),
        ("session.input_audio_sampling_rate", True),
        ("session.output_audio_format", True),
        ("response.text.format", False),
        ("session.audio.output.voice", False),
        (None, False),
    ],
)
def test_error_about_the_audio_formats_is_told_from_others(param: str | None, formats: bool) -> None:
    (fault,) = parsed(event("error", error={"type": "t", "code": "invalid_value", "param": param}))
    assert isinstance(fault, BackendFault)
    assert (fault.failure.reason is EndReason.BACKEND_FORMAT) is formats


OURS = [
    ({"event_id": CONFIGURATION_ID}, True),
    ({"event_id": CONFIGURATION_ID, "param": "model"}, True),
    ({"param": "session.audio.output.voice"}, True),
    ({"param": "session"}, True),
    ({"param": "sessions"}, False),
    ({"param": "response.session"}, False),
    ({"event_id": "another", "param": None}, False),
    ({"event_id": None}, False),
    ({}, False),
]


@pytest.mark.parametrize(("error", "ours"), OURS)
def test_error_that_answers_our_configuration_is_told_from_others(error: dict[str, Any], ours: bool) -> None:
    (fault,) = parsed(event("error", error={"type": "t", "code": "invalid_value", **error}))
    assert isinstance(fault, BackendFault)
    assert fault.configuration is ours


def test_configuration_of_ours_has_the_id_by_which_its_error_is_known() -> None:
    assert rendered(Configure(Plan()))["event_id"] == CONFIGURATION_ID


# --- Texts without end ------------------------------------------------------------------------

NOVEL = "x" * 700_000


def test_tool_call_with_a_novel_has_a_name_and_arguments_marked_as_cut() -> None:
    text = event(
        "response.function_call_arguments.done", response_id="r", call_id="c", name=NOVEL, arguments=NOVEL
    )
    (called,) = parsed(text)
    assert isinstance(called, ToolCalled)
    assert len(called.name) == limits.TOOL_NAME_MAX_CHARS
    assert len(called.arguments) == limits.TOOL_ARGUMENTS_MAX_CHARS
    assert called.name.endswith(CUT_MARK)
    assert called.arguments.endswith(CUT_MARK)


def test_arguments_that_were_cut_are_no_json_even_when_what_is_left_was() -> None:
    padded = '{"day":"tuesday"}' + " " * limits.TOOL_ARGUMENTS_MAX_CHARS
    text = event("response.function_call_arguments.done", response_id="r", call_id="c", name="n", arguments=padded)
    (called,) = parsed(text)
    assert isinstance(called, ToolCalled)
    with pytest.raises(ValueError, match="Extra data"):
        json.loads(called.arguments)


@pytest.mark.parametrize(
    "text",
    [
        event("response.created", response={"id": NOVEL}),
        event("response.done", response={"id": NOVEL}),
        event("response.output_audio.delta", response_id=NOVEL, item_id="i", delta="AAAA"),
        event("response.output_audio.done", response_id="r", item_id=NOVEL),
        event("response.output_audio_transcript.delta", response_id="r", item_id=NOVEL, delta="Hi."),
        event("response.function_call_arguments.done", response_id="r", call_id=NOVEL, name="n", arguments="{}"),
        event("input_audio_buffer.speech_started", item_id=NOVEL),
        event("input_audio_buffer.speech_stopped", item_id=NOVEL),
        event("input_audio_buffer.committed", item_id=NOVEL),
        event("conversation.item.input_audio_transcription.completed", item_id=NOVEL, transcript="Hi."),
    ],
    ids=lambda text: json.loads(text)["type"],
)
def test_id_that_is_a_novel_cannot_be_cut_and_is_refused(text: bytes) -> None:
    with pytest.raises(WireError, match="has more than 512 characters"):
        parsed(text)


# --- What cannot be understood ---------------------------------------------------------------

SENSELESS = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"{",
    b"\xff",
    b'{"type":7}',
    b'{"type":null}',
    b'{"type":""}',
    event("response.output_audio.delta", response_id="r", delta="AAAA"),
    event("response.output_audio.delta", item_id="i", delta="AAAA"),
    event("response.output_audio.delta", **PARTS, delta='AAAA"}'),
    event("response.output_audio.delta", **PARTS, delta="AAA"),
    event("response.output_audio.done", response_id="r"),
    event("response.created"),
    event("response.created", response=[]),
    event("response.done", response={}),
    event("input_audio_buffer.speech_started"),
    event("input_audio_buffer.speech_stopped", item_id=7),
    event("response.function_call_arguments.done", response_id="r", name="n"),
    event("response.output_item.done", response_id="r", item={"type": "function_call", "call_id": "c"}),
    event("response.output_item.done", item={"type": "function_call", "call_id": "c", "name": "n"}),
]


@pytest.mark.parametrize("text", SENSELESS, ids=lambda text: str(text[:60]))
def test_message_that_cannot_be_understood_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        DIALECT.parse(text)


@pytest.mark.parametrize("text", FROM_OPENAI)
def test_message_that_is_cut_anywhere_is_refused(text: bytes) -> None:
    for end in range(0, len(text), 7):
        with pytest.raises(WireError):
            DIALECT.parse(text[:end])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=damaged([*FROM_OPENAI, *(text for text, _ in ONE_EACH)]))
def test_any_value_in_any_place_is_understood_or_refused(text: bytes) -> None:
    try:
        events = DIALECT.parse(text)
    except WireError:
        return
    for each in events:
        if isinstance(each, AgentAudio):
            assert each.audio_bytes == len(base64.b64decode(each.payload, validate=True))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.binary(max_size=64))
def test_any_bytes_are_understood_or_refused(text: bytes) -> None:
    with suppress(WireError):
        assert DIALECT.parse(text) == ()


# --- What we send ----------------------------------------------------------------------------

PLANS = [
    Plan(),
    Plan(language="de-CH", greeting="", voice="cedar", transcription_model="whisper-1"),
    Plan(language="fil", instructions="", tools=()),
    Plan(language="zh-Hant-TW", instructions='Say "hello"\n\\ü\u2028', vad_silence_ms=200),
    Plan(tools=(HANG_UP, Tool("find_slot", "Find.", '{"type":"object","properties":{"day":{"type":"string"}}}'))),
]
COMMANDS: list[BackendCommand] = [
    *[Configure(plan) for plan in PLANS],
    *[CreateResponse(purpose, wording(purpose, plan, "60 seconds")) for purpose in Purpose for plan in PLANS],
    CreateResponse(Purpose.TOOL, ""),
    CreateResponse(Purpose.WITHOUT_TOOLS, "Speak.", may_call_tools=False),
    CancelResponse("resp_1"),
    Truncate("item_a1", 0),
    Truncate("item_a1", 1_340),
    AddTurn(Speaker.CALLER, "(The caller pressed the key #.)"),
    AddTurn(Speaker.AGENT, "We are open until six.", "nc-1", after="item_a1"),
    AddTurn(Speaker.CALLER, "", audio=(silence(20), silence(20))),
    DeleteItem("nc-1"),
    AddToolCall("call_9", "find_slot", "{}"),
    AddToolOutput("call_9", '{"slot":"10:30"}'),
    AddToolOutput("call_9", ""),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_every_message_of_ours_is_one_that_the_vendors_own_types_take(command: BackendCommand) -> None:
    check_client_event(rendered(command))


@pytest.mark.parametrize("payload", ["", "/////w==", silence(20), silence(10_000)])
def test_caller_audio_is_a_message_that_the_vendors_own_types_take(payload: str) -> None:
    message = json.loads(DIALECT.append(payload))
    check_client_event(message)
    assert message == {"type": "input_audio_buffer.append", "audio": payload}


def test_session_asks_for_mulaw_both_ways_and_the_servers_turn_detection() -> None:
    session = rendered(Configure(PLANS[0]))["session"]
    assert session["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert session["audio"]["output"]["format"] == {"type": "audio/pcmu"}
    detection = session["audio"]["input"]["turn_detection"]
    assert (detection["create_response"], detection["interrupt_response"]) == (True, True)


TUNINGS = [
    Tuning(AudioFormat.PCM16_24K),
    Tuning(vad="semantic_vad"),
    *[Tuning(noise_reduction=kind) for kind in NOISE_REDUCTIONS[OPENAI]],
]


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_every_session_an_operator_may_ask_for_fits_the_vendors_types(tuning: Tuning) -> None:
    dialect = replace(DIALECT, tuning=tuning)
    check_client_event(json.loads(dialect.render(Configure(dialect.fitted(Plan())))))


def test_pcm_is_asked_for_both_ways_with_its_rate() -> None:
    session = json.loads(replace(DIALECT, tuning=Tuning(AudioFormat.PCM16_24K)).render(Configure(Plan())))[
        "session"
    ]
    assert [session["audio"][way]["format"] for way in ("input", "output")] == [PCM["format"]] * 2


def test_operators_setting_for_a_backend_goes_before_the_tenants_wish() -> None:
    plan = Plan(model="m", transcription_model="t", voice="cedar")
    assert DIALECT.fitted(plan) == plan
    tuned = replace(DIALECT, tuning=Tuning(model="own-m", transcription_model="own-t", voice="own-v"))
    assert tuned.fitted(plan) == replace(plan, model="own-m", transcription_model="own-t", voice="own-v")


def test_azure_voice_of_a_tenant_is_no_voice_here() -> None:
    assert DIALECT.fitted(Plan(voice="de-DE-KatjaNeural")).voice == Plan().voice


def test_session_that_is_echoed_as_it_was_asked_for_matches() -> None:
    session = rendered(Configure(PLANS[1]))["session"]
    (configured,) = parsed(event("session.updated", session=session))
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match


@pytest.mark.parametrize(
    ("language", "code"), [("en", "en"), ("de-CH", "de"), ("fil", "fil"), ("zh-Hant-TW", "zh")]
)
def test_language_of_the_transcript_is_the_tenants_without_its_country(language: str, code: str) -> None:
    session = rendered(Configure(replace(PLANS[0], language=language)))["session"]
    assert session["audio"]["input"]["transcription"]["language"] == code


def test_tracing_stays_off_because_it_would_leave_the_zone() -> None:
    assert rendered(Configure(PLANS[0]))["session"]["tracing"] is None


def test_response_without_wording_keeps_the_sessions_instructions() -> None:
    assert rendered(CreateResponse(Purpose.TOOL, ""))["response"] == {"metadata": {"purpose": "tool"}}


def test_model_that_must_speak_is_given_no_tools() -> None:
    command = CreateResponse(Purpose.WITHOUT_TOOLS, "Speak.", may_call_tools=False)
    assert rendered(command)["response"]["tool_choice"] == "none"


def test_cancel_names_its_response() -> None:
    assert rendered(CancelResponse("resp_1")) == {"type": "response.cancel", "response_id": "resp_1"}


def test_truncation_is_a_whole_number_of_milliseconds_of_the_first_content() -> None:
    assert rendered(Truncate("item_a1", 1_340)) == {
        "type": "conversation.item.truncate",
        "item_id": "item_a1",
        "content_index": 0,
        "audio_end_ms": 1_340,
    }


def test_tool_output_goes_to_its_call() -> None:
    assert rendered(AddToolOutput("call_9", "10:30"))["item"] == {
        "type": "function_call_output",
        "call_id": "call_9",
        "output": "10:30",
    }


# --- Where it is dialled ---------------------------------------------------------------------

ADDRESSES = [
    ("https://api.openai.com/v1", "gpt-realtime", "wss://api.openai.com/v1/realtime?model=gpt-realtime"),
    ("https://eu.api.openai.com/v1/", "gpt-realtime", "wss://eu.api.openai.com/v1/realtime?model=gpt-realtime"),
    ("http://127.0.0.1:9000/v1", "a b&c/d", "ws://127.0.0.1:9000/v1/realtime?model=a%20b%26c%2Fd"),
]


def test_azure_openai_takes_its_key_in_a_header_of_its_own() -> None:
    """realtime.md 3: the same protocol, and a path without any api-version."""
    azure = OpenAIRealtime("https://acme.openai.azure.com/openai/v1", api_key("k"), name="azure-openai")
    address = azure.address("my deployment")
    assert address.url == "wss://acme.openai.azure.com/openai/v1/realtime?model=my%20deployment"
    assert address.headers == {"api-key": "k"}


@pytest.mark.parametrize(("base_url", "model", "url"), ADDRESSES)
def test_address_is_the_base_urls_socket(base_url: str, model: str, url: str) -> None:
    assert OpenAIRealtime(base_url, bearer(lambda: "sk")).address(model).url == url


def test_only_the_key_goes_along_and_no_beta_header() -> None:
    assert DIALECT.address("m").headers == {"Authorization": "Bearer sk-secret"}


def test_key_shows_in_no_repr() -> None:
    assert "sk-secret" not in repr(DIALECT) + repr(DIALECT.address("m"))


def test_dialect_is_one() -> None:
    dialect: Dialect = DIALECT
    assert dialect.name == "openai"


@pytest.mark.parametrize("field", ["response_id", "item_id"])
def test_ids_of_a_written_item_are_bounded_like_all_others(field: str) -> None:
    ids = {**PARTS, field: "i" * (limits.ID_MAX_CHARS + 1)}
    with pytest.raises(WireError, match="has more than"):
        DIALECT.parse(event("response.output_text.done", **ids, text="Hi."))


@pytest.mark.parametrize("session", [{}, {"expires_at": None}, {"expires_at": "soon"}, {"expires_at": 1e30}])
def test_session_that_does_not_say_when_it_ends_is_open_all_the_same(session: dict[str, Any]) -> None:
    message = json.dumps({"type": "session.created", "session": session})
    assert parsed(message.encode()) == [BackendOpened()]
