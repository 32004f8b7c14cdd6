"""Both transports, the ZeroMQ one and its fake, behave the same; and what only the ZeroMQ one has: keys and loss."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from zrpc.errors import ConfigError, Unavailable
from zrpc.transport.base import Link, Listener, RouteGone, Transport
from zrpc.transport.curve import Keyring, new_keyring
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.poller import Ear, Poller
from zrpc.transport.router import ZmqTransport

LONG = 10.0  # reached only by a failure


def receive(end: Link | Listener, poller: Poller) -> Any:
    empty = 0  # a wait may end for a wake-up alone
    while empty < 5:
        message = end.receive()  # type: ignore[union-attr]
        if message is not None:
            return message
        empty = 0 if poller.wait(LONG) else empty + 1
    raise AssertionError("nothing came")


@pytest.fixture(params=["memory", "zeromq", "curve"])
def transports(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, Transport, str]]:
    a: Transport
    b: Transport
    if request.param == "memory":
        network = MemoryNetwork()
        a, b, address = MemoryTransport(network), MemoryTransport(network), "memory://0"
    else:
        keyring = new_keyring("test") if request.param == "curve" else None
        a, b, address = ZmqTransport(keyring, "member"), ZmqTransport(keyring, "member"), "tcp://127.0.0.1:0"
    yield a, b, address
    b.close()
    a.close()


def test_request_and_reply(transports: tuple[Transport, Transport, str]) -> None:
    a, b, address = transports
    listener = a.listen(address, "member")
    link = b.connect(listener.address, "member")
    poller = Poller()
    poller.add(listener)
    poller.add(link)
    link.send([b"one", bytearray(b"two" * 50_000)])
    route, frames = receive(listener, poller)
    assert [bytes(f) for f in frames] == [b"one", b"two" * 50_000]
    listener.send(route, [b"answer"])
    assert [bytes(f) for f in receive(link, poller)] == [b"answer"]
    assert link.receive() is None
    assert link.statistics().messages_out == 1
    assert link.statistics().bytes_in == 6
    assert listener.statistics().bytes_in == 150_003
    poller.close()


def test_what_is_sent_arrives_in_order_and_whole(transports: tuple[Transport, Transport, str]) -> None:
    a, b, address = transports
    listener = a.listen(address, "member")
    link = b.connect(listener.address, "member")
    poller = Poller()
    poller.add(listener)
    count = 5000  # far above ZeroMQ's default high-water mark
    for index in range(count):
        link.send([b"%d" % index])
    assert [int(bytes(receive(listener, poller).frames[0])) for _ in range(count)] == list(range(count))
    poller.close()


def test_an_answer_to_nobody_raises(transports: tuple[Transport, Transport, str]) -> None:
    a, _, address = transports
    listener = a.listen(address, "member")
    with pytest.raises(RouteGone):
        listener.send(b"nobody", [b"answer"])


def test_a_closed_end_refuses_and_gives_nothing(transports: tuple[Transport, Transport, str]) -> None:
    a, b, address = transports
    listener = a.listen(address, "member")
    link = b.connect(listener.address, "member")
    link.close()
    link.close()
    with pytest.raises(Unavailable):
        link.send([b"x"])
    listener.close()
    with pytest.raises(RouteGone):
        listener.send(b"x", [b"x"])


def test_an_address_twice_is_refused(transports: tuple[Transport, Transport, str]) -> None:
    a, b, address = transports
    listener = a.listen(address, "member")
    with pytest.raises(ConfigError, match="ddress already in use"):
        b.listen(listener.address, "member")


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "tcp://no such host:1", "tcp://127.0.0.1:99999"])
def test_an_address_that_makes_no_sense(address: str) -> None:
    transport = ZmqTransport(None, "member")
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        transport.listen(address, "member")
    transport.close()


def test_sends_from_many_threads_lose_nothing_and_leave_no_edge_unseen() -> None:
    """Threads send on the link while another waits for its replies: `send` says when it consumed the edge."""
    a, b = ZmqTransport(None, "member"), ZmqTransport(None, "member")
    listener = a.listen("tcp://127.0.0.1:0", "member")
    link = b.connect(listener.address, "member")
    each, threads = 300, 4

    def echo() -> None:
        poller = Poller()
        poller.add(listener)
        for _ in range(each * threads):
            route, frames = receive(listener, poller)
            listener.send(route, frames)
        poller.close()

    poller = Poller()
    poller.add(link)

    def send() -> None:
        for _ in range(each):
            if link.send([b"x"]):
                poller.wake()

    workers = [threading.Thread(target=echo)] + [threading.Thread(target=send) for _ in range(threads)]
    for worker in workers:
        worker.start()
    got = 0
    while got < each * threads:
        if link.receive() is not None:
            got += 1
            continue
        poller.wait(LONG)
    for worker in workers:
        worker.join(LONG)
        assert not worker.is_alive()
    poller.close()
    b.close()
    a.close()


@pytest.mark.parametrize("theirs", [None, Keyring("test", b"x" * 32), "no encryption"])
def test_nobody_without_the_key_is_heard(theirs: Keyring | str | None) -> None:
    keyring = new_keyring("test")
    a = ZmqTransport(keyring, "member")
    listener = a.listen("tcp://127.0.0.1:0", "member", watch=True)
    if theirs is None:  # knows the listener's public key, and has a key pair of its own that nobody knows
        stranger: Any = zmq.Context()
        socket = stranger.socket(zmq.DEALER)
        socket.linger = 0
        socket.curve_serverkey = keyring.pair("member").public
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        monitor = socket.get_monitor_socket()
        socket.connect(listener.address)
        socket.send(b"let me in")
        assert monitor.poll(LONG * 1000)
        while True:
            event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                break
            assert monitor.poll(LONG * 1000)
        assert a.refusals()["unknown key"] >= 1
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
        stranger.term()
    else:
        b = ZmqTransport(theirs if isinstance(theirs, Keyring) else None, "member")
        link = b.connect(listener.address, "member", watch=True)
        link.send([b"let me in"])
        seen: list[str] = []
        ear = Ear(link)
        turns = 0
        while "denied" not in seen and "disconnected" not in seen:
            seen += link.events()
            ear.wait(0.02)  # the monitor has its own descriptor; the link's does not tell of events
            turns += 1
            assert turns < 500, seen
        ear.close()
        b.close()
    assert listener.receive() is None
    a.close()


def test_a_wait_longer_than_the_kernel_takes_is_a_wait() -> None:
    link = MemoryTransport(MemoryNetwork()).listen("memory://far", "member")
    ear, poller = Ear(link), Poller()
    ear.wake()
    assert ear.wait(1e9)
    poller.wake()
    assert poller.wait(1e9) == []
    ear.close()
    poller.close()
    link.close()


def test_the_listener_tells_which_connection_closed() -> None:
    keyring = new_keyring("test")
    a, b = ZmqTransport(keyring, "broker"), ZmqTransport(keyring, "member")
    listener = a.listen("tcp://127.0.0.1:0", "broker", watch=True)
    poller = Poller()
    poller.add(listener)
    links = [b.connect(listener.address, "broker") for _ in range(3)]
    routes = []
    for link in links:
        link.send([b"hello"])
        routes.append(receive(listener, poller).route)
    monitor = listener.monitor_fileno()
    assert monitor is not None

    class Monitor:
        def fileno(self) -> int:
            return monitor

    poller.add(Monitor())
    links[1].close()
    lost: list[bytes] = []
    turns = 0
    while not lost:
        poller.wait(LONG)
        listener.receive()
        lost = listener.lost()
        turns += 1
        assert turns < 50, "the closed connection was not noticed"
    assert lost == [routes[1]]
    listener.send(routes[0], [b"still here"])
    poller.close()
    b.close()
    a.close()


def test_a_closed_link_is_forgotten() -> None:
    a = ZmqTransport(None, "member")
    listener = a.listen("tcp://127.0.0.1:0", "member")
    for _ in range(3):
        a.connect(listener.address, "member").close()
    assert a._open == {listener}
    a.close()


LARGE = 40 << 20


def test_large_messages_both_ways(transports: tuple[Transport, Transport, str]) -> None:
    a, b, address = transports
    listener = a.listen(address, "member")
    link = b.connect(listener.address, "member")
    with _Pump(listener) as at_listener, _Pump(link) as at_link:
        link.send([b"one", bytes(LARGE), b"two"])
        route, frames = at_listener.next()
        assert [bytes(frames[0]), len(frames[1]), bytes(frames[2])] == [b"one", LARGE, b"two"]
        listener.send(route, [b"answer", memoryview(bytes(LARGE))])
        listener.send(route, [b"small"])
        replies = {bytes(frames[0]): frames for frames in (at_link.next(), at_link.next())}
        assert len(replies[b"answer"][1]) == LARGE
        assert set(replies) == {b"answer", b"small"}
    assert link.statistics().messages_out == listener.statistics().messages_in == 1
    assert link.statistics().messages_in == listener.statistics().messages_out == 2
    assert link.statistics().bytes_in >= LARGE


@pytest.fixture
def keys() -> Keyring:
    return new_keyring("test")


def test_a_small_message_does_not_wait_for_a_large_one(keys: Keyring) -> None:
    a, b = ZmqTransport(keys, "member"), ZmqTransport(keys, "member")
    listener = a.listen("tcp://127.0.0.1:0", "member")
    link = b.connect(listener.address, "member")
    with _Pump(listener) as at_listener:
        link.send([b"large", bytes(LARGE)])
        link.send([b"small"])
        assert bytes(at_listener.next().frames[0]) == b"small"
        with _Pump(link):  # nobody listened for credit until now
            assert bytes(at_listener.next().frames[0]) == b"large"
    b.close()
    a.close()


def test_a_listener_that_closes_sends_what_it_has_begun(keys: Keyring) -> None:
    a, b = ZmqTransport(keys, "member"), ZmqTransport(keys, "member")
    listener = a.listen("tcp://127.0.0.1:0", "member")
    link = b.connect(listener.address, "member")
    poller = Poller()
    poller.add(listener)
    link.send([b"request"])
    route, _ = receive(listener, poller)
    poller.close()
    with _Pump(link) as at_link:
        listener.send(route, [b"answer", bytes(LARGE)])
        listener.close()
        assert len(at_link.next()[1]) == LARGE
    b.close()
    a.close()


class _Pump:
    """A thread that receives from one end."""

    def __init__(self, end: Any) -> None:
        self._end = end
        self._poller = Poller()
        self._poller.add(end)
        self._found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over.is_set():
            message = self._end.receive()
            if message is not None:
                self._found.put(message)
            elif not self._end.is_busy:
                self._poller.wait(LONG)

    def next(self) -> Any:
        return self._found.get(timeout=LONG)

    def __enter__(self) -> _Pump:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._poller.wake()
        self._thread.join(LONG)
        self._poller.close()
