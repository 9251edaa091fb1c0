"""Azure Voice Live, read and written (realtime.md 2). What we send is checked against the vendor's own types.

What it spells as OpenAI does is app/wire/realtime.py's, which test_openai.py covers case by case.
"""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

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
from app.call.plan import HANG_UP, Abilities, Plan, Purpose, Tool, wording
from app.call.records import Speaker
from app.wire.audio import silence
from app.wire.dialect import BackendCommand, Dialect, api_key, bearer
from app.wire.errors import WireError
from app.wire.failures import classify, warning
from app.wire.formats import AudioFormat
from app.wire.tuning import NOISE_REDUCTIONS, VADS, VOICELIVE, Tuning
from app.wire.voicelive import VoiceLive
from tests.voicelive_types import check_client_event
from tests.wire.vectors import damaged, event, lines

URL = "https://acme.services.ai.azure.com"
FROM_VOICELIVE = lines("voicelive_server.jsonl")


def dialect(**tuning: Any) -> VoiceLive:
    return VoiceLive(URL, api_key("az-secret"), Tuning(**{"model": "gpt-realtime-2.1", **tuning}))


DIALECT = dialect()


def parsed(text: bytes, by: VoiceLive = DIALECT) -> list[Event]:
    """What it means."""
    return list(by.parse(text))


def rendered(command: BackendCommand, by: VoiceLive = DIALECT) -> dict[str, Any]:
    """What a command is on the wire."""
    value: dict[str, Any] = json.loads(by.render(command))
    return value


def session(plan: Plan = Plan(), **tuning: Any) -> dict[str, Any]:  # noqa: B008  frozen
    """The session that this plan and these settings of the backend ask for."""
    by = dialect(**tuning)
    value: dict[str, Any] = rendered(Configure(by.fitted(plan)), by)["session"]
    return value


# --- What the backend sends ------------------------------------------------------------------

MEANINGS: list[tuple[str, list[Event]]] = [
    ("session.created", [BackendOpened(ends_unix_ms=1_795_000_000_000)]),
    ("session.updated", [BackendConfigured(True, "g711_ulaw@8000/g711_ulaw")]),
    ("input_audio_buffer.speech_started", [SpeechStarted("item_u1")]),
    ("input_audio_buffer.speech_stopped", [SpeechStopped("item_u1")]),
    ("input_audio_buffer.committed", [CallerTurnCommitted("item_u1")]),
    ("conversation.item.created", []),
    (
        "conversation.item.input_audio_transcription.completed",
        [CallerTranscribed("item_u1", "I need an appointment.")],
    ),
    ("response.created", [ResponseStarted("resp_1")]),
    ("response.audio_transcript.delta", [AgentText("resp_1", "item_a1", "Of course")]),
    ("response.audio.delta", [AgentAudio("resp_1", "item_a1", "//////////8=", 8)]),
    ("response.audio.done", [AgentAudioEnded("resp_1", "item_a1")]),
    ("response.audio_transcript.done", [AgentText("resp_1", "item_a1", "Of course. Which day?", True)]),
    (
        "response.done",
        [ResponseEnded("resp_1", ResponseStatus.COMPLETED, usage=Usage(119, 13, 0, 0, 30, 91))],
    ),
    (
        "response.function_call_arguments.done",
        [ToolCalled("resp_2", "call_9", "find_slot", '{"day":"tuesday"}')],
    ),
    ("conversation.item.truncated", []),
    ("response.audio_timestamp.delta", []),
    ("warning", [BackendFault(ErrorKind.WARNING, warning("parameter_ignored"))]),
    ("error", [BackendFault(*classify("invalid_value", "session.voice"), "session.voice", configuration=True)]),
]


@pytest.mark.parametrize(
    ("kind", "field", "final"), [("response.text.delta", "delta", False), ("response.text.done", "text", True)]
)
def test_words_that_are_written_instead_of_spoken_are_read(kind: str, field: str, final: bool) -> None:
    values = {"type": kind, "response_id": "r", "item_id": "i", field: "Hi."}
    assert list(DIALECT.parse(json.dumps(values))) == [AgentText("r", "i", "Hi.", final)]


@pytest.mark.parametrize(("kind", "meaning"), MEANINGS)
def test_server_message_means_what_the_reference_says(kind: str, meaning: list[Event]) -> None:
    text = next(text for text in FROM_VOICELIVE if json.loads(text)["type"] == kind)
    assert parsed(text) == meaning


def test_every_server_message_of_the_reference_is_understood() -> None:
    assert {json.loads(text)["type"] for text in FROM_VOICELIVE} >= {kind for kind, _ in MEANINGS}
    for text in FROM_VOICELIVE:
        DIALECT.parse(text)


