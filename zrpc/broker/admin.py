"""Questions to a running cluster by a tool that is no member of it: status, stop, inspect.

One rule: the tool proves the member key, joins nothing, and waits for each answer until a deadline.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final

import msgpack

from zrpc.broker.client import CLIENT_LIMITS, WHY_SILENT
from zrpc.broker.lines import Lines, split_addresses
from zrpc.clock import Clock, monotonic, time_left
from zrpc.errors import BrokerUnreachable, CallTimeout, FrameError, Refused, RemoteFault, UnknownWorker
from zrpc.ids import NO_ID
from zrpc.transport.base import Link, Transport
from zrpc.transport.curve import Keyring
from zrpc.transport.poller import Poller
from zrpc.transport.router import ZmqTransport
from zrpc.wire.envelope import Codec, Envelope, Kind, pack, unpack
from zrpc.wire.fields import unpack_map
from zrpc.wire.messages import Answer, Message, Query, Refusal, Scale, Stop, read, seal
from zrpc.wire.succession import MEMBER_READS, Elsewhere

SECOND_PATIENCE: Final = 1.0
"""Seconds that a broker in charge has to answer when a standby has."""


class _Events:
    """The second descriptor of a link."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class AdminClient:
    """Asks the broker at `address`, and workers directly. Use it as a context manager, from one thread. `address` may be
    several, with commas between: the broker in charge is asked then, and a standby if there is no other.

    `keyring` None: without encryption. `transport` instead of a keyring: that one, which is not closed here.
    """

    def __init__(
        self,
        address: str,
        keyring: Keyring | None = None,
        *,
        transport: Transport | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.address = address
        self._clock = clock
        self._own = ZmqTransport(keyring, "member") if transport is None else None
        self._transport: Transport = self._own if transport is None else transport  # type: ignore[assignment]
        self._numbers = itertools.count(1)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections."""
        if self._own is not None:
            self._own.close()

    def status(self, timeout: float = 5.0) -> dict[str, Any]:
        """The cluster: name, broker address and uptime (s), refusals, and `members`, each with its statistics.

        Raises `BrokerUnreachable` when there is no answer within `timeout` seconds.
        """
        return self._ask_broker(Query("status"), timeout)

    def stop(self, names: Iterable[str] | None = None, timeout: float = 5.0, why: str = "") -> list[str]:
        """Ask workers to stop, None: all; returns the names that were asked. They end on their own time.

        Raises `BrokerUnreachable`, or `UnknownWorker` when the first of `names` that is wrong is no living worker (the
        others have been asked).
        """
        wanted = None if names is None else tuple(names)
        answer = self._ask_broker(Stop(why or "stop was requested", wanted), timeout)
        if answer.get("unknown"):
            raise UnknownWorker(answer["unknown"][0], [m["name"] for m in self.status(timeout)["members"]])
        return list(answer.get("stopping", ()))

    def events(self, since: int = 0, timeout: float = 5.0) -> list[dict[str, Any]]:
        """What has happened, oldest first: entries with numbers above `since` (see `zrpc.protocol.chronicle`).

        Raises `BrokerUnreachable` when there is no answer within `timeout` seconds.
        """
        return list(self._ask_broker(Query("events", since), timeout)["events"])

    def scale(self, role: str, count: int, timeout: float = 5.0) -> None:
        """Ask for `count` workers of a role; they come and go on their own time.

        Raises `BrokerUnreachable`, or `Refused` when the cluster has no launcher or no such role.
        """
        answer = self._ask_broker(Scale(role, count), timeout)
        if "error" in answer:
            raise Refused(str(answer["error"]))

    def inspect(self, member_address: str, request: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
        """Ask a worker itself: {"what": "ping" | "statistics" | "functions" | "reach"}.

        Raises `CallTimeout` when there is no answer within `timeout` seconds, `RemoteFault` when it could not answer.
        """
        what = str(request.get("what", "?"))
        number = next(self._numbers)
        body = msgpack.packb(request)
        frames = pack(Envelope(Kind.INSPECT, number, NO_ID, codec=Codec.MSGPACK, body=body))
        envelope, why = self._exchange(member_address, "member", frames, number, timeout)
        if envelope is None:
            raise CallTimeout(member_address, f"inspect {what}", timeout, f"({WHY_SILENT[why]})")
        if envelope.codec != Codec.MSGPACK:
            raise FrameError(f"the answer of {member_address} to inspect {what} has codec {envelope.codec}")
        answer = unpack_map(envelope.body, "an inspection")
        if envelope.kind == Kind.ERROR:
            # The letters of `serialization.failures`, which this module cannot import: tools start without torch.
            raise RemoteFault(str(answer.get("x", answer)), str(answer.get("q", "")), member_address)
        return answer

    def _ask_broker(self, message: Message, timeout: float) -> dict[str, Any]:
        number = next(self._numbers)
        frames = seal(message, NO_ID, 0, message_id=number)
        lines = Lines(self._transport, split_addresses(self.address))
        poller = Poller()
        try:
            poller.add(lines)
            poller.add(lines.watch)
            return _Question(lines, frames, number, self._clock).ask(poller, timeout, self.address)
        finally:
            poller.close()
            lines.close()

    def _exchange(
        self, address: str, role: str, frames: Any, number: int, timeout: float
    ) -> tuple[Envelope | None, str]:
        """Send one message on a link of its own; the answer, or None and what last happened to the link."""
        deadline = self._clock() + timeout
        link = self._transport.connect(address, role, watch=True)
        poller = Poller()
        poller.add(link)
        monitor = link.monitor_fileno()
        if monitor is not None:
            poller.add(_Events(monitor))
        last = ""
        try:
            link.send(frames)
            while True:
                for what in link.events():
                    last = what
                envelope = self._receive(link, number)
                left = time_left(deadline, self._clock())
                if envelope is not None or not left:
                    return envelope, last
                poller.wait(left)
        finally:
            poller.close()
            link.close()

    @staticmethod
    def _receive(link: Link, number: int) -> Envelope | None:
        """The answer with that number, if it has come. Raises `VersionMismatch` for a peer of another version."""
        while True:
            frames = link.receive()
            if frames is None:
                return None
            envelope = unpack(frames, CLIENT_LIMITS)
            if envelope.message_id == number:
                return envelope


class _Question:
    """One question to the brokers at some addresses, of which one is in charge."""

    def __init__(self, lines: Lines, frames: Any, number: int, clock: Clock) -> None:
        self._lines = lines
        self._frames = frames
        self._number = number
        self._clock = clock
        self._silent = set(lines.addresses())
        self._second: dict[str, Any] | None = None
        """The answer of a broker that is not in charge."""
        self._last = ""

    def ask(self, poller: Poller, timeout: float, address: str) -> dict[str, Any]:
        """The answer. Raises `BrokerUnreachable`, and what the broker refuses with."""
        began = self._clock()
        for line in self._lines.addresses():
            self._lines.send(line, self._frames)
        while True:
            for _, what in iter(self._lines.watch.receive, None):
                self._last = what if self._last != "standby" else self._last
            for line, frames in iter(self._lines.receive, None):
                answer = self._take(line, frames)
                if answer is not None:
                    return answer
            now = self._clock()
            patience = timeout if self._second is None or not self._silent else min(timeout, SECOND_PATIENCE)
            left = time_left(began + patience, now)
            if self._second is not None and (not left or not self._silent):
                return self._second
            if not left:
                raise BrokerUnreachable(address, timeout, WHY_SILENT[self._last])
            if not self._lines.is_busy:
                poller.wait(left)

    def _take(self, line: str, frames: Any) -> dict[str, Any] | None:
        envelope = unpack(frames, CLIENT_LIMITS)
        if envelope.message_id != self._number:
            return None
        message = read(envelope, MEMBER_READS)
        self._silent.discard(line)
        if isinstance(message, Refusal):
            raise message.to_error()
        if isinstance(message, Elsewhere):
            self._go_to(message.address)
            return None
        if not isinstance(message, Answer):
            raise FrameError(f"the broker at {line} answered with a {type(message).__name__}")
        if message.data.get("is_in_charge", True):
            return message.data
        self._second = message.data
        return None

    def _go_to(self, address: str) -> None:
        """A standby says who is in charge."""
        if address and address not in self._lines.addresses():
            self._lines.open(address)
            self._lines.send(address, self._frames)
            self._silent.add(address)
        self._last = "standby"
