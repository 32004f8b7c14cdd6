"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts of calls, and seconds where it says so."""

    rounds: int
    warmup: int
    sync_calls: int
    outstanding: int
    remote_calls: int
    passes: int
    """Backward passes, of each graph."""
    idle_seconds: float
    startups: int
    """Rounds of the workload that starts whole clusters."""
    echo_sizes: tuple[int, ...] = (1, 16, 64, 256)
    """MiB."""
    echo_calls: int = 15
    odd_calls: int = 5
    odd_part: int = 1
    """The odd messages are so many times smaller."""


FULL = Scale(
    rounds=5,
    warmup=200,
    sync_calls=2000,
    outstanding=5000,
    remote_calls=500,
    passes=50,
    idle_seconds=2.0,
    startups=5,
)
QUICK = Scale(
    rounds=2,
    warmup=100,
    sync_calls=500,
    outstanding=5000,
    remote_calls=200,
    passes=20,
    idle_seconds=1.0,
    startups=1,
    echo_sizes=(1, 16, 64),
    echo_calls=7,
    odd_calls=3,
)
TINY = Scale(
    rounds=1,
    warmup=2,
    sync_calls=10,
    outstanding=20,
    remote_calls=5,
    passes=2,
    idle_seconds=0.05,
    startups=1,
    echo_sizes=(1,),
    echo_calls=2,
    odd_calls=1,
    odd_part=100,
)