@pytest.mark.parametrize("kind", ["response.output_audio.delta", "response.output_audio_transcript.delta"])
def test_names_that_only_openai_has_mean_nothing_here(kind: str) -> None:
    assert parsed(event(kind, response_id="r", item_id="i", delta="AAAA")) == []


def test_model_that_the_region_does_not_have_is_fatal() -> None:
    error = {"type": "invalid_request_error", "code": "invalid_model", "message": "x", "param": None}
    assert parsed(event("error", error=error)) == [BackendFault(*classify("invalid_model"))]


@pytest.mark.parametrize("told", [None, {}, "x", {"code": 7}, {"message": "my card number is 4711"}])
def test_warning_without_a_code_is_one_all_the_same(told: Any) -> None:
    assert parsed(event("warning", warning=told)) == [BackendFault(ErrorKind.WARNING, warning("unknown"))]


UNTOLD: list[tuple[Any, AudioFormat, bool]] = [
    (None, AudioFormat.G711, True),
    ({}, AudioFormat.PCM16_16K, True),
    ({"input_audio_format": "g711_ulaw"}, AudioFormat.G711, True),
    ({"input_audio_format": "pcm16"}, AudioFormat.PCM16_24K, True),
    ({"input_audio_sampling_rate": 16_000}, AudioFormat.G711, False),
    ({"output_audio_format": "pcm16"}, AudioFormat.G711, False),
    ({"output_audio_format": "pcm16"}, AudioFormat.PCM16_16K, False),
]


@pytest.mark.parametrize(("echoed", "audio", "match"), UNTOLD)
def test_formats_that_a_server_need_not_echo_must_not_be_others(
    echoed: Any, audio: AudioFormat, match: bool
) -> None:
    (configured,) = parsed(event("session.updated", session=echoed), dialect(audio=audio, echoes_formats=False))
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match is match


ULAW = {"input_audio_format": "g711_ulaw", "output_audio_format": "g711_ulaw"}
PCM = {"input_audio_format": "pcm16", "output_audio_format": "pcm16"}
ECHOES = [
    (AudioFormat.G711, {**ULAW, "input_audio_sampling_rate": 8000}, True),
    (AudioFormat.G711, ULAW, True),
    (AudioFormat.G711, {**ULAW, "input_audio_sampling_rate": 24000}, False),
    (AudioFormat.G711, {**ULAW, "output_audio_format": "pcm16"}, False),
    (AudioFormat.G711, {**ULAW, "input_audio_format": "g711_alaw"}, False),
    (AudioFormat.G711, PCM, False),
    (AudioFormat.G711, {}, False),
    (AudioFormat.G711, None, False),
    (AudioFormat.PCM16_24K, {**PCM, "input_audio_sampling_rate": 24000}, True),
    (AudioFormat.PCM16_24K, PCM, False),
    (AudioFormat.PCM16_24K, {**PCM, "input_audio_sampling_rate": 16000}, False),
    (AudioFormat.PCM16_16K, {**PCM, "input_audio_sampling_rate": 16000}, False),
    (
        AudioFormat.PCM16_16K,
        {**PCM, "input_audio_sampling_rate": 16000, "output_audio_format": "pcm16_16000hz"},
        True,
    ),
    (
        AudioFormat.PCM16_8K,
        {**PCM, "input_audio_sampling_rate": 8000, "output_audio_format": "pcm16_8000hz"},
        True,
    ),
]


@pytest.mark.parametrize(("audio", "echoed", "match"), ECHOES)
def test_formats_match_only_when_both_and_the_rate_are_what_was_asked_for(
    audio: AudioFormat, echoed: Any, match: bool
) -> None:
    (configured,) = parsed(event("session.updated", session=echoed), dialect(audio=audio))
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match is match


def test_formats_that_are_a_novel_are_cut_before_they_get_into_a_log() -> None:
    novel = dict.fromkeys(
        ["input_audio_format", "input_audio_sampling_rate", "output_audio_format"], "x" * 100_000
    )
    (configured,) = parsed(event("session.updated", session=novel))
    assert isinstance(configured, BackendConfigured)
    assert len(configured.echoed) < 200


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=damaged(FROM_VOICELIVE))
def test_any_value_in_any_place_is_understood_or_refused(text: bytes) -> None:
    try:
        events = DIALECT.parse(text)
    except WireError:
        return
    for each in events:
        if isinstance(each, AgentAudio):
            assert each.audio_bytes == len(base64.b64decode(each.payload, validate=True))


# --- What we send ----------------------------------------------------------------------------

