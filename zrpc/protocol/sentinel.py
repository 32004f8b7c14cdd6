"""Whether a peer that we wait for can still answer, seen from this worker alone: without the broker, or against it.

One rule: only what the operating systems say of a connection counts. A connection that broke and does not come back means
that the process has ended, is stopped, or is cut off; in each case no reply to an earlier call can come any more, as
replies go back along the connection that the call came on. It says nothing of the peer's life: that is the broker's to
say, and references that the peer holds are kept until it does.

    state      event                      next state
    ---------  -------------------------  ---------------------------------------------------
    opening    connected                  standing
    opening    refused twice              doubtful   from now on `GRACE` seconds
    opening    `OPENING_PATIENCE` over    lost
    standing   disconnected, refused      doubtful
    doubtful   connected                  standing
    doubtful   its time is over           lost

'denied' changes nothing: a process whose interpreter is busy cannot finish a handshake, and lives. For the same reason a
new connection that is taken and then left without an answer, or closed, is given time. One refusal is none: ZeroMQ says the
same when the system has let an attempt run out, because the peer does not come to accept what waits at its socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GRACE: Final = 0.8
"""Seconds that a broken connection has to come back. With ZeroMQ's heartbeats (2 s at most until it breaks) a peer that
does not answer any more is given up within 3 s, and one whose process has ended within 1 s."""

OPENING_PATIENCE: Final = 30.0
"""Seconds that a new connection has to stand. As long as the broker waits for a member that is connected and silent."""

REFUSED_AGAIN: Final = 1.0
"""Seconds within which a second refusal shows that the first was one: the next attempt comes after 50 ms, and an attempt
that runs out takes 1.5 s."""

OPENING: Final = "opening"
STANDING: Final = "standing"
DOUBTFUL: Final = "doubtful"
LOST: Final = "lost"

TRANSITIONS: Final[Mapping[tuple[str, str], str]] = {
    (OPENING, "connected"): STANDING,
    (OPENING, "refused"): DOUBTFUL,
    (STANDING, "disconnected"): DOUBTFUL,
    (STANDING, "refused"): DOUBTFUL,
    (DOUBTFUL, "connected"): STANDING,
}

REASONS: Final[Mapping[str, str]] = {
    "disconnected": "its connection broke and did not come back",
    "refused": "nobody listens at its address any more",
}


class Sentinel:
    """One peer's connection, as its events tell of it."""

    def __init__(self, now: float) -> None:
        self.state = OPENING
        self.why = "it takes connections, and does not answer"
        self._until: float | None = now + OPENING_PATIENCE
        self._refused_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Sentinel {self.state}{' ' + self.why if self.why else ''}>"

    def next_deadline(self) -> float | None:
        """When `tick` has something to say."""
        return self._until

    def note(self, what: str, now: float) -> None:
        """An event of the connection. What is in no row of the table changes nothing, but for the reason."""
        if self.state == DOUBTFUL and what in REASONS:
            self.why = REASONS[what]
        state = TRANSITIONS.get((self.state, what))
        if state is None:
            return
        if self.state == OPENING and what == "refused" and now > self._refused_at + REFUSED_AGAIN:
            self._refused_at = now
            return
        self.state = state
        self.why = REASONS.get(what, "")
        self._until = now + GRACE if state == DOUBTFUL else None

    def tick(self, now: float) -> bool:
        """Whether the peer has been given up, now."""
        if self._until is None or now < self._until:
            return False
        self.state = LOST
        self._until = None
        return True
