"""`zrpc.trace` with agents in one process."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zrpc import autograd
from zrpc.clock import monotonic
from zrpc.errors import NotInitialized, WorkerLost
from zrpc.runtime.context import current_agent, running
from zrpc.telemetry.chrome import PHASES
from zrpc.testing.cluster import LocalCluster
from zrpc.tracing import VARIABLE, block, trace, trace_if_told
from zrpc.wire.envelope import Envelope, Kind, unpack
from zrpc.wire.limits import DEFAULT_LIMITS, Limits

X = torch.ones(3)
TIMEOUT = 20.0


@torch.jit.script
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def nested(to: str) -> Any:
    with block("in the function"):
        return current_agent().caller.call_sync(to, torch.mul, (X, X), None, TIMEOUT)


def failing() -> None:
    raise ValueError("expected")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(("a", "b", "c")) as local:
        running.agent = local["a"].agent
        try:
            yield local
        finally:
            running.agent = None


def load(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    drawn = json.loads(path.read_text())
    return drawn["traceEvents"], drawn["otherData"]


def calls(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The calls of a trace by their titles."""
    return {e["name"]: e for e in events if e["ph"] == "b" and e["cat"] == "call" and "args" in e}


def test_calls_of_every_kind_are_in_it(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    a = cluster["a"]
    with trace(path):
        a.rpc_sync("b", torch.add, (X, 1))
        a.rpc_async("b", doubled, (X,)).wait()  # its code travels first
        a.rpc_sync("b", nested, ("c",))
        a.rpc_async("a", torch.neg, (X,)).wait()
        with pytest.raises(ValueError, match="expected"):
            a.rpc_sync("b", failing)
        rref = a.remote("c", torch.mul, (X, X))
        rref.to_here()
    events, about = load(path)
    found = calls(events)
    qualified = doubled.qualified_name
    for title in ("aten::add -> b", f"{qualified} -> b", "aten::mul -> c", "aten::neg -> a"):
        assert title in found
        if title != "aten::mul -> c":
            assert all(f"{phase} (us)" in found[title]["args"] for phase in PHASES), title
    assert found[f"{__name__}:failing -> b"]["args"]["error"] == "ValueError"
    assert any(title.startswith("fetching the value of") for title in found)
    assert [e["args"]["what"] for e in events if e["ph"] == "i" and e["name"] == "RRef created"] == [str(rref.rref_id)]
    assert sorted(about["workers"]) == ["a", "b", "c"]
    assert about["left out"] == {}


def test_every_message_between_workers_carries_a_trace_parent(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bytes | None]] = []

    def unpack_and_note(frames: Any, limits: Limits = DEFAULT_LIMITS) -> Envelope:
        envelope = unpack(frames, limits)
        seen.append((envelope.kind, envelope.trace))
        return envelope

    a = cluster["a"]
    with trace(tmp_path / "trace.json"):
        monkeypatch.setattr("zrpc.runtime.agent.unpack", unpack_and_note)
        monkeypatch.setattr("zrpc.runtime.exchanges.unpack", unpack_and_note)
        a.rpc_sync("b", torch.mul, (X, X))
        with pytest.raises(ValueError, match="expected"):
            a.rpc_sync("b", failing)
        value = a.remote("b", torch.mul, (X, X))
        a.rpc_sync("c", torch.Tensor.add, (X, 1))
        value.to_here()
        with autograd.context() as context_id:
            leaf = torch.ones(3, requires_grad=True)
            autograd.backward(context_id, [a.rpc_sync("b", torch.mul, (leaf, X)).sum()])
        a.agent.ask("b", {"what": "tasks"}, TIMEOUT)
        del value
        gc.collect()
        assert a.agent.references.wait_drained(monotonic() + TIMEOUT)
        monkeypatch.undo()
    kinds = {Kind(kind).name for kind, _ in seen}
    expected = {"CALL", "REMOTE_CALL", "REPLY", "ERROR", "RREF_FETCH", "RREF_USER_DELETE", "ACK"}
    assert kinds >= expected | {"BACKWARD", "CONTEXT_CLEANUP", "INSPECT", "ANSWER"}
    assert [Kind(kind).name for kind, parent in seen if parent is None] == []


def test_a_call_in_a_call_is_one_trace(cluster: LocalCluster, tmp_path: Path) -> None:
    with trace(tmp_path / "trace.json"):
        cluster["a"].rpc_sync("b", nested, ("c",))
    found = calls(load(tmp_path / "trace.json")[0])
    outer, inner = found[f"{__name__}:nested -> b"], found["aten::mul -> c"]
    assert outer["args"]["trace id"] == inner["args"]["trace id"]
    assert (outer["pid"], inner["pid"]) == (cluster["a"].agent.info.id, cluster["b"].agent.info.id)


