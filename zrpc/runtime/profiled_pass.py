"""Backward passes in torch's profilers.

One rule: a pass is in the profile of the thread that called `backward`, with what this worker did for it on other threads:
the gradients that came back from others, and torch's engine from there on. What other workers did is not in it, as in
torch's RPC.

The names are those of torch's own events: the pass, `RecvRpcBackward` where gradients leave for the worker that tensors
came from, and `SendRpcBackward` where they come back for tensors that had left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from torch.autograd import profiler

from zrpc.clock import monotonic_ns
from zrpc.runtime.profiling import ProfiledCall, Recording, book, is_profiling
from zrpc.telemetry.profile_events import MARK, ProfileEvent

PASS_NAME: Final = "torch::distributed::autograd::backward"


class ProfiledPass(ProfiledCall):
    """One backward pass in a profile. A context manager around all of it, in the thread that waits for it.

    It is found in the profile as calls are, and its other threads' events are added to that as callees' are.
    """

    def __init__(self, here: int) -> None:
        super().__init__(PASS_NAME, here, here)
        self._found: list[ProfileEvent] = []

    def __enter__(self) -> ProfiledPass:
        self._block.__enter__()  # type: ignore[no-untyped-call]
        with profiler.record_function(f"{MARK}{book.add(self)}"):
            self.began_ns = monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended_ns = monotonic_ns()
        self._block.__exit__(kind, error, traceback)

    def record(self, function: Callable[..., Any], *args: Any) -> None:
        """Call what does a part of the pass on another thread. Safe to use from several at once."""
        recording = Recording(self.began_ns)
        try:
            recording.run(function, args, {})
        finally:
            self._found += recording.events()

    @property
    def is_waited_for(self) -> bool:
        return True

    def remote_events(self, at_us: float) -> list[ProfileEvent]:
        """The other threads' events in a profile in which the pass began `at_us`."""
        until = at_us + self.duration_us
        return [
            replace(
                event,
                node_id=self.here if event.node_id == -1 else event.node_id,
                start_us=min(at_us + event.start_us, until),
                end_us=min(at_us + event.end_us, until),
            )
            for event in self._found
        ]


def named(name: str) -> AbstractContextManager[Any]:
    """A block of that name in the profile of this thread, if there is one."""
    return profiler.record_function(name) if is_profiling() else contextlib.nullcontext()
