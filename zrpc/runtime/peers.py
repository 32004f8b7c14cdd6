"""Other workers, as this one reaches them: a link for what is asynchronous, lanes for synchronous calls.

One rule: a `Peer` is one life of one worker. When the broker says that life is over, the peer is lost for good; the next
life of the name is another peer.

A synchronous call borrows a *lane*: a connection of its own, on which the calling thread itself sends and receives. Its
reply then wakes that thread and nobody else; handing it over from the receiving thread would cost about 50 microseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from zrpc.clock import Clock, monotonic, time_left
from zrpc.errors import UnknownWorker, WorkerLost, ZrpcError
from zrpc.ids import WorkerInfo
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.receiver import Receiver, Source
from zrpc.runtime.scopes import Scope
from zrpc.transport.base import Frames, Link, Transport
from zrpc.transport.poller import Ear
from zrpc.wire.envelope import Envelope, unpack
from zrpc.wire.limits import Limits

IDLE_LANES = 8
"""Unused lanes kept for each peer; more are closed when they come back."""

STRAY_LANES = 16
"""Lanes kept for each peer whose call ended before its reply came."""

Handler = Callable[[Envelope], None]


@dataclass(frozen=True, slots=True)
class Address:
    """Where one life of a worker is reached."""

    info: WorkerInfo
    incarnation: int
    address: str


class Directory(Protocol):
    """Who is in the cluster; the broker's client is one."""

    def find_name(self, name: str) -> Address | None: ...

    def find_id(self, worker_id: int) -> Address | None: ...

    def names(self) -> list[str]: ...

    def refresh(self, name: str | int, timeout: float) -> Address | None:
        """Ask the broker about somebody that is not known here (yet)."""


class Lane:
    """A connection for one synchronous call at a time."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self.link = link
        try:
            self.ear = Ear(link)
        except OSError:  # no descriptor is left
            link.close()
            raise
        self._limits = limits

    def exchange(
        self,
        frames: Frames,
        message_id: int,
        deadline: float | None,
        peer: Peer,
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
            self.ear.wait(left)

    def close(self) -> None:
        self.ear.close()
        self.link.close()


class Peer:
    """One life of another worker. Safe to use from any thread."""

    def __init__(self, book: PeerBook, where: Address) -> None:
        self.info = where.info
        self.incarnation = where.incarnation
        self.address = where.address
        self.key: WorkerKey = (where.info.id, where.incarnation)
        self.lost: str | None = None
        self._book = book
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._source: Source | None = None
        self._idle: list[Lane] = []
        self._busy: set[Lane] = set()
        self._strays: list[tuple[Lane, Source]] = []

    def __repr__(self) -> str:
        state = "up" if self.lost is None else f"lost: {self.lost}"
        return f"<Peer {self.info.name} id={self.info.id} incarnation={self.incarnation} {state}>"

    is_self = False

    def send(self, frames: Frames) -> None:
        """Send on the asynchronous link. Raises `WorkerLost` when the peer is lost."""
        link = self._link
        if link is None:
            link = self._connect()
        if self.lost is not None:
            raise WorkerLost(self.info.name, self.lost, "sending to it")
        if link.send(frames) and self._source is not None:
            self._book.receiver.nudge(self._source)

    def _connect(self) -> Link:
        with self._lock:
            if self._link is None:
                if self.lost is not None:
                    raise WorkerLost(self.info.name, self.lost, "connecting to it")
                link = self._book.transport.connect(self.address, "member")
                self._source = self._book.receiver.add(link, self._book.on_frames)
                self._link = link
            return self._link

    def borrow_lane(self) -> Lane:
        """A lane for one synchronous call; give it back with `return_lane` or `abandon_lane`."""
        with self._lock:
            if self.lost is not None:
                raise WorkerLost(self.info.name, self.lost, "calling it")
            lane = self._idle.pop() if self._idle else None
            if lane is None:
                lane = Lane(self._book.transport.connect(self.address, "member"), self._book.limits)
            self._busy.add(lane)
            return lane

    def return_lane(self, lane: Lane) -> None:
        with self._lock:
            self._busy.discard(lane)
            if self.lost is None and len(self._idle) < IDLE_LANES:
                self._idle.append(lane)
                return
        lane.close()

    def abandon_lane(self, lane: Lane) -> None:
        """The call on it ended before its reply came. The receiver listens for that, then closes the lane.

        Not every such reply comes (a call that was late already is not started), so only the newest are listened for.
        """

        def on_late(frames: Any) -> None:
            self._book.on_frames(frames)
            self._drop_stray(lane)

        with self._lock:
            self._busy.discard(lane)
            is_lost = self.lost is not None
            if not is_lost:
                self._strays.append((lane, self._book.receiver.add(lane.link, on_late)))
            surplus = self._strays[:-STRAY_LANES]
        if is_lost:
            lane.close()
        for stray, _ in surplus:
            self._drop_stray(stray)

    def _drop_stray(self, lane: Lane) -> None:
        with self._lock:
            found = [pair for pair in self._strays if pair[0] is lane]
            self._strays = [pair for pair in self._strays if pair[0] is not lane]
        for stray, source in found:
            self._book.receiver.remove(source)
            stray.close()

    def lose(self, why: str) -> None:
        """The peer's life is over: wake whoever waits on a lane, close the rest."""
        with self._lock:
            if self.lost is not None:
                return
            self.lost = why
            link, source, self._link = self._link, self._source, None
            idle, self._idle = self._idle, []
            strays, self._strays = self._strays, []
            for lane in self._busy:
                lane.ear.wake()
        if source is not None:
            self._book.receiver.remove(source)
        for stray, stray_source in strays:
            self._book.receiver.remove(stray_source)
            stray.close()
        for lane in idle:
            lane.close()
        if link is not None:
            link.close()


