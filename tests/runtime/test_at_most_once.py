"""A function never runs twice for one call, whatever the network repeats; and a life that is over runs none."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

from zrpc.errors import StaleIncarnation
from zrpc.options import AgentOptions
from zrpc.protocol.effects import Fenced
from zrpc.testing import FaultPlan, LocalCluster

LONG = 20.0  # reached only by a failure
ran: Counter[str] = Counter()
lock = threading.Lock()
CALLS = 60


def count(name: str) -> str:
    with lock:
        ran[name] += 1
    return name


def fresh(tag: str) -> torch.jit.ScriptFunction:
    """A function whose code no worker has."""
    unit = torch.jit.CompilationUnit(f"def f_{tag}(x: Tensor) -> Tensor:\n    return x + 1\n")
    return getattr(unit, f"f_{tag}")


@pytest.mark.parametrize("network", ["memory", "curve"])
def test_repeated_calls_run_once(network: str) -> None:
    plan = FaultPlan(seed=5)
    plan.duplicate(kinds=["CALL", "REMOTE_CALL", "REPLY"])
    plan.duplicate(0.5, after=0.01, kinds=["CALL", "REMOTE_CALL"])
    plan.reorder(0.01, 0.5, kinds=["CALL", "REMOTE_CALL", "REPLY"])
    ran.clear()
    with LocalCluster(["a", "b"], network, faults=plan) as cluster:
        a = cluster["a"]
        futures = [a.rpc_async("b", count, args=(f"async {i}",)) for i in range(CALLS)]
        made = [a.remote("b", count, args=(f"remote {i}",)) for i in range(CALLS)]
        for i in range(CALLS):
            assert a.rpc_sync("b", count, args=(f"sync {i}",)) == f"sync {i}"
        assert [future.wait() for future in futures] == [f"async {i}" for i in range(CALLS)]
        assert [reference.to_here() for reference in made] == [f"remote {i}" for i in range(CALLS)]
        del made
    assert len(ran) == 3 * CALLS
    assert set(ran.values()) == {1}
    assert plan.counts()["duplicate"] >= 3 * CALLS


@pytest.mark.parametrize("network", ["memory", "curve"])
def test_code_is_asked_for_twice_and_runs_once(network: str) -> None:
    plan = FaultPlan(seed=6)
    plan.duplicate(kinds=["CALL", "NEED_CODE", "REPLY"])
    with LocalCluster(["a", "b"], network, faults=plan) as cluster:
        one = torch.ones(1)
        for i in range(5):
            assert cluster["a"].rpc_sync("b", fresh(f"sync_{i}"), args=(one,)) == 2
        futures = [cluster["a"].rpc_async("b", fresh(f"async_{i}"), args=(one,)) for i in range(5)]
        assert torch.futures.wait_all(futures) == [torch.tensor([2.0])] * 5
        assert cluster["b"].agent.meter.counts().calls_served == 10


def test_references_in_repeated_calls_are_taken_once() -> None:
    plan = FaultPlan(seed=7)
    plan.duplicate(kinds="CALL")
    with LocalCluster(["a", "b", "c"], faults=plan) as cluster:
        made = cluster["c"].rref(torch.ones(1))
        for _ in range(20):
            assert cluster["c"].rpc_sync("b", fetched, args=(made,)) == 1
        assert cluster["c"].rpc_sync("c", torch.add, args=(made, 1)) == 2


def fetched(reference: object) -> object:
    return reference.to_here()  # type: ignore[attr-defined]


def test_a_fenced_life_runs_nothing() -> None:
    ran.clear()
    with LocalCluster(["a", "b"], options=AgentOptions(init_timeout=LONG)) as cluster:
        agent = cluster["b"].agent
        assert cluster["a"].rpc_sync("b", count, args=("before",)) == "before"
        agent._take_news(Fenced("its name has a newer life"))
        with pytest.raises(StaleIncarnation, match="its name has a newer life"):
            cluster["a"].rpc_sync("b", count, args=("after",))
        assert agent.refused["call to a fenced life"] == 1
    assert dict(ran) == {"before": 1}
