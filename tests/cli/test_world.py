"""The table that `nearcall world` prints."""

from dataclasses import replace

from app.world.calls import Outcome
from app.world.show import outcome_table

SERVED = Outcome("osaka", "eu", "CA1", "nrt", "fra", ("nrt", "fra"), True, "", False, 490.4, 997.0, "")
TOLD = replace(
    SERVED, way=(), answered_by="fra", served=False, sentence="Sorry.", greeted_ms=None, voice_to_voice_ms=None
)


def test_row_of_a_served_call_has_its_way_and_times() -> None:
    assert outcome_table([SERVED]) == [
        "from   zone  edge  by way of  handled in  greeted after  voice to voice  heard",
        "osaka  eu    nrt   nrt        fra         490 ms         997 ms          agent",
    ]


def test_row_of_a_call_without_a_stream_has_no_blank_cell() -> None:
    """As after `--sick all`: the region that answered the webhook said the sentence."""
    assert outcome_table([TOLD, replace(TOLD, sentence="", busy=True)]) == [
        "from   zone  edge  by way of  handled in  greeted after  voice to voice  heard",
        "osaka  eu    nrt   -          fra         -              -               sentence",
        "osaka  eu    nrt   -          fra         -              -               busy",
    ]


def test_row_of_a_call_that_nobody_answered_has_dashes_and_the_error() -> None:
    lost = replace(TOLD, edge="", answered_by="", sentence="", error="the webhook failed")
    assert outcome_table([lost])[1].split() == ["osaka", "eu", "-", "-", "-", "-", "-", "the", "webhook", "failed"]
