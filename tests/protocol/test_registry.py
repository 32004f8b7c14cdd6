from __future__ import annotations

from typing import Any

import pytest
from member_world import EPOCH_MS, World, hello

from zrpc.errors import InvalidName, InvalidTransition, JoinRefused, NameTaken, StaleIncarnation
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    Broadcast,
    Departure,
    Drain,
    Exit,
    Expectation,
    Fenced,
    Joined,
    JoinFailed,
    MemberDraining,
    MemberGone,
    MemberUp,
    PeerRefused,
    RouteLoss,
    Send,
    StopDemand,
    StopRequested,
    Tick,
)
from zrpc.protocol.lives import JOIN_SECONDS, TELL_SECONDS
from zrpc.protocol.membership import LIFECYCLE, LIVING, Record, RegistryOptions
from zrpc.protocol.registry import Registry
from zrpc.wire.messages import Answer, Beat, Challenge, Goodbye, Members, Refusal, Resolve, Stop, Welcome


def refusal(node: Any) -> Exception:
    (failed,) = node.heard(JoinFailed)
    error: Exception = failed.error
    return error


# ------------------------------------------------------------------------------------------------ names and ids


def test_ids_are_given_in_order_and_stay_with_the_name() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    assert (a.session.id, b.session.id) == (0, 1)
    assert (a.session.life, a.session.incarnation < b.session.incarnation) == (0, True)
    world.crash(a)
    world.run(1)
    again = world.add("a")
    assert (again.session.id, again.session.life) == (0, 1)
    assert again.session.incarnation > b.session.incarnation


def test_an_asked_rank_is_given_when_nobody_ever_had_it() -> None:
    world = World()
    assert world.add("a", id=3).session.id == 3
    assert world.add("b", id=3).session.id == 0
    assert [world.add(name).session.id for name in "cdef"] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"id": 1}, {"id": 1}, "asks for rank 1, which is that of worker 'a'"),
        ({"id": 0}, {"id": 2}, "rank 2 of 'b' is not below world_size 2"),
        ({"id": 0}, {"id": 1, "world_size": 3}, "asks for a group of 3, the group here has world_size 2"),
    ],
)
def test_a_static_member_gets_its_rank_or_the_reason(first: dict[str, Any], second: dict[str, Any], why: str) -> None:
    world = World()
    world.add("a", **{"world_size": 2, **first})
    error = refusal(world.add("b", **{"world_size": 2, **second}))
    assert isinstance(error, JoinRefused)
    assert why in str(error)


def test_a_complete_group_takes_no_more() -> None:
    world = World()
    world.add("a", world_size=1)
    assert "the group of 1 is complete: 'b' would be one more" in str(refusal(world.add("b", world_size=1)))


def strict(rank: int, **fields: Any) -> dict[str, Any]:
    return {"id": rank, "world_size": 3, "strict": True, **fields}


def test_a_strict_group_fails_for_all_when_one_is_refused() -> None:
    world = World()
    early = [world.add("a", **strict(0)), world.add("b", **strict(1))]
    late = world.add("c", **strict(2))  # the group is complete with it
    assert all(node.heard(Joined) for node in (*early, late))

    world = World()
    early = [world.add("a", **strict(0)), world.add("b", **strict(1))]
    culprit = world.add("a", **strict(2))
    assert [type(refusal(node)) for node in (*early, culprit)] == [NameTaken] * 3
    assert "'a' is not unique" in str(refusal(world.add("c", **strict(2))))  # and for who comes too late
    assert world.registry is not None
    assert len(world.registry.groups.failure_told) == 4
    assert not list(world.registry.book.living())


def test_a_group_that_is_not_strict_goes_on_without_the_refused() -> None:
    world = World()
    waiting = world.add("a", id=0, world_size=2)
    refusal(world.add("a", id=1, world_size=2))
    assert world.add("b", id=1, world_size=2).heard(Joined)
    assert waiting.heard(Joined)


