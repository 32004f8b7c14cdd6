"""What the launcher and a broker are to each other.

One rule: plain values and functions; a broker's own process reads this too, so nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import Keyring


def _ignore(*_: object) -> None:
    pass


class Broker(Protocol):
    """What the launcher needs of a broker."""

    @property
    def address(self) -> str:
        """Where members connect to."""

    def exited(self, name: str, pid: int, why: str) -> None:
        """A worker's process has ended."""

    def stop(self, timeout: float = ...) -> None:
        """End it."""


@dataclass(frozen=True)
class BrokerRequest:
    """Which broker the launcher wants; the two functions are called from any thread."""

    cluster: str
    bind: str
    keyring: Keyring | None
    joined: Callable[[str], None]
    stop_asked: Callable[[str], None]
    expected: tuple[str, ...] = ()
    """Workers that will come; their ids follow this order."""
    options: RegistryOptions = field(default_factory=RegistryOptions)
    key_file: Path | None = None
    """Where `keyring` is, for a broker in a process of its own."""
    remark: Callable[[str], None] = _ignore
    """Called with a sentence for the user."""
    roles: tuple[str, ...] = ()
    """Roles whose number of workers may be changed."""
    scale: Callable[[str, int], None] = _ignore
    """Called with a role and the number of workers that somebody wants of it."""
    follows: str = ""
    """The address of a broker to stand by for; empty: be in charge."""
    standby_bind: str = ""
    """Where a standby is to listen; empty: there is to be none."""


StartBroker = Callable[[BrokerRequest], Broker]
