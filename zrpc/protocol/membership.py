"""The broker's book of workers: who has which name and id, in which life.

One rule: a name keeps its id for the cluster's life, and no incarnation is given twice.

The life of a name:

    cause       from             to        what it means
    ----------  ---------------  --------  ------------------------------------------------------
    joined      absent, gone     waiting   a process said HELLO; its group is not complete yet
    admitted    waiting          up        it is welcomed, and everyone is told
    adopted     absent, gone     up        a member of an earlier run of the broker is back
    died        waiting, up      gone      no beat, connection lost, or its process was seen to end
    left        waiting, up      gone      it said GOODBYE
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from zrpc.errors import ConfigError, InvalidTransition
from zrpc.ids import MAX_LIFE
from zrpc.wire.messages import Hello, Member

ABSENT: Final = "absent"
WAITING: Final = "waiting"
UP: Final = "up"
GONE: Final = "gone"
DRAINING: Final = "draining"
"""How a member that is up, but takes no new work, is shown to others."""
LIVING: Final = (WAITING, UP)

LIFECYCLE: Final[dict[tuple[str, str], str]] = {
    (ABSENT, "joined"): WAITING,
    (GONE, "joined"): WAITING,
    (WAITING, "admitted"): UP,
    (ABSENT, "adopted"): UP,
    (GONE, "adopted"): UP,
    (WAITING, "died"): GONE,
    (UP, "died"): GONE,
    (WAITING, "left"): GONE,
    (UP, "left"): GONE,
}

LOSS_GRACE: Final = 0.3
SMALL: Final = 256
"""Members of whom packing all takes less time than one message does."""
INCARNATION_SHIFT: Final = 12
"""An incarnation is the milliseconds of the broker's start and a counter: 4,096 for each millisecond that it runs, so
that a broker restarted later begins above."""
_LIFE_ZERO: Final = 1_577_836_800
"""2020-01-01: lives that a restarted broker gives begin at the seconds since then (31 bits, half of them: until 2054).
So a broker is not to be restarted twice within a second, nor a name more often than once a second, all the time."""


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """Times are seconds."""

    heartbeat_interval: float = 0.5
    """How often a member reports."""
    death_timeout: float = 3.0
    """A member without a connection that has not been heard of for this long is dead."""
    silence_timeout: float = 30.0
    """A member whose connection stands, but that has not been heard of for this long, is dead. Much longer: ZeroMQ's own
    heartbeats show that its process lives, and one call of a C library can keep Python from beating for seconds."""
    loss_grace: float = LOSS_GRACE
    """A member whose connection closed and that is not back after this long is dead."""
    flush_interval: float = 0.02
    """Changes of the membership are collected for this long, and longer in a large cluster."""
    progress_interval: float = 1.0
    """How often waiting members are told who is missing."""

    @property
    def connection_heartbeats_ms(self) -> tuple[int, int]:
        """How often the connections are asked for a sign of life, and how long is waited for it: milliseconds. Both
        together, and the grace of a lost connection, are less than `death_timeout`."""
        return max(1, min(5000, int(self.death_timeout * 1000 / 6))), max(2, int(self.death_timeout * 500))

    def following(self) -> RegistryOptions:
        """The same for a broker that follows one at its address."""
        return replace(self, is_successor=True)

    @classmethod
    def made_of(
        cls, heartbeat_interval: float, death_timeout: float, silence_timeout: float, names_per_host: int = 10_000
    ) -> RegistryOptions:
        """Options with these. Raises `ConfigError` when a member could be declared dead between two beats."""
        if death_timeout < 2 * heartbeat_interval or silence_timeout < death_timeout:
            raise ConfigError(
                "the broker's times",
                [
                    f"expected heartbeat_interval * 2 <= death_timeout <= silence_timeout, not {heartbeat_interval:g} * 2, "
                    f"{death_timeout:g}, {silence_timeout:g}"
                ],
            )
        return cls(
            heartbeat_interval,
            death_timeout,
            silence_timeout,
            min(LOSS_GRACE, death_timeout / 10),
            names_per_host=names_per_host,
        )

    is_successor: bool = False
    """This cluster has had a broker before: names that this one does not know may have lived, so their lives begin at a
    number that no earlier broker gave. Found out without being told as soon as a member of the earlier one returns."""
    max_members: int = 65_535
    """More living members are refused."""
    names_per_host: int = 10_000
    """More living members that say they are on one host are refused."""
    names_per_connection: int = 64
    """More names that come one after the other over one connection are refused: a process has one, and mostly keeps it."""
    small: int = SMALL
    """Members up to which everybody is packed anew for each who joins, and not for each time that the others are told."""
    max_remembered: int = 65_535
    """Names of the dead that keep their id; the longest dead are forgotten, their ids are not given again."""


class Record:
    """All that the broker knows of one name."""

    __slots__ = (
        "by_will",
        "heard_at",
        "hello",
        "id",
        "incarnation",
        "is_draining",
        "joined_at",
        "life",
        "lost_at",
        "name",
        "refreshed_at",
        "route",
        "state",
        "statistics",
        "stop_why",
        "why",
    )

    def __init__(self, name: str, worker_id: int) -> None:
        self.name = name
        self.id = worker_id
        self.life = 0
        self.state = ABSENT
        self.hello: Hello | None = None
        self.incarnation = 0
        self.route: bytes | None = None
        self.lost_at: float | None = None
        self.heard_at = 0.0
        self.joined_at = 0.0
        self.refreshed_at = 0.0
        self.statistics: dict[str, int | float] = {}
        self.stop_why: str | None = None
        self.by_will = False
        self.is_draining = False
        self.why = ""

    def __repr__(self) -> str:
        return f"<Record {self.name} {self.state} id={self.id} incarnation={self.incarnation} life={self.life}>"

    @property
    def is_living(self) -> bool:
        return self.state in LIVING

    @property
    def is_static(self) -> bool:
        return self.hello is not None and self.hello.world_size > 0

    def move(self, cause: str) -> None:
        """Follow `LIFECYCLE`. Raises `InvalidTransition`, changing nothing."""
        state = LIFECYCLE.get((self.state, cause))
        if state is None:
            raise InvalidTransition(cause, f"worker {self.name!r}", self.state)
        self.state = state

    def member(self) -> Member:
        """The record as the members see it."""
        hello = self.hello
        assert hello is not None
        return Member(
            self.name,
            self.id,
            self.incarnation,
            self.life,
            hello.address,
            hello.role,
            DRAINING if self.is_draining and self.state == UP else self.state,
            hello.pid,
            hello.host,
            hello.software,
        )

    def describe(self, now: float) -> dict[str, Any]:
        """The record as tools see it: plain values."""
        member = self.member()
        return {
            **{name: getattr(member, name) for name in Member.__dataclass_fields__},
            "uptime": now - self.joined_at,
            "silence": now - self.heard_at,
            "static": self.is_static,
            "stopping": self.stop_why is not None,
            "statistics": dict(self.statistics),
        }


UNKNOWN: Final = 1 << 14
"""The first id that a broker gives which knows nothing of those before it."""


class Book:
    """Records by name, id and route; gives ids, incarnations and lives."""

    def __init__(self, epoch_ms: int, options: RegistryOptions) -> None:
        self.epoch = epoch_ms << INCARNATION_SHIFT
        self._options = options
        self._last_incarnation = self.epoch
        seconds = epoch_ms // 1000 - _LIFE_ZERO
        self._later_life = min(MAX_LIFE // 2, max(1, seconds))
        self._first_life = self._later_life if options.is_successor else 0
        self._next_id = self._floor = 0
        self._forgotten: set[int] = set()
        self._dead: dict[str, None] = {}
        self._living = 0
        self.by_name: dict[str, Record] = {}
        self.by_id: dict[int, Record] = {}
        self.by_route: dict[bytes, Record] = {}

    def living(self) -> Iterator[Record]:
        return (record for record in self.by_name.values() if record.is_living)

    @property
    def living_count(self) -> int:
        return self._living

    def next_incarnation(self) -> int:
        self._last_incarnation += 1
        return self._last_incarnation

    def is_id_free(self, worker_id: int, name: str) -> bool:
        """Whether `name` may have that id: it has it, or nobody ever had (it may be kept for one who never came)."""
        holder = self.by_id.get(worker_id)
        if holder is None:
            return worker_id not in self._forgotten
        return holder.name == name or holder.state == ABSENT

    def claim(self, name: str, wanted: int) -> Record:
        """The record of a name, made if there is none, with id `wanted` if the name may have that.

        A name that has lived keeps its id. An id that is only kept for an expected name goes to who asks for it.
        """
        record = self.by_name.get(name)
        if record is not None and (record.state != ABSENT or wanted in (-1, record.id)):
            return record
        if wanted < 0 or not self.is_id_free(wanted, name):
            if record is not None:
                return record
            wanted = self._next_free_id()
        displaced = self.by_id.get(wanted)
        if record is None:
            record = self.by_name[name] = Record(name, wanted)
        else:
            del self.by_id[record.id]
            record.id = wanted
        self.by_id[wanted] = record
        self._floor = max(self._floor, wanted + 1)
        if displaced is not None:
            displaced.id = self._next_free_id()
            self.by_id[displaced.id] = displaced
            self._floor = max(self._floor, displaced.id + 1)
        return record

    @property
    def last_incarnation(self) -> int:
        """The last one that was given."""
        return self._last_incarnation

    @property
    def floor(self) -> int:
        """No id from here on was ever given, as far as is known."""
        return self._floor

    def raise_floor(self, floor: int) -> None:
        """Ids below this one were given by an earlier broker, perhaps to names of which nobody knows any more."""
        self._next_id = max(self._next_id, floor)
        self._floor = max(self._floor, floor)

    def begin_unknowing(self) -> None:
        """This cluster had brokers of which nothing is known: ids begin at a number that few clusters reach, until members
        that return have said which they had. Larger ones than 15 bits are of no use to distributed autograd."""
        self.raise_floor(UNKNOWN)

    def _next_free_id(self) -> int:
        while self._next_id in self.by_id or self._next_id in self._forgotten:
            self._next_id += 1
        return self._next_id

    def begin_life(self, record: Record) -> None:
        """Give the record the incarnation and the life of a process that has just come."""
        record.life = record.life + 1 if record.incarnation else self._first_life
        record.incarnation = self.next_incarnation()

    def note_survivor(self, incarnation: int) -> None:
        """A member of an earlier run of the broker is back: this cluster is older than this broker.

        Names that this broker sees for the first time may have lived before, and made ids; their lives now start at a
        number that no earlier broker has given.
        """
        self._last_incarnation = max(self._last_incarnation, incarnation)
        if incarnation < self.epoch:
            self._first_life = self._later_life

    def connect(self, record: Record, route: bytes, now: float) -> None:
        """The record's member is reached along `route` from now on."""
        if record.route != route:
            if record.route is not None:
                self.by_route.pop(record.route, None)
            before = self.by_route.get(route)
            if before is not None:
                before.route = None
            record.route = route
            self.by_route[route] = record
        record.lost_at = None
        record.heard_at = now

    def disconnect(self, record: Record) -> None:
        if record.route is not None:
            self.by_route.pop(record.route, None)
            record.route = None

    def note_living(self, record: Record) -> None:
        """The record has come to life."""
        self._living += 1
        self._dead.pop(record.name, None)

    def note_dead(self, record: Record) -> None:
        """The record's life has ended. Forgets the longest dead when there are too many."""
        self._living -= 1
        self.disconnect(record)
        self._dead[record.name] = None
        if len(self._dead) > self._options.max_remembered:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            forgotten = self.by_name.pop(oldest)
            del self.by_id[forgotten.id]
            self._forgotten.add(forgotten.id)
