"""Raw pyzmq, as a program without an RPC library would use it: a ROUTER in a loop, a DEALER, and pickle.

It is a floor and no rival: not encrypted, no deadlines, no errors, no threads, nothing that lasts longer than a call.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import zmq

from benchmarks import functions
from benchmarks.systems.base import CALL_TIMEOUT, SERVER, Meeting, Rpc


def write(value: Any) -> list[Any]:
    """A pickle, and the bytes of large arrays beside it."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return [head, *(buffer.raw() for buffer in buffers)]


def read(frames: list[Any]) -> Any:
    return pickle.loads(frames[0].buffer, buffers=[bytearray(frame.buffer) for frame in frames[1:]])


def serve(socket: zmq.Socket[bytes]) -> None:
    """Answer calls one by one."""
    while True:
        sender, *request = socket.recv_multipart(copy=False)
        name, arrays = read(request)
        result = getattr(functions, name)(*map(torch.from_numpy, arrays))
        socket.send_multipart([sender, *write(result.numpy())], copy=False)


class Reply:
    """A reply that is waited for. Replies come in the order of the calls."""

    def __init__(self, rpc: Dealer) -> None:
        self._rpc = rpc

    def wait(self) -> torch.Tensor:
        return self._rpc.receive()


class Dealer:
    """Calls, on one socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def _send(self, func: Any, args: tuple[torch.Tensor, ...]) -> None:
        self._socket.send_multipart(write((func.__name__, [arg.numpy() for arg in args])), copy=False)

    def receive(self) -> torch.Tensor:
        return torch.from_numpy(read(self._socket.recv_multipart(copy=False)))

    def rpc_sync(self, to: str, func: Any, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self._send(func, args)
        return self.receive()

    def rpc_async(self, to: str, func: Any, args: tuple[torch.Tensor, ...]) -> Reply:
        self._send(func, args)
        return Reply(self)


class Pyzmq:
    """One server, and clients that know its address."""

    autograd = None
    kinds = ("Python",)

    @contextmanager
    def meet(self, folder: Path, settings: Mapping[str, str]) -> Iterator[Meeting]:
        yield {"address": f"ipc://{folder / 'socket'}"}

    def join(self, name: str, ranks: Mapping[str, int], meeting: Meeting) -> Rpc:
        context = zmq.Context.instance()
        socket = context.socket(zmq.ROUTER if name == SERVER else zmq.DEALER)
        socket.set_hwm(0)
        if name == SERVER:
            socket.bind(meeting["address"])
            threading.Thread(target=serve, args=(socket,), daemon=True).start()
        else:
            socket.rcvtimeo = int(CALL_TIMEOUT * 1000)
            socket.connect(meeting["address"])
        dealer: Rpc = Dealer(socket)  # type: ignore[assignment]
        return dealer

    def leave(self) -> None:
        """The process ends."""

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        return None


def system(variant: str) -> Pyzmq:
    """`pyzmq` has one variant."""
    assert not variant
    return Pyzmq()
