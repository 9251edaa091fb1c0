import pytest
from starlette.testclient import TestClient

from app.call.ending import EndReason
from app.call.plan import Plan
from tests.twiml.grammar import parsed
from tests.twiml.world import CALL, CALL_FIELDS, CALLED, CALLER, OTHER_CALL, World, post

IN_PROGRESS = CALL_FIELDS | {"CallStatus": "in-progress"}
APOLOGY = ["Say", "Hangup"]

OWED = [reason for reason in EndReason if reason.owes_apology or reason is EndReason.MOVED]
NOT_OWED = [reason for reason in EndReason if reason not in OWED]


def verbs_after(client: TestClient, fields: dict[str, str] = IN_PROGRESS) -> list[str]:
    answer = post(client, "/twiml/after", fields)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return [verb.tag for verb in parsed(answer.content)]


@pytest.mark.parametrize("reason", NOT_OWED)
def test_a_call_that_ended_as_it_should_is_hung_up(world: World, client: TestClient, reason: EndReason) -> None:
    world.registry.endings[CALL] = reason
    assert verbs_after(client) == ["Hangup"]


@pytest.mark.parametrize("reason", OWED)
def test_a_call_that_broke_hears_the_sentence_first(world: World, client: TestClient, reason: EndReason) -> None:
    world.registry.endings[CALL] = reason
    assert verbs_after(client) == APOLOGY


def test_the_sentence_is_that_of_the_tenant_who_was_dialled(world: World, client: TestClient) -> None:
    world.plan = Plan(language="fr", sorry="Nous sommes désolés.")
    world.registry.endings[CALL] = EndReason.BACKEND_LOST
    say = parsed(post(client, "/twiml/after", IN_PROGRESS).content)[0]
    assert (say.text, say.get("language")) == ("Nous sommes désolés.", "fr-FR")
    assert set(world.dialled) == {CALLED}


def test_a_call_unknown_here_hears_the_sentence(world: World, client: TestClient) -> None:
    world.registry.endings[OTHER_CALL] = EndReason.AGENT_HUNG_UP
    assert verbs_after(client) == APOLOGY


def test_a_call_whose_stream_never_came_hears_the_sentence(client: TestClient) -> None:
    post(client, "/twiml/voice")
    assert verbs_after(client) == APOLOGY


def test_a_call_still_live_here_has_lost_its_stream_and_hears_the_sentence(
    world: World, client: TestClient
) -> None:
    world.registry.streams[CALL] = 0
    assert verbs_after(client) == APOLOGY


def test_a_live_stream_counts_more_than_how_an_older_one_ended(world: World, client: TestClient) -> None:
    world.registry.endings[CALL] = EndReason.AGENT_HUNG_UP
    world.registry.streams[CALL] = 0
    assert verbs_after(client) == APOLOGY


@pytest.mark.parametrize("status", ["completed", "busy", "failed", "no-answer", "canceled"])
@pytest.mark.parametrize("endings", [{}, {CALL: EndReason.CALLER_HUNG_UP}, {CALL: EndReason.BACKEND_LOST}])
def test_a_call_that_is_over_gets_an_empty_document(
    world: World, client: TestClient, status: str, endings: dict[str, EndReason]
) -> None:
    world.registry.endings = endings
    assert verbs_after(client, IN_PROGRESS | {"CallStatus": status}) == []


def test_asked_again_the_answer_is_the_same(world: World, client: TestClient) -> None:
    world.registry.endings[CALL] = EndReason.BACKEND_LOST
    first = post(client, "/twiml/after", IN_PROGRESS)
    assert post(client, "/twiml/after", IN_PROGRESS).content == first.content


def test_the_outcome_is_logged_without_numbers(
    world: World, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nearcall.twiml")
    world.registry.endings[CALL] = EndReason.BACKEND_LOST
    post(client, "/twiml/after", IN_PROGRESS)
    record, *more = [record for record in caplog.records if record.name == "nearcall.twiml"]
    assert CALLER[1:] not in str([each.__dict__ for each in more])
    assert (record.__dict__["outcome"], record.__dict__["ending"]) == ("broken", "backend_lost")
    assert CALLER[1:] not in str(record.__dict__)
