"""The local link to a peer, for what is asynchronous: read by the receiving thread, or by one that waits for a reply.

One rule: one thread reads at a time, and whoever reads instead of the receiving thread runs no code of a user's. What needs
that (a callback, a pickle) is left to the receiving thread: it may wait, or want a lock that the waiting thread holds.

A thread that waits for a future lends itself: the reply wakes it and nobody else. Handing the result over from the
receiving thread would cost a second wake-up, and both would want the interpreter at the same time.

While many calls are under way, the receiving thread looks here only every now and then (the link *rests*). Else it would
want the interpreter for each few replies, while another thread makes the next calls: changing hands costs as much as one.

    with the receiver <--> lent to a thread        resting --> with the receiver, by the overseer's next tick
    with the receiver  --> resting                 resting --> lent
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from zrpc.errors import ZrpcError
from zrpc.runtime.receiver import Receiver
from zrpc.transport.base import Frames
from zrpc.transport.local import LocalLink
from zrpc.transport.poller import Ear
from zrpc.wire.envelope import Envelope, unpack
from zrpc.wire.limits import Limits

MANY: Final = 64
"""Calls under way from which on the link rests."""
SIGNAL_LATENCY: Final = 0.5
"""Seconds after which a wait on the main thread looks for signals by itself: one that comes at the very moment at which the
thread falls asleep does not wake it."""


class Awaited(Protocol):
    """A future, as whoever waits for it here sees it. `complete` wakes the waiter, unless it runs on that thread."""

    waiter: Waiter | None

    def done(self) -> bool: ...


class Waiter:
    """How a thread that waits at a link is woken when what it waits for comes another way."""

    __slots__ = ("_ear", "_thread")

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._thread = threading.get_ident()

    def wake(self) -> None:
        """Have it look again. Does nothing on the waiting thread itself."""
        if threading.get_ident() != self._thread:
            self._ear.wake()


class SharedLink:
    """A link and its place at the receiver. All methods are safe from any thread.

    `handle` takes what comes, as frames or as an envelope; `is_foreign` tells whether that would run code of a user's;
    `pending` counts the calls that are under way.
    """

    def __init__(
        self,
        link: LocalLink,
        receiver: Receiver,
        handle: Callable[[Any], None],
        is_foreign: Callable[[Envelope], bool],
        limits: Limits,
        pending: Callable[[], int] = lambda: 0,
    ) -> None:
        self.link = link
        self._pending = pending
        self._is_resting = False
        self._receiver = receiver
        self._handle = handle
        self._is_foreign = is_foreign
        self._limits = limits
        self._claim = threading.Lock()
        self._switch = threading.Lock()
        self._is_lent = False
        self._is_closed = False
        self._ear: Ear | None = None
        self._left: deque[Envelope] = deque()
        self._source = receiver.add(self, handle)
        link.on_backlog = self._on_backlog

    def __repr__(self) -> str:
        where = "lent" if self._is_lent else "resting" if self._is_resting else "with the receiver"
        state = "closed" if self._is_closed else where
        return f"<SharedLink {state} {self.link!r}>"

    # ------------------------------------------------------------------------------------ sending

    def send(self, frames: Frames, is_one_of_many: bool) -> None:
        """Send now, or, a small message that is one of many, soon with others. Raises `RouteGone` on a link that ended."""
        if not is_one_of_many or len(frames) > 1:
            self.link.send(frames)
        elif self.link.keep(frames):
            self._receiver.at_next_tick(self.link.flush)

    def _on_backlog(self, waits: bool) -> None:
        with self._switch:
            if self._is_lent and self._ear is not None:
                self._ear.watch_writing(waits)
            else:
                self._receiver.watch_writing(self._source, waits)

    # ------------------------------------------------------------------------------------ receiving

    def fileno(self) -> int:
        return self.link.fileno()

    def receive(self) -> Any | None:
        """The next message, for the receiving thread; None when there is none. Then the link may rest."""
        if self._left:
            return self._left.popleft()
        frames = self.link.receive()
        if frames is None and self._pending() >= MANY:
            self._rest()
        return frames

    def _rest(self) -> None:
        with self._switch:
            if self._is_lent or self._is_resting or self._is_closed or self.link.has_backlog():
                return
            self._receiver.pause(self._source)
            self._is_resting = True
        self._receiver.at_next_tick(self.go_on)

    def go_on(self) -> None:
        """Rest no more."""
        with self._switch:
            if self._is_resting and not self._is_closed:
                self._is_resting = False
                self._resume()

    def _resume(self) -> None:
        self._receiver.resume(self._source)
        if self.link.has_backlog():
            self._receiver.watch_writing(self._source, True)

    def attend(self) -> bool:
        """Take the link from the receiver, for who is about to send what it will then `wait` for: what comes meanwhile does
        not wake the receiver. False if another thread attends to it. Call `leave` afterwards."""
        if not self._claim.acquire(blocking=False):
            return False
        with self._switch, contextlib.suppress(OSError):  # no descriptor is left for an ear: the receiver goes on
            if not self._is_closed:
                ear = self._ear = self._ear or Ear(self.link, self._receiver.spin)
                if not self._is_resting:
                    self._receiver.pause(self._source)
                self._is_resting = False
                self._is_lent = True
                if self.link.has_backlog():
                    ear.watch_writing(True)
        if not self._is_lent:
            self._claim.release()
            return False
        self.link.claim()
        return True

    def leave(self) -> None:
        """Give the link back."""
        self.link.unclaim()
        with self._switch:
            self._is_lent = False
            if self._is_closed:
                self._end()
            elif self._pending() >= MANY and not self.link.has_backlog():
                self._is_resting = True  # the thread will be back soon
            else:
                if self.link.has_backlog() and self._ear is not None:
                    self._ear.watch_writing(False)
                self._resume()
        has_inbox = self.link.has_inbox()
        self._claim.release()
        if self._is_resting:
            self._receiver.at_next_tick(self.go_on)
        if has_inbox:
            self._receiver.nudge(self._source)

    def wait(self, future: Awaited, is_attended: bool = False) -> None:
        """Handle what comes until the future is done; returns at once if another thread does so already.

        Returns earlier, too, when the link ends. `is_attended`: the calling thread has the link; it is given back.
        """
        self.link.flush()
        if not is_attended and (future.done() or not self.attend()):
            return
        try:
            self._receive(future)
        finally:
            self.leave()

    def _receive(self, future: Awaited) -> None:
        link, ear = self.link, self._ear
        assert ear is not None
        future.waiter = Waiter(ear)
        try:
            self._receive_at(link, ear, future)
        finally:
            future.waiter = None

    def _receive_at(self, link: LocalLink, ear: Ear, future: Awaited) -> None:
        is_readable = link.has_inbox()
        while True:
            if is_readable:
                frames = link.take()
                if frames is not None:
                    self._take(frames)
            is_readable = link.has_inbox()
            if is_readable:
                continue  # what was read together is handled together, or the receiver would have to be woken for it
            link.flush()
            if future.done() or self._is_closed or link.is_ended:
                return
            is_readable = ear.listen(SIGNAL_LATENCY)

    def _take(self, frames: Frames) -> None:
        """Handle a message, or leave it to the receiving thread."""
        try:
            envelope = unpack(frames, self._limits)
        except ZrpcError:
            self._handle(frames)  # which refuses it
            return
        if self._is_foreign(envelope):
            self._left.append(envelope)
            self._receiver.nudge(self._source)
        else:
            self._handle(envelope)

    # ------------------------------------------------------------------------------------ ending

    def close(self) -> None:
        """Receive no more. A thread that waits here gives up."""
        with self._switch:
            if self._is_closed:
                return
            self._is_closed = True
            self._receiver.remove(self._source)
            while self._left:
                self._receiver.hand_over(self._handle, self._left.popleft())
            if self._is_lent and self._ear is not None:
                self._ear.wake()  # it closes the link when it goes
            else:
                self._end()

    def _end(self) -> None:
        if self._ear is not None:
            self._ear.close()
        self.link.close()
