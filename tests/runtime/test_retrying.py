"""Calls that may be repeated are: on the next life of a name, on another worker, and no longer than their time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

import zrpc
from zrpc.clock import monotonic
from zrpc.errors import (
    ArgumentMismatch,
    CallTimeout,
    Cancelled,
    LocalFault,
    StaleIncarnation,
    UnknownWorker,
    WorkerLost,
)
from zrpc.protocol.effects import Fenced
from zrpc.runtime.context import running
from zrpc.testing import LocalCluster

LONG = 20.0  # reached only by a failure
SHORT = 0.3
ran: Counter[str] = Counter()
entered = threading.Event()
release = threading.Event()


def here() -> str:
    name = str(running.agent.info.name)  # type: ignore[union-attr]
    ran[name] += 1
    return name


def hold() -> str:
    if not entered.is_set():
        entered.set()
        assert release.wait(LONG)
    return here()


def fail() -> None:
    ran["fail"] += 1
    raise ValueError("planted")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    ran.clear()
    entered.clear()
    release.clear()
    with LocalCluster(["a"]) as made:
        for name in "bcd":
            made.start(name, role="server")
        yield made
        release.set()


def test_a_call_that_succeeds_runs_once(cluster: LocalCluster) -> None:
    assert cluster["a"].rpc_sync("b", here, idempotent=True) == "b"
    assert cluster["a"].rpc_async("b", torch.add, args=(torch.ones(1), 1), idempotent=True).wait() == 2
    assert ran == {"b": 1}


def test_the_next_life_of_the_name(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", hold, timeout=LONG, idempotent=True)
    assert entered.wait(LONG)
    threading.Timer(0.0, release.set).start()
    cluster.kill("b")
    assert cluster.broker is not None
    deadline = monotonic() + LONG
    while any(member.name == "b" for member in cluster.broker.members()):
        assert monotonic() < deadline
    cluster.start("b")
    assert future.wait() == "b"


def test_a_name_that_is_to_come_back(cluster: LocalCluster) -> None:
    cluster["a"].rpc_sync("b", here)
    cluster.stop("b")
    future = cluster["a"].rpc_async("b", here, timeout=LONG, idempotent=True)
    cluster.start("b")
    assert future.wait() == "b"


def test_another_worker_of_a_list_or_a_role(cluster: LocalCluster) -> None:
    for to in (["b", "c", "d"], zrpc.Role("server")):
        assert {cluster["a"].rpc_sync(to, here, idempotent=True) for _ in range(60)} == {"b", "c", "d"}
    cluster.kill("b")
    cluster.kill("c")
    for to in (["b", "c", "d"], zrpc.Role("server")):
        assert {cluster["a"].rpc_sync(to, here, timeout=LONG, idempotent=True) for _ in range(5)} == {"d"}


def test_a_fenced_worker_is_left_for_another(cluster: LocalCluster) -> None:
    cluster["b"].agent._take_news(Fenced("planted"))
    assert {cluster["a"].rpc_sync(["b", "c"], here, timeout=LONG, idempotent=True) for _ in range(10)} == {"c"}
    with pytest.raises(StaleIncarnation):
        cluster["a"].rpc_sync("b", here, timeout=SHORT, idempotent=True)


def test_a_role_that_nobody_has_yet(cluster: LocalCluster) -> None:
    with pytest.raises(UnknownWorker, match="any of role late"):
        cluster["a"].rpc_sync(zrpc.Role("late"), here, timeout=SHORT, idempotent=True)
    future = cluster["a"].rpc_async(zrpc.Role("late"), here, timeout=LONG, idempotent=True)
    cluster.start("e", role="late")
    assert future.wait() == "e"


def test_time_ends_it(cluster: LocalCluster) -> None:
    cluster["a"].rpc_sync("b", here)
    cluster.kill("b")
    with pytest.raises(WorkerLost):
        cluster["a"].rpc_sync("b", here, timeout=LONG)
    with pytest.raises(WorkerLost):
        cluster["a"].rpc_sync("b", here, timeout=SHORT, idempotent=True)
    with pytest.raises(CallTimeout):
        cluster["a"].rpc_sync("c", hold, timeout=SHORT, idempotent=True)


def test_what_the_function_raised_is_not_tried_again(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="planted"):
        cluster["a"].rpc_sync(["b", "c"], fail, idempotent=True)
    assert ran == {"fail": 1}


def test_wrong_calls_raise_at_once(cluster: LocalCluster) -> None:
    with pytest.raises(UnknownWorker):
        cluster["a"].rpc_async("nobody", here, idempotent=True)
    with pytest.raises(LocalFault, match="the list of workers is empty"):
        cluster["a"].rpc_async([], here, idempotent=True)
    with pytest.raises((ArgumentMismatch, RuntimeError)):
        cluster["a"].rpc_async("b", torch.jit.script(one), args=(1, 2, 3), idempotent=True)


def one(x: int) -> int:
    return x


def test_cancelling(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", hold, timeout=LONG, idempotent=True)
    assert entered.wait(LONG)
    assert zrpc.cancel(future)
    with pytest.raises(Cancelled):
        future.wait()
    cluster.kill("c")
    with pytest.raises(WorkerLost):
        cluster["a"].rpc_sync("c", here, timeout=LONG)
    waiting = cluster["a"].rpc_async("c", here, timeout=0, idempotent=True)
    assert zrpc.cancel(waiting)
    with pytest.raises(WorkerLost):
        waiting.wait()


def test_the_end_of_the_caller_ends_it(cluster: LocalCluster) -> None:
    cluster["a"].rpc_sync("b", here)
    cluster.stop("b")
    future = cluster["a"].rpc_async("b", here, timeout=0, idempotent=True)
    cluster.stop("a")
    with pytest.raises(WorkerLost):
        future.wait()


def test_a_list_needs_the_word() -> None:
    with LocalCluster(["b"], "tcp") as cluster:
        assert cluster.broker is not None
        options = zrpc.AgentOptions(security=False, init_timeout=LONG)
        zrpc.init_rpc("a", broker=cluster.broker.address, options=options)
        try:
            with pytest.raises(LocalFault, match="idempotent=True"):
                zrpc.rpc_sync(["b"], here)
            with pytest.raises(LocalFault, match="idempotent=True"):
                zrpc.rpc_async(zrpc.Role("x"), here)
            assert zrpc.rpc_sync(["b"], torch.add, args=(torch.ones(1), 1), idempotent=True) == 2
            assert zrpc.rpc_async(["b"], torch.add, args=(torch.ones(1), 1), idempotent=True).wait() == 2
        finally:
            zrpc.shutdown(graceful=False)
