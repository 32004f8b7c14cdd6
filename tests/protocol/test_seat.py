"""Take-overs of a broker by its standby: each case by itself, and histories of chance."""

from __future__ import annotations

import pytest
from succession_world import A, B, MemberPlace, World

from zrpc.protocol.contexts import MAX_WORKER
from zrpc.protocol.effects import (
    Fenced,
    MemberGone,
    StandbyJoined,
    StandbyLost,
    SteppedDown,
    StopDemand,
    StopRequested,
    TookOver,
)
from zrpc.protocol.primary import BLOCK


def begun(count: int = 3, seed: int = 0) -> World:
    world = World(seed)
    for index in range(count):
        world.add(f"w{index}")
    world.run(2)
    world.assert_agreed()
    return world


def test_the_standby_follows_and_members_are_told_of_it() -> None:
    world = World()
    member = world.add("w", (A,))
    world.run(2)
    assert world.brokers[A].heard(StandbyJoined) == [StandbyJoined(B)]
    assert member.session.standby == B
    assert member.allegiance.known == [A, B]
    standby = world.brokers[B].seat.standby
    assert standby is not None
    assert {name: entry.id for name, entry in standby.entries.items()} == {"w": 0}
    described = world.brokers[A].seat.describe(world.now)
    assert described["is_in_charge"]
    assert described["standby"]["behind"] == 0
    seen = world.brokers[B].seat.describe(world.now)
    assert not seen["is_in_charge"]
    assert [m["name"] for m in seen["members"]] == ["w"]
    assert seen["lag"] < 1.0


def test_a_killed_primary_is_succeeded_within_five_seconds() -> None:
    world = begun()
    before = world.brokers[A].living()
    killed_at = world.now
    world.kill_broker(A)
    late = world.add("late")
    while late.session.state != "up":
        world.run(0.1)
        assert world.now < killed_at + 5.0
    world.run(2)
    world.assert_agreed()
    assert len(world.brokers[B].heard(TookOver)) == 1
    assert {name: world.brokers[B].living()[name] for name in before} == before
    assert not any(member.heard(MemberGone) or member.heard(Fenced) for member in world.members.values())


def test_deaths_are_noticed_after_the_take_over() -> None:
    world = begun()
    world.kill_broker(A)
    world.run(4)
    world.kill("w1")
    world.run(1)
    assert [gone.member.name for gone in world.members["w0"].heard(MemberGone)] == ["w1"]


def test_a_member_that_died_with_the_primary_is_declared_dead() -> None:
    world = begun()
    world.kill_broker(A)
    world.kill("w2")
    world.run(8)
    world.assert_agreed()
    assert [gone.member.name for gone in world.members["w0"].heard(MemberGone)] == ["w2"]


def test_ids_go_on_where_nobody_has_given_any() -> None:
    world = begun()
    ids = {member.session.id for member in world.members.values()}
    world.kill_broker(A)
    world.run(4)
    late = world.add("late")
    world.run(1)
    assert late.session.id not in ids
    assert late.session.id >= BLOCK


def test_ids_stay_as_small_as_distributed_autograd_needs_them() -> None:
    world = begun()
    names = (A, B)
    for number in range(12):
        victim, other = names[number % 2], names[1 - number % 2]
        world.kill_broker(victim)
        world.run(4)
        world.start_broker(victim, other)
        late = world.add(f"late{number}")
        world.run(2)
        assert late.session.state == "up"
        assert late.session.id < (number + 2) * BLOCK
    for address in names:
        world.kill_broker(address)
    world.start_broker(A, B)
    world.start_broker(B, A)
    world.run(15)
    late = world.add("last")
    world.run(4)
    world.assert_agreed()
    assert late.session.id <= MAX_WORKER


def test_a_name_keeps_its_id_over_the_take_over() -> None:
    world = begun()
    old = world.members["w1"].session
    world.kill("w1")
    world.run(1)
    world.kill_broker(A)
    world.run(4)
    again = world.add("w1").session
    world.run(1)
    assert again.id == old.id
    assert again.incarnation > old.incarnation
    assert again.life > old.life


def test_a_primary_that_was_stopped_steps_down_and_follows() -> None:
    world = begun()
    first = world.brokers[A]
    world.freeze(first)
    world.run(5)
    assert world.brokers[B].is_in_charge
    world.thaw(first)
    world.run(3)
    assert first.heard(SteppedDown) == [SteppedDown(B)]
    world.assert_agreed()
    assert first.seat.standby is not None
    assert set(first.seat.standby.entries) == {"w0", "w1", "w2"}


