"""Watches the peers that a call has waited for a while for, so that no call waits for one that cannot answer.

One rule: a peer is watched only while calls wait for it, or the broker is away; the machine in `protocol.sentinel` decides.

The broker notices deaths too, and mostly first. This is for when the broker is away, and for a network that is cut between
two workers only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from zrpc.clock import Clock, earliest
from zrpc.errors import ZrpcError
from zrpc.protocol.calls import WorkerKey
from zrpc.protocol.sentinel import STANDING, Sentinel
from zrpc.runtime.caller import Caller
from zrpc.runtime.peers import PeerBook
from zrpc.runtime.receiver import Receiver, Source
from zrpc.transport.base import Link, Transport
from zrpc.transport.watch import LinkWatch

LOOK: float = 0.5
"""Seconds between two looks at who is waited for. Who is at two looks in a row is watched."""
KEEP: int = 10
"""Looks without a call after which a peer is watched no more."""


class _Post:
    """A peer that is watched."""

    __slots__ = ("idle", "link", "sentinel", "source")

    def __init__(self, link: Link, now: float) -> None:
        self.link = link
        self.sentinel = Sentinel(now)
        self.source: Source | None = None
        self.idle = 0


class Vigil:
    """A timer of the receiver's. `give_up(key, why)` is called when a peer cannot answer any more."""

    def __init__(
        self,
        transport: Transport,
        peers: PeerBook,
        caller: Caller,
        receiver: Receiver,
        give_up: Callable[[WorkerKey, str], None],
        has_broker: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._peers = peers
        self._caller = caller
        self._receiver = receiver
        self._give_up = give_up
        self._has_broker = has_broker
        self._clock = clock
        self._look_at = clock() + LOOK
        self._seen: set[WorkerKey] = set()
        # A timer that is slow loses the turn, and is called by another thread meanwhile: one of them looks at a time, and
        # the map is replaced, never changed, so that it can be read without a lock.
        self._posts: dict[WorkerKey, _Post] = {}
        self._changing = threading.Lock()
        self._looking = threading.Lock()

    def __repr__(self) -> str:
        return f"<Vigil {self._posts}>"

    def standing(self) -> list[WorkerKey]:
        """Who is watched now, by a connection that stands."""
        return [key for key, post in self._posts.items() if post.sentinel.state == STANDING]

    def next_deadline(self) -> float | None:
        return earliest(self._look_at, *(post.sentinel.next_deadline() for post in self._posts.values()))

    def on_timer(self, now: float) -> None:
        if not self._looking.acquire(blocking=False):
            return
        try:
            for key, post in self._posts.items():
                if post.sentinel.tick(now):
                    self._close(key)
                    self._give_up(key, post.sentinel.why)
            if now >= self._look_at:
                self._look_at = now + LOOK
                self._look()
        finally:
            self._looking.release()

    def close(self) -> None:
        for key in self._posts:
            self._close(key)

    def _look(self) -> None:
        waited_for = self._caller.waits_for()
        if not self._has_broker():
            # A connection that stood before its peer was stopped tells of it within 2 s, a new one cannot.
            waited_for |= self._peers.spoken_to()
            self._seen = waited_for
        for key in waited_for & self._seen:
            if key not in self._posts:
                self._open(key)
        for key, post in self._posts.items():
            post.idle = 0 if key in waited_for else post.idle + 1
            if post.idle > KEEP:
                self._close(key)
        self._seen = waited_for

    def _open(self, key: WorkerKey) -> None:
        peer = self._peers.find_life(key)
        if peer is None or peer.is_self:
            return
        try:
            link = self._transport.sentinel(peer.address)
        except ZrpcError:  # no descriptor is left; the next look tries again
            return
        monitor = link.monitor_fileno()
        assert monitor is not None
        post = _Post(link, self._clock())
        with self._changing:
            self._posts = {**self._posts, key: post}
        watch = LinkWatch(link, monitor)
        post.source = self._receiver.add(watch, lambda what: post.sentinel.note(what, self._clock()))

    def _close(self, key: WorkerKey) -> None:
        with self._changing:
            posts = dict(self._posts)
            post = posts.pop(key, None)
            self._posts = posts
        if post is not None:
            if post.source is not None:
                self._receiver.remove(post.source)
            post.link.close()
