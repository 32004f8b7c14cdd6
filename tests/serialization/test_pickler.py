"""The two codecs: what they carry, what they refuse, what damage does."""

from __future__ import annotations

import codecs
import copyreg
import functools
import gc
import os
import pickle
import struct
import subprocess
import sys
import threading
import weakref
import zlib
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.errors import DecodeRefused, EncodeError, FrameError, NotImportable, ProtocolFault, RRefMisuse
from zrpc.serialization import names
from zrpc.serialization.pickler import Encoded, Hooks, dumps_python, dumps_script, loads_python, loads_script

plain = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | st.none() | st.text() | st.complex_numbers()
values: Any = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


def frames(encoded: Encoded) -> tuple[bytes, list[bytes]]:
    return bytes(encoded.body), [bytes(b) for b in encoded.buffers]


@settings(max_examples=150, deadline=None)
@given(values)
def test_plain_values(value: Any) -> None:
    for got in (loads_script(*frames(dumps_script(value))), loads_python(*frames(dumps_python(value)))):
        assert repr(got) == repr(value)  # nan is nan


def test_a_body_may_be_a_view() -> None:
    body, buffers = frames(dumps_script((torch.ones(3), "x")))
    got = loads_script(memoryview(b"??" + body)[2:], [memoryview(b) for b in buffers])
    assert torch.equal(got[0], torch.ones(3))


def test_identity_inside_of_a_value_is_kept() -> None:
    shared: list[int] = [1]
    a, b = loads_script(*frames(dumps_script((shared, shared))))
    assert a is b


# ---------------------------------------------------------------------------------------- hostile pickles


class Reduces:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


HOSTILE = {
    "os.system": Reduces(os.system, ("true",)),
    "subprocess": Reduces(subprocess.call, (["true"],)),
    "eval": Reduces(eval, ("1",)),
    "exec": Reduces(exec, ("1",)),
    "getattr": Reduces(getattr, (Reduces(__import__, ("os",)), "system")),
    "torch.load": Reduces(torch.load, ("/dev/null",)),
    "torch.hub": Reduces(torch.hub.load, ("a", "b")),
    "torch.storage": Reduces(torch.storage._load_from_bytes, (b"",)),
    "rebuild": Reduces(torch._utils._rebuild_tensor_v2, (1, 2, 3, 4, 5, 6)),
    "_codecs": Reduces(codecs.encode, ("x", "rot13")),
    "partial": Reduces(functools.partial, (os.system, "true")),
    "copyreg": Reduces(copyreg._reconstructor, (object, object, None)),
    "a class": OrderedDict,
    "an instance": deque([1]),
    "numpy": np.float64(1.0),
    "zrpc": Reduces(names.subclassed, (torch.Tensor, 1, False, None)),
    "main": Reduces(names.main_object, ("x", None, 1)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_script_refuses_names(name: str) -> None:
    with pytest.raises(DecodeRefused):
        loads_script(pickle.dumps(HOSTILE[name], 5))


def test_the_refusal_names_what_was_refused() -> None:
    with pytest.raises(DecodeRefused, match=r"builtins.*eval"):
        loads_script(pickle.dumps(HOSTILE["eval"], 5))


@pytest.mark.parametrize("path", ["__init__", "tensor.__globals__", "__dict__", "sys", "MODULE", "_outside", ""])
def test_no_dotted_way_out_of_the_names(path: str) -> None:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes((len(value),)) + value.encode()

    with pytest.raises(DecodeRefused):
        loads_script(b"\x80\x05" + text(names.MODULE) + text(path) + b"\x93.")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tensor", (0, 1, (2**40,))),
        ("tensor", (0, 1, (2,))),
        ("tensor", (0, 1, (-1, -8))),
        ("tensor", (1, 1, (8,))),
        ("tensor", (-1, 1, (8,))),
        ("tensor", (0, 999, (8,))),
        ("tensor", (0, "f", (8,))),
        ("tensor", ([], 1, (8,))),
        ("tensor", (0, 1, None)),
        ("tensor", (0, 1, (2,) * 70)),
        ("tensor", ()),
        ("leaf", (0, 5, (4,))),
        ("view", (0, 1, 0, (9,), (1,), 0, None)),
        ("view", (0, 1, 0, (2,), (8,), 0, None)),
        ("view", (0, 1, 8, (1,), (1,), 0, None)),
        ("view", (0, 1, -1, (1,), (1,), 0, None)),
        ("view", (0, 1, 2**63, (1,), (1,), 0, None)),
        ("view", (0, 1, 0, (2,), (-1,), 0, None)),
        ("view", (0, 1, 0, (2**62, 2**62), (0, 0), 0, None)),
        ("view", (0, 1, 0, (2,), (1, 1), 0, None)),
        ("view", (0, 1, 0, (2,), (1,), 64, None)),
        ("view", (0, 1, 0, (2,), (1,), 0, "nonsense")),
        ("view", (0, 1, 0, (2,), (1,), 0, "cuda:99")),
        ("view", (0, 5, 0, (2,), (1,), 1, None)),
        ("view", (7, 1, 0, (2,), (1,), 0, None)),
        ("view", (0, 1, 0, [2], [1], 0, None)),
        ("view", (0, 30, 0, (2,), (1,), 0, None)),
        ("meta", (1, (2**62, 2**10), (1, 1), 0)),
        ("quantized", (0, 30, 0, (2**40,), (1,), None, (0.1, 0))),
        ("quantized", (0, 30, 0, (2, 2), (2, 1), None, (0.1,))),
        ("quantized", (0, 1, 0, (2,), (1,), None, (0.1, 0))),
        ("sparse_coo", (1, 2, (3,), True, 0)),
        ("sparse_compressed", (1, 2, 3, 4, (3,), 0)),
        ("nested", ((1,), 1, 0, "cpu")),
        ("jagged", (1, 2, None, 1, 0)),
        ("parameter", (1, True)),
        ("dtype", (999,)),
        ("device", ("nonsense",)),
        ("layout", (None,)),
        ("size", ("abc",)),
        ("named_tuple", ("a b", ("x",), (1,))),
        ("named_tuple", ("P", ("x", "x"), (1, 2))),
        ("named_tuple", ("P", ("__class__",), (1,))),
        ("named_tuple", ("P", ("x",), ())),
        ("enum_member", ("os", "O", "x", [])),
        ("script_object", ("__torch__.X", {"__class__": 1})),
        ("script_module", (b"",)),
        ("script_module", (1,)),
        ("complex_number", ("1", 2)),
    ],
)
def test_bad_numbers_are_typed_errors(name: str, arguments: tuple[Any, ...]) -> None:
    body = pickle.dumps(Reduces(getattr(names, name), arguments), 5)
    with pytest.raises(ProtocolFault):
        loads_script(body, [bytes(32)])


