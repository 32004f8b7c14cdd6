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

MAX_DEPTH: Final = 1000
"""How deep values may be nested: a dict hashes its keys, and hashing a tuple recurses on the C stack with no guard."""

_SHORT_TEXT: Final = rb"\x8c(?:" + b"|".join(re.escape(bytes((n,))) + rb".{%d}" % n for n in range(256)) + rb")"
_LONG_NUMBER: Final = rb"\x8a(?:" + b"|".join(re.escape(bytes((n,))) + rb".{%d}" % n for n in range(256)) + rb")"
_WITH_ARGUMENT: Final = (
    rb"|[Kh]."  # BININT1, BINGET
    rb"|" + _SHORT_TEXT + rb"|M.."  # BININT2
    rb"|G.{8}"  # BINFLOAT
    rb"|[Jj].{4}"  # BININT, LONG_BINGET
    rb"|\x95.{8}"  # FRAME
    rb"|" + _LONG_NUMBER + rb"){1,4096}"
)
_OPCODES: Final = re.compile(rb"(?:[\x94\x93R)\x85\x86\x87(t\]ae}suN\x88\x89]+" + _WITH_ARGUMENT, re.DOTALL)
_NOT_NESTING: Final = re.compile(rb"(?:[\x94\x93R)(\]}N\x88\x89]+" + _WITH_ARGUMENT, re.DOTALL)
"""All of them but those that put a value into another."""
_ONLY_PROTOCOL: Final = b"\x80\x05"
_BINUNICODE: Final = 0x58
_STOP: Final = 0x2E
_BY_BYTE: Final = {opcode.code: opcode for opcode in pickletools.opcodes}
_READABLE: Final = frozenset(
    ("BININT", "BININT1", "BININT2", "BINFLOAT", "SHORT_BINUNICODE", "LONG1", "FRAME", "BINGET")
)

_INTO: Final = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS"))
_TAKEN: Final[dict[str, int | None]] = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "TUPLE": None,
    "REDUCE": 2,
    "STACK_GLOBAL": 2,
    "APPEND": 1,
    "APPENDS": None,
    "SETITEM": 2,
    "SETITEMS": None,
}


def check_body(body: bytes, start: int = 0, max_depth: int = MAX_DEPTH) -> None:
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
            if end - start > max_depth and _nestings(body, start + 2, max_depth) > max_depth:
                _check_depth(body, start, max_depth)
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


def _nestings(body: bytes, position: int, max_depth: int) -> int:
    """How often a checked body puts a value into another; no more than just over `max_depth`."""
    count = 0
    while count <= max_depth:
        match = _NOT_NESTING.match(body, position)
        if match is not None:
            position = match.end()
        opcode = body[position]
        if opcode == _STOP:
            break
        if opcode == _BINUNICODE:
            position += 5 + int.from_bytes(body[position + 1 : position + 5], "little")
        elif match is None:
            count += 1
            position += 1
    return count


def _check_depth(body: bytes, start: int, max_depth: int) -> None:
    """Follow a checked body with the depths of its values in the place of the values. About 1 us an opcode.

    A list that grows after something else took it in counts as it was then; lists end the recursion that matters.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: list[int] = []
    try:
        for opcode, argument, _ in pickletools.genops(body[start:]):
            name = opcode.name
            if name == "MARK":
                marks.append(len(stack))
            elif name == "MEMOIZE":
                memo.append(stack[-1])
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument or 0)])
            elif name in _TAKEN:
                taken = _TAKEN[name]
                bottom = marks.pop() if taken is None else len(stack) - taken
                if name in _INTO:
                    bottom -= 1  # the container that they go into
                if bottom < 0:
                    raise IndexError
                depth = max(stack[bottom:], default=0) + 1
                if depth > max_depth:
                    raise FrameError(f"values are nested more than {max_depth} deep in the body")
                # What is called (REDUCE) makes one value of its arguments; that is no nesting of its own.
                stack[bottom:] = [depth - 1 if name == "REDUCE" else depth]
            elif name not in ("PROTO", "FRAME", "STOP"):
                stack.append(0)
    except (IndexError, ValueError, TypeError):
        raise FrameError("the body is not a whole pickle") from None
