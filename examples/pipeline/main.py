"""A network in two stages on two workers, which work on different parts of a batch at once; for `torch.distributed.rpc`.

    python -m zrpc.compat examples/pipeline/main.py --micro-batches 4

The master cuts a batch into micro-batches and starts all of them. What the first stage makes of one goes directly to the
second stage, since what is passed between them is a reference. The same network is then trained in one process on the
same data: both end with the same loss.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading

import torch
import torch.distributed.autograd as dist_autograd
import torch.distributed.rpc as rpc
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.optim import DistributedOptimizer

STAGES = ("stage1", "stage2")
INPUTS, HIDDEN, BATCH = 16, 64, 128
RATE = 0.2


def layers(number: int) -> nn.Module:
    """The layers of a stage, with the same numbers each time."""
    torch.manual_seed(number)
    if number == 0:
        return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
    return nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))


class Stage(nn.Module):
    """One stage, on its worker. Takes a reference, so that the value comes from where it is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = layers(number)
        self.lock = threading.Lock()

    def forward(self, x_rref: rpc.RRef) -> Tensor:
        x = x_rref.to_here()
        with self.lock:
            return self.layers(x)

    def parameter_rrefs(self) -> list[rpc.RRef]:
        return [rpc.RRef(parameter) for parameter in self.parameters()]


class Pipeline(nn.Module):
    """The whole network, as the master sees it."""

    def __init__(self, micro_batches: int) -> None:
        super().__init__()
        self.micro_batches = micro_batches
        self.stages = [rpc.remote(name, Stage, args=(number,)) for number, name in enumerate(STAGES)]

    def forward(self, x: Tensor) -> Tensor:
        pending = []
        for part in x.chunk(self.micro_batches):
            first = self.stages[0].remote().forward(rpc.RRef(part))
            pending.append(self.stages[1].rpc_async().forward(first))
        return torch.cat(torch.futures.wait_all(pending))

    def parameter_rrefs(self) -> list[rpc.RRef]:
        return [rref for stage in self.stages for rref in stage.rpc_sync().parameter_rrefs()]


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Points, and a smooth function of them to learn."""
    x = torch.randn(BATCH, INPUTS, generator=torch.Generator().manual_seed(number))
    return x, torch.sin(x[:, :4]).sum(1, keepdim=True)


def train_here(steps: int) -> list[float]:
    """The same in one process; the losses."""
    model = nn.Sequential(layers(0), layers(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for number in range(steps):
        x, y = batch(number)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train(micro_batches: int, steps: int) -> None:
    model = Pipeline(micro_batches)
    optimizer = DistributedOptimizer(torch.optim.SGD, model.parameter_rrefs(), lr=RATE)
    losses = []
    for number in range(steps):
        x, y = batch(number)
        with dist_autograd.context() as context_id:
            loss = nn.functional.mse_loss(model(x), y)
            dist_autograd.backward(context_id, [loss])
            optimizer.step(context_id)
        losses.append(float(loss.detach()))
    alone = train_here(steps)
    apart = max(abs(mine - theirs) for mine, theirs in zip(losses, alone, strict=True))
    print(f"{steps} steps of {micro_batches} micro-batches: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"at most {apart:.1e} from the losses in one process")
    assert apart < 1e-3
    assert losses[-1] < losses[0] / 2


def run(rank: int, micro_batches: int, steps: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    rpc.init_rpc("master" if rank == 0 else STAGES[rank - 1], rank=rank, world_size=3)
    if rank == 0:
        train(micro_batches, steps)
    rpc.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    mp.spawn(run, args=(arguments.micro_batches, arguments.steps, free_port()), nprocs=3)


if __name__ == "__main__":
    main()
