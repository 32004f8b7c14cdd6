"""A broker in charge whose standby is away: by what it is sure that nobody else is in charge, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

from zrpc.protocol.effects import Arrival, RouteLoss, Tick
from zrpc.protocol.membership import Record, RegistryOptions
from zrpc.protocol.primary import RECOUNT, Life, Pair, fresh_time
from zrpc.protocol.seat import Seat
from zrpc.wire.messages import Beat, Hello
from zrpc.wire.succession import Follow

OPTIONS = RegistryOptions()
INTERVAL = OPTIONS.heartbeat_interval
FRESH = fresh_time(INTERVAL)


class Counted(set[Life]):
    """Counts how often all of it was looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Life]:
        self.looks += 1
        return super().__iter__()


class Scene:
    """A broker with a standby that follows it, and some members."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.seat = Seat("test", 10**12, self.now, OPTIONS)
        self.seat.address = "tcp://primary:1"
        self.feed(Arrival(Follow("tcp://standby:1"), b"standby"))
        self.confirm()
        for number in range(count):
            hello = Hello(f"w{number}", number + 1, f"tcp://host:{number + 1}")
            self.feed(Arrival(hello, b"route %d" % number))
        self.now += INTERVAL
        self.feed(Tick())
        self.confirm()

    @property
    def pair(self) -> Pair:
        assert self.seat.primary is not None
        assert self.seat.primary.pair is not None
        return self.seat.primary.pair

    def feed(self, event: object) -> None:
        self.seat.handle(event, self.now)

    def confirm(self) -> None:
        """The standby says that it has everything."""
        primary = self.seat.primary
        assert primary is not None
        has_all = Follow("tcp://standby:1", primary.epoch, False, primary._sequence, self.pair.floor, primary._beat)
        self.feed(Arrival(has_all, b"standby"))

    def members(self) -> list[Record]:
        assert self.seat.registry is not None
        return list(self.seat.registry.book.living())

    def beat(self, members: list[Record]) -> None:
        for record in members:
            assert record.route is not None
            self.feed(Arrival(Beat(), record.route, record.id, record.incarnation))

    @property
    def is_sure(self) -> bool:
        assert self.seat.primary is not None
        return self.seat.primary._is_sure(self.now)

    def lose_standby(self) -> None:
        self.feed(RouteLoss(b"standby"))
        for _ in range(4):  # what it said last is old by then
            self.now += INTERVAL
            self.beat(self.members())


def test_half_of_the_members_are_enough() -> None:
    scene = Scene(10)
    scene.lose_standby()
    assert scene.is_sure
    half = scene.members()[:5]
    for _ in range(4):
        scene.now += INTERVAL
        scene.beat(half)
    assert scene.is_sure
    for _ in range(4):
        scene.now += INTERVAL
        scene.beat(half[1:])
    assert not scene.is_sure


def test_who_was_counted_has_been_heard_of_for_as_long_as_the_count_is_used() -> None:
    scene = Scene(10)
    scene.lose_standby()
    counted_at = scene.now
    assert scene.is_sure
    scene.now = counted_at + FRESH * (1 - RECOUNT) - 1e-6
    assert scene.is_sure
    scene.now = counted_at + FRESH + 1e-6
    assert not scene.is_sure


def test_a_member_whose_connection_closes_does_not_count_any_more() -> None:
    scene = Scene(4)
    scene.lose_standby()
    assert scene.is_sure
    for record in scene.members()[:3]:
        assert record.route is not None
        scene.feed(RouteLoss(record.route))
    assert not scene.is_sure


def test_members_are_not_counted_at_each_of_their_beats() -> None:
    scene = Scene(20)
    scene.lose_standby()
    scene.pair.core = counted = Counted(scene.pair.core)
    for _ in range(10):
        scene.now += FRESH * RECOUNT / 10
        scene.beat(scene.members())
    assert scene.is_sure
    assert 1 <= counted.looks <= 2
