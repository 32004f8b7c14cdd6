"""Futures: torch's own, with a wait that lets the pool go on.

One rule: a future is completed once, by whoever takes its call out of the table of pending calls.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from zrpc.runtime.executor import blocking_here

T = TypeVar("T")


class Future(torch.futures.Future[T]):
    """The result of a call that is under way. A `torch.futures.Future` in everything.

    A wait inside a function that runs on a worker's pool lets another function take its place meanwhile.
    """

    def wait(self) -> T:
        """The result; raises the call's error. Blocks until there is one: a call's deadline sees to that."""
        if self.done():
            return super().wait()
        with blocking_here():
            return super().wait()


def complete(future: torch.futures.Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a future its value, or its error."""
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
