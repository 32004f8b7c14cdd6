"""Members of a cluster as rows of messages: who is up, who is gone.

One rule: rows are packed once, however many are told. A roster is bytes: a msgpack array of rows, each an array in the
order of the fields of its class. From `SQUEEZED` bytes on it is a zlib stream, which never begins as a msgpack array does.
"""

from __future__ import annotations

import dataclasses
import operator
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from zrpc.errors import FrameError
from zrpc.ids import MAX_LIFE
from zrpc.wire.fields import MAX_BODY_BYTES, MAX_U63, address, integer, text

MAX_ID: Final = (1 << 31) - 1
"""Worker ids are small: torch's are 16 bits, ours leave room."""
MAX_NAME_ON_WIRE: Final = 1024
"""A longer name is a broken frame; a shorter one that is no worker name is refused with the reason."""
MAX_WHY: Final = 1024
SQUEEZED: Final = 4096
"""Bytes of a roster that is worth compressing. Rows have much in common: 92 bytes of each become 20, in 1.5 us."""
_ZLIB: Final = b"\x78"
"""The first byte of a zlib stream; in msgpack it is an integer."""


@dataclass(frozen=True, slots=True)
class Member:
    """One worker as the others know it. `incarnation` tells this life of the name from every other."""

    name: str = text(MAX_NAME_ON_WIRE)
    id: int = integer(0, MAX_ID)
    incarnation: int = integer(1, MAX_U63)
    life: int = integer(0, MAX_LIFE)
    address: str = address()
    role: str = text(128, "")
    state: str = text(16, "up")
    pid: int = integer(0, MAX_U63, 0)
    host: str = text(255, "")
    software: str = text(255, "")


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker that is no more, and why."""

    name: str = text(MAX_NAME_ON_WIRE)
    id: int = integer(0, MAX_ID)
    incarnation: int = integer(1, MAX_U63)
    why: str = text(MAX_WHY, "")
    cause: str = text(16, "died")


_member_values = operator.attrgetter(*[field.name for field in dataclasses.fields(Member)])
gone_values = operator.attrgetter(*[field.name for field in dataclasses.fields(Gone)])
"""The row of one who is gone."""


def pack_member(member: Member) -> bytes:
    """A member's row of a roster."""
    return bytes(msgpack.packb(_member_values(member)))


def join_rows(rows: Collection[bytes]) -> bytes:
    """The packed roster of some packed rows."""
    joined = b"".join((msgpack.Packer().pack_array_header(len(rows)), *rows))
    return joined if len(joined) < SQUEEZED else zlib.compress(joined, 1)


def pack_gone(gone: Iterable[Gone]) -> bytes:
    """Those who are gone, packed as a roster is."""
    return join_rows([msgpack.packb(gone_values(one)) for one in gone])


def read_rows(cls: type[Any], value: object, where: str) -> tuple[Any, ...]:
    """Check and build rows of `cls` from an array of arrays. Raises `FrameError`."""
    if type(value) is not list:
        raise FrameError(f"not a zrpc message: {where} is not an array")
    # A member reads thousands of rows at once, so what is the same for all is found once.
    fields = [(field.metadata["read"], f"{where}.{field.name}") for field in dataclasses.fields(cls)]
    least = sum(field.default is dataclasses.MISSING for field in dataclasses.fields(cls))
    out = []
    for row in value:
        if type(row) is not list or len(row) < least:
            raise FrameError(f"not a zrpc message: a row of {where} is not an array of at least {least} elements")
        out.append(cls(*[read(item, name) for (read, name), item in zip(fields, row, strict=False)]))
    return tuple(out)


def _read_packed(cls: type[Any], value: object, where: str) -> tuple[Any, ...]:
    """Check and decode the bytes of a roster of `cls`. Raises `FrameError`."""
    if type(value) is not bytes:
        raise FrameError(f"not a zrpc message: {where} is not bytes")
    try:
        rows = msgpack.unpackb(_expand(value, where) if value[:1] == _ZLIB else value)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"not a zrpc message: {where} is not msgpack ({type(error).__name__})") from None
    return read_rows(cls, rows, where)


def _expand(value: bytes, where: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(value, MAX_BODY_BYTES)
    except zlib.error:
        raise FrameError(f"not a zrpc message: {where} is not a zlib stream") from None
    if not stream.eof or stream.unused_data:
        raise FrameError(f"not a zrpc message: {where} is no whole zlib stream of at most {MAX_BODY_BYTES} bytes")
    return plain


def read_gone(value: object, where: str) -> tuple[Gone, ...]:
    """Check and decode the bytes of those who are gone. Raises `FrameError`."""
    gone: tuple[Gone, ...] = _read_packed(Gone, value, where)
    return gone


class Roster:
    """Some members, packed at most once: the broker sends the same one to everybody."""

    __slots__ = ("_packed", "members")

    def __init__(self, members: Iterable[Member] = (), packed: bytes | None = None) -> None:
        self.members = tuple(members)
        self._packed = packed

    def packed(self) -> bytes:
        """The members as bytes."""
        if self._packed is None:
            self._packed = join_rows([pack_member(member) for member in self.members])
        return self._packed

    @classmethod
    def read(cls, value: object, where: str) -> Roster:
        """Check and decode a roster's bytes. Raises `FrameError`."""
        members = _read_packed(Member, value, where)
        assert isinstance(value, bytes)
        return cls(members, value)

    def after(self, gone: Iterable[Gone], up: Roster) -> tuple[Member, ...]:
        """Who is up when `gone` have gone, and then `up` have come or changed."""
        if not self.members:
            return up.members
        found = {member.id: member for member in self.members}
        for one in gone:
            known = found.get(one.id)
            if known is not None and known.incarnation == one.incarnation:
                del found[one.id]
        found.update((member.id, member) for member in up.members)
        return tuple(found.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roster) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"Roster({[member.name for member in self.members]})"
