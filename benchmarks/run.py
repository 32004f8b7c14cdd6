"""The command: `python -m benchmarks.run [--quick] [--workloads sync,cpu] [--systems zrpc,tensorpipe] [--rounds 5]`.

Systems take turns, round by round, and each round begins with another one. Exits with 1 when a round failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import harness, report, systems, workloads
from benchmarks.scale import FULL, QUICK, Scale

Measure = Callable[[str, Sequence[str], Scale], dict[str, float]]
"""One round of a system: its metrics. Raises `harness.RoundFailed`."""

QUICK_SYSTEMS = (systems.OURS, systems.DEFAULT, systems.UV)
WIDTH = 180
"""Columns, at least: a table with wrapped lines is hard to read."""
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    scale = QUICK if given.quick else FULL
    if given.rounds:
        scale = dataclasses.replace(scale, rounds=given.rounds)
    names = [name for name in given.systems if systems.is_available(name)]
    for missing in sorted(set(given.systems) - set(names)):
        print(f"{missing} is not installed", file=sys.stderr)
    rounds, failures = run_rounds(names, given.workloads, scale)
    metrics = [metric for name in given.workloads for metric in workloads.METRICS[name]]
    rows = report.summarize(rounds, metrics, systems.OURS)
    rivals = [name for name in (systems.DEFAULT, systems.UV) if name in names]
    others = [name for name in names if name not in (systems.OURS, *rivals)]
    console = Console()
    report.show(console if console.width >= WIDTH else Console(width=WIDTH), rows, rivals, others, systems.OURS)
    path = given.output or RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.to_json(rows, rounds, scale, failures, rivals))
    print(f"All rounds are in {path}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def run_rounds(
    names: Sequence[str],
    wanted: Sequence[str],
    scale: Scale,
    measure: Measure = harness.measure,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, list[dict[str, float]]], list[str]]:
    """What each round of each system measured, and the rounds that failed. A failed one leaves an empty place.

    No round is begun that would end, as the longest one did, after `scale.seconds`.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    failures = []
    begun, longest = clock(), 0.0
    for number in range(scale.rounds):
        if clock() - begun + longest > scale.seconds:
            print(f"no time is left for a further round: there were {number}", file=sys.stderr)
            break
        round_begun = clock()
        last = {workloads.LAUNCH: scale.launches, workloads.HUGE: scale.huge_rounds}
        chosen = [name for name in wanted if number < last.get(name, scale.rounds)]
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            started = clock()
            try:
                rounds[name].append(measure(name, [one for one in chosen if systems.measures(name, one)], scale))
                outcome = f"{clock() - started:.0f} s"
            except harness.RoundFailed as error:
                rounds[name].append({})
                failures.append(f"round {number + 1} of {name}: {error}")
                outcome = "failed"
            print(f"round {number + 1} of {scale.rounds}, {name}: {outcome}", file=sys.stderr, flush=True)
        longest = max(longest, clock() - round_begun)
    return rounds, failures


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def among(known: Sequence[str], text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return [name for name in known if name in chosen]

    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Measure zrpc beside other systems.")
    parser.add_argument("--quick", action="store_true", help="one round with fewer calls: a minute, for a first look")
    parser.add_argument("--rounds", type=int, help="how often; 5, or 1 with --quick, by default")
    parser.add_argument(
        "--workloads", type=lambda text: among(workloads.NAMES, text), default=list(workloads.NAMES), metavar="A,B"
    )
    parser.add_argument(
        "--systems",
        type=lambda text: [systems.OURS, *(n for n in among(systems.NAMES, text) if n != systems.OURS)],
        metavar="A,B",
        help="all that are installed by default; with --quick zrpc and TensorPipe",
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes; benchmarks/results/ by default")
    given = parser.parse_args(arguments)
    given.systems = given.systems or list(QUICK_SYSTEMS if given.quick else systems.NAMES)
    return given


if __name__ == "__main__":
    sys.exit(main())
