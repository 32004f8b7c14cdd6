"""A broker of a simulated cluster: in charge, standing by for another one, or dead for a while.

One rule: this is the driver that `zrpc.broker.server` is for real: it feeds the machine, and performs what that decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Effect,
    PeerArrival,
    PeerChange,
    RouteLoss,
    Seek,
    Send,
    SteppedDown,
    Tell,
    Tick,
    TookOver,
)
from zrpc.protocol.membership import UP, RegistryOptions
from zrpc.protocol.registry import Registry
from zrpc.protocol.seat import Seat
from zrpc.testing.simulation.lines import Line, Speaker
from zrpc.wire.messages import Message
from zrpc.wire.succession import STANDBY_READS

if TYPE_CHECKING:
    from zrpc.testing.simulation.brokers import Brokers

EPOCH_MS = 1_790_000_000_000


class Broker(Speaker):
    """The broker at one address, in all its lives."""

    def __init__(self, brokers: Brokers, address: str) -> None:
        super().__init__()
        self.brokers = brokers
        self.network = brokers.network
        self.address = address
        self.seat: Seat | None = None
        self.guests: dict[bytes, Line] = {}
        """Connections to it that stand, by route."""
        self.stops = 0
        """How often it was stopped."""
        self._wake_at: float | None = None

    def __repr__(self) -> str:
        return f"<{self.address} {self.seat or 'dead'}>"

    # ------------------------------------------------------------------------------------------ its life

    def start(self, follows: str, run: int) -> None:
        """Start a broker here: the first one, or the successor of one that is gone. `run` counts all starts."""
        now = self.network.now
        # On the wall clock, brokers start seconds apart: lives given by one are told from the next one's by seconds.
        epoch_ms = EPOCH_MS + int(now * 1000) + run * 2000
        options = RegistryOptions(is_successor=run > self.brokers.count, small=self.network.schedule.small)
        self.seat = Seat("simulated", epoch_ms, now, options, follows)
        self.seat.address = self.address
        self._wake_at = None
        self.network.note(f"{self.address} starts{', to stand by for ' + follows if follows else ''}")
        if follows:
            self.brokers.open(self, follows)
        self._sleep()

    def kill(self) -> None:
        """It is killed: all connections break."""
        self.network.note(f"{self.address} dies")
        self.seat = None
        self.is_frozen = False
        self.inbox.clear()
        self.close_lines()
        for line in list(self.guests.values()):
            line.break_off(tells_broker=False)

    @property
    def is_running(self) -> bool:
        """Whether there is a process, stopped or not."""
        return self.seat is not None

    @property
    def registry(self) -> Registry | None:
        """The members, while it is in charge."""
        return None if self.seat is None else self.seat.registry

    @property
    def knows(self) -> bool:
        """Whether it could go on with what the cluster knows."""
        if self.seat is None:
            return False
        return self.seat.standby is None or self.seat.standby.is_synced

    def living(self) -> dict[str, tuple[int, int]]:
        """Who is up, as it knows it: id and incarnation by name."""
        registry = self.registry
        if registry is not None:
            return {r.name: (r.id, r.incarnation) for r in registry.book.living() if r.state == UP}
        standby = None if self.seat is None else self.seat.standby
        entries = {} if standby is None else standby.entries
        return {e.name: (e.id, e.incarnation) for e in entries.values() if e.state == UP}

    # -------------------------------------------------------------------------------------- what it hears

    def take(self, what: Callable[..., None], *args: Any) -> None:
        """Something has come; it is read when the process runs."""
        if self.is_frozen:
            self.inbox.append((what, args))
        else:
            what(*args)

    def on_request(self, route: bytes, message: Message, sender: int, incarnation: int) -> None:
        """A message came in by a connection to it."""
        self.feed(Arrival(message, route, sender, incarnation))

    def on_loss(self, route: bytes) -> None:
        """A connection to it is gone."""
        self.feed(RouteLoss(route))

    def on_change(self, address: str, what: str) -> None:
        """Its connection to the other broker has changed."""
        self.feed(PeerChange(what))

    def on_message(self, address: str, message: Message, incarnation: int) -> None:
        """The other broker has said something."""
        if message.KIND in STANDBY_READS:
            self.feed(PeerArrival(message))

    # ------------------------------------------------------------------------------------------- its machine

    def feed(self, event: object) -> None:
        """Give the machine an event."""
        if self.seat is not None:
            self._perform(self.seat.handle(event, self.network.now))
            self.brokers.check()
            self._sleep()

    def go_on(self) -> None:
        """It was stopped, and goes on: what came meanwhile is before it, and timers are late."""
        self.network.thaw(self)
        self._wake_at = None
        self._sleep()

    def _sleep(self) -> None:
        due = None if self.seat is None else self.seat.next_deadline()
        if due is not None and (self._wake_at is None or due < self._wake_at):
            self._wake_at = due
            self.network.at(max(0.0, due - self.network.now), self._wake, due, self.seat)

    def _wake(self, due: float, seat: Seat) -> None:
        if seat is not self.seat or self.is_frozen:
            return
        if self._wake_at == due:
            self._wake_at = None
        deadline = seat.next_deadline()
        if deadline is not None and deadline <= self.network.now:
            self.feed(Tick())
        else:
            self._sleep()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Announce):
                self.network.note(f"{self.address}: {effect.news}")
                if isinstance(effect.news, (TookOver, SteppedDown)):
                    self.brokers.note_news(self, effect.news)
            elif isinstance(effect, Send):
                self._send(effect.route, effect.message, effect.incarnation)
            elif isinstance(effect, Broadcast):
                for route in effect.routes:
                    self._send(route, effect.message, 0)
            elif isinstance(effect, Tell):
                for line in list(self.lines.values()):
                    line.send(effect.message, -1, 0)
            elif isinstance(effect, Seek):
                self.close_lines()
                if effect.address:
                    self.brokers.open(self, effect.address)

    def _send(self, route: bytes, message: Message, incarnation: int) -> None:
        line = self.guests.get(route)
        if line is not None:
            line.answer(message, incarnation)
