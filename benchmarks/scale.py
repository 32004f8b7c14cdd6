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
    launches: int
    """Rounds of the workload that starts whole clusters by their launchers."""
    huge_rounds: int
    """Rounds of the workload that sends gigabytes."""
    seconds: float = 570.0
    """For all rounds; on a machine that is busy there are fewer of them."""
    echo_sizes: tuple[int, ...] = (1, 16, 64, 256)
    """MiB."""
    network_size: int = 64
    """MiB."""
    echo_calls: int = 15
    echo_seconds: float = 1.5
    """For each size, when there were five calls."""
    odd_calls: int = 5
    odd_part: int = 1
    """The odd messages are so many times smaller."""
    crowd: int = 16
    """Clients of one server."""
    crowd_seconds: float = 1.0
    group: int = 8
    """Workers whose start is measured."""
    stages: int = 4
    items: int = 100
    """That go through the stages."""


FULL = Scale(
    rounds=5,
    warmup=200,
    sync_calls=1500,
    outstanding=5000,
    remote_calls=400,
    passes=15,
    idle_seconds=1.0,
    launches=1,
    huge_rounds=1,
)
QUICK = Scale(
    rounds=1,
    warmup=100,
    sync_calls=400,
    outstanding=2000,
    remote_calls=200,
    passes=5,
    idle_seconds=1.0,
    launches=0,
    huge_rounds=0,
    echo_sizes=(1, 16, 64),
    echo_calls=7,
    echo_seconds=0.5,
    odd_calls=3,
    crowd_seconds=0.5,
    items=40,
)
TINY = Scale(
    rounds=1,
    warmup=2,
    sync_calls=10,
    outstanding=20,
    remote_calls=5,
    passes=2,
    idle_seconds=0.05,
    launches=1,
    huge_rounds=1,
    echo_sizes=(1,),
    network_size=1,
    echo_calls=2,
    echo_seconds=0.0,
    odd_calls=1,
    odd_part=1000,
    crowd=2,
    crowd_seconds=0.1,
    group=2,
    stages=2,
    items=3,
)