def test_a_complete_strict_group_does_not_fail_by_a_stranger() -> None:
    world = World()
    for rank, name in enumerate("abc"):
        world.add(name, **strict(rank))
    refusal(world.add("d", **strict(0)))
    assert world.registry is not None
    assert world.registry.groups.failure is None
    assert len(list(world.registry.book.living())) == 3


def test_static_and_dynamic_are_not_mixed_when_strict() -> None:
    world = World()
    world.add("a", id=0, world_size=1, strict=True)
    assert "mixes statically and dynamically" in str(refusal(world.add("b", strict=True)))
    assert world.registry is not None
    assert world.registry.groups.failure is None


def test_a_static_member_cannot_change_the_rank_of_its_name() -> None:
    world = World()
    world.crash(world.add("a", id=0, world_size=2))
    world.run(1)
    error = refusal(world.add("a", id=1, world_size=2))
    assert "asks for rank 1, and has id 0 in this cluster already" in str(error)


def test_expected_names_have_the_ids_of_their_order_until_somebody_asks_for_one() -> None:
    world = World()
    world.feed(Expectation(("job", "w0", "w1")))
    assert world.add("w1").session.id == 2
    world.add("rank0", id=0, world_size=2)
    assert world.registry is not None
    assert world.registry.book.by_name["rank0"].id == 0
    assert world.add("job", wait=False).session.id == 3
    assert world.add("w0").session.id == 1


def test_a_name_that_is_held_is_refused_with_its_holder() -> None:
    world = World()
    world.add("a", pid=77, host="here")
    error = refusal(world.add("a"))
    assert isinstance(error, NameTaken)
    assert (error.name, error.holder) == ("a", "process 77 on here")


def test_a_name_that_is_no_name_is_refused_with_the_reason() -> None:
    world = World()
    error = refusal(world.add("a b", address="memory://ab"))
    assert isinstance(error, InvalidName)
    assert error.name == "a b"
    assert world.registry is not None
    assert world.registry.refused == {"InvalidName": 1}


def test_members_over_the_limit_are_refused() -> None:
    world = World(RegistryOptions(max_members=2))
    world.add("a"), world.add("b")
    assert "2 members" in str(refusal(world.add("c")))


def test_the_longest_dead_are_forgotten_and_their_ids_not_given_again() -> None:
    world = World(RegistryOptions(max_remembered=2))
    for index in range(5):
        world.command(world.add(f"w{index}"), Departure())
    assert world.registry is not None
    assert sorted(world.registry.book.by_name) == ["w3", "w4"]
    assert world.add("w0").session.id == 5
    assert world.add("w4").session.id == 4


def test_the_same_hello_gets_the_same_answer() -> None:
    registry = Registry("c", EPOCH_MS, 0.0)
    arrival = Arrival(hello("a", nonce=5), b"r")
    (first,) = [e for e in registry.handle(arrival, 0.0) if isinstance(e, Send)]
    (second,) = [e for e in registry.handle(arrival, 0.1) if isinstance(e, Send)]
    assert isinstance(first.message, Welcome)
    assert first.message == second.message
    assert registry.book.living_count == 1


def test_one_connection_has_one_name() -> None:
    registry = Registry("c", EPOCH_MS, 0.0)
    registry.handle(Arrival(hello("a", nonce=5), b"r"), 0.0)
    _, effect = registry.handle(Arrival(hello("b", nonce=6), b"r"), 0.0)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Refusal)
    assert "that of worker 'a'" in effect.message.message


# ------------------------------------------------------------------------------------------------------- death


def test_a_lost_connection_is_a_death_after_the_grace() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(0.1)
    world.crash(b)
    world.run(0.29)
    assert not a.heard(MemberGone)
    world.run(0.05)
    (gone,) = a.heard(MemberGone)
    assert (gone.member.name, gone.why) == ("b", "its connection closed")
    assert set(a.session.members) == {"a"}


