"""The public functions: assembly of the parts, and nothing else."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from zrpc import autograd
from zrpc.backend_options import TensorPipeRpcBackendOptions
from zrpc.backend_registry import check_backend
from zrpc.broker.client import BrokerClient
from zrpc.clock import deadline_after, monotonic
from zrpc.collectives import _all_gather as _all_gather
from zrpc.collectives import _barrier as _barrier
from zrpc.collectives import _thread_local_var as _thread_local_var
from zrpc.collectives import _wait_all as _wait_all
from zrpc.collectives import _wait_all_workers
from zrpc.constants import MEETING_TIMEOUT
from zrpc.debug import _get_current_rpc_agent as _get_current_rpc_agent
from zrpc.debug import _is_current_rpc_agent_set as _is_current_rpc_agent_set
from zrpc.debug import get_rpc_timeout as get_rpc_timeout
from zrpc.errors import AlreadyInitialized, BrokerUnreachable, ConfigError, LocalFault
from zrpc.ids import WorkerInfo, check_name
from zrpc.internal import PythonUDF, _internal_rpc_pickler, _run_serialized, _run_serialized_async
from zrpc.leaks import _delete_all_user_and_unforked_owner_rrefs as _delete_all_user_and_unforked_owner_rrefs
from zrpc.leaks import _destroy_rref_context as _destroy_rref_context
from zrpc.options import AgentOptions, from_environment
from zrpc.profiler import teach_profilers
from zrpc.rendezvous.meeting import Party, endpoint
from zrpc.rendezvous.methods import plan_meeting, rank_of
from zrpc.rref import RRef, rref_hooks
from zrpc.runtime.agent import Agent
from zrpc.runtime.callables import identify
from zrpc.runtime.context import collected, current_agent, find_agent, init_rounds, install_agent, remove_agent
from zrpc.runtime.futures import Future, let_torch_forget, teach_torch
from zrpc.runtime.identity import Identity
from zrpc.runtime.retrying import Role, one_worker
from zrpc.runtime.scopes import current_scope
from zrpc.transport.base import Transport
from zrpc.transport.curve import Keyring, load_key_file
from zrpc.transport.router import ZmqTransport
from zrpc.version import __version__
from zrpc.wire.envelope import Codec
from zrpc.wire.messages import GroupProgress, Hello

logger = logging.getLogger("zrpc")

To = str | int | WorkerInfo
"""How a worker is named: by its name, its id or its info."""

BROKER_GRACE = 5.0
"""Seconds after which a group whose broker went with rank 0's process is not waited for any more at the end."""
QUIET = 3.0
"""Seconds that a group may take to form before it is said who is missing."""
LEAVE_TIMEOUT = 5.0
"""Seconds that an agent takes, when it leaves, to tell the owners of its references that they are gone."""
_starting = threading.Lock()
_ignore_rref_leak = True
"""Whether `shutdown` only warns of values here that others still refer to; if not, it raises."""
_default_pickler: Any = _internal_rpc_pickler
"""What writes Python calls; `_use_rpc_pickler` changes it."""


@contextlib.contextmanager
def _use_rpc_pickler(rpc_pickler: Any) -> Iterator[None]:
    """Have Python calls written by `rpc_pickler.serialize`, in all threads, until the end of the block."""
    global _default_pickler
    _default_pickler = rpc_pickler
    try:
        yield
    finally:
        _default_pickler = _internal_rpc_pickler


