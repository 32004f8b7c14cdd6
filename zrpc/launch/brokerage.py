"""A real broker for the launcher, and for `zrpc broker`.

One rule: whoever starts a broker here gets one thing to stop, which takes its sockets along.
"""

from __future__ import annotations

from zrpc.broker.server import BrokerServer
from zrpc.launch.request import BrokerRequest
from zrpc.protocol.effects import (
    MemberUp,
    News,
    ScaleRequested,
    StandbyJoined,
    StandbyLost,
    SteppedDown,
    StopRequested,
    TookOver,
)
from zrpc.transport.router import ZmqTransport


class RunningBroker:
    """A broker with the transport that it uses."""

    def __init__(self, request: BrokerRequest) -> None:
        def take(news: News) -> None:
            if isinstance(news, MemberUp):
                request.joined(news.member.name)
            elif isinstance(news, StopRequested) and news.names is None:
                request.stop_asked(news.why or "zrpc stop")
            elif isinstance(news, ScaleRequested):
                request.scale(news.role, news.count)
            else:
                remark = describe_pairing(news)
                if remark:
                    request.remark(remark)

        options = request.options
        self._transport = ZmqTransport(request.keyring, "broker", broker_heartbeats_ms=options.connection_heartbeats_ms)
        self._server = BrokerServer(
            self._transport,
            request.bind,
            cluster=request.cluster,
            options=options,
            on_event=take,
            scalable=request.roles,
            follows=request.follows,
        )
        try:
            self._server.start()
        except BaseException:
            self._transport.close()
            raise
        if request.expected:
            self._server.expect(request.expected)

    @property
    def address(self) -> str:
        return self._server.address

    def exited(self, name: str, pid: int, why: str) -> None:
        self._server.exited(name, pid, why)

    def stop(self, timeout: float = 5.0) -> None:
        self._server.stop(timeout)
        self._transport.close()


def describe_pairing(news: News) -> str:
    """What has happened between a broker and its standby, in a sentence; empty for other news."""
    if isinstance(news, TookOver):
        return f"it has taken over: {news.why}"
    if isinstance(news, SteppedDown):
        return f"the broker at {news.address} has taken over; this one stands by for it now"
    if isinstance(news, StandbyJoined):
        return f"the broker at {news.address} stands by"
    if isinstance(news, StandbyLost):
        return f"the standby at {news.address} {'has left' if news.has_left else 'is lost'}"
    return ""


def start_broker(request: BrokerRequest) -> RunningBroker:
    """Start a broker in this process. Raises `ConfigError` when its address cannot be bound."""
    return RunningBroker(request)