def test_a_connection_that_is_renewed_in_time_is_no_death() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.reconnect(b)
    world.run(5)
    assert not a.heard(MemberGone)
    assert b.session.state == "up"


def test_silence_is_a_death_after_the_timeout() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(1)
    b.is_frozen = True
    world.run(29.4)
    assert not a.heard(MemberGone)
    world.run(1.0)
    (gone,) = a.heard(MemberGone)
    assert gone.why.startswith("it was not heard of for 30.0 s")


def test_an_exit_seen_by_the_launcher_is_a_death_at_once() -> None:
    world = World()
    a, b = world.add("a"), world.add("b", pid=42)
    world.run(0.1)
    world.feed(Exit("b", 41, "of another process"))
    world.run(0.1)
    assert not a.heard(MemberGone)
    world.feed(Exit("b", 42, "killed by signal 9"))
    world.run(0.03)
    (gone,) = a.heard(MemberGone)
    assert gone.why == "killed by signal 9"
    assert b.session.state == "up"  # it does not know; the test did not really end it
    world.run(1)
    assert b.heard(Fenced)


def test_all_silences_end_when_the_broker_itself_was_stopped() -> None:
    world = World()
    a = world.add("a")
    world.run(1)
    assert world.registry is not None
    world.now += 60  # nobody ran: the machine slept
    world.feed(Tick())
    assert world.living() == {"a"}
    world.run(10)
    assert world.living() == {"a"}
    a.is_frozen = True
    world.run(35)
    assert world.living() == set()


def test_leaving_is_told_as_leaving_and_cannot_be_undone() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(0.1)
    beat = Arrival(Beat(), b.route, b.session.id, b.session.incarnation)
    old_hello = Arrival(b.session.hello, b.route, b.session.id, b.session.incarnation)
    world.command(b, Departure("its work is done"))
    world.run(0.1)
    assert [gone.why for gone in a.heard(MemberGone)] == ["its work is done"]
    world.feed(beat)
    world.feed(old_hello)
    world.run(0.1)
    assert world.living() == {"a"}


# ----------------------------------------------------------------------------------------- coming back, fencing


def test_silence_is_not_death_while_the_connection_stands() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(1)
    b.is_frozen = True
    world.run(25)
    b.is_frozen = False
    world.run(1)
    assert not a.heard(MemberGone)
    assert b.session.state == "up"


def test_one_declared_dead_is_fenced_when_it_speaks_again() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(1)
    b.is_frozen = True
    world.run(40)
    b.is_frozen = False
    world.run(1)
    assert type(a.news[-1]) is MemberGone
    (fenced,) = b.heard(Fenced)
    assert "Start it again" in fenced.why
    assert "b" not in a.session.members
    again = world.add("b")
    world.run(1)
    assert (again.session.state, again.session.id, again.session.life) == ("up", 1, 1)


def test_one_declared_dead_is_fenced_when_its_name_has_a_new_life() -> None:
    world = World()
    b = world.add("b")
    world.run(1)
    b.is_frozen = True
    world.run(40)
    new = world.add("b")
    b.is_frozen = False
    world.run(1)
    (fenced,) = b.heard(Fenced)
    assert "'b' has a newer life" in fenced.why
    assert b.session.state == "fenced"
    assert b.session.next_deadline() is None
    assert (new.session.state, new.session.id, new.session.life) == ("up", 0, 1)


def test_a_beat_from_nobody_is_challenged() -> None:
    registry = Registry("c", EPOCH_MS, 0.0)
    (effect,) = registry.handle(Arrival(Beat(), b"x", 4, 99), 0.0)
    assert effect == Send(Challenge(registry.epoch), b"x")
    assert registry.handle(Arrival(Goodbye(), b"x", 4, 99), 0.0) == []


