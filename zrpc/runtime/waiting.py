"""Waiting, on a thread, for a value that lives on this worker.

One rule: whoever waits gives up its place in the pool meanwhile, and ends with the call that it waits for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from zrpc.clock import Clock, earliest, monotonic, time_left
from zrpc.errors import CallTimeout, RRefLost
from zrpc.ids import RRefId
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.raising import fresh
from zrpc.runtime.scopes import current_scope

if TYPE_CHECKING:
    from zrpc.runtime.references import References


def wait_for_value(references: References, rref_id: RRefId, timeout: float, clock: Clock = monotonic) -> Any:
    """The value of a reference owned here; waits at most `timeout` seconds (0: without bound) for it.

    Raises the error of the function that should have made it, `CallTimeout`, `RRefLost` or `Cancelled`.
    """
    owned = references.owned(rref_id)
    if owned is None or not owned.is_done:
        _wait(references, rref_id, timeout, clock)
        owned = references.owned(rref_id)
        if owned is None:
            raise RRefLost(str(rref_id), references.identity.info.name, "it has been released")
    if owned.error is not None:
        raise fresh(owned.error)
    return owned.value


def _wait(references: References, rref_id: RRefId, timeout: float, clock: Clock) -> None:
    done = threading.Event()

    def is_there(_value: Any, _error: BaseException | None) -> None:
        done.set()

    references.when_ready(rref_id, is_there)
    deadline = clock() + timeout if timeout else None
    scope = current_scope()
    if scope is not None:
        deadline = earliest(deadline, scope.deadline)
        scope.check()
        scope.enroll(id(done), done.set)
    try:
        with blocking_here():
            if not done.wait(time_left(deadline, clock())):
                raise CallTimeout(references.identity.info.name, f"waiting for the value of {rref_id}", timeout)
    finally:
        references.wait_no_more(rref_id, is_there)
        if scope is not None:
            scope.leave(id(done))
    if scope is not None:
        scope.check()
