"""Who comes and goes, told to the program: callbacks in order, and waiting for somebody.

One rule: callbacks run one at a time, in the order in which things happened, on a thread of their own: they may call
workers, and a slow one delays nothing but the ones after it. The thread is started when the first callback comes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zrpc.clock import Clock, time_left
from zrpc.errors import GroupTimeout, WorkerLost
from zrpc.ids import WorkerInfo
from zrpc.protocol.effects import MemberDraining, MemberGone, MemberUp
from zrpc.protocol.membership import DRAINING
from zrpc.runtime.executor import blocking_here
from zrpc.wire.messages import Member

STOP_SECONDS = 5.0
"""How long the end of an agent waits for a callback that runs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MembershipEvent:
    """A worker has come or gone, as one worker of the cluster sees it.

    `kind`: 'joined'; 'draining' (it finishes what it has begun, refuses new calls, and will leave; not told of one that
    leaves at once); 'left' (of its own will); 'died' (`why` says how that was noticed).
    """

    kind: str
    worker: WorkerInfo
    role: str = ""
    incarnation: int = 0
    """Tells this life of the worker from its earlier and later ones."""
    why: str = ""

    @classmethod
    def of(cls, news: MemberUp | MemberDraining | MemberGone) -> MembershipEvent:
        """What the broker's news means to a program."""
        member = news.member
        info = WorkerInfo(member.name, member.id)
        if isinstance(news, MemberGone):
            return cls(news.cause, info, member.role, member.incarnation, news.why)
        return cls("joined" if isinstance(news, MemberUp) else "draining", info, member.role, member.incarnation)


Callback = Callable[[MembershipEvent], object]


class Registration:
    """A callback that is told of the membership, until `cancel`."""

    def __init__(self, watch: MembershipWatch, callback: Callback) -> None:
        self._watch = watch
        self.callback = callback

    def cancel(self) -> None:
        """Tell the callback nothing more; one that runs now runs to its end. Idempotent."""
        self._watch.forget(self)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class MembershipWatch:
    """Tells callbacks, and lets threads wait for members. `members` gives who is up; `prepare` runs first on the thread."""

    def __init__(
        self,
        name: str,
        members: Callable[[], Sequence[Member]],
        clock: Clock,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._members = members
        self._clock = clock
        self._prepare = prepare
        self._changed = threading.Condition()
        self._version = 0
        self._registered: tuple[Registration, ...] = ()
        self._queue: queue.SimpleQueue[tuple[tuple[Registration, ...], MembershipEvent] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def note(self, news: MemberUp | MemberDraining | MemberGone) -> None:
        """Something has happened. Called in order, by whoever has the turn to receive."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()
            if self._registered:
                self._queue.put((self._registered, MembershipEvent.of(news)))

    def register(self, callback: Callback, present: bool) -> Registration:
        """Tell `callback` of all that happens from now on; with `present`, first that each who is there has joined."""
        registration = Registration(self, callback)
        with self._changed:
            if present:
                for member in self._members():
                    self._queue.put(((registration,), MembershipEvent.of(MemberUp(member))))
            self._registered = (*self._registered, registration)
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name=f"zrpc-{self._name}-membership", daemon=True)
                self._thread.start()
        return registration

    def forget(self, registration: Registration) -> None:
        with self._changed:
            self._registered = tuple(other for other in self._registered if other is not registration)

    def wait(self, names: Sequence[str], role: str | None, count: int, deadline: float | None) -> list[Member]:
        """Wait until all of `names`, and at least `count` members of `role` (None: any), can be called. Returns them.

        Raises `GroupTimeout` at the deadline and `WorkerLost` when this worker shuts down.
        """
        began = self._clock()
        with blocking_here():
            while True:
                with self._changed:
                    version = self._version
                there = {member.name: member for member in self._members() if member.state != DRAINING}
                missing = [name for name in names if name not in there]
                fit = [m for m in there.values() if (m.name in names if names else role is None or m.role == role)]
                if not missing and len(fit) >= count:
                    return sorted(fit, key=lambda member: member.id)
                if self._is_closed:
                    raise WorkerLost(self._name, "this worker has shut down", "waiting for others")
                left = time_left(deadline, self._clock())
                if left == 0.0:
                    what = "waiting for workers" if role is None else f"waiting for {count} workers of role {role!r}"
                    waited = self._clock() - began
                    raise GroupTimeout(what, waited, [m.name for m in fit], missing, max(count - len(fit), 0))
                with self._changed:
                    self._changed.wait_for(lambda seen=version: self._version != seen or self._is_closed, left)  # type: ignore[misc]

    def close(self) -> None:
        """End the thread, after the callback that runs; what was not told yet is dropped."""
        with self._changed:
            self._is_closed = True
            self._registered = ()
            self._changed.notify_all()
            thread = self._thread
        self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_SECONDS)

    def _run(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while True:
            item = self._queue.get()
            if item is None or self._is_closed:
                return
            registrations, event = item
            for registration in registrations:
                if registration in self._registered:  # not cancelled meanwhile
                    self._tell(registration, event)

    def _tell(self, registration: Registration, event: MembershipEvent) -> None:
        try:
            registration.callback(event)
        except Exception:
            logger.exception("a callback of on_membership failed; it goes on being told")
