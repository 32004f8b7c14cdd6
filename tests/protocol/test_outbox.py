"""The reliable channel: numbers, retries, the watermark."""

from __future__ import annotations

import math
import random

import pytest

from zrpc.protocol.outbox import FIRST_RETRY, LAST_RETRY, RETRY_BURST, Channels, Inbox, Outbox, Peer

A = Peer(1, 10)
B = Peer(2, 20)


def test_numbers_are_consecutive_for_each_receiver():
    channels: Channels[str] = Channels()
    assert [channels.send(A, "a", 0.0).seq, channels.send(B, "b", 0.0).seq, channels.send(A, "c", 0.0).seq] == [1, 1, 2]


def test_another_life_of_a_worker_is_another_receiver():
    channels: Channels[str] = Channels()
    channels.send(A, "a", 0.0)
    assert channels.send(Peer(A.worker_id, A.incarnation + 1), "b", 0.0).seq == 1


def test_a_message_is_sent_again_with_doubling_delays_until_it_is_settled():
    channels: Channels[str] = Channels()
    channels.send(A, "a", 0.0)
    times = []
    while len(times) < 7:
        now = channels.next_due()
        for sending in channels.take_due(now):
            assert (sending.to, sending.seq, sending.payload) == (A, 1, "a")
            times.append(now)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert gaps == [FIRST_RETRY, FIRST_RETRY, 1.0, 2.0, 4.0, LAST_RETRY, LAST_RETRY]
    assert channels.settle(A, 1) == "a"
    assert channels.settle(A, 1) is None
    assert channels.take_due(channels.next_due()) == []
    assert channels.next_due() == math.inf


def test_nothing_is_sent_before_it_is_due():
    channels: Channels[str] = Channels()
    channels.send(A, "a", 0.0)
    assert channels.take_due(FIRST_RETRY - 0.01) == []


def test_a_burst_of_repetitions_is_bounded():
    outbox: Outbox[int] = Outbox()
    for number in range(2 * RETRY_BURST):
        outbox.add(number, 1.0)
    again, next_due = outbox.take_due(1.0)
    assert [payload for _, payload in again] == list(range(RETRY_BURST))
    assert next_due > 1.0


def test_a_number_that_rides_is_sent_by_itself_only_when_its_time_comes():
    channels: Channels[str] = Channels()
    assert channels.ride(A, "a", 60.0) == 1
    assert channels.ride(A, "b", None) == 2
    assert channels.next_due() == 60.0
    assert [sending.payload for sending in channels.take_due(60.0)] == ["a"]
    assert channels.count_due() == 1
    assert len(channels) == 2


def test_what_rides_can_be_sent_at_once_with_another_payload():
    channels: Channels[str] = Channels()
    seq = channels.ride(A, "a", None)
    sending = channels.hasten(A, seq, "b", 1.0)
    assert sending is not None
    assert (sending.seq, sending.payload) == (seq, "b")
    assert channels.next_due() == 1.0 + FIRST_RETRY
    assert channels.settle(A, seq) == "b"
    assert channels.hasten(A, seq, "c", 1.0) is None
    assert channels.hasten(B, 1, "c", 1.0) is None


def test_a_ride_is_retracted_only_if_it_was_never_sent_by_itself():
    channels: Channels[str] = Channels()
    first, second = channels.ride(A, "a", 1.0), channels.ride(A, "b", 2.0)
    assert len(channels.take_due(1.0)) == 1
    assert not channels.retract(A, first)
    assert channels.retract(A, second)
    assert not channels.retract(A, second)
    assert not channels.retract(B, 1)


def test_floor_is_the_lowest_open_number():
    outbox: Outbox[str] = Outbox()
    assert outbox.floor == 1
    for _ in range(3):
        outbox.add("x", 0.0)
    outbox.settle(2)
    assert outbox.floor == 1
    outbox.settle(1)
    assert outbox.floor == 3
    outbox.settle(3)
    assert outbox.floor == 4
    assert repr(outbox) == "<Outbox next=4 unsettled=[]>"


@pytest.mark.parametrize(
    ("arrivals", "new", "low", "above"),
    [
        ([(1, 1), (2, 1), (3, 1)], [True, True, True], 3, set()),
        ([(3, 1), (1, 1)], [True, True], 1, {3}),
        ([(3, 1), (1, 1), (2, 1)], [True, True, True], 3, set()),
        ([(1, 1), (1, 1)], [True, False], 1, set()),
        ([(2, 1), (2, 1)], [True, False], 0, {2}),
        ([(5, 5)], [True], 5, set()),
        ([(4, 1), (5, 4)], [True, True], 5, set()),
        ([(5, 3)], [True], 2, {5}),
        ([(4, 1), (2, 1), (7, 4)], [True, True, True], 4, {7}),
        ([(3, 3), (1, 1), (2, 1)], [True, False, False], 3, set()),
    ],
)
def test_inbox_takes_each_number_once(arrivals, new, low, above):
    inbox = Inbox()
    assert [inbox.is_new(arrivals[0][0]), *(inbox.accept(*arrival) for arrival in arrivals)] == [True, *new]
    assert (inbox.low, inbox.above) == (low, above)


@pytest.mark.parametrize("seed", range(50))
def test_two_ends_and_a_bad_link(seed):
    """Every payload is processed exactly once, and the receiver remembers no more than is in flight."""
    rng = random.Random(seed)
    channels: Channels[int] = Channels()
    inbox = Inbox()
    link: list = []
    processed: list[int] = []
    now, sent = 0.0, 0
    while sent < 60 or len(channels):
        now += 0.1
        if sent < 60:
            seq = channels.ride(A, sent, now + 1.0)  # dropped by the link: found again when its time comes
            if rng.random() < 0.5:
                channels.settle(A, seq)  # never sent at all
            else:
                processed_later = channels.hasten(A, seq, sent, now)
                assert processed_later is not None
                link.append(processed_later)
            sent += 1
        link += channels.take_due(now)
        rng.shuffle(link)
        for _ in range(rng.randint(0, len(link))):
            sending = link.pop()
            if rng.random() < 0.3:
                continue
            if inbox.accept(sending.seq, sending.floor):
                processed.append(sending.payload)
            if rng.random() < 0.7:
                channels.settle(A, sending.seq)
            if rng.random() < 0.2:
                link.append(sending)
    assert len(processed) == len(set(processed))
    last = channels.send(A, 60, now)
    inbox.accept(last.seq, last.floor)
    assert (inbox.low, inbox.above) == (61, set())
    assert repr(inbox) == "<Inbox low=61 above=[]>"


def test_a_lost_peer_is_void_with_all_its_earlier_lives():
    channels: Channels[str] = Channels()
    channels.send(A, "a", 0.0)
    channels.accept(A, 1)
    assert not channels.is_lost(A)
    assert channels.lose(A) == ["a"]
    assert channels.lose(B) == []
    assert channels.is_lost(A)
    assert channels.is_lost(Peer(1, 9))
    assert not channels.is_lost(Peer(1, 11))
    assert len(channels) == 0
    assert "lost=[1/10, 2/20]" in repr(channels)
