"""The filter of a listening socket: whose connection requests the system drops."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct

import pytest

from zrpc.transport.doorway import LOOPBACK, Doorway, filter_program, host_of
from zrpc.transport.gate import FIRST_SHARE, MOST_HOSTS

SHARE = FIRST_SHARE
A, B = (ipaddress.ip_address(f"127.0.0.{number}") for number in (9, 8))


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
    hosts = [ipaddress.ip_address(f"2001:db8:{index:x}::1") for index in range(MOST_HOSTS)]
    program = filter_program(hosts, SHARE)
    assert not any(passes(program, str(host), SYN, 1) for host in hosts)
    v4 = [ipaddress.ip_address(f"10.0.0.{index}") for index in range(MOST_HOSTS)]
    assert not any(passes(filter_program(v4, SHARE), str(host), SYN, 1) for host in v4)


@pytest.mark.parametrize(("source", "is_let_in"), [("127.0.0.1", False), ("127.200.3.4", False), ("128.0.0.1", True)])
def test_a_filter_keeps_out_all_of_a_network(source: str, is_let_in: bool) -> None:
    for others in ([], [ipaddress.ip_address("10.0.0.1")], [ipaddress.ip_address("2001:db8::1")]):
        program = filter_program([*others, LOOPBACK], SHARE)
        assert passes(program, source, SYN, 1) == is_let_in
        assert passes(program, source, ACK, 1)
        assert not any(passes(program, str(other), SYN, 1) for other in others)


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
