from __future__ import annotations

import threading

import pytest
from cluster import KEYRING, LONG, running

from zrpc.broker.client import BrokerClient
from zrpc.clock import monotonic
from zrpc.errors import (
    BrokerUnreachable,
    ConfigError,
    GroupTimeout,
    InvalidName,
    InvalidTransition,
    JoinRefused,
    NameTaken,
    VersionMismatch,
    ZrpcError,
)
from zrpc.protocol.effects import (
    BrokerBack,
    BrokerLost,
    Counts,
    Fenced,
    Held,
    MemberGone,
    MemberUp,
    Released,
    StopRequested,
)
from zrpc.transport.curve import Keyring
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.router import ZmqTransport
from zrpc.wire.envelope import VERSION
from zrpc.wire.messages import GroupProgress, Hello, Refusal, seal

BOTH = pytest.mark.parametrize("kind", ["memory", "tcp"])


@BOTH
def test_members_hear_of_each_other(kind: str) -> None:
    with running(kind) as cluster:
        a = cluster.driver("a").join()
        b = cluster.driver("b").join()
        assert (a.client.id, b.client.id, a.client.cluster) == (0, 1, "test")
        assert a.wait_for_news(MemberUp).member == b.client.members_by_name["b"]
        assert set(b.client.members_by_id) == {0, 1}
        b.leave()
        assert a.wait_for_news(MemberGone).why == "it left"
        assert [member.name for member in a.client.members()] == ["a"]


@BOTH
def test_a_killed_member_is_noticed_by_its_connection(kind: str) -> None:
    with running(kind, death_timeout=1000.0, silence_timeout=1000.0) as cluster:
        a, b = cluster.driver("a").join(), cluster.driver("b").join()
        before = b.client.incarnation
        a.wait_for_news(MemberUp)
        b.kill()
        gone = a.wait_for_news(MemberGone)
        assert (gone.member.name, gone.why) == ("b", "its connection closed")
        again = cluster.driver("b").join()
        assert (again.client.id, again.client.life) == (1, 1)
        assert again.client.incarnation > before
        a.wait_for(lambda: "b" in a.client.members_by_name)


@BOTH
def test_a_silent_member_is_declared_dead_and_fenced(kind: str) -> None:
    with running(kind, heartbeat_interval=0.05, silence_timeout=0.3) as cluster:
        a, b = cluster.driver("a").join(), cluster.driver("b").join()
        b.halt()
        assert a.wait_for_news(MemberGone).why.startswith("it was not heard of for 0.")
        news = b.client.on_timer(monotonic())  # it goes on: a beat, a challenge, a HELLO
        deadline = monotonic() + LONG
        while not any(isinstance(item, Fenced) for item in news) and monotonic() < deadline:
            a.wait_for(lambda: True)
            news += b.client.on_readable(monotonic())
        assert any(isinstance(item, Fenced) for item in news)
        assert "b" not in a.client.members_by_name


@BOTH
def test_a_member_whose_name_has_a_new_life_is_fenced(kind: str) -> None:
    with running(kind, heartbeat_interval=0.05, silence_timeout=0.3) as cluster:
        old = cluster.driver("a").join()
        old.halt()
        cluster.wait_for_news(MemberGone)
        new = cluster.driver("a").join()
        news = old.client.on_timer(monotonic())
        deadline = monotonic() + LONG
        while not any(isinstance(item, Fenced) for item in news) and monotonic() < deadline:
            new.wait_for(lambda: True)
            news += old.client.on_readable(monotonic())
        assert any(isinstance(item, Fenced) for item in news)
        assert old.client.state == "fenced"
        assert new.client.life == 1


@BOTH
def test_names_are_unique_among_the_living(kind: str) -> None:
    with running(kind) as cluster:
        cluster.driver("a", pid=4, host="h").join()
        with pytest.raises(NameTaken, match=r"'a' is not unique \(held by process 4 on h\)"):
            cluster.driver("a").join()
        with pytest.raises(InvalidName, match="must match"):
            cluster.driver("a b").join()


@BOTH
def test_a_static_group_forms_and_tells_who_is_missing(kind: str) -> None:
    with running(kind) as cluster:
        told: list[GroupProgress] = []
        heard = threading.Event()

        def on_progress(progress: GroupProgress) -> None:
            told.append(progress)
            heard.set()

        first = cluster.driver("a", id=0, world_size=2)
        thread = threading.Thread(target=first.client.join, args=(monotonic() + LONG, on_progress))
        thread.start()
        assert heard.wait(LONG)
        assert (told[0].present, told[0].missing, told[0].short) == (("a",), ("rank 1",), 1)
        second = cluster.driver("b", id=1, world_size=2).join()
        thread.join(LONG)
        assert first.client.state == "up"
        assert set(second.client.members_by_name) == {"a", "b"}


