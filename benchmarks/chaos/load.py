"""What a worker of the chaos does all the time: calls of every kind to others chosen at random, each of them accounted for.

One rule: a call is counted when it begins and when it ends, and how; one that ends neither by its deadline nor soon after
is hung. What runs on a callee writes its call's number to a file, so that a function that ran twice shows.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
import traceback
from collections import Counter
from typing import Any

import torch

import zrpc
from zrpc.errors import ZrpcError
from zrpc.runtime.context import current_agent

GRACE = 3.0
"""Seconds beyond its timeout after which a call is hung: the question to the callee takes 0.3 of them."""
TIMEOUTS = (1.0, 3.0, 8.0)
NUMBER = struct.Struct("<QQ")
BACKWARD_SECONDS = 3 * 8.0
"""What a backward pass may take at most: three rounds of messages, each with the nodes' `rpc_timeout`."""
THREADS = 2
PROBE = "probe-"
"""How names begin of those that join, and do nothing."""

_run_log: list[int] = []


def open_run_log(path: str) -> None:
    """Where this process writes what it runs."""
    _run_log[:] = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)]


def note_run(high: int, low: int) -> None:
    os.write(_run_log[0], NUMBER.pack(high, low))


def run_python(high: int, low: int, tensor: torch.Tensor, seconds: float) -> torch.Tensor:
    """A Python function that takes some time."""
    note_run(high, low)
    if seconds:
        time.sleep(seconds)
    return tensor + low % 7


def make_value(high: int, low: int) -> torch.Tensor:
    note_run(high, low)
    return torch.full([8], float(low % 1000))


def read_value(high: int, low: int, reference: Any) -> float:
    """Reads a reference that was passed on."""
    note_run(high, low)
    return float(reference.to_here(3.0)[0])


def multiply(high: int, low: int, tensor: torch.Tensor, by: float, then: str) -> torch.Tensor:
    """A function that gradients go through, which goes on to another worker if one is named."""
    note_run(high, low)
    found = tensor * by
    return zrpc.rpc_sync(then, run_script, args=(found, 1)) if then else found


@torch.jit.script
def run_script(tensor: torch.Tensor, number: int) -> torch.Tensor:
    return tensor * 2 + number


