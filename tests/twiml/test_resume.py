import asyncio
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlencode

import httpx2
import pytest
from starlette.testclient import TestClient

from app.bridge.ticket import Continuation, Ticket
from app.call.continuity import Past, Recollection
from app.call.ending import EndReason
from app.call.history import History, Owed, Said
from app.call.plan import Plan
from app.call.records import Speaker
from app.regions.routing import Here
from tests.twiml.grammar import parsed
from tests.twiml.world import BASE, CALL, CALL_FIELDS, CALLED, CALLER, NOW_S, World, post, signed
from tests.waiting import a_moment

IN_PROGRESS = CALL_FIELDS | {"CallStatus": "in-progress"}
NOW_MS = round(NOW_S * 1_000)
BEGAN_MS = NOW_MS - 300_000
FIRST = Continuation(CALL, "default", "global", 0, BEGAN_MS, "de")
SAID = History((Said(Speaker.CALLER, "Hello?"),), Owed.ANSWER, BEGAN_MS)
PAST = Past(SAID, CALLER, CALLED, BEGAN_MS, True, None, 0, legs=1, had_stream=True, legs_lately=1)
KNOWN = Recollection(PAST, "primary", complete=True)


def path(world: World, continuation: Continuation = FIRST, asked: str = "after") -> str:
    return f"/twiml/{asked}/global/fra/{world.continuations.issue(continuation)}"


def ask(world: World, client: TestClient, continuation: Continuation = FIRST, asked: str = "after") -> list[str]:
    """The verbs of the answer."""
    answer = post(client, path(world, continuation, asked), IN_PROGRESS)
    assert answer.status_code == 200
    return [verb.tag for verb in parsed(answer.content)]


def ticket_in(world: World, answer: httpx2.Response) -> Ticket:
    url = parsed(answer.content)[0][0].attrib["url"]
    return world.tickets.read(url.rpartition("/")[2], NOW_S)


def refused(world: World) -> int:
    assert world.registry.expected == []
    return world.parts.replay_policy.counts["resume_refused"]


@pytest.mark.parametrize("asked", ["after", "resume"])
def test_unfinished_call_gets_a_stream_that_resumes_it(world: World, client: TestClient, asked: str) -> None:
    world.recollection = replace(KNOWN, past=replace(PAST, epoch=2))
    answer = post(client, path(world, FIRST, asked), IN_PROGRESS)
    assert [verb.tag for verb in parsed(answer.content)] == ["Connect"]
    ((ticket, plan, *_),) = world.registry.expected
    assert ticket == ticket_in(world, answer)
    assert (ticket.resumes, ticket.epoch, ticket.started_ms) == (True, 3, BEGAN_MS)
    assert (ticket.caller, ticket.called, plan.language) == (CALLER, CALLED, "de")
    assert world.registry.histories == [SAID]
    action = parsed(answer.content)[0].attrib["action"]
    assert world.continuations.read(action.rpartition("/")[2], NOW_S) == replace(
        FIRST, epoch=3, resumed_ms=(NOW_MS,)
    )
    assert world.recalled == [("global", CALL, "default")]
    assert world.parts.replay_policy.counts["call_resumed"] == 1


def test_call_of_which_this_machine_lost_the_stream_is_resumed(world: World, client: TestClient) -> None:
    world.recollection = KNOWN
    world.registry.streams[CALL] = 0
    assert ask(world, client) == ["Connect"]
    assert world.registry.lost == [CALL]


def test_question_about_an_older_stream_leaves_the_live_one_alone(world: World, client: TestClient) -> None:
    world.recollection = KNOWN
    world.registry.streams[CALL] = 1
    assert ask(world, client) == ["Say", "Hangup"]
    assert (world.registry.lost, refused(world)) == ([], 1)


def test_call_that_moved_away_from_here_is_resumed(world: World, client: TestClient) -> None:
    world.recollection = KNOWN
    world.registry.endings[CALL] = EndReason.MOVED
    assert ask(world, client, asked="resume") == ["Connect"]


@pytest.mark.parametrize("reason", [EndReason.AGENT_HUNG_UP, EndReason.IDLE, EndReason.CALLER_HUNG_UP])
def test_call_that_was_over_elsewhere_is_hung_up(world: World, client: TestClient, reason: EndReason) -> None:
    world.recollection = replace(KNOWN, past=replace(PAST, unfinished=False, end_reason=reason))
    assert ask(world, client) == ["Hangup"]
    assert refused(world) == 0


