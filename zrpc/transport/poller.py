"""Waiting: one poller, woken by descriptors or by another thread.

One rule: nothing here waits without a way to be woken, and nothing polls by sleeping.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import sys
from typing import Any, Final, TypeVar

from zrpc.transport.base import Pollable

P = TypeVar("P", bound=Pollable)

_GONE: Final = object()
LONGEST_WAIT = 86400.0
"""Seconds of one wait in the kernel, which takes no more than 24 days. Who waits longer looks at the clock and goes on."""


class Waker:
    """A descriptor that any thread can make readable: an eventfd where there is one, else a socket pair."""

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self._fd = -1
        if hasattr(os, "eventfd"):
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)

    def fileno(self) -> int:
        return self._fd if self._pair is None else self._pair[0].fileno()

    def wake(self) -> None:
        """Make the descriptor readable. Takes no lock, so a finalizer may call it."""
        try:
            if self._pair is None:
                os.eventfd_write(self._fd, 1)
            else:
                self._pair[1].send(b"\0")
        except (OSError, ValueError):
            pass  # closed, or already full of wake-ups: either way there is nobody left to wake

    def clear(self) -> None:
        try:
            if self._pair is None:
                os.eventfd_read(self._fd)
            else:
                self._pair[0].recv(4096)
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        if self._pair is not None:
            for end in self._pair:
                end.close()
        elif self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


NOTICES_ADDITIONS: Final = sys.platform == "linux"
"""Whether a wait takes notice of what is added meanwhile."""

if sys.platform == "linux":

    class _Waiter:
        """What the system waits with. `selectors` does the same and takes three times as long to return."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._data: dict[int, Any] = {}

        def add(self, fd: int, data: Any) -> None:
            self._data[fd] = data
            self._epoll.register(fd, select.EPOLLIN)

        def watch_writing(self, fd: int, wanted: bool) -> None:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

        def remove(self, fd: int) -> None:
            self._data.pop(fd, None)
            self._epoll.unregister(fd)

        def wait(self, timeout: float | None) -> list[Any]:
            """The data of what is ready. What another thread removes meanwhile is not among it, or for the last time."""
            data = self._data
            found = self._epoll.poll(timeout)
            if len(found) == 1:
                one = data.get(found[0][0], _GONE)  # asked once: other threads remove sources meanwhile
                return [] if one is _GONE else [one]
            return [one for one in (data.get(fd, _GONE) for fd, _ in found) if one is not _GONE] if found else []

        def close(self) -> None:
            self._epoll.close()

else:

    class _Waiter:
        """What the system waits with."""

        def __init__(self) -> None:
            self._selector = selectors.DefaultSelector()

        def add(self, fd: int, data: Any) -> None:
            self._selector.register(fd, selectors.EVENT_READ, data)

        def watch_writing(self, fd: int, wanted: bool) -> None:
            events = selectors.EVENT_READ | selectors.EVENT_WRITE if wanted else selectors.EVENT_READ
            self._selector.modify(fd, events, self._selector.get_key(fd).data)

        def remove(self, fd: int) -> None:
            self._selector.unregister(fd)

        def wait(self, timeout: float | None) -> list[Any]:
            return [key.data for key, _ in self._selector.select(timeout)]

        def close(self) -> None:
            self._selector.close()


class Ear:
    """Waits for one source, or for a wake-up. Belongs to one thread at a time; `wake` may be called from any."""

    def __init__(self, source: Pollable) -> None:
        self._waiter = _Waiter()
        try:
            self._waker = Waker()
        except OSError:  # no descriptor is left: give back the one that was taken
            self._waiter.close()
            raise
        self._source_fd = source.fileno()
        self._waiter.add(self._source_fd, True)
        self._waiter.add(self._waker.fileno(), False)

    def wait(self, timeout: float | None) -> bool:
        """True when there may be input or a wake-up, False after `timeout` seconds (at most a day) without either."""
        ready = self._waiter.wait(timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT)
        if False in ready:
            self._waker.clear()
        return bool(ready)

    def listen(self, timeout: float | None) -> bool:
        """True when there may be input (or, if that is watched, room for output), False after a wake-up or the timeout."""
        ready = self._waiter.wait(timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT)
        if False in ready:
            self._waker.clear()
        return True in ready

    def watch_writing(self, wanted: bool) -> None:
        """Whether `wait` also returns when the source takes output."""
        self._waiter.watch_writing(self._source_fd, wanted)

    def ignore_source(self) -> None:
        """Wait for wake-ups only: the source has ended, and would be ready for ever."""
        self._waiter.remove(self._source_fd)

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        self._waiter.close()
        self._waker.close()


class Poller:
    """Waits for any of its sources. `wait` belongs to one thread at a time; the rest may be called from any."""

    def __init__(self) -> None:
        self._waiter = _Waiter()
        self._waker = Waker()
        self._waiter.add(self._waker.fileno(), None)

    def add(self, source: Pollable) -> None:
        self._waiter.add(source.fileno(), source)
        self._waker.wake()  # its edge may have come before it was added

    def resume(self, source: Pollable) -> None:
        """As `add`, for a source whose input is reported as long as it is there."""
        self._waiter.add(source.fileno(), source)
        if not NOTICES_ADDITIONS:
            self._waker.wake()

    def watch_writing(self, source: Pollable, wanted: bool) -> None:
        """Whether `wait` also returns the source when it takes output."""
        try:
            self._waiter.watch_writing(source.fileno(), wanted)
        except (KeyError, ValueError, OSError):
            pass  # it was removed

    def remove(self, source: Pollable) -> None:
        try:
            self._waiter.remove(source.fileno())
        except (KeyError, ValueError, OSError):
            pass  # it was not in, or its descriptor is closed already

    def wake(self) -> None:
        self._waker.wake()

    def wait(self, timeout: float | None) -> list[Pollable]:
        """The sources that may have input, after at most `timeout` seconds (None: no bound) and at most a day."""
        ready = self._waiter.wait(timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT)
        if None in ready:
            self._waker.clear()
            ready.remove(None)
        return ready

    def close(self) -> None:
        self._waiter.close()
        self._waker.close()
