"""The reference table: every row of its transition tables, then the protocol's stories message by message."""

from __future__ import annotations

import pytest

from zrpc.errors import FrameError, InvalidTransition
from zrpc.ids import LIFE_SHIFT, ForkId, LocalIds, RRefId
from zrpc.protocol.rref_model import OWNER_EVENTS, OWNER_STATES, OWNER_TABLE, USER_EVENTS, USER_STATES, USER_TABLE
from zrpc.protocol.rrefs import (
    ConfirmUser,
    Control,
    FailValue,
    Fork,
    LoseUser,
    Message,
    Peer,
    ReleaseValue,
    RRefStatistics,
    RRefTable,
    SendAck,
    SendControl,
    forks_from_numbers,
)
from zrpc.wire.envelope import Kind

ME, OWNER, PARENT, OTHER = Peer(0, 10), Peer(1, 11), Peer(2, 12), Peer(3, 13)
RREF, FORK_OF_CREATOR, FORK_OF_PARENT, LATER = RRefId(1, 5), ForkId(1, 6), ForkId(2, 7), ForkId(1, 8)


def make_table(grace: float = 10.0) -> RRefTable:
    return RRefTable(ME.worker_id, LocalIds(ME.worker_id), ME.incarnation, grace=grace)


def names(effects) -> tuple[str, ...]:
    """What a row says of some effects (acknowledgements are the channel's, not the table's)."""
    words = []
    for effect in effects:
        if isinstance(effect, SendControl):
            words.append(f"SendControl {effect.message.kind.name}")
        elif not isinstance(effect, SendAck):
            words.append(type(effect).__name__)
    return tuple(words)


# ---------------------------------------------------------------------------------------- user rows


class UserCase:
    """A table with one user in a state, and the events that can befall it."""

    def __init__(self, state: str, *, with_child: bool = False) -> None:
        self.table = make_table()
        self.child = None
        self.request = None
        if state == "pending":
            fork = Fork(RREF, FORK_OF_PARENT, OWNER, PARENT, 1)
            _, (self.request,) = self.table.fork_received(fork, 0.0)
        else:
            fork = self.table.create_user(OWNER, 60.0)
        self.rref_id, self.fork_id = fork.rref_id, fork.fork_id
        if with_child:
            self.child = self.table.fork(self.rref_id, self.fork_id, OTHER, 60.0)
        self.enter(state)
        assert self.table.user_state(self.fork_id) == state

    def enter(self, state: str) -> None:
        if state == "confirmed":
            self.table.user_confirmed(self.fork_id, 0.0)
        elif state in ("doubtful", "failed"):
            (self.request,) = self.table.creation_failed(self.fork_id, 0.0)
            if state == "failed":
                self.table.ack_received(OWNER, self.request.seq, 0.0)
        elif state == "lost":
            self.table.peer_lost(OWNER, 0, "killed", 0.0)
        elif state == "deleted":
            self.enter("confirmed")
            self.table.handle_dropped(self.rref_id, self.fork_id, 0.0)

    def acceptance(self):
        if self.request is not None:
            return self.table.ack_received(OWNER, self.request.seq, 1.0)
        return self.table.user_confirmed(self.fork_id, 1.0)

    def creation_failure(self):
        return self.table.creation_failed(self.fork_id, 1.0)

    def creation_retraction(self):
        return self.table.creation_failed(self.fork_id, 1.0, sent=False)

    def owner_loss(self):
        return self.table.peer_lost(OWNER, 0, "killed", 1.0)

    def fork(self):
        self.table.fork(self.rref_id, self.fork_id, OTHER, 60.0)
        return []

    def child_settlement(self):
        message = Message(Control.CHILD_ACCEPT, self.rref_id, self.child.fork_id)
        return self.table.control_received(OTHER, 1, 1, message, 1.0)

    def handle(self):
        self.table.handle_added(self.rref_id, self.fork_id)
        return []

    def handle_drop(self):
        self.table.handle_added(self.rref_id, self.fork_id)
        return self.table.handle_dropped(self.rref_id, self.fork_id, 1.0)

    def disuse(self):
        return self.table.handle_dropped(self.rref_id, self.fork_id, 1.0)

    def fire(self, event: str):
        return getattr(self, event.replace(" ", "_"))()


