"""What an operator may set for one backend, and which values its kind has. Only its wire module acts on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.wire.dialect import is_azure_voice
from app.wire.formats import AudioFormat

OPENAI, AZURE_OPENAI, VOICELIVE = KINDS = ("openai", "azure-openai", "voicelive")
"""How a backend is spoken to."""

VADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        OPENAI: ("server_vad", "semantic_vad"),
        # It takes semantic_vad and then never says that the caller speaks (realtime.md 3).
        AZURE_OPENAI: ("server_vad",),
        # The first works with every model, and interrupts for certain (realtime.md 2.2).
        VOICELIVE: (
            "azure_semantic_vad",
            "azure_semantic_vad_en",
            "azure_semantic_vad_multilingual",
            "semantic_vad",
            "server_vad",
        ),
    }
)
"""By kind, what finds out that the caller speaks; the default first."""

NOISE_REDUCTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        OPENAI: ("near_field", "far_field", "none"),
        AZURE_OPENAI: ("near_field", "far_field", "none"),
        VOICELIVE: ("azure_deep_noise_suppression", "near_field", "far_field", "none"),
    }
)
"""By kind; the default first."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Empty: the tenant's wish, or what is usual for this kind of backend."""

    audio: AudioFormat = AudioFormat.G711
    model: str = ""
    transcription_model: str = ""
    voice: str = ""
    vad: str = ""
    noise_reduction: str = ""
    echo_cancellation: bool = False
    auto_truncate: bool = False
    """The backend itself cuts the item that a barge-in interrupts; then we never do."""
    echoes_formats: bool = True
    """Its session.updated has the audio formats. False: it may leave them out, and is believed to use ours."""


UNTUNED = Tuning()
"""Nothing is set."""


def speaks_by_itself(model: str) -> bool:
    """True for the models that have OpenAI's voices and its semantic VAD (realtime.md 2.2, 2.7)."""
    return model.startswith("gpt-realtime")


NATIVE = "azure-realtime"
"""Voice Live's model with voices of its own kind (realtime.md 2.2)."""


def flaws(kind: str, tuning: Tuning) -> Iterator[tuple[str, str]]:
    """The fields that do not go with this kind of backend or with its other fields, and what each should be."""
    for name, known in (("vad", VADS[kind]), ("noise_reduction", NOISE_REDUCTIONS[kind])):
        if getattr(tuning, name) not in {"", *known}:
            yield name, f"one of {', '.join(known)}"
    if kind == AZURE_OPENAI and tuning.audio not in {AudioFormat.G711, AudioFormat.PCM16_24K}:
        yield "audio", f"{AudioFormat.G711} or {AudioFormat.PCM16_24K}, because {kind} has no other"
    if kind != VOICELIVE:
        for name in ("echo_cancellation", "auto_truncate"):
            if getattr(tuning, name):
                yield name, f"left out, because only {VOICELIVE} has it"
        return
    if not tuning.model or speaks_by_itself(tuning.model):
        return
    if tuning.vad == "semantic_vad":
        yield "vad", f"an azure_ one or server_vad, because {tuning.model} has no semantic_vad"
    if tuning.model == NATIVE and not tuning.voice:
        yield "voice", f"a voice of {NATIVE} such as ava, or one of Azure's, because it has none of OpenAI's"
    if not is_azure_voice(tuning.voice) and tuning.model != NATIVE:
        a_voice = "an Azure voice such as en-US-AvaMultilingualNeural"
        yield "voice", f"{a_voice}, because {tuning.model} has none of its own"
