"""Ray: an actor with a method for each function. The server is the actor's process, which Ray starts itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks import functions
from benchmarks.systems.base import CALL_TIMEOUT, SERVER, Meeting, Rpc


@ray.remote(num_cpus=0)
class Server:
    """What the actor does."""

    def python_add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functions.python_add(x, y)

    def python_echo(self, x: torch.Tensor) -> torch.Tensor:
        return functions.python_echo(x)


class Reply:
    """A reply that is waited for."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def wait(self) -> Any:
        return ray.get(self._reference, timeout=CALL_TIMEOUT)


class Caller:
    """Calls a method of the actor by the name of a function."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def rpc_sync(self, to: str, func: Any, args: tuple[Any, ...]) -> Any:
        return ray.get(getattr(self._actor, func.__name__).remote(*args), timeout=CALL_TIMEOUT)

    def rpc_async(self, to: str, func: Any, args: tuple[Any, ...]) -> Reply:
        return Reply(getattr(self._actor, func.__name__).remote(*args))


class Ray:
    """A Ray instance of its own, for as long as the round takes."""

    autograd = None
    kinds = ("Python",)

    @contextmanager
    def meet(self, folder: Path, settings: Mapping[str, str]) -> Iterator[Meeting]:
        context = ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, namespace="benchmark")
        Server.options(name=SERVER, lifetime="detached").remote()  # type: ignore[attr-defined]
        try:
            yield {"address": context.address_info["gcs_address"]}
        finally:
            ray.shutdown()

    def join(self, name: str, ranks: Mapping[str, int], meeting: Meeting) -> Rpc:
        if name == SERVER:  # it is the actor
            return Caller(None)  # type: ignore[return-value]
        ray.init(address=meeting["address"], log_to_driver=False, namespace="benchmark")
        caller: Rpc = Caller(ray.get_actor(SERVER))  # type: ignore[assignment]
        return caller

    def leave(self) -> None:
        """The process ends."""

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        return None


def system(variant: str) -> Ray:
    """`ray` has one variant."""
    assert not variant
    return Ray()
