"""A profile of a worker, taken on the worker: `torch.distributed.rpc._server_process_global_profile`.

One rule: it is torch's class but for where its events come from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch.autograd import profiler_legacy
from torch.autograd.profiler_util import EventList

from zrpc.runtime.agent import Agent
from zrpc.runtime.context import current_agent
from zrpc.runtime.profile_ranges import ProfileRange
from zrpc.telemetry.profile_events import MEMORY


class _server_process_global_profile(profiler_legacy.profile):  # noqa: N801  torch's name
    """A context manager that records, on all threads, what the functions of calls to this worker do.

    Made on a worker by `remote`, it is entered and left there through the reference. One may begin and end within another:
    both have what ran in both. Arguments are those of `torch.autograd.profiler.profile`; `use_cuda` has no effect.

    Afterwards `function_events` has all events, and `process_global_function_events` a list for each function that ended
    within. Raises `NotInitialized` without an agent, `RuntimeError` when it is entered a second time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.function_events: Any = None
        self.process_global_function_events: list[list[Any]] = []
        self._range = ProfileRange()

    def __enter__(self) -> Any:
        if not self.enabled:
            return None
        if self.entered:
            raise RuntimeError("autograd profiler traces are not reentrant")
        agent = current_agent("_server_process_global_profile")
        self.entered = True
        agent.callee.profile_ranges.append(self._range)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        if not self.enabled:
            return None
        _end(current_agent("_server_process_global_profile"), self._range)
        each = [self._told(events) for events in self._range.found]
        self.process_global_function_events = each
        self.function_events = EventList(  # type: ignore[no-untyped-call]
            [event for events in each for event in events], use_device=None, profile_memory=self.profile_memory
        )
        self.function_events._build_tree()
        return False

    def _told(self, events: Iterable[Any]) -> list[Any]:
        """One function's events, copies with what was asked for, in order."""
        found = []
        for event in map(copy.copy, events):
            if event.name == MEMORY and not self.profile_memory:
                continue
            event.cpu_parent, event.cpu_children = None, []
            if not self.record_shapes:
                event.input_shapes = []
            if not self.profile_memory:
                event.cpu_memory_usage = 0
            found.append(event)
        return sorted(found, key=lambda event: (event.time_range.start, -event.time_range.end))


def _end(agent: Agent, ended: ProfileRange) -> None:
    agent.callee.profile_ranges[:] = [one for one in agent.callee.profile_ranges if one is not ended]
