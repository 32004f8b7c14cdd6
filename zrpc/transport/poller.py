"""Waiting: one poller, woken by descriptors or by another thread.

One rule: nothing here waits without a way to be woken, and nothing polls by sleeping.

A wait may begin with looking again and again for some tens of microseconds (it *spins*), when the last ones have been as
short. To put a core to sleep and to wake it costs 15 to 40 microseconds on a virtual machine, on either side of a call, and
as much processor time as looking for that long does. (Karlin, Manasse, McGeoch and Owicki 1991: to spin for as long as
blocking costs is at most twice as dear as knowing beforehand what to do.)
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import sys
from typing import Any, Final, TypeVar

from zrpc.clock import monotonic
from zrpc.transport.base import Pollable

P = TypeVar("P", bound=Pollable)

_GONE: Final = object()
LONGEST_WAIT = 86400.0
"""Seconds of one wait in the kernel, which takes no more than 24 days. Who waits longer looks at the clock and goes on."""


class Pace:
    """Whether waits have been short lately, so that the next one had better spin. Belongs to one thread at a time."""

    __slots__ = ("credit", "seconds")

    BLOCKING: Final = 50e-6
    """Seconds that blocking may add to a wait that would have been short enough to spin for."""
    MOST: Final = 8
    PRICE: Final = 3
    """What a wait that was too long costs of the credit; one that was short adds 1. So three of four have to be short."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """How long to spin at most."""
        self.credit = 0
        """The next wait spins if there is some."""

    def was_short(self) -> None:
        """A wait has ended while it did spin, or would have."""
        if self.credit < self.MOST:
            self.credit += 1

    def was_long(self) -> None:
        """A wait was not worth it."""
        self.credit = max(self.credit - self.PRICE, -self.PRICE)


def usable_cores() -> int:
    """Cores that this process may run on. With one alone, spinning keeps away who is waited for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

        def __init__(self, spin: float = 0.0) -> None:
            self._pace = Pace(spin) if spin else None
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

        def spin(self, timeout: float | None = None) -> list[Any]:
            """As `block`, looking again and again for as long as that may be worth it; not at all if it is not."""
            pace = self._pace
            if pace is None or pace.credit <= 0 or timeout == 0.0:
                return []
            poll = self._epoll.poll
            found = poll(0.0)
            if not found:
                end = monotonic() + (pace.seconds if timeout is None or timeout > pace.seconds else timeout)
                while not found and monotonic() < end:
                    found = poll(0.0)
                if not found:
                    pace.was_long()
                    return []
            pace.was_short()
            return self._data_of(found)

        def block(self, timeout: float | None) -> list[Any]:
            """The data of what is ready, after at most `timeout` seconds. What another thread removes meanwhile is not in
            it, or for the last time."""
            pace = self._pace
            if pace is None or timeout == 0.0:
                return self._data_of(self._epoll.poll(timeout))
            begin = monotonic()
            found = self._epoll.poll(timeout)
            if monotonic() - begin > pace.seconds + pace.BLOCKING:
                pace.was_long()
            elif found:
                pace.was_short()
            return self._data_of(found)

        def _data_of(self, found: list[tuple[int, int]]) -> list[Any]:
            if len(found) == 1:
                one = self._data.get(found[0][0], _GONE)  # asked once: other threads remove sources meanwhile
                return [] if one is _GONE else [one]
            return [one for one in (self._data.get(fd, _GONE) for fd, _ in found) if one is not _GONE] if found else []

        def close(self) -> None:
            self._epoll.close()

else:

    class _Waiter:
        """What the system waits with. Never spins: `select` alone takes as long as that would be worth."""

        def __init__(self, spin: float = 0.0) -> None:
            self._selector = selectors.DefaultSelector()

        def add(self, fd: int, data: Any) -> None:
            self._selector.register(fd, selectors.EVENT_READ, data)

        def watch_writing(self, fd: int, wanted: bool) -> None:
            events = selectors.EVENT_READ | selectors.EVENT_WRITE if wanted else selectors.EVENT_READ
            self._selector.modify(fd, events, self._selector.get_key(fd).data)

        def remove(self, fd: int) -> None:
            self._selector.unregister(fd)

        def block(self, timeout: float | None) -> list[Any]:
            return [key.data for key, _ in self._selector.select(timeout)]

        def spin(self, timeout: float | None = None) -> list[Any]:
            return []

        def close(self) -> None:
            self._selector.close()


class Ear:
    """Waits for one source, or for a wake-up. Belongs to one thread at a time; `wake` may be called from any.

    `spin`: seconds for which a wait looks again and again, at most, while waits are short.
    """

    def __init__(self, source: Pollable, spin: float = 0.0) -> None:
        self._waiter = _Waiter(spin)
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
        ready = self._waiter.spin(timeout) or self._waiter.block(
            timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT
        )
        if False in ready:
            self._waker.clear()
        return bool(ready)

    def listen(self, timeout: float | None) -> bool:
        """True when there may be input (or, if that is watched, room for output), False after a wake-up or the timeout."""
        ready = self._waiter.spin(timeout) or self._waiter.block(
            timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT
        )
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
    """Waits for any of its sources. `wait` belongs to one thread at a time; the rest may be called from any.

    `spin`: seconds for which `look` looks again and again, at most.
    """

    def __init__(self, spin: float = 0.0) -> None:
        self._waiter = _Waiter(spin)
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
        """The sources that may have input, after at most `timeout` seconds (None: no bound) and at most a day, asleep."""
        ready = self._waiter.block(timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT)
        return self._without_waker(ready) if None in ready else ready

    def look(self) -> list[Pollable]:
        """The sources that have input now, or soon enough to spin for that; at once none if that is not to be expected."""
        ready = self._waiter.spin()
        return self._without_waker(ready) if None in ready else ready

    def _without_waker(self, ready: list[Any]) -> list[Pollable]:
        self._waker.clear()
        ready.remove(None)
        return ready

    def close(self) -> None:
        self._waiter.close()
        self._waker.close()