def _write_with_pickler(func: Any, args: Any, kwargs: Any) -> tuple[Any, tuple[Any, ...], None]:
    """The call of `func`, as a call that reads it first. TorchScript functions and operators stay as they are."""
    target = identify(func)
    if target.codec is not Codec.PYTHON:
        return func, args, kwargs
    written = _default_pickler.serialize(PythonUDF(func, tuple(args or ()), dict(kwargs or {})))
    return _run_serialized_async if target.is_async else _run_serialized, tuple(written), None


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
    quiet_until = monotonic() + QUIET

    def say(progress: GroupProgress) -> None:
        if monotonic() < quiet_until:
            return
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
    wrap_transport: Callable[[Transport], Transport] | None = None,
) -> None:
    """Join a cluster: from here on this process can call others and be called.

    Args:
        name: this worker's name, unique among the living; `ZRPC_NAME` if None.
        backend: None or `BackendType.TENSORPIPE`, which is zrpc here.
        rank: the id that this worker wants, -1 for any.
        world_size: with it, the group is static: this returns when so many workers are there, and `shutdown` waits for
            all of them. None: workers come and go.
        rpc_backend_options: a `TensorPipeRpcBackendOptions`; or an `AgentOptions`, as `options`.
        broker: the broker's address, tcp://HOST:PORT, and after a comma that of its standby if there is one; `ZRPC_BROKER`
            if None. Without either the group meets at the `init_method` of `rpc_backend_options`, "env://" if there are
            none, and the process of rank 0 has the broker.
        key_file: the cluster's key file; `ZRPC_KEY_FILE` if None.
        role: what this worker is for, shown by tools; `ZRPC_ROLE` if None.
        options: what else the agent is told; from `ZRPC_OPTIONS` if None.
        wait: whether to return only when everybody is there that the broker was told to expect; `ZRPC_WAIT` if None.
        wrap_transport: is given the transport of this worker and returns the one to use, as `zrpc.testing` does it.

    Raises:
        AlreadyInitialized, InvalidName, ConfigError, KeyFileError: nothing was tried.
        BrokerUnreachable: no broker answered within `options.init_timeout`.
        NameTaken, JoinRefused, VersionMismatch: the broker said no.
        GroupTimeout: not all were there in time; it names who was missing.
        TypeError, ValueError: as torch raises them, for a wrong backend, options of it or init method.
    """
    if isinstance(rpc_backend_options, AgentOptions):
        options, rpc_backend_options = options or rpc_backend_options, None
    asked = check_backend(backend, rpc_backend_options)
    present = find_agent()
    if present is not None:
        raise AlreadyInitialized(present.info.name)
    environ = os.environ
    name = check_name(environ.get("ZRPC_NAME", "") if name is None else name)
    options = options or from_environment()
    if not isinstance(options, AgentOptions):
        raise ConfigError("init_rpc", [f"options: expected an AgentOptions, not {type(options).__name__}"])
    if rpc_backend_options is not None:
        options = asked.to_agent_options(options)
    broker = broker or environ.get("ZRPC_BROKER", "")
    wait = environ.get("ZRPC_WAIT", "") not in ("", "0") if wait is None else wait
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
        if broker:
            keyring = _find_keyring(options, key_file)
            agent = join(hello, broker, open_transport(keyring, options, wrap_transport), options)
        else:
            agent = meet(hello, asked.init_method, options, wrap_transport)
        agent.caller.refuses_script_methods = rpc_backend_options is not None
        install_agent(agent)
        atexit.unregister(_leave_at_exit)
        atexit.register(_leave_at_exit)
        agent.start()
    teach_torch()
    teach_profilers()
    _check_device_maps(agent, asked)


def _check_device_maps(agent: Agent, asked: TensorPipeRpcBackendOptions) -> None:
    for name, devices in asked.unlike_names().items():
        logger.warning(
            "tensors sent to %s arrive on the device of the same name; its device map says %s", name, devices
        )
    if asked.device_maps and agent.is_static:
        try:
            asked.check_device_maps([member.name for member in agent.members()], agent.info.name)
        except ValueError:
            shutdown(graceful=False)
            raise


def open_transport(
    keyring: Keyring | None, options: AgentOptions, wrap: Callable[[Transport], Transport] | None
) -> Transport:
    """The transport of a member."""
    transport = ZmqTransport(keyring, "member", options.limits())
    return transport if wrap is None else wrap(transport)


def meet(
    hello: Hello,
    init_method: str,
    options: AgentOptions,
    wrap_transport: Callable[[Transport], Transport] | None = None,
) -> Agent:
    """Join, or found, the group that meets at an init method; returns the agent, which is yet to be started."""
    seconds = options.init_timeout if "ZRPC_OPTIONS" in os.environ else max(MEETING_TIMEOUT, options.rpc_timeout)
    deadline = monotonic() + seconds
    rank = rank_of(hello.id, init_method, os.environ)
    party = Party(rank, hello.world_size, init_rounds[init_method], options.security)
    meeting = plan_meeting(init_method, party, options.bind)
    init_rounds[init_method] += 1
    hello = replace(hello, id=rank, strict=True)
    try:
        while True:
            place = meeting.find(deadline)
            transport = open_transport(place.keyring, options, wrap_transport)
            here = options
            if options.bind == AgentOptions().bind:
                here = options.replace(bind=endpoint(place.interface))
            try:
                agent = join(hello, place.address, transport, here, deadline, meeting.patience)
                break
            except BrokerUnreachable:
                if meeting.patience is None or monotonic() >= deadline:
                    raise
            hello = replace(hello, nonce=secrets.randbits(63) or 1)
    except BaseException:
        meeting.fail()
        raise
    agent.at_end.append(meeting.end)
    agent.broker_grace = BROKER_GRACE
    return agent


