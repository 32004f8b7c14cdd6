"""The reliable channel of control messages between process incarnations, without I/O.

It owns the numbers: messages from one incarnation to another carry 1, 2, 3, ... and are sent again until the other has
acknowledged them or is lost. One rule: whatever the network drops, delays, shuffles or repeats, the receiver processes
each number once.

    sender                                      receiver
      Outbox.add(payload) -> seq   -- seq, floor -->   Inbox.accept(seq, floor) -> True the first time only
      Outbox.settle(seq)           <-- ack seq ----    acknowledges whether it was the first time or not

`floor` is the sender's lowest number that is not settled. The receiver takes everything below it as seen, so that
numbers of messages that were never sent leave no hole, and the receiver's memory is bounded by what is in flight.

A number may also *ride* on a larger message (a call). Then it is not sent by itself until the time at which the larger
message is of no use to anybody any more; a late one is then recognised by its number and refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

FIRST_RETRY = 0.5
"""Seconds until a message is sent again; well over a round trip, so that a busy peer is not asked twice."""
LAST_RETRY = 5.0
"""Seconds that the doubling of the delay ends at."""
RETRY_BURST = 256
"""Messages sent again to one peer at one time: a peer that stalls must not find its queue full of repetitions."""

P = TypeVar("P")


class Peer(NamedTuple):
    """One life of a worker. A restarted worker is another peer."""

    worker_id: int
    incarnation: int

    def __repr__(self) -> str:
        return f"{self.worker_id}/{self.incarnation}"


class _Entry(Generic[P]):
    __slots__ = ("due", "payload", "retry", "was_sent")

    def __init__(self, payload: P, due: float) -> None:
        self.payload = payload
        self.due = due
        self.retry = FIRST_RETRY
        self.was_sent = False  # by itself, after what it rode on


class Outbox(Generic[P]):
    """What one receiver has not acknowledged yet, in the order of its numbers."""

    __slots__ = ("_entries", "_next")

    def __init__(self) -> None:
        self._next = 1
        # Not a dict: the floor is the first key, and a dict finds it in linear time after deletions at its front.
        self._entries: OrderedDict[int, _Entry[P]] = OrderedDict()

    def add(self, payload: P, due: float) -> int:
        """Number a payload; it is sent (again) when `due` comes, unless it has been settled. Returns the number."""
        seq = self._next
        self._next = seq + 1
        self._entries[seq] = _Entry(payload, due)
        return seq

    def settle(self, seq: int) -> P | None:
        """The receiver has it, or never needs it. Returns the payload, or `None` if it had been settled."""
        entry = self._entries.pop(seq, None)
        return None if entry is None else entry.payload

    def hasten(self, seq: int, payload: P, now: float) -> bool:
        """Put another payload under a number that is not settled; the caller sends it now. False if it was settled."""
        entry = self._entries.get(seq)
        if entry is None:
            return False
        entry.payload = payload
        entry.due = now + FIRST_RETRY
        entry.was_sent = True
        return True

    def retract(self, seq: int) -> bool:
        """Settle a number that rides on a message which never left. False if it has been sent by itself since."""
        entry = self._entries.get(seq)
        if entry is None or entry.was_sent:
            return False
        del self._entries[seq]
        return True

    @property
    def floor(self) -> int:
        """The lowest number that is not settled (the next one, if all are)."""
        for seq in self._entries:
            return seq
        return self._next

    def take_due(self, now: float) -> tuple[list[tuple[int, P]], float]:
        """Messages to send again, oldest first and at most `RETRY_BURST`, and when the next are due (inf for never)."""
        again: list[tuple[int, P]] = []
        next_due = math.inf
        for seq, entry in self._entries.items():
            if entry.due <= now:
                if len(again) < RETRY_BURST:
                    again.append((seq, entry.payload))
                    entry.was_sent = True
                entry.due = now + entry.retry
                entry.retry = min(2 * entry.retry, LAST_RETRY)
            next_due = min(next_due, entry.due)
        return again, next_due

    def count_due(self) -> int:
        """Messages that are sent again at some time: all but those that ride on one without an end."""
        return sum(entry.due != math.inf for entry in self._entries.values())

    def payloads(self) -> list[P]:
        """All that is not settled, oldest first."""
        return [entry.payload for entry in self._entries.values()]

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Outbox next={self._next} unsettled={list(self._entries)}>"


class Inbox:
    """Which numbers of one sender have been processed: all up to `low`, and those in `above`."""

    __slots__ = ("above", "low")

    def __init__(self) -> None:
        self.low = 0
        self.above: set[int] = set()

    def is_new(self, seq: int) -> bool:
        """Whether `accept` would take it."""
        return seq > self.low and seq not in self.above

    def accept(self, seq: int, floor: int = 0) -> bool:
        """Note a number; True if it had not been noted. `floor` is the sender's, 0 if the message carried none."""
        new = seq > self.low and seq not in self.above
        if new:
            if seq == self.low + 1:
                self.low = seq
            else:
                self.above.add(seq)
        if floor > self.low + 1:
            self.low = floor - 1
            self.above = {number for number in self.above if number > self.low}
        while self.above and self.low + 1 in self.above:
            self.low += 1
            self.above.remove(self.low)
        return new

    def __repr__(self) -> str:
        return f"<Inbox low={self.low} above={sorted(self.above)}>"


