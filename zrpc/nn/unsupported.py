"""What a module that lives elsewhere does not have: the methods of `torch.nn.Module` that work on its parts.

One rule: each of them raises, with torch's text, before anything is done. Without this they would work on an empty module
and seem to succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn


def refuse(name: str, hint: str = "") -> Callable[..., NoReturn]:
    """A method that raises `ValueError`: it is not supported."""

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(f"Method ``{name}`` not supported for RemoteModule{hint}")

    method.__name__ = name
    method.__qualname__ = f"RemoteModule.{name}"
    method.__doc__ = f"Not supported: raises `ValueError`{hint}"
    return method


class WithoutParts(nn.Module):
    """A module whose parts are not here."""

    add_module: Any = refuse("add_module")
    register_module: Any = refuse("register_module")
    register_parameter: Any = refuse("register_parameter")
    register_buffer: Any = refuse("register_buffer")

    parameters: Any = refuse("parameters", ". Please use ``remote_parameters`` instead.")
    named_parameters: Any = refuse("named_parameters")
    buffers: Any = refuse("buffers")
    named_buffers: Any = refuse("named_buffers")
    children: Any = refuse("children")
    named_children: Any = refuse("named_children")
    modules: Any = refuse("modules")
    named_modules: Any = refuse("named_modules")

    state_dict: Any = refuse("state_dict", ". Please use ``remote_state_dict`` instead.")
    load_state_dict: Any = refuse("load_state_dict", ". Please use ``load_remote_state_dict`` instead.")

    apply: Any = refuse("apply")
    requires_grad_: Any = refuse("requires_grad_")
    zero_grad: Any = refuse("zero_grad")
    share_memory: Any = refuse("share_memory")
    extra_repr: Any = refuse("extra_repr")

    to: Any = refuse("to")
    to_empty: Any = refuse("to_empty")
    cpu: Any = refuse("cpu")
    cuda: Any = refuse("cuda")
    ipu: Any = refuse("ipu")
    xpu: Any = refuse("xpu")
    type: Any = refuse("type")
    float: Any = refuse("float")
    double: Any = refuse("double")
    half: Any = refuse("half")
    bfloat16: Any = refuse("bfloat16")

    register_forward_pre_hook: Any = refuse("register_forward_pre_hook")
    register_forward_hook: Any = refuse("register_forward_hook")
    register_backward_hook: Any = refuse("register_backward_hook")
    register_full_backward_pre_hook: Any = refuse("register_full_backward_pre_hook")
    register_full_backward_hook: Any = refuse("register_full_backward_hook")
