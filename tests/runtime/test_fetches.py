"""Fetches that wait for a value: answered once, or given up, whatever other threads do meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from interleaving import at_each_step

from zrpc.ids import RRefId
from zrpc.runtime.fetches import Fetch, Fetches
from zrpc.runtime.owned import OwnedValue

RREF = RRefId(1, 2)


@pytest.mark.parametrize("is_given_up_first", [True, False])
def test_a_fetch_is_answered_or_given_up_and_never_both(is_given_up_first: bool) -> None:
    ends: list[str] = []

    def make() -> tuple[Any, Any]:
        ends.clear()
        fetch = Fetch(RREF, OwnedValue(), lambda value, error, codec: ends.append("answered"))

        def give_up() -> None:
            if fetch.give_up():
                ends.append("given up")

        def answer() -> None:
            fetch(1, None)

        return (give_up, answer) if is_given_up_first else (answer, give_up)

    seen = set()
    for _ in at_each_step(make):
        assert len(ends) == 1
        seen.update(ends)
    assert seen == {"answered", "given up"}


def test_fetches_are_given_up_when_their_time_is_over() -> None:
    fetches = Fetches()
    owned = OwnedValue()
    for deadline in (3.0, 1.0):
        fetch = Fetch(RREF, owned, lambda value, error, codec: None)
        owned.waiters.append(fetch)
        fetches.add(fetch, deadline)
    assert fetches.next_deadline() == 1.0
    assert list(fetches.take_overdue(2.0)) == [RREF]
    assert (len(fetches), len(owned.waiters)) == (1, 1)
    owned.waiters[0](None, None)
    assert list(fetches.take_overdue(4.0)) == []
