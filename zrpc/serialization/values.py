"""Values of TorchScript beside tensors: how they leave, and how they arrive.

One rule: a value arrives as the type that TorchScript gives for it in this process: the user's class where it is known
here, else a stand-in that TorchScript takes for it. Looking for a class never imports a module.
"""

from __future__ import annotations

import enum
import sys
from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch.jit._recursive import wrap_cpp_module
from torch.jit._script import RecursiveScriptModule
from torch.jit._state import _get_python_class, _get_script_class

from zrpc.errors import EncodeError, FrameError, LocalFault
from zrpc.serialization import names
from zrpc.serialization.archives import load_archive
from zrpc.serialization.dtypes import (
    DTYPE_NUMBERS,
    DTYPES,
    LAYOUT_NUMBERS,
    LAYOUTS,
    MEMORY_FORMAT_NUMBERS,
    MEMORY_FORMATS,
)
from zrpc.serialization.tensors import Reduced

MAX_FIELDS: Final = 1024
MAX_NAME: Final = 1024
REMOTE_HANDLE: Final = "_remote_handle"
"""The attribute that a script module has when it stands for a module on another worker (see `nn.interfaces`)."""


class ScriptObject:
    """An instance of a TorchScript class that this process does not know: its name and attributes.

    TorchScript takes it for an instance of that class wherever a function from shipped code asks for one, since it
    converts by attribute.
    """

    def __init__(self, qualified_name: str, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self.__dict__["_zrpc_qualified_name"] = qualified_name

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k != "_zrpc_qualified_name")
        return f"<ScriptObject {self.__dict__['_zrpc_qualified_name']} {fields}>"


# ------------------------------------------------------------------------------------------------ leaving


def _reduce_complex(value: complex) -> Reduced:
    return names.complex_number, (value.real, value.imag)


def _reduce_dtype(value: torch.dtype) -> Reduced:
    return names.dtype, (DTYPE_NUMBERS[value],)


def _reduce_device(value: torch.device) -> Reduced:
    return names.device, (str(value),)


def _reduce_layout(value: torch.layout) -> Reduced:
    return names.layout, (LAYOUT_NUMBERS[value],)


def _reduce_memory_format(value: torch.memory_format) -> Reduced:
    return names.memory_format, (MEMORY_FORMAT_NUMBERS[value],)


def _reduce_size(value: torch.Size) -> Reduced:
    return names.size, (tuple(value),)


def _reduce_script_object(value: ScriptObject) -> Reduced:
    attributes = dict(vars(value))
    return names.script_object, (attributes.pop("_zrpc_qualified_name"), attributes)


def archive_tensor(archive: bytes) -> torch.Tensor:
    """The bytes of an archive as an uint8 tensor, so that they travel beside the pickle."""
    return torch.frombuffer(bytearray(archive), dtype=torch.uint8)


def reduce_module(module: torch.jit.ScriptModule) -> Reduced:
    """A ScriptModule by value."""
    if module._c.hasattr(REMOTE_HANDLE):
        raise LocalFault(
            "Passing a script RemoteModule over RPC is not supported. Send the RemoteModule that it was compiled of, or "
            "its `module_rref`, from which `init_from_module_rref` makes another one there."
        )
    return names.script_module, (archive_tensor(module._c.save_to_buffer({})),)


SCRIPT_REDUCERS: Final[dict[type, Callable[[Any], Any]]] = {
    complex: _reduce_complex,
    torch.dtype: _reduce_dtype,
    torch.device: _reduce_device,
    torch.layout: _reduce_layout,
    torch.memory_format: _reduce_memory_format,
    torch.Size: _reduce_size,
    ScriptObject: _reduce_script_object,
    RecursiveScriptModule: reduce_module,
}

_PLAIN_BASES: Final = (bool, int, float, complex, str, list, dict)


def reducer_of(cls: type) -> Callable[[Any], Any] | None:
    """How instances of a class that has no entry in the table leave as TorchScript values; None when they cannot."""
    if issubclass(cls, enum.Enum):
        return _reduce_enum
    if issubclass(cls, tuple):
        return _reduce_named_tuple if hasattr(cls, "_fields") else _reduce_tuple
    for base in _PLAIN_BASES:
        if issubclass(cls, base):
            return lambda value: (names.same, (base(value),))
    if issubclass(cls, np.generic):
        return lambda value: (names.same, (value.item(),))
    if issubclass(cls, torch.jit.ScriptModule):
        return reduce_module
    if _get_script_class(cls) is not None:  # type: ignore[no-untyped-call]
        return _reduce_class_instance
    return None


def _reduce_tuple(value: tuple[Any, ...]) -> Reduced:
    return names.same, (tuple(value),)


def _reduce_named_tuple(value: Any) -> Reduced:
    return names.named_tuple, (type(value).__name__, tuple(value._fields), tuple(value))


def _reduce_enum(value: enum.Enum) -> Reduced:
    cls = type(value)
    return names.enum_member, (cls.__module__, cls.__qualname__, value.name, value.value)


