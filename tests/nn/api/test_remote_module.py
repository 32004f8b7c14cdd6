"""RemoteModule: torch's behaviour, on workers that share a process."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zrpc import autograd
from zrpc.errors import NotInitialized, UnknownWorker
from zrpc.internal import deserialize, serialize
from zrpc.nn import RemoteModule
from zrpc.nn.api.remote_module import _REMOTE_MODULE_PICKLED_ATTRIBUTES, _RemoteModule
from zrpc.rref import RRef
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster


class Scale(nn.Module):
    def __init__(self, factor: float, offset: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.inner = nn.Linear(2, 2, bias=False)
        self.offset = offset

    def forward(self, x: Tensor, *, times: int = 1) -> tuple[Tensor, bool]:
        return x * self.factor * times + self.offset, self.training


class NoModule:
    pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        install_agent(running["a"].agent)
        try:
            yield running
        finally:
            remove_agent(running["a"].agent)


@pytest.fixture
def scale(cluster: LocalCluster) -> RemoteModule:
    return RemoteModule("b", Scale, (3.0,), {"offset": 1.0})


def test_forward_runs_on_the_owner(scale: RemoteModule) -> None:
    assert scale.forward(torch.ones(1)) == (torch.tensor([4.0]), True)
    assert scale(torch.ones(1), times=2)[0] == 7.0
    assert scale.forward_async(torch.ones(1), times=3).wait()[0] == 10.0
    assert scale.get_module_rref() is scale.module_rref
    assert scale.module_rref.owner_name() == "b"


@pytest.mark.parametrize("device", ["b/cpu", "b", "rank:1/cpu", "rank:1"])
def test_where_it_may_be(cluster: LocalCluster, device: str) -> None:
    found = RemoteModule(device, nn.Identity)
    assert found.module_rref.owner_name() == "b"
    assert found.on == (1 if device.startswith("rank") else "b")
    assert found.device == "cpu"
    assert f"on={found.on!r}, device='cpu'" in repr(found)


@pytest.mark.parametrize(
    ("device", "error", "text"),
    [
        ("b/foo", RuntimeError, "Expected one of .+ device type at start of device string"),
        ("b/", RuntimeError, "Device string must not be empty"),
        ("b/cuda:0/cuda:1", ValueError, "Could not parse remote_device: b/cuda:0/cuda:1. The valid format is"),
        ("/cuda:0", ValueError, "Could not parse remote_device: /cuda:0. The valid format is"),
        ("nobody/cpu", UnknownWorker, "nobody"),
        ("cpu", ValueError, "Could not find a worker in remote_device: cpu"),
    ],
)
def test_wrong_places(cluster: LocalCluster, device: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RemoteModule(device, nn.Identity)


def test_a_device_that_the_owner_lacks(cluster: LocalCluster) -> None:
    """The first use says so, with the owner's name."""
    found = RemoteModule("b/hpu", nn.Linear, (2, 2))
    with pytest.raises(RuntimeError, match=r"name=b(.|\n)*cannot put a Linear on device 'hpu'"):
        found.forward(torch.ones(2))


def test_what_is_no_module(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match=r"Expect `module_cls\(\*args, \*\*kwargs\)` returns an instance of <class nn"):
        RemoteModule("b", NoModule).forward()


def test_the_constructors_error_comes_with_the_first_use(cluster: LocalCluster) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'factor'"):
        RemoteModule("b", Scale).forward(torch.ones(1))


def test_without_an_agent(cluster: LocalCluster) -> None:
    remove_agent(cluster["a"].agent)
    try:
        with pytest.raises(NotInitialized, match="RemoteModule"):
            RemoteModule("b", nn.Identity)
    finally:
        install_agent(cluster["a"].agent)


def test_remote_parameters_are_the_owners(cluster: LocalCluster, scale: RemoteModule) -> None:
    everything = scale.remote_parameters()
    assert [found.to_here().shape for found in everything] == [torch.Size([]), torch.Size([2, 2])]
    (direct,) = scale.remote_parameters(recurse=False)
    assert isinstance(direct.to_here(), nn.Parameter)
    cluster["a"].rpc_sync("b", set_to, (direct, 5.0))
    assert scale.forward(torch.ones(1))[0] == 6.0


def set_to(parameter: RRef[nn.Parameter], value: float) -> None:
    with torch.no_grad():
        parameter.local_value().fill_(value)


def test_train_and_eval_are_the_modules(scale: RemoteModule) -> None:
    assert scale.eval() is scale
    assert scale.forward(torch.ones(1))[1] is False
    assert scale.train(True) is scale
    assert scale.forward(torch.ones(1))[1] is True
    outer = nn.Sequential(nn.Identity(), scale)
    outer.eval()
    assert scale.forward(torch.ones(1))[1] is False


def gradients_of(module: RRef[nn.Module], context_id: int) -> list[float]:
    found = autograd.get_gradients(context_id)
    return [float(found[parameter]) for parameter in module.local_value().parameters() if parameter in found]


