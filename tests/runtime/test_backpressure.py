"""A caller that is faster than its callee is held back: what is under way stays within a number of bytes."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch

from zrpc.clock import monotonic
from zrpc.errors import CallTimeout, Overloaded, WorkerLost
from zrpc.options import AgentOptions
from zrpc.runtime.context import current_agent
from zrpc.testing import LocalCluster

LONG = 20.0  # reached only by a failure
CALL = 64 * 1024  # bytes of one call's tensor
LIMIT = 8 * CALL


class Gate:
    """Lets a function wait for a test."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.passed = 0


gate = Gate()


@pytest.fixture(autouse=True)
def fresh_gate() -> Any:
    global gate
    gate = Gate()
    yield
    gate.open.set()


def pass_gate(value: torch.Tensor) -> int:
    gate.open.wait(LONG)
    gate.passed += 1
    return value.numel()


def options(**changes: Any) -> AgentOptions:
    return AgentOptions(init_timeout=LONG, max_pending_bytes=LIMIT, num_worker_threads=2, **changes)


def wait_for(condition: Any) -> None:
    deadline = monotonic() + LONG
    pause = threading.Event()
    while not condition():
        assert monotonic() < deadline
        pause.wait(0.002)


@pytest.mark.parametrize("network", ["memory", "curve"])
def test_what_is_under_way_stays_within_the_limit(network: str) -> None:
    with LocalCluster(network=network, options=options()) as cluster:
        caller = cluster["a"].agent.caller
        futures: list[Any] = []
        tensor = torch.zeros(CALL // 4)
        seen: list[int] = []

        def produce() -> None:
            for _ in range(100):
                futures.append(cluster["a"].rpc_async("b", pass_gate, (tensor,)))
                seen.append(caller._pending.pending_bytes())

        producer = threading.Thread(target=produce)
        producer.start()
        wait_for(lambda: caller._pending.held_back())
        assert producer.is_alive()
        assert len(futures) <= 8
        gate.open.set()
        producer.join(LONG)
        assert [future.wait() for future in futures] == [CALL // 4] * 100
        assert max(seen) <= LIMIT
        assert caller._pending.pending_bytes() == 0


def test_memory_stays_flat_while_a_producer_outruns_its_consumer() -> None:
    """Ten times as much is made as may be under way; tensors that are alive are never more than what may be."""
    with LocalCluster(network="curve", options=options()) as cluster:
        gate.open.set()
        most = 0
        for n in range(80):
            cluster["a"].rpc_async("b", pass_gate, (torch.zeros(CALL // 4),))
            if n % 10 == 0:
                gc.collect()
            most = max(most, cluster["a"].agent.caller._pending.pending_bytes())
        wait_for(lambda: gate.passed == 80)
        assert most <= LIMIT


def test_failing_instead_of_waiting() -> None:
    with LocalCluster(options=options(when_full="fail")) as cluster:
        a = cluster["a"]
        tensor = torch.zeros(CALL // 4)
        futures = [a.rpc_async("b", pass_gate, (tensor,)) for _ in range(7)]
        with pytest.raises(Overloaded, match="max_pending_bytes"):
            a.rpc_async("b", pass_gate, (torch.zeros(CALL // 2),))
        gate.open.set()
        assert [future.wait() for future in futures] == [CALL // 4] * len(futures)
        assert a.rpc_async("b", pass_gate, (tensor,)).wait() == CALL // 4


def test_a_call_larger_than_the_limit_goes_alone() -> None:
    with LocalCluster(options=options()) as cluster:
        gate.open.set()
        for _ in range(3):
            assert cluster["a"].rpc_async("b", pass_gate, (torch.zeros(LIMIT),)).wait() == LIMIT


def test_waiting_ends_at_the_deadline() -> None:
    with LocalCluster(options=options()) as cluster:
        a = cluster["a"]
        held = a.rpc_async("b", pass_gate, (torch.zeros(LIMIT),))
        with pytest.raises(CallTimeout):
            a.rpc_async("b", pass_gate, (torch.zeros(CALL),), timeout=0.05)
        gate.open.set()
        assert held.wait() == LIMIT


def test_waiting_ends_with_the_worker() -> None:
    with LocalCluster(network="curve", options=options()) as cluster:
        a = cluster["a"]
        held = a.rpc_async("b", pass_gate, (torch.zeros(LIMIT),))
        errors: list[BaseException] = []

        def call() -> None:
            try:
                a.rpc_async("b", pass_gate, (torch.zeros(CALL),)).wait()
            except BaseException as error:
                errors.append(error)

        waiting = threading.Thread(target=call)
        waiting.start()
        wait_for(lambda: a.agent.caller._pending.held_back())
        killer = threading.Thread(target=cluster.kill, args=("b",))
        killer.start()
        waiting.join(LONG)
        gate.open.set()
        killer.join(LONG)
        assert [type(error) for error in errors] == [WorkerLost]
        with pytest.raises(WorkerLost):
            held.wait()


def call_back(value: torch.Tensor) -> int:
    """Many calls inside of a call: they are not held back."""
    other = "a" if current_agent().info.name == "b" else "b"
    futures = [current_agent().caller.call_async(other, len, ([1] * 10,), None, LONG) for _ in range(20)]
    return sum(future.wait() for future in futures) + value.numel() * 0


def test_workers_that_call_each_other_do_not_wait_for_each_other() -> None:
    with LocalCluster(options=options()) as cluster:
        there = [cluster["a"].rpc_async("b", call_back, (torch.zeros(CALL // 4),)) for _ in range(16)]
        assert [future.wait() for future in there] == [200] * 16
