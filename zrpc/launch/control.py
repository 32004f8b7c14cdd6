"""The wire between the launcher and its broker's process: a socket pair with one JSON object a line.

One rule: either side ends when the other is gone.

    launcher to broker     {"exited": [NAME, PID, WHY]}    a worker's process has ended
                           {"stop": true}                  end, after telling the members
    broker to launcher     {"ready": ADDRESS}              it serves
                           {"failed": SENTENCE}            it cannot serve, and ends
                           {"joined": NAME}                a worker is up
                           {"stop": WHY}                   everybody was asked to stop
                           {"scale": [ROLE, COUNT]}        so many workers of that role are wanted
                           {"remark": SENTENCE}            what has happened between it and its standby
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zrpc.errors import ConfigError

ORDER_VARIABLE = "ZRPC_BROKER_ORDER"
"""What the broker's process is to serve, as JSON (see `ProcessOrder`)."""


@dataclass(frozen=True)
class ProcessOrder:
    """What a broker's process needs to know."""

    control: int
    """The descriptor of its end of the wire."""
    cluster: str
    bind: str
    expected: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    """Roles whose number of workers may be asked for."""
    heartbeat_interval: float = 0.5
    death_timeout: float = 3.0
    silence_timeout: float = 30.0
    names_per_host: int = 10_000
    is_successor: bool = False
    follows: str = ""
    """The address of a broker to stand by for; empty: be in charge."""

    def to_json(self) -> str:
        """The order as text, for the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ProcessOrder:
        """The order that a launcher left. Raises `ConfigError` when there is none."""
        try:
            values = json.loads(environ[ORDER_VARIABLE])
            values.update(expected=tuple(values["expected"]), roles=tuple(values["roles"]))
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"environment variable {ORDER_VARIABLE}", [f"expected a launcher's order: {error}"]
            ) from None


class Control:
    """One end of the wire. `send` may be called from any thread, `lines` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, **message: Any) -> bool:
        """Say something; False when nobody hears it."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def tell(self, **message: Any) -> None:
        """As `send`, when it does not matter whether anybody hears it."""
        self.send(**message)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What the other side says, until it is gone."""
        with self._socket.makefile("rb") as stream:
            try:
                for line in stream:
                    yield json.loads(line)
            except (OSError, ValueError):
                return

    def close(self) -> None:
        """Wakes whoever reads, too."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
