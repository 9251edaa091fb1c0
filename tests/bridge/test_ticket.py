import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bridge.ticket import (
    CLOCK_SKEW_S,
    CONTINUATION_VALID_S,
    NUMBER_MAX_CHARS,
    TICKET_MAX_CHARS,
    TICKET_VALID_S,
    BadContinuation,
    BadTicket,
    Continuation,
    Continuations,
    Flaw,
    Nonces,
    Ticket,
    Tickets,
    new_nonce,
    signer_of,
)
from tests.twiml.world import CALL, NOW_S

SECRET = "a secret of the tests"
TICKETS = Tickets(SECRET)
TICKET = Ticket(CALL, "acme", "global", int(NOW_S), "n" * 22)
TEXT = TICKETS.issue(TICKET)
URL_SAFE = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def flaw(text: str, now_s: float = NOW_S, tickets: Tickets = TICKETS) -> Flaw:
    with pytest.raises(BadTicket) as caught:
        tickets.read(text, now_s)
    return caught.value.reason


@pytest.mark.parametrize(
    "ticket",
    [
        TICKET,
        replace(TICKET, resumes=True),
        replace(TICKET, tenant="zürich"),
        replace(TICKET, backend="voicelive"),
        replace(TICKET, caller="+4930123456", called="+4930654321"),
        replace(TICKET, backend="voicelive", caller="anonymous", called="sip:jürgen@example.com"),
        replace(TICKET, called="+4930654321"),
        replace(TICKET, resumes=True, epoch=3, began_ms=1_799_999_000_123),
        replace(TICKET, backend="openai", resumes=True, epoch=1, began_ms=5, caller="+49301", called="+49302"),
    ],
)
def test_a_ticket_is_read_as_it_was_issued(ticket: Ticket) -> None:
    assert TICKETS.read(TICKETS.issue(ticket), NOW_S) == ticket


def test_a_ticket_without_a_backend_is_readable_by_the_version_before() -> None:
    assert len(fields_of(TEXT)) == 6


def fields_of(text: str) -> list[object]:
    """What a ticket is made of, seen without the secret."""
    payload = text.rpartition(".")[0]
    fields: list[object] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return fields


def test_a_ticket_is_one_short_url_path_segment() -> None:
    longest = replace(
        TICKET, tenant="t" * 64, zone="z" * 32, nonce=new_nonce(), caller="1" * 500, called="2" * 500
    )
    text = TICKETS.issue(longest)
    assert set(text) <= URL_SAFE
    assert len(text) < TICKET_MAX_CHARS
    assert TICKETS.read(text, NOW_S).caller == "1" * NUMBER_MAX_CHARS


def test_a_ticket_with_numbers_is_one_that_the_version_before_reads() -> None:
    """That version takes tickets of 400 characters, and a seventh field as the name of a backend to prefer."""
    text = TICKETS.issue(replace(TICKET, backend="openai", caller="+493012345678901", called="+493012345678902"))
    assert len(text) < 400
    *six, seventh = fields_of(text)
    assert six == [CALL, "acme", "global", int(NOW_S), "n" * 22, False]
    assert isinstance(seventh, str)
    assert seventh.startswith("openai ")


def test_numbers_of_a_ticket_are_unreadable_without_the_secret() -> None:
    text = TICKETS.issue(replace(TICKET, caller="+4930123456", called="+4930654321"))
    sealed = str(fields_of(text)[-1]).strip()
    for seen in (text, str(fields_of(text)), str(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)))):
        assert "4930" not in seen
    assert TICKETS.issue(replace(TICKET, caller="+4930123456", called="+4930654321")) != text
    assert "4930" not in repr(TICKETS.read(text, NOW_S))


@pytest.mark.parametrize("sealed", ["A", "AAAA", "A" * 60, "!", "ä"])
def test_numbers_that_were_not_sealed_by_us_are_malformed(sealed: str) -> None:
    fields = [CALL, "acme", "global", int(NOW_S), "n", False, f"openai {sealed}"]
    payload = base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=")
    assert flaw(_sign(payload)) is Flaw.MALFORMED


