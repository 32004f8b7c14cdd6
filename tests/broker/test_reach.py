"""When a process that joins gives up, by what it has seen of the brokers' addresses."""

from __future__ import annotations

from zrpc.broker.reach import DENIED_PATIENCE, Reach

A, B = "tcp://a:1", "tcp://b:1"


def test_a_wrong_key_is_denied_again_and_again() -> None:
    reach = Reach(lambda: [A])
    assert (reach.denied_until(), reach.last) == (None, "")
    for at in (10.0, 10.1, 10.4, 11.2):
        reach.note(A, "denied", at)
    assert (reach.denied_until(), reach.last) == (10.0 + DENIED_PATIENCE, "denied")


def test_a_broker_that_is_stopped_does_not_deny() -> None:
    """Its host takes the connection, and the handshake takes too long, each time."""
    reach = Reach(lambda: [A])
    for at in (10.0, 15.0, 20.0):
        reach.note(A, "denied", at)
        assert reach.denied_until() is None


def test_one_that_denies_says_nothing_of_the_other() -> None:
    reach = Reach(lambda: [A, B])
    for at in (10.0, 10.1):
        reach.note(A, "denied", at)
    reach.note(B, "connected", 10.2)
    assert reach.denied_until() is None
    for at in (11.0, 11.1):
        reach.note(B, "denied", at)
    assert reach.denied_until() == 11.0 + DENIED_PATIENCE
    reach.note(A, "disconnected", 11.2)
    assert reach.denied_until() is None


def test_nobody_is_reached_when_none_of_them_is() -> None:
    reach = Reach(lambda: [A, B])
    reach.note(A, "refused", 10.0)
    assert reach.lost_since() is None
    reach.note(B, "connected", 10.5)
    reach.note(A, "refused", 11.0)
    assert reach.lost_since() is None
    reach.note(B, "disconnected", 12.0)
    reach.note(B, "refused", 13.0)
    assert reach.lost_since() == 12.0
    reach.note(A, "connected", 14.0)
    assert reach.lost_since() is None


def test_without_a_connection_nothing_is_known() -> None:
    reach = Reach(list)
    assert (reach.lost_since(), reach.denied_until()) == (None, None)
