from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from member_world import Node, World

from zrpc.protocol.effects import Counts, Departure, Held, Released, ShutdownWish
from zrpc.protocol.shutdown import PACE, PATIENCE, Ask, Barrier, Release


def group(*members: int) -> Barrier:
    barrier = Barrier()
    for member in members:
        barrier.enter(member)
    return barrier


def test_a_member_alone_is_released_after_two_rounds() -> None:
    barrier = group(0)
    assert barrier.report(0, 0, Counts(), 0.0) == [Ask(1, (0,))]
    assert barrier.report(0, 1, Counts(), 0.0) == [Release((0,))]


def test_nobody_is_released_before_all_have_asked() -> None:
    barrier = group(0, 1, 2)
    assert barrier.report(0, 0, Counts(), 0.0) == []
    assert barrier.report(1, 0, Counts(), 0.0) == []
    assert (barrier.missing(9), barrier.short()) == ([2], 1)
    assert barrier.report(2, 0, Counts(), 0.0) == [Ask(1, (0, 1, 2))]
    assert barrier.report(0, 1, Counts(), 0.0) == []
    assert barrier.report(1, 1, Counts(), 0.0) == []
    assert barrier.report(2, 1, Counts(), 0.0) == [Release((0, 1, 2))]


def test_a_call_that_slips_between_the_answers_is_noticed() -> None:
    barrier = group(0, 1)
    barrier.report(0, 0, Counts(0, 0), 0.0)
    assert barrier.report(1, 0, Counts(0, 0), 0.0) == [Ask(1, (0, 1))]
    barrier.report(0, 1, Counts(0, 0), 0.0)  # 1 calls 0 after this answer, and has the reply before its own
    assert barrier.report(1, 1, Counts(1, 0), 0.0) == []
    assert barrier.next_deadline() == pytest.approx(PACE)
    assert barrier.tick(PACE) == [Ask(2, (0, 1))]
    barrier.report(0, 2, Counts(0, 1), 0.1)
    assert barrier.report(1, 2, Counts(1, 0), 0.1) == [Ask(3, (0, 1))]
    barrier.report(0, 3, Counts(0, 1), 0.1)
    assert barrier.report(1, 3, Counts(1, 0), 0.1) == [Release((0, 1))]


def test_a_busy_member_holds_everybody() -> None:
    barrier = group(0, 1)
    barrier.report(0, 0, Counts(1, 0, active=1), 0.0)
    assert barrier.report(1, 0, Counts(0, 0, active=1), 0.0) == []
    assert barrier.report(1, 0, Counts(0, 1), 0.0) == []
    assert barrier.report(0, 0, Counts(1, 0), 0.0) == [Ask(1, (0, 1))]


def test_a_member_that_dies_counts_out() -> None:
    barrier = group(0, 1, 2)
    barrier.report(0, 0, Counts(5, 0), 0.0)
    barrier.report(1, 0, Counts(), 0.0)
    assert barrier.leave(2, 0.0, lost=True) == [Ask(1, (0, 1))]
    barrier.report(0, 1, Counts(5, 0), 0.0)
    assert barrier.report(1, 1, Counts(), 0.0) == [Release((0, 1))]


def test_sums_that_stay_apart_are_calls_from_outside() -> None:
    barrier = group(0)
    now, rounds = 0.0, 0
    decisions = barrier.report(0, 0, Counts(0, 7), now)
    while not any(isinstance(decision, Release) for decision in decisions):
        rounds += 1
        now += PACE
        (ask,) = barrier.tick(now)
        assert isinstance(ask, Ask)
        decisions = barrier.report(0, ask.round, Counts(0, 7), now)
        assert rounds <= PATIENCE
    assert rounds == PATIENCE


def test_a_release_that_was_lost_is_repeated_and_forgotten_with_the_group() -> None:
    barrier = group(0)
    barrier.report(0, 0, Counts(), 0.0)
    barrier.report(0, 1, Counts(), 0.0)
    assert barrier.report(0, 1, Counts(), 1.0) == [Release((0,))]
    assert barrier.leave(0, 1.0, lost=False) == []
    barrier.enter(0)
    assert barrier.report(0, 1, Counts(), 2.0) == [Ask(2, (0,))]


def test_an_answer_to_an_old_round_is_asked_again() -> None:
    barrier = group(0, 1)
    barrier.report(0, 0, Counts(), 0.0)
    barrier.report(1, 0, Counts(), 0.0)
    assert barrier.report(0, 0, Counts(), 0.5) == [Ask(1, (0,))]