def test_a_resuming_ticket_is_one_that_the_version_before_reads() -> None:
    """It takes what precedes the blank for a backend that it does not have, and finds the numbers behind it."""
    text = TICKETS.issue(replace(TICKET, backend="openai", resumes=True, epoch=2, began_ms=7, caller="+4930"))
    *six, seventh = fields_of(text)
    assert six == [CALL, "acme", "global", int(NOW_S), "n" * 22, True]
    assert isinstance(seventh, str)
    named, _, sealed = seventh.partition(" ")
    assert named == "openai;2;7"
    before = _sign(_payload([*six, f"openai {sealed}"]))
    read = TICKETS.read(before, NOW_S)
    assert (read.backend, read.caller, read.epoch, read.started_ms) == ("openai", "+4930", 0, int(NOW_S) * 1_000)


@pytest.mark.parametrize("named", ["openai;1", "openai;x;1", "openai;1;", "a;1;2;3"])
def test_a_leg_that_is_none_is_malformed(named: str) -> None:
    payload = _payload([CALL, "acme", "global", int(NOW_S), "n", True, f"{named} "])
    assert flaw(_sign(payload)) is Flaw.MALFORMED


def _payload(fields: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=")


CONTINUATIONS = Continuations("a secret of the tests")
CONTINUATION = Continuation(CALL, "acme", "eu", 2, round(NOW_S * 1_000), "de", (1, 2, 3))


@pytest.mark.parametrize("of", [CONTINUATION, replace(CONTINUATION, resumed_ms=(), tenant="zürich")])
def test_a_continuation_is_read_as_it_was_issued(of: Continuation) -> None:
    text = CONTINUATIONS.issue(of)
    assert CONTINUATIONS.read(text, NOW_S) == of
    assert set(text) <= URL_SAFE
    assert len(text) < 300


def test_the_next_continuation_keeps_the_last_resumes() -> None:
    assert CONTINUATION.resumed(3, 9) == replace(CONTINUATION, epoch=3, resumed_ms=(2, 3, 9))


@pytest.mark.parametrize(
    ("text", "age_s", "reason"),
    [
        (CONTINUATIONS.issue(CONTINUATION), CONTINUATION_VALID_S + 1, Flaw.EXPIRED),
        (CONTINUATIONS.issue(CONTINUATION), -CLOCK_SKEW_S - 1, Flaw.EARLY),
        (Continuations("another secret").issue(CONTINUATION), 0, Flaw.FORGED),
        (TEXT, 0, Flaw.FORGED),
        (CONTINUATIONS.issue(replace(CONTINUATION, epoch=-1)), 0, Flaw.MALFORMED),
        (CONTINUATIONS.issue(replace(CONTINUATION, resumed_ms=("x",))), 0, Flaw.MALFORMED),  # type: ignore[arg-type]
        ("x" * 1_000, 0, Flaw.MALFORMED),
        ("\u00e9", 0, Flaw.MALFORMED),
        ("", 0, Flaw.FORGED),
    ],
)
def test_a_continuation_that_is_not_good_is_refused(text: str, age_s: float, reason: Flaw) -> None:
    with pytest.raises(BadContinuation) as caught:
        CONTINUATIONS.read(text, NOW_S + age_s)
    assert caught.value.reason is reason


def test_a_continuation_is_no_ticket() -> None:
    assert flaw(CONTINUATIONS.issue(CONTINUATION)) is Flaw.FORGED


def test_a_tenant_too_long_for_a_ticket_is_named() -> None:
    with pytest.raises(ValueError, match="characters for tenant 'tttt"):
        TICKETS.issue(replace(TICKET, tenant="t" * 600))


def test_the_secret_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="secret is empty"):
        Tickets("")


