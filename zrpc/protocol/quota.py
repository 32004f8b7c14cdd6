"""How many names one peer may have: a host, by its own account, and a connection.

One rule: what is counted is let go of with the life, or the connection, that it belongs to, so nothing grows.

A member's key is that of all members, so a peer cannot be told from another one by it. What a hostile peer can claim is its
host, not its connection; `max_members` bounds them all.
"""

from __future__ import annotations

from collections import Counter

from zrpc.errors import TooManyNames


class NameQuota:
    """The names of living workers by host, and the names that came over each connection."""

    def __init__(self, per_host: int, per_connection: int) -> None:
        self._per_host = per_host
        self._per_connection = per_connection
        self._hosts: Counter[str] = Counter()
        self._host_of: dict[str, str] = {}
        self._routes: dict[bytes, set[str]] = {}

    def __repr__(self) -> str:
        return f"<NameQuota names={len(self._host_of)} hosts={len(self._hosts)} connections={len(self._routes)}>"

    def check(self, name: str, host: str, route: bytes) -> TooManyNames | None:
        """What there is to say against a new life of this name, from this host, over this connection."""
        if self._hosts[host] >= self._per_host and self._host_of.get(name) != host:
            return TooManyNames(f"host {host!r}", self._per_host, "names_per_host")
        names = self._routes.get(route, ())
        if len(names) >= self._per_connection and name not in names:
            return TooManyNames("this connection", self._per_connection, "names_per_connection")
        return None

    def begin(self, name: str, host: str, route: bytes) -> None:
        """A life of the name has begun."""
        self.end(name)
        self._hosts[host] += 1
        self._host_of[name] = host
        self._routes.setdefault(route, set()).add(name)

    def end(self, name: str) -> None:
        """The life of the name is over."""
        host = self._host_of.pop(name, None)
        if host is not None:
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]

    def close(self, route: bytes) -> None:
        """A connection is closed."""
        self._routes.pop(route, None)
