"""The job: starts trainers one after the other while the training goes on.

    zrpc launch configs/late_trainers.yaml

The model is on the parameter server. A trainer is a worker of which nothing is known before it joins: a process that finds
the broker by its environment, as any program could on another machine. It gets a shard of the data and a reference to
the model, and from then on calls the server itself.
"""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.func import functional_call

import zrpc
from examples.late_trainers.training import Classifier, fetch, train
from examples.quickstart.data import Split, load

SERVER = "parameters"
WANTED_ACCURACY = 0.95
PATIENCE = 60.0
"""Seconds that a trainer may take to start, or to make a step."""

joined: "queue.SimpleQueue[str]" = queue.SimpleQueue()


def has_joined(name: str) -> None:
    """Called by a trainer when it is up."""
    joined.put(name)


class Coordinator:
    """Counts the steps of all trainers, and says when it is enough."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.loss = 0.0
        self.is_enough = False
        self.changed = threading.Condition()

    def has_stepped(self, name: str, loss: float) -> bool:
        """Called by a trainer after each step; returns whether there are more to make."""
        with self.changed:
            self.made[name] += 1
            self.loss = loss
            self.changed.notify_all()
            return not self.is_enough

    def wait_for(self, more: int, names: Sequence[str]) -> None:
        """Wait until each of these has made so many more steps: a slow one has seen its part of the data too then."""
        with self.changed:
            wanted = {name: self.made[name] + more for name in names}
            while any(self.made[name] < steps for name, steps in wanted.items()):
                if not self.changed.wait(PATIENCE):
                    raise TimeoutError(f"no step in {PATIENCE:g} s")


@contextlib.contextmanager
def trainer(index: int) -> Iterator[str]:
    """A trainer in a process of its own, from when it has joined until the end of the block; its name."""
    environ = {**os.environ, "ZRPC_NAME": f"trainer-{index}", "ZRPC_ROLE": "trainer"}
    module = "examples.late_trainers.training"
    command = [sys.executable, "-m", "zrpc.workers.serve", "--import", module, "--entry", f"{module}:announce"]
    process = subprocess.Popen(command, env=environ)
    try:
        yield joined.get(timeout=PATIENCE)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def accuracy(model: "zrpc.RRef[nn.Module]", hidden: int, test: Split) -> float:
    """The part of `test` that the model puts in the right class."""
    with torch.no_grad():
        scores = functional_call(Classifier(hidden), fetch(model), (test.x,))
    return float((scores.argmax(1) == test.y).float().mean())


def main(trainers: int, steps: int, batch: int, rate: float, hidden: int, seed: int = 0) -> int:
    """Train with so many trainers, each for `steps` more when all have joined; returns 0 if the accuracy is as it should
    be."""
    data, test = load(seed)
    shards = data.shards(trainers)
    model = zrpc.remote(SERVER, Classifier, args=(hidden, seed))
    coordinator = Coordinator()
    reference = zrpc.RRef(coordinator)
    with contextlib.ExitStack() as running:
        ends, names = [], []
        for index, shard in enumerate(shards):
            name = running.enter_context(trainer(index))
            names.append(name)
            call = (model, shard, reference, hidden, batch, rate)
            ends.append(zrpc.rpc_async(name, train, args=call, timeout=0))
            print(f"{name} has joined at step {coordinator.made.total()}", flush=True)
            coordinator.wait_for(1, [name])  # it trains before the next one comes
        coordinator.wait_for(steps, names)
        coordinator.is_enough = True
        torch.futures.wait_all(ends)
        found = accuracy(model, hidden, test)
    shares = ", ".join(f"{name} {made}" for name, made in sorted(coordinator.made.items()))
    print(f"{coordinator.made.total()} steps ({shares}), last loss {coordinator.loss:.4f}")
    print(f"test accuracy {found:.4f} on {len(test.y)} pictures that were held out", flush=True)
    return 0 if found >= WANTED_ACCURACY else 1
