"""Which distributed autograd contexts a worker takes part in, and how they end everywhere, without I/O.

A context begins on one worker and spreads with calls; each worker knows whom it has passed it on to. When it ends, the
worker where it began tells those, they tell theirs, and so on: CONTEXT_CLEANUP, repeated until it is acknowledged or
its receiver is lost.

    unknown --begin--> active          here: this worker made it
    unknown --join---> active          a call came in it
    active  --release | cleanup | its maker is lost--> ended
    ended   --join---> ended           a call that comes late does not bring it back

    active  --its maker has been a stranger for too long--> ended        (see `strangers`: nobody would tell us)

One rule: no worker keeps a context whose end it could have known. The first cleanup that a worker gets is acknowledged
when all that it has set off are, others at once (as Dijkstra and Scholten have it). If somebody that the context was passed
on to is lost before, nobody can say whom that one passed it on to, or told: then all members are told.

An id has the worker that made it in its upper bits, and that worker's life, so that the loss of a life ends its contexts:

    context id (63 bits)   | worker id: 15 bits | life: 16 bits | counter: 32 bits |     life 0 as in torch's RPC
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from zrpc.clock import earliest
from zrpc.protocol.outbox import FIRST_RETRY, LAST_RETRY, Peer
from zrpc.protocol.strangers import PATIENCE

WORKER_SHIFT: Final = 48
LIFE_SHIFT: Final = 32
MAX_WORKER: Final = (1 << 15) - 1
CHUNK_BITS: Final = 10
"""Ids in a chunk of remembered ends, as a power of two: an integer of 128 bytes at most."""
CHUNKS: Final = 4096
"""Chunks that are remembered, those of the newest ends. A call that comes after so many others are over is later than any
deadline in practice."""


def first_id(worker_id: int, life: int) -> int:
    """The first context id, and the first number of a recorded message, of a worker in one of its lives."""
    if not 0 <= worker_id <= MAX_WORKER:
        raise ValueError(f"a worker that uses distributed autograd has an id of at most {MAX_WORKER}, not {worker_id}")
    return worker_id << WORKER_SHIFT | (life & 0xFFFF) << LIFE_SHIFT


Maker = tuple[int, int]
"""A life of a worker: its id, and the life modulo 65,536."""


def maker_of(context_id: int) -> Maker:
    """The worker that made a context, and its life then."""
    return context_id >> WORKER_SHIFT, context_id >> LIFE_SHIFT & 0xFFFF


class Ended:
    """Contexts that are over, a bit for each: a maker's ids follow one another, so that a chunk holds many."""

    def __init__(self, chunks: int = CHUNKS) -> None:
        self._limit = chunks
        self._chunks: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, context_id: int) -> bool:
        return bool(self._chunks.get(context_id >> CHUNK_BITS, 0) >> (context_id & (1 << CHUNK_BITS) - 1) & 1)

    def add(self, context_id: int) -> None:
        """This one is over."""
        chunk = context_id >> CHUNK_BITS
        self._chunks[chunk] = self._chunks.get(chunk, 0) | 1 << (context_id & (1 << CHUNK_BITS) - 1)
        self._chunks.move_to_end(chunk)
        if len(self._chunks) > self._limit:
            self._chunks.popitem(last=False)


class SendCleanup(NamedTuple):
    """Tell a worker that a context has ended; `cleanup_acknowledged` when it has answered."""

    to: Peer
    context_id: int


class _Message:
    __slots__ = ("due", "retry")

    def __init__(self, now: float) -> None:
        self.retry = FIRST_RETRY
        self.due = now + FIRST_RETRY


