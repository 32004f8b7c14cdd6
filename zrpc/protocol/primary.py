"""A broker in charge: its registry, the standby that follows it, and whether it may let newcomers in.

One rule: a broker that has a standby gives no id unless it knows that the standby has not taken over. It knows by hearing
of the standby, in answer to a REPLICA of less than `2 * heartbeat_interval` ago; or by hearing, within that time, of
half of the members that the standby knows of, for it takes over only when more than half have said for as long that they
lost their broker. After it was stopped itself for a while the second does not count, until what it reads is new.

While it does not know, it declares nobody dead either: it may be the one that is cut off.

And if all of this fails, because a network delivers what is seconds old: ids of the two cannot be the same. The standby
gives none below the `floor` that it was told, and the broker none that the standby has not confirmed to be below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from zrpc.clock import earliest
from zrpc.errors import JoinRefused
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Effect,
    RouteLoss,
    Send,
    StandbyJoined,
    StandbyLost,
    StopDemand,
)
from zrpc.protocol.heritage import entry_of
from zrpc.protocol.membership import GONE, UP, Record
from zrpc.protocol.registry import RESEND, Registry
from zrpc.wire.messages import MAX_ID, Challenge, Goodbye, Hello, Refusal, Stop
from zrpc.wire.succession import Follow, Replica, Vote

BLOCK: Final = 256
"""Ids that are set aside for the broker, or as many as it has members if these are more: so many new names, at least half
of them, it can take while its standby is away. Each take-over may skip as many, and ids are to stay small: distributed
autograd has 15 bits for one."""
MAX_EARLY: Final = 4096
RECOUNT: Final = 1 / 8
"""Part of the time for which a sign of life counts, for which a count of members that were heard of does."""
REMEMBERED: Final = 64
"""Times of REPLICAs that an answer may still come to."""


def fresh_time(heartbeat_interval: float) -> float:
    """Seconds for which a sign of life counts, between a broker, its standby and their members."""
    return 2 * heartbeat_interval


Life = tuple[int, int]
"""The id and incarnation of a member."""


class Pair:
    """The standby, as its primary sees it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.route: bytes | None = None
        self.floor = 0
        """Ids below are set aside for the primary."""
        self.confirmed_floor = 0
        self.confirmed = 0
        """The last change that the standby has."""
        self.fresh_at = float("-inf")
        """When the last REPLICA was sent that the standby has answered."""
        self.full_at = float("-inf")
        self.sent: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)
        self.core: set[Life] = set()
        """Members that the standby knows of for certain."""
        self.voters: set[Life] = set()
        """Members that it may know of: those whose word it may take over by."""
        self.heard = 0
        """Of `core`, at least so many have been heard of recently enough, as long as `heard_until` is not over."""
        self.heard_until = float("-inf")

    def note_told(self, record: Record) -> None:
        """The standby is being told of a record."""
        life = record.id, record.incarnation
        if record.state == UP:
            self.voters.add(life)
        else:
            self._forget(life)

    def note_end(self, record: Record) -> None:
        """A life is over for certain: it has no say any more, whatever the standby knows."""
        self._forget((record.id, record.incarnation))
        self.voters.discard((record.id, record.incarnation))

    def _forget(self, life: Life) -> None:
        if life in self.core:
            self.core.remove(life)
            self.heard -= 1  # if it was one of them

    def confirm(self, message: Follow, sequence: int, living: Iterable[Record]) -> None:
        """The standby says what it has; `sequence` is what it could have."""
        if message.sequence == sequence and (self.confirmed != sequence or not self.confirmed_floor):
            self.voters = {(record.id, record.incarnation) for record in living if record.state == UP}
            self.core = set(self.voters)
            self.heard_until = float("-inf")
        self.confirmed = message.sequence
        self.confirmed_floor = max(self.confirmed_floor, min(message.floor, self.floor))
        for number, at in self.sent:
            if number == message.beat:
                self.fresh_at = max(self.fresh_at, at)


