"""Arguments are checked and put in their places on the caller."""

from __future__ import annotations

from typing import Any

import pytest
import scripted
import torch

from zrpc.errors import ArgumentMismatch
from zrpc.serialization.script import describe, find_scripted, is_script

X = torch.ones(2)


def test_what_is_script() -> None:
    module = torch.jit.script(scripted.Scaler(2.0))
    for func in (scripted.add, module.forward, module.called, module, torch.jit.trace(lambda x: x + 1, X)):
        assert is_script(func)
        assert describe(func).name
    for func in (torch.add, len, scripted.helper, scripted.Scaler(2.0), "x"):
        assert not is_script(func)


def test_a_description() -> None:
    script = describe(scripted.add)
    assert script is describe(scripted.add)
    assert script.name == "__torch__.scripted.add"
    assert len(script.hash) == 32
    assert not script.returns_future
    assert describe(scripted.later).returns_future
    assert "add" in repr(script)
    assert find_scripted(script.name).qualified_name == script.name
    assert find_scripted("__torch__.scripted.no") is None
    assert find_scripted("scripted.add") is None


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((X, X), {}), ((X, X, 2.0), {}), ((X,), {"y": X}), ((), {"scale": 2.0, "y": X, "x": X}), ((X, X), {"scale": 2})],
)
def test_binding(args: Any, kwargs: Any) -> None:
    bound = describe(scripted.add).bind(args, kwargs)
    assert bound == (X, X, 2.0)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((X,), {}, "is missing value for argument 'y'"),
        ((), {"y": X}, "is missing value for argument 'x'"),
        ((X, X, 1.0, 2), {}, "expected at most 3 argument(s) but received 4 argument(s)"),
        ((X, X), {"bogus": 1}, "Unknown keyword argument 'bogus'"),
        ((X, X), {"y": X}, "argument 'y' both by position and by keyword"),
        ((X, 1), {}, "Expected a value of type 'Tensor' for argument 'y' but instead found type 'int'"),
        ((X, X, "a"), {}, "Expected a value of type 'float' for argument 'scale' but instead found type 'str'"),
    ],
)
def test_mismatches(args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(ArgumentMismatch) as caught:
        describe(scripted.add).bind(args, kwargs)
    message = str(caught.value)
    assert text in message
    assert "__torch__.scripted.add()" in message
    assert "Declaration: add(Tensor x, Tensor y, float scale=2.) -> Tensor" in message


def test_types_and_conversions() -> None:
    script = describe(scripted.many)
    good: list[Any] = [3, True, "t", [1.0, 2], {"a": X}, (1, "b"), None, "cpu"]
    assert list(script.bind(tuple(good), {})) == good
    for index, bad in enumerate(["x", X.repeat(2), 3, ["a"], {"a": 1}, (1, 2), 3, 1.5]):
        with pytest.raises(ArgumentMismatch):
            script.bind((*good[:index], bad, *good[index + 1 :]), {})
    with pytest.raises(ArgumentMismatch):
        script.bind((2**63, *good[1:]), {})


def test_a_placeholder_stands_for_any_argument() -> None:
    class Reference:
        pass

    here = Reference()
    bound = describe(scripted.add).bind((here, X), {"scale": here}, lambda value: isinstance(value, Reference))
    assert bound == (here, X, here)
    with pytest.raises(ArgumentMismatch):
        describe(scripted.add).bind((here, X), {})


def test_a_method_goes_with_its_module() -> None:
    module = torch.jit.script(scripted.Scaler(3.0))
    script = describe(module.forward)
    assert script.name.endswith(".forward")
    archive, x, bias = script.bind((X,), {})
    assert archive.dtype is torch.uint8
    assert bias == 1.0
    assert x is X
    assert script.hash != describe(module.called).hash
    with pytest.raises(ArgumentMismatch, match="missing value"):
        script.bind((), {})
