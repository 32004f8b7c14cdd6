"""Where a reference was made, for the day on which it turns out to be left over.

One rule: taking a site costs about a microsecond; it becomes text only when somebody asks for it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from zrpc.ids import ForkId, RRefId, WorkerInfo

_PASSED_OVER = ("threading", "concurrent.futures.thread")
"""Modules below which a thread of the pool has nothing of the user's."""


class Site:
    """What made a reference, and the line of the program where it did; the calls that led there too, if asked for.

    `worker_id` is of whoever had a hand in it: its name follows `what`, and `function` that.
    """

    __slots__ = ("_code", "_line", "_stack", "function", "what", "worker_id")

    def __init__(
        self, what: str, frame: FrameType | None = None, keeps_stack: bool = False, worker_id: int | None = None
    ) -> None:
        self.what = what
        self.worker_id = worker_id
        self.function = ""
        self._code: CodeType | None = None if frame is None else frame.f_code
        self._line = 0 if frame is None else frame.f_lineno
        self._stack = traceback.extract_stack(frame) if keeps_stack and frame is not None else None

    def describe(self, info_of: Callable[[int], WorkerInfo]) -> str:
        """The site as text. `info_of` knows workers by their ids; now it may know more than when this was made."""
        text = self.what
        if self.worker_id is not None:
            text += f" {info_of(self.worker_id).name!r}"
        if self.function:
            text += f" in a call of {self.function}"
        if self._code is None:
            return text
        text += f" at {self._code.co_filename}:{self._line} in {self._code.co_name}"
        if self._stack is None:
            return text
        return text + "\n" + "".join(self._stack.format()).rstrip()


def made_here(what: str, keeps_stack: bool = False, worker_id: int | None = None) -> Site:
    """The site of what this thread does now: the innermost line that is not zrpc's own, if there is one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in _PASSED_OVER:
            frame = None
        elif module == "zrpc" or module.startswith("zrpc."):
            frame = frame.f_back
        else:
            break
    return Site(what, frame, keeps_stack, worker_id)


def name_of(func: Any) -> str:
    """A short name of something that can be called."""
    if isinstance(func, str):
        return func
    qualified = str(getattr(func, "name", None) or getattr(func, "__qualname__", None) or type(func).__name__)
    return qualified.removeprefix("_VariableFunctionsClass.")  # where torch keeps its operators


@dataclass(frozen=True, slots=True)
class Leftover:
    """A reference that is still held although its holder, or its owner, ends. `who` is the other one of the two, `site`
    says where the reference, or its value, was made."""

    rref_id: RRefId
    fork_id: ForkId
    who: WorkerInfo
    site: str
