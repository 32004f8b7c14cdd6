"""What the broker and its members say to each other: the bodies of the control messages.

One rule: `from_body` checks the type, length and range of every field before anything else sees it, and raises
`FrameError`; nothing is ever built from an unchecked value.

A body is a msgpack map from field names to values, in an envelope with codec MSGPACK. A key that is not known is
ignored and a key that is absent takes its default, so a later version can add fields. Each class names its kind:

    member to broker                             broker to member
    HELLO     Hello           join, or return    WELCOME   Welcome        you are in; this is everybody
    PROGRESS  Beat            I live, I did this REFUSED   Refusal        you are not in, or not any more
    RESOLVE   Resolve         tell me everybody  PROGRESS  GroupProgress  who is still missing
    SHUTDOWN  ShutdownReport  may we end?        MEMBERS   Members        who came and went
    GOODBYE   Goodbye         I leave            CHALLENGE Challenge      I do not know you: say HELLO
    QUERY     Query           (tools) what is?   SHUTDOWN  ShutdownState  count again, or: yes, end
    SCALE     Scale           (tools) more, less
    STOP      Stop            (tools) stop them  STOP      Stop           please stop
                                                 ANSWER    Answer         (tools) the answer

Members are rows, packed once and copied into every WELCOME as bytes (see `roster`). A peer of another protocol version
cannot be read; the broker answers it with a REFUSED in its own version, whose preamble tells the peer the version: it gets
`VersionMismatch` and not a timeout.
"""

# ruff: noqa: RUF009  (the calls in class bodies make dataclass fields, which is what they are for)
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import msgpack

from zrpc.errors import (
    FrameError,
    InvalidName,
    JoinRefused,
    NameTaken,
    StaleIncarnation,
    TooManyNames,
    VersionMismatch,
    ZrpcError,
)
from zrpc.ids import MAX_LIFE
from zrpc.wire.envelope import VERSION, Buffer, Codec, Envelope, Kind, pack
from zrpc.wire.fields import (
    MAX_U63,
    MAX_U64,
    address,
    checked,
    flag,
    integer,
    nested,
    number,
    numbers,
    plain_map,
    text,
    texts,
    unpack_map,
)
from zrpc.wire.roster import MAX_ID as MAX_ID
from zrpc.wire.roster import MAX_NAME_ON_WIRE as MAX_NAME_ON_WIRE
from zrpc.wire.roster import MAX_WHY as MAX_WHY
from zrpc.wire.roster import Gone as Gone
from zrpc.wire.roster import Member as Member
from zrpc.wire.roster import Roster as Roster
from zrpc.wire.roster import gone_values, pack_gone, read_gone
from zrpc.wire.roster import read_rows as read_rows

MAX_TOLD: Final = 64
"""Names listed in one progress message; the rest is a count: 10,000 who wait are not told 10,000 names each."""
MAX_EXPECTED: Final = 65_535

M = TypeVar("M", bound="Message")


class Message:
    """A body: `to_body` writes it, `from_body` reads and checks it. `KIND` is the kind of its envelope."""

    __slots__ = ()
    KIND: ClassVar[Kind]

    def to_body(self) -> bytes:
        """The body's bytes."""
        values = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, write = getattr(self, field.name), field.metadata.get("write")
            values[field.name] = value if write is None else write(value)
        return bytes(msgpack.packb(values))

    @classmethod
    def from_body(cls: type[M], body: Buffer) -> M:
        """The message in a body. Raises `FrameError` for anything that `to_body` does not write."""
        values = unpack_map(body, cls.__name__)
        return cls(**checked(cls, values, cls.__name__))


# ---------------------------------------------------------------------------------- from a member to the broker


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """A process asks to be a member; or a member, to be known again (`incarnation` is not 0 then).

    `nonce` is random and tells two processes apart; the same HELLO again gets the same answer. `id` is the rank that is
    asked for, or the id that the member has; -1 for none. `world_size` not 0: a static group of that many. `wait`:
    answer only when all names that the broker was told to expect are there. `strict`: do not mix static and dynamic
    members.
    """

    KIND: ClassVar[Kind] = Kind.HELLO
    name: str = text(MAX_NAME_ON_WIRE)
    nonce: int = integer(1, MAX_U64)
    address: str = address()
    role: str = text(128, "")
    id: int = integer(-1, MAX_ID, -1)
    incarnation: int = integer(0, MAX_U63, 0)
    life: int = integer(0, MAX_LIFE, 0)
    pid: int = integer(0, MAX_U63, 0)
    host: str = text(255, "")
    software: str = text(255, "")
    world_size: int = integer(0, MAX_EXPECTED, 0)
    wait: bool = flag(False)
    strict: bool = flag(False)
    floor: int = integer(0, MAX_ID, 0)
    """Of a member that is back: no id below was free, as far as it was told."""