def test_sparse_indices_are_checked() -> None:
    indices, values_ = torch.tensor([[0, 99]]), torch.ones(2)
    writer = Hooks({Reduces: lambda _: (names.sparse_coo, (indices, values_, (5,), True, 0))})
    with pytest.raises(FrameError):
        loads_script(*frames(dumps_script(Reduces(), writer)))
    offsets = torch.tensor([0, 99])
    writer = Hooks({Reduces: lambda _: (names.jagged, (values_, offsets, None, 1, 0))})
    with pytest.raises(FrameError, match="beyond"):
        loads_script(*frames(dumps_script(Reduces(), writer)))


def sample() -> Any:
    base = torch.arange(32.0)
    point = NamedTuple("point", [("x", int)])(3)  # type: ignore[call-overload]
    return (base[4:9], base.view(4, 8).t(), {"k": [1, 2.5, "text" * 80]}, torch.ones(2).bfloat16(), 1j, point)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_never_crashes(data: st.DataObject) -> None:
    python = data.draw(st.booleans())
    body, buffers = frames((dumps_python if python else dumps_script)(sample()))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))]
    if data.draw(st.booleans()):
        buffers = [b[: data.draw(st.integers(0, len(b)))] for b in buffers[: data.draw(st.integers(0, len(buffers)))]]
    try:
        (loads_python if python else loads_script)(bytes(damaged), buffers)
    except ProtocolFault:
        pass
    else:
        assert not python or bytes(damaged) == body


# ---------------------------------------------------------------------------------------- the Python codec


class Config:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Slotted:
    __slots__ = ("inside",)


