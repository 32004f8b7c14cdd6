"""Plain values: what goes in comes out as it was, and what is not plain is left to the pickle."""

from __future__ import annotations

import math
import random
from types import ModuleType
from typing import Any

import msgpack
import pytest
import torch

from zrpc.errors import DecodeRefused, FrameError, NotImportable
from zrpc.serialization import plainvalues
from zrpc.serialization.pickler import loads_python, loads_script


def cross(value: Any) -> Any:
    written = plainvalues.dumps(value)
    assert written is not None
    body, buffers = written
    assert plainvalues.is_plain(body)
    for loads in (loads_script, loads_python):
        result = loads(body, buffers)
        assert type(result) is type(value)
    return result


def a_function(x: int) -> int:
    return x


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(1 << 63),
        (1 << 64) - 1,
        1.5,
        math.inf,
        "",
        "text \u20ac",
        (),
        (1, 2.0, "x", None, False),
        [],
        [1, "2"],
    ],
)
def test_scalars(value: Any) -> None:
    assert cross(value) == value


def test_nan() -> None:
    assert math.isnan(cross(math.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (2, 3), (1, 2, 1), (100, 70)])
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).to(dtype)
    for value in (tensor, (tensor, tensor + tensor), [1, tensor]):
        result = cross(value)
        pairs = [(result, tensor)] if isinstance(value, torch.Tensor) else list(zip(result, value, strict=True))
        for arrived, sent in pairs:
            if isinstance(sent, torch.Tensor):
                assert arrived.dtype is sent.dtype
                assert arrived.shape == sent.shape
                assert torch.equal(arrived, sent)
                arrived.zero_()
    assert tensor.any()


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3, requires_grad=True),
        torch.ones(4)[1:],
        torch.ones(2, 3).t(),
        torch.empty(0),
        torch.ones(2, dtype=torch.bfloat16).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.nn.Parameter(torch.ones(2)),
        {"a": 1},
        (1, (2,)),
        (torch.Size([1]),),
        1 << 64,
        "\ud800",
        "x" * 5000,
        tuple(range(17)),
        1j,
        b"bytes",
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_plain(value: Any) -> None:
    assert plainvalues.dumps(value) is None
    assert plainvalues.dumps((value, 1)) is None or value == tuple(range(17))


def test_two_tensors_on_one_storage_are_not_plain() -> None:
    tensor = torch.ones(3)
    assert plainvalues.dumps((tensor, tensor)) is None
    assert plainvalues.dumps((tensor, tensor.view(3, 1))) is None


def test_large_tensors_are_not_copied() -> None:
    tensor = torch.ones(10_000)
    written = plainvalues.dumps(tensor)
    assert written is not None
    tensor[0] = 5
    assert plainvalues.loads(*written)[0].item() == 5


def test_subclasses_are_not_plain() -> None:
    class Number(int):
        pass

    assert plainvalues.dumps(Number(3)) is None
    assert plainvalues.dumps((torch.nn.Buffer(torch.ones(1)),)) is not None  # its class is torch.Tensor


# ------------------------------------------------------------------------------------------------- calls


def test_a_call_by_name() -> None:
    written = plainvalues.dumps_call(a_function, (torch.ones(2), 3))
    assert written is not None
    func, args, kwargs = loads_python(*written)
    assert func is a_function
    assert args[0].tolist() == [1, 1]
    assert (args[1], kwargs) == (3, {})
    with pytest.raises(DecodeRefused):
        loads_script(*written)


def test_functions_that_have_no_name() -> None:
    def local() -> None: ...

    module = ModuleType("zrpc_test_of_a_stranger")
    exec("def f(): pass", vars(module))
    for func in (local, lambda: None, len, print, module.f, torch.add, "text", None):
        assert plainvalues.dumps_call(func, ()) is None


def test_a_function_that_is_not_here() -> None:
    for name in (["no.such.module", "f"], [__name__, "no_such_function"], ["", ""]):
        with pytest.raises(NotImportable):
            loads_python(bytes((plainvalues.PLAIN, plainvalues.CALL)) + msgpack.packb(name), [])


# ------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("form", "items", "buffers"),
    [
        (0, [], []),
        (0, [1, 2], []),
        (9, [1], []),
        (0, 5, []),
        (3, ["module"], []),
        (3, [1, 2], []),
        (0, [[]], [b"x"]),
        (0, [[6, 2]], []),  # no buffer
        (0, [[6, 3]], [bytes(8)]),  # another size
        (0, [[6, 1]], [bytes(8)]),
        (0, [[999, 1]], [bytes(8)]),
        (0, [["x", 1]], [bytes(8)]),
        (0, [[[6], 1]], [bytes(8)]),
        (0, [[6, -2]], [bytes(8)]),
        (0, [[6, 1.5]], [bytes(8)]),
        (0, [[6, "2"]], [bytes(8)]),
        (0, [[6, 1 << 62, 4]], [bytes(8)]),
        (0, [{}], []),
    ],
)
def test_what_is_refused(form: int, items: Any, buffers: list[bytes]) -> None:
    body = bytes((plainvalues.PLAIN, form)) + msgpack.packb(items)
    with pytest.raises(FrameError):
        plainvalues.loads(body, buffers)


def test_damaged_bodies_never_do_more_than_raise() -> None:
    chance = random.Random(4)
    written = plainvalues.dumps((torch.ones(8), 5, "text", torch.ones(2, 2)))
    assert written is not None
    for _ in range(3000):
        body = bytearray(written[0])
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(2, len(body))] = chance.randrange(256)
        try:
            plainvalues.loads(bytes(body[: chance.randrange(2, len(body) + 1)]), written[1])
        except FrameError:
            pass
