"""The ZeroMQ transport: a ROUTER to listen, a DEALER for each link. The only module that uses ZeroMQ's sockets.

One rule: a socket is used under its lock, and never inside a ZeroMQ wait: waiting is a poll of `ZMQ_FD` by the receiver,
so any thread may send at any time. `ZMQ_FD` is edge-triggered and a send can consume an edge meant for the receiver,
hence `send` reads `ZMQ_EVENTS` afterwards and says whether there is input.

Sizes and times that ZeroMQ leaves unbounded by default are set here: message size, linger, handshake, heartbeats. The
high-water marks are off, because they count messages and lose them silently; bytes are bounded above this layer.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from zrpc.errors import ConfigError, Unavailable
from zrpc.transport.base import Frames, Received, RouteGone, TransportStatistics
from zrpc.transport.curve import Doorkeeper, Keyring, require_curve
from zrpc.transport.doorway import Doorway
from zrpc.transport.gate import Gate
from zrpc.transport.landing import Landing
from zrpc.transport.monitor import DENIED, GATE_EVENTS, Monitor, tell_gate
from zrpc.transport.streaming import Streams
from zrpc.wire.limits import DEFAULT_LIMITS, Limits
from zrpc.wire.streams import FRAME_BYTES, MARK, is_large

HEARTBEATS_MS = {"broker": (500, 1500), "member": (2000, 10_000)}
"""How often ZeroMQ asks whether the peer's process still answers, and how long it waits, by who listens; off by default in
ZeroMQ. The broker is to notice within 2 s that a process is stopped or cut off. A connection between workers has patience:
one frame of a large tensor may take a while, and who is lost the broker says."""
HANDSHAKE_MS = 5000
RECONNECT_MS = 50
RECONNECT_MAX_MS = 1000
LINGER_MS = 500
"""How long closing a socket lets queued messages leave."""
PIECES = 4
"""Pieces of large messages that one `receive` takes: 4 MiB, so that nobody waits for long who wants to send or is next."""
STREAM = bytes([MARK])
ZERO_COPY_BYTES = 64 * 1024
"""Frames below this are copied by pyzmq in any case."""

_NOBLOCK = zmq.NOBLOCK
_SNDMORE = zmq.SNDMORE | zmq.NOBLOCK
_RCVMORE = zmq.RCVMORE
_POLLIN = zmq.POLLIN


class _Socket:
    """What a listener and a link share: the lock, the counters, sending and receiving frames."""

    def __init__(self, socket: zmq.Socket[bytes], landing: Landing, limits: Limits) -> None:
        self._socket = socket
        self._lock = threading.Lock()
        self._streams = Streams(self._put, landing, limits)
        self.is_busy = False
        self._fd = int(socket.getsockopt(zmq.FD))
        self._closed = False
        self.on_close: Callable[[Any], None] | None = None
        self._in = self._out = self._bytes_in = self._bytes_out = 0

    def fileno(self) -> int:
        return self._fd

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(self._in, self._out, self._bytes_in, self._bytes_out)

    def _put(self, route: bytes, frames: Frames) -> None:
        """Send frames, along a route if it is not empty, with the lock held. Raises `Unavailable`."""
        raise NotImplementedError

    def _send(self, frames: Frames) -> None:
        """Send frames with the lock held."""
        socket = self._socket
        last = len(frames) - 1
        size = 0
        for index, frame in enumerate(frames):
            length = frame.nbytes if isinstance(frame, memoryview) else len(frame)
            size += length
            # A ROUTER decides at the first frame: once that is taken, the rest cannot fail (high-water marks are off).
            socket.send(frame, _SNDMORE if index < last else _NOBLOCK, copy=length < ZERO_COPY_BYTES)
        self._bytes_out += size

    def _send_message(self, route: bytes, frames: Frames) -> None:
        """Send a message, in pieces if it is large, with the lock held."""
        if len(frames) > 1 and is_large(frames):
            self._streams.send(route, frames)
        else:
            self._put(route, frames)
        self._out += 1

    def _receive_rest(self, frames: list[Any]) -> None:
        """Receive a message's further frames, without copying them: they are the large ones."""
        socket = self._socket
        size = len(frames[-1])
        while socket.getsockopt(_RCVMORE):
            view = socket.recv(_NOBLOCK, copy=False).buffer
            frames.append(view)
            size += view.nbytes
        self._bytes_in += size

    def _take(self, route: bytes, frames: list[Any]) -> list[Any] | None:
        """What of a message is for the caller: all of it, or the message that it completes, if it does."""
        if frames[0][:1] == STREAM:
            whole = self._streams.take(route, frames)
            if whole is None:
                return None
            frames = whole
        self._in += 1
        return frames

    def _was_closed(self) -> None:
        if self.on_close is not None:
            self.on_close(self)

    def _has_input(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN)