@dataclass(frozen=True, slots=True)
class Beat(Message):
    """The member lives. `sequence` is the last change of the membership that it has seen; `statistics` are counters."""

    KIND: ClassVar[Kind] = Kind.PROGRESS
    sequence: int = integer(0, MAX_U63, 0)
    stopping: bool = flag(False)
    statistics: dict[str, int | float] = numbers(32)
    draining: bool = flag(False)
    """It takes no new work, and will leave."""


def _read_over(value: object, where: str) -> tuple[Gone, ...]:
    rows: tuple[Gone, ...] = read_rows(Gone, value, where)
    return rows


@dataclass(frozen=True, slots=True)
class Resolve(Message):
    """The member asks what has changed since `sequence`: it missed something, or looks for somebody.

    `over`: lives that it was told are over, and that the broker lists: it has given up what they held."""

    KIND: ClassVar[Kind] = Kind.RESOLVE
    sequence: int = integer(0, MAX_U63, 0)
    over: tuple[Gone, ...] = nested(_read_over, ())

    def to_body(self) -> bytes:
        """The body's bytes."""
        return bytes(msgpack.packb({"sequence": self.sequence, "over": [gone_values(gone) for gone in self.over]}))


@dataclass(frozen=True, slots=True)
class ShutdownReport(Message):
    """A member that wants to end, and its counters in a round of the question (see `protocol.shutdown`)."""

    KIND: ClassVar[Kind] = Kind.SHUTDOWN
    round: int = integer(0, MAX_U63, 0)
    sent: int = integer(0, MAX_U63, 0)
    served: int = integer(0, MAX_U63, 0)
    active: int = integer(0, MAX_U63, 0)


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """The sender leaves, of its own will."""

    KIND: ClassVar[Kind] = Kind.GOODBYE
    why: str = text(MAX_WHY, "")


@dataclass(frozen=True, slots=True)
class Query(Message):
    """A tool asks the broker; `what` is 'status', or 'events': those with numbers above `since`."""

    KIND: ClassVar[Kind] = Kind.QUERY
    what: str = text(64, "status")
    since: int = integer(0, MAX_U63, 0)


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """Asks workers to stop. From a tool: `names`, or none for all. From the broker to one member: no names."""

    KIND: ClassVar[Kind] = Kind.STOP
    why: str = text(MAX_WHY, "")
    names: tuple[str, ...] | None = texts(MAX_EXPECTED, MAX_NAME_ON_WIRE, None)


@dataclass(frozen=True, slots=True)
class Scale(Message):
    """A tool wants `count` workers of a role; whoever started the cluster's processes hears of it."""

    KIND: ClassVar[Kind] = Kind.SCALE
    role: str = text(128)
    count: int = integer(0, 10_000)


# ---------------------------------------------------------------------------------- from the broker to a member


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The member is in. `epoch` tells this run of the broker from others; times are seconds.

    Who is up: `members`, of a while ago, without those who are `gone` since, and with those who are `up` since."""

    KIND: ClassVar[Kind] = Kind.WELCOME
    nonce: int = integer(1, MAX_U64)
    id: int = integer(0, MAX_ID)
    incarnation: int = integer(1, MAX_U63)
    life: int = integer(0, MAX_LIFE)
    cluster: str = text(255)
    epoch: int = integer(1, MAX_U63)
    sequence: int = integer(0, MAX_U63)
    heartbeat_interval: float = number(0.001, 3600.0)
    death_timeout: float = number(0.001, 86400.0)
    members: Roster = nested(Roster.read, write=Roster.packed)
    floor: int = integer(0, MAX_ID, 0)
    """Ids below may have been given; members tell it a broker that follows this one."""
    standby: str = text(255, "")
    """Where the standby broker is, if there is one."""
    up: Roster = nested(Roster.read, Roster(), Roster.packed)
    gone: tuple[Gone, ...] = nested(read_gone, (), pack_gone)

    def everybody(self) -> tuple[Member, ...]:
        """Who is up."""
        return self.members.after(self.gone, self.up)


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """No. `error` is the name of the error's type, `fields` what it is made from, `message` its sentence."""

    KIND: ClassVar[Kind] = Kind.REFUSED
    error: str = text(64)
    message: str = text(4096)
    fields: dict[str, int | str] = plain_map(16, MAX_NAME_ON_WIRE)
    nonce: int = integer(0, MAX_U64, 0)

    @classmethod
    def of(cls, error: ZrpcError, nonce: int = 0) -> Refusal:
        """The refusal that `to_error` turns back into `error`."""
        name = type(error).__name__
        _, names = _REBUILT.get(name, (None, ()))
        fields = {field: getattr(error, field) for field in names}
        fields = {key: value[:MAX_NAME_ON_WIRE] if isinstance(value, str) else value for key, value in fields.items()}
        return cls(name, str(error)[:4096], fields, nonce)

    def to_error(self) -> ZrpcError:
        """The error to raise on the refused side."""
        if self.error == VersionMismatch.__name__:
            return VersionMismatch(int(self.fields.get("ours", 0)), VERSION)
        make, names = _REBUILT.get(self.error, (None, ()))
        if make is not None and all(name in self.fields for name in names):
            return make(*(self.fields[name] for name in names))
        plain = _PLAIN.get(self.error)
        return JoinRefused(f"{self.error}: {self.message}") if plain is None else plain(self.message)


