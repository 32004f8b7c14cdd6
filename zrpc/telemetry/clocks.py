"""The clocks of several workers, brought to one: how far each is ahead, from the times of messages between them.

One rule: no message is received before it was sent. Every message gives a bound by that; nothing else is assumed.

A message sent at s on the clock of one worker and received at r on another's says that the second clock is ahead of the
first by at most r - s. These bounds are differences between two unknowns each, so the tightest ones that follow from all
of them are shortest paths (Cormen et al., Introduction to Algorithms, "Difference constraints and shortest paths"). Taking
every offset at its upper bound satisfies all of them, taking every one at its lower bound does too, and so does the middle
of the two, which is what is used; half of the difference is its error. (Cristian's algorithm, and NTP's offset and delay,
are the case of two clocks.)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


@dataclass(frozen=True)
class Offset:
    """How many ns a clock is ahead of the reference, give or take `error_ns` (infinite: no message says)."""

    ahead_ns: float
    error_ns: float


class ClockBounds(Generic[W]):
    """Collects what messages say about the clocks of workers `W`."""

    def __init__(self) -> None:
        self._most: dict[tuple[W, W], float] = {}

    def message(self, sender: W, sent_ns: float, receiver: W, received_ns: float) -> None:
        """A message went from one worker to another, at these times on the clock of each."""
        if sender != receiver:
            key = (sender, receiver)
            self._most[key] = min(self._most.get(key, math.inf), received_ns - sent_ns)

    def round_trip(self, asker: W, asked_ns: float, answerer: W, answered_ns: float, back_ns: float) -> None:
        """A question and its answer; the answerer looked at its clock once."""
        self.message(asker, asked_ns, answerer, answered_ns)
        self.message(answerer, answered_ns, asker, back_ns)

    def solve(self, reference: W, workers: Iterable[W]) -> Mapping[W, Offset] | None:
        """The offset of each worker's clock; None when the bounds contradict one another, because a clock drifted."""
        names = {reference, *workers, *(name for pair in self._most for name in pair)}
        upper = self._shortest(reference, names, self._most)
        lower = self._shortest(reference, names, {(b, a): most for (a, b), most in self._most.items()})
        if upper is None or lower is None:
            return None
        found = {}
        for name in names:
            high, low = upper[name], -lower[name]
            if math.isinf(high) or math.isinf(low):
                known = 0.0 if math.isinf(high) and math.isinf(low) else high if math.isinf(low) else low
                found[name] = Offset(known, math.inf)
            else:
                found[name] = Offset((high + low) / 2, (high - low) / 2)
        return found

    @staticmethod
    def _shortest(start: W, names: Iterable[W], edges: Mapping[tuple[W, W], float]) -> dict[W, float] | None:
        """Bellman and Ford's shortest paths; None when there is a circle of negative length."""
        far = dict.fromkeys(names, math.inf)
        far[start] = 0.0
        for _ in range(len(far)):
            is_changed = False
            for (a, b), length in edges.items():
                if far[a] + length < far[b]:
                    far[b] = far[a] + length
                    is_changed = True
            if not is_changed:
                return far
        return None
