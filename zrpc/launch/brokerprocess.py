"""The launcher's broker: a process of its own, started again whenever it ends.

One rule: its address stays the same from the first start on, so that members find the next one where the last one was.
The members hold the membership: a new broker learns it from them, and lets nobody new in before they had time to return.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from zrpc.errors import ConfigError
from zrpc.launch.control import ORDER_VARIABLE, Control, ProcessOrder
from zrpc.launch.exits import describe_exit
from zrpc.launch.processes import Child, GuardedSpawner, Program, Spawner
from zrpc.launch.request import BrokerRequest

MODULE = "zrpc.workers.broker"
START_SECONDS = 30.0
"""How long a broker may take to begin: it imports no torch."""
FIRST_DELAY = 0.1
LAST_DELAY = 5.0
"""Seconds before a broker that ended is started again; the delay doubles while it does not come up."""


class _Run:
    """One process, from its start to its end."""

    def __init__(
        self, order: ProcessOrder, spawner: Spawner, environ: Mapping[str, str], remark: Callable[[str], None]
    ) -> None:
        ours, theirs = socket.socketpair()
        self.control = Control(ours)
        self.ended = threading.Event()
        self.code = 0
        self.last_line = ""
        order = replace(order, control=theirs.fileno())
        environment = {**environ, ORDER_VARIABLE: order.to_json()}
        try:
            self.child: Child = spawner.spawn(Program(MODULE, (), environment, kept=(theirs.fileno(),)), self._on_exit)
        except BaseException:
            self.control.close()
            raise
        finally:
            theirs.close()
        os.set_blocking(self.child.output, True)
        self._reader = threading.Thread(target=self._read, args=(remark,), name="zrpc-broker-output", daemon=True)
        self._reader.start()

    def _on_exit(self, code: int) -> None:
        self.code = code
        self.ended.set()

    def _read(self, remark: Callable[[str], None]) -> None:
        with open(self.child.output, encoding="utf-8", errors="replace", closefd=False) as stream:
            for line in stream:
                self.last_line = line.strip()
                remark(f"broker: {self.last_line}")

    def finish(self) -> None:
        """Wait for its end and give everything back."""
        self.ended.wait()
        self.control.close()
        self._reader.join(1.0)  # its group was killed, so the output has ended
        self.child.close()


class BrokerProcess:
    """A broker in a child process, kept alive until `stop`. `request.remark` is told of its ends and restarts."""

    def __init__(
        self, request: BrokerRequest, environ: Mapping[str, str] = os.environ, spawner: Spawner | None = None
    ) -> None:
        self._request = request
        self._spawner = spawner or GuardedSpawner()
        self._environ = {k: v for k, v in environ.items() if not k.startswith("ZRPC_") or k == "ZRPC_DEBUG"}
        if request.key_file is not None:
            self._environ["ZRPC_KEY_FILE"] = str(request.key_file)
        options = request.options
        self._order = ProcessOrder(
            -1,
            request.cluster,
            request.bind,
            request.expected,
            request.roles,
            options.heartbeat_interval,
            options.death_timeout,
            options.silence_timeout,
            options.names_per_host,
            follows=request.follows,
        )
        self._partner = ""
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._failure = ""
        self._has_address = False
        self.restarts = 0
        self._run = _Run(self._order, self._spawner, self._environ, request.remark)
        self._thread = threading.Thread(target=self._watch, name="zrpc-broker-watch", daemon=True)
        self._thread.start()
        self._ready.wait(START_SECONDS)
        if not self.address:
            self.stop(0.0)
            raise ConfigError(
                f"broker at {request.bind}", [self._failure or f"it did not begin within {START_SECONDS:g} s"]
            )

    @property
    def address(self) -> str:
        """Where members connect to; '' before it is known."""
        return self._order.bind if self._has_address else ""

    def pair_with(self, address: str) -> None:
        """There is another broker at `address`: when this one ends, the other goes on, and the next one here stands by."""
        self._partner = address

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return f"the broker at {self.address}" if self._partner else "the broker"

    @property
    def pid(self) -> int:
        """The process that is, or was last, the broker."""
        return self._run.child.pid

    def exited(self, name: str, pid: int, why: str) -> None:
        """A worker's process has ended. A broker that is not there will see it by itself."""
        self._run.control.send(exited=[name, pid, why])

    def stop(self, timeout: float = 5.0) -> None:
        """End it, and do not start it again."""
        self._stopping.set()
        run = self._run
        run.control.send(stop=True)
        if not run.ended.wait(timeout):
            run.child.kill()
        self._thread.join(timeout + 5.0)

    # ------------------------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        delay = FIRST_DELAY
        while True:
            run = self._run
            came_up = False
            for message in run.control.lines():
                came_up = came_up or "ready" in message
                self._take(message)
            if not run.ended.wait(1.0):
                run.child.kill()  # it has closed the wire, and lives: nobody could end it
            run.finish()
            if self._stopping.is_set() or not self._has_address:
                self._failure = self._failure or run.last_line
                self._ready.set()
                return
            delay = FIRST_DELAY if came_up else min(LAST_DELAY, 2 * delay)
            why = describe_exit(run.code)
            self._request.remark(f"{self.name} {why}; it is started again, calls between workers go on")
            if not self._start_again(delay):
                return

    def _start_again(self, delay: float) -> bool:
        while not self._stopping.wait(delay):
            try:
                order = replace(self._order, is_successor=True, follows=self._partner)
                self._run = _Run(order, self._spawner, self._environ, self._request.remark)
            except OSError as error:
                self._request.remark(f"the broker could not be started: {error}")
                delay = LAST_DELAY
                continue
            self.restarts += 1
            if self._stopping.is_set():  # `stop` may have spoken to the run before
                self._run.control.send(stop=True)
            return True
        return False

    def _take(self, message: dict[str, Any]) -> None:
        request = self._request
        if "ready" in message:
            self._order = replace(self._order, bind=str(message["ready"]))
            self._has_address = True
            self._ready.set()
            if self.restarts:
                where = "" if self._partner else f" at {self.address}"
                request.remark(f"{self.name} is back{where}, process {self.pid}")
        elif "failed" in message:
            self._failure = str(message["failed"])
        elif "joined" in message:
            request.joined(str(message["joined"]))
        elif "stop" in message:
            request.stop_asked(str(message["stop"]))
        elif "remark" in message:
            request.remark(f"{self.name}: {message['remark']}")
        elif "scale" in message:
            role, count = message["scale"]
            request.scale(str(role), int(count))


