"""Lives that speak to a worker, or that it is to speak to, and that the broker has not announced to it.

Mostly the announcement is on its way. But a worker can join, call, and die before others hear that it was there: nobody is
ever told of its end, and what it held would be kept for ever. One rule: a stranger that is still one after `PATIENCE`
seconds is taken for lost.
"""

from __future__ import annotations

from typing import Final

from zrpc.protocol.outbox import Peer

PATIENCE: Final = 10.0
"""Seconds: several times the retry of a control message, and far longer than an announcement takes."""
REMEMBERED: Final = 65_536
"""Lives that are remembered to be lost."""


class Strangers:
    """Who is announced, and since when the others are waited for."""

    def __init__(self, me: Peer) -> None:
        self._known = {me}
        self._lost: dict[Peer, None] = {}
        self._since: dict[Peer, float] = {}

    def __repr__(self) -> str:
        return f"<Strangers known={len(self._known)} strange={len(self._since)}>"

    def announce(self, peer: Peer) -> None:
        """The broker says that this life is there."""
        self._known.add(peer)
        self._since.pop(peer, None)

    def meet(self, peer: Peer, now: float) -> bool:
        """There is to do with this life. True when its deadline is new."""
        if peer in self._known or peer in self._since or peer in self._lost:
            return False
        self._since[peer] = now
        return True

    def lose(self, peer: Peer) -> None:
        """This life is over."""
        self._known.discard(peer)
        self._since.pop(peer, None)
        self._lost[peer] = None
        if len(self._lost) > REMEMBERED:
            del self._lost[next(iter(self._lost))]

    def next_deadline(self) -> float | None:
        """When `take_overdue` has something to take."""
        return min(self._since.values()) + PATIENCE if self._since else None

    def take_overdue(self, now: float) -> list[Peer]:
        """Those that have been strangers for too long; they are lost from now on, and the table is to be told so."""
        overdue = [peer for peer, since in self._since.items() if since + PATIENCE <= now]
        for peer in overdue:
            self.lose(peer)
        return overdue
