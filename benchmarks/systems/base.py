"""What a system must have to be measured."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

Meeting = dict[str, str]
"""How the client and the server find each other; strings, because it goes to other processes."""

SERVER, CLIENT = "server", "client"
RANKS = {SERVER: 0, CLIENT: 1}
CALL_TIMEOUT = 60.0


class Rpc(Protocol):
    """The functions that a user calls: those of `torch.distributed.rpc`, which are also those of `zrpc`."""

    def rpc_sync(self, to: str, func: Any, args: tuple[Any, ...]) -> Any: ...

    def rpc_async(self, to: str, func: Any, args: tuple[Any, ...]) -> Any: ...

    def remote(self, to: str, func: Any, args: tuple[Any, ...]) -> Any: ...


class System(Protocol):
    """One system, in one of its variants."""

    autograd: Any
    """Its module of distributed autograd."""

    def meet(self, folder: Path) -> AbstractContextManager[Meeting]:
        """Whatever has to run besides the two processes, for as long as they do; runs in the harness's process."""

    def join(self, name: str, meeting: Meeting) -> Rpc:
        """Be `SERVER` or `CLIENT`; returns when both are there."""

    def leave(self) -> None:
        """Undo `join`, without waiting for the other one."""

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        """The command that starts a cluster of `workers` workers and a job which calls `worker-0` once and prints
        `workloads.startup.FIRST_CALL` and `time.monotonic()`; None if that is not measured."""
