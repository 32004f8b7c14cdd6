"""The job: trains a classifier of handwritten digits whose two halves are on two workers.

    zrpc launch configs/quickstart.yaml

A step calls one half after the other, within a distributed autograd context. `backward` then takes the gradients back
through both workers, where they stay, and the optimizer has each worker take a step for its own parameters. This
process has the data and the loss, and never sees a parameter.
"""

import time

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

import zrpc
from examples.quickstart.data import Split, load
from examples.quickstart.display import Progress, print_statistics
from examples.quickstart.model import Features, Scores, count_correct
from zrpc import autograd
from zrpc.nn import RemoteModule
from zrpc.optim import DistributedOptimizer

WANTED_ACCURACY = 0.97
WORKERS = ("stage-0", "stage-1")


class Model:
    """The network, half of it on each worker."""

    def __init__(self, hidden: int, seed: int) -> None:
        self.features = RemoteModule(WORKERS[0], Features, (hidden, seed))
        self.scores = RemoteModule(WORKERS[1], Scores, (hidden, seed))

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.scores(self.features(pictures))

    def optimizer(self, rate: float) -> DistributedOptimizer:
        parameters = self.features.remote_parameters() + self.scores.remote_parameters()
        return DistributedOptimizer(AdamW, parameters, lr=rate)

    def accuracy(self, test: Split) -> float:
        """The part of `test` that the network puts in the right class; TorchScript counts, on a worker."""
        with torch.no_grad():
            scores = self(test.x)
        return zrpc.rpc_sync(WORKERS[1], count_correct, args=(scores, test.y)) / len(test.y)


def train_step(model: Model, optimizer: DistributedOptimizer, batch: Split) -> float:
    """One step; the loss before it."""
    with autograd.context() as context_id:
        loss = F.cross_entropy(model(batch.x), batch.y)
        autograd.backward(context_id, [loss])
        optimizer.step(context_id)
    return float(loss.detach())


def main(steps: int = 250, batch: int = 64, rate: float = 0.02, hidden: int = 128, seed: int = 0) -> int:
    """Train, print what came of it, and return 0 if the accuracy is as it should be."""
    started = time.perf_counter()
    train, held_out = load(seed)
    model = Model(hidden, seed)
    optimizer = model.optimizer(rate)
    scheduler = OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    progress = Progress(steps, every=50)
    accuracy = 0.0
    for number in range(1, steps + 1):
        loss = train_step(model, optimizer, train.batch(number - 1, batch))
        if number < steps:
            scheduler.step()
        if number % 10 == 0 or number == steps:
            accuracy = model.accuracy(held_out)
            progress.show(number, loss, accuracy)
    seconds = time.perf_counter() - started
    statistics = {name: zrpc.worker_statistics(name) for name in WORKERS}
    print_statistics(statistics)
    calls = sum(counted["calls_served"] for counted in statistics.values())
    print(f"{calls:,} calls in {seconds:.1f} s: {calls / seconds:,.0f} calls per second")
    print(f"test accuracy {accuracy:.4f} on {len(held_out.y)} pictures that were held out", flush=True)
    if accuracy < WANTED_ACCURACY:
        print(f"that is less than {WANTED_ACCURACY}: something is wrong", flush=True)
        return 1
    return 0
