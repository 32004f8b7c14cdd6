"""Which broker a member speaks with: one of several while it joins, then the one in charge, and the next one after that.

One rule: a member goes over to another broker only when that one is in charge with a higher epoch. Until then it says to
the others that it has lost its own (VOTE), and goes on to try that.

    while it joins     HELLO goes to all that are known; whoever answers is its broker. A standby says ELSEWHERE
    while it is in     one connection, to its broker
    its broker lost    for a heartbeat: the others are connected, and told so, until one is in charge or its own is back
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zrpc.clock import earliest
from zrpc.protocol.effects import (
    Arrival,
    CloseLine,
    Dispatch,
    Effect,
    LineArrival,
    LineChange,
    LinkChange,
    OpenLine,
    Send,
    Tick,
)
from zrpc.protocol.session import MEMBER_STATES, Session
from zrpc.wire.messages import Challenge, GroupProgress, Message, Refusal, Welcome
from zrpc.wire.succession import Elsewhere, Vote

ANSWERS: Final = (Welcome, Refusal, GroupProgress, Challenge)
"""What a broker in charge answers to HELLO."""
MAX_KNOWN: Final = 8
"""Addresses that are remembered."""


class Allegiance:
    """A session, and the brokers at `addresses`, to which its owner has connections already."""

    def __init__(self, session: Session, addresses: Sequence[str]) -> None:
        self.session = session
        self.known = list(dict.fromkeys(addresses))
        self.current = self.known[0] if len(self.known) == 1 else ""
        self._lines: dict[str, bool] = dict.fromkeys(self.known, True)
        """Connections: whether they stand, as far as is known."""
        self._called = 0
        """The epoch of the broker that we went over to last, whether it has welcomed us or not."""
        self._lost_since: float | None = None
        self._vote_at: float | None = None
        self._voting = False

    def __repr__(self) -> str:
        return f"<Allegiance {self.current or 'to nobody'}{' lost' if self._lost_since is not None else ''}>"

    def next_deadline(self) -> float | None:
        """When `Tick` is due."""
        return earliest(self.session.next_deadline(), self._vote_at)

    def handle(self, event: object, now: float) -> list[Effect]:
        """Take an event of a session, or one of a connection. Raises as `Session.handle`."""
        if isinstance(event, LineArrival):
            effects = self._on_arrival(event.address, event.message, now)
        elif isinstance(event, LineChange):
            effects = self._on_change(event.address, event.what, now)
        else:
            effects = self.session.handle(event, now)
            if isinstance(event, Tick) and self._vote_at is not None and now >= self._vote_at:
                effects += self._look_elsewhere(now)
        self._learn()
        return [self._addressed(effect) for effect in effects]

    def _addressed(self, effect: Effect) -> Effect:
        if not isinstance(effect, Send):
            return effect
        if self.current:
            return Dispatch(effect.message, (self.current,))
        standing = tuple(address for address, stands in self._lines.items() if stands)
        return Dispatch(effect.message, standing or tuple(self._lines))

    @property
    def _is_member(self) -> bool:
        return self.session.state in MEMBER_STATES

    @property
    def _epoch(self) -> int:
        return max(self.session.epoch, self._called)

    def _learn(self) -> None:
        """The broker tells where its standby is."""
        standby = self.session.standby
        if standby and standby not in self.known and len(self.known) < MAX_KNOWN:
            self.known.append(standby)

    # --------------------------------------------------------------------------------------- what we hear

    def _on_arrival(self, address: str, message: Message, now: float) -> list[Effect]:
        if isinstance(message, Elsewhere):
            return self._on_elsewhere(address, message, now)
        if not self.current and isinstance(message, ANSWERS):
            return [*self._choose(address), *self.session.handle(Arrival(message), now)]
        if address == self.current:
            # What was sent before the connection broke may be read after that: it says nothing of a broker that is lost.
            back = self._stay() if self._lines.get(address) else []
            return [*back, *self.session.handle(Arrival(message), now)]
        if (
            address in self._lines
            and isinstance(message, Challenge)
            and self._is_member
            and message.epoch > self._epoch
        ):
            self._called = message.epoch
            return self._go_over(address, now)
        return []

    def _choose(self, address: str) -> list[Effect]:
        self.current = address
        self._lost_since = self._vote_at = None
        return self._close_others()

    def _stay(self) -> list[Effect]:
        """Our broker has spoken: it is not lost."""
        self._lost_since = self._vote_at = None
        if not self._voting:
            return []
        self._voting = False
        others = tuple(address for address in self._lines if address != self.current)
        return [Dispatch(Vote(self._epoch, False), others), *self._close_others()]

    def _go_over(self, address: str, now: float) -> list[Effect]:
        """The broker at `address` is in charge now."""
        self._voting = False
        effects = [] if not self.session.connected else self.session.handle(LinkChange("disconnected"), now)
        effects += self._choose(address)
        return effects + self.session.handle(LinkChange("connected"), now)

    def _close_others(self) -> list[Effect]:
        others = [address for address in self._lines if address != self.current]
        for address in others:
            del self._lines[address]
        return [CloseLine(address) for address in others]

    def _on_elsewhere(self, address: str, message: Elsewhere, now: float) -> list[Effect]:
        if message.address and message.address not in self.known and len(self.known) < MAX_KNOWN:
            self.known.append(message.address)
        if self.current == "":
            return self._open_all()
        if address != self.current:
            return []
        if not self._is_member:  # it waited for its group there
            self.current = ""
            return self._open_all()
        if self._lost_since is None:
            self._lost_since = now
        return [] if self._voting else self._look_elsewhere(now)

    # --------------------------------------------------------------------------------------- connections

    def _on_change(self, address: str, what: str, now: float) -> list[Effect]:
        if address not in self._lines:
            return []
        stands = what == "connected"
        self._lines[address] = stands
        if self.current and address != self.current:
            return [Dispatch(Vote(self._epoch), (address,))] if stands and self._voting else []
        if not self.current:
            return self.session.handle(LinkChange(what), now) if stands or not any(self._lines.values()) else []
        if not stands and self._lost_since is None and len(self.known) > 1:
            self._lost_since = now
            self._vote_at = now + self.session.heartbeat_interval
        return self.session.handle(LinkChange(what), now)

    def _look_elsewhere(self, now: float) -> list[Effect]:
        """Our broker has been lost for long enough: connect to the others, and tell them so."""
        if not self._is_member:
            self._vote_at = None
            if self.session.state != "joining":
                return []
            self.current = ""
            return self._open_all()
        self._voting = True
        self._vote_at = now + self.session.heartbeat_interval / 2
        standing = tuple(a for a, stands in self._lines.items() if stands and a != self.current)
        votes: list[Effect] = [Dispatch(Vote(self._epoch), standing)] if standing else []
        return [*votes, *self._open_all()]

    def _open_all(self) -> list[Effect]:
        fresh = [address for address in self.known if address not in self._lines]
        for address in fresh:
            self._lines[address] = False
        return [OpenLine(address) for address in fresh]
