"""A chain of modules on workers computes what the modules do one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn, optim

import zrpc
from zrpc import autograd
from zrpc.nn import Pipeline, RemoteModule
from zrpc.optim import DistributedOptimizer
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as started:
        install_agent(started["a"].agent)
        try:
            yield started
        finally:
            remove_agent(started["a"].agent)


class Layer(nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 3), fill))
        self.busy = False

    def forward(self, x: Tensor) -> Tensor:
        assert not self.busy, "one part at a time"
        self.busy = True
        result = torch.tanh(x @ self.weight)
        self.busy = False
        return result


@pytest.mark.parametrize("parts", [1, 3, 100])
def test_it_trains_as_the_modules_do(cluster: LocalCluster, parts: int) -> None:
    x = torch.rand(7, 3, generator=torch.Generator().manual_seed(1))
    here = nn.Sequential(Layer(0.1), Layer(0.2), Layer(0.3))
    here(x).sum().backward()
    optim.SGD(here.parameters(), lr=1.0).step()
    stages = [RemoteModule("b", Layer, (0.1,)), zrpc.remote("c", Layer, (0.2,)), RemoteModule("b", Layer, (0.3,))]
    pipeline = Pipeline(stages, parts)
    params = pipeline.parameters()
    optimizer = DistributedOptimizer(optim.SGD, params, lr=1.0)
    with autograd.context() as context_id:
        result = pipeline(x)
        assert result.shape == (7, 3)
        autograd.backward(context_id, [result.sum()])
        optimizer.step(context_id)
    for mine, theirs in zip(here.parameters(), params, strict=True):
        torch.testing.assert_close(theirs.to_here(), mine.detach())


def test_without_a_context_it_just_computes(cluster: LocalCluster) -> None:
    assert Pipeline([RemoteModule("b", nn.Flatten)], 2)(torch.ones(4, 2, 2)).shape == (4, 4)


def test_errors_of_a_stage(cluster: LocalCluster) -> None:
    pipeline = Pipeline([RemoteModule("b", nn.Linear, (2, 2)), RemoteModule("c", nn.Identity)], 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pipeline(torch.ones(4, 3))
    for stages, parts in (([], 1), ([RemoteModule("b", nn.Identity)], 0)):
        with pytest.raises(ValueError, match="one stage and one part at least"):
            Pipeline(stages, parts)
