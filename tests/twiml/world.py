"""The outside of the webhooks for their tests: Twilio, which signs with the official library, and the calls."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlencode

import httpx2
from starlette.applications import Starlette
from starlette.testclient import TestClient
from twilio.request_validator import RequestValidator

from app.bridge.call_registry import CallRegistry
from app.bridge.refusals import Refusals
from app.bridge.ticket import Continuations, Ticket, Tickets
from app.call.continuity import Recollection
from app.call.ending import EndReason
from app.call.history import NO_HISTORY, History
from app.call.plan import Plan
from app.regions.routing import Here, Reason
from app.regions.zones import shipped_zones
from twiml.replay_policy import ReplayPolicy
from twiml.routes import Parts, routes
from twiml.signature import Signatures

US1, IE1, IE1_OLD, STRANGER = "1" * 32, "2" * 32, "3" * 32, "9" * 32
TOKENS = {"us1": US1, "ie1": (IE1, IE1_OLD)}
BASE = "https://voice.example.com"
OTHER_BASE = "https://nearcall.fly.dev"
ACCOUNT = "AC" + "0" * 31 + "1"
CALL = "CA" + "0" * 31 + "2"
OTHER_CALL = "CA" + "0" * 31 + "3"
CALLER, CALLED = "+4930123456", "+4930654321"
NOW_S = 1_800_000_000.0
FORM_HEADERS = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}

CALL_FIELDS = {
    "AccountSid": ACCOUNT,
    "ApiVersion": "2010-04-01",
    "CallSid": CALL,
    "CallStatus": "ringing",
    "CallToken": '{"parentCallInfoToken":"x"}',
    "Called": CALLED,
    "CalledCity": "",
    "Caller": CALLER,
    "Direction": "inbound",
    "From": CALLER,
    "FromCity": "",
    "FromState": "Zürich",
    "To": CALLED,
    "ToCity": "",
}
"""twilio.md 2.4, blanks included."""


class FakeCallRegistry(CallRegistry):
    """A registry without sessions: keeps what it is given and answers what the test sets."""

    def __init__(self) -> None:
        refusals = Refusals({}, "fra", lambda: 0)
        super().__init__(lambda *_: None, lambda _tenant: None, refusals, calls_max=0, setups_max=0)
        self.expected: list[tuple[Ticket, Plan, str, str]] = []
        self.taken: set[str] = set()
        self.streams: dict[str, int] = {}
        self.histories: list[History] = []
        self.lost: list[str] = []
        self.endings: dict[str, EndReason] = {}
        self.shortages: dict[str, Reason] = {}
        """By tenant."""
        self.refusals: list[tuple[str, str, str, str, str, str]] = []

    def expect(self, ticket: Ticket, plan: Plan, history: History = NO_HISTORY) -> None:
        self.expected.append((ticket, plan, ticket.caller, ticket.called))
        self.histories.append(history)

    def is_expected(self, call_sid: str) -> bool:
        return call_sid in {ticket.call_sid for ticket, *_ in self.expected} - self.taken

    def is_live(self, call_sid: str) -> bool:
        return call_sid in self.streams

    def live_epoch(self, call_sid: str) -> int | None:
        return self.streams.get(call_sid)

    def lose_stream(self, call_sid: str) -> None:
        del self.streams[call_sid]
        self.lost.append(call_sid)
        self.endings[call_sid] = EndReason.PHONE_LOST

    def ending(self, call_sid: str, epoch: int = 0) -> EndReason | None:
        return self.endings.get(call_sid)

    def tenant_of(self, call_sid: str) -> str | None:
        return next((ticket.tenant for ticket, *_ in self.expected if ticket.call_sid == call_sid), None)

    def record_refused_call(
        self, call_sid: str, zone: str, tenant: str, reason: EndReason, detail: str, caller: str, called: str
    ) -> None:
        self.refusals.append((zone, tenant, reason.value, detail, caller, called))

    def tenant_shortage(self, plan: Plan) -> Reason | None:
        return self.shortages.get(plan.tenant)


class World:
    """One machine's webhooks behind two public names, and the Twilio that calls them."""

    def __init__(self) -> None:
        self.registry = FakeCallRegistry()
        self.plan: Plan | None = Plan()
        self.here = Here("fra", ("fra", "iad"), frozenset({"global"}))
        self.dialled: list[str] = []
        self.now_s = NOW_S
        self.nonces = iter(f"nonce-{count}" for count in range(1, 100))
        self.tickets = Tickets("a secret of the tests")
        self.continuations = Continuations("a secret of the tests")
        self.recollection = Recollection()
        self.recalled: list[tuple[str, str, str]] = []
        self.signatures = Signatures(TOKENS, [BASE, OTHER_BASE])
        self.parts = Parts(
            signatures=self.signatures,
            tickets=self.tickets,
            continuations=self.continuations,
            recall=self._recall,
            plan_of=self._plan_of,
            registry=self.registry,
            plan_for=self._plan_for,
            is_broken=lambda _number: False,
            fallback_plan=Plan(),
            replay_policy=ReplayPolicy(shipped_zones(), lambda: self.here, "a secret of the tests"),
            account_sid=ACCOUNT,
            backends=("openai", "voicelive"),
            clock=lambda: self.now_s,
            nonce=lambda: next(self.nonces),
            on_fly=False,
        )

    def full(self, *others: str) -> None:
        """No room here; machines are in these other regions."""
        self.here = replace(self.here, full=True, deployed=(self.here.region, *others))

    def _plan_for(self, called: str) -> Plan | None:
        self.dialled.append(called)
        return self.plan

    def _plan_of(self, tenant: str) -> Plan | None:
        return self.plan if self.plan is not None and self.plan.tenant == tenant else None

    async def _recall(self, zone: str, call_sid: str, tenant: str) -> Recollection:
        self.recalled.append((zone, call_sid, tenant))
        return self.recollection

    def app(self, **changes: object) -> Starlette:
        app = Starlette(routes=routes(replace(self.parts, **changes)))  # type: ignore[arg-type]  # fields of Parts
        app.router.redirect_slashes = False
        return app

    def client(self, **changes: object) -> TestClient:
        """Reaches the app as the proxy does: plain http, another host, another port."""
        return TestClient(self.app(**changes), base_url="http://10.0.0.7:8080", follow_redirects=False)


def signed(url: str, fields: Mapping[str, str | Sequence[str]], token: str = US1) -> dict[str, str]:
    """Headers of Twilio's POST of these fields to this public URL."""
    return FORM_HEADERS | {"X-Twilio-Signature": signature(url, fields, token)}


def signature(url: str, fields: Mapping[str, str | Sequence[str]], token: str = US1) -> str:
    text: str = RequestValidator(token).compute_signature(url, _Repeating(fields))
    return text


class _Repeating(dict[str, str | Sequence[str]]):
    """A dict as frameworks hand it to the library: values may repeat."""

    def getall(self, name: str) -> Sequence[str]:
        value = self[name]
        return [value] if isinstance(value, str) else value


def post(
    client: TestClient,
    path: str,
    fields: Mapping[str, str | Sequence[str]] = CALL_FIELDS,
    *,
    base: str = BASE,
    token: str = US1,
    headers: Mapping[str, str] | None = None,
) -> httpx2.Response:
    """One webhook of Twilio's, as it comes off the proxy."""
    return client.post(
        path,
        content=urlencode(fields, doseq=True),
        headers=signed(base + path, fields, token) | dict(headers or {}),
    )
