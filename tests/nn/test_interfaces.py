"""RemoteModules that TorchScript calls."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._jit_internal import Future

from zrpc import autograd
from zrpc.errors import LocalFault
from zrpc.nn.api.remote_module import RemoteModule, _RemoteModule
from zrpc.nn.interfaces import check_interface
from zrpc.rref import RRef
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster


@torch.jit.interface
class Repeater:
    def forward(self, x: Tensor, times: int, word: str = "word") -> tuple[str, Tensor]:
        pass


@torch.jit.interface
class LaterRepeater:
    def forward_async(self, x: Tensor, times: int, word: str = "word") -> Future[tuple[str, Tensor]]:
        pass


@torch.jit.interface
class Source:
    def forward(self) -> Tensor:
        pass


class Repeat(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor, times: int, word: str = "word") -> tuple[str, Tensor]:
        return word, (x + self.start).repeat(times)


class Constant(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        install_agent(running["a"].agent)
        try:
            yield running
        finally:
            remove_agent(running["a"].agent)


@pytest.fixture
def module(cluster: LocalCluster) -> _RemoteModule:
    return _RemoteModule("b", Repeat, (1.0,), _module_interface_cls=Repeater)


def test_it_is_a_remote_module_too(module: _RemoteModule) -> None:
    assert module.is_scriptable
    word, found = module.forward(torch.ones(1), 2, "x")
    assert (word, found.tolist()) == ("x", [2.0, 2.0])
    assert module(torch.ones(1), 1)[0] == "word"
    assert len(module.remote_parameters()) == 1
    assert list(module.remote_state_dict()) == ["start"]


def test_script_functions_call_it_by_its_interface(module: _RemoteModule) -> None:
    compiled = torch.jit.script(module)

    @torch.jit.script
    def now(repeater: Repeater, x: Tensor) -> tuple[str, Tensor]:
        return repeater.forward(x, 3, "now")  # TorchScript leaves the defaults of interfaces out

    @torch.jit.script
    def later(repeater: LaterRepeater, x: Tensor) -> tuple[str, Tensor]:
        return repeater.forward_async(x, 1, "later").wait()

    assert now(compiled, torch.ones(1))[1].tolist() == [2.0, 2.0, 2.0]
    word, found = later(compiled, torch.zeros(1))
    assert (word, found.tolist()) == ("later", [1.0])
    assert compiled.forward(torch.ones(1), 1)[1].tolist() == [2.0]
    assert compiled.forward_async(torch.ones(1), 1).wait()[1].tolist() == [2.0]


def test_gradients_go_through_script_functions(cluster: LocalCluster, module: _RemoteModule) -> None:
    compiled = torch.jit.script(module)

    @torch.jit.script
    def doubled(repeater: Repeater, x: Tensor) -> Tensor:
        return 2 * repeater.forward(x, 3, "")[1].sum()

    x = torch.ones(1, requires_grad=True)
    (start,) = module.remote_parameters()
    with autograd.context() as context_id:
        autograd.backward(context_id, [doubled(compiled, x)])
        assert autograd.get_gradients(context_id)[x] == 6.0
        assert cluster["a"].rpc_sync("b", gradient_of, (start, context_id)) == 6.0


def gradient_of(parameter: RRef[nn.Parameter], context_id: int) -> Tensor:
    return autograd.get_gradients(context_id)[parameter.local_value()]


def test_two_of_one_interface_are_two(cluster: LocalCluster, module: _RemoteModule) -> None:
    other = _RemoteModule("c", Repeat, (5.0,), _module_interface_cls=Repeater)
    first, second = torch.jit.script(module), torch.jit.script(other)
    assert first.forward(torch.zeros(1), 1)[1] == 1.0
    assert second.forward(torch.zeros(1), 1)[1] == 5.0


def test_what_is_compiled_keeps_the_module(cluster: LocalCluster) -> None:
    compiled = torch.jit.script(_RemoteModule("b", Repeat, (1.0,), _module_interface_cls=Repeater))
    gc.collect()
    assert compiled.forward(torch.zeros(1), 1)[1] == 1.0


def test_without_arguments(cluster: LocalCluster) -> None:
    module = _RemoteModule("b", Constant, _module_interface_cls=Source)
    assert torch.jit.script(module).forward().tolist() == [1.0, 1.0]


def forward_there(module: _RemoteModule, x: Tensor) -> tuple[str, Tensor]:
    return module.forward(x, 1)


def test_it_is_sent_and_what_is_compiled_of_it_is_not(cluster: LocalCluster, module: _RemoteModule) -> None:
    assert cluster["a"].rpc_sync("c", forward_there, (module, torch.ones(1)))[1] == 2.0
    with pytest.raises(LocalFault, match="Passing a script RemoteModule over RPC is not supported"):
        cluster["a"].rpc_sync("c", forward_there, (torch.jit.script(module), torch.ones(1)))
    again = RemoteModule.init_from_module_rref("b", module.module_rref, _module_interface_cls=Repeater)
    assert torch.jit.script(again).forward(torch.zeros(1), 1)[1] == 1.0
    with pytest.raises(torch.jit.Error, match="can only be pickled when using RPC"):
        torch.save(torch.jit.script(module), io.BytesIO())


def test_what_does_not_fit_the_interface(cluster: LocalCluster) -> None:
    with pytest.raises(RuntimeError, match="is not a subtype of the type hint"):
        _RemoteModule("b", Constant, _module_interface_cls=Repeater)
    with pytest.raises(ValueError, match="must have a method forward"):
        check_interface(LaterRepeater)
