"""Aliases: a module of torch's name that is zrpc's."""

from __future__ import annotations

import types

import pytest

import zrpc
from zrpc.compat.aliases import Alias, find_module, make_aliases


def test_names_are_looked_for_in_order_and_written_where_they_are() -> None:
    first, second = types.ModuleType("first"), types.ModuleType("second")
    second.x = 2  # type: ignore[attr-defined]
    alias = Alias("torch.alias", (first, second))
    assert alias.x == 2
    alias.x = 3
    assert second.x == 3  # type: ignore[attr-defined]
    alias.y = 4
    assert first.y == 4  # type: ignore[attr-defined]
    assert {"x", "y"} <= set(dir(alias))
    with pytest.raises(AttributeError, match=r"'torch\.alias', which is zrpc's, has no attribute 'z'"):
        _ = alias.z


def test_a_submodule_stays_with_the_alias() -> None:
    target = types.ModuleType("target")
    alias, child = Alias("torch.alias", (target,)), types.ModuleType("torch.alias.child")
    alias.child = child
    assert alias.child is child
    assert not hasattr(target, "child")


def test_every_module_that_zrpc_has_something_for_has_an_alias() -> None:
    aliases = make_aliases()
    rpc, api = aliases["torch.distributed.rpc"], aliases["torch.distributed.rpc.api"]
    assert rpc.init_rpc is zrpc.init_rpc
    assert rpc.__all__ == zrpc.__all__
    for name in ("_all_gather", "_barrier", "_wait_all", "_wait_all_workers", "_default_pickler", "RRef", "rpc_sync"):
        assert hasattr(api, name), name
    assert aliases["torch.distributed.rpc.options"].TensorPipeRpcBackendOptions is zrpc.TensorPipeRpcBackendOptions
    assert aliases["torch.distributed.rpc.internal"]._internal_rpc_pickler is api._default_pickler


def test_what_is_not_there_is_none() -> None:
    assert find_module("zrpc.nothing.of.the.kind") is None
    assert find_module("zrpc.constants") is zrpc.constants  # type: ignore[attr-defined]
