"""Round trips and signs of life of one peer."""

from app.call import limits
from app.call.events import Side
from app.call.peers import Peer


def measured(*round_trips_s: float) -> Peer:
    """A peer that has answered one ping after the other, each after so long."""
    peer = Peer(Side.PHONE)
    peer.connected(0.0)
    for number, round_trip_s in enumerate(round_trips_s):
        sent_at = number * limits.PING_EVERY_S
        assert peer.ping_due(sent_at)
        peer.pong(sent_at + round_trip_s)
    return peer


def test_round_trip_is_unknown_before_the_first_pong() -> None:
    assert measured().rtt_ms == 0.0


def test_shortest_round_trip_counts_because_it_waited_in_no_queue() -> None:
    assert round(measured(0.1, 0.4, 0.06, 0.3).rtt_ms) == 60


def test_second_pong_for_one_ping_is_no_measurement() -> None:
    peer = measured(0.1)
    peer.pong(0.11)
    peer.pong(4.0)
    assert round(peer.rtt_ms) == 100


def test_connection_that_is_not_up_is_neither_pinged_nor_silent() -> None:
    peer = Peer(Side.PHONE)
    assert not peer.ping_due(1_000.0)
    assert not peer.silent(1_000.0)
    assert peer.due_at() == limits.NEVER


def test_connection_that_is_down_is_left_alone() -> None:
    peer = measured(0.1)
    peer.gone()
    assert peer.due_at() == limits.NEVER
