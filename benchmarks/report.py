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
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.scale import Scale
from benchmarks.workloads.base import Metric

Rounds = Mapping[str, Sequence[Mapping[str, float]]]
"""By system: what each round measured, by metric."""

NOTE = """\
Ratios are medians over rounds, with the least and the greatest. Of times, less is better (<), of rates, more is (>).
TensorPipe's default transport polls without rest, so on few cores it disturbs itself: look at tensorpipe-uv as well."""


@dataclass(frozen=True)
class Row:
    """One metric of all systems: medians, and what ours is to each other one (median, least, greatest)."""

    metric: Metric
    medians: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]


def summarize(rounds: Rounds, metrics: Sequence[Metric], ours: str) -> list[Row]:
    """A row for each metric that ours has. A ratio is there where both have the metric and the divisor is not 0."""
    rows = []
    for metric in metrics:
        values = {name: [one[metric.key] for one in measured if metric.key in one] for name, measured in rounds.items()}
        ratios = {}
        for other in rounds:
            pairs = [
                mine[metric.key] / theirs[metric.key]
                for mine, theirs in zip(rounds[ours], rounds[other], strict=False)
                if metric.key in mine and theirs.get(metric.key)
            ]
            if other != ours and pairs:
                ratios[other] = (median(pairs), min(pairs), max(pairs))
        medians = {name: median(given) for name, given in values.items() if given}
        if ours in medians:
            rows.append(Row(metric, medians, ratios))
    return rows


def render(rows: Sequence[Row], systems: Sequence[str], ours: str) -> str:
    """The table as text, ratios first."""
    others = [name for name in systems if name != ours]
    head = ["", *(f"{ours} / {name}" for name in others), "unit", *systems]
    lines = [head]
    for row in rows:
        sign = ">" if row.metric.is_rate else "<"
        cells = [f"{row.metric.title} {sign}"]
        cells += [_ratio(row.ratios.get(name)) for name in others]
        cells.append(row.metric.unit)
        cells += [_number(row.medians.get(name)) for name in systems]
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = []
    for line in lines:
        first = line[0].ljust(widths[0])
        texts.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]))
    texts.insert(1, "-" * max(len(text) for text in texts))
    return "\n".join([*texts, "", NOTE])


def _ratio(given: tuple[float, float, float] | None) -> str:
    return "-" if given is None else f"{given[0]:.2f} ({given[1]:.2f}-{given[2]:.2f})"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def to_json(rows: Sequence[Row], rounds: Rounds, scale: Scale, failures: Sequence[str]) -> str:
    """Everything: where it ran, what was asked, each round, and the summary."""
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "scale": asdict(scale),
        "summary": [asdict(row) for row in rows],
        "rounds": {name: list(measured) for name, measured in rounds.items()},
        "failures": list(failures),
    }
    return json.dumps(document, indent=1)


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torch-zrpc", "pyzmq", "numpy")},
    }
