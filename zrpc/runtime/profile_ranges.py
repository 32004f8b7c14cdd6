"""Profiles of all that a worker runs for others, as long as somebody wants them.

One rule: without a range a call pays for a look at an empty list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zrpc.runtime.profiling import Recording, is_asked
from zrpc.wire.envelope import Envelope, Extra


class ProfileRange:
    """From when on, and until when, the functions of calls are recorded. It is on while it is in its callee's list."""

    def __init__(self) -> None:
        self.found: list[list[Any]] = []
        """For each function that has ended in it, the events of torch's profiler."""


def run_in_ranges(
    ranges: Sequence[ProfileRange],
    request: Envelope,
    arrived_ns: int,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run a function, and give what was recorded to the ranges that are on at its end, and to its caller if it asked."""
    recording = Recording(arrived_ns)
    if is_asked(request):
        assert request.extra is not None
        request.extra[Extra.PROFILE] = recording
    try:
        return recording.run(func, args, kwargs)
    finally:
        for found in tuple(ranges):
            found.found.append(recording.seen)
