"""Leaving in good order: what was begun is finished, what is new is refused.

One rule: a refused call was not started, so whoever made it may make it again, here later or elsewhere. A call that comes
from a worker which this one waits for may be part of what was begun, and is taken.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from zrpc.clock import Clock, earliest, time_left
from zrpc.errors import InvalidTransition, WorkerDraining
from zrpc.runtime.callee import Callee
from zrpc.runtime.caller import Caller
from zrpc.runtime.directory import ClusterClient
from zrpc.runtime.executor import Executor, blocking_here
from zrpc.runtime.identity import Identity
from zrpc.runtime.scopes import current_scope
from zrpc.wire.envelope import Envelope

SETTLE: float = 0.02
"""Seconds between two looks when a call has ended: its reply leaves, and its thread becomes idle, a moment later."""


logger = logging.getLogger(__name__)


class Draining:
    """The state of one worker's leaving. Safe to use from any thread."""

    def __init__(
        self,
        identity: Identity,
        callee: Callee,
        caller: Caller,
        executor: Executor,
        client: ClusterClient,
        clock: Clock,
    ) -> None:
        self._name = identity.info.name
        self._me = identity.info.id, identity.incarnation
        self._callee = callee
        self._caller = caller
        self._executor = executor
        self._client = client
        self._clock = clock
        self._changed = threading.Condition()
        self._is_hurried = False
        self.why: str | None = None
        """Why this worker leaves; None while it does not."""
        self.savers: list[Callable[[], object]] = []
        """What keeps the program's state before this worker drains."""

    def __repr__(self) -> str:
        return f"<Draining {self._name} {'no' if self.why is None else self.why!r}>"

    @property
    def is_hurried(self) -> bool:
        """Whether nothing is to be waited for any more."""
        return self._is_hurried

    def begin(self, why: str) -> None:
        """Take no new work from now on, and tell everybody. Idempotent."""
        if self.why is not None:
            return
        self.why = why
        self._callee.gate = self
        logger.info("worker %s takes no new work: %s", self._name, why)
        try:
            self._client.drain()
        except InvalidTransition:  # fenced, say: nobody is to be told
            pass

    def save(self) -> None:
        """Have the program keep its state; each saver is called once, and what it raises is logged."""
        savers, self.savers = self.savers, []
        for saver in savers:
            try:
                saver()
            except Exception:
                logger.exception("worker %s could not save its checkpoint", self._name)

    def hurry(self) -> None:
        """Wait for nothing any more. Safe in a signal handler."""
        self._is_hurried = True

    def check(self, envelope: Envelope) -> None:
        """A call has come. Raises `WorkerDraining` when it is not taken."""
        key = envelope.sender, envelope.sender_incarnation
        if self.why is not None and key != self._me and key not in self._caller.waits_for():
            raise WorkerDraining(self._name, self.why, envelope.function or "")

    def look(self) -> None:
        """A call has been answered."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, deadline: float | None) -> bool:
        """Wait until all that was begun is finished; False at the deadline, and at once when hurried."""
        own = 0 if current_scope() is None else 1  # the call that waits here does not wait for itself
        with blocking_here():
            while not self._is_hurried:
                if self._left(own) <= 0:
                    return True
                now = self._clock()
                if time_left(deadline, now) == 0.0:
                    return False
                with self._changed:
                    self._changed.wait(time_left(earliest(deadline, now + SETTLE), now))
        return False

    def _left(self, own: int) -> int:
        pool = self._executor.statistics()
        return max(self._callee.under_way(), pool.running + pool.blocked + pool.queued) - own