@pytest.mark.parametrize(("state", "event"), [(state, event) for state, rows in USER_TABLE.items() for event in rows])
def test_user_row(state, event):
    row = USER_TABLE[state][event]
    # A lost owner takes the children along: the table says so in one event, seen from outside as the loss.
    inside = state == "lost" and event == "child settlement"
    case = UserCase("confirmed" if inside else state, with_child=event == "child settlement")
    effects = case.owner_loss() if inside else case.fire(event)
    assert case.table.user_state(case.fork_id) == row.next
    assert names(effects) == (("LoseUser",) if inside else row.effects)
    assert case.table.statistics().num_pending_children == (event == "fork")


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("pending", "creation failure"),
        ("doubtful", "fork"),
        ("failed", "fork"),
        ("lost", "fork"),
        ("deleted", "fork"),
        ("deleted", "handle"),
        ("deleted", "handle drop"),
        ("deleted", "disuse"),
    ],
)
def test_user_event_without_a_row_changes_nothing(state, event):
    assert event not in USER_TABLE.get(state, {})
    case = UserCase(state)
    before = repr(case.table)
    with pytest.raises(InvalidTransition) as caught:
        case.fire(event)
    assert caught.value.role == "user"
    assert caught.value.state == state
    assert repr(case.table) == before


def test_user_tables_use_declared_words_only():
    for state, rows in USER_TABLE.items():
        assert state in USER_STATES
        for event, row in rows.items():
            assert event in USER_EVENTS
            assert row.next in USER_STATES
    assert set(USER_STATES) - set(USER_TABLE) == {"deleted"}


# --------------------------------------------------------------------------------------- owner rows


class OwnerCase:
    """A table with one value in a state, held by exactly one fork, and the events that can befall it."""

    def __init__(self, state: str) -> None:
        self.table = make_table()
        self.seq = 0
        self.holder = (PARENT, FORK_OF_PARENT)
        if state == "awaited":
            self.control(PARENT, Control.FORK_REQUEST, FORK_OF_PARENT)
        elif state != "unknown":
            self.holder = (OWNER, FORK_OF_CREATOR)  # here `OWNER` is the creator
            if state == "failed":
                self.control(OWNER, Control.CREATION_NOTICE, FORK_OF_CREATOR)
            else:
                self.creation()
            if state in ("ready", "released"):
                self.completion()
            if state == "released":
                self.disuse()
        assert self.table.owner_state(RREF) == state

    def control(self, sender, kind, fork_id):
        self.seq += 1
        return self.table.control_received(sender, self.seq, 1, Message(kind, RREF, fork_id), 1.0)

    def creation(self):
        self.seq += 1
        assert self.table.remote_call_received(OWNER, RREF, FORK_OF_CREATOR, self.seq)
        return []

    def completion(self):
        return self.table.creation_finished(RREF)

    def failure_notice(self):
        return self.control(OWNER, Control.CREATION_NOTICE, FORK_OF_CREATOR)

    def creator_loss(self):
        return self.table.peer_lost(OWNER, 0, "killed", 1.0)

    def fork_request(self):
        return self.control(OTHER, Control.FORK_REQUEST, LATER)

    def arrival(self):
        state, effects = self.table.fork_received(Fork(RREF, LATER, ME, OTHER, 1), 1.0)
        assert state == self.table.owner_state(RREF)
        return effects

    def fetch(self):
        state, effects = self.table.fetch_received(RREF)
        assert state == self.table.owner_state(RREF)
        return effects

    def fork(self):
        self.table.fork(RREF, None, OTHER, 60.0)
        return []

    def user_deletion(self):
        return self.control(OTHER, Control.USER_DELETE, LATER)

    def handle(self):
        self.table.handle_added(RREF, None)
        return []

    def handle_drop(self):
        self.table.handle_added(RREF, None)
        return self.table.handle_dropped(RREF, None, 1.0)

    def disuse(self):
        return self.control(self.holder[0], Control.USER_DELETE, self.holder[1])

    def fire(self, event: str):
        return getattr(self, event.replace(" ", "_"))()


