"""What a program does with an RRef: its value's methods, type and gradients, and the ways in which it is of no use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import zrpc
from zrpc import functions
from zrpc.errors import AutogradMisuse, CallTimeout, RRefMisuse
from zrpc.rref import RRef, check_type_hint
from zrpc.runtime.context import current_agent
from zrpc.testing import LocalCluster

LONG = 20.0
_gate = threading.Event()


class Counter:
    def __init__(self, start: int, is_slow: bool = False) -> None:
        if is_slow:
            _gate.wait(LONG)
        self.count = start

    def add(self, amount: int, *, twice: bool = False) -> int:
        self.count += amount * (1 + twice)
        return self.count

    @staticmethod
    def is_big(n: int) -> bool:
        return n > 10

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @functions.async_execution
    def add_later(self, to: str, amount: int) -> torch.futures.Future[int]:
        return current_agent().caller.call_async(to, int, (amount,), None, -1).then(lambda f: self.add(f.value()))

    @staticmethod
    @functions.async_execution
    def sum_later(to: str, amount: int) -> torch.futures.Future[int]:
        return current_agent().caller.call_async(to, int, (amount,), None, -1).then(lambda f: f.value() + 1)

    @functions.async_execution
    def wrong(self) -> int:
        return 1

    def leaks_a_future(self) -> torch.futures.Future[int]:
        return torch.futures.Future()

    def raises(self) -> None:
        raise KeyError("nothing")

    def wait(self) -> None:
        _gate.wait(LONG)

    async def add_soon(self, amount: int) -> int:
        return self.add(amount)


class Dynamic:
    def __getattr__(self, name: str) -> Callable[[], str]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda: name


@torch.jit.interface
class Module(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[empty-body]
        pass


@torch.jit.interface
class Other(torch.nn.Module):
    def backwards(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[empty-body]
        pass


class Half(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def script_module() -> Any:
    return torch.jit.script(Half())


def fail() -> int:
    raise ValueError("no value")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        yield running


@pytest.fixture(autouse=True)
def _closed_gate() -> Iterator[None]:
    _gate.clear()
    yield
    _gate.set()


@pytest.mark.parametrize("owner", ["b", "a"])
def test_methods_of_the_value(cluster: LocalCluster, owner: str) -> None:
    rref = cluster["a"].remote(owner, Counter, (7,))
    assert rref.rpc_sync().add(1) == 8
    assert rref.rpc_sync(timeout=LONG).add(1, twice=True) == 10
    assert rref.rpc_async().add(1).wait() == 11
    assert rref.remote().add(1).to_here() == 12
    assert rref.rpc_sync().is_big(9) is False
    assert rref.remote().is_big(11).to_here() is True
    assert rref.rpc_async().name().wait() == "Counter"
    assert rref.rpc_sync().add_later("c", 3) == 15
    assert rref.rpc_async().sum_later("c", 3).wait() == 4
    assert rref.remote().add_later("c", 5).to_here() == 20
    assert rref.rpc_sync().add_soon(1) == 21
    assert rref.rpc_sync().__eq__(5) is NotImplemented
    assert "proxy of" in repr(rref.rpc_sync())


def test_methods_of_a_tensor_and_of_a_script_module(cluster: LocalCluster) -> None:
    tensor = cluster["a"].remote("b", torch.ones, ([2, 2],))
    assert tensor.rpc_sync().size() == torch.Size([2, 2])
    assert torch.equal(tensor.remote().add(1).to_here(), torch.full((2, 2), 2.0))
    module = cluster["a"].remote("b", script_module)
    assert torch.equal(module.rpc_sync().forward(torch.ones(1)), torch.tensor([0.5]))
    assert torch.equal(module.remote().forward(torch.ones(1)).to_here(), torch.tensor([0.5]))


def test_a_method_that_does_not_exist(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Counter, (7,))
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        rref.rpc_sync().missing()
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        rref.rpc_async().missing().wait()
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        rref.remote().missing()
    assert cluster["a"].remote("b", Dynamic).remote().anything().to_here() == "anything"


def test_methods_that_fail(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Counter, (7,))
    with pytest.raises(KeyError, match="nothing"):
        rref.rpc_sync().raises()
    with pytest.raises(RuntimeError, match=r"must return a torch\.futures\.Future object"):
        rref.rpc_sync().wrong()
    with pytest.raises(RuntimeError, match=r"Can not pickle torch\.futures\.Future"):
        rref.rpc_sync().leaks_a_future()
    with pytest.raises(ValueError, match="no value"):
        cluster["a"].remote("b", fail).rpc_sync().bit_length()


def test_time_outs_of_methods(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Counter, (7,))
    with pytest.raises(CallTimeout, match="RPC ran for more than"):
        rref.rpc_sync(timeout=0.05).wait()
    with pytest.raises(CallTimeout):
        rref.rpc_async(timeout=0.05).wait().wait()
    slow = cluster["a"].remote("b", Counter, (7, True))
    with pytest.raises(CallTimeout):
        slow.rpc_sync(timeout=0.05).add(1)
    with pytest.raises(CallTimeout):
        slow.remote(timeout=0.05).add(1)
    _gate.set()
    assert slow.remote().name().to_here() == "Counter"


def test_a_method_waits_for_its_value_without_a_thread(cluster: LocalCluster) -> None:
    slow = cluster["a"].remote("b", Counter, (0, True))
    calls = [slow.rpc_async().add(1) for _ in range(50)]
    assert cluster["b"].agent.executor.statistics().threads < 30
    _gate.set()
    assert sorted(torch.futures.wait_all(calls)) == list(range(1, 51))


def test_the_type_is_asked_once(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Counter, (7,))
    assert rref._get_type() is Counter
    made = cluster["a"].agent.meter.counts().calls_made
    future = rref._get_type(blocking=False)
    assert future.wait() is Counter
    assert rref._get_type(blocking=False) is future
    assert rref._get_type() is Counter
    assert cluster["a"].agent.meter.counts().calls_made == made
    own = cluster["a"].rref(3)
    assert own._get_type() is int
    assert own._get_type(blocking=False).wait() is int


def test_a_type_that_could_not_be_had_is_asked_again(cluster: LocalCluster) -> None:
    slow = cluster["a"].remote("b", Counter, (7, True))
    with pytest.raises(CallTimeout):
        slow._get_type(timeout=0.05)
    late = slow._get_type(timeout=0.05, blocking=False)
    with pytest.raises(CallTimeout):
        late.wait()
    _gate.set()
    assert slow._get_type() is Counter
    with pytest.raises(ValueError, match="no value"):
        cluster["a"].remote("b", fail)._get_type()


def test_asking_for_the_type_shows_in_a_profile(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Counter, (7,))
    rref.to_here()
    with torch.autograd.profiler.profile() as profile:
        rref._get_type()
    names = [event.name for event in profile.function_events]
    assert "rpc_async#_rref_typeof_on_owner(a -> b)" in names
    with torch.autograd.profiler.profile() as profile:
        rref._get_type()
    assert not any("typeof" in event.name for event in profile.function_events)


def test_the_future_of_a_value(cluster: LocalCluster) -> None:
    a = cluster["a"]
    for rref in (a.remote("b", Counter, (7,)), a.remote("a", Counter, (7,)), a.rref(1)):
        future = rref._get_future()
        assert isinstance(future, torch._C.Future)
        assert future.wait() is None
        assert rref._get_future() is future
    for owner in ("a", "b"):
        with pytest.raises(ValueError, match="no value"):
            a.remote(owner, fail)._get_future().wait()


def test_a_value_that_takes_longer_than_the_call_was_given(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", Counter, (7, True), timeout=0.05)
    with pytest.raises(CallTimeout, match="RPC ran for more than"):
        rref._get_future().wait()
    text = r"RRef creation via rpc\.remote\(\) timed out"
    with pytest.raises(CallTimeout, match=text):
        rref.to_here()
    with pytest.raises(CallTimeout, match=text):
        cluster["a"].rpc_sync("c", id, (rref,))


def test_backward_on_the_owner(cluster: LocalCluster) -> None:
    weights = torch.rand(3, requires_grad=True)
    cluster["a"].rref((weights * 2).sum()).backward()
    assert torch.equal(weights.grad, torch.full((3,), 2.0))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="does not require grad and does not have a grad_fn"):
        cluster["a"].rref(torch.rand(1)).backward()
    with pytest.raises(RuntimeError, match="can be implicitly created only for scalar outputs"):
        cluster["a"].rref(torch.rand(3, requires_grad=True)).backward()
    with pytest.raises(RRefMisuse, match=r"RRef should contain a tensor for \.backward\(\)"):
        cluster["a"].rref("text").backward()
    with pytest.raises(AutogradMisuse, match="Could not find autograd context with id: 100"):
        cluster["a"].rref(weights.sum()).backward(100)


def test_backward_of_a_user_needs_a_context(cluster: LocalCluster) -> None:
    rref = cluster["a"].remote("b", str)
    with pytest.raises(RRefMisuse, match="User RRefs require 'dist_autograd_ctx_id' to be specified"):
        rref.backward()
    with pytest.raises(RRefMisuse, match="RRef should contain a tensor"):
        rref.backward(5)


def test_a_script_module_comes_with_its_interface() -> None:
    module = script_module()
    check_type_hint(module, Module)
    check_type_hint(5, None)
    with pytest.raises(RRefMisuse, match="must provide its ModuleInterface type hint"):
        check_type_hint(module, None)
    with pytest.raises(RRefMisuse, match="is not a subtype of the type hint"):
        check_type_hint(module, Other)
    with pytest.raises(RRefMisuse, match="did you pass a valid interface type"):
        check_type_hint(module, Half)
    with pytest.raises(RRefMisuse, match="type_hint should only be specified"):
        check_type_hint(5, Module)


def test_after_the_worker_has_left() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        agent = cluster["a"].agent
        rref = cluster["a"].remote("b", Counter, (7,))
        rref.to_here()
        cluster.stop("a")
        with pytest.raises(RRefMisuse, match=r"Cannot call to_here\(\) on it after deletion\."):
            rref.to_here()
        with pytest.raises(RRefMisuse, match=r"Cannot call fork an UserRRef after deletion\."):
            agent.references.fork_for_message(rref)
        assert rref.owner_name() == "b"


def test_rref_names_its_type_and_needs_an_agent() -> None:
    assert RRef[int].__origin__ is zrpc.RRef  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="Current RPC agent is not set! Did you initialize the RPC framework"):
        RRef(5)
