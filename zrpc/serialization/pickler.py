"""The door to the codecs: values to a body and buffers, and back.

One rule: the bytes of tensors are never in the pickle. A message's body is a pickle of protocol 5 that names storages
by index; `tensors` says how a tensor leaves, `rebuild` how it arrives.

    TorchScript codec   | pickle |                                          begins with 0x80
                        | 0x01 | n u32 | n low bounds u64 | pickle |        when a span does not begin at 0
    Python codec        | 0x02 | crc32 u32 of the rest | storages u32 | n u32 | n low bounds u64 | pickle |
    both                | 0x03 | ... |                                      no pickle, see `plainvalues`

Buffers 0 to storages - 1 are spans of storages; after them, for the Python codec, come pickle's own out-of-band buffers
(large numpy arrays). n is 0 or the number of storages. Integers are little-endian.

The TorchScript codec reads only pickles of its own small grammar (see `grammar`) and only names of `names` and of the
hooks. The Python codec reads anything, which is to say that it runs code of the sender's choice: a worker may refuse
it. It writes with the C pickler, and with cloudpickle only what that cannot: lambdas, closures, local classes, and
whatever `__main__` defines (see `mainscript`). Its checksum is there because a damaged pickle can do worse than fail.

Measured with two float32[8] tensors in a tuple (2-core VM, Python 3.11): a pickler that is made once and used again
writes in 0.5 us what a fresh one does in 1.8; a dispatch table costs nothing for other objects, where a `persistent_id`
is called for each. So picklers are kept in a pool and taken out of it for the time of one call, which also makes it
safe for a reducer to call back.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import struct
import types
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import cloudpickle
import torch
from torch.nested._internal.nested_tensor import NestedTensor

from zrpc.errors import DecodeRefused, EncodeError, FrameError, NotImportable, ZrpcError
from zrpc.serialization import mainscript, names, plainvalues, rebuild, values
from zrpc.serialization.grammar import MAX_DEPTH, check_body
from zrpc.serialization.locate import explain
from zrpc.serialization.tensors import StorageTable, has_own_reduction
from zrpc.wire.envelope import Buffer

Reducer = Callable[[Any], Any]

SCRIPT: Final = "TorchScript"
PYTHON: Final = "Python"

_IN_BAND_BYTES: Final = 4096
"""Up to here a numpy array stays in the pickle."""
_POOLED: Final = 16
"""Idle picklers kept of each kind."""
_MOVED: Final = 0x01
_PYTHON: Final = 0x02
_COUNT: Final = struct.Struct("<BI")
_PYTHON_HEAD: Final = struct.Struct("<BIII")
_NOTHING: Final[Mapping[Any, Any]] = types.MappingProxyType({})


class Encoded(NamedTuple):
    """A value, ready to be put into an envelope. The buffers are views of the value's own memory, or copies."""

    body: bytes
    buffers: list[Buffer]