def forward_there(module: RemoteModule, x: Tensor) -> Tensor:
    return module.forward_async(x).wait()[0]


def test_gradients_go_through_it_wherever_it_is_called(cluster: LocalCluster, scale: RemoteModule) -> None:
    x = torch.ones(1, requires_grad=True)
    with autograd.context() as context_id:
        y = scale(x)[0] + scale.forward_async(x).wait()[0] + cluster["a"].rpc_sync("c", forward_there, (scale, x))
        autograd.backward(context_id, [y])
        assert autograd.get_gradients(context_id) == {x: 9.0}
        assert cluster["a"].rpc_sync("b", gradients_of, (scale.module_rref, context_id)) == [3.0]


# -------------------------------------------------------------------------------------- how it travels


def names_of(module: RemoteModule) -> list[str]:
    return list(vars(module))


def call_there(module: RemoteModule, x: Tensor) -> Any:
    return module(x), module.forward_async(x).wait(), repr(module)


def give_back(module: Any) -> Any:
    return module


def test_it_is_sent_as_a_reference(cluster: LocalCluster, scale: RemoteModule) -> None:
    wanted = [*_REMOTE_MODULE_PICKLED_ATTRIBUTES, "forward_async", "forward"]
    assert cluster["a"].rpc_sync("c", names_of, (scale,)) == wanted
    direct, later, shown = cluster["a"].rpc_sync("c", call_there, (scale, torch.ones(1)))
    assert direct[0] == later[0] == 4.0
    assert "on='b'" in shown
    back = cluster["a"].rpc_sync("c", give_back, ([scale, scale],))
    assert back[0] is back[1]
    assert back[0].module_rref.rref_id == scale.module_rref.rref_id
    assert back[0].train(False).forward(torch.ones(1)) == (torch.tensor([4.0]), False)
    assert cluster["a"].rpc_sync("c", names_of, (back[0],)) == wanted, "sent on"


def test_what_else_is_set_stays_here(
    cluster: LocalCluster, scale: RemoteModule, caplog: pytest.LogCaptureFixture
) -> None:
    scale.note = 1
    assert "note" not in cluster["a"].rpc_sync("c", names_of, (scale,))
    assert "The new attribute note of RemoteModule is ignored" in caplog.text


def test_its_methods_travel_too(cluster: LocalCluster, scale: RemoteModule) -> None:
    forward = cluster["a"].rpc_sync("c", give_back, (scale.forward,))
    assert forward(torch.ones(1))[0] == 4.0


@pytest.mark.parametrize(
    "use", [pickle.dumps, copy.copy, copy.deepcopy, lambda module: torch.save(module, io.BytesIO())]
)
def test_it_is_not_pickled_outside_of_a_call(scale: RemoteModule, use: Any) -> None:
    text = "Cannot pickle RemoteModule in python pickler. RemoteModule can only be pickled when using RPC"
    with pytest.raises(RuntimeError, match=text):
        use(scale)
    with pytest.raises(RuntimeError, match="Cannot unpickle RemoteModule in python pickler"):
        scale.__setstate__({})


def test_torchs_name_for_the_pickler_writes_it(scale: RemoteModule) -> None:
    back = deserialize(*serialize(scale))
    assert back.module_rref is scale.module_rref
    with pytest.raises(RuntimeError, match="Cannot pickle RemoteModule"):
        pickle.dumps(scale)


def test_from_a_reference(cluster: LocalCluster, scale: RemoteModule) -> None:
    other = RemoteModule.init_from_module_rref("b/cpu", scale.get_module_rref())
    assert type(other) is RemoteModule
    assert other.training is True
    assert other.forward(torch.ones(1))[0] == 4.0
    args = ("b/cpu", scale.get_module_rref())
    there = cluster["a"].rpc_sync("c", RemoteModule.init_from_module_rref, args)
    assert there.forward(torch.ones(1))[0] == 4.0
    assert len(there.remote_parameters()) == 2


# -------------------------------------------------------------------------------------- its state


def test_its_state_as_a_module_of_the_class_has_it(scale: RemoteModule) -> None:
    local = Scale(0.0)
    local.load_state_dict(scale.remote_state_dict())
    assert local.factor == 3.0
    assert list(scale.remote_state_dict(prefix="x.")) == ["x.factor", "x.inner.weight"]
    assert [name for name, _ in scale.stream_state_dict(part_bytes=1)] == list(local.state_dict())
    with torch.no_grad():
        local.factor.fill_(8.0)
    assert scale.load_remote_state_dict(local.state_dict()) == ([], [])
    assert scale.forward(torch.ones(1))[0] == 9.0
    with pytest.raises(RuntimeError, match=r"Missing key.*inner\.weight"):
        scale.load_remote_state_dict({"factor": torch.tensor(1.0)})
    assert scale.load_remote_state_dict({"y": torch.tensor(1.0)}, strict=False) == (["factor", "inner.weight"], ["y"])


def test_an_interface_must_be_one(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match=r"must be a type object decorated by @torch.jit.interface"):
        _RemoteModule("b", Scale, (1.0,), _module_interface_cls=Scale)
