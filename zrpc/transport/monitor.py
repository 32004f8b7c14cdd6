"""What ZeroMQ tells of a socket's connections: that they were accepted, failed, closed.

One rule: a monitor tells what ZeroMQ saw, in its order, and late: a descriptor that it names may be another one's by now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from zrpc.transport.gate import Gate


class Monitor:
    """A socket's connection events. Read without blocking, under the lock of the socket that it watches."""

    def __init__(self, socket: zmq.Socket[bytes], events: int) -> None:
        self._owner = socket
        self._socket: zmq.Socket[bytes] = socket.get_monitor_socket(events)

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def read(self) -> list[tuple[int, int]]:
        """(event, value) pairs since the last call."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                message = recv_monitor_message(self._socket, zmq.NOBLOCK)
            except zmq.Again:
                return found
            found.append((int(message["event"]), int(message["value"])))

    def wait_for(self, event: int, timeout_ms: int) -> int | None:
        """Read on until `event` has come, or nothing has for `timeout_ms`; returns the event's value."""
        while self._socket.poll(timeout_ms):
            for found, value in self.read():
                if found == event:
                    return value
        return None

    def follow(self, note: Callable[[list[tuple[int, int]]], None]) -> None:
        """Hand over all events, until the watched socket stops. For a thread of its own, which closes the monitor."""
        events: list[tuple[int, int]] = []
        with contextlib.suppress(zmq.ZMQError):  # the context has ended
            while not any(event == zmq.EVENT_MONITOR_STOPPED for event, _ in events):
                self._socket.poll()
                events = self.read()
                note(events)
        self._socket.close(0)

    def close(self) -> None:
        self._owner.disable_monitor()
        self._socket.close(0)


_FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL) | int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
DENIED = "denied"
"""What the doorkeeper has refused, and counts itself."""
_DENIED = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
GATE_EVENTS = _FAILED | _DENIED | _ACCEPTED | _SUCCEEDED | _DISCONNECTED | int(zmq.EVENT_LISTENING)
_FAILURES = {
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "wrong key",
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "not encrypted",
}
"""Why a handshake failed before the doorkeeper was asked; it counts the others itself."""


def tell_gate(gate: Gate, events: list[tuple[int, int]]) -> None:
    """Tell a gate what became of connections."""
    newest = {value: index for index, (event, value) in enumerate(events) if event == _ACCEPTED}
    for index, (event, value) in enumerate(events):
        if event == _ACCEPTED:
            gate.accepted(value, newest[value] == index)
        elif event == _SUCCEEDED:
            gate.succeeded()
        elif event == _DISCONNECTED:
            gate.closed(value)
        elif event & _FAILED:
            gate.failed(_FAILURES.get(value, "handshake failed"))
        elif event == _DENIED:
            gate.failed(DENIED)
