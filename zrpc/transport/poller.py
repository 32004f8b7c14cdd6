"""Waiting: one poller, woken by descriptors or by another thread.

One rule: nothing here waits without a way to be woken, and nothing polls by sleeping.
"""

from __future__ import annotations

import os
import selectors
import socket
from typing import TypeVar

from zrpc.transport.base import Pollable

P = TypeVar("P", bound=Pollable)

LONGEST_WAIT = 86400.0
"""Seconds of one wait in the kernel, which takes no more than 24 days. Who waits longer looks at the clock and goes on."""


def _bounded(timeout: float | None) -> float | None:
    return timeout if timeout is None or timeout < LONGEST_WAIT else LONGEST_WAIT


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


class Ear:
    """Waits for one source, or for a wake-up. Belongs to one thread at a time; `wake` may be called from any."""

    def __init__(self, source: Pollable) -> None:
        self._selector = selectors.DefaultSelector()
        try:
            self._waker = Waker()
        except OSError:  # no descriptor is left: give back the one that was taken
            self._selector.close()
            raise
        self._selector.register(source.fileno(), selectors.EVENT_READ, True)
        self._selector.register(self._waker.fileno(), selectors.EVENT_READ, False)

    def wait(self, timeout: float | None) -> bool:
        """True when there may be input or a wake-up, False after `timeout` seconds (at most a day) without either."""
        ready = self._selector.select(_bounded(timeout))
        for key, _ in ready:
            if not key.data:
                self._waker.clear()
        return bool(ready)

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        self._selector.close()
        self._waker.close()


class Poller:
    """Waits for any of its sources. `wait` belongs to one thread at a time; the rest may be called from any."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._waker.fileno(), selectors.EVENT_READ, None)

    def add(self, source: Pollable) -> None:
        self._selector.register(source.fileno(), selectors.EVENT_READ, source)
        self._waker.wake()  # its edge may have come before it was added

    def remove(self, source: Pollable) -> None:
        try:
            self._selector.unregister(source.fileno())
        except (KeyError, ValueError):
            pass  # it was not in, or its descriptor is closed already

    def wake(self) -> None:
        self._waker.wake()

    def wait(self, timeout: float | None) -> list[Pollable]:
        """The sources that may have input, after at most `timeout` seconds (None: no bound) and at most a day."""
        ready = []
        for key, _ in self._selector.select(_bounded(timeout)):
            if key.data is None:
                self._waker.clear()
            else:
                ready.append(key.data)
        return ready

    def close(self) -> None:
        self._selector.close()
        self._waker.close()