LOCAL = ("local creation", "local value")


@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state, rows in OWNER_TABLE.items() for event in rows if event not in LOCAL],
)
def test_owner_row(state, event):
    row = OWNER_TABLE[state][event]
    case = OwnerCase(state)
    if event == "user deletion":
        case.control(OTHER, Control.USER_DELETE, LATER)
        if state not in ("unknown", "released"):
            case.fork_request()
    effects = case.fire(event)
    assert case.table.owner_state(RREF) == row.next
    assert names(effects) == row.effects


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (state, event)
        for state in OWNER_STATES
        for event in ("creation", "completion", "failure notice", "fork", "handle", "handle drop")
        if event not in OWNER_TABLE[state]
    ],
)
def test_owner_event_without_a_row_changes_nothing(state, event):
    case = OwnerCase(state)
    before = repr(case.table)
    with pytest.raises(InvalidTransition) as caught:
        case.fire(event)
    assert caught.value.role == "owner"
    assert caught.value.state == state
    assert repr(case.table) == before


def test_owner_tables_use_declared_words_only():
    assert set(OWNER_TABLE) == set(OWNER_STATES)
    for rows in OWNER_TABLE.values():
        for event, row in rows.items():
            assert event in OWNER_EVENTS
            assert row.next in OWNER_STATES


@pytest.mark.parametrize(("is_ready", "event"), [(True, "local value"), (False, "local creation")])
def test_local_values(is_ready, event):
    table = make_table()
    rref_id = table.create_owner(is_ready=is_ready)
    assert table.owner_state(rref_id) == OWNER_TABLE["unknown"][event].next
    if not is_ready:
        # the running function keeps the record: torch's self as fork
        assert table.handle_dropped(rref_id, None, 0.0) == []
        assert table.creation_finished(rref_id) == [ReleaseValue(rref_id)]
    else:
        assert table.handle_dropped(rref_id, None, 0.0) == [ReleaseValue(rref_id)]
    assert table.owner_state(rref_id) == "released"


@pytest.mark.parametrize("state", ["creating", "confirmed", "lost"])
def test_a_handle_cannot_be_dropped_twice(state):
    case = UserCase(state, with_child=state == "confirmed")
    case.disuse()
    before = repr(case.table)
    with pytest.raises(InvalidTransition):
        case.disuse()
    assert repr(case.table) == before


def test_an_owners_handle_cannot_be_dropped_twice():
    case = OwnerCase("ready")
    with pytest.raises(InvalidTransition):
        case.table.handle_dropped(RREF, None, 0.0)


# ------------------------------------------------------------------------------------------- stories


class Trio:
    """Three tables and a network that delivers at once, in order; what is sent is written down."""

    def __init__(self, grace: float = 10.0) -> None:
        self.peers = (Peer(0, 10), Peer(1, 11), Peer(2, 12))
        self.a, self.b, self.c = (
            RRefTable(peer.worker_id, LocalIds(peer.worker_id), peer.incarnation, grace=grace) for peer in self.peers
        )
        self.by_peer = {table.me: table for table in (self.a, self.b, self.c)}
        self.log: list[str] = []

    def run(self, table: RRefTable, effects, now: float = 0.0) -> None:
        for effect in effects:
            if isinstance(effect, SendControl):
                self.log.append(f"{table.me.worker_id}->{effect.to.worker_id} {effect.message.kind.name}")
                receiver = self.by_peer[effect.to]
                self.run(
                    receiver, receiver.control_received(table.me, effect.seq, effect.floor, effect.message, now), now
                )
            elif isinstance(effect, SendAck):
                self.run(self.by_peer[effect.to], self.by_peer[effect.to].ack_received(table.me, effect.seq, now), now)
            else:
                self.log.append(f"{table.me.worker_id} {type(effect).__name__}")

    def receive(self, table: RRefTable, fork: Fork) -> str:
        state, effects = table.fork_received(fork, 0.0)
        self.run(table, effects)
        return state

    def remote(self) -> Fork:
        """`a` makes a value on `b`, and has the reply."""
        fork = self.a.create_user(self.b.me, 60.0)
        assert self.b.remote_call_received(self.a.me, fork.rref_id, fork.fork_id, fork.seq)
        self.run(self.b, self.b.creation_finished(fork.rref_id))
        self.run(self.a, self.a.user_confirmed(fork.fork_id, 0.0))
        return fork

    def drop(self, table: RRefTable, fork: Fork) -> None:
        self.run(table, table.handle_dropped(fork.rref_id, None if fork.owner == table.me else fork.fork_id, 0.0))

    def take_log(self) -> list[str]:
        log, self.log = self.log, []
        return log

    def is_empty(self) -> bool:
        return all(table.is_drained() for table in self.by_peer.values())


