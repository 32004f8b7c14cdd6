"""Futures of calls: callbacks, several at once, errors that nobody looks at, and the thread state they run in."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zrpc.errors import Cancelled
from zrpc.runtime import futures
from zrpc.runtime.context import current_agent
from zrpc.runtime.futures import Future, cancel, collect_all, complete, let_torch_forget, teach_torch, wait_all
from zrpc.testing import LocalCluster

LONG = 20.0
_gate = threading.Event()


def add(a: int, b: int = 1) -> int:
    return a + b


def fail(text: str = "on purpose") -> None:
    raise ValueError(text)


def wait_at_the_gate() -> bool:
    return _gate.wait(LONG)


def take(future: object) -> None:
    pass


def give() -> torch.futures.Future[int]:
    return torch.futures.Future()


def call_back_there(name: str) -> int:
    future = current_agent().caller.call_async(name, add, (1,), None, -1)
    result: torch.futures.Future[int] = torch.futures.Future()
    future.then(lambda f: result.set_result(f.value() + 1))
    return result.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        yield running


@pytest.fixture(autouse=True)
def _closed_gate() -> Iterator[None]:
    _gate.clear()
    yield
    _gate.set()


@pytest.fixture
def _taught() -> Iterator[None]:
    saved = torch.futures.wait_all, torch.futures.collect_all, torch.futures.Future.wait
    teach_torch()
    teach_torch()
    yield
    torch.futures.wait_all, torch.futures.collect_all, torch.futures.Future.wait = saved  # type: ignore[method-assign]


class Watched(Future[int]):
    """Says when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for = threading.Event()

        self._looks = 0

    def done(self) -> bool:
        self._looks += 1
        if self._looks == 2:  # the last look before the wait
            self.is_waited_for.set()
        return super().done()


class Interrupted(Exception):
    pass


def test_a_signal_ends_a_wait_on_the_main_thread() -> None:
    assert threading.current_thread() is threading.main_thread()
    future = Watched()

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    def send() -> None:
        if future.is_waited_for.wait(LONG):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    saved = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted):
            future.wait()
    finally:
        sender.join(LONG)
        signal.signal(signal.SIGUSR1, saved)
    future.set_result(1)
    assert future.wait() == 1


@pytest.mark.usefixtures("_taught")
def test_what_torch_was_taught_it_forgets() -> None:
    assert torch.futures.wait_all.__module__ == futures.__name__
    let_torch_forget()
    let_torch_forget()
    assert [f.__module__ for f in (torch.futures.wait_all, torch.futures.collect_all)] == ["torch.futures"] * 2
    assert torch.futures.Future.wait.__module__ == "torch.futures"
    teach_torch()

    def somebody_elses(_futures: Any) -> None: ...

    torch.futures.wait_all = somebody_elses  # type: ignore[assignment]
    let_torch_forget()
    assert torch.futures.wait_all is somebody_elses  # type: ignore[comparison-overlap]