class Primary:
    """A registry with, perhaps, a standby. `heirs`: members that this broker took over by the word of; it is sure of itself
    only when more than half of them have come, for they might have gone back to the other one in that moment."""

    def __init__(self, registry: Registry, now: float, heirs: Iterable[Life] = ()) -> None:
        self.registry = registry
        self.pair: Pair | None = None
        self._heirs = frozenset(heirs)
        self._came: set[Life] = set()
        self._sure_from = float("inf") if self._heirs else now
        self._early: dict[bytes, None] = {}
        """Routes of newcomers that came too early."""
        self._sequence = 0
        self._beat = 0
        self._beat_at: float | None = None
        self._unsure_until = now

    def __repr__(self) -> str:
        return f"<Primary {self.registry!r} standby={self.pair.address if self.pair else None}>"

    @property
    def epoch(self) -> int:
        return self.registry.epoch

    def next_deadline(self) -> float | None:
        """When `Tick` is due."""
        opening = self._sure_from if self._early and self._sure_from != float("inf") else None
        return earliest(self.registry.next_deadline(), self._beat_at, opening)

    def may_admit(self, now: float) -> bool:
        """Whether it is certain that nobody else is in charge, and that ids are left which nobody else gives."""
        if not self.registry.is_open(now) or not self._is_sure(now):
            return False
        return self.pair is None or self.registry.book.floor < self.pair.confirmed_floor

    def _is_sure(self, now: float) -> bool:
        """Whether it is certain that the standby has not taken over."""
        pair = self.pair
        if now < self._sure_from:
            return False
        if pair is None:
            return True
        fresh = fresh_time(self.registry.options.heartbeat_interval)
        if now <= pair.fresh_at + fresh:
            return True
        if now < self._unsure_until or not pair.voters:
            return False
        if now >= pair.heard_until:
            # Looking at every member for each of their beats would cost the square of their number. Who was heard of less
            # than `fresh` ago at the end of that time, has been for all of it.
            pair.heard_until = now + fresh * RECOUNT
            pair.heard = self._count_heard(pair, pair.heard_until - fresh)
        return 2 * pair.heard >= len(pair.voters)

    def _count_heard(self, pair: Pair, since: float) -> int:
        count, by_id = 0, self.registry.book.by_id
        for worker, incarnation in pair.core:
            record = by_id.get(worker)
            if record is None or record.incarnation != incarnation or record.route is None or record.state != UP:
                continue
            count += record.heard_at >= since
        return count

    def handle(self, event: object, now: float) -> list[Effect]:
        """Take an event of a registry, or one of the standby."""
        self._notice_stall(now)
        held, self.registry.holds_deaths = self.registry.holds_deaths, not self._is_sure(now)
        if held and not self.registry.holds_deaths:
            self.registry.excuse(now)  # it was we who were cut off: members have just begun to return
        effects: list[Effect] = []
        if isinstance(event, Arrival):
            message = event.message
            if isinstance(message, Follow):
                return [*self._on_follow(event.route, message, now), *self._replicate(now)]
            if isinstance(message, Vote):
                return [Send(Challenge(self.epoch), event.route)] if message.lost else []
            if isinstance(message, Goodbye) and self._is_pair(event.route):
                return self._lose(True, now)
            if isinstance(message, Hello):
                self._note_heir(message, now)
                self.registry.admits = self.may_admit(now)
                if now < self._sure_from and not message.incarnation and len(self._early) < MAX_EARLY:
                    self._early[event.route] = None
        elif isinstance(event, RouteLoss):
            if self._is_pair(event.route):
                return self._lose(False, now)
            if self.pair is not None:
                self.pair.heard -= 1  # if it was the route of one of them
        elif isinstance(event, StopDemand) and event.names is None:
            effects += self.farewell(event.why)
        effects += self.registry.handle(event, now)
        return [*effects, *self._call_newcomers(now), *self._replicate(now)]

    def _call_newcomers(self, now: float) -> list[Effect]:
        """Those who came too early need not wait until they ask again."""
        if not self._early or now < self._sure_from:
            return []
        routes, self._early = tuple(self._early), {}
        return [Broadcast(Challenge(self.epoch), routes)]

    def farewell(self, why: str) -> list[Effect]:
        """Have the standby end too."""
        pair = self.pair
        return [] if pair is None or pair.route is None else [Send(Stop(why), pair.route)]

    def _note_heir(self, message: Hello, now: float) -> None:
        life = message.id, message.incarnation
        if life not in self._heirs or life in self._came:
            return
        self._came.add(life)
        if self._sure_from == float("inf") and 2 * len(self._came) > len(self._heirs):
            # The other one may count them as its own for as long as what it heard of them is fresh.
            self._settle(now + fresh_time(self.registry.options.heartbeat_interval), now)

    def _settle(self, when: float, now: float) -> None:
        self._sure_from = when
        self.registry.forgive(now)

    def _is_pair(self, route: bytes) -> bool:
        return self.pair is not None and self.pair.route == route

    def _notice_stall(self, now: float) -> None:
        """What is read after a stop of this process may be old: beats of members that have gone over since."""
        interval = self.registry.options.heartbeat_interval
        if self._beat_at is not None and now > self._beat_at + interval:
            self._unsure_until = now + 2 * fresh_time(interval)

    # ------------------------------------------------------------------------------------------ the standby

    def _on_follow(self, route: bytes, message: Follow, now: float) -> list[Effect]:
        pair = self.pair
        if pair is not None and pair.address != message.address and pair.route is not None:
            return [Send(Refusal.of(JoinRefused(f"the broker has a standby already, at {pair.address}.")), route)]
        effects: list[Effect] = []
        if pair is None or pair.address != message.address:
            pair = self.pair = Pair(message.address)
            self._beat_at = now
            self.registry.tell_standby(pair.address, now)
        if message.epoch == self.epoch:
            pair.confirm(message, self._sequence, self.registry.book.living())
            if now < self._sure_from:
                self._settle(now, now)  # whoever was in charge follows us
        else:
            self.registry.book.raise_floor(message.floor)  # it was promised to an earlier broker
        if pair.route != route:
            pair.route = route
            effects.append(Announce(StandbyJoined(pair.address)))
            return [*effects, self._send_all(pair, now)]
        if (message.epoch != self.epoch or message.sequence < self._sequence) and now >= pair.full_at + RESEND:
            effects.append(self._send_all(pair, now))
        return effects

    def _lose(self, has_left: bool, now: float) -> list[Effect]:
        pair = self.pair
        assert pair is not None
        pair.route = None
        if has_left:
            self.pair = self._beat_at = None
            self.registry.touched = None
            self.registry.tell_standby("", now)
        return [Announce(StandbyLost(pair.address, has_left))]

    def _send_all(self, pair: Pair, now: float) -> Effect:
        self.registry.touched = {}
        pair.full_at = now
        for record in self.registry.book.by_name.values():
            pair.note_told(record)
        entries = tuple(entry_of(record) for record in self.registry.book.by_name.values())
        return self._replica(pair, 0, True, entries, now)

    def _replicate(self, now: float) -> list[Effect]:
        """Tell the standby what has changed, and at each heartbeat that we live."""
        pair, touched = self.pair, self.registry.touched
        if pair is None or self._beat_at is None:
            return []
        is_due = now >= self._beat_at
        if is_due:
            self._beat_at = now + self.registry.options.heartbeat_interval
        if not touched and not is_due:
            return []
        previous, entries = self._sequence, tuple(entry_of(record) for record in (touched or {}).values())
        if touched:
            self._sequence += 1
            for record in touched.values():
                if record.by_will and record.state == GONE:
                    pair.note_end(record)
                elif pair.route is not None:
                    pair.note_told(record)
            touched.clear()
        if pair.route is None:
            return []
        return [self._replica(pair, previous, False, entries, now)]

    def _replica(self, pair: Pair, previous: int, full: bool, entries: tuple[Any, ...], now: float) -> Effect:
        assert pair.route is not None
        book, options = self.registry.book, self.registry.options
        block = max(BLOCK, book.living_count)
        if book.floor + block // 2 > pair.floor:
            pair.floor = min(book.floor + block, MAX_ID)
        self._beat += 1
        pair.sent.append((self._beat, now))
        replica = Replica(
            self.epoch,
            self._sequence,
            previous,
            full,
            self._beat,
            pair.floor,
            book.last_incarnation,
            options.heartbeat_interval,
            options.death_timeout,
            options.silence_timeout,
            entries,
        )
        return Send(replica, pair.route)

    def describe(self, now: float) -> dict[str, Any]:
        """What tools see beside the members: plain values."""
        seen: dict[str, Any] = {"is_in_charge": True, "standby": None}
        pair = self.pair
        if pair is not None:
            seen["standby"] = {
                "address": pair.address,
                "is_connected": pair.route is not None,
                "behind": self._sequence - pair.confirmed,
                "lag": None if pair.fresh_at == float("-inf") else now - pair.fresh_at,
            }
            seen["admits"] = self.may_admit(now)
        return seen
