from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import msgpack
import pytest
from cluster import KEYRING, LONG, running

from zrpc.broker.admin import AdminClient
from zrpc.clock import monotonic
from zrpc.errors import BrokerUnreachable, CallTimeout, Refused, RemoteFault, UnknownWorker
from zrpc.protocol.effects import MemberGone, MemberUp, ScaleRequested, StopRequested
from zrpc.transport.base import Listener, Transport
from zrpc.transport.poller import Poller
from zrpc.wire.envelope import Codec, Envelope, Kind, pack, unpack

BOTH = pytest.mark.parametrize("kind", ["memory", "tcp"])


@BOTH
def test_status_and_stop(kind: str) -> None:
    with running(kind) as cluster:
        a = cluster.driver("a", role="shard", pid=3, host="h").join()
        b = cluster.driver("b").join()
        with AdminClient(cluster.address, transport=cluster.transport("member")) as admin:
            status = admin.status(LONG)
            assert (status["cluster"], status["address"], status["refusals"]) == ("test", cluster.address, {})
            members = {member["name"]: member for member in status["members"]}
            assert set(members) == {"a", "b"}
            assert {"id", "incarnation", "address", "role", "state", "pid", "host", "uptime", "statistics"} <= set(
                members["a"]
            )
            assert (members["a"]["role"], members["a"]["pid"], members["a"]["state"]) == ("shard", 3, "up")
            assert admin.stop(["a"], LONG, "enough") == ["a"]
            assert a.wait_for_news(StopRequested).why == "enough"
            with pytest.raises(UnknownWorker, match=r"'x'\. Known workers: a, b"):
                admin.stop(["x"], LONG)
            assert admin.stop(None, LONG) == ["a", "b"]
            b.wait_for_news(StopRequested)
            assert len(cluster.wait_for_news(StopRequested).names) == 1


def test_its_own_transport_has_the_key_of_a_member() -> None:
    with running("tcp") as cluster, AdminClient(cluster.address, KEYRING) as admin:
        assert admin.status(LONG)["members"] == []


def test_without_the_key_there_is_no_answer() -> None:
    with (
        running("tcp") as cluster,
        AdminClient(cluster.address, None) as admin,
        pytest.raises(BrokerUnreachable, match=cluster.address),
    ):
        admin.status(0.3)


def test_nobody_there_is_told() -> None:
    with running("memory") as cluster:
        admin = AdminClient("memory://nowhere", transport=cluster.transport("member"))
        with pytest.raises(BrokerUnreachable, match="nobody listens there"):
            admin.status(0.05)


@contextlib.contextmanager
def worker(transport: Transport, address: str, answer: Callable[[Envelope], Envelope]) -> Iterator[Listener]:
    """A listener that answers one inspection."""
    listener = transport.listen(address, "member")

    def serve() -> None:
        poller = Poller()
        poller.add(listener)
        deadline = monotonic() + LONG
        while (received := listener.receive()) is None and monotonic() < deadline:
            poller.wait(deadline - monotonic())
        assert received is not None
        listener.send(received.route, pack(answer(unpack(received.frames))))
        poller.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener
    thread.join(LONG)


@BOTH
def test_a_worker_is_inspected_directly(kind: str) -> None:
    def answer(request: Envelope) -> Envelope:
        assert (request.kind, request.codec) == (Kind.INSPECT, Codec.MSGPACK)
        body = msgpack.packb({"heard": msgpack.unpackb(request.body)})
        return Envelope(Kind.ANSWER, request.message_id, codec=Codec.MSGPACK, body=body)

    with running(kind) as cluster:
        address = "memory://w" if kind == "memory" else "tcp://127.0.0.1:0"
        admin = AdminClient(cluster.address, transport=cluster.transport("member"))
        with worker(cluster.transport("member"), address, answer) as listener:
            assert admin.inspect(listener.address, {"what": "ping"}, LONG) == {"heard": {"what": "ping"}}


def test_an_inspection_that_fails_there_is_a_remote_fault() -> None:
    def answer(request: Envelope) -> Envelope:
        body = msgpack.packb({"type": "ValueError", "message": "no such thing"})
        return Envelope(Kind.ERROR, request.message_id, codec=Codec.MSGPACK, body=body)

    with running("memory") as cluster:
        admin = AdminClient(cluster.address, transport=cluster.transport("member"))
        with (
            worker(cluster.transport("member"), "memory://w", answer),
            pytest.raises(RemoteFault, match="no such thing"),
        ):
            admin.inspect("memory://w", {"what": "x"}, LONG)


def test_a_worker_that_does_not_answer_is_a_timeout() -> None:
    with running("memory") as cluster:
        admin = AdminClient(cluster.address, transport=cluster.transport("member"))
        with pytest.raises(CallTimeout, match=r"inspect ping on worker 'memory://w'.*nobody listens there"):
            admin.inspect("memory://w", {"what": "ping"}, 0.05)


@BOTH
def test_events_are_numbered_and_asked_for_from_a_number_on(kind: str) -> None:
    with running(kind) as cluster:
        cluster.driver("a", role="shard").join()
        cluster.wait_for_news(MemberUp)
        admin = AdminClient(cluster.address, transport=cluster.transport("member"))
        began, joined = admin.events(timeout=LONG)
        assert (began["kind"], began["name"], joined["kind"], joined["name"]) == ("began", "test", "joined", "a")
        assert admin.events(joined["number"], LONG) == []
        cluster.driver("b").join().leave()
        cluster.wait_for_news(MemberGone)
        assert [event["kind"] for event in admin.events(joined["number"], LONG)] == ["joined", "left"]


def test_who_scales_is_heard_if_somebody_can_do_it() -> None:
    with running("memory") as cluster:
        assert cluster.broker is not None
        admin = AdminClient(cluster.address, transport=cluster.transport("member"))
        with pytest.raises(Refused, match="no role 'shard' that can be scaled; there are none: no launcher"):
            admin.scale("shard", 3, LONG)
        cluster.broker._seat._scalable = cluster.broker._seat.registry.scalable = frozenset(["shard"])
        admin.scale("shard", 3, LONG)
        assert cluster.wait_for_news(ScaleRequested) == ScaleRequested("shard", 3)
