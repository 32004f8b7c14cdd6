"""A broker with a standby: real servers, clients and tools, in one process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import KEYRING, LONG, Cluster, running

from zrpc.broker.admin import AdminClient
from zrpc.broker.server import BrokerServer
from zrpc.clock import monotonic
from zrpc.errors import BrokerUnreachable
from zrpc.protocol.effects import News, StandbyJoined, StopRequested, TookOver
from zrpc.transport.router import ZmqTransport
from zrpc.wire.envelope import unpack
from zrpc.wire.messages import read, seal
from zrpc.wire.succession import STANDBY_READS, Follow


class Standby:
    """A standby for the broker of a cluster."""

    def __init__(self, cluster: Cluster, kind: str) -> None:
        self.news: list[News] = []
        self._changed = threading.Condition()
        self.server = BrokerServer(
            cluster.transport("broker"),
            "memory://standby" if kind == "memory" else "tcp://127.0.0.1:0",
            cluster="test",
            on_event=self._note,
            follows=cluster.address,
        )
        self.server.start()

    def _note(self, news: News) -> None:
        with self._changed:
            self.news.append(news)
            self._changed.notify_all()

    def wait_for_news(self, kind: type[Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: any(isinstance(n, kind) for n in self.news), LONG), self.news
            return next(n for n in self.news if isinstance(n, kind))


@contextlib.contextmanager
def standing_by(cluster: Cluster, kind: str) -> Iterator[Standby]:
    standby = Standby(cluster, kind)
    try:
        cluster.wait_for_news(StandbyJoined)
        yield standby
    finally:
        standby.server.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + LONG
    while not condition():
        assert monotonic() < deadline


@pytest.mark.parametrize("kind", ["memory", "tcp"])
def test_members_go_over_to_the_standby_when_the_broker_is_gone(kind: str) -> None:
    with running(kind) as cluster, standing_by(cluster, kind) as standby:
        first = cluster.broker
        assert first is not None
        a, b = cluster.driver("a").join(), cluster.driver("b").join()
        wait_for(lambda: len(standby.server.status()["members"]) == 2)
        before = {m["name"]: (m["id"], m["incarnation"]) for m in first.status()["members"]}
        first.stop()
        standby.wait_for_news(TookOver)
        wait_for(lambda: a.client.broker == b.client.broker == standby.server.address)
        late = cluster.driver_at(f"{cluster.address},{standby.server.address}", "late").join()
        assert late.client.broker == standby.server.address
        after = {m["name"]: (m["id"], m["incarnation"]) for m in standby.server.status()["members"]}
        assert {name: after[name] for name in before} == before
        a.wait_for(lambda: "late" in a.client.members_by_name)


def test_tools_find_the_broker_in_charge_among_several() -> None:
    with running("memory") as cluster, standing_by(cluster, "memory") as standby:
        cluster.driver("a").join()
        wait_for(lambda: len(standby.server.status()["members"]) == 1)
        transport = cluster.transport("member")
        both = AdminClient(f"{standby.server.address},{cluster.address}", transport=transport)
        status = both.status(LONG)
        assert (status["address"], status["is_in_charge"]) == (cluster.address, True)
        assert status["standby"]["address"] == standby.server.address
        one = AdminClient(standby.server.address, transport=transport)
        seen = one.status(LONG)
        assert (seen["is_in_charge"], seen["primary"]) == (False, cluster.address)
        assert [m["name"] for m in seen["members"]] == ["a"]
        assert [e["kind"] for e in one.events(0, LONG)] == ["began"]
        assert "standby" in [e["kind"] for e in both.events(0, LONG)]
        assert one.stop(["a"], LONG) == ["a"]  # it says who is in charge


def test_a_standby_whose_primary_is_silent_is_told_as_such() -> None:
    with running("memory") as cluster:
        transport = cluster.transport("broker")
        alone = BrokerServer(transport, "memory://alone", cluster="test", follows="memory://nowhere")
        alone.start()
        admin = AdminClient("memory://alone", transport=cluster.transport("member"))
        with pytest.raises(BrokerUnreachable, match="only a standby broker answered"):
            admin.stop(None, 0.3)
        alone.stop()


def test_a_standby_ends_when_everybody_was_asked_to_stop() -> None:
    with running("memory") as cluster, standing_by(cluster, "memory") as standby:
        assert cluster.broker is not None
        cluster.broker.request_stop(None, "enough")
        assert standby.wait_for_news(StopRequested).why == "enough"


def test_a_member_cannot_act_as_a_standby() -> None:
    with running("tcp") as cluster:
        assert cluster.broker is not None
        member = ZmqTransport(KEYRING.for_members(), "member")
        broker = ZmqTransport(KEYRING, "broker")
        links = [transport.connect(cluster.address, "broker") for transport in (member, broker)]
        links[0].send(seal(Follow("tcp://127.0.0.1:1", 1 << 62, True), -1, 1))
        wait_for(lambda: "a member acts as a broker" in cluster.broker.status()["unreadable"])
        assert cluster.broker.status()["is_in_charge"]
        links[1].send(seal(Follow("tcp://127.0.0.1:1"), -1, 1))
        cluster.wait_for_news(StandbyJoined)
        found: list[Any] = []
        wait_for(lambda: bool(found) or ((frames := links[1].receive()) is not None and not found.append(frames)))
        assert read(unpack(found[0]), STANDBY_READS).full  # type: ignore[attr-defined]
        assert links[0].receive() is None
        member.close()
        broker.close()
