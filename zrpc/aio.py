"""The asyncio face: calls that are awaited.

One rule: no thread for a call. A reply wakes the loop that waits for it, and cancelling the awaiting task cancels the call.

    async with zrpc.aio.session("trainer", broker="tcp://10.0.0.5:4700"):
        results = await asyncio.gather(*(zrpc.aio.call(name, work, (part,)) for name, part in parts.items()))

A function that others call may be an `async def` too: it runs on its worker's event loop, one for all of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from zrpc.api import To, init_rpc, shutdown
from zrpc.api import get_worker_info as _get_worker_info
from zrpc.api import remote as _remote
from zrpc.errors import CallTimeout, RRefLost, UnknownWorker
from zrpc.ids import WorkerInfo
from zrpc.rref import RRef
from zrpc.runtime.agent import Agent
from zrpc.runtime.context import current_agent
from zrpc.runtime.futures import cancel
from zrpc.runtime.peers import Peer
from zrpc.wire.envelope import Kind

__all__ = ["call", "remote", "session", "to_here", "wait"]


class _Waiter:
    """Hands a result over from whichever thread has it to the loop of the task that waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()

    def done(self, value: Any, error: BaseException | None) -> None:
        """The result is here. From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._settle, value, error)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(value)
        elif isinstance(error, StopIteration):  # asyncio has another use for it
            self._future.set_exception(RuntimeError(f"the function raised {error!r}"))
        else:
            self._future.set_exception(error)

    async def result(self, abort: Callable[[], object]) -> Any:
        """The value; raises the error. When the awaiting task is cancelled, so is what it waits for."""
        try:
            return await self._future
        except asyncio.CancelledError:
            abort()
            raise


async def _find(agent: Agent, to: To) -> Peer:
    """The peer of that name. Asking the broker for one that is not known here may take a while: not on the loop."""
    try:
        return agent.peers.find(to, 0.0)
    except UnknownWorker:
        return await asyncio.get_running_loop().run_in_executor(None, agent.peers.find, to)


async def call(
    to: To,
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
) -> Any:
    """Call `func` on worker `to`; the result. As `zrpc.rpc_sync` in what it takes and raises.

    When the task that awaits it is cancelled, the call is too.
    """
    agent = current_agent("aio.call")
    peer = await _find(agent, to)
    waiter = _Waiter()
    number = agent.caller.call(peer, Kind.CALL, func, args, kwargs, timeout, waiter.done)
    return await waiter.result(lambda: agent.caller.cancel(number))


async def remote(
    to: To,
    func: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = -1,
) -> RRef[Any]:
    """Have worker `to` make a value; a reference to it. As `zrpc.remote`, which it does not wait for either."""
    await _find(current_agent("aio.remote"), to)
    return _remote(to, func, args, kwargs, timeout)


async def to_here(rref: RRef[Any], timeout: float = -1) -> Any:
    """The value of a reference, copied here. As `rref.to_here()` in what it raises."""
    book = rref._book
    agent: Any = book.calls
    waiter = _Waiter()
    if rref.is_owner():
        return await _own_value(rref, waiter, agent.caller.seconds(timeout))
    number = agent.fetch_async(rref, timeout, waiter.done)
    try:
        return await waiter.result(lambda: agent.caller.cancel(number))
    except (RRefLost, CallTimeout):
        book.check_usable(rref, "call to_here() on it")  # why its creation failed says more
        raise


async def _own_value(rref: RRef[Any], waiter: _Waiter, timeout: float) -> Any:
    rref._book.when_ready(rref.rref_id, waiter.done)
    try:
        return await asyncio.wait_for(waiter.result(lambda: None), timeout or None)
    except (asyncio.TimeoutError, TimeoutError) as error:  # two classes before Python 3.11
        if isinstance(error, CallTimeout):
            raise
        name = rref._book.identity.info.name
        raise CallTimeout(name, f"waiting for the value of {rref.rref_id}", timeout) from None


async def wait(future: torch.futures.Future[Any]) -> Any:
    """The value of a future of `zrpc.rpc_async`, or of any other of torch's; raises its error.

    When the task that awaits it is cancelled, the future's call is too.
    """
    waiter = _Waiter()

    def done(completed: torch.futures.Future[Any]) -> None:
        try:
            value = completed.value()
        except BaseException as error:
            waiter.done(None, error)
        else:
            waiter.done(value, None)

    future.add_done_callback(done)
    return await waiter.result(lambda: cancel(future))


def session(*args: Any, shutdown_timeout: float = 0, **kwargs: Any) -> Session:
    """`async with session(...)`: join a cluster, and leave it at the end.

    Takes what `zrpc.init_rpc` takes; gives this worker's info. Joining and leaving wait for others; they do so on a
    thread, not on the loop. The end is graceful, within `shutdown_timeout` seconds (0: without bound), unless the block
    raised.
    """
    return Session(args, kwargs, shutdown_timeout)


class Session:
    """What `session` returns."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], shutdown_timeout: float) -> None:
        self._args = args
        self._kwargs = kwargs
        self._shutdown_timeout = shutdown_timeout
        self._lock = threading.Lock()
        self._is_joined = False
        self._is_unwanted = False

    def _join(self) -> None:
        init_rpc(*self._args, **self._kwargs)
        with self._lock:
            self._is_joined = True
            is_unwanted = self._is_unwanted
        if is_unwanted:
            shutdown(graceful=False)

    async def __aenter__(self) -> WorkerInfo:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._join)
        except asyncio.CancelledError:  # the thread goes on joining
            with self._lock:
                self._is_unwanted = True
                is_joined = self._is_joined
            if is_joined:
                shutdown(graceful=False)
            raise
        return _get_worker_info()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, shutdown, error is None, self._shutdown_timeout)
