"""Calls in torch's profilers, with what their callees did."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from profiles import PROFILES, Profile, events_of
from torch.autograd import profiler, profiler_legacy

from zrpc import functions
from zrpc.operators import register_operators
from zrpc.profiler import teach_profilers
from zrpc.runtime.context import current_agent
from zrpc.testing.cluster import LocalCluster

TIMEOUT = 20.0
X, Y = torch.ones(4), torch.ones(4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b", "c")) as local:
        teach_profilers()
        yield local


@pytest.fixture(params=sorted(PROFILES))
def profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


def one(events: list[Any], name: str) -> Any:
    found = [event for event in events if event.name == name]
    assert len(found) == 1, f"{name} in {[event.name for event in events]}"
    return found[0]


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def block() -> None:
    with profiler.record_function("block"):
        torch.add(X, Y)


def failing() -> None:
    torch.add(X, Y)
    raise ValueError("expected")


def nested(to: str) -> Any:
    return current_agent().caller.call_sync(to, torch.mul, (X, Y), None, TIMEOUT)


@functions.async_execution
def nested_async(to: str) -> Any:
    future = current_agent().caller.call_async(to, torch.mul, (X, Y), None, TIMEOUT)
    return future.then(lambda done: done.wait() + 1)


def with_a_pass_of_its_own() -> None:
    torch.rand(3, requires_grad=True).sin().sum().backward()


def is_profiled() -> bool:
    return bool(torch._C._autograd._profiler_enabled())


class Box:
    def get(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_call_is_there_with_its_callees_events(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        cluster["a"].rpc_sync("b", torch.add, (X, Y))
    events = events_of(profiled)
    call = one(events, "rpc_sync#aten::add(a -> b)")
    add = one(events, "rpc_sync#aten::add(a -> b)#remote_op: aten::add")
    a, b = (cluster[name].agent.info.id for name in ("a", "b"))
    assert (call.node_id, call.is_remote) == (a, False)
    assert (add.node_id, add.is_remote) == (b, True)
    assert call.time_range.start <= add.time_range.start <= add.time_range.end <= call.time_range.end
    assert not [event.name for event in events if "zrpc" in event.name]


@pytest.mark.parametrize("with_memory", [True, False])
def test_memory_that_no_operator_took_is_there_when_asked_for(cluster: LocalCluster, with_memory: bool) -> None:
    with profiler_legacy.profile(profile_memory=with_memory) as profiled, pytest.raises(ValueError, match="expected"):
        cluster["a"].rpc_sync("b", failing)
    found = [event.name for event in events_of(profiled) if event.name.endswith("#remote_op: [memory]")]
    assert len(found) == with_memory


def test_a_callees_own_backward_pass_is_there(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        cluster["a"].rpc_sync("b", with_a_pass_of_its_own)
    key = "rpc_sync#with_a_pass_of_its_own(a -> b)#remote_op: "
    assert one(events_of(profiled), f"{key}SinBackward0").node_id == cluster["b"].agent.info.id


@pytest.mark.parametrize(
    ("func", "args", "name"),
    [
        (torch.mul, (X, Y), "aten::mul"),
        ("aten::mul", (X, Y), "aten::mul"),
        (scripted, (X,), scripted.qualified_name),
        (block, (), "block"),
        (f"{__name__}:block", (), f"{__name__}:block"),
        (Box().get, (X,), "Box.get"),
        (functools.partial(nested, "c"), (), "nested"),
    ],
)
def test_keys_are_torchs(cluster: LocalCluster, func: Any, args: Any, name: str) -> None:
    with profiler_legacy.profile() as profiled:
        cluster["a"].rpc_async("b", func, args).wait()
    assert one(events_of(profiled), f"rpc_async#{name}(a -> b)").count == 1


def test_the_operator_has_the_key_of_calls_from_torchscript(cluster: LocalCluster) -> None:
    register_operators()
    with profiler_legacy.profile() as profiled:
        cluster["a"].rpc_sync("b", "zrpc::call", ("c", "aten::neg", [X]))
    events = events_of(profiled)
    key = "rpc_sync#zrpc::call(a -> b)#remote_op: rpc_async_jit#aten::neg(b -> c)"
    assert one(events, f"{key}#remote_op: aten::neg").is_remote


def test_a_call_made_by_the_callee_is_there_too(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        cluster["a"].rpc_sync("b", nested, ("c",))
    inner = "rpc_sync#nested(a -> b)#remote_op: rpc_sync#aten::mul(b -> c)"
    events = events_of(profiled)
    assert one(events, inner).node_id == cluster["b"].agent.info.id
    assert one(events, f"{inner}#remote_op: aten::mul").node_id == cluster["c"].agent.info.id


def test_a_call_that_outlives_its_function_is_there_too(cluster: LocalCluster) -> None:
    with profiler_legacy.profile() as profiled:
        cluster["a"].rpc_sync("b", nested_async, ("c",))
    inner = "rpc_sync#nested_async(a -> b)#remote_op: rpc_async#aten::mul(b -> c)"
    events = events_of(profiled)
    assert one(events, inner).is_async
    assert one(events, f"{inner}#remote_op: aten::mul").is_remote


def test_blocks_have_their_children(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        cluster["a"].rpc_sync("b", block)
    events = events_of(profiled)
    found = one(events, "rpc_sync#block(a -> b)#remote_op: block")
    assert [child.name for child in found.cpu_children] == ["rpc_sync#block(a -> b)#remote_op: aten::add"]


def test_shapes_and_memory_are_there_when_asked_for(cluster: LocalCluster, profile: Profile) -> None:
    name = "rpc_sync#aten::add(a -> b)#remote_op: aten::add"
    with profile(record_shapes=True, profile_memory=True) as profiled:
        cluster["a"].rpc_sync("b", torch.add, (X, Y))
    add = one(events_of(profiled), name)
    assert (add.input_shapes[:2], add.cpu_memory_usage) == ([[4], [4]], 16)
    with profile() as profiled:
        cluster["a"].rpc_sync("b", torch.add, (X, Y))
    add = one(events_of(profiled), name)
    assert (add.input_shapes, add.cpu_memory_usage) == ([], 0)


def test_a_failed_call_is_there(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled, pytest.raises(ValueError, match="expected"):
        cluster["a"].rpc_sync("b", failing)
    assert one(events_of(profiled), "rpc_sync#failing(a -> b)#remote_op: aten::add").is_remote


def test_a_call_that_is_not_sent_ends(cluster: LocalCluster) -> None:
    with profiler_legacy.profile() as profiled, pytest.raises(RuntimeError):
        cluster["a"].rpc_sync("b", scripted, (1, 2, 3))
    assert [event.name for event in events_of(profiled)] == [f"rpc_sync#{scripted.qualified_name}(a -> b)"]


def test_a_remote_value_is_there_when_its_profiling_future_is_done(cluster: LocalCluster, profile: Profile) -> None:
    for to in ("b", "a"):
        with profile() as profiled:
            rref = cluster["a"].remote(to, torch.add, (X, Y))
            rref._get_profiling_future().wait()
        key = f"rpc_remote#aten::add(a -> {to})"
        events = events_of(profiled)
        assert one(events, f"{key}#remote_op: aten::add").node_id == cluster[to].agent.info.id
        assert one(events, key).count == 1
        del rref


def test_a_remote_value_that_was_not_profiled_has_no_profiling_future(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", torch.add, (X, Y))
    with pytest.raises(RuntimeError, match="Profiling future has not been set"):
        rref._get_profiling_future()


def test_a_method_is_named(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Box)
    with profiler_legacy.profile() as profiled:
        rref.rpc_sync().get(X)
    assert one(events_of(profiled), "rpc_sync#get(a -> b)#remote_op: aten::add").is_remote


def test_only_what_a_profiled_thread_calls_is_recorded(cluster: LocalCluster) -> None:
    assert cluster["a"].rpc_sync("b", is_profiled) is False
    with profiler_legacy.profile():
        assert cluster["a"].rpc_sync("b", is_profiled) is True
    assert cluster["a"].rpc_sync("b", is_profiled) is False


def test_a_function_with_a_profiler_of_its_own_is_left_alone(cluster: LocalCluster) -> None:
    with profiler_legacy.profile() as profiled, pytest.raises(RuntimeError, match="already enabled"):
        cluster["a"].rpc_sync("b", profile_itself)
    assert one(events_of(profiled), "rpc_sync#profile_itself(a -> b)").count == 1


def profile_itself() -> None:
    with profiler_legacy.profile():
        torch.add(X, Y)


def test_a_call_that_ends_after_its_profile_does_no_harm(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        future = cluster["a"].rpc_async("b", torch.add, (X, Y))
    assert torch.equal(future.wait(), X + Y)
    assert not [event.name for event in events_of(profiled) if "zrpc" in event.name]


def test_a_profile_without_calls_is_as_it_was(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        torch.add(X, Y)
    assert [event.node_id for event in events_of(profiled) if event.name == "aten::add"] == [-1]


def test_a_user_block_ends_with_a_call(cluster: LocalCluster) -> None:
    with profiler_legacy.profile() as profiled:
        with profiler.record_function("mine") as mine:
            future = cluster["a"].rpc_async("b", torch.add, (X, Y))
            ended = mine._call_end_callbacks_on_future(future)
        assert torch.equal(ended.wait(), X + Y)
        future.wait()
    assert one(events_of(profiled), "mine").count == 1


@pytest.mark.parametrize("kind", ["autograd", "torch"])
def test_the_file_has_the_callees_events(cluster: LocalCluster, tmp_path: Path, kind: str) -> None:
    with PROFILES[kind]() as profiled:
        cluster["a"].rpc_sync("b", torch.add, (X, Y))
    path = tmp_path / "trace.json"
    profiled.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events]
    call = events[names.index("rpc_sync#aten::add(a -> b)")]
    add = events[names.index("rpc_sync#aten::add(a -> b)#remote_op: aten::add")]
    assert call["ts"] <= add["ts"] <= add["ts"] + add["dur"] <= call["ts"] + call["dur"]
    assert add["pid"] != call["pid"]
    assert not [name for name in names if "zrpc" in name]


@pytest.mark.parametrize("kind", ["autograd", "torch"])
def test_the_file_has_calls_that_nobody_waits_for_beside_their_thread(
    cluster: LocalCluster, tmp_path: Path, kind: str
) -> None:
    with PROFILES[kind]() as profiled:
        cluster["a"].rpc_async("b", torch.add, (X, Y)).wait()
    path = tmp_path / "trace.json"
    profiled.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "rpc_async#aten::add(a -> b)"]
    by_phase = {event["ph"]: event for event in events}
    assert by_phase["b"]["ts"] == by_phase["X"]["ts"]
    assert by_phase["e"]["ts"] > by_phase["b"]["ts"]


def test_an_event_lasts_as_long_as_its_call(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        future = cluster["a"].rpc_async("b", torch.add, (X, Y))
        with profiler.record_function("waiting"):
            future.wait()
    events = events_of(profiled)
    call, waiting = one(events, "rpc_async#aten::add(a -> b)"), one(events, "waiting")
    add = one(events, "rpc_async#aten::add(a -> b)#remote_op: aten::add")
    assert call.time_range.start < add.time_range.start
    assert add.time_range.end < call.time_range.end <= waiting.time_range.end


def test_a_table_can_be_made(cluster: LocalCluster, profile: Profile) -> None:
    with profile() as profiled:
        cluster["a"].rpc_sync("b", torch.add, (X, Y))
    rows = {row.key for row in profiled.key_averages()}
    assert {"rpc_sync#aten::add(a -> b)", "rpc_sync#aten::add(a -> b)#remote_op: aten::add"} <= rows
