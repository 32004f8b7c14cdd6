"""The users of remote values that live on this worker.

It owns their records. One rule (G2): a user is deleted, and the owner told so, only when the owner knows it and every
child that was forked from it.
"""

from __future__ import annotations

from zrpc.errors import InvalidTransition
from zrpc.ids import ForkId, LocalIds
from zrpc.protocol.outbox import Channels, Peer
from zrpc.protocol.rref_model import (
    ACCEPTANCE,
    CHILD_SETTLEMENT,
    CONFIRMED,
    CREATING,
    CREATION_FAILURE,
    CREATION_RETRACTION,
    DELETED,
    DISUSE,
    FORK,
    HANDLE,
    HANDLE_DROP,
    LOST,
    OWNER_LOSS,
    PENDING,
    USER_TABLE,
    ConfirmUser,
    Control,
    Effects,
    Fork,
    Leak,
    LoseUser,
    Message,
    SendControl,
    step,
)


class UserRecord:
    """One user. `seq` is the number of its creation; `children` counts the unsettled; `forked`: it ever had one."""

    __slots__ = ("children", "fork_id", "forked", "handles", "owner", "parent", "rref_id", "seq", "state")

    def __init__(self, fork: Fork, state: str, handles: int = 1) -> None:
        self.rref_id, self.fork_id, self.owner, self.parent, self.seq = fork
        self.state = state
        self.handles = handles
        self.children = 0
        self.forked = False

    def __repr__(self) -> str:
        return f"<User {self.fork_id} {self.state} handles={self.handles} children={self.children}>"


