"""Waiting until owners know of references."""

from __future__ import annotations

from zrpc.ids import GloballyUniqueId
from zrpc.runtime.confirmations import Confirmations

ONE, TWO = GloballyUniqueId(0, 1), GloballyUniqueId(0, 2)


def test_each_waiter_is_called_once_with_the_last_of_its_forks() -> None:
    called: list[str] = []
    confirmations = Confirmations()
    assert not confirmations.wait_for([], lambda: called.append("none"))
    assert confirmations.wait_for([ONE, TWO], lambda: called.append("both"))
    assert confirmations.wait_for([TWO], lambda: called.append("second"))
    assert len(confirmations) == 2
    for then in confirmations.take(TWO):
        then()
    assert called == ["second"]
    assert confirmations.take(TWO) == []
    for then in confirmations.take(ONE):
        then()
    assert called == ["second", "both"]
    assert len(confirmations) == 0
