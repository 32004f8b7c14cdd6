"""Two brokers and some members on a fake clock and a network that is cut, stalls and breaks: what its tests share.

Every message goes through its bytes. A connection keeps order and loses nothing while it stands; it breaks when an end
dies, and `NOTICE` seconds after an end was stopped or cut off. What was sent to a broker that is stopped is read when it
runs again.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from zrpc.protocol.allegiance import Allegiance
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    CloseLine,
    Dispatch,
    Effect,
    Joined,
    LineArrival,
    LineChange,
    News,
    OpenLine,
    PeerArrival,
    PeerChange,
    RouteLoss,
    Seek,
    Send,
    Start,
    Tell,
    Tick,
)
from zrpc.protocol.membership import RegistryOptions
from zrpc.protocol.seat import Seat
from zrpc.protocol.session import Session
from zrpc.wire.messages import Hello, Message
from zrpc.wire.succession import BROKER_READS, MEMBER_READS, STANDBY_READS

EPOCH_MS = 1_790_000_000_000
NOTICE = 2.0
A, B = "tcp://a:1", "tcp://b:1"


class Connection:
    """From a member or a broker (`owner`) to the broker at `address`."""

    def __init__(self, owner: Any, address: str, route: bytes) -> None:
        self.owner = owner
        self.address = address
        self.route = route
        self.stands = False
        self.is_closed = False
        self.last = [0.0, 0.0]


class Place:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.is_frozen = False
        self.cut_from: set[str] = set()
        self.inbox: deque[Callable[[], None]] = deque()
        self.connections: dict[str, Connection] = {}
        self.news: list[News] = []

    def take(self, what: Callable[[], None]) -> None:
        if self.is_dead:
            return
        if self.is_frozen:
            self.inbox.append(what)
        else:
            what()

    def heard(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.news if isinstance(item, kind)]

    def open(self, address: str) -> None:
        connection = Connection(self, address, b"%d" % next(self.world.routes))
        self.connections[address] = connection
        self.world.at(0.01, lambda: self.world.connect(connection))

    def close(self, address: str) -> None:
        connection = self.connections.pop(address, None)
        if connection is not None:
            connection.is_closed = True
            self.world.sever(connection, tells_owner=False)

    def on_change(self, connection: Connection, what: str) -> None:
        raise NotImplementedError

    def on_message(self, connection: Connection, message: Message) -> None:
        raise NotImplementedError


class BrokerPlace(Place):
    def __init__(self, world: World, address: str, follows: str, runs: int, options: RegistryOptions | None) -> None:
        super().__init__(world, address)
        self.seat = Seat("test", EPOCH_MS + int(world.now * 1000) + runs, world.now, options, follows)
        self.seat.address = address
        if follows:
            self.open(follows)

    def feed(self, event: object) -> None:
        self.perform(self.seat.handle(event, self.world.now))
        self.world.check(self)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Announce):
                self.news.append(effect.news)
                self.world.note(f"{self.name}: {effect.news}")
            elif isinstance(effect, Send):
                self.world.answer(self, effect.route, effect.message, effect.incarnation)
            elif isinstance(effect, Broadcast):
                for route in effect.routes:
                    self.world.answer(self, route, effect.message, 0)
            elif isinstance(effect, Tell):
                for connection in self.connections.values():
                    self.world.send(connection, effect.message, -1, 0)
            elif isinstance(effect, Seek):
                for address in list(self.connections):
                    self.close(address)
                if effect.address:
                    self.open(effect.address)

    def on_change(self, connection: Connection, what: str) -> None:
        self.feed(PeerChange(what))

    def on_message(self, connection: Connection, message: Message) -> None:
        if message.KIND in STANDBY_READS:
            self.feed(PeerArrival(STANDBY_READS[message.KIND].from_body(message.to_body())))

    def on_request(self, route: bytes, message: Message, sender: int, incarnation: int) -> None:
        self.feed(Arrival(BROKER_READS[message.KIND].from_body(message.to_body()), route, sender, incarnation))

    def tick(self) -> None:
        due = self.seat.next_deadline()
        if due is not None and due <= self.world.now:
            self.feed(Tick())

    @property
    def is_in_charge(self) -> bool:
        return not self.is_dead and self.seat.primary is not None

    def living(self) -> dict[str, tuple[int, int]]:
        registry = self.seat.registry
        assert registry is not None
        return {r.name: (r.id, r.incarnation) for r in registry.book.living() if r.state == "up"}


class MemberPlace(Place):
    def __init__(self, world: World, name: str, addresses: tuple[str, ...], nonce: int, **fields: Any) -> None:
        super().__init__(world, name)
        self.session = Session(Hello(name=name, nonce=nonce, address=f"tcp://{name}:{nonce}", **fields))
        self.allegiance = Allegiance(self.session, addresses)
        for address in addresses:
            self.open(address)
        self.feed(Start())

    def feed(self, event: object) -> None:
        for effect in self.allegiance.handle(event, self.world.now):
            if isinstance(effect, Announce):
                self.news.append(effect.news)
                if isinstance(effect.news, Joined):
                    self.world.joined(self)
            elif isinstance(effect, Dispatch):
                for address in effect.addresses:
                    if address in self.connections:
                        session = self.session
                        self.world.send(self.connections[address], effect.message, session.id, session.incarnation)
            elif isinstance(effect, OpenLine):
                self.open(effect.address)
            elif isinstance(effect, CloseLine):
                self.close(effect.address)

    def on_change(self, connection: Connection, what: str) -> None:
        self.feed(LineChange(connection.address, what))

    def on_message(self, connection: Connection, message: Message) -> None:
        self.feed(LineArrival(connection.address, MEMBER_READS[message.KIND].from_body(message.to_body())))

    def tick(self) -> None:
        due = self.allegiance.next_deadline()
        if due is not None and due <= self.world.now:
            self.feed(Tick())


class World:
    """Broker A, broker B that stands by for it, and members that know both, or what `addresses` says."""

    def __init__(self, seed: int = 0, latency: float = 0.005, options: RegistryOptions | None = None) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.latency = latency
        self.options = options
        self.routes = itertools.count(1)
        self.brokers: dict[str, BrokerPlace] = {}
        self.members: dict[str, MemberPlace] = {}
        self.trace: deque[str] = deque(maxlen=300)
        self.ids: dict[int, str] = {}
        self.incarnations: dict[int, int] = {}
        self.checks_charge = True
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._nonces = itertools.count(1)
        self._runs = 0
        self.start_broker(A)
        self.start_broker(B, A)

    # ------------------------------------------------------------------------------------------ time

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now - 1000:8.3f} {what}")

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), what))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            places = [p for p in (*self.brokers.values(), *self.members.values()) if not (p.is_dead or p.is_frozen)]
            due = [
                d
                for p in places
                if (d := (p.seat if isinstance(p, BrokerPlace) else p.allegiance).next_deadline()) is not None
            ]
            when = min([*due, *([self._queue[0][0]] if self._queue else []), end])
            self.now = max(self.now, when)
            if self.now >= end:
                return
            if self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
            else:
                for place in places:
                    place.tick()

    # ------------------------------------------------------------------------------------- connections

    def reachable(self, owner: Place, address: str) -> bool:
        broker = self.brokers.get(address)
        if broker is None or broker.is_dead or broker.is_frozen or owner.is_frozen:
            return False
        return address not in owner.cut_from and owner.name not in broker.cut_from

    def connect(self, connection: Connection) -> None:
        owner = connection.owner
        if connection.is_closed or connection.stands or owner.is_dead:
            return
        if not self.reachable(owner, connection.address):
            broker = self.brokers.get(connection.address)
            if broker is None or broker.is_dead:
                owner.take(lambda: owner.on_change(connection, "refused"))
            self.at(0.1 + self.random.random() * 0.4, lambda: self.connect(connection))
            return
        connection.stands = True
        connection.route = b"%d" % next(self.routes)
        owner.take(lambda: owner.on_change(connection, "connected"))

    def sever(self, connection: Connection, tells_owner: bool = True) -> None:
        if not connection.stands:
            return
        connection.stands = False
        route, broker, owner = connection.route, self.brokers.get(connection.address), connection.owner
        if broker is not None:
            self.at(0.002, lambda: broker.take(lambda: broker.feed(RouteLoss(route))))
        if tells_owner:
            owner.take(lambda: owner.on_change(connection, "disconnected"))
        if not connection.is_closed:
            self.at(0.05, lambda: self.connect(connection))

    def all_connections(self) -> list[Connection]:
        places = (*self.brokers.values(), *self.members.values())
        return [connection for place in places for connection in place.connections.values()]

    def notice(self) -> None:
        """Some time after somebody was stopped or cut off: connections that do not answer are given up."""
        for connection in self.all_connections():
            if connection.stands and not self.reachable(connection.owner, connection.address):
                self.sever(connection)

    def _carry(self, connection: Connection, way: int, what: Callable[[], None]) -> None:
        due = max(self.now + self.random.random() * self.latency, connection.last[way])
        connection.last[way] = due
        self.at(due - self.now, what)

    def _passes(self, connection: Connection) -> bool:
        broker = self.brokers.get(connection.address)
        owner = connection.owner
        return broker is not None and connection.address not in owner.cut_from and owner.name not in broker.cut_from

    def send(self, connection: Connection, message: Message, sender: int, incarnation: int) -> None:
        """From a connection's owner to the broker."""
        route, broker = connection.route, self.brokers.get(connection.address)
        if not connection.stands or broker is None:
            return

        def come() -> None:
            if connection.route == route and connection.stands and self._passes(connection):
                broker.take(lambda: broker.on_request(route, message, sender, incarnation))

        self._carry(connection, 0, come)

    def answer(self, broker: BrokerPlace, route: bytes, message: Message, incarnation: int) -> None:
        for connection in self.all_connections():
            if connection.route == route and connection.stands and connection.address == broker.name:

                def come(connection: Connection = connection) -> None:
                    owner = connection.owner
                    if connection.route != route or not connection.stands or not self._passes(connection):
                        return
                    if isinstance(owner, MemberPlace) and incarnation not in (0, owner.session.incarnation):
                        return
                    owner.take(lambda: owner.on_message(connection, message))

                self._carry(connection, 1, come)

    # --------------------------------------------------------------------------------------- what happens

    def start_broker(self, address: str, follows: str = "") -> BrokerPlace:
        self._runs += 1
        self.note(f"{address} starts")
        options = self.options
        if self._runs > 2 and not follows:
            options = (options or RegistryOptions()).following()
        self.brokers[address] = BrokerPlace(self, address, follows, self._runs, options)
        return self.brokers[address]

    def kill_broker(self, address: str) -> None:
        self.note(f"{address} dies")
        broker = self.brokers[address]
        broker.is_dead = True
        for connection in list(broker.connections.values()):
            broker.close(connection.address)
        for connection in self.all_connections():
            if connection.address == address:
                self.sever(connection)

    def add(self, name: str, addresses: tuple[str, ...] = (A, B), **fields: Any) -> MemberPlace:
        self.members[name] = MemberPlace(self, name, addresses, next(self._nonces), **fields)
        return self.members[name]

    def kill(self, name: str) -> None:
        self.note(f"{name} dies")
        member = self.members.pop(name)
        member.is_dead = True
        for address in list(member.connections):
            member.close(address)

    def freeze(self, place: Place) -> None:
        self.note(f"{place.name} is stopped")
        place.is_frozen = True
        self.at(NOTICE, self.notice)

    def thaw(self, place: Place) -> None:
        self.note(f"{place.name} runs again")
        place.is_frozen = False
        while place.inbox and not place.is_frozen:
            place.take(place.inbox.popleft())

    def cut(self, one: Place, other: Place) -> None:
        self.note(f"{one.name} and {other.name} are cut")
        one.cut_from.add(other.name)
        other.cut_from.add(one.name)
        self.at(NOTICE, self.notice)

    def heal(self) -> None:
        self.note("all cuts are healed")
        for place in (*self.brokers.values(), *self.members.values()):
            place.cut_from.clear()

    # -------------------------------------------------------------------------------------------- promises

    def joined(self, member: MemberPlace) -> None:
        """No id and no incarnation is given twice."""
        session = member.session
        self.note(f"{member.name} has joined at {member.allegiance.current} as {session.id}/{session.incarnation}")
        assert self.ids.setdefault(session.id, member.name) == member.name, (session.id, member.name, self.ids)
        assert session.incarnation not in self.incarnations, session.incarnation
        self.incarnations[session.incarnation] = session.id

    def check(self, broker: BrokerPlace) -> None:
        """Two are never in charge of newcomers at once."""
        running = [b for b in self.brokers.values() if b.is_in_charge and not b.is_frozen]
        if self.checks_charge and len(running) > 1:
            admitting = [b.name for b in running if b.seat.primary and b.seat.primary.may_admit(self.now)]
            assert len(admitting) < 2, admitting

    def in_charge(self) -> BrokerPlace:
        (broker,) = [broker for broker in self.brokers.values() if broker.is_in_charge]
        return broker

    def assert_agreed(self) -> None:
        """One broker is in charge, and everybody knows the same of everybody."""
        broker = self.in_charge()
        living = broker.living()
        assert living == {
            m.name: (m.session.id, m.session.incarnation) for m in self.members.values() if m.session.state == "up"
        }
        for member in self.members.values():
            assert member.allegiance.current == broker.name, (member.name, member.allegiance)
            known = {n: (m.id, m.incarnation) for n, m in member.session.members.items()}
            assert known == living, member.name
