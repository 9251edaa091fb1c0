import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.call.plan import Plan
from tests.twiml.grammar import parsed
from twiml import documents
from twiml.documents import Twiml, spoken


def spoken_text(sorry: str, language: str = "en") -> str | None:
    say = parsed(documents.sorry(Plan(sorry=sorry, language=language)).encode()).find("Say")
    return None if say is None else say.text


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://voice.example.com", "wss://voice.example.com/media/a.b-c_d"),
        ("https://http.example.com:8443", "wss://http.example.com:8443/media/a.b-c_d"),
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/media/a.b-c_d"),
    ],
)
def test_connect_opens_the_stream_and_asks_again_afterwards(base: str, url: str) -> None:
    root = parsed(documents.connect(base, "a.b-c_d", "eu", "fra", "e.f-g_h").encode())
    connect, stream = root[0], root[0][0]
    assert connect.attrib == {"action": base + "/twiml/after/eu/fra/e.f-g_h", "method": "POST"}
    assert stream.attrib == {
        "url": url,
        "name": "main",
        "statusCallback": base + "/twiml/stream/eu",
        "statusCallbackMethod": "POST",
    }


def test_sorry_says_the_tenants_sentence_in_its_language_and_hangs_up() -> None:
    plan = Plan(language="de", sorry='Es tut uns leid: <b> & "Zürich"')
    say, hangup = parsed(documents.sorry(plan).encode())
    assert say.attrib == {"language": "de-DE", "voice": "Polly.Vicki-Neural"}
    assert say.text == plan.sorry
    assert hangup.tag == "Hangup"


@pytest.mark.parametrize(
    ("document", "verbs"),
    [(documents.hang_up(), ["Hangup"]), (documents.busy(), ["Reject"]), (documents.nothing(), [])],
)
def test_the_short_documents_are_what_they_say(document: str, verbs: list[str]) -> None:
    assert [verb.tag for verb in parsed(document.encode())] == verbs


def test_busy_is_told_as_busy() -> None:
    assert parsed(documents.busy().encode())[0].attrib == {"reason": "busy"}


@pytest.mark.parametrize("sorry", ["", "  \n", "\x00\x07"])
def test_a_sentence_with_nothing_to_say_is_left_out(sorry: str) -> None:
    assert [verb.tag for verb in parsed(documents.sorry(Plan(sorry=sorry)).encode())] == ["Hangup"]


@pytest.mark.parametrize(
    ("sorry", "said"),
    [
        ("a\x00b", "ab"),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("two\nlines", "two lines"),
        ("x" * 3_001, "x" * 3_000),
        pytest.param("ご" * 501, "ご" * 500, id="9 characters each when encoded"),
    ],
)
def test_a_sentence_is_cut_to_what_twilio_can_say(sorry: str, said: str) -> None:
    assert spoken_text(sorry) == said


@given(sorry=st.text())
def test_any_sentence_makes_a_document_that_twilio_takes(sorry: str) -> None:
    spoken_text(sorry)


@pytest.mark.parametrize(
    ("language", "known"),
    [
        ("en", "en-US"),
        ("en-GB", "en-GB"),
        ("en_gb", "en-GB"),
        ("DE", "de-DE"),
        ("de-AT", "de-DE"),
        ("ja", "ja-JP"),
        ("tlh", "en-US"),
        ("", "en-US"),
    ],
)
def test_a_language_gets_a_voice_that_speaks_it(language: str, known: str) -> None:
    assert spoken(language) == known


@pytest.mark.parametrize("language", ["en", "de-AT", "ja", "tlh"])
def test_language_and_voice_are_always_set_together(language: str) -> None:
    assert spoken_text("Sorry.", language) == "Sorry."


def test_a_document_travels_as_xml_that_may_not_be_cached() -> None:
    response = Twiml(documents.nothing())
    assert response.headers["content-type"].partition(";")[0] == "text/xml"
    assert response.headers["cache-control"] == "no-store"
