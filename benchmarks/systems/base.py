"""What a system must have to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

Meeting = dict[str, str]
"""How the processes find each other; strings, because it goes to other processes."""

SERVER, CLIENT = "server", "client"
CALL_TIMEOUT = 120.0


class Rpc(Protocol):
    """The functions that a user calls: those of `torch.distributed.rpc`, which are also those of `zrpc`.

    Systems that have other names for them come with an adapter that calls them as their users would.
    """

    def rpc_sync(self, to: str, func: Any, args: tuple[Any, ...] = ()) -> Any: ...

    def rpc_async(self, to: str, func: Any, args: tuple[Any, ...] = ()) -> Any: ...

    def remote(self, to: str, func: Any, args: tuple[Any, ...] = ()) -> Any: ...


class System(Protocol):
    """One system, in one of its variants."""

    autograd: Any
    """Its module of distributed autograd, or None."""
    kinds: tuple[str, ...]
    """See `workloads.base.Client`."""

    def meet(self, folder: Path, settings: Mapping[str, str]) -> AbstractContextManager[Meeting]:
        """Whatever has to run besides the processes, for as long as they do; runs in the harness's process.

        Settings: `network: tcp`, use nothing that works on one host only; `security: off`, do not encrypt;
        `times: patient`, give those time who wait for a core.
        """

    def join(self, name: str, ranks: Mapping[str, int], meeting: Meeting) -> Rpc:
        """Be the process of that name; returns when all are there."""

    def leave(self) -> None:
        """Undo `join`, without waiting for others."""

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        """The command that starts a cluster of `workers` workers and a job which calls `worker-0` once and prints
        `workloads.launch.FIRST_CALL` and `time.monotonic()`; None if that is not measured."""