def test_a_restarted_primary_becomes_the_standby_and_takes_over_in_its_turn() -> None:
    world = begun()
    world.kill_broker(A)
    world.run(0.3)
    world.start_broker(A, B)
    world.run(4)
    assert world.in_charge().name == B
    world.assert_agreed()
    world.kill_broker(B)
    world.run(4)
    assert world.in_charge().name == A
    world.assert_agreed()


def test_a_standby_alone_does_not_take_over_what_members_have_not_lost() -> None:
    world = begun()
    world.cut(world.brokers[A], world.brokers[B])
    world.run(20)
    assert not world.brokers[B].is_in_charge
    late = world.add("late")
    world.run(1)
    assert late.session.state == "up"  # more than half of the members are heard: nobody else can be in charge
    world.heal()
    world.run(3)
    world.assert_agreed()


def test_a_primary_without_its_standby_and_most_members_admits_nobody_and_declares_nobody_dead() -> None:
    world = begun(5)
    first = world.brokers[A]
    for other in (world.brokers[B], *(world.members[name] for name in ("w0", "w1", "w2"))):
        world.cut(first, other)
    world.run(1.2)
    later = world.add("later", (A,))
    world.run(2.7)
    assert not world.members["w3"].heard(MemberGone)
    assert later.session.state == "joining"
    assert world.brokers[B].is_in_charge
    world.heal()
    world.run(6)
    assert later.session.state == "up"
    assert world.in_charge().name == B
    world.assert_agreed()
    assert not any(member.heard(Fenced) for member in world.members.values())


def test_who_returns_late_to_a_primary_that_was_cut_off_itself_is_not_declared_dead() -> None:
    world = begun(4)
    first = world.brokers[A]
    world.kill_broker(B)  # which could take over, while it is away
    world.run(1.5)
    for member in world.members.values():
        world.cut(first, member)
    world.run(3)
    world.heal()
    for name in ("w2", "w3"):  # they come a second after the others
        world.cut(first, world.members[name])
    world.run(1)
    world.heal()
    world.run(3)
    assert not any(member.heard(MemberGone) or member.heard(Fenced) for member in world.members.values())
    assert len(first.living()) == 4


def test_of_two_halves_the_one_with_the_primary_goes_on() -> None:
    world = begun(4)
    for other in (world.brokers[B], world.members["w0"], world.members["w1"]):
        world.cut(world.brokers[A], other)
    world.run(10)
    assert not world.brokers[B].is_in_charge
    late = world.add("late")
    world.run(1)
    assert late.session.state == "up"


def test_a_standby_without_members_takes_over_after_a_while() -> None:
    world = begun(0)
    world.kill_broker(A)
    world.run(2)
    assert not world.brokers[B].is_in_charge
    world.run(3)
    assert world.brokers[B].is_in_charge
    world.add("w")
    world.run(1)
    world.assert_agreed()


def test_a_standby_that_never_heard_of_its_primary_does_not_take_over() -> None:
    world = World()
    world.kill_broker(A)
    world.run(30)
    assert not world.brokers[B].is_in_charge


def test_two_that_were_both_started_again_find_out_who_is_in_charge() -> None:
    world = begun()
    world.kill_broker(A)
    world.kill_broker(B)
    world.run(0.3)
    world.start_broker(A, B)
    world.start_broker(B, A)
    world.run(15)
    world.assert_agreed()
    world.add("late")
    world.run(4)
    world.assert_agreed()


def test_who_is_left_of_a_cluster_whose_most_members_died_too_goes_on_when_the_primary_is_started_again() -> None:
    world = begun(5)
    world.kill_broker(A)
    for name in ("w1", "w2", "w3", "w4"):
        world.kill(name)
    world.run(10)
    assert not world.brokers[B].is_in_charge  # one of five: the others may be with the primary
    world.start_broker(A, B)
    world.run(8)
    assert world.in_charge().name == B
    world.assert_agreed()


def test_a_standby_that_leaves_is_not_waited_for() -> None:
    world = begun(0)
    first = world.brokers[A]
    world.kill_broker(B)
    world.run(1)
    assert first.heard(StandbyLost) == [StandbyLost(B, False)]
    late = world.add("late")
    world.run(5)
    assert late.session.state == "joining"  # the standby may be in charge of a cluster without members
    world.start_broker(B, A)
    world.run(2)
    assert late.session.state == "up"


