"""Calls in torch's profilers: on the caller an event for each call, on the callee a profile of the function that it runs.

One rule: nothing here runs unless a profiler is on in the calling thread, which `is_profiling` tells.

A call under a profiler leaves two events in it: one named by torch's key, `rpc_sync#name(caller -> callee)`, which lasts
as long as the call, and at its beginning a mark with the call's number. (In a Kineto profile it ends when the call is
sent, and is made longer afterwards: to end an event of such a profile from another thread when the profile is over crashes
torch.) The callee, asked by a key in the header, records what the function does with torch's thread-local profiler, and
sends the events along with the reply. When the caller's profile has ended, `zrpc.profiler` finds the marks in it, takes
them out, and puts the callee's events in.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import torch
from torch.autograd import profiler, profiler_legacy

from zrpc.clock import monotonic_ns
from zrpc.errors import FrameError, ZrpcError
from zrpc.runtime.callables import Target
from zrpc.runtime.methods import invoke, type_of
from zrpc.telemetry.profile_events import (
    MARK,
    ProfileEvent,
    RemoteProfile,
    find_keys,
    find_marks,
    place,
    read_profile,
    write_profile,
)
from zrpc.wire.envelope import Codec, Envelope, Extra

logger = logging.getLogger(__name__)

is_profiling: Final[Callable[[], bool]] = torch._C._autograd._profiler_enabled
"""Whether a profiler records this thread. About 50 ns."""

_parse: Final[Callable[[Any], list[Any]]] = profiler_legacy._parse_legacy_records

Completion = Callable[[Any, BaseException | None], None]
"""Takes a call's value, or its error."""

MAX_CALLS: Final = 16_384
"""Calls whose events are kept until their profile is looked at; the oldest go first."""
MAX_KEPT: Final = 1024
"""Recordings of remote values that wait to be asked for."""
NAMES: Final[Mapping[Any, str]] = {type_of: "_rref_typeof_on_owner"}
"""What torch calls functions that have another name here."""


class ProfiledCall:
    """One call in the caller's profile. A context manager around sending it; `finish` ends its event."""

    def __init__(self, key: str, here: int, there: int, rref: tuple[int, ...] | None = None) -> None:
        self.key = key
        self.rref = rref or ()
        self.here = here
        self.there = there
        self.began_ns = monotonic_ns()
        self.ended_ns: int | None = None
        self.profile: RemoteProfile | None = None
        self._trigger: torch.futures.Future[None] = torch.futures.Future()
        self.future: torch.futures.Future[None] = self._trigger
        """Done when the event has ended."""
        self._block = profiler.record_function(key)

    def __enter__(self) -> ProfiledCall:
        self._block.__enter__()  # type: ignore[no-untyped-call]
        with profiler.record_function(f"{MARK}{book.add(self)}"):
            self.began_ns = monotonic_ns()
        if torch._C._autograd._profiler_type() == torch._C._profiler.ActiveProfilerType.LEGACY:
            self.future = self._block._call_end_callbacks_on_future(self._trigger)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, traceback)
        if error is not None:
            self.finish()

    def take(self, reply: Envelope) -> None:
        """Take the callee's events out of a reply."""
        index = None if reply.extra is None else reply.extra.get(Extra.PROFILE)
        if type(index) is not int or not 0 <= index < len(reply.buffers):
            return
        try:
            self.profile = read_profile(reply.buffers[index])
        except FrameError as error:
            logger.warning("the callee's events in %s cannot be read: %s", self.key, error)
        reply.buffers = [buffer for i, buffer in enumerate(reply.buffers) if i != index]

    def finish(self) -> None:
        """The call has ended."""
        if self.ended_ns is None:
            self.ended_ns = monotonic_ns()
            self._trigger.set_result(None)  # ends the event, in the profiler of the thread that made the call

    def finishing(self, done: Completion) -> Completion:
        """`done`, which ends the event first: who waits for the call finds it in the profile."""

        def finish(value: Any, error: BaseException | None) -> None:
            self.finish()
            done(value, error)

        return finish

    def following(self, done: Completion, fetch: Callable[..., object], timeout: float) -> Completion:
        """As `finishing`, for a call that makes a remote value: its acceptance says nothing yet.

        Its owner is asked, by `fetch(numbers, timeout, done, extra, profiled)`, for the events when the value is there.
        """

        def finish(_value: Any, _error: BaseException | None) -> None:
            self.finish()

        def ask(value: Any, error: BaseException | None) -> None:
            done(value, error)
            extra: dict[int, Any] = {Extra.TOUCH: True, Extra.PROFILE: True}
            try:
                if error is None:
                    fetch((*self.rref[:4], 0, 0, 0, 0), timeout, finish, extra, self)
            except ZrpcError as failure:
                error = failure
            if error is not None:
                self.finish()

        return ask

    @property
    def is_waited_for(self) -> bool:
        """Whether the thread that made the call did nothing until its end."""
        return self.key.startswith(("rpc_sync#", "rpc_async_jit#"))

    def remote_events(self, at_us: float) -> list[ProfileEvent]:
        """The callee's events in a profile in which the call began `at_us`; none before the call has ended."""
        if self.profile is None or self.ended_ns is None:
            return []
        return place(self.profile, self.key, self.there, at_us, at_us + self.duration_us)

    @property
    def duration_us(self) -> float:
        """How long the call has lasted."""
        return ((self.ended_ns or monotonic_ns()) - self.began_ns) / 1e3