def test_a_restarted_broker_learns_its_members() -> None:
    world = World()
    nodes = [world.add(name) for name in "abc"]
    world.crash(nodes[1])
    world.run(1)
    before = {node.session.id: node.session.incarnation for node in (nodes[0], nodes[2])}
    for node in nodes:
        node.news.clear()
    world.restart_broker()
    world.run(1)
    assert world.living() == {"a", "c"}
    assert {m.id: m.incarnation for m in nodes[0].session.members.values()} == before
    assert not nodes[0].heard(MemberGone)
    new = world.add("d")
    assert new.session.state == "joining", "members of the earlier broker, who have ids, come first"
    world.run(3)
    assert new.session.incarnation > max(before.values())
    assert new.session.life > 0  # the name may have lived under the broker before


def test_a_restarted_broker_that_does_not_hear_of_somebody_tells_nobody_too_early() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(1)
    b.is_frozen = True
    world.restart_broker()
    world.run(3.5)
    assert not a.heard(MemberGone)
    world.run(1)
    assert [gone.why for gone in a.heard(MemberGone)] == ["it did not return to the restarted broker"]


def test_an_id_of_one_that_died_with_the_broker_is_not_given_again() -> None:
    world = World()
    a = world.add("a")
    b = world.add("b")
    assert (a.session.id, b.session.id) == (0, 1)
    world.crash(b)
    world.run(1)
    world.restart_broker()
    world.run(4)
    c = world.add("c")
    assert c.session.id == 2


def test_a_name_that_comes_back_to_another_broker_ends_its_earlier_life() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    old = b.session.id
    world.run(1)
    world.crash(b)
    world.restart_broker(0.1)
    world.run(3.2)  # newcomers are taken again, and who is missing is not given up yet
    late = world.add("b")
    assert late.session.id != old
    world.run(1)
    assert set(a.session.members_by_id) == {a.session.id, late.session.id}
    assert [gone.member.id for gone in a.heard(MemberGone)] == [old]


def test_of_two_that_return_under_one_name_the_newer_life_stays() -> None:
    registry = Registry("c", EPOCH_MS, 0.0)
    old, new = hello("a", nonce=1, id=0, incarnation=5), hello("a", nonce=2, id=0, incarnation=9, life=1)
    registry.handle(Arrival(old, b"1", 0, 5), 0.0)
    effects = registry.handle(Arrival(new, b"2", 0, 9), 0.1)
    sent = {effect.route: effect.message for effect in effects if isinstance(effect, Send)}
    assert isinstance(sent[b"1"], Refusal)
    assert isinstance(sent[b"1"].to_error(), StaleIncarnation)
    assert isinstance(sent[b"2"], Welcome)
    assert (sent[b"2"].incarnation, sent[b"2"].life) == (9, 1)
    (refused,) = [e for e in registry.handle(Arrival(old, b"3", 0, 5), 0.2) if isinstance(e, Send)]
    assert isinstance(refused.message, Refusal)


def test_a_returning_member_whose_id_another_has_is_fenced() -> None:
    registry = Registry("c", EPOCH_MS, 0.0)
    registry.handle(Arrival(hello("new", nonce=1), b"1"), 0.0)
    news, effect = registry.handle(Arrival(hello("old", nonce=2, id=0, incarnation=5), b"2", 0, 5), 0.0)
    assert isinstance(news, Announce)
    assert isinstance(news.news, PeerRefused)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Refusal)
    assert "the id 0 of worker 'old' has another worker now" in effect.message.message


# ------------------------------------------------------------------------------------------- telling the others


def test_changes_are_told_together() -> None:
    world = World()
    a = world.add("a")
    world.run(1)
    for name in "bcdef":
        world.add(name)
    assert not a.heard(MemberUp)
    world.run(0.03)
    assert [news.member.name for news in a.heard(MemberUp)] == list("bcdef")


