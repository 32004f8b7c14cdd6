"""What a standby keeps of its primary's book, and how a registry begins with it.

One rule: whatever is inherited is as it was: ids, incarnations, lives, who is up and which lives are over.
"""

from __future__ import annotations

from collections.abc import Iterable

from zrpc.protocol.membership import ABSENT, GONE, UP, WAITING, Record
from zrpc.protocol.registry import Registry
from zrpc.wire.messages import MAX_WHY, Hello
from zrpc.wire.succession import Entry


def entry_of(record: Record) -> Entry:
    """A record as a standby is told of it. Whoever waits for its group says HELLO again, to whoever is in charge then."""
    state = ABSENT if record.state == WAITING else record.state
    hello = record.hello
    if hello is None:
        return Entry(record.name, record.id, record.incarnation, record.life, state)
    return Entry(
        record.name,
        record.id,
        record.incarnation,
        record.life,
        state,
        hello.nonce,
        hello.address,
        hello.role,
        hello.pid,
        hello.host,
        hello.software,
        hello.world_size,
        record.is_draining,
        record.by_will,
        record.why[:MAX_WHY],
    )


def inherit(registry: Registry, entries: Iterable[Entry], floor: int, now: float) -> None:
    """Have a new registry begin with what another one knew. Its members are up, and have `death_timeout` to return."""
    registry.is_heir = True
    registry.admit_from(now)
    registry.book.raise_floor(floor)
    for entry in entries:
        _restore(registry, entry, now)


def _restore(registry: Registry, entry: Entry, now: float) -> None:
    book = registry.book
    record = book.claim(entry.name, entry.id)
    record.incarnation, record.life = entry.incarnation, entry.life
    if entry.state not in (UP, GONE):
        return
    record.hello = Hello(
        entry.name,
        entry.nonce,
        entry.address,
        entry.role,
        entry.id,
        entry.incarnation,
        entry.life,
        entry.pid,
        entry.host,
        entry.software,
        entry.world_size,
    )
    record.move("adopted")
    record.joined_at = record.refreshed_at = record.heard_at = now
    record.is_draining = entry.is_draining
    book.note_living(record)
    if entry.state == GONE:
        record.move("died")
        record.by_will, record.why = entry.by_will, entry.why
        book.note_dead(record)
        return
    registry.take_up(record, now)
