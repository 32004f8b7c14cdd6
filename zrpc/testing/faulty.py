"""A transport whose messages meet faults: a wrapper around any other, with the same five verbs.

One rule: whoever uses it cannot tell it from the inner one but by what the faults do. What comes late is sent from
the timer's thread; if that consumes the edge of an end's descriptor, the end rings a bell that its descriptor includes.
"""

from __future__ import annotations

import contextlib
import random
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from zrpc.errors import Unavailable, ZrpcError
from zrpc.ids import BROKER_ID
from zrpc.testing.timers import Timer
from zrpc.transport.base import Frames, Link, Listener, Pollable, Received, Transport, TransportStatistics
from zrpc.transport.poller import Waker
from zrpc.wire.envelope import Buffer, Envelope, Kind, unpack
from zrpc.wire.messages import TO_BROKER, TO_MEMBER, Hello, Member, Members, Welcome, read

BROKER: Final = "(broker)"
"""The broker, where a fault names who sends or receives. No worker can have this name."""
UNKNOWN: Final = "(unknown)"
"""Somebody of whom nothing has been heard yet."""
UNREADABLE: Final = "(unreadable)"
"""The kind of a message that cannot be read."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message, as faults see it: the `number`th of its kind from `sender` to `receiver`."""

    kind: str
    sender: str
    receiver: str
    number: int


@dataclass(slots=True)
class Verdict:
    """What is to become of a message. Times are seconds."""

    is_dropped: bool = False
    delay: float = 0.0
    may_be_overtaken: bool = False
    repetitions: list[float] = field(default_factory=list)
    damage: random.Random | None = None


class Names:
    """Which address and which id belongs to which worker, as far as messages have told."""

    def __init__(self) -> None:
        self._of_address: dict[str, str] = {}
        self._of_id: dict[int, str] = {BROKER_ID: BROKER}

    def bound(self, address: str, name: str) -> None:
        """A listener of `name`'s has this address."""
        self._of_address[address] = name

    def learn(self, member: Member) -> None:
        """The broker has told of a member."""
        self._of_address[member.address] = member.name
        self._of_id[member.id] = member.name

    def at(self, address: str) -> str:
        """Who listens at an address."""
        return self._of_address.get(address, UNKNOWN)

    def of_id(self, worker_id: int) -> str:
        """Who has an id."""
        return self._of_id.get(worker_id, UNKNOWN)


class Judge(Protocol):
    """Decides what becomes of messages; a `FaultPlan` is one."""

    timer: Timer
    names: Names

    def judge(self, frames: Frames, sender: str, receiver: str) -> Verdict | None:
        """What is to become of a message; None: nothing, it goes its way."""


def kind_of(frames: Frames) -> str:
    """The name of a message's kind."""
    envelope = _open(frames)
    if envelope is None:
        return UNREADABLE
    return Kind(envelope.kind).name if envelope.kind in Kind._value2member_map_ else str(envelope.kind)


def _open(frames: Any) -> Envelope | None:
    try:
        return unpack(frames)
    except ZrpcError:
        return None


def damaged(frames: Frames, chance: random.Random) -> list[bytes]:
    """A copy of some frames with one to four bytes of one of them changed."""
    copies = [bytearray(frame) for frame in frames]
    victims = [copy for copy in copies if copy]
    if victims:
        victim = chance.choice(victims)
        for _ in range(chance.randint(1, 4)):
            victim[chance.randrange(len(victim))] ^= chance.randint(1, 255)
    return [bytes(copy) for copy in copies]


