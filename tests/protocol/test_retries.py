"""Delays grow, are spread, and end in time; the next try goes where the last one was not."""

from __future__ import annotations

import itertools

import pytest

from zrpc.protocol.retries import FIRST_DELAY, LAST_DELAY, Retry


def test_delays_double_up_to_a_bound() -> None:
    retry = Retry(None, lambda: 1.0)
    delays = [retry.fail("a", 100.0) for _ in range(40)]
    assert delays[0] == 100.0 + FIRST_DELAY
    assert delays[1] == 100.0 + 2 * FIRST_DELAY
    assert delays[-1] == 100.0 + LAST_DELAY
    assert retry.failures == 40
    assert repr(retry) == "<Retry failures=40 deadline=None>"


def test_half_of_a_delay_is_chance() -> None:
    assert Retry(None, lambda: 0.0).fail("a", 0.0) == FIRST_DELAY / 2


@pytest.mark.parametrize(("deadline", "there_is_time"), [(10.2, True), (10.02, False), (9.0, False)])
def test_a_try_begins_before_the_deadline(deadline: float, there_is_time: bool) -> None:
    assert (Retry(deadline, lambda: 1.0).fail("a", 10.0) is not None) is there_is_time


def test_others_come_first() -> None:
    retry = Retry(None, lambda: 0.5)
    workers = ["a", "b", "c", "d"]
    tried = []
    for _ in range(9):
        where = retry.choose(workers)
        tried.append(where)
        retry.fail(where, 0.0)
    assert tried == list("cdabcdabc"), "all in turn, beginning anywhere"
    assert retry.choose(["c"]) == "c"


def test_calls_begin_anywhere() -> None:
    starts = itertools.count()
    found = {Retry(None, lambda: (next(starts) % 10) / 10).choose("abcde") for _ in range(10)}
    assert found == set("abcde")
