"""Profiles of all that a worker runs for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.autograd import profiler_legacy

import zrpc
from zrpc.errors import NotInitialized
from zrpc.profiler import teach_profilers
from zrpc.runtime.context import current_agent
from zrpc.server_profile import _server_process_global_profile
from zrpc.testing.cluster import LocalCluster

X, Y = torch.ones(2, 3), torch.ones(2, 3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b", "c")) as local:
        teach_profilers()
        yield local


def names(profile: Any) -> list[list[str]]:
    """The names of the events of each function that did anything."""
    return [[event.name for event in events] for events in profile.process_global_function_events if events]


def ranges(cluster: LocalCluster) -> list[Any]:
    return cluster["b"].agent.callee.profile_ranges


def value_of(rref: Any) -> Any:
    return rref.local_value()


def enter(rref: Any) -> None:
    rref.local_value().__enter__()


def leave(rref: Any) -> None:
    rref.local_value().__exit__(None, None, None)


def fails() -> None:
    torch.neg(X)
    raise ValueError("expected")


def calls_c() -> Any:
    return current_agent().caller.call_sync("c", torch.mul, (X, Y), None, 20.0)


def test_ranges_nest_and_have_what_ran_in_them(cluster: LocalCluster) -> None:
    a = cluster["a"]
    outer = a.remote("b", _server_process_global_profile)
    a.rpc_sync("b", enter, (outer,))
    a.rpc_sync("b", torch.add, (X, Y))
    inner = a.remote("b", _server_process_global_profile)
    a.rpc_sync("b", enter, (inner,))
    cluster["c"].rpc_sync("b", torch.sub, (X, Y))
    a.rpc_sync("b", leave, (inner,))
    a.rpc_sync("b", torch.neg, (X,))
    a.rpc_sync("b", leave, (outer,))
    a.rpc_sync("b", torch.abs, (X,))
    within, whole = (a.rpc_sync("b", value_of, (rref,)) for rref in (inner, outer))
    assert names(within) == [["aten::sub"]]
    assert names(whole) == [["aten::add"], ["aten::sub"], ["aten::neg"]]
    assert [event.name for event in whole.function_events] == ["aten::add", "aten::sub", "aten::neg"]
    assert {row.key: row.count for row in whole.key_averages()} == {"aten::add": 1, "aten::sub": 1, "aten::neg": 1}
    assert ranges(cluster) == []


def test_through_a_reference(cluster: LocalCluster) -> None:
    profile = cluster["a"].remote("b", _server_process_global_profile)
    profile.rpc_sync().__enter__()
    cluster["a"].rpc_sync("b", torch.add, (X, Y))
    profile.rpc_sync().__exit__(None, None, None)
    assert [row.key for row in profile.rpc_sync().key_averages()] == ["aten::add"]


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_shapes_and_memory_are_there_when_asked_for(cluster: LocalCluster, is_asked_for: bool) -> None:
    a = cluster["a"]
    options = {"record_shapes": is_asked_for, "profile_memory": is_asked_for}
    profile = a.remote("b", _server_process_global_profile, (), options)
    a.rpc_sync("b", enter, (profile,))
    a.rpc_sync("b", torch.add, (X, Y))
    a.rpc_sync("b", leave, (profile,))
    [event] = a.rpc_sync("b", value_of, (profile,)).function_events
    assert [list(shape) for shape in event.input_shapes or []] == ([[2, 3], [2, 3], []] if is_asked_for else [])
    assert (event.cpu_memory_usage != 0) == is_asked_for


def test_what_fails_is_there_too(cluster: LocalCluster) -> None:
    a = cluster["a"]
    profile = a.remote("b", _server_process_global_profile)
    a.rpc_sync("b", enter, (profile,))
    with pytest.raises(ValueError, match="expected"):
        a.rpc_sync("b", fails)
    a.rpc_sync("b", leave, (profile,))
    assert names(a.rpc_sync("b", value_of, (profile,))) == [["aten::neg"]]


def test_a_caller_that_profiles_has_its_events_too(cluster: LocalCluster) -> None:
    a = cluster["a"]
    profile = a.remote("b", _server_process_global_profile)
    a.rpc_sync("b", enter, (profile,))
    with profiler_legacy.profile() as mine:
        a.rpc_sync("b", torch.add, (X, Y))
    a.rpc_sync("b", leave, (profile,))
    assert names(a.rpc_sync("b", value_of, (profile,))) == [["aten::add"]]
    assert "rpc_sync#aten::add(a -> b)#remote_op: aten::add" in [event.name for event in mine.function_events]


def test_a_call_made_by_the_function_does_no_harm(cluster: LocalCluster) -> None:
    a = cluster["a"]
    profile = a.remote("b", _server_process_global_profile)
    a.rpc_sync("b", enter, (profile,))
    assert torch.equal(a.rpc_sync("b", calls_c), X * Y)
    a.rpc_sync("b", leave, (profile,))
    [found] = names(a.rpc_sync("b", value_of, (profile,)))
    assert "rpc_sync#aten::mul(b -> c)" in found


def test_one_that_is_not_enabled_does_nothing(cluster: LocalCluster) -> None:
    profile = _server_process_global_profile(enabled=False)
    with profile:
        assert ranges(cluster) == []
    assert profile.function_events is None


def test_a_second_time_is_refused(cluster: LocalCluster) -> None:
    def twice() -> None:
        with _server_process_global_profile() as profile:
            profile.__enter__()

    with pytest.raises(RuntimeError, match="not reentrant"):
        cluster["a"].rpc_sync("b", twice)
    assert ranges(cluster) == []


def test_without_an_agent_there_is_nothing_to_profile() -> None:
    with pytest.raises(NotInitialized), _server_process_global_profile():
        pass


def test_it_is_there_by_torchs_name() -> None:
    assert zrpc._server_process_global_profile is _server_process_global_profile
