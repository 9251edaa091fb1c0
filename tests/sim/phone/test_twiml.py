"""TwiML as Twilio reads it."""

import pytest

from app.sim.phone.errors import TwimlError, UnsupportedTwimlError
from app.sim.phone.twiml_document import (
    Connect,
    Dial,
    Document,
    Hangup,
    Pause,
    Redirect,
    Reject,
    Say,
    Stream,
    Verb,
    Warned,
    read_answer,
    read_document,
    relative_urls,
)


def verbs(inside: str, **keywords: bool) -> tuple[Verb, ...]:
    return read_document(f"<Response>{inside}</Response>".encode(), **keywords).verbs


def codes(inside: str) -> list[int]:
    return [warning.code for warning in read_document(f"<Response>{inside}</Response>".encode()).warnings]


def stream_fault(attributes: str, **keywords: bool) -> int | None:
    (verb,) = verbs(f"<Connect><Stream {attributes}/></Connect>", **keywords)
    assert isinstance(verb, Connect)
    return None if verb.stream.fault is None else verb.stream.fault.code


@pytest.mark.parametrize(
    ("inside", "verb"),
    [
        ("<Say>Guten  Tag\n</Say>", Say("Guten Tag")),
        (
            '<Say language="de-DE" voice="Polly.Vicki-Neural" loop="2">Hallo</Say>',
            Say("Hallo", "de-DE", "Polly.Vicki-Neural", 2),
        ),
        ("<Pause/>", Pause(1)),
        ('<Pause length="3"/>', Pause(3)),
        ("<Redirect> /next </Redirect>", Redirect("/next")),
        ('<Redirect method="GET">https://a.example/x</Redirect>', Redirect("https://a.example/x", "GET")),
        ("<Hangup/>", Hangup()),
        ("<Reject/>", Reject("rejected")),
        ('<Reject reason="busy"/>', Reject("busy")),
        ("<Dial>+493011111111</Dial>", Dial(("+493011111111",))),
        (
            '<Dial action="/" method="GET" timeout="20" timeLimit="9" callerId="+49"><Number>+4</Number></Dial>',
            Dial(("+4",), "/", "GET", "+49", 20, 9),
        ),
        ('<Connect><Stream url="wss://a.example/m"/></Connect>', Connect(Stream("wss://a.example/m"))),
    ],
)
def test_verb_is_read_with_its_defaults(inside: str, verb: Verb) -> None:
    assert verbs(inside) == (verb,)
    assert codes(inside) == []


def test_stream_is_read_with_everything_it_can_have() -> None:
    inside = """
        <Connect action="/after" method="GET">
          <Stream url="wss://a.example/m" name="main" track="inbound_track"
                  statusCallback="https://a.example/s" statusCallbackMethod="GET">
            <Parameter name="tenant" value="acme"/>
            <Parameter name="lang" value="de"/>
          </Stream>
        </Connect>"""
    stream = Stream("wss://a.example/m", "main", "https://a.example/s", "GET", {"tenant": "acme", "lang": "de"})
    assert verbs(inside) == (Connect(stream, "/after", "GET"),)
    assert codes(inside) == []


def test_verbs_stay_in_order() -> None:
    assert verbs("<Say>a</Say><Pause/><Hangup/>") == (Say("a"), Pause(), Hangup())


def test_empty_response_has_no_verbs() -> None:
    assert read_document(b"<Response/>") == Document(())


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ("<say>hello</say>", 12200),  # names are case-sensitive
        ("<Pause Length='3'/>", 12200),
        ("<Say speed='2'>hello</Say>", 12200),
        ("<Pause length='0'/>", 12200),
        ("<Pause length='1.5'/>", 12200),
        ("<Redirect/>", 12200),
        ("<Redirect method='post'>/x</Redirect>", 12200),
        ("<Reject reason='full'/>", 12200),
        ("<Say></Say>", 13520),
        (f"<Say>{'x' * 4097}</Say>", 13521),
        (f"<Say voice='Polly.Amy-Neural'>{'x' * 3001}</Say>", 13521),
        ("<Dial>Berlin</Dial>", 13224),
        ("<Dial><Nummer>+49</Nummer></Dial>", 12200),
        ("<Connect><Stream url='wss://a.example/m' statusCallback='/s'/></Connect>", 12200),
        ("<Connect><Stream url='wss://a.example/m' audioFormat='pcm'/></Connect>", 12200),
        ("<Connect><Stream url='wss://a.example/m'><Param name='a' value='b'/></Stream></Connect>", 12200),
        ("<Connect><Stream url='wss://a.example/m'><Parameter value='b'/></Stream></Connect>", 12200),
    ],
)
def test_what_twilio_warns_about_is_listed_with_its_code(inside: str, code: int) -> None:
    assert codes(inside) == [code]


