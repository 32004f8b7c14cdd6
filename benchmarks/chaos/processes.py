"""The processes of the chaos, seen from the one that mistreats them: lines go in, JSON comes out."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

NODE = [sys.executable, "-m", "benchmarks.chaos.node"]
BROKER_NODE = [sys.executable, "-m", "benchmarks.chaos.brokernode"]
LOOK = 0.5
"""Seconds after which a wait for a message looks whether the process is still there."""


class Node:
    """A process with its messages. `place` is its namespace, if there are some. `heed` is given each message too, in the
    thread that reads them."""

    def __init__(
        self,
        name: str,
        place: int,
        command: Sequence[str],
        log: str,
        heed: Callable[[Node, dict[str, Any]], None] = lambda node, message: None,
    ) -> None:
        self.name = name
        self.place = place
        self.is_frozen = False
        self._heed = heed
        self.ended: dict[str, Any] | None = None
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, bufsize=1
            )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if "ended" in message:
                    self.ended = message
                self._heed(self, message)
                self.said.put(message)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def wait_for(self, key: str, timeout: float) -> dict[str, Any] | None:
        """The next message with this key; None at the timeout, or when the process has ended."""
        deadline = time.monotonic() + timeout
        while True:
            was_alive = self.is_alive() or self._reader.is_alive()
            with contextlib.suppress(queue.Empty):
                message = self.said.get(timeout=LOOK)
                if key in message:
                    return message
                continue
            if not was_alive or time.monotonic() >= deadline:
                return None

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """To the process itself (`ip netns exec` becomes what it runs)."""
        if self.is_alive():
            os.kill(self.process.pid, number)

    def end(self, timeout: float) -> bool:
        """End it in good order, or kill it; whether it ended by itself."""
        self.tell("exit")
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
