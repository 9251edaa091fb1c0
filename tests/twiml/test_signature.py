"""The check of Twilio's signature. The vectors are those of twilio.md 3.2."""

import base64
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twiml.world import BASE, IE1, IE1_OLD, OTHER_BASE, STRANGER, TOKENS, US1, signature
from twiml.signature import ESCAPES_MAX, FIELDS_MAX, Form, Signatures

FORM = "application/x-www-form-urlencoded; charset=UTF-8"
TWILIO = Signatures(TOKENS, [BASE, OTHER_BASE])
VECTORS = Signatures({"us1": "12345"}, ["https://example.com", BASE])

PHP_FIELDS = {
    "CallSid": "CA1234567890ABCDE",
    "Caller": "+14158675310",
    "Digits": "1234",
    "From": "+14158675310",
    "To": "+18005551212",
}
CALL_FIELDS = {
    "AccountSid": "AC" + "0" * 32,
    "CallSid": "CA" + "1" * 32,
    "From": "+4930123456",
    "FromCity": "",
    "To": "+4930654321",
}
WITHOUT_BLANK = {name: value for name, value in CALL_FIELDS.items() if value}
JSON_BODY = b'{"event":"stream-started"}'
JSON_TARGET = "/json?bodySHA256=7c764ac0ab784c6a71df326121bd22fe66274861dff33137432cd8e58c7ab08d"
JSON_SIGNATURE = "OcJ9tWnJW0xo0bLJZ4/2G4UydoQ="


def form(fields: dict[str, str]) -> bytes:
    return urlencode(fields).encode()


