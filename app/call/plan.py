"""How a tenant wants calls to be handled: the values a call is started with.

Where they come from (a file, a table) and how a backend spells them is known elsewhere.
"""

from dataclasses import dataclass
from enum import StrEnum

HANG_UP_TOOL = "hang_up"
"""The one tool that every call has; the core runs it itself (see call.py)."""


TONE_PAUSE, SILENT_PAUSE = PAUSES = ("tone", "off")
"""How a pause is filled in which one backend session takes the place of another."""
BUSY = "busy"
SORRY = "sorry"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is a JSON Schema object, as text."""

    name: str
    description: str
    parameters: str = '{"type":"object","properties":{}}'


HANG_UP = Tool(
    name=HANG_UP_TOOL,
    description="End the phone call. Say goodbye to the caller first, then call this.",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A tenant's wishes for its calls. The defaults are those of the built-in tenant."""

    tenant: str = "default"
    zone: str = "global"
    language: str = "en"
    instructions: str = (
        "You are a friendly assistant on the phone. Answer in one or two short sentences. "
        "When the caller is done, say goodbye and call hang_up."
    )
    greeting: str = "Hello, this is nearcall. How can I help you?"
    """Spoken first, word for word as far as the backend can. Empty: the caller speaks first."""
    greeting_interruptible: bool = True
    voice: str = "marin"
    model: str = "gpt-realtime-2.1"
    transcription_model: str = "gpt-transcribe"
    vad_silence_ms: int = 500
    idle_prompt_s: float = 15.0
    """Silence of both sides after which the agent asks whether the caller is still there."""
    idle_prompts_max: int = 2
    """After so many unanswered prompts the agent says goodbye and hangs up."""
    max_call_s: float = 1_800.0
    max_call_warning_s: float = 60.0
    """How long before the end the agent warns the caller."""
    sorry: str = "We are sorry, something went wrong on our side. Please call again."
    """Said by Twilio, not by the model, when a call cannot go on."""
    fallback_number: str = ""
    """E.164: dialled after the apology when a call cannot go on. Empty: the call ends."""
    pause: str = TONE_PAUSE
    """What the caller hears when the agent is away for more than a moment."""
    backends: tuple[str, ...] = ()
    """Backends by name that are preferred, the best first, among those that the zone allows."""
    max_calls: int = 0
    """At once on one machine; 0: no limit of its own."""
    max_calls_everywhere: int = 0
    """At once on all machines together, approximately; 0: no limit of its own."""
    when_full: str = BUSY
    """What a caller hears for whom there is no room: BUSY, a busy tone, or SORRY, the sentence."""
    tools: tuple[Tool, ...] = (HANG_UP,)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a backend does by itself, so that the call must not."""

    truncates: bool = False
    """It cuts the item that a barge-in interrupts. Never both: two cuts would contradict each other."""


NO_ABILITIES = Abilities()
"""It leaves everything to the call."""


class Purpose(StrEnum):
    """Why we ask for a response. Sent along as metadata; the backend does not need it."""

    GREETING = "greeting"
    IDLE = "idle"
    WARNING = "warning"
    GOODBYE = "goodbye"
    TOOL = "tool"
    WITHOUT_TOOLS = "without_tools"
    RETRY = "retry"
    KEYS = "keys"
    CONTINUE = "continue"
    REPEAT = "repeat"


def wording(purpose: Purpose, plan: Plan, detail: str = "") -> str:
    """Instructions for one response; empty when the session's own instructions are enough."""
    speak = f"Speak in the language '{plan.language}'."
    match purpose:
        case Purpose.GREETING:
            return f'Say exactly this to the caller, and nothing else: "{plan.greeting}"'
        case Purpose.IDLE:
            return f"The caller has been silent. Ask in one short sentence whether they are still there. {speak}"
        case Purpose.WARNING:
            return f"Tell the caller in one short sentence that this call will end in about {detail}. {speak}"
        case Purpose.GOODBYE:
            return f"Say goodbye to the caller in one short sentence. {detail} {speak}".replace("  ", " ")
        case Purpose.WITHOUT_TOOLS:
            return (
                "Your tools do not work at the moment. Tell the caller so in one short sentence, and ask how else "
                f"you can help. {speak}"
            )
        case Purpose.CONTINUE:
            # Instructions replace the session's own (realtime.md 1.6), which the rest of the reply needs.
            up_to = f' They have heard you up to these words: "{detail}".' if detail else ""
            return (
                f"{plan.instructions}\n\nThe line broke while you were speaking to the caller.{up_to} "
                "Go on from exactly there, in the middle of the sentence if it is not finished. Do not repeat "
                f"what they have heard, do not greet them again and do not mention the interruption. {speak}"
            )
        case Purpose.REPEAT:
            return (
                "The connection to the caller was interrupted, and what they said last is lost. Apologise in one "
                f"short sentence and ask them to say it again. Do not greet them. {speak}"
            )
        case Purpose.TOOL | Purpose.RETRY | Purpose.KEYS:
            return ""
