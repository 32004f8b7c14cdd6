"""Waiting: when it begins with looking again and again, and that it ends as it would without."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from zrpc.transport.poller import Ear, Pace, Poller, usable_cores

LONG = 20.0  # reached only by a failure
SPIN = 0.5  # far longer than what is waited for here takes


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_it_spins_only_while_three_of_four_waits_are_short() -> None:
    pace = Pace(50e-6)
    assert pace.credit == 0
    pace.was_short()
    assert pace.credit > 0
    pace.was_long()
    assert pace.credit <= 0
    for _ in range(20):
        for _ in range(4):
            pace.was_short()
        pace.was_long()
    assert pace.credit > 0
    for _ in range(20):
        for _ in range(2):
            pace.was_short()
        pace.was_long()
    assert pace.credit <= 0


def test_what_was_long_ago_counts_little() -> None:
    pace = Pace(50e-6)
    for _ in range(1000):
        pace.was_short()
    for _ in range(4):
        pace.was_long()
    assert pace.credit <= 0
    for _ in range(1000):
        pace.was_long()
    for _ in range(5):
        pace.was_short()
    assert pace.credit > 0


def test_an_ear_hears_the_same_whether_it_spins_or_not(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    ear = Ear(near, SPIN)
    for _ in range(10):  # short ones: from the second on it spins
        far.send(b"x")
        assert ear.wait(LONG)
        assert near.recv(1) == b"x"
    assert not ear.wait(0.001)
    ear.wake()
    assert ear.wait(LONG)
    ear.wake()
    assert not ear.listen(LONG)
    far.send(b"x")
    assert ear.listen(LONG)
    ear.close()


@pytest.mark.parametrize("spin", [0.0, SPIN])
def test_a_poller_looks_again_only_where_that_is_worth_it(
    pair: tuple[socket.socket, socket.socket], spin: float
) -> None:
    near, far = pair
    poller = Poller(spin)
    poller.add(near)
    poller.wait(LONG)  # for its own waker
    far.send(b"x")
    assert poller.wait(LONG) == [near]
    near.recv(1)
    far.send(b"x")
    is_worth_it = spin > 0 and sys.platform == "linux"
    assert poller.look() == ([near] if is_worth_it else [])
    near.recv(1)
    poller.wake()
    assert poller.look() == poller.wait(0.0) == []
    poller.close()


def test_cores_are_those_that_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        assert usable_cores() == os.cpu_count()
        return
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
