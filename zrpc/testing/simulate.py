"""Runs simulated histories of whole clusters, and prints the seed of each that breaks a promise.

python -m zrpc.testing.simulate --seed N              one history again, with its last events
python -m zrpc.testing.simulate --count 2000          seeds 0 to 1999
python -m zrpc.testing.simulate --minutes 5 --fresh   seeds that nobody has tried, for some time
"""

from __future__ import annotations

import argparse
import itertools
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from zrpc.clock import monotonic
from zrpc.testing.simulation.cluster import Simulation
from zrpc.testing.simulation.schedule import Schedule


@dataclass(slots=True)
class Summary:
    """What some histories came to."""

    histories: int = 0
    steps: int = 0
    simulated: float = 0.0
    """Seconds on the simulated clocks."""
    ends: Counter[str] = field(default_factory=Counter)
    """Calls by how they ended."""
    lives: int = 0
    take_overs: int = 0
    values: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    """What went wrong, by seed."""

    def sentence(self, seconds: float) -> str:
        """One line."""
        ends = ", ".join(f"{count:,} {how}" for how, count in self.ends.most_common())
        return (
            f"{self.histories:,} histories in {seconds:.1f} s ({self.histories / max(seconds, 1e-9) * 60:,.0f} a minute), "
            f"{self.steps:,} events, {self.lives:,} lives, {self.take_overs:,} take-overs, "
            f"{self.values:,} values released, calls: {ends}; "
            f"{len(self.failures)} failed"
        )


def replay(seed: int) -> tuple[Simulation, str]:
    """Run the history of a seed; what went wrong, '' for nothing."""
    simulation = Simulation(Schedule.of(seed))
    try:
        simulation.run()
    except Exception as error:  # whatever a machine raises is a finding
        return simulation, f"{type(error).__name__}: {error}"
    return simulation, ""


def run(seeds: Iterable[int], until: float | None = None, stop_at_first: bool = False) -> Summary:
    """Run histories: of all seeds, or until the monotonic clock is at `until`."""
    summary = Summary()
    for seed in seeds:
        if until is not None and monotonic() >= until:
            break
        simulation, problem = replay(seed)
        summary.histories += 1
        summary.steps += simulation.network.steps
        summary.simulated += simulation.network.now - 1000.0
        summary.ends += simulation.truth.how
        summary.lives += simulation.truth.joined
        summary.take_overs += simulation.brokers.seen["TookOver"]
        summary.values += len(simulation.truth.released)
        if problem:
            summary.failures[seed] = problem
            print(f"seed {seed} fails: {problem}", flush=True)
            if stop_at_first:
                break
    return summary


def main() -> int:
    """The command; its exit code says whether a promise was broken."""
    parser = argparse.ArgumentParser(prog="zrpc.testing.simulate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, help="one history, and the last things that happened in it")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds, from 0 or --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--fresh", action="store_true", help="begin at a seed of chance")
    parser.add_argument("--minutes", type=float, help="run for so long, instead of --count")
    given = parser.parse_args()
    if given.seed is not None:
        simulation, problem = replay(given.seed)
        print("\n".join([*simulation.network.trace(), repr(simulation.schedule)]))
        print(f"seed {given.seed}: {problem or 'all promises hold'}")
        return int(bool(problem))
    first = secrets.randbits(40) if given.fresh else given.first
    began = monotonic()
    if given.minutes is None:
        summary = run(range(first, first + given.count))
    else:
        summary = run(itertools.count(first), began + 60 * given.minutes)
    print(summary.sentence(monotonic() - began))
    for seed in summary.failures:
        print(f"again: python -m zrpc.testing.simulate --seed {seed}")
    return int(bool(summary.failures))


if __name__ == "__main__":
    raise SystemExit(main())