def test_a_second_standby_is_refused() -> None:
    world = begun(1)
    world.start_broker("tcp://c:1", A)
    world.run(10)
    assert world.brokers[A].heard(StandbyJoined) == [StandbyJoined(B)]
    assert not world.brokers["tcp://c:1"].is_in_charge


def test_everybody_is_asked_to_stop_and_the_standby_too() -> None:
    world = begun(1)
    world.brokers[A].feed(StopDemand(None, "enough"))
    world.run(1)
    assert [news.why for news in world.brokers[B].heard(StopRequested)] == ["enough"]


def test_a_broker_started_again_by_hand_at_the_address_of_the_first_goes_on() -> None:
    world = begun()
    world.kill_broker(A)
    world.run(0.3)
    world.start_broker(A)
    world.run(8)
    world.assert_agreed()
    assert world.in_charge().name == A
    world.kill_broker(A)
    world.run(5)
    assert world.in_charge().name == B


def test_a_broker_started_by_hand_after_the_take_over_becomes_the_standby() -> None:
    world = begun()
    world.kill_broker(A)
    world.run(4)
    assert world.brokers[B].is_in_charge
    world.start_broker(A)
    world.run(5)
    world.assert_agreed()


def test_a_broker_whose_clock_is_behind_begins_above_what_was() -> None:
    world = begun()
    world.kill_broker(A)
    world.now -= 0.0
    first = world.start_broker(A)
    registry = first.seat.registry
    assert registry is not None
    registry.epoch = registry.book.epoch = registry.changes._epoch = 5
    world.run(10)
    world.assert_agreed()
    assert world.in_charge().seat.epoch > 5


def act(world: World, alive: list[MemberPlace]) -> None:
    chance = world.random
    brokers = [broker for broker in world.brokers.values() if not broker.is_dead]
    what = chance.choice(
        ("join", "join", "kill", "freeze", "cut", "cut", "heal", "broker", "stall", "reset", "freeze worker")
    )
    if what == "join":
        world.add(chance.choice([f"n{len(world.ids)}-{chance.randrange(1000)}", *list(world.ids.values())[:2]]))
    elif what == "kill" and len(alive) > 2:
        world.kill(chance.choice(alive).name)
    elif what == "broker" and len(brokers) == 2:
        victim = chance.choice(brokers).name
        world.kill_broker(victim)
        other = B if victim == A else A
        world.at(chance.choice((0.2, 3.0, 8.0)), lambda: world.start_broker(victim, other) and None)
    elif what in ("freeze", "stall") and brokers:
        broker = chance.choice(brokers)
        if not broker.is_frozen:
            world.freeze(broker)
            world.at(chance.choice((0.3, 1.2, 2.2, 6.0)), lambda: world.thaw(broker))
    elif what == "freeze worker" and alive:
        member = chance.choice(alive)
        if not member.is_frozen:
            world.freeze(member)
            world.at(chance.choice((0.3, 1.5, 2.2)), lambda: world.thaw(member))
    elif what == "cut" and alive:
        world.cut(chance.choice([*alive, *brokers]), chance.choice(brokers))
    elif what == "heal":
        world.heal()
    elif what == "reset":
        connections = [c for c in world.all_connections() if c.stands]
        if connections:
            world.sever(chance.choice(connections))


def history(seed: int) -> World:
    world = World(seed, latency=(0.002, 0.05, 0.2)[seed % 3])
    try:
        for index in range(world.random.choice((0, 1, 2, 3, 5))):
            world.add(f"w{index}")
        for _ in range(world.random.randint(3, 25)):
            world.run(world.random.random() * 1.5)
            act(world, [m for m in world.members.values() if m.session.state == "up"])
        world.heal()
        world.run(12)  # whoever was stopped or killed is back by then
        world.heal()
        world.run(25)
        for member in list(world.members.values()):
            if member.session.state in ("fenced", "refused"):
                world.kill(member.name)
        world.run(3)
        world.assert_agreed()
    except BaseException as error:
        raise AssertionError("\n".join([*world.trace, f"seed {seed}: {error!r}"])) from error
    return world


@pytest.mark.parametrize("part", range(4))
def test_histories_of_chance(part: int) -> None:
    took_over = 0
    for seed in range(part * 50, part * 50 + 50):
        world = history(seed)
        took_over += sum(len(broker.heard(TookOver)) for broker in world.brokers.values())
    assert took_over > 5
