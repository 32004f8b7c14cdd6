"""Futures: torch's own, with a wait that lets the pool go on, and errors that do not go unnoticed.

One rule: a future is completed once, by whoever takes its call out of the table of pending calls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from zrpc.errors import Cancelled
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.scopes import current_scope

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Future(torch.futures.Future[T]):
    """The result of a call that is under way. A `torch.futures.Future` in everything.

    A wait inside a function that runs on a worker's pool lets another function take its place meanwhile, and raises
    `Cancelled` when the call that the function runs for is cancelled. An error that nobody looks at is logged when the
    future is dropped.
    """

    error: BaseException | None = None
    """What the call ended with, if it failed."""
    abort: Callable[[], bool] | None = None
    """Cancels the call."""

    def wait(self) -> T:
        """The result; raises the call's error. Blocks until there is one: a call's deadline sees to that."""
        if self.done():
            return super().wait()
        scope = current_scope()
        if scope is not None:
            scope.check()
        with blocking_here():
            return super().wait()


class _Failure:
    """Raises a future's error for whoever asks for its value; logs it if nobody has when the future is dropped."""

    __slots__ = ("_error", "_is_seen")

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._is_seen = False

    def __call__(self, _value: object) -> None:
        self._is_seen = True
        try:
            raise self._error
        finally:
            del self  # the traceback keeps this frame, and the frame would keep the error

    def __del__(self) -> None:
        if not self._is_seen and not isinstance(self._error, Cancelled):
            logger.error("a call failed, and nobody looked at its future: %s", self._error)


def complete(future: torch.futures.Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a future its value, or its error."""
    if error is None:
        future.set_result(value)
        return
    exception = error if isinstance(error, Exception) else RuntimeError(repr(error))
    if isinstance(future, Future):
        future.error = exception
    future._set_unwrap_func(_Failure(exception))
    future.set_result(exception)  # as `set_exception` does; the function above raises it


def collect_all(futures: Sequence[torch.futures.Future[Any]]) -> Future[list[torch.futures.Future[Any]]]:
    """A future of all these futures, done when they are all done, or as soon as one of them has failed.

    `torch.futures.collect_all` waits for the others when a future fails that was completed from Python, as those of calls
    are.
    """
    result: Future[list[torch.futures.Future[Any]]] = Future()
    lock = threading.Lock()
    left = len(futures)

    def one_is_done(future: torch.futures.Future[Any]) -> None:
        nonlocal left
        error: BaseException | None = None
        try:
            future.value()
        except Exception as failure:
            error = failure
        with lock:
            left -= 1
            is_last = left == 0 or (error is not None and left > 0)
            if is_last:
                left = -1
        if is_last:
            complete(result, list(futures), error)

    if not futures:
        result.set_result([])
    for future in futures:
        future.add_done_callback(one_is_done)
    return result


def wait_all(futures: Sequence[torch.futures.Future[Any]]) -> list[Any]:
    """The values of all these futures; raises the error of the first that fails, without waiting for the others."""
    return [future.wait() for future in collect_all(futures).wait()]


def cancel(future: torch.futures.Future[Any]) -> bool:
    """Cancel the call that a future of `zrpc.rpc_async` is the result of. False if it has ended already.

    The future fails with `Cancelled` at once. The callee drops the call if it has not started. A Python function that runs
    gets `Cancelled` raised at its next zrpc call or wait, or at `zrpc.check_cancelled()`; the calls that it has made are
    cancelled with it. A coroutine is cancelled. A TorchScript function runs to its end, and its result is dropped.
    """
    abort = getattr(future, "abort", None)
    return abort is not None and bool(abort())


def teach_torch() -> None:
    """Have `torch.futures.wait_all` and `collect_all` end early for futures of calls, as they do for torch's own RPC."""
    if torch.futures.wait_all is _wait_all:
        return
    torch.futures.wait_all = _wait_all
    torch.futures.collect_all = _collect_all


_torch_wait_all = torch.futures.wait_all
_torch_collect_all = torch.futures.collect_all


def _has_calls(futures: Sequence[torch.futures.Future[Any]]) -> bool:
    return any(isinstance(future, Future) for future in futures)


def _wait_all(futures: list[torch.futures.Future[Any]]) -> list[Any]:
    return wait_all(futures) if _has_calls(futures) else _torch_wait_all(futures)


def _collect_all(futures: list[torch.futures.Future[Any]]) -> torch.futures.Future[list[torch.futures.Future[Any]]]:
    return collect_all(futures) if _has_calls(futures) else _torch_collect_all(futures)