class ProfileBook:
    """The calls of this process that profiles may ask for, by number. Torch's profilers are the process's, so it is too."""

    def __init__(self, limit: int = MAX_CALLS) -> None:
        self._limit = limit
        self._numbers = itertools.count(1)
        self._calls: dict[int, ProfiledCall] = {}

    def add(self, call: ProfiledCall) -> int:
        """Keep a call; returns its number."""
        number = next(self._numbers)
        self._calls[number] = call
        self._calls.pop(number - self._limit, None)
        return number

    def get(self, number: int) -> ProfiledCall | None:
        """The call of that number, while it is kept."""
        return self._calls.get(number)

    def find_maker(self, rref_id: tuple[int, ...]) -> ProfiledCall | None:
        """The call that made a remote value, if it was made under a profiler."""
        return next((call for call in reversed(self._calls.values()) if call.rref[:2] == rref_id), None)

    def __len__(self) -> int:
        return len(self._calls)


book: Final = ProfileBook()


def profile_key(mode: str, func: Any, target: Target, args: Sequence[Any], here: str, there: str) -> str:
    """Torch's name for a call in a profile: a script's or an operator's qualified name, a Python function's `__qualname__`.

    A method of a remote value is named as it is there.
    """
    name: str = target.name
    if func is invoke:
        name = args[1]
    elif target.codec is Codec.PYTHON and not isinstance(func, str):
        name = NAMES.get(func) or getattr(func, "__qualname__", None) or name.partition(":")[2]
    return f"rpc_{mode}#{name}({here} -> {there})"


# ------------------------------------------------------------------------------------------- the callee


class Recording:
    """What torch's profiler sees of one function. It stands in the request's header until the reply is written."""

    def __init__(self, arrived_ns: int) -> None:
        self._arrived_ns = arrived_ns
        self._began_us = 0.0
        self.seen: list[Any] = []
        """What torch's profiler recorded, as it tells it."""

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the function, recording. Without, if a profiler of its own is on in this thread."""
        try:
            torch._C._autograd._enable_profiler_legacy(_config())
        except RuntimeError:
            return func(*args, **kwargs)
        self._began_us = (monotonic_ns() - self._arrived_ns) / 1e3
        try:
            return func(*args, **kwargs)
        finally:
            with contextlib.suppress(RuntimeError, AssertionError):  # the function may have ended the profiler itself
                self.seen = _parse(torch._C._autograd._disable_profiler_legacy())

    def events(self) -> list[ProfileEvent]:
        """What was seen, with the events of the calls that the function made, as far as they have ended."""
        began = self._began_us
        own = [
            ProfileEvent(
                name=event.name,
                start_us=event.time_range.start + began,
                end_us=event.time_range.end + began,
                thread=event.thread,
                scope=event.scope,
                shapes=tuple(tuple(size for size in shape) for shape in event.input_shapes or ()),
                memory=event.cpu_memory_usage,
                is_async=event.is_async,
            )
            for event in self.seen
        ]
        return expand(own)

    def write(self) -> bytes:
        """What goes with the reply."""
        return write_profile((monotonic_ns() - self._arrived_ns) / 1e3, self.events())


def expand(own: list[ProfileEvent]) -> list[ProfileEvent]:
    """Some events with the calls that are marked among them: their own events, if they are missing, and their callees'."""
    spans = [(event.name, event.start_us, event.thread) for event in own]
    marks = [(mark, call) for mark in find_marks(spans) if (call := book.get(mark.number)) is not None]
    keys = find_keys(spans, [(mark, call.key) for mark, call in marks])
    found = [event for event in own if not event.name.startswith(MARK)]
    for mark, call in marks:
        if mark.number not in keys and call.ended_ns is not None:
            end = mark.at_us + call.duration_us
            found.append(ProfileEvent(call.key, mark.at_us, end, mark.thread, is_async=True))
        found += call.remote_events(mark.at_us)
    return found


def _config() -> Any:
    """Shapes and memory are recorded always; the caller's profile shows of them what it was told to."""
    return torch._C._profiler.ProfilerConfig(
        torch._C._profiler.ProfilerState.CPU, True, True, False, False, False, torch._C._profiler._ExperimentalConfig()
    )


class Recordings:
    """What was recorded of making values, until those who had them made ask for it. Safe to use from any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], Recording] = OrderedDict()

    def keep(self, request: Envelope) -> None:
        """The function of a remote call has ended."""
        recording = None if request.extra is None else request.extra.get(Extra.PROFILE)
        if isinstance(recording, Recording) and request.rref is not None:
            self._kept[request.rref[:2]] = recording
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def give(self, request: Envelope) -> None:
        """Have the reply to a fetch carry what was recorded of making the value."""
        if request.extra is not None and request.rref is not None:
            request.extra[Extra.PROFILE] = self._kept.pop(request.rref[:2], None)


def is_asked(request: Envelope) -> bool:
    """Whether the caller wants the function's events."""
    return request.extra is not None and Extra.PROFILE in request.extra


def run_recorded(
    request: Envelope, arrived_ns: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run a function whose caller wants its events."""
    assert request.extra is not None
    recording = request.extra[Extra.PROFILE] = Recording(arrived_ns)
    return recording.run(func, args, kwargs)


def attach_profile(request: Envelope, reply: Envelope) -> None:
    """Put what was recorded for a request into its reply."""
    recording = None if request.extra is None else request.extra.get(Extra.PROFILE)
    if isinstance(recording, Recording):
        reply.buffers = [*reply.buffers, recording.write()]
        reply.extra = {**(reply.extra or {}), Extra.PROFILE: len(reply.buffers) - 1}
