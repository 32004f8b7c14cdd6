"""What another thread may do between any two steps of a function: tried at each step, one after the other.

The rival runs on the same thread, at a step of Python's interpreter, so that each order of the two happens, and always.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

MAX_STEPS = 10_000


def at_each_step(make: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]) -> Iterator[int]:
    """For step 0, 1, 2 and so on: have `make` give an action and its rival, run the action, and the rival at that step.

    Yields after each run; ends with the run that has no such step, in which the rival came after the action.
    """
    for step in range(MAX_STEPS):
        action, rival = make()
        if not _run(action, rival, step):
            rival()
            yield step
            return
        yield step
    raise AssertionError(f"a function of more than {MAX_STEPS} steps")


def _run(action: Callable[[], Any], rival: Callable[[], Any], step: int) -> bool:
    """Whether there was such a step."""
    left = step

    def look(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == -1:
                rival()
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        action()
    finally:
        sys.settrace(before)
    return left < 0
