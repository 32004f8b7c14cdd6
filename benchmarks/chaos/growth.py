"""How the memory of processes grows with their age, seen from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from benchmarks.chaos.memory import resident, slope

INTERVAL = 5.0
"""Seconds between two looks."""
WARM = 60.0
"""Seconds of its life after which a process has what it needs."""


class Growth:
    """Resident memory of processes that come and go."""

    def __init__(self) -> None:
        self._lives: dict[int, list[tuple[float, float]]] = {}
        self._next = 0.0

    def look(self, pids: Mapping[str, int], now: float) -> None:
        """Look at these processes, if it is time."""
        if now < self._next:
            return
        self._next = now + INTERVAL
        for pid in pids.values():
            with contextlib.suppress(OSError):
                self._lives.setdefault(pid, []).append((now, resident(pid)["resident"] / 2**20))

    def summary(self) -> dict[str, float]:
        """MiB that the longest lives grew by since they were warm, and the median of all slopes, in MiB a minute."""
        late = [[point for point in life if point[0] >= life[0][0] + WARM] for life in self._lives.values()]
        late = [points for points in late if len(points) >= 6]
        if not late:
            return {"lives": 0}
        longest = max(late, key=len)
        slopes = sorted(slope(points) * 60 for points in late)
        return {
            "lives": len(late),
            "median MiB a minute": round(slopes[len(slopes) // 2], 1),
            "longest life, seconds": round(longest[-1][0] - longest[0][0] + WARM),
            "longest life, from MiB": round(longest[0][1]),
            "longest life, to MiB": round(longest[-1][1]),
        }