class _Bell:
    """A descriptor that is readable when the inner one is, or when the bell was rung."""

    def __init__(self, inner: Pollable) -> None:
        self._waker = Waker()
        self._epoll = select.epoll()
        self._epoll.register(inner.fileno(), select.EPOLLIN)
        self._epoll.register(self._waker.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def ring(self) -> None:
        self._waker.wake()

    def clear(self) -> None:
        self._waker.clear()

    def close(self) -> None:
        self._epoll.close()
        self._waker.close()


class _Way:
    """One direction of one connection. What is in order on it stays in order, whatever is late."""

    def __init__(self, plan: Judge, sender: str, receiver: Callable[[], str], bell: _Bell) -> None:
        self._plan = plan
        self._sender = sender
        self._receiver = receiver
        self._bell = bell
        self._lock = threading.Lock()
        self._waiting = 0
        self._last_due = 0.0

    def send(self, frames: Frames, deliver: Callable[[Frames], bool]) -> bool:
        """Send, drop or put off a message; True when the edge of the end's input was consumed."""
        verdict = self._plan.judge(frames, self._sender, self._receiver())
        if verdict is None and not self._waiting:
            return deliver(frames)
        verdict = verdict or Verdict()
        if verdict.is_dropped:
            return False
        if verdict.damage is not None:
            frames = damaged(frames, verdict.damage)
        has_input = False
        if verdict.may_be_overtaken:
            self._put_off(frames, deliver, verdict.delay)
        elif not self._queue(frames, deliver, verdict.delay):
            has_input = deliver(frames)
        for after in verdict.repetitions:
            if after or verdict.delay or self._waiting:
                self._put_off(frames, deliver, verdict.delay + after)
            else:
                has_input = deliver(frames) or has_input
        return has_input

    def _queue(self, frames: Frames, deliver: Callable[[Frames], bool], delay: float) -> bool:
        """Put a message off behind those that wait already; False when it need not wait."""
        timer = self._plan.timer
        with self._lock:
            if not delay and not self._waiting:
                return False
            self._waiting += 1
            self._last_due = max(self._last_due, timer.now() + delay)
            due = self._last_due
        copied = _copied(frames)

        def go() -> None:
            try:
                self._deliver_late(copied, deliver)
            finally:
                with self._lock:
                    self._waiting -= 1

        timer.call_at(due, go)
        return True

    def _put_off(self, frames: Frames, deliver: Callable[[Frames], bool], delay: float) -> None:
        copied = _copied(frames)
        timer = self._plan.timer
        timer.call_at(timer.now() + delay, lambda: self._deliver_late(copied, deliver))

    def _deliver_late(self, frames: Frames, deliver: Callable[[Frames], bool]) -> None:
        with contextlib.suppress(Unavailable):  # the connection has been closed since
            if deliver(frames):
                self._bell.ring()


def _copied(frames: Frames) -> list[Buffer]:
    """The frames as they are now: they may be views of tensors that change."""
    return [bytes(frame) for frame in frames]


class _End:
    """What both ends share: a descriptor that includes the bell."""

    def __init__(self, plan: Judge, name: str, inner: Any) -> None:
        self._plan = plan
        self._name = name
        self._inner = inner
        self._bell = _Bell(inner)
        self._is_closed = False
        self.address: str = inner.address
        self.on_close: Callable[[_End], None] | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self._inner.is_busy)

    def fileno(self) -> int:
        return self._bell.fileno()

    def monitor_fileno(self) -> int | None:
        found: int | None = self._inner.monitor_fileno()
        return found

    def statistics(self) -> TransportStatistics:
        found: TransportStatistics = self._inner.statistics()
        return found

    def _take(self) -> Any:
        message = self._inner.receive()
        if message is None:
            self._bell.clear()
            message = self._inner.receive()  # it may have come before the bell was silenced
        return message

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._bell.close()
            self._inner.close()
            if self.on_close is not None:
                self.on_close(self)


