"""The values that this worker owns: who refers to each.

It owns their records (the values live elsewhere). One rule: a record is released only when it has no fork, no local
handle, and no function that still makes its value.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from zrpc.errors import InvalidTransition
from zrpc.ids import LIFE_SHIFT, ForkId, LocalIds, RRefId
from zrpc.protocol.outbox import Channels, Peer
from zrpc.protocol.rref_model import (
    ARRIVAL,
    COMPLETION,
    CREATION,
    CREATOR_LOSS,
    DISUSE,
    FAIL_VALUE,
    FAILURE_NOTICE,
    FETCH,
    FORK,
    FORK_REQUEST,
    HANDLE,
    HANDLE_DROP,
    LOCAL_CREATION,
    LOCAL_VALUE,
    OWNER_TABLE,
    RELEASED,
    UNKNOWN,
    USER_DELETION,
    Control,
    Effects,
    FailValue,
    Fork,
    Leak,
    Message,
    ReleaseValue,
    Row,
    step,
)

REMEMBERED: Final = 4096
"""Released ids that are remembered, so that a user who is late (workers between it and the owner died) is told that the
value is gone at once. Without memory of the id it waits until its fetch's deadline."""


class OwnerRecord:
    """One value here. `forks` maps each fork to its holder and, if it was sent from here, its number in the channel."""

    __slots__ = ("forks", "handles", "rref_id", "state")

    def __init__(self, rref_id: RRefId, state: str) -> None:
        self.rref_id = rref_id
        self.state = state
        self.handles = 0
        self.forks: dict[ForkId, tuple[Peer, int]] = {}

    def __repr__(self) -> str:
        return f"<Owner {self.rref_id} {self.state} handles={self.handles} forks={len(self.forks)}>"


