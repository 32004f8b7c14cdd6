"""The events of a link's connection, as something to receive from.

One rule: it adds nothing to what the link says.
"""

from __future__ import annotations

from zrpc.transport.base import Link


class LinkWatch:
    """The connection events of a link, as an input: `receive` returns one, or None when there is none now."""

    def __init__(self, link: Link, fd: int) -> None:
        self._link = link
        self._fd = fd
        self._events: list[str] = []

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> str | None:
        if not self._events:
            self._events = self._link.events()
        return self._events.pop(0) if self._events else None
