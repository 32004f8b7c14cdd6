"""Looking at a running cluster again and again, for the commands that do.

One rule: a broker that is away for a moment is waited for; it comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from zrpc.broker.admin import AdminClient
from zrpc.clock import monotonic
from zrpc.errors import BrokerUnreachable, GroupTimeout

INTERVAL = 0.5
"""Seconds between two looks."""


def pause(seconds: float = INTERVAL) -> None:
    """Wait; Ctrl-C ends it."""
    threading.Event().wait(seconds)


def follow_events(client: AdminClient, timeout: float, follow: bool) -> Iterator[dict[str, Any]]:
    """The events so far and, with `follow`, those to come. Raises `BrokerUnreachable` if there is no broker at first."""
    last = 0
    fresh = client.events(0, timeout)
    while True:
        for event in fresh:
            last = int(event["number"])
            yield event
        if not follow:
            return
        pause()
        try:
            fresh = client.events(last, timeout)
        except BrokerUnreachable:
            fresh = []
            continue
        if not fresh:
            first = client.events(0, timeout)
            if first and int(first[-1]["number"]) < last:  # another broker, which counts anew
                fresh, last = first, 0


def follow_status(client: AdminClient, timeout: float, interval: float) -> Iterator[dict[str, Any] | None]:
    """The status now, and again each `interval` seconds; None while the broker does not answer.

    Raises `BrokerUnreachable` if there is no broker at first.
    """
    yield client.status(timeout)
    while True:
        pause(interval)
        try:
            yield client.status(timeout)
        except BrokerUnreachable:
            yield None


def wait_for_count(client: AdminClient, role: str, count: int, seconds: float, timeout: float) -> list[str]:
    """Wait until a role has that many workers which are up; their names. Raises `GroupTimeout`."""
    began = monotonic()
    while True:
        try:
            members = client.status(timeout)["members"]
        except BrokerUnreachable:
            members = []
        else:
            up = sorted(m["name"] for m in members if m["role"] == role and m["state"] == "up")
            if len(up) == count:
                return up
            if monotonic() - began >= seconds:
                raise GroupTimeout(f"scaling role {role!r} to {count}", seconds, up, (), abs(count - len(up)))
        pause()