PLANS = [
    Plan(),
    Plan(language="de-CH", greeting="", voice="cedar", transcription_model="whisper-1"),
    Plan(language="fil", instructions="", tools=(), voice="fil-PH-BlessicaNeural"),
    Plan(language="zh-Hant-TW", instructions='Say "hello"\n\\ü\u2028', vad_silence_ms=200),
    Plan(tools=(HANG_UP, Tool("find_slot", "Find.", '{"type":"object","properties":{"day":{"type":"string"}}}'))),
]
TUNINGS: list[dict[str, Any]] = [
    *[{"audio": audio} for audio in AudioFormat],
    *[{"vad": vad} for vad in VADS[VOICELIVE]],
    *[{"noise_reduction": kind} for kind in NOISE_REDUCTIONS[VOICELIVE]],
    {"echo_cancellation": True, "auto_truncate": True},
    {"model": "gpt-4.1", "voice": "en-US-Ava:DragonHDLatestNeural"},
    {"model": "azure-realtime", "voice": "ava"},
]
COMMANDS: list[BackendCommand] = [
    *[CreateResponse(purpose, wording(purpose, plan, "60 seconds")) for purpose in Purpose for plan in PLANS[:2]],
    CreateResponse(Purpose.GREETING, "Say this.", 'Hello, "Example" Dental.\u2028'),
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


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.language)
def test_every_session_of_ours_is_one_that_the_vendors_own_types_take(plan: Plan, tuning: dict[str, Any]) -> None:
    by = dialect(**tuning)
    check_client_event(rendered(Configure(by.fitted(plan)), by))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_every_message_of_ours_is_one_that_the_vendors_own_types_take(command: BackendCommand) -> None:
    check_client_event(rendered(command))


@pytest.mark.parametrize("payload", ["", "/////w==", silence(20), silence(10_000)])
def test_caller_audio_is_a_message_that_the_vendors_own_types_take(payload: str) -> None:
    message = json.loads(DIALECT.append(payload))
    check_client_event(message)
    assert message == {"type": "input_audio_buffer.append", "audio": payload}


@pytest.mark.parametrize("audio", AudioFormat)
def test_session_that_is_echoed_as_it_was_asked_for_matches(audio: AudioFormat) -> None:
    by = dialect(audio=audio)
    (configured,) = parsed(event("session.updated", session=session(audio=audio)), by)
    assert isinstance(configured, BackendConfigured)
    assert configured.formats_match


def test_session_has_no_type_and_is_flat() -> None:
    """With OpenAI's GA shape nothing of it would be taken (realtime.md 2.2)."""
    assert not {"type", "audio", "output_modalities"} & session().keys()


def test_exact_words_are_spoken_without_asking_a_model() -> None:
    response = rendered(CreateResponse(Purpose.GREETING, "Say this.", "Hello."))["response"]
    content = [{"type": "text", "text": "Hello."}]
    assert response == {
        "pre_generated_assistant_message": {"type": "message", "role": "assistant", "content": content}
    }


def test_everything_else_is_asked_for_by_instructions_or_the_sessions_own() -> None:
    assert rendered(CreateResponse(Purpose.IDLE, "Ask."))["response"] == {
        "instructions": "Ask.",
        "metadata": {"purpose": "idle"},
    }
    assert rendered(CreateResponse(Purpose.TOOL, ""))["response"] == {"metadata": {"purpose": "tool"}}


@pytest.mark.parametrize(("auto_truncate", "abilities"), [(False, Abilities()), (True, Abilities(truncates=True))])
def test_items_are_cut_by_the_service_or_by_us_and_never_by_both(
    auto_truncate: bool, abilities: Abilities
) -> None:
    assert session(auto_truncate=auto_truncate)["turn_detection"]["auto_truncate"] is auto_truncate
    assert dialect(auto_truncate=auto_truncate).abilities == abilities


def test_vad_answers_and_interrupts_by_itself() -> None:
    detection = session(Plan(vad_silence_ms=300))["turn_detection"]
    assert detection == {
        "type": "azure_semantic_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 300,
        "create_response": True,
        "interrupt_response": True,
        "auto_truncate": False,
    }


def test_vad_that_understands_goes_by_no_silence() -> None:
    detection = session(vad="semantic_vad")["turn_detection"]
    assert (detection["type"], detection["eagerness"]) == ("semantic_vad", "auto")
    assert "silence_duration_ms" not in detection


def test_noise_is_suppressed_unless_it_is_switched_off() -> None:
    assert session()["input_audio_noise_reduction"] == {"type": "azure_deep_noise_suppression"}
    assert session(noise_reduction="near_field")["input_audio_noise_reduction"] == {"type": "near_field"}
    assert "input_audio_noise_reduction" not in session(noise_reduction="none")


def test_echo_is_cancelled_only_on_request() -> None:
    """It assumes that speech is played when it is sent; the phone network plays it later (realtime.md 2.2)."""
    assert "input_audio_echo_cancellation" not in session()
    assert session(echo_cancellation=True)["input_audio_echo_cancellation"] == {"type": "server_echo_cancellation"}


