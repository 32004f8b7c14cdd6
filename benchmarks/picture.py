"""The picture of a run: `python -m benchmarks.picture [RESULTS.json] [--output docs/benchmarks.png]`.

Needs matplotlib (the extra `bench`). Each bar says how many times better zrpc is than TensorPipe; the black mark is the
target.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes

mpl.use("agg")

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "benchmarks.png"
COLOURS = ("#4878a8", "#e49444")
HEIGHT = 0.38
"""Of a bar; two of them and a gap make a row."""


def gain(ratio: float, is_rate: bool) -> float:
    """How many times better: a rate's ratio as it is, a time's turned over."""
    return ratio if is_rate else 1 / ratio


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw the summary of a run into a file."""
    rivals = document["rivals"]
    rows = [row for row in document["summary"] if any(name in row["ratios"] for name in rivals)]
    rows = [row for row in rows if row["metric"]["limit"] is None]
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.36 * len(rows)))
    for index, row in enumerate(rows):
        _draw_row(axes, index, row, rivals)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["metric"]["title"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", linewidth=0.3)
    for number, name in enumerate(rivals):
        axes.barh([0], [0], color=COLOURS[number], label=f"beside {name}")
    axes.plot([], [], "k|", markersize=10, label="target")
    axes.legend(loc="lower right", frameon=True)
    machine = document["machine"]
    axes.set_title(
        f"How many times better than TensorPipe (times and processor time: less; rates: more)\n"
        f"{machine['cores']} cores, load {machine['load']}, Python {machine['python']}, torch {machine['torch']}",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_row(axes: Axes, index: int, row: dict[str, Any], rivals: list[str]) -> None:
    metric = row["metric"]
    for number, name in enumerate(rivals):
        if name in row["ratios"]:
            middle, *ends = (gain(ratio, metric["is_rate"]) for ratio in row["ratios"][name])
            place = index + (number - 0.5) * HEIGHT
            axes.barh(place, middle - 1, HEIGHT, left=1, color=COLOURS[number])
            axes.plot(sorted(ends), [place, place], color="black", linewidth=0.7)
    if metric["target"] is not None:
        axes.plot(gain(metric["target"], metric["is_rate"]), index, "k|", markersize=14)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.picture", description="Draw the results of a run.")
    parser.add_argument("results", nargs="?", type=Path, help="what benchmarks.run wrote; the newest by default")
    parser.add_argument("--output", type=Path, default=PICTURE)
    given = parser.parse_args()
    results = given.results or max(RESULTS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    draw(json.loads(results.read_text()), given.output)
    print(f"Drawn: {given.output}")


if __name__ == "__main__":
    main()
