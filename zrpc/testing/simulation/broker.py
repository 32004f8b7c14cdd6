"""The broker of a simulated cluster, and its members' connections to it.

A connection keeps order and loses nothing while it stands. It breaks when an end dies, is reset by chance, or goes unheard
for `NOTICE` seconds (cut off, or stopped), as ZeroMQ's heartbeats do it; whoever lives connects again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zrpc.protocol.effects import Announce, Arrival, Broadcast, Effect, RouteLoss, Send, Tick
from zrpc.protocol.membership import RegistryOptions
from zrpc.protocol.registry import Registry
from zrpc.testing.simulation.network import Network, Place
from zrpc.wire.messages import Message

if TYPE_CHECKING:
    from zrpc.testing.simulation.worker import Process

NOTICE = 2.0
"""Seconds after which an end notices that the other one is not heard of any more."""
EPOCH_MS = 1_790_000_000_000
UNRULY = 0.15
"""How many messages are lost, and how many repeated, where the broker's connections are unruly."""


class Broker(Place):
    """A registry, the routes to its members, and its restarts."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.registry: Registry | None = None
        self.members: dict[bytes, Process] = {}
        self._routes = 0
        self._wake_at: float | None = None
        self._runs = 0
        self.start()

    # ------------------------------------------------------------------------------------------ its life

    def start(self) -> None:
        """Start a broker at the address: the first one, or the successor of one that is gone."""
        now = self.network.now
        # On the wall clock, brokers start seconds apart: lives given by one are told from the next one's by seconds.
        epoch_ms = EPOCH_MS + int(now * 1000) + self._runs * 2000
        options = RegistryOptions(is_successor=self._runs > 0, small=self.network.schedule.small)
        self.registry = Registry("simulated", epoch_ms, now, options)
        self._runs += 1
        self.network.note("the broker starts")

    def stop(self) -> None:
        """It is killed: all connections break."""
        self.network.note("the broker dies")
        self.registry = None
        for member in list(self.members.values()):
            self.break_connection(member, tells_broker=False)

    # --------------------------------------------------------------------------------------- connections

    def connect(self, member: Process) -> None:
        """A member's connection is made, if it can be now; else it is tried again."""
        if member.is_over or member.route is not None:
            return
        if self.registry is None or self in member.cut_from or member.is_frozen:
            self.network.at(0.2, self.connect, member)
            return
        self._routes += 1
        member.route = b"%d" % self._routes
        self.members[member.route] = member
        member.on_link("connected")

    def break_connection(self, member: Process, tells_broker: bool = True) -> None:
        """A connection is gone, for both ends; what is on it is lost."""
        route, member.route = member.route, None
        if route is None:
            return
        self.members.pop(route, None)
        if tells_broker:
            self.network.at(self.network.latency(), self.feed, RouteLoss(route))
        if member.is_over:
            return
        if member.is_frozen:
            member.inbox.append((member.on_link, ("disconnected",)))
        else:
            member.on_link("disconnected")
        self.network.at(0.05 + self.network.latency(), self.connect, member)

    def notice_silence(self, member: Process, route: bytes | None) -> None:
        """`NOTICE` seconds after a member went silent: is it still?"""
        is_silent = member.is_frozen or self in member.cut_from
        if is_silent and route is not None and member.route == route:
            self.break_connection(member)

    # ------------------------------------------------------------------------------------------- messages

    def take(self, route: bytes, message: Message, sender: int, incarnation: int) -> None:
        """A message of a member comes out of its connection."""
        if route in self.members:
            self.feed(Arrival(message, route, sender, incarnation))

    def carry(self, member: Process, what: Any, *args: Any) -> None:
        """Put something on a member's connection, in either direction."""
        network, route = self.network, member.route
        if route is None or self in member.cut_from:
            return  # what is written to a dead connection is lost
        unruly = network.schedule.unruly_broker
        if unruly and network.chance(UNRULY):
            return
        delay = network.latency()
        if not unruly:
            way = (self, member) if what == member.on_broker else (member, self)
            due = max(network.now + delay, network._last.get(way, 0.0))
            network._last[way] = due
            delay = due - network.now
        network.at(delay, self._come_out, member, route, what, args)
        if unruly and network.chance(UNRULY):
            network.at(delay + network.latency(), self._come_out, member, route, what, args)

    def _come_out(self, member: Process, route: bytes, what: Any, args: tuple[Any, ...]) -> None:
        if member.route != route or self in member.cut_from:
            return
        if what == member.on_broker and member.is_frozen:
            member.inbox.append((what, args))
        else:
            what(*args)

    # ------------------------------------------------------------------------------------------- its machine

    def feed(self, event: object) -> None:
        """Give the registry an event."""
        if self.registry is not None:
            self._perform(self.registry.handle(event, self.network.now))
            self._sleep()

    def _sleep(self) -> None:
        assert self.registry is not None
        due = self.registry.next_deadline()
        if due is not None and (self._wake_at is None or due < self._wake_at):
            self._wake_at = due
            self.network.at(max(0.0, due - self.network.now), self._wake, due, self.registry)

    def _wake(self, due: float, registry: Registry) -> None:
        if self._wake_at == due:
            self._wake_at = None
        if registry is not self.registry:
            return
        deadline = registry.next_deadline()
        if deadline is not None and deadline <= self.network.now:
            self.feed(Tick())
        else:
            self._sleep()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Announce):
                self.network.note(f"broker: {effect.news}")
            elif isinstance(effect, Send):
                self._send(effect.route, effect.message, effect.incarnation)
            elif isinstance(effect, Broadcast):
                for route in effect.routes:
                    self._send(route, effect.message, 0)

    def _send(self, route: bytes, message: Message, incarnation: int) -> None:
        member = self.members.get(route)
        if member is not None:
            self.carry(member, member.on_broker, message, incarnation)

    def living(self) -> dict[str, tuple[int, int]]:
        """Who is up, as the broker knows it: id and incarnation by name."""
        assert self.registry is not None
        return {r.name: (r.id, r.incarnation) for r in self.registry.book.living() if r.state == "up"}
