"""Contexts of distributed autograd: how they spread, and how they end everywhere."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.protocol.contexts import REMEMBERED, ContextTable, SendCleanup, first_id, maker_of
from zrpc.protocol.outbox import FIRST_RETRY, LAST_RETRY, Peer

A, B, C, D = (Peer(number, 100 + number) for number in range(4))
EVERYBODY = [A, B, C, D]


def table(me: Peer = A, life: int = 0) -> ContextTable:
    return ContextTable(me, life)


def test_ids_name_their_maker() -> None:
    assert first_id(3, 0) == 3 << 48
    assert maker_of(first_id(3, 2) + 17) == (3, 2)
    made = table(D, 5)
    assert [maker_of(made.begin()) for _ in range(3)] == [(3, 5)] * 3
    assert made.largest_id() >> 48 == 3


def test_worker_ids_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at most 32767"):
        first_id(1 << 15, 0)


def test_an_end_is_told_to_whom_it_was_passed_on() -> None:
    contexts = table()
    number = contexts.begin()
    contexts.passed_on(number, B)
    contexts.passed_on(number, B)
    contexts.passed_on(number, A)
    assert contexts.known_to(number) == {B}
    assert contexts.release(number, EVERYBODY, 0.0) == [SendCleanup(B, number)]
    assert contexts.release(number, EVERYBODY, 0.0) == []
    assert not contexts.is_active(number)


def test_a_late_call_does_not_bring_it_back() -> None:
    contexts = table(B)
    number = first_id(0, 0)
    assert contexts.join(number)
    assert contexts.join(number)
    contexts.release(number, EVERYBODY, 0.0)
    assert not contexts.join(number)
    assert len(contexts) == 0


def test_an_own_context_that_is_over_is_not_joined() -> None:
    contexts = table()
    assert not contexts.join(first_id(0, 0) + 5)


def test_an_end_that_comes_before_the_call() -> None:
    contexts = table(B)
    contexts.release(first_id(0, 0), EVERYBODY, 0.0)
    assert not contexts.join(first_id(0, 0))


def test_it_is_sent_again_until_it_is_acknowledged() -> None:
    contexts = table()
    number = contexts.begin()
    contexts.passed_on(number, B)
    (effect,) = contexts.release(number, EVERYBODY, 10.0)
    assert contexts.next_deadline() == 10.0 + FIRST_RETRY
    now = 10.0
    for _ in range(20):
        due = contexts.next_deadline()
        assert due is not None
        assert due - now <= LAST_RETRY
        now = due
        assert contexts.timer_fired(now) == [effect]
        assert contexts.timer_fired(now) == []
    contexts.cleanup_acknowledged(effect)
    contexts.cleanup_acknowledged(effect)
    assert contexts.next_deadline() is None


def test_a_lost_worker_is_not_told() -> None:
    contexts = table()
    number = contexts.begin()
    contexts.passed_on(number, B)
    contexts.release(number, EVERYBODY, 0.0)
    contexts.peer_lost(B, 0)
    assert contexts.next_deadline() is None


def test_when_one_in_between_is_lost_all_are_told() -> None:
    contexts = table()
    number, other = contexts.begin(), contexts.begin()
    contexts.passed_on(number, B)
    contexts.passed_on(other, C)
    assert contexts.peer_lost(B, 0) == []
    assert contexts.release(number, [A, C, D], 0.0) == [SendCleanup(C, number), SendCleanup(D, number)]
    assert contexts.release(other, [A, C, D], 0.0) == [SendCleanup(C, other)]


def test_the_loss_of_a_maker_ends_its_contexts() -> None:
    contexts = table(B)
    of_a, of_a_before, of_c = first_id(0, 1), first_id(0, 0), first_id(2, 0)
    for number in (of_a, of_a_before, of_c):
        contexts.join(number)
    assert contexts.peer_lost(A, 1) == [of_a]


def test_memory_of_what_has_ended_is_bounded() -> None:
    contexts = table(B)
    for number in range(REMEMBERED + 10):
        contexts.release(number, [], 0.0)
    assert len(contexts._ended) == REMEMBERED
    assert not contexts.join(REMEMBERED + 9)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_all_workers_forget(seed: int, count: int) -> None:
    """A context spreads at random; some workers are lost; messages are lost and doubled. In the end nobody has it."""
    chance = random.Random(seed)
    peers = [Peer(number, 1) for number in range(count)]
    tables = {peer: ContextTable(peer, 0) for peer in peers}
    number = tables[peers[0]].begin()
    alive = list(peers)
    for _ in range(chance.randint(0, 12)):
        holders = [peer for peer in alive if tables[peer].is_active(number)]
        sender, receiver = chance.choice(holders), chance.choice(alive)
        tables[sender].passed_on(number, receiver)
        if chance.random() < 0.9:  # else the call is lost
            tables[receiver].join(number)
    for victim in chance.sample(peers[1:], chance.randint(0, len(peers) - 1)):
        alive.remove(victim)
        for peer in alive:
            for ended in tables[peer].peer_lost(victim, 0):
                tables[peer].release(ended, alive, 0.0)
    now = 0.0
    flying = tables[peers[0]].release(number, alive, now)
    senders = [peers[0]] * len(flying)
    for _ in range(400):
        if not flying:
            now += LAST_RETRY
            for peer in alive:
                again = tables[peer].timer_fired(now)
                flying += again
                senders += [peer] * len(again)
            if not flying:
                break
        place = chance.randrange(len(flying))
        effect, sender = flying.pop(place), senders.pop(place)
        if effect.to not in alive or chance.random() < 0.3:
            continue
        for _ in range(chance.randint(1, 2)):
            more = tables[effect.to].release(effect.context_id, alive, now)
            flying += more
            senders += [effect.to] * len(more)
        if chance.random() < 0.8:
            tables[sender].cleanup_acknowledged(effect)
    assert not any(tables[peer].is_active(number) for peer in alive)
