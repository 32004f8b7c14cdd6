"""What the tests of optimizers share: a small model in two parts, here in one process and there on two workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import zrpc
from zrpc import autograd
from zrpc.rref import RRef


class Part(nn.Module):
    """[n, 3] -> [n, 3], the same numbers each time."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.rand(3, 3, generator=generator))
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)

    def weights(self) -> list[RRef[nn.Parameter]]:
        return [RRef(parameter) for parameter in self.parameters()]


class RemotePart:
    """A part on a worker."""

    def __init__(self, worker: str, seed: int) -> None:
        self.rref = zrpc.remote(worker, Part, (seed,))
        self.params = self.rref.rpc_sync().weights()

    def __call__(self, x: Tensor) -> Tensor:
        return self.rref.rpc_sync().forward(x)

    def value(self) -> Tensor:
        return self.params[0].to_here().detach().clone()


def batch(number: int) -> Tensor:
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(100 + number))


def loss_of(parts: Any, x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x.square().sum()


def train_here(optimizer: torch.optim.Optimizer, parts: list[Part], steps: range, scheduler: Any = None) -> None:
    for number in steps:
        optimizer.zero_grad()
        loss_of(parts, batch(number)).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def train_there(optimizer: Any, parts: list[RemotePart], steps: range, scheduler: Any = None) -> None:
    for number in steps:
        with autograd.context() as context_id:
            autograd.backward(context_id, [loss_of(parts, batch(number))])
            optimizer.step(context_id)
        if scheduler is not None:
            scheduler.step()
