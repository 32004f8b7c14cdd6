"""The broker's machine: takes HELLOs, beats, losses and exits; decides who is a member, and tells everybody.

One rule: no step costs more than the number of members, and what everyone is told is collected for `flush_interval` and
encoded once.

A worker is known by its name and incarnation, not by its connection: a message from a known life on a new connection
moves the life there. One from a life that is not known is answered with CHALLENGE: its sender says HELLO with what it
is, and so a restarted broker learns its members. A life that is known to be over is fenced: REFUSED with
`StaleIncarnation`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from zrpc.clock import earliest
from zrpc.errors import InvalidName, JoinRefused, NameTaken, StaleIncarnation, ZrpcError
from zrpc.ids import check_name
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Counts,
    Effect,
    Exit,
    Expectation,
    GroupFailed,
    MemberGone,
    MemberUp,
    RouteLoss,
    Send,
    StopDemand,
    StopRequested,
    Tick,
)
from zrpc.protocol.groups import Groups
from zrpc.protocol.membership import ABSENT, UP, WAITING, Book, Changes, Record, RegistryOptions
from zrpc.protocol.shutdown import Ask, Barrier, Release
from zrpc.wire.messages import (
    MAX_TOLD,
    Answer,
    Beat,
    Challenge,
    Gone,
    Goodbye,
    Hello,
    Message,
    Refusal,
    Resolve,
    ShutdownReport,
    ShutdownState,
    Stop,
    Welcome,
)

STALL: Final = 1.0
"""Seconds that a deadline may be late before this process counts as having been stopped itself: nobody is declared dead
for a silence that we did not listen to."""
FIRST_RETURN: Final = 1.5
"""Seconds that a broker which follows another one waits for a first member to return, before it takes newcomers: they try
to connect again at least once a second. When one has, the others have `death_timeout` from the broker's start."""
RESEND: Final = 1.0
"""Seconds between two snapshots to a member that is behind."""


