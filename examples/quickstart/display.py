"""What the quickstart prints: a line that lives on a terminal, plain lines elsewhere, and a table at the end."""

import os
import sys

from rich.console import Console
from rich.table import Table

BYTES_PER_KIB = 1024


class Progress:
    """Shows how the training goes. A terminal has one line that is rewritten, others a line in `every` steps."""

    def __init__(self, steps: int, every: int) -> None:
        # The launcher passes our output on, and says so when it ends up on a terminal.
        self._live = os.environ.get("ZRPC_TERMINAL") == "1" or sys.stdout.isatty()
        self._steps = steps
        self._every = every

    def show(self, step: int, loss: float, accuracy: float) -> None:
        """Step `step` (from 1) is done."""
        text = f"step {step:4d}/{self._steps}  loss {loss:.4f}  test accuracy {accuracy:.4f}"
        if self._live:
            print(f"\r{text}", end="" if step < self._steps else "\n", flush=True)
        elif step % self._every == 0 or step == self._steps:
            print(text, flush=True)


def print_statistics(statistics: dict[str, dict[str, float]]) -> None:
    """The table: for each worker its calls, bytes and busy time."""
    live = os.environ.get("ZRPC_TERMINAL") == "1"
    table = Table(title="Workers", title_justify="left")
    table.add_column("worker")
    for column in ("calls served", "KiB in", "KiB out", "busy, s"):
        table.add_column(column, justify="right")
    for name, counted in statistics.items():
        table.add_row(
            name,
            f"{counted['calls_served']:,}",
            f"{counted['bytes_in'] / BYTES_PER_KIB:,.0f}",
            f"{counted['bytes_out'] / BYTES_PER_KIB:,.0f}",
            f"{counted['busy_seconds']:.2f}",
        )
    Console(force_terminal=live or None).print(table)
