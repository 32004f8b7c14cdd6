"""The broker's lives: how a member's life begins and ends, and how everybody is told.

One rule: whatever changes the membership goes through `_enter_up`, `_drain` or `_end`; nothing else touches what is told.
"""

from __future__ import annotations

import heapq
from typing import Final

from zrpc.protocol.changes import Changes
from zrpc.protocol.effects import Announce, Broadcast, Effect, MemberDraining, MemberGone, MemberUp, Send
from zrpc.protocol.groups import Groups
from zrpc.protocol.membership import UP, WAITING, Book, Record, RegistryOptions
from zrpc.protocol.quota import NameQuota
from zrpc.protocol.shutdown import Ask, Barrier, Release
from zrpc.wire.messages import Gone, Hello, ShutdownState, Welcome

TELL_SECONDS: Final = 50e-6
"""Changes are collected for so long for each member, if that is longer: to tell one takes about 20 us, so even while
thousands leave, telling takes less than half of the broker's time."""
JOIN_SECONDS: Final = 100e-6
"""The same for those who come. Nobody waits for that in vain: whoever looks for one asks."""


class Lives:
    """What a registry knows, and the steps by which it changes."""

    def __init__(self, cluster: str, epoch_ms: int, now: float, options: RegistryOptions | None = None) -> None:
        self.cluster = cluster
        self.options = options or RegistryOptions()
        self.book = Book(epoch_ms, self.options)
        self.epoch = self.book.epoch
        self.quota = NameQuota(self.options.names_per_host, self.options.names_per_connection)
        self.changes = Changes(self.epoch, self.options.small)
        self.groups = Groups(self.options.heartbeat_interval)
        self.barrier = Barrier()
        self.refused: dict[str, int] = {}
        """HELLOs that were refused, by the error's type."""
        self.scalable: frozenset[str] = frozenset()
        """Roles of which more or fewer workers may be asked for."""
        self.touched: dict[str, Record] | None = None
        """What a standby is yet to be told of, by name; None: there is none."""
        self.admits = True
        """Whether newcomers are let in now; those who are not ask again."""
        self.holds_deaths = False
        """Whether nobody is declared dead for now: this broker may be the one that nobody hears."""
        self.is_heir = False
        """Whether this broker knows all members of the one that it follows: newcomers need not wait for their return."""
        self._flush_at: float | None = None
        self._progress_at: float | None = None
        self._progress_not_before = now
        self._deaths: list[tuple[float, int, int]] = []
        self._return_until = now + self.options.death_timeout
        self._newcomers_from = self._return_until if self.options.is_successor else now

    def _touch(self, record: Record) -> None:
        if self.touched is not None:
            self.touched[record.name] = record

    def tell_standby(self, address: str, now: float) -> None:
        """Have the members told where the standby broker is."""
        self.changes.tell_standby(address)
        if self._flush_at is None:
            self._flush_at = now + self.options.flush_interval

    def _begin(self, record: Record, cause: str, route: bytes, hello: Hello, now: float) -> None:
        record.move(cause)
        record.hello = hello
        record.joined_at = record.refreshed_at = now
        record.stop_why = None
        record.by_will = record.is_draining = False
        record.why = ""
        record.statistics = {}
        self._touch(record)
        self.book.connect(record, route, now)
        self.book.note_living(record)
        self.quota.begin(record.name, hello.host, route)
        first = min(self.options.death_timeout, self.options.silence_timeout)
        heapq.heappush(self._deaths, (now + first, record.id, record.incarnation))

    def _welcome(self, record: Record, now: float) -> Send:
        assert record.hello is not None
        assert record.route is not None
        record.refreshed_at = now
        options = self.options
        members, up, gone = self.changes.everybody()
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
            members,
            self.book.floor,
            self.changes.standby,
            up,
            gone,
        )
        return Send(welcome, record.route)

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
        self._touch(record)
        self.changes.add(record.member())
        self._flush_soon(now, JOIN_SECONDS)
        if record.is_static:
            self.barrier.enter(record.id)
        else:
            self.barrier.is_closed_group = False

    def take_up(self, record: Record, now: float) -> None:
        """A record that was inherited is up; its member has `death_timeout` to come."""
        heapq.heappush(self._deaths, (now + self.options.death_timeout, record.id, record.incarnation))
        if record.hello is not None:
            self.quota.begin(record.name, record.hello.host, b"")
            self.quota.close(b"")  # over which connection it comes is not known yet
        self.groups.add(record, waits=False)
        self._enter_up(record, now)

    def is_open(self, now: float) -> bool:
        """Whether newcomers need not wait for members of an earlier broker."""
        return now >= self._newcomers_from

    def admit_from(self, when: float) -> None:
        """Newcomers are let in from then on."""
        self._newcomers_from = when

    def _drain(self, record: Record, now: float) -> list[Effect]:
        """A member takes no new work: everybody is told, so that they can choose another."""
        record.is_draining = True
        self._touch(record)
        self.changes.add(record.member())
        self._flush_soon(now)
        return [Announce(MemberDraining(record.member()))]

    def _end(self, record: Record, cause: str, why: str, now: float, by_will: bool = False) -> list[Effect]:
        """A life is over. `by_will`: it cannot come back (it left, or its process has ended)."""
        was_up = record.state == UP
        member = record.member()
        record.move(cause)
        record.by_will = by_will or cause == "left"
        record.why = why
        self._touch(record)
        self.groups.remove(record)
        effects: list[Effect] = [Announce(MemberGone(member, why, cause))]
        if was_up:
            self.changes.remove(Gone(record.name, record.id, record.incarnation, why[:1024], cause))
            self._flush_soon(now)
            decisions = self.barrier.leave(record.id, now, lost=cause == "died")
            effects += self._perform(decisions)
        self.book.note_dead(record)
        self.quota.end(record.name)
        return effects + self._after_change(now, None)

    def _flush_soon(self, now: float, for_each: float = TELL_SECONDS) -> None:
        """Have everybody told what has changed, within `for_each` second and member."""
        at = now + max(self.options.flush_interval, self.book.living_count * for_each)
        if self._flush_at is None or at < self._flush_at:
            self._flush_at = at

    def _flush(self, now: float) -> list[Effect]:
        self._flush_at = None
        if not self.changes.is_pending:
            return []
        routes = tuple(route for route, record in self.book.by_route.items() if record.state == UP)
        delta = self.changes.take_delta(now)
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

    def _perform(self, decisions: list[Ask | Release]) -> list[Effect]:
        effects: list[Effect] = []
        for decision in decisions:
            records = [self.book.by_id[worker_id] for worker_id in decision.ids]
            routes = tuple(record.route for record in records if record.route is not None)
            state = ShutdownState(self.barrier.round, isinstance(decision, Release))
            if routes:
                effects.append(Broadcast(state, routes))
        return effects
