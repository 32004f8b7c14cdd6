from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from member_world import EPOCH_MS

from zrpc.protocol.changes import Changes
from zrpc.wire.messages import Gone, Member, Members


def member(name: str, worker_id: int, incarnation: int) -> Member:
    return Member(name, worker_id, incarnation, 0, f"memory://{name}")


def gone(member: Member) -> Gone:
    return Gone(member.name, member.id, member.incarnation, "x")


def numbered(count: int, first: int = 0) -> list[Member]:
    return [member(f"w{number}", number, number + 1) for number in range(first, first + count)]


def everybody(changes: Changes) -> dict[int, Member]:
    members, up, ends = changes.everybody()
    return {member.id: member for member in members.after(ends, up)}


def test_changes_cancel_out_before_they_are_told() -> None:
    changes = Changes(1)
    a, b = member("a", 0, 1), member("b", 1, 2)
    changes.add(a)
    changes.take_delta(1.0)
    changes.add(b)
    changes.remove(gone(b))
    changes.remove(gone(a))
    changes.add(a)
    delta = changes.take_delta(2.0)
    assert (delta.previous, delta.sequence) == (1, 5)
    assert (delta.up.members, [one.name for one in delta.gone]) == ((a,), ["b"])
    assert everybody(changes) == {0: a}
    assert not changes.is_pending


def test_in_a_small_cluster_everybody_is_packed_for_each_change() -> None:
    changes = Changes(1)
    changes.add(member("a", 0, 1))
    first, *rest = changes.everybody()
    assert [len(first), *map(len, rest)] == [1, 0, 0]
    assert changes.everybody()[0] is first
    changes.add(member("b", 1, 2))
    assert len(changes.everybody()[0]) == 2


def test_in_a_large_cluster_everybody_is_packed_once_for_each_time_that_the_others_are_told() -> None:
    changes = Changes(1, small=10)
    first, *later = numbered(40)
    for one in later:
        changes.add(one)
    changes.take_delta(1.0)
    roster, up, ends = changes.everybody()
    assert (len(roster), len(up), ends) == (39, 0, ())
    for one in numbered(5, 40):
        changes.add(one)
        assert changes.everybody()[0] is roster
    changes.remove(gone(later[3]))
    roster_now, up, ends = changes.everybody()
    assert (roster_now is roster, len(up), ends) == (True, 5, (gone(later[3]),))
    assert set(everybody(changes)) == set(range(1, 45)) - {later[3].id}
    changes.take_delta(2.0)
    changes.add(first)
    assert changes.everybody()[0] is not roster
    assert set(everybody(changes)) == set(range(45)) - {later[3].id}


def test_what_was_told_by_a_time() -> None:
    changes = Changes(1)
    for number in range(3):
        changes.add(member(f"w{number}", number, number + 1))
        changes.take_delta(10.0 * (number + 1))
    assert [changes.told_by(when) for when in (0.0, 10.0, 19.0, 20.0, 40.0)] == [0, 1, 1, 2, 3]


def test_who_missed_something_is_told_that_and_no_more() -> None:
    changes = Changes(1)
    a, b, c = numbered(3)
    for one in (a, b, c):
        changes.add(one)
    changes.remove(gone(b))
    answer = changes.answer(2)
    assert (answer.previous, answer.sequence, answer.full, answer.answer) == (2, 4, False, True)
    assert (answer.up.members, answer.gone) == ((c,), (gone(b),))
    nothing = changes.answer(4)
    assert (nothing.sequence, nothing.full, nothing.up.members, nothing.gone) == (4, False, (), ())


@pytest.mark.parametrize("sequence", [0, 900, 1101])
def test_who_missed_more_than_there_are_members_or_never_heard_this_broker_is_told_everybody(sequence: int) -> None:
    changes = Changes(1, small=4)
    a = member("a", 0, 1)
    for _ in range(550):
        changes.add(a)
        changes.remove(gone(a))
    for one in numbered(3, 1):
        changes.add(one)
    answer = changes.answer(1104 if sequence == 1101 else sequence)
    assert (answer.full, answer.answer, answer.sequence) == (True, True, 1103)
    assert {member.id for member in answer.everybody()} == {1, 2, 3}


def apply(known: dict[int, Member], message: Members) -> dict[int, Member]:
    """What a member knows after a message, if it takes it."""
    if message.full:
        return {member.id: member for member in message.everybody()}
    left = {
        one.id: one
        for one in known.values()
        if not any((g.id, g.incarnation) == (one.id, one.incarnation) for g in message.gone)
    }
    return left | {member.id: member for member in message.up.members}


@given(
    st.lists(st.tuples(st.sampled_from(["come", "go", "change", "back", "tell", "standby"]), st.integers(0, 7))),
    st.data(),
)
def test_from_any_moment_on_a_delta_an_answer_and_the_whole_lead_to_the_same(
    steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    changes = Changes(EPOCH_MS, small=data.draw(st.sampled_from([0, 256])))
    up: dict[int, Member] = {}
    over: dict[int, Member] = {}
    moments: list[tuple[int, dict[int, Member]]] = [(0, {})]
    told: dict[int, Member] = {}
    for number, (what, who) in enumerate(steps):
        if what == "come" and who not in up:
            up[who] = member(f"w{who}", who, number + 1)
            changes.add(up[who])
        elif what == "change" and who in up:
            up[who] = Member(up[who].name, who, up[who].incarnation, 0, "memory://x", "", "draining")
            changes.add(up[who])
        elif what == "go" and who in up:
            over[who] = up.pop(who)
            changes.remove(gone(over[who]))
        elif what == "back" and who in over and who not in up:
            up[who] = over.pop(who)
            changes.add(up[who])
        elif what == "standby":
            changes.tell_standby(f"tcp://s:{who + 1}")
        elif what == "tell":
            told = apply(told, changes.take_delta(float(number)))
            assert told == up
        moments.append((changes.sequence, dict(up)))
    for sequence, known in moments:
        assert apply(known, changes.answer(sequence)) == up
    assert everybody(changes) == up
