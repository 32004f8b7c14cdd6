"""A standby's count of who has lost the primary. What comes of it: see `test_seat`."""

from __future__ import annotations

import pytest

from zrpc.protocol.membership import RegistryOptions
from zrpc.protocol.primary import fresh_time
from zrpc.protocol.standby import Standby
from zrpc.wire.succession import Entry, Replica, Vote

OPTIONS = RegistryOptions()
FRESH = fresh_time(OPTIONS.heartbeat_interval)
EPOCH = 5 << 12


def entries(count: int, state: str = "up") -> tuple[Entry, ...]:
    return tuple(Entry(f"w{number}", number, EPOCH + number, 0, state) for number in range(count))


def synced(count: int) -> Standby:
    """It has a replica, and has lost the primary for long enough."""
    standby = Standby("tcp://primary:1", "tcp://standby:1", OPTIONS, 0.0)
    standby.on_replica(Replica(EPOCH, 1, 0, True, entries=entries(count)), 0.0)
    standby.on_link("disconnected", 0.0)
    return standby


def vote(standby: Standby, numbers: range, now: float, lost: bool = True, route: bytes = b"") -> None:
    for number in numbers:
        standby.on_vote((number, EPOCH + number), Vote(EPOCH, lost), route or b"%d" % number, now)


@pytest.mark.parametrize(("count", "is_enough"), [(2, False), (3, True)])
def test_more_than_half_are_needed(count: int, is_enough: bool) -> None:
    standby = synced(4)
    vote(standby, range(count), FRESH)
    assert bool(standby.verdict(FRESH)) == is_enough


def test_votes_of_others_do_not_count() -> None:
    standby = synced(4)
    vote(standby, range(1, 50), FRESH, route=b"one")
    vote(standby, range(1, 2), FRESH, lost=False)
    vote(standby, range(2, 3), FRESH, lost=False)
    assert standby.verdict(FRESH) == ""
    vote(standby, range(3), FRESH)
    assert standby.verdict(FRESH) == "the broker at tcp://primary:1 is lost to 4 of 4 members"


def test_changes_change_who_counts() -> None:
    standby = synced(5)
    vote(standby, range(2), FRESH)
    assert standby.verdict(FRESH) == ""
    gone = entries(5, "gone")[2:]
    standby.on_replica(Replica(EPOCH, 2, 1, entries=gone), 0.0)
    standby.on_replica(Replica(EPOCH, 2, 1, entries=gone), 0.0)  # again: it changes nothing
    standby.on_link("disconnected", 0.0)
    assert standby.verdict(FRESH) == "the broker at tcp://primary:1 is lost to 2 of 2 members"
    standby.on_replica(Replica(EPOCH, 3, 2, entries=entries(5)), 0.0)
    standby.on_link("disconnected", 0.0)
    assert standby.verdict(FRESH) == ""


def test_votes_end_with_the_connection_that_they_came_by() -> None:
    standby = synced(4)
    vote(standby, range(2), FRESH, route=b"shared")
    vote(standby, range(4), FRESH)  # two of them come by another way now
    standby.on_loss(b"shared")
    assert len(standby.voters()) == 4
    standby.on_loss(b"3")
    standby.on_loss(b"3")
    assert sorted(standby.voters()) == [b"0", b"1", b"2"]


def test_votes_that_are_not_repeated_lapse_and_leave_nothing() -> None:
    standby = synced(4)
    now = 0.0
    vote(standby, range(4), now)
    while now <= FRESH:
        now += OPTIONS.heartbeat_interval / 2
        standby.tick(now)
    assert standby.voters() == []
    assert standby._by_route == {}
