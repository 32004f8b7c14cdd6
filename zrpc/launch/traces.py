"""A trace of a running cluster, taken by a tool that is no member of it.

One rule: workers record for a bounded time, even when the tool does not come back for what they have recorded.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from pathlib import Path
from typing import Any, Protocol

from zrpc.telemetry.collect import Collector, Who, write_trace

GRACE = 60.0
"""Seconds that workers go on recording after the time that was asked for, if nobody stops them."""


class Asking(Protocol):
    """What a tool asks a cluster with; `broker.admin.AdminClient` is one."""

    def status(self, timeout: float = ...) -> dict[str, Any]: ...

    def inspect(self, member_address: str, request: dict[str, Any], timeout: float = ...) -> dict[str, Any]: ...


def take_trace(
    client: Asking, path: Path, seconds: float, timeout: float, stop: threading.Event | None = None
) -> list[str]:
    """Record for some seconds, or until `stop` or Ctrl-C, and write the file; returns the names of the workers in it.

    Raises `BrokerUnreachable`, and OSError at once when the file cannot be written.
    """
    path.touch()
    members = client.status(timeout)["members"]
    collector = Collector(
        lambda who, question: client.inspect(who.address, question, timeout),
        secrets.token_hex(8),
        taker="zrpc trace",
        seconds=seconds + GRACE,
    )
    collector.begin(Who(member["name"], member["id"], member["incarnation"], member["address"]) for member in members)
    with contextlib.suppress(KeyboardInterrupt):
        (stop or threading.Event()).wait(seconds)
    drawn = collector.finish()
    write_trace(path, drawn)
    return sorted(drawn["otherData"]["workers"])
