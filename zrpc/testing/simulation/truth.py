"""What really happened in a simulated history, and the promises that it must keep.

One rule: the truth is written down where things happen and is never asked of a machine that is under test, so that each
broken promise shows at the moment it is broken.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from zrpc.ids import ForkId, RRefId
from zrpc.protocol.rrefs import Peer

if TYPE_CHECKING:
    from zrpc.testing.simulation.worker import Process

SLACK = 1e-6
"""Seconds that a call may end after its deadline on a clock that jumps from event to event."""


class BrokenPromise(AssertionError):
    """An invariant does not hold."""


class Truth:
    """The calls, lives and values of one history."""

    def __init__(self) -> None:
        self.made = 0
        self.ends: dict[int, str] = {}
        self.how: Counter[str] = Counter()
        self.passes: dict[int, str] = {}
        """Backward passes by number: how they ended, '' for not yet."""
        self.ran: dict[int, Peer] = {}
        self.lives: dict[tuple[int, int], int] = {}
        self.incarnations: dict[int, tuple[str, int]] = {}
        self.names: dict[int, str] = {}
        """Of ids. Where brokers have forgotten what was, an id may be given again, for another life."""
        self.released: set[RRefId] = set()
        self.joined = 0

    # ----------------------------------------------------------------------------------------------- calls

    def begin_call(self) -> int:
        """A call is made; its number."""
        self.made += 1
        return self.made

    def end_call(self, uid: int, how: str, now: float, deadline: float | None) -> None:
        """A call ends, for its caller."""
        if uid in self.ends:
            raise BrokenPromise(f"call {uid} ended twice: {self.ends[uid]}, then {how}")
        if deadline is not None and now > deadline + SLACK and how != "caller died":
            raise BrokenPromise(f"call {uid} ended by {how} {now - deadline:.3f} s after its deadline")
        self.ends[uid] = how
        self.how[how] += 1

    def begin_pass(self, process: Process) -> int:
        """A backward pass begins; its number."""
        uid = len(self.passes) + 1
        self.passes[uid] = ""
        process.passes.add(uid)
        return uid

    def end_pass(self, uid: int, how: str) -> None:
        """A backward pass has ended, for whoever began it."""
        if self.passes[uid]:
            raise BrokenPromise(f"backward pass {uid} ended twice: {self.passes[uid]}, then {how}")
        self.passes[uid] = how

    def run_function(self, uid: int, where: Process) -> None:
        """The function of a call runs."""
        if uid in self.ran:
            raise BrokenPromise(f"the function of call {uid} runs on {where.peer}, and ran on {self.ran[uid]} before")
        if where.session.state == "fenced":
            raise BrokenPromise(f"{where.peer} was told that its life is over, and runs call {uid}")
        self.ran[uid] = where.peer

    # ----------------------------------------------------------------------------------------------- lives

    def begin_life(self, process: Process) -> None:
        """A process has become a member."""
        session = process.session
        key, who = (session.id, session.life), (process.name, process.number)
        if self.lives.setdefault(key, session.incarnation) != session.incarnation:
            raise BrokenPromise(f"life {session.life} of id {session.id} is given twice, now to {process}")
        if self.incarnations.setdefault(session.incarnation, who) != who:
            raise BrokenPromise(f"incarnation {session.incarnation} is given twice, now to {process}")
        known = self.names.setdefault(session.id, process.name)
        if known != process.name and not process.cluster.brokers.forgot:
            raise BrokenPromise(f"id {session.id} of {known!r} is given to {process}")
        self.joined += 1

    # ---------------------------------------------------------------------------------------------- values

    def release(self, owner: Process, rref_id: RRefId, others: list[Process]) -> None:
        """An owner lets go of a value, or of the record of one that was asked for again after that."""
        if rref_id not in owner.values:
            return
        if rref_id in owner.running:
            raise BrokenPromise(f"{rref_id} is released while its function runs")
        for other in others:
            for (held, fork_id), count in other.handles.items():
                if held != rref_id or not count or fork_id is None:
                    continue
                if not self.is_given_up(owner, other, fork_id):
                    raise BrokenPromise(f"{rref_id} of {owner.peer} is released, but {other.peer} holds {fork_id}")
        owner.values.discard(rref_id)
        self.released.add(rref_id)

    @staticmethod
    def is_given_up(owner: Process, user: Process, fork_id: ForkId) -> bool:
        """Whether one of the two has heard that the other's life is over, or that the value will never be."""
        return fork_id in user.dead_users or user.peer in owner.lost or owner.peer in user.lost
