"""Contexts of distributed autograd: how they spread, and how they end everywhere."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.protocol.contexts import CHUNK_BITS, ContextTable, Ended, SendCleanup, first_id, maker_of
from zrpc.protocol.outbox import FIRST_RETRY, LAST_RETRY, Peer
from zrpc.protocol.strangers import PATIENCE

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
    assert contexts.peer_lost(B, 0, [A], 0.0) == ([], [])
    assert contexts.next_deadline() is None


def test_when_one_in_between_is_lost_all_are_told() -> None:
    contexts = table()
    number, other = contexts.begin(), contexts.begin()
    contexts.passed_on(number, B)
    contexts.passed_on(other, C)
    assert contexts.peer_lost(B, 0, [A, C, D], 0.0) == ([], [])
    assert contexts.release(number, [A, C, D], 0.0) == [SendCleanup(C, number), SendCleanup(D, number)]
    assert contexts.release(other, [A, C, D], 0.0) == [SendCleanup(C, other)]


def test_when_one_is_lost_before_it_has_passed_the_end_on_all_are_told() -> None:
    contexts = table()
    number = contexts.begin()
    contexts.passed_on(number, B)
    assert contexts.release(number, EVERYBODY, 0.0) == [SendCleanup(B, number)]
    effects = [SendCleanup(C, number), SendCleanup(D, number)]
    assert contexts.peer_lost(B, 0, [A, C, D], 0.0) == ([], effects)


def test_an_end_is_acknowledged_when_all_that_it_set_off_is() -> None:
    contexts = table(B)
    number = first_id(0, 0)
    contexts.join(number)
    contexts.passed_on(number, A)
    contexts.passed_on(number, C)
    effects = contexts.release(number, EVERYBODY, 0.0, told_by=A)
    assert contexts.release(number, EVERYBODY, 0.0, told_by=C) == []
    assert not contexts.owes_acknowledgement(number, C)
    for effect in effects:
        assert contexts.owes_acknowledgement(number, A)
        contexts.cleanup_acknowledged(effect)
    assert not contexts.owes_acknowledgement(number, A)


def test_when_one_is_gone_already_all_are_told() -> None:
    contexts = table()
    number = contexts.begin()
    contexts.passed_on(number, B)
    assert contexts.release(number, [A, C], 0.0) == [SendCleanup(C, number)]


def test_the_loss_of_a_maker_ends_its_contexts() -> None:
    contexts = table(B)
    of_a, of_a_before, of_c = first_id(0, 1), first_id(0, 0), first_id(2, 0)
    for number in (of_a, of_a_before, of_c):
        contexts.join(number)
    assert contexts.peer_lost(A, 1, [B, C], 0.0) == ([of_a], [])


def test_nothing_is_passed_on_after_the_end() -> None:
    contexts = table(B)
    number = first_id(0, 0)
    contexts.join(number)
    assert contexts.passed_on(number, C)
    contexts.release(number, EVERYBODY, 0.0, told_by=A)
    assert not contexts.passed_on(number, D)
    assert not table().passed_on(number, B)


def test_contexts_of_a_lost_maker_are_not_joined() -> None:
    contexts = table(B)
    contexts.peer_lost(A, 3, [B, C], 0.0)
    contexts.peer_lost(Peer(0, 90), 2, [B, C], 0.0)  # we hear of an earlier life late
    assert [contexts.join(first_id(0, life)) for life in (2, 3, 4)] == [False, False, True]
    assert contexts.join(first_id(2, 0))


def test_lives_begin_anew_after_65536() -> None:
    contexts = table(B)
    contexts.peer_lost(A, 65_535, [B, C], 0.0)
    assert [contexts.join(first_id(0, life)) for life in (65_534, 65_535, 65_536)] == [False, False, True]


def test_a_maker_that_nobody_announces_is_taken_for_lost() -> None:
    contexts = table(B)
    strange, announced, known = first_id(0, 1), first_id(2, 0), first_id(3, 0)
    for number in (strange, announced, known):
        assert contexts.join(number, {(3, 0)}, now=5.0)
    assert contexts.next_deadline() == 5.0 + PATIENCE
    lives = {(2, 0), (3, 0)}
    assert contexts.strangers_due(lives, 4.9 + PATIENCE) == []
    contexts.postpone(7.0)  # there was no broker, who could have announced it
    contexts.postpone(6.0)
    assert contexts.strangers_due(lives, 6.9 + PATIENCE) == []
    assert contexts.strangers_due(lives, 7.0 + PATIENCE) == [strange]
    assert contexts.next_deadline() is None
    contexts.release(strange, EVERYBODY, 20.0)
    assert not contexts.join(strange + 1, lives, 20.0)
    assert contexts.active() == [announced, known]


def test_a_stranger_whose_loss_is_announced_is_not_waited_for() -> None:
    contexts = table(B)
    number = first_id(0, 1)
    contexts.join(number, set(), now=5.0)
    assert contexts.peer_lost(A, 1, [B], 6.0) == ([number], [])
    assert contexts.next_deadline() is None


def test_memory_of_what_has_ended_is_bounded() -> None:
    ended = Ended(chunks=3)
    for number in range(10 << CHUNK_BITS):
        ended.add(number)
    assert len(ended) == 3
    assert (10 << CHUNK_BITS) - 1 in ended
    assert 7 << CHUNK_BITS in ended
    assert (7 << CHUNK_BITS) - 1 not in ended


def test_each_end_is_remembered_by_itself() -> None:
    ended = Ended()
    numbers = [first_id(worker, life) + count for worker in (0, 3) for life in (0, 1) for count in (0, 5, 1023, 1024)]
    for number in numbers:
        assert number not in ended
        ended.add(number)
        assert number in ended
        assert number + 1 not in ended or number + 1 in numbers


class World:
    """Workers that pass a context on and forget it, on a network that loses, doubles and shuffles messages."""

    def __init__(self, seed: int, count: int) -> None:
        self.chance = random.Random(seed)
        self.peers = [Peer(number, 1) for number in range(count)]
        self.tables = {peer: ContextTable(peer, 0) for peer in self.peers}
        self.alive = list(self.peers)
        self.context = self.tables[self.peers[0]].begin()
        self.flying: list[tuple[Peer, SendCleanup]] = []
        self.unanswered: dict[Peer, set[Peer]] = {peer: set() for peer in self.peers}
        self.now = 0.0

    def send(self, sender: Peer, effects: list[SendCleanup]) -> None:
        self.flying += [(sender, effect) for effect in effects]

    def spread(self) -> None:
        holders = [peer for peer in self.alive if self.tables[peer].is_active(self.context)]
        if holders:
            sender, receiver = self.chance.choice(holders), self.chance.choice(self.alive)
            self.tables[sender].passed_on(self.context, receiver)
            if self.chance.random() < 0.9:  # else the call is lost
                self.tables[receiver].join(self.context)

    def kill(self) -> None:
        victim = self.chance.choice(self.alive[1:])
        self.alive.remove(victim)
        for peer in self.alive:
            ended, effects = self.tables[peer].peer_lost(victim, 0, self.alive, self.now)
            self.send(peer, effects)
            for context in ended:
                self.send(peer, self.tables[peer].release(context, self.alive, self.now))
            self.answer(peer)

    def deliver(self) -> None:
        sender, effect = self.flying.pop(self.chance.randrange(len(self.flying)))
        if sender not in self.alive or effect.to not in self.alive or self.chance.random() < 0.3:
            return
        for _ in range(self.chance.randint(1, 2)):
            self.send(effect.to, self.tables[effect.to].release(effect.context_id, self.alive, self.now, sender))
        self.unanswered[effect.to].add(sender)
        self.answer(effect.to)

    def answer(self, peer: Peer) -> None:
        ready = {p for p in self.unanswered[peer] if not self.tables[peer].owes_acknowledgement(self.context, p)}
        self.unanswered[peer] -= ready
        for asker in ready:
            if asker in self.alive and self.chance.random() < 0.8:
                self.tables[asker].cleanup_acknowledged(SendCleanup(peer, self.context))
                self.answer(asker)

    def tick(self) -> None:
        self.now += LAST_RETRY
        for peer in self.alive:
            self.send(peer, self.tables[peer].timer_fired(self.now))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_all_workers_forget(seed: int, count: int) -> None:
    """A context spreads; workers are lost before its end, and while it is told. In the end nobody has it."""
    world = World(seed, count)
    for _ in range(world.chance.randint(0, 12)):
        world.spread()
        if len(world.alive) > 2 and world.chance.random() < 0.1:
            world.kill()
    maker = world.tables[world.peers[0]]
    world.send(world.peers[0], maker.release(world.context, world.alive, world.now))
    for _ in range(2000):
        if world.flying:
            world.deliver()
        else:
            world.tick()
            if not world.flying:
                break
        if len(world.alive) > 2 and world.chance.random() < 0.02:
            world.kill()
    else:
        raise AssertionError("it is told for ever")
    assert not any(world.tables[peer].is_active(world.context) for peer in world.alive)