class Users:
    """All users on this worker, and the children that are on their way from them."""

    def __init__(self, me: Peer, ids: LocalIds, channels: Channels[Message]) -> None:
        self._me = me
        self._ids = ids
        self._channels = channels
        self.records: dict[ForkId, UserRecord] = {}
        self.children: dict[ForkId, tuple[UserRecord, Peer, int]] = {}

    def get(self, fork_id: ForkId, event: str) -> UserRecord:
        """The record of a fork. Raises `InvalidTransition` if there is none."""
        record = self.records.get(fork_id)
        if record is None:
            raise InvalidTransition(f"{event} of {fork_id}", "user", DELETED)
        return record

    def create(self, owner: Peer, expires: float | None) -> Fork:
        """A user for a value that `owner` is asked to create."""
        rref_id = self._ids()
        fork_id = self._ids()
        seq = self._channels.ride(owner, Message(Control.CREATION_NOTICE, rref_id, fork_id), expires)
        fork = Fork(rref_id, fork_id, owner, self._me, seq)
        state = CREATING
        if self._channels.is_lost(owner):
            self._channels.settle(owner, seq)
            state = LOST
        self.records[fork_id] = UserRecord(fork, state)
        return fork

    def arrive(self, fork: Fork, now: float, out: Effects) -> str:
        """A fork came from its parent; returns the state of the new user."""
        if self._channels.is_lost(fork.owner) or fork.owner.worker_id == self._me.worker_id:
            state = LOST  # (an earlier life of this worker was the owner)
        elif fork.parent == fork.owner:
            state = CONFIRMED
        else:
            state = PENDING
            self._send(fork.owner, Message(Control.FORK_REQUEST, fork.rref_id, fork.fork_id), now, out)
        self.records[fork.fork_id] = UserRecord(fork, state)
        return state

    def refuse(self, fork: Fork, now: float, out: Effects) -> None:
        """A fork came that nobody here will ever hold: tell whoever keeps something alive for it."""
        if fork.parent == fork.owner:
            self._send(fork.owner, Message(Control.USER_DELETE, fork.rref_id, fork.fork_id), now, out)
        else:
            self.release_parent(fork, now, out)

    def release_parent(self, fork: Fork, now: float, out: Effects) -> None:
        """A fork needs its parent no more: the owner knows it, is here, or need never know."""
        self._send(fork.parent, Message(Control.CHILD_ACCEPT, fork.rref_id, fork.fork_id), now, out)

    def accept(self, record: UserRecord, now: float, out: Effects) -> None:
        """The owner knows this user."""
        row = step(USER_TABLE, "user", record.state, ACCEPTANCE)
        was_pending = record.state == PENDING
        record.state = row.next
        if row.effects:
            out.append(ConfirmUser(record.rref_id, record.fork_id))
            if was_pending:
                self._send(record.parent, Message(Control.CHILD_ACCEPT, record.rref_id, record.fork_id), now, out)
        self.settle_disuse(record, now, out)

    def confirm(self, fork_id: ForkId, now: float, out: Effects) -> None:
        """The reply to the call that creates the value came. Late ones, of users deleted since, say nothing new."""
        record = self.records.get(fork_id)
        if record is not None:
            self._channels.settle(record.owner, record.seq)
            self.accept(record, now, out)

    def fail_creation(self, fork_id: ForkId, sent: bool, now: float, out: Effects) -> None:
        """The call that creates the value failed. If it never left (`sent` false), the owner need not be told, but for
        the children that may be with it or on their way to it.
        """
        record = self.records.get(fork_id)
        if record is None:
            return
        can_retract = not sent and not record.forked and record.state == CREATING
        retracted = can_retract and self._channels.retract(record.owner, record.seq)
        row = step(USER_TABLE, "user", record.state, CREATION_RETRACTION if retracted else CREATION_FAILURE)
        record.state = row.next
        if row.effects:
            message = Message(Control.CREATION_NOTICE, record.rref_id, fork_id)
            sending = self._channels.hasten(record.owner, record.seq, message, now)
            if sending is not None:
                out.append(SendControl(sending.to, sending.seq, sending.floor, message))
        self.settle_disuse(record, now, out)

    def add_handle(self, fork_id: ForkId) -> None:
        """One more local handle."""
        record = self.get(fork_id, HANDLE)
        step(USER_TABLE, "user", record.state, HANDLE)
        record.handles += 1

    def drop_handle(self, fork_id: ForkId, now: float, out: Effects) -> None:
        """One local handle less. Raises `InvalidTransition` if there was none."""
        record = self.get(fork_id, HANDLE_DROP)
        step(USER_TABLE, "user", record.state, HANDLE_DROP)
        if record.handles == 0:
            raise InvalidTransition(f"{HANDLE_DROP} of {fork_id}, which has none", "user", record.state)
        record.handles -= 1
        self.settle_disuse(record, now, out)

    def fork(self, fork_id: ForkId, to: Peer, expires: float | None) -> Fork:
        """A child of a user, for a message to another worker."""
        record = self.get(fork_id, FORK)
        step(USER_TABLE, "user", record.state, FORK)
        child = self._ids()
        seq = self._channels.ride(to, Message(Control.FORK_NOTICE, record.rref_id, child, record.owner), expires)
        self.children[child] = (record, to, seq)
        record.children += 1
        record.forked = True
        return Fork(record.rref_id, child, record.owner, self._me, seq)

    def settle_child(self, child: ForkId, now: float, out: Effects) -> None:
        """A child needs its parent no more. One that is not known was settled before."""
        entry = self.children.pop(child, None)
        if entry is None:
            return
        record, to, seq = entry
        self._channels.settle(to, seq)
        step(USER_TABLE, "user", record.state, CHILD_SETTLEMENT)
        record.children -= 1
        self.settle_disuse(record, now, out)

    def settle_children_of(self, peer: Peer, now: float, out: Effects) -> None:
        """Children that were sent to a lost worker need their parents no more."""
        for child in [child for child, (_, to, _) in self.children.items() if to == peer]:
            self.settle_child(child, now, out)

    def lose_owner(self, owner: Peer, why: str, now: float, out: Effects) -> None:
        """The owner of some users is gone."""
        lost = [record for record in self.records.values() if record.owner == owner]
        for record in lost:
            row = step(USER_TABLE, "user", record.state, OWNER_LOSS)
            record.state = row.next
            if row.effects:
                out.append(LoseUser(record.rref_id, record.fork_id, why))
        for child in [child for child, (record, _, _) in self.children.items() if record.owner == owner]:
            self.settle_child(child, now, out)
        for record in lost:
            self.settle_disuse(record, now, out)

    def settle_disuse(self, record: UserRecord, now: float, out: Effects) -> None:
        """Delete the user if nothing here needs it and its state allows it."""
        if record.handles or record.children or record.fork_id not in self.records:
            return
        row = step(USER_TABLE, "user", record.state, DISUSE)
        if row.next == DELETED:
            del self.records[record.fork_id]
            if row.effects:
                self._send(record.owner, Message(Control.USER_DELETE, record.rref_id, record.fork_id), now, out)

    def drop_all(self, now: float, out: Effects) -> list[Leak]:
        """Take all handles away; returns who had some."""
        leaks = []
        for record in list(self.records.values()):
            if record.handles:
                leaks.append(Leak(record.rref_id, record.fork_id, record.state, record.handles, record.owner))
                record.handles = 0
                self.settle_disuse(record, now, out)
        return leaks

    def _send(self, to: Peer, message: Message, now: float, out: Effects) -> None:
        if self._channels.is_lost(to):
            return
        sending = self._channels.send(to, message, now)
        out.append(SendControl(to, sending.seq, sending.floor, message))
