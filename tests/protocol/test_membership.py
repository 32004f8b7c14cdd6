"""Whole histories: one registry, some sessions, a link that loses, repeats and reorders."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from member_world import EPOCH_MS, Node, World

from zrpc.errors import ConfigError
from zrpc.protocol.effects import Departure, Fenced, JoinFailed, MemberGone, MemberUp
from zrpc.protocol.membership import SMALL, Book, RegistryOptions

NAMES = "abcdef"


def check_agreement(world: World) -> None:
    """All who are up know the same members, and the broker knows them too."""
    assert world.registry is not None
    expected = {r.name: (r.id, r.incarnation) for r in world.registry.book.living() if r.state == "up"}
    for node in world.nodes.values():
        if node.session.state == "up":
            known = {m.name: (m.id, m.incarnation) for m in node.session.members.values()}
            assert known == expected, (node.session, world.registry)
            assert expected[node.session.hello.name] == (node.session.id, node.session.incarnation)


def check_news(node: Node) -> None:
    """A life begins once before it ends, and never comes up twice in a row."""
    up: set[tuple[int, int]] = set()
    for news in node.news:
        if isinstance(news, MemberUp):
            key = (news.member.id, news.member.incarnation)
            assert key not in up
            assert key[0] not in {other for other, _ in up}
            up.add(key)
        elif isinstance(news, MemberGone):
            up.remove((news.member.id, news.member.incarnation))
    assert up == {(m.id, m.incarnation) for m in node.session.members.values() if m.id != node.session.id}


class Lives:
    """All (id, life) and incarnations that were ever given: none may be given twice to different processes."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], int] = {}

    def note(self, world: World) -> None:
        for node in world.nodes.values():
            session = node.session
            if session.id >= 0:
                key = (session.id, session.life)
                assert self.seen.setdefault(key, session.incarnation) == session.incarnation, key


def act(world: World, randomness: random.Random, left: list[Node], may_restart: bool) -> None:
    nodes = list(world.nodes.values())
    choice = randomness.choice(["add", "add", "crash", "leave", "reconnect", "freeze", "thaw", "wait", "restart"])
    node = randomness.choice(nodes) if nodes else None
    if choice == "add":
        world.add(randomness.choice(NAMES), id=randomness.choice([-1, -1, 2]))
    elif choice == "restart" and may_restart:
        # On the wall clock, brokers start seconds apart: lives given by one are told from the next one's by seconds.
        world.restart_broker(0.02 + randomness.random(), EPOCH_MS + int(world.now * 100_000))
    elif node is None:
        return
    elif choice == "crash":
        world.crash(node)
    elif choice == "leave" and not node.is_frozen:
        world.command(node, Departure())
        left.append(node)
    elif choice == "reconnect" and not node.is_frozen:
        world.reconnect(node)
    elif choice == "freeze":
        node.is_frozen = True
    elif choice == "thaw":
        world.thaw(node)


def live(seed: int, is_lossy: bool, may_restart: bool) -> World:
    randomness = random.Random(seed)
    world = World(RegistryOptions(small=randomness.choice([0, SMALL])))
    world.faults = randomness if is_lossy else None
    lives, left = Lives(), []
    for _ in range(20):
        act(world, randomness, left, may_restart)
        world.run(randomness.choice([0.0, 0.01, 0.1, 0.6, 2.0, 4.0]))
        lives.note(world)
    world.faults = None
    for node in list(world.nodes.values()):
        world.thaw(node)
    world.run(12)
    lives.note(world)
    return world


@given(st.integers(0, 2**32))
def test_on_a_good_link_all_agree_in_the_end(seed: int) -> None:
    world = live(seed, is_lossy=False, may_restart=False)
    check_agreement(world)
    for node in world.nodes.values():
        if node.session.state == "up":
            check_news(node)
        else:
            assert node.session.state in ("left", "refused", "fenced")
            assert node.session.state == "left" or node.heard(JoinFailed) or node.heard(Fenced)


@given(st.integers(0, 2**32))
def test_on_a_bad_link_all_agree_once_it_is_good_again(seed: int) -> None:
    world = live(seed, is_lossy=True, may_restart=False)
    check_agreement(world)
    for node in world.nodes.values():
        if node.session.state == "up":
            check_news(node)


@given(st.integers(0, 2**32))
def test_brokers_that_restart_at_any_time_end_in_agreement(seed: int) -> None:
    check_agreement(live(seed, is_lossy=seed % 2 == 0, may_restart=True))


# -------------------------------------------------------------------------------------------- book


def test_the_book_keeps_an_id_for_its_name() -> None:
    book = Book(EPOCH_MS, RegistryOptions())
    first = book.claim("a", -1)
    assert book.claim("a", 5) is first
    assert first.id == 5  # it has not lived: the id was only kept for it
    first.move("joined")
    assert book.claim("a", 6).id == 5
    assert book.claim("b", 5).id == 0
    assert not book.is_id_free(5, "b")


def test_incarnations_of_a_later_broker_are_above_those_of_an_earlier() -> None:
    early, late = Book(EPOCH_MS, RegistryOptions()), Book(EPOCH_MS + 1, RegistryOptions())
    assert [early.next_incarnation() for _ in range(4000)][-1] < late.next_incarnation()
    early.note_survivor(1 << 60)
    assert early.next_incarnation() == (1 << 60) + 1


@pytest.mark.parametrize(("beat", "death", "silence"), [(0.5, 0.9, 30.0), (0.5, 3.0, 2.0)])
def test_times_that_would_kill_the_living_are_refused(beat: float, death: float, silence: float) -> None:
    with pytest.raises(ConfigError, match="expected heartbeat_interval"):
        RegistryOptions.made_of(beat, death, silence)


@pytest.mark.parametrize("death", [0.2, 1.0, 3.0, 60.0])
def test_a_connection_without_a_sign_of_life_is_lost_before_the_death_timeout(death: float) -> None:
    options = RegistryOptions.made_of(0.1, death, 60.0)
    ask, wait = options.connection_heartbeats_ms
    assert 0 < ask < wait
    assert (ask + wait) / 1000 + options.loss_grace <= death
    assert RegistryOptions.made_of(0.5, 3.0, 30.0) == RegistryOptions()
