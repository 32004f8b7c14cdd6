"""Clocks of several workers, from the times of messages."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zrpc.telemetry.clocks import ClockBounds, Offset


def test_one_round_trip_says_where_the_clock_is_within_half_of_it() -> None:
    bounds: ClockBounds[str] = ClockBounds()
    bounds.round_trip("me", 100, "a", 1150, 200)
    assert bounds.solve("me", ["a"]) == {"me": Offset(0.0, 0.0), "a": Offset(1000.0, 50.0)}


def test_the_quickest_trips_count_each_way() -> None:
    bounds: ClockBounds[str] = ClockBounds()
    bounds.round_trip("me", 0, "a", 1010, 500)  # quick there
    bounds.round_trip("me", 1000, "a", 2400, 1420)  # quick back
    found = bounds.solve("me", ["a"])
    assert found is not None
    assert found["a"] == Offset((1010 + 980) / 2, 15.0)


def test_a_worker_is_known_through_another() -> None:
    bounds: ClockBounds[str] = ClockBounds()
    bounds.round_trip("me", 0, "a", 110, 20)
    bounds.round_trip("a", 0, "b", 51, 2)
    found = bounds.solve("me", ["a", "b"])
    assert found is not None
    assert found["b"] == Offset(100 + 50, 11.0)


def test_a_worker_of_which_nothing_is_known_says_so() -> None:
    found = ClockBounds[str]().solve("me", ["a"])
    assert found is not None
    assert found["a"].error_ns == math.inf


def test_messages_in_one_direction_bound_only_one_side() -> None:
    bounds: ClockBounds[str] = ClockBounds()
    bounds.message("me", 0, "a", 700)
    found = bounds.solve("me", ["a"])
    assert found is not None
    assert found["a"] == Offset(700.0, math.inf)


def test_clocks_that_contradict_are_found() -> None:
    bounds: ClockBounds[str] = ClockBounds()
    bounds.message("me", 0, "a", 10)
    bounds.message("a", 100, "me", 20)  # answered before it could have been sent
    assert bounds.solve("me", ["a"]) is None


OFFSETS = st.lists(st.integers(-(10**12), 10**12), min_size=2, max_size=5)
MESSAGES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 10**9), st.integers(0, 10**7)), max_size=60
)


@given(OFFSETS, MESSAGES)
def test_no_message_comes_before_it_was_sent_and_the_truth_is_within_the_error(
    offsets: list[int], messages: list[tuple[int, int, int, int]]
) -> None:
    """Clocks `offsets` ahead; messages that are sent at a true time and take some time."""
    offsets[0] = 0
    count = len(offsets)
    bounds: ClockBounds[int] = ClockBounds()
    sent = []
    for a, b, at, took in messages:
        a, b = a % count, b % count
        sent.append((a, at + offsets[a], b, at + took + offsets[b]))
        bounds.message(*sent[-1])
    found = bounds.solve(0, range(count))
    assert found is not None
    for worker, ahead in enumerate(offsets):
        assert abs(found[worker].ahead_ns - ahead) <= found[worker].error_ns + 1e-3
    for a, at, b, received in sent:
        if math.isfinite(found[a].error_ns) and math.isfinite(found[b].error_ns):
            assert at - found[a].ahead_ns <= received - found[b].ahead_ns + 1e-3
