"""Failed handshakes: counted, told, and kept out when they come too fast."""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterable

import pytest

from zrpc.transport.curve import new_keyring
from zrpc.transport.doorway import LOOPBACK, Doorway, Host, Source
from zrpc.transport.gate import (
    BURST,
    BURST_OUTSIDE,
    FIRST_SHARE,
    LASTING,
    LOOK,
    MOST_SHARE,
    PATIENCE,
    PENALTY,
    RECENT,
    SCARCE,
    WANTED,
    Gate,
    Handshakes,
    factor,
    worst_of,
)
from zrpc.transport.poller import Poller
from zrpc.transport.router import ZmqListener, ZmqTransport
from zrpc.wire.streams import FRAME_BYTES

LONG = 30.0
A, B, OTHER = (ipaddress.ip_address(f"127.0.0.{number}") for number in (9, 8, 7))


# ------------------------------------------------------------------------------------------------ the decision


class FakeDoorway(Doorway):
    """Remembers who was kept out."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.kept: list[list[Source]] = []
        self.shares: list[int] = []
        self.opened = threading.Event()

    def keep_out(self, hosts: Iterable[Source], share: int) -> bool:
        self.kept.append(list(hosts))
        self.shares.append(share)
        return self.works

    def let_in(self) -> None:
        self.opened.set()

    def close(self) -> None:
        pass


def make(works: bool = True) -> tuple[Gate, FakeDoorway, list[float]]:
    """A gate whose time stands still: its own thread sees nothing pass, and the test looks itself."""
    now = [100.0]
    found, doorway = Gate("tcp://h:1", clock=lambda: now[0], look=LONG), FakeDoorway(works)
    found._interval = LOOK
    found.guard(doorway)
    return found, doorway, now


def knock(found: Gate, host: Host, count: int) -> None:
    for _ in range(count):
        found._recent.append(host)
        found.failed("wrong key")


def look(found: Gate, now: list[float], failures: int = 0) -> int:
    """Some failures, and a look at them; returns the share then."""
    for _ in range(failures):
        found.failed("wrong key")
    now[0] += LOOK
    found._look(now[0])
    return found.share


def test_failures_that_come_slowly_keep_nobody_out() -> None:
    found, doorway, now = make()
    for _ in range(20):
        knock(found, A, BURST // 2)
        now[0] += BURST / 2 / LASTING
    assert doorway.kept == []
    assert found.refused == {"wrong key": 20 * (BURST // 2)}
    found.close()


def test_the_host_that_knocks_most_is_kept_out() -> None:
    found, doorway, _ = make()
    knock(found, B, RECENT // 8)
    knock(found, A, BURST)
    assert doorway.kept == [[A]]
    assert found.kept_out() == [A]
    assert found.refused["hosts kept out"] == 1
    found.close()


def test_who_goes_on_stays_out_and_counts_once() -> None:
    found, doorway, _ = make()
    knock(found, A, BURST + 1)
    knock(found, A, BURST_OUTSIDE + 1)
    assert doorway.shares == [FIRST_SHARE, MOST_SHARE]
    knock(found, B, 2 * BURST)
    assert doorway.kept[-1] == [A, B]
    assert found.refused["hosts kept out"] == 2
    found.close()


def test_the_share_that_is_let_through_follows_the_flood() -> None:
    found, _, now = make()
    knock(found, A, BURST + 1)
    offered = 5000.0
    shares = [look(found, now, round(offered * LOOK / found.share)) for _ in range(20)]
    assert all(WANTED / 2 <= offered / share <= WANTED * 1.5 for share in shares[5:])
    offered = 50_000.0
    shares = [look(found, now, round(offered * LOOK / found.share)) for _ in range(10)]
    assert shares[-1] == MOST_SHARE
    found.close()


def test_a_host_is_let_in_again_step_by_step_after_its_flood() -> None:
    found, doorway, now = make()
    knock(found, A, BURST + 1)
    shares: list[int] = []
    while found.kept_out():
        shares.append(look(found, now))
    assert doorway.opened.is_set()
    assert len(shares) * LOOK <= 5.0
    assert shares[:-1] == sorted(shares[:-1], reverse=True)
    knock(found, A, BURST_OUTSIDE + 1)  # it is not trusted as others are
    assert found.kept_out() == [A]
    assert found.share == FIRST_SHARE
    found.close()


def test_others_failures_keep_a_host_out_for_a_time_only() -> None:
    found, _, now = make()
    knock(found, A, BURST + 1)
    found._recent.clear()
    while now[0] < 100.0 + PENALTY:
        assert found.kept_out() == [A]
        look(found, now, 8)
    assert found.kept_out() == []
    found.close()


def test_who_is_seen_stays_out_for_longer() -> None:
    found, _, now = make()
    knock(found, A, BURST + 1)
    with socket.create_server((str(A), 0)) as server, socket.create_connection(server.getsockname()) as end:
        end.getpeername()
        while now[0] < 100.0 + 2 * PENALTY:
            found.accepted(end.fileno())
            look(found, now, 3)
    assert found.kept_out() == [A]
    found.close()


@pytest.mark.parametrize(("rate", "expected"), [(0, 0.25), (2, 0.5), (5, 1.0), (10, 2.0), (100, 4.0)])
def test_factor(rate: float, expected: float) -> None:
    assert factor(rate) == expected


def test_one_sighting_is_not_enough() -> None:
    """Who tells of connections may be late: descriptors that the flood had may be somebody else's by then."""
    found, doorway, _ = make()
    found._recent.append(B)
    for _ in range(2 * BURST):
        found.failed("wrong key")
    assert doorway.kept == []
    found.close()


