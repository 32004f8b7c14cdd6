"""What the owner of a remote module does. Accelerators: see `tests/integration/test_devices.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from zrpc.nn import owner
from zrpc.rref import RRef
from zrpc.runtime.context import install_agent, remove_agent
from zrpc.testing import LocalCluster


@pytest.fixture(autouse=True, scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a"]) as running:
        install_agent(running["a"].agent)
        try:
            yield running
        finally:
            remove_agent(running["a"].agent)


class Hooked(nn.Module):
    def forward(self, x: Tensor, parts: dict[str, Tensor]) -> Tensor:
        return x + parts["y"]


def test_a_module_is_put_on_its_device() -> None:
    assert owner.create_module(nn.Linear, (2, 2), {"bias": False}, "meta").weight.is_meta  # type: ignore[union-attr]


class Unmovable(nn.Module):
    def to(self, *_: object, **__: object) -> nn.Module:  # type: ignore[override]
        raise AssertionError("Torch not compiled with CUDA enabled")


@pytest.mark.parametrize(
    ("module_cls", "args", "device", "text"),
    [
        (Unmovable, (), "cuda:1", "cannot put a Unmovable on device 'cuda:1': Torch not compiled with CUDA enabled"),
        (nn.Linear, (2, 2), "hpu", "cannot put a Linear on device 'hpu': No module named 'torch.hpu'"),
    ],
)
def test_a_device_that_torch_lacks_here(module_cls: type, args: tuple[int, ...], device: str, text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        owner.create_module(module_cls, args, {}, device)


def test_its_hooks_run() -> None:
    module = Hooked()
    module.register_forward_hook(lambda _module, _args, result: result * 10)
    result = owner.forward(RRef(module), "cpu", False, (torch.ones(1),), {"parts": {"y": torch.ones(1)}})
    assert result == 20.0


def test_parameters_are_referred_to_not_copied() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    found = owner.parameters_of(RRef(module), recurse=True)
    wanted = list(module.parameters())
    assert [rref.local_value() is parameter for rref, parameter in zip(found, wanted, strict=True)] == [True] * 3
    assert owner.parameters_of(RRef(module), recurse=False) == []


def test_the_mode_is_set() -> None:
    module = nn.Sequential(nn.Dropout())
    owner.set_training(RRef(module), False)
    assert not module[0].training
