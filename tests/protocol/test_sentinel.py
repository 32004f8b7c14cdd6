"""A peer's connection tells whether it can still answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrpc.protocol.sentinel import GRACE, LOST, OPENING_PATIENCE, TRANSITIONS, Sentinel


def after(*steps: str | float) -> tuple[str, str, list[bool]]:
    """State, reason and what each tick said, after events and seconds that pass."""
    now = 100.0
    sentinel = Sentinel(now)
    said = []
    for step in steps:
        if isinstance(step, str):
            sentinel.note(step, now)
        else:
            now += step
            said.append(sentinel.tick(now))
    return sentinel.state, sentinel.why, said


@pytest.mark.parametrize(
    ("steps", "state", "why", "said"),
    [
        (("connected", 1000.0), "standing", "", [False]),
        (("connected", "disconnected", GRACE - 0.01), "doubtful", "its connection broke", [False]),
        (("connected", "disconnected", GRACE), "lost", "its connection broke and did not come back", [True]),
        (("connected", "disconnected", "refused", GRACE), "lost", "nobody listens at its address", [True]),
        (("connected", "disconnected", GRACE / 2, "connected", GRACE, 1000.0), "standing", "", [False] * 3),
        (("refused", "refused", GRACE), "lost", "nobody listens at its address", [True]),
        (("refused", GRACE), "opening", "it takes connections", [False]),
        (("refused", 1.5, "refused", 1.5, "refused", GRACE), "opening", "it takes connections", [False] * 3),
        (("disconnected", "disconnected", GRACE, "connected", GRACE), "standing", "", [False, False]),
        (("denied", "denied", OPENING_PATIENCE - 1), "opening", "it takes connections", [False]),
        (("denied", OPENING_PATIENCE), "lost", "it takes connections, and does not answer", [True]),
        (
            ("connected", "disconnected", GRACE, GRACE, "connected", GRACE),
            "lost",
            "its connection",
            [True, False, False],
        ),
    ],
)
def test_histories(steps: tuple[str | float, ...], state: str, why: str, said: list[bool]) -> None:
    assert after(*steps)[0::2] == (state, said)
    assert after(*steps)[1].startswith(why)


def test_a_second_break_has_its_own_grace() -> None:
    assert after("connected", "disconnected", 0.5, "connected", "disconnected", 0.5)[2] == [False, False]


@given(
    st.lists(
        st.one_of(st.sampled_from(["connected", "disconnected", "refused", "denied", "?"]), st.floats(0.0, 2.0)),
        max_size=30,
    )
)
def test_a_peer_is_given_up_once_and_only_after_a_broken_connection_did_not_come_back(steps: list[str | float]) -> None:
    state, _, said = after("connected", *steps)
    assert said.count(True) == (state == LOST)
    if not {"disconnected", "refused"} & set(steps):
        assert state == "standing"
    waited = 0.0
    broken = False
    expected = False
    for step in steps:
        if isinstance(step, float):
            waited += step
            expected = expected or (broken and waited >= GRACE)
        elif step == "connected":
            broken = False
        elif step in ("disconnected", "refused") and not broken:
            broken, waited = True, 0.0
    # A sum of small steps may fall a rounding error short of the grace.
    assert (state == LOST) == expected or abs(waited - GRACE) < 1e-9


def test_the_table_has_no_way_out_of_lost() -> None:
    assert not [row for row in TRANSITIONS if row[0] == LOST]