def test_unknown_verb_is_skipped_and_named() -> None:
    document = read_document(b"<Response><say>a</say><Hangup/></Response>")
    assert document.verbs == (Hangup(),)
    assert document.warnings == (Warned(12200, "unknown verb <say> (names are case-sensitive)"),)


@pytest.mark.parametrize(("length", "delivered"), [(494, True), (495, False)])
def test_parameter_is_delivered_below_500_characters(length: int, delivered: bool) -> None:
    parameter = f'<Parameter name="token" value="{"x" * length}"/>'
    inside = f"<Connect><Stream url='wss://a.example/m'>{parameter}</Stream></Connect>"
    (verb,) = verbs(inside)
    assert isinstance(verb, Connect)
    assert bool(verb.stream.parameters) is delivered
    assert (codes(inside) == []) is delivered


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("wss://a.example/m", None),
        ("wss://a.example:8443/m", None),
        ("ws://127.0.0.1:8080/m", None),
        ("ws://[::1]:8080/m", None),
        ("ws://localhost:8080/m", None),
        ("ws://a.example/m", 31922),
        ("https://a.example/m", 31922),
        ("wss://a.example/m?token=1", 31920),
        ("", 31923),
        ("/media/1", 31923),
        ("wss:///m", 31923),
        ("wss://a.example:port/m", 31923),
        ("wss://[a/m", 31923),
    ],
)
def test_stream_url_must_be_wss_and_have_no_query(url: str, code: int | None) -> None:
    assert stream_fault(f'url="{url}"') == code


def test_ws_elsewhere_is_taken_only_when_told() -> None:
    assert stream_fault('url="ws://a.example/m"', allow_ws=True) is None


def test_stream_without_url_is_malformed() -> None:
    assert stream_fault("") == 31923


def test_other_track_than_the_inbound_one_is_refused() -> None:
    assert stream_fault('url="wss://a.example/m" track="both_tracks"') == 31941


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 11770),
        (b" \n", 11770),
        (b"<Response><Say>", 12100),
        (b"<response/>", 12100),
        (b"not xml", 12100),
        (b"<Response><Connect/></Response>", 12100),
        (b"<Response><!--" + b"x" * 65536 + b"--></Response>", 11750),
    ],
)
def test_document_twilio_cannot_run_raises_its_code(body: bytes, code: int) -> None:
    with pytest.raises(TwimlError) as caught:
        read_document(body)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "inside", ["<Gather/>", "<Play>x</Play>", "<Start/>", "<Connect><Room/></Connect>", "<Dial><Sip/></Dial>"]
)
def test_what_this_phone_cannot_play_is_told_apart_from_faults(inside: str) -> None:
    with pytest.raises(UnsupportedTwimlError, match="this phone does not"):
        verbs(inside)


@pytest.mark.parametrize(
    "kind", ["text/xml", "application/xml", "text/html", "text/xml; charset=utf-8", "TEXT/XML"]
)
def test_xml_content_types_are_read_as_twiml(kind: str) -> None:
    assert read_answer(kind, b"<Response><Hangup/></Response>").verbs == (Hangup(),)


def test_plain_text_is_read_out() -> None:
    assert read_answer("text/plain", b"Hello").verbs == (Say("Hello"),)


@pytest.mark.parametrize("kind", [None, "", "application/json"])
def test_other_content_types_are_refused(kind: str | None) -> None:
    with pytest.raises(TwimlError) as caught:
        read_answer(kind, b"<Response/>")
    assert caught.value.code == 12300


def test_audio_answer_is_unsupported() -> None:
    with pytest.raises(UnsupportedTwimlError, match="audio"):
        read_answer("audio/mpeg", b"\x00")


def test_relative_urls_are_found_wherever_they_can_be() -> None:
    document = read_document(b"""<Response>
        <Dial action="/dialled"><Number>+49</Number></Dial><Dial action="https://a.example/ok">+49</Dial><Hangup/>
        <Connect action="after"><Stream url="wss://a.example/m"/></Connect><Redirect>/next</Redirect></Response>""")
    assert relative_urls(document) == ["/dialled", "after", "/next"]
