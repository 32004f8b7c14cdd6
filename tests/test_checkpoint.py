"""Checkpoints: what is spread over workers is in one file, which one process reads, and the other way round."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.distributed import checkpoint as torch_checkpoint
from torch.optim.lr_scheduler import ExponentialLR

import zrpc
from zrpc import autograd, checkpoint
from zrpc.errors import RRefLost, WorkerLost
from zrpc.nn import RemoteModule
from zrpc.optim import DistributedOptimizer
from zrpc.rref import RRef
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster

LONG = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as started:
        install_agent(started["a"].agent)
        try:
            yield started
        finally:
            remove_agent(started["a"].agent)


class Distributed:
    """Two layers on two workers, and a bias here."""

    def __init__(self) -> None:
        self.first = RemoteModule("b", nn.Linear, (3, 4))
        self.second = zrpc.remote("c", nn.Linear, (4, 2))
        self.here = nn.Linear(2, 1)
        self.parts = {"first": self.first, "second": self.second, "here": self.here}
        params = self.first.remote_parameters() + parameters_of(self.second)
        params += [RRef(parameter) for parameter in self.here.parameters()]
        self.optimizer = DistributedOptimizer(optim.SGD, params, lr=0.1, momentum=0.9)
        self.scheduler = ExponentialLR(self.optimizer, 0.5)

    def train(self, x: Tensor) -> None:
        with autograd.context() as context_id:
            loss = self.here(self.second.rpc_sync().forward(self.first(x))).square().mean()
            autograd.backward(context_id, [loss])
            self.optimizer.step(context_id)
        self.scheduler.step()


def parameters_of(module: RRef[nn.Module]) -> list[RRef[nn.Parameter]]:
    return zrpc.rpc_sync(module.owner(), refer, (module,))  # type: ignore[no-any-return]


def refer(module: RRef[nn.Module]) -> list[RRef[nn.Parameter]]:
    return [RRef(parameter) for parameter in module.local_value().parameters()]


class Alone:
    """The same in one process, without zrpc."""

    def __init__(self, file: Path) -> None:
        content = torch.load(file, weights_only=True)
        parts = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 2), "here": nn.Linear(2, 1)}
        self.model = nn.ModuleDict(parts)
        self.model.load_state_dict(content["model"])
        self.optimizer = optim.SGD(self.model.parameters(), lr=1.0)
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler = ExponentialLR(self.optimizer, 0.1)
        self.scheduler.load_state_dict(content["schedulers"][0])

    def train(self, x: Tensor) -> None:
        self.optimizer.zero_grad()
        for part in self.model.values():
            x = part(x)
        x.square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()


def test_training_goes_on_from_a_checkpoint_when_a_worker_has_died(tmp_path: Path) -> None:
    with LocalCluster(["a", "b", "c"]) as cluster:
        install_agent(cluster["a"].agent)
        try:
            spread = Distributed()
            spread.train(torch.ones(5, 3))
            checkpoint.save(tmp_path / "file", spread.parts, spread.optimizer, [spread.scheduler])
            saved = checkpoint.model_state(spread.parts)
            spread.train(torch.ones(5, 3))
            cluster.kill("c")
            with autograd.context() as context_id, pytest.raises(RRefLost, match="is lost with its owner 'c'"):
                spread.second.to_here()
            with autograd.context() as context_id, pytest.raises(WorkerLost, match="worker 'c' was lost"):
                spread.optimizer.step(context_id)
            cluster.start("c")
            cluster["a"].agent.peers.find("c", LONG)
            again = Distributed()
            checkpoint.load(tmp_path / "file", again.parts, again.optimizer, [again.scheduler])
            assert_same(checkpoint.model_state(again.parts), saved)
            again.train(torch.ones(5, 3))
        finally:
            remove_agent(cluster["a"].agent)


def assert_same(model: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(model) == list(other)
    for name, value in model.items():
        torch.testing.assert_close(value, other[name], msg=name)


def test_one_process_goes_on_where_the_workers_were_and_back(cluster: LocalCluster, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "model.pt"
    spread = Distributed()
    for _ in range(2):
        spread.train(torch.rand(5, 3))
    checkpoint.save(file, spread.parts, spread.optimizer, [spread.scheduler], {"epoch": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    alone = Alone(file)
    for _ in range(2):
        x = torch.rand(5, 3)
        spread.train(x)
        alone.train(x)
    assert_same(checkpoint.model_state(spread.parts), alone.model.state_dict())
    checkpoint.save(file, alone.model, alone.optimizer, [alone.scheduler])
    again = Distributed()
    assert checkpoint.load(file, again.parts, again.optimizer, [again.scheduler]) == {}
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)
    x = torch.rand(5, 3)
    again.train(x)
    alone.train(x)
    assert_same(checkpoint.model_state(again.parts), alone.model.state_dict())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_torchs_distributed_checkpoint_takes_it_without_a_process_group(cluster: LocalCluster, tmp_path: Path) -> None:
    spread = Distributed()
    spread.train(torch.rand(5, 3))
    content = checkpoint.gather(spread.parts, spread.optimizer)
    torch_checkpoint.save(content, checkpoint_id=tmp_path / "dcp", no_dist=True)
    alone = nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 2), "here": nn.Linear(2, 1)})
    found = {"model": alone.state_dict()}
    torch_checkpoint.load(found, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert_same(found["model"], content["model"])
    assert_same(alone.state_dict(), content["model"])


class Hybrid(nn.Module):
    """A module with one part elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1))
        self.away = RemoteModule("b", nn.Linear, (2, 2))
        self.inner = nn.Sequential(nn.Linear(2, 1), RemoteModule("c", nn.Linear, (1, 1)))
        self.nothing = None
        self.register_module("none", None)


