"""The status of a cluster on a terminal, drawn again and again.

One rule: what was known last stays on the screen while the broker does not answer, and the screen says so.
"""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from zrpc.launch.following import follow_status
from zrpc.launch.tables import status_view
from zrpc.launch.target import Target

INTERVAL = 1.0
AWAY = "the broker does not answer; calls between workers go on"


def watch_status(target: Target, timeout: float, console: Console | None = None, rounds: int | None = None) -> None:
    """Draw until Ctrl-C, or `rounds` times. Raises `BrokerUnreachable` if there is no broker at first."""
    view = Group()
    with target.connect() as client, Live(view, console=console, auto_refresh=False) as live:
        try:
            for drawn, status in enumerate(follow_status(client, timeout, INTERVAL), 1):
                if status is None:
                    live.update(
                        Group(view, Text("the broker does not answer; calls between workers go on", "red")),
                        refresh=True,
                    )
                else:
                    view = status_view(status)
                    live.update(view, refresh=True)
                if drawn == rounds:
                    return
        except KeyboardInterrupt:
            return
