"""Torch's profilers, taught to show what callees did.

One rule: a profile without calls in it is not touched.

Torch has no way to add events to a profile. So the two places where a profile becomes a list of events, and the one where
it becomes a file, are wrapped here: `torch.autograd.profiler_legacy.profile`, which torch's RPC is profiled with, and
`torch.autograd.profiler.profile`, which `torch.profiler.profile` is made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.autograd import profiler, profiler_legacy
from torch.autograd.profiler_util import EventList, FunctionEvent

from zrpc.runtime.profiling import ProfiledCall, book
from zrpc.telemetry.profile_events import MARK, MEMORY, REMOTE, Mark, ProfileEvent, find_keys, find_marks

Hook = Callable[..., Any]

THREADS = 1_000_000
"""A remote thread's number in a profile is its own plus this, times one more than its worker's id: no two share one."""

_legacy_exit: Hook = profiler_legacy.profile.__exit__
_parse: Hook = profiler.profile._parse_kineto_results
_export: Hook = profiler.profile.export_chrome_trace


def teach_profilers() -> None:
    """Have torch's profilers show callees' events. More than once does nothing more."""
    profiler_legacy.profile.__exit__ = _exit_legacy  # type: ignore[method-assign]
    profiler.profile._parse_kineto_results = _parse_kineto  # type: ignore[method-assign]
    profiler.profile.export_chrome_trace = _export_kineto  # type: ignore[method-assign]


def merge(events: Sequence[Any], with_shapes: bool, with_memory: bool) -> list[Any] | None:
    """A profile's events with those of callees, without the marks; None if no call is in it.

    Events of this process get the id of its worker as their node, as torch's RPC gives it.
    """
    spans = [(event.name, event.time_range.start, event.thread) for event in events]
    calls = [(mark, call) for mark in find_marks(spans) if (call := book.get(mark.number)) is not None]
    if not calls:
        return None
    here = calls[0][1].here
    keys = find_keys(spans, [(mark, call.key) for mark, call in calls])
    _lengthen(events, keys, calls)
    merged = [event for event in events if not event.name.startswith(MARK)]
    for event in merged:
        if event.node_id == -1:
            event.node_id = here
    serial = max((event.id for event in events), default=0)
    for found in _remote_events(keys, calls):
        if not with_memory and found.name.endswith(MEMORY):
            continue
        serial += 1
        merged.append(_function_event(serial, found, here, with_shapes, with_memory))
    merged.sort(key=lambda event: (event.time_range.start, -event.time_range.end))
    return merged


def _lengthen(events: Sequence[Any], keys: Mapping[int, int], calls: Sequence[tuple[Mark, ProfiledCall]]) -> None:
    """Have the calls' own events last until their ends. The profiler has done it already, if it is the legacy one."""
    for mark, call in calls:
        if mark.number in keys and call.ended_ns is not None:
            event = events[keys[mark.number]]
            end = mark.at_us + call.duration_us
            if end > event.time_range.end and not event.is_async:
                event.time_range.end = end
                event.is_async = True


def _remote_events(keys: Mapping[int, int], calls: Sequence[tuple[Mark, ProfiledCall]]) -> Iterator[ProfileEvent]:
    """What is to be added to a profile: callees' events, of calls whose own events are there."""
    for mark, call in calls:
        if mark.number in keys:
            yield from call.remote_events(mark.at_us)


def _function_event(serial: int, event: ProfileEvent, here: int, with_shapes: bool, with_memory: bool) -> Any:
    made = FunctionEvent(  # type: ignore[no-untyped-call]
        id=serial,
        name=event.name,
        trace_name=event.name,
        thread=event.thread + THREADS * (event.node_id + 1),
        start_us=event.start_us,
        end_us=event.end_us,
        input_shapes=[list(shape) for shape in event.shapes] if with_shapes else [],
        stack=[],
        scope=event.scope,
        cpu_memory_usage=event.memory if with_memory else 0,
        is_async=event.is_async,
        is_remote=event.node_id != here or REMOTE in event.name,
        node_id=event.node_id,
        is_legacy=True,
    )
    made.fwd_thread = -1  # torch demands one of events of backward passes, to find a stack by; there is none here
    return made


# --------------------------------------------------------------------------------------- torch's hooks


def _exit_legacy(self: Any, kind: Any, error: Any, traceback: Any) -> Any:
    result = _legacy_exit(self, kind, error, traceback)
    if self.enabled:
        merged = merge(self.function_events, self.record_shapes, self.profile_memory)
        if merged is not None:
            for event in merged:  # they are put into a tree anew
                event.cpu_parent = None
                event.cpu_children = []
            device = "cuda" if self.use_cuda else None
            self.function_events = EventList(  # type: ignore[no-untyped-call]
                merged, use_device=device, profile_memory=self.profile_memory, with_flops=self.with_flops
            )
            self.function_events._build_tree()
    return result


def _parse_kineto(self: Any, *args: Any, **kwargs: Any) -> Any:
    events = _parse(self, *args, **kwargs)
    merged = merge(events, self.record_shapes, self.profile_memory)
    return events if merged is None else merged


def _export_kineto(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    result = _export(self, path, *args, **kwargs)
    if len(book):
        add_to_file(path)
    return result


def add_to_file(path: str) -> None:
    """Put callees' events into a Chrome trace that torch has written, each worker as a process of its own."""
    with open(path, encoding="utf-8") as file:
        trace = json.load(file)
    events = trace.get("traceEvents") if isinstance(trace, dict) else None
    if not events:
        return
    complete = [event for event in events if event.get("ph") == "X"]
    spans = [(event["name"], float(event["ts"]), event.get("tid")) for event in complete]
    calls = [(mark, call) for mark in find_marks(spans) if (call := book.get(mark.number)) is not None]
    if not calls:
        return
    keys = find_keys(spans, [(mark, call.key) for mark, call in calls])
    for mark, call in calls:
        if mark.number in keys and call.ended_ns is not None:
            _lengthen_in_file(events, complete[keys[mark.number]], mark, call)
    added = list(_remote_events(keys, calls))
    for node in sorted({event.node_id for event in added}):
        events.append({"ph": "M", "name": "process_name", "pid": _pid(node), "args": {"name": f"worker {node}"}})
    for event in added:
        events.append(
            {
                "ph": "X",
                "cat": "remote_op",
                "name": event.name,
                "pid": _pid(event.node_id),
                "tid": event.thread,
                "ts": event.start_us,
                "dur": event.end_us - event.start_us,
            }
        )
    trace["traceEvents"] = [event for event in events if not str(event.get("name")).startswith(MARK)]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(trace, file)


def _lengthen_in_file(events: list[Any], event: dict[str, Any], mark: Mark, call: ProfiledCall) -> None:
    """A thread that waited for its call did nothing else; one that did not gets an asynchronous event beside it."""
    if call.is_waited_for:
        event["dur"] = mark.at_us + call.duration_us - float(event["ts"])
    else:
        common = {**{key: event[key] for key in ("name", "pid", "tid")}, "cat": "call", "id": f"zrpc {mark.number}"}
        events.append({**common, "ph": "b", "ts": event["ts"]})
        events.append({**common, "ph": "e", "ts": mark.at_us + call.duration_us})


def _pid(node: int) -> str:
    return f"worker {node}"
