"""References and the values behind them: the driver of the protocol machine in `protocol.rrefs`.

One rule: the machine and the table of values change together, under one lock; messages are sent, waiters called and values
dropped after it is let go.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from zrpc.clock import Clock, earliest, monotonic, time_left
from zrpc.errors import CallTimeout, InvalidTransition, RRefLost, RRefMisuse
from zrpc.ids import LIFE_SHIFT, ForkId, GloballyUniqueId, LocalIds, RRefId, WorkerInfo
from zrpc.protocol.calls import WorkerKey
from zrpc.protocol.rrefs import (
    ConfirmUser,
    Control,
    Effects,
    FailValue,
    Fork,
    LoseUser,
    Message,
    ReleaseValue,
    RRefStatistics,
    RRefTable,
    SendAck,
    SendControl,
    forks_from_numbers,
)
from zrpc.protocol.rrefs import Peer as Life
from zrpc.protocol.strangers import Strangers
from zrpc.runtime.confirmations import Confirmations
from zrpc.runtime.context import running
from zrpc.runtime.control import ControlPost, read_control
from zrpc.runtime.fetches import Answer, Fetch, Fetches
from zrpc.runtime.handles import Calls, Reference
from zrpc.runtime.identity import Identity
from zrpc.runtime.owned import CREATION_LATE, OwnedValue, Waiter
from zrpc.runtime.peers import PeerBook
from zrpc.runtime.raising import fresh
from zrpc.runtime.receiver import Receiver
from zrpc.runtime.sites import Leftover, Site, made_here
from zrpc.telemetry.trace import Tracer
from zrpc.wire.envelope import Codec, Envelope, Kind

_WORTH_TELLING = ("creating", "pending", "confirmed")
"""The states of references that somebody keeps a value for."""


class References:
    """The references of one agent. Safe to use from any thread. A timer of the receiver's."""

    def __init__(
        self,
        identity: Identity,
        ids: LocalIds,
        peers: PeerBook,
        receiver: Receiver,
        calls: Calls,
        clock: Clock = monotonic,
        tracer: Tracer | None = None,
        keeps_stacks: bool = False,
    ) -> None:
        self.identity = identity
        self._tracer = tracer or Tracer()
        self.calls = calls
        self._me = Life(identity.info.id, identity.incarnation)
        self._peers = peers
        self._receiver = receiver
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._table = RRefTable(identity.info.id, ids, identity.incarnation)
        self._values: dict[RRefId, OwnedValue] = {}
        self._creation_errors: dict[ForkId, BaseException] = {}
        # Made here, and still held by a handle (only those have an error to tell); until when the value is to be made.
        self._held: dict[ForkId, float | None] = {}
        self._keeps_stacks = keeps_stacks
        self._sites: dict[ForkId, Site] = {}
        self._confirmations = Confirmations()
        self._fetches = Fetches()
        self._is_closed = False
        self._strangers = Strangers(self._me)
        self._post = ControlPost(peers, self._me, self._meet, self._tracer)
        self._names: dict[int, WorkerInfo] = {identity.info.id: identity.info}
        # Finalizers run at any moment, even while this thread holds the lock: they only put their handle here.
        self._dropped: deque[tuple[RRefId, ForkId | None]] = deque()
        self._is_look_due = False
        self.is_looked_after: Callable[[], bool] = lambda: False
        """Whether `look_after` will be called soon."""
        self.broker_since: Callable[[], float] = lambda: float("-inf")
        """Since when there is a broker; now, while there is none."""

    # ------------------------------------------------------------------------------------ making

    def create_local(self, value: Any) -> tuple[RRefId, None, Life]:
        """A value of this worker's own."""
        owned = OwnedValue(made_here("RRef(value)", self._keeps_stacks))
        owned.complete(value, None, Codec.PYTHON)
        return self._create(owned)

    def create_pending(self, function: str) -> tuple[RRefId, None, Life]:
        """A value that a call of this worker to itself will make."""
        return self._create(OwnedValue(made_here(f"remote({function})", self._keeps_stacks)))

    def _create(self, owned: OwnedValue) -> tuple[RRefId, None, Life]:
        with self._lock:
            rref_id = self._table.create_owner(is_ready=owned.is_done)
            self._values[rref_id] = owned
        self._tracer.event("RRef created", rref_id)
        return rref_id, None, self._me

    def create_user(self, owner: WorkerKey, expires: float | None, function: str) -> Fork:
        """A reference to a value that a call to `owner` will make."""
        site = made_here(f"remote({function})", self._keeps_stacks)
        with self._lock:
            fork = self._table.create_user(Life(*owner), expires)
            self._held[fork.fork_id] = expires
            self._sites[fork.fork_id] = site
        self._receiver.expect(self._first_deadline())
        return fork

    def creation_answered(self, fork: Fork, error: BaseException | None) -> None:
        """The call that makes the value has ended: the value is there, or what its function raised; or the call failed."""
        now = self._clock()
        with self._lock:
            if error is None:
                effects = self._table.user_confirmed(fork.fork_id, now)
            else:
                effects = self._table.creation_failed(fork.fork_id, now)
                self._note_creation_error(fork.fork_id, error)
            sends = self._apply(effects)
        self._perform(sends)

    def creation_late(self, fork_id: ForkId, error: BaseException) -> None:
        """The owner accepted the call, but did not make the value in time."""
        with self._lock:
            self._note_creation_error(fork_id, error)

    def _note_creation_error(self, fork_id: ForkId, error: BaseException) -> None:
        if fork_id in self._held:
            if isinstance(error, CallTimeout):
                error = CallTimeout(error.worker, error.function, error.seconds, CREATION_LATE)
            self._creation_errors[fork_id] = error

    def creation_deadline(self, fork_id: ForkId | None) -> float | None:
        """Until when the value was to be made, for a reference that a call of this worker's created."""
        return None if fork_id is None else self._held.get(fork_id)

    def creation_not_sent(self, fork: Fork) -> None:
        """The call that makes the value could not be sent."""
        now = self._clock()
        with self._lock:
            sends = self._apply(self._table.creation_failed(fork.fork_id, now, sent=False))
        self._perform(sends)

    # ------------------------------------------------------------------------------------ owning

    def on_remote_call(self, numbers: Sequence[int], sender: WorkerKey, function: str) -> bool:
        """A call that makes a value here came. False: it came before, or too late; do not run it."""
        rref_id, fork_id = GloballyUniqueId(*numbers[:2]), GloballyUniqueId(*numbers[2:4])
        origin = Site(f"{function}, called by", worker_id=sender[0])
        with self._lock:
            if sender == self._me:
                return rref_id in self._values
            self._strangers.meet(Life(*sender), self._clock())
            if not self._table.remote_call_received(Life(*sender), rref_id, fork_id, numbers[4]):
                return False
            self._values.setdefault(rref_id, OwnedValue()).origin = origin
        self._tracer.event("RRef created", rref_id)
        return True

    def set_value(self, rref_id: RRefId, value: Any, error: BaseException | None, codec: Codec) -> None:
        """The function that makes the value has returned, or raised."""
        waiters: list[Waiter] = []
        with self._lock:
            owned = self._values.get(rref_id)
            if owned is not None:
                waiters = owned.complete(value, error, codec)
            sends = self._apply(self._table.creation_finished(rref_id))
        for waiter in waiters:
            waiter(value, error)
        self._perform(sends)

    def is_ready(self, rref_id: RRefId) -> bool:
        """Whether the value, or its error, is here."""
        owned = self._values.get(rref_id)
        return owned is None or owned.is_done

    def when_ready(self, rref_id: RRefId, waiter: Waiter) -> None:
        """Call `waiter` with the value or the error: now, or by whoever sets it."""
        with self._lock:
            owned = self._values.get(rref_id)
            if owned is not None and not owned.is_done:
                owned.waiters.append(waiter)
                return
        if owned is None:
            waiter(None, RRefLost(str(rref_id), self.identity.info.name, "it has been released"))
        else:
            waiter(owned.value, owned.error)

    def wait_no_more(self, rref_id: RRefId, waiter: Waiter) -> None:
        """Undo `when_ready`."""
        with self._lock:
            owned = self._values.get(rref_id)
            if owned is not None and waiter in owned.waiters:
                owned.waiters.remove(waiter)

    def owned(self, rref_id: RRefId) -> OwnedValue | None:
        """The value of a reference owned here, which may be yet to come; None when it has been released."""
        return self._values.get(rref_id)

    def on_fetch(self, rref_id: RRefId, answer: Answer, deadline: float | None) -> None:
        """Somebody asks for a value of this worker: `answer` now, or when it is there, but not after the deadline."""

        def answer_and_let_go(value: Any, error: BaseException | None, codec: Codec) -> None:
            try:
                answer(value, error, codec)
            finally:
                self.discard(rref_id, None)

        with self._lock:
            state, effects = self._table.fetch_received(rref_id)
            if state == "awaited":
                self._meet_creator(rref_id)
            owned = self._values.setdefault(rref_id, OwnedValue())
            fetch = Fetch(rref_id, owned, answer_and_let_go)
            if deadline is not None and not owned.is_done:
                self._fetches.add(fetch, deadline)
            sends = self._apply(effects)
        self._perform(sends)
        self.when_ready(rref_id, fetch)

    # ------------------------------------------------------------------------------------ using

    def check_usable(self, reference: Reference, use: str) -> None:
        """Raise what became of a reference's creation, if that failed, or `RRefLost`; `RRefMisuse` after shutdown."""
        fork_id = reference.fork_id
        if fork_id is None:
            return
        error = self._creation_errors.get(fork_id)
        if error is not None:
            raise fresh(error)
        if self._is_closed:
            raise RRefMisuse(f"{reference} has been deleted. Cannot {use} after deletion.")
        if self._table.user_state(fork_id) in ("lost", "deleted"):
            raise self.lost(reference)

    def lost(self, reference: Reference) -> RRefLost:
        """That the owner of a reference is gone: why and when, if this worker has heard of it."""
        why, when = self._peers.find_loss(reference.owner_life) or ("the owner cannot be reached", None)
        return RRefLost(str(reference.rref_id), self.info_of(reference.owner_id).name, why, when)

    def is_confirmed(self, reference: Reference) -> bool:
        """Whether the owner knows of the reference."""
        return reference.fork_id is None or self._table.user_state(reference.fork_id) == "confirmed"

    def when_confirmed(self, forks: Sequence[int], function: str, then: Callable[[], None]) -> bool:
        """Have `then` called when the owners know of those references, or are lost; False if that is so now.

        `forks` are the numbers in the header of the message that brought them, a call of `function`.
        """
        fork_ids = [fork.fork_id for fork in forks_from_numbers(forks, self._me)]
        with self._lock:
            for fork_id in fork_ids:
                if fork_id in self._sites:
                    self._sites[fork_id].function = function
            pending = [fork_id for fork_id in fork_ids if self._table.user_state(fork_id) == "pending"]
            return self._confirmations.wait_for(pending, then)

    def info_of(self, worker_id: int) -> WorkerInfo:
        """The name of a worker by its id, also of one that is gone."""
        info = self._names.get(worker_id)
        if info is None:
            peer = self._peers.find_life((worker_id, 0))
            info = WorkerInfo(f"id:{worker_id}", worker_id) if peer is None else peer.info
        return info

    def learn(self, info: WorkerInfo, incarnation: int, life: int) -> None:
        """A life of a worker is announced. Its name is remembered: references outlive workers."""
        self._names[info.id] = info
        with self._lock:
            self._strangers.announce(Life(info.id, incarnation), life)

    # ------------------------------------------------------------------------------------ travelling

    def fork_for_message(self, reference: Reference) -> tuple[int, ...]:
        """The reference is being written into a message: the numbers that travel."""
        if self._is_closed or self._creation_errors:
            self.check_usable(reference, "call fork an UserRRef")
        to = running.destination
        if to is None:
            raise RRefMisuse("Can not pickle rref in python pickler, rref can only be pickled when using RPC")
        try:
            with self._lock:
                fork = self._table.fork(reference.rref_id, reference.fork_id, Life(*to), running.expires)
        except InvalidTransition:
            self.check_usable(reference, "call fork an UserRRef")  # says what became of it
            raise
        numbers = fork.to_numbers()
        running.forks += numbers
        return numbers

    def fork_from_message(self, numbers: tuple[int, ...]) -> tuple[RRefId, ForkId | None, Life]:
        """A reference is being read from a message: what its handle here is made of."""
        origin = running.origin
        if origin is None:
            raise RRefMisuse("an RRef can only be unpickled when using RPC")
        (fork,) = forks_from_numbers(numbers, Life(*origin))
        is_mine = fork.owner == self._me
        site = None if is_mine else made_here("received from", self._keeps_stacks, origin[0])
        with self._lock:
            self._strangers.meet(fork.parent, self._clock())
            state, effects = self._table.fork_received(fork, self._clock())
            if is_mine and state == "awaited":
                self._meet_creator(fork.rref_id)
            if state == "deleted":
                pass
            elif site is None:
                self._values.setdefault(fork.rref_id, OwnedValue())
            else:
                self._sites[fork.fork_id] = site
            sends = self._apply(effects)
        self._perform(sends)
        if state == "deleted":
            raise RRefLost(str(fork.rref_id), self.info_of(fork.owner.worker_id).name, "the reference came too late")
        return fork.rref_id, None if is_mine else fork.fork_id, fork.owner

    def take_back(self, forks: Sequence[int], to: WorkerKey) -> None:
        """A message with these forks was not sent."""
        now = self._clock()
        with self._lock:
            effects: Effects = []
            for fork in forks_from_numbers(forks, self._me):
                effects += self._table.fork_cancelled(fork, Life(*to), now)
            sends = self._apply(effects)
        self._perform(sends)

    def delivered(self, forks: Sequence[int], to: WorkerKey) -> None:
        """A message with these forks was read, or refused, by its receiver: its reply has come."""
        now = self._clock()
        with self._lock:
            effects: Effects = []
            for fork in forks_from_numbers(forks, self._me):
                effects += self._table.fork_delivered(fork, Life(*to), now)
            sends = self._apply(effects)
        self._perform(sends)

    def let_go(self, forks: Sequence[int], sender: WorkerKey) -> None:
        """A message with these forks is not read."""
        now = self._clock()
        with self._lock:
            effects: Effects = []
            for fork in forks_from_numbers(forks, Life(*sender)):
                effects += self._table.fork_refused(fork, now)
            sends = self._apply(effects)
        self._perform(sends)

    def discard(self, rref_id: RRefId, fork_id: ForkId | None) -> None:
        """A handle is gone. Takes no lock: finalizers call it."""
        self._dropped.append((rref_id, fork_id))
        if not self.is_looked_after():
            self._receiver.wake()  # each time: two threads at once could each take the other for the first

    def look_after(self) -> None:
        """Have the receiver tell the owners of handles that are gone. Called every now and then while much goes on: one
        message and one wake-up for all of them."""
        if self._dropped:
            self._is_look_due = True
            self._receiver.wake()

    # ------------------------------------------------------------------------------------ messages, time

    def on_control(self, envelope: Envelope) -> None:
        """A message of the reference protocol came."""
        sender = Life(envelope.sender, envelope.sender_incarnation)
        now = self._clock()
        later: list[Any] = []
        try:
            with self._lock:
                for kind, number, numbers in read_control(envelope):
                    later += self._apply(self._take_control(sender, kind, number, numbers, now))
        finally:
            self._perform(later)

    def _take_control(self, sender: Life, kind: int, number: int, numbers: Sequence[int], now: float) -> Effects:
        """One message of the reference protocol, with the lock held."""
        if kind == Kind.ACK:
            return self._table.ack_received(sender, number, now)
        owner = Life(*numbers[6:8]) if kind == Kind.RREF_FORK_NOTICE else None
        message = Message(Control(kind), GloballyUniqueId(*numbers[:2]), GloballyUniqueId(*numbers[2:4]), owner)
        self._strangers.meet(sender, now)
        effects = self._table.control_received(sender, numbers[4], numbers[5], message, now)
        if message.kind == Control.FORK_REQUEST and self._table.owner_state(message.rref_id) == "awaited":
            self._meet_creator(message.rref_id)
        return effects

    def lose(self, key: WorkerKey, life: int, why: str) -> None:
        """A life of a worker is over."""
        with self._lock:
            self._strangers.lose(Life(*key))
            sends = self._apply(self._table.peer_lost(Life(*key), life, why, self._clock()))
        self._perform(sends)

    def _meet(self, life: Life) -> None:
        with self._lock:
            self._strangers.meet(life, self._clock())

    def next_deadline(self) -> float | None:
        is_due = self._dropped and (self._is_look_due or not self.is_looked_after())
        return 0.0 if is_due else self._first_deadline()

    def _first_deadline(self) -> float | None:
        with self._lock:
            return earliest(self._table.next_deadline(), self._strangers.next_deadline(), self._fetches.next_deadline())

    def on_timer(self, now: float) -> None:
        with self._lock:
            effects = self._take_dropped(now)
            effects += self._table.timer_fired(now)
            for rref_id in self._fetches.take_overdue(now):
                effects += self._table.handle_dropped(rref_id, None, now)
            self._strangers.postpone(self.broker_since())
            for stranger in self._strangers.take_overdue(now):
                effects += self._table.peer_lost(stranger, 0, "it is not in the cluster", now)
            for creator in self._strangers.take_creators(now):
                effects += self._table.creator_lost(*creator)
            sends = self._apply(effects)
        self._perform(sends)

    def _take_dropped(self, now: float) -> Effects:
        effects: Effects = []
        self._is_look_due = False
        while self._dropped:
            rref_id, fork_id = self._dropped.popleft()
            if fork_id is not None:
                self._held.pop(fork_id, None)
                self._creation_errors.pop(fork_id, None)
                self._sites.pop(fork_id, None)
            effects += self._table.handle_dropped(rref_id, fork_id, now)
        return effects

    # ------------------------------------------------------------------------------------ the end

    def drop_all(self) -> list[Leftover]:
        """At shutdown: let all references go, and tell their owners. Returns those to others' values."""
        if self.statistics().num_users:
            gc.collect()  # what only circles of garbage hold is no leftover
        now = self._clock()
        with self._lock:
            self._is_closed = True
            effects = self._take_dropped(now)
            leaks, dropped = self._table.drop_all(now)
            sends = self._apply(effects + dropped)
        self._perform(sends)
        return [
            self._leftover(leak.rref_id, leak.fork_id, leak.owner, self._sites.get(leak.fork_id))
            for leak in leaks
            if leak.fork_id is not None and leak.state in _WORTH_TELLING
        ]

    def held_elsewhere(self) -> list[Leftover]:
        """References to values of this worker that others hold."""
        with self._lock:
            found = [(fork, self._values.get(fork[0])) for fork in self._table.held_elsewhere()]
        return [self._leftover(*fork, None if owned is None else owned.origin) for fork, owned in found]

    def _leftover(self, rref_id: RRefId, fork_id: ForkId, who: Life, site: Site | None) -> Leftover:
        where = "from somewhere" if site is None else site.describe(self.info_of)
        return Leftover(rref_id, fork_id, self.info_of(who.worker_id), where)

    def close(self) -> None:
        """The worker has left: references to values elsewhere are of no use any more."""
        self._is_closed = True

    def wait_drained(self, deadline: float | None) -> bool:
        """Wait until nobody has to be told anything any more; False at the deadline."""
        with self._lock:
            while not self._table.is_drained():
                left = time_left(deadline, self._clock())
                if left == 0.0:
                    return False
                self._waiting += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._waiting -= 1
        return True

    def statistics(self) -> RRefStatistics:
        with self._lock:
            return self._table.statistics()

    # ------------------------------------------------------------------------------------ effects

    def _apply(self, effects: Effects) -> list[Any]:
        """Effects on the table of values, under the lock. Returns what is left to do after it: sends, and the dead."""
        if self._waiting:
            self._changed.notify_all()
        later: list[Any] = []
        for effect in effects:
            if isinstance(effect, ReleaseValue):
                self._tracer.event("RRef deleted", effect.rref_id)
                later.append((effect, self._values.pop(effect.rref_id, None)))
            elif isinstance(effect, FailValue):
                owned = self._values.setdefault(effect.rref_id, OwnedValue())
                error = RRefLost(str(effect.rref_id), self.identity.info.name, effect.why)
                if not owned.is_done:
                    later.append((effect, (owned.complete(None, error, Codec.PYTHON), error)))
            elif isinstance(effect, (SendControl, SendAck)):
                later.append((effect, None))
            elif isinstance(effect, (ConfirmUser, LoseUser)) and len(self._confirmations):
                later.append((effect, self._confirmations.take(effect.fork_id)))
        return later

    def _perform(self, later: list[Any]) -> None:
        sends = [effect for effect, _ in later if isinstance(effect, (SendControl, SendAck))]
        if sends:
            self._post.send(sends)
        for effect, rest in later:
            if isinstance(effect, (SendControl, SendAck)):
                continue
            if isinstance(effect, FailValue):
                waiters, error = rest
                for waiter in waiters:
                    waiter(None, error)
            elif isinstance(effect, (ConfirmUser, LoseUser)):
                for then in rest:
                    then()
            elif rest is not None and rest.waiters:
                error = RRefLost(str(effect.rref_id), self.identity.info.name, "it has been released")
                for waiter in rest.waiters:
                    waiter(None, error)

    def _meet_creator(self, rref_id: RRefId) -> None:
        self._strangers.meet_creator(rref_id.created_on, rref_id.local_id >> LIFE_SHIFT, self._clock())
