"""What can be called: each kind of callable, here and there."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from zrpc import functions
from zrpc.errors import ArgumentMismatch, LocalFault
from zrpc.runtime.callables import identify
from zrpc.runtime.context import current_agent
from zrpc.testing import LocalCluster
from zrpc.wire.envelope import Codec


def only_python(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy()[::-1].copy())


only_python.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}  # TorchScript does not look names up here
only_python = torch.jit.ignore(only_python)


@torch.jit.script
def calls_python(x: torch.Tensor, times: int = 2) -> torch.Tensor:
    return only_python(x) * times


def test_a_script_function_whose_code_cannot_travel_is_called_by_its_name(cluster: LocalCluster) -> None:
    assert identify(calls_python).codec is Codec.BUILTIN
    there = cluster["a"].rpc_sync("b", calls_python, (torch.arange(3.0),), {"times": 3})
    assert torch.equal(there, torch.tensor([6.0, 3.0, 0.0]))
    with pytest.raises(RuntimeError, match="missing value for argument 'x'"):
        cluster["a"].rpc_sync("b", calls_python)


class Shop:
    def __init__(self, stock: int) -> None:
        self.stock = stock

    def __call__(self, more: int) -> int:
        return self.stock + more

    def sell(self, count: int) -> int:
        return self.stock - count

    @classmethod
    def kind(cls) -> str:
        return cls.__name__

    @staticmethod
    def price(count: int) -> int:
        return 3 * count

    @staticmethod
    @functions.async_execution
    def price_soon(to: str, count: int) -> torch.futures.Future[int]:
        return current_agent().caller.call_async(to, Shop.price, (count,), None, -1)

    @classmethod
    @functions.async_execution
    def kind_soon(cls, to: str) -> torch.futures.Future[str]:
        return current_agent().caller.call_async(to, cls.kind, (), None, -1).then(lambda f: f.value() + "!")

    @functions.async_execution
    def sell_soon(self, to: str, count: int) -> torch.futures.Future[int]:
        return current_agent().caller.call_async(to, self.sell, (count,), None, -1)

    @functions.async_execution
    @staticmethod
    def outermost(to: str, count: int) -> torch.futures.Future[int]:
        return current_agent().caller.call_async(to, Shop.price, (count,), None, -1)


@torch.jit.script
def one_arg(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def closure(factor: int) -> Callable[[int], int]:
    def multiply(n: int) -> int:
        return n * factor

    return multiply


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["a", "b", "c"]) as running:
        yield running


KINDS: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
    "builtin": (min, (3, 1, 2), 1),
    "operator": (operator.add, (1, 2), 3),
    "partial": (functools.partial(operator.add, 5), (2,), 7),
    "lambda": (lambda n: n + 1, (1,), 2),
    "closure": (closure(4), (2,), 8),
    "bound method": (Shop(5).sell, (2,), 3),
    "class method": (Shop.kind, (), "Shop"),
    "static method": (Shop.price, (2,), 6),
    "callable object": (Shop(5), (2,), 7),
    "method descriptor": (str.upper, ("x",), "X"),
    "named": ("operator:mul", (3, 4), 12),
    "async static": (Shop.price_soon, ("c", 2), 6),
    "async class": (Shop.kind_soon, ("c",), "Shop!"),
    "async static, decorated last": (Shop.outermost, ("c", 4), 12),
    "async bound": (Shop(1).sell_soon, ("c", 1), 0),
}


@pytest.mark.parametrize("to", ["a", "b"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(cluster: LocalCluster, kind: str, to: str) -> None:
    func, args, expected = KINDS[kind]
    assert cluster["a"].rpc_sync(to, func, args) == expected
    assert cluster["a"].rpc_async(to, func, args).wait() == expected
    assert cluster["a"].remote(to, func, args).to_here() == expected


@pytest.mark.parametrize("to", ["a", "b"])
def test_classes_and_modules(cluster: LocalCluster, to: str) -> None:
    shop = cluster["a"].rpc_sync(to, Shop, (9,))
    assert (type(shop), shop.stock) == (Shop, 9)
    layer = torch.nn.Linear(2, 1, bias=False)
    x = torch.ones(2)
    assert torch.equal(cluster["a"].rpc_sync(to, layer.forward, (x,)), layer(x))
    assert torch.equal(cluster["a"].rpc_sync(to, layer, (x,)), layer(x))
    assert torch.equal(cluster["a"].rpc_sync(to, torch.jit.script(layer), (x,)), layer(x))


def test_too_many_arguments_of_a_script_raise_at_the_call(cluster: LocalCluster) -> None:
    for call in (cluster["a"].rpc_sync, cluster["a"].rpc_async, cluster["a"].remote):
        with pytest.raises(ArgumentMismatch, match=r"one_arg\(\) expected at most"):
            call("b", one_arg, (10, 20))


def test_wrong_arguments_of_an_operator(cluster: LocalCluster) -> None:
    with pytest.raises(RuntimeError, match="Overloaded torch operator invoked from Python failed to match any schema"):
        cluster["a"].rpc_sync("b", torch.add, ())
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        cluster["a"].rpc_sync("b", torch.add, (torch.rand(10), torch.rand(5)))


def test_what_cannot_be_called() -> None:
    for wrong in (5, None, "", "x" * 1025):
        with pytest.raises(LocalFault):
            identify(wrong)
    assert identify(torch.add).codec is Codec.BUILTIN
    assert identify(one_arg).codec is Codec.SCRIPT
    assert identify("aten::add").codec is Codec.BUILTIN
    assert identify(Shop.price_soon).is_async
