"""A value that lives on this worker, from before it is made until nobody refers to it.

One rule: it is completed once; who completes it calls those that waited, outside of any lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zrpc.runtime.sites import Site
from zrpc.wire.envelope import Codec

Waiter = Callable[[Any, BaseException | None], None]
"""Takes the value, or the error in its place."""

CREATION_LATE = (
    "RRef creation via rpc.remote() timed out, and it is possible that the RRef on the owner node does not exist."
)
"""What torch says of a reference whose creation took longer than its timeout."""


class OwnedValue:
    """A value of this worker, or its coming to be; `origin` is what makes it."""

    __slots__ = ("codec", "error", "is_done", "origin", "value", "waiters")

    def __init__(self, origin: Site | None = None) -> None:
        self.is_done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.codec = Codec.PYTHON
        self.waiters: list[Waiter] = []
        self.origin = origin

    def complete(self, value: Any, error: BaseException | None, codec: Codec) -> list[Waiter]:
        """Set the value or the error; returns who waited."""
        self.value, self.error, self.codec, self.is_done = value, error, codec, True
        waiters, self.waiters = self.waiters, []
        return waiters
