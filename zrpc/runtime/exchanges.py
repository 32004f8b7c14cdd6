"""Exchanges: one synchronous call on a lane, from its request to its reply.

One rule: the calling thread sends and receives itself, and nobody else touches the lane meanwhile but to wake it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from zrpc.clock import Clock, monotonic, time_left
from zrpc.errors import WorkerLost
from zrpc.ids import WorkerInfo
from zrpc.runtime.scopes import Scope
from zrpc.transport.base import Frames, Link
from zrpc.transport.local import LocalLink
from zrpc.transport.poller import Ear
from zrpc.wire.envelope import Envelope, unpack
from zrpc.wire.limits import Limits

Handler = Callable[[Envelope], None]


class Life(Protocol):
    """The peer, as an exchange with it sees it."""

    info: WorkerInfo
    lost: str | None


class Lane:
    """A connection for one synchronous call at a time."""

    def __init__(self, link: Link, limits: Limits, spin: float = 0.0) -> None:
        self.link = link
        try:
            self.ear = Ear(link, spin)
        except OSError:  # no descriptor is left
            link.close()
            raise
        self._limits = limits

    def exchange(
        self,
        frames: Frames,
        message_id: int,
        deadline: float | None,
        peer: Life,
        late: Handler,
        clock: Clock = monotonic,
        scope: Scope | None = None,
    ) -> Envelope | None:
        """Send, and wait for the reply to `message_id`; None when the deadline passed first.

        Replies to earlier calls go to `late`. Raises `WorkerLost` when the peer is lost meanwhile, `Cancelled` when the
        scope is cancelled that the call is made in.
        """
        link = self.link
        link.send(frames)
        while True:
            received = link.receive()
            if received is not None:
                envelope = unpack(received, self._limits)
                if envelope.message_id == message_id:
                    return envelope
                late(envelope)
                continue
            if peer.lost is not None:
                raise WorkerLost(peer.info.name, peer.lost, "waiting for its reply")
            if scope is not None:
                scope.check()
            left = time_left(deadline, clock())
            if left == 0.0:
                return None
            if not link.is_busy:
                self.ear.wait(left)

    def close(self) -> None:
        self.ear.close()
        self.link.close()


class LocalLane(Lane):
    """A lane to a process of this host."""

    link: LocalLink

    def exchange(
        self,
        frames: Frames,
        message_id: int,
        deadline: float | None,
        peer: Life,
        late: Handler,
        clock: Clock = monotonic,
        scope: Scope | None = None,
    ) -> Envelope | None:
        """As `Lane.exchange`. Raises `RouteGone` when the lane has ended, and nothing was sent."""
        link = self.link
        link.send(frames)
        is_writing = link.has_backlog()
        if is_writing:
            self.ear.watch_writing(True)
        is_deaf = False
        while True:
            left = time_left(deadline, clock())
            if left == 0.0:
                return None
            self.ear.wait(left)
            received = link.take()
            if received is not None:
                envelope = unpack(received, self._limits)
                if envelope.message_id == message_id:
                    return envelope
                late(envelope)
            if is_writing:
                link.flush()
                is_writing = link.has_backlog()
                if not is_writing:
                    self.ear.watch_writing(False)
            if peer.lost is not None:
                raise WorkerLost(peer.info.name, peer.lost, "waiting for its reply")
            if scope is not None:
                scope.check()
            if link.is_ended and not is_deaf:
                is_deaf = True
                self.ear.ignore_source()  # a sign of death, but the broker decides: wait for its word
