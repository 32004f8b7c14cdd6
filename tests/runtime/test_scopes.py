"""Cancelling calls: before they start, while they run, while they wait, and too late; with what they have called."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from zrpc import functions
from zrpc.errors import Cancelled, WorkerLost
from zrpc.options import AgentOptions
from zrpc.rref import RRef
from zrpc.runtime.context import current_agent
from zrpc.runtime.futures import Future, cancel
from zrpc.runtime.scopes import Scope, check_cancelled, current_scope
from zrpc.testing import LocalCluster
from zrpc.wire.envelope import Envelope, Kind, pack

LONG = 20.0
_gate = threading.Event()
_ended: list[str] = []
_record = threading.Condition()
_running: list[str] = []


def note(where: list[str], what: str) -> None:
    with _record:
        where.append(what)
        _record.notify_all()


def until(condition: Callable[[], bool]) -> bool:
    with _record:
        return _record.wait_for(condition, LONG)


def loop_and_check() -> None:
    note(_running, "loop")
    try:
        while not _gate.is_set():
            check_cancelled()
    except Cancelled:
        note(_ended, "loop")
        raise


def wait_at_the_gate() -> str:
    note(_running, "gate")
    _gate.wait(LONG)
    note(_ended, "gate")
    return "through"


def call_sync(name: str) -> None:
    note(_running, "sync")
    try:
        current_agent().caller.call_sync(name, loop_and_check, (), None, LONG)
    except Cancelled:
        note(_ended, "sync")
        raise


def call_async(name: str) -> None:
    note(_running, "async")
    try:
        current_agent().caller.call_async(name, loop_and_check, (), None, LONG).wait()
    except Cancelled:
        note(_ended, "async")
        raise


def call_when_cancelled(name: str) -> None:
    """Its first zrpc call after the cancellation raises."""
    scope = current_scope()
    assert scope is not None
    note(_running, "late")
    _gate.wait(LONG)
    try:
        current_agent().caller.call_sync(name, int, (), None, LONG)
    except Cancelled:
        note(_ended, "late")
        raise


def fetch_what_comes(name: str) -> None:
    agent = current_agent()
    own = RRef.of(agent.references, *agent.remote(agent.info, wait_at_the_gate, (), None, LONG))
    note(_running, "fetch")
    try:
        own.to_here()
    except Cancelled:
        note(_ended, "fetch")
        raise


@functions.async_execution
def go_on_later(name: str) -> torch.futures.Future[None]:
    return current_agent().caller.call_async(name, loop_and_check, (), None, LONG)


async def wait_for_ever() -> None:
    note(_running, "coroutine")
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        note(_ended, "coroutine")


def never() -> None:
    note(_ended, "never")


@torch.jit.script
def slow(n: int) -> int:
    total = 0
    for i in range(n):
        total += i % 7
    return total


def rref_id(reference: RRef[int]) -> int:
    return 1


@pytest.fixture(autouse=True)
def _closed_gate() -> Iterator[None]:
    _gate.clear()
    _ended.clear()
    _running.clear()
    yield
    _gate.set()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        yield running


@pytest.mark.parametrize("to", ["a", "b"])
def test_a_running_function_ends_at_its_next_check(cluster: LocalCluster, to: str) -> None:
    future = cluster["a"].rpc_async(to, loop_and_check)
    assert until(lambda: _running == ["loop"])
    assert cancel(future)
    with pytest.raises(Cancelled, match=f"loop_and_check on worker '{to}' was cancelled"):
        future.wait()
    assert until(lambda: _ended == ["loop"])
    assert not cancel(future), "cancelled already"
    assert cluster["a"].rpc_sync(to, int) == 0


@pytest.mark.parametrize("nested", [call_sync, call_async, go_on_later])
@pytest.mark.parametrize("to", ["a", "c"])
def test_nested_calls_end_with_it(cluster: LocalCluster, nested: Callable[[str], None], to: str) -> None:
    future = cluster["a"].rpc_async("b", nested, (to,))
    assert until(lambda: "loop" in _running)
    assert cancel(future)
    with pytest.raises(Cancelled):
        future.wait()
    expected = {"loop"} if nested is go_on_later else {"loop", _running[0]}
    assert until(lambda: set(_ended) == expected)


def test_the_next_call_raises(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", call_when_cancelled, ("c",))
    assert until(lambda: _running == ["late"])
    assert cancel(future)
    cluster["a"].agent.ask("b", {"what": "ping"}, LONG)  # it comes after the cancellation
    _gate.set()
    assert until(lambda: _ended == ["late"])


def test_a_wait_for_a_value_ends(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", fetch_what_comes, ("b",))
    assert until(lambda: "fetch" in _running)
    assert cancel(future)
    assert until(lambda: "fetch" in _ended)


def test_what_has_not_started_never_does() -> None:
    with LocalCluster(["a", "b"], options=AgentOptions(num_worker_threads=1, init_timeout=LONG)) as cluster:
        a = cluster["a"]
        first = a.rpc_async("b", wait_at_the_gate)
        assert until(lambda: _running == ["gate"])
        held = a.rref(5)
        waiting = [a.rpc_async("b", never), a.rpc_async("b", rref_id, (held,))]
        assert [cancel(future) for future in waiting] == [True, True]
        for future in waiting:
            with pytest.raises(Cancelled):
                future.wait()
        a.agent.ask("b", {"what": "ping"}, LONG)  # it comes after them, and needs no thread of the pool
        _gate.set()
        assert first.wait() == "through"
        assert a.rpc_sync("b", int) == 0
        assert cluster["b"].agent.callee.under_way() == 0
        assert "never" not in _ended
        counts = a.agent.meter.counts(), cluster["b"].agent.meter.counts()
        assert counts[0].calls_made == counts[1].calls_served, "a graceful shutdown waits for these to be equal"


def test_a_script_runs_to_its_end_unheard(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", slow, (3_000_000,))
    assert cancel(future)
    with pytest.raises(Cancelled):
        future.wait()
    assert cluster["a"].rpc_sync("b", slow, (10,)) == 24


def test_a_coroutine_is_cancelled(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", wait_for_ever)
    assert until(lambda: _running == ["coroutine"])
    assert cancel(future)
    assert until(lambda: _ended == ["coroutine"])


def test_too_late_or_of_something_else(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", int)
    assert future.wait() == 0
    assert not cancel(future)
    assert future.wait() == 0
    assert not cancel(torch.futures.Future())
    assert not cancel(Future())


def test_messages_that_name_no_call_are_ignored(cluster: LocalCluster) -> None:
    a, b = cluster["a"].agent, cluster["b"].agent
    peer = a.peers.find("b")
    for number in (0, 1, 1 << 60):
        peer.send(pack(Envelope(Kind.CANCEL, number, a.info.id, a.identity.incarnation, b.identity.incarnation)))
    assert cluster["a"].rpc_async("b", int).wait() == 0


def test_cancelled_with_its_worker_gone() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        future = cluster["a"].rpc_async("b", wait_at_the_gate)
        assert until(lambda: _running == ["gate"])
        killer = threading.Thread(target=cluster.kill, args=("b",))
        killer.start()
        cancel(future)
        with pytest.raises((Cancelled, WorkerLost)):
            future.wait()
        _gate.set()
        killer.join(LONG)


def test_outside_of_a_call_there_is_nothing_to_check() -> None:
    check_cancelled()
    assert current_scope() is None


def test_what_is_enrolled_in_a_cancelled_scope_ends_at_once() -> None:
    ended: list[int] = []
    scope = Scope(None)
    scope.enroll(1, lambda: ended.append(1))
    scope.enroll(2, lambda: ended.append(2))
    scope.leave(2)
    scope.leave(7)
    scope.cancel()
    scope.cancel()
    scope.enroll(3, lambda: ended.append(3))
    assert ended == [1, 3]
    with pytest.raises(Cancelled):
        scope.check()
