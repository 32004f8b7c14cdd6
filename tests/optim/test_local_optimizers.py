"""Functional optimizers on their worker."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, optim
from torch.optim.lr_scheduler import ExponentialLR
from training import Part, RemotePart, train_here, train_there

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


class Plain:
    """A functional optimizer in Python."""

    def __init__(self, params: list[Tensor], lr: float) -> None:
        self.params = params
        self.defaults = {"lr": lr}

    def step(self, gradients: list[Tensor | None]) -> None:
        with torch.no_grad():
            for param, gradient in zip(self.params, gradients, strict=True):
                if gradient is not None:
                    param -= self.defaults["lr"] * gradient


NAMES = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "RMSprop", "Rprop", "SGD")
FUNCTIONAL = {
    getattr(import_module(f"torch.distributed.optim.functional_{name.lower()}"), f"_Functional{name}"): name
    for name in NAMES
}


@pytest.mark.parametrize(("cls", "name"), [*FUNCTIONAL.items(), (Plain, "SGD")], ids=lambda item: str(item))
@pytest.mark.filterwarnings("ignore:.*functional optimizers.*")
def test_steps_are_those_of_the_class(cluster: LocalCluster, cls: Any, name: str) -> None:
    here, there = [Part(1), Part(2)], [RemotePart("b", 1), RemotePart("c", 2)]
    mine = getattr(optim, name)([parameter for part in here for parameter in part.parameters()], lr=0.1)
    distributed = DistributedOptimizer(cls, [rref for part in there for rref in part.params], lr=0.1)
    assert distributed.is_functional_optim
    assert distributed.param_groups[0]["lr"] == 0.1
    train_here(mine, here, range(3), ExponentialLR(mine, 0.5))
    train_there(distributed, there, range(3), ExponentialLR(distributed, 0.5))
    for part, remote in zip(here, there, strict=True):
        torch.testing.assert_close(remote.value(), part.weight.detach())


def test_what_they_cannot(cluster: LocalCluster) -> None:
    part = RemotePart("b", 1)
    distributed = DistributedOptimizer(Plain, part.params, lr=0.1)
    with pytest.raises(ValueError, match="its state cannot be read"):
        distributed.state_dict()
    with pytest.raises(ValueError, match="has one group"):
        DistributedOptimizer(Plain, [{"params": part.params, "lr": 0.3}], lr=0.1)
    with pytest.raises(ValueError, match="has one group"):
        distributed.add_param_group({"params": part.params})
