"""Gatherings: complete, late, deserted, lost."""

from __future__ import annotations

import threading

import pytest

from zrpc.errors import LocalFault, Unavailable, WorkerLost
from zrpc.runtime.gathering import Gatherings


def test_the_leader_has_all_when_all_have_come() -> None:
    gatherings = Gatherings()
    key = gatherings.begin(["a", "b"])
    gatherings.add(key, ["a", "b"], "a", 1)
    assert not gatherings.wait(key, 0.0)
    gatherings.add(key, ["a", "b"], "b", 2)
    assert gatherings.wait(key, None)
    assert gatherings.take(key) == {"a": 1, "b": 2}
    assert gatherings.take(key) == {}


def test_who_comes_before_the_leader_begins_is_counted() -> None:
    leader, follower = Gatherings(), Gatherings()
    key = follower.begin(["b", "a"])
    leader.add(key, ["a", "b"], "b", 2)
    assert leader.begin(["a", "b"]) == key
    leader.add(key, ["a", "b"], "a", 1)
    assert leader.wait(key, 0.0)


def test_the_next_gathering_of_the_same_is_another() -> None:
    gatherings = Gatherings()
    assert len({gatherings.begin(names) for names in (["a", "b"], ["b", "a"], ["a"])}) == 3


def test_nobody_comes_twice_or_uninvited() -> None:
    gatherings = Gatherings()
    gatherings.add("k", ["a", "b"], "a", 1)
    with pytest.raises(LocalFault, match="twice"):
        gatherings.add("k", ["a", "b"], "a", 1)
    with pytest.raises(LocalFault, match="'c' is not one of those"):
        gatherings.add("k", ["a", "b"], "c", 1)


def test_a_follower_is_woken_by_the_leader() -> None:
    gatherings = Gatherings()
    key = gatherings.begin(["a", "b"])
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(gatherings.wait(key, None)))
    waiter.start()
    gatherings.settle(key, {"a": 1, "b": 2})
    waiter.join(10)
    assert found == [True]
    assert gatherings.take(key) == {"a": 1, "b": 2}


def test_a_deserter_ends_the_wait() -> None:
    gatherings = Gatherings()
    key = gatherings.begin(["a", "b"])
    gatherings.desert(key, "b", "it took too long")
    assert gatherings.wait(key, None)
    assert gatherings.deserters(key) == {"b": "it took too long"}


def test_the_loss_of_who_has_not_come_ends_the_wait() -> None:
    gatherings = Gatherings()
    key = gatherings.begin(["a", "b", "c"])
    gatherings.add(key, ["a", "b", "c"], "b", 1)
    gatherings.lose("b", "it left")  # it has done its part
    assert not gatherings.wait(key, 0.0)
    gatherings.lose("c", "it died")
    with pytest.raises(WorkerLost, match="'c' was lost while gathering with it: it died"):
        gatherings.wait(key, None)


def test_the_leader_may_give_up() -> None:
    gatherings = Gatherings()
    key = gatherings.begin(["a", "b"])
    gatherings.dissolve(key, "b is late")
    with pytest.raises(Unavailable, match="b is late"):
        gatherings.wait(key, None)
