"""The public functions: assembly of the parts, and nothing else."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch

from zrpc.broker.client import BrokerClient
from zrpc.clock import deadline_after, monotonic
from zrpc.errors import AlreadyInitialized, ConfigError, GroupTimeout
from zrpc.ids import WorkerInfo, check_name
from zrpc.options import AgentOptions, from_environment
from zrpc.rref import RRef, rref_hooks
from zrpc.runtime.agent import Agent
from zrpc.runtime.context import current_agent, find_agent, install_agent, remove_agent
from zrpc.runtime.futures import Future
from zrpc.runtime.identity import Identity
from zrpc.transport.base import Transport
from zrpc.transport.curve import Keyring, load_key_file
from zrpc.transport.router import ZmqTransport
from zrpc.version import __version__
from zrpc.wire.limits import Limits
from zrpc.wire.messages import GroupProgress, Hello

logger = logging.getLogger("zrpc")

To = str | int | WorkerInfo
"""How a worker is named: by its name, its id or its info."""

LEAVE_TIMEOUT = 5.0
"""Seconds that an agent takes, when it leaves, to tell the owners of its references that they are gone."""
_starting = threading.Lock()


def _find_keyring(options: AgentOptions, key_file: str | None) -> Keyring | None:
    if not options.security:
        logger.warning("security is off: anybody who can reach this worker's port can run code here")
        return None
    path = key_file or os.environ.get("ZRPC_KEY_FILE", "")
    if not path:
        raise ConfigError(
            "init_rpc",
            ["expected a key file: pass key_file=, or set ZRPC_KEY_FILE to one that `zrpc broker --new-key FILE` made"],
        )
    return load_key_file(path)


def _say_who_is_missing(name: str) -> Any:
    last: list[object] = []

    def say(progress: GroupProgress) -> None:
        if last != [progress.missing, progress.short]:
            last[:] = [progress.missing, progress.short]
            who = ", ".join(progress.missing) or f"{progress.short} more"
            logger.warning("worker %s waits for its group: missing %s", name, who)

    return say


def init_rpc(
    name: str | None = None,
    backend: Any = None,
    rank: int = -1,
    world_size: int | None = None,
    rpc_backend_options: Any = None,
    *,
    broker: str | None = None,
    key_file: str | None = None,
    role: str | None = None,
    options: AgentOptions | None = None,
    wait: bool | None = None,
) -> None:
    """Join a cluster: from here on this process can call others and be called.

    Args:
        name: this worker's name, unique among the living; `ZRPC_NAME` if None.
        backend: ignored; there for `torch.distributed.rpc`'s order of arguments.
        rank: the id that this worker wants, -1 for any.
        world_size: with it, the group is static: this returns when so many workers are there, and `shutdown` waits for
            all of them. None: workers come and go.
        rpc_backend_options: an `AgentOptions`, as `options`.
        broker: the broker's address, tcp://HOST:PORT; `ZRPC_BROKER` if None.
        key_file: the cluster's key file; `ZRPC_KEY_FILE` if None.
        role: what this worker is for, shown by tools; `ZRPC_ROLE` if None.
        options: what else the agent is told; from `ZRPC_OPTIONS` if None.
        wait: whether to return only when everybody is there that the broker was told to expect; `ZRPC_WAIT` if None.

    Raises:
        AlreadyInitialized, InvalidName, ConfigError, KeyFileError: nothing was tried.
        BrokerUnreachable: no broker answered within `options.init_timeout`.
        NameTaken, JoinRefused, VersionMismatch: the broker said no.
        GroupTimeout: not all were there in time; it names who was missing.
    """
    present = find_agent()
    if present is not None:
        raise AlreadyInitialized(present.info.name)
    environ = os.environ
    name = check_name(environ.get("ZRPC_NAME", "") if name is None else name)
    options = options or rpc_backend_options or from_environment()
    if not isinstance(options, AgentOptions):
        raise ConfigError("init_rpc", [f"options: expected an AgentOptions, not {type(options).__name__}"])
    broker = broker or environ.get("ZRPC_BROKER", "")
    if not broker:
        raise ConfigError("init_rpc", ["expected the broker's address: pass broker=, or set ZRPC_BROKER"])
    wait = environ.get("ZRPC_WAIT", "") not in ("", "0") if wait is None else wait
    keyring = _find_keyring(options, key_file)
    hello = Hello(
        name=name,
        nonce=secrets.randbits(63) or 1,
        address="tcp://0.0.0.0:0",
        role=environ.get("ZRPC_ROLE", "") if role is None else role,
        id=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        software=f"zrpc {__version__}, torch {torch.__version__}",
        world_size=world_size or 0,
        wait=wait,
    )
    with _starting:
        if find_agent() is not None:  # another thread was quicker
            raise AlreadyInitialized(current_agent().info.name)
        agent = join(hello, broker, ZmqTransport(keyring, "member", Limits(options.max_message_bytes)), options)
        install_agent(agent)
        agent.start()


def join(hello: Hello, broker: str, transport: Transport, options: AgentOptions) -> Agent:
    """Bind, find the broker, wait for the group; returns the agent, which is yet to be started.

    The transport is the agent's from now on; it is closed when this fails.
    """
    agents: list[Agent] = []
    try:
        listener = transport.listen(options.bind, "member")
        address = options.advertise or listener.address
        client = BrokerClient(
            transport,
            broker,
            replace(hello, address=address),
            statistics=lambda: agents[0].beat_statistics() if agents else {},
            wake=lambda: agents[0].receiver.wake() if agents else None,
        )
        deadline = deadline_after(options.init_timeout, monotonic())
        welcome = client.join(deadline, _say_who_is_missing(hello.name))
        info = WorkerInfo(hello.name, welcome.id)
        identity = Identity(info, welcome.incarnation, welcome.life, hello.role, address)
        agent = Agent(
            identity,
            options,
            transport,
            listener,
            client,
            lambda references: rref_hooks(references, options.accept_code),
            is_static=hello.world_size > 0,
        )
    except BaseException:
        transport.close()
        raise
    agents.append(agent)
    return agent


def shutdown(graceful: bool = True, timeout: float = 0) -> None:
    """Leave the cluster.

    `graceful`: first wait, in a static group, until all of it want to leave and no call is under way; and for the calls
    that this worker has made. Then let go of all references. Otherwise leave at once: calls under way fail.
    `timeout` bounds the waiting in seconds, 0 does not; `GroupTimeout` is raised when it is over, after having left.
    Does nothing when no agent runs.
    """
    agent = find_agent()
    if agent is None:
        return
    problem: GroupTimeout | None = None
    try:
        if graceful:
            deadline = deadline_after(timeout, monotonic())
            if agent.is_static and not agent.wait_released(deadline):
                missing = agent.missing_for_shutdown()
                problem = GroupTimeout("a graceful shutdown of the group", timeout, (), missing, 1)
            agent.drain(deadline, LEAVE_TIMEOUT)
    finally:
        remove_agent(agent)
        agent.close("this worker has shut down")
    if problem is not None:
        raise problem


def serve(timeout: float | None = None) -> str:
    """Serve until the broker asks this worker to stop, or SIGTERM or SIGINT comes, or it is fenced; says which.

    Calls are served from `init_rpc` on, with or without this: it only keeps the main thread waiting. Call `shutdown`
    afterwards. `timeout` is in seconds; '' is returned when it is over.
    """
    agent = current_agent("serve")

    def on_signal(number: int, _frame: FrameType | None) -> None:
        agent.request_stop(f"{signal.Signals(number).name} came")

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        agent.stop_requested.wait(timeout)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return agent.stop_reason


def rpc_sync(
    to: To,
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
) -> Any:
    """Call `func` on worker `to` and return its result.

    `func` is a TorchScript function or a method of a ScriptModule, a torch operator, a Python callable, or the name of a
    function that the worker has. `timeout` is in seconds, -1 for the default, 0 for none; a call made inside another one
    never outlives that.

    Raises `ArgumentMismatch` or `EncodeError` (nothing was sent), `UnknownWorker`, `CallTimeout`, `WorkerLost`, a kind of
    `Refused`, or what the function raised there.
    """
    return current_agent("rpc_sync").caller.call_sync(to, func, args, kwargs, timeout)


def rpc_async(
    to: To,
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
) -> Future[Any]:
    """As `rpc_sync`, but returns at once, with a `torch.futures.Future` of the result."""
    return current_agent("rpc_async").caller.call_async(to, func, args, kwargs, timeout)


def remote(
    to: To,
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
) -> RRef[Any]:
    """As `rpc_async`, but the result stays on worker `to`: returns a reference to it.

    What the function raises is raised by `to_here`. `timeout` bounds how long the worker may take to accept the call.
    """
    agent = current_agent("remote")
    return RRef.of(agent.references, *agent.remote(to, func, args, kwargs, timeout))


def get_worker_info(worker_name: str | None = None) -> WorkerInfo:
    """Name and id of a worker; of this one if no name is given. Raises `UnknownWorker`."""
    agent = current_agent("get_worker_info")
    if worker_name is None:
        return agent.info
    return agent.peers.find(worker_name).info


def get_workers() -> list[WorkerInfo]:
    """All workers that are up, by id, this one included."""
    members = sorted(current_agent("get_workers").members(), key=lambda member: member.id)
    return [WorkerInfo(member.name, member.id) for member in members]


def register_script(function: Any, name: str | None = None) -> list[str]:
    """Let others call a TorchScript function, or the methods of a ScriptModule, by name. Returns the names.

    A module's methods are called `name.method`, and run on this very module: they share its parameters and state.
    """
    return current_agent("register_script").code.add_local(function, name)


def worker_statistics(worker: To | None = None, timeout: float = 10.0) -> dict[str, Any]:
    """Counters of a worker, of this one if none is named: calls_served, calls_made, calls_failed, bytes_in, bytes_out,
    busy_seconds, memory_bytes, uptime_seconds, threads, pending_calls, owner_rrefs, user_rrefs, forks, refused, ..."""
    agent = current_agent("worker_statistics")
    if worker is None or agent.peers.find(worker).is_self:
        return agent.statistics()
    return agent.ask(worker, {"what": "statistics"}, timeout)
