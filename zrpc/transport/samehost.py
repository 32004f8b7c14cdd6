"""Processes of one user on one host: how one lets another one in.

One rule: nothing is read from a connection, beyond a secret of fixed size and a byte that says what it is for, before its
other end is known to be a process of this user that was given the secret.

A listener has an abstract address, which leaves no file behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import socket
import struct
from typing import Final

from zrpc.errors import Unavailable
from zrpc.transport.local import LocalLink
from zrpc.wire.limits import DEFAULT_LIMITS, Limits

SECRET_BYTES: Final = 32
FOR_MESSAGES: Final = b"M"
"""What a connection is for: it says this after the secret."""
FOR_MEMORY: Final = b"S"
"""The same, of the channel for shared memory."""
BACKLOG: Final = 128
TURNED_AWAY: Final = 16
"""Connections of other users that one `receive` takes: whoever makes them without end does not keep its caller."""
MAX_UNPROVEN: Final = 64
"""Connections that have not said their secret yet; the oldest is closed when there are more."""


_PEER: Final = struct.Struct("3i")


def host_mark() -> bytes | None:
    """What processes have in common that can reach each other by abstract addresses: boot, network namespace, user.

    A hash, so that it says nothing to others. None where there is no such thing.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read()
        network = os.stat("/proc/self/ns/net")
    except OSError:
        return None
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    place = f"{network.st_dev} {network.st_ino} {os.getuid()}".encode()
    return hashlib.sha256(boot + place).digest()


def _is_same_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return bool(_PEER.unpack(credentials)[1] == os.getuid())


class LocalListener:
    """Takes connections from processes of this user. `receive` returns each as a `Newcomer`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self.address = f"zrpc-{os.getpid()}-{secrets.token_hex(8)}"
            self._socket.bind("\0" + self.address)
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self.refused = 0
        """Connections of other users."""
        self.is_busy = False
        """Whether the last `receive` returned None although there may be more."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> Newcomer | None:
        self.is_busy = False
        for _ in range(TURNED_AWAY):
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return None
            if _is_same_user(connection):
                connection.setblocking(False)
                return Newcomer(connection)
            self.refused += 1
            connection.close()
        self.is_busy = True
        return None

    def close(self) -> None:
        self._socket.close()


class Newcomer:
    """A connection that has yet to say the secret: nothing else of it is read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: socket.socket | None = connection
        self._fd = connection.fileno()
        self._said = b""

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> bytes | None:
        """What it says, SECRET_BYTES and one more, or fewer when it has ended before; None while there is more to come."""
        if self._connection is None:
            return None
        try:
            data = self._connection.recv(SECRET_BYTES + 1 - len(self._said))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._said += data
        return None if data and len(self._said) <= SECRET_BYTES else self._said

    def admit(self) -> socket.socket:
        """The connection, which is the caller's now; this object is of no use afterwards."""
        connection, self._connection = self._connection, None
        assert connection is not None
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def connect_local(address: str, secret: bytes, limits: Limits = DEFAULT_LIMITS) -> LocalLink:
    """A link to the listener at an address. Raises `Unavailable` when none of this user is there."""
    return LocalLink(open_connection(address, secret, FOR_MESSAGES), limits)


def open_connection(address: str, secret: bytes, purpose: bytes) -> socket.socket:
    """A connection to the listener at an address, which has said the secret and what it is for."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect("\0" + address)
        if not _is_same_user(connection):
            raise Unavailable(f"the process at {address!r} belongs to another user")
        connection.send(secret + purpose)
    except OSError as error:
        with contextlib.suppress(OSError):
            connection.close()
        raise Unavailable(f"no process of this host at {address!r} ({error})") from None
    except BaseException:
        connection.close()
        raise
    return connection


def new_secret() -> bytes:
    """A secret that nobody guesses."""
    return secrets.token_bytes(SECRET_BYTES)


def is_same_secret(given: bytes, known: bytes) -> bool:
    """Compare in a time that tells nothing."""
    return hmac.compare_digest(given, known)