_LISTENER_EVENTS = int(zmq.EVENT_DISCONNECTED) | int(zmq.EVENT_CLOSED)


class ZmqListener(_Socket):
    """A bound ROUTER. `monitor` is for those who want to know of lost connections; `gate` counts handshakes that failed."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        address: str,
        monitor: Monitor | None,
        gate: Gate | None,
        landing: Landing,
        limits: Limits,
        broker_key: bytes = b"",
    ) -> None:
        super().__init__(socket, landing, limits)
        self.address = address
        self._broker_key = broker_key.decode()
        self._brokers: set[bytes] = set()
        """Routes of peers that have proved the broker's key."""
        self._monitor = monitor
        self._gate = gate
        self._routes: dict[int, bytes] = {}
        self._lost: list[bytes] = []

    @property
    def refused(self) -> Counter[str]:
        """Failed handshakes by reason, those that the doorkeeper refused left out."""
        return Counter() if self._gate is None else self._gate.refused

    def monitor_fileno(self) -> int | None:
        """A descriptor that becomes readable when `lost()` may have something; None when not watching."""
        return None if self._monitor is None else self._monitor.fileno()

    def send(self, route: bytes, frames: Frames) -> bool:
        with self._lock:
            if self._closed:
                raise RouteGone("the listener is closed")
            self._send_message(route, frames)
            return self._has_input()

    def _put(self, route: bytes, frames: Frames) -> None:
        try:
            self._socket.send(route, _SNDMORE)
        except zmq.ZMQError as error:
            raise RouteGone(f"the peer's connection is closed ({error})") from None
        self._send(frames)

    def receive(self) -> Received | None:
        with self._lock:
            self.is_busy = False
            if self._closed:
                return None
            for _ in range(PIECES):
                try:
                    route = self._receive_route()
                except zmq.Again:
                    return None
                if not self._socket.getsockopt(_RCVMORE):
                    return Received(route, [])
                frames: list[Any] = [self._socket.recv(_NOBLOCK)]
                self._receive_rest(frames)
                message = self._take(route, frames)
                if message is not None:
                    return Received(route, message)
            self.is_busy = True
            return None

    def _receive_route(self) -> bytes:
        if self._monitor is None:
            return self._socket.recv(_NOBLOCK)
        head = self._socket.recv(_NOBLOCK, copy=False)
        route = head.bytes
        # Events are read before the message counts: a descriptor that was closed and given to this new connection has its
        # closing event in the queue already.
        self._note_lost()
        fd = int(head.get(zmq.SRCFD))
        if self._routes.get(fd) != route:
            self._routes[fd] = route
            # The doorkeeper's answer names the key, and ZeroMQ keeps it with each message.
            if self._broker_key and head.get("User-Id") == self._broker_key:
                self._brokers.add(route)
        return route

    def is_broker(self, route: bytes) -> bool:
        return not self._broker_key or route in self._brokers

    def _note_lost(self) -> None:
        if self._monitor is not None:
            events = self._monitor.read()
            if self._gate is not None:
                tell_gate(self._gate, events)
            for event, value in events:
                # The value is the descriptor that was closed.
                route = self._routes.pop(value, None) if event & _LISTENER_EVENTS else None
                if route is not None:
                    self._brokers.discard(route)
                    self._lost.append(route)

    def _finish_streams(self) -> None:
        """Go on sending what is on its way in pieces, as long as credit for it comes. What else comes is too late."""
        while self._streams.is_sending and self._socket.poll(LINGER_MS):
            route, *frames = self._socket.recv_multipart(_NOBLOCK)
            if frames and frames[0][:1] == STREAM:
                self._streams.take(route, frames)

    def lost(self) -> list[bytes]:
        with self._lock:
            if not self._closed:
                self._note_lost()
            lost, self._lost = self._lost, []
        return lost

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._finish_streams()
            self._closed = True
            if self._gate is not None:
                self._gate.close()
            if self._monitor is None:
                self._socket.disable_monitor()  # which ends the thread that reads it, if there is one
            else:
                # ZeroMQ closes the address in its own time; who restarts a broker there needs it to be free.
                with contextlib.suppress(zmq.ZMQError):
                    self._socket.unbind(self.address)
                    self._monitor.wait_for(int(zmq.EVENT_CLOSED), LINGER_MS)
                self._monitor.close()
            self._socket.close()
        self._was_closed()


