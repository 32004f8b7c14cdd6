"""A call that runs out of time says what became of it: running where, queued behind what, unknown, or no answer."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zrpc import functions
from zrpc.clock import monotonic
from zrpc.errors import CallTimeout, WorkerLost
from zrpc.options import AgentOptions
from zrpc.runtime import progress
from zrpc.testing import FaultPlan, LocalCluster

LONG = 20.0  # reached only by a failure
SHORT = 0.2
release = threading.Event()


def hold() -> None:
    assert release.wait(LONG)


def never() -> torch.futures.Future[int]:
    return pending[0]


never_async = functions.async_execution(never)
pending: list[torch.futures.Future[int]] = []


@pytest.fixture(params=["memory", "curve"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    release.clear()
    pending[:] = [torch.futures.Future()]
    options = AgentOptions(num_worker_threads=2, init_timeout=LONG)
    with LocalCluster(["a", "b"], request.param, options=options, faults=FaultPlan()) as running:
        yield running
        release.set()
        if not pending[0].done():
            pending[0].set_result(1)


def how_it_ends(cluster: LocalCluster, is_sync: bool, func: Any, args: tuple[Any, ...] = ()) -> str:
    a = cluster["a"]
    call = a.rpc_sync if is_sync else lambda *given, **named: a.rpc_async(*given, **named).wait()
    with pytest.raises(CallTimeout) as caught:
        call("b", func, args=args, timeout=SHORT)
    return caught.value.state


def wait_for_tasks(cluster: LocalCluster, count: int) -> list[dict[str, Any]]:
    """Until b serves so many calls."""
    deadline = monotonic() + LONG
    while True:
        told = cluster["a"].agent.ask("b", {"what": "tasks"}, LONG)["tasks"]
        if sum(task["state"] != "queued" for task in told) >= min(count, 2) and len(told) == count:
            return list(told)
        assert monotonic() < deadline, told


both = pytest.mark.parametrize("is_sync", [True, False], ids=["sync", "async"])


@both
def test_running(cluster: LocalCluster, is_sync: bool) -> None:
    said = how_it_ends(cluster, is_sync, hold)
    assert said.startswith("The worker is alive, and has been running it for 0.")
    lines = said.splitlines()
    assert "in hold: assert release.wait(LONG)" in said
    assert lines[1].split(":")[0].strip() == __file__, "the first line is the function's own"


@both
def test_queued(cluster: LocalCluster, is_sync: bool) -> None:
    for _ in range(3):
        cluster["a"].rpc_async("b", hold)
    wait_for_tasks(cluster, 3)
    said = how_it_ends(cluster, is_sync, torch.add, (torch.ones(1), 1))
    assert "the call has been queued for 0." in said
    assert "behind 1 others; running: " in said
    assert said.count("hold for 0.") == 2


@both
def test_waiting(cluster: LocalCluster, is_sync: bool) -> None:
    said = how_it_ends(cluster, is_sync, never_async)
    assert "what it returned is not complete yet" in said


@both
def test_lost_on_the_way(cluster: LocalCluster, is_sync: bool) -> None:
    assert cluster.faults is not None
    with cluster.faults.drop(kinds="CALL"):
        assert "does not have this call" in how_it_ends(cluster, is_sync, torch.add, (torch.ones(1), 1))


@both
def test_cut_off(cluster: LocalCluster, is_sync: bool) -> None:
    assert cluster.faults is not None
    assert cluster["a"].rpc_sync("b", torch.add, args=(torch.ones(1), 1)) == 2
    with cluster.faults.partition("a", "b"):
        said = how_it_ends(cluster, is_sync, torch.add, (torch.ones(1), 1))
    assert said == progress.unanswered(progress.PATIENCE)


def test_a_value_in_the_making(cluster: LocalCluster) -> None:
    made = cluster["a"].remote("b", hold)
    with pytest.raises(CallTimeout, match="fetching the value") as caught:
        made.to_here(SHORT)
    assert "in hold: assert release.wait(LONG)" in caught.value.state


def test_many_at_once_are_asked_about_together(cluster: LocalCluster) -> None:
    futures = [cluster["a"].rpc_async("b", hold, timeout=SHORT) for _ in range(progress.MOST + 6)]
    states = []
    for future in futures:
        with pytest.raises(CallTimeout) as caught:
            future.wait()
        states.append(caught.value.state)
    assert sum("running it for" in state for state in states) == 2
    assert all(states)


def test_the_death_of_the_worker_is_what_is_told(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", hold)
    release.set()
    future.wait()
    release.clear()
    future = cluster["a"].rpc_async("b", never_async)
    cluster.kill("b")
    with pytest.raises(WorkerLost, match="'b'"):
        future.wait()


def test_a_call_to_oneself(cluster: LocalCluster) -> None:
    with pytest.raises(CallTimeout) as caught:
        cluster["a"].rpc_sync("a", hold, timeout=SHORT)
    assert "in hold: assert release.wait(LONG)" in caught.value.state


def test_all_tasks_of_a_worker(cluster: LocalCluster) -> None:
    cluster["a"].rpc_async("b", hold)
    cluster["a"].rpc_async("b", never_async)
    told = wait_for_tasks(cluster, 2)
    assert {task["function"].rpartition(":")[2]: task["state"] for task in told} == {
        "hold": "running",
        "never": "waiting",
    }
    assert all(task["caller"] == cluster["a"].agent.info.id for task in told)


@pytest.mark.parametrize(
    "question",
    [
        {"what": "calls"},
        {"what": "calls", "ids": 7},
        {"what": "calls", "ids": ["x", None, [], -1, 1 << 70], "values": 3},
        {"what": "calls", "ids": [1], "values": [["a", {}], 2]},
    ],
)
def test_nonsense_is_about_unknown_calls(question: dict[str, Any]) -> None:
    told = progress.describe_calls(question, (0, 1), [], 0.0, lambda: 1.0)
    assert all(part == {"state": "unknown"} for part in told["calls"])


@pytest.mark.parametrize("answer", [{}, {"calls": 3}, {"calls": [1, {"state": 4}, {"state": "queued", "running": 2}]}])
def test_nonsense_in_an_answer_is_read(answer: dict[str, Any]) -> None:
    assert len(progress.sentences(answer, 4)) == 4


def test_the_stack_of_a_thread_that_is_gone() -> None:
    assert progress.stack_of(0) == []


@pytest.mark.parametrize("is_enabled", [True, False])
def test_stacks_are_read_without_garbage_collection(is_enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins meanwhile can stop all threads for ever."""
    original = sys._current_frames
    seen: list[bool] = []

    def current_frames() -> dict[int, Any]:
        seen.append(gc.isenabled())
        return original()

    monkeypatch.setattr(sys, "_current_frames", current_frames)
    was_enabled = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        assert progress.stack_of(threading.get_ident()) == []
        assert seen == [False]
        assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
