"""Take-overs as they were seen: when a broker was lost, and how long a newcomer waited until it was let in.

One rule: only what nothing else disturbed meanwhile is held against the promised time; all is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PROMISED = 5.0
"""Seconds within which a standby that is ready has let a newcomer in."""
MOST = 60.0
"""Seconds after which a cluster that lets nobody in has broken its promise, whatever else happened to it."""


@dataclass(slots=True)
class Outage:
    """A broker in charge was lost at `began`. `is_ready`: there was a standby that could take over."""

    what: str
    name: str
    began: float
    is_ready: bool
    blows: int = 0
    """Faults of workers meanwhile."""
    is_disturbed: bool = False
    took_over: float | None = None
    newcomer: float | None = None
    """Seconds, since it began."""

    @property
    def is_open(self) -> bool:
        return self.newcomer is None

    @property
    def is_clean(self) -> bool:
        return self.is_ready and not self.is_disturbed and self.took_over is not None


class Outages:
    """All of one run."""

    def __init__(self, workers: int, complain: Callable[[str], None]) -> None:
        self._workers = workers
        self._complain = complain
        self._all: dict[str, Outage] = {}

    def begin(self, what: str, name: str, now: float, is_ready: bool, away: int) -> None:
        """A broker in charge was lost, while `away` workers were away; the newcomer of that name tries to join."""
        self._all[name] = Outage(what, name, now, is_ready, away)

    def note_blow(self) -> None:
        """Something has happened to a worker: enough of them, and there is no majority that could say what it lost."""
        for outage in self._open():
            outage.blows += 1
            outage.is_disturbed |= 2 * outage.blows >= self._workers

    def disturb(self) -> None:
        """Something else has happened to a broker."""
        for outage in self._open():
            outage.is_disturbed = True

    def note_take_over(self, at: float) -> None:
        for outage in self._open():
            if outage.took_over is None and at >= outage.began:
                outage.took_over = at - outage.began

    def note_answer(self, message: dict[str, Any]) -> None:
        """The newcomer was let in, or has given up."""
        outage = self._all[message["probe"]]
        if "failed" in message:
            outage.newcomer = message["at"] - outage.began
            self._complain(f"{outage.what}: nobody was let in for {outage.newcomer:.1f} s: {message['failed']}")
            return
        outage.newcomer = message["began"] + message["seconds"] - outage.began
        if outage.newcomer > MOST:
            self._complain(f"{outage.what}: nobody was let in for {outage.newcomer:.1f} s")

    def _open(self) -> list[Outage]:
        return [outage for outage in self._all.values() if outage.is_open]

    def is_calm(self) -> bool:
        return not self._open()

    def summary(self) -> dict[str, Any]:
        """Seconds until a take-over, and until a newcomer was in, by what had happened."""
        clean = [outage for outage in self._all.values() if outage.is_clean]
        others = [outage for outage in self._all.values() if not outage.is_clean and not outage.is_open]
        found: dict[str, Any] = {
            "outages": dict(Counter(outage.what for outage in self._all.values())),
            "take-overs": sum(outage.took_over is not None for outage in self._all.values()),
            "undisturbed": len(clean),
            "of these over 5 s": sum((outage.newcomer or 0.0) > PROMISED for outage in clean),
        }
        for what in sorted({outage.what for outage in clean}):
            mine = [outage for outage in clean if outage.what == what]
            found[f"{what}: taken over after, s"] = _spread([outage.took_over or 0.0 for outage in mine])
            found[f"{what}: a newcomer was in after, s"] = _spread([outage.newcomer or 0.0 for outage in mine])
        found["others: a newcomer was in after, s"] = _spread([outage.newcomer or 0.0 for outage in others])
        return found


def _spread(seconds: list[float]) -> str:
    """The middle and the largest."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"median {ordered[len(ordered) // 2]:.1f}, most {ordered[-1]:.1f}, of {len(ordered)}"
