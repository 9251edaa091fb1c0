"""What takes a machine out of Fly's routing, and what an operator should look at."""

from dataclasses import replace

import pytest

from app.http.health_policy import STARTING_LIMIT_S, assess
from app.regions.routing import Here

WELL = Here("fra", ("fra", "iad"), frozenset({"global"}))
STARTING = replace(WELL, starting=True)
SICK = replace(WELL, usable=frozenset())
LATER_S = STARTING_LIMIT_S + 1


@pytest.mark.parametrize(
    ("here", "up_s", "troubles", "down", "degraded"),
    [
        (WELL, 0.0, [], None, None),
        (WELL, 0.0, ["ledger", "backends"], None, "ledger"),
        (replace(SICK, draining=True, full=True), LATER_S, ["ledger"], "draining", None),
        (STARTING, 0.0, ["ledger"], "starting", None),
        # The database may be away for all machines: when all stayed away, callers would hear Twilio's error.
        (STARTING, LATER_S, ["ledger"], None, "starting"),
        # The machine itself sends these calls on, and says the sentence when there is nowhere left.
        (SICK, 0.0, ["backends"], None, "no_backend"),
        (replace(WELL, full=True), LATER_S, [], None, "full"),
        (replace(WELL, lagging=True), LATER_S, ["ledger"], None, "lagging"),
        # Calls are set up within seconds: an operator need not look.
        (replace(WELL, crowded=True), LATER_S, [], None, None),
    ],
)
def test_only_what_ends_by_itself_takes_a_machine_out_of_the_routing(
    here: Here, up_s: float, troubles: list[str], down: str | None, degraded: str | None
) -> None:
    assert assess(here, up_s, troubles) == (down, degraded)