class BrokerPair:
    """A broker and a standby for it. Whichever ends is started again, and stands by for the other."""

    def __init__(self, request: BrokerRequest, environ: Mapping[str, str] = os.environ) -> None:
        self._first = BrokerProcess(request, environ)
        try:
            second = replace(request, bind=request.standby_bind, follows=self._first.address)
            self._second = BrokerProcess(second, environ)
        except BaseException:
            self._first.stop(0.0)
            raise
        self._first.pair_with(self._second.address)
        self._second.pair_with(self._first.address)

    @property
    def address(self) -> str:
        """Both addresses, with a comma between."""
        return f"{self._first.address},{self._second.address}"

    def exited(self, name: str, pid: int, why: str) -> None:
        """A worker's process has ended. Whoever is not in charge has no use for it."""
        self._first.exited(name, pid, why)
        self._second.exited(name, pid, why)

    def stop(self, timeout: float = 5.0) -> None:
        """End both."""
        self._second.stop(timeout)
        self._first.stop(timeout)


def start_broker_process(request: BrokerRequest) -> BrokerProcess | BrokerPair:
    """Start a broker, and its standby if one is wanted, in processes of their own. Raises `ConfigError` when one of them
    cannot serve."""
    return BrokerPair(request) if request.standby_bind else BrokerProcess(request)