@pytest.mark.parametrize(
    ("target", "body", "content_type", "signed"),
    [
        ("/myapp.php?foo=1&bar=2", form(PHP_FIELDS), FORM, "L/OH5YylLD5NRKLltdqwSvS0BnU="),
        ("/twilio/voice", form(CALL_FIELDS), FORM, "UERsNNhyPRbVbr6e8nzdYDezUds="),
        ("/twilio/voice", form(WITHOUT_BLANK), FORM, "V+U6kNmN766rpLND/sndfyDQYt0="),
        ("/twilio/voice", b"", None, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ="),
        ("/twilio/voice", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ="),
        ("/media", b"", None, "2A768no+sGy6/ZLDxHITQfda/E8="),
        (JSON_TARGET, JSON_BODY, "application/json", JSON_SIGNATURE),
    ],
)
def test_a_published_webhook_vector_fits(target: str, body: bytes, content_type: str | None, signed: str) -> None:
    found = VECTORS.webhook(target, body, content_type, signed)
    assert found is not None
    assert found.twilio_region == "us1"


@pytest.mark.parametrize(
    ("target", "signed"),
    [
        ("/media", "jFDHVhI8XO69C49uXR3xmdZPylY="),
        ("/media/", "BXF4dPv/qKwfALEQ/o2fVPPvK/c="),
        pytest.param("/media", "BXF4dPv/qKwfALEQ/o2fVPPvK/c=", id="signed with a slash, sent without"),
        pytest.param("/media", "zT3E7J41/O0MIJ8mFRuffODYWF4=", id="signed with :443"),
    ],
)
def test_a_published_upgrade_vector_fits(target: str, signed: str) -> None:
    found = VECTORS.upgrade(target, signed)
    assert found is not None
    assert (found.twilio_region, found.base) == ("us1", BASE)


@pytest.mark.parametrize(
    ("target", "body", "content_type", "signed"),
    [
        pytest.param(
            "/twilio/voice", form(CALL_FIELDS), FORM, "V+U6kNmN766rpLND/sndfyDQYt0=", id="blank not signed"
        ),
        pytest.param("/twilio/voice", b"", FORM, None, id="no header"),
        pytest.param("/twilio/voice", b"", FORM, "", id="empty header"),
        pytest.param("/twilio/voice", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ", id="no padding"),
        pytest.param("/twilio/voice", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=" * 9, id="long"),
        pytest.param("/twilio/voice", b"", FORM, "é" * 28, id="signature not ASCII"),
        pytest.param("/twilio/voicé", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="path not ASCII"),
        pytest.param("/twilio/voice#ct=2000", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="fragment"),
        pytest.param("/twilio/voice/", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="slash added"),
        pytest.param("/twilio//voice", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="slash doubled"),
        pytest.param("/twilio/%76oice", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="escaped otherwise"),
        pytest.param("https://x/twilio/voice", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="absolute form"),
        pytest.param("", b"", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="no target"),
        pytest.param("/twilio/voice", b"To=\xe9", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="latin-1 body"),
        pytest.param("/twilio/voice", b"To=%E9", FORM, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="latin-1 escape"),
        pytest.param("/twilio/voice", b"x", None, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="body of no type"),
        pytest.param("/twilio/voice", b"x", "text/plain", "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", id="uncovered body"),
        pytest.param(JSON_TARGET, b"{}", "application/json", JSON_SIGNATURE, id="JSON body changed"),
        pytest.param(JSON_TARGET, b"", "application/json", JSON_SIGNATURE, id="JSON body cut"),
    ],
)
def test_what_twilio_did_not_sign_is_refused_without_an_exception(
    target: str, body: bytes, content_type: str | None, signed: str | None
) -> None:
    assert VECTORS.webhook(target, body, content_type, signed) is None


@pytest.mark.parametrize(
    "signed",
    [
        None,
        "",
        "é" * 28,
        pytest.param("2A768no+sGy6/ZLDxHITQfda/E8=", id="the https URL, not the wss one"),
    ],
)
def test_an_upgrade_that_twilio_did_not_sign_is_refused(signed: str | None) -> None:
    assert VECTORS.upgrade("/media", signed) is None


def test_a_json_url_with_two_hashes_is_refused() -> None:
    target = JSON_TARGET + "&bodySHA256=" + "0" * 64
    assert TWILIO.webhook(target, JSON_BODY, "application/json", signature(BASE + target, {})) is None


def test_a_form_with_more_fields_than_twilio_sends_is_refused_unread() -> None:
    fields = {f"f{count}": "" for count in range(FIELDS_MAX + 1)}
    assert TWILIO.webhook("/x", form(fields), FORM, signature(BASE + "/x", fields)) is None


def test_a_form_with_more_escapes_than_twilio_sends_is_refused_unread() -> None:
    fields = {"FromCity": "%" * (ESCAPES_MAX + 1)}
    assert TWILIO.webhook("/x", form(fields), FORM, signature(BASE + "/x", fields)) is None
    fields = {"FromCity": "%" * ESCAPES_MAX}
    assert TWILIO.webhook("/x", form(fields), FORM, signature(BASE + "/x", fields)) is not None


def test_another_base64_of_the_same_signature_is_refused() -> None:
    signed = signature(BASE + "/x", {})
    same = signed[:26] + chr(ord(signed[26]) + 1) + "="
    assert base64.b64decode(same) == base64.b64decode(signed)
    assert TWILIO.webhook("/x", b"", None, signed) is not None
    assert TWILIO.webhook("/x", b"", None, same) is None


def test_refusing_a_form_sorts_and_joins_its_fields_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Form] = []

    def text_of(form: Form) -> bytes:
        joined.append(form)
        return b""

    monkeypatch.setattr(Form, "signed_text", text_of)
    fields = {f"f{count}": "x" for count in range(FIELDS_MAX)}
    assert TWILIO.webhook("/x", form(fields), FORM, signature(BASE + "/x", fields, STRANGER)) is None
    assert len(joined) == 1


def test_an_escape_that_is_not_utf_8_is_not_guessed_at() -> None:
    signed = signature(BASE + "/x", {"To": "\ufffd"})
    assert TWILIO.webhook("/x", b"To=%E9", FORM, signed) is None


def test_repeated_fields_are_signed_once_each_in_order() -> None:
    signed = signature(BASE + "/x", {"Digits": ["2", "1", "2"]})
    found = TWILIO.webhook("/x", b"Digits=2&Digits=1&Digits=2", FORM, signed)
    assert found is not None
    assert found.form.signed_text() == b"Digits1Digits2"
    assert found.form.one("Digits") == ""


def test_a_repeated_field_has_no_single_value() -> None:
    assert Form([("To", "+1"), ("To", "+2")]).one("To") == ""


def test_a_get_is_signed_over_its_query_alone() -> None:
    target = "/twiml/voice?CallSid=CA1&FromCity="
    assert TWILIO.webhook(target, b"", None, signature(BASE + target, {})) is not None


@pytest.mark.parametrize(
    ("token", "region"), [(US1, "us1"), (IE1, "ie1"), pytest.param(IE1_OLD, "ie1", id="during rotation")]
)
def test_the_token_that_fits_names_the_region(token: str, region: str) -> None:
    webhook = TWILIO.webhook("/x", b"a=b", FORM, signature(BASE + "/x", {"a": "b"}, token))
    upgrade = TWILIO.upgrade("/media/t", signature("wss://voice.example.com/media/t", {}, token))
    assert webhook is not None
    assert upgrade is not None
    assert (webhook.twilio_region, upgrade.twilio_region) == (region, region)


def test_a_token_of_somebody_else_fits_nothing() -> None:
    assert TWILIO.webhook("/x", b"a=b", FORM, signature(BASE + "/x", {"a": "b"}, STRANGER)) is None


@pytest.mark.parametrize("base", [BASE, OTHER_BASE])
def test_each_public_name_fits_and_is_told(base: str) -> None:
    found = TWILIO.webhook("/x", b"a=b", FORM, signature(base + "/x", {"a": "b"}))
    assert found is not None
    assert found.base == base


def test_a_public_name_that_is_not_ours_fits_nothing() -> None:
    assert TWILIO.webhook("/x", b"", None, signature("https://evil.example.com/x", {})) is None


@pytest.mark.parametrize(
    ("configured", "signed_over"),
    [
        (BASE, BASE),
        (BASE, BASE + ":443"),
        (BASE + "/", BASE),
        ("https://Voice.Example.COM", BASE),
        (BASE + ":443", BASE),
        (BASE + ":8443", BASE),
        (BASE + ":8443", BASE + ":8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost", "http://localhost"),
        ("http://localhost", "http://localhost:80"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_ports_follow_the_rules_of_twilio(configured: str, signed_over: str) -> None:
    signatures = Signatures({"us1": US1}, [configured])
    webhook = signatures.webhook("/x", b"", None, signature(signed_over + "/x", {}))
    upgrade = signatures.upgrade("/m", signature(signed_over.replace("http", "ws", 1) + "/m", {}))
    assert webhook is not None
    assert upgrade is not None


@pytest.mark.parametrize("port", ["", ":443", ":80", ":8443"])
def test_the_scheme_is_the_configured_one(port: str) -> None:
    assert TWILIO.webhook("/x", b"", None, signature(f"http://voice.example.com{port}/x", {})) is None
    assert TWILIO.upgrade("/x", signature(f"ws://voice.example.com{port}/x", {})) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "voice.example.com",
        "wss://voice.example.com",
        "https://",
        "https://user:pw@voice.example.com",
        "https://voice.example.com/nearcall",
        "https://voice.example.com?x=1",
        "https://voice.example.com#ct=2000",
        "https://voice.example.com:port",
    ],
)
def test_a_public_url_that_cannot_be_one_is_named_at_start(url: str) -> None:
    with pytest.raises(ValueError, match=r"public URL|Port"):
        Signatures({"us1": US1}, [url])


@pytest.mark.parametrize("token", ["", "  ", ("good", "")])
def test_an_empty_token_is_refused_at_start(token: str | tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="auth token of ie1 is empty"):
        Signatures({"ie1": token}, [BASE])


def test_without_tokens_every_request_is_refused() -> None:
    assert Signatures({}, [BASE]).webhook("/x", b"", None, signature(BASE + "/x", {}, "")) is None


text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100)
@given(fields=st.dictionaries(text, text, max_size=12), path=text)
def test_whatever_the_library_signs_fits(fields: dict[str, str], path: str) -> None:
    target = "/" + quote(path)
    assert TWILIO.webhook(target, form(fields), FORM, signature(BASE + target, fields)) is not None


@settings(max_examples=200)
@given(
    target=st.text(max_size=40),
    body=st.binary(max_size=80),
    content_type=st.none() | st.just(FORM) | st.text(max_size=40),
    signed=st.none() | st.text(min_size=28, max_size=28) | st.text(max_size=40),
)
def test_garbage_is_refused_and_never_raises(
    target: str, body: bytes, content_type: str | None, signed: str | None
) -> None:
    assert TWILIO.webhook(target, body, content_type, signed) is None
    assert TWILIO.upgrade(target, signed) is None
