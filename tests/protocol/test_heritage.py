from __future__ import annotations

from zrpc.errors import StaleIncarnation
from zrpc.protocol.effects import Arrival, Exit, Expectation, RouteLoss, Send, Tick
from zrpc.protocol.heritage import entry_of, inherit
from zrpc.protocol.registry import Registry
from zrpc.wire.messages import Hello, Refusal, Welcome

EPOCH_MS = 1_790_000_000_000


def test_a_book_is_inherited_as_it_was() -> None:
    old = Registry("c", EPOCH_MS, 0.0)
    old.handle(Expectation(("a", "b", "expected")), 0.0)
    for number, name in enumerate(("a", "b", "c", "d"), 1):
        old.handle(Arrival(Hello(name, number, f"tcp://{name}:1", "role", world_size=0), b"%d" % number), 0.0)
    old.handle(RouteLoss(b"2"), 0.1)
    old.handle(Tick(), 0.5)
    old.handle(Exit("c", 0, "was killed"), 0.5)
    entries = [entry_of(record) for record in old.book.by_name.values()]
    new = Registry("c", EPOCH_MS + 60_000, 1.0)
    inherit(new, entries, 10_000, 1.0)
    assert [entry_of(record) for record in new.book.by_name.values()] == entries
    assert {name: record.state for name, record in new.book.by_name.items()} == {
        "a": "up",
        "b": "gone",
        "c": "gone",
        "d": "up",
        "expected": "absent",
    }
    assert new.book.living_count == 2
    assert new.book.floor == 10_000


def test_heirs_return_to_it_and_the_dead_are_refused() -> None:
    old = Registry("c", EPOCH_MS, 0.0)
    for number, name in enumerate(("a", "b"), 1):
        old.handle(Arrival(Hello(name, number, f"tcp://{name}:1"), b"%d" % number), 0.0)
    old.handle(Exit("b", 0, "was killed"), 0.5)
    entries = [entry_of(record) for record in old.book.by_name.values()]
    a, b = entries
    new = Registry("c", EPOCH_MS + 60_000, 1.0)
    inherit(new, entries, 10_000, 1.0)
    back = Hello("a", a.nonce, a.address, id=a.id, incarnation=a.incarnation, life=a.life)
    (welcome,) = (e.message for e in new.handle(Arrival(back, b"9"), 1.1) if isinstance(e, Send))
    assert isinstance(welcome, Welcome)
    assert (welcome.id, welcome.incarnation) == (a.id, a.incarnation)
    dead = Hello("b", b.nonce, b.address, id=b.id, incarnation=b.incarnation, life=b.life)
    (refusal,) = (e.message for e in new.handle(Arrival(dead, b"10"), 1.1) if isinstance(e, Send))
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.to_error(), StaleIncarnation)


def test_a_newcomer_does_not_get_the_name_of_an_heir_that_may_return() -> None:
    old = Registry("c", EPOCH_MS, 0.0)
    old.handle(Arrival(Hello("a", 1, "tcp://a:1"), b"1"), 0.0)
    new = Registry("c", EPOCH_MS + 60_000, 1.0)
    inherit(new, [entry_of(old.book.by_name["a"])], 10_000, 1.0)
    assert new.handle(Arrival(Hello("a", 2, "tcp://a:2"), b"2"), 1.1) == []
    new.handle(Tick(), 4.5)
    (welcome,) = (e.message for e in new.handle(Arrival(Hello("a", 2, "tcp://a:2"), b"2"), 4.6) if isinstance(e, Send))
    assert isinstance(welcome, Welcome)
    assert welcome.id == 0
    assert welcome.life > 0
