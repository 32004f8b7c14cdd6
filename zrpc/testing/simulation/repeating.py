"""Calls of a simulated process that may be repeated: what `zrpc.runtime.retrying` is for real.

One rule: what is tried again is counted as one, by the truth: it ends once, by its deadline, and no try begins after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zrpc.protocol.retries import Retry
from zrpc.testing.simulation.truth import BrokenPromise

if TYPE_CHECKING:
    from zrpc.testing.simulation.worker import Process

AGAIN = ("lost", "refused", "nobody")
"""Ends that say nothing about the function."""


class Repeated:
    """One call that may be repeated, on any worker."""

    def __init__(self, process: Process, timeout: float) -> None:
        self.process = process
        self.retry = Retry(process.network.now + timeout, process.network.random.random)
        self.uid = process.truth.begin_call()
        self.is_under_way = False
        self.tries = 0
        process.repeated.add(self)
        self.make()

    def __repr__(self) -> str:
        return f"<Repeated {self.uid} {self.retry}>"

    def make(self) -> None:
        """Make the call once."""
        process, deadline = self.process, self.retry.deadline
        assert deadline is not None
        if self.uid in process.truth.ends or self.is_under_way:
            raise BrokenPromise(f"{self} is tried again, while it is under way or after its end")
        self.is_under_way = True
        self.tries += 1
        names = sorted(name for name in process.session.members if name != process.name)
        if not names:
            self._ended("nobody", "")
            return
        where = self.retry.choose(names)
        to = process.cluster.peer_named(process, where)
        if to is None:
            self._ended("nobody", where)
            return
        left = max(1e-6, deadline - process.network.now)
        process.begin(to, left, to.on_call, on_end=lambda how: self._ended(how, where))

    def _ended(self, how: str, where: str) -> None:
        """A try has ended: try again later, if it is of use and there is time."""
        process = self.process
        self.is_under_way = False
        now = process.network.now
        at = self.retry.fail(where, now) if how in AGAIN and not process.is_over else None
        if at is not None:
            process.later(at - now, self.make)
            return
        self.end(how)

    def end(self, how: str) -> None:
        """It has ended for its caller."""
        process = self.process
        process.repeated.discard(self)
        deadline = self.retry.deadline
        assert deadline is not None
        # A try that begins just before the deadline has a moment for itself.
        process.truth.end_call(self.uid, how, process.network.now, max(deadline, process.thawed_at) + 2e-6)
