"""Other workers, as this one reaches them: a link for what is asynchronous, lanes for synchronous calls.

One rule: a `Peer` is one life of one worker. When the broker says that life is over, the peer is lost for good; the next
life of the name is another peer.

A synchronous call borrows a *lane*: a connection of its own, on which the calling thread itself sends and receives. Its
reply then wakes that thread and nobody else; handing it over from the receiving thread would cost about 50 microseconds.

A peer on this host is asked for an *offer* when there is first something for it (see `lanes`). With one, lanes are local
connections, and what is asynchronous goes over a local one too; without, and when that one ends, ZeroMQ is the way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from zrpc.clock import monotonic, wall
from zrpc.errors import InvalidDestination, Unavailable, UnknownWorker, WorkerLost
from zrpc.ids import WorkerInfo
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.exchanges import Lane, LocalLane
from zrpc.runtime.receiver import Receiver, Source
from zrpc.runtime.sharedlink import Awaited, SharedLink
from zrpc.transport.base import Frames, Link, RouteGone, Transport
from zrpc.transport.local import LocalLink
from zrpc.transport.samehost import connect_local
from zrpc.wire.envelope import Envelope
from zrpc.wire.limits import Limits

IDLE_LANES = 8
"""Unused lanes kept for each peer; more are closed when they come back."""

ASK_AGAIN = 1.0
"""Seconds after which a peer is asked again for lanes when those that it offered failed."""

STRAY_LANES = 16
"""Lanes kept for each peer whose call ended before its reply came."""

LOSSES = 4096
"""Lives of which it is remembered when and why they ended."""


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
        self._ask_at: float | None = 0.0  # when to ask for lanes; None: asked already
        self._offer: tuple[str, bytes] | None = None
        self._local: SharedLink | None = None

    def __repr__(self) -> str:
        state = "up" if self.lost is None else f"lost: {self.lost}"
        return f"<Peer {self.info.name} id={self.info.id} incarnation={self.incarnation} {state}>"

    is_self = False

    def send(self, frames: Frames, is_one_of_many: bool = False) -> None:
        """Send on the asynchronous link. Raises `WorkerLost` when the peer is lost.

        `is_one_of_many`: others are under way, and their replies or further calls will come soon; then small messages
        are sent together.
        """
        local = self._local
        if local is not None:
            try:
                local.send(frames, is_one_of_many)
                return
            except RouteGone:
                pass
        link = self._link
        if link is None:
            link = self._connect()
        if self._ask_at is not None:
            self._ask_for_lane()
        if self.lost is not None:
            raise WorkerLost(self.info.name, self.lost, "sending to it")
        if link.send(frames) and self._source is not None:
            self._book.receiver.nudge(self._source)

    # ------------------------------------------------------------------------------------ lanes

    def _ask_for_lane(self) -> None:
        """Ask the peer for an offer, if it is time to."""
        seek, ask_at = self._book.seek_lane, self._ask_at
        if ask_at is None or seek is None or monotonic() < ask_at:
            return
        with self._lock:  # of several threads that come here at once, one asks
            if self._ask_at is None:
                return
            self._ask_at = None
        with suppress(Unavailable):  # then nothing else will go either, and says so
            seek(self)

    def miss_offer(self) -> None:
        """There was an offer, but nothing could be made of it, or not for long: ask again later."""
        self._offer = None
        self._ask_at = monotonic() + ASK_AGAIN

    def take_offer(self, address: str, secret: bytes, link: LocalLink) -> None:
        """The peer offers lanes; `link` is the first one, for what is asynchronous."""
        book = self._book
        shared = SharedLink(link, book.receiver, book.on_frames, book.is_foreign, book.limits, book.pending)
        link.on_end = lambda: self._end_local(shared)
        idle: list[Lane] = []
        surplus: SharedLink | None = shared
        with self._lock:
            if self.lost is None:
                surplus = self._local
                self._offer = address, secret
                self._local = shared
                idle, self._idle = self._idle, idle
        if surplus is not None:
            surplus.close()
        for lane in idle:
            lane.close()

    def wait_here(self, future: Awaited) -> None:
        """Receive what the peer says until the future is done, if nobody else can be woken for less. May return earlier."""
        local = self._local
        if local is not None:
            local.wait(future)

    def attend(self) -> SharedLink | None:
        """Take the local link from the receiver if it can be had; see `SharedLink.attend`."""
        local = self._local
        return local if local is not None and local.attend() else None

    def _end_local(self, shared: SharedLink) -> None:
        """A local connection has ended: the peer is going, or gone. What it still says comes over ZeroMQ."""
        with self._lock:
            if self._local is shared:
                self._local = None
                self.miss_offer()
        shared.close()

    def _new_lane(self) -> Lane:
        offer = self._offer
        if offer is not None:
            try:
                link = connect_local(*offer, self._book.limits)
            except Unavailable:
                self.miss_offer()
            else:
                local = self._local
                link.carrier = None if local is None else local.link.carrier
                return LocalLane(link, self._book.limits, self._book.receiver.spin)
        return Lane(self._book.transport.connect(self.address, "member"), self._book.limits, self._book.receiver.spin)

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
        if self._ask_at is not None:
            self._ask_for_lane()
        with self._lock:
            if self.lost is not None:
                raise WorkerLost(self.info.name, self.lost, "calling it")
            lane = self._idle.pop() if self._idle else None
            if lane is None:
                lane = self._new_lane()
            self._busy.add(lane)
            return lane

    def replace_lane(self, lane: Lane) -> Lane:
        """A lane in the place of one that has ended before anything was sent on it."""
        with self._lock:
            self._busy.discard(lane)
            self.miss_offer()
        lane.close()
        return self.borrow_lane()

    def return_lane(self, lane: Lane) -> None:
        with self._lock:
            self._busy.discard(lane)
            is_wanted = self._offer is None or type(lane) is LocalLane
            if is_wanted and self.lost is None and len(self._idle) < IDLE_LANES:
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

        local = lane.link if isinstance(lane, LocalLane) else None
        with self._lock:
            self._busy.discard(lane)
            is_over = self.lost is not None or (local is not None and local.is_ended)
            if not is_over:
                source = self._book.receiver.add(lane.link, on_late)
                self._strays.append((lane, source))
                if local is not None:
                    local.on_end = lambda: self._drop_stray(lane)
                    local.on_backlog = lambda waits: self._book.receiver.watch_writing(source, waits)
                    if local.has_backlog():  # the rest of the call, without which what follows could not be read
                        self._book.receiver.watch_writing(source, True)
            surplus = self._strays[:-STRAY_LANES]
        if is_over:
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

    @property
    def is_waited_for(self) -> bool:
        """Whether a call waits on a lane."""
        return bool(self._busy)

    @property
    def is_connected(self) -> bool:
        """Whether something was sent to it, on a link or a lane."""
        return self._link is not None or bool(self._busy or self._idle)

    def lose(self, why: str) -> None:
        """The peer's life is over: wake whoever waits on a lane, close the rest."""
        with self._lock:
            if self.lost is not None:
                return
            self.lost = why
            link, source, self._link = self._link, self._source, None
            local, self._local, self._offer = self._local, None, None
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
        if local is not None:
            local.close()
        if link is not None:
            link.close()


