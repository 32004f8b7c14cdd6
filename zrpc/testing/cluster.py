"""A whole cluster in one process, for tests: a broker and workers, each with its threads, on a network of your choice.

One rule: these are the real agents and the real broker; only the process boundary is missing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from zrpc.api import join
from zrpc.broker.server import BrokerServer
from zrpc.options import AgentOptions
from zrpc.protocol.membership import RegistryOptions
from zrpc.rref import RRef
from zrpc.runtime.agent import Agent
from zrpc.runtime.futures import Future
from zrpc.testing.faults import FaultPlan
from zrpc.testing.faulty import BROKER
from zrpc.transport.base import Transport
from zrpc.transport.curve import new_keyring
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.router import ZmqTransport
from zrpc.wire.messages import Hello


class LocalWorker:
    """One worker of a `LocalCluster`: the functions of `zrpc`, called as this worker."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.name = agent.info.name

    def __repr__(self) -> str:
        return f"<LocalWorker {self.name}>"

    def rpc_sync(
        self,
        to: Any,
        func: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        timeout: float = -1,
        *,
        idempotent: bool = False,
    ) -> Any:
        """As `zrpc.rpc_sync`."""
        if idempotent:
            return self.agent.retrying.call(to, func, args, kwargs, timeout).wait()
        return self.agent.caller.call_sync(to, func, args, kwargs, timeout)

    def rpc_async(
        self,
        to: Any,
        func: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        timeout: float = -1,
        *,
        idempotent: bool = False,
    ) -> Future[Any]:
        """As `zrpc.rpc_async`."""
        if idempotent:
            return self.agent.retrying.call(to, func, args, kwargs, timeout)
        return self.agent.caller.call_async(to, func, args, kwargs, timeout)

    def remote(
        self, to: str, func: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, timeout: float = -1
    ) -> RRef[Any]:
        """As `zrpc.remote`."""
        return RRef.of(self.agent.references, *self.agent.remote(to, func, args, kwargs, timeout))

    def rref(self, value: Any) -> RRef[Any]:
        """As `zrpc.RRef`."""
        return RRef.of(self.agent.references, *self.agent.references.create_local(value))


class LocalCluster:
    """A context manager: starts a broker and workers of these names, and stops them.

    `network`: 'memory' (no sockets), 'tcp' or 'curve' (TCP with encryption). `options` go to every worker, `roles` to
    those named. Values cross between workers as they do between processes: encoded and decoded. `faults` is what goes
    wrong between them.
    """

    def __init__(
        self,
        names: Sequence[str] = ("a", "b"),
        network: str = "memory",
        options: AgentOptions | None = None,
        broker_options: RegistryOptions | None = None,
        options_of: Mapping[str, AgentOptions] | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        self._names = names
        self._options = options or AgentOptions(init_timeout=20.0)
        self._options_of = options_of or {}
        self._broker_options = broker_options
        self.faults = faults
        keyring = new_keyring("local") if network == "curve" else None
        memory = MemoryNetwork()
        self._make: Callable[[str], Transport]
        if network == "memory":
            self._make = lambda role: MemoryTransport(memory)
            self._bind = "memory://0"
        else:
            self._make = lambda role: ZmqTransport(keyring, role)
            self._bind = "tcp://127.0.0.1:0"
        self._workers: dict[str, LocalWorker] = {}
        self._broker_transport: Transport | None = None
        self.broker: BrokerServer | None = None

    def _transport(self, role: str, name: str) -> Transport:
        transport = self._make(role)
        return transport if self.faults is None else self.faults.wrap(transport, name)

    def __enter__(self) -> LocalCluster:
        self._broker_transport = self._transport("broker", BROKER)
        self.broker = BrokerServer(self._broker_transport, self._bind, cluster="local", options=self._broker_options)
        self.broker.start()
        try:
            for name in self._names:
                self.start(name)
            for worker in self._workers.values():
                for name in self._names:
                    worker.agent.peers.find(name, 20.0)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __getitem__(self, name: str) -> LocalWorker:
        return self._workers[name]

    def start(self, name: str, **hello: Any) -> LocalWorker:
        """Start one more worker, or the next life of one that is gone."""
        assert self.broker is not None
        options = self._options_of.get(name, self._options).replace(bind=self._bind)
        said = Hello(
            name=name, nonce=secrets.randbits(63) or 1, address=self._bind, pid=os.getpid(), host="local", **hello
        )
        agent = join(said, self.broker.address, self._transport("member", name), options)
        agent.start()
        self._workers[name] = LocalWorker(agent)
        return self._workers[name]

    def stop(self, name: str) -> None:
        """Let a worker leave in good order."""
        agent = self._workers.pop(name).agent
        agent.drain(None, 5.0)
        agent.close("it was stopped")

    def kill(self, name: str) -> None:
        """End a worker as a killed process ends: without a word to anybody."""
        self._workers.pop(name).agent.abandon()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.agent.close("the cluster has ended")
        self._workers.clear()
        if self.broker is not None:
            self.broker.stop()
        if self._broker_transport is not None:
            self._broker_transport.close()
        if self.faults is not None:
            self.faults.close()
