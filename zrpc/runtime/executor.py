"""Threads: who receives, who runs user functions, and how the one becomes the other.

One rule: no hand-off between threads on the path of a short call, and no user function ever delays receiving. The thread
that holds the *turn* receives messages and runs what they ask for itself. A hand-off costs about 50 microseconds, more
than a short function. When the function turns out to be long, the turn is taken from its thread and given to another
one, which goes on receiving; the first thread ends its function and becomes an ordinary worker. (The pattern is
Leader/Followers, Schmidt et al., POSA 2; taking the turn away from outside is what Go's `sysmon` does with a processor
whose thread is stuck.)

Who notices that a function is long?
- the function itself, when it waits for another call (`blocking`): the turn goes at once;
- the overseer, a thread that looks every `TICK` while functions run, and parks when none has for `PARK_TICKS`;
- history: a function that ran long lately goes straight to another thread (`SLOW`).

States of a pool thread: idle -> receiving -> running inline -> receiving, or -> running (turn taken) -> idle.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from zrpc.clock import Clock, monotonic

TICK = 0.002
"""Seconds a function may hold the turn before the overseer takes it, at least; twice that at most."""
PARK_TICKS = 4
"""Ticks without a function after which the overseer parks, to cost nothing while idle. Few, because a lone message (a beat
to the broker, say) unparks it: at 50 ticks an idle pair of workers used 2 % of a core, most of it here."""
SLOW = 0.003
"""Seconds: a function whose typical run is above this is not run by the receiver. 60 times what a hand-off costs."""
WEIGHT_OF_SLOWER = 0.1
"""Weight of the last run in a function's typical time when it was slower than that. Low: on a busy machine a short
function now and then takes long, and would then be handed over for nothing. A run of 30 ms still counts at once."""
WEIGHT_OF_FASTER = 0.5
"""The same when it was faster."""
HISTORY_SIZE = 4096
"""Functions whose run time is remembered; when more are seen, the history starts anew."""
MAX_THREADS = 8192
LINGER = 10.0
"""Seconds that an idle thread waits for work before it ends: far more than a thread costs to start (about 0.1 ms)."""
KEPT_IDLE = 2
"""Idle threads that stay, however long: one to take the turn, one for a slow function. They wait without waking up."""

logger = logging.getLogger(__name__)
_local = threading.local()

Job = Callable[[], None]


@dataclass(frozen=True)
class ExecutorStatistics:
    """What the pool is doing now, and has done."""

    threads: int
    running: int
    blocked: int
    queued: int
    turns_taken: int
    busy_seconds: float


class Executor:
    """A pool of threads of which one, the holder of the turn, receives.

    `receive(turn)` is called by the thread that gets the turn; it must return soon after `holds(turn)` is False.
    `limit` bounds the user functions that run at once, not counting those that wait for calls of their own.
    `prepare` is called first on each new thread. Idle threads but for a few end after `linger` seconds.
    """

    def __init__(
        self,
        receive: Callable[[int], None],
        limit: int,
        name: str,
        clock: Clock = monotonic,
        prepare: Callable[[], None] | None = None,
        linger: float = LINGER,
    ) -> None:
        self._receive = receive
        self._linger = linger
        self._prepare = prepare
        self._limit = limit
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._jobs: deque[tuple[Job, Hashable]] = deque()
        self._stopping = False
        self._threads = self._idle = self._woken = self._running = self._blocked = 0
        self._serial = 0
        # the turn: a number that grows each time it changes hands, and whether a thread has it
        self._turn = 0
        self._is_held = False
        self._inside = False
        self._turns_taken = 0
        self._busy = 0.0
        self._history: dict[Hashable, float] = {}
        self._parked = True
        self._is_stirred = False
        self.at_tick: Callable[[], None] | None = None
        """Called by the overseer every `TICK` while functions run, and once more when it parks."""
        self._unpark = threading.Event()
        self._stopped = threading.Event()
        self._overseer = threading.Thread(target=self._oversee, name=f"{name}-overseer", daemon=True)

    # ------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Start the first thread, which takes the turn."""
        self._overseer.start()
        with self._lock:
            self._spawn()

    def stop(self, timeout: float) -> bool:
        """Let idle threads end; the receiver ends when it sees `is_stopping`. False if some still run at the timeout."""
        deadline = self._clock() + timeout
        with self._lock:
            self._stopping = True
            self._jobs.clear()
            self._idle = 0
            self._work.notify_all()
        self._stopped.set()
        self._unpark.set()
        me = 1 if getattr(_local, "executor", None) is self else 0
        with self._lock:
            while self._threads > me:
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._ended.wait(left)
        self._overseer.join(max(0.0, deadline - self._clock()))
        return True

    def is_stopping(self) -> bool:
        return self._stopping

    def statistics(self) -> ExecutorStatistics:
        with self._lock:
            return ExecutorStatistics(
                self._threads, self._running, self._blocked, len(self._jobs), self._turns_taken, self._busy
            )

    # ------------------------------------------------------------------------------------ running

    def holds(self, turn: int) -> bool:
        """Whether `turn` is still the current one, and the pool is not stopping."""
        return self._turn == turn and not self._stopping

    def enter(self) -> None:
        """The receiver is about to handle a message: from here on the overseer watches it."""
        self._serial += 1
        self._inside = True
        if self._parked:
            self._parked = False
            self._unpark.set()

    def stir(self) -> bool:
        """Have `at_tick` called once more, soon. False if it will not be: the pool stops."""
        self._is_stirred = True
        if self._parked:
            self._parked = False
            self._unpark.set()
        return not self._stopping

    def ticks(self) -> bool:
        """Whether `at_tick` will be called for what has been done before this is called."""
        return not self._parked and not self._stopping

    def leave(self, turn: int) -> bool:
        """The message is handled. False when the turn was taken meanwhile: the caller must stop receiving."""
        with self._lock:
            if self._turn != turn:
                return False
            self._inside = False
            return True

    def run(self, job: Job, key: Hashable) -> None:
        """Run a user function: here if it is likely short, else on another thread. Called by the receiver only."""
        if self._history.get(key, 0.0) > SLOW:
            self.submit(job, key)
            return
        with self._lock:
            if self._running >= self._limit:
                self._queue(job, key)
                return
            if self._jobs and self._history.get(self._jobs[0][1], 0.0) <= SLOW:
                # Nobody overtakes those that wait. Were the new one queued behind them and left to the other threads, a
                # burst of short calls would never come back to being run here, where it costs least.
                self._jobs.append((job, key))
                job, key = self._jobs.popleft()
            self._running += 1
        self._call(job, key)
        if self._jobs:
            with self._lock:
                if self._jobs and self._running < self._limit:
                    self._rouse()

    def submit(self, job: Job, key: Hashable = None) -> None:
        """Run a job on another thread, as soon as fewer than `limit` run. From any thread."""
        with self._lock:
            self._queue(job, key)

    def blocking(self) -> contextlib.AbstractContextManager[None]:
        """Around a wait inside a user function: gives up the turn and the place among the running.

        Does nothing on threads that are not the pool's.
        """
        return _Blocking(self) if getattr(_local, "executor", None) is self else _ELSEWHERE

    def begin_blocking(self) -> int:
        """The calling thread, one of the pool's, is about to wait. Returns what `end_blocking` is to be given."""
        with self._lock:
            if self._inside and self._is_held and _local.turn == self._turn:
                self._take_turn()
            counts: int = _local.runs_job  # a callback of the receiver's is not among the running
            self._running -= counts
            self._blocked += 1
            if self._jobs:
                self._rouse()
        return counts

    def end_blocking(self, counts: int) -> None:
        with self._lock:
            self._running += counts
            self._blocked -= 1

    # ------------------------------------------------------------------------------------ inside

    def _queue(self, job: Job, key: Hashable) -> None:
        self._jobs.append((job, key))
        if self._running < self._limit:
            self._rouse()

    def _rouse(self) -> None:
        """See that some thread looks for work: wake an idle one, or start one. With the lock held."""
        if self._idle:
            self._wake_one()
        elif self._threads < min(self._limit + self._blocked + 1, MAX_THREADS):
            self._spawn()

    def _spawn(self) -> None:
        if self._stopping:
            return
        self._threads += 1
        thread = threading.Thread(target=self._live, name=f"{self._name}-{self._threads}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or the system gives no more threads
            self._threads -= 1

    def _take_turn(self) -> None:
        """Take the turn from its holder, for another thread. With the lock held."""
        self._turn += 1
        self._is_held = False
        self._inside = False
        self._turns_taken += 1
        if self._idle:
            self._wake_one()
        else:
            self._spawn()

    def _live(self) -> None:
        _local.executor = self
        _local.runs_job = 0
        if self._prepare is not None:
            self._prepare()
        try:
            while True:
                found = self._find_work()
                if found is None:
                    return
                if isinstance(found, int):
                    _local.turn = found
                    self._receive(found)
                    with self._lock:
                        if self._turn == found:  # gave it up by itself: it is stopping
                            self._turn += 1
                            self._is_held = False
                            self._inside = False
                else:
                    _local.turn = -1
                    self._call(*found)
                    found = None  # what the job holds goes now, not when the next one comes
        finally:
            _local.executor = None
            with self._lock:
                self._threads -= 1
                self._ended.notify_all()

    def _find_work(self) -> int | tuple[Job, Hashable] | None:
        """The turn if nobody has it, else a job if one may run, else wait; None when this thread is to end."""
        with self._lock:
            while not self._stopping:
                if not self._is_held:
                    self._is_held = True
                    return self._turn
                if self._jobs and self._running < self._limit:
                    self._running += 1
                    return self._jobs.popleft()
                if not self._idle_until_woken():
                    return None
            return None

    def _idle_until_woken(self) -> bool:
        """Wait for `_wake_one`; False if this thread was not needed for a while, or the pool stops. With the lock held."""
        self._idle += 1
        while not self._stopping:
            is_surplus = self._idle > KEPT_IDLE
            was_notified = self._work.wait(self._linger if is_surplus else None)
            # A thread may time out at the very moment in which it is notified: what counts is not who was, but how many.
            if self._woken:
                self._woken -= 1
                return True
            if not was_notified and self._idle > KEPT_IDLE:
                self._idle -= 1
                return False
        return False

    def _wake_one(self) -> None:
        """Wake an idle thread. It counts as idle no more, so that the next one to wake is another. With the lock held."""
        self._idle -= 1
        self._woken += 1
        self._work.notify()

    def _call(self, job: Job, key: Hashable) -> None:
        start = self._clock()
        _local.runs_job = 1
        try:
            job()
        except BaseException:  # a job handles its own errors; what comes here must not end the thread
            logger.exception("a job of the pool failed")
        finally:
            _local.runs_job = 0
            took = self._clock() - start
            if took >= SLOW or key in self._history:  # the common case needs no entry
                self._remember(key, took)
            with self._lock:
                self._busy += took
                self._running -= 1

    def _remember(self, key: Hashable, took: float) -> None:
        history = self._history
        known = history.get(key)
        if known is None:
            if len(history) >= HISTORY_SIZE:
                history.clear()
            known = 0.0
        history[key] = known + (WEIGHT_OF_SLOWER if took > known else WEIGHT_OF_FASTER) * (took - known)

    def _oversee(self) -> None:
        seen = -1
        quiet = 0
        while not self._stopping:
            if self._parked:
                self._unpark.wait()
                self._unpark.clear()
                quiet = 0
                continue
            self._stopped.wait(TICK)
            if self.at_tick is not None:
                self.at_tick()
            serial = self._serial
            if serial != seen:
                seen = serial
                quiet = 0
            elif self._inside:
                with self._lock:
                    if self._inside and self._serial == seen and not self._stopping:
                        self._take_turn()
            elif self._is_stirred:
                self._is_stirred = False
                quiet = 0
            else:
                quiet += 1
                if quiet > PARK_TICKS:
                    self._park()

    def _park(self) -> None:
        self._parked = True
        # `enter` sets _inside before it reads _parked, so one of the two sees the other's write. So it is with `ticks`.
        if self._inside:
            self._parked = False
        elif self.at_tick is not None:
            self.at_tick()


class _Blocking(contextlib.AbstractContextManager[None]):
    """Around a wait of one of a pool's threads."""

    __slots__ = ("_counts", "_executor")

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def __enter__(self) -> None:
        self._counts = self._executor.begin_blocking()

    def __exit__(self, *_: object) -> None:
        self._executor.end_blocking(self._counts)


_ELSEWHERE: Final = contextlib.nullcontext()


def blocking_here() -> contextlib.AbstractContextManager[None]:
    """`Executor.blocking` of whichever pool the calling thread belongs to, if it belongs to one."""
    executor: Executor | None = getattr(_local, "executor", None)
    return _ELSEWHERE if executor is None else _Blocking(executor)
