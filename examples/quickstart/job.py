"""The job: trains a classifier of handwritten digits by synchronous steps on three shards of the data.

    zrpc launch configs/quickstart.yaml

The shards of the data live on the shard workers, the parameters and the test data on the parameter worker; this process
holds references to them. A step reads the parameters, has every shard compute a gradient at the same time, and applies
the mean. Every calculation is a TorchScript function (see `functions`) that runs on a worker.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import zrpc
from examples.quickstart import functions as f
from examples.quickstart.data import Split, load
from examples.quickstart.display import Progress, print_statistics

WANTED_ACCURACY = 0.95


@dataclass(frozen=True)
class RemoteSplit:
    """A part of the data on the worker `owner`."""

    owner: str
    x: Any
    y: Any

    @classmethod
    def place(cls, owner: str, split: Split) -> "RemoteSplit":
        return cls(owner, zrpc.remote(owner, f.keep, args=(split.x,)), zrpc.remote(owner, f.keep, args=(split.y,)))


class Model:
    """The network's parameters, on the worker `owner`."""

    def __init__(self, owner: str, seed: int) -> None:
        self.owner = owner
        self._sizes = (f.HIDDEN, f.CLASSES)
        self._parameters = zrpc.remote(owner, f.initial_parameters, args=(seed, f.PIXELS, *self._sizes))
        self._momentum = zrpc.remote(owner, f.keep, args=(torch.zeros(f.PARAMETERS),))

    def step(self, shards: list[RemoteSplit], number: int, batch: int, rate: float) -> float:
        """One synchronous step over all shards; the mean loss before it."""
        parameters = zrpc.rpc_sync(self.owner, f.read, args=(self._parameters,))
        pending = [
            zrpc.rpc_async(s.owner, f.gradient, args=(parameters, s.x, s.y, number, batch, *self._sizes))
            for s in shards
        ]
        results: list[tuple[Tensor, Tensor]] = torch.futures.wait_all(pending)
        mean = torch.stack([gradient for gradient, _ in results]).mean(0)
        zrpc.rpc_sync(self.owner, f.apply, args=(self._parameters, self._momentum, mean, rate))
        return float(torch.stack([loss for _, loss in results]).mean())

    def accuracy(self, test: RemoteSplit, count: int) -> float:
        """The part of `test` that the network puts in the right class."""
        correct = zrpc.rpc_sync(self.owner, f.count_correct, args=(self._parameters, test.x, test.y, *self._sizes))
        return int(correct) / count


def main(shards: int = 3, steps: int = 250, batch: int = 64, rate: float = 0.1, seed: int = 0) -> int:
    """Train, print what came of it, and return 0 if the accuracy is as it should be."""
    started = time.perf_counter()
    train, held_out = load(seed)
    names = [f"shard-{index}" for index in range(shards)]
    parts = [RemoteSplit.place(name, part) for name, part in zip(names, train.shards(shards), strict=True)]
    test = RemoteSplit.place("parameters", held_out)
    model = Model("parameters", seed)
    progress = Progress(steps, every=50)
    accuracy = 0.0
    for number in range(1, steps + 1):
        loss = model.step(parts, number - 1, batch, rate)
        if number % 10 == 0 or number == steps:
            accuracy = model.accuracy(test, len(held_out.y))
            progress.show(number, loss, accuracy)
    seconds = time.perf_counter() - started
    statistics = {name: zrpc.worker_statistics(name) for name in [*names, "parameters"]}
    print_statistics(statistics)
    calls = sum(counted["calls_served"] for counted in statistics.values())
    print(f"{calls:,} calls in {seconds:.1f} s: {calls / seconds:,.0f} calls per second")
    print(f"test accuracy {accuracy:.4f} on {len(held_out.y)} pictures that were held out", flush=True)
    if accuracy < WANTED_ACCURACY:
        print(f"that is less than {WANTED_ACCURACY}: something is wrong", flush=True)
        return 1
    return 0