_LINK_EVENTS = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "connected",
    int(zmq.EVENT_DISCONNECTED): "disconnected",
    int(zmq.EVENT_CONNECT_RETRIED): "refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "denied",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "denied",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "denied",
}


_ECHOES = {("denied", "disconnected"), ("denied", "refused"), ("disconnected", "refused")}


class ZmqLink(_Socket):
    """A connected DEALER."""

    def __init__(self, socket: zmq.Socket[bytes], address: str, watch: bool, landing: Landing, limits: Limits) -> None:
        super().__init__(socket, landing, limits)
        self.address = address
        mask = 0
        for event in _LINK_EVENTS:
            mask |= event
        self._monitor = Monitor(socket, mask) if watch else None
        self._last_event = ""

    def send(self, frames: Frames) -> bool:
        with self._lock:
            if self._closed:
                raise Unavailable(f"the link to {self.address} is closed")
            self._send_message(b"", frames)
            return self._has_input()

    def _put(self, route: bytes, frames: Frames) -> None:
        try:
            self._send(frames)
        except zmq.ZMQError as error:
            raise Unavailable(f"the link to {self.address} takes no message ({error})") from None

    def receive(self) -> list[Any] | None:
        with self._lock:
            self.is_busy = False
            if self._closed:
                return None
            for _ in range(PIECES):
                try:
                    frames: list[Any] = [self._socket.recv(_NOBLOCK)]
                except zmq.Again:
                    return None
                self._receive_rest(frames)
                message = self._take(b"", frames)
                if message is not None:
                    return message
            self.is_busy = True
            return None

    def monitor_fileno(self) -> int | None:
        return None if self._monitor is None else self._monitor.fileno()

    def events(self) -> list[str]:
        with self._lock:
            if self._closed or self._monitor is None:
                return []
            return self._translate([_LINK_EVENTS[event] for event, _ in self._monitor.read() if event in _LINK_EVENTS])

    def _translate(self, events: list[str]) -> list[str]:
        """Keep what says something: ZeroMQ reports a denied handshake also as a disconnection, and either of them also
        as a retry, which alone means that nobody listens."""
        told = []
        for event in events:
            is_echo = (self._last_event, event) in _ECHOES
            self._last_event = event
            if not is_echo:
                told.append(event)
        return told

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._monitor is not None:
                self._monitor.close()
            self._socket.close()
        self._was_closed()


def check_address(address: str) -> str:
    """`address` if it is tcp://HOST:PORT with a port that exists; ZeroMQ itself takes port 65537 for 1.

    Raises `ConfigError`.
    """
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not (port in ("*", "0") or (port.isdecimal() and 0 < int(port) < 65536)):
        raise ConfigError(f"address {address!r}", ["expected tcp://HOST:PORT; port 0 takes any free one"])
    return address


