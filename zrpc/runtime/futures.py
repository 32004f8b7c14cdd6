"""Futures: torch's own, with a wait that lets the pool go on, and errors that do not go unnoticed.

One rule: a future is completed once, by whoever takes its call out of the table of pending calls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from zrpc.errors import Cancelled
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.raising import fresh, kept
from zrpc.runtime.scopes import current_scope
from zrpc.runtime.sharedlink import SIGNAL_LATENCY, Awaited, Waiter
from zrpc.runtime.threadstate import capture

T = TypeVar("T")
S = TypeVar("S")

logger = logging.getLogger(__name__)


class Place(Protocol):
    """A peer."""

    def wait_here(self, future: Awaited) -> None: ...


class Canceller(Protocol):
    """What has made a call."""

    def cancel(self, message_id: int) -> bool: ...


class Future(torch.futures.Future[T]):
    """The result of a call that is under way. A `torch.futures.Future` in everything.

    A wait inside a function that runs on a worker's pool lets another function take its place meanwhile, and raises
    `Cancelled` when the call that the function runs for is cancelled. An error that nobody looks at is logged when the
    future is dropped.
    """

    # Without them each future has a dict, one more object for the garbage collector.
    __slots__ = ("caller", "error", "has_callbacks", "message_id", "place", "waiter")

    error: BaseException | None
    """What the call ended with, if it failed."""
    caller: Canceller | None
    """What cancels the call, by its message id."""
    message_id: int
    place: Place | None
    """Where the reply will come: a thread that waits for it may receive it there itself."""
    waiter: Waiter | None
    has_callbacks: bool
    """Whether completing it runs code of a user's."""

    def __init__(self, *, devices: Sequence[int | str | torch.device] | None = None) -> None:
        self.caller = self.error = self.place = self.waiter = None
        self.message_id = 0
        self.has_callbacks = False
        if devices is None:
            torch._C.Future.__init__(self, [])  # what the other one comes to, in less time
        else:
            super().__init__(devices=list(devices))

    def wait(self) -> T:
        """The result; raises the call's error. Blocks until there is one: a call's deadline sees to that."""
        if self.done():
            return torch._C.Future.wait(self)  # type: ignore[no-any-return]
        scope = current_scope()
        if scope is not None:
            scope.check()
        with blocking_here():
            if self.place is not None:
                self.place.wait_here(self)
            if threading.get_ident() == threading.main_thread().ident and not self.done():
                wait_until_done(self)
            return torch._C.Future.wait(self)  # type: ignore[no-any-return]

    def abort(self) -> bool:
        """Cancel the call; False if it has ended, or cannot be cancelled."""
        return self.caller is not None and self.caller.cancel(self.message_id)

    def add_done_callback(self, callback: Callable[[torch.futures.Future[T]], None]) -> None:
        """Call `callback` with this future when it is done: now if it is, else by the thread that completes it."""
        self.has_callbacks = True
        super().add_done_callback(callback)

    def then(self, callback: Callable[[torch.futures.Future[T]], S]) -> Future[S]:
        """A future of what `callback` returns, which is called with this future when it is done: at once if it is.

        What the callback raises is raised by that future, as a RuntimeError. Cancelling it cancels the call.
        """
        if not callable(callback):
            raise TypeError(f"then(): incompatible function arguments: expected a function, not {callback!r}")
        result: Future[S] = Future()
        result.caller, result.message_id = self.caller, self.message_id

        def run(future: torch.futures.Future[T]) -> None:
            try:
                value = callback(future)
            except Exception as error:
                complete(result, None, _callback_error(kept(error, says_where=True)))
            else:
                complete(result, value, None)

        self.add_done_callback(run)
        return result


