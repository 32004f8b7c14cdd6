"""What tests of contexts between real agents share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from zrpc.testing import LocalCluster


def contexts_of(cluster: LocalCluster, name: str) -> Any:
    return cluster[name].agent.values.contexts


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that other threads do."""
    ticks = threading.Event()
    for _ in range(3000):
        if condition():
            return
        ticks.wait(0.01)
    raise AssertionError("it did not come")
