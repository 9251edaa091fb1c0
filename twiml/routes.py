"""The webhooks' routes: paths and methods, nothing else.

The application that mounts them must not redirect slashes: a 307 changes the URL that Twilio signed
(twilio.md 3.6).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.routing import Route

from app.bridge.call_registry import CallRegistry, Recall
from app.bridge.ticket import Continuations, Tickets
from app.call.plan import Plan
from twiml.after import After
from twiml.answers import gate_for_callbacks, gate_for_calls
from twiml.documents import AFTER_PATH, RESUME_PATH, STREAM_PATH
from twiml.intake import BODY_WAIT_S, CallTenant, Gate, Handler, Intake, PlanFor
from twiml.replay_policy import ReplayPolicy
from twiml.resume import Resumer
from twiml.signature import Signatures
from twiml.status import note_status
from twiml.stream import note_stream
from twiml.voice import ANSWERS_MAX, Voice


@dataclass(frozen=True, slots=True)
class Parts:
    """What the webhooks need from outside."""

    signatures: Signatures
    tickets: Tickets
    continuations: Continuations
    registry: CallRegistry
    recall: Recall
    """Finds out what the ledger knows about a call."""
    plan_of: Callable[[str], Plan | None]
    """Finds a tenant's plan by its name."""
    plan_for: PlanFor
    is_broken: Callable[[str], bool]
    """True for a number of a tenant that cannot be used: its callers hear an apology."""
    fallback_plan: Plan
    """The plan whose sentence callers hear when no tenant has the number."""
    replay_policy: ReplayPolicy
    account_sid: str | None
    """The only Twilio account to accept; None: every account that signs with our tokens."""
    backends: Collection[str]
    """The names of all backends: a number's URL may ask for one."""
    clock: Callable[[], float]
    """Unix seconds."""
    nonce: Callable[[], str]
    on_fly: bool
    """Requests come through Fly's proxy, which says who sends them."""
    body_wait_s: float = BODY_WAIT_S
    answers_max: int = ANSWERS_MAX


def routes(parts: Parts) -> list[Route]:
    """`POST` only: Starlette answers 405 to everything else, so nothing of ours is cached by Twilio."""

    def find_tenant(call_sid: str, called: str) -> CallTenant:
        replay_policy = parts.replay_policy
        # While the machine starts, the built-in tenant may stand in for a tenant that is not known yet.
        plan = None if replay_policy.starting else parts.plan_for(called)
        taken_here = parts.registry.tenant_of(call_sid)
        if plan is not None:
            return CallTenant(taken_here or plan.tenant, plan.zone, replay_policy.allows(plan.zone))
        return CallTenant(taken_here or "nobody", None, taken_here is not None or replay_policy.allows_every_zone)

    intake = Intake(
        parts.signatures,
        parts.account_sid,
        find_tenant,
        clock=parts.clock,
        on_fly=parts.on_fly,
        body_wait_s=parts.body_wait_s,
    )
    voice = Voice(
        parts.registry,
        tickets=parts.tickets,
        continuations=parts.continuations,
        plan_for=parts.plan_for,
        fallback_plan=parts.fallback_plan,
        replay_policy=parts.replay_policy,
        backends=parts.backends,
        clock=parts.clock,
        nonce=parts.nonce,
        is_broken=parts.is_broken,
        answers_max=parts.answers_max,
    )
    resumer = Resumer(
        parts.registry,
        tickets=parts.tickets,
        continuations=parts.continuations,
        recall=parts.recall,
        plan_of=parts.plan_of,
        plan_for=parts.plan_for,
        fallback_plan=parts.fallback_plan,
        replay_policy=parts.replay_policy,
        clock=parts.clock,
        nonce=parts.nonce,
        answers_max=parts.answers_max,
    )
    after = After(parts.registry, parts.continuations, resumer, parts.clock)
    calls, callbacks = gate_for_calls(parts.replay_policy), gate_for_callbacks(parts.replay_policy)
    table: tuple[tuple[str, str, Handler, Gate], ...] = (
        ("/twiml/voice", "voice", voice.answer, calls),
        ("/twiml/voice/{zone}", "voice", voice.answer, calls),
        (AFTER_PATH, "after", after.answer, callbacks),
        (AFTER_PATH + "/{zone}/{region}", "after", after.answer, callbacks),
        (AFTER_PATH + "/{zone}/{region}/{continuation}", "after", after.answer, callbacks),
        (RESUME_PATH + "/{zone}/{region}/{continuation}", "resume", after.answer_moved, callbacks),
        ("/twiml/status", "status", note_status, callbacks),
        ("/twiml/status/{zone}", "status", note_status, callbacks),
        (STREAM_PATH, "stream", note_stream, callbacks),
        (STREAM_PATH + "/{zone}", "stream", note_stream, callbacks),
    )
    return [
        Route(path, intake.endpoint(name, handler, gate), methods=["POST"]) for path, name, handler, gate in table
    ]
