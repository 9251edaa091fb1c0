from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bridge.ticket import TICKET_MAX_CHARS, TICKET_VALID_S, Nonces, Ticket, Tickets
from app.call.evidence import Route
from app.regions.routing import Here
from app.regions.zones import shipped_zones
from tests.twiml.world import BASE, CALL, IE1, NOW_S, OTHER_BASE, STRANGER, TOKENS, US1, signature
from twiml.gate import Admission, Refusal, ReplayAnswer, UpgradeGate
from twiml.replay_policy import Header, ReplayPolicy
from twiml.signature import Signatures

TICKETS = Tickets("a secret of the tests")
TICKET = Ticket(CALL, "default", "global", int(NOW_S), "nonce")
TARGET = "/media/" + TICKETS.issue(TICKET)


def gate(
    full: Callable[[], bool] = lambda: False,
    remembers: int = 10,
    expected: Callable[[str], bool] = lambda _call_sid: False,
    backend_failed: Callable[[Ticket], bool] = lambda _ticket: False,
    **here: Any,
) -> UpgradeGate:
    machine = replace(Here("fra", ("fra",), frozenset({"global"})), **here)
    replay_policy = ReplayPolicy(shipped_zones(), lambda: machine, "a secret of the tests")
    signatures = Signatures(TOKENS, [BASE, OTHER_BASE])
    return UpgradeGate(TICKETS, Nonces(remembers), signatures, replay_policy, full, expected, backend_failed)


def headers(signed: str | None, **more: str) -> Header:
    return {**({} if signed is None else {"X-Twilio-Signature": signed}), **more}.get


ADMITTED = Admission(TICKET, "us1", Route(None, "fra", "us1"))


def sign(target: str, token: str = US1, host: str = "voice.example.com") -> str:
    return signature(f"wss://{host}{target}", {}, token)


@pytest.mark.parametrize(
    ("signed", "region"),
    [
        (sign(TARGET), "us1"),
        (sign(TARGET, IE1), "ie1"),
        pytest.param(sign(TARGET + "/"), "us1", id="signed with a slash"),
        pytest.param(sign(TARGET, host="nearcall.fly.dev"), "us1", id="over the other name"),
    ],
)
def test_twilio_with_a_fresh_ticket_is_admitted(signed: str, region: str) -> None:
    assert gate().admit(TARGET, headers(signed), NOW_S) == Admission(TICKET, region, Route(None, "fra", region))


def test_a_ticket_lets_in_once() -> None:
    at_gate = gate()
    at_gate.admit(TARGET, headers(sign(TARGET)), NOW_S)
    assert at_gate.admit(TARGET, headers(sign(TARGET)), NOW_S + 1) == Refusal(403, "ticket_used")


@pytest.mark.parametrize(
    "target",
    ["", "/", "/media", "/media/", "/media/a/b", TARGET + "/", TARGET + "?x=1", "/x" + TARGET, "/Media/x"],
)
def test_a_path_that_is_not_the_media_socket_is_not_found(target: str) -> None:
    assert gate().admit(target, headers(sign(target)), NOW_S) == Refusal(404, "not_media")


EXPIRED = "/media/" + TICKETS.issue(replace(TICKET, issued_s=int(NOW_S) - TICKET_VALID_S - 1))
EARLY = "/media/" + TICKETS.issue(replace(TICKET, issued_s=int(NOW_S) + 60))
FORGED = "/media/" + Tickets("another secret").issue(TICKET)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (EXPIRED, "ticket_expired"),
        (EARLY, "ticket_early"),
        (FORGED, "ticket_forged"),
        ("/media/" + "x" * (TICKET_MAX_CHARS + 1), "ticket_malformed"),
        ("/media/é", "ticket_malformed"),
    ],
)
def test_a_bad_ticket_is_refused_even_from_twilio(target: str, reason: str) -> None:
    assert gate().admit(target, headers(sign(target)), NOW_S) == Refusal(403, reason)


@pytest.mark.parametrize(
    "signed",
    [
        pytest.param(None, id="missing"),
        pytest.param("", id="empty"),
        pytest.param("é" * 28, id="not ASCII"),
        pytest.param(sign(TARGET, STRANGER), id="token of a stranger"),
        pytest.param(sign("/media/other"), id="for another path"),
        pytest.param(sign(TARGET, host="evil.example.com"), id="for another host"),
        pytest.param(signature(BASE + TARGET, {}), id="over https"),
    ],
)
def test_a_good_ticket_without_twilios_signature_is_refused_and_stays_good(signed: str | None) -> None:
    at_gate = gate()
    assert at_gate.admit(TARGET, headers(signed), NOW_S) == Refusal(403, "signature")
    assert at_gate.admit(TARGET, headers(sign(TARGET)), NOW_S) == ADMITTED


def test_a_full_machine_refuses_and_the_ticket_stays_good() -> None:
    answers = iter([True, False])
    at_gate = gate(full=lambda: next(answers))
    assert at_gate.admit(TARGET, headers(sign(TARGET)), NOW_S) == Refusal(503, "full")
    assert at_gate.admit(TARGET, headers(sign(TARGET)), NOW_S) == ADMITTED


@pytest.mark.parametrize("state", [{"crowded": True}, {"lagging": True}])
def test_overload_keeps_out_streams_of_calls_announced_elsewhere(state: dict[str, Any]) -> None:
    """A call that was announced here has its backend already; turning it away would cost more than taking it."""
    signed = headers(sign(TARGET))
    (reason,) = state
    assert gate(**state).admit(TARGET, signed, NOW_S) == Refusal(503, reason)
    assert isinstance(gate(deployed=("fra", "iad"), **state).admit(TARGET, signed, NOW_S), ReplayAnswer)
    assert gate(expected=lambda call_sid: call_sid == CALL, **state).admit(TARGET, signed, NOW_S) == ADMITTED


def test_a_stranger_does_not_learn_that_the_machine_is_full() -> None:
    at_gate = gate(full=lambda: True, deployed=("fra", "iad"))
    assert at_gate.admit(TARGET, headers(sign(TARGET, STRANGER)), NOW_S) == Refusal(403, "signature")


def test_a_ticket_that_cannot_be_remembered_opens_no_stream() -> None:
    refused = gate(remembers=0).admit(TARGET, headers(sign(TARGET)), NOW_S)
    assert refused == Refusal(503, "too_many_tickets")


@given(target=st.text(max_size=60), signed=st.none() | st.text(max_size=40))
def test_any_other_upgrade_is_refused_and_never_raises(target: str, signed: str | None) -> None:
    assert isinstance(gate().admit(target, {"X-Twilio-Signature": signed}.get, NOW_S), Refusal)
    assert isinstance(gate().admit("/media/" + target, {"X-Twilio-Signature": signed}.get, NOW_S), Refusal)
