from __future__ import annotations

import pytest
from member_world import World, hello

from zrpc.errors import InvalidTransition, JoinRefused, StaleIncarnation
from zrpc.protocol.effects import (
    Announce,
    Arrival,
    BrokerBack,
    BrokerLost,
    Counts,
    Departure,
    Effect,
    Fenced,
    Inquiry,
    Joined,
    JoinFailed,
    LinkChange,
    MemberGone,
    MemberUp,
    Report,
    Send,
    ShutdownWish,
    Start,
    StopRequested,
    Tick,
)
from zrpc.protocol.session import COMMANDS, HELLO_INTERVAL, MEMBER_STATES, Session
from zrpc.wire.messages import (
    Beat,
    Challenge,
    Gone,
    Goodbye,
    Hello,
    Member,
    Members,
    Refusal,
    Resolve,
    Roster,
    Stop,
    Welcome,
)

EPOCH = 1000


def member(name: str, worker_id: int, incarnation: int) -> Member:
    return Member(name, worker_id, incarnation, 0, f"memory://{name}")


ME = member("me", 0, 10)
A1, A2 = member("a", 1, 11), member("a", 1, 12)
B = member("b", 2, 13)


def welcome(*others: Member, sequence: int = 5, epoch: int = EPOCH, nonce: int = 7) -> Welcome:
    return Welcome(nonce, 0, 10, 0, "c", epoch, sequence, 0.5, 3.0, Roster((ME, *others)))


def joined(*others: Member) -> Session:
    session = Session(hello("me", nonce=7))
    session.handle(Start(), 0.0)
    session.handle(Arrival(welcome(*others)), 0.0)
    assert session.state == "up"
    return session


def delta(previous: int, sequence: int, up: tuple[Member, ...] = (), gone: tuple[Member, ...] = ()) -> Members:
    rows = tuple(Gone(m.name, m.id, m.incarnation, "x") for m in gone)
    return Members(EPOCH, sequence, previous, False, Roster(up), rows)


def said(effects: list[Effect]) -> list[str]:
    """Effects in short: kinds of messages, and news with the incarnation they are about."""
    out = []
    for effect in effects:
        if isinstance(effect, Send):
            out.append(type(effect.message).__name__)
        elif isinstance(effect, Announce):
            news = effect.news
            about = f" {news.member.incarnation}" if isinstance(news, (MemberUp, MemberGone)) else ""
            out.append(type(news).__name__ + about)
    return out


def test_hello_is_repeated_until_it_is_answered() -> None:
    session = Session(hello("me", nonce=7))
    assert said(session.handle(Start(), 0.0)) == ["Hello"]
    assert session.next_deadline() == HELLO_INTERVAL
    assert said(session.handle(Tick(), 0.4)) == []
    assert said(session.handle(Tick(), 0.5)) == ["Hello"]
    assert said(session.handle(Arrival(welcome(A1)), 0.6)) == ["Joined", "MemberUp 11"]
    assert session.next_deadline() == pytest.approx(1.1)
    assert said(session.handle(Tick(), 1.1)) == ["Beat"]
    assert (session.id, session.incarnation, session.members["a"]) == (0, 10, A1)


def test_nothing_is_sent_while_nobody_is_there() -> None:
    session = Session(hello("me", nonce=7))
    session.handle(Start(), 0.0)
    session.handle(LinkChange("refused"), 0.1)
    assert session.next_deadline() is None
    assert said(session.handle(LinkChange("connected"), 9.0)) == ["Hello"]