def join(
    hello: Hello,
    broker: str,
    transport: Transport,
    options: AgentOptions,
    deadline: float | None = None,
    patience: float | None = None,
) -> Agent:
    """Bind, find the broker, wait for the group; returns the agent, which is yet to be started.

    The transport is the agent's from now on; it is closed when this fails. `deadline` is `options.init_timeout` from now
    unless it is given; `patience` is the seconds to try when nobody listens there.
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
            patience=patience,
        )
        deadline = deadline or deadline_after(options.init_timeout, monotonic())
        welcome = client.join(deadline, _say_who_is_missing(hello.name))
        info = WorkerInfo(hello.name, welcome.id)
        identity = Identity(info, welcome.incarnation, welcome.life, hello.role, address)
        agent = Agent(
            identity,
            options,
            transport,
            listener,
            client,
            lambda references: rref_hooks(references, options.accept_code, options.max_nesting),
            is_static=hello.world_size > 0,
            has_lanes=options.lanes and isinstance(transport, ZmqTransport) and os.environ.get("ZRPC_LANES") != "off",
        )
        autograd.attach(agent)
    except BaseException:
        transport.close()
        raise
    agents.append(agent)
    return agent


def _leave_at_exit() -> None:
    """The interpreter ends without `shutdown`: threads that wait inside torch would meet an interpreter that is gone."""
    agent = find_agent()
    if agent is not None:
        with contextlib.suppress(Exception):
            _end(agent, graceful=False)


def shutdown(graceful: bool = True, timeout: float = 0) -> None:
    """Leave the cluster.

    `graceful`: first wait, in a static group, until all of it want to leave and no call is under way. Then take no new
    calls, and wait for those that run here (`AgentOptions.drain_timeout` at most) and for those that this worker has made.
    Then let go of all references, with a warning of those that the program still holds. Otherwise leave at once: calls
    under way fail. Values here that others still refer to are a warning in both cases.
    `timeout` bounds the waiting in seconds, 0 does not; `GroupTimeout` is raised when it is over, after having left.
    Does nothing when no agent runs. Raises `LocalFault` inside a function that somebody calls, unless at once: it would
    wait for that very call.
    """
    agent = find_agent()
    if agent is None:
        return
    if graceful and current_scope() is not None:
        raise LocalFault(
            "shutdown() inside a function that is being called would wait for that call to end. Let the function return, "
            "and call shutdown() where init_rpc() was called; or, to leave at once, shutdown(graceful=False)"
        )
    try:
        if graceful:
            deadline = deadline_after(timeout, monotonic())
            try:
                if agent.is_static:
                    _wait_all_workers(timeout)
            finally:
                agent.drain(deadline, LEAVE_TIMEOUT, _delete_all_user_and_unforked_owner_rrefs)
        _destroy_rref_context(_ignore_rref_leak)
    finally:
        _end(agent, graceful)


def _end(agent: Agent, graceful: bool) -> None:
    remove_agent(agent)
    let_torch_forget()
    agent.close(agent.stop_reason or "this worker has shut down")
    for end in agent.at_end:
        end(graceful)


def rpc_sync(
    to: To | Role | Sequence[To],
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
    *,
    idempotent: bool = False,
) -> Any:
    """Call `func` on worker `to` and return its result.

    `func` is a TorchScript function or a method of a ScriptModule, a torch operator, a Python callable, or the name of a
    function that the worker has. `timeout` is in seconds, -1 for the default, 0 for none; a call made inside another one
    never outlives that.

    A function never runs twice for one call. `idempotent` says that it may: then the call is made again, with growing
    delays and until its time is over, when its worker is lost, restarts, leaves or cannot be reached. `to` may be a list
    of workers then, or a `Role`: one of them is taken, and another one for the next try.

    Raises `ArgumentMismatch` or `EncodeError` (nothing was sent), `UnknownWorker`, `CallTimeout`, `WorkerLost`, a kind of
    `Refused`, or what the function raised there.
    """
    agent = current_agent("rpc_sync")
    if _default_pickler is not _internal_rpc_pickler:
        func, args, kwargs = _write_with_pickler(func, args, kwargs)
    if idempotent:
        return agent.retrying.call(to, func, args, kwargs, timeout).wait()
    return agent.caller.call_sync(one_worker(to), func, args, kwargs, timeout)


def rpc_async(
    to: To | Role | Sequence[To],
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
    *,
    idempotent: bool = False,
) -> Future[Any]:
    """As `rpc_sync`, but returns at once, with a `torch.futures.Future` of the result."""
    agent = current_agent("rpc_async")
    if _default_pickler is not _internal_rpc_pickler:
        func, args, kwargs = _write_with_pickler(func, args, kwargs)
    if idempotent:
        future = agent.retrying.call(to, func, args, kwargs, timeout)
    else:
        future = agent.caller.call_async(one_worker(to), func, args, kwargs, timeout)
    if hasattr(collected, "future_list"):
        collected.future_list.append(future)
    return future


def remote(
    to: To,
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
) -> RRef[Any]:
    """As `rpc_async`, but the result stays on worker `to`: returns a reference to it.

    What the function raises is raised by `to_here`. `timeout` bounds how long the value may take to be made: when it is
    over first, the reference is of no use here, and says so.
    """
    agent = current_agent("remote")
    if _default_pickler is not _internal_rpc_pickler:
        func, args, kwargs = _write_with_pickler(func, args, kwargs)
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
