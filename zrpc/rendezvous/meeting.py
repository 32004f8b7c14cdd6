"""What all ways to meet have in common.

One rule: whoever is to embed the broker does so inside `find`, and everybody else waits there for its record.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from zrpc.clock import monotonic, time_left
from zrpc.errors import GroupTimeout, ZrpcError
from zrpc.rendezvous.hosting import FAILURE_TIMEOUT, GOODBYE_TIMEOUT, EmbeddedBroker
from zrpc.rendezvous.keys import keyring_from_environment, make_local_key
from zrpc.rendezvous.record import Record, keyring_for
from zrpc.transport.curve import Keyring

POLL_INTERVAL = 0.02
"""Seconds between two looks at something that cannot be waited for, such as a file."""
PATIENCE = 0.5
"""Seconds that nobody listens at the broker's address before a process looks for its record again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Party:
    """Who wants to meet: `world_size` 0 is a group that processes join and leave at any time."""

    rank: int
    world_size: int
    round: int = 0
    """How often this process has met before by the same init method."""
    security: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where the broker is, with what key to go there, and which of this host's interfaces lead there."""

    address: str
    keyring: Keyring | None
    interface: str = "127.0.0.1"


class Meeting(ABC):
    """One process's part in a rendezvous. `find`, then join; at last `end` or `fail`."""

    patience: float | None = None
    """How long to try an address that nobody listens at; None: until the deadline."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.broker: EmbeddedBroker | None = None
        self._key_path: Path | None = None
        self._pause = threading.Event()

    @abstractmethod
    def find(self, deadline: float) -> Place:
        """Where to join. Called again when nobody listened there. Raises `GroupTimeout` at the deadline."""

    @abstractmethod
    def _withdraw(self, is_empty: bool) -> None:
        """The broker of this process has stopped; `is_empty`: no member was left."""

    def end(self, graceful: bool) -> None:
        """This process has left its cluster. If it has the broker, that stays while others need it.

        A graceful end of a static group waits for the others' leave, at most `GOODBYE_TIMEOUT` seconds.
        """
        broker = self.broker
        if broker is None:
            return
        if graceful and self.party.world_size:
            if not broker.wait_empty(GOODBYE_TIMEOUT):
                logger.warning("some of the group have not left; their broker, in this process, ends now")
            broker.stop()
        elif broker.wait_empty(0.0):
            broker.stop()
        else:
            broker.linger()

    def fail(self) -> None:
        """Joining failed. If this process has the broker, the others are told why first."""
        if self.broker is not None:
            if self.party.world_size:
                self.broker.wait_told(self.party.world_size, FAILURE_TIMEOUT)
            self.broker.stop()

    # ------------------------------------------------------------------------------------ for hosts

    def _choose_key(self) -> Keyring | None:
        """The key for a new cluster: the one that was set, or a fresh one in a file."""
        if not self.party.security:
            return None
        found = keyring_from_environment(os.environ)
        if found is None:
            found, self._key_path = make_local_key(os.environ)
        return found

    def _serve(self, keyring: Keyring | None, wanted: tuple[str, ...], is_successor: bool = False) -> EmbeddedBroker:
        try:
            broker = EmbeddedBroker(keyring, wanted, is_successor=is_successor, on_stopped=self._on_stopped)
        except BaseException:
            self._on_stopped(True)
            raise
        self.broker = broker
        return broker

    def _on_stopped(self, is_empty: bool) -> None:
        if self._key_path is not None:
            self._key_path.unlink(missing_ok=True)
        self._withdraw(is_empty)

    def _describe(self, address: str, keyring: Keyring | None) -> Record:
        return Record(
            address,
            socket.gethostname(),
            "" if keyring is None else keyring.fingerprint(),
            "" if self._key_path is None else str(self._key_path),
        )

    # ------------------------------------------------------------------------------------ for guests

    def _key_for(self, record: Record) -> Keyring | None:
        return keyring_for(record, socket.gethostname(), self.party.security, os.environ)

    def _pause_until(self, deadline: float, began: float) -> None:
        """Wait a moment. Raises `GroupTimeout` when the deadline has passed."""
        now = monotonic()
        left = time_left(deadline, now)
        if not left:
            raise self._nobody(now - began)
        self._pause.wait(min(POLL_INTERVAL, left))

    def _nobody(self, waited: float) -> GroupTimeout:
        return GroupTimeout("waiting for the process that embeds the broker", waited, (), ("rank 0",))


def interface_towards(host: str) -> str:
    """The address of this host's interface that leads to `host`. Nothing is sent."""
    for family, kind, number, _, where in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
        with socket.socket(family, kind, number) as probe:
            try:
                probe.connect(where)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise ZrpcError(f"no interface of this host leads to {host!r}")


def is_loopback(host: str) -> bool:
    """Whether `host` is this very machine by its name or number."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def endpoint(host: str, port: int = 0) -> str:
    """The address as ZeroMQ writes it."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def port_of(address: str) -> int:
    """The port in an address."""
    return int(address.rpartition(":")[2])