UNUSABLE: dict[str, Callable[[World], None]] = {
    "implausible": lambda w: setattr(w, "recollection", Recollection(contradiction="other_tenant")),
    "not_taken": lambda w: setattr(
        w, "recollection", replace(KNOWN, past=replace(PAST, unfinished=False, end_reason=EndReason.NOT_TAKEN))
    ),
    "fourth_leg": lambda w: setattr(w, "recollection", replace(KNOWN, past=replace(PAST, legs_lately=4))),
    "backend_fault_here": lambda w: w.registry.endings.update({CALL: EndReason.BACKEND_LOST}),
    "backend_fault_there": lambda w: setattr(
        w, "recollection", replace(KNOWN, past=replace(PAST, end_reason=EndReason.BACKEND_SILENT))
    ),
    "tenant_gone": lambda w: setattr(w, "plan", None),
    "tenant_moved": lambda w: setattr(w, "plan", Plan(zone="eu")),
    "draining": lambda w: setattr(w, "here", Here("fra", ("fra",), frozenset({"global"}), draining=True)),
    "no_backend": lambda w: setattr(w, "here", Here("fra", ("fra",), frozenset())),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_call_that_may_not_be_resumed_hears_the_sentence(world: World, client: TestClient, fault: str) -> None:
    world.recollection = KNOWN
    UNUSABLE[fault](world)
    assert ask(world, client) == ["Say", "Hangup"]
    assert refused(world) == 1
    assert world.parts.replay_policy.counts["history_refused"] == (fault == "implausible")


@pytest.mark.parametrize(("ago_ms", "verbs"), [(59_000, ["Say", "Hangup"]), (61_000, ["Connect"])])
def test_continuation_alone_bounds_the_resumes_too(
    world: World, client: TestClient, ago_ms: int, verbs: list[str]
) -> None:
    resumed_ms = (NOW_MS - ago_ms, NOW_MS - 20_000, NOW_MS - 10_000)
    assert ask(world, client, replace(FIRST, epoch=3, resumed_ms=resumed_ms)) == verbs


@pytest.mark.parametrize(
    ("found", "owed"),
    [(Recollection(), Owed.REPETITION), (Recollection(source="primary", complete=True), Owed.NOTHING)],
)
def test_call_without_records_goes_on_by_its_continuation(
    world: World, client: TestClient, found: Recollection, owed: Owed
) -> None:
    """When no database answers, the agent asks to repeat; when one knows that nothing was said, it greets."""
    world.recollection = found
    assert ask(world, client, replace(FIRST, epoch=1)) == ["Connect"]
    assert world.registry.histories == [History((), owed, BEGAN_MS)]
    assert world.registry.expected[0][0].epoch == 2


def test_region_that_answered_a_call_without_records_is_asked_first(world: World, client: TestClient) -> None:
    world.here = Here("fra", ("fra", "iad", "syd"), frozenset({"global"}))
    there = path(world).replace("/fra/", "/iad/")
    answer = post(client, there, IN_PROGRESS)
    assert answer.headers["fly-replay"].startswith("region=iad;")
    back = post(client, there, IN_PROGRESS, headers={"Fly-Replay-Failed": "x"})
    assert [verb.tag for verb in parsed(back.content)] == ["Connect"]


def test_region_that_moved_a_call_here_is_not_asked(world: World, client: TestClient) -> None:
    """It drains, and would send the question on to regions of which this one was asked already."""
    world.here = Here("fra", ("fra", "iad"), frozenset({"global"}))
    there = path(world, asked="resume").replace("/fra/", "/iad/")
    assert [verb.tag for verb in parsed(post(client, there, IN_PROGRESS).content)] == ["Connect"]


def test_machine_that_drains_sends_the_question_on(world: World, client: TestClient) -> None:
    world.recollection = KNOWN
    world.here = Here("fra", ("fra", "iad"), frozenset({"global"}), draining=True)
    answer = post(client, path(world, asked="resume"), IN_PROGRESS)
    assert answer.headers["fly-replay"].startswith("region=iad;")
    assert world.registry.expected == []


def test_machine_that_begins_to_drain_meanwhile_does_not_resume(world: World) -> None:
    async def recall(*_: str) -> Recollection:
        world.here = replace(world.here, draining=True)
        return KNOWN

    answer = post(world.client(recall=recall), path(world), IN_PROGRESS)
    assert answer.headers["fly-replay"].startswith("region=iad;")
    assert world.registry.expected == []


def test_question_asked_again_gets_the_same_document(world: World, client: TestClient) -> None:
    world.recollection = KNOWN
    first = post(client, path(world), IN_PROGRESS)
    second = post(client, path(world), IN_PROGRESS)
    assert first.content == second.content
    assert len(world.registry.expected) == 1


@pytest.mark.anyio
async def test_question_asked_twice_at_once_is_answered_once(world: World) -> None:
    asked: list[str] = []
    go_on = asyncio.Event()

    async def recall(_zone: str, call_sid: str, _tenant: str) -> Recollection:
        asked.append(call_sid)
        await go_on.wait()
        return KNOWN

    target = path(world)
    headers = signed(BASE + target, IN_PROGRESS)
    transport = httpx2.ASGITransport(app=world.app(recall=recall))
    async with httpx2.AsyncClient(transport=transport, base_url="http://10.0.0.7") as client:
        questions = [
            asyncio.create_task(client.post(target, content=urlencode(IN_PROGRESS), headers=headers))
            for _ in range(2)
        ]
        while not asked:
            await a_moment()
        go_on.set()
        first, second = await asyncio.gather(*questions)
    assert first.content == second.content
    assert len(world.registry.expected) == len(asked) == 1


def test_resume_is_logged_without_numbers_or_words(
    world: World, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nearcall.twiml")
    world.recollection = replace(KNOWN, spooled=2)
    ask(world, client)
    (record,) = [record for record in caplog.records if record.message == "call_resumed"]
    fields = ("source", "epoch", "legs", "turns", "spooled", "took_ms")
    assert [record.__dict__[name] for name in fields] == ["primary", 1, 1, 1, 2, 0]
    assert not any(word in str(caplog.records) for word in (CALLER[1:], "Hello?"))