def test_a_member_that_is_behind_is_brought_up_to_date() -> None:
    world = World()
    a = world.add("a")
    world.run(0.75)
    world.add("b")
    a.is_frozen = True
    world.run(0.1)  # the delta passes it by
    a.is_frozen = False
    assert "b" not in a.session.members
    world.run(2)
    assert "b" in a.session.members


def test_a_member_can_ask_for_everything() -> None:
    world = World()
    a = world.add("a")
    assert world.registry is not None
    (effect,) = world.registry.handle(Arrival(Resolve(), a.route, a.session.id, a.session.incarnation), world.now)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Members)
    assert (effect.message.full, [m.name for m in effect.message.everybody()]) == (True, ["a"])


# ------------------------------------------------------------------------------------------------ stop, status


def test_stop_reaches_all_or_some_and_is_repeated_until_heard() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.feed(StopDemand(("b",), "enough"))
    assert not a.heard(StopRequested)
    assert [news.why for news in b.heard(StopRequested)] == ["enough"]
    a.is_frozen = True
    world.feed(StopDemand(None, "all"))
    a.is_frozen = False
    world.run(1)
    assert [news.why for news in a.heard(StopRequested)] == ["all"]
    assert len(b.heard(StopRequested)) == 1
    assert world.broker_news[-1] == StopRequested("all", None)


def test_a_tool_that_stops_workers_hears_whom_it_reached() -> None:
    world = World()
    world.add("a")
    assert world.registry is not None
    effects = world.registry.handle(Arrival(Stop("why", ("a", "x")), b"tool"), world.now)
    answer = next(e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Answer))
    assert answer.data == {"stopping": ["a"], "unknown": ["x"]}


def test_the_description_has_the_members_with_their_statistics() -> None:
    world = World()
    a = world.add("a", role="shard", pid=7, host="h", software="1.0")
    a.session.statistics = {"calls_served": 3, "busy_seconds": 0.5}
    world.run(1.25)
    assert world.registry is not None
    (member,) = world.registry.describe(world.now)["members"]
    assert member["statistics"] == {"calls_served": 3, "busy_seconds": 0.5}
    assert member["uptime"] == pytest.approx(1.25)
    assert member["silence"] < 0.5
    assert (member["name"], member["role"], member["pid"], member["host"], member["state"]) == (
        "a",
        "shard",
        7,
        "h",
        "up",
    )


# ------------------------------------------------------------------------------------------------- the lifecycle


def test_the_lifecycle_is_a_table_and_nothing_else() -> None:
    causes = {cause for _, cause in LIFECYCLE}
    for state in ("absent", "waiting", "up", "gone"):
        for cause in causes:
            record = Record("a", 0)
            record.state = state
            expected = LIFECYCLE.get((state, cause))
            if expected is None:
                with pytest.raises(InvalidTransition, match=f"'a' in state {state} cannot take {cause}"):
                    record.move(cause)
                assert record.state == state
            else:
                record.move(cause)
                assert record.is_living == (expected in LIVING)


def test_a_newcomer_gets_no_id_of_a_member_that_is_yet_to_return() -> None:
    world = World()
    slow, quick = world.add("slow"), world.add("quick")
    slow.is_frozen = True
    world.restart_broker()
    new = world.add("new")
    world.run(1)
    world.thaw(slow)
    world.run(3)
    assert (slow.session.state, quick.session.state, new.session.state) == ("up", "up", "up")
    assert len({node.session.id for node in (slow, quick, new)}) == 3


@pytest.mark.parametrize("is_told", [True, False])
def test_a_life_that_was_declared_dead_does_not_return_with_another_broker(is_told: bool) -> None:
    """What it held is given up by those who were told. If nobody was, it lives."""
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(1)
    if is_told:
        a.is_frozen = True
        world.feed(RouteLoss(a.route))
        world.run(1)
        assert [news.member.name for news in b.heard(MemberGone)] == ["a"]
        a.is_frozen = False
    world.restart_broker()
    world.run(2)
    assert a.session.state == ("fenced" if is_told else "up")
    assert world.living() == ({"b"} if is_told else {"a", "b"})
    assert set(b.session.members) == world.living()
    again = world.add("a")
    world.run(4)
    assert again.session.state == ("up" if is_told else "refused")
    assert set(b.session.members) == {"a", "b"}


