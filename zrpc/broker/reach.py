"""What a process that joins has seen of the brokers' addresses, and when that is reason to give up.

One rule: it gives up only by what holds for all addresses: while one of them may yet be answered, the others say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

DENIED_PATIENCE: Final = 2.0
"""Seconds of denied handshakes after which joining gives up: a wrong key does not become right by waiting, while a
broker that ends in the middle of a handshake looks the same for a moment. One that is stopped (SIGSTOP) does so too, each
time that a handshake has taken too long, which is more than this: such ones do not count."""


class Reach:
    """The last that was seen of each address. `addresses` gives those that there are connections to."""

    def __init__(self, addresses: Callable[[], Iterable[str]]) -> None:
        self._addresses = addresses
        self._lost: dict[str, float] = {}
        self._denied: dict[str, tuple[float, float]] = {}
        """Times of the first and of the last of denied handshakes that follow one another."""
        self.last = ""
        """What was seen last, of whichever address; empty: nothing."""

    def note(self, address: str, what: str, now: float) -> None:
        """An event of a connection, as `Link.events` has them."""
        self.last = what
        if what == "connected":
            self._lost.pop(address, None)
        else:
            self._lost.setdefault(address, now)
        if what != "denied":
            self._denied.pop(address, None)
            return
        first, last = self._denied.get(address, (now, now))
        self._denied[address] = (now, now) if now > last + DENIED_PATIENCE else (first, now)

    def lost_since(self) -> float | None:
        """Since when nobody is reached at any of the addresses; None: somebody is, or may be."""
        times = [self._lost.get(address) for address in self._addresses()]
        return _latest(times)

    def denied_until(self) -> float | None:
        """When to give up because all addresses deny the handshake, again and again; None when they do not."""
        pairs = [self._denied.get(address) for address in self._addresses()]
        first = _latest([pair[0] if pair is not None and pair[1] > pair[0] else None for pair in pairs])
        return None if first is None else first + DENIED_PATIENCE


def _latest(times: list[float | None]) -> float | None:
    """The latest of all these, None where one is missing."""
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None
