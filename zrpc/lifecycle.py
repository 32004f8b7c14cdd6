"""A worker among others: who comes and goes, serving, and leaving in good order.

One rule: assembly only, as in `zrpc.api`; what is decided here is which signal means what.

    before both                      the program's checkpoint is saved
    SIGTERM, SIGINT, `zrpc stop`     drain: finish the calls that run here, refuse new ones, then `serve` returns
    a second signal                  `serve` returns now
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from zrpc.clock import deadline_after, monotonic
from zrpc.ids import WorkerInfo
from zrpc.runtime.agent import Agent
from zrpc.runtime.context import current_agent
from zrpc.runtime.watch import MembershipEvent, Registration

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_membership(callback: Callable[[MembershipEvent], object], *, present: bool = False) -> Registration:
    """Have `callback` told of each worker that joins, drains, leaves or dies from now on, this one excepted.

    The calls come one at a time, in the order in which things happened, on a thread of their own, so a callback may call
    workers. What it raises is logged. `present`: it is told first, as of workers that join, of all who are there, this
    worker included; nobody is missed or told twice. Returns a handle whose `cancel()` ends it; so does `shutdown`.
    """
    return current_agent("on_membership").watch.register(callback, present)


def wait_for(
    names: str | Sequence[str] | None = None, role: str | None = None, count: int | None = None, timeout: float = -1
) -> list[WorkerInfo]:
    """Wait until workers can be called: all of `names`, or `count` of `role`, or `count` of any. Returns them, by id.

    `count` is 1 if it is not given, and this worker counts too. Workers that drain do not. `timeout` is in seconds, 0 for
    none, -1 for `AgentOptions.init_timeout`. Raises `GroupTimeout`, which says who is missing, and `WorkerLost` when this
    worker shuts down meanwhile; `ValueError` for names together with a role or a count.
    """
    agent = current_agent("wait_for")
    if names is not None and (role is not None or count is not None):
        raise ValueError("wait_for takes names, or a role and a count, not both")
    wanted = [names] if isinstance(names, str) else list(names or ())
    seconds = agent.options.init_timeout if timeout == -1 else timeout
    least = len(set(wanted)) if names is not None else 1 if count is None else count
    found = agent.watch.wait(wanted, role, least, deadline_after(seconds, monotonic()))
    return [WorkerInfo(member.name, member.id) for member in found]


def restart_count() -> int:
    """How often this process's name was started before by its launcher; 0 for a first start, and without a launcher."""
    text = os.environ.get("ZRPC_RESTART", "")
    return int(text) if text.isdecimal() else 0


def on_checkpoint(save: Callable[[], object], restore: Callable[[], object] | None = None) -> bool:
    """Have `save` called before this worker leaves because it was told to, and `restore` now if it was started again.

    `save` runs once, on the main thread, before new calls are refused: in `serve`, and in an entry or a job that a launcher
    runs when SIGTERM ends it. What it raises is logged. A process that is killed saves nothing: call `save` yourself
    as often as work may be lost. Returns whether `restore` was called (`restart_count() > 0`).
    """
    current_agent("on_checkpoint").leaving.savers.append(save)
    if restore is None or not restart_count():
        return False
    restore()
    return True


def run_main(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Run the function that a worker or a job is for. SIGTERM or SIGINT ends it by `SystemExit`, raised inside of it, and
    then its checkpoint is saved; a second signal ends the process at once."""
    agent = current_agent("run_main")
    try:
        with _signals_heeded(agent, _leave):
            return function(**arguments)
    finally:
        if agent.stop_reason:
            agent.leaving.save()


def _leave(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def stop_requested() -> str:
    """Why this worker is to stop ('SIGTERM came', 'zrpc stop'), '' when it is not. For loops that have no `serve`."""
    return current_agent("stop_requested").stop_reason


def serve(timeout: float | None = None) -> str:
    """Serve until the broker asks this worker to stop, or SIGTERM or SIGINT comes, or it is fenced; says which.

    Calls are served from `init_rpc` on, with or without this: it keeps the main thread waiting, and drains at the end:
    calls that run here are finished (for at most `AgentOptions.drain_timeout` seconds), new ones are refused with
    `WorkerDraining`. A second signal ends that at once. Call `shutdown` afterwards. `timeout` is in seconds; '' is
    returned when it is over, and nothing is drained.
    """
    agent = current_agent("serve")
    with _signals_heeded(agent):
        if not agent.stop_requested.wait(timeout):
            return ""
        if agent.fenced is None:
            agent.leaving.save()
            agent.leaving.begin(agent.stop_reason)
            agent.leaving.wait(deadline_after(agent.options.drain_timeout, monotonic()))
    return agent.stop_reason


@contextlib.contextmanager
def _signals_heeded(agent: Agent, then: Callable[[int], None] | None = None) -> Iterator[None]:
    """The first signal asks the agent to stop, the second hurries it; `then` is called after each. Python allows it in the
    main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if agent.stop_requested.is_set():
            agent.leaving.hurry()
        agent.request_stop(f"{signal.Signals(number).name} came")
        if then is not None:
            then(number)

    previous = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
