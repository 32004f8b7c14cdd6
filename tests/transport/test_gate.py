"""Failed handshakes: counted, told, and kept out when they come too fast."""

from __future__ import annotations

import ipaddress
import logging
import select
import socket
import struct
import threading
from collections.abc import Iterable

import pytest

from zrpc.transport import gate
from zrpc.transport.curve import new_keyring
from zrpc.transport.gate import BURST, LASTING, RECENT, SHARES, Doorway, Gate, Host, filter_program, host_of
from zrpc.transport.poller import Poller
from zrpc.transport.router import ZmqListener, ZmqTransport

LONG = 30.0
SHARE = SHARES[0]
A, B, OTHER = (ipaddress.ip_address(f"127.0.0.{number}") for number in (9, 8, 7))


# ------------------------------------------------------------------------------------------------ the filter


def passes(program: bytes, source: str, flags: int, chance: int) -> bool:
    """Run a filter's program on a packet, as the kernel would."""
    host = ipaddress.ip_address(source)
    network = bytes([0x45]) + bytes(11) + host.packed if host.version == 4 else bytes([0x60]) + bytes(7) + host.packed
    tcp = bytes(13) + bytes([flags]) + bytes(6)
    accumulator, at = 0, 0
    rows = [struct.unpack_from("=HBBI", program, start) for start in range(0, len(program), 8)]
    while True:
        code, equal, other, operand = rows[at]
        at += 1
        if code in (0x30, 0x20):
            size = 1 if code == 0x30 else 4
            if operand == 0xFFFFF000 + 56:
                accumulator = chance
            else:
                data, start = (network, operand - 0xFFF00000) if operand >= 0xFFF00000 else (tcp, operand)
                accumulator = int.from_bytes(data[start : start + size], "big")
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            at += equal if accumulator == operand else other
        else:
            assert code == 0x06
            return operand > 0


SYN, ACK, SYN_ACK = 0x02, 0x10, 0x12
KEPT = ["10.0.0.3", "10.0.0.4", "2001:db8:1:2::5", "2001:db8:1:3::1"]


@pytest.mark.parametrize(
    ("source", "flags", "chance", "is_let_in"),
    [
        ("10.0.0.3", SYN, 1, False),
        ("10.0.0.4", SYN, SHARE + 1, False),
        ("10.0.0.4", SYN, SHARE, True),
        ("10.0.0.5", SYN, 1, True),
        ("10.0.0.3", ACK, 1, True),
        ("10.0.0.3", SYN_ACK, 1, True),
        ("10.0.0.3", SYN | 0x40, 1, False),
        ("2001:db8:1:2::99", SYN, 1, False),
        ("2001:db8:1:3::99", SYN, 1, False),
        ("2001:db8:1:4::5", SYN, 1, True),
        ("2001:db9:1:2::5", SYN, 1, True),
        ("2001:db8:1:2::5", ACK, 1, True),
    ],
)
def test_what_a_filter_drops(source: str, flags: int, chance: int, is_let_in: bool) -> None:
    program = filter_program(map(ipaddress.ip_address, KEPT), SHARE)
    assert passes(program, source, flags, chance) == is_let_in


def test_a_filter_of_many_hosts_has_jumps_that_fit() -> None:
    hosts = [ipaddress.ip_address(f"2001:db8:{index:x}::1") for index in range(gate.MOST_HOSTS)]
    program = filter_program(hosts, SHARE)
    assert not any(passes(program, str(host), SYN, 1) for host in hosts)
    v4 = [ipaddress.ip_address(f"10.0.0.{index}") for index in range(gate.MOST_HOSTS)]
    assert not any(passes(filter_program(v4, SHARE), str(host), SYN, 1) for host in v4)


def get_in(listener: socket.socket, source: str, tries: int) -> int:
    """How many of some connection requests are taken at once: on a loopback the system decides while it is asked."""
    ends = []
    for _ in range(tries):
        end = socket.socket()
        end.setblocking(False)
        end.bind((source, 0))
        end.connect_ex(listener.getsockname())
        ends.append(end)
    _, taken, _ = select.select([], ends, [], 0.0)
    for end in ends:
        end.close()
    return len(taken)


def test_the_system_keeps_a_host_out_and_lets_it_in_again() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        standing = socket.create_connection(listener.getsockname(), source_address=(str(A), 0))
        accepted, _ = listener.accept()
        doorway = Doorway(listener.fileno())
        assert doorway.keep_out([A], SHARE)
        assert get_in(listener, str(A), 100) < 50
        assert get_in(listener, str(B), 50) == 50
        standing.sendall(b"still here")
        assert accepted.recv(10) == b"still here"
        assert host_of(accepted.fileno()) == A
        doorway.let_in()
        assert get_in(listener, str(A), 50) == 50
        doorway.close()
        accepted.close()
        standing.close()


def test_what_is_no_connection_has_no_host() -> None:
    with open(__file__) as file:
        assert host_of(file.fileno()) is None
    assert host_of(9999) is None


# ------------------------------------------------------------------------------------------------ the decision


class FakeDoorway(Doorway):
    """Remembers who was kept out."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.kept: list[list[Host]] = []
        self.shares: list[int] = []
        self.opened = threading.Event()

    def keep_out(self, hosts: Iterable[Host], share: int) -> bool:
        self.kept.append(list(hosts))
        self.shares.append(share)
        return self.works

    def let_in(self) -> None:
        self.opened.set()

    def close(self) -> None:
        pass


def make(penalty: float = 1000.0, works: bool = True) -> tuple[Gate, FakeDoorway, list[float]]:
    now = [100.0]
    found, doorway = Gate("tcp://h:1", clock=lambda: now[0], penalty=penalty), FakeDoorway(works)
    found.guard(doorway)
    return found, doorway, now


def knock(found: Gate, host: Host, count: int) -> None:
    for _ in range(count):
        found._recent.append(host)
        found.failed("wrong key")


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
    found, doorway, now = make()
    knock(found, A, BURST + 1)
    now[0] += 1.0
    knock(found, A, BURST)
    assert doorway.shares == list(SHARES)
    knock(found, B, 2 * BURST)
    assert doorway.kept[-1] == [A, B]
    assert found.refused["hosts kept out"] == 2
    found.close()


def test_one_sighting_is_not_enough() -> None:
    """Who tells of connections may be late: descriptors that the flood had may be somebody else's by then."""
    found, doorway, _ = make()
    found._recent.append(B)
    for _ in range(2 * BURST):
        found.failed("wrong key")
    assert doorway.kept == []
    found.close()


def test_where_nobody_can_be_kept_out_failures_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    found, _, _ = make(works=False)
    with caplog.at_level(logging.WARNING):
        knock(found, A, 1000)
    assert found.kept_out() == []
    assert found.refused == {"wrong key": 1000}
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [1, 10, 100, 1000]
    assert "lately by 127.0.0.9 (wrong key)" in caplog.text
    found.close()


def test_a_host_is_let_in_again() -> None:
    now = threading.Event()
    found = Gate("tcp://h:1", clock=lambda: 1e9 if now.is_set() else 100.0, penalty=0.01)
    doorway = FakeDoorway()
    found.guard(doorway)
    knock(found, A, BURST + 1)
    now.set()
    assert doorway.opened.wait(LONG)
    found.close()
    assert found.kept_out() == []


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
