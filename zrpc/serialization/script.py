"""TorchScript functions as things to call: their names, their arguments, their code.

One rule: a call is checked against the function's schema here, on the caller, with what TorchScript itself would
accept; a wrong call raises here and sends nothing. What is sent has every argument in its place, so that the callee
needs no names and no defaults (an archive does not keep them).

A method of a ScriptModule goes with the module: by value, with each call. Its state belongs to the call, so nothing
that the method changes leaks back. To keep state on a worker, put the module there and call it by name.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.jit._state as jit_state

from zrpc.errors import ArgumentMismatch, EncodeError
from zrpc.serialization.archives import content_hash, method_hash
from zrpc.serialization.values import archive_tensor

_CACHE_ATTRIBUTE: Final = "_zrpc_callable"
"""Where a ScriptFunction keeps its description: it lives as long as the function, and a look-up costs 0.1 us."""

_EXACT: Final[dict[str, type]] = {
    "TensorType": torch.Tensor,
    "FloatType": float,
    "BoolType": bool,
    "StringType": str,
}
"""Kinds of type that take a value of one exact class without another look. (An int must be checked for its size.)"""

Placeholder = Callable[[Any], bool]


class ScriptError(RuntimeError, torch.jit.Error):
    """What an operator or a TorchScript function raised on a worker: a RuntimeError, as torch's RPC has it."""


def is_script(func: Any) -> bool:
    """Whether `func` is a TorchScript function, a method of a ScriptModule, or such a module (its forward)."""
    return isinstance(func, (torch.jit.ScriptFunction, torch._C.ScriptMethod, torch.jit.ScriptModule))


def describe(func: Any) -> ScriptCallable:
    """What there is to know for calling a TorchScript function; made once for a function.

    Raises `ArgumentMismatch` for a function that does not return exactly one value.
    """
    if isinstance(func, torch.jit.ScriptFunction):
        found: ScriptCallable | None = getattr(func, _CACHE_ATTRIBUTE, None)
        if found is None:
            found = ScriptCallable(func.qualified_name, func.schema, lambda: bytes(func.save_to_buffer({})))
            setattr(func, _CACHE_ATTRIBUTE, found)
        return found
    if isinstance(func, torch.jit.ScriptModule):
        func = func._c._get_method("forward")
    return ScriptMethodCallable(func)