class FaultyLink(_End):
    """A link whose messages meet faults."""

    def __init__(self, plan: Judge, name: str, inner: Link) -> None:
        super().__init__(plan, name, inner)
        self._way = _Way(plan, name, self._find_receiver, self._bell)

    def _find_receiver(self) -> str:
        return self._plan.names.at(self.address)

    def send(self, frames: Frames) -> bool:
        return self._way.send(frames, self._inner.send)

    def receive(self) -> list[Any] | None:
        frames: list[Any] | None = self._take()
        if frames is not None and self._find_receiver() == BROKER:
            self._learn(frames)
        return frames

    def _learn(self, frames: list[Any]) -> None:
        """Who has which address and id stands in what the broker tells."""
        envelope = _open(frames)
        if envelope is None or envelope.kind not in (Kind.WELCOME, Kind.MEMBERS):
            return
        with contextlib.suppress(ZrpcError):
            message = read(envelope, TO_MEMBER)
            if isinstance(message, Welcome):
                told = message.members.members
            else:
                told = message.up.members if isinstance(message, Members) else ()
            for member in told:
                self._plan.names.learn(member)

    def events(self) -> list[str]:
        found: list[str] = self._inner.events()
        return found


class FaultyListener(_End):
    """A listener whose answers meet faults."""

    def __init__(self, plan: Judge, name: str, inner: Listener) -> None:
        super().__init__(plan, name, inner)
        self._ways: dict[bytes, _Way] = {}
        self._routes: dict[bytes, int | str] = {}

    def send(self, route: bytes, frames: Frames) -> bool:
        way = self._ways.get(route)
        if way is None:
            way = self._ways[route] = _Way(self._plan, self._name, lambda: self._find(route), self._bell)
        inner = self._inner
        return way.send(frames, lambda late: bool(inner.send(route, late)))

    def _find(self, route: bytes) -> str:
        who = self._routes.get(route, -2)
        return who if isinstance(who, str) else self._plan.names.of_id(who)

    def receive(self) -> Received | None:
        received: Received | None = self._take()
        if received is not None:
            self._learn(received)
        return received

    def _learn(self, received: Received) -> None:
        """Who is at the other end of a route stands in what comes along it."""
        known = self._routes.get(received.route)
        if known is not None and known != UNKNOWN:
            return
        envelope = _open(received.frames)
        if envelope is None:
            return
        if envelope.kind == Kind.HELLO:
            with contextlib.suppress(ZrpcError):
                hello = read(envelope, TO_BROKER)
                if isinstance(hello, Hello):
                    self._routes[received.route] = hello.name
        elif envelope.sender >= 0:
            self._routes[received.route] = envelope.sender

    def is_broker(self, route: bytes) -> bool:
        found: bool = self._inner.is_broker(route)
        return found

    def lost(self) -> list[bytes]:
        lost: list[bytes] = self._inner.lost()
        for route in lost:
            self._ways.pop(route, None)
            self._routes.pop(route, None)
        return lost


class FaultyTransport:
    """A transport whose messages meet the faults of a plan. `name` is who sends them."""

    def __init__(self, inner: Transport, plan: Judge, name: str) -> None:
        self._inner = inner
        self._plan = plan
        self._name = name
        self._open: set[_End] = set()

    def __repr__(self) -> str:
        return f"<FaultyTransport of {self._name}, {self._plan!r}>"

    def listen(self, address: str, role: str, watch: bool = False) -> FaultyListener:
        """As the inner transport; the address is this worker's from now on."""
        listener = FaultyListener(self._plan, self._name, self._inner.listen(address, role, watch))
        self._plan.names.bound(listener.address, self._name)
        self._keep(listener)
        return listener

    def connect(self, address: str, role: str, watch: bool = False) -> FaultyLink:
        """As the inner transport."""
        if role == "broker":
            self._plan.names.bound(address, BROKER)
        link = FaultyLink(self._plan, self._name, self._inner.connect(address, role, watch))
        self._keep(link)
        return link

    def sentinel(self, address: str) -> Link:
        """As the inner transport: it carries no message that a fault could meet."""
        return self._inner.sentinel(address)

    def _keep(self, end: _End) -> None:
        self._open.add(end)
        end.on_close = self._open.discard

    def refusals(self) -> dict[str, int]:
        """As the inner transport."""
        return self._inner.refusals()

    def close(self) -> None:
        """Close everything that was opened here, and the inner transport."""
        for end in list(self._open):
            end.close()
        self._inner.close()
