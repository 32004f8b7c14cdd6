"""A registry and some sessions joined by a fake link, on a fake clock: what the tests of membership share.

Every message goes through its bytes. `faults` (a `random.Random`) shuffles, drops and duplicates.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Counts,
    CountsWanted,
    Effect,
    LinkChange,
    News,
    RouteLoss,
    Send,
    ShutdownWish,
    Start,
    Tick,
)
from zrpc.protocol.membership import RegistryOptions
from zrpc.protocol.registry import Registry
from zrpc.protocol.session import Session
from zrpc.wire.messages import TO_BROKER, TO_MEMBER, Hello, Message

EPOCH_MS = 1_790_000_000_000


def hello(name: str, **fields: Any) -> Hello:
    fields.setdefault("nonce", (hash(name) & 0xFFFFFF) + 1)
    fields.setdefault("address", f"memory://{name}")
    return Hello(name=name, **fields)


class Node:
    """One process: a session, its route, and all the news that it had."""

    def __init__(self, session: Session, route: bytes) -> None:
        self.session = session
        self.route = route
        self.news: list[News] = []
        self.is_frozen = False
        self.counts: Callable[[], Counts] = Counts

    def heard(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.news if isinstance(item, kind)]


class World:
    """A broker, its members, and what is on the wire between them."""

    def __init__(self, options: RegistryOptions | None = None, faults: random.Random | None = None) -> None:
        self.now = 1000.0
        self.options = options
        self.registry: Registry | None = Registry("test", EPOCH_MS, self.now, options)
        self.nodes: dict[bytes, Node] = {}
        self.faults = faults
        self.wire: list[tuple[str, bytes, Message, int, int]] = []
        self.broker_news: list[News] = []
        self._routes = 0
        self._nonces = 0

    # ------------------------------------------------------------------------------------------ actions

    def add(self, name: str, **fields: Any) -> Node:
        self._nonces += 1
        fields.setdefault("nonce", self._nonces)
        node = Node(Session(hello(name, **fields)), self._new_route())
        self.nodes[node.route] = node
        self._member(node, Start())
        self.deliver()
        return node

    def _new_route(self) -> bytes:
        self._routes += 1
        return b"route-%d" % self._routes

    def crash(self, node: Node) -> None:
        """Its process is killed: the broker sees the connection close."""
        del self.nodes[node.route]
        self.feed(RouteLoss(node.route))

    def reconnect(self, node: Node) -> None:
        """Its connection breaks and is made again, on a new route."""
        old = node.route
        del self.nodes[old]
        self._member(node, LinkChange("disconnected"))
        self.feed(RouteLoss(old))
        node.route = self._new_route()
        self.nodes[node.route] = node
        self._member(node, LinkChange("connected"))
        self.deliver()

    def restart_broker(self, after: float = 0.5, epoch_ms: int = EPOCH_MS + 60_000) -> None:
        """The broker is killed, and another one starts at its address."""
        self.registry = None
        self.wire.clear()
        for node in list(self.nodes.values()):
            self._member(node, LinkChange("disconnected"))
        self.run(after)
        options = dataclasses.replace(self.options or RegistryOptions(), is_successor=True)
        self.registry = Registry("test", epoch_ms, self.now, options)
        for node in list(self.nodes.values()):
            self.nodes.pop(node.route)
            node.route = self._new_route()
            self.nodes[node.route] = node
            if not node.is_frozen:
                self._member(node, LinkChange("connected"))
        self.deliver()

    def thaw(self, node: Node) -> None:
        """It runs again, and sees that its connection was renewed while it did not."""
        node.is_frozen = False
        if not node.session.connected:
            self._member(node, LinkChange("connected"))
            self.deliver()

    def command(self, node: Node, event: object) -> None:
        self._member(node, event)
        self.deliver()

    def feed(self, event: object) -> None:
        """Give the broker an event."""
        if self.registry is not None:
            self._perform_broker(self.registry.handle(event, self.now))
            self.deliver()

    # ------------------------------------------------------------------------------------------ the wire

    def _member(self, node: Node, event: object) -> None:
        for effect in node.session.handle(event, self.now):
            if isinstance(effect, Send):
                self.wire.append(("to broker", node.route, effect.message, node.session.id, node.session.incarnation))
            elif isinstance(effect, Announce):
                node.news.append(effect.news)
                if isinstance(effect.news, CountsWanted):
                    self._member(node, ShutdownWish(node.counts()))

    def _perform_broker(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.wire.append(("to member", effect.route, effect.message, -1, effect.incarnation))
            elif isinstance(effect, Broadcast):
                self.wire += [("to member", route, effect.message, -1, 0) for route in effect.routes]
            else:
                self.broker_news.append(effect.news)

    def deliver(self) -> None:
        """Everything on the wire arrives, in order unless there are faults."""
        while self.wire:
            faults = self.faults
            index = 0 if faults is None else faults.randrange(len(self.wire))
            item = self.wire[index]
            if faults is None or faults.random() > 0.15:
                del self.wire[index]  # otherwise it arrives now and again later
            if faults is not None and faults.random() < 0.15:
                continue
            self._arrive(*item)

    def _arrive(self, to: str, route: bytes, message: Message, sender: int, incarnation: int) -> None:
        body = message.to_body()
        if to == "to broker":
            if self.registry is not None:
                copy = TO_BROKER[message.KIND].from_body(body)
                self._perform_broker(self.registry.handle(Arrival(copy, route, sender, incarnation), self.now))
            return
        node = self.nodes.get(route)
        if node is not None and not node.is_frozen and incarnation in (0, node.session.incarnation):
            self._member(node, Arrival(TO_MEMBER[message.KIND].from_body(body)))

    # ------------------------------------------------------------------------------------------- time

    def run(self, seconds: float) -> None:
        """Let time pass, stopping at every deadline."""
        end = self.now + seconds
        while True:
            machines: list[Any] = [node.session for node in self.nodes.values() if not node.is_frozen]
            machines += [] if self.registry is None else [self.registry]
            deadlines = [deadline for machine in machines if (deadline := machine.next_deadline()) is not None]
            due = min(deadlines, default=end)
            if due >= end:
                self.now = end
                return
            self.now = max(self.now, due)
            for node in list(self.nodes.values()):
                deadline = node.session.next_deadline()
                if not node.is_frozen and deadline is not None and deadline <= self.now:
                    self._member(node, Tick())
            if self.registry is not None:
                deadline = self.registry.next_deadline()
                if deadline is not None and deadline <= self.now:
                    self._perform_broker(self.registry.handle(Tick(), self.now))
            self.deliver()

    # ------------------------------------------------------------------------------------------- checks

    def living(self) -> set[str]:
        assert self.registry is not None
        return {record.name for record in self.registry.book.living() if record.state == "up"}