def test_a_welcome_for_somebody_else_is_ignored() -> None:
    session = Session(hello("me", nonce=7))
    session.handle(Start(), 0.0)
    assert session.handle(Arrival(welcome(nonce=8)), 0.1) == []
    assert session.state == "joining"


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        # each: (messages, the news of the last one)
        ([delta(5, 6, up=(B,))], ["MemberUp 13"]),
        ([delta(5, 6, up=(B,)), delta(5, 6, up=(B,))], []),
        ([delta(5, 6, gone=(A1,))], ["MemberGone 11"]),
        ([delta(5, 6, gone=(A1,), up=(A2,))], ["MemberGone 11", "MemberUp 12"]),
        ([delta(5, 6, up=(A2,))], ["MemberGone 11", "MemberUp 12"]),
        ([delta(5, 7, up=(A2,)), delta(5, 6, gone=(A1,))], []),
        ([delta(3, 6, up=(A1,))], []),
        ([delta(6, 7, up=(B,))], ["Resolve"]),
        ([delta(6, 7, up=(B,)), delta(7, 8, up=(B,))], []),
        ([delta(5, 6, gone=(ME,))], []),
        ([Members(EPOCH, 7, 0, True, Roster((ME, B)))], ["MemberGone 11", "MemberUp 13"]),
        ([Members(EPOCH, 4, 0, True, Roster((ME, B)))], []),
        ([Members(EPOCH + 1, 7, 0, True, Roster((ME, B)))], []),
        ([Stop("enough")], ["StopRequested"]),
        ([Stop("enough"), Stop("enough")], []),
        ([Challenge(EPOCH)], ["Hello"]),
        ([Goodbye("the broker has stopped")], ["BrokerLost"]),
        ([Refusal.of(StaleIncarnation("newer"))], ["Fenced"]),
        ([Refusal.of(StaleIncarnation("newer"), 99)], []),
        ([Refusal.of(StaleIncarnation("newer")), delta(5, 6, up=(B,))], []),
        ([welcome(A1, B, sequence=7)], ["MemberUp 13"]),
        ([welcome(B, sequence=7)], ["MemberGone 11", "MemberUp 13"]),
        ([welcome(B, sequence=3)], []),
    ],
)
def test_what_a_member_makes_of_what_it_hears(history: list[Members | Stop | Challenge], expected: list[str]) -> None:
    session = joined(A1)
    effects: list[Effect] = []
    for message in history:
        effects = session.handle(Arrival(message), 1.0)
    assert said(effects) == expected


def test_a_refusal_while_joining_is_the_error() -> None:
    session = Session(hello("me", nonce=7))
    session.handle(Start(), 0.0)
    (effect,) = session.handle(Arrival(Refusal.of(JoinRefused("no room"), 7)), 0.1)
    assert isinstance(effect, Announce)
    assert isinstance(effect.news, JoinFailed)
    assert isinstance(effect.news.error, JoinRefused)
    assert session.next_deadline() is None


def test_a_lost_broker_is_told_once_and_its_return_too() -> None:
    session = joined(A1)
    assert said(session.handle(LinkChange("disconnected"), 1.0)) == ["BrokerLost"]
    assert said(session.handle(LinkChange("refused"), 1.1)) == []
    assert session.next_deadline() is None
    (effect,) = session.handle(LinkChange("connected"), 2.0)
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Hello)
    assert (effect.message.id, effect.message.incarnation) == (0, 10)
    assert said(session.handle(Arrival(welcome(A1)), 2.1)) == ["BrokerBack"]


def test_a_restarted_broker_is_given_time_to_learn_its_members() -> None:
    session = joined(A1, B)
    session.handle(LinkChange("disconnected"), 1.0)
    session.handle(LinkChange("connected"), 2.0)
    assert said(session.handle(Arrival(welcome(epoch=2000, sequence=1)), 2.0)) == ["BrokerBack"]
    message = Members(2000, 2, 1, False, Roster((A1,)))
    assert said(session.handle(Arrival(message), 2.5)) == []
    assert set(session.members) == {"me", "a", "b"}
    session.handle(Tick(), 3.0)
    assert said(session.handle(Tick(), 6.0)) == ["MemberGone 13", "Beat"]
    assert set(session.members) == {"me", "a"}