def test_many_addresses_of_this_host_are_one_host() -> None:
    many: list[Host] = [ipaddress.ip_address(f"127.9.0.{number}") for number in range(RECENT)]
    assert worst_of(many) == [LOOPBACK]
    assert worst_of([*many, *[A] * RECENT]) == [A]
    assert worst_of([ipaddress.ip_address(f"10.9.0.{number}") for number in range(RECENT)]) == []


def test_where_nobody_can_be_kept_out_failures_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    found, _, _ = make(works=False)
    with caplog.at_level(logging.WARNING):
        knock(found, A, 1000)
    assert found.kept_out() == []
    assert found.refused == {"wrong key": 1000}
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [1, 10, 100, 1000]
    assert "lately by 127.0.0.9 (wrong key)" in caplog.text
    found.close()


def test_its_own_thread_lets_a_host_in_again() -> None:
    found = Gate("tcp://h:1", look=0.001)
    doorway = FakeDoorway()
    found.guard(doorway)
    knock(found, A, BURST + 1)
    assert doorway.opened.wait(LONG)
    found.close()
    assert found.kept_out() == []


# ------------------------------------------------------------------------------------------------ handshakes under way


def test_what_ends_without_a_handshake_is_a_failure() -> None:
    found = Handshakes()
    found.accepted(5, A, 1.0)
    assert found.closed(5, 1.0) == (True, False)
    assert found.closed(5, 1.0) == (False, False)
    assert len(found) == 0


def test_a_failure_that_was_told_is_not_told_again() -> None:
    found = Handshakes()
    found.accepted(5, A, 1.0)
    found.accepted(6, A, 1.0)
    found.failed()
    assert found.closed(5, 1.0) == (False, False)
    assert found.closed(6, 1.0) == (True, False)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_failure_may_take_long(is_told: bool) -> None:
    found = Handshakes()
    found.accepted(5, A, 1.0)
    if is_told:
        found.failed()
    assert found.closed(5, 1.1 + PATIENCE) == (not is_told, True)


def test_a_peer_that_leaves_is_no_failure() -> None:
    found = Handshakes()
    found.accepted(5, A, 1.0)
    found.succeeded()
    assert found.closed(5, 100.0) == (False, False)
    found.accepted(5, A, 2.0)
    found.accepted(6, A, 2.0)
    found.succeeded()
    assert found.closed(6, 2.0) == (True, False)  # one of two had succeeded: the other one is taken for it
    assert found.closed(5, 2.0) == (False, False)