def wait_until_done(future: torch.futures.Future[Any]) -> None:
    """Wait on the main thread, where signals are handled: torch's own wait keeps Ctrl-C waiting until it ends.

    Costs 5 us more than that.
    """
    done = threading.Lock()
    done.acquire()
    torch.futures.Future.add_done_callback(future, lambda _future: done.release())
    while not done.acquire(timeout=SIGNAL_LATENCY):
        pass


def _callback_error(error: Exception) -> RuntimeError:
    """What torch makes of an exception in a callback: a RuntimeError."""
    if isinstance(error, RuntimeError):
        return error
    failure = RuntimeError(f"Got the following error when running the callback: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


class _Failure:
    """Raises a future's error for whoever asks for its value; logs it if nobody has when the future is dropped."""

    __slots__ = ("_error", "_is_seen")

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._is_seen = False

    def __call__(self, _value: object) -> None:
        self._is_seen = True
        error = fresh(self._error)
        del self  # the traceback keeps this frame
        try:
            raise error
        finally:
            del error

    def __del__(self) -> None:
        if not self._is_seen and not isinstance(self._error, Cancelled):
            logger.error("a call failed, and nobody looked at its future: %s", self._error)


def complete(future: torch.futures.Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a future its value, or its error."""
    if error is None:
        future.set_result(value)
        _wake_waiter(future)
        return
    exception = error if isinstance(error, Exception) else RuntimeError(repr(error))
    if isinstance(future, Future):
        future.error = exception
    future._set_unwrap_func(_Failure(exception))
    future.set_result(exception)  # as `set_exception` does; the function above raises it
    _wake_waiter(future)


def _wake_waiter(future: torch.futures.Future[Any]) -> None:
    waiter = getattr(future, "waiter", None)
    if waiter is not None:
        waiter.wake()


class Completer:
    """Completes the future of a call, in the thread state (grad mode and so on) that the call was made in."""

    __slots__ = ("future", "state")

    def __init__(self, future: Future[Any]) -> None:
        self.future = future
        self.state = capture()

    def __call__(self, value: Any, error: BaseException | None) -> None:
        if self.state is None:
            complete(self.future, value, error)
        else:
            with self.state:
                complete(self.future, value, error)


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
            error = kept(failure)
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
    return isinstance(future, Future) and future.abort()


def teach_torch() -> None:
    """Have torch's own ways to wait go with calls as they do with those of torch's RPC, until `let_torch_forget`.

    `torch.futures.wait_all` and `collect_all` end early for futures of calls, and a wait for any future of torch's, inside
    a function that runs on a worker's pool, lets another function take its place.
    """
    torch.futures.wait_all = _wait_all
    torch.futures.collect_all = _collect_all
    torch.futures.Future.wait = _wait  # type: ignore[assignment, method-assign]


def let_torch_forget() -> None:
    """Undo `teach_torch`, but for what somebody else has put in its place since."""
    if torch.futures.wait_all is _wait_all:
        torch.futures.wait_all = _torch_wait_all
    if torch.futures.collect_all is _collect_all:
        torch.futures.collect_all = _torch_collect_all
    if torch.futures.Future.wait is _wait:
        torch.futures.Future.wait = _torch_wait  # type: ignore[method-assign]


_torch_wait_all = torch.futures.wait_all
_torch_collect_all = torch.futures.collect_all
_torch_wait = torch.futures.Future.wait


def _wait(future: torch.futures.Future[T]) -> T:
    with blocking_here():
        return torch._C.Future.wait(future)  # type: ignore[no-any-return]


def _has_calls(futures: Sequence[torch.futures.Future[Any]]) -> bool:
    return any(isinstance(future, Future) for future in futures)


def _wait_all(futures: list[torch.futures.Future[Any]]) -> list[Any]:
    return wait_all(futures) if _has_calls(futures) else _torch_wait_all(futures)


def _collect_all(futures: list[torch.futures.Future[Any]]) -> torch.futures.Future[list[torch.futures.Future[Any]]]:
    return collect_all(futures) if _has_calls(futures) else _torch_collect_all(futures)