@dataclass(slots=True)
class Sending(Generic[P]):
    """A payload that is to be sent to `to` under its number."""

    to: Peer
    seq: int
    floor: int
    payload: P


class Channels(Generic[P]):
    """The outboxes and inboxes of one process incarnation, and who of its peers is lost."""

    def __init__(self) -> None:
        self._outboxes: dict[Peer, Outbox[P]] = {}
        self._inboxes: dict[Peer, Inbox] = {}
        self._lost: dict[int, int] = {}
        # A lower bound of the times at which something is due: settling does not raise it, the next look does.
        self._due = math.inf

    def send(self, to: Peer, payload: P, now: float) -> Sending[P]:
        """Number a payload to be sent now, and again until it is settled."""
        outbox = self._outbox(to)
        due = now + FIRST_RETRY
        seq = outbox.add(payload, due)
        if due < self._due:
            self._due = due
        return Sending(to, seq, outbox.floor, payload)

    def ride(self, to: Peer, payload: P, expires: float | None) -> int:
        """Number a payload that rides on another message, which is of no use after `expires` (`None`: no such time)."""
        if expires is None:
            expires = math.inf
        elif expires < self._due:
            self._due = expires
        return self._outbox(to).add(payload, expires)

    def hasten(self, to: Peer, seq: int, payload: P, now: float) -> Sending[P] | None:
        """Stop waiting for the message that a number rides on, and send this payload now. `None` if it was settled."""
        outbox = self._outboxes.get(to)
        if outbox is None or not outbox.hasten(seq, payload, now):
            return None
        self._due = min(self._due, now + FIRST_RETRY)
        return Sending(to, seq, outbox.floor, payload)

    def settle(self, to: Peer, seq: int) -> P | None:
        """The peer has number `seq`, or never needs it. Returns the payload, `None` if nothing was open."""
        outbox = self._outboxes.get(to)
        return None if outbox is None else outbox.settle(seq)

    def retract(self, to: Peer, seq: int) -> bool:
        """Settle a number that rides on a message which never left. False if it has been sent by itself since."""
        outbox = self._outboxes.get(to)
        return outbox is not None and outbox.retract(seq)

    def is_new(self, sender: Peer, seq: int) -> bool:
        """Whether a number has not been processed."""
        inbox = self._inboxes.get(sender)
        return inbox is None or inbox.is_new(seq)

    def accept(self, sender: Peer, seq: int, floor: int = 0) -> bool:
        """Note that a number is processed; True the first time."""
        inbox = self._inboxes.get(sender)
        if inbox is None:
            inbox = self._inboxes[sender] = Inbox()
        return inbox.accept(seq, floor)

    def is_lost(self, peer: Peer) -> bool:
        """Whether this life of the worker, or a later one, was declared lost."""
        lost = self._lost.get(peer.worker_id)
        return lost is not None and peer.incarnation <= lost

    def lose(self, peer: Peer) -> list[P]:
        """Forget a peer for ever; its messages are void from now on. Returns what it had not acknowledged."""
        self._lost[peer.worker_id] = max(peer.incarnation, self._lost.get(peer.worker_id, -1))
        self._inboxes.pop(peer, None)
        outbox = self._outboxes.pop(peer, None)
        return [] if outbox is None else outbox.payloads()

    def take_due(self, now: float) -> list[Sending[P]]:
        """Everything that is to be sent (again) now."""
        if now < self._due:
            return []
        due: list[Sending[P]] = []
        self._due = math.inf
        for peer, outbox in self._outboxes.items():
            again, next_due = outbox.take_due(now)
            self._due = min(self._due, next_due)
            if again:
                floor = outbox.floor
                due += [Sending(peer, seq, floor, payload) for seq, payload in again]
        return due

    def next_due(self) -> float:
        """When to call `take_due`: never later than something is due, sometimes with nothing due. inf for never."""
        return self._due

    def count_due(self) -> int:
        """Messages that are sent again at some time: all but those that ride on one without an end."""
        return sum(outbox.count_due() for outbox in self._outboxes.values())

    def __len__(self) -> int:
        """Numbers that are not settled, those that ride included."""
        return sum(map(len, self._outboxes.values()))

    def __repr__(self) -> str:
        lost = [Peer(*item) for item in sorted(self._lost.items())]
        return f"<Channels out={self._outboxes} in={self._inboxes} lost={lost}>"

    def _outbox(self, to: Peer) -> Outbox[P]:
        outbox = self._outboxes.get(to)
        if outbox is None:
            outbox = self._outboxes[to] = Outbox()
        return outbox
