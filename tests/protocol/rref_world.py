"""A world of workers for the reference protocol: tables joined by a network that delays, shuffles, repeats and drops.

One rule: the world knows the truth (who holds what, which values exist) by itself and never asks a table for it, so
that each release can be checked at the moment it happens. Everything follows from one seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

from zrpc.ids import LocalIds
from zrpc.protocol.rrefs import (
    ConfirmUser,
    Control,
    FailValue,
    Fork,
    LoseUser,
    Peer,
    ReleaseValue,
    RRefTable,
    SendAck,
    SendControl,
)

LATENCY = 0.5
"""Seconds that a message takes at most."""
MAX_DROPS = 2
"""Times that one control message (or its acknowledgement) is dropped: three sendings at the most, within 1.5 s."""
MAX_STEPS = 20_000


class Worker:
    """One life of a worker: its table, and the truth about it."""

    def __init__(self, peer: Peer, life: int) -> None:
        self.peer = peer
        self.life = life
        self.table = RRefTable(peer.worker_id, LocalIds(peer.worker_id, life), peer.incarnation)
        self.handles: Counter[tuple] = Counter()  # (rref id, fork id or None) -> local objects
        self.dead_users: set = set()  # forks whose creation failed or whose owner is lost
        self.values: set = set()  # values that exist here, those in the making included
        self.created: set = set()  # ... ever existed here
        self.running: list = []  # functions that make values
        self.confirmed: Counter = Counter()
        self.deleted: dict = {}  # fork -> the number of its deletion

    def droppable(self) -> list[tuple]:
        return [key for key, count in self.handles.items() if count]


class World:
    def __init__(self, seed: int, workers: int, *, drop: float, repeat: float, deaths: bool) -> None:
        self.random = random.Random(seed)
        self.drop, self.repeat, self.deaths = drop, repeat, deaths
        self.now = 0.0
        self.incarnations = itertools.count(100)
        self.order = itertools.count()
        self.queue: list = []
        self.in_flight: dict[int, tuple] = {}  # order -> (fork, to, when it is of no use any more)
        self.drops: Counter = Counter()
        self.workers: dict[Peer, Worker] = {}
        self.dead: list[Worker] = []
        self.trace: list[str] = []
        for worker_id in range(workers):
            self.start(worker_id, 0)

    # ------------------------------------------------------------------------------------ the network

    def at(self, delay: float, what, *args) -> int:
        order = next(self.order)
        heapq.heappush(self.queue, (self.now + delay, order, what, args))
        return order

    def latency(self) -> float:
        return self.random.random() * LATENCY

    def post(self, key: tuple, what, *args) -> None:
        """A control message or an acknowledgement: may be dropped (not for ever), may come twice."""
        if self.random.random() < self.drop and self.drops[key] < MAX_DROPS:
            self.drops[key] += 1
            return
        self.at(self.latency(), what, *args)
        if self.random.random() < self.repeat:
            self.at(self.latency() * 4, what, *args)

    def perform(self, worker: Worker, effects) -> None:
        me = worker.peer
        for effect in effects:
            self.trace.append(f"{self.now:.3f} {me} {effect}")
            if isinstance(effect, SendControl):
                if effect.message.kind == Control.USER_DELETE:
                    self.note_delete(worker, effect)
                self.post((me, effect.to, effect.seq), self.on_control, me, effect)
            elif isinstance(effect, SendAck):
                self.post((effect.to, me, effect.seq), self.on_ack, me, effect)
            elif isinstance(effect, ConfirmUser):
                worker.confirmed[effect.fork_id] += 1
                assert worker.confirmed[effect.fork_id] == 1, f"{effect} twice"
            elif isinstance(effect, LoseUser):
                worker.dead_users.add(effect.fork_id)
            elif isinstance(effect, FailValue):
                assert effect.rref_id not in worker.created, f"{effect}, but it was created here"
            elif isinstance(effect, ReleaseValue):
                self.check_release(worker, effect.rref_id)

    def note_delete(self, worker: Worker, effect: SendControl) -> None:
        seqs = worker.deleted
        key = effect.message.fork_id
        assert seqs.setdefault(key, effect.seq) == effect.seq, f"{effect}: a second deletion"

    def on_control(self, sender: Peer, effect: SendControl) -> None:
        if effect.to in self.workers:
            worker = self.workers[effect.to]
            self.perform(
                worker, worker.table.control_received(sender, effect.seq, effect.floor, effect.message, self.now)
            )

    def on_ack(self, sender: Peer, effect: SendAck) -> None:
        if effect.to in self.workers:
            worker = self.workers[effect.to]
            self.perform(worker, worker.table.ack_received(sender, effect.seq, self.now))

    # ------------------------------------------------------------------------------------- the checks

    def check_release(self, worker: Worker, rref_id) -> None:
        if rref_id not in worker.values:
            assert rref_id not in worker.created, f"{rref_id} is released twice"
            return
        worker.values.remove(rref_id)
        assert rref_id not in worker.running, f"{rref_id} is released while its function runs"
        for other in self.workers.values():
            for (held, fork_id), count in other.handles.items():
                if held == rref_id and count and fork_id not in other.dead_users:
                    raise AssertionError(f"{rref_id} is released, but {other.peer} holds {fork_id}")
            for fork_id, user in other.table._users.records.items():
                assert user.rref_id != rref_id or user.state not in ("pending", "creating"), f"{fork_id} is pending"
        for fork, to, useless in self.in_flight.values():
            if fork.rref_id == rref_id and to in self.workers and self.now < useless:
                raise AssertionError(f"{rref_id} is released, but {fork} is on its way to {to}")

    def check_settled(self) -> None:
        """Nothing is pending once the network is empty; every handle that is not dead still has its value."""
        for worker in self.workers.values():
            counts = worker.table.statistics()
            assert not counts.num_pending_users, worker.table
            assert not counts.num_pending_children, worker.table
            assert not counts.num_pending_owners, worker.table
            assert not counts.num_pending_futures, worker.table
            assert worker.table.next_deadline() is None, worker.table
            for (rref_id, fork_id), count in worker.handles.items():
                if count and fork_id is not None and fork_id not in worker.dead_users:
                    owner = self.workers[worker.table._users.records[fork_id].owner]
                    assert rref_id in owner.values or rref_id not in owner.created, f"{rref_id} is gone"

    def check_drained(self) -> None:
        for worker in self.workers.values():
            assert worker.table.is_drained(), worker.table
            assert not worker.values, f"{worker.peer} leaks {worker.values}"

    # -------------------------------------------------------------------------------------- the calls

    def pick(self, things):
        return self.random.choice(list(things))

    def deadline(self) -> float | None:
        return None if self.random.random() < 0.2 else self.now + self.random.uniform(0.2, 3.0)

    def act(self) -> None:
        worker = self.pick(self.workers.values())
        actions = [self.remote, self.remote, self.local, self.call, self.call, self.call, self.copy, self.let_go]
        if self.deaths and self.random.random() < 0.06:
            actions = [self.kill]
        self.pick(actions)(worker)

    def peers(self, worker: Worker) -> list[Peer]:
        return [*self.workers, *(dead.peer for dead in self.dead if dead.peer.worker_id != worker.peer.worker_id)]

    def remote(self, worker: Worker) -> None:
        to = self.pick(self.peers(worker))
        if to == worker.peer:
            rref_id = worker.table.create_owner(is_ready=False)
            worker.handles[rref_id, None] += 1
            self.run_function(worker, rref_id)
            return
        deadline = self.deadline()
        fork = worker.table.create_user(to, deadline)
        worker.handles[fork.rref_id, fork.fork_id] += 1
        if worker.table.user_state(fork.fork_id) == "lost":
            self.fail_creation(worker.peer, fork, False)
            return
        if self.random.random() < 0.15:  # it cannot be sent; meanwhile it may be passed on
            self.at(self.random.choice((0.0, self.latency() * 4)), self.give_up, worker.peer, fork, False)
            return
        if deadline is not None:
            self.at(deadline - self.now, self.give_up, worker.peer, fork, True)
        if deadline is None or self.random.random() >= self.drop:
            self.at(self.latency(), self.on_remote_call, worker.peer, to, fork, deadline)
            if self.random.random() < self.repeat:
                self.at(self.latency() * 8, self.on_remote_call, worker.peer, to, fork, None)

    def on_remote_call(self, sender: Peer, to: Peer, fork: Fork, deadline: float | None) -> None:
        worker = self.workers.get(to)
        if worker is None or (deadline is not None and self.now > deadline):
            return
        if worker.table.remote_call_received(sender, fork.rref_id, fork.fork_id, fork.seq):
            self.run_function(worker, fork.rref_id)
            if deadline is None or self.random.random() >= self.drop:
                self.at(self.latency(), self.on_reply, sender, fork)

    def run_function(self, worker: Worker, rref_id) -> None:
        assert rref_id not in worker.created, f"{rref_id} is created twice"
        worker.values.add(rref_id)
        worker.created.add(rref_id)
        worker.running.append(rref_id)
        self.at(self.random.random(), self.on_function_end, worker.peer, rref_id)

    def on_function_end(self, peer: Peer, rref_id) -> None:
        if peer in self.workers:
            worker = self.workers[peer]
            worker.running.remove(rref_id)
            self.perform(worker, worker.table.creation_finished(rref_id))

    def on_reply(self, to: Peer, fork: Fork) -> None:
        if to in self.workers:
            worker = self.workers[to]
            self.perform(worker, worker.table.user_confirmed(fork.fork_id, self.now))

    def give_up(self, peer: Peer, fork: Fork, sent: bool) -> None:
        worker = self.workers.get(peer)
        if worker is not None and worker.table.user_state(fork.fork_id) == "creating":
            self.fail_creation(peer, fork, sent)

    def fail_creation(self, peer: Peer, fork: Fork, sent: bool) -> None:
        worker = self.workers[peer]
        worker.dead_users.add(fork.fork_id)
        self.perform(worker, worker.table.creation_failed(fork.fork_id, self.now, sent=sent))

    def local(self, worker: Worker) -> None:
        rref_id = worker.table.create_owner(is_ready=True)
        worker.handles[rref_id, None] += 1
        worker.values.add(rref_id)
        worker.created.add(rref_id)

    def call(self, worker: Worker) -> None:
        """A call (or its reply) that carries some references."""
        to = self.pick(self.peers(worker))
        usable = [key for key in worker.droppable() if key[1] not in worker.dead_users]
        if not usable:
            return
        deadline = self.deadline()
        keys = self.random.choices(usable, k=self.random.randint(1, 3))
        forks = [worker.table.fork(*key, to, deadline) for key in keys]
        if worker.table._channels.is_lost(to) or self.random.random() < 0.1:
            for fork in forks:
                self.perform(worker, worker.table.fork_cancelled(fork, to, self.now))
            return
        if deadline is not None and to != worker.peer and self.random.random() < self.drop:
            return
        delay = self.latency()
        self.deliver(worker.peer, to, forks, deadline, delay)
        if self.random.random() < self.repeat:
            self.at(delay + self.latency() * 8, self.on_call, worker.peer, to, forks, None, [])

    def deliver(self, sender: Peer, to: Peer, forks: list[Fork], deadline: float | None, delay: float) -> None:
        orders: list[int] = []
        self.at(delay, self.on_call, sender, to, forks, deadline, orders)
        useless = float("inf") if deadline is None else deadline
        if self.now + delay > useless:
            return
        for fork in forks:
            orders.append(next(self.order))
            self.in_flight[orders[-1]] = (fork, to, useless)

    def on_call(self, sender: Peer, to: Peer, forks: list[Fork], deadline: float | None, orders: list[int]) -> None:
        for order in orders:
            self.in_flight.pop(order)
        worker = self.workers.get(to)
        if worker is None:
            return
        late = deadline is not None and self.now > deadline
        for fork in forks:
            if late or self.random.random() < 0.1:
                self.perform(worker, worker.table.fork_refused(fork, self.now))
                continue
            state, effects = worker.table.fork_received(fork, self.now)
            if state != "deleted":
                key = (fork.rref_id, None if fork.owner == to else fork.fork_id)
                worker.handles[key] += 1
                if key[1] is not None and state == "lost":
                    worker.dead_users.add(fork.fork_id)
            self.perform(worker, effects)
            if self.random.random() < 0.1:  # the rest cannot be decoded: all forks are refused, for good measure
                for every in forks:
                    self.perform(worker, worker.table.fork_refused(every, self.now))
        if not late and to != sender and self.random.random() < 0.5:
            self.at(self.latency(), self.on_call_reply, sender, to, forks)

    def on_call_reply(self, sender: Peer, to: Peer, forks: list[Fork]) -> None:
        if sender in self.workers:
            worker = self.workers[sender]
            for fork in forks:
                self.perform(worker, worker.table.fork_delivered(fork, to, self.now))

    def copy(self, worker: Worker) -> None:
        if worker.droppable():
            key = self.pick(worker.droppable())
            worker.table.handle_added(*key)
            worker.handles[key] += 1

    def let_go(self, worker: Worker) -> None:
        if worker.droppable():
            key = self.pick(worker.droppable())
            worker.handles[key] -= 1
            self.perform(worker, worker.table.handle_dropped(*key, self.now))

    def shut_down(self, worker: Worker) -> None:
        held = {key: count for key, count in worker.handles.items() if count}
        leaks, effects = worker.table.drop_all(self.now)
        assert {(leak.rref_id, leak.fork_id): leak.handles for leak in leaks} == held
        worker.handles.clear()
        self.perform(worker, effects)
        for key in held:
            assert worker.table.handle_dropped(*key, self.now) == []

    # ------------------------------------------------------------------------------------- the deaths

    def start(self, worker_id: int, life: int) -> None:
        worker = Worker(Peer(worker_id, next(self.incarnations)), life)
        self.workers[worker.peer] = worker
        for dead in self.dead:
            self.at(self.latency() / 4, self.on_loss, worker.peer, dead)

    def kill(self, worker: Worker) -> None:
        if len(self.workers) < 2:
            return
        self.trace.append(f"{self.now:.3f} {worker.peer} dies")
        del self.workers[worker.peer]
        self.dead.append(worker)
        for observer in self.workers:
            self.at(self.latency() * 2, self.on_loss, observer, worker)
        if self.random.random() < 0.6:
            self.at(self.random.random(), self.start, worker.peer.worker_id, worker.life + 1)

    def on_loss(self, observer: Peer, dead: Worker) -> None:
        if observer in self.workers:
            worker = self.workers[observer]
            self.perform(worker, worker.table.peer_lost(dead.peer, dead.life, "killed", self.now))

    # --------------------------------------------------------------------------------------- the runs

    def step(self) -> bool:
        """The next thing that happens; False if nothing will."""
        due, worker = None, None
        for candidate in self.workers.values():
            deadline = candidate.table.next_deadline()
            if deadline is not None and (due is None or deadline < due):
                due, worker = deadline, candidate
        if self.queue and (due is None or self.queue[0][0] <= due):
            self.now, _, what, args = heapq.heappop(self.queue)
            what(*args)
        elif worker is not None:
            self.now = max(self.now, due)
            self.perform(worker, worker.table.timer_fired(self.now))
        else:
            return False
        return True

    def settle(self) -> None:
        for _ in range(MAX_STEPS):
            if not self.step():
                return
        raise AssertionError("it never ends: " + "; ".join(repr(worker.table) for worker in self.workers.values()))

    def run(self, actions: int) -> None:
        for _ in range(actions):
            self.at(self.random.random() * 6, self.act)
        self.settle()
        self.check_settled()
        for worker in self.workers.values():
            if self.random.random() < 0.3:
                self.shut_down(worker)
            while worker.droppable():
                self.let_go(worker)
        self.settle()
        self.check_drained()