def test_slow_failures_count_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin together on a host that is too busy for them are no flood."""
    monkeypatch.setattr("zrpc.transport.gate.host_of", lambda fd: A)
    found, doorway, now = make()

    def fail(count: int, after: float) -> None:
        for fd in range(count):
            found.accepted(fd)
        now[0] += after
        for fd in range(count):
            found.failed("handshake failed")
            found.closed(fd)

    fail(BURST + BURST // 2, 2 * PATIENCE)
    assert doorway.kept == []
    now[0] += 10 * BURST / LASTING
    fail(BURST + BURST // 2, 0.0)
    assert doorway.kept[0] == [A]
    found.close()


def test_who_takes_descriptors_until_they_are_scarce_is_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zrpc.transport.gate.host_of", lambda fd: A)
    found, doorway, now = make()
    found._descriptors = 1024
    scarce = int(SCARCE * found._descriptors)
    for fd in range(100, scarce):
        found.accepted(fd)
    assert doorway.kept == []
    found.accepted(scarce)
    assert doorway.kept == [[A]]
    before = found.share
    assert look(found, now) == before  # it is not let in while they are there
    for fd in range(100, scarce + 1):
        found.closed(fd)
    look(found, now)
    assert look(found, now) > before  # they were failures
    found.close()


def test_scarce_descriptors_that_members_have_are_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zrpc.transport.gate.host_of", lambda fd: A)
    found, doorway, _ = make()
    found._descriptors = 1024
    for fd in range(100, 1000):
        found.accepted(fd)
        found.succeeded()
    assert doorway.kept == []
    found.close()


# ------------------------------------------------------------------------------------------------ a real listener


def bad_handshake() -> bytes:
    """A greeting for CURVE, and a HELLO that no server can open."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    hello = b"\x05HELLO\x01\x00" + bytes(72) + bytes(range(32)) + struct.pack(">Q", 1) + bytes(80)
    return greeting + b"\x04" + bytes([len(hello)]) + hello


def try_in_vain(listener: ZmqListener, count: int) -> None:
    """Bad handshakes, one after the other, until the listener closes each or is not to be reached any more."""
    host, port = listener.address.removeprefix("tcp://").split(":")
    for _ in range(count):
        with socket.socket() as end:
            end.bind((str(A), 0))
            end.settimeout(0.2)
            try:
                end.connect((host, int(port)))
                end.sendall(bad_handshake())
                while end.recv(4096):
                    pass
            except TimeoutError:
                return
            except OSError:
                continue


@pytest.mark.parametrize("watch", [False, True])
def test_who_floods_a_listener_is_kept_out_and_others_are_not(watch: bool) -> None:
    keyring = new_keyring("test")
    ours, theirs = ZmqTransport(keyring, "member"), ZmqTransport(keyring, "member")
    listener = ours.listen("tcp://127.0.0.1:0", "member", watch=watch)
    poller = Poller()
    poller.add(listener)
    over = threading.Event()

    def look() -> None:
        """As the broker does, who is woken by the monitor."""
        while not over.wait(0.001):
            listener.lost()

    looker = threading.Thread(target=look)
    looker.start()
    for round_ in range(2):  # before the flood and in it
        link = theirs.connect(listener.address, "member")
        link.send([b"hello"])
        while (received := listener.receive()) is None:
            poller.wait(LONG)
        assert received.frames == [b"hello"]
        if not round_:
            try_in_vain(listener, 20 * BURST)
    over.set()
    looker.join(LONG)
    refusals = ours.refusals()
    assert refusals["wrong key"] >= BURST
    assert refusals["hosts kept out"] == 1
    poller.close()
    theirs.close()
    ours.close()


def until(condition: Callable[[], bool]) -> None:
    """Until a condition holds, or the deadline has passed."""
    found = Poller()
    for _ in range(int(LONG * 100)):
        if condition():
            break
        found.wait(0.01)
    found.close()
    assert condition()


def is_closed_by_peer(end: socket.socket) -> bool:
    """Read what comes until the other side closes the connection, in whatever way."""
    try:
        while end.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64], ids=["http", "zeros"])
def test_what_is_not_zeromqs_protocol_is_counted(sent: bytes) -> None:
    ours = ZmqTransport(new_keyring("test"), "member")
    listener = ours.listen("tcp://127.0.0.1:0", "member")
    host, port = listener.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONG) as end:
        end.sendall(sent)
        assert is_closed_by_peer(end)
    until(lambda: ours.refusals() == {"no handshake": 1})
    ours.close()


def test_a_frame_before_the_key_is_bounded() -> None:
    """Who has shown no key cannot have a listener take gigabytes."""
    ours = ZmqTransport(new_keyring("test"), "member")
    listener = ours.listen("tcp://127.0.0.1:0", "member")
    host, port = listener.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONG) as end:
        end.sendall(bad_handshake()[:64] + b"\x06" + struct.pack(">Q", FRAME_BYTES + 1))
        assert is_closed_by_peer(end)
    until(lambda: ours.refusals() == {"no handshake": 1})
    ours.close()