class Owners:
    """All values that this worker owns."""

    def __init__(self, me: Peer, ids: LocalIds, channels: Channels[Message]) -> None:
        self._me = me
        self._ids = ids
        self._channels = channels
        self.records: dict[RRefId, OwnerRecord] = {}
        self._released: OrderedDict[RRefId, None] = OrderedDict()
        self._lost_lives: dict[int, int] = {}

    def state(self, rref_id: RRefId) -> str:
        """The state of a value, also of one that has no record."""
        record = self.records.get(rref_id)
        if record is not None:
            return record.state
        gone = (
            rref_id.created_on == self._me.worker_id
            or rref_id in self._released
            or rref_id.local_id >> LIFE_SHIFT <= self._lost_lives.get(rref_id.created_on, -1)
        )
        return RELEASED if gone else UNKNOWN

    def create_local(self, is_ready: bool) -> RRefId:
        """A value made here, by `RRef(value)` (`is_ready`) or by `remote()` to this worker. Born with one handle."""
        rref_id = self._ids()
        row = step(OWNER_TABLE, "owner", UNKNOWN, LOCAL_VALUE if is_ready else LOCAL_CREATION)
        record = self.records[rref_id] = OwnerRecord(rref_id, row.next)
        record.handles = 1
        return rref_id

    def check_creation(self, rref_id: RRefId) -> None:
        """Raise `InvalidTransition` if a call cannot create this value now."""
        step(OWNER_TABLE, "owner", self.state(rref_id), CREATION)

    def create(self, creator: Peer, rref_id: RRefId, fork_id: ForkId) -> None:
        """The call that creates a value is here."""
        out: Effects = []
        self._enter(rref_id, CREATION, out).forks[fork_id] = (creator, 0)

    def fail_creation(self, creator: Peer, rref_id: RRefId, fork_id: ForkId, out: Effects) -> None:
        """The creator gave up before its call came."""
        self._enter(rref_id, FAILURE_NOTICE, out).forks[fork_id] = (creator, 0)

    def complete(self, rref_id: RRefId, out: Effects) -> None:
        """The function that makes the value has ended."""
        record = self._get(rref_id, COMPLETION)
        record.state = step(OWNER_TABLE, "owner", record.state, COMPLETION).next
        self.settle_disuse(record, out)

    def request_fork(self, user: Peer, rref_id: RRefId, fork_id: ForkId, out: Effects) -> None:
        """A user tells of itself."""
        self._enter(rref_id, FORK_REQUEST, out).forks[fork_id] = (user, 0)

    def arrive(self, rref_id: RRefId, out: Effects) -> str:
        """The reference came home in a message: one more handle. Returns the state."""
        record = self._enter(rref_id, ARRIVAL, out)
        record.handles += 1
        return record.state

    def fetch(self, rref_id: RRefId, out: Effects) -> str:
        """Somebody asks for the value: one more handle, until it has been answered. Returns the state."""
        record = self._enter(rref_id, FETCH, out)
        record.handles += 1
        return record.state

    def add_handle(self, rref_id: RRefId) -> None:
        """One more local handle."""
        record = self._get(rref_id, HANDLE)
        step(OWNER_TABLE, "owner", record.state, HANDLE)
        record.handles += 1

    def drop_handle(self, rref_id: RRefId, out: Effects) -> None:
        """One local handle less. Raises `InvalidTransition` if there was none."""
        record = self._get(rref_id, HANDLE_DROP)
        step(OWNER_TABLE, "owner", record.state, HANDLE_DROP)
        if record.handles == 0:
            raise InvalidTransition(f"{HANDLE_DROP} of {rref_id}, which has none", "owner", record.state)
        record.handles -= 1
        self.settle_disuse(record, out)

    def fork(self, rref_id: RRefId, to: Peer, expires: float | None) -> Fork:
        """A fork for a message to another worker; it counts from now on (early registration)."""
        record = self._get(rref_id, FORK)
        step(OWNER_TABLE, "owner", record.state, FORK)
        child = self._ids()
        seq = self._channels.ride(to, Message(Control.FORK_NOTICE, rref_id, child, self._me), expires)
        record.forks[child] = (to, seq)
        return Fork(rref_id, child, self._me, self._me, seq)

    def delete_fork(self, holder: Peer, rref_id: RRefId, fork_id: ForkId, out: Effects) -> None:
        """A fork is gone. One that is not known, or not the holder's, changes nothing."""
        record = self.records.get(rref_id)
        if record is None:
            return
        entry = record.forks.get(fork_id)
        if entry is None or entry[0] != holder:
            return
        step(OWNER_TABLE, "owner", record.state, USER_DELETION)
        del record.forks[fork_id]
        if entry[1]:
            self._channels.settle(holder, entry[1])
        self.settle_disuse(record, out)

    def delete_forks_of(self, peer: Peer, out: Effects) -> None:
        """A lost worker's forks are gone."""
        held = [
            (rref_id, fork_id)
            for rref_id, record in self.records.items()
            for fork_id, (holder, _) in record.forks.items()
            if holder == peer
        ]
        for rref_id, fork_id in held:
            self.delete_fork(peer, rref_id, fork_id, out)

    def lose_creator(self, worker_id: int, life: int, out: Effects) -> None:
        """Values that this life of a worker was to create, or an earlier one, will not be."""
        self._lost_lives[worker_id] = max(life, self._lost_lives.get(worker_id, -1))
        for record in self.records.values():
            rref_id = record.rref_id
            if rref_id.created_on == worker_id and rref_id.local_id >> LIFE_SHIFT <= life:
                row = step(OWNER_TABLE, "owner", record.state, CREATOR_LOSS)
                self._apply(record, row, out)

    def settle_disuse(self, record: OwnerRecord, out: Effects) -> None:
        """Release the record if nothing needs it and its state allows it."""
        if record.handles or record.forks:
            return
        row = step(OWNER_TABLE, "owner", record.state, DISUSE)
        if row.effects:
            del self.records[record.rref_id]
            out.append(ReleaseValue(record.rref_id))
            if row.next == RELEASED:
                self._remember(record.rref_id)

    def drop_all(self, out: Effects) -> list[Leak]:
        """Take all handles away; returns what had some."""
        leaks = []
        for record in list(self.records.values()):
            if record.handles:
                leaks.append(Leak(record.rref_id, None, record.state, record.handles, self._me))
                record.handles = 0
                self.settle_disuse(record, out)
        return leaks

    def _get(self, rref_id: RRefId, event: str) -> OwnerRecord:
        record = self.records.get(rref_id)
        if record is None:
            raise InvalidTransition(f"{event} of {rref_id}", "owner", self.state(rref_id))
        return record

    def _enter(self, rref_id: RRefId, event: str, out: Effects) -> OwnerRecord:
        """The record after an event that makes one if there is none."""
        record = self.records.get(rref_id)
        state = self.state(rref_id) if record is None else record.state
        row = step(OWNER_TABLE, "owner", state, event)
        if record is None:
            record = self.records[rref_id] = OwnerRecord(rref_id, row.next)
        self._apply(record, row, out)
        return record

    def _apply(self, record: OwnerRecord, row: Row, out: Effects) -> None:
        record.state = row.next
        if FAIL_VALUE in row.effects:
            out.append(FailValue(record.rref_id, self._why_failed(record.rref_id)))

    def _why_failed(self, rref_id: RRefId) -> str:
        if rref_id.local_id >> LIFE_SHIFT <= self._lost_lives.get(rref_id.created_on, -1):
            return f"worker {rref_id.created_on} was lost before its call created the value"
        if rref_id.created_on == self._me.worker_id or rref_id in self._released:
            return "it was released before its owner knew of this user: the worker that passed it on was lost"
        return f"the call of worker {rref_id.created_on} that creates it failed"

    def _remember(self, rref_id: RRefId) -> None:
        self._released[rref_id] = None
        if len(self._released) > REMEMBERED:
            self._released.popitem(last=False)
