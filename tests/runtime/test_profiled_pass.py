"""Backward passes in torch's profilers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from profiles import PROFILES, Profile, events_of
from torch.autograd import profiler

from zrpc import autograd
from zrpc.profiler import teach_profilers
from zrpc.runtime.context import current_agent, running
from zrpc.runtime.profiled_pass import PASS_NAME
from zrpc.testing.cluster import LocalCluster

TIMEOUT = 20.0
SENT = "torch::distributed::autograd::SendRpcBackward"
RECEIVED = "torch::distributed::autograd::RecvRpcBackward"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b", "c")) as local:
        teach_profilers()
        yield local


@pytest.fixture(autouse=True)
def as_a(cluster: LocalCluster) -> Iterator[None]:
    running.agent = cluster["a"].agent
    yield
    running.agent = None


@pytest.fixture(params=sorted(PROFILES))
def profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


def named(events: list[Any], name: str) -> list[Any]:
    return [event for event in events if event.name == name]


def doubled_on(to: str, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = current_agent().caller.call_sync(to, torch.mul, (x, 2.0), None, TIMEOUT)
    return result


def fails() -> None:
    raise ValueError("expected")


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        fails()
        return gradient


def test_a_pass_is_there_with_its_messages(cluster: LocalCluster, profile: Profile) -> None:
    with autograd.context() as context_id:
        x = torch.rand(3, 3, requires_grad=True)
        loss = doubled_on("b", x.sin()).sum()
        with profile() as profiled:
            autograd.backward(context_id, [loss])
        assert x in autograd.get_gradients(context_id)
    events = events_of(profiled)
    [whole], [sent], [received] = (named(events, name) for name in (PASS_NAME, SENT, RECEIVED))
    for part in (sent, received):
        assert whole.time_range.start <= part.time_range.start <= part.time_range.end <= whole.time_range.end
        assert whole.cpu_time_total > part.cpu_time_total
    assert received.time_range.start < sent.time_range.start
    assert {event.node_id for event in (whole, sent, received)} == {cluster["a"].agent.info.id}
    assert not any(event.is_remote for event in (whole, sent, received))
    assert not [event.name for event in events if "zrpc" in event.name]


def test_what_the_engine_does_after_a_message_is_there(cluster: LocalCluster, profile: Profile) -> None:
    with autograd.context() as context_id:
        x = torch.rand(3, requires_grad=True)
        loss = doubled_on("b", x.sin()).sum()
        with profile() as profiled:
            autograd.backward(context_id, [loss])
    [sent] = named(events_of(profiled), SENT)
    sines = [event for event in events_of(profiled) if event.name == "SinBackward0"]
    assert [event.time_range.start >= sent.time_range.start for event in sines] == [True]


def test_each_message_has_its_events(cluster: LocalCluster, profile: Profile) -> None:
    with autograd.context() as context_id:
        x = torch.rand(3, requires_grad=True)
        loss = sum((doubled_on(name, x.sin()).sum() for name in ("b", "c", "b")), torch.zeros(()))
        with profile() as profiled:
            autograd.backward(context_id, [loss])
    events = events_of(profiled)
    assert [len(named(events, name)) for name in (PASS_NAME, SENT, RECEIVED)] == [1, 3, 3]


def test_two_passes_are_two_events(cluster: LocalCluster, profile: Profile) -> None:
    with autograd.context() as context_id, profile() as profiled:
        loss = doubled_on("b", torch.rand(3, requires_grad=True).sin()).sum()
        autograd.backward(context_id, [loss], retain_graph=True)
        autograd.backward(context_id, [loss])
    events = events_of(profiled)
    assert [len(named(events, name)) for name in (PASS_NAME, SENT, RECEIVED)] == [2, 2, 2]


def test_a_pass_that_fails_is_there_too(cluster: LocalCluster, profile: Profile) -> None:
    with autograd.context() as context_id:
        loss = doubled_on("b", Fails.apply(torch.rand(3, requires_grad=True))).sum()
        with profile() as profiled, pytest.raises(RuntimeError, match="expected"):
            autograd.backward(context_id, [loss])
    assert len(named(events_of(profiled), PASS_NAME)) == 1


def test_without_a_profiler_nothing_is_kept(cluster: LocalCluster) -> None:
    with autograd.context() as context_id:
        loss = doubled_on("b", torch.rand(3, requires_grad=True)).sum()
        with profiler.profile(enabled=False):
            autograd.backward(context_id, [loss])
        book: Any = cluster["a"].agent.values.contexts
        assert book.get(context_id).profiled == {}


def test_a_file_shows_them(cluster: LocalCluster, tmp_path: Path) -> None:
    with autograd.context() as context_id:
        loss = doubled_on("b", torch.rand(3, requires_grad=True).sin()).sum()
        with PROFILES["torch"]() as profiled:
            autograd.backward(context_id, [loss])
    path = tmp_path / "profile.json"
    profiled.export_chrome_trace(str(path))
    found = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert {PASS_NAME, SENT, RECEIVED} <= set(found)
    assert not [name for name in found if str(name).startswith("zrpc")]
