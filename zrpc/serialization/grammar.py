"""Which pickles the TorchScript codec reads: the few opcodes that its own writer emits, and no other.

One rule: a body is checked as a whole, before the first opcode of it runs. An allow-list of names alone is not enough
for pickles from outside: BUILD changes objects and classes that exist already, PUT with a large number makes the reader
allocate gigabytes, EXT reaches a table that other code fills. None of these is in the grammar, which needs no more than
the stack operations for numbers, texts, tuples, lists, dicts, names and calls.

The check is a regular expression, because that is the one way to look at every opcode in C: 1 to 2 us for a short
call, where `pickletools.genops` takes 100. Every opcode starts with a byte of its own, so the expression never has two
ways to go on, and its time is linear. Texts longer than 255 bytes have lengths that an expression cannot count; the
loop below steps over them.

    opcodes read    PROTO 5 first, FRAME, MEMOIZE, BINGET, LONG_BINGET, STOP last
                    NONE, NEWTRUE, NEWFALSE, BININT, BININT1, BININT2, LONG1, BINFLOAT
                    SHORT_BINUNICODE, BINUNICODE, STACK_GLOBAL, REDUCE
                    EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, MARK, TUPLE, EMPTY_LIST, APPEND, APPENDS,
                    EMPTY_DICT, SETITEM, SETITEMS
"""

from __future__ import annotations

import pickletools
import re
from typing import Final

from zrpc.errors import DecodeRefused, FrameError

_SHORT_TEXT: Final = rb"\x8c(?:" + b"|".join(re.escape(bytes((n,))) + rb".{%d}" % n for n in range(256)) + rb")"
_LONG_NUMBER: Final = rb"\x8a(?:" + b"|".join(re.escape(bytes((n,))) + rb".{%d}" % n for n in range(256)) + rb")"
_OPCODES: Final = re.compile(
    rb"(?:"
    rb"[\x94\x93R)\x85\x86\x87(t\]ae}suN\x88\x89]+"  # one byte each
    rb"|[Kh]."  # BININT1, BINGET
    rb"|" + _SHORT_TEXT + rb"|M.."  # BININT2
    rb"|G.{8}"  # BINFLOAT
    rb"|[Jj].{4}"  # BININT, LONG_BINGET
    rb"|\x95.{8}"  # FRAME
    rb"|" + _LONG_NUMBER + rb"){1,4096}",
    re.DOTALL,
)
_ONLY_PROTOCOL: Final = b"\x80\x05"
_BINUNICODE: Final = 0x58
_STOP: Final = 0x2E
_BY_BYTE: Final = {opcode.code: opcode for opcode in pickletools.opcodes}
_READABLE: Final = frozenset(
    ("BININT", "BININT1", "BININT2", "BINFLOAT", "SHORT_BINUNICODE", "LONG1", "FRAME", "BINGET")
)


def check_body(body: bytes, start: int = 0) -> None:
    """Return when the pickle in `body[start:]` keeps to the grammar; raise `DecodeRefused` or `FrameError`."""
    end = len(body)
    if body[start : start + 2] != _ONLY_PROTOCOL:
        raise FrameError("the body is not a pickle of protocol 5")
    position = start + 2
    while True:
        match = _OPCODES.match(body, position)
        if match is not None:
            position = match.end()
        if position >= end:
            raise FrameError("the body ends before its pickle does")
        opcode = body[position]
        if opcode == _STOP:
            if position + 1 != end:
                raise FrameError(f"{end - position - 1} bytes follow the pickle in the body")
            return
        if opcode == _BINUNICODE:
            if position + 5 > end:
                raise FrameError("the body ends before its pickle does")
            position += 5 + int.from_bytes(body[position + 1 : position + 5], "little")
            if position > end:
                raise FrameError("a text in the body is longer than the body")
        elif match is None:
            raise _refusal(body, position)


def _refusal(body: bytes, position: int) -> DecodeRefused | FrameError:
    opcode = _BY_BYTE.get(chr(body[position]))
    if opcode is None or opcode.name in _READABLE:
        return FrameError(f"the body is not a whole pickle: byte {body[position]:#x} at {position}")
    return DecodeRefused(f"the pickle opcode {opcode.name}", "TorchScript")