@BOTH
def test_a_group_that_does_not_form_names_the_missing(kind: str) -> None:
    with running(kind) as cluster:
        assert cluster.broker is not None
        cluster.broker.expect(["a", "b", "c"])
        cluster.driver("b").join()
        with pytest.raises(GroupTimeout) as caught:
            cluster.driver("a", wait=True).join(0.2)
        assert (caught.value.missing, caught.value.present) == (("c",), ("a", "b"))
        assert "the group of worker 'a' timed out" in str(caught.value)
        # It has taken its leave: the name is free at once.
        cluster.wait_for_news(MemberGone)
        cluster.driver("a").join()


@BOTH
def test_a_static_group_ends_together(kind: str) -> None:
    with running(kind) as cluster:
        a, b = cluster.driver("a", id=0, world_size=2), cluster.driver("b", id=1, world_size=2)
        joining = threading.Thread(target=a.join)
        joining.start()
        b.join()
        joining.join(LONG)
        active = [1]
        a.client.begin_shutdown(lambda: Counts(1, 0, active[0]))
        assert a.wait_for_news(Held).missing == ("b",)
        b.client.begin_shutdown(lambda: Counts(0, 1, 0))
        assert not any(isinstance(item, Released) for item in b.news)
        active[0] = 0
        a.client.report_counts()
        a.wait_for_news(Released)
        b.wait_for_news(Released)
        a.client.report_counts()
        with pytest.raises(InvalidTransition, match="released cannot take ShutdownWish"):
            a.client.begin_shutdown(Counts)


@BOTH
def test_a_broker_that_restarts_has_its_members_back(kind: str) -> None:
    with running(kind) as cluster:
        a, b = cluster.driver("a").join(), cluster.driver("b").join()
        a.wait_for_news(MemberUp)
        assert cluster.broker is not None
        cluster.broker.stop()
        a.wait_for_news(BrokerLost)
        before = a.client.incarnation
        broker = cluster.start()
        assert a.wait_for_news(BrokerBack).restarted
        assert b.wait_for_news(BrokerBack).restarted
        assert {member.name: member.id for member in broker.members()} == {"a": 0, "b": 1}
        assert a.client.incarnation == before
        c = cluster.driver("c").join()
        assert (c.client.id, c.client.incarnation > b.client.incarnation) == (2, True)
        a.wait_for(lambda: "c" in a.client.members_by_name)
        assert not any(isinstance(item, MemberGone) for item in a.news)


@BOTH
def test_stop_is_news(kind: str) -> None:
    with running(kind) as cluster:
        a, b = cluster.driver("a").join(), cluster.driver("b").join()
        assert cluster.broker is not None
        cluster.broker.request_stop(["a"], "enough")
        assert a.wait_for_news(StopRequested).why == "enough"
        cluster.broker.request_stop()
        b.wait_for_news(StopRequested)


@BOTH
def test_an_exit_seen_by_the_launcher_is_told(kind: str) -> None:
    with running(kind) as cluster:
        a = cluster.driver("a").join()
        cluster.driver("b", pid=9).join()
        a.wait_for_news(MemberUp)
        assert cluster.broker is not None
        cluster.broker.exited("b", 9, "killed by signal 9")
        assert a.wait_for_news(MemberGone).why == "killed by signal 9"


@BOTH
def test_refresh_asks_the_broker(kind: str) -> None:
    with running(kind) as cluster:
        a = cluster.driver("a").join()
        cluster.driver("b").join()
        found = a.client.refresh("b", LONG)
        assert found is not None
        assert a.client.refresh(found.id, LONG) == found
        assert a.client.refresh("nobody", LONG) is None


@BOTH
def test_beats_carry_statistics(kind: str) -> None:
    with running(kind) as cluster:
        a = cluster.driver("a").join()
        a.client.beat({"calls_served": 5})
        a.client.refresh("nobody", LONG)  # the answer comes after the beat was taken
        assert cluster.broker is not None
        assert cluster.broker.status()["members"][0]["statistics"] == {"calls_served": 5}


def test_nobody_there_is_told_with_the_address_and_the_reason() -> None:
    transport = ZmqTransport(KEYRING, "member")
    try:
        listener = transport.listen("tcp://127.0.0.1:0", "broker")
        address = listener.address
        listener.close()
        with pytest.raises(BrokerUnreachable, match=rf"{address} for 0.\d s \(nobody listens there\)") as caught:
            BrokerClient(transport, address, Hello("a", 1, "tcp://h:1")).join(monotonic() + 0.3)
        assert caught.value.address == address
    finally:
        transport.close()


def test_a_broker_without_a_word_is_told_as_such() -> None:
    network = MemoryNetwork()
    transport = MemoryTransport(network)
    transport.listen("memory://mute", "broker")
    with pytest.raises(BrokerUnreachable, match="it took the connection and did not answer"):
        BrokerClient(transport, "memory://mute", Hello("a", 1, "tcp://h:1")).join(monotonic() + 0.1)
    transport.close()


