"""Who knocks at a listening socket too often without a key: counted, logged, and kept out by the system for a while.

A handshake that fails costs the listener about 100 us of ZeroMQ's I/O thread: 10,000 of them a second would leave it
nothing for its peers. What is not accepted costs next to nothing. So when failures come faster than `LASTING` a second, a
filter on the listening socket has the system drop most of the connection requests (SYN) of the hosts that make them, before
anything of ours runs. One in `SHARES[0]` is let through, so that whoever is at that host by right has a chance; fewer, when
failures go on. One rule: a filter looks at connection requests only, so no connection that stands ever notices it.

The filter is a program for the classic BSD packet filter (SO_ATTACH_FILTER, see socket(7)), which needs no privileges.
Where there is none (other systems than Linux) failures are counted and logged as well, and nobody is kept out.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import os
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from zrpc.clock import Clock, monotonic

BURST: Final = 512
"""Failures that may come at once: 50 ms of work. Dozens of workers that begin together may make some by right."""
LASTING: Final = 100.0
"""Failures a second that may go on: 1 % of a core. A member with an old key makes one or two."""
PENALTY: Final = 30.0
"""Seconds for which a host is kept out; then it is looked at anew."""
SHARES: Final = (256, 1024)
"""Of so many connection requests of a host that is kept out one is let through; then of so many. Powers of two."""
LASTING_OUTSIDE: Final = 20.0
"""Failures a second that may go on while somebody is kept out."""
MOST_HOSTS: Final = 32
"""Hosts in one filter, the worst: jumps of the filter's programs are short."""
RECENT: Final = 64
"""Connections whose hosts are remembered."""
BLAMED: Final = 4
"""A host with one in so many of the recent connections is kept out."""

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

logger = logging.getLogger(__name__)


def filter_program(hosts: Iterable[Host], share: int) -> bytes:
    """The program that drops connection requests of these hosts, but for one in `share`. Of IPv6 the upper half counts."""
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
    rows += [("", _EQUALS, "chance", "", int(host)) for host in found if host.version == 4]
    rows.append(("", _RETURN, "", "", 0xFFFF_FFFF))
    rows.append(("v6", _LOAD_BYTE, "", "", _NETWORK))
    for index, host in enumerate(host for host in found if host.version == 6):
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

    def keep_out(self, hosts: Iterable[Host], share: int) -> bool:
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


class Gate:
    """Counts failed handshakes of one listener, and decides who is kept out. Safe to use from any thread."""

    def __init__(self, address: str, clock: Clock = monotonic, penalty: float = PENALTY) -> None:
        self.address = address
        self._penalty = penalty
        self.refused: Counter[str] = Counter()
        """Failed handshakes by reason."""
        self._clock = clock
        self._lock = threading.Lock()
        self._doorway: Doorway | None = None
        self._recent: deque[Host] = deque(maxlen=RECENT)
        self._kept_out: dict[Host, float] = {}
        self._share = SHARES[0]
        self._budget = float(BURST)
        self._last = clock()
        self._over = threading.Event()
        self._reopener: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Gate {self.address} refused={dict(self.refused)} kept_out={sorted(map(str, self._kept_out))}>"

    def guard(self, doorway: Doorway) -> None:
        """The listening socket is there."""
        with self._lock:
            self._doorway = doorway

    def accepted(self, fd: int) -> None:
        """A connection was accepted; what becomes of its handshake is yet to be seen.

        The descriptor may have been closed and given to another connection, if whoever tells this is late. So tell the
        last of some connections only that had the same one: then a host is wrongly seen once, and not blamed for that.
        """
        host = host_of(fd)
        if host is not None:
            with self._lock:
                self._recent.append(host)

    def failed(self, why: str) -> None:
        """A handshake has failed."""
        with self._lock:
            self.refused[why] += 1
            count = self.refused.total()
            last = self._recent[-1] if self._recent else "somebody"
            now = self._clock()
            lasting = LASTING_OUTSIDE if self._kept_out else LASTING
            self._budget = min(float(BURST), self._budget + (now - self._last) * lasting) - 1.0
            self._last = now
            added = self._blame(now) if self._budget < 0.0 else []
        if count == 10 ** (len(str(count)) - 1):  # 1, 10, 100, ...
            logger.warning("%d handshake(s) with %s have failed, lately by %s (%s)", count, self.address, last, why)
        if added:
            names = ", ".join(map(str, added))
            logger.warning(
                "%s is kept out of %s for %g s: handshakes fail too fast", names, self.address, self._penalty
            )

    def _blame(self, now: float) -> list[Host]:
        """Keep out who knocks most. With the lock held; returns who is new."""
        self._budget = BURST / 2
        if self._doorway is None:
            return []
        seen = Counter(self._recent)
        blamed = [host for host, count in seen.most_common(MOST_HOSTS) if count * BLAMED >= RECENT]
        if not blamed:
            return []
        kept = {host: until for host, until in self._kept_out.items() if until > now}
        added = [host for host in blamed if host not in kept]
        kept |= dict.fromkeys(blamed, now + self._penalty)
        while len(kept) > MOST_HOSTS:
            del kept[min(kept, key=lambda host: kept[host])]
        if not added:
            self._share = SHARES[-1]
        if not self._doorway.keep_out(kept, self._share):
            return []
        self._kept_out = kept
        self.refused["hosts kept out"] += len(added)
        if self._reopener is None:
            self._reopener = threading.Thread(target=self._reopen, name="zrpc-gate", daemon=True)
            self._reopener.start()
        return added

    def kept_out(self) -> list[Host]:
        """Who is kept out now."""
        with self._lock:
            return list(self._kept_out)

    def _reopen(self) -> None:
        """Let hosts in when their time is over. A thread that there is only while somebody is kept out."""
        while True:
            with self._lock:
                now = self._clock()
                due = [host for host, until in self._kept_out.items() if until <= now]
                for host in due:
                    del self._kept_out[host]
                if due and self._doorway is not None:
                    if self._kept_out:
                        self._doorway.keep_out(self._kept_out, self._share)
                    else:
                        self._share = SHARES[0]
                        self._doorway.let_in()
                if not self._kept_out or self._over.is_set():
                    self._reopener = None
                    return
                pause = min(self._kept_out.values()) - now
            self._over.wait(max(0.0, pause))

    def close(self) -> None:
        """The listener closes: the copy of its socket must not outlive it."""
        self._over.set()
        with self._lock:
            doorway, self._doorway = self._doorway, None
            reopener = self._reopener
        if doorway is not None:
            doorway.close()
        if reopener is not None:
            reopener.join(5)
