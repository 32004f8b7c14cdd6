"""What a simulated history is made of: its size, its faults, its length. All of it follows from the seed.

One rule: a seed means the same history on every machine. Whoever changes what is drawn here changes what seeds mean, and
loses nothing by it but old bug reports.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from zrpc.protocol.membership import SMALL

LARGE_EVERY = 50
"""One history of so many has up to 50 workers; most bugs need few, and few are quick."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sizes are counts, times are seconds of the simulated clock, rates are probabilities of one message."""

    seed: int
    workers: int
    actions: int
    span: float
    """The actions are spread over this time."""
    latency: float
    """A message takes up to this long."""
    drop: float
    repeat: float
    shuffle: bool
    """Whether messages overtake one another."""
    unruly_broker: bool
    """Whether the faults are also on the way to and from the broker, where there is a connection that keeps order."""
    deaths: bool
    freezes: bool
    cuts: bool
    broker_restarts: bool
    standby: bool
    """Whether there is a standby broker beside the first one, and both are mistreated."""

    @property
    def small(self) -> int:
        """Members up to which the broker packs everybody anew for each change. In every other history even a few are many
        to it, and newcomers are told everybody as of a while ago, and what has changed since."""
        return 0 if self.seed % 2 else SMALL

    @classmethod
    def of(cls, seed: int) -> Schedule:
        """The history of a seed."""
        chance = random.Random(f"schedule {seed}")
        is_large = seed % LARGE_EVERY == LARGE_EVERY - 1
        workers = chance.randint(20, 50) if is_large else chance.choice((2, 3, 3, 4, 4, 5, 6, 8))
        is_lossy = chance.random() < 0.6
        return cls(
            seed=seed,
            workers=workers,
            actions=workers * chance.randint(4, 12),
            span=chance.uniform(2.0, 8.0),
            latency=chance.choice((0.002, 0.05, 0.3)),
            drop=chance.choice((0.05, 0.3)) if is_lossy else 0.0,
            repeat=chance.choice((0.05, 0.3)) if chance.random() < 0.6 else 0.0,
            shuffle=chance.random() < 0.5,
            unruly_broker=chance.random() < 0.3,
            deaths=chance.random() < 0.6,
            freezes=chance.random() < 0.4,
            cuts=chance.random() < 0.4,
            broker_restarts=chance.random() < 0.4,
            standby=chance.random() < 0.4,
        )
