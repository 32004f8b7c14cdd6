"""A value that lives on this worker, from before it is made until nobody refers to it.

One rule: it is completed once; who completes it calls those that waited, outside of any lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zrpc.runtime.sites import Site
from zrpc.wire.envelope import Codec

Waiter = Callable[[Any, BaseException | None], None]
"""Takes the value, or the error in its place."""

CREATION_LATE = (
    "RRef creation via rpc.remote() timed out, and it is possible that the RRef on the owner node does not exist."
)
"""What torch says of a reference whose creation took longer than its timeout."""


_HEAP_TYPE: Final = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that Python code has made."""


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


def fresh(error: BaseException) -> BaseException:
    """A copy of an error that is kept, to raise. What is raised holds the frames that it passed, and what is in them: kept,
    it would keep the reference that it is about."""
    cls = type(error)
    try:
        base: Any = cls
        while base.__flags__ & _HEAP_TYPE:  # its __init__ may take something else: to the class that Python made
            base = base.__base__
        made: BaseException = base.__new__(cls)
        made.args = error.args
        made.__dict__.update(error.__dict__)
        if str(made) != str(error):
            return error
    except Exception:  # a class that can only be made in its own way
        return error
    made.__cause__ = error.__cause__
    return made
