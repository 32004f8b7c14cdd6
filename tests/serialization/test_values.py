"""Values of TorchScript arrive as the types that TorchScript gives them."""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import scripted
import torch
from torch.jit import _state

from zrpc.errors import EncodeError, FrameError
from zrpc.serialization import names, values
from zrpc.serialization.archives import load_archive
from zrpc.serialization.pickler import dumps_script, loads_script
from zrpc.serialization.script import describe


def through(value: Any) -> Any:
    body, buffers = dumps_script(value)
    return loads_script(body, [bytes(b) for b in buffers])


def loaded(function: Any) -> Any:
    """The function as a process has it that only got its code."""
    return load_archive(describe(function).archive())._get_method("forward")


def test_every_type_that_a_function_returns() -> None:
    sent = scripted.everything()
    got = through(sent)
    assert got == sent
    assert [type(item) for item in got] == [type(item) for item in sent]


@pytest.mark.parametrize(
    "value",
    [
        torch.float32,
        torch.quint8,
        torch.device("cuda", 3),
        torch.sparse_csr,
        torch.channels_last,
        torch.Size([2, 3]),
        complex(float("inf"), -0.0),
        {1: [(), ((1,), [])]},
        2**63 - 1,
        -(2**63),
    ],
    ids=str,
)
def test_values(value: Any) -> None:
    got = through(value)
    assert got == value
    assert type(got) is type(value)


def test_subclasses_of_plain_types_arrive_plain() -> None:
    class Text(str):
        __slots__ = ()

    for sent, expected in [
        (OrderedDict(a=1), {"a": 1}),
        (Text("x"), "x"),
        (np.float64(2.5), 2.5),
        (np.float32(2.5), 2.5),
        (np.int16(3), 3),
        (np.bool_(True), True),
    ]:
        got = through(sent)
        assert got == expected
        assert type(got) is type(expected)


def test_named_tuples() -> None:
    sent = scripted.make_point(torch.ones(2))
    got = through(sent)
    assert type(got).__name__ == type(sent).__name__ == "Point"
    assert type(got).__module__ == type(sent).__module__
    assert got._fields == ("x", "label")
    assert got.label == "here"
    assert type(through(sent)) is type(got)
    argument = through(scripted.Point(torch.zeros(1), "mine"))
    for function in (scripted.take_point, loaded(scripted.take_point)):
        assert torch.equal(function(argument), torch.zeros(1))


def test_enums() -> None:
    assert through(scripted.Color.RED) is scripted.Color.RED
    assert scripted.next_color(through(scripted.Color.RED)) is scripted.Color.GREEN


def test_an_enum_that_is_not_known_here_gets_a_stand_in() -> None:
    got = values.enum_member("no_module_of_that_name", "Shade", "DARK", 7)
    assert isinstance(got, enum.Enum)
    assert (got.name, got.value, type(got).__module__) == ("DARK", 7, "no_module_of_that_name")
    assert values.enum_member("no_module_of_that_name", "Shade", "DARK", 7) is got
    with pytest.raises(FrameError, match="no member"):
        values.enum_member("scripted", "Color", "BLUE", 1)


def test_class_instances() -> None:
    sent = scripted.make_counter(3)
    got = through(sent)
    assert type(got) is scripted.Counter
    for function in (scripted.take_counter, loaded(scripted.take_counter)):
        assert function(got) == 4


def test_an_instance_of_an_unknown_class_serves_shipped_code() -> None:
    body, buffers = dumps_script(scripted.make_counter(3))
    name = b"__torch__.scripted.Counter"
    assert name in body
    got = loads_script(body.replace(name, b"__torch__.elsewher.Counter"), buffers)
    assert type(got) is values.ScriptObject
    assert _state._get_python_class("__torch__.elsewher.Counter") is None
    assert loaded(scripted.take_counter)(got) == 4
    again = through(got)
    assert again.count == 3
    assert "elsewher" in repr(again)


@pytest.mark.parametrize(
    "value", [torch.Generator(), object(), np.zeros(2), torch.futures.Future()], ids=lambda value: type(value).__name__
)
def test_what_torchscript_has_no_type_for(value: Any) -> None:
    with pytest.raises(EncodeError, match="TorchScript has no such type"):
        dumps_script([value])


def test_resolvers_are_names() -> None:
    assert all(callable(getattr(names, name)) for name in values.RESOLVERS)