class ScriptCallable:
    """A TorchScript function as its callers see it.

    `name` is its qualified name, `schema` what TorchScript prints for it, `returns_future` whether it returns a Future
    (which the callee waits for).
    """

    def __init__(self, name: str, schema: Any, save: Callable[[], bytes]) -> None:
        self.name = name
        self.schema = schema
        self._save = save
        self._lock = threading.Lock()
        self._archive: bytes | None = None
        self._hash: bytes | None = None
        if len(schema.returns) != 1:
            raise ArgumentMismatch(
                name,
                f"returns {len(schema.returns)} values; a remote call returns exactly one (a tuple is one)",
                str(schema),
            )
        self.returns_future = schema.returns[0].type.kind() == "FutureType"
        self._arguments = tuple(_Argument(a) for a in schema.arguments[self._hidden :])
        self._exact = tuple(argument.exact for argument in self._arguments)

    _hidden = 0
    """Leading arguments of the schema that a caller does not give."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def hash(self) -> bytes:
        """The 32 bytes that name its code. The first time costs saving it: about 0.3 ms."""
        if self._hash is None:
            self._hash = self._named(content_hash(self.archive()))
        return self._hash

    @functools.cached_property
    def can_travel(self) -> bool:
        """Whether its code can be saved; not if it calls Python (`torch.jit.ignore`). Only who has it can run it then."""
        try:
            self.archive()
        except EncodeError:
            return False
        return True

    def archive(self) -> bytes:
        """Its code and all that it calls, as `torch.jit.load` reads it. Raises `EncodeError` if it cannot be saved."""
        with self._lock:
            if self._archive is None:
                self._archive = self._saved()
            return self._archive

    def bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_placeholder: Placeholder | None = None
    ) -> tuple[Any, ...]:
        """All arguments in their places. Raises `ArgumentMismatch`.

        A value for which `is_placeholder` is true may stand for any argument; the callee checks what it stood for.
        """
        if kwargs or len(args) != len(self._exact):
            args = self._complete(args, kwargs)
        for index, value in enumerate(args):
            if type(value) is not self._exact[index]:
                args = self._check(args, index, is_placeholder)
        return args

    def _complete(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        arguments = self._arguments
        if len(args) > len(arguments):
            # torch counts a method's self among them, and so does this
            expected = len(arguments) + self._hidden
            raise self._mismatch(
                f"expected at most {expected} argument(s) but received {len(args) + self._hidden} argument(s)"
            )
        bound = list(args)
        used = 0
        for argument in arguments[: len(args)]:
            if argument.name in kwargs:
                raise self._mismatch(f"got argument '{argument.name}' both by position and by keyword")
        for argument in arguments[len(args) :]:
            if argument.name in kwargs:
                used += 1
                bound.append(kwargs[argument.name])
            elif argument.has_default:
                bound.append(argument.default)
            else:
                raise self._mismatch(f"is missing value for argument '{argument.name}'")
        if used != len(kwargs):
            unknown = sorted(set(map(str, kwargs)) - {argument.name for argument in arguments})
            raise self._mismatch(f"Unknown keyword argument '{unknown[0]}'")
        return tuple(bound)

    def _check(self, args: tuple[Any, ...], index: int, is_placeholder: Placeholder | None) -> tuple[Any, ...]:
        """Check one argument; give back all of them, since a number for a list of fixed length becomes that list."""
        value = args[index]
        if is_placeholder is not None and is_placeholder(value):
            return args
        argument = self._arguments[index]
        try:
            torch._C._jit_assert_is_instance(value, argument.type)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            if argument.length is not None and type(value) in (int, float):
                return (*args[:index], [value] * argument.length, *args[index + 1 :])
            raise self._mismatch(
                f"Expected a value of type '{argument.type_text}' for argument '{argument.name}' but instead found "
                f"type '{type(value).__name__}' (position {index}; {str(error).strip().splitlines()[0][:200]})"
            ) from None
        return args

    def _mismatch(self, why: str) -> ArgumentMismatch:
        return ArgumentMismatch(self.name, why, str(self.schema))

    def _named(self, content: bytes) -> bytes:
        return content

    def _saved(self) -> bytes:
        try:
            return bytes(self._save())
        except RuntimeError as error:
            raise EncodeError(self.name, "TorchScript function", f"it cannot be saved: {str(error)[:500]}") from error


class ScriptMethodCallable(ScriptCallable):
    """A method of a ScriptModule. The first of its bound arguments is the module, saved as it is at that time."""

    _hidden = 1
    can_travel = True  # with the module as it is at each call, which is where an error would be raised

    def __init__(self, method: Any) -> None:
        owner = method.owner
        self._method: str = method.name
        super().__init__(f"{owner._type().qualified_name()}.{method.name}", method.schema, owner.save_to_buffer)

    def _named(self, content: bytes) -> bytes:
        return method_hash(self._method, content)

    def bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_placeholder: Placeholder | None = None
    ) -> tuple[Any, ...]:
        """The module's archive as a tensor of bytes, then all arguments in their places."""
        return (archive_tensor(self._saved()), *super().bind(args, kwargs, is_placeholder))


class _Argument:
    """One argument of a schema."""

    __slots__ = ("default", "exact", "has_default", "length", "name", "type", "type_text")

    def __init__(self, argument: Any) -> None:
        self.name: str = argument.name
        self.type = argument.type
        self.exact = _EXACT.get(self.type.kind())
        self.has_default: bool = argument.has_default_value()
        self.default = argument.default_value if self.has_default else None
        self.length: int | None = getattr(argument, "N", None)
        self.type_text = self.type.annotation_str
        if getattr(self.type, "is_inferred", lambda: False)():
            self.type_text += " (inferred)"


def find_scripted(name: str) -> Any | None:
    """The function of that qualified name that was scripted in this process, None if there is none."""
    if not name.startswith("__torch__."):
        return None
    found: Any | None = jit_state._python_cu.find_function(name)
    return found
