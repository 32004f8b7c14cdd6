"""What became of a call: the callee tells, the caller puts it in the error of a call that ran out of time.

One rule: asking costs a late call at most `PATIENCE`, and a call that is in time nothing but two attributes of its task.
The question takes a connection of its own or the asynchronous link, never the way that the call is stuck on, and whoever
receives at the callee answers it at once, whatever its functions do.

    question  {'what': 'calls', 'ids': [message id, ...], 'values': [[created on, local id], ...]}
    answer    {'calls': [{'state': 'running' | 'waiting' | 'queued' | 'unknown', 'seconds': since when, 'stack': [...],
               'before': how many wait before it, 'running': ['name for 3.2 s', ...]}, ...], 'idle': seconds since
               a function last ended}
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, Final, Protocol

from zrpc.clock import Clock

PATIENCE: Final = 0.3
"""Seconds that a call which ran out of time waits for the callee's answer."""
MOST: Final = 64
"""Calls that one question asks about."""
FRAMES: Final = 12
"""Lines of a stack that are told: the innermost."""
SHOWN: Final = 5
"""Functions that are named in a sentence."""

_OURS: Final = ("zrpc.runtime.", "zrpc.serialization.", "threading")
"""Modules whose frames at the bottom of a stack say nothing about the function that runs."""


class Served(Protocol):
    """A call that is being served, as it is described."""

    key: tuple[int, int, int]
    arrived: float
    began: float
    thread: int

    @property
    def function(self) -> str: ...

    @property
    def value(self) -> tuple[int, int] | None: ...


def state_of(task: Served) -> str:
    """'queued' for a thread, 'running' on one, or 'waiting' without one for what its function has returned."""
    if not task.began:
        return "queued"
    return "running" if task.thread else "waiting"


def describe_calls(
    question: Mapping[str, Any], sender: tuple[int, int], tasks: Iterable[Served], last_end: float, clock: Clock
) -> dict[str, Any]:
    """The answer to a question about calls of `sender`. Malformed parts of a question are unknown calls."""
    now = clock()
    table = list(tasks)
    by_key = {task.key: task for task in table}
    by_value = {task.value: task for task in table if task.value is not None}
    ids, values = question.get("ids"), question.get("values")
    wanted: list[Served | None] = []
    if isinstance(ids, list):
        wanted = [by_key.get((*sender, number)) if isinstance(number, int) else None for number in ids[:MOST]]
    if isinstance(values, list):
        for index, pair in enumerate(values[: len(wanted)]):
            if wanted[index] is None and isinstance(pair, list) and all(isinstance(part, int) for part in pair):
                wanted[index] = by_value.get(tuple(pair))
    return {"calls": [_describe(task, table, now) for task in wanted], "idle": now - last_end}


def describe_tasks(tasks: Iterable[Served], last_end: float, clock: Clock) -> dict[str, Any]:
    """All calls that are being served, the oldest first."""
    now = clock()
    table = sorted(tasks, key=lambda task: task.arrived)
    found = [{"function": task.function, "caller": task.key[0], **_describe(task, table, now)} for task in table[:1024]]
    return {"tasks": found, "idle": now - last_end}


def _describe(task: Served | None, table: Sequence[Served], now: float) -> dict[str, Any]:
    if task is None:
        return {"state": "unknown"}
    state = state_of(task)
    told: dict[str, Any] = {"state": state, "seconds": now - (task.began or task.arrived)}
    if state == "running":
        told["stack"] = stack_of(task.thread)
    elif state == "queued":
        queued = [other for other in table if not other.began and other.arrived < task.arrived]
        running = [other for other in table if state_of(other) == "running"]
        told["before"] = len(queued)
        told["running"] = [f"{other.function} for {now - other.began:.1f} s" for other in running[:SHOWN]]
        told["more"] = max(0, len(running) - SHOWN)
    return told


def _frames() -> dict[int, FrameType]:
    """The innermost frame of each thread.

    Without garbage collection meanwhile: up to Python 3.11.8 one that begins in there can stop all threads for ever, since
    it may hand the interpreter over while the list of threads is locked (python/cpython#106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if was_enabled:
            gc.enable()


def stack_of(thread: int) -> list[str]:
    """What a thread does: the innermost Python frames, without those of zrpc that called the function."""
    frame = _frames().get(thread)
    if frame is None or thread == threading.get_ident():
        return []
    modules = [inner.f_globals.get("__name__", "") for inner, _ in traceback.walk_stack(frame)][::-1]
    outer = 0
    while outer < len(modules) and modules[outer].startswith(_OURS):
        outer += 1
    summary = traceback.extract_stack(frame)[outer:] or traceback.extract_stack(frame)
    lines = [f"{line.filename}:{line.lineno} in {line.name}: {line.line or ''}".rstrip(": ") for line in summary]
    return lines[-FRAMES:]


# ------------------------------------------------------------------------------------------------ for callers


def question_about(calls: Sequence[tuple[int, tuple[int, ...] | None]]) -> dict[str, Any]:
    """Asks about some calls of this worker: (message id, the header's rref numbers) each."""
    some = calls[:MOST]
    return {
        "what": "calls",
        "ids": [message_id for message_id, _ in some],
        "values": [None if rref is None else list(rref[:2]) for _, rref in some],
    }


def sentences(answer: Mapping[str, Any], count: int) -> list[str]:
    """What an answer says about each of `count` calls."""
    told = answer.get("calls")
    parts: list[Any] = told if isinstance(told, list) else []
    idle = answer.get("idle")
    said = [_sentence(part if isinstance(part, dict) else {}, idle) for part in parts[:count]]
    return said + [f"It was one of {count} that ran out of time together."] * (count - len(said))


def _sentence(told: Mapping[str, Any], idle: object) -> str:
    state, seconds = told.get("state"), told.get("seconds")
    since = f"{seconds:.1f} s" if isinstance(seconds, float) else "some time"
    if state == "running":
        stack = told.get("stack")
        where = "\n    ".join(map(str, stack)) if isinstance(stack, list) and stack else "in code that is not Python"
        return f"The worker is alive, and has been running it for {since}:\n    {where}"
    if state == "waiting":
        return f"The worker is alive; the function was started {since} ago, and what it returned is not complete yet."
    if state == "queued":
        running, more = told.get("running"), told.get("more")
        names = ", ".join(map(str, running)) if isinstance(running, list) and running else "nothing that is known"
        also = f" and {more} more" if more else ""
        ended = f"; the last function ended {idle:.1f} s ago" if isinstance(idle, float) else ""
        return (
            f"The worker is alive, but the call has been queued for {since}, behind {told.get('before')} others; running: "
            f"{names}{also}{ended}. Give the worker more threads (num_worker_threads), or fewer calls."
        )
    return (
        "The worker is alive and does not have this call: it has not arrived, has just been answered, or its answer is on "
        "the way or lost."
    )


def unanswered(waited: float) -> str:
    """What is said when the callee does not answer."""
    return (
        f"The worker did not answer when asked about it, for {waited:g} s: it is stopped or cut off, though it has not "
        "been declared dead."
    )
