from __future__ import annotations

from typing import Any

import pytest
from member_world import World

from zrpc.protocol.effects import Departure, Expectation, Joined, JoinFailed, Waiting
from zrpc.protocol.groups import MIXED
from zrpc.protocol.membership import RegistryOptions


def test_a_static_group_is_welcomed_when_it_is_complete() -> None:
    world = World()
    first = world.add("a", id=0, world_size=3)
    world.add("b", id=2, world_size=3)
    assert not first.heard(Joined)
    world.run(1.5)
    progress = first.heard(Waiting)[-1].progress
    assert (set(progress.present), progress.missing, progress.short, progress.total) == ({"a", "b"}, ("rank 1",), 1, 3)
    last = world.add("c", id=1, world_size=3)
    assert all(node.heard(Joined) for node in (first, last))
    assert set(first.session.members) == {"a", "b", "c"}
    assert {node.session.id for node in world.nodes.values()} == {0, 1, 2}


def test_one_who_leaves_while_waiting_is_missing_again() -> None:
    world = World()
    first, second = world.add("a", world_size=3), world.add("b", world_size=3)
    world.command(second, Departure())
    world.run(2)
    assert first.heard(Waiting)[-1].progress.short == 2
    world.add("c", world_size=3)
    assert not first.heard(Joined)
    world.add("d", world_size=3)
    assert first.heard(Joined)


def test_who_waits_for_expected_names_is_told_who_is_missing() -> None:
    world = World()
    world.feed(Expectation(("a", "b", "c")))
    node = world.add("a", wait=True)
    world.run(1.1)
    progress = node.heard(Waiting)[-1].progress
    assert (progress.present, progress.missing, progress.short) == (("a",), ("b", "c"), 2)
    at_once = world.add("b")
    assert at_once.heard(Joined)
    world.run(1.1)
    assert node.heard(Waiting)[-1].progress.missing == ("c",)
    assert not node.heard(Joined)
    world.feed(Expectation(("a", "b")))
    assert node.heard(Joined)


def test_who_waits_is_not_told_more_often_than_needed() -> None:
    world = World(RegistryOptions(heartbeat_interval=100.0, death_timeout=1000.0))
    node = world.add("a", world_size=60_000)
    world.run(1)
    told = len(node.heard(Waiting))
    for index in range(50):
        world.add(f"w{index}", world_size=60_000)
        world.run(0.01)
    assert len(node.heard(Waiting)) <= told + 2
    world.run(2)
    progress = node.heard(Waiting)[-1].progress
    assert (progress.short, progress.total) == (60_000 - 51, 60_000)


@pytest.mark.parametrize(
    ("present", "newcomer", "is_refused"),
    [
        ({}, {"world_size": 2, "strict": True}, True),
        ({"world_size": 2}, {"strict": True}, True),
        ({}, {"world_size": 2}, False),
        ({"world_size": 2}, {}, False),
        ({}, {"strict": True}, False),
        ({"world_size": 2}, {"world_size": 2, "strict": True}, False),
    ],
)
def test_static_and_dynamic_members_mix_unless_one_says_strict(
    present: dict[str, Any], newcomer: dict[str, Any], is_refused: bool
) -> None:
    world = World()
    world.add("a", **present)
    node = world.add("b", **newcomer)
    assert bool(node.heard(JoinFailed)) == is_refused
    if is_refused:
        assert str(node.heard(JoinFailed)[0].error) == MIXED


def test_waiting_members_die_too() -> None:
    world = World()
    node = world.add("a", world_size=2)
    world.crash(node)
    world.run(1)
    assert world.registry is not None
    assert world.registry.book.living_count == 0
    assert world.add("a", world_size=2).session.state == "joining"