class LoopbackPeer(Peer):
    """This worker, as a peer of itself: messages go straight to the handler, on the pool."""

    is_self = True

    def __init__(self, book: PeerBook, where: Address, deliver: Callable[[Frames], None]) -> None:
        super().__init__(book, where)
        self._deliver = deliver

    def send(self, frames: Frames) -> None:
        if self.lost is not None:
            raise WorkerLost(self.info.name, self.lost, "sending to it")
        self._deliver(frames)


class PeerBook:
    """All peers, by name, id and life."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        receiver: Receiver,
        on_frames: Callable[[Any], None],
        limits: Limits,
    ) -> None:
        self.transport = transport
        self.receiver = receiver
        self.on_frames = on_frames
        self.limits = limits
        self._directory = directory
        self._lock = threading.Lock()
        self._peers: dict[WorkerKey, Peer] = {}
        self._by_name: dict[str, Peer] = {}
        self._by_id: dict[int, Peer] = {}
        self._gone: dict[str | int, tuple[WorkerInfo, str]] = {}

    def add_self(self, peer: LoopbackPeer) -> None:
        with self._lock:
            self._remember(peer)

    def _remember(self, peer: Peer) -> None:
        self._peers[peer.key] = peer
        self._by_name[peer.info.name] = peer
        self._by_id[peer.info.id] = peer
        self._gone.pop(peer.info.name, None)
        self._gone.pop(peer.info.id, None)

    def note_gone(self, info: WorkerInfo, why: str) -> None:
        """Remember that a worker was here, and why it is not any more."""
        self._gone[info.name] = self._gone[info.id] = info, why

    def find_gone(self, to: str | int | WorkerInfo) -> tuple[WorkerInfo, str] | None:
        """Which worker that was, and why it is gone; None for one that was never here."""
        return self._gone.get(to.name if isinstance(to, WorkerInfo) else to)

    def find(self, to: str | int | WorkerInfo, timeout: float = 2.0) -> Peer:
        """The peer of that name, id or info. Raises `UnknownWorker`, after asking the broker for at most `timeout`."""
        if type(to) is str:
            peer = self._by_name.get(to)
        elif isinstance(to, WorkerInfo):
            peer = self._by_id.get(to.id)
            to = to.name if peer is None else to
        elif type(to) is int:
            peer = self._by_id.get(to)
        else:
            raise ZrpcError(f"a worker is named by its name, id or WorkerInfo, not by {type(to).__name__} {to!r}")
        if peer is not None and peer.lost is None:
            return peer
        assert not isinstance(to, WorkerInfo) or peer is not None
        return self._look_up(to.name if isinstance(to, WorkerInfo) else to, timeout)

    def _look_up(self, to: str | int, timeout: float) -> Peer:
        directory = self._directory
        where = directory.find_name(to) if isinstance(to, str) else directory.find_id(to)
        if where is None:
            where = directory.refresh(to, timeout)
        if where is None:
            raise UnknownWorker(to, directory.names())
        return self._enter(where)

    def _enter(self, where: Address) -> Peer:
        key = (where.info.id, where.incarnation)
        with self._lock:
            peer = self._peers.get(key)
            if peer is None:
                peer = Peer(self, where)
                self._remember(peer)
            return peer

    def find_life(self, key: WorkerKey) -> Peer | None:
        """The peer with that id and incarnation (0: the current one), if it is known and up."""
        peer = self._by_id.get(key[0]) if key[1] == 0 else self._peers.get(key)
        if peer is None or peer.lost is not None:
            where = self._directory.find_id(key[0])
            if where is None or (key[1] and where.incarnation != key[1]):
                return None
            peer = self._enter(where)
        return None if peer.lost is not None else peer

    def lose(self, key: WorkerKey, why: str) -> Peer | None:
        """A life is over. Returns its peer if there was one."""
        with self._lock:
            peer = self._peers.pop(key, None)
            if peer is not None:
                if self._by_name.get(peer.info.name) is peer:
                    del self._by_name[peer.info.name]
                if self._by_id.get(peer.info.id) is peer:
                    del self._by_id[peer.info.id]
        if peer is not None:
            peer.lose(why)
        return peer

    def close(self) -> None:
        for key in list(self._peers):
            self.lose(key, "this worker has shut down")