class ZmqTransport:
    """Opens listeners and links over ZeroMQ; encrypted and authenticated unless `keyring` is None."""

    def __init__(
        self,
        keyring: Keyring | None,
        own_role: str,
        limits: Limits = DEFAULT_LIMITS,
        broker_heartbeats_ms: tuple[int, int] = HEARTBEATS_MS["broker"],
    ) -> None:
        if keyring is not None and not keyring.pair(own_role).secret:
            why = "the key file is one for members: nobody can act as the broker with it"
            raise ConfigError(f"role {own_role}", [why])
        self._heartbeats_ms = {**HEARTBEATS_MS, "broker": broker_heartbeats_ms}
        self._keyring = keyring
        self._limits = limits
        self._landing = Landing()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.max_sockets = 65535
        self._doorkeeper: Doorkeeper | None = None
        self._open: set[ZmqListener | ZmqLink] = set()
        self._own = None
        if keyring is not None:
            require_curve()
            self._own = keyring.pair(own_role)
            allowed = frozenset(keyring.pair(role).public for role in ("broker", "member"))
            self._doorkeeper = Doorkeeper(self._context, allowed)

    def _socket(self, kind: int, role: str) -> zmq.Socket[bytes]:
        try:
            socket = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise Unavailable(
                f"this process can open no more connections ({error}); raise its limit of descriptors"
            ) from None
        socket.linger = LINGER_MS
        socket.sndhwm = 0
        socket.rcvhwm = 0
        socket.maxmsgsize = self._limits.message_bytes
        socket.heartbeat_ivl, socket.heartbeat_timeout = self._heartbeats_ms[role]
        socket.handshake_ivl = HANDSHAKE_MS
        return socket

    def listen(self, address: str, role: str, watch: bool = False) -> ZmqListener:
        check_address(address)
        socket = self._socket(zmq.ROUTER, role)
        socket.router_mandatory = 1
        # ZeroMQ takes a frame of a handshake in as any other, before anybody has shown a key.
        socket.maxmsgsize = min(self._limits.message_bytes, FRAME_BYTES)
        if self._own is not None:
            assert self._keyring is not None
            pair = self._keyring.pair(role)
            socket.curve_server = 1
            socket.curve_secretkey = pair.secret
            socket.curve_publickey = pair.public
            socket.zap_domain = b"zrpc"
        is_guarded = self._own is not None
        events = (_LISTENER_EVENTS if watch else 0) | (GATE_EVENTS if is_guarded else 0)
        monitor = Monitor(socket, events) if events else None
        try:
            socket.bind(address)
        except (zmq.ZMQError, OSError) as error:
            if monitor is not None:
                monitor.close()
            socket.close(0)
            raise ConfigError(f"bind address {address}", [f"{error}; use tcp://HOST:PORT, port 0 for any"]) from None
        endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        bound = endpoint.rstrip(b"\0").decode()
        gate = self._guard(bound, monitor, watch) if is_guarded and monitor is not None else None
        key = b"" if self._keyring is None else self._keyring.pair("broker").public
        listener = ZmqListener(socket, bound, monitor if watch else None, gate, self._landing, self._limits, key)
        self._open.add(listener)
        listener.on_close = self._open.discard
        return listener

    def _guard(self, address: str, monitor: Monitor, is_read: bool) -> Gate:
        """The gate of a listener. Its monitor is read with the listener (`is_read`), or by a thread of its own."""
        gate = Gate(address)
        fd = monitor.wait_for(int(zmq.EVENT_LISTENING), LINGER_MS)
        if fd is not None:
            gate.guard(Doorway(fd))
        if not is_read:
            read = partial(monitor.follow, partial(tell_gate, gate))
            threading.Thread(target=read, name="zrpc-gatekeeper", daemon=True).start()
        return gate

    def connect(self, address: str, role: str, watch: bool = False) -> ZmqLink:
        check_address(address)
        socket = self._socket(zmq.DEALER, role)
        if role == "broker":
            # Whose host was away is tried again by the system after longer and longer times, by ZeroMQ each second.
            socket.connect_timeout = self._heartbeats_ms[role][1]
        return self._connect(socket, address, role, watch)

    def sentinel(self, address: str) -> ZmqLink:
        check_address(address)
        socket = self._socket(zmq.DEALER, "member")
        socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEATS_MS["broker"]
        socket.connect_timeout = HEARTBEATS_MS["broker"][1]
        return self._connect(socket, address, "member", True)

    def _connect(self, socket: zmq.Socket[bytes], address: str, role: str, watch: bool) -> ZmqLink:
        socket.reconnect_ivl = RECONNECT_MS
        socket.reconnect_ivl_max = RECONNECT_MAX_MS
        if self._own is not None:
            assert self._keyring is not None
            socket.curve_serverkey = self._keyring.pair(role).public
            socket.curve_secretkey = self._own.secret
            socket.curve_publickey = self._own.public
        try:
            link = ZmqLink(socket, address, watch, self._landing, self._limits)
            socket.connect(address)
        except (zmq.ZMQError, OSError) as error:
            socket.close(0)
            raise ConfigError(f"address {address}", [f"{error}; use tcp://HOST:PORT"]) from None
        self._open.add(link)
        link.on_close = self._open.discard
        return link

    def refusals(self) -> dict[str, int]:
        refused: Counter[str] = Counter() if self._doorkeeper is None else Counter(self._doorkeeper.refused)
        for end in list(self._open):
            if isinstance(end, ZmqListener):
                refused.update({why: count for why, count in end.refused.items() if why != DENIED})
        return dict(refused)

    def close(self) -> None:
        for end in list(self._open):
            end.close()
        self._open.clear()
        # Terminating waits for what lingers, at most LINGER_MS; it also ends the doorkeeper's receive.
        self._context.term()
        if self._doorkeeper is not None:
            self._doorkeeper.join()