def test_remote_and_drop():
    trio = Trio()
    fork = trio.remote()
    assert trio.take_log() == ["0 ConfirmUser"]
    trio.drop(trio.a, fork)
    assert trio.take_log() == ["0->1 USER_DELETE", "1 ReleaseValue"]
    assert trio.is_empty()


def test_user_to_third_party():
    trio = Trio()
    fork = trio.remote()
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    trio.drop(trio.a, fork)
    assert trio.take_log() == ["0 ConfirmUser"]  # G2: the parent waits for its child
    assert trio.receive(trio.c, child) == "pending"
    assert trio.take_log() == ["2->1 FORK_REQUEST", "2 ConfirmUser", "2->0 CHILD_ACCEPT", "0->1 USER_DELETE"]
    trio.drop(trio.c, child)
    assert trio.take_log() == ["2->1 USER_DELETE", "1 ReleaseValue"]
    assert trio.is_empty()


def test_user_to_owner():
    trio = Trio()
    fork = trio.remote()
    home = trio.a.fork(fork.rref_id, fork.fork_id, trio.b.me, 60.0)
    trio.drop(trio.a, fork)
    trio.take_log()
    assert trio.receive(trio.b, home) == "ready"
    assert trio.take_log() == ["1->0 CHILD_ACCEPT", "0->1 USER_DELETE"]
    trio.drop(trio.b, home)
    assert trio.take_log() == ["1 ReleaseValue"]
    assert trio.is_empty()


def test_the_reply_to_a_call_settles_the_forks_that_the_owner_got():
    trio = Trio()
    fork = trio.remote()
    home = trio.a.fork(fork.rref_id, fork.fork_id, trio.b.me, 60.0)
    trio.drop(trio.a, fork)
    trio.b.fork_received(home, 0.0)  # what it sends is late
    (delete,) = trio.a.fork_delivered(home, trio.b.me, 0.0)
    assert names([delete]) == ("SendControl USER_DELETE",)


def test_owner_to_user():
    trio = Trio()
    rref_id = trio.b.create_owner(is_ready=True)
    fork = trio.b.fork(rref_id, None, trio.c.me, 60.0)
    trio.run(trio.b, trio.b.handle_dropped(rref_id, None, 0.0))
    assert trio.receive(trio.c, fork) == "confirmed"
    assert trio.take_log() == []
    trio.drop(trio.c, fork)
    assert trio.take_log() == ["2->1 USER_DELETE", "1 ReleaseValue"]
    assert trio.is_empty()


@pytest.mark.parametrize("is_owner", [True, False])
@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_call_to_oneself_carries_a_handle(is_owner, is_cancelled):
    trio = Trio()
    if is_owner:
        rref_id, fork_id = trio.a.create_owner(is_ready=True), None
    else:
        rref_id, fork_id = trio.remote()[:2]
    fork = trio.a.fork(rref_id, fork_id, trio.a.me, 60.0)
    trio.run(trio.a, trio.a.handle_dropped(rref_id, fork_id, 0.0))
    assert trio.a.statistics().num_handles == 1
    if is_cancelled:
        trio.run(trio.a, trio.a.fork_cancelled(fork, trio.a.me, 0.0))
    else:
        assert trio.receive(trio.a, fork) == ("ready" if is_owner else "confirmed")
        assert trio.receive(trio.a, fork) == "deleted"
        assert trio.a.fork_refused(fork, 0.0) == []
        assert trio.a.fork_cancelled(fork, trio.a.me, 0.0) == []
        assert trio.a.fork_delivered(fork, trio.a.me, 0.0) == []
        trio.drop(trio.a, fork)
    assert trio.is_empty()


