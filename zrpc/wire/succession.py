"""What a broker and its standby say to each other, and what members say to a standby.

One rule: as in `messages`: every field is checked before anything else sees it.

    standby to primary                            primary to standby
    FOLLOW    Follow    I follow you, I have this REPLICA   Replica    what has changed, and that I live
    member to standby                             standby to anybody
    VOTE      Vote      I have lost the primary   ELSEWHERE Elsewhere  I am not in charge: ask there

A broker in charge sends FOLLOW too, to the one that it took over from: who is in charge with a lower epoch steps down.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Final

import msgpack

from zrpc.ids import MAX_LIFE
from zrpc.wire.envelope import Kind
from zrpc.wire.fields import MAX_U63, MAX_U64, address, flag, integer, nested, number, text
from zrpc.wire.messages import (
    MAX_EXPECTED,
    MAX_ID,
    MAX_NAME_ON_WIRE,
    MAX_WHY,
    TO_BROKER,
    TO_MEMBER,
    Message,
    Refusal,
    Stop,
    read_rows,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """All that a standby is to know of one name. `state` is 'up', 'gone' or 'absent' (the name has an id, and no life)."""

    name: str = text(MAX_NAME_ON_WIRE)
    id: int = integer(0, MAX_ID)
    incarnation: int = integer(0, MAX_U63)
    life: int = integer(0, MAX_LIFE, 0)
    state: str = text(16, "up")
    nonce: int = integer(0, MAX_U64, 0)
    address: str = text(255, "")
    role: str = text(128, "")
    pid: int = integer(0, MAX_U63, 0)
    host: str = text(255, "")
    software: str = text(255, "")
    world_size: int = integer(0, MAX_EXPECTED, 0)
    is_draining: bool = flag(False)
    by_will: bool = flag(False)
    why: str = text(MAX_WHY, "")


_values = operator.attrgetter(*[field.name for field in fields(Entry)])


def _read_entries(value: object, where: str) -> tuple[Entry, ...]:
    rows: tuple[Entry, ...] = read_rows(Entry, value, where)
    return rows


@dataclass(frozen=True, slots=True)
class Follow(Message):
    """A broker tells another one where it stands. `in_charge` False: it stands by, has the replica of `epoch` up to
    `sequence`, knows that ids below `floor` are the primary's, and has heard its REPLICA number `beat`. True: it is in
    charge with `epoch`, and whoever is so with a lower one is to step down."""

    KIND: ClassVar[Kind] = Kind.FOLLOW
    address: str = address()
    epoch: int = integer(0, MAX_U63, 0)
    in_charge: bool = flag(False)
    sequence: int = integer(0, MAX_U63, 0)
    floor: int = integer(0, MAX_ID, 0)
    beat: int = integer(0, MAX_U63, 0)


@dataclass(frozen=True, slots=True)
class Replica(Message):
    """What the primary knows: entries that have changed since `previous`, or all of them (`full`). Sent with each change
    and at each heartbeat. `floor`: the primary gives ids below it, the standby, once in charge, only others. `incarnation`
    is the last that was given. Times are seconds, and those of the primary."""

    KIND: ClassVar[Kind] = Kind.REPLICA
    epoch: int = integer(1, MAX_U63)
    sequence: int = integer(0, MAX_U63)
    previous: int = integer(0, MAX_U63, 0)
    full: bool = flag(False)
    beat: int = integer(0, MAX_U63, 0)
    floor: int = integer(0, MAX_ID, 0)
    incarnation: int = integer(0, MAX_U63, 0)
    heartbeat_interval: float = number(0.001, 3600.0, 0.5)
    death_timeout: float = number(0.001, 86400.0, 3.0)
    silence_timeout: float = number(0.001, 86400.0, 30.0)
    entries: tuple[Entry, ...] = nested(_read_entries, ())

    def to_body(self) -> bytes:
        """The body's bytes."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["entries"] = [_values(entry) for entry in self.entries]
        return bytes(msgpack.packb(values))


@dataclass(frozen=True, slots=True)
class Vote(Message):
    """A member has lost the broker of `epoch`, or (`lost` False) has it back. Said again while it holds; who is in charge
    answers with CHALLENGE."""

    KIND: ClassVar[Kind] = Kind.VOTE
    epoch: int = integer(0, MAX_U63)
    lost: bool = flag(True)


@dataclass(frozen=True, slots=True)
class Elsewhere(Message):
    """The sender is not in charge. `address`: who is, as far as it knows, or empty text. `epoch`: with which epoch."""

    KIND: ClassVar[Kind] = Kind.ELSEWHERE
    address: str = text(255, "")
    epoch: int = integer(0, MAX_U63, 0)


BROKER_READS: Final[Mapping[int, type[Message]]] = {**TO_BROKER, Follow.KIND: Follow, Vote.KIND: Vote}
"""What a broker reads from its listener."""
MEMBER_READS: Final[Mapping[int, type[Message]]] = {**TO_MEMBER, Elsewhere.KIND: Elsewhere}
"""What a member or a tool reads from any broker."""
STANDBY_READS: Final[Mapping[int, type[Message]]] = {cls.KIND: cls for cls in (Replica, Elsewhere, Refusal, Stop)}
"""What a broker reads from the one that it follows."""
