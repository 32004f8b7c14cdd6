"""Real brokers and workers in processes of their own, and this process as a member among them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import zrpc
from zrpc.clock import monotonic

LONG = 60.0
HELPER = """
import os, signal, sys, time, threading

def pid():
    return os.getpid()

def sleep_until_told(path):
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"

def sleep_for(seconds):
    time.sleep(seconds)
    return seconds
"""


class Process:
    """A command that runs, and what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("ZRPC_")} | variables
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "zrpc.cli.main", *arguments],
            cwd=folder,
            env={**environ, "XDG_RUNTIME_DIR": str(folder / "runtime"), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    @property
    def pid(self) -> int:
        return self.popen.pid

    def read_until(self, text: str) -> str:
        """The next line with this text."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} did not come:\n{''.join(self.lines)}")

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code and all output."""
        rest, _ = self.popen.communicate(timeout=LONG)
        return self.popen.returncode, "".join(self.lines) + rest


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [end.getsockname()[1] for end in sockets]
    for end in sockets:
        end.close()
    return ports


class Cable:
    """Carries TCP connections, until it is cut: then nothing passes any more, and nobody is told, as on a real one."""

    def __init__(self) -> None:
        self._is_cut = threading.Event()
        self._is_over = False
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def to(self, address: str) -> str:
        """An address that leads to `address` through this cable."""
        server = socket.create_server(("127.0.0.1", 0))
        port = int(address.rpartition(":")[2])
        self._sockets.append(server)
        self._start(self._accept, server, port)
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"

    def cut(self) -> None:
        self._is_cut.set()

    def close(self) -> None:
        self._is_over = True
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(LONG)

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, server: socket.socket, port: int) -> None:
        while not self._is_over:
            try:
                near, _ = server.accept()
                self._sockets.append(near)
                if self._is_cut.is_set():
                    continue  # held, and never heard of again
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                continue
            self._sockets.append(far)
            self._start(self._carry, near, far)
            self._start(self._carry, far, near)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._is_cut.is_set():
                    return
                target.sendall(data)
            if not self._is_cut.is_set():
                target.shutdown(socket.SHUT_RDWR)


class Scene:
    """A folder with a broker and workers, and a key."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        (folder / "runtime").mkdir()
        (folder / "helper.py").write_text(HELPER)
        self.address = ""
        self.key = str(folder / "cluster.key")

    def process(self, *arguments: str, **environ: str) -> Process:
        process = Process(self.folder, *arguments, **environ)
        self._stack.callback(process.popen.communicate)
        self._stack.callback(process.popen.kill)
        return process

    def broker(self, *arguments: str) -> Process:
        """A broker; the second one begins at the address of the first."""
        if self.address:
            process = self.process("broker", "--bind", self.address, "--key-file", self.key, *arguments)
        else:
            process = self.process("broker", "--new-key", self.key, *arguments)
        self.address = process.read_until("broker of cluster").split()[-1]
        return process

    def at(self) -> tuple[str, ...]:
        return ("--broker", self.address, "--key-file", self.key)

    def start(self, name: str, *arguments: str) -> Process:
        """A worker, which may not have joined yet."""
        return self.process("worker", name, "--import", "helper", *self.at(), *arguments)

    def start_behind(self, name: str, cable: Cable, broker_too: bool = True) -> Process:
        """A worker whose connections run through `cable`, that to the broker perhaps not; it has joined."""
        (port,) = free_ports(1)
        broker = cable.to(self.address) if broker_too else self.address
        seen = cable.to(f"tcp://127.0.0.1:{port}")
        options = json.dumps({"bind": f"tcp://127.0.0.1:{port}", "advertise": seen})
        at = ("--broker", broker, "--key-file", self.key)
        process = self.process("worker", name, "--import", "helper", *at, ZRPC_OPTIONS=options)
        process.read_until(f"worker {name} has joined")
        return process

    def workers(self, *names: str) -> list[Process]:
        """Workers that have joined."""
        processes = [self.start(name) for name in names]
        for name, process in zip(names, processes, strict=True):
            process.read_until(f"worker {name} has joined")
        return processes

    def join(self, name: str = "test", **options: object) -> None:
        """This process becomes a member, until the scene's end."""
        zrpc.init_rpc(name, broker=self.address, key_file=self.key, options=zrpc.AgentOptions(**options))  # type: ignore[arg-type]
        self._stack.callback(zrpc.shutdown, graceful=False)


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(folder, stack)


def wait_for_file(path: Path) -> None:
    deadline = monotonic() + LONG
    while not path.exists():
        assert monotonic() < deadline, path
        os.sched_yield()
