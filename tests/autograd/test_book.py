"""Contexts between real agents, when messages come late, twice, or after the end."""

from __future__ import annotations

import threading

import torch
from contexts_world import contexts_of, wait_until

from zrpc import autograd
from zrpc.runtime.context import current_agent, running
from zrpc.testing import FaultPlan, LocalCluster

LONG = 30.0
entered = threading.Event()
may_go_on = threading.Event()


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def late_relay(to: str, x: torch.Tensor) -> torch.Tensor:
    """Calls another worker, when it may."""
    entered.set()
    assert may_go_on.wait(LONG)
    result: torch.Tensor = current_agent().caller.call_sync(to, double, (x,), None, LONG)
    return result


def test_a_call_that_is_made_after_the_end_spreads_nothing() -> None:
    """A context ends while its function still runs on b; that then calls c, which nobody would ever tell of the end."""
    with LocalCluster(("a", "b", "c")) as cluster:
        running.agent = cluster["a"].agent
        try:
            with autograd.context():
                future = cluster["a"].rpc_async(
                    "b", late_relay, args=("c", torch.ones(2, requires_grad=True)), timeout=LONG
                )
                assert entered.wait(LONG)
                assert len(contexts_of(cluster, "b")) == 1
            wait_until(lambda: len(contexts_of(cluster, "b")) == 0)
            may_go_on.set()
            assert future.wait().tolist() == [2.0, 2.0]
            assert [len(contexts_of(cluster, name)) for name in "abc"] == [0, 0, 0]
        finally:
            running.agent = None


def test_messages_of_a_pass_that_come_twice_count_once() -> None:
    plan = FaultPlan(seed=1)
    with LocalCluster(("a", "b"), faults=plan) as cluster:
        running.agent = cluster["a"].agent
        try:
            with plan.duplicate(kinds="BACKWARD"), autograd.context() as context_id:
                x = torch.ones(2, requires_grad=True)
                once = cluster["a"].rpc_sync("b", double, args=(x,))
                twice = cluster["a"].rpc_sync("b", double, args=(once,))
                autograd.backward(context_id, [twice.sum()])
                assert autograd.get_gradients(context_id)[x].tolist() == [4.0, 4.0]
            assert plan.counts()["duplicate"] >= 2
        finally:
            running.agent = None