@pytest.mark.parametrize(
    ("stranger", "reasons"),
    [
        # "handshake failed" when the peer was the first to give up.
        (Keyring("test", bytes(32)), {"wrong key", "handshake failed"}),
        (Keyring("other", bytes(range(32))), {"wrong key", "handshake failed"}),
        (None, {"not encrypted", "handshake failed"}),
    ],
)
def test_a_wrong_key_is_told_as_such_and_counted(stranger: Keyring | None, reasons: set[str]) -> None:
    with running("tcp") as cluster:
        assert cluster.broker is not None
        transport = ZmqTransport(stranger, "member")
        give_up = monotonic() + LONG
        try:
            # Either side may be the first to see that the other is wrong; the broker counts when it is.
            told = ""
            while ("denied" not in told or not cluster.broker.status()["refusals"]) and monotonic() < give_up:
                client = BrokerClient(transport, cluster.address, Hello("a", 1, "tcp://h:1"))
                with pytest.raises(BrokerUnreachable, match=cluster.address) as caught:
                    client.join(monotonic() + 0.2)
                told = str(caught.value)
            assert "the handshake was denied: this process has another key than the broker" in told
        finally:
            transport.close()
        cluster.driver("b").join()  # the broker goes on
        refusals = cluster.broker.status()["refusals"]
        assert refusals
        assert set(refusals) <= reasons


def test_a_member_key_that_the_broker_does_not_know_is_counted() -> None:
    class Impostor(Keyring):
        """Knows the broker's public key, and not the secret."""

        def pair(self, role: str):  # type: ignore[no-untyped-def]
            return KEYRING.pair("broker") if role == "broker" else super().pair(role)

    with running("tcp") as cluster:
        transport = ZmqTransport(Impostor("test", bytes(32)), "member")
        try:
            with pytest.raises(BrokerUnreachable, match="denied"):
                BrokerClient(transport, cluster.address, Hello("a", 1, "tcp://h:1")).join(monotonic() + 0.5)
        finally:
            transport.close()
        assert cluster.broker is not None
        assert cluster.broker.status()["refusals"]["unknown key"] >= 1


def answer_once(network: MemoryNetwork, frames: list[bytes]) -> ZrpcError:
    """What `join` raises when the broker answers the HELLO with `frames`."""
    transport = MemoryTransport(network)
    listener = transport.listen("memory://old", "broker")
    client = BrokerClient(transport, "memory://old", Hello("a", 1, "tcp://h:1"))
    client.link.send("memory://old", [b"here"])
    received = listener.receive()
    assert received is not None
    listener.send(received.route, frames)
    with pytest.raises(ZrpcError) as caught:
        client.join(monotonic() + LONG)
    transport.close()
    return caught.value


def test_a_broker_of_another_version_is_a_version_mismatch() -> None:
    frames = [bytes(frame) for frame in seal(Refusal.of(VersionMismatch(1, 2)), -1, 1)]
    frames[0] = bytes([frames[0][0], VERSION + 1]) + frames[0][2:]
    error = answer_once(MemoryNetwork(), frames)
    assert isinstance(error, VersionMismatch)
    assert (error.theirs, error.ours) == (VERSION + 1, VERSION)


def test_a_refusal_of_the_version_is_a_version_mismatch() -> None:
    error = answer_once(MemoryNetwork(), [bytes(f) for f in seal(Refusal.of(VersionMismatch(VERSION, 7)), -1, 1)])
    assert isinstance(error, VersionMismatch)
    assert (error.theirs, error.ours) == (7, VERSION)


def test_garbage_from_the_broker_is_counted_and_survived() -> None:
    with running("memory") as cluster:
        a = cluster.driver("a").join()
        a.halt()
        assert cluster.broker is not None
        assert a.client.on_frames((cluster.address, [b"garbage"]), monotonic()) == []
        assert a.client.unreadable == 1
        assert a.client.state == "up"


def test_one_asked_to_stop_while_joining_does_not_join() -> None:
    with running("memory") as cluster:
        assert cluster.broker is not None
        broker = cluster.broker
        with pytest.raises(JoinRefused, match="asked to stop while it joined: enough"):
            cluster.driver("a", world_size=2).client.join(
                monotonic() + LONG, lambda progress: broker.request_stop(None, "enough")
            )


def test_with_a_members_key_one_gets_in_and_cannot_act_as_the_broker() -> None:
    with running("tcp") as cluster:
        transport = ZmqTransport(KEYRING.for_members(), "member")
        client = BrokerClient(transport, cluster.address, Hello("a", 1, "tcp://h:1"))
        assert client.join(monotonic() + LONG).cluster == "test"
        client.close()
        transport.close()
        with pytest.raises(ConfigError, match="nobody can act as the broker with it"):
            ZmqTransport(KEYRING.for_members(), "broker")


def test_a_listener_with_a_members_key_is_no_broker_to_anybody() -> None:
    """A trainer that binds where the broker was: who looks for the broker there is not taken in."""
    trainer = ZmqTransport(KEYRING.for_members(), "member")
    false_broker = trainer.listen("tcp://127.0.0.1:0", "member")
    transport = ZmqTransport(KEYRING, "member")
    client = BrokerClient(transport, false_broker.address, Hello("a", 1, "tcp://h:1"))
    with pytest.raises(BrokerUnreachable):
        client.join(monotonic() + 0.5)
    assert false_broker.receive() is None
    transport.close()
    trainer.close()