# --- Models, voices, transcripts -------------------------------------------------------------

AVA = "en-US-Ava:DragonHDLatestNeural"
KATJA = "de-DE-KatjaNeural"
VOICES = [
    ("marin", {}, {"type": "openai", "name": "marin"}),
    ("marin", {"voice": "cedar"}, {"type": "openai", "name": "cedar"}),
    ("marin", {"voice": AVA}, {"type": "azure-standard", "name": AVA}),
    (KATJA, {}, {"type": "azure-standard", "name": KATJA}),
    (KATJA, {"voice": AVA}, {"type": "azure-standard", "name": KATJA}),
    (KATJA, {"voice": AVA, "model": "gpt-4.1"}, {"type": "azure-standard", "name": KATJA}),
    ("marin", {"voice": AVA, "model": "gpt-4.1"}, {"type": "azure-standard", "name": AVA}),
    ("marin", {"voice": "ava", "model": "azure-realtime"}, {"type": "azure-realtime-native", "name": "ava"}),
    (KATJA, {"model": "azure-realtime"}, {"type": "azure-standard", "name": KATJA}),
    ("sr-Latn-RS-NicholasNeural", {}, {"type": "azure-standard", "name": "sr-Latn-RS-NicholasNeural"}),
]


@pytest.mark.parametrize(("wished", "tuning", "voice"), VOICES)
def test_tenants_azure_voice_comes_first_then_the_backends_then_any_other(
    wished: str, tuning: dict[str, Any], voice: dict[str, str]
) -> None:
    assert session(Plan(voice=wished), **tuning)["voice"] == voice


TRANSCRIPTS = [
    ({}, Plan(language="de-CH"), {"model": "gpt-4o-transcribe", "language": "de"}),
    ({}, Plan(transcription_model="whisper-1"), {"model": "whisper-1", "language": "en"}),
    ({"transcription_model": "whisper-1"}, Plan(), {"model": "whisper-1", "language": "en"}),
    (
        {"model": "gpt-4.1", "voice": AVA},
        Plan(language="de-CH", transcription_model="whisper-1"),
        {"model": "azure-speech", "language": "de-CH"},
    ),
    (
        {"model": "gpt-4.1", "voice": AVA, "transcription_model": "mai-transcribe-1"},
        Plan(language="de-CH"),
        {"model": "mai-transcribe-1", "language": "de-CH"},
    ),
]


@pytest.mark.parametrize(("tuning", "plan", "transcription"), TRANSCRIPTS)
def test_transcripts_are_by_a_model_that_goes_with_the_one_that_answers(
    tuning: dict[str, Any], plan: Plan, transcription: dict[str, str]
) -> None:
    assert session(plan, **tuning)["input_audio_transcription"] == transcription


def test_call_is_recorded_with_the_model_and_the_voice_that_it_has_here() -> None:
    fitted = dialect(model="gpt-realtime-2.1-datazone", voice=AVA).fitted(Plan(model="gpt-realtime"))
    assert (fitted.model, fitted.voice, fitted.transcription_model) == (
        "gpt-realtime-2.1-datazone",
        AVA,
        "gpt-4o-transcribe",
    )
    assert replace(fitted, model="", voice="", transcription_model="") == replace(
        Plan(), model="", voice="", transcription_model=""
    )


# --- Where it is dialled ---------------------------------------------------------------------

ADDRESSES = [
    (URL, "gpt-realtime-2.1", "wss://acme.services.ai.azure.com"),
    (f"{URL}/", "gpt-realtime-2.1", "wss://acme.services.ai.azure.com"),
    ("http://127.0.0.1:9000", "gpt-realtime-2.1", "ws://127.0.0.1:9000"),
]


@pytest.mark.parametrize(("base_url", "model", "origin"), ADDRESSES)
def test_address_is_the_endpoints_socket(base_url: str, model: str, origin: str) -> None:
    address = VoiceLive(base_url, api_key("k")).address(model)
    assert address.url == f"{origin}/voice-live/realtime?api-version=2026-07-15&model={model}"


def test_model_is_quoted() -> None:
    assert DIALECT.address("a b&c").url.endswith("&model=a%20b%26c")


def test_key_or_token_goes_along_and_shows_in_no_repr() -> None:
    tokens = iter(["one", "two"])
    renewed = VoiceLive(URL, bearer(lambda: next(tokens)))
    assert DIALECT.address("m").headers == {"api-key": "az-secret"}
    assert [renewed.address("m").headers["Authorization"] for _ in range(2)] == ["Bearer one", "Bearer two"]
    assert "az-secret" not in repr(DIALECT) + repr(DIALECT.address("m"))


def test_dialect_is_one() -> None:
    by: Dialect = DIALECT
    assert by.name == "voicelive"