def test_a_user_passed_on_before_it_is_confirmed():
    trio = Trio()
    fork = trio.a.create_user(trio.b.me, 60.0)
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    trio.drop(trio.a, fork)
    assert trio.receive(trio.c, child) == "pending"
    assert trio.b.owner_state(fork.rref_id) == "awaited"
    assert trio.take_log() == ["2->1 FORK_REQUEST", "2 ConfirmUser", "2->0 CHILD_ACCEPT"]
    assert trio.a.user_state(fork.fork_id) == "creating"  # known to nobody yet: it stays
    assert trio.b.remote_call_received(trio.a.me, fork.rref_id, fork.fork_id, fork.seq)
    trio.run(trio.a, trio.a.user_confirmed(fork.fork_id, 0.0))
    assert trio.take_log() == ["0 ConfirmUser", "0->1 USER_DELETE"]
    trio.run(trio.b, trio.b.creation_finished(fork.rref_id))
    trio.drop(trio.c, child)
    assert trio.take_log() == ["2->1 USER_DELETE", "1 ReleaseValue"]
    assert trio.is_empty()


def test_the_creator_dies_before_its_call_arrives():
    trio = Trio()
    fork = trio.a.create_user(trio.b.me, 60.0)
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    trio.receive(trio.c, child)
    (failure,) = trio.b.peer_lost(trio.a.me, 0, "killed", 0.0)
    assert failure == FailValue(fork.rref_id, "worker 0 was lost before its call created the value")
    assert not trio.b.remote_call_received(trio.a.me, fork.rref_id, fork.fork_id, fork.seq)
    state, effects = trio.b.fetch_received(fork.rref_id)
    assert (state, effects) == ("failed", [])


def test_a_request_for_a_value_of_a_dead_creator_fails_at_once_but_not_for_its_next_life():
    table = make_table()
    table.peer_lost(OWNER, 0, "killed", 0.0)
    effects = table.control_received(PARENT, 1, 1, Message(Control.FORK_REQUEST, RREF, FORK_OF_PARENT), 0.0)
    assert names(effects) == ("FailValue",)
    next_life = RRefId(OWNER.worker_id, 1 << LIFE_SHIFT)
    effects = table.control_received(PARENT, 2, 1, Message(Control.FORK_REQUEST, next_life, LATER), 0.0)
    assert names(effects) == ()
    assert table.owner_state(next_life) == "awaited"


def test_a_late_copy_of_a_fork_request_raises_nothing_from_the_dead():
    table = make_table()
    request = Message(Control.FORK_REQUEST, RREF, FORK_OF_PARENT)
    table.remote_call_received(OWNER, RREF, FORK_OF_CREATOR, 1)
    table.creation_finished(RREF)
    table.control_received(PARENT, 1, 1, request, 0.0)
    table.control_received(OWNER, 2, 2, Message(Control.USER_DELETE, RREF, FORK_OF_CREATOR), 0.0)
    effects = table.control_received(PARENT, 2, 2, Message(Control.USER_DELETE, RREF, FORK_OF_PARENT), 0.0)
    assert effects == [ReleaseValue(RREF), SendAck(PARENT, 2)]
    assert table.control_received(PARENT, 1, 1, request, 0.0) == [SendAck(PARENT, 1)]
    assert not table.remote_call_received(OWNER, RREF, FORK_OF_CREATOR, 1)
    assert table.is_drained()


def test_a_call_that_was_lost_is_made_good_when_its_time_is_over():
    trio = Trio()
    fork = trio.a.create_user(trio.b.me, 60.0)
    assert trio.a.next_deadline() == 60.0
    trio.run(trio.a, trio.a.timer_fired(60.0), 60.0)
    assert trio.take_log() == ["0->1 CREATION_NOTICE", "1 FailValue", "0 ConfirmUser"]
    assert not trio.b.remote_call_received(trio.a.me, fork.rref_id, fork.fork_id, fork.seq)  # too late
    trio.drop(trio.a, fork)
    assert trio.is_empty()


