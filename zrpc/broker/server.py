"""The broker as a thread: it feeds the registry from a listener and performs what the registry decides.

One rule: nothing that a peer sends ends the thread. What cannot be read is counted, logged now and then, and forgotten.

Where there is a standby, or this is one, a broker has a link to the other (`Seat.other`) beside its listener. What only a
broker may say is taken from connections that have proved the broker's key.

A message of another protocol version is answered with a REFUSED of this version: its preamble, which every version
reads, tells the peer the version that the broker speaks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from zrpc.clock import Clock, monotonic, time_left, wall
from zrpc.errors import FrameError, Unavailable, VersionMismatch, ZrpcError
from zrpc.ids import BROKER_ID
from zrpc.protocol.chronicle import Chronicle
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Effect,
    Exit,
    Expectation,
    News,
    PeerArrival,
    PeerChange,
    RouteLoss,
    Seek,
    Send,
    StopDemand,
    Tell,
    Tick,
)
from zrpc.protocol.membership import RegistryOptions
from zrpc.protocol.seat import Seat
from zrpc.transport.base import Frames, Link, Listener, Received, Transport
from zrpc.transport.poller import Poller
from zrpc.wire.envelope import VERSION, Envelope, Kind, unpack
from zrpc.wire.limits import MIB, Limits
from zrpc.wire.messages import Answer, Goodbye, Member, Message, Query, Refusal, read, seal
from zrpc.wire.succession import BROKER_READS, STANDBY_READS, Elsewhere, Follow

BROKER_LIMITS: Final = Limits(message_bytes=4 * MIB, header_bytes=64 * 1024, buffers=0, code_bytes=0)
"""No member has reason to send a broker more."""
PEER_LIMITS: Final = Limits(message_bytes=64 * MIB, header_bytes=64 * 1024, buffers=0, code_bytes=0)
"""A standby is sent all that the primary knows."""
BATCH: Final = 10_000
"""Messages handled before timers and other threads get their turn."""
LOG_INTERVAL: Final = 5.0
"""Seconds between two lines about frames that could not be read."""

logger = logging.getLogger(__name__)


class _Descriptor:
    """A second descriptor of a listener or link, for a poller."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class BrokerServer:
    """A broker for one cluster. `address` is where members connect to; port 0 there chooses one, known after `start`.

    `on_event` is called in the broker's thread with each `MemberUp`, `MemberGone`, `StopRequested` and so on; be quick
    there. `scalable`: roles of which tools may ask for more or fewer workers. `follows`: the address of a broker to stand
    by for; empty: be in charge.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        *,
        cluster: str,
        options: RegistryOptions | None = None,
        on_event: Callable[[News], None] | None = None,
        clock: Clock = monotonic,
        wall_clock: Clock = wall,
        scalable: Iterable[str] = (),
        follows: str = "",
    ) -> None:
        self.address = address
        self._transport = transport
        self._on_event = on_event
        self._clock = clock
        self._started_at = clock()
        self._seat = Seat(cluster, int(wall_clock() * 1000), clock(), options, follows, scalable)
        self._peer: Link | None = None
        """The connection to the other broker."""
        self._wall = wall_clock
        self._chronicle = Chronicle()
        why = "after an earlier one" if options is not None and options.is_successor else ""
        self._chronicle.note(wall_clock(), "began", cluster, f"standing by for {follows}" if follows else why)
        self._denied = 0
        self._lock = threading.Lock()
        self._requests: deque[object] = deque()
        self._unreadable: Counter[str] = Counter()
        self._logged_at = self._started_at - LOG_INTERVAL
        self._unlogged = 0
        self._answering = 0
        self._is_stopping = False
        self._listener: Listener | None = None
        self._poller = Poller()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<BrokerServer {self.address} {self._seat!r}>"

    # ------------------------------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Bind and serve. Raises `ConfigError` when the address cannot be bound."""
        self._listener = self._transport.listen(self.address, "broker", watch=True)
        self.address = self._listener.address
        self._poller.add(self._listener)
        monitor = self._listener.monitor_fileno()
        if monitor is not None:
            self._poller.add(_Descriptor(monitor))
        self._seat.address = self.address
        self._seek(self._seat.other)
        self._thread = threading.Thread(target=self._run, name="zrpc-broker", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5) -> None:
        """Tell the members, close the address and end the thread. The transport stays open: it is the caller's."""
        self._is_stopping = True
        self._poller.wake()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
            if not thread.is_alive():
                self._poller.close()

    def expect(self, names: Iterable[str]) -> None:
        """These names, and no others, form the group that members with `wait` wait for. Ids follow the order."""
        self._request(Expectation(tuple(names)))

    def exited(self, name: str, pid: int, why: str) -> None:
        """The process of worker `name` was seen to end: everyone is told at once. `pid` 0: whichever has the name."""
        self._request(Exit(name, pid, why))

    def request_stop(self, names: Iterable[str] | None = None, why: str = "") -> None:
        """Ask workers to stop; None: all of them."""
        self._request(StopDemand(None if names is None else tuple(names), why))

    def members(self) -> list[Member]:
        """The living, also those whose group is not complete yet (state 'waiting')."""
        with self._lock:
            return self._seat.members()

    def status(self) -> dict[str, Any]:
        """Members with their statistics; the broker's address, uptime (s), refusals, unreadable frames, traffic."""
        with self._lock:
            return self._status(self._clock())

    def _request(self, event: object) -> None:
        self._requests.append(event)
        self._poller.wake()

    # ------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        listener = self._listener
        assert listener is not None
        is_drained = True
        while not self._is_stopping:
            self._poller.wait(self._time_to_wait() if is_drained else 0.0)
            try:
                is_drained = self._turn(listener)
            except Exception:  # a fault of ours with one message must not end the broker
                logger.exception("the broker failed to handle an event")
        goodbye = Goodbye("the broker has stopped")
        effects: list[Effect] = [Broadcast(goodbye, self._seat.routes())]
        if self._seat.standby is not None:
            effects.append(Tell(goodbye))
        self._perform(effects)
        self._seek("")
        listener.close()

    def _time_to_wait(self) -> float | None:
        return time_left(self._seat.next_deadline(), self._clock())

    def _turn(self, listener: Listener) -> bool:
        """Handle what there is; False when there may be more input."""
        # Losses are read before the messages and handled after them: whatever a lost peer said has arrived by then.
        lost = listener.lost()
        self._hear_peer()
        while self._requests:
            self._feed(self._requests.popleft())
        is_drained = False
        for _ in range(BATCH):
            received = listener.receive()
            if received is None:
                is_drained = True
                break
            self._take(received)
        for route in lost:
            self._feed(RouteLoss(route))
        self._feed(Tick())
        # What was performed may have consumed the edge of new input: look once more before waiting.
        last = listener.receive() if is_drained else None
        if last is not None:
            self._take(last)
            return False
        return is_drained and not self._hear_peer()

    def _hear_peer(self) -> bool:
        """Take what the other broker has said; whether there was anything."""
        peer, found = self._peer, False
        while peer is not None and peer is self._peer:
            for what in peer.events():
                self._feed(PeerChange(what))
            frames = peer.receive() if peer is self._peer else None
            if frames is None:
                return found or (peer is self._peer and peer.is_busy)
            found = True
            try:
                message = read(unpack(frames, PEER_LIMITS), STANDBY_READS)
            except ZrpcError as error:
                self._note_unreadable("from the other broker", str(error))
            else:
                self._feed(PeerArrival(message))
        return found

    def _seek(self, address: str) -> None:
        """Be connected to the broker at `address`, and to no other; empty: to none."""
        peer, self._peer = self._peer, None
        if peer is not None:
            self._poller.remove(peer)
            monitor = peer.monitor_fileno()
            if monitor is not None:
                self._poller.remove(_Descriptor(monitor))
            peer.close()
        if address:
            self._peer = self._transport.connect(address, "broker", watch=True)
            self._poller.add(self._peer)
            monitor = self._peer.monitor_fileno()
            if monitor is not None:
                self._poller.add(_Descriptor(monitor))

    def _take(self, received: Received) -> None:
        try:
            envelope = unpack(received.frames, BROKER_LIMITS)
            message = read(envelope, BROKER_READS)
        except VersionMismatch as error:
            self._note_unreadable(f"protocol version {error.theirs}", str(error))
            self._send(received.route, seal(Refusal.of(error), BROKER_ID, self._seat.epoch))
        except FrameError as error:
            self._note_unreadable("malformed", str(error))
            self._refuse_hello(received, error)
        else:
            self._answering = envelope.message_id
            if isinstance(message, Follow) and not self._is_broker(received.route):
                return
            if isinstance(message, Query):
                self._answer(received.route, envelope, message)
            else:
                self._feed(Arrival(message, received.route, envelope.sender, envelope.sender_incarnation))

    def _is_broker(self, route: bytes) -> bool:
        """Whether a connection has proved the broker's key: a member cannot act as a broker."""
        assert self._listener is not None
        if self._listener.is_broker(route):
            return True
        self._note_unreadable("a member acts as a broker", "FOLLOW from a peer without the broker's key")
        return False

    def _refuse_hello(self, received: Received, error: FrameError) -> None:
        """Who sends a HELLO that cannot be read waits for an answer; whoever sends noise gets none."""
        try:
            envelope = unpack(received.frames, BROKER_LIMITS)
        except FrameError:
            return
        if envelope.kind == Kind.HELLO:
            self._send(received.route, seal(Refusal.of(error), BROKER_ID, self._seat.epoch))

    def _answer(self, route: bytes, envelope: Envelope, query: Query) -> None:
        with self._lock:
            if query.what == "events":
                self._note_denied()
                answer = Answer(
                    {
                        "events": self._chronicle.since(query.since),
                        "is_in_charge": self._seat.primary is not None,
                    }
                )
            else:
                answer = Answer(self._status(self._clock()))
        self._send(route, seal(answer, BROKER_ID, self._seat.epoch, message_id=envelope.message_id))

    def _note_denied(self) -> None:
        """Peers that were turned away at the door since the last look, as one entry."""
        counts = self._transport.refusals()
        fresh, self._denied = sum(counts.values()) - self._denied, sum(counts.values())
        if fresh > 0:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
            self._chronicle.note(self._wall(), "denied", "", f"{fresh} more, in all: {reasons}")

    def _note_unreadable(self, reason: str, what: str) -> None:
        if reason not in self._unreadable and len(self._unreadable) > 32:
            reason = "other"  # the reason is the peer's to choose; the map is ours to bound
        self._unreadable[reason] += 1
        self._unlogged += 1
        now = self._clock()
        if now >= self._logged_at + LOG_INTERVAL:
            logger.warning("%d frames could not be read, the last one: %s", self._unlogged, what)
            self._logged_at = now
            self._unlogged = 0

    def _feed(self, event: object) -> None:
        with self._lock:
            effects = self._seat.handle(event, self._clock())
        self._perform(effects)

    def _perform(self, effects: list[Effect]) -> None:
        # News first: whoever acts on a message from here must find that the broker's owner knows what it is about.
        for effect in effects:
            if isinstance(effect, Announce):
                self._announce(effect.news)
        for effect in effects:
            if isinstance(effect, Broadcast):
                frames = seal(effect.message, BROKER_ID, self._seat.epoch)
                for route in effect.routes:
                    self._send(route, frames)
            elif isinstance(effect, Send):
                number = self._answering if isinstance(effect.message, (Answer, Elsewhere)) else 0
                message = seal(effect.message, BROKER_ID, self._seat.epoch, effect.incarnation, number)
                self._send(effect.route, message)
            elif isinstance(effect, Tell):
                self._tell(effect.message)
            elif isinstance(effect, Seek):
                self._seek(effect.address)

    def _tell(self, message: Message) -> None:
        if self._peer is not None:
            with contextlib.suppress(Unavailable):
                self._peer.send(seal(message, BROKER_ID, self._seat.epoch))

    def _send(self, route: bytes, frames: Frames) -> None:
        assert self._listener is not None
        try:
            self._listener.send(route, frames)
        except Unavailable:
            pass  # its connection is closed: `lost` says so, or did

    def _announce(self, news: News) -> None:
        logger.info("%s", news)
        self._chronicle.note_news(self._wall(), news)
        if self._on_event is not None:
            try:
                self._on_event(news)
            except Exception:
                logger.exception("the listener for the broker's events failed")

    def _status(self, now: float) -> dict[str, Any]:
        status = self._seat.describe(now)
        status["address"] = self.address
        status["protocol"] = VERSION
        status["pid"] = os.getpid()
        status["uptime"] = now - self._started_at
        status["refusals"] = self._transport.refusals()
        status["unreadable"] = dict(self._unreadable)
        if self._listener is not None:
            traffic = self._listener.statistics()
            status["traffic"] = {
                "messages_in": traffic.messages_in,
                "messages_out": traffic.messages_out,
                "bytes_in": traffic.bytes_in,
                "bytes_out": traffic.bytes_out,
            }
        return status
