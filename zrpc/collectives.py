"""All-gather, barrier and the common end, by the names that `torch.distributed.rpc.api` gives them.

One rule: they are made of calls like any other, but for the common end of a static group, which the broker decides.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from zrpc.clock import deadline_after, monotonic
from zrpc.constants import DEFAULT_SHUTDOWN_TIMEOUT, UNSET_RPC_TIMEOUT
from zrpc.errors import CallTimeout, GroupTimeout
from zrpc.runtime.agent import Agent
from zrpc.runtime.context import collected, current_agent

logger = logging.getLogger(__name__)

_thread_local_var = collected


@contextlib.contextmanager
def _wait_all() -> Iterator[None]:
    """Wait, at the end of the block, for all that `rpc_async` was asked for in it; raises the first error."""
    collected.future_list = []
    try:
        yield
    finally:
        try:
            torch.futures.wait_all(collected.future_list)
        finally:
            del collected.future_list


def _all_gather(
    obj: Any, worker_names: Iterable[str] | None = None, timeout: float = UNSET_RPC_TIMEOUT
) -> dict[str, Any]:
    """Give `obj` to all of `worker_names` (everybody, if there are none) and get theirs: a dict by worker name.

    Each of them has to call this. `timeout` is in seconds, 0 for none; -1: each message has the default time-out, and the
    others may take as long as they want. Raises `RuntimeError` when somebody does not answer, is gone, or comes too late.
    """
    agent = current_agent("_all_gather")
    names = set(worker_names or (member.name for member in agent.members()))
    if timeout == UNSET_RPC_TIMEOUT:
        call_timeout, deadline = agent.caller.rpc_timeout, None
    else:
        call_timeout, deadline = timeout, deadline_after(timeout, monotonic())
    key = agent.gatherings.begin(names)
    leader = min(names)
    try:
        if leader == agent.info.name:
            return _lead(agent, key, names, obj, call_timeout, deadline)
        return _follow(agent, key, names, leader, obj, call_timeout, deadline)
    finally:
        agent.gatherings.take(key)


def _follow(
    agent: Agent, key: str, names: set[str], leader: str, obj: Any, call_timeout: float, deadline: float | None
) -> dict[str, Any]:
    me = agent.info.name
    try:
        agent.caller.call_sync(leader, _gather_to_leader, (key, me, obj, sorted(names)), None, call_timeout)
    except CallTimeout as error:
        # The leader waits for as long as it takes: tell it that this worker does not come.
        agent.caller.call_async(leader, _desert_leader, (key, me, str(error)), None, UNSET_RPC_TIMEOUT)
        raise
    if not agent.gatherings.wait(key, deadline):
        raise _too_late([leader], call_timeout, "it did not say that all have come")
    return agent.gatherings.take(key)


def _lead(
    agent: Agent, key: str, names: set[str], obj: Any, call_timeout: float, deadline: float | None
) -> dict[str, Any]:
    me = agent.info.name
    try:
        return _lead_all(agent, key, names, obj, call_timeout, deadline)
    except RuntimeError as error:
        # Who has come waits for as long as it takes, and who has not yet is not to begin.
        for name in sorted(names - {me}):
            with contextlib.suppress(RuntimeError):
                agent.caller.call_async(name, _dissolve_followers, (key, str(error)), None, UNSET_RPC_TIMEOUT)
        raise


def _lead_all(
    agent: Agent, key: str, names: set[str], obj: Any, call_timeout: float, deadline: float | None
) -> dict[str, Any]:
    me = agent.info.name
    agent.gatherings.add(key, names, me, obj)
    if not agent.gatherings.wait(key, deadline):
        late = names - agent.gatherings.take(key).keys()
        raise _too_late(sorted(late), call_timeout, "it has not come")
    deserters = agent.gatherings.deserters(key)
    if deserters:
        raise _too_late(sorted(deserters), call_timeout, next(iter(deserters.values())))
    objects = agent.gatherings.take(key)
    futures = {}
    failed: dict[str, Exception] = {}
    for name in sorted(names - {me}):
        try:
            futures[name] = agent.caller.call_async(name, _broadcast_to_followers, (key, objects), None, call_timeout)
        except RuntimeError as error:
            failed[name] = error
    for name, future in futures.items():
        try:
            future.wait()
        except RuntimeError as error:
            failed[name] = error
    if failed:
        raise _too_late(list(failed), call_timeout, str(next(iter(failed.values()))))
    return objects


def _too_late(names: list[str], seconds: float, why: str) -> RuntimeError:
    return RuntimeError(
        f"Followers {names} timed out in _all_gather after {seconds:.2f} seconds. The first exception is {why}"
    )


def _gather_to_leader(key: str, name: str, obj: Any, names: list[str]) -> None:
    """Runs on the leader: a follower has come."""
    current_agent().gatherings.add(key, names, name, obj)


def _desert_leader(key: str, name: str, why: str) -> None:
    """Runs on the leader: a follower does not come."""
    current_agent().gatherings.desert(key, name, why)


def _dissolve_followers(key: str, why: str) -> None:
    """Runs on the followers: it came to nothing."""
    current_agent().gatherings.dissolve(key, why)


def _broadcast_to_followers(key: str, objects: dict[str, Any]) -> None:
    """Runs on the followers: all have come."""
    current_agent().gatherings.settle(key, objects)


def _barrier(worker_names: Iterable[str]) -> None:
    """Wait until all of `worker_names` are here. A failure is logged, not raised, as torch has it."""
    try:
        _all_gather(None, set(worker_names))
    except RuntimeError:
        logger.exception("Failed to complete barrier")


def _wait_all_workers(timeout: float = DEFAULT_SHUTDOWN_TIMEOUT) -> None:
    """Wait until all workers call this and no call is under way. `timeout` is in seconds, 0 for none.

    Raises `GroupTimeout` (static group) or `RuntimeError` when they do not come.
    """
    agent = current_agent("_wait_all_workers")
    if not agent.is_static:
        _all_gather(None, timeout=timeout)
    elif not agent.wait_released(deadline_after(timeout, monotonic())):
        missing = agent.missing_for_shutdown()
        raise GroupTimeout("a graceful shutdown of the group", timeout, (), missing, 1)
