from __future__ import annotations

import random

import pytest
from cluster import LONG, running

from zrpc.broker.server import BROKER_LIMITS, BrokerServer
from zrpc.clock import monotonic
from zrpc.errors import ConfigError, FrameError, VersionMismatch
from zrpc.protocol.effects import MemberGone, MemberUp, News
from zrpc.transport.base import Link
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.poller import Poller
from zrpc.transport.watch import LinkWatch
from zrpc.wire.envelope import VERSION, Codec, Envelope, Kind, pack, unpack
from zrpc.wire.messages import TO_MEMBER, Answer, Hello, Query, Refusal, Welcome, read, seal

BOTH = pytest.mark.parametrize("kind", ["memory", "tcp"])


def receive(link: Link) -> list[bytes]:
    """The next message on a raw link."""
    poller = Poller()
    poller.add(link)
    deadline = monotonic() + LONG
    try:
        while monotonic() < deadline:
            frames = link.receive()
            if frames is not None:
                return frames
            poller.wait(deadline - monotonic())
    finally:
        poller.close()
    raise AssertionError("no answer")


@BOTH
def test_garbage_is_counted_and_survived(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    randomness = random.Random(1)
    good = bytes(pack(Envelope(Kind.PROGRESS, codec=Codec.MSGPACK, body=b"\x80"))[0])
    garbage = [b"", b"x", good[:-1], good + b"x", b"Z\x01" + bytes(99), *[randomness.randbytes(60) for _ in range(50)]]
    with running(kind) as cluster:
        link = cluster.transport("member").connect(cluster.address, "broker")
        for frame in garbage:
            link.send([frame])
        link.send([good, b"one frame too many"])
        link.send(pack(Envelope(Kind.CALL, 1, codec=Codec.PYTHON, body=b"cos\nsystem\n.")))
        link.send(seal(Query(), -2, 0, message_id=77))
        answer = unpack(receive(link))
        assert answer.message_id == 77
        message = read(answer, TO_MEMBER)
        assert isinstance(message, Answer)
        assert message.data["unreadable"]["malformed"] >= 50
        assert sum(message.data["unreadable"].values()) == len(garbage) + 2
        cluster.driver("a").join()
    assert len([record for record in caplog.records if "could not be read" in record.message]) == 1


@BOTH
def test_another_version_is_answered_in_a_frame_that_tells_ours(kind: str) -> None:
    with running(kind) as cluster:
        link = cluster.transport("member").connect(cluster.address, "broker")
        frame = bytes(seal(Hello("a", 1, "tcp://h:1"), -2, 0)[0])
        link.send([frame[:1] + bytes([VERSION + 1]) + frame[2:]])
        answer = receive(link)
        assert bytes(answer[0])[1] == VERSION  # all that a peer of another version reads
        refusal = read(unpack(answer), TO_MEMBER)
        assert isinstance(refusal, Refusal)
        assert isinstance(refusal.to_error(), VersionMismatch)
        assert cluster.broker is not None
        assert cluster.broker.status()["unreadable"] == {f"protocol version {VERSION + 1}": 1}


def test_a_hello_that_cannot_be_read_is_refused_with_the_reason() -> None:
    with running("memory") as cluster:
        link = cluster.transport("member").connect(cluster.address, "broker")
        link.send(pack(Envelope(Kind.HELLO, codec=Codec.MSGPACK, body=b"\x80")))
        refusal = read(unpack(receive(link)), TO_MEMBER)
        assert isinstance(refusal, Refusal)
        error = refusal.to_error()
        assert isinstance(error, FrameError)
        assert "Hello has no name" in str(error)


def test_a_listener_for_events_that_fails_does_not_end_the_broker(caplog: pytest.LogCaptureFixture) -> None:
    def fail(news: News) -> None:
        raise RuntimeError("my own fault")

    network = MemoryNetwork()
    transport = MemoryTransport(network)
    server = BrokerServer(transport, "memory://0", cluster="c", on_event=fail)
    server.start()
    try:
        link = transport.connect(server.address, "broker")
        link.send(seal(Hello("a", 1, "tcp://h:1"), -2, 0))
        assert isinstance(read(unpack(receive(link)), TO_MEMBER), Welcome)
    finally:
        server.stop()
        transport.close()
    assert "my own fault" in caplog.text


def test_the_broker_tells_its_owner_who_comes_and_goes() -> None:
    with running("memory") as cluster:
        driver = cluster.driver("a", role="shard").join()
        assert cluster.wait_for_news(MemberUp).member.role == "shard"
        assert cluster.broker is not None
        assert [member.name for member in cluster.broker.members()] == ["a"]
        driver.leave()
        assert cluster.wait_for_news(MemberGone).why == "it left"
        assert cluster.broker.members() == []


def test_an_address_in_use_is_a_config_error() -> None:
    with running("tcp") as cluster:
        second = BrokerServer(cluster.transport("broker"), cluster.address, cluster="c")
        with pytest.raises(ConfigError, match=r"Address already in use|in use"):
            second.start()
        second.stop()


def test_stopping_is_idempotent_and_leaves_the_address_free() -> None:
    with running("tcp") as cluster:
        assert cluster.broker is not None
        cluster.broker.stop()
        cluster.broker.stop()
        cluster.start()
        cluster.driver("a").join()


def test_limits_of_the_broker_are_small() -> None:
    assert BROKER_LIMITS.buffers == 0
    with pytest.raises(FrameError):
        unpack(pack(Envelope(Kind.PROGRESS, buffers=[b"x"])), BROKER_LIMITS)


def test_a_watch_gives_one_event_at_a_time() -> None:
    network = MemoryNetwork()
    transport = MemoryTransport(network)
    link = transport.connect("memory://x", "broker", watch=True)
    listener = transport.listen("memory://x", "broker")
    listener.close()
    watch = LinkWatch(link, link.fileno())
    assert [watch.receive() for _ in range(4)] == ["refused", "connected", "disconnected", None]
    transport.close()
