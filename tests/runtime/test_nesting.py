"""Calls in calls, and many at once: the pool never starves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

import zrpc
from zrpc.errors import LocalFault
from zrpc.options import AgentOptions
from zrpc.runtime.context import current_agent
from zrpc.runtime.futures import teach_torch, wait_all
from zrpc.testing import LocalCluster

LONG = 30.0
THREADS = 4
_barrier = threading.Barrier(THREADS)


def descend(names: list[str], depth: int) -> int:
    """Call through the workers in turn, each call inside the one before; how many calls there were."""
    if depth == 0:
        return 0
    caller = current_agent().caller
    return 1 + int(caller.call_sync(names[depth % len(names)], descend, (names, depth - 1), None, LONG))


def descend_async(names: list[str], depth: int) -> int:
    if depth == 0:
        return 0
    caller = current_agent().caller
    future = caller.call_async(names[depth % len(names)], descend_async, (names, depth - 1), None, LONG)
    return 1 + int(future.wait())


def meet() -> int:
    """Returns when as many run as there are threads."""
    return _barrier.wait(LONG)


def ask_back(name: str) -> int:
    return int(current_agent().caller.call_sync(name, len, ("four",), None, LONG))


def fan_out(names: list[str], each: int) -> int:
    caller = current_agent().caller
    return sum(wait_all([caller.call_async(n, len, ("four",), None, LONG) for n in names * each]))


def wait_for_any_future(name: str) -> int:
    """As programs of torch do: by a future of their own, which a callback completes."""
    result: torch.futures.Future[int] = torch.futures.Future()
    current_agent().caller.call_async(name, len, ("four",), None, LONG).then(lambda f: result.set_result(f.value()))
    return result.wait()


def wait_for_callbacks(name: str) -> int:
    return current_agent().caller.call_async(name, len, ("four",), None, LONG).then(lambda f: f.value()).wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    options = AgentOptions(num_worker_threads=THREADS, init_timeout=LONG)
    saved = torch.futures.wait_all, torch.futures.collect_all, torch.futures.Future.wait
    teach_torch()
    with LocalCluster(["a", "b", "c"], options=options) as running:
        yield running
    torch.futures.wait_all, torch.futures.collect_all, torch.futures.Future.wait = saved  # type: ignore[method-assign]


def leave() -> None:
    zrpc.shutdown()


def test_nobody_waits_for_the_end_of_its_own_call(cluster: LocalCluster) -> None:
    for to in ("a", "b"):
        with pytest.raises(LocalFault, match="would wait for that call to end"):
            cluster["a"].rpc_sync(to, leave)
    assert cluster["a"].rpc_sync("b", len, ("still here",)) == 10


@pytest.mark.parametrize("names", [["b", "c", "a"], ["a"], ["b"]], ids="-".join)
def test_200_calls_deep(cluster: LocalCluster, names: list[str]) -> None:
    assert cluster["a"].rpc_sync(names[0], descend, (names, 200), timeout=LONG) == 200
    assert cluster["a"].rpc_sync(names[0], descend_async, (names, 200), timeout=LONG) == 200


def test_as_many_functions_run_at_once_as_there_are_threads(cluster: LocalCluster) -> None:
    ranks = torch.futures.wait_all([cluster["a"].rpc_async("b", meet) for _ in range(THREADS)])
    assert sorted(ranks) == list(range(THREADS))


def test_all_threads_wait_for_calls_to_one_another(cluster: LocalCluster) -> None:
    calls = [cluster[x].rpc_async(y, ask_back, (x,)) for x in "abc" for y in "abc" for _ in range(3 * THREADS)]
    assert set(torch.futures.wait_all(calls)) == {4}
    calls = [cluster["a"].rpc_async(name, fan_out, (["a", "b", "c"], 5)) for name in "abc" * THREADS]
    assert set(torch.futures.wait_all(calls)) == {60}
    for function in (wait_for_any_future, wait_for_callbacks):
        calls = [cluster[x].rpc_async(y, function, (x,)) for x in "abc" for y in "abc" for _ in range(3 * THREADS)]
        assert set(torch.futures.wait_all(calls)) == {4}


def test_thousands_of_calls_at_once(cluster: LocalCluster) -> None:
    calls = [cluster["a"].rpc_async("bc"[n % 2], abs, (-n,)) for n in range(4000)]
    assert torch.futures.wait_all(calls) == list(range(4000))


def test_many_threads_of_the_user_call_and_wait(cluster: LocalCluster) -> None:
    results: list[int] = []

    def work() -> None:
        for _ in range(20):
            results.append(cluster["a"].rpc_sync("b", len, ("four",)))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == [4] * 320
