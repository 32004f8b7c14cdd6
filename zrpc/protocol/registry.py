"""The broker's machine: takes HELLOs, beats, losses and exits; decides who is a member, and tells everybody.

One rule: no step costs more than the number of members, and what everyone is told is collected for a while and encoded
once.

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
from zrpc.errors import StaleIncarnation
from zrpc.ids import check_name
from zrpc.protocol.admission import Admission
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Counts,
    Effect,
    Exit,
    Expectation,
    RouteLoss,
    ScaleRequested,
    Send,
    StopDemand,
    StopRequested,
    Tick,
)
from zrpc.protocol.membership import UP, Record, RegistryOptions
from zrpc.wire.messages import (
    MAX_TOLD,
    Answer,
    Beat,
    Challenge,
    Goodbye,
    Hello,
    Message,
    Refusal,
    Resolve,
    Scale,
    ShutdownReport,
    ShutdownState,
    Stop,
)

STALL: Final = 1.0
"""Seconds that a deadline may be late before this process counts as having been stopped itself: nobody is declared dead
for a silence that we did not listen to."""
FIRST_RETURN: Final = 1.5
"""Seconds that a broker which follows another one waits for a first member to return, before it takes newcomers: they try
to connect again at least once a second. When one has, the others have `death_timeout` from the broker's start."""
RESEND: Final = 1.0
"""Seconds between two answers to a member that is behind, and after which it counts as behind."""


class Registry(Admission):
    """Who is a member of the cluster. `epoch_ms`: the wall clock at this start of the broker, in milliseconds."""

    def __init__(self, cluster: str, epoch_ms: int, now: float, options: RegistryOptions | None = None) -> None:
        super().__init__(cluster, epoch_ms, now, options)
        self._no_deaths_before = now
        self._excused_at = float("-inf")
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
            self.forgive(now)
        effects = self._on_event[type(event)](event, now)
        effects += self._run_timers(now)
        return effects

    def forgive(self, now: float) -> None:
        """Silence until now says nothing of the members: they could not reach this broker, or it did not hear."""
        self._no_deaths_before = now + self.options.death_timeout

    def excuse(self, now: float) -> None:
        """As `forgive`, also for connections that are lost by now: it was this broker that could not be reached."""
        self.forgive(now)
        self._excused_at = now

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
        if self.holds_deaths:
            heapq.heappush(self._deaths, (now + options.loss_grace, worker_id, incarnation))
            return []
        patience = options.death_timeout if record.route is None else options.silence_timeout
        silent_until = max(record.heard_at + patience, self._no_deaths_before)
        lost_until = None if record.lost_at is None else record.lost_at + options.loss_grace
        if record.lost_at is not None and record.lost_at <= self._excused_at:
            lost_until = self._excused_at + options.death_timeout
        if lost_until is not None and lost_until <= now:
            return self._end(record, "died", "its connection closed", now)
        if silent_until <= now:
            return self._end(record, "died", f"it was not heard of for {now - record.heard_at:.1f} s", now)
        deadline = silent_until if lost_until is None else min(silent_until, lost_until)
        heapq.heappush(self._deaths, (deadline, worker_id, incarnation))
        return []

    # ------------------------------------------------------------------------------------------ arrivals

    def _on_arrival(self, event: Arrival, now: float) -> list[Effect]:
        message = event.message
        if isinstance(message, Hello):
            return self._on_hello(event.route, message, now)
        if isinstance(message, Stop):
            return self._on_stop_order(event.route, message, now)
        if isinstance(message, Scale):
            return self._on_scale(event.route, message)
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
        if message.draining and record.state == UP and not record.is_draining:
            effects += self._drain(record, now)
        if record.stop_why is not None and not message.stopping:
            effects.append(self._stop(record, record.stop_why))
        if record.state != UP or now < record.refreshed_at + RESEND:
            return effects
        # What was told a moment ago may have crossed this beat: while many join, that is so of nearly every one, and a
        # whole membership for each would cost the square of their number.
        if message.sequence < self.changes.told_by(now - RESEND):
            effects += self._on_resolve(record, Resolve(message.sequence), now)
        return effects

    def _on_resolve(self, record: Record, message: Resolve, now: float) -> list[Effect]:
        if record.state != UP or record.route is None:
            return []
        effects = self._bury(record, message, now)
        record.refreshed_at = now
        return [*effects, Send(self.changes.answer(message.sequence), record.route, record.incarnation)]

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

    # ------------------------------------------------------------------------------------- other events

    def _on_route_loss(self, event: RouteLoss, now: float) -> list[Effect]:
        self.quota.close(event.route)
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
            self._touch(record)
            return []
        return self._end(record, "died", event.why, now, by_will=True)

    def _on_expectation(self, event: Expectation, now: float) -> list[Effect]:
        for name in map(check_name, event.names):
            self._touch(self.book.claim(name, -1))
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

    def _on_scale(self, route: bytes, message: Scale) -> list[Effect]:
        if message.role not in self.scalable:
            known = ", ".join(sorted(self.scalable)) or "none: no launcher started this cluster"
            why = f"there is no role {message.role!r} that can be scaled; there are {known}"
            return [Send(Answer({"error": why}), route)]
        return [
            Announce(ScaleRequested(message.role, message.count)),
            Send(Answer({"role": message.role, "count": message.count}), route),
        ]

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