class ContextTable:
    """The contexts of one worker, and the cleanups that are not acknowledged yet."""

    def __init__(self, me: Peer, life: int) -> None:
        self._me = me
        self._next = self._first = first_id(me.worker_id, life)
        self._active: dict[int, set[Peer]] = {}
        self._orphans: set[int] = set()
        self._ended = Ended()
        self._sending: dict[SendCleanup, _Message] = {}
        self._engagers: dict[int, Peer] = {}
        self._lost: dict[int, int] = {}
        """The newest lost life of each worker, modulo 65,536."""
        self._strange: dict[Maker, float] = {}
        """Makers of contexts here that are not members, as far as is known here, and since when."""

    def __repr__(self) -> str:
        return f"<ContextTable active={len(self._active)} sending={len(self._sending)}>"

    def __len__(self) -> int:
        return len(self._active)

    # ------------------------------------------------------------------------------------ contexts

    def begin(self) -> int:
        """A new context of this worker's; returns its id."""
        context_id = self._next
        self._next += 1
        self._active[context_id] = set()
        return context_id

    def join(self, context_id: int, lives: Collection[Maker] | None = None, now: float = 0.0) -> bool:
        """A call came in this context. False when it has ended: the call runs, and is not recorded.

        `lives` are the members' now; without them the maker is taken for one.
        """
        if context_id in self._active:
            return True
        if context_id in self._ended or self._is_own(context_id) or self._is_makers_life_over(context_id):
            return False
        self._active[context_id] = set()
        maker = maker_of(context_id)
        if lives is not None and maker not in lives:
            self._strange.setdefault(maker, now)
        return True

    def _is_own(self, context_id: int) -> bool:
        return maker_of(context_id) == maker_of(self._first)

    def _is_makers_life_over(self, context_id: int) -> bool:
        """Whether the worker that made the context was declared lost, in this life or a later one.

        It may go on for a moment, until it hears of that; and calls of others may be under way in its contexts. Nobody
        would tell us of their ends.
        """
        return self._is_lost(maker_of(context_id))

    def _is_lost(self, maker: Maker) -> bool:
        lost = self._lost.get(maker[0])
        return lost is not None and (lost - maker[1]) & 0xFFFF < 1 << 15

    def is_active(self, context_id: int) -> bool:
        """Whether this worker takes part in the context."""
        return context_id in self._active

    def active(self) -> list[int]:
        """The contexts that this worker takes part in, oldest first."""
        return list(self._active)

    def passed_on(self, context_id: int, to: Peer) -> bool:
        """A message of this context is about to be sent. False when it has ended: then the message must not name it.

        Who gets to know of a context after its end would never be told of that.
        """
        known = self._active.get(context_id)
        if known is None:
            return False
        if to != self._me:
            known.add(to)
        return True

    def known_to(self, context_id: int) -> frozenset[Peer]:
        """Whom this worker has passed the context on to."""
        return frozenset(self._active.get(context_id, ()))

    def largest_id(self) -> int:
        """The largest context id that this worker can give, in any of its lives."""
        return self._first | (1 << WORKER_SHIFT) - 1

    # ------------------------------------------------------------------------------------ ends

    def release(
        self, context_id: int, members: Iterable[Peer], now: float, told_by: Peer | None = None
    ) -> list[SendCleanup]:
        """The context has ended: here, or `told_by` says so. `members`: everybody who is up."""
        known = self._active.pop(context_id, None)
        self._ended.add(context_id)
        if known is None:
            return []
        if told_by is not None:
            self._engagers[context_id] = told_by
        if context_id in self._orphans or not known <= set(members):
            self._orphans.discard(context_id)
            known = {member for member in members if member != self._me}
        return self._tell(context_id, known, now)

    def _tell(self, context_id: int, peers: Iterable[Peer], now: float) -> list[SendCleanup]:
        effects = [SendCleanup(to, context_id) for to in sorted(peers)]
        effects = [effect for effect in effects if effect not in self._sending]
        for effect in effects:
            self._sending[effect] = _Message(now)
        return effects

    def owes_acknowledgement(self, context_id: int, to: Peer) -> bool:
        """Whether the cleanup that came from this peer is not to be acknowledged yet."""
        if self._engagers.get(context_id) != to:
            return False
        if any(effect.context_id == context_id for effect in self._sending):
            return True
        del self._engagers[context_id]
        return False

    def cleanup_acknowledged(self, effect: SendCleanup) -> None:
        """The worker has answered."""
        self._sending.pop(effect, None)

    def peer_lost(
        self, peer: Peer, life: int, members: Iterable[Peer], now: float
    ) -> tuple[list[int], list[SendCleanup]]:
        """A life of a worker is over.

        Returns the contexts that it made, which must be released, and what is to be sent: it may not have passed on the
        ends that it was told.
        """
        maker = peer.worker_id, life & 0xFFFF
        self._note_loss(maker)
        others = [member for member in members if member not in (self._me, peer)]
        effects = []
        for effect in [effect for effect in self._sending if effect.to == peer]:
            del self._sending[effect]
            effects += self._tell(effect.context_id, others, now)
        for context_id, known in self._active.items():
            if peer in known:
                known.discard(peer)
                self._orphans.add(context_id)
        return self._made_by(maker), effects

    def _note_loss(self, maker: Maker) -> None:
        self._strange.pop(maker, None)
        if not self._is_lost(maker):
            self._lost[maker[0]] = maker[1]

    def _made_by(self, maker: Maker) -> list[int]:
        return [context_id for context_id in self._active if maker_of(context_id) == maker]

    # ------------------------------------------------------------------------------------ time

    def next_deadline(self) -> float | None:
        """When `timer_fired` is due."""
        again = min((message.due for message in self._sending.values()), default=None)
        return earliest(again, min(self._strange.values()) + PATIENCE if self._strange else None)

    def postpone(self, since: float) -> None:
        """There was no broker until `since`: no maker could be announced before."""
        self._strange = {maker: max(at, since) for maker, at in self._strange.items()}

    def strangers_due(self, lives: Collection[Maker], now: float) -> list[int]:
        """Contexts whose makers are still no members after a while, and are taken for lost: to be released."""
        ended = []
        for maker in [maker for maker, since in self._strange.items() if since + PATIENCE <= now]:
            del self._strange[maker]
            if maker not in lives:
                self._note_loss(maker)
                ended += self._made_by(maker)
        return ended

    def timer_fired(self, now: float) -> list[SendCleanup]:
        """What must be sent again."""
        effects = []
        for effect, message in self._sending.items():
            if message.due <= now:
                message.retry = min(2 * message.retry, LAST_RETRY)
                message.due = now + message.retry
                effects.append(effect)
        return effects
