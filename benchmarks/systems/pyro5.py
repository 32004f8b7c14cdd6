"""Pyro5: blocking sockets and a thread for each connection. Tensors travel as bytes of torch's own format."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import Pyro5.api
import Pyro5.errors
import torch

from benchmarks import functions
from benchmarks.systems.base import CALL_TIMEOUT, SERVER, Meeting, Rpc


def write(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def read(data: Any) -> Any:
    return torch.load(io.BytesIO(bytes(data)))


@Pyro5.api.expose
class Functions:
    """What the server offers."""

    def python_add(self, args: bytes) -> bytes:
        return write(functions.python_add(*read(args)))

    def python_echo(self, args: bytes) -> bytes:
        return write(functions.python_echo(*read(args)))


class Caller:
    """Calls a method of the server's object by the name of a function."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def rpc_sync(self, to: str, func: Any, args: tuple[torch.Tensor, ...]) -> Any:
        return read(getattr(self._proxy, func.__name__)(write(args)))


class Pyro:
    """One server, and clients that know its address."""

    autograd = None
    kinds = ("Python",)

    @contextmanager
    def meet(self, folder: Path, settings: Mapping[str, str]) -> Iterator[Meeting]:
        yield {"socket": str(folder / "socket")}

    def join(self, name: str, ranks: Mapping[str, int], meeting: Meeting) -> Rpc:
        Pyro5.api.config.SERIALIZER = "marshal"  # the quickest for bytes
        if name == SERVER:
            daemon = Pyro5.api.Daemon(unixsocket=meeting["socket"])
            daemon.register(Functions(), "functions")
            threading.Thread(target=daemon.requestLoop, daemon=True).start()
        proxy = Pyro5.api.Proxy(f"PYRO:functions@./u:{meeting['socket']}")
        end = time.monotonic() + CALL_TIMEOUT
        while name != SERVER:
            try:
                proxy._pyroBind()
                break
            except Pyro5.errors.CommunicationError:
                if time.monotonic() > end:
                    raise
        caller: Rpc = Caller(proxy)  # type: ignore[assignment]
        return caller

    def leave(self) -> None:
        """The process ends."""

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        return None


def system(variant: str) -> Pyro:
    """`pyro5` has one variant."""
    assert not variant
    return Pyro()