@pytest.mark.parametrize("parent", ["owner", "user"])
def test_a_fork_whose_message_was_lost_is_made_good_when_its_time_is_over(parent):
    trio = Trio()
    fork = trio.remote()
    source, fork_id = (trio.a, fork.fork_id) if parent == "user" else (trio.b, None)
    child = source.fork(fork.rref_id, fork_id, trio.c.me, 60.0)
    trio.drop(trio.a, fork)
    trio.run(source, source.timer_fired(60.0), 60.0)
    assert trio.is_empty()
    assert trio.receive(trio.c, child) == "deleted"  # the message was only late


def test_a_fork_that_is_not_decoded_is_accepted_and_deleted():
    trio = Trio()
    fork = trio.remote()
    for to in (trio.b, trio.c):
        child = trio.a.fork(fork.rref_id, fork.fork_id, to.me, 60.0)
        trio.run(to, to.fork_refused(child, 0.0))
        assert trio.a.statistics().num_pending_children == 0
    trio.drop(trio.a, fork)
    assert trio.is_empty()


def test_a_message_that_never_left_takes_its_forks_back():
    trio = Trio()
    fork = trio.remote()
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    trio.drop(trio.a, fork)
    trio.run(trio.a, trio.a.fork_cancelled(child, trio.c.me, 0.0))
    assert trio.is_empty()


def test_a_creation_that_never_left_is_nobodys_business():
    trio = Trio()
    fork = trio.a.create_user(trio.b.me, 60.0)
    trio.run(trio.a, trio.a.creation_failed(fork.fork_id, 0.0, sent=False))
    trio.drop(trio.a, fork)
    assert trio.take_log() == []
    assert trio.is_empty()


def test_a_lost_workers_forks_are_released_after_the_grace():
    trio = Trio(grace=10.0)
    fork = trio.remote()
    assert trio.b.peer_lost(trio.a.me, 0, "killed", 1.0) == []
    assert trio.b.next_deadline() == 11.0
    assert trio.b.timer_fired(10.9) == []
    assert trio.b.timer_fired(11.0) == [ReleaseValue(fork.rref_id)]
    assert trio.b.next_deadline() is None


def test_a_child_makes_itself_known_within_the_grace_of_its_dead_parent():
    trio = Trio(grace=10.0)
    fork = trio.remote()
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    _, effects = trio.c.fork_received(child, 0.0)
    trio.b.peer_lost(trio.a.me, 0, "killed", 0.0)
    trio.c.peer_lost(trio.a.me, 0, "killed", 0.0)
    trio.run(trio.c, effects, 2.0)
    assert trio.b.timer_fired(10.0) == []
    trio.drop(trio.c, child)
    assert trio.b.owner_state(fork.rref_id) == "released"


def test_a_user_that_is_later_than_the_grace_is_told():
    trio = Trio(grace=0.0)
    fork = trio.remote()
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    _, effects = trio.c.fork_received(child, 0.0)
    assert trio.b.peer_lost(trio.a.me, 0, "killed", 0.0) == [ReleaseValue(fork.rref_id)]
    trio.b.peer_lost(Peer(9, 9), 0, "killed", 0.0)
    result = trio.b.control_received(trio.c.me, effects[0].seq, effects[0].floor, effects[0].message, 0.0)
    assert names(result) == ("FailValue",)


def test_the_owner_dies():
    trio = Trio()
    fork = trio.remote()
    child = trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    assert trio.a.peer_lost(trio.b.me, 0, "killed", 0.0) == [LoseUser(fork.rref_id, fork.fork_id, "killed")]
    trio.c.peer_lost(trio.b.me, 0, "killed", 0.0)
    assert trio.receive(trio.c, child) == "lost"
    trio.drop(trio.c, child)
    trio.drop(trio.a, fork)
    assert trio.a.is_drained()
    assert trio.c.is_drained()


def test_a_restarted_owner_is_another_peer():
    table = make_table()
    earlier_me = Peer(ME.worker_id, ME.incarnation - 1)
    assert table.fork_received(Fork(RREF, LATER, earlier_me, OTHER, 1), 0.0)[0] == "lost"


