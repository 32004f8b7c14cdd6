"""The common end of a static group: when no call is under way any more, and none can start.

One rule: a member is released only when all of the group have asked to end and two rounds of the question, one after
the other, were answered with the same counts by members that were all idle.

A single round is not enough: the answers are given at different moments, and a call can slip from a member that has not
answered yet to one that has. If nothing has changed between the last answer of one round and the first answer of the
next, then at the moment between them nothing was under way anywhere (Mattern's four-counter method, 1987). A member is
idle when it runs no call and waits for no reply, so a request that is still on the wire keeps its caller active.

Calls sent and served in total are to be equal as well; that also covers messages without a reply. It cannot be asked
for when calls crossed the group's border: a member died, others than the group are in the cluster. Then, and when the
sums have stayed apart for `PATIENCE` quiet rounds, the two equal rounds are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from zrpc.protocol.effects import Counts

PACE: Final = 0.05
"""Seconds between two rounds when the sums are apart: something is still on its way."""
PATIENCE: Final = 10
"""Quiet rounds after which unequal sums are taken for calls across the group's border."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask these members for their counts, in a new round."""

    round: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """These members may end."""

    ids: tuple[int, ...]


class Barrier:
    """The broker's side of the common end. Members are known by id; each method returns what to tell them."""

    def __init__(self) -> None:
        self.round = 0
        self.is_closed_group = True
        """False once calls may have crossed the group's border: sums need not be equal then."""
        self._waited_for: dict[int, None] = {}
        self._reports: dict[int, tuple[int, Counts]] = {}
        self._ready: set[int] = set()
        self._released: set[int] = set()
        self._previous: dict[int, Counts] | None = None
        self._quiet = 0
        self._ask_at: float | None = None

    def __repr__(self) -> str:
        total = len(self._reports) + len(self._waited_for)
        return f"<Barrier round={self.round} reported={len(self._reports)} of {total}>"

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        return self._ask_at

    def missing(self, count: int) -> list[int]:
        """Some of the members that have not asked to end."""
        return list(islice(self._waited_for, count))

    def short(self) -> int:
        """How many members have not asked to end."""
        return len(self._waited_for)

    def enter(self, member: int) -> None:
        """A member of the group is up."""
        self._released.discard(member)
        if member not in self._reports:
            self._waited_for[member] = None
        self._previous = None

    def leave(self, member: int, now: float, lost: bool) -> list[Ask | Release]:
        """A member is gone; `lost`: without having been released."""
        if member in self._released:
            self._released.discard(member)
            return []
        if member not in self._waited_for and member not in self._reports:
            return []
        self._waited_for.pop(member, None)
        self._reports.pop(member, None)
        self._ready.discard(member)
        self._previous = None
        if lost:
            self.is_closed_group = False
        if not self._waited_for and not self._reports:
            self.is_closed_group = True  # the next group starts afresh
            return []
        return self._judge(now)

    def report(self, member: int, round_: int, counts: Counts, now: float) -> list[Ask | Release]:
        """A member that wants to end has these counts, as its answer to `round_`."""
        if member in self._released:
            return [Release((member,))]  # it has not heard that it may go
        if member not in self._waited_for and member not in self._reports:
            return [Release((member,))]  # not of the group: it waits for nobody
        self._waited_for.pop(member, None)
        self._reports[member] = (round_, counts)
        if round_ > self.round:
            # This broker is new; the round was asked by the one before. Its answers are not comparable.
            self.round = round_
            self._previous = None
            self._ready.clear()
        if round_ == self.round and counts.active == 0:
            self._ready.add(member)
        else:
            self._ready.discard(member)
        if round_ < self.round:
            return [Ask(self.round, (member,))]
        return self._judge(now)

    def tick(self, now: float) -> list[Ask | Release]:
        """Ask the next round when its time has come."""
        if self._ask_at is None or now < self._ask_at:
            return []
        return self._ask()

    def _judge(self, now: float) -> list[Ask | Release]:
        if self._waited_for or len(self._ready) < len(self._reports) or not self._reports or self._ask_at is not None:
            return []
        counts = {member: counts for member, (_, counts) in self._reports.items()}
        same = counts == self._previous
        self._previous = counts
        self._quiet = self._quiet + 1 if same else 0
        balanced = sum(c.sent for c in counts.values()) == sum(c.served for c in counts.values())
        if same and (balanced or not self.is_closed_group or self._quiet >= PATIENCE):
            return self._release()
        if balanced or not self.is_closed_group:
            return self._ask()
        self._ask_at = now + PACE
        return []

    def _ask(self) -> list[Ask | Release]:
        self._ask_at = None
        self.round += 1
        self._ready.clear()
        return [Ask(self.round, tuple(self._reports))]

    def _release(self) -> list[Ask | Release]:
        ids = tuple(self._reports)
        self._released.update(ids)
        self._reports.clear()
        self._ready.clear()
        self._previous = None
        self._quiet = 0
        self.is_closed_group = True
        return [Release(ids)]
