"""Floods a port with bad handshakes: connections that speak ZeroMQ's protocol, with a key that nobody knows.

    python -m benchmarks.flood.flooder HOST:PORT [HOST:PORT ...] --rate 10000      until its input ends; prints counts then

Each connection sends the greeting of ZMTP 3 for CURVE and a HELLO whose box was made for another server, in one packet, and
is given up when the other side closes it, or after a while. It is written against the specification (ZMTP RFC 23, CURVE
RFC 26), with plain sockets: a ZeroMQ client would wait between its attempts. `--what rubbish` sends what is not ZeroMQ's
protocol instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
PATIENCE = 0.05
"""Seconds after which a connection is given up that the other side neither answers nor closes."""
MOST_OPEN = 800
KINDS = ("hello", "rubbish")


def packet(what: str) -> bytes:
    """What each connection sends."""
    return {"hello": GREETING + hello(), "rubbish": b"GET / HTTP/1.1\r\n\r\n"}[what]


def hello() -> bytes:
    """A HELLO command that no server can open: 200 bytes in a short command frame."""
    body = b"\x05HELLO\x01\x00" + bytes(72) + os.urandom(32) + struct.pack(">Q", 1) + os.urandom(80)
    return b"\x04" + bytes([len(body)]) + body


class Flood:
    """Keeps making connections at a rate."""

    def __init__(self, targets: list[tuple[str, int]], rate: float, source: str, what: str) -> None:
        self.counts: Counter[str] = Counter()
        self._targets = targets
        self._rate = rate
        self._source = source
        self._open: dict[int, tuple[socket.socket, float]] = {}
        self._poll = select.epoll()
        self._packet = packet(what)

    def run(self, over: threading.Event) -> None:
        """Until `over`."""
        began = last_look = time.monotonic()
        made = 0
        while not over.is_set():
            now = time.monotonic()
            due = int((now - began) * self._rate) - made
            if due > self._rate:  # no catching up of what the other side was too slow for
                made += due - 1
                due = 1
            room = MOST_OPEN - len(self._open)
            for _ in range(min(due, room, 64)):
                self._connect(self._targets[made % len(self._targets)], now)
                made += 1
            for fd, _ in self._poll.poll(0 if due > 0 and room > 0 else 0.001, 256):
                self._look(fd)
            if now - last_look > PATIENCE / 4:
                last_look = now
                for fd in [fd for fd, (_, since) in self._open.items() if now - since > PATIENCE]:
                    self._drop(fd, "not answered")
        for fd in list(self._open):
            self._drop(fd, "open at the end")

    def _connect(self, target: tuple[str, int], now: float) -> None:
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves no TIME_WAIT behind
        end.bind((self._source, 0))
        self.counts["made"] += 1
        end.connect_ex(target)
        with contextlib.suppress(OSError):
            end.send(self._packet)
        self._open[end.fileno()] = end, now
        self._poll.register(end.fileno(), select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR)

    def _look(self, fd: int) -> None:
        end, _ = self._open[fd]
        try:
            data = end.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(fd, "refused")

    def _drop(self, fd: int, how: str) -> None:
        end, _ = self._open.pop(fd)
        self.counts[how] += 1
        self._poll.unregister(fd)
        end.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.flood.flooder")
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--rate", type=float, default=10_000.0)
    parser.add_argument("--source", default="127.0.0.2", help="the address that it comes from")
    parser.add_argument("--what", choices=KINDS, default="hello", help="what each connection sends")
    given = parser.parse_args()
    targets = [(host, int(port)) for host, _, port in (target.rpartition(":") for target in given.targets)]
    over = threading.Event()

    def obey() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=obey, daemon=True).start()
    flood = Flood(targets, given.rate, given.source, given.what)
    began = time.monotonic()
    flood.run(over)
    print(json.dumps({**flood.counts, "seconds": round(time.monotonic() - began, 2)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