def test_a_session_says_goodbye_once() -> None:
    session = joined()
    assert said(session.handle(Departure("done"), 1.0)) == ["Goodbye"]
    assert said(session.handle(Departure("done"), 1.0)) == []
    assert session.handle(Arrival(Challenge(EPOCH)), 1.1) == []
    assert session.next_deadline() is None


def test_counts_are_sent_when_they_change_and_else_with_the_heartbeat() -> None:
    session = joined()
    assert said(session.handle(ShutdownWish(Counts(1, 1, 0)), 1.0)) == ["ShutdownReport"]
    assert said(session.handle(Tick(), 1.1)) == ["CountsWanted"]
    assert said(session.handle(ShutdownWish(Counts(1, 1, 0)), 1.1)) == []
    assert said(session.handle(ShutdownWish(Counts(2, 1, 0)), 1.2)) == ["ShutdownReport"]
    assert said(session.handle(ShutdownWish(Counts(2, 1, 0)), 1.8)) == ["ShutdownReport"]


@pytest.mark.parametrize("command", [Start(), Report({}), Inquiry(), ShutdownWish(Counts())])
@pytest.mark.parametrize("state", ["new", "joining", *MEMBER_STATES, "refused", "fenced", "left"])
def test_commands_outside_their_states_change_nothing(command: object, state: str) -> None:
    session = joined()
    session.state = state
    if state in COMMANDS[type(command)]:
        session.handle(command, 1.0)
        return
    with pytest.raises(InvalidTransition, match=f"member in state {state} cannot take {type(command).__name__}"):
        session.handle(command, 1.0)
    assert session.state == state


def test_a_report_is_repeated_in_every_beat() -> None:
    world = World()
    node = world.add("a")
    world.command(node, Report({"calls_served": 4}))
    world.run(2)
    assert world.registry is not None
    assert world.registry.book.by_name["a"].statistics == {"calls_served": 4}


def test_an_inquiry_asks_for_everything() -> None:
    session = joined()
    before = session.answers
    (effect,) = session.handle(Inquiry(), 1.0)
    assert effect == Send(Resolve(5))
    session.handle(Arrival(Members(EPOCH, 5, 0, True, Roster((ME,)))), 1.1)
    assert session.answers == before + 1


def test_a_life_that_was_told_over_is_not_taken_back() -> None:
    """A restarted broker may list it. The member says so, again and again, until the broker agrees."""
    session = joined(A1, B)
    session.handle(Arrival(delta(5, 6, gone=(A1,))), 1.0)
    effects = session.handle(Arrival(welcome(A1, B, sequence=3, epoch=EPOCH + 1)), 2.0)
    assert said(effects) == ["BrokerBack", "Resolve"]
    assert effects[-1] == Send(Resolve(3, (Gone("a", 1, 11, "x"),)))
    assert set(session.members) == {"me", "b"}
    assert "Resolve" not in said(session.handle(Tick(), 2.1)), "not at once again"
    assert "Resolve" in said(session.handle(Tick(), 3.0))
    agreed = Members(EPOCH + 1, 4, 3, False, Roster(), (Gone("a", 1, 11, "y"),))
    assert said(session.handle(Arrival(agreed), 3.1)) == []
    assert "Resolve" not in said(session.handle(Tick(), 9.0))
    session.handle(Arrival(Members(EPOCH + 1, 5, 4, False, Roster((A2,)))), 9.1)
    assert session.members["a"] == A2, "another life of the name"


def test_the_repr_says_where_it_stands() -> None:
    session = joined(A1)
    assert repr(session) == "<Session me up id=0 incarnation=10 members=2>"
    session.handle(LinkChange("disconnected"), 1.0)
    assert repr(session) == "<Session me up id=0 incarnation=10 members=2 broker lost>"


def test_every_news_of_a_life_is_used() -> None:
    names = {cls.__name__ for cls in (Joined, BrokerBack, BrokerLost, Fenced, StopRequested)}
    assert names == {"Joined", "BrokerBack", "BrokerLost", "Fenced", "StopRequested"}
    assert Beat(3).sequence == 3