def test_rounds_go_on_above_those_of_an_earlier_broker() -> None:
    barrier = group(0, 1)
    barrier.report(0, 7, Counts(), 0.0)
    assert barrier.report(1, 3, Counts(), 0.0) == [Ask(7, (1,))]
    assert barrier.report(1, 7, Counts(), 0.0) == [Ask(8, (0, 1))]


def test_one_outside_the_group_is_released_at_once() -> None:
    assert group(0).report(9, 0, Counts(), 0.0) == [Release((9,))]


# ---------------------------------------------------------------------------------------------- with members


def start(world: World, count: int) -> list[Node]:
    return [world.add(f"w{index}", id=index, world_size=count) for index in range(count)]


def test_a_static_group_ends_together_with_calls_under_way() -> None:
    world = World()
    a, b = start(world, 2)
    a_counts, b_counts = [Counts(1, 0, 1)], [Counts(0, 0, 1)]
    a.counts, b.counts = (lambda: a_counts[-1]), (lambda: b_counts[-1])
    world.command(a, ShutdownWish(a.counts()))
    assert a.heard(Held)[-1].missing == ("w1",)
    world.command(b, ShutdownWish(b.counts()))
    world.run(5)
    assert not a.heard(Released)
    b_counts.append(Counts(0, 1, 0))
    world.run(1)
    assert not a.heard(Released)
    a_counts.append(Counts(1, 0, 0))
    world.run(0.3)
    assert a.heard(Released)
    assert b.heard(Released)
    for node in (a, b):
        world.command(node, Departure())
    assert world.living() == set()


def test_a_group_ends_without_one_that_was_killed() -> None:
    world = World()
    a, b, c = start(world, 3)
    world.command(a, ShutdownWish(Counts(3, 1, 0)))
    world.command(b, ShutdownWish(Counts(0, 1, 0)))
    world.run(1)
    assert not a.heard(Released)
    a.counts, b.counts = (lambda: Counts(3, 1, 0)), (lambda: Counts(0, 1, 0))
    world.crash(c)
    world.run(1)
    assert a.heard(Released)
    assert b.heard(Released)


def test_a_dynamic_member_waits_for_nobody() -> None:
    world = World()
    world.add("a")
    b = world.add("b")
    world.command(b, ShutdownWish(Counts(1, 2, 3)))
    assert b.heard(Released)


class Traffic:
    """Calls between some nodes at random times: each is sent, served some time later, replied to later still."""

    def __init__(self, nodes: list[Node], randomness: random.Random) -> None:
        self.random = randomness
        self.sent, self.served, self.active = ([0] * len(nodes) for _ in range(3))
        self.requests: list[tuple[int, int]] = []
        self.replies: list[tuple[int, int]] = []
        self.running: list[tuple[int, int]] = []
        for index, node in enumerate(nodes):
            node.counts = lambda index=index: Counts(self.sent[index], self.served[index], self.active[index])  # type: ignore[misc]

    def call(self, caller: int, callee: int) -> None:
        self.sent[caller] += 1
        self.active[caller] += 1
        self.requests.append((caller, callee))

    def step(self, may_call: bool) -> None:
        """One thing happens: a request arrives, a function ends (and may call on), or a reply arrives."""
        queue = self.random.choice([self.requests, self.running, self.replies])
        if not queue:
            return
        item = queue.pop(self.random.randrange(len(queue)))
        caller, callee = item
        if queue is self.requests:
            self.active[callee] += 1
            self.running.append(item)
        elif queue is self.running:
            if may_call and self.random.random() < 0.4:
                self.call(callee, self.random.randrange(len(self.sent)))
            self.served[callee] += 1
            self.active[callee] -= 1
            self.replies.append(item)
        else:
            self.active[caller] -= 1

    @property
    def is_quiet(self) -> bool:
        return not (self.requests or self.running or self.replies)


@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_nobody_is_released_while_a_call_is_under_way(seed: int, count: int, is_lossy: bool) -> None:
    randomness = random.Random(seed)
    world = World()
    nodes = start(world, count)
    world.faults = randomness if is_lossy else None
    traffic = Traffic(nodes, randomness)
    for _ in range(randomness.randrange(6)):
        traffic.call(randomness.randrange(count), randomness.randrange(count))
    for node in nodes:
        world.command(node, ShutdownWish(node.counts()))
    for step in range(400):
        traffic.step(may_call=step < 60)
        world.run(randomness.random() * 0.05)
        if any(node.heard(Released) for node in nodes):
            assert traffic.is_quiet
            break
    while not traffic.is_quiet:
        traffic.step(may_call=False)
    world.faults = None
    world.run(5)
    assert all(node.heard(Released) for node in nodes)
