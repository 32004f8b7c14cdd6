"""The grammar takes what the codec writes, and no opcode beside."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.errors import DecodeRefused, FrameError, ProtocolFault
from zrpc.serialization.grammar import check_body
from zrpc.serialization.pickler import dumps_script

numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans() | st.none()
values: Any = st.recursive(
    numbers | st.text(max_size=400),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)

ALLOWED = frozenset(
    """PROTO FRAME MEMOIZE BINGET LONG_BINGET STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    SHORT_BINUNICODE BINUNICODE STACK_GLOBAL REDUCE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 MARK TUPLE EMPTY_LIST APPEND
    APPENDS EMPTY_DICT SETITEM SETITEMS""".split()  # noqa: SIM905
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_takes_what_the_codec_writes(value: Any) -> None:
    check_body(dumps_script(value).body)


def test_takes_long_bodies() -> None:
    check_body(dumps_script([list(range(30_000)), ["x" * 300, "y" * 70_000, "é" * 200]]).body)
    check_body(dumps_script([torch.ones(2) for _ in range(3000)]).body)
    check_body(b"\0\0\0" + dumps_script(1).body, 3)


@pytest.mark.parametrize("opcode", [o for o in pickletools.opcodes if o.name not in ALLOWED], ids=lambda o: o.name)
def test_refuses_every_other_opcode(opcode: Any) -> None:
    body = b"\x80\x05N" + opcode.code.encode("latin-1") + b"\0" * 8 + b"."
    with pytest.raises(DecodeRefused) as caught:
        check_body(body)
    assert opcode.name in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(values, st.data())
def test_an_accepted_body_has_only_those_opcodes(value: Any, data: st.DataObject) -> None:
    body = bytearray(pickle.dumps(value, 5))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_body(bytes(body))
    except ProtocolFault:
        return
    try:
        for opcode, _, _ in pickletools.genops(bytes(body)):
            assert opcode.name in ALLOWED
    except UnicodeDecodeError:  # the text is damaged; the grammar does not read texts
        pass


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80",
        b"\x80\x05",
        b"\x80\x04N.",
        b"N.",
        b"\x80\x05N",
        b"\x80\x05N..",
        b"\x80\x05N.N",
        b"\x80\x05X\xff\xff\xff\xff.",
        b"\x80\x05X\x01",
        b"\x80\x05\x8c\x09abc.",
        b"\x80\x05\xff.",
    ],
)
def test_damage_is_a_frame_error(body: bytes) -> None:
    with pytest.raises(FrameError):
        check_body(body)


def test_a_deep_key_is_refused() -> None:
    # Hashing it would overflow the stack.
    with pytest.raises(FrameError, match="deep"):
        check_body(b"\x80\x05})" + b"\x85" * 500_000 + b"Ns.")


def test_depth_follows_the_memo() -> None:
    rounds = b"".join(b"j" + n.to_bytes(4, "little") + b"\x85\x94" for n in range(2000))
    with pytest.raises(FrameError, match="deep"):
        check_body(b"\x80\x05)\x94" + rounds + b"N.")


def test_broad_and_moderately_deep_values_pass() -> None:
    value: Any = 1
    for _ in range(900):
        value = (value,)
    check_body(dumps_script([value, [((n,), n) for n in range(3000)]]).body)
    check_body(dumps_script({(n, str(n)): [n, {}] for n in range(3000)}).body)
    with pytest.raises(FrameError, match="not a whole"):
        check_body(b"\x80\x05" + b"\x85" * 2000 + b".")
