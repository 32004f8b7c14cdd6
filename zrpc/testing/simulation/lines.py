"""Connections to the brokers of a simulated cluster.

A connection keeps order and loses nothing while it stands. It breaks when an end dies, is reset by chance, or goes unheard
for `NOTICE` seconds (cut off, or stopped), as ZeroMQ's heartbeats do it; whoever opened it connects again. What has come to
somebody who is stopped is read when that one goes on, whether the connection stands by then or not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zrpc.testing.simulation.network import Network, Place
from zrpc.wire.messages import Message

if TYPE_CHECKING:
    from zrpc.testing.simulation.broker import Broker

NOTICE = 2.0
"""Seconds after which an end notices that the other one is not heard of any more."""
UNRULY = 0.15
"""How many messages are lost, and how many repeated, where the connections of workers are unruly."""


class Speaker(Place):
    """Who opens connections to brokers: a worker, or the other broker."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, Line] = {}

    def on_change(self, address: str, what: str) -> None:
        """A connection of its own has come to stand, or broken."""
        raise NotImplementedError

    def on_message(self, address: str, message: Message, incarnation: int) -> None:
        """A broker has said something."""
        raise NotImplementedError

    def close_line(self, address: str) -> None:
        """Drop a connection."""
        line = self.lines.pop(address, None)
        if line is not None:
            line.close()

    def close_lines(self) -> None:
        """It ends, and its connections with it."""
        for address in list(self.lines):
            self.close_line(address)


class Line:
    """A connection of `owner` to a broker; `route` is None while it does not stand."""

    def __init__(self, network: Network, owner: Speaker, broker: Broker, routes: itertools.count[int]) -> None:
        self.network = network
        self.owner = owner
        self.broker = broker
        self.route: bytes | None = None
        self.is_closed = False
        self.is_unruly = False
        self._routes = routes
        self._last = {True: 0.0, False: 0.0}

    def _passes(self) -> bool:
        return self.broker not in self.owner.cut_from

    def _is_reached(self) -> bool:
        both_run = self.broker.is_running and not self.broker.is_frozen and not self.owner.is_frozen
        return both_run and self._passes()

    # ------------------------------------------------------------------------------------------ its life

    def connect(self) -> None:
        """It is made, if it can be now; else it is tried again."""
        if self.is_closed or self.route is not None or self.owner.is_over:
            return
        if not self._is_reached():
            self.network.at(0.2, self.connect)
            return
        self.route = b"%d" % next(self._routes)
        self.broker.guests[self.route] = self
        self.owner.on_change(self.broker.address, "connected")

    def break_off(self, tells_broker: bool = True) -> None:
        """It is gone, for both ends; what is on it is lost."""
        route, self.route = self.route, None
        if route is None:
            return
        self.broker.guests.pop(route, None)
        if tells_broker:
            self.network.at(self.network.latency(), self.broker.take, self.broker.on_loss, route)
        if self.owner.is_over or self.is_closed:
            return
        self._tell_owner(self.owner.on_change, self.broker.address, "disconnected")
        self.network.at(0.05 + self.network.latency(), self.connect)

    def close(self) -> None:
        """Its owner wants it no more."""
        self.is_closed = True
        self.break_off()

    def notice_silence(self, route: bytes | None) -> None:
        """`NOTICE` seconds after an end went silent: is it still?"""
        if route is not None and self.route == route and not self._is_reached():
            self.break_off()

    # ------------------------------------------------------------------------------------------ messages

    def send(self, message: Message, sender: int, incarnation: int) -> None:
        """From the owner to the broker. What is written to a dead connection is lost."""
        self._carry(True, self._come_to_broker, message, sender, incarnation)

    def answer(self, message: Message, incarnation: int) -> None:
        """From the broker to the owner."""
        self._carry(False, self._come_to_owner, message, incarnation)

    def _carry(self, way: bool, what: Callable[..., None], *args: Any) -> None:
        network, route = self.network, self.route
        if route is None or not self._passes() or (self.is_unruly and network.chance(UNRULY)):
            return
        delay = network.latency()
        if not self.is_unruly:
            due = self._last[way] = max(network.now + delay, self._last[way])
            delay = due - network.now
        network.at(delay, what, route, *args)
        if self.is_unruly and network.chance(UNRULY):
            network.at(delay + network.latency(), what, route, *args)

    def _come_to_broker(self, route: bytes, message: Message, sender: int, incarnation: int) -> None:
        if self.route == route and self._passes():
            self.broker.take(self.broker.on_request, route, message, sender, incarnation)

    def _come_to_owner(self, route: bytes, message: Message, incarnation: int) -> None:
        if self.route == route and self._passes():
            self._tell_owner(self.owner.on_message, self.broker.address, message, incarnation)

    def _tell_owner(self, what: Callable[..., None], *args: Any) -> None:
        if self.owner.is_frozen:
            self.owner.inbox.append((what, args))
        else:
            what(*args)
