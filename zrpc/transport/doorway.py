"""The listening socket's own filter: which hosts' connection requests the system drops before anything of ours runs.

One rule: a filter looks at connection requests (SYN) only, so no connection that stands ever notices it.

The filter is a program for the classic BSD packet filter (SO_ATTACH_FILTER, see socket(7)), which needs no privileges.
Where there is none (other systems than Linux) nobody is kept out.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

_ATTACH: Final = 26
_DETACH: Final = 27
_NETWORK: Final = 0xFFF0_0000
"""Where the filter finds the network header (SKF_NET_OFF)."""
_RANDOM: Final = 0xFFFF_F000 + 56
"""Where it finds a random number (SKF_AD_OFF + SKF_AD_RANDOM)."""
_LOAD_BYTE: Final = 0x30
_LOAD_WORD: Final = 0x20
_AND: Final = 0x54
_EQUALS: Final = 0x15
_RETURN: Final = 0x06

Host = ipaddress.IPv4Address | ipaddress.IPv6Address
Source = Host | ipaddress.IPv4Network
"""Where connections come from: a host, or many addresses that are one host's."""
LOOPBACK: Final = ipaddress.IPv4Network("127.0.0.0/8")
"""All of these addresses are this host's, and any program here can use each of them."""

logger = logging.getLogger(__name__)


def filter_program(hosts: Iterable[Source], share: int) -> bytes:
    """The program that drops connection requests of these hosts, but for one in `share`, a power of two. Of IPv6 the upper
    half counts."""
    rows: list[tuple[str, int, str, str, int]] = [  # (label, code, where to if equal, where to if not, operand)
        ("", _LOAD_BYTE, "", "", 13),  # the flags of TCP
        ("", _AND, "", "", 0x12),
        ("", _EQUALS, "request", "accept", 0x02),  # SYN without ACK
        ("request", _LOAD_BYTE, "", "", _NETWORK),
        ("", _AND, "", "", 0xF0),
        ("", _EQUALS, "v4", "v6", 0x40),
        ("v4", _LOAD_WORD, "", "", _NETWORK + 12),
    ]
    found = list(hosts)
    rows += [("", _EQUALS, "chance", "", int(host)) for host in found if isinstance(host, ipaddress.IPv4Address)]
    for network in found:
        if isinstance(network, ipaddress.IPv4Network):
            rows.append(("", _LOAD_WORD, "", "", _NETWORK + 12))
            rows.append(("", _AND, "", "", int(network.netmask)))
            rows.append(("", _EQUALS, "chance", "", int(network.network_address)))
    rows.append(("", _RETURN, "", "", 0xFFFF_FFFF))
    rows.append(("v6", _LOAD_BYTE, "", "", _NETWORK))
    for index, host in enumerate(host for host in found if isinstance(host, ipaddress.IPv6Address)):
        upper = int(host) >> 64
        rows.append(("", _LOAD_WORD, "", "", _NETWORK + 8))
        rows.append(("", _EQUALS, "", f"other {index}", upper >> 32))
        rows.append(("", _LOAD_WORD, "", "", _NETWORK + 12))
        rows.append(("", _EQUALS, "chance", "", upper & 0xFFFF_FFFF))
        rows.append((f"other {index}", _LOAD_BYTE, "", "", _NETWORK))
    rows += [
        ("accept", _RETURN, "", "", 0xFFFF_FFFF),
        ("chance", _LOAD_WORD, "", "", _RANDOM),
        ("", _AND, "", "", share - 1),
        ("", _EQUALS, "accept2", "drop", 0),
        ("accept2", _RETURN, "", "", 0xFFFF_FFFF),
        ("drop", _RETURN, "", "", 0),
    ]
    labels = {label: index for index, (label, *_) in enumerate(rows) if label}

    def jump(index: int, label: str) -> int:
        return labels[label] - index - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", code, jump(index, equal), jump(index, other), operand)
        for index, (_, code, equal, other, operand) in enumerate(rows)
    )


class Doorway:
    """The listening socket, seen by its descriptor: who may knock."""

    def __init__(self, fd: int) -> None:
        """`fd` stays the caller's: this has a copy."""
        self._socket = socket.socket(fileno=os.dup(fd))
        self.is_narrow = False

    def keep_out(self, hosts: Iterable[Source], share: int) -> bool:
        """Drop what these hosts ask for, but for one in `share`, and of nobody else. False where the system cannot."""
        program = filter_program(hosts, share)
        memory = ctypes.create_string_buffer(program)
        count = len(program) // struct.calcsize("=HBBI")
        try:
            # struct sock_fprog: a number and a pointer, aligned as the machine does it
            self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("@HP", count, ctypes.addressof(memory)))
        except OSError as error:
            logger.debug("no filter for a listening socket here: %s", error)
            return False
        self.is_narrow = True
        return True

    def let_in(self) -> None:
        """Everybody may knock again."""
        if self.is_narrow:
            self.is_narrow = False
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, _DETACH, 0)

    def close(self) -> None:
        self._socket.close()


def host_of(fd: int) -> Host | None:
    """The host at the other end of a connection; None when the descriptor is none (any more)."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            host = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    except (OSError, ValueError, IndexError, AttributeError, TypeError):
        return None
    return getattr(host, "ipv4_mapped", None) or host
