"""What somebody can do who reaches the ports of a cluster and has not its key: nothing that is not counted."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zmq

from zrpc.broker.admin import AdminClient
from zrpc.clock import monotonic
from zrpc.errors import BrokerUnreachable, ZrpcError
from zrpc.options import AgentOptions
from zrpc.testing import LocalCluster
from zrpc.testing.cluster import join
from zrpc.transport.base import Link
from zrpc.transport.curve import Keyring, new_keyring
from zrpc.transport.poller import Poller
from zrpc.transport.router import ZmqListener, ZmqTransport
from zrpc.wire.envelope import Codec, Envelope, Kind, pack
from zrpc.wire.messages import Hello, Query, Resolve, seal

LONG = 30.0
OTHER_KEY = new_keyring("local")


def wait_until_denied(link: Link) -> None:
    """Wait until the other side has thrown a connection out."""
    ticks = threading.Event()
    end = monotonic() + LONG
    while not {"denied", "disconnected"} & set(link.events()):
        assert monotonic() < end
        assert link.receive() is None
        ticks.wait(0.01)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b"), network="curve") as made:
        yield made


def address_of(cluster: LocalCluster, name: str) -> str:
    if name == "broker":
        assert cluster.broker is not None
        return cluster.broker.address
    return next(member.address for member in cluster[name].agent.members() if member.name == name)


def failures(transport: Any) -> int:
    """Handshakes that failed, by a transport's own count."""
    found: dict[str, int] = transport.refusals()
    return sum(found.get(why, 0) for why in ("wrong key", "not encrypted", "handshake failed"))


def wait_for_failures(transport: Any, least: int) -> None:
    """Who counts is told of a failed handshake after the other side."""
    ticks = threading.Event()
    end = monotonic() + LONG
    while failures(transport) < least:
        assert monotonic() < end, transport.refusals()
        ticks.wait(0.01)


def still_serves(cluster: LocalCluster) -> bool:
    return bool(cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1), timeout=LONG) == 2)


MESSAGES = {
    "register a name": ("broker", Hello(name="intruder", nonce=7, address="tcp://127.0.0.1:1")),
    "read the membership": ("broker", Query("status")),
    "resolve a name": ("broker", Resolve()),
}


@pytest.mark.parametrize("keyring", [None, OTHER_KEY], ids=["no key", "wrong key"])
@pytest.mark.parametrize("what", [*MESSAGES, "call a function", "ask a worker"])
def test_without_the_key_nothing_is_heard(cluster: LocalCluster, keyring: Keyring | None, what: str) -> None:
    if what in MESSAGES:
        where, message = MESSAGES[what]
        frames = seal(message, 1, 1)
    elif what == "ask a worker":
        where, frames = "b", pack(Envelope(Kind.INSPECT, 1, codec=Codec.MSGPACK, body=b"\x80"))
    else:
        where, frames = "b", pack(Envelope(Kind.CALL, 1, 0, 1, 1, codec=Codec.PYTHON, function="os:getpid", body=b"x"))
    before = failures(cluster["b"].agent.transport)
    stranger = ZmqTransport(keyring, "member")
    link = stranger.connect(address_of(cluster, where), "broker" if where == "broker" else "member", watch=True)
    link.send(frames)
    wait_until_denied(link)
    stranger.close()
    assert still_serves(cluster)
    assert cluster.broker is not None
    assert {member.name for member in cluster["a"].agent.members()} == {"a", "b"}
    if where == "b":
        wait_for_failures(cluster["b"].agent.transport, before + 1)


@pytest.mark.parametrize("keyring", [None, OTHER_KEY], ids=["no key", "wrong key"])
def test_our_own_tools_get_in_no_better(cluster: LocalCluster, keyring: Keyring | None) -> None:
    address = address_of(cluster, "broker")
    with AdminClient(address, keyring) as admin, pytest.raises(BrokerUnreachable):
        admin.status(0.3)
    stranger = ZmqTransport(keyring, "member")
    hello = Hello(name="intruder", nonce=8, address="tcp://127.0.0.1:0")
    with pytest.raises(ZrpcError):
        join(hello, address, stranger, AgentOptions(init_timeout=0.5, bind="tcp://127.0.0.1:0"))
    stranger.close()
    assert still_serves(cluster)


def test_who_knows_the_public_key_only_is_refused_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The public key is no secret of CURVE's: what keeps others out is that the listener knows its members' keys."""
    keyring = new_keyring("test")
    ours = ZmqTransport(keyring, "member")
    with caplog.at_level(logging.WARNING):
        listener = ours.listen("tcp://127.0.0.1:0", "member")
        stranger: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        end = stranger.socket(zmq.DEALER)
        end.linger = 0
        end.reconnect_ivl = -1
        end.curve_serverkey = keyring.pair("member").public
        end.curve_publickey, end.curve_secretkey = zmq.curve_keypair()
        monitor = end.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        end.connect(listener.address)
        end.send(b"let me in")
        assert monitor.poll(LONG * 1000)
        deadline = monotonic() + LONG
        ticks = threading.Event()
        while "have failed, lately by 127.0.0.1 (denied)" not in caplog.text:
            assert monotonic() < deadline
            ticks.wait(0.01)
        assert ours.refusals() == {"unknown key": 1}
        assert listener.receive() is None
        end.disable_monitor()
        monitor.close(0)
        end.close(0)
        stranger.term()
        ours.close()


# ------------------------------------------------------------------------------------------------ captured traffic


class Tap(threading.Thread):
    """Somebody in the path of a connection, who writes down what its client sends."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self.written = bytearray()
        self.start()

    def run(self) -> None:
        client, _ = self._server.accept()
        with client, socket.create_connection(self._target) as there, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, there)
            selector.register(there, selectors.EVENT_READ, client)
            with contextlib.suppress(OSError):
                while True:
                    for key, _ in selector.select():
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(65536)
                        if not data:
                            return
                        if key.fileobj is client:
                            self.written += data
                        key.data.sendall(data)

    def close(self) -> None:
        self._server.close()
        self.join(LONG)


def receive(listener: ZmqListener) -> list[bytes]:
    poller = Poller()
    poller.add(listener)
    try:
        while (received := listener.receive()) is None:
            poller.wait(LONG)
        return [bytes(frame) for frame in received.frames]
    finally:
        poller.close()


def test_captured_traffic_says_nothing_the_second_time() -> None:
    """Each connection has fresh keys: what was sent over one cannot be read in another."""
    keyring = new_keyring("test")
    ours, theirs = ZmqTransport(keyring, "member"), ZmqTransport(keyring, "member")
    listener = ours.listen("tcp://127.0.0.1:0", "member")
    host, port = listener.address.removeprefix("tcp://").split(":")
    tap = Tap((host, int(port)))
    link = theirs.connect(tap.address, "member")
    link.send([b"move a thousand"])
    assert receive(listener) == [b"move a thousand"]
    theirs.close()
    tap.close()
    captured = bytes(tap.written)
    assert len(captured) > 300
    assert b"move a thousand" not in captured
    for _ in range(3):
        # It may be thrown out before all is sent.
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=LONG) as replay:
            replay.sendall(captured)
            while replay.recv(4096):
                pass
    link = (again := ZmqTransport(keyring, "member")).connect(listener.address, "member")
    link.send([b"done"])
    assert receive(listener) == [b"done"]  # and nothing before it
    assert listener.receive() is None
    wait_for_failures(ours, 3)
    again.close()
    ours.close()
