"""The references of a simulated process: what `zrpc.runtime.references` is to the real machine, and the user's handles.

One rule: a handle is counted here when the program has it, by the truth and not by the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zrpc.clock import earliest
from zrpc.ids import LIFE_SHIFT, ForkId, RRefId
from zrpc.protocol.rrefs import (
    Control,
    Effects,
    FailValue,
    Fork,
    LoseUser,
    Peer,
    ReleaseValue,
    RRefTable,
    SendAck,
    SendControl,
)
from zrpc.protocol.strangers import Strangers
from zrpc.testing.simulation.truth import BrokenPromise

if TYPE_CHECKING:
    from zrpc.testing.simulation.worker import Call, Process

Key = tuple[RRefId, ForkId | None]


class Referring:
    """One process's references."""

    def __init__(self, process: Process, table: RRefTable) -> None:
        self.process = process
        self.table = table
        self._waiting: dict[RRefId, list[tuple[Process, Call]]] = {}
        self.strangers = Strangers(process.peer)

    # ---------------------------------------------------------------------------------------------- handles

    def usable(self) -> list[Key]:
        """Handles of references that can be passed on."""
        process = self.process
        return [key for key, count in process.handles.items() if count and key[1] not in process.dead_users]

    def let_go(self, key: Key) -> None:
        """The program drops a handle."""
        self.process.handles[key] -= 1
        if not self.process.handles[key]:
            del self.process.handles[key]
        self.perform(self.table.handle_dropped(*key, self.process.network.now))

    def hold(self, key: Key) -> None:
        """The program has one more handle."""
        self.table.handle_added(*key)
        self.process.handles[key] += 1

    def fork_some(self, to: Peer, deadline: float | None) -> list[Fork]:
        """Put one or two references in a message."""
        keys = self.usable()
        if not keys:
            return []
        chance = self.process.network.random
        return [self.table.fork(*key, to, deadline) for key in chance.choices(keys, k=chance.randint(1, 2))]

    def take(self, forks: list[Fork]) -> bool:
        """Read the references in a message; False when one of them came too late."""
        process, now = self.process, self.process.network.now
        for index, fork in enumerate(forks):
            self.strangers.meet(fork.parent, now)
            state, effects = self.table.fork_received(fork, now)
            process.network.note(f"{process.peer} takes {fork}: {state}")
            if state == "awaited":
                self._meet_creator(fork.rref_id)
            if state != "deleted":
                key = (fork.rref_id, None if fork.owner == process.peer else fork.fork_id)
                process.handles[key] += 1
                if key[1] is not None and state == "lost":
                    process.dead_users.add(fork.fork_id)
            self.perform(effects)
            if state == "deleted":
                self.refuse(forks[index:])
                return False
        return True

    def refuse(self, forks: list[Fork]) -> None:
        """A message with references is not read."""
        for fork in forks:
            self.process.network.note(f"{self.process.peer} refuses {fork}")
            self.perform(self.table.fork_refused(fork, self.process.network.now))

    def delivered(self, forks: list[Fork], to: Peer) -> None:
        """A message with references has been answered."""
        for fork in forks:
            self.perform(self.table.fork_delivered(fork, to, self.process.network.now))

    def drop_all(self) -> None:
        """At the end: let go of everything."""
        _, effects = self.table.drop_all(self.process.network.now)
        self.process.handles.clear()
        self.perform(effects)

    # ----------------------------------------------------------------------------------------------- values

    def create_local(self) -> None:
        """`RRef(value)`."""
        process = self.process
        rref_id = self.table.create_owner(is_ready=True)
        process.handles[rref_id, None] += 1
        process.values.add(rref_id)
        process.created.add(rref_id)

    def remote(self, to: Process, timeout: float) -> None:
        """`remote()`: have `to` make a value."""
        process, now = self.process, self.process.network.now
        fork = self.table.create_user(to.peer, now + timeout)
        process.handles[fork.rref_id, fork.fork_id] += 1
        if self.table.user_state(fork.fork_id) == "lost":
            self._fail_creation(fork, sent=False)
            return

        def on_end(how: str) -> None:
            if how == "result":
                self.perform(self.table.user_confirmed(fork.fork_id, process.network.now))
            elif how != "caller died" and self.table.user_state(fork.fork_id) == "creating":
                self._fail_creation(fork, sent=True)

        process.begin(to, timeout, to.on_remote_call, fork, on_end=on_end)

    def _fail_creation(self, fork: Fork, sent: bool) -> None:
        self.process.dead_users.add(fork.fork_id)
        self.perform(self.table.creation_failed(fork.fork_id, self.process.network.now, sent=sent))

    def on_remote_call(self, sender: Process, call: Call, fork: Fork) -> None:
        """A call that makes a value here came."""
        process = self.process
        self.strangers.meet(sender.peer, process.network.now)
        if not self.table.remote_call_received(sender.peer, fork.rref_id, fork.fork_id, fork.seq):
            return
        process.answer(sender, call, "result", [])
        process.truth.run_function(call.uid, process)
        if fork.rref_id in process.created:
            raise BrokenPromise(f"{fork.rref_id} is created twice")
        process.values.add(fork.rref_id)
        process.created.add(fork.rref_id)
        process.running.append(fork.rref_id)
        process.later(process.network.random.random(), self._end_creation, fork.rref_id)

    def _end_creation(self, rref_id: RRefId) -> None:
        self.process.running.remove(rref_id)
        self.perform(self.table.creation_finished(rref_id))
        self._answer_waiting(rref_id, "result")

    def fetch(self, key: Key, timeout: float) -> None:
        """`to_here()`: the handle is held until the answer."""
        process = self.process
        rref_id, fork_id = key
        user = None if fork_id is None else self.table._users.records.get(fork_id)
        owner = None if user is None else process.cluster.find(user.owner)
        if owner is None or fork_id is None:
            return
        self.hold(key)

        def on_end(how: str) -> None:
            if how == "gone":
                self._check_gone(owner, rref_id, fork_id)
            if how != "caller died" and process.handles[key]:
                self.let_go(key)

        process.begin(owner, timeout, owner.on_fetch, rref_id, on_end=on_end)

    def _check_gone(self, owner: Process, rref_id: RRefId, fork_id: ForkId) -> None:
        """An owner says that it has no value, to a user of it: is that so? It may never have been created."""
        process = self.process
        given_up = process.truth.is_given_up(owner, process, fork_id) or process.cluster.is_excused()
        if rref_id in owner.created and not given_up:
            raise BrokenPromise(f"{process.peer} holds {fork_id} of {rref_id}, and its owner has no value")

    def on_fetch(self, sender: Process, call: Call, rref_id: RRefId) -> None:
        """Somebody asks for a value."""
        state, effects = self.table.fetch_received(rref_id)
        if state == "awaited":
            self._meet_creator(rref_id)
        if state in ("awaited", "creating"):
            self._waiting.setdefault(rref_id, []).append((sender, call))
        # A fetch that is repeated after its answer, when the last reference is gone, finds nothing, and nobody waits.
        self.perform([effect for effect in effects if not isinstance(effect, FailValue)])
        if state not in ("awaited", "creating"):
            self.process.answer(sender, call, "result" if state == "ready" else "gone", [])
            self.perform(self.table.handle_dropped(rref_id, None, self.process.network.now))

    def _answer_waiting(self, rref_id: RRefId, how: str) -> None:
        for sender, call in self._waiting.pop(rref_id, ()):
            self.process.answer(sender, call, how, [])
            self.perform(self.table.handle_dropped(rref_id, None, self.process.network.now))

    # ---------------------------------------------------------------------------------------------- messages

    def perform(self, effects: Effects) -> None:
        """Do what the table wants done."""
        process = self.process
        for effect in effects:
            process.network.note(f"{process.peer} {effect}")
            if isinstance(effect, SendControl):
                self._send_control(effect)
            elif isinstance(effect, SendAck):
                self._post(effect.to, ("ack", process.peer, effect.to, effect.seq), "ack", effect)
            elif isinstance(effect, LoseUser):
                process.dead_users.add(effect.fork_id)
            elif isinstance(effect, FailValue):
                self._fail_value(effect)
            elif isinstance(effect, ReleaseValue):
                process.truth.release(process, effect.rref_id, process.cluster.living())
        process.sleep()

    def _fail_value(self, effect: FailValue) -> None:
        if effect.rref_id in self.process.created and not self.process.cluster.is_excused():
            raise BrokenPromise(f"{effect}, but it was created here: somebody refers to what was released")
        self._answer_waiting(effect.rref_id, "gone")

    def _send_control(self, effect: SendControl) -> None:
        self._post(effect.to, (self.process.peer, effect.to, effect.seq), "control", effect)

    def _post(self, to: Peer, key: object, what: str, effect: SendControl | SendAck) -> None:
        """Send to a worker that is a member, as far as is known here; one that is not for long is taken for lost."""
        process = self.process
        member = process.session.members_by_id.get(to.worker_id)
        if to != process.peer and (member is None or member.incarnation != to.incarnation):
            self.strangers.meet(to, process.network.now)
            return
        other = process.cluster.find(to)
        if other is None:
            return
        on_arrival = other.on_control if what == "control" else other.on_ack
        process.network.post(process, other, key, on_arrival, process.peer, effect)

    def on_control(self, sender: Peer, effect: SendControl) -> None:
        """A control message came."""
        now = self.process.network.now
        self.strangers.meet(sender, now)
        self.perform(self.table.control_received(sender, effect.seq, effect.floor, effect.message, now))
        rref_id = effect.message.rref_id
        if effect.message.kind == Control.FORK_REQUEST and self.table.owner_state(rref_id) == "awaited":
            self._meet_creator(rref_id)

    def _meet_creator(self, rref_id: RRefId) -> None:
        self.strangers.meet_creator(rref_id.created_on, rref_id.local_id >> LIFE_SHIFT, self.process.network.now)
        self.process.sleep()

    def on_ack(self, sender: Peer, effect: SendAck) -> None:
        """An acknowledgement came."""
        self.perform(self.table.ack_received(sender, effect.seq, self.process.network.now))

    def lose(self, peer: Peer, life: int, why: str) -> None:
        """A life of another worker is over."""
        self.strangers.lose(peer)
        self.perform(self.table.peer_lost(peer, life, why, self.process.network.now))

    def next_deadline(self) -> float | None:
        return earliest(self.table.next_deadline(), self.strangers.next_deadline())

    def on_timer(self, now: float) -> None:
        """Time has passed."""
        self.perform(self.table.timer_fired(now))
        self.strangers.postpone(self.process.broker_since)
        for stranger in self.strangers.take_overdue(now):
            self.process.on_loss(stranger, 0, "it is not in the cluster")
        for creator in self.strangers.take_creators(now):
            self.perform(self.table.creator_lost(*creator))
