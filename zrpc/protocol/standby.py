"""A broker that stands by: it keeps a replica of its primary's book, and decides when to take over.

One rule: it takes over only when it has lost the primary itself for `2 * heartbeat_interval`, and more than half of the
members that it knows of say that they have lost it too. When as many have come over to it, and what the primary has heard
of them is old, it lets newcomers in; the primary has stopped to do so by then (see `primary`).

    it has                                            it takes over
    ------------------------------------------------  ------------------------------------------------------------
    a replica with members                            when more than half of them have lost the primary too
    a replica without a member                        after `death_timeout` without the primary
    a replica, and the other one stands by as well    at once: that one was started again, and the primary is no more
    none, and the other one stands by as well         after `death_timeout`: both were started again
    none, and the other one is silent                 never: it cannot know what is there
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from zrpc.clock import earliest
from zrpc.protocol.effects import Effect, Tell
from zrpc.protocol.membership import INCARNATION_SHIFT, UP, RegistryOptions
from zrpc.protocol.primary import fresh_time
from zrpc.wire.succession import Elsewhere, Entry, Follow, Replica, Vote

AHEAD_MS: Final = 10_000
"""How far an epoch that takes over is ahead of the last incarnation that is known, at least: the primary may have given
more since, at no more than 4,096 a millisecond, on a clock that may be ahead of ours."""


@dataclass(slots=True)
class Ballot:
    """A member that has lost the primary: when it has said so last, and along which route."""

    last: float
    route: bytes


class Standby:
    """The replica, the votes, and the look-out for the primary at `primary`. `me` is this broker's own address."""

    def __init__(self, primary: str, me: str, options: RegistryOptions, now: float, epoch: int = 0) -> None:
        self.primary = primary
        self.me = me
        self.options = options
        self.epoch = epoch
        self.is_synced = False
        self.entries: dict[str, Entry] = {}
        self._up = 0
        """How many of them are up: votes of so many matter."""
        self.floor = 0
        self.last_incarnation = 0
        self._heard_epoch = epoch
        """The highest that was spoken of: there may have been a broker of which both of us know nothing."""
        self._sequence = 0
        self._beat = 0
        self._linked = False
        self._heard_at = float("-inf")
        self._lost_since: float | None = now
        self._idle_since: float | None = None
        """Since when the other one has said that it stands by too, and knows no more than we do."""
        self._idle_at = float("-inf")
        self._ballots: dict[tuple[int, int], Ballot] = {}
        self._by_route: dict[bytes, set[tuple[int, int]]] = {}
        """Whose votes came along a route."""
        self._tick_at = now

    def __repr__(self) -> str:
        return f"<Standby for {self.primary} names={len(self.entries)} votes={len(self._ballots)}>"

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        return earliest(self._tick_at)

    @property
    def _fresh(self) -> float:
        return fresh_time(self.options.heartbeat_interval)

    def follow(self) -> Tell:
        """What we tell the primary."""
        return Tell(Follow(self.me, self.epoch, False, self._sequence, self.floor, self._beat))

    def elsewhere(self) -> Elsewhere:
        """What we tell everybody else."""
        return Elsewhere(self.primary, self.epoch if self.is_synced else 0)

    # ------------------------------------------------------------------------------------- the primary

    def on_link(self, what: str, now: float) -> list[Effect]:
        """The connection to the primary has changed."""
        self._linked = what == "connected"
        if self._linked:
            return [self.follow()]  # and it counts as lost until it has answered
        if self._lost_since is None:
            self._lost_since = now
        return []

    def on_replica(self, message: Replica, now: float) -> list[Effect]:
        """The primary says what has changed, and that it lives."""
        if message.epoch < self.epoch:
            return []
        if message.epoch != self.epoch or not self.is_synced:
            if not message.full:
                return [self.follow()]
            self._forget_votes()
        self._heard_at = now
        self._lost_since = self._idle_since = None
        self._beat = message.beat
        if message.full:
            self.entries = {entry.name: entry for entry in message.entries}
            self._up = sum(entry.state == UP for entry in self.entries.values())
            self.is_synced = True
        elif message.previous == self._sequence or message.sequence <= self._sequence:
            if message.sequence > self._sequence:
                self._keep(message.entries)
        else:
            return [self.follow()]  # something is missing: it sends everything
        self._sequence = max(self._sequence, message.sequence) if not message.full else message.sequence
        self.epoch, self.floor = message.epoch, message.floor
        self.last_incarnation = max(self.last_incarnation, message.incarnation)
        self.options = RegistryOptions.made_of(
            message.heartbeat_interval, message.death_timeout, message.silence_timeout, self.options.names_per_host
        )
        return [self.follow()]

    def _keep(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            known = self.entries.get(entry.name)
            self._up += (entry.state == UP) - (known is not None and known.state == UP)
            self.entries[entry.name] = entry

    def on_elsewhere(self, message: Elsewhere, now: float) -> None:
        """The one that we follow is not in charge."""
        if self._lost_since is None:
            self._lost_since = now
        if message.epoch > self.epoch or (message.epoch and not self.is_synced):
            self._idle_since = None  # it knows more than we do
            return
        self._idle_at = now
        if self._idle_since is None:
            self._idle_since = now

    # ------------------------------------------------------------------------------------- the members

    def on_vote(self, voter: tuple[int, int], message: Vote, route: bytes, now: float) -> None:
        """A member, as (id, incarnation), has lost the primary, or has it back."""
        self.note_epoch(message.epoch)
        ballot = self._ballots.get(voter)
        if ballot is not None and (not message.lost or ballot.route != route):
            self._withdraw(voter)
        if message.lost:
            self._ballots[voter] = Ballot(now, route)
            self._by_route.setdefault(route, set()).add(voter)

    def _withdraw(self, voter: tuple[int, int]) -> None:
        route = self._ballots.pop(voter).route
        same = self._by_route[route]
        same.discard(voter)
        if not same:
            del self._by_route[route]

    def note_epoch(self, epoch: int) -> None:
        """Somebody has spoken of an epoch: the next one is to be above."""
        self._heard_epoch = max(self._heard_epoch, epoch)

    def on_loss(self, route: bytes) -> None:
        """The connection of somebody is closed. Who has voted along it may have its broker back."""
        for voter in self._by_route.pop(route, ()):
            del self._ballots[voter]

    def _forget_votes(self) -> None:
        self._ballots.clear()
        self._by_route.clear()

    def voters(self) -> list[bytes]:
        """Routes of all who have voted."""
        return [ballot.route for ballot in self._ballots.values()]

    # ------------------------------------------------------------------------------------------ deciding

    def tick(self, now: float) -> list[Effect]:
        """Look at what is due; `verdict` says whether to take over."""
        if now < self._tick_at:
            return []
        interval = self.options.heartbeat_interval
        if now > self._tick_at + interval:
            self._start_anew(now)  # we were stopped ourselves: what we did not hear says nothing
        self._tick_at = now + interval / 2
        if self._lost_since is None and now > self._heard_at + self._fresh:
            self._lost_since = self._heard_at + self._fresh
        if self._idle_since is not None and now > self._idle_at + self._fresh:
            self._idle_since = None
        for voter, ballot in list(self._ballots.items()):
            if now > ballot.last + self._fresh:
                self._withdraw(voter)
        return [self.follow()] if self._linked else []

    def _start_anew(self, now: float) -> None:
        if self._lost_since is not None:
            self._lost_since = now
        if self.is_synced:
            self._heard_at = now
        self._forget_votes()
        if self._idle_since is not None:
            self._idle_since = now

    def verdict(self, now: float) -> str:
        """Why to take over now; empty: not now."""
        if self._lost_since is None or now < self._lost_since + self._fresh:
            return ""
        if self._is_other_idle(now):
            return f"the broker at {self.primary} stands by as well"
        if not self.is_synced:
            return ""
        if not self._up:
            is_time = now >= self._lost_since + self.options.death_timeout
            return f"the broker at {self.primary} is lost; it had no members" if is_time else ""
        # With each vote so many are looked at only when it may be the last that is needed.
        if 2 * len(self._ballots) <= self._up:
            return ""
        count = sum(self._has_lost(entry, now) for entry in self.entries.values() if entry.state == UP)
        if 2 * count <= self._up:
            return ""
        return f"the broker at {self.primary} is lost to {count} of {self._up} members"

    def _is_other_idle(self, now: float) -> bool:
        """Whether it is certain that the other broker is not in charge any more."""
        patience = self._fresh
        if not self.is_synced:
            patience = self.options.death_timeout * (1 if self.me < self.primary else 2)  # one of the two is the first
        return self._idle_since is not None and now >= self._idle_since + patience

    def heirs(self, now: float) -> list[tuple[int, int]]:
        """The members whose word it takes over by, as (id, incarnation)."""
        if self._is_other_idle(now):
            return []
        return [(entry.id, entry.incarnation) for entry in self.entries.values() if entry.state == UP]

    def _has_lost(self, entry: Entry, now: float) -> bool:
        ballot = self._ballots.get((entry.id, entry.incarnation))
        return ballot is not None and now <= ballot.last + self._fresh

    def epoch_ms(self, wall_ms: int) -> int:
        """The epoch to take over with, as the milliseconds that a registry begins with: above all that was given."""
        known = max(self.epoch, self._heard_epoch, self.last_incarnation) >> INCARNATION_SHIFT
        return max(wall_ms, known + AHEAD_MS if known else 0)

    def describe(self, now: float) -> dict[str, Any]:
        """The cluster as the standby knows it: plain values, in the shape of `Registry.describe`."""
        members = [
            {
                "name": entry.name,
                "id": entry.id,
                "incarnation": entry.incarnation,
                "life": entry.life,
                "address": entry.address,
                "role": entry.role,
                "state": "draining" if entry.is_draining else entry.state,
                "pid": entry.pid,
                "host": entry.host,
                "software": entry.software,
                "uptime": 0.0,
                "statistics": {},
            }
            for entry in self.entries.values()
            if entry.state == UP
        ]
        return {
            "epoch": self.epoch,
            "sequence": self._sequence,
            "members": members,
            "is_in_charge": False,
            "primary": self.primary,
            "is_synced": self.is_synced,
            "lag": None if self._heard_at == float("-inf") else now - self._heard_at,
            "votes": len(self._ballots),
        }
