"""The pickler that programs replace or extend; and names of torch's beside it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import zrpc
from zrpc.internal import (
    PythonUDF,
    RPCExecMode,
    _build_rpc_profiling_key,
    _internal_rpc_pickler,
    _InternalRPCPickler,
    _run_serialized,
    deserialize,
    serialize,
)
from zrpc.rref import RRef
from zrpc.testing.cluster import LocalCluster


class Celsius:
    """Has a reducer of its own in a pickler, below."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class Nested:
    """Pickles something else while it is pickled."""

    def __reduce__(self) -> Any:
        return deserialize, serialize(torch.ones(1))


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def vanishing() -> None:
    """Is gone when the message is read."""


def test_tensors_go_beside_the_bytes() -> None:
    tensor = torch.arange(3)
    data, table = serialize({"x": [tensor, 1]})
    assert len(table) == 1
    assert table[0] is tensor
    assert deserialize(data, table)["x"][0] is tensor


def test_a_pickler_in_a_pickler_keeps_the_tables_apart() -> None:
    data, table = serialize((torch.zeros(1), Nested(), torch.zeros(2)))
    first, nested, second = deserialize(data, table)
    assert [first.tolist(), nested.tolist(), second.tolist()] == [[0.0], [1.0], [0.0, 0.0]]


def test_a_class_may_have_a_reducer() -> None:
    pickler = _InternalRPCPickler()
    pickler._register_reducer(Celsius, lambda value: (float, (value.degrees,)))
    pickler._register_reducer(Celsius, lambda value: (str, ("the first one stays",)))
    assert pickler.deserialize(*pickler.serialize([Celsius(20.5)])) == [20.5]


def test_a_function_that_is_not_there_is_an_error_that_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    data, table = serialize(PythonUDF(vanishing, (), {}))
    monkeypatch.delattr(f"{__name__}.vanishing")
    error = deserialize(data, table)
    assert isinstance(error, AttributeError)
    assert "Default RPC pickler does not serialize" in str(error)
    with pytest.raises(AttributeError, match="Default RPC pickler does not serialize"):
        _run_serialized(data, table)


def test_a_written_call_runs() -> None:
    assert _run_serialized(*serialize(PythonUDF(add, (1,), {"b": 2}))) == 3
    assert _run_serialized(*serialize(PythonUDF(add, ("a", "b"), None))) == "ab"


def test_references_cross_with_a_call() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        a = cluster["a"]
        ref = a.remote("b", add, (1, 2))
        data, table = _internal_rpc_pickler.serialize(PythonUDF(RRef.to_here, (ref,), {}))
        assert table == [ref]
        assert a.rpc_sync("b", _run_serialized, (data, table)) == 3


def test_another_pickler_is_used_until_the_end_of_the_block() -> None:
    other = _InternalRPCPickler()
    with zrpc.api._use_rpc_pickler(other):  # type: ignore[attr-defined]
        assert zrpc.api._default_pickler is other  # type: ignore[attr-defined]
    assert zrpc.api._default_pickler is _internal_rpc_pickler  # type: ignore[attr-defined]


def test_names_in_profiles() -> None:
    assert _build_rpc_profiling_key(RPCExecMode.ASYNC, "f", "a", "b") == "rpc_async#f(a -> b)"
    assert pickle.loads(pickle.dumps(RPCExecMode.REMOTE)) is RPCExecMode.REMOTE
