"""The words of the remote reference protocol: what travels, what the machine asks for, and its transition tables.

It owns the tables, as data. One rule: a transition that is not in a table does not happen (`InvalidTransition`, and
nothing is changed). States are adjectives, events nouns, effects verbs. `docs/rref-protocol.md` is drawn from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from zrpc.errors import FrameError, InvalidTransition
from zrpc.ids import ForkId, GloballyUniqueId, RRefId
from zrpc.protocol.outbox import Peer

# ------------------------------------------------------------------------------------------ what travels


class Control(IntEnum):
    """Kinds of control message; the number is the envelope's `Kind`.

    torch's USER_ACCEPT has no message here: it is the acknowledgement of a fork request.
    """

    FORK_REQUEST = 11
    """User to owner: this fork is mine."""
    CHILD_ACCEPT = 12
    """To the parent of a fork: the owner knows the fork, or is the one that got it, or need never know it."""
    USER_DELETE = 14
    """User to owner: the fork is gone (G1)."""
    FORK_NOTICE = 16
    """Parent to child: the numbers of a fork, sent when the message that carried it may not have arrived."""
    CREATION_NOTICE = 17
    """Creator to owner: the value will not be created, if its call has not arrived by now."""


FORK_NUMBERS: Final = 7
"""Integers that describe one fork: rref id (2), fork id (2), owner (worker id, incarnation), number in the channel."""
_MAX: Final = (1 << 63) - 1


class Fork(NamedTuple):
    """A fork of a reference on its way from `parent`; `seq` is its number in the channel.

    In a call of a worker to itself it is no new fork, but one more handle, with the fork id of the user (at the owner:
    the rref id).
    """

    rref_id: RRefId
    fork_id: ForkId
    owner: Peer
    parent: Peer
    seq: int

    def to_numbers(self) -> tuple[int, ...]:
        """The integers that travel; the parent is the sender of the message."""
        return (*self.rref_id, *self.fork_id, *self.owner, self.seq)


def forks_from_numbers(numbers: Sequence[object], parent: Peer) -> list[Fork]:
    """The forks that `parent` put in a message. Raises `FrameError` if these are not whole descriptions of forks."""
    if len(numbers) % FORK_NUMBERS:
        raise FrameError(f"{len(numbers)} numbers do not describe forks of {FORK_NUMBERS} each")
    forks = []
    for start in range(0, len(numbers), FORK_NUMBERS):
        values: list[int] = []
        for number in numbers[start : start + FORK_NUMBERS]:
            if type(number) is not int or not 0 <= number <= _MAX:
                raise FrameError(f"{number!r} is not a number of a fork")
            values.append(number)
        a, b, c, d, worker, incarnation, seq = values
        forks.append(Fork(GloballyUniqueId(a, b), GloballyUniqueId(c, d), Peer(worker, incarnation), parent, seq))
    return forks


@dataclass(slots=True)
class Message:
    """What a control message says (its number and receiver apart). `owner` only in a fork notice."""

    kind: Control
    rref_id: RRefId
    fork_id: ForkId
    owner: Peer | None = None


# ------------------------------------------------------------------------------------------------ effects


@dataclass(slots=True)
class SendControl:
    """Send a control message. If it cannot be sent, forget it: it comes again by itself until it is acknowledged."""

    to: Peer
    seq: int
    floor: int
    message: Message


@dataclass(slots=True)
class SendAck:
    """Acknowledge number `seq` of the channel from `to`. May be joined with others to the same peer, or be lost."""

    to: Peer
    seq: int


@dataclass(slots=True)
class ConfirmUser:
    """The owner knows this fork: whoever waits for that may go on."""

    rref_id: RRefId
    fork_id: ForkId


@dataclass(slots=True)
class LoseUser:
    """The owner of this fork's value is gone: fetches fail, and so do later ones."""

    rref_id: RRefId
    fork_id: ForkId
    why: str


@dataclass(slots=True)
class FailValue:
    """This value will never come to be: answer waiting and later fetches with an `RRefLost`."""

    rref_id: RRefId
    why: str


@dataclass(slots=True)
class ReleaseValue:
    """Nobody refers to this value any more: drop it, and whatever waits for it."""

    rref_id: RRefId


Effect = SendControl | SendAck | ConfirmUser | LoseUser | FailValue | ReleaseValue
Effects = list[Effect]


@dataclass(frozen=True, slots=True)
class Leak:
    """A reference that was still held when all had to go. `fork_id` is `None` at the owner."""

    rref_id: RRefId
    fork_id: ForkId | None
    state: str
    handles: int
    owner: Peer


