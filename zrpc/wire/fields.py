"""Checked fields of control messages: what a value from the wire must be before it is used.

One rule: a reader takes any object that msgpack can make and returns a value of the declared type within its bounds, or
raises `FrameError` with the field's name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from zrpc.errors import FrameError
from zrpc.wire.envelope import Buffer

MAX_U63: Final = (1 << 63) - 1
MAX_U64: Final = (1 << 64) - 1
MAX_BODY_BYTES: Final = 64 << 20
"""Room for a roster of 65,535 members at the longest names and addresses that make sense."""
MAX_ADDRESS: Final = 255

_ADDRESS = re.compile(r"[a-z]{1,16}://[\x21-\x7e]{1,239}\Z")
_MISSING: Any = dataclasses.MISSING

Reader = Callable[[Any, str], Any]


def _wrong(where: str, what: str) -> FrameError:
    return FrameError(f"not a zrpc message: {where} is not {what}")


def _field(reader: Reader, default: Any = _MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"read": reader})


def nested(reader: Reader, default: Any = _MISSING, write: Callable[[Any], bytes] | None = None) -> Any:
    """A field with a reader of its own, and perhaps a writer: else it is written as it is."""
    metadata = {"read": reader} if write is None else {"read": reader, "write": write}
    return dataclasses.field(default=default, metadata=metadata)


def integer(low: int, high: int, default: Any = _MISSING) -> Any:
    """An int from `low` to `high`."""

    def read(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(where, f"an integer from {low} to {high}")
        return value

    return _field(read, default)


def number(low: float, high: float, default: Any = _MISSING) -> Any:
    """A finite float or int from `low` to `high`."""

    def read(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise _wrong(where, f"a number from {low} to {high}")
        return float(value)

    return _field(read, default)


def flag(default: Any = _MISSING) -> Any:
    """A bool."""

    def read(value: Any, where: str) -> bool:
        if type(value) is not bool:
            raise _wrong(where, "a bool")
        return value

    return _field(read, default)


def text(limit: int, default: Any = _MISSING) -> Any:
    """A str of at most `limit` characters."""

    def read(value: Any, where: str) -> str:
        if type(value) is not str or len(value) > limit:
            raise _wrong(where, f"text of at most {limit} characters")
        return value

    return _field(read, default)


def address(default: Any = _MISSING) -> Any:
    """An address, 'scheme://rest', of printable ASCII."""

    def read(value: Any, where: str) -> str:
        if type(value) is not str or not _ADDRESS.match(value):
            raise _wrong(where, f"an address of at most {MAX_ADDRESS} characters")
        return value

    return _field(read, default)


def texts(count: int, limit: int, default: Any = _MISSING) -> Any:
    """A tuple of at most `count` strings of at most `limit` characters; None where that is the default."""

    def read(value: Any, where: str) -> tuple[str, ...] | None:
        if value is None and default is None:
            return None
        if type(value) is not list or len(value) > count:
            raise _wrong(where, f"an array of at most {count} texts")
        if not all(type(item) is str and len(item) <= limit for item in value):
            raise _wrong(where, f"an array of texts of at most {limit} characters")
        return tuple(value)

    return _field(read, default)


def numbers(count: int) -> Any:
    """A map from at most `count` short names to finite numbers; empty by default."""

    def read(value: Any, where: str) -> dict[str, int | float]:
        if type(value) is not dict or len(value) > count:
            raise _wrong(where, f"a map of at most {count} numbers")
        for key, item in value.items():
            if type(key) is not str or len(key) > 64:
                raise _wrong(where, "a map with names of at most 64 characters")
            if type(item) not in (int, float) or not math.isfinite(item):
                raise _wrong(where, "a map of finite numbers")
        return value

    return dataclasses.field(default_factory=dict, metadata={"read": read})


def plain_map(count: int, limit: int, deep: bool = False) -> Any:
    """A map from at most `count` short names to ints and texts up to `limit` characters; `deep`: to any plain value."""

    def read(value: Any, where: str) -> dict[str, Any]:
        if type(value) is not dict or len(value) > count:
            raise _wrong(where, f"a map of at most {count} values")
        for key, item in value.items():
            if type(key) is not str or len(key) > 64:
                raise _wrong(where, "a map with names of at most 64 characters")
            if not deep and not (type(item) is int or (type(item) is str and len(item) <= limit)):
                raise _wrong(where, f"a map of integers and texts of at most {limit} characters")
        return value

    return dataclasses.field(default_factory=dict, metadata={"read": read})


def checked(cls: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a dataclass with checked fields. Raises `FrameError`."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            found[field.name] = field.metadata["read"](values[field.name], f"{where}.{field.name}")
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise FrameError(f"not a zrpc message: {where} has no {field.name}")
    return found


def unpack_map(body: Buffer, what: str, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The msgpack map in `body`. Raises `FrameError` when it is not one, or larger than `limit` bytes."""
    size = body.nbytes if isinstance(body, memoryview) else len(body)
    if size > limit:
        raise FrameError(f"not a zrpc message: the body of {what} is {size} bytes, over the limit of {limit}")
    try:
        values = msgpack.unpackb(body)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"not a zrpc message: the body of {what} is not msgpack ({type(error).__name__})") from None
    if type(values) is not dict:
        raise FrameError(f"not a zrpc message: the body of {what} is not a map")
    return values
