"""Exceptions arrive as the type that the caller has, with where they came from."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrpc.errors import CallTimeout, FrameError, GroupTimeout, RemoteFault, UnknownFunction, UnknownWorker, ZrpcError
from zrpc.serialization.failures import MAX_TEXT, MAX_TRACEBACK, decode_failure, encode_failure


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def through(error: BaseException, worker: int = 1) -> Any:
    return decode_failure(encode_failure(error, worker, f"worker{worker}"))


class Custom(Exception):
    pass


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("cls", [ValueError, KeyError, RuntimeError, OSError, Custom, ZeroDivisionError, StopIteration])
def test_the_same_type(cls: type[Exception]) -> None:
    got = through(raised(cls("it\nbroke")))
    assert type(got) is cls
    text = str(got.args[0])
    assert text.startswith(f"On WorkerInfo(id=1, name=worker1):\n{cls.__name__}('it\nbroke')\nTraceback (most recent")
    assert "in raised" in got.remote_traceback
    assert got.remote_worker == "worker1"


def test_a_type_that_is_not_known_here() -> None:
    body = msgpack.unpackb(encode_failure(raised(Custom("x")), 2, "w"))
    body["m"] = "no_such_module"
    got = decode_failure(msgpack.packb(body))
    assert type(got) is RemoteFault
    assert isinstance(got, RuntimeError)
    assert got.type_name == "no_such_module.Custom"
    assert got.worker == "w"
    assert "Custom('x')" in str(got)
    assert got.traceback == got.remote_traceback != ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(("module", "name"), [("os", "system"), ("builtins", "object"), ("builtins", "SystemExit")])
def test_nothing_but_exceptions_is_made(module: str, name: str) -> None:
    body = msgpack.unpackb(encode_failure(raised(Custom("x")), 2, "w"))
    body["m"], body["q"] = module, name
    assert type(decode_failure(msgpack.packb(body))) is RemoteFault


def test_a_type_that_takes_no_text() -> None:
    for error in (TwoArguments(1, 2), json.JSONDecodeError("bad", "doc", 1), subprocess.CalledProcessError(1, "x")):
        got = through(raised(error))
        assert type(got) is RemoteFault
        assert "Failed to create original exception type" in str(got)
        assert "Original exception on remote side was On WorkerInfo(id=1" in str(got)
        assert type(error).__name__ in got.type_name


def test_base_exceptions_do_not_stop_the_caller() -> None:
    for error in (SystemExit(3), KeyboardInterrupt()):
        assert type(through(raised(error))) is RemoteFault


def test_own_errors_keep_their_fields() -> None:
    got = through(raised(CallTimeout("w2", "f", 1.5, "It had started.")))
    assert type(got) is CallTimeout
    assert isinstance(got, TimeoutError)
    assert (got.worker, got.function, got.seconds, got.state) == ("w2", "f", 1.5, "It had started.")
    assert "timed out" in str(got)
    assert str(got).startswith("On WorkerInfo(id=1, name=worker1):\n")
    got = through(raised(UnknownWorker("x", ["b", "a"])))
    assert got.known == ("a", "b")
    got = through(raised(GroupTimeout("init", 2.0, ["a"], ["b"])))
    assert (got.present, got.missing, got.short) == (("a",), ("b",), 1)
    assert type(through(raised(UnknownFunction("none of that name")))) is UnknownFunction
    fault = through(raised(RemoteFault("m", "t", "w", "trace")))
    assert (fault.type_name, fault.worker, fault.traceback) == ("t", "w", "trace")


def test_an_error_that_is_passed_on_says_where_it_began() -> None:
    got = through(raised(through(raised(ValueError("deep")), 2)), 1)
    assert type(got) is ValueError
    assert str(got).startswith("On WorkerInfo(id=2, name=worker2):\nValueError('deep')")
    got = through(raised(through(raised(UnknownFunction("deep")), 2)), 1)
    assert str(got) == "On WorkerInfo(id=2, name=worker2):\ndeep"


def test_texts_are_bounded_and_clean() -> None:
    got = through(raised(ValueError("x" * 10**6 + "\udc80 end")))
    assert len(str(got)) <= MAX_TEXT + MAX_TRACEBACK + 1000
    assert "(cut)" in str(got)


def test_deep_recursion() -> None:
    def dive() -> None:
        dive()

    with pytest.raises(RecursionError) as caught:
        dive()
    assert type(through(caught.value)) is RecursionError


def test_an_exception_without_text() -> None:
    got = through(raised(BadText()))
    assert type(got) is BadText
    assert "whose text cannot be made" in got.args[0]


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


class NoAttributes(Exception):
    def __getattr__(self, name: str) -> object:
        raise ValueError(name)


@pytest.mark.parametrize("cls", [Exits, NoAttributes])
def test_exceptions_whose_methods_raise_what_nobody_expects(cls: type[Exception]) -> None:
    got = through(raised(cls()))
    assert type(got) is cls
    assert got.args[0].startswith("On WorkerInfo(id=1, name=worker1):")


def test_a_chain_is_in_the_traceback() -> None:
    error = ValueError("second")
    error.__cause__ = raised(KeyError("first"))
    assert "first" in through(raised(error)).remote_traceback


@given(st.binary(max_size=300))
def test_garbage(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_failure(body)


@given(st.data())
def test_damage(data: st.DataObject) -> None:
    body = bytearray(encode_failure(raised(UnknownWorker("x", ["a"])), 1, "w"))
    for _ in range(3):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = decode_failure(bytes(body))
    except FrameError:
        return
    assert isinstance(got, Exception)


def test_fields_cannot_replace_methods() -> None:
    body = msgpack.unpackb(encode_failure(raised(UnknownWorker("x", [])), 1, "w"))
    body["f"] = {"__class__": "x", "__str__": "y", "a b": 1, "name": "n"}
    got = decode_failure(msgpack.packb(body))
    assert isinstance(got, ZrpcError)
    assert vars(got).keys() == {"name", "remote_traceback", "remote_worker"}
