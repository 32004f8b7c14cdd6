"""Names of `torch.distributed.rpc.internal`: the default pickler, as an object that programs replace or extend.

One rule: a pickler makes (bytes, list) of a value and a value of these; what is in the list (tensors, RRefs) crosses with
the call that the two are sent in.
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from zrpc.functions import async_execution
from zrpc.rref import RRef

Reducer = Callable[[Any], tuple[Any, ...]]


class RPCExecMode(enum.Enum):
    """The kinds of call."""

    SYNC = "sync"
    ASYNC = "async"
    ASYNC_JIT = "async_jit"
    REMOTE = "remote"


class PythonUDF(NamedTuple):
    """A Python function and its arguments."""

    func: Any
    args: Any
    kwargs: Any


class RemoteException(NamedTuple):
    """What a function raised on its worker, as text."""

    msg: str
    exception_type: type[BaseException]


class _Tables(threading.local):
    """The list that goes with what this thread is writing or reading."""

    items: list[Any] = []  # noqa: RUF012  replaced, never changed, where something is written


class _InternalRPCPickler:
    """Writes what is not a tensor, an RRef or a script module with `pickle`, and those into a list beside it."""

    def __init__(self) -> None:
        self._tables = _Tables()
        self._class_reducer_dict: dict[type, Reducer] = {}

    def _register_reducer(self, obj_class: type, reducer: Reducer) -> None:
        """Have values of a class written by `reducer`, which returns what `__reduce__` would. The first one stays."""
        self._class_reducer_dict.setdefault(obj_class, reducer)

    def is_writing(self) -> bool:
        """Whether this thread is in `serialize` or `deserialize`."""
        return self._tables.items is not _Tables.items

    def _set_aside(self, value: Any) -> tuple[Any, ...]:
        self._tables.items.append(value)
        return _take_back, (len(self._tables.items) - 1,)

    def _rref_reducer(self, rref: RRef[Any]) -> tuple[Any, ...]:
        rref._check_usable("call fork an UserRRef")
        return self._set_aside(rref)

    _tensor_reducer = _script_module_reducer = _set_aside
    _py_rref_reducer = _rref_reducer

    @contextlib.contextmanager
    def _with_table(self, items: list[Any]) -> Iterator[None]:
        saved, self._tables.items = self._tables.items, items
        reading, _reading.items = _reading.items, items
        try:
            yield
        finally:
            self._tables.items = saved
            _reading.items = reading

    def serialize(self, obj: Any) -> tuple[bytes, list[Any]]:
        """The value as bytes, and the tensors and RRefs in it."""
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream)
        pickler.dispatch_table = {
            **copyreg.dispatch_table,
            torch.Tensor: self._tensor_reducer,
            RRef: self._rref_reducer,
            **self._class_reducer_dict,
        }
        if isinstance(obj, torch.jit.ScriptModule):
            pickler.dispatch_table[type(obj)] = self._script_module_reducer
        with self._with_table([]):
            pickler.dump(obj)
            return stream.getvalue(), self._tables.items

    def deserialize(self, binary_data: bytes, tensor_table: list[Any]) -> Any:
        """The value that `serialize` was given. A function that is not here: an `AttributeError`, returned, not raised."""
        with self._with_table(list(tensor_table)):
            try:
                return pickle.loads(binary_data)
            except AttributeError as error:
                found = AttributeError(
                    f"{error} Default RPC pickler does not serialize function code. Ensure that UDFs are defined on both "
                    "caller and callee modules."
                )
                found.__cause__ = error
                return found


_reading = _Tables()
_internal_rpc_pickler = _InternalRPCPickler()


def _take_back(index: int) -> Any:
    return _reading.items[index]


def serialize(obj: Any) -> tuple[bytes, list[Any]]:
    """`_internal_rpc_pickler.serialize`."""
    return _internal_rpc_pickler.serialize(obj)


def deserialize(binary_data: bytes, tensor_table: list[Any]) -> Any:
    """`_internal_rpc_pickler.deserialize`."""
    return _internal_rpc_pickler.deserialize(binary_data, tensor_table)


def _run_serialized(binary_data: bytes, tensor_table: list[Any]) -> Any:
    """Runs on the callee: a call that another pickler than the default one has written."""
    udf = deserialize(binary_data, tensor_table)
    if isinstance(udf, AttributeError):
        raise udf
    return udf.func(*(udf.args or ()), **(udf.kwargs or {}))


@async_execution
def _run_serialized_async(binary_data: bytes, tensor_table: list[Any]) -> Any:
    """As `_run_serialized`, for a function that returns a future."""
    return _run_serialized(binary_data, tensor_table)


def _build_rpc_profiling_key(
    exec_type: RPCExecMode, func_name: str, current_worker_name: str, dst_worker_name: str
) -> str:
    """The name of a call in a profile."""
    return f"rpc_{exec_type.value}#{func_name}({current_worker_name} -> {dst_worker_name})"
