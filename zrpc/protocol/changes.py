"""The membership as the broker tells it: a number for each change, what was not told yet, and what somebody has missed.

One rule: what is told to many is packed once. Everybody, which each newcomer is told, is packed once for each time that the
others are told of changes, and goes with the few that came after.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from zrpc.protocol.membership import SMALL
from zrpc.wire.messages import Gone, Member, Members, Roster
from zrpc.wire.roster import join_rows, pack_member

MAX_MISSED: Final = 65_536
"""Changes that are remembered for those who missed them; who missed more is told everybody."""

Told = tuple[Roster, Roster, tuple[Gone, ...]]
"""Everybody: members of a while ago, those who came or changed since, and those who went."""


class Changes:
    """Who is up. `small`: members up to which everybody is packed anew for each change."""

    def __init__(self, epoch: int, small: int = SMALL) -> None:
        self._epoch = epoch
        self._small = small
        self.sequence = 0
        self.told = 0
        """The sequence of the last delta that was sent."""
        self._history: deque[tuple[float, int]] = deque([(float("-inf"), 0)], maxlen=1024)
        self._log: deque[tuple[int, Gone | None]] = deque(maxlen=MAX_MISSED)
        """The last changes, one for each number: whose, and how it ended, if it did."""
        self._up: dict[int, Member] = {}
        self._rows: dict[int, bytes] = {}
        """The members packed, each once: joining them is all that a roster costs."""
        self._fresh: dict[int, Member] = {}
        self._gone: dict[tuple[int, int], Gone] = {}
        self._roster = Roster()
        self._roster_at = 0
        """The change that the roster includes."""
        self.standby = ""
        """Where the standby broker is."""

    def tell_standby(self, address: str) -> None:
        """There is a standby broker at `address`, or (empty) none."""
        if address != self.standby:
            self.standby = address
            self._change(-1, None)

    @property
    def is_pending(self) -> bool:
        return self.told != self.sequence

    def add(self, member: Member) -> None:
        """A member is up."""
        self._change(member.id, None)
        self._up[member.id] = member
        self._rows[member.id] = pack_member(member)
        self._gone.pop((member.id, member.incarnation), None)  # declared dead and back before anyone was told
        self._fresh[member.id] = member

    def remove(self, gone: Gone) -> None:
        """A member that was up is gone."""
        self._change(gone.id, gone)
        del self._up[gone.id]
        del self._rows[gone.id]
        self._fresh.pop(gone.id, None)  # who got a snapshot meanwhile knows it: it is still told gone
        self._gone[gone.id, gone.incarnation] = gone

    def _change(self, worker_id: int, gone: Gone | None) -> None:
        self.sequence += 1
        self._log.append((worker_id, gone))

    def everybody(self) -> Told:
        """Who is up. In a large cluster most of it is packed once for each delta, however many join meanwhile."""
        is_due = self._roster_at < self.told or (len(self._up) <= self._small and self._roster_at < self.sequence)
        if is_due:
            self._roster = Roster(self._up.values(), join_rows(self._rows.values()))
            self._roster_at = self.sequence
        if self._roster_at == self.sequence:
            return self._roster, Roster(), ()
        return self._roster, self._packed(self._fresh), tuple(self._gone.values())

    def _packed(self, members: dict[int, Member]) -> Roster:
        rows = self._rows
        return Roster(members.values(), join_rows([rows[worker_id] for worker_id in members]))

    def answer(self, sequence: int) -> Members:
        """What has changed after a number, for one who has missed something or looks for somebody; 0: everybody."""
        missed = self.sequence - sequence
        if not sequence or not 0 <= missed <= min(len(self._log), max(self._small, len(self._up))):
            members, up, gone = self.everybody()
            return Members(self._epoch, self.sequence, 0, True, up, gone, self.standby, members, True)
        ids: dict[int, Member] = {}
        ends: dict[tuple[int, int], Gone] = {}
        for worker_id, end in islice(reversed(self._log), missed):
            if worker_id in self._up:
                ids[worker_id] = self._up[worker_id]
            if end is not None:
                ends[end.id, end.incarnation] = end
        for member in ids.values():  # declared dead, and back
            ends.pop((member.id, member.incarnation), None)
        up, gone = self._packed(ids), tuple(ends.values())
        return Members(self._epoch, self.sequence, sequence, False, up, gone, self.standby, answer=True)

    def told_by(self, when: float) -> int:
        """The sequence of the last delta that had been sent by then. `when` never goes back."""
        history = self._history
        while len(history) > 1 and history[1][0] <= when:
            history.popleft()
        return history[0][1]

    def take_delta(self, now: float) -> Members:
        """What was not told yet."""
        up, gone = self._packed(self._fresh), tuple(self._gone.values())
        delta = Members(self._epoch, self.sequence, self.told, False, up, gone, self.standby)
        self.told = self.sequence
        self._history.append((now, self.told))
        self._fresh = {}
        self._gone = {}
        return delta
