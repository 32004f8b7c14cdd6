"""Counters of one agent.

One rule: counting is a few additions under one lock; whoever reads gets a frozen copy.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class CallCounts:
    """Calls and their bytes since the agent started. Bytes are those of envelopes: headers, bodies and buffers."""

    calls_made: int = 0
    calls_served: int = 0
    calls_failed: int = 0
    calls_dropped: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class CallMeter:
    """Adds up `CallCounts`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = self._served = self._failed = self._dropped = self._in = self._out = 0

    def made(self, size: int, calls: int = 1) -> None:
        """A message of `size` bytes was sent, which is a call, or (`calls=0`) is not."""
        with self._lock:
            self._made += calls
            self._out += size

    def answered(self, size: int) -> None:
        """A reply of `size` bytes came back."""
        with self._lock:
            self._in += size

    def served(self, size_in: int, size_out: int, failed: bool) -> None:
        """A call of another worker's was answered."""
        with self._lock:
            self._served += 1
            self._failed += failed
            self._in += size_in
            self._out += size_out

    def dropped(self) -> None:
        """A call was not started, because its deadline had passed or it had come before."""
        with self._lock:
            self._dropped += 1

    def counts(self) -> CallCounts:
        with self._lock:
            return CallCounts(self._made, self._served, self._failed, self._dropped, self._in, self._out)