def test_arrows_go_from_callers_to_callees(cluster: LocalCluster, tmp_path: Path) -> None:
    with trace(tmp_path / "trace.json"):
        cluster["a"].rpc_sync("b", torch.add, (X, 1))
    events, _ = load(tmp_path / "trace.json")
    [start], [end] = ([e for e in events if e["ph"] == ph] for ph in ("s", "f"))
    assert (start["id"], start["pid"], end["pid"]) == (
        end["id"],
        cluster["a"].agent.info.id,
        cluster["b"].agent.info.id,
    )
    assert start["ts"] <= end["ts"]
    for arrow in (start, end):
        assert any(
            e["ph"] == "X" and e["tid"] == arrow["tid"] and e["ts"] <= arrow["ts"] <= e["ts"] + e["dur"] + 1e-3
            for e in events
            if e["ph"] == "X" and e["pid"] == arrow["pid"]
        )


def test_nothing_is_recorded_before_and_after(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster["a"].rpc_sync("b", torch.add, (X, 1))
    with trace(tmp_path / "trace.json"):
        pass
    cluster["a"].rpc_sync("b", torch.add, (X, 1))
    assert calls(load(tmp_path / "trace.json")[0]) == {}
    assert [cluster[name].agent.tracer.is_on for name in "abc"] == [False] * 3


def test_a_worker_that_died_is_left_out_and_one_that_came_is_in(cluster: LocalCluster, tmp_path: Path) -> None:
    with trace(tmp_path / "trace.json"):
        cluster["a"].rpc_sync("c", torch.add, (X, 1))
        cluster.kill("c")
        cluster.start("d")
        cluster["a"].agent.peers.find("d", TIMEOUT)
        cluster["a"].rpc_sync("d", torch.add, (X, 1))
    events, about = load(tmp_path / "trace.json")
    assert sorted(about["workers"]) == ["a", "b", "d"]
    assert list(about["left out"]) == ["c"]
    assert "away (us)" in calls(events)["aten::add -> 2"]["args"]


def test_the_file_is_written_when_the_block_fails(cluster: LocalCluster, tmp_path: Path) -> None:
    def fail() -> None:
        with trace(tmp_path / "trace.json"):
            cluster["a"].rpc_sync("b", torch.add, (X, 1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "aten::add -> b" in calls(load(tmp_path / "trace.json")[0])


def test_a_file_that_cannot_be_written_is_known_at_once(cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), trace(tmp_path / "missing" / "trace.json"):
        raise AssertionError
    assert not cluster["b"].agent.tracer.is_on


def test_recording_ends_with_the_one_who_wanted_it(cluster: LocalCluster) -> None:
    tracer = cluster["b"].agent.tracer
    cluster["a"].agent.ask("b", {"what": "trace", "do": "start", "token": "t", "owner": 2}, TIMEOUT)
    assert tracer.is_on
    cluster["b"].rpc_sync("c", torch.add, (X, 1))
    cluster.kill("c")
    with pytest.raises(WorkerLost):
        cluster["b"].rpc_sync("c", torch.add, (X, 1))
    assert not tracer.is_on


def test_it_takes_an_agent(tmp_path: Path) -> None:
    with pytest.raises(NotInitialized), trace(tmp_path / "trace.json"):
        raise AssertionError


def test_the_environment_names_a_file(cluster: LocalCluster, tmp_path: Path) -> None:
    with trace_if_told({}):
        assert not cluster["a"].agent.tracer.is_on
    with trace_if_told({VARIABLE: str(tmp_path / "trace.json")}):
        assert cluster["a"].agent.tracer.is_on
    assert load(tmp_path / "trace.json")[1]["taken by"] == "a"


def test_a_backward_pass_is_in_it(cluster: LocalCluster, tmp_path: Path) -> None:
    w = torch.ones(3, requires_grad=True)
    with trace(tmp_path / "trace.json"), autograd.context() as context_id:
        loss = cluster["a"].rpc_sync("b", doubled, (w,)).sum()
        autograd.backward(context_id, [loss])
        assert torch.equal(autograd.get_gradients(context_id)[w], torch.full((3,), 2.0))
    events, _ = load(tmp_path / "trace.json")
    [whole] = [e for e in events if e["ph"] == "X" and e["cat"] == "block"]
    served = [e for e in events if e["ph"] == "X" and e["cat"] == "served" and e["name"] == "backward"]
    assert whole["name"] == "backward"
    assert {e["pid"] for e in served} == {cluster[name].agent.info.id for name in "ab"}  # gradients go there, and back
    assert all(whole["ts"] <= e["ts"] <= e["ts"] + e["dur"] <= whole["ts"] + whole["dur"] for e in served)
