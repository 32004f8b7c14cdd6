"""What is done with a remote module on the worker that has it.

One rule: everything here runs on the owner and is called by reference; the module itself never travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from zrpc.rref import RRef

_HERE = ("cpu", "meta")
"""Devices that nothing is moved to or from: tensors are there already, or have no values."""


def create_module(module_cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: str) -> nn.Module:
    """Make a module and put it on a device. Raises `ValueError` if what is made is no module, and `RuntimeError` if this
    worker's torch has no such device."""
    module = module_cls(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise ValueError(
            "Expect `module_cls(*args, **kwargs)` returns an instance of <class nn.Module>, "
            f"but it returns an instance of {type(module)}."
        )
    try:
        return module.to(device)
    except (AssertionError, ImportError) as error:  # torch was built without that kind of device, or lacks its module
        kind = torch.device(device).type
        raise RuntimeError(
            f"This worker cannot put a {type(module).__name__} on device {device!r}: {error}. "
            f"Install a torch with {kind} on it, or name another device"
        ) from error


def create_scripted(
    module_cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: str, interface: Any
) -> RRef[Any]:
    """Make a module, compile it, and refer to it by its TorchScript interface."""
    return RRef(torch.jit.script(create_module(module_cls, args, kwargs, device)), interface)


def parameters_of(module_rref: RRef[nn.Module], recurse: bool) -> list[RRef[nn.Parameter]]:
    """References to the module's parameters, in the module's order."""
    return [RRef(parameter) for parameter in module_rref.local_value().parameters(recurse)]


def set_training(module_rref: RRef[nn.Module], mode: bool) -> None:
    """Put the module in training mode, or in evaluation mode."""
    module_rref.local_value().train(mode)


def forward(
    module_rref: RRef[nn.Module], device: str, is_device_map_set: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call the module. On an accelerator, tensors are moved there first, and the result's back if no device map is set."""
    module = module_rref.local_value()
    if torch.device(device).type in _HERE:
        return module(*args, **kwargs)
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), (tuple(args), dict(kwargs)))
    result = module(*args, **kwargs)
    return result if is_device_map_set else tree_map_only(Tensor, lambda tensor: tensor.cpu(), result)