def test_functions_classes_and_instances() -> None:
    got = loads_python(*frames(dumps_python((os.path.join, Config, Config(a=1), torch.add, torch.float32))))
    assert got[0] is os.path.join
    assert got[1] is Config
    assert got[2].a == 1
    assert got[3] is torch.add
    assert got[4] is torch.float32


def test_lambdas_closures_and_local_classes() -> None:
    factor = torch.full((2,), 3.0)

    class Local:
        def run(self, x: Any) -> Any:
            return x * factor

    run, local = loads_python(*frames(dumps_python((lambda x: x + factor, Local()))))
    assert torch.equal(run(torch.ones(2)), torch.full((2,), 4.0))
    assert torch.equal(local.run(torch.ones(2)), factor)


@pytest.mark.parametrize("count", [0, 3, 100_000])
def test_numpy_arrays_arrive_writable(count: int) -> None:
    sent = np.arange(count, dtype=np.int64)
    encoded = dumps_python({"a": sent, "t": torch.ones(5)[1:]})
    assert len(encoded.buffers) == (2 if count > 1000 else 1)
    got = loads_python(*frames(encoded))
    assert np.array_equal(got["a"], sent)
    assert got["a"].flags.writeable
    assert torch.equal(got["t"], torch.ones(4))


def test_a_large_numpy_array_is_not_copied() -> None:
    sent = np.zeros(100_000)
    (buffer,) = dumps_python(sent).buffers
    sent[0] = 1
    assert bytes(buffer[:8]) != bytes(8)


@pytest.mark.parametrize("kind", ["list", "attribute", "slot", "closure", "key", "method"])
def test_the_error_leads_to_what_cannot_be_sent(kind: str) -> None:
    lock = threading.Lock()
    slotted = Slotted()
    slotted.inside = lock

    def closure() -> None:
        lock.acquire()

    value, path = {
        "list": ([0, [1, lock]], "args[1][1][1]"),
        "attribute": (Config(config={"lock": lock}), "args[1].config['lock']"),
        "slot": (slotted, "args[1].inside"),
        "closure": (closure, "args[1]<closure lock>"),
        "key": ({(1, Config(x=lock)): 1}, None),
        "method": (Config(m=Config(lock=lock).__init__), "args[1].m.__self__.lock"),  # type: ignore[misc]
    }[kind]
    with pytest.raises(EncodeError, match="lock") as caught:
        dumps_python((None, (1, value), {}), root=("func", "args", "kwargs"))
    if path is not None:
        assert caught.value.path == path
        assert caught.value.type_name == "_thread.lock"


def test_the_script_codec_names_the_path_too() -> None:
    with pytest.raises(EncodeError, match=r"args\[0\]\['a'\]\[1\], of type _thread.lock") as caught:
        dumps_script(({"a": [1, threading.Lock()]},), root="args")
    assert "TorchScript has no such type" in str(caught.value)


def test_what_cannot_be_imported_is_named() -> None:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes((len(value),)) + value.encode()

    for module, name in (("no_such_module", "f"), ("os", "no_such_function")):
        forged = python_body(b"\x80\x05" + text(module) + text(name) + b"\x93.")
        with pytest.raises(NotImportable, match=f"{module}.{name}") as caught:
            loads_python(forged)
        assert isinstance(caught.value, AttributeError)
        assert "Default RPC pickler does not serialize" in str(caught.value)


def python_body(pickled: bytes) -> bytes:
    return struct.pack("<BIII", 2, zlib.crc32(pickled), 0, 0) + pickled


def _raises(*_: Any) -> Any:
    raise ValueError("not today")


def test_an_object_that_fails_to_unpickle_is_a_typed_error() -> None:
    with pytest.raises(FrameError, match="not today"):
        loads_python(*frames(dumps_python(Reduces(_raises, ()))))


MAIN_SCRIPT = """
import sys, torch
from zrpc.serialization.pickler import dumps_python, loads_python
COUNT = 0
class Point:
    def __init__(self, x): self.x = x
    def twice(self): return Point(self.x * 2)
def factorial(n):
    global COUNT
    COUNT += 1
    return n * factorial(n - 1) if n else 1
if sys.argv[1] == "write":
    encoded = dumps_python((factorial, Point, Point(4)))
    sys.stdout.buffer.write(encoded.body)
else:
    function, cls, point = loads_python(sys.stdin.buffer.read())
    assert cls is Point and function is factorial and type(point) is Point
    assert function(4) == 24 and COUNT == 5
"""