@dataclass(frozen=True, slots=True)
class RRefStatistics:
    """Counts of one worker's table; the first six have the names and meaning of torch's debug information."""

    num_owner_rrefs: int
    """Owner records."""
    num_pending_owners: int
    """Of those, the ones that were asked for before they were created."""
    num_pending_users: int
    """Users that the owner has not accepted yet."""
    num_pending_children: int
    """Forks of users whose children the owner may not know yet."""
    num_forks: int
    """Users of the values here, on other workers."""
    num_pending_futures: int
    """Control messages and forks in flight that were not acknowledged."""
    num_users: int
    """Users here, in any state."""
    num_handles: int
    """Local handles of users and owner records."""
    num_shared_owners: int = 0
    """Owner records that somebody else has a fork of."""


# ------------------------------------------------------------------------------------------------- tables


class Row(NamedTuple):
    """The answer to an event: the state after it, and the effects."""

    next: str
    effects: tuple[str, ...] = ()


Table = Mapping[str, Mapping[str, Row]]


def _stay(state: str, events: Iterable[str]) -> dict[str, Row]:
    return {event: Row(state) for event in events}


# States of a user's record.
CREATING: Final = "creating"
PENDING: Final = "pending"
CONFIRMED: Final = "confirmed"
DOUBTFUL: Final = "doubtful"
FAILED: Final = "failed"
LOST: Final = "lost"
DELETED: Final = "deleted"

USER_STATES: Final = {
    CREATING: "made here by `remote()`; the owner's reply is awaited",
    PENDING: "received from another user; the owner's acceptance is awaited",
    CONFIRMED: "known to the owner",
    DOUBTFUL: "its creation failed here; the owner is being told",
    FAILED: "its creation failed; the owner knows the fork",
    LOST: "the owner is gone, or never heard of it: nobody needs to be told of anything",
    DELETED: "no record",
}

# Events of a user's record.
ACCEPTANCE: Final = "acceptance"
CREATION_FAILURE: Final = "creation failure"
CREATION_RETRACTION: Final = "creation retraction"
OWNER_LOSS: Final = "owner loss"
FORK: Final = "fork"
CHILD_SETTLEMENT: Final = "child settlement"
HANDLE: Final = "handle"
HANDLE_DROP: Final = "handle drop"
DISUSE: Final = "disuse"

USER_EVENTS: Final = {
    ACCEPTANCE: "the owner replied to the call that created the value, or acknowledged the fork request or the notice",
    CREATION_FAILURE: "the call that creates the value failed, and may have arrived",
    CREATION_RETRACTION: "the call that creates the value never left, and nothing was forked from the user",
    OWNER_LOSS: "the owner was declared lost",
    FORK: "the reference was put in a message to another worker",
    CHILD_SETTLEMENT: "a child is known to the owner, was dropped, was never sent, or its worker was lost a while ago",
    HANDLE: "one more local handle",
    HANDLE_DROP: "one local handle less",
    DISUSE: "no local handle and no unsettled child is left (looked for after every other event)",
}

_LIVE: Final = (FORK, CHILD_SETTLEMENT, HANDLE, HANDLE_DROP)
_DYING: Final = (CHILD_SETTLEMENT, HANDLE, HANDLE_DROP)

USER_TABLE: Final[Table] = {
    CREATING: {
        **_stay(CREATING, _LIVE),
        ACCEPTANCE: Row(CONFIRMED, ("ConfirmUser",)),
        CREATION_FAILURE: Row(DOUBTFUL, ("SendControl CREATION_NOTICE",)),
        CREATION_RETRACTION: Row(LOST),
        OWNER_LOSS: Row(LOST, ("LoseUser",)),
        DISUSE: Row(CREATING),
    },
    PENDING: {
        **_stay(PENDING, _LIVE),
        ACCEPTANCE: Row(CONFIRMED, ("ConfirmUser", "SendControl CHILD_ACCEPT")),
        OWNER_LOSS: Row(LOST, ("LoseUser",)),
        DISUSE: Row(PENDING),
    },
    CONFIRMED: {
        **_stay(CONFIRMED, (*_LIVE, ACCEPTANCE, CREATION_FAILURE)),
        OWNER_LOSS: Row(LOST, ("LoseUser",)),
        DISUSE: Row(DELETED, ("SendControl USER_DELETE",)),
    },
    DOUBTFUL: {
        **_stay(DOUBTFUL, (*_DYING, CREATION_FAILURE)),
        ACCEPTANCE: Row(FAILED),
        OWNER_LOSS: Row(LOST),
        DISUSE: Row(DOUBTFUL),
    },
    FAILED: {
        **_stay(FAILED, (*_DYING, ACCEPTANCE, CREATION_FAILURE)),
        OWNER_LOSS: Row(LOST),
        DISUSE: Row(DELETED, ("SendControl USER_DELETE",)),
    },
    LOST: {
        **_stay(LOST, (*_DYING, ACCEPTANCE, CREATION_FAILURE, OWNER_LOSS)),
        DISUSE: Row(DELETED),
    },
}