class Hooks:
    """What an upper layer adds to a codec, for one call or for many.

    `reducers`: exact type -> a reducer as `copyreg` has them. It returns (function, arguments) where the function is a
    module-level one, whose name is what is written.
    `globals`: (module, qualified name) of such a function -> what to call here with the arguments.
    `restart`: called before a value is pickled again from its beginning, so that a reducer with effects can undo them.
    `same_main`: the receiver is known to run the same script as `__main__`, so things defined there go by name.
    `modules`: whether a ScriptModule that arrives by value is loaded; it brings code along.
    `max_depth`: how deep values of the TorchScript codec may be nested.
    """

    __slots__ = ("globals", "max_depth", "modules", "reducers", "restart", "same_main")

    def __init__(
        self,
        reducers: Mapping[type, Reducer] | None = None,
        globals: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
        restart: Callable[[], None] | None = None,
        same_main: bool = False,
        modules: bool = True,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        self.reducers = _NOTHING if reducers is None else reducers
        self.globals = _NOTHING if globals is None else globals
        self.restart = restart
        self.same_main = same_main
        self.modules = modules
        self.max_depth = max_depth


# ---------------------------------------------------------------------------------------------- writing


class _Table(dict[type, Reducer]):
    """A dispatch table that asks the hooks, then a rule, for a class that it does not list."""

    __slots__ = ("extra", "rule")

    def __init__(self, entries: Mapping[type, Reducer], rule: Callable[[type], Reducer]) -> None:
        super().__init__(entries)
        self.extra: Mapping[type, Reducer] = _NOTHING
        self.rule = rule

    def __missing__(self, cls: type) -> Reducer:
        reducer = self.extra.get(cls)
        return self.rule(cls) if reducer is None else reducer


class _Sink:
    """The least that a pickler takes for a file."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], Any]) -> None:
        self.write = write


class _Writer:
    """A pickler with its storage table. `encode` leaves it clean; after an error it is thrown away."""

    __slots__ = ("outside", "parts", "pickler", "storages", "table")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.outside: list[Buffer] = []
        self.storages = StorageTable()
        self.table = self._new_table(self.storages)
        self.pickler = self._new_pickler(_Sink(self.parts.append))
        self.pickler.dispatch_table = self.table

    def _new_table(self, storages: StorageTable) -> _Table:
        raise NotImplementedError

    def _new_pickler(self, sink: Any) -> pickle.Pickler:
        raise NotImplementedError

    def pickle(self, value: Any, hooks: Hooks | None) -> bytes:
        self.table.extra = _NOTHING if hooks is None else hooks.reducers
        pickler = self.pickler
        parts = self.parts
        pickler.dump(value)
        body: bytes = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        pickler.clear_memo()
        return body


class _ScriptWriter(_Writer):
    __slots__ = ()

    def _new_table(self, storages: StorageTable) -> _Table:
        entries = dict(values.SCRIPT_REDUCERS)
        entries[torch.Tensor] = entries[torch.nn.Parameter] = storages.reduce_tensor
        entries[NestedTensor] = storages.reduce_jagged
        return _Table(entries, _script_rule)

    def _new_pickler(self, sink: Any) -> pickle.Pickler:
        return pickle.Pickler(sink, 5)

    def encode(self, value: Any, hooks: Hooks | None) -> Encoded:
        body = self.pickle(value, hooks)
        if not len(self.storages):
            return Encoded(body, [])
        buffers, lows = self.storages.take()
        if lows is not None:
            body = b"".join((_COUNT.pack(_MOVED, len(lows)), struct.pack(f"<{len(lows)}Q", *lows), body))
        return Encoded(body, buffers)


def _script_rule(cls: type) -> Reducer:
    reducer = values.reducer_of(cls)
    if reducer is None:
        raise EncodeError("a value", cls.__qualname__, "TorchScript has no such type")
    return reducer


class _PythonWriter(_Writer):
    __slots__ = ()

    def _new_table(self, storages: StorageTable) -> _Table:
        return _Table(_python_entries(storages), functools.partial(_python_rule, storages))

    def _new_pickler(self, sink: Any) -> pickle.Pickler:
        return pickle.Pickler(sink, 5, buffer_callback=self._take_buffer)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= _IN_BAND_BYTES:
            return True
        self.outside.append(raw)
        return False

    def encode(self, value: Any, hooks: Hooks | None) -> Encoded:
        body = self.pickle(value, hooks)
        buffers, lows = self.storages.take()
        count = len(buffers)
        if self.outside:
            buffers += self.outside
            self.outside.clear()
        low_bytes = b"" if lows is None else struct.pack(f"<{count}Q", *lows)
        checksum = zlib.crc32(body, zlib.crc32(low_bytes))
        head = _PYTHON_HEAD.pack(_PYTHON, checksum, count, 0 if lows is None else count)
        return Encoded(b"".join((head, low_bytes, body)), buffers)


class _ValueWriter(_PythonWriter):
    """The Python codec's second try. Not pooled: cloudpickle's pickler keeps what it has seen."""

    __slots__ = ()

    def _new_table(self, storages: StorageTable) -> _Table:
        return _Table(_python_entries(storages), functools.partial(_value_rule, storages))

    def _new_pickler(self, sink: Any) -> pickle.Pickler:
        return mainscript.ValuePickler(sink, self.table, self._take_buffer)


def _python_entries(storages: StorageTable) -> dict[type, Reducer]:
    return {
        torch.Tensor: storages.reduce_tensor,
        torch.nn.Parameter: storages.reduce_parameter,
        NestedTensor: storages.reduce_jagged,
    }


def _common_rule(storages: StorageTable, cls: type) -> Reducer | None:
    if issubclass(cls, torch.Tensor) and not has_own_reduction(cls):
        return storages.reduce_subclass
    if issubclass(cls, torch.jit.ScriptModule):
        return values.reduce_module
    return None


def _python_rule(storages: StorageTable, cls: type) -> Reducer:
    # A KeyError tells the pickler to ask the object itself.
    return _common_rule(storages, cls) or copyreg.dispatch_table[cls]


def _value_rule(storages: StorageTable, cls: type) -> Reducer:
    return _common_rule(storages, cls) or cloudpickle.Pickler.dispatch_table[cls]


# Caches of idle picklers. A deque's ends are safe to use from any thread, and each writer has one user at a time.
_SCRIPT_POOL: Final[deque[_ScriptWriter]] = deque(maxlen=_POOLED)
_PYTHON_POOL: Final[deque[_PythonWriter]] = deque(maxlen=_POOLED)


def _without_effects(hooks: Hooks | None) -> Hooks | None:
    """The same types, reduced to nothing: for looking for a fault."""
    if hooks is None:
        return None
    return Hooks(dict.fromkeys(hooks.reducers, lambda _: (names.same, (None,))), same_main=hooks.same_main)


def dumps_script(
    value: Any,
    hooks: Hooks | None = None,
    root: str | tuple[str, ...] = "value",
    recorded: list[torch.Tensor] | None = None,
) -> Encoded:
    """Encode a value that TorchScript has a type for.

    `root` is how errors name the value: one name, or one for each part of a tuple. `recorded` collects the tensors that
    require grad; they are marked in the message as belonging to a graph. Raises `EncodeError`.
    """
    try:
        writer = _SCRIPT_POOL.pop()
    except IndexError:
        writer = _ScriptWriter()
    writer.storages.recorded = recorded
    try:
        encoded = writer.encode(value, hooks)
    except EncodeError as error:
        cause: Exception = error
    except ZrpcError:  # a hook's own
        raise
    except Exception as error:
        cause = error
    else:
        writer.storages.recorded = None
        _SCRIPT_POOL.append(writer)
        return encoded
    quiet = _without_effects(hooks)
    raise explain(value, cause, lambda part: _ScriptWriter().encode(part, quiet), root) from cause


def dumps_python(
    value: Any,
    hooks: Hooks | None = None,
    root: str | tuple[str, ...] = "value",
    recorded: list[torch.Tensor] | None = None,
) -> Encoded:
    """Encode any Python value: functions and classes by name where they have one, by value where not.

    What `__main__` defines goes by value, together with its name, unless `hooks.same_main` (see `mainscript`).
    `root` and `recorded` are as in `dumps_script`. Raises `EncodeError`.
    """
    try:
        writer = _PYTHON_POOL.pop()
    except IndexError:
        writer = _PythonWriter()
    writer.storages.recorded = recorded
    try:
        encoded = writer.encode(value, hooks)
    except EncodeError as error:
        raise _explain_python(value, error, hooks, root) from error
    except ZrpcError:  # a hook's own
        raise
    except Exception:
        return _dumps_by_value(value, hooks, root, recorded)
    writer.storages.recorded = None
    _PYTHON_POOL.append(writer)
    if mainscript.MARK in encoded.body and not (hooks is not None and hooks.same_main):
        return _dumps_by_value(value, hooks, root, recorded)
    return encoded


def _dumps_by_value(
    value: Any, hooks: Hooks | None, root: str | tuple[str, ...], recorded: list[torch.Tensor] | None
) -> Encoded:
    if hooks is not None and hooks.restart is not None:
        hooks.restart()
    writer = _ValueWriter()
    if recorded is not None:
        recorded.clear()
        writer.storages.recorded = recorded
    try:
        return writer.encode(value, hooks)
    except ZrpcError as error:
        if not isinstance(error, EncodeError):  # a hook's own
            raise
        cause: Exception = error
    except Exception as error:
        cause = error
    raise _explain_python(value, cause, hooks, root) from cause


def _explain_python(value: Any, cause: Exception, hooks: Hooks | None, root: str | tuple[str, ...]) -> EncodeError:
    quiet = _without_effects(hooks)
    return explain(value, cause, lambda part: _ValueWriter().encode(part, quiet), root)


# ---------------------------------------------------------------------------------------------- reading

_SCRIPT_VALUES: Final = {(names.MODULE, name): resolve for name, resolve in values.RESOLVERS.items()}
_PYTHON_VALUES: Final = {
    (names.MODULE, "same"): values.RESOLVERS["same"],
    (names.MODULE, "script_module"): values.RESOLVERS["script_module"],
    (names.MODULE, "main_object"): mainscript.main_object,
    (names.MODULE, "main_state"): mainscript.main_state,
}
_OF_STORAGES: Final = {(names.MODULE, name): resolve for name, resolve in rebuild.RESOLVERS.items()}


class _ScriptReader(pickle.Unpickler):
    storages: rebuild.StorageReader
    hooks: Hooks | None

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        method = _OF_STORAGES.get(key)
        if method is not None and name != "subclassed":
            return types.MethodType(method, self.storages)
        hooks = self.hooks
        if hooks is not None:
            hooked = hooks.globals.get(key)
            if hooked is not None:
                return hooked
            if name == "script_module" and not hooks.modules:
                raise DecodeRefused("a ScriptModule by value", SCRIPT)
        resolve = _SCRIPT_VALUES.get(key)
        if resolve is None:
            raise DecodeRefused(f"the name {module!r:.100}.{name!r:.100}", SCRIPT)
        return resolve


class _PythonReader(pickle.Unpickler):
    storages: rebuild.StorageReader
    hooks: Hooks | None

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if module == names.MODULE:
            method = _OF_STORAGES.get(key)
            if method is not None:
                return types.MethodType(method, self.storages)
            resolve = _PYTHON_VALUES.get(key)
            if resolve is not None:
                return resolve
        if self.hooks is not None:
            hooked = self.hooks.globals.get(key)
            if hooked is not None:
                return hooked
        if module in mainscript.MAIN_NAMES:
            module = "__main__"
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise NotImportable(module, name, str(error)) from error


def loads_script(
    body: Buffer,
    buffers: Sequence[Buffer] = (),
    hooks: Hooks | None = None,
    received: list[torch.Tensor] | None = None,
) -> Any:
    """Decode what `dumps_script` made. `received` gets the tensors that were recorded there, in their order.

    Raises `DecodeRefused` for anything outside of the codec, `FrameError` for damage.
    """
    data = body if type(body) is bytes else bytes(body)
    if plainvalues.is_plain(data):
        if data[1] == plainvalues.CALL:
            raise DecodeRefused("a Python call", SCRIPT)
        return plainvalues.loads(data, buffers)
    start = 0
    lows: Sequence[int] | None = None
    if data[:1] != b"\x80":
        start, lows = _read_lows(data, len(buffers))
    check_body(data, start, MAX_DEPTH if hooks is None else hooks.max_depth)
    file = io.BytesIO(data)
    if start:
        file.seek(start)
    reader = _ScriptReader(file)
    reader.storages = rebuild.StorageReader(buffers, lows)
    reader.hooks = hooks
    try:
        value = reader.load()
        if received is not None:
            received += reader.storages.received()
        return value
    except ZrpcError:
        raise
    except Exception as error:
        raise _unreadable(SCRIPT, error) from error


def loads_python(
    body: Buffer,
    buffers: Sequence[Buffer] = (),
    hooks: Hooks | None = None,
    received: list[torch.Tensor] | None = None,
) -> Any:
    """Decode what `dumps_python` made, running code of the sender's choice. `received` is as in `loads_script`.

    Raises `NotImportable` for a function or class that this process does not have, `FrameError` for damage and for
    objects whose own unpickling fails.
    """
    data = body if type(body) is bytes else bytes(body)
    if plainvalues.is_plain(data):
        return (
            plainvalues.loads_call(data, buffers) if data[1] == plainvalues.CALL else plainvalues.loads(data, buffers)
        )
    if len(data) < _PYTHON_HEAD.size or data[0] != _PYTHON:
        raise FrameError("the body is not one of the Python codec")
    _, checksum, count, moved = _PYTHON_HEAD.unpack_from(data)
    start = _PYTHON_HEAD.size + 8 * moved
    if count > len(buffers) or moved not in (0, count) or start > len(data):
        raise FrameError(f"a body with {count} storages and {moved} low bounds came with {len(buffers)} buffers")
    if zlib.crc32(memoryview(data)[_PYTHON_HEAD.size :]) != checksum:
        raise FrameError("the checksum of the body is wrong")
    lows = struct.unpack_from(f"<{moved}Q", data, _PYTHON_HEAD.size) if moved else None
    file = io.BytesIO(data)
    file.seek(start)
    if count == len(buffers):
        reader = _PythonReader(file)
    else:
        reader = _PythonReader(file, buffers=_own_buffers(buffers, count))
    reader.storages = rebuild.StorageReader(buffers[:count] if count < len(buffers) else buffers, lows)
    reader.hooks = hooks
    try:
        value = reader.load()
        if received is not None:
            received += reader.storages.received()
        return value
    except ZrpcError:
        raise
    except ImportError as error:
        raise NotImportable(error.name or "", "", str(error)) from error
    except Exception as error:
        raise _unreadable(PYTHON, error) from error


def _own_buffers(buffers: Sequence[Buffer], start: int) -> Iterator[Any]:
    """Writable copies of pickle's own buffers: what is made of them must not be tied to the received frames."""
    for index in range(start, len(buffers)):
        yield rebuild.own_bytes(buffers[index]).data


def _read_lows(data: bytes, buffers: int) -> tuple[int, Sequence[int]]:
    if len(data) < _COUNT.size or data[0] != _MOVED:
        raise FrameError("the body is not one of the TorchScript codec")
    _, count = _COUNT.unpack_from(data)
    start = _COUNT.size + 8 * count
    if count != buffers or start > len(data):
        raise FrameError(f"{count} low bounds came with {buffers} buffers")
    return start, struct.unpack_from(f"<{count}Q", data, _COUNT.size)


def _unreadable(codec: str, error: Exception) -> FrameError:
    return FrameError(f"a message of the {codec} codec cannot be decoded: {str(error)[:500]} ({type(error).__name__})")
