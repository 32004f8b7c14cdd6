"""What zrpc does with an accelerator. Run by `test_devices`, in a process that has the device of `hostdevice`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hostdevice
import pytest
import torch
from torch import Tensor, nn

from zrpc import autograd
from zrpc.api import remote, rpc_sync
from zrpc.nn import RemoteModule
from zrpc.optim import DistributedOptimizer
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster

DEVICE = f"{hostdevice.NAME}:0"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[LocalCluster]:
    libraries = hostdevice.start()
    with LocalCluster(["a", "b"]) as running:
        install_agent(running["a"].agent)
        try:
            yield running
        finally:
            remove_agent(running["a"].agent)
    assert libraries


# ------------------------------------------------------------------------------------------------ tensors in calls


def echo(value: Any) -> Any:
    return value


def devices_of(tensors: list[Tensor]) -> list[str]:
    return [str(tensor.device) for tensor in tensors]


def double(parts: list[Tensor]) -> list[Tensor]:
    """Change the first in place: a view of its storage sees it."""
    parts[0].mul_(2)
    return parts


def make(size: int) -> Tensor:
    return torch.arange(float(size)).to(DEVICE)


@pytest.mark.parametrize("size", [0, 1, 12, 5_000, 1_000_000])
def test_a_tensor_goes_there_and_back(size: int) -> None:
    before = hostdevice.copies["hostdevice to cpu"]
    sent = make(size)
    assert rpc_sync("b", devices_of, ([sent],)) == [DEVICE]
    assert (hostdevice.copies["hostdevice to cpu"] > before) == (size > 0)
    came = rpc_sync("b", echo, (sent,))
    assert str(came.device) == DEVICE
    assert torch.equal(came.cpu(), torch.arange(float(size)))
    assert size == 0 or came.data_ptr() != sent.data_ptr()


@pytest.mark.parametrize("view", [lambda t: t.t(), lambda t: t[1:, 2:4], lambda t: t[:, ::2], lambda t: t[0, 0]])
def test_views(view: Any) -> None:
    whole = make(24).reshape(4, 6)
    came = rpc_sync("b", echo, (view(whole),))
    assert torch.equal(came.cpu(), view(torch.arange(24.0).reshape(4, 6)))
    assert str(came.device) == DEVICE


def test_views_of_one_storage_stay_views_of_one_storage() -> None:
    whole = make(8)
    doubled, part = rpc_sync("b", double, ([whole, whole[2:4]],))
    assert torch.equal(doubled.cpu(), torch.arange(8.0) * 2)
    assert torch.equal(part.cpu(), torch.tensor([4.0, 6.0]))
    assert torch.equal(whole.cpu(), torch.arange(8.0))


def test_parameters_and_requires_grad() -> None:
    parameter = nn.Parameter(make(3))
    came = rpc_sync("b", echo, ([parameter, make(3).requires_grad_()],))
    assert [(type(tensor), tensor.requires_grad, str(tensor.device)) for tensor in came] == [
        (nn.Parameter, True, DEVICE),
        (Tensor, True, DEVICE),
    ]


def test_devices_may_be_mixed() -> None:
    assert rpc_sync("b", devices_of, ([make(3), torch.ones(3), torch.ones(3, device="meta")],)) == [
        DEVICE,
        "cpu",
        "meta",
    ]


def test_operators_and_references() -> None:
    found = remote("b", torch.add, (make(3), 1))
    assert str(found.to_here().device) == DEVICE
    assert torch.equal(found.to_here().cpu(), torch.arange(3.0) + 1)


@torch.jit.script
def scaled(x: Tensor) -> Tensor:
    return x * 3


def test_torchscript() -> None:
    came = rpc_sync("b", scaled, (make(3),))
    assert (str(came.device), came.cpu().tolist()) == (DEVICE, [0.0, 3.0, 6.0])


def test_gradients_come_back_to_the_device() -> None:
    weight = make(3).requires_grad_()
    with autograd.context() as context_id:
        loss = rpc_sync("b", torch.mul, (weight, weight)).sum()
        autograd.backward(context_id, [loss])
        gradient = autograd.get_gradients(context_id)[weight]
    assert str(gradient.device) == DEVICE
    assert gradient.cpu().tolist() == [0.0, 2.0, 4.0]


# ------------------------------------------------------------------------------------------------ RemoteModule


class Spy(nn.Module):
    """Says which devices its inputs are on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, *, more: dict[str, Tensor]) -> dict[str, Any]:
        devices = devices_of([x, more["y"], self.linear.weight])
        return {"sum": self.linear(x + more["y"]), "devices": devices}


@pytest.mark.parametrize("here", ["cpu", DEVICE])
def test_inputs_are_moved_there_and_results_come_back_to_the_cpu(here: str) -> None:
    module = RemoteModule(f"b/{DEVICE}", Spy)
    result = module(torch.ones(3).to(here), more={"y": torch.ones(3).to(here)})
    assert result["devices"] == [DEVICE] * 3
    assert str(result["sum"].device) == "cpu"
    assert result["sum"].item() == 6.0
    assert devices_of([parameter.to_here() for parameter in module.remote_parameters()]) == [DEVICE] * 2


def test_without_an_index() -> None:
    module = RemoteModule(f"b/{hostdevice.NAME}", Spy)
    assert module(torch.ones(3), more={"y": torch.ones(3)})["devices"] == [DEVICE] * 3


def test_its_state_comes_by_the_cpu_and_goes_back() -> None:
    module = RemoteModule(f"b/{DEVICE}", nn.Linear, (3, 1))
    state = module.remote_state_dict()
    assert devices_of(list(state.values())) == ["cpu", "cpu"]
    module.load_remote_state_dict({name: torch.full_like(value, 2.0) for name, value in state.items()})
    assert module(torch.ones(3)).item() == 8.0
    assert devices_of([parameter.to_here() for parameter in module.remote_parameters()]) == [DEVICE] * 2


def test_it_is_trained_there() -> None:
    module = RemoteModule(f"b/{DEVICE}", nn.Linear, (3, 1), {"bias": False})
    module.load_remote_state_dict({"weight": torch.ones(1, 3)})
    optimizer = DistributedOptimizer(torch.optim.SGD, module.remote_parameters(), lr=0.5)
    x = torch.arange(3.0).requires_grad_()
    with autograd.context() as context_id:
        autograd.backward(context_id, [module(x).sum()])
        assert autograd.get_gradients(context_id)[x].tolist() == [1.0, 1.0, 1.0]
        optimizer.step(context_id)
    assert module.remote_state_dict()["weight"].tolist() == [[1.0, 0.5, 0.0]]