def test_a_module_with_parts_elsewhere(cluster: LocalCluster, tmp_path: Path) -> None:
    first, second = Hybrid(), Hybrid()
    names = ["scale", "away.weight", "away.bias", "inner.0.weight", "inner.0.bias", "inner.1.weight", "inner.1.bias"]
    state = checkpoint.model_state(first)
    assert list(state) == names
    checkpoint.save(tmp_path / "file", first)
    checkpoint.load(tmp_path / "file", second)
    assert_same(checkpoint.model_state(second), state)
    with pytest.raises(RuntimeError, match="missing scale"):
        checkpoint.load_model_state(second, {})
    with pytest.raises(RuntimeError, match="unexpected other"):
        checkpoint.load_model_state(second, {**state, "other": torch.ones(1)})
    checkpoint.load_model_state(second, {"scale": torch.ones(1), "other": 1}, strict=False)
    assert second.scale == 1.0


def test_what_does_not_fit(cluster: LocalCluster, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    file = tmp_path / "file"
    checkpoint.save(file, model)
    with pytest.raises(ValueError, match="has no state of an optimizer"):
        checkpoint.load(file, model, optimizer)
    with pytest.raises(ValueError, match="the states of 0 schedulers, not 1"):
        checkpoint.load(file, model, schedulers=[ExponentialLR(optimizer, 0.5)])
    with pytest.raises(ValueError, match="belong to no part of the model: b"):
        checkpoint.load_model_state({"a": model}, {"b.weight": torch.ones(1)})
    for use in (checkpoint.model_state, lambda found: checkpoint.load_model_state(found, {})):
        with pytest.raises(TypeError, match="expected a module, a RemoteModule"):
            use(3)


class Unwritable:
    def __reduce__(self) -> Any:
        raise OSError("no room")


def test_a_checkpoint_that_fails_leaves_the_one_before(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "file"
    checkpoint.save(file, nn.Linear(1, 1), extra={"epoch": 1})
    with pytest.raises(OSError, match="no room"):
        checkpoint.save(file, nn.Linear(1, 1), extra={"epoch": Unwritable()})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert checkpoint.load(file, nn.Linear(1, 1)) == {"epoch": 1}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