class LoopbackPeer(Peer):
    """This worker, as a peer of itself: messages go straight to the handler, on the pool."""

    is_self = True

    def __init__(self, book: PeerBook, where: Address, deliver: Callable[[Frames], None]) -> None:
        super().__init__(book, where)
        self._deliver = deliver

    def send(self, frames: Frames, is_one_of_many: bool = False) -> None:
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
        is_foreign: Callable[[Envelope], bool] = lambda _: True,
        pending: Callable[[], int] = lambda: 0,
    ) -> None:
        self.transport = transport
        self.receiver = receiver
        self.on_frames = on_frames
        self.is_foreign = is_foreign
        self.pending = pending
        self.limits = limits
        self.seek_lane: Callable[[Peer], None] | None = None
        """Asks a peer for an offer of lanes; None when lanes are off."""
        self._directory = directory
        self._lock = threading.Lock()
        self._peers: dict[WorkerKey, Peer] = {}
        self._by_name: dict[str, Peer] = {}
        self._by_id: dict[int, Peer] = {}
        self._gone: dict[str | int, tuple[WorkerInfo, str]] = {}
        self._losses: dict[WorkerKey, tuple[str, float]] = {}

    def add_self(self, peer: LoopbackPeer) -> None:
        with self._lock:
            self._remember(peer)

    def _remember(self, peer: Peer) -> None:
        self._peers[peer.key] = peer
        self._by_name[peer.info.name] = peer
        self._by_id[peer.info.id] = peer
        self._gone.pop(peer.info.name, None)
        self._gone.pop(peer.info.id, None)

    def note_gone(self, info: WorkerInfo, incarnation: int, why: str) -> None:
        """Remember that a worker was here, and why it is not any more."""
        self._gone[info.name] = self._gone[info.id] = info, why
        self._losses[info.id, incarnation] = why, wall()
        if len(self._losses) > LOSSES:
            del self._losses[next(iter(self._losses))]

    def find_loss(self, life: WorkerKey) -> tuple[str, float] | None:
        """Why, and when (seconds since 1970), a life was over; None when that is not known (any more)."""
        return self._losses.get((life[0], life[1]))

    def find_gone(self, to: str | int | WorkerInfo) -> tuple[WorkerInfo, str] | None:
        """Which worker that was, and why it is gone; None for one that was never here."""
        return self._gone.get(to.name if isinstance(to, WorkerInfo) else to)

    def find(self, to: str | int | WorkerInfo, timeout: float = 2.0) -> Peer:
        """The peer of that name, id or info. Raises `UnknownWorker`, after asking the broker for at most `timeout`,
        and `InvalidDestination` for what is none of these."""
        if type(to) is str:
            peer = self._by_name.get(to)
        elif isinstance(to, WorkerInfo):
            peer = self._by_id.get(to.id)
            to = to.name if peer is None else to
        elif type(to) is int:
            peer = self._by_id.get(to)
        elif isinstance(to, str):  # a member of an enum, for instance
            return self.find(str.__str__(to), timeout)
        elif isinstance(to, int) and not isinstance(to, bool):
            return self.find(int(to), timeout)
        else:
            raise InvalidDestination(to)
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

    def waited_for(self) -> set[WorkerKey]:
        """The peers on whose lanes a call waits for its reply."""
        with self._lock:
            return {peer.key for peer in self._peers.values() if peer.is_waited_for}

    def spoken_to(self) -> set[WorkerKey]:
        """The peers that there are connections to."""
        with self._lock:
            return {peer.key for peer in self._peers.values() if peer.is_connected}

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