@pytest.fixture(scope="module")
def main_script(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    path = tmp_path_factory.mktemp("main") / "script.py"
    path.write_text(MAIN_SCRIPT)
    written = subprocess.run([sys.executable, str(path), "write"], capture_output=True, check=True, timeout=100)
    return str(path), written.stdout


def test_what_main_defines_goes_by_value(main_script: tuple[str, bytes]) -> None:
    function, cls, point = loads_python(main_script[1])
    assert function(5) == 120
    assert point.twice().x == 8
    assert type(point.twice()) is cls


def test_the_same_script_takes_its_own(main_script: tuple[str, bytes]) -> None:
    path, body = main_script
    subprocess.run([sys.executable, path, "read"], input=body, check=True, timeout=100)


# ---------------------------------------------------------------------------------------------- hooks


class Handle:
    def __init__(self, number: int) -> None:
        self.number = number


def make_handle(*_: Any) -> Any:
    raise AssertionError("only its name is used")


@pytest.mark.parametrize("codec", ["script", "python"])
def test_hooks(codec: str) -> None:
    dumps, loads = (dumps_script, loads_script) if codec == "script" else (dumps_python, loads_python)
    out = Hooks({Handle: lambda handle: (make_handle, (handle.number, torch.ones(1)))})
    into = Hooks(globals={(make_handle.__module__, "make_handle"): lambda n, t: ("handle", n, t)})
    encoded = dumps([Handle(3), Handle(4)], out)  # type: ignore[operator]
    got = loads(*frames(encoded), into)  # type: ignore[operator]
    assert [h[1] for h in got] == [3, 4]
    if codec == "script":
        with pytest.raises(DecodeRefused, match="make_handle"):
            loads(*frames(encoded))  # type: ignore[operator]
        with pytest.raises(EncodeError, match="Handle"):
            dumps([Handle(1)])  # type: ignore[operator]


def test_a_hooks_own_error_is_passed_on() -> None:
    def refuse(_: Handle) -> Any:
        raise RRefMisuse("not outside of a call")

    for dumps in (dumps_script, dumps_python):
        with pytest.raises(RRefMisuse):
            dumps([Handle(1)], Hooks({Handle: refuse}))


def test_restart_is_called_before_a_second_try() -> None:
    forks: list[int] = []
    hooks = Hooks({Handle: lambda h: forks.append(h.number) or (make_handle, (h.number,))}, restart=forks.clear)
    dumps_python((Handle(1), lambda: None), hooks)
    assert forks == [1]
    with pytest.raises(EncodeError):
        dumps_python((Handle(2), threading.Lock()), hooks)
    assert forks == [2]


def test_a_reducer_may_call_back() -> None:
    inner: list[Encoded] = []

    def reducer(handle: Handle) -> Any:
        inner.append(dumps_script(torch.full((2,), float(handle.number))))
        return make_handle, (handle.number, torch.zeros(3))

    encoded = dumps_script([torch.ones(1), Handle(5), torch.ones(2)], Hooks({Handle: reducer}))
    assert torch.equal(loads_script(*frames(inner[0])), torch.full((2,), 5.0))
    assert [len(b) for b in encoded.buffers] == [4, 12, 8]


def test_modules_can_be_refused() -> None:
    module = torch.jit.script(torch.nn.Linear(2, 2))
    encoded = frames(dumps_script(module))
    x = torch.ones(2)
    assert torch.equal(loads_script(*encoded)(x), module(x))
    assert torch.equal(loads_python(*frames(dumps_python({"m": module})))["m"](x), module(x))
    with pytest.raises(DecodeRefused, match="ScriptModule"):
        loads_script(*encoded, Hooks(modules=False))


def test_threads_do_not_share_a_pickler() -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        for step in range(200):
            sent = torch.full((number + 1,), float(step))
            got = loads_script(*frames(dumps_script((sent, [number]))))
            if not torch.equal(got[0], sent) or got[1] != [number]:
                failures.append(got)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_nothing_of_a_value_is_kept_alive() -> None:
    for dumps in (dumps_script, dumps_python):
        sent = torch.ones(3)
        alive = weakref.ref(sent)
        dumps((sent, [sent]))
        del sent
        gc.collect()
        assert alive() is None
