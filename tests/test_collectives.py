"""Collectives on a whole cluster in one process: each worker takes part by a call that runs on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zrpc.collectives import _all_gather, _barrier, _thread_local_var, _wait_all, _wait_all_workers
from zrpc.debug import (
    _get_current_rpc_agent,
    _get_debug_info,
    _set_rpc_timeout,
    enable_gil_profiling,
    get_rpc_timeout,
)
from zrpc.errors import NotInitialized
from zrpc.runtime.context import current_agent
from zrpc.testing.cluster import LocalCluster

NAMES = ("a", "b", "c")


class Slow:
    """Takes its time to be written, longer than the calls here may take."""

    def __reduce__(self) -> Any:
        threading.Event().wait(0.3)
        return Slow, ()


def gather(names: Any = None, timeout: float = -1) -> Any:
    return _all_gather(current_agent().info.id, names, timeout)


def gather_slowly() -> str:
    _set_rpc_timeout(0.1)
    try:
        _all_gather(Slow())
    except RuntimeError as error:
        return str(error)
    finally:
        _set_rpc_timeout(60)
    return ""


def meet(names: Any) -> None:
    _barrier(names)


def end() -> None:
    _wait_all_workers()


def describe() -> Any:
    agent = _get_current_rpc_agent()
    infos = [info.name for info in agent.get_worker_infos()]
    return agent.name, agent.is_static_group, infos, agent.get_worker_info("b").id, get_rpc_timeout(), _get_debug_info()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(NAMES) as cluster:
        yield cluster


def on_each(cluster: LocalCluster, names: Any, function: Any, *args: Any) -> dict[str, torch.futures.Future[Any]]:
    return {name: cluster["a"].rpc_async(name, function, args, timeout=20) for name in names}


def test_all_get_what_all_have_given_again_and_again(cluster: LocalCluster) -> None:
    for _ in range(3):
        found = on_each(cluster, NAMES, gather)
        assert [future.wait() for future in found.values()] == [{"a": 0, "b": 1, "c": 2}] * 3


def test_some_gather_without_the_others(cluster: LocalCluster) -> None:
    found = on_each(cluster, ("b", "c"), gather, ["b", "c"])
    assert [future.wait() for future in found.values()] == [{"b": 1, "c": 2}] * 2
    assert cluster["a"].rpc_sync("a", gather, (["a"],)) == {"a": 0}


def test_who_does_not_come_in_time_is_named(cluster: LocalCluster) -> None:
    with pytest.raises(RuntimeError, match=r"Followers \['b', 'c'\] timed out in _all_gather after 0.10 seconds"):
        cluster["a"].rpc_sync("a", gather, (None, 0.1))


def test_the_leader_hears_of_who_takes_too_long(cluster: LocalCluster) -> None:
    said = {name: future.wait() for name, future in on_each(cluster, NAMES, gather_slowly).items()}
    assert "timed out in _all_gather after 0.10 seconds" in said["a"]
    # The others were late, or hear from the leader of who was; or all has reached them, later than the leader waits.
    assert all(not said[n] or "RPC ran for more than" in said[n] or "timed out in" in said[n] for n in ("b", "c")), said


def test_a_gathering_ends_when_one_of_its_workers_is_gone(cluster: LocalCluster) -> None:
    waiting = on_each(cluster, ("a",), gather)["a"]
    cluster.stop("c")
    with pytest.raises(RuntimeError, match="gathering with it"):
        waiting.wait()


def test_a_barrier_is_passed_together(cluster: LocalCluster) -> None:
    early = on_each(cluster, ("a", "b"), meet, NAMES)
    assert not any(future.done() for future in early.values())
    torch.futures.wait_all([*early.values(), *on_each(cluster, ("c",), meet, NAMES).values()])


def test_the_common_end_of_a_dynamic_group_is_a_gathering(cluster: LocalCluster) -> None:
    torch.futures.wait_all(list(on_each(cluster, NAMES, end).values()))


def test_the_agent_shows_itself(cluster: LocalCluster) -> None:
    name, is_static, infos, other, timeout, debug = cluster["a"].rpc_sync("c", describe)
    assert (name, is_static, infos, other, timeout) == ("c", False, list(NAMES), 1, 60.0)
    assert debug["agent.thread_pool_size"] == "16"
    assert debug["num_owner_rrefs"] == "0"


def measured(flag: bool) -> dict[str, str]:
    enable_gil_profiling(flag)
    return _get_current_rpc_agent().get_debug_info()


def test_the_wait_for_pythons_lock_is_sampled_on_request(cluster: LocalCluster) -> None:
    key = "agent.gil_average_wait_time_us"
    assert key not in cluster["a"].rpc_sync("b", measured, (False,))
    assert float(cluster["a"].rpc_sync("b", measured, (True,))[key]) >= 0.0
    assert key not in cluster["a"].rpc_sync("b", measured, (False,))


def test_shared_values_are_counted_and_unshared_ones_are_not(cluster: LocalCluster) -> None:
    mine = cluster["b"].rref(1)
    theirs = cluster["a"].remote("b", max, (1, 2))
    assert theirs.to_here() == 2
    debug = cluster["a"].rpc_sync("b", _get_debug_info)
    assert (debug["num_owner_rrefs"], debug["num_forks"]) == ("1", "1")
    del mine, theirs


def test_futures_are_collected_and_waited_for() -> None:
    future: torch.futures.Future[int] = torch.futures.Future()
    with _wait_all():
        _thread_local_var.future_list.append(future)
        future.set_result(1)
    assert not hasattr(_thread_local_var, "future_list")


def test_without_an_agent_there_is_torchs_error() -> None:
    for function in (_get_current_rpc_agent, get_rpc_timeout, _get_debug_info, lambda: _all_gather(1)):
        with pytest.raises(NotInitialized, match="Current RPC agent is not set! Did you initialize the RPC framework"):
            function()
