"""The TwiML that we answer with, made by the official library, and how it travels over HTTP.

Attributes and limits: twilio.md 2.1 to 2.3. Does not know when which document is right.
"""

import re
from types import MappingProxyType
from urllib.parse import quote_plus

from starlette.responses import Response
from twilio.twiml.voice_response import Connect, VoiceResponse

from app.bridge.ticket import MEDIA_PREFIX
from app.call.plan import SORRY, Plan

AFTER_PATH = "/twiml/after"
RESUME_PATH = "/twiml/resume"
STREAM_PATH = "/twiml/stream"

SAY_MAX_CHARS = 3_000
"""What a Polly voice reads at most (twilio.md 2.2, warning 13521)."""

SAY_MAX_ENCODED_CHARS = 4_500
"""The same limit after URL-encoding: Japanese reaches it with 500 characters."""

VOICES = MappingProxyType(
    {
        "en-US": "Polly.Joanna-Neural",
        "en-GB": "Polly.Amy-Neural",
        "en-AU": "Polly.Olivia-Neural",
        "de-DE": "Polly.Vicki-Neural",
        "es-ES": "Polly.Lucia-Neural",
        "fr-FR": "Polly.Lea-Neural",
        "it-IT": "Polly.Bianca-Neural",
        "ja-JP": "Polly.Kazuha-Neural",
        "nl-NL": "Polly.Laura-Neural",
        "pt-BR": "Polly.Camila-Neural",
    }
)
"""A voice that does not speak the language fails or is replaced (twilio.md 2.2), so both are always set. The
first one of a language serves its other countries too. Polly.Joanna, Olivia, Kazuha and Camila are seen in
public use with Twilio but not in twilio.md; like the rest they are to be tried once on a real account."""

_NOT_IN_SERVICE = MappingProxyType(
    {
        "en": "This number is not in service.",
        "de": "Diese Nummer ist nicht vergeben.",
        "es": "Este número no está en servicio.",
        "fr": "Ce numéro n'est pas en service.",
        "it": "Questo numero non è attivo.",
        "ja": "この番号は現在使われておりません。",
        "nl": "Dit nummer is niet in gebruik.",
        "pt": "Este número não está em serviço.",
    }
)
"""In each language that has a voice. The sentence does not ask the caller to call again."""

_DEFAULT_LANGUAGE = "en-US"

_NOT_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write; the library would, and Twilio could not parse the document."""


class Twiml(Response):
    """A document for Twilio, not to be cached: the next call needs another ticket (twilio.md 2.3)."""

    media_type = "text/xml"

    def __init__(self, document: str) -> None:
        super().__init__(document, headers={"Cache-Control": "no-store"})


def connect(base: str, ticket: str, zone: str, region: str, continuation: str) -> str:
    """Open the stream, and ask us again when it is gone, however it went.

    What Twilio asks then names the call's zone and the region that answers now, because it may come in anywhere,
    and proves whose call it is, because the machine that answers now may be gone.
    """
    response = VoiceResponse()
    stage = Connect(action=after_url(base, zone, region, continuation), method="POST")
    stage.stream(
        name="main",
        url=stream_url(base, ticket),
        status_callback=f"{base}{STREAM_PATH}/{zone}",
        status_callback_method="POST",
    )
    response.append(stage)
    return str(response)


def after_url(base: str, zone: str, region: str, continuation: str) -> str:
    """Where Twilio asks what comes after the stream."""
    return f"{base}{AFTER_PATH}/{zone}/{region}/{continuation}"


def resume_url(base: str, zone: str, region: str, continuation: str) -> str:
    """Where Twilio is sent when another machine is to go on with a call that is not over."""
    return f"{base}{RESUME_PATH}/{zone}/{region}/{continuation}"


def stream_url(base: str, ticket: str) -> str:
    """Where the socket is: wss for an https base; ws for http, which only a simulator opens (31922)."""
    return f"{base.replace('http', 'ws', 1)}{MEDIA_PREFIX}{ticket}"


def sorry(plan: Plan) -> str:
    """The tenant's sentence for a call that cannot go on, then its fallback number, or the end."""
    return sentence(plan.sorry, plan.language, plan.fallback_number)


def sentence(text: str, language: str, then_dial: str = "") -> str:
    """A sentence, left out when it is empty; then a number is dialled, when there is one; then the end."""
    response = VoiceResponse()
    speakable = _speakable(text)
    if speakable:
        known = spoken(language)
        response.say(speakable, language=known, voice=VOICES[known])
    if then_dial:
        response.dial(then_dial)
    response.hangup()
    return str(response)


def not_in_service(language: str) -> str:
    """For a number that no tenant has."""
    return sentence(_NOT_IN_SERVICE[spoken(language).partition("-")[0]], language)


def hang_up() -> str:
    """The end of a call that went as it should."""
    response = VoiceResponse()
    response.hangup()
    return str(response)


def busy() -> str:
    """Busy tone: as the only verb it leaves the call unanswered and unbilled (twilio.md 2.2)."""
    response = VoiceResponse()
    response.reject(reason="busy")
    return str(response)


def no_room(plan: Plan) -> str:
    """What the tenant has chosen for callers for whom there is no room."""
    return sorry(plan) if plan.when_full == SORRY else busy()


def nothing() -> str:
    """For a call that is over: an empty body would be error 11770 (twilio.md 2.3)."""
    return str(VoiceResponse())


def spoken(language: str) -> str:
    """The language, with its country, that `<Say>` uses for a tenant's: "de-AT" is read by a German voice."""
    wanted = language.replace("_", "-").lower()
    for known in VOICES:
        if known.lower() == wanted:
            return known
    for known in VOICES:
        if known.partition("-")[0] == wanted.partition("-")[0]:
            return known
    return _DEFAULT_LANGUAGE


def _speakable(text: str) -> str:
    clean = _NOT_XML.sub("", " ".join(text.split()))[:SAY_MAX_CHARS]
    encoded_chars = 0
    for index, char in enumerate(clean):
        encoded_chars += len(quote_plus(char))
        if encoded_chars > SAY_MAX_ENCODED_CHARS:
            return clean[:index]
    return clean