def _reduce_class_instance(value: Any) -> Reduced:
    script_class: Any = _get_script_class(type(value))  # type: ignore[no-untyped-call]
    if not hasattr(value, "__dict__"):
        raise EncodeError("a value", type(value).__name__, "an instance of a TorchScript class needs a __dict__")
    return names.script_object, (script_class.qualified_name(), dict(vars(value)))


# ------------------------------------------------------------------------------------------------ arriving


def _fail(why: str) -> FrameError:
    return FrameError(f"not a TorchScript value: {why}")


def _look_up(table: dict[int, Any], number: Any, what: str) -> Any:
    value = table.get(number) if type(number) is int else None
    if value is None:
        raise _fail(f"{what} {number!r:.80} is not known to this torch")
    return value


def _check_name(name: Any) -> str:
    if type(name) is not str or not 0 < len(name) <= MAX_NAME:
        raise _fail("a name is not a text of at most 1024 characters")
    return name


@lru_cache(maxsize=512)
def _named_tuple_class(name: str, fields: tuple[str, ...]) -> Any:
    # The module is what TorchScript gives its own.
    return namedtuple(name, fields, module="torch._jit_internal")


def named_tuple(name: Any, fields: Any, values: Any) -> Any:
    """A named tuple of an ad-hoc class with that name and those fields, as a TorchScript function returns one."""
    if type(fields) is not tuple or type(values) is not tuple or not len(fields) == len(values) <= MAX_FIELDS:
        raise _fail("a named tuple's fields and values do not match")
    for field in fields:
        _check_name(field)
    return tuple.__new__(_named_tuple_class(_check_name(name), fields), values)


def _find_loaded(module: str, qualified_name: str) -> Any:
    """An attribute of a module that is imported already, None if there is none. `__mp_main__` is `__main__`."""
    found: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in qualified_name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found


@lru_cache(maxsize=512)
def _stand_in_enum(module: str, qualified_name: str, member: str, _: str, value: Any) -> Any:
    made = enum.Enum(qualified_name.rpartition(".")[2], {member: value}, module=module)  # type: ignore[misc]
    made.__qualname__ = qualified_name
    return made


def enum_member(module: Any, qualified_name: Any, member: Any, value: Any) -> Any:
    """A member of the Enum of that name, if its module is imported here; else of a stand-in with that one member."""
    cls = _find_loaded(_check_name(module), _check_name(qualified_name))
    _check_name(member)
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        found = cls.__members__.get(member)
        if found is None:
            raise _fail(f"{qualified_name} has no member {member!r} here")
        return found
    if type(value) not in (int, float, str):
        raise _fail(f"the value of {qualified_name}.{member} is not a number or a text")
    return _stand_in_enum(module, qualified_name, member, type(value).__name__, value)[member]


def script_object(qualified_name: Any, attributes: Any) -> Any:
    """An instance of the TorchScript class of that name; a `ScriptObject` when this process does not know the class."""
    _check_name(qualified_name)
    if type(attributes) is not dict or len(attributes) > MAX_FIELDS:
        raise _fail("the attributes of an object are not a dict")
    for name in attributes:
        _check_name(name)
        if name.startswith("__"):
            raise _fail(f"the name {name!r:.80} is not an attribute")
    cls = _get_python_class(qualified_name)  # type: ignore[no-untyped-call]
    if cls is None:
        return ScriptObject(qualified_name, attributes)
    made = object.__new__(cls)
    vars(made).update(attributes)
    return made


def archive_bytes(archive: Any) -> bytes:
    """The archive that `archive_tensor` was made of."""
    if type(archive) is not torch.Tensor or archive.dtype is not torch.uint8 or archive.dim() != 1:
        raise _fail("an archive is not a vector of bytes")
    return bytes(archive.numpy().tobytes())


def _script_module(archive: Any) -> Any:
    return wrap_cpp_module(load_archive(archive_bytes(archive)))  # type: ignore[no-untyped-call]


def _device(text: Any) -> torch.device:
    return torch.device(_check_name(text))


def _size(values: Any) -> torch.Size:
    if type(values) is not tuple or not all(type(value) is int for value in values):
        raise _fail("a torch.Size is not made of numbers")
    return torch.Size(values)


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise _fail("a complex number is not made of two floats")
    return complex(real, imaginary)


def _same(value: Any) -> Any:
    return value


RESOLVERS: Final[dict[str, Callable[..., Any]]] = {
    "same": _same,
    "complex_number": _complex,
    "dtype": lambda number: _look_up(DTYPES, number, "dtype"),
    "layout": lambda number: _look_up(LAYOUTS, number, "layout"),
    "memory_format": lambda number: _look_up(MEMORY_FORMATS, number, "memory format"),
    "device": _device,
    "size": _size,
    "named_tuple": named_tuple,
    "enum_member": enum_member,
    "script_object": script_object,
    "script_module": _script_module,
}
"""The names (see `names`) that need nothing of the message."""
