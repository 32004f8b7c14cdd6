"""Who takes part in a round: which processes there are, and what the system is told.

Workloads of equal casts share their processes.
"""

from __future__ import annotations

from dataclasses import dataclass

Settings = tuple[tuple[str, str], ...]
"""What a system is told, by name; see `systems.base.System.meet`."""

NETWORK: Settings = (("network", "tcp"),)
"""As if the processes were on two hosts: no way that only works on one."""
UNENCRYPTED: Settings = (*NETWORK, ("security", "off"))


@dataclass(frozen=True)
class Cast:
    """The processes of a round, by name. Servers wait to be called; each client runs the workload."""

    servers: tuple[str, ...] = ("server",)
    clients: tuple[str, ...] = ("client",)
    settings: Settings = ()

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each process, servers first."""
        return {name: rank for rank, name in enumerate((*self.servers, *self.clients))}


PAIR = Cast()


def crowd(clients: int) -> Cast:
    """Many clients of one server."""
    return Cast(clients=tuple(f"client-{number}" for number in range(clients)))


def workers(count: int) -> Cast:
    """Some workers and one client."""
    return Cast(servers=tuple(f"worker-{number}" for number in range(count)))
