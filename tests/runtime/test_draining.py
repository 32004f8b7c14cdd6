"""A worker that leaves in good order: what was begun ends well, what is new is refused with an error to act on."""

from __future__ import annotations

import threading

import pytest
import torch

from zrpc.clock import monotonic
from zrpc.errors import WorkerDraining
from zrpc.options import AgentOptions
from zrpc.runtime.context import current_agent
from zrpc.testing import LocalCluster

LONG = 20.0


class Step:
    """A function that says that it has begun, and waits until it may go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(LONG)
        return "done"


STEPS = {"first": Step(), "ask back": Step()}


@pytest.fixture(autouse=True)
def fresh_steps() -> None:
    for name in STEPS:
        STEPS[name] = Step()


def take_step(name: str) -> str:
    return STEPS[name]()


def ask(worker: str) -> int:
    """Runs on the one that drains, and calls another, which calls back."""
    take_step("ask back")
    answer: int = current_agent().caller.call_sync(worker, ask_back, (current_agent().info.name,), None, LONG)
    return answer


def ask_back(worker: str) -> int:
    answer: int = current_agent().caller.call_sync(worker, abs, (-3,), None, LONG)
    return answer


def begin_to_leave(cluster: LocalCluster, name: str) -> threading.Thread:
    """`cluster.stop` on a thread, once the worker takes no new work."""
    thread = threading.Thread(target=cluster.stop, args=(name,))
    agent = cluster[name].agent
    thread.start()
    deadline = monotonic() + LONG
    while agent.callee.gate is None:
        assert monotonic() < deadline
        thread.join(0.001)
    return thread


def test_what_was_begun_is_finished_and_what_is_new_is_refused() -> None:
    with LocalCluster(["a", "b", "c"]) as cluster:
        call = cluster["a"].rpc_async("b", take_step, ("first",))
        assert STEPS["first"].begun.wait(LONG)
        leaving = begin_to_leave(cluster, "b")
        with pytest.raises(WorkerDraining, match=r"worker 'b' is leaving .*add was not started") as caught:
            cluster["c"].rpc_sync("b", torch.add, (torch.ones(1), 1))
        assert caught.value.worker == "b"
        STEPS["first"].go_on.set()
        assert call.wait() == "done"
        leaving.join(LONG)
        assert not leaving.is_alive()
        back = threading.Event()
        cluster["a"].agent.watch.register(lambda event: event.kind == "joined" and back.set(), present=False)
        cluster.start("b")  # the name is free
        assert back.wait(LONG)
        assert cluster["a"].rpc_sync("b", torch.add, (torch.ones(1), 1)).item() == 2


def test_a_call_that_belongs_to_what_was_begun_is_taken() -> None:
    """b, which drains, serves a call that asks c, which asks b again."""
    with LocalCluster(["a", "b", "c"]) as cluster:
        call = cluster["a"].rpc_async("b", ask, ("c",))
        assert STEPS["ask back"].begun.wait(LONG)
        leaving = begin_to_leave(cluster, "b")
        STEPS["ask back"].go_on.set()
        assert call.wait() == 3
        leaving.join(LONG)


def test_a_remote_value_is_refused_too_and_says_so() -> None:
    with LocalCluster(["a", "b", "c"]) as cluster:
        call = cluster["a"].rpc_async("b", take_step, ("first",))
        assert STEPS["first"].begun.wait(LONG)
        leaving = begin_to_leave(cluster, "b")
        reference = cluster["c"].remote("b", torch.add, (torch.ones(1), 1))
        with pytest.raises(WorkerDraining):
            reference.to_here()
        STEPS["first"].go_on.set()
        assert call.wait() == "done"
        leaving.join(LONG)


def test_it_waits_no_longer_than_its_drain_timeout() -> None:
    options = AgentOptions(init_timeout=LONG, drain_timeout=0.0)
    with LocalCluster(["a", "b"], options=options) as cluster:
        call = cluster["a"].rpc_async("b", take_step, ("first",))
        assert STEPS["first"].begun.wait(LONG)
        agent = cluster["b"].agent
        agent.leaving.begin("a test")
        assert not agent.leaving.wait(monotonic())
        STEPS["first"].go_on.set()
        assert call.wait() == "done"
        assert agent.leaving.wait(monotonic() + LONG)


def test_hurrying_ends_the_waiting() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        cluster["a"].rpc_async("b", take_step, ("first",))
        assert STEPS["first"].begun.wait(LONG)
        agent = cluster["b"].agent
        agent.leaving.begin("a test")
        agent.leaving.hurry()
        assert not agent.leaving.wait(monotonic() + LONG)
        STEPS["first"].go_on.set()
