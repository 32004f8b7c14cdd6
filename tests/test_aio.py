"""Calls that are awaited, coroutines that are called, and the session around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zrpc
from zrpc import aio, functions
from zrpc.errors import CallTimeout, Cancelled, RRefMisuse, UnknownWorker
from zrpc.runtime.context import current_agent, install_agent, remove_agent
from zrpc.runtime.scopes import current_scope
from zrpc.testing import LocalCluster
from zrpc.transport.curve import new_keyring, write_key_file

LONG = 20.0
_gate = threading.Event()
_cancelled = threading.Event()
_entered = threading.Event()


def double(n: int) -> int:
    return 2 * n


def fail(kind: type[Exception]) -> None:
    raise kind("on purpose")


def wait_at_the_gate() -> int:
    _entered.set()
    _gate.wait(LONG)
    return 5


def loop_until_cancelled() -> None:
    _entered.set()
    try:
        while not _gate.is_set():
            zrpc.check_cancelled()
    except Cancelled:
        _cancelled.set()
        raise


def own_name() -> str:
    return current_agent().info.name


async def own_name_and_loop() -> tuple[str, int]:
    await asyncio.sleep(0)
    return current_agent().info.name, id(asyncio.get_running_loop())


async def add_up(names: list[str], n: int) -> int:
    """Calls the others, all at once, from inside a call."""
    return sum(await asyncio.gather(*(aio.call(name, double, (n,)) for name in names)))


async def call_for_ever(name: str) -> None:
    await asyncio.gather(aio.call(name, loop_until_cancelled), asyncio.sleep(LONG))


async def time_limits() -> tuple[bool, bool]:
    async def inner() -> bool:
        scope = current_scope()
        return scope is not None and scope.deadline is not None

    return await inner(), await asyncio.create_task(inner())


async def fail_later(kind: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise kind("on purpose")


@functions.async_execution
async def decorated(n: int) -> int:
    return n + 1


class Squarer:
    async def square(self, n: int) -> int:
        return n * n


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        install_agent(running["a"].agent)
        try:
            yield running
        finally:
            remove_agent(running["a"].agent)


@pytest.fixture(autouse=True)
def _closed_gate() -> Iterator[None]:
    for event in (_gate, _cancelled, _entered):
        event.clear()
    yield
    _gate.set()


def test_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key_file(new_keyring("solo"), tmp_path / "key")
    monkeypatch.setenv("ZRPC_KEY_FILE", str(tmp_path / "key"))
    options = zrpc.TensorPipeRpcBackendOptions(init_method=f"file://{tmp_path}/meeting")
    saved = torch.futures.wait_all, torch.futures.collect_all, torch.futures.Future.wait

    async def main() -> None:
        async with aio.session("solo", rank=0, world_size=1, rpc_backend_options=options) as info:
            assert info.name == "solo"
            assert await aio.call("solo", own_name) == "solo"
            rref = await aio.remote("solo", double, (2,))
            assert await aio.to_here(rref) == 4
        with pytest.raises(RuntimeError, match="RPC has not been initialized"):
            await aio.call("solo", own_name)
        with pytest.raises(RRefMisuse):
            zrpc.RRef(5, type_hint=int)

    try:
        asyncio.run(main())
    finally:
        torch.futures.wait_all, torch.futures.collect_all, torch.futures.Future.wait = saved  # type: ignore[method-assign]


@pytest.mark.parametrize("to", ["a", "b"])
def test_calls(cluster: LocalCluster, to: str) -> None:
    async def main() -> None:
        assert await aio.call(to, double, (4,)) == 8
        assert await aio.call(to, double, kwargs={"n": 3}, timeout=LONG) == 6
        assert await aio.call(to, torch.add, (torch.ones(2), 1)) is not None
        assert await asyncio.gather(*(aio.call(to, double, (n,)) for n in range(200))) == list(range(0, 400, 2))
        with pytest.raises(ValueError, match="on purpose"):
            await aio.call(to, fail, (ValueError,))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await aio.call(to, fail, (StopIteration,))
        with pytest.raises(CallTimeout):
            await aio.call(to, wait_at_the_gate, timeout=0.05)
        with pytest.raises(UnknownWorker):
            await aio.call("nobody", double, (1,))

    asyncio.run(main())


def test_many_calls_take_no_threads(cluster: LocalCluster) -> None:
    async def main() -> None:
        before = threading.active_count()
        calls = [asyncio.ensure_future(aio.call("b", wait_at_the_gate)) for _ in range(300)]
        await asyncio.to_thread(_entered.wait, LONG)
        executors = [cluster[name].agent.executor for name in "abc"]
        pools = sum(executor.statistics().threads for executor in executors)
        assert threading.active_count() - before <= pools
        _gate.set()
        assert set(await asyncio.gather(*calls)) == {5}

    asyncio.run(main())


def test_cancelling_the_task_cancels_the_call(cluster: LocalCluster) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(aio.call("b", loop_until_cancelled))
        assert await asyncio.to_thread(_entered.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(_cancelled.wait, LONG)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aio.wait(zrpc.rpc_async("b", wait_at_the_gate)), 0.05)

    asyncio.run(main())


def test_references(cluster: LocalCluster) -> None:
    async def main() -> None:
        rref = await aio.remote("b", double, (4,))
        assert await aio.to_here(rref) == 8
        own = await aio.remote("a", double, (5,))
        assert await aio.to_here(own) == 10
        failed = await aio.remote("b", fail, (KeyError,))
        with pytest.raises(KeyError):
            await aio.to_here(failed)
        for name in ("a", "b"):
            slow = await aio.remote(name, wait_at_the_gate)
            with pytest.raises(CallTimeout):
                await aio.to_here(slow, timeout=0.05)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(aio.to_here(slow), 0.05)
            _gate.set()
            assert await aio.to_here(slow) == 5
            _gate.clear()
        with pytest.raises(UnknownWorker):
            await aio.remote("nobody", double)

    asyncio.run(main())


def test_torchs_futures_can_be_awaited(cluster: LocalCluster) -> None:
    async def main() -> None:
        assert await aio.wait(zrpc.rpc_async("b", double, (4,))) == 8
        assert await aio.wait(zrpc.rpc_async("b", double, (4,)).then(lambda f: f.value() + 1)) == 9
        with pytest.raises(ValueError, match="on purpose"):
            await aio.wait(zrpc.rpc_async("b", fail, (ValueError,)))

    asyncio.run(main())


@pytest.mark.parametrize("to", ["a", "b"])
def test_coroutines_run_on_the_workers_loop(cluster: LocalCluster, to: str) -> None:
    names = [cluster["a"].rpc_sync(to, own_name_and_loop) for _ in range(3)]
    assert names[0][0] == to
    assert len(set(names)) == 1, "one loop for all"
    assert cluster["a"].rpc_async(to, add_up, (["a", "b", "c"], 5)).wait() == 30
    assert cluster["a"].remote(to, add_up, (["c", to], 1)).to_here() == 4
    assert cluster["a"].rpc_sync(to, decorated, (1,)) == 2
    squarer = cluster["a"].remote(to, Squarer)
    assert squarer.rpc_sync().square(3) == 9
    assert squarer.remote().square(4).to_here() == 16


def test_a_thousand_coroutines_at_once(cluster: LocalCluster) -> None:
    calls = [cluster["a"].rpc_async("b", add_up, (["c"], n)) for n in range(1000)]
    assert torch.futures.wait_all(calls) == list(range(0, 2000, 2))


def test_coroutines_that_fail(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        cluster["a"].rpc_sync("b", fail_later, (ValueError,))
    assert "ValueError: on purpose" in capsys.readouterr().err
    with pytest.raises(Cancelled):
        cluster["a"].rpc_sync("b", fail_later, (asyncio.CancelledError,))


def test_a_cancelled_coroutine_takes_its_calls_with_it(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", call_for_ever, ("c",))
    assert _entered.wait(LONG)
    assert zrpc.cancel(future)
    assert _cancelled.wait(LONG)
    with pytest.raises(Cancelled):
        future.wait()


def test_coroutines_inherit_the_deadline(cluster: LocalCluster) -> None:
    assert cluster["a"].rpc_sync("b", time_limits, timeout=LONG) == (True, True)
    assert cluster["a"].rpc_sync("b", time_limits, timeout=0) == (False, False)


def test_a_worker_that_leaves_cancels_its_coroutines() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        future = cluster["a"].rpc_async("b", call_for_ever, ("a",))
        assert _entered.wait(LONG)
        thread = cluster["b"].agent.loop._thread
        cluster["b"].agent.close("the test ends")
        assert thread is not None
        assert not thread.is_alive()
        with pytest.raises(RuntimeError):
            future.wait()