class Registry:
    """Who is a member of the cluster. `epoch_ms`: the wall clock at this start of the broker, in milliseconds."""

    def __init__(self, cluster: str, epoch_ms: int, now: float, options: RegistryOptions | None = None) -> None:
        self.cluster = cluster
        self.options = options or RegistryOptions()
        self.book = Book(epoch_ms, self.options)
        self.epoch = self.book.epoch
        self.changes = Changes(self.epoch)
        self.groups = Groups(self.options.heartbeat_interval)
        self.barrier = Barrier()
        self.refused: dict[str, int] = {}
        """HELLOs that were refused, by the error's type."""
        self._flush_at: float | None = None
        self._progress_at: float | None = None
        self._progress_not_before = now
        self._deaths: list[tuple[float, int, int]] = []
        self._no_deaths_before = now
        self._return_until = now + self.options.death_timeout
        self._newcomers_from = now + FIRST_RETURN if self.options.is_successor else now
        self._on_event: dict[type[Any], Callable[[Any, float], list[Effect]]] = {
            Arrival: self._on_arrival,
            RouteLoss: self._on_route_loss,
            Exit: self._on_exit,
            Expectation: self._on_expectation,
            StopDemand: self._on_stop_demand,
            Tick: lambda event, now: [],
        }
        self._on_message: dict[type[Message], Callable[[Record, Any, float], list[Effect]]] = {
            Beat: self._on_beat,
            Resolve: self._on_resolve,
            ShutdownReport: self._on_shutdown_report,
            Goodbye: self._on_goodbye,
        }

    def __repr__(self) -> str:
        return f"<Registry {self.cluster} living={self.book.living_count} sequence={self.changes.sequence}>"

    def next_deadline(self) -> float | None:
        """When `Tick` is due."""
        death = self._deaths[0][0] if self._deaths else None
        return earliest(death, self._flush_at, self._progress_at, self.barrier.next_deadline())

    def handle(self, event: object, now: float) -> list[Effect]:
        """Take one event; timers that are due run after it."""
        if self._deaths and now > self._deaths[0][0] + STALL:
            self._no_deaths_before = now + self.options.death_timeout
        effects = self._on_event[type(event)](event, now)
        effects += self._run_timers(now)
        return effects

    # -------------------------------------------------------------------------------------------- timers

    def _run_timers(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._deaths and self._deaths[0][0] <= now:
            effects += self._check_death(heapq.heappop(self._deaths), now)
        effects += self._perform(self.barrier.tick(now))
        if self._flush_at is not None and now >= self._flush_at:
            effects += self._flush(now)
        if self._progress_at is not None and now >= self._progress_at:
            effects += self._tell_waiting(now)
        return effects

    def _check_death(self, due: tuple[float, int, int], now: float) -> list[Effect]:
        _, worker_id, incarnation = due
        record = self.book.by_id.get(worker_id)
        if record is None or not record.is_living or record.incarnation != incarnation:
            return []
        options = self.options
        patience = options.death_timeout if record.route is None else options.silence_timeout
        silent_until = max(record.heard_at + patience, self._no_deaths_before)
        lost_until = None if record.lost_at is None else record.lost_at + options.loss_grace
        if lost_until is not None and lost_until <= now:
            return self._end(record, "died", "its connection closed", now)
        if silent_until <= now:
            return self._end(record, "died", f"it was not heard of for {now - record.heard_at:.1f} s", now)
        deadline = silent_until if lost_until is None else min(silent_until, lost_until)
        heapq.heappush(self._deaths, (deadline, worker_id, incarnation))
        return []

    def _flush(self, now: float) -> list[Effect]:
        self._flush_at = None
        if not self.changes.is_pending:
            return []
        routes = tuple(route for route, record in self.book.by_route.items() if record.state == UP)
        delta = self.changes.take_delta()
        return [Broadcast(delta, routes)] if routes else []

    def _tell_waiting(self, now: float) -> list[Effect]:
        self._progress_at = None
        self._progress_not_before = now + self.options.progress_interval
        effects: list[Effect] = []
        for progress, records in self.groups.waiting():
            routes = tuple(record.route for record in records if record.route is not None)
            if routes:
                effects.append(Broadcast(progress, routes))
        return effects

    # ------------------------------------------------------------------------------------------ arrivals

    def _on_arrival(self, event: Arrival, now: float) -> list[Effect]:
        message = event.message
        if isinstance(message, Hello):
            return self._on_hello(event.route, message, now)
        if isinstance(message, Stop):
            return self._on_stop_order(event.route, message, now)
        record = self.book.by_route.get(event.route)
        if record is None or (event.incarnation and record.incarnation != event.incarnation):
            record = self._find_life(event)
        if record is None:
            return [] if isinstance(message, Goodbye) else [Send(Challenge(self.epoch), event.route)]
        self.book.connect(record, event.route, now)
        return self._on_message[type(message)](record, message, now)

    def _find_life(self, event: Arrival) -> Record | None:
        """The living member that the sender says it is."""
        record = self.book.by_id.get(event.sender)
        if record is not None and record.is_living and record.incarnation == event.incarnation:
            return record
        return None

    def _on_beat(self, record: Record, message: Beat, now: float) -> list[Effect]:
        record.statistics = message.statistics
        effects: list[Effect] = []
        if record.stop_why is not None and not message.stopping:
            effects.append(self._stop(record, record.stop_why))
        behind = message.sequence < self.changes.told and now >= record.refreshed_at + RESEND
        if record.state == UP and behind:
            effects += self._on_resolve(record, Resolve(), now)
        return effects

    def _on_resolve(self, record: Record, message: Resolve, now: float) -> list[Effect]:
        if record.state != UP or record.route is None:
            return []
        effects = self._bury(record, message, now)
        record.refreshed_at = now
        return [*effects, Send(self.changes.snapshot(), record.route, record.incarnation)]

    def _bury(self, teller: Record, message: Resolve, now: float) -> list[Effect]:
        """An earlier broker told of the end of lives that returned to this one: they cannot go on as if it had not."""
        effects: list[Effect] = []
        for gone in message.over:
            record = self.book.by_id.get(gone.id)
            if record is None or record is teller or not record.is_living or record.incarnation != gone.incarnation:
                continue
            if record.route is not None:
                stale = StaleIncarnation(
                    f"worker {record.name!r} was declared dead before this broker began ({gone.why}), and everybody was "
                    "told so. Start it again: it will be a new incarnation."
                )
                effects.append(Send(Refusal.of(stale), record.route, record.incarnation))
            effects += self._end(record, "died", gone.why or "it was declared dead before", now)
        return effects

    def _on_goodbye(self, record: Record, message: Goodbye, now: float) -> list[Effect]:
        return self._end(record, "left", message.why or "it left", now)

    def _on_shutdown_report(self, record: Record, message: ShutdownReport, now: float) -> list[Effect]:
        counts = Counts(message.sent, message.served, message.active)
        effects = self._perform(self.barrier.report(record.id, message.round, counts, now))
        if self.barrier.short() and record.route is not None:
            missing = tuple(self.book.by_id[worker_id].name for worker_id in self.barrier.missing(MAX_TOLD))
            state = ShutdownState(self.barrier.round, False, missing, self.barrier.short())
            effects.append(Send(state, record.route, record.incarnation))
        return effects

    def _perform(self, decisions: list[Ask | Release]) -> list[Effect]:
        effects: list[Effect] = []
        for decision in decisions:
            records = [self.book.by_id[worker_id] for worker_id in decision.ids]
            routes = tuple(record.route for record in records if record.route is not None)
            state = ShutdownState(self.barrier.round, isinstance(decision, Release))
            if routes:
                effects.append(Broadcast(state, routes))
        return effects

    # --------------------------------------------------------------------------------------------- HELLO

    def _on_hello(self, route: bytes, hello: Hello, now: float) -> list[Effect]:
        try:
            check_name(hello.name)
        except InvalidName as error:
            return self._refuse_newcomer(route, hello, error, now)
        if self.groups.failure is not None and hello.strict and hello.world_size:
            return [*self._refuse(route, hello, self.groups.failure), self._note_failure(hello.nonce)]
        other = self.book.by_route.get(route)
        if other is not None and other.name != hello.name:
            return self._refuse(route, hello, JoinRefused(f"this connection is that of worker {other.name!r}."))
        record = self.book.by_name.get(hello.name)
        if hello.incarnation:
            return self._on_return(route, hello, record, now)
        if record is not None and record.hello is not None and record.hello.nonce == hello.nonce:
            if record.is_living:
                return self._answer_again(route, record, now)
            if record.by_will:
                return []  # a HELLO that was overtaken by its own GOODBYE
        if record is not None and record.is_living:
            if record.lost_at is not None:
                return []  # the holder is likely dead; the newcomer asks again, when that is known
            holder = record.member()
            where = f"process {holder.pid} on {holder.host}" if holder.host else holder.address
            return self._refuse_newcomer(route, hello, NameTaken(hello.name, where), now)
        return self._on_newcomer(route, hello, record, now)

    def _answer_again(self, route: bytes, record: Record, now: float) -> list[Effect]:
        self.book.connect(record, route, now)
        if record.state == WAITING:
            return [Send(self.groups.progress(record), route)]
        return [self._welcome(record, now)]

    def _on_newcomer(self, route: bytes, hello: Hello, record: Record | None, now: float) -> list[Effect]:
        if now < self._newcomers_from:
            return []  # it asks again; members of the earlier broker, who have ids, come first
        error = self._limit_refusal() or self.groups.refusal(hello) or self._rank_refusal(hello, record)
        if error is not None:
            return self._refuse_newcomer(route, hello, error, now)
        record = self.book.claim(hello.name, hello.id)
        self.book.begin_life(record)
        self._begin(record, "joined", route, hello, now)
        self.groups.add(record, waits=True)
        return self._after_change(now, record)

    def _refuse_newcomer(self, route: bytes, hello: Hello, error: ZrpcError, now: float) -> list[Effect]:
        """Refuse a process that is not a member. With it a strict static group fails: all who wait are refused too."""
        effects = self._refuse(route, hello, error)
        if not self.groups.fails_with(hello):
            return effects
        self.groups.failure = error
        told = self._note_failure(hello.nonce)
        for record in self.groups.waiting_static():
            if record.hello is not None and record.route is not None:
                effects.append(Send(Refusal.of(error, record.hello.nonce), record.route))
                told = self._note_failure(record.hello.nonce)
            effects += self._end(record, "left", "its group failed", now)
        return [*effects, told]

    def _note_failure(self, nonce: int) -> Announce:
        groups = self.groups
        groups.failure_told.add(nonce)
        assert groups.failure is not None
        return Announce(GroupFailed(groups.failure, len(groups.failure_told)))

    def _limit_refusal(self) -> ZrpcError | None:
        limit = self.options.max_members
        if self.book.living_count < limit:
            return None
        return JoinRefused(f"the cluster has {limit} members, as many as its broker takes.")

    def _rank_refusal(self, hello: Hello, record: Record | None) -> ZrpcError | None:
        """A static member gets the rank that it asks for, or nothing; others take what is free."""
        if not hello.world_size or hello.id < 0:
            return None
        why = None
        if record is not None and record.state != ABSENT:
            why = f"and has id {record.id} in this cluster already" if record.id != hello.id else None
        elif not self.book.is_id_free(hello.id, hello.name):
            holder = self.book.by_id.get(hello.id)
            why = "which " + (f"is that of worker {holder.name!r}" if holder is not None else "was used before")
        return None if why is None else JoinRefused(f"worker {hello.name!r} asks for rank {hello.id}, {why}.")

    def _on_return(self, route: bytes, hello: Hello, record: Record | None, now: float) -> list[Effect]:
        """A member says HELLO again: its connection was renewed, or this broker does not know it (any more)."""
        if record is not None and record.incarnation == hello.incarnation:
            if record.is_living:
                record.hello = hello
                self.book.connect(record, route, now)
                return [self._welcome(record, now)] if record.state == UP else self._answer_again(route, record, now)
            # Others were told that this life is over, and have given up what was here: it cannot go on as if it were not.
            stale = StaleIncarnation(
                f"worker {record.name!r} has ended, as far as this broker knows ({record.why}), and everybody was told so. "
                "Start it again: it will be a new incarnation."
            )
            return self._refuse(route, hello, stale)
        if record is not None and (record.incarnation > hello.incarnation or record.id != hello.id):
            return self._refuse(route, hello, self._newer_life(hello.name))
        if not self.book.is_id_free(hello.id, hello.name):
            stale = StaleIncarnation(f"the id {hello.id} of worker {hello.name!r} has another worker now.")
            return self._refuse(route, hello, stale)
        effects: list[Effect] = []
        if record is not None and record.is_living:
            if record.route is not None:
                stale = self._newer_life(hello.name)
                effects.append(Send(Refusal.of(stale), record.route, record.incarnation))
            effects += self._end(record, "died", "its name has a newer life", now)
        return effects + self._adopt(route, hello, self.book.claim(hello.name, hello.id), now)

    @staticmethod
    def _newer_life(name: str) -> StaleIncarnation:
        return StaleIncarnation(f"the name {name!r} has a newer life; this one is over.")

    def _adopt(self, route: bytes, hello: Hello, record: Record, now: float) -> list[Effect]:
        error = self._limit_refusal()
        if error is not None:
            return self._refuse(route, hello, error)
        self.book.note_survivor(hello.incarnation)
        if hello.incarnation < self.epoch:
            self._newcomers_from = self._return_until
        record.incarnation = hello.incarnation
        record.life = max(record.life, hello.life)
        self._begin(record, "adopted", route, hello, now)
        self.groups.add(record, waits=False)
        self._enter_up(record, now)
        return [Announce(MemberUp(record.member())), self._welcome(record, now), *self._after_change(now, None)]

    def _begin(self, record: Record, cause: str, route: bytes, hello: Hello, now: float) -> None:
        record.move(cause)
        record.hello = hello
        record.joined_at = record.refreshed_at = now
        record.stop_why = None
        record.by_will = False
        record.why = ""
        record.statistics = {}
        self.book.connect(record, route, now)
        self.book.note_living(record)
        first = min(self.options.death_timeout, self.options.silence_timeout)
        heapq.heappush(self._deaths, (now + first, record.id, record.incarnation))

    def _refuse(self, route: bytes, hello: Hello, error: ZrpcError) -> list[Effect]:
        name = type(error).__name__
        self.refused[name] = self.refused.get(name, 0) + 1
        return [Send(Refusal.of(error, hello.nonce), route)]

    def _welcome(self, record: Record, now: float) -> Send:
        assert record.hello is not None
        assert record.route is not None
        record.refreshed_at = now
        options = self.options
        welcome = Welcome(
            record.hello.nonce,
            record.id,
            record.incarnation,
            record.life,
            self.cluster,
            self.epoch,
            self.changes.sequence,
            options.heartbeat_interval,
            options.death_timeout,
            self.changes.roster(),
        )
        return Send(welcome, record.route)

    # ----------------------------------------------------------------------------------- coming and going

    def _after_change(self, now: float, newcomer: Record | None) -> list[Effect]:
        """Let in who waits for nothing any more; tell the others how it stands."""
        ready = self.groups.take_ready()
        for record in ready:
            record.move("admitted")
            self._enter_up(record, now)
        effects: list[Effect] = []
        for record in ready:
            effects.append(Announce(MemberUp(record.member())))
            if record.route is not None:
                effects.append(self._welcome(record, now))
        if self.groups.has_waiting:
            if newcomer is not None and newcomer.state == WAITING and newcomer.route is not None:
                effects.append(Send(self.groups.progress(newcomer), newcomer.route))
            if self._progress_at is None:
                self._progress_at = max(now + self.options.flush_interval, self._progress_not_before)
        return effects

    def _enter_up(self, record: Record, now: float) -> None:
        self.changes.add(record.member())
        if self._flush_at is None:
            self._flush_at = now + self.options.flush_interval
        if record.is_static:
            self.barrier.enter(record.id)
        else:
            self.barrier.is_closed_group = False

    def _end(self, record: Record, cause: str, why: str, now: float, by_will: bool = False) -> list[Effect]:
        """A life is over. `by_will`: it cannot come back (it left, or its process has ended)."""
        was_up = record.state == UP
        member = record.member()
        record.move(cause)
        record.by_will = by_will or cause == "left"
        record.why = why
        self.groups.remove(record)
        effects: list[Effect] = [Announce(MemberGone(member, why))]
        if was_up:
            self.changes.remove(Gone(record.name, record.id, record.incarnation, why[:1024]))
            if self._flush_at is None:
                self._flush_at = now + self.options.flush_interval
            decisions = self.barrier.leave(record.id, now, lost=cause == "died")
            effects += self._perform(decisions)
        self.book.note_dead(record)
        return effects + self._after_change(now, None)

    def _on_route_loss(self, event: RouteLoss, now: float) -> list[Effect]:
        record = self.book.by_route.pop(event.route, None)
        if record is None:
            return []
        record.route = None
        record.lost_at = now
        heapq.heappush(self._deaths, (now + self.options.loss_grace, record.id, record.incarnation))
        return []

    def _on_exit(self, event: Exit, now: float) -> list[Effect]:
        record = self.book.by_name.get(event.name)
        if record is None or record.hello is None or event.pid not in (0, record.hello.pid):
            return []
        if not record.is_living:
            record.by_will = True  # declared dead before, and now known to be
            return []
        return self._end(record, "died", event.why, now, by_will=True)

    def _on_expectation(self, event: Expectation, now: float) -> list[Effect]:
        for name in map(check_name, event.names):
            self.book.claim(name, -1)
        self.groups.expect(event.names)
        return self._after_change(now, None)

    # ------------------------------------------------------------------------------------- stop and status

    def _on_stop_demand(self, event: StopDemand, now: float) -> list[Effect]:
        effects: list[Effect] = [Announce(StopRequested(event.why, event.names))]
        names = None if event.names is None else set(event.names)
        for record in self.book.living():
            if names is None or record.name in names:
                record.stop_why = event.why
                if record.route is not None:
                    effects.append(self._stop(record, event.why))
        return effects

    def _stop(self, record: Record, why: str) -> Send:
        assert record.route is not None
        # A waiting member does not know its incarnation yet.
        return Send(Stop(why), record.route, record.incarnation if record.state == UP else 0)

    def _on_stop_order(self, route: bytes, message: Stop, now: float) -> list[Effect]:
        names = {record.name for record in self.book.living()}
        asked = sorted(names if message.names is None else names.intersection(message.names))
        unknown = sorted(set(message.names or ()) - names)
        effects = self._on_stop_demand(StopDemand(message.names, message.why), now)
        return [*effects, Send(Answer({"stopping": asked, "unknown": unknown}), route)]

    def describe(self, now: float) -> dict[str, Any]:
        """The cluster as tools see it: plain values."""
        living = list(self.book.living())
        waiting = [progress for progress, _ in self.groups.waiting()]
        return {
            "cluster": self.cluster,
            "epoch": self.epoch,
            "sequence": self.changes.sequence,
            "members": [record.describe(now) for record in living],
            "missing": sorted({name for progress in waiting for name in progress.missing}),
            "refused_members": dict(self.refused),
        }
