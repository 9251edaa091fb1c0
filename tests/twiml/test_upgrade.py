"""How the upgrade of a media stream is answered, once the gate has decided."""

import logging
from types import SimpleNamespace

import pytest

from app.bridge.handover import Denial
from app.bridge.link import Link
from app.bridge.ticket import Ticket
from app.call.events import Side
from app.call.evidence import Route
from app.regions.routing import Here
from app.regions.zones import shipped_zones
from tests.bridge.peers import MESSAGE_MAX, Owner
from tests.twiml.world import FakeCallRegistry
from twiml.gate import Admission, Refusal, ReplayAnswer
from twiml.replay_policy import Header, ReplayPolicy
from twiml.upgrade import UpgradeAnswers

TICKET = Ticket("CA" + "5" * 32, "acme", "eu", 0, "nonce")
ADMISSION = Admission(TICKET, "us1", Route("fra", "iad", "us1"))


class Registry(FakeCallRegistry):
    """Gives every stream this link, and keeps the streams that were refused."""

    def __init__(self, link: Link | None) -> None:
        super().__init__()
        self.link = link
        self.refused_streams: list[tuple[Ticket, str]] = []

    def answer(self, ticket: Ticket, twilio_region: str, trail: Route) -> Link | None:
        return self.link

    def record_refused_stream(self, ticket: Ticket, why: str) -> None:
        self.refused_streams.append((ticket, why))


class Answered:
    """An upgrade about which the gate has decided, and what came of it."""

    def __init__(self, decision: Admission | Refusal | ReplayAnswer, link: Link | None = None) -> None:
        def admit(target: str, header: Header, now_s: float) -> Admission | Refusal | ReplayAnswer:
            assert (target, header("Fly-Region"), now_s) == ("/media/ticket", "fra", 7.0)
            return decision

        gate = SimpleNamespace(admit=admit)
        self.registry = Registry(link)
        machine = Here("fra", ("fra",), frozenset({"global"}))
        self.policy = ReplayPolicy(shipped_zones(), lambda: machine, "a secret of the tests")
        upgrades = UpgradeAnswers(gate, self.registry, self.policy, lambda: 7.0)  # type: ignore[arg-type]  # a stand-in
        self.answer = upgrades.answer("/media/ticket", {"Fly-Region": "fra"}.get)


def test_admitted_stream_gets_the_link_of_its_call() -> None:
    link = Link(Side.PHONE, Owner(), MESSAGE_MAX)
    answered = Answered(ADMISSION, link)
    assert answered.answer is link
    assert answered.policy.counts == {"taken stream": 1}


def test_refused_stream_of_a_call_is_denied_and_recorded() -> None:
    answered = Answered(Refusal(503, "full", TICKET))
    assert answered.answer == Denial(503)
    assert answered.registry.refused_streams == [(TICKET, "full")]


def test_refused_stream_of_a_stranger_is_denied_and_not_recorded() -> None:
    answered = Answered(Refusal(403, "signature"))
    assert answered.answer == Denial(403)
    assert answered.registry.refused_streams == []


def test_stream_for_another_region_is_denied_with_the_headers_for_fly() -> None:
    answered = Answered(ReplayAnswer({"fly-replay": "region=fra"}, "zone"))
    assert answered.answer == Denial(409, {"fly-replay": "region=fra"})
    assert answered.registry.refused_streams == []


def test_stream_without_a_call_is_logged_without_ids(caplog: pytest.LogCaptureFixture) -> None:
    """Its tenant may have moved to a zone whose calls must not be named in this region's log."""
    with caplog.at_level(logging.INFO):
        answered = Answered(ADMISSION)
    assert answered.answer == Denial(403)
    assert answered.registry.refused_streams == [(TICKET, "no_call")]
    assert answered.policy.counts == {"refused no_call": 1}
    logged = str([record.__dict__ for record in caplog.records])
    assert "stream_refused" in logged
    assert (TICKET.call_sid in logged, "acme" in logged) == (False, False)