@pytest.mark.parametrize("age_s", [-CLOCK_SKEW_S, 0, TICKET_VALID_S])
def test_a_ticket_is_good_for_its_minute_and_for_clocks_that_differ(age_s: int) -> None:
    assert TICKETS.read(TEXT, NOW_S + age_s) == TICKET


@pytest.mark.parametrize(
    ("age_s", "reason"), [(TICKET_VALID_S + 0.1, Flaw.EXPIRED), (-CLOCK_SKEW_S - 0.1, Flaw.EARLY)]
)
def test_a_ticket_outside_its_time_is_refused(age_s: float, reason: Flaw) -> None:
    assert flaw(TEXT, NOW_S + age_s) is reason


def test_a_ticket_of_another_secret_is_forged() -> None:
    assert flaw(TEXT, tickets=Tickets("another secret")) is Flaw.FORGED


@pytest.mark.parametrize("fields", [[], {}, [1, 2, 3, 4, 5, 6], [CALL, "acme", "global", "soon", "n", False]])
def test_a_signed_ticket_of_another_shape_is_malformed(fields: object) -> None:
    payload = base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=")
    assert flaw(_sign(payload)) is Flaw.MALFORMED


@pytest.mark.parametrize("payload", [b"", b"A", b"AAAA", b"!"])
def test_a_signed_payload_that_is_not_ours_is_malformed(payload: bytes) -> None:
    assert flaw(_sign(payload)) is Flaw.MALFORMED


def _sign(payload: bytes) -> str:
    return signer_of(SECRET).sign(payload).decode()


@pytest.mark.parametrize("end", ["", "=", "==", "!", " ", "\n", "."])
@pytest.mark.parametrize("cut", [0, 1, 2, 43, 44, 45])
def test_a_ticket_cut_or_lengthened_is_refused(cut: int, end: str) -> None:
    text = TEXT[: len(TEXT) - cut] + end
    assert text == TEXT or flaw(text) in {Flaw.FORGED, Flaw.MALFORMED}


@settings(max_examples=500)
@given(position=st.integers(0, len(TEXT) - 1), char=st.characters() | st.sampled_from(sorted(URL_SAFE | {"="})))
def test_any_altered_character_spoils_a_ticket(position: int, char: str) -> None:
    altered = TEXT[:position] + char + TEXT[position + 1 :]
    assert altered == TEXT or flaw(altered) in {Flaw.FORGED, Flaw.MALFORMED}


def test_no_other_spelling_of_the_last_character_is_taken() -> None:
    """Its low bits are not part of the signature: base64 decodes four spellings to the same bytes."""
    accepted = [char for char in URL_SAFE if _reads(TEXT[:-1] + char)]
    assert accepted == [TEXT[-1]]


def _reads(text: str) -> bool:
    try:
        TICKETS.read(text, NOW_S)
    except BadTicket:
        return False
    return True


@given(text=st.text(max_size=500))
def test_any_other_text_is_a_bad_ticket(text: str) -> None:
    assert flaw(text) in {Flaw.FORGED, Flaw.MALFORMED}


def test_nonces_are_not_repeated() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100


def test_a_spent_ticket_is_remembered_while_it_can_be_read() -> None:
    nonces = Nonces()
    early_s = TICKET.issued_s - CLOCK_SKEW_S
    assert nonces.spend(TICKET, early_s)
    assert nonces.spent(TICKET, TICKET.issued_s + TICKET_VALID_S)


def test_a_ticket_not_spent_is_not_spent() -> None:
    nonces = Nonces()
    nonces.spend(TICKET, NOW_S)
    assert not nonces.spent(replace(TICKET, nonce="another"), NOW_S)


def test_full_nonces_take_no_more_until_some_are_over() -> None:
    nonces = Nonces(limit=1)
    later = replace(TICKET, nonce="later")
    nonces.spend(TICKET, NOW_S)
    assert not nonces.spend(later, NOW_S + 1)
    assert nonces.spend(later, NOW_S + TICKET_VALID_S + CLOCK_SKEW_S + 1)