# States of an owner's record (CREATING and FAILED are shared words).
UNKNOWN: Final = "unknown"
AWAITED: Final = "awaited"
READY: Final = "ready"
RELEASED: Final = "released"

OWNER_STATES: Final = {
    UNKNOWN: "no record: never heard of it, or heard and forgot before it was created",
    AWAITED: "asked for before the call that creates it has arrived",
    CREATING: "the function that makes the value runs; this alone keeps the record (torch's self as fork)",
    READY: "the value, or the exception that its function raised, is here",
    FAILED: "the value will never be here",
    RELEASED: "no record: released, or its creator was lost before it was created",
}

# Events of an owner's record (FORK, HANDLE, HANDLE_DROP and DISUSE are shared words).
CREATION: Final = "creation"
LOCAL_CREATION: Final = "local creation"
LOCAL_VALUE: Final = "local value"
COMPLETION: Final = "completion"
FAILURE_NOTICE: Final = "failure notice"
CREATOR_LOSS: Final = "creator loss"
FORK_REQUEST: Final = "fork request"
ARRIVAL: Final = "arrival"
FETCH: Final = "fetch"
USER_DELETION: Final = "user deletion"

OWNER_EVENTS: Final = {
    CREATION: "the call that creates the value arrived; its sender holds a fork",
    LOCAL_CREATION: "`remote()` to this worker itself",
    LOCAL_VALUE: "`RRef(value)`",
    COMPLETION: "the function has returned or raised",
    FAILURE_NOTICE: "the creator gave up before its call arrived; it still holds a fork",
    CREATOR_LOSS: "the creator was declared lost",
    FORK_REQUEST: "a user tells that it holds a fork",
    ARRIVAL: "a user passed the reference to its owner: one more local handle",
    FETCH: "a user asks for the value: one more local handle until it is answered",
    FORK: "the reference was put in a message to another worker, which holds a fork from now on",
    USER_DELETION: "a fork is gone: deleted, never sent, or its worker was lost a while ago",
    HANDLE: "one more local handle",
    HANDLE_DROP: "one local handle less",
    DISUSE: "no local handle and no fork is left (looked for after every other event)",
}

FAIL_VALUE: Final = "FailValue"
_KEPT: Final = (FORK_REQUEST, FETCH, FORK, USER_DELETION, HANDLE, HANDLE_DROP, CREATOR_LOSS)


def _keep(state: str) -> dict[str, Row]:
    return {**_stay(state, _KEPT), ARRIVAL: Row(state, ("SendControl CHILD_ACCEPT",))}


OWNER_TABLE: Final[Table] = {
    UNKNOWN: {
        CREATION: Row(CREATING),
        LOCAL_CREATION: Row(CREATING),
        LOCAL_VALUE: Row(READY),
        FAILURE_NOTICE: Row(FAILED, (FAIL_VALUE,)),
        FORK_REQUEST: Row(AWAITED),
        ARRIVAL: Row(AWAITED, ("SendControl CHILD_ACCEPT",)),
        FETCH: Row(AWAITED),
        USER_DELETION: Row(UNKNOWN),
    },
    AWAITED: {
        **_keep(AWAITED),
        CREATION: Row(CREATING),
        FAILURE_NOTICE: Row(FAILED, (FAIL_VALUE,)),
        CREATOR_LOSS: Row(FAILED, (FAIL_VALUE,)),
        DISUSE: Row(UNKNOWN, ("ReleaseValue",)),
    },
    CREATING: {
        **_keep(CREATING),
        COMPLETION: Row(READY),
        DISUSE: Row(CREATING),
    },
    READY: {
        **_keep(READY),
        DISUSE: Row(RELEASED, ("ReleaseValue",)),
    },
    FAILED: {
        **_keep(FAILED),
        DISUSE: Row(RELEASED, ("ReleaseValue",)),
    },
    RELEASED: {
        FORK_REQUEST: Row(FAILED, (FAIL_VALUE,)),
        ARRIVAL: Row(FAILED, (FAIL_VALUE, "SendControl CHILD_ACCEPT")),
        FETCH: Row(FAILED, (FAIL_VALUE,)),
        USER_DELETION: Row(RELEASED),
    },
}


def step(table: Table, role: str, state: str, event: str) -> Row:
    """The row for an event in a state. Raises `InvalidTransition` if there is none."""
    row = table.get(state, {}).get(event)
    if row is None:
        raise InvalidTransition(event, role, state)
    return row