def test_what_a_lost_worker_says_is_void():
    table = make_table()
    table.peer_lost(OTHER, 0, "killed", 0.0)
    message = Message(Control.FORK_REQUEST, RREF, FORK_OF_PARENT)
    assert table.control_received(OTHER, 1, 1, message, 0.0) == []
    assert table.fork_received(Fork(RREF, LATER, OWNER, OTHER, 1), 0.0) == ("deleted", [])
    assert table.ack_received(OTHER, 1, 0.0) == []
    assert table.user_state(table.create_user(OTHER, 60.0).fork_id) == "lost"


def test_only_the_holder_deletes_a_fork():
    case = OwnerCase("ready")
    assert names(case.control(OTHER, Control.USER_DELETE, FORK_OF_CREATOR)) == ()
    assert case.table.owner_state(RREF) == "ready"


def test_shutdown_tells_what_was_held_and_releases_it():
    trio = Trio()
    fork = trio.remote()
    own = trio.a.create_owner(is_ready=True)
    leaks, effects = trio.a.drop_all(0.0)
    assert [(leak.rref_id, leak.fork_id, leak.state, leak.handles) for leak in leaks] == [
        (fork.rref_id, fork.fork_id, "confirmed", 1),
        (own, None, "ready", 1),
    ]
    trio.run(trio.a, effects)
    assert trio.a.handle_dropped(fork.rref_id, fork.fork_id, 0.0) == []
    assert trio.is_empty()


def test_what_others_hold():
    trio = Trio()
    fork = trio.remote()
    assert trio.b.held_elsewhere() == [(fork.rref_id, fork.fork_id, trio.a.me)]
    own = trio.b.create_owner(is_ready=True)
    to_c = trio.b.fork(own, None, trio.c.me)
    assert trio.b.held_elsewhere()[1:] == [(own, to_c.fork_id, trio.c.me)]
    trio.b.peer_lost(trio.c.me, 0, "killed", 0.0)
    assert trio.b.held_elsewhere() == [(fork.rref_id, fork.fork_id, trio.a.me)]
    assert trio.a.held_elsewhere() == []


def test_statistics_and_repr():
    trio = Trio()
    fork = trio.remote()
    trio.a.fork(fork.rref_id, fork.fork_id, trio.c.me, 60.0)
    trio.a.create_user(trio.c.me)
    assert trio.a.statistics() == RRefStatistics(
        num_owner_rrefs=0,
        num_pending_owners=0,
        num_pending_users=1,
        num_pending_children=1,
        num_forks=0,
        num_pending_futures=1,
        num_users=2,
        num_handles=2,
    )
    assert trio.b.statistics().num_forks == 1
    assert repr(trio.b) == (
        "<RRefTable 1/11 owners=[<Owner GloballyUniqueId(created_on=0, local_id=0) ready handles=0 forks=1>] "
        "users=[] unacknowledged=0>"
    )
    assert ConfirmUser(RREF, LATER) != LoseUser(RREF, LATER, "")


# ------------------------------------------------------------------------------------------ numbers


def test_forks_survive_the_wire():
    forks = [Fork(RREF, LATER, OWNER, PARENT, 3), Fork(RREF, FORK_OF_PARENT, ME, PARENT, 0)]
    numbers = [number for fork in forks for number in fork.to_numbers()]
    assert forks_from_numbers(numbers, PARENT) == forks


@pytest.mark.parametrize(
    "numbers", [[1], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1 << 63], [1, 2, 3, 4, 5, 6, True]]
)
def test_malformed_numbers_are_refused(numbers):
    with pytest.raises(FrameError):
        forks_from_numbers(numbers, PARENT)


def test_control_messages_are_kinds_of_the_envelope():
    for control in Control:
        assert Kind(control).name == f"RREF_{control.name}"


def test_a_fork_notice_without_an_owner_is_refused():
    table = make_table()
    with pytest.raises(FrameError):
        table.control_received(OTHER, 1, 1, Message(Control.FORK_NOTICE, RREF, LATER), 0.0)
    assert table.control_received(OTHER, 1, 1, Message(Control.FORK_NOTICE, RREF, LATER, OWNER), 0.0)