# ------------------------------------------------------------------------------------------------ draining


def test_who_drains_is_shown_to_all_until_it_leaves() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(0.1)
    world.command(a, Drain())
    world.run(0.1)
    (told,) = b.heard(MemberDraining)
    assert (told.member.name, told.member.state) == ("a", "draining")
    assert b.session.members["a"].state == "draining"
    late = world.add("c")
    assert late.session.members["a"].state == "draining"
    assert len(b.heard(MemberDraining)) == 1
    world.command(a, Departure("done"))
    world.run(0.1)
    (gone,) = b.heard(MemberGone)
    assert (gone.why, gone.cause) == ("done", "left")
    assert world.add("a").session.members["a"].state == "up"


def test_a_death_is_told_from_a_leave() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.run(0.1)
    world.crash(a)
    world.run(1)
    assert [news.cause for news in b.heard(MemberGone)] == ["died"]


def test_draining_outlives_a_restart_of_the_broker() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.command(a, Drain())
    world.restart_broker()
    world.run(2)
    assert b.session.members["a"].state == "draining"
    assert not b.heard(MemberGone)


def test_a_large_cluster_is_told_less_often() -> None:
    """However fast workers join, telling those who are there leaves the broker most of its time."""
    registry = Registry("test", EPOCH_MS, 0.0)
    for number in range(1000):
        registry.handle(Arrival(hello(f"w{number}"), b"%d" % number, -2, 0), 0.0)
    due = registry.next_deadline()
    assert due == RegistryOptions().flush_interval  # of the first change, when the cluster was small
    assert any(isinstance(effect, Broadcast) for effect in registry.handle(Tick(), due))
    registry.handle(Arrival(hello("late"), b"late", -2, 0), 1.0)
    assert registry.next_deadline() == pytest.approx(1.0 + 1001 * JOIN_SECONDS)
    leaving = registry.book.by_name["w7"]
    registry.handle(Arrival(Goodbye(), b"7", leaving.id, leaving.incarnation), 1.01)
    assert registry.next_deadline() == pytest.approx(1.01 + 1001 * TELL_SECONDS), "somebody may wait for who is gone"


def test_a_beat_that_crossed_the_news_asks_for_nothing() -> None:
    """While many join, each beat is behind what was told meanwhile; only who stays behind gets everything again."""
    registry = Registry("test", EPOCH_MS, 0.0)
    (up, *_) = [e for e in registry.handle(Arrival(hello("a"), b"a", -2, 0), 0.0) if isinstance(e, Send)]
    assert isinstance(up.message, Welcome)
    registry.handle(Tick(), 0.1)
    beat = Arrival(Beat(up.message.sequence), b"a", up.message.id, up.message.incarnation)
    for second in range(5, 8):
        registry.handle(Arrival(hello(f"b{second}"), b"b%d" % second, -2, 0), float(second))
        assert any(isinstance(effect, Broadcast) for effect in registry.handle(Tick(), second + 0.1))
        sent = registry.handle(beat, second + 0.2)
        beat = Arrival(Beat(registry.changes.told), b"a", up.message.id, up.message.incarnation)
        assert not sent
    registry.handle(Arrival(hello("c"), b"c", -2, 0), 8.0)
    registry.handle(Tick(), 8.1)
    assert not registry.handle(beat, 9.0)
    (answer,) = [e.message for e in registry.handle(beat, 9.2) if isinstance(e, Send)]
    assert isinstance(answer, Members)
    assert [member.name for member in answer.up.members] == ["c"]
