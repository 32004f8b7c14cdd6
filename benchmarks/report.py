"""From rounds to medians and ratios, to a table and to JSON.

One rule: a ratio is taken within a round, and the median is taken of the ratios; machines are noisy, and what disturbs a
round disturbs both sides of it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale import Scale
from benchmarks.workloads.base import Metric

Rounds = Mapping[str, Sequence[Mapping[str, float]]]
"""By system: what each round measured, by metric."""

NOTE = """\
Ratios are medians over rounds, with the least and the greatest. Of times less is better (<), of rates more (>).
A target is met when the ratio to the better one of TensorPipe and its uv transport meets it. TensorPipe's default transport
polls without rest: it is quick while cores are idle, and in its own way on few. What else runs on the machine disturbs
single figures more than ratios."""
PACKAGES = ("torch", "torch-zrpc", "pyzmq", "numpy", "Pyro5", "ray")


@dataclass(frozen=True)
class Row:
    """One metric of all systems: medians, and what ours is to each other one (median, least, greatest)."""

    metric: Metric
    medians: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    rounds: int = 1
    """Of which that is the median."""

    def is_met(self, rivals: Sequence[str]) -> bool | None:
        """Whether the target is met against the best of the rivals; None when there is none, or nothing to compare."""
        metric = self.metric
        if metric.limit is not None:
            return next(iter(self.medians.values())) <= metric.limit
        ratios = [self.ratios[name][0] for name in rivals if name in self.ratios]
        if metric.target is None or not ratios:
            return None
        return min(ratios) >= metric.target if metric.is_rate else max(ratios) <= metric.target


def summarize(rounds: Rounds, metrics: Sequence[Metric], ours: str) -> list[Row]:
    """A row for each metric that ours has. A ratio is there where both have the metric and the divisor is not 0."""
    rows = []
    for metric in metrics:
        values = {name: [one[metric.key] for one in rounds[name] if metric.key in one] for name in rounds}
        ratios = {}
        for other in rounds:
            pairs = [
                mine[metric.key] / theirs[metric.key]
                for mine, theirs in zip(rounds[ours], rounds[other], strict=False)
                if metric.key in mine and theirs.get(metric.key)
            ]
            if other != ours and pairs:
                ratios[other] = (median(pairs), min(pairs), max(pairs))
        medians = {name: median(values[name]) for name in [ours, *rounds] if values[name]}
        if ours in medians:
            rows.append(Row(metric, medians, ratios, len(values[ours])))
    return rows


def table(rows: Sequence[Row], rivals: Sequence[str], ours: str) -> Table:
    """What the targets are about: ours and its rivals, with ratios, spread, target, and whether it is met."""
    drawn = Table(title=f"{ours} beside {' and '.join(rivals)}")
    drawn.add_column("workload")
    for name in (ours, *rivals):
        drawn.add_column(name, justify="right")
    drawn.add_column("unit")
    for name in rivals:
        drawn.add_column(f"/ {name}", justify="right")
    drawn.add_column("target", justify="right")
    drawn.add_column("")
    for row in rows:
        cells = [f"{row.metric.title} {'>' if row.metric.is_rate else '<'}"]
        cells += [_number(row.medians.get(name)) for name in (ours, *rivals)]
        cells.append(row.metric.unit)
        cells += [_ratio(row.ratios.get(name)) for name in rivals]
        cells += [_target(row.metric), {True: "met", False: "[bold]not met[/bold]", None: ""}[row.is_met(rivals)]]
        drawn.add_row(*cells)
    return drawn


def side_table(rows: Sequence[Row], others: Sequence[str], ours: str) -> Table | None:
    """The further systems: their medians, and what ours is to them. None when there is nothing to show."""
    shown = [row for row in rows if any(name in row.medians for name in others)]
    if not shown:
        return None
    drawn = Table(title=f"{ours} beside others")
    drawn.add_column("workload")
    for name in (ours, *others):
        drawn.add_column(name, justify="right")
    drawn.add_column("unit")
    for name in others:
        drawn.add_column(f"/ {name}", justify="right")
    for row in shown:
        cells = [f"{row.metric.title} {'>' if row.metric.is_rate else '<'}"]
        cells += [_number(row.medians.get(name)) for name in (ours, *others)]
        cells.append(row.metric.unit)
        drawn.add_row(*cells, *(_ratio(row.ratios.get(name)) for name in others))
    return drawn


def show(console: Console, rows: Sequence[Row], rivals: Sequence[str], others: Sequence[str], ours: str) -> None:
    """Print all of it."""
    console.print(", ".join(f"{name} {value}" for name, value in describe_machine().items()), markup=False)
    console.print(table(rows, rivals, ours))
    beside = side_table(rows, others, ours)
    if beside is not None:
        console.print(beside)
    fewest, most = min((row.rounds for row in rows), default=0), max((row.rounds for row in rows), default=0)
    console.print(f"Rounds: {most}" + (f", of some rows {fewest}" if fewest < most else ""), markup=False)
    console.print(NOTE, markup=False)
    verdicts = [row.is_met(rivals) for row in rows]
    console.print(f"Targets: {verdicts.count(True)} met, {verdicts.count(False)} not met.")


def _ratio(given: tuple[float, float, float] | None) -> str:
    if given is None:
        return "-"
    return f"{given[0]:.2f}" if given[1] == given[2] else f"{given[0]:.2f} ({given[1]:.2f}-{given[2]:.2f})"


def _target(metric: Metric) -> str:
    if metric.limit is not None:
        return f"<= {metric.limit:g} {metric.unit}"
    if metric.target is None:
        return ""
    return f"{'>=' if metric.is_rate else '<='} {metric.target:g}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def to_json(rows: Sequence[Row], rounds: Rounds, scale: Scale, failures: Sequence[str], rivals: Sequence[str]) -> str:
    """Everything: where it ran, what was asked, each round, and the summary."""
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "scale": asdict(scale),
        "rivals": list(rivals),
        "summary": [{**asdict(row), "is_met": row.is_met(rivals)} for row in rows],
        "rounds": {name: list(measured) for name, measured in rounds.items()},
        "failures": list(failures),
    }
    return json.dumps(document, indent=1)


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **versions,
    }
