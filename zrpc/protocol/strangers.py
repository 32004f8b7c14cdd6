"""Lives that speak to a worker, or that it is to speak to, and that the broker has not announced to it.

Mostly the announcement is on its way. But a worker can join, call, and die before others hear that it was there: nobody is
ever told of its end, and what it held would be kept for ever. One rule: a stranger that is still one after `PATIENCE`
seconds with a broker is taken for lost. While there is no broker nobody can be announced, so that time does not count.

The same goes for the creator of a value that others ask for: its id and life stand in the value's id.
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
        self._known: dict[Peer, int] = {me: -1}  # with the life of each
        self._lost: dict[Peer, None] = {}
        self._since: dict[Peer, float] = {}
        self._creators: dict[tuple[int, int], float] = {}

    def __repr__(self) -> str:
        return f"<Strangers known={len(self._known)} strange={len(self._since) + len(self._creators)}>"

    def announce(self, peer: Peer, life: int = 0) -> None:
        """The broker says that this life is there."""
        self._known[peer] = life
        self._since.pop(peer, None)
        self._creators.pop((peer.worker_id, life), None)

    def meet(self, peer: Peer, now: float) -> bool:
        """There is to do with this life. True when its deadline is new."""
        if peer in self._known or peer in self._since or peer in self._lost:
            return False
        self._since[peer] = now
        return True

    def meet_creator(self, worker_id: int, life: int, now: float) -> None:
        """Somebody asks for a value that this life of a worker is to create here, or has created."""
        key = worker_id, life
        if key in self._creators or any(p.worker_id == worker_id and known == life for p, known in self._known.items()):
            return
        self._creators[key] = now

    def lose(self, peer: Peer) -> None:
        """This life is over."""
        self._known.pop(peer, None)
        self._since.pop(peer, None)
        self._lost[peer] = None
        if len(self._lost) > REMEMBERED:
            del self._lost[next(iter(self._lost))]

    def next_deadline(self) -> float | None:
        """When there is something to take."""
        first = min((*self._since.values(), *self._creators.values()), default=None)
        return None if first is None else first + PATIENCE

    def postpone(self, since: float) -> None:
        """There was no broker until `since`: nobody could be announced before."""
        self._since = {peer: max(at, since) for peer, at in self._since.items()}
        self._creators = {key: max(at, since) for key, at in self._creators.items()}

    def take_overdue(self, now: float) -> list[Peer]:
        """Those that have been strangers for too long; they are lost from now on, and the table is to be told so."""
        overdue = [peer for peer, since in self._since.items() if since + PATIENCE <= now]
        for peer in overdue:
            self.lose(peer)
        return overdue

    def take_creators(self, now: float) -> list[tuple[int, int]]:
        """Creators (worker id, life) that have not come; the table is to be told that they create nothing."""
        overdue = [key for key, since in self._creators.items() if since + PATIENCE <= now]
        for key in overdue:
            del self._creators[key]
        return overdue