class Load:
    """The calls of one worker, on a few threads."""

    def __init__(self, seed: int) -> None:
        self.ends: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.hung: list[str] = []
        self._seed = seed
        self._high = secrets_of_process()
        self._numbers = iter(range(1, 1 << 62))
        self._lock = threading.Lock()
        self._open: dict[int, tuple[str, float]] = {}
        self._kept: list[Any] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(THREADS)]
        self._watch = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        for thread in (*self._threads, self._watch):
            thread.start()

    def stop(self) -> None:
        """Make no more calls, wait for those that are under way, and let go of all references."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
            if thread.is_alive():
                self.hung.append(f"the thread {thread.name}: {self._open}")
        self._kept.clear()

    def report(self) -> dict[str, Any]:
        return {"made": dict(self.made), "ends": dict(self.ends), "wrong": self.wrong[:20], "hung": self.hung[:20]}

    # ------------------------------------------------------------------------------------------------ calls

    def _run(self, index: int) -> None:
        chance = random.Random(f"{self._seed}/{index}/{self._high}")
        kinds = [self._python, self._python, self._script, self._script, self._async, self._remote, self._bulk]
        kinds += [self._autograd, self._retried]
        while not self._stopping.is_set():
            others = workers_but(current_agent().info.name)
            if not others:
                self._stopping.wait(0.1)
                continue
            call = chance.choice(kinds)
            self._account(call.__name__.strip("_"), call, chance.choice(others), chance)

    def _account(self, kind: str, call: Any, to: str, chance: random.Random) -> None:
        with self._lock:
            number = next(self._numbers)
        timeout = chance.choice(TIMEOUTS)
        longest = timeout + GRACE + (BACKWARD_SECONDS if kind == "autograd" else 0.0)
        self._open[number] = (f"{kind} to {to}", time.monotonic() + longest)
        with self._lock:
            self.made[kind] += 1
        try:
            problem = call(to, number, timeout, chance)
            how = "result"
            if problem:
                self.wrong.append(f"{kind} to {to}: {problem}")
        except ZrpcError as error:
            how = type(error).__name__
        except Exception as error:  # nothing that these functions do raises one
            how = type(error).__name__
            self.wrong.append(f"{kind} to {to}: {''.join(traceback.format_exception(error))}")
        with self._lock:
            self.ends[how] += 1
            del self._open[number]

    def _look(self) -> None:
        """Finds calls that hang. A process that was stopped gets its time back."""
        last = time.monotonic()
        while not self._stopping.wait(0.25):
            now = time.monotonic()
            if now - last > 1.0:
                with self._lock:
                    self._open = {number: (what, end + now - last) for number, (what, end) in self._open.items()}
            last = now
            for number, (what, end) in list(self._open.items()):
                if now > end and number in self._open:
                    self._open[number] = (what, float("inf"))
                    self.hung.append(what)

    def _python(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        seconds = chance.choice((0.0, 0.0, 0.0, 0.01, 0.3))
        tensor = torch.ones(4)
        got = zrpc.rpc_sync(to, run_python, args=(self._high, number, tensor, seconds), timeout=timeout)
        return "" if torch.equal(got, tensor + number % 7) else f"{got}"

    def _script(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        got = zrpc.rpc_sync(to, run_script, args=(torch.ones(4), number), timeout=timeout)
        return "" if torch.equal(got, torch.full([4], 2.0 + number)) else f"{got}"

    def _async(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        futures = [zrpc.rpc_async(to, run_script, args=(torch.ones(4), i), timeout=timeout) for i in range(20)]
        for index, future in enumerate(futures):
            if float(future.wait()[0]) != 2.0 + index:
                return f"result {index} is {future.wait()}"
        return ""

    def _bulk(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        tensor = torch.arange(chance.choice((10_000, 500_000, 2_000_000)), dtype=torch.float32)
        got = zrpc.rpc_sync(to, run_script, args=(tensor, 1), timeout=timeout)
        return "" if torch.equal(got, tensor * 2 + 1) else "it is not what was sent"

    def _retried(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        """A call that may be repeated, on any worker."""
        others = workers_but(current_agent().info.name)
        got = zrpc.rpc_sync(others or [to], run_script, args=(torch.ones(4), number), timeout=timeout, idempotent=True)
        return "" if torch.equal(got, torch.full([4], 2.0 + number)) else f"{got}"

    def _autograd(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        """A context with a call in it, maybe one that makes another, and a backward pass through them."""
        by = float(chance.randrange(1, 9))
        then = chance.choice(["", *workers_but(to)])
        with zrpc.autograd.context() as context:
            leaf = torch.ones(4, requires_grad=True)
            got = zrpc.rpc_sync(to, multiply, args=(self._high, number, leaf, by, then), timeout=timeout)
            zrpc.autograd.backward(context, [got.sum()])
            gradient = zrpc.autograd.get_gradients(context)[leaf]
        want = by * 2 if then else by
        return "" if torch.equal(gradient, torch.full([4], want)) else f"the gradient is {gradient}, not {want}"

    def _remote(self, to: str, number: int, timeout: float, chance: random.Random) -> str:
        """A reference: made, passed on, read, kept for a while."""
        made = zrpc.remote(to, make_value, args=(self._high, number), timeout=timeout)
        want = float(number % 1000)
        if chance.random() < 0.3:
            self._kept.append(made)
            if len(self._kept) > 20:
                del self._kept[: chance.randrange(20)]
        if chance.random() < 0.5:
            got = float(made.to_here(timeout)[0])
        else:
            third = chance.choice(workers_but(current_agent().info.name) or [to])
            with self._lock:
                second = next(self._numbers)
            got = zrpc.rpc_sync(third, read_value, args=(self._high, second, made), timeout=timeout)
        return "" if got == want else f"{got}, not {want}"


def workers_but(name: str) -> list[str]:
    """All workers but that one, and those that only look whether they are let in."""
    return [info.name for info in zrpc.get_workers() if info.name != name and not info.name.startswith(PROBE)]


def secrets_of_process() -> int:
    """A number that no other process of the run has."""
    return int.from_bytes(os.urandom(8), "little")
