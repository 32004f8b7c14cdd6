"""Lives that nobody announces are lost after a while; the others are not."""

from __future__ import annotations

import pytest

from zrpc.protocol import strangers
from zrpc.protocol.outbox import Peer
from zrpc.protocol.strangers import PATIENCE, Strangers

ME, A, B = Peer(0, 100), Peer(1, 101), Peer(2, 102)


def test_a_stranger_is_lost_after_a_while() -> None:
    table = Strangers(ME)
    assert table.next_deadline() is None
    assert table.meet(A, 5.0)
    assert not table.meet(A, 6.0), "the first meeting counts"
    assert table.next_deadline() == 5.0 + PATIENCE
    assert table.take_overdue(4.9 + PATIENCE) == []
    assert table.take_overdue(5.0 + PATIENCE) == [A]
    assert not table.meet(A, 20.0), "it is lost, and stays so"
    assert table.next_deadline() is None


def test_time_without_a_broker_does_not_count() -> None:
    table = Strangers(ME)
    table.meet(A, 5.0)
    table.meet_creator(B.worker_id, 1, 5.0)
    table.postpone(14.0)
    assert table.next_deadline() == 14.0 + PATIENCE
    assert (table.take_overdue(13.9 + PATIENCE), table.take_creators(13.9 + PATIENCE)) == ([], [])
    table.postpone(3.0)
    assert table.take_overdue(14.0 + PATIENCE) == [A]
    assert table.take_creators(14.0 + PATIENCE) == [(B.worker_id, 1)]


def test_who_is_announced_is_no_stranger() -> None:
    table = Strangers(ME)
    table.meet(A, 5.0)
    table.meet(B, 6.0)
    table.announce(A)
    assert table.next_deadline() == 6.0 + PATIENCE
    assert not table.meet(A, 7.0)
    assert not table.meet(ME, 7.0)
    assert table.take_overdue(100.0) == [B]
    assert repr(table) == "<Strangers known=2 strange=0>"


def test_another_life_is_another_stranger() -> None:
    table = Strangers(ME)
    table.announce(A)
    table.lose(A)
    assert not table.meet(A, 1.0)
    assert table.meet(Peer(A.worker_id, 999), 1.0)


def test_the_longest_lost_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "REMEMBERED", 2)
    table = Strangers(ME)
    for number in range(3):
        table.lose(Peer(9, number))
    assert table.meet(Peer(9, 0), 1.0)
    assert not table.meet(Peer(9, 1), 1.0)


def test_a_creator_that_is_never_announced() -> None:
    table = Strangers(ME)
    table.announce(A, life=3)
    table.meet_creator(A.worker_id, 3, 5.0)
    assert table.next_deadline() is None, "it is known"
    table.meet_creator(A.worker_id, 2, 5.0)
    table.meet_creator(B.worker_id, 0, 6.0)
    table.meet_creator(B.worker_id, 0, 8.0)
    assert table.next_deadline() == 5.0 + PATIENCE
    assert table.take_creators(5.5 + PATIENCE) == [(A.worker_id, 2)]
    table.announce(B)
    assert table.take_creators(100.0) == []
    assert repr(table) == "<Strangers known=3 strange=0>"
