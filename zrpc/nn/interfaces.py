"""RemoteModules that TorchScript can call: a class for each `torch.jit.interface`.

One rule: what TorchScript compiles of such a class is two methods with the interface's signature, which hand over to
Python functions that make the call. So a script function calls a RemoteModule as any module of that interface, in this
process; what is compiled of it cannot be saved or sent.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
import typing
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import _jit_internal

from zrpc.rref import RRef
from zrpc.serialization.values import REMOTE_HANDLE

Begin = Callable[[RRef[Any], str, bool, tuple[Any, ...]], Any]
"""Starts a call of `forward`: (the module, its device, whether a device map is set, arguments); returns a future."""

_SOURCE = """\
def forward(self{declared}) -> result_type:
    return self._forward_by_python({names})


def forward_async(self{declared}) -> future_type:
    return self._forward_async_by_python({names})


def _forward_by_python(self{declared}) -> result_type:
    return call(self, ({names})).wait()


def _forward_async_by_python(self{declared}) -> future_type:
    return call(self, ({names}))
"""


def check_interface(interface: Any) -> None:
    """Raise `ValueError` for what is not a `torch.jit.interface` with a method forward."""
    if not getattr(interface, "__torch_script_interface__", False):
        raise ValueError(f"module_interface_cls {interface} must be a type object decorated by @torch.jit.interface")
    if not callable(getattr(interface, "forward", None)):
        raise ValueError(f"module_interface_cls {interface} must have a method forward")


@functools.cache
def scriptable(base: type, interface: Any, begin: Begin) -> type:
    """The class of RemoteModules of `interface`, below `base`. Its instances are given `enroll()` when they are complete.

    Compiled code can hold numbers only, so an instance is known to it by the number of its RRef here, which lives as long
    as the RemoteModule, or what is compiled of it.
    """
    check_interface(interface)
    living: weakref.WeakValueDictionary[int, RRef[Any]] = weakref.WeakValueDictionary()
    numbers = itertools.count(1)

    def enroll(self: Any) -> None:
        number = next(numbers)
        living[number] = self.module_rref
        setattr(self, REMOTE_HANDLE, number)

    def call(self: Any, args: tuple[Any, ...]) -> Any:
        return begin(living[getattr(self, REMOTE_HANDLE)], self.device, self.is_device_map_set, args)

    methods = make_methods(interface, call)
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__jit_ignored_attributes__": ["module_rref", "generated_methods"],
        "interface": interface,
        "enroll": enroll,
        **methods,
    }
    return type(f"{base.__name__}Of{interface.__name__}", (base,), namespace)


def make_methods(interface: Any, call: Callable[[Any, tuple[Any, ...]], Any]) -> dict[str, Callable[..., Any]]:
    """forward and forward_async with the interface's signature, and the two functions that they hand over to.

    TorchScript reads the source of what it compiles, so there is one: its names stand for the interface's own types.
    """
    signature = inspect.signature(interface.forward)
    parameters = list(signature.parameters.values())[1:]  # without self
    hints = typing.get_type_hints(interface.forward)
    result_type = hints.get("return", torch.Tensor)
    future_of: Any = _jit_internal.Future  # type: ignore[attr-defined]
    scope: dict[str, Any] = {"call": call, "result_type": result_type, "future_type": future_of[result_type]}
    declared = []
    for index, parameter in enumerate(parameters):
        scope[f"type_{index}"] = hints.get(parameter.name, torch.Tensor)
        text = f"{parameter.name}: type_{index}"
        if parameter.default is not parameter.empty:
            scope[f"default_{index}"] = parameter.default
            text += f" = default_{index}"
        declared.append(f", {text}")
    source = _SOURCE.format(
        declared="".join(declared), names="".join(f"{parameter.name}, " for parameter in parameters)
    )
    file = f"<forward of {interface.__module__}.{interface.__qualname__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec", dont_inherit=True), scope)  # its annotations are to be types, not text
    return {
        "forward": torch.jit.export(scope["forward"]),
        "forward_async": torch.jit.export(scope["forward_async"]),
        "_forward_by_python": torch.jit.ignore(scope["_forward_by_python"]),  # type: ignore[no-untyped-call]
        "_forward_async_by_python": torch.jit.ignore(scope["_forward_async_by_python"]),  # type: ignore[no-untyped-call]
    }