_REBUILT: Final[dict[str, tuple[Callable[..., ZrpcError] | None, tuple[str, ...]]]] = {
    "NameTaken": (NameTaken, ("name", "holder")),
    "InvalidName": (InvalidName, ("name", "why")),
    "TooManyNames": (TooManyNames, ("peer", "limit", "option")),
    "VersionMismatch": (VersionMismatch, ("theirs", "ours")),
}
_PLAIN: Final[dict[str, type[ZrpcError]]] = {
    error.__name__: error for error in (JoinRefused, StaleIncarnation, FrameError)
}


@dataclass(frozen=True, slots=True)
class GroupProgress(Message):
    """Who is there and who is not, of the group that the member waits for. At most `MAX_TOLD` names of each."""

    KIND: ClassVar[Kind] = Kind.PROGRESS
    present: tuple[str, ...] = texts(MAX_TOLD, MAX_NAME_ON_WIRE, ())
    missing: tuple[str, ...] = texts(MAX_TOLD, MAX_NAME_ON_WIRE, ())
    short: int = integer(0, MAX_EXPECTED, 0)
    """How many are missing, named or not."""
    total: int = integer(0, 2 * MAX_EXPECTED, 0)
    heartbeat_interval: float = number(0.001, 3600.0, 0.5)


@dataclass(frozen=True, slots=True)
class Members(Message):
    """A change of the membership: `gone` first, then `up`. Builds on what a member knew at `previous` or later.

    `full`: everybody, whatever the member knew: `members`, of a while ago, and what has changed since. `answer`: RESOLVE
    asked for it."""

    KIND: ClassVar[Kind] = Kind.MEMBERS
    epoch: int = integer(1, MAX_U63)
    sequence: int = integer(0, MAX_U63)
    previous: int = integer(0, MAX_U63, 0)
    full: bool = flag(False)
    up: Roster = nested(Roster.read, Roster(), Roster.packed)
    gone: tuple[Gone, ...] = nested(read_gone, (), pack_gone)
    standby: str = text(255, "")
    """Where the standby broker is, if there is one."""
    members: Roster = nested(Roster.read, Roster(), Roster.packed)
    answer: bool = flag(False)

    def everybody(self) -> tuple[Member, ...]:
        """Who is up, if it is `full`."""
        return self.members.after(self.gone, self.up)


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """The broker does not know the sender of a message: say HELLO, with your id and incarnation."""

    KIND: ClassVar[Kind] = Kind.CHALLENGE
    epoch: int = integer(1, MAX_U63)


@dataclass(frozen=True, slots=True)
class ShutdownState(Message):
    """Where the common end stands: report in `round`, or end now (`release`). `missing` have not asked to end yet."""

    KIND: ClassVar[Kind] = Kind.SHUTDOWN
    round: int = integer(0, MAX_U63, 0)
    release: bool = flag(False)
    missing: tuple[str, ...] = texts(MAX_TOLD, MAX_NAME_ON_WIRE, ())
    short: int = integer(0, MAX_EXPECTED, 0)


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """The answer to a tool: a map of plain values."""

    KIND: ClassVar[Kind] = Kind.ANSWER
    data: dict[str, Any] = plain_map(256, 1 << 20, deep=True)


# -------------------------------------------------------------------------------------------- envelopes

TO_BROKER: Final[Mapping[int, type[Message]]] = {
    cls.KIND: cls for cls in (Hello, Beat, Resolve, ShutdownReport, Goodbye, Query, Stop, Scale)
}
"""What a broker reads. Anything else is not for it."""
TO_MEMBER: Final[Mapping[int, type[Message]]] = {
    cls.KIND: cls for cls in (Welcome, Refusal, GroupProgress, Members, Challenge, ShutdownState, Stop, Goodbye, Answer)
}
"""What a member or a tool reads from a broker."""


def seal(
    message: Message, sender: int, sender_incarnation: int, receiver_incarnation: int = 0, message_id: int = 0
) -> list[Buffer]:
    """The frames of a control message. Raises `LimitExceeded` when it is too large."""
    return pack(
        Envelope(
            message.KIND,
            message_id,
            sender,
            sender_incarnation,
            receiver_incarnation,
            codec=Codec.MSGPACK,
            body=message.to_body(),
        )
    )


def read(envelope: Envelope, known: Mapping[int, type[Message]]) -> Message:
    """The control message in an envelope, of the kinds in `known`. Raises `FrameError` for anything else."""
    cls = known.get(envelope.kind)
    if cls is None:
        raise FrameError(f"not a control message: kind {envelope.kind} is not one that is read here")
    if envelope.codec != Codec.MSGPACK or envelope.buffers:
        raise FrameError(f"not a control message: a {cls.__name__} is msgpack without buffers")
    return cls.from_body(envelope.body)
