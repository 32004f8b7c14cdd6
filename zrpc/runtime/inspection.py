"""What an agent tells about itself to tools and to other workers: plain values, no pickles.

One rule: a request that is not understood is answered with what can be asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgpack

from zrpc.clock import Clock, monotonic, wall
from zrpc.errors import FrameError, ZrpcError
from zrpc.telemetry.collect import TraceDesk
from zrpc.wire.envelope import Codec, Envelope
from zrpc.wire.messages import Member

REACH_TIMEOUT = 5.0
"""Seconds that a worker has to answer another one's ping."""

Reply = Callable[[dict[str, Any]], None]


class Inspected(Protocol):
    """The agent, as it is asked about itself."""

    def statistics(self) -> dict[str, Any]: ...

    def functions(self) -> list[str]: ...

    def members(self) -> list[Member]: ...

    def ping(self, worker_id: int, timeout: float, done: Callable[[BaseException | None], None]) -> None: ...


def write_map(envelope: Envelope, data: Mapping[str, Any]) -> None:
    """Make a map of plain values the body of an envelope."""
    envelope.codec = Codec.MSGPACK
    envelope.body = msgpack.packb(dict(data))


def read_map(envelope: Envelope) -> dict[str, Any]:
    """The map in an envelope. Raises `FrameError`."""
    if envelope.codec != Codec.MSGPACK:
        raise FrameError("a question or its answer is a msgpack map")
    try:
        data = msgpack.unpackb(envelope.body, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"a question or its answer is not msgpack: {error}") from None
    if not isinstance(data, dict):
        raise FrameError("a question or its answer is not a map")
    return data


class Inspection:
    """Answers questions about one agent."""

    def __init__(self, agent: Inspected, traces: TraceDesk, clock: Clock = monotonic) -> None:
        self._agent = agent
        self._traces = traces
        self._clock = clock

    def answer(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Answer a question: {'what': 'ping' | 'statistics' | 'functions' | 'reach' | 'trace'}. `reply` is called once."""
        what = request.get("what")
        if what == "ping":
            reply({"wall": wall()})
        elif what == "statistics":
            reply(self._agent.statistics())
        elif what == "functions":
            reply({"functions": self._agent.functions()})
        elif what == "reach":
            self._reach(reply)
        elif what == "trace":
            reply(self._traces.answer(request))
        else:
            reply({"error": f"cannot tell {what!r}; ask for ping, statistics, functions, reach, trace, calls or tasks"})

    def _reach(self, reply: Reply) -> None:
        """Ping everybody, and answer when all have replied or run out of time."""
        members = self._agent.members()
        found: dict[str, Any] = {}
        lock = threading.Lock()
        if not members:
            reply({"reach": found})

        def start(member: Member) -> None:
            begun = self._clock()

            def done(error: BaseException | None) -> None:
                with lock:
                    milliseconds = (self._clock() - begun) * 1e3
                    found[member.name] = {"ms": milliseconds} if error is None else {"error": str(error)}
                    is_last = len(found) == len(members)
                if is_last:
                    reply({"reach": found})

            try:
                self._agent.ping(member.id, REACH_TIMEOUT, done)
            except ZrpcError as error:
                done(error)

        for member in members:
            start(member)
