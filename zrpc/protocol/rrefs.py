"""torch's remote reference protocol, without I/O: one `RRefTable` per worker.

It owns who refers to what; values live elsewhere, by their `RRefId`. One rule: events in, effects out. A method is an
event; it returns the effects that the caller performs, in order, after it has let go of the table (which knows no lock
and no thread: one call at a time). An event that its state has no row for raises `InvalidTransition` and changes
nothing.

Guarantees, beside torch's G1 (the owner is told of every user's deletion) and G2 (a parent is not deleted before its
children are known to the owner):

- every control message is sent until it is acknowledged or its peer is lost, and is processed once (`outbox`);
- a message that carries references may be lost without a trace: at the time at which it is of no use any more, its
  forks' numbers are sent by themselves, and settle what its arrival would have;
- a lost worker's forks are released `grace` seconds later: children that it forked have that long to make themselves
  known.

`docs/rref-protocol.md` draws the messages and the tables.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from zrpc.errors import FrameError
from zrpc.ids import ForkId, LocalIds, RRefId
from zrpc.protocol.outbox import Channels, Peer, Sending
from zrpc.protocol.rref_model import (
    AWAITED,
    CREATING,
    DELETED,
    PENDING,
    ConfirmUser,
    Control,
    Effect,
    Effects,
    FailValue,
    Fork,
    Leak,
    LoseUser,
    Message,
    ReleaseValue,
    RRefStatistics,
    SendAck,
    SendControl,
    forks_from_numbers,
)
from zrpc.protocol.rref_owner import Owners
from zrpc.protocol.rref_user import Users

__all__ = [
    "ConfirmUser",
    "Control",
    "Effect",
    "Effects",
    "FailValue",
    "Fork",
    "Leak",
    "LoseUser",
    "Message",
    "Peer",
    "RRefStatistics",
    "RRefTable",
    "ReleaseValue",
    "SendAck",
    "SendControl",
    "forks_from_numbers",
]

LOSS_GRACE: Final = 10.0
"""Seconds that a lost worker's forks are kept: twice the slowest retry, for its children's fork requests to arrive."""


class RRefTable:
    """The references of one worker.

    A handle is the hold of one local object (or of one message being decoded, or of one fetch being answered). Handles
    of a user are counted by its fork id, handles of a value owned here by its rref id and `fork_id=None`. What creates
    or receives a reference gives one handle; each must be dropped once.
    """

    def __init__(self, worker_id: int, ids: LocalIds, incarnation: int = 0, *, grace: float = LOSS_GRACE) -> None:
        self.me = Peer(worker_id, incarnation)
        self._grace = grace
        self._channels: Channels[Message] = Channels()
        self._users = Users(self.me, ids, self._channels)
        self._owners = Owners(self.me, ids, self._channels)
        self._lapses: deque[tuple[float, Peer]] = deque()
        self._closing = False

    # ------------------------------------------------------------------------------------------ creation

    def create_user(self, owner: Peer, expires: float | None = None) -> Fork:
        """A user for a value that a REMOTE_CALL to `owner` will create; born with one handle.

        The call carries the fork's rref id, fork id and `seq`. `expires` is the call's deadline: if the owner has not
        replied then, it is told to take the creation for failed should the call not have arrived.
        """
        return self._users.create(owner, expires)

    def user_confirmed(self, fork_id: ForkId, now: float) -> Effects:
        """The reply (a result or an exception of the function) to the call that creates the value came."""
        out: Effects = []
        self._users.confirm(fork_id, now, out)
        return out

    def creation_failed(self, fork_id: ForkId, now: float, *, sent: bool = True) -> Effects:
        """The call that creates the value failed: refused, timed out, or (`sent=False`) never left this worker."""
        out: Effects = []
        self._users.fail_creation(fork_id, sent, now, out)
        return out

    def create_owner(self, *, is_ready: bool) -> RRefId:
        """A value of this worker: `RRef(value)` (ready) or `remote()` to itself. Born with one handle."""
        return self._owners.create_local(is_ready)

    def remote_call_received(self, sender: Peer, rref_id: RRefId, fork_id: ForkId, seq: int) -> bool:
        """A call that creates a value came. False: do not run it (a repetition, too late, or its sender is lost)."""
        if self._channels.is_lost(sender) or not self._channels.is_new(sender, seq):
            return False
        self._owners.check_creation(rref_id)
        self._channels.accept(sender, seq)
        self._owners.create(sender, rref_id, fork_id)
        return True

    def creation_finished(self, rref_id: RRefId) -> Effects:
        """The function that makes a value here has returned or raised; what it gave was stored first."""
        out: Effects = []
        self._owners.complete(rref_id, out)
        return out

    # ------------------------------------------------------------------------------------------- handles

    def handle_added(self, rref_id: RRefId, fork_id: ForkId | None) -> None:
        """One more local object holds the reference."""
        if fork_id is None:
            self._owners.add_handle(rref_id)
        else:
            self._users.add_handle(fork_id)

    def handle_dropped(self, rref_id: RRefId, fork_id: ForkId | None, now: float) -> Effects:
        """A local object that held the reference is gone."""
        out: Effects = []
        if self._closing and not self._has_handle(rref_id, fork_id):
            return out  # `drop_all` has taken it
        if fork_id is None:
            self._owners.drop_handle(rref_id, out)
        else:
            self._users.drop_handle(fork_id, now, out)
        return out

    def _has_handle(self, rref_id: RRefId, fork_id: ForkId | None) -> bool:
        if fork_id is None:
            owner = self._owners.records.get(rref_id)
            return owner is not None and owner.handles > 0
        user = self._users.records.get(fork_id)
        return user is not None and user.handles > 0

    def user_state(self, fork_id: ForkId) -> str:
        """The state of a user here (`deleted` if there is no record)."""
        record = self._users.records.get(fork_id)
        return DELETED if record is None else record.state

    def owner_state(self, rref_id: RRefId) -> str:
        """The state of a value owned here (`unknown` or `released` if there is no record)."""
        return self._owners.state(rref_id)

    def fetch_received(self, rref_id: RRefId) -> tuple[str, Effects]:
        """A user asks for a value of this worker. Returns its state; once it is answered, drop the handle this added.

        `awaited` and `creating` mean: answer later, after `creation_finished` or `FailValue`.
        """
        out: Effects = []
        return self._owners.fetch(rref_id, out), out

    # --------------------------------------------------------------------------------------------- forks

    def fork(self, rref_id: RRefId, fork_id: ForkId | None, to: Peer, expires: float | None = None) -> Fork:
        """The reference is put in a message to `to`: returns the fork whose numbers travel with it.

        `expires` is the time from which nobody reads the message (its call's deadline). To this worker itself the fork
        is the same one with one more handle.
        """
        if to == self.me:
            return self._fork_to_self(rref_id, fork_id)
        if fork_id is None:
            fork = self._owners.fork(rref_id, to, expires)
        else:
            fork = self._users.fork(fork_id, to, expires)
        if self._channels.is_lost(to):
            self._channels.settle(to, fork.seq)
            lapse = self._lapses[-1][0] if self._lapses else -math.inf
            self._lapses.append((lapse, to))
        return fork

    def fork_cancelled(self, fork: Fork, to: Peer, now: float) -> Effects:
        """The message that the fork was put in never left this worker."""
        if to == self.me:
            return self._drop_self_fork(fork, now)
        out: Effects = []
        self._channels.settle(to, fork.seq)
        if fork.owner == self.me:
            self._owners.delete_fork(to, fork.rref_id, fork.fork_id, out)
        else:
            self._users.settle_child(fork.fork_id, now, out)
        return out

    def fork_delivered(self, fork: Fork, to: Peer, now: float) -> Effects:
        """`to` answered the message (with a result or an error), after its table was told of the fork.

        Saying this is optional: it spares a notice when the message's time is over.
        """
        out: Effects = []
        if to == self.me:
            return out
        if to == fork.owner:
            self._users.settle_child(fork.fork_id, now, out)
        self._channels.settle(to, fork.seq)
        return out

    def fork_received(self, fork: Fork, now: float) -> tuple[str, Effects]:
        """A fork came in a message: returns the state of the reference it made here, born with one handle.

        The state is of the owner table if `fork.owner` is this worker, else of the user table. `deleted`: the fork came
        too late or from a lost worker, and made nothing: do not run the call. A `pending` user gets a `ConfirmUser` or
        a `LoseUser`.
        """
        out: Effects = []
        if fork.parent == self.me:
            return self._take_self_fork(fork), out
        if not self._is_new_fork(fork):
            return DELETED, out
        if fork.owner == self.me:
            state = self._owners.arrive(fork.rref_id, out)
            self._users.release_parent(fork, now, out)
        else:
            state = self._users.arrive(fork, now, out)
        return state, out

    def fork_refused(self, fork: Fork, now: float) -> Effects:
        """A fork came in a message that is not decoded (refused, too late, malformed): nobody will hold it here."""
        if fork.parent == self.me:
            return self._drop_self_fork(fork, now)
        out: Effects = []
        if self._is_new_fork(fork):
            self._users.refuse(fork, now, out)
        return out

    # --------------------------------------------------------------------------------- the control channel

    def control_received(self, sender: Peer, seq: int, floor: int, message: Message, now: float) -> Effects:
        """A control message came; its acknowledgement is among the effects."""
        out: Effects = []
        if self._channels.is_lost(sender):
            return out
        if message.kind == Control.FORK_NOTICE and message.owner is None:
            raise FrameError(f"a fork notice from {sender} names no owner")
        if self._channels.is_new(sender, seq):
            self._process(sender, seq, message, now, out)
        self._channels.accept(sender, seq, floor)
        out.append(SendAck(sender, seq))
        return out

    def ack_received(self, sender: Peer, seq: int, now: float) -> Effects:
        """The peer has processed number `seq`."""
        out: Effects = []
        message = self._channels.settle(sender, seq)
        if message is None:
            return out
        kind = message.kind
        if kind == Control.FORK_REQUEST or kind == Control.CREATION_NOTICE:
            record = self._users.records.get(message.fork_id)
            if record is not None:
                self._users.accept(record, now, out)
        return out

    def _process(self, sender: Peer, seq: int, message: Message, now: float, out: Effects) -> None:
        kind, rref_id, fork_id = message.kind, message.rref_id, message.fork_id
        if kind == Control.USER_DELETE:
            self._owners.delete_fork(sender, rref_id, fork_id, out)
        elif kind == Control.FORK_REQUEST:
            self._owners.request_fork(sender, rref_id, fork_id, out)
        elif kind == Control.CHILD_ACCEPT:
            self._users.settle_child(fork_id, now, out)
        elif kind == Control.CREATION_NOTICE:
            self._owners.fail_creation(sender, rref_id, fork_id, out)
        elif message.owner is not None:
            self._users.refuse(Fork(rref_id, fork_id, message.owner, sender, seq), now, out)

    def _is_new_fork(self, fork: Fork) -> bool:
        return not self._channels.is_lost(fork.parent) and self._channels.accept(fork.parent, fork.seq)

    def _fork_to_self(self, rref_id: RRefId, fork_id: ForkId | None) -> Fork:
        self.handle_added(rref_id, fork_id)
        owner = self.me if fork_id is None else self._users.get(fork_id, "fork").owner
        child = rref_id if fork_id is None else fork_id
        # The number tells whether the handle was taken over; nothing is ever sent under it.
        seq = self._channels.ride(self.me, Message(Control.FORK_NOTICE, rref_id, child, owner), None)
        return Fork(rref_id, child, owner, self.me, seq)

    def _take_self_fork(self, fork: Fork) -> str:
        if self._channels.settle(self.me, fork.seq) is None:
            return DELETED
        return self.owner_state(fork.rref_id) if fork.owner == self.me else self.user_state(fork.fork_id)

    def _drop_self_fork(self, fork: Fork, now: float) -> Effects:
        if self._channels.settle(self.me, fork.seq) is None:
            return []  # somebody has taken it
        return self.handle_dropped(fork.rref_id, None if fork.owner == self.me else fork.fork_id, now)

    # --------------------------------------------------------------------------------- losses, time, the end

    def peer_lost(self, peer: Peer, life: int, why: str, now: float) -> Effects:
        """This life of a worker is over (see `ids` for `life`). Its messages are void from now on."""
        out: Effects = []
        self._channels.lose(peer)
        self._users.lose_owner(peer, why, now, out)
        self._owners.lose_creator(peer.worker_id, life, out)
        self._lapses.append((now + self._grace, peer))
        self._take_lapses(now, out)
        return out

    def creator_lost(self, worker_id: int, life: int) -> Effects:
        """A life of a worker that nobody has announced here is taken to be over: what it has not created will not be."""
        out: Effects = []
        self._owners.lose_creator(worker_id, life, out)
        return out

    def timer_fired(self, now: float) -> Effects:
        """Time has come to `next_deadline`: what is to be sent again, and what lost workers held."""
        out: Effects = []
        self._take_lapses(now, out)
        for sending in self._channels.take_due(now):
            out.append(_effect(sending))
        return out

    def next_deadline(self) -> float | None:
        """When to call `timer_fired`. It may turn out that nothing was to be done."""
        due = min(self._channels.next_due(), self._lapses[0][0] if self._lapses else math.inf)
        return None if due == math.inf else due

    def _take_lapses(self, now: float, out: Effects) -> None:
        while self._lapses and self._lapses[0][0] <= now:
            _, peer = self._lapses.popleft()
            self._owners.delete_forks_of(peer, out)
            self._users.settle_children_of(peer, now, out)

    def drop_all(self, now: float) -> tuple[Sequence[Leak], Effects]:
        """At shutdown: take away every handle. Returns what was still held, and the effects.

        Go on feeding the table until `is_drained` (or a deadline): deletions are on their way. Handles that are dropped
        from now on are ignored.
        """
        out: Effects = []
        leaks = self._users.drop_all(now, out) + self._owners.drop_all(out)
        self._closing = True
        return leaks, out

    def held_elsewhere(self) -> list[tuple[RRefId, ForkId, Peer]]:
        """The forks of values here that living workers hold: (value, fork, holder)."""
        return [
            (record.rref_id, fork_id, holder)
            for record in self._owners.records.values()
            for fork_id, (holder, _) in record.forks.items()
            if not self._channels.is_lost(holder)
        ]

    def is_drained(self) -> bool:
        """Whether this worker neither holds nor owns a reference, and has nothing to tell anybody."""
        return not (self._users.records or self._owners.records or len(self._channels))

    def statistics(self) -> RRefStatistics:
        """Counts, as they are now."""
        users, owners = self._users.records.values(), self._owners.records.values()
        return RRefStatistics(
            num_owner_rrefs=len(owners),
            num_pending_owners=sum(record.state == AWAITED for record in owners),
            num_pending_users=sum(record.state in (CREATING, PENDING) for record in users),
            num_pending_children=len(self._users.children),
            num_forks=sum(len(record.forks) for record in owners),
            num_pending_futures=self._channels.count_due(),
            num_users=len(users),
            num_handles=sum(record.handles for record in users) + sum(record.handles for record in owners),
            num_shared_owners=sum(bool(record.forks) for record in owners),
        )

    def __repr__(self) -> str:
        users, owners = list(self._users.records.values()), list(self._owners.records.values())
        return f"<RRefTable {self.me} owners={owners} users={users} unacknowledged={len(self._channels)}>"


def _effect(sending: Sending[Message]) -> SendControl:
    return SendControl(sending.to, sending.seq, sending.floor, sending.payload)