def test_callbacks(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", add, (1,))
    assert isinstance(future, torch._C.Future)
    chained = future
    for _ in range(20):
        chained = chained.then(lambda f: f.wait() + 1)
    seen: list[int] = []
    future.add_done_callback(lambda f: seen.append(f.value()))
    assert future.then(lambda _: True).wait()
    assert (future.wait(), future.value(), chained.wait(), seen) == (2, 2, 22, [2])
    with pytest.raises(RuntimeError, match="can only be marked completed once"):
        future.set_result(1)
    assert cluster["a"].rpc_sync("b", call_back_there, ("c",)) == 3


def test_wrong_callbacks(cluster: LocalCluster) -> None:
    future = cluster["a"].rpc_async("b", add, (1,))
    with pytest.raises(RuntimeError, match="missing 1 required positional argument"):
        future.then(lambda f, g: 0).wait()  # type: ignore[misc,arg-type]
    with pytest.raises(RuntimeError, match="unsupported operand"):
        future.then(lambda f: f + 1).wait()  # type: ignore[operator]
    with pytest.raises(TypeError, match="incompatible function arguments"):
        future.then(None)  # type: ignore[arg-type]


def test_a_chain_of_callbacks_is_cancelled_as_a_whole(cluster: LocalCluster) -> None:
    last = cluster["a"].rpc_async("b", wait_at_the_gate).then(lambda f: f.value()).then(lambda f: f.value())
    assert cancel(last)
    with pytest.raises(Cancelled):
        last.wait()


def test_errors_in_callbacks(cluster: LocalCluster) -> None:
    def callback(future: torch.futures.Future[None]) -> None:
        with pytest.raises(ValueError, match="on purpose"):
            future.wait()
        raise RuntimeError("another one")

    with pytest.raises(RuntimeError, match="another one"):
        cluster["a"].rpc_async("b", fail).then(callback).wait()


@pytest.mark.parametrize("to", ["a", "b"])
def test_futures_do_not_travel(cluster: LocalCluster, to: str) -> None:
    a = cluster["a"]
    future: torch.futures.Future[int] = torch.futures.Future()
    for call in (a.rpc_sync, a.rpc_async, a.remote):
        with pytest.raises(RuntimeError, match=r"Can not pickle torch\.futures\.Future"):
            call(to, take, (future,))
    for get in (a.rpc_sync, lambda *c: a.rpc_async(*c).wait()):
        with pytest.raises(RuntimeError, match=r"Can not pickle torch\.futures\.Future"):
            get(to, give)
    with pytest.raises(RuntimeError, match=r"Can not pickle torch\.futures\.Future"):
        a.remote("b", give).to_here()


def test_all_of_several(cluster: LocalCluster) -> None:
    a = cluster["a"]
    assert wait_all([a.rpc_async("b", add, (n,)) for n in range(20)]) == list(range(1, 21))
    assert [f.value() for f in collect_all([a.rpc_async("b", add, (n,)) for n in range(3)]).wait()] == [1, 2, 3]
    assert wait_all([]) == []
    assert torch.futures.wait_all([a.rpc_async("b", add, (n,)) for n in range(3)]) == [1, 2, 3]


@pytest.mark.usefixtures("_taught")
def test_the_first_failure_ends_the_wait_for_all(cluster: LocalCluster) -> None:
    a = cluster["a"]
    slow = a.rpc_async("b", wait_at_the_gate)
    for wait in (wait_all, torch.futures.wait_all):
        with pytest.raises(ValueError, match="on purpose"):
            wait([slow, a.rpc_async("b", fail), a.rpc_async("b", fail)])
    with pytest.raises(ValueError, match="on purpose"):
        torch.futures.collect_all([slow, a.rpc_async("b", fail)]).wait()
    assert not slow.done()
    _gate.set()
    assert slow.wait()


@pytest.mark.usefixtures("_taught")
def test_torchs_own_futures_are_left_alone() -> None:
    future: torch.futures.Future[int] = torch.futures.Future()
    future.set_result(3)
    assert torch.futures.wait_all([future]) == [3]
    assert len(torch.futures.collect_all([future]).wait()) == 1
    assert futures._torch_wait_all is not torch.futures.wait_all


def make_failed() -> Future[Any]:
    future: Future[Any] = Future()
    complete(future, None, ValueError("unseen"))
    return future


def test_an_error_that_nobody_looks_at_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "zrpc"):
        future = make_failed()
        kept = [future, future]
        del future
        gc.collect()
        assert caplog.records == []
        kept.clear()
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == [
        "a call failed, and nobody looked at its future: unseen"
    ]


def test_an_error_that_somebody_has_seen_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "zrpc"):
        for look in (
            lambda f: f.wait(),
            lambda f: f.value(),
            lambda f: f.then(lambda g: g.value()).wait(),
            lambda f: torch.futures.wait_all([f]),
            lambda f: wait_all([f, make_failed()]),
        ):
            with pytest.raises((ValueError, RuntimeError), match="unseen"):
                look(make_failed())  # type: ignore[no-untyped-call]
        gc.collect()
    assert caplog.records == []


def turn_grad_off() -> bool:
    was = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    return was


def test_a_function_does_not_leave_its_state_to_the_next(cluster: LocalCluster) -> None:
    assert all(cluster["a"].rpc_sync("b", turn_grad_off) for _ in range(20))


@pytest.mark.parametrize("to", ["a", "b"])
def test_callbacks_run_in_the_state_that_the_call_was_made_in(cluster: LocalCluster, to: str) -> None:
    def state(_future: object = None) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def through_a_callback() -> tuple[bool, bool]:
        calls = cluster["a"].rpc_async(to, wait_at_the_gate).then(state)
        _gate.set()
        return calls.wait()

    assert through_a_callback() == (True, False)
    _gate.clear()
    with torch.no_grad():
        assert through_a_callback() == (False, False)
    _gate.clear()
    with torch.inference_mode():
        assert through_a_callback() == (False, True)
        assert cluster["a"].rpc_sync(to, state) == (True, False), "the callee's is its own"
    assert cluster["a"].rpc_async(to, add, (1,)).then(state).wait() == (True, False)


def live_futures() -> int:
    gc.collect()
    return sum(type(found) is Future for found in gc.get_objects())


def see_it_fail(cluster: LocalCluster, how: str) -> None:
    future: Any = cluster["a"].rpc_async("b", fail)
    if how == "then":
        future = future.then(lambda f: f.wait())
    if how == "collect":
        future = collect_all([future])
    if how == "raising":
        future = cluster["a"].rpc_async("b", add, (1,)).then(lambda _f: fail())
    future.wait()


@pytest.mark.parametrize("how", ["wait", "then", "collect", "raising"])
def test_failed_calls_leave_nothing(cluster: LocalCluster, how: str) -> None:
    before = live_futures()
    for _ in range(10):
        with pytest.raises((ValueError, RuntimeError)):
            see_it_fail(cluster, how)
    pause = threading.Event()
    for _ in range(500):
        if live_futures() <= before:
            break
        pause.wait(0.01)
    assert live_futures() <= before
